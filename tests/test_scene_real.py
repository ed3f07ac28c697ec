"""Real files, made by other programs: opened rightly, or refused with a reason."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from satseg.errors import SatsegError
from satseg.imagery.scene import Scene, open_scene
from satseg.raster import Raster

pytestmark = pytest.mark.data

RGB = ("red", "green", "blue")
# path: bands and dtype of reads, or the code it is refused with
READERS = {
    "cog/alpha.tif": (RGB, "uint8"),
    "cog/cog_cmap.tif": (("b1",), "uint8"),
    "cog/cog_dateline.tif": (("b1",), "uint16"),
    "cog/cog_nodata_nan.tif": (("gamma0_vv",), "float32"),
    "cog/cog_rgb_mask.tif": (RGB, "uint8"),
    "cog/cog_rgba.tif": (RGB, "uint8"),
    "cog/cog_scale_epsg4326.tif": (("b1", "b2"), "float32"),
    "cog/float_nan.tif": (("b1",), "float32"),
    "cog/inverted_lat.tif": (("b1",), "float32"),
    "cog/rgb_deflate.tif": (RGB, "uint8"),
    "cog/rgb_lzw.tif": (RGB, "uint8"),
    "compress/12bit.cropped.rgb.tiff": (RGB, "uint16"),
    "compress/BigTIFF.tif": (RGB, "uint8"),
    "compress/BigTIFFLong.tif": (RGB, "uint8"),
    "compress/BigTIFFMotorola.tif": (RGB, "uint8"),
    "compress/int16_zstd.tif": (("b1",), "int16"),
    "compress/int8.tif": (("b1",), "int8"),
    "compress/issue_69_packbits.tiff": (("b1",), "uint16"),
    "compress/planar-rgb-u8.tif": (RGB, "uint8"),
    "compress/predictor-3-rgb-f32.tif": (RGB, "float32"),
    "compress/tiled-jpeg-ycbcr.tif": (RGB, "uint8"),
    "gcps/cog_gcps.tif": "E-CRS-101",
    "landsat8_files/LC08_L1TP_016037_20170813_20170814_01_RT_B8.TIF": (("pan",), "uint16"),
    "landsat8_files/LC08_L1TP_016037_20170813_20170814_01_RT_BQA.TIF": (("b1",), "uint16"),
    "landsat8_files/LC08_L1TP_016037_20170813_20170814_01_RT_MTL.txt": "E-IN-104",
    "rotated/no_pixelscale_or_tiepoints.tiff": (("b1",), "float32"),
    "rotated/sar_hh.tif": "E-IN-108",
    "rotated/umbra_mount_yasur.tiff": (("b1",), "uint8"),
    "sidecar_jpeg/OAM-386697-220243-19.tif": (RGB, "uint8"),
    "sidecar_jpeg/OAM-386697-220243-19.tif.aux.xml": "E-IN-104",
}


@pytest.mark.parametrize("name", READERS)
def test_each_file_opens_rightly_or_is_refused(data_dir, name):
    path, expected = data_dir / "readers" / name, READERS[name]
    if isinstance(expected, str):
        with pytest.raises(SatsegError) as caught:
            open_scene(path)
        assert caught.value.code == expected
        assert caught.value.exit_code == 3
        return
    scene = open_scene(path)
    assert (scene.bands, str(scene.dtype)) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            size = min(dataset.height, 1300), min(dataset.width, 1300)
            centre = (dataset.width - size[1]) // 2, (dataset.height - size[0]) // 2
            window = Window(*centre, size[1], size[0])
            stored = dataset.read([s.index for s in scene.sources], window=window)
            known = dataset.dataset_mask(window=window) > 0
            assert scene.grid.crs == dataset.crs
            if scene.sources[0].file.placed:
                assert scene.grid.transform == dataset.transform
    raster = scene.read(window=window)
    assert raster.valid.any() == (name != "cog/inverted_lat.tif")  # which holds nothing but nodata
    np.testing.assert_array_equal(raster.valid, known & np.isfinite(stored).all(axis=0))
    scales = np.reshape([(s.scale, s.offset) for s in scene.sources], (-1, 2, 1, 1))
    np.testing.assert_allclose(
        raster.data[:, raster.valid], (stored * scales[:, 0] + scales[:, 1])[:, raster.valid], rtol=1e-6
    )


def test_the_list_names_every_kind_of_file(data_dir):
    folder = data_dir / "readers"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()}
    landsat = {name for name in found if name.startswith("landsat8_files/")}
    assert found - landsat == {name for name in READERS if not name.startswith("landsat8_files/")}


def lines_up(raster: Raster, fine: str, coarse: str, *, reach: int = 3) -> tuple[int, int]:
    """The shift (rows, columns) of the second band at which the edges of two bands agree best."""
    first, second = (raster.select([name]).data[0].astype(np.float64) for name in (fine, coarse))
    down = [np.hypot(*np.gradient(plane)) for plane in (first, second)]
    core = (slice(reach, -reach),) * 2
    score = {}
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            moved = np.roll(down[1], (dy, dx), axis=(0, 1))[core]
            score[dy, dx] = np.corrcoef(down[0][core].ravel(), moved.ravel())[0, 1]
    return max(score, key=lambda shift: score[shift])


def landsat7(data_dir: Path, bands: str = "10 20 30 40 50 61 70 80") -> Scene:
    folder = data_dir / "s2_landsat" / "nc_landsat7"
    return open_scene([folder / f"lsat7_2000_{band}.tif" for band in bands.split()])


class TestLandsat7:
    """North Carolina: 14.25 m PAN, 28.5 m bands, 57 m thermal, of one corner and three extents."""

    def test_is_one_scene_on_the_pan_grid(self, data_dir):
        scene = landsat7(data_dir)
        assert scene.bands[:5] == ("blue", "green", "red", "nir", "swir1")
        assert scene.bands[7] == "pan"
        assert scene.grid.shape == (949, 1054)
        assert scene.grid.gsd_m() == pytest.approx(14.25, rel=1e-3)
        assert [band["resampling"] for band in scene.info()["bands"]] == ["bilinear"] * 7 + ["none"]

    def test_windows_are_crops_of_the_whole(self, data_dir):
        scene = landsat7(data_dir)
        whole = scene.read()
        assert whole.valid.mean() > 0.99
        with scene.reader() as reader:
            for window in (Window(0, 0, 128, 128), Window(513, 401, 200, 90), Window(950, 900, 104, 49)):
                part = reader.read(window)
                np.testing.assert_array_equal(part.data, whole.crop(window).data)
                np.testing.assert_array_equal(part.valid, whole.crop(window).valid)

    def test_bands_lie_on_pan_as_their_stored_pixels_do(self, data_dir):
        """Block means of stored PAN fit the bands best one PAN pixel to the left: the files' own shift."""
        raster = landsat7(data_dir, "80 10 20 30 40").read(window=Window(300, 300, 400, 400))
        for band in ("blue", "green", "red", "nir"):
            assert lines_up(raster, "pan", band) == (0, -1), band
            assert lines_up(raster, "green", band) == (0, 0), band

    def test_at_28_metres_the_bands_are_as_stored(self, data_dir):
        scene = landsat7(data_dir)
        coarse = scene.at_gsd(28.5)
        assert coarse.grid.resolution == pytest.approx((28.5, 28.5))
        with rasterio.open(data_dir / "s2_landsat" / "nc_landsat7" / "lsat7_2000_30.tif") as dataset:
            stored = dataset.read(1, window=Window(100, 100, 50, 40))
        got = coarse.read(window=Window(100, 100, 50, 40), bands=["red"])
        np.testing.assert_array_equal(got.data[0], stored)


class TestShanghai:
    """WorldView-3 PAN at 0.31 m and eight bands at 1.24 m of one footprint."""

    def test_pan_and_bands_are_one_scene(self, data_dir):
        folder = data_dir / "wv_spacenet"
        scene = open_scene([folder / f"{kind}_AOI_4_Shanghai_img1920.tif" for kind in ("MUL", "PAN")])
        assert scene.sensor == "worldview3"
        assert scene.bands[-1] == "pan"
        assert {"red", "green", "blue", "nir1"} < set(scene.bands)
        assert scene.grid.shape == (1300, 1300)
        assert scene.read(bands=["pan", "red"]).valid.all()

    def test_bands_lie_on_pan_as_their_stored_pixels_do(self, data_dir):
        """Block means of stored PAN fit stored red best 2 PAN pixels down, green 3: the files' own shift."""
        folder = data_dir / "wv_spacenet"
        scene = open_scene([folder / f"{kind}_AOI_4_Shanghai_img1920.tif" for kind in ("MUL", "PAN")])
        raster = scene.read(window=Window(300, 300, 500, 500), bands=["pan", "red", "green"])
        assert lines_up(raster, "pan", "red", reach=4) == (2, 0)
        assert lines_up(raster, "pan", "green", reach=4) == (3, 0)

    def test_the_mean_of_a_band_survives_refining(self, data_dir):
        folder = data_dir / "wv_spacenet"
        scene = open_scene([folder / f"{kind}_AOI_4_Shanghai_img1920.tif" for kind in ("MUL", "PAN")])
        with rasterio.open(folder / "MUL_AOI_4_Shanghai_img1920.tif") as dataset:
            stored = dataset.read()
        raster = scene.read(bands=scene.bands[:-1])
        np.testing.assert_allclose(raster.data.mean(axis=(1, 2)), stored.mean(axis=(1, 2)), rtol=2e-3)


def test_one_file_per_band_reads_as_one_scene(data_dir):
    paths = [data_dir / "wv_spacenet" / f"vegas2_wv3_{band}.tif" for band in "RGBN"]
    scene = open_scene(paths, bands=["red", "green", "blue", "nir"])
    raster = scene.read()
    assert scene.dtype == np.uint8
    for path, plane in zip(paths, raster.data, strict=True):
        with rasterio.open(path) as dataset:
            np.testing.assert_array_equal(plane, dataset.read(1))


def test_landsat_8_files_are_one_scene(data_dir):
    scene = open_scene(sorted((data_dir / "readers" / "landsat8_files").glob("*.TIF")))
    assert {"coastal", "blue", "green", "red", "nir", "swir1", "swir2", "pan", "cirrus"} < set(scene.bands)
    assert scene.bands[-1] == "b12"  # the quality band is nobody's spectral band
    assert scene.grid.shape == (519, 509)
    # Pan pixels are half as long, and its outer ring lies half a pan pixel within the other bands' edge.
    assert scene.read(bands=["pan", "red"]).valid.mean() > 0.98


def test_a_sentinel_2_patch_is_one_scene(data_dir):
    patch = next(
        path for path in sorted((data_dir / "s2_landsat" / "bigearthnet_tiny").iterdir()) if path.is_dir()
    )
    scene = open_scene(sorted(patch.glob("*.tif")))
    assert len(scene.bands) == 12
    assert scene.grid.shape == (120, 120)
    assert sorted({source.grid.width for source in scene.sources}) == [20, 60, 120]
    raster = scene.read()
    assert raster.valid.all()
    sixty = scene.at_gsd(60.0).read()
    means = raster.data.reshape(12, 20, 6, 20, 6).mean(axis=(2, 4))
    fine = [scene.bands.index(name) for name in ("blue", "green", "red", "nir")]
    np.testing.assert_allclose(sixty.data[fine], means[fine], rtol=1e-5)


def test_names_with_spaces_and_degrees_that_are_not_square(data_dir):
    scene = open_scene(sorted((data_dir / "s2_landsat" / "opengeo_s2").glob("*.tiff")))
    assert len(scene.bands) == 8
    assert scene.dtype == np.uint8
    east, north = scene.grid.resolution
    assert east != north
    assert scene.at_gsd(20.0).read(window=Window(300, 300, 50, 60), bands=scene.bands[:2]).valid.all()


def test_nodata_is_that_of_the_file(data_dir):
    scene = open_scene(data_dir / "s2_landsat" / "opengeo_l7" / "LE70220491999322EDC01_stack.gtif")
    raster = scene.read()
    with rasterio.open(scene.paths[0]) as dataset:
        stored = dataset.read()
    np.testing.assert_array_equal(raster.valid, ~(stored == -9999).any(axis=0))
    assert scene.dtype == np.int16


def test_land_cover_codes_stay_codes(data_dir):
    scene = open_scene(data_dir / "s2_landsat" / "geo2ml_s2" / "clc_2018_lataseno.tif")
    codes = set(np.unique(scene.read().data))
    assert set(np.unique(scene.at_gsd(47.0).read().data)) <= codes
