"""Files of several grids and CRSs on one grid: every window the crop of the whole, and bands that line up."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import rasterio.warp
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from satseg.grid import Grid
from satseg.imagery import reading
from satseg.imagery.scene import open_scene
from tests.factories import ORIGIN, UTM, noise, north_up, rotated, smooth, write_tiff


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> list:
    """Five files of one ground, each with a hole: PAN at 10 m, coarser, south-up, rotated, in degrees."""
    folder = tmp_path_factory.mktemp("mixed")
    degrees = Affine(2.3e-4, 0, 14.9985, 0, -1.9e-4, 45.1542)
    made = []
    for name, height, width, transform, crs in (
        ("pan", 90, 110, north_up(10.0), UTM),
        ("coarse", 40, 50, north_up(23.7, x=ORIGIN[0] + 3, y=ORIGIN[1] - 11), UTM),
        ("flipped", 60, 70, Affine(17.0, 0, ORIGIN[0] - 20, 0, 19.0, ORIGIN[1] - 1000), UTM),
        ("turned", 70, 90, rotated(20, 12.0, x=ORIGIN[0] - 300, y=ORIGIN[1] + 100), UTM),
        ("degrees", 70, 80, degrees, "EPSG:4326"),
    ):
        data = noise(1, height, width, dtype="float32", seed=height)
        data[0, height // 3 : height // 3 + 3, width // 2 : width // 2 + 4] = -9999
        made.append(write_tiff(folder / f"{name}.tif", data, transform=transform, crs=crs, nodata=-9999))
    return made


NAMES = ["pan", "coarse", "flipped", "turned", "degrees"]


def crop_of(whole, window: Window):
    """Data and validity of `window` cut out of a whole read; outside it is 0 and not valid: the oracle."""
    pad = 200
    data = np.pad(np.where(whole.valid, whole.data, 0), ((0, 0), (pad, pad), (pad, pad)))
    valid = np.pad(whole.valid, pad)
    top, left = window.row_off + pad, window.col_off + pad
    rows, cols = slice(top, top + window.height), slice(left, left + window.width)
    return data[:, rows, cols], valid[rows, cols]


def whole_of(raster):
    """`raster` with every pixel valid: tells which pixels of a window lie inside the grid."""
    return type(raster)(raster.data, raster.grid, raster.names)


class TestSeveralFiles:
    def test_the_finest_grid_leads_and_the_first_among_equals(self, tmp_path):
        coarse = write_tiff(tmp_path / "c.tif", noise(1, 10, 10), transform=north_up(20))
        fine = write_tiff(tmp_path / "f.tif", noise(1, 20, 22))
        same = write_tiff(tmp_path / "s.tif", noise(1, 20, 20), transform=north_up(10, x=ORIGIN[0] + 40))
        assert open_scene([coarse, fine, same]).grid == Grid(20, 22, north_up(), UTM)
        assert open_scene([coarse, same, fine]).grid.width == 20

    def test_the_finest_is_judged_in_metres(self, tmp_path):
        degrees = Affine(1e-4, 0, 14.9999, 0, -1e-4, 45.1542)
        lonlat = write_tiff(tmp_path / "d.tif", noise(1, 30, 30), transform=degrees, crs="EPSG:4326")
        metres = write_tiff(tmp_path / "m.tif", noise(1, 30, 30), transform=north_up(12.0))
        assert open_scene([metres, lonlat]).grid.crs.to_epsg() == 4326  # 7.9 x 11.1 m

    @pytest.mark.parametrize("method", ["auto", "nearest", "bilinear", "cubic", "average"])
    @pytest.mark.parametrize("change", ["as opened", "coarser", "finer", "turned"])
    def test_every_window_is_the_crop_of_the_whole(self, mixed, method, change):
        scene = open_scene(mixed, bands=NAMES, resampling=method)
        if change == "turned":
            scene = scene.on_grid(Grid(61, 73, rotated(-33, 14.0, y=ORIGIN[1] - 200), UTM))
        elif change != "as opened":
            scene = scene.at_gsd({"coarser": 41.0, "finer": 4.3}[change]).select(["pan", "coarse", "degrees"])
        whole = scene.read()
        rng = np.random.default_rng(7)
        with scene.reader() as reader:
            for _ in range(8):
                top, left = rng.integers(-30, whole.grid.height), rng.integers(-30, whole.grid.width)
                window = Window(int(left), int(top), int(rng.integers(1, 60)), int(rng.integers(1, 60)))
                part = reader.read(window)
                data, valid = crop_of(whole, window)
                inside = crop_of(whole_of(whole), window)[1]
                np.testing.assert_array_equal(part.valid[inside], valid[inside])
                np.testing.assert_array_equal(part.data[:, inside], data[:, inside])
        assert 0 < whole.valid.mean() < 1
        assert not whole.data[:, ~whole.valid].any()

    @pytest.mark.parametrize("method", ["auto", "bilinear", "cubic", "average"])
    def test_reading_in_pieces_changes_nothing(self, mixed, method, monkeypatch):
        scene = open_scene(mixed, bands=NAMES, resampling=method)
        scenes = [scene, scene.at_gsd(40), scene.on_grid(Grid(30, 20, rotated(10, 35.0), UTM))]
        whole = [one.read() for one in scenes]
        for limit in ("MAX_SOURCE_PX", "MAX_OUTPUT_PX", "MAX_WARPED_PX"):
            monkeypatch.setattr(reading, limit, 2000)
        for one, wanted in zip(scenes, whole, strict=True):
            np.testing.assert_array_equal(one.read().data, wanted.data)
            np.testing.assert_array_equal(one.read().valid, wanted.valid)

    @pytest.mark.parametrize("method", ["auto", "cubic"])
    def test_products_of_one_ground_line_up(self, tmp_path, method):
        """One function of x, y sampled by each grid: half a pixel of shift would show as 0.6."""
        places = {
            "pan": (north_up(5.0), UTM, 200, 240),
            "half": (north_up(10.0, x=ORIGIN[0] - 5, y=ORIGIN[1] + 5), UTM, 102, 122),
            "tall": (north_up(8.0, gsd_y=15.0, x=ORIGIN[0] - 16, y=ORIGIN[1] + 30), UTM, 72, 155),
            "flipped": (Affine(10.0, 0, ORIGIN[0] - 13, 0, 10.0, ORIGIN[1] - 1020), UTM, 105, 125),
            "turned": (rotated(35, 11.0, x=ORIGIN[0] - 900, y=ORIGIN[1] + 600), UTM, 280, 300),
        }
        paths = [
            write_tiff(tmp_path / f"{name}.tif", smooth(height, width, place), transform=place, crs=crs)
            for name, (place, crs, height, width) in places.items()
        ]
        raster = open_scene(paths, bands=list(places), resampling=method).read(
            gsd=None if method == "cubic" else 7.0
        )
        assert raster.valid.mean() > 0.9
        for name, plane in zip(raster.names, raster.data, strict=True):
            apart = (plane - raster.data[0])[raster.valid]
            assert abs(apart.mean()) < 0.01, name
            # Interpolation error of the coarsest kernel; the last half pixel at a file's edge is worse.
            assert np.quantile(np.abs(apart), 0.97) < 0.15, name

    def test_a_product_in_degrees_lines_up(self, tmp_path):
        move = rasterio.warp.transform
        degrees = Affine(1.1e-4, 0, 14.9985, 0, -0.8e-4, 45.1545)
        cols, rows = np.meshgrid(np.arange(300) + 0.5, np.arange(200) + 0.5)
        xs, ys = move(
            "EPSG:4326", UTM, (degrees.a * cols + degrees.c).ravel(), (degrees.e * rows + degrees.f).ravel()
        )
        x, y = np.reshape(xs, cols.shape) - ORIGIN[0], np.reshape(ys, cols.shape) - ORIGIN[1]
        value = 100 + 40 * np.sin(x / 300) + 30 * np.cos(y / 300 + x / 600)
        pan = write_tiff(tmp_path / "p.tif", smooth(150, 180, north_up(5.0)), transform=north_up(5.0))
        other = write_tiff(tmp_path / "d.tif", value, transform=degrees, crs="EPSG:4326")
        raster = open_scene([pan, other], resampling="cubic").read()
        assert raster.valid.all()
        assert np.abs(raster.data[0] - raster.data[1]).max() < 0.02

    @pytest.mark.parametrize(
        ("method", "gdal", "tolerance"),
        [
            ("bilinear", Resampling.bilinear, 0.5),
            ("cubic", Resampling.cubic, 0.5),
            ("nearest", Resampling.nearest, 0.0),
        ],
    )
    def test_gdal_warps_to_nearly_the_same(self, tmp_path, method, gdal, tolerance):
        data = smooth(80, 90, north_up()).astype("float32")
        path = write_tiff(tmp_path / "a.tif", data)
        target = Grid(100, 90, Affine(1e-4, 0, 15.0005, 0, -7e-5, 45.1535), "EPSG:4326")
        ours = open_scene(path, resampling=method).on_grid(target).read()
        with (
            rasterio.open(path) as dataset,
            WarpedVRT(
                dataset, crs="EPSG:4326", transform=target.transform, height=100, width=90, resampling=gdal
            ) as vrt,
        ):
            theirs, ok = vrt.read(1), vrt.read_masks(1) > 0
        both = ours.valid[0:100] & ok
        assert both.mean() > 0.5
        assert (ours.valid != ok).mean() < 0.02
        apart = np.abs(ours.data[0] - theirs)[both]
        assert (apart > tolerance).mean() < 0.02  # GDAL's edges, and ties of nearest

    def test_a_part_outside_a_file_is_not_valid(self, tmp_path):
        fine = write_tiff(tmp_path / "f.tif", noise(1, 40, 40))
        part = write_tiff(tmp_path / "p.tif", noise(1, 5, 8), transform=north_up(20, x=ORIGIN[0] + 100))
        valid = open_scene([fine, part]).read().valid
        wanted = np.zeros((40, 40), bool)
        wanted[:10, 10:26] = True
        np.testing.assert_array_equal(valid, wanted)

    def test_files_without_a_place_lie_on_each_other(self, tmp_path):
        planes = noise(2, 9, 14)
        paths = [
            write_tiff(tmp_path / f"{i}.tif", plane, transform=Affine.identity(), crs=None)
            for i, plane in enumerate(planes)
        ]
        np.testing.assert_array_equal(open_scene(paths).read().data, planes)
