"""Scenes read back what rasterio wrote, window by window, and tell what they are."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import rasterio
import rasterio.warp
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from satseg.errors import BandError, CRSError, GridError, UsageError
from satseg.grid import Grid
from satseg.imagery.scene import Scene, open_scene
from tests.factories import ORIGIN, UTM, noise, north_up, rotated, write_tiff

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
LAYOUTS = {
    "strips": {},
    "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "deflate"},
    "bands": {"interleave": "band", "compress": "lzw"},
    "predicted": {"compress": "zstd", "predictor": 2},
}


def crop_of(whole, window: Window):
    """Data and validity of `window` cut out of a whole read; outside it is 0 and not valid: the oracle."""
    pad = 200
    data = np.pad(np.where(whole.valid, whole.data, 0), ((0, 0), (pad, pad), (pad, pad)))
    valid = np.pad(whole.valid, pad)
    top, left = window.row_off + pad, window.col_off + pad
    rows, cols = slice(top, top + window.height), slice(left, left + window.width)
    return data[:, rows, cols], valid[rows, cols]


THREE = ["pan", "coarse", "degrees"]


@pytest.fixture
def three(tmp_path) -> list:
    """One ground at 10 m, at 23.7 m, and in degrees."""
    degrees = Affine(2.3e-4, 0, 14.9985, 0, -1.9e-4, 45.1542)
    return [
        write_tiff(tmp_path / "pan.tif", noise(1, 30, 40), nodata=9),
        write_tiff(tmp_path / "coarse.tif", noise(1, 40, 50), transform=north_up(23.7)),
        write_tiff(tmp_path / "degrees.tif", noise(1, 70, 80), transform=degrees, crs="EPSG:4326"),
    ]


class TestOneFile:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_reads_what_was_written(self, tmp_path, dtype, layout):
        data = noise(3, 45, 70, dtype=dtype)
        scene = open_scene(write_tiff(tmp_path / "a.tif", data, **LAYOUTS[layout]))
        raster = scene.read()
        assert scene.dtype == raster.data.dtype == data.dtype
        np.testing.assert_array_equal(raster.data, data)
        assert raster.valid.all()
        assert raster.grid == scene.grid == Grid(45, 70, north_up(), UTM)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(-30, 60), st.integers(-30, 80), st.integers(1, 60), st.integers(1, 60))
    def test_a_window_is_the_crop_of_the_whole(self, tmp_path, top, left, height, width):
        path = tmp_path / "a.tif"
        if not path.exists():
            data = noise(2, 45, 70, dtype="uint8")
            data[:, 10:20, 30:40] = 0
            write_tiff(path, data, nodata=0)
        scene = open_scene(path)
        window = Window(left, top, width, height)
        part = scene.read(window=window)
        wanted, wanted_ok = crop_of(scene.read(), window)
        np.testing.assert_array_equal(part.data, wanted)
        np.testing.assert_array_equal(part.valid, wanted_ok)
        assert part.grid == scene.grid.crop(window)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 33), (33, 1), (17, 2)])
    def test_small_and_thin_files_read(self, tmp_path, shape):
        data = noise(2, *shape)
        scene = open_scene(write_tiff(tmp_path / "a.tif", data))
        np.testing.assert_array_equal(
            scene.read(window=Window(-4, -4, 50, 50)).data[:, 4:, 4:][:, : shape[0], : shape[1]], data
        )

    def test_bands_are_read_in_the_order_asked_for(self, tmp_path):
        data = noise(4, 9, 13)
        scene = open_scene(write_tiff(tmp_path / "a.tif", data), bands=["a", "b", "c", "d"])
        with scene.reader() as reader:
            raster = reader.read(scene.grid.window, ["c", "a"])
        assert raster.names == ("c", "a")
        np.testing.assert_array_equal(raster.data, data[[2, 0]])
        np.testing.assert_array_equal(scene.select(["c", "a"]).read().data, data[[2, 0]])
        np.testing.assert_array_equal(scene.read(bands=["d"]).data, data[[3]])

    def test_bounds_in_any_crs_pick_the_window(self, tmp_path):
        data = noise(1, 40, 50)
        scene = open_scene(write_tiff(tmp_path / "a.tif", data))
        left, top = ORIGIN
        own = scene.read(bounds=(left + 100, top - 200, left + 200, top - 50))
        np.testing.assert_array_equal(own.data, data[:, 5:20, 10:20])
        lonlat = scene.grid.crop(Window(10, 5, 10, 15)).footprint("EPSG:4326").bounds
        again = scene.read(bounds=lonlat, bounds_crs="EPSG:4326")
        assert abs(again.grid.height - 15) <= 2
        assert abs(again.grid.width - 10) <= 2

    def test_a_file_without_a_place_is_read_in_pixels(self, tmp_path):
        data = noise(3, 21, 34, dtype="uint8")
        scene = open_scene(write_tiff(tmp_path / "a.tif", data, transform=Affine.identity(), crs=None))
        assert scene.grid == Grid(21, 34, Affine.identity())
        np.testing.assert_array_equal(scene.read().data, data)
        assert scene.__geo_interface__["type"] == "Polygon"
        assert scene.info()["grid"]["crs"] is None
        half = scene.at_gsd(2.0)
        np.testing.assert_allclose(half.read().data[:, 0, 0], data[:, :2, :2].mean(axis=(1, 2)))

    @pytest.mark.parametrize("driver", ["PNG", "JPEG", "JP2OpenJPEG"])
    def test_plain_image_formats_are_read(self, tmp_path, driver):
        suffix = {"PNG": "png", "JPEG": "jpg", "JP2OpenJPEG": "jp2"}[driver]
        options = {"QUALITY": "100", "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
        data = np.full((3, 32, 40), 90, "uint8")
        path = write_tiff(
            tmp_path / f"a.{suffix}", data, transform=Affine.identity(), crs=None, driver=driver, **options
        )
        scene = open_scene(path)
        assert len(scene.bands) == 3
        np.testing.assert_allclose(scene.read().data, 90, atol=2)

    def test_src_crs_places_a_file_without_one(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", noise(1, 9, 9), crs=None)
        assert open_scene(path).grid.crs is None
        assert open_scene(path, src_crs=UTM).grid.crs.to_epsg() == 32633

    def test_the_files_own_crs_beats_src_crs_and_says_so(self, tmp_path):
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 9, 9)), src_crs="EPSG:32634")
        assert scene.grid.crs.to_epsg() == 32633
        assert "EPSG:32634" in scene.warnings[0]


class TestScene:
    def test_opening_reads_no_pixels(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", noise(1, 64, 64), tiled=True, blockxsize=16, blockysize=16)
        content = path.read_bytes()
        offsets = sorted(open_offsets(path))
        path.write_bytes(content[: offsets[1]] if offsets[1] > len(content) // 2 else content)
        assert open_scene(path).grid.shape == (64, 64)

    def test_is_picklable_and_equal_to_its_copy(self, three):
        scene = open_scene(three, bands=THREE)
        copy = pickle.loads(pickle.dumps(scene))
        assert copy == scene
        np.testing.assert_array_equal(copy.read().data, scene.read().data)

    def test_info_is_json_and_tells_all(self, three):
        info = json.loads(json.dumps(open_scene(three, bands=THREE).info(), allow_nan=False))
        assert [band["name"] for band in info["bands"]] == THREE
        assert info["grid"]["crs"] == UTM
        assert info["naming"] == "by the caller"
        assert [band["resampling"] for band in info["bands"]] == ["none", "bilinear", "bilinear"]
        assert info["bands"][0]["nodata"] == 9

    def test_nan_nodata_is_text_in_info(self, tmp_path):
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 4, 4, dtype="float32"), nodata=np.nan))
        assert json.loads(json.dumps(scene.info(), allow_nan=False))["bands"][0]["nodata"] == "nan"

    def test_shows_itself_with_a_picture(self, tmp_path):
        path = write_tiff(tmp_path / "a<b>.tif", noise(3, 60, 50), descriptions=("<script>", "x", "y"))
        page = open_scene(path)._repr_html_()
        assert "<script>" not in page
        assert "a&lt;b&gt;" in page
        assert "data:image/png" in page

    def test_a_giant_without_overviews_shows_itself_without_a_picture(self, tmp_path):
        path = tmp_path / "giant.tif"
        options = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": UTM, "transform": north_up(0.1)}
        blocks = {"tiled": True, "blockxsize": 4096, "blockysize": 4096, "SPARSE_OK": True}
        with rasterio.open(path, "w", height=200_000, width=200_000, **options, **blocks):
            pass
        scene = open_scene(path)
        assert "no picture" in scene._repr_html_()
        assert scene.read(window=Window(150_000, 199_000, 30, 20)).shape == (1, 20, 30)

    def test_has_its_outline_in_degrees(self, tmp_path):
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 40, 50)))
        lon, lat = np.array(scene.__geo_interface__["coordinates"][0]).T
        assert lon.min() == pytest.approx(15.0)
        assert lat.max() == pytest.approx(45.1535, abs=1e-3)

    def test_a_working_resolution_gives_its_grid(self, tmp_path):
        data = noise(1, 40, 60)
        scene = open_scene(write_tiff(tmp_path / "a.tif", data), gsd=20.0)
        assert scene.grid == Grid(20, 30, north_up(20.0), UTM)
        means = data.reshape(1, 20, 2, 30, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(scene.read().data, means, rtol=1e-6)
        np.testing.assert_array_equal(
            scene.read(window=Window(3, 4, 5, 6)).data, scene.read().data[:, 4:10, 3:8]
        )

    def test_its_name_is_what_the_files_share(self, tmp_path):
        paths = [write_tiff(tmp_path / f"ls_2000_{band}.tif", noise(1, 4, 4)) for band in ("10", "11")]
        assert open_scene(paths).name == "ls_2000"
        assert open_scene(paths[0]).name == "ls_2000_10"

    def test_big_reductions_to_another_crs_average_all_pixels(self, tmp_path):
        data = noise(1, 400, 400, dtype="uint8")
        scene = open_scene(write_tiff(tmp_path / "a.tif", data))
        moved = scene.on_grid(Grid(20, 20, rotated(45, 100.0, x=ORIGIN[0] + 600, y=ORIGIN[1] - 1000), UTM))
        raster = moved.read()
        inside = raster.data[0][raster.valid]
        # 100 independent pixels of standard deviation 34 behind each: nearest would leave 34 or so.
        assert inside.std() < 5
        assert abs(inside.mean() - data.mean()) < 1

    @pytest.mark.parametrize(
        "window", [Window(0, 0, 0, 5), Window(0, 0, 5, 0), Window(0.5, 0, 3, 3), Window(0, 0, 2.5, 3)]
    )
    def test_empty_windows_and_parts_of_pixels_are_refused(self, tmp_path, window):
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 9, 9)))
        with pytest.raises(GridError) as caught:
            scene.read(window=window)
        assert caught.value.code == "E-GRID-101"

    @pytest.mark.parametrize("bands", [["nir"], [], ["b1", "b1"]])
    def test_unknown_no_and_repeated_bands_are_refused(self, tmp_path, bands):
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(2, 9, 9)))
        with pytest.raises(BandError, match=r"b1.*b2") as caught:
            scene.select(bands)
        assert caught.value.code == "E-BAND-101"

    def test_a_window_and_bounds_at_once_are_refused(self, tmp_path):
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 9, 9)))
        with pytest.raises(UsageError):
            scene.read(window=Window(0, 0, 1, 1), bounds=scene.grid.bounds)

    def test_a_grid_elsewhere_or_without_crs_is_refused(self, tmp_path):
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 9, 9)))
        with pytest.raises(GridError) as caught:
            scene.on_grid(Grid(5, 5, north_up(x=0.0), UTM))
        assert caught.value.code == "E-GRID-103"
        with pytest.raises(CRSError) as caught:
            scene.on_grid(Grid(5, 5, Affine(0.1, 0, 100, 0, -0.1, 20), "EPSG:4326"))
        assert caught.value.code == "E-CRS-103"
        with pytest.raises(CRSError) as caught:
            scene.on_grid(Grid(5, 5, north_up()))
        assert caught.value.code == "E-CRS-105"

    def test_no_files_and_unknown_methods_are_refused(self, tmp_path):
        with pytest.raises(UsageError):
            open_scene([])
        with pytest.raises(UsageError, match="lanczos"):
            open_scene(write_tiff(tmp_path / "a.tif", noise(1, 4, 4)), resampling="lanczos")

    def test_is_made_of_frozen_values(self, tmp_path):
        scene = open_scene(write_tiff(tmp_path / "a.tif", noise(1, 4, 4)))
        assert isinstance(scene, Scene)
        with pytest.raises(AttributeError):
            scene.name = "other"


def open_offsets(path) -> list[int]:
    """Where the blocks of a TIFF begin."""
    with rasterio.open(path) as dataset:
        found = [
            dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1)
            for row in range(4)
            for col in range(4)
        ]
    return [int(offset) for offset in found]
