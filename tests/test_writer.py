"""RasterWriter and open_mask: what is written is what is read, or nothing is there."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from satseg.errors import BandError, GridError, InputError, OutputError, SatsegError, UsageError
from satseg.grid import Grid
from satseg.imagery import writer as writer_module
from satseg.imagery.scene import open_scene
from satseg.imagery.writer import RasterWriter, open_mask, write_raster
from satseg.raster import Raster

DISK_SIZE = "128k"

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
NORTH_UP = Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)
GRIDS = {
    "utm": Grid(37, 53, NORTH_UP, 32633),
    "larger than a block": Grid(700, 530, NORTH_UP, 32633),
    "rotated": Grid(37, 53, NORTH_UP * Affine.rotation(30), 32633),
    "south-up": Grid(37, 53, Affine(0.3, 0, 0, 0, 0.5, 0), 3857),
    "no crs": Grid(37, 53, Affine(2, 0, 10, 0, -3, 20)),
    "pixel space": Grid(37, 53, Affine.identity()),
    "one pixel": Grid(1, 1, NORTH_UP, 4326),
    "one row": Grid(1, 600, NORTH_UP, 4326),
    "one column": Grid(600, 1, NORTH_UP, 4326),
    "custom crs": Grid(5, 7, NORTH_UP, "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m"),
    "compound crs": Grid(5, 7, NORTH_UP, "EPSG:7405"),
}


@pytest.fixture(params=list(GRIDS))
def grid(request: pytest.FixtureRequest) -> Grid:
    return GRIDS[request.param]


def noise(grid: Grid, *, bands: int = 2, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((bands, *grid.shape)) * 200).astype(dtype)


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SatsegError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def write_whole(path: Path, grid: Grid, data: np.ndarray, **options: Any) -> None:
    names = [f"band {k}" for k in range(len(data))]
    with RasterWriter(path, grid=grid, names=names, dtype=data.dtype, **options) as out:
        out.write(data, grid.window)


def test_file_reads_back_equal_on_every_kind_of_grid(tmp_path: Path, grid: Grid) -> None:
    data = noise(grid)
    valid = np.random.default_rng(1).random(grid.shape) > 0.2
    write_raster(Raster(data, grid, ("a", "b"), valid), tmp_path / "m.tif")
    with open_mask(tmp_path / "m.tif") as mask:
        back = mask.read()
    assert Grid(back.grid.height, back.grid.width, back.grid.transform, grid.crs).matches(grid)
    assert (back.grid.crs is None) == (grid.crs is None)
    assert back.names == ("a", "b")
    np.testing.assert_array_equal(back.valid, valid)
    np.testing.assert_array_equal(back.data, np.where(valid, data, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compress", ["deflate", "zstd", "lzw", None])
def test_every_dtype_and_codec_keeps_every_pixel(tmp_path: Path, dtype: str, compress: str | None) -> None:
    grid = GRIDS["utm"]
    data = noise(grid, dtype=dtype)
    write_whole(tmp_path / "m.tif", grid, data, compress=compress)
    with rasterio.open(tmp_path / "m.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), data)
        assert set(dataset.dtypes) == {dtype}


def test_bool_is_stored_as_zero_and_one(tmp_path: Path) -> None:
    grid = GRIDS["utm"]
    data = noise(grid) > 100
    write_raster(Raster(data, grid, ("a", "b")), tmp_path / "m.tif")
    with open_mask(tmp_path / "m.tif") as mask:
        assert mask.nodata is None
        np.testing.assert_array_equal(mask.read().data, data.astype(np.uint8))


@settings(max_examples=25, deadline=None)
@given(cuts=st.data())
def test_windows_in_any_order_make_the_whole(tmp_path_factory: pytest.TempPathFactory, cuts: Any) -> None:
    path = tmp_path_factory.mktemp("w") / "m.tif"
    grid = Grid(60, 90, NORTH_UP, 32633)
    data = noise(grid)
    rows = sorted({0, 60, *cuts.draw(st.lists(st.integers(1, 59), max_size=4))})
    cols = sorted({0, 90, *cuts.draw(st.lists(st.integers(1, 89), max_size=4))})
    windows = [Window(c0, r0, c1 - c0, r1 - r0) for r0, r1 in pairwise(rows) for c0, c1 in pairwise(cols)]
    with RasterWriter(path, grid=grid, names="ab", dtype="uint8") as out:
        for window in cuts.draw(st.permutations(windows)):
            part = data[:, window.row_off :, window.col_off :][:, : window.height, : window.width]
            out.write(part, window)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), data)


def test_a_window_written_twice_holds_the_second(tmp_path: Path) -> None:
    grid = GRIDS["utm"]
    with RasterWriter(tmp_path / "m.tif", grid=grid, names=["a"], dtype="uint8") as out:
        out.write(np.ones((1, *grid.shape), np.uint8), grid.window)
        out.write(np.full((1, 5, 5), 7, np.uint8), Window(3, 2, 5, 5))
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert (dataset.read(1) == 7).sum() == 25


def test_what_is_never_written_is_nodata(tmp_path: Path) -> None:
    grid = GRIDS["larger than a block"]
    with RasterWriter(tmp_path / "m.tif", grid=grid, names=["a"], dtype="uint8", nodata=255) as out:
        out.write(np.ones((1, 10, 10), np.uint8), Window(0, 0, 10, 10))
    with open_mask(tmp_path / "m.tif") as mask:
        assert mask.read().valid.sum() == 100


def test_layout_is_tiled_compressed_and_safe_beyond_4_gib(tmp_path: Path) -> None:
    grid = GRIDS["larger than a block"]
    out = RasterWriter(tmp_path / "m.tif", grid=grid, names=["a"], dtype="float32")
    assert out._state.layout.profile()["BIGTIFF"] == "IF_SAFER"
    write_whole(tmp_path / "m.tif", grid, noise(grid, dtype="float32"))
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert dataset.block_shapes == [(512, 512)] * 2
        assert dataset.interleaving.value == "BAND"
        assert dataset.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        assert dataset.overviews(1) == [2]


def test_overviews_of_a_mask_hold_no_new_values_and_those_of_scores_are_means(tmp_path: Path) -> None:
    grid = GRIDS["larger than a block"]
    data = np.zeros((1, *grid.shape), np.float32)
    data[:, ::2] = 1
    for resampling, values in (("nearest", {0.0, 1.0}), ("average", {0.5})):
        write_whole(tmp_path / "m.tif", grid, data, overwrite=True, resampling=resampling)
        with rasterio.open(tmp_path / "m.tif", overview_level=0) as dataset:
            assert set(np.unique(dataset.read())) <= values


def test_names_tags_description_and_colours_are_in_the_file(tmp_path: Path) -> None:
    grid = GRIDS["utm"]
    write_raster(
        Raster(noise(grid, bands=1), grid, ("Gebäude",)),
        tmp_path / "m.tif",
        tags={"MODEL": "a.safetensors"},
        description="buildings",
        colors={1: "#ff8000"},
    )
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert dataset.descriptions == ("Gebäude",)
        assert dataset.tags()["MODEL"] == "a.safetensors"
        assert dataset.tags()["TIFFTAG_IMAGEDESCRIPTION"] == "buildings"
        assert dataset.colormap(1)[1] == (255, 128, 0, 255)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", -9999), ("uint8", 256), ("uint8", float("nan")), ("uint8", 1.5), ("int16", 40000)],
)
def test_nodata_outside_the_dtype_is_refused_before_anything_is_written(
    tmp_path: Path, dtype: str, nodata: float
) -> None:
    options = {"grid": GRIDS["utm"], "names": ["a"], "dtype": dtype, "nodata": nodata}
    assert refused(RasterWriter, tmp_path / "m.tif", **options) == "E-USE-204"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"names": ["a", "a"]}, "E-BAND-203"),
        ({"names": []}, "E-BAND-203"),
        ({"dtype": "float128"}, "E-USE-203"),
        ({"dtype": "datetime64[s]"}, "E-USE-203"),
        ({"names": ["a", "b"], "colors": {1: "#ffffff"}}, "E-USE-205"),
    ],
)
def test_a_layout_that_no_geotiff_has_is_refused(tmp_path: Path, options: dict[str, Any], code: str) -> None:
    given_options = {"grid": GRIDS["utm"], "names": ["a"], "dtype": "uint8"} | options
    assert refused(RasterWriter, tmp_path / "m.tif", **given_options) == code


@pytest.mark.parametrize(
    ("data", "window", "kind"),
    [
        (np.zeros((1, 5, 5), np.uint8), Window(0, 0, 5, 4), GridError),
        (np.zeros((2, 5, 5), np.uint8), Window(0, 0, 5, 5), GridError),
        (np.zeros((1, 5, 5), np.uint8), Window(50, 0, 5, 5), GridError),
        (np.zeros((1, 5, 5), np.uint8), Window(-1, 0, 5, 5), GridError),
        (np.zeros((1, 5, 5), np.float32), Window(0, 0, 5, 5), UsageError),
        (np.zeros((1, 5, 5), np.int64), Window(0, 0, 5, 5), UsageError),
    ],
)
def test_data_that_do_not_fit_are_refused_and_nothing_is_left(
    tmp_path: Path, data: np.ndarray, window: Window, kind: type[SatsegError]
) -> None:
    def write() -> None:
        with RasterWriter(tmp_path / "m.tif", grid=GRIDS["utm"], names=["a"], dtype="uint8") as out:
            out.write(data, window)

    with pytest.raises(kind):
        write()
    assert os.listdir(tmp_path) == []


def test_existing_file_stays_unless_overwriting_and_old_side_cars_go(tmp_path: Path) -> None:
    grid, path = GRIDS["utm"], tmp_path / "m.tif"
    write_whole(path, grid, noise(grid))
    (tmp_path / "m.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    before = path.read_bytes()
    assert refused(write_whole, path, grid, noise(grid, seed=1)) == "E-OUT-003"
    assert path.read_bytes() == before
    write_whole(path, grid, noise(grid, seed=1), overwrite=True)
    assert os.listdir(tmp_path) == ["m.tif"]
    assert path.read_bytes() != before


@pytest.mark.parametrize("size", [1_000, 60_000, 126_000, 129_000, 400_000, 3_000_000])
@pytest.mark.parametrize("compress", ["deflate", None])
def test_disk_full_at_any_moment_is_an_output_error_or_a_whole_file(
    small_disk: Path, size: int, compress: str | None
) -> None:
    path = small_disk / "m.tif"
    grid = Grid(max(1, size // 500), 500, NORTH_UP, 32633)
    data = np.random.default_rng(0).integers(0, 256, (1, *grid.shape), dtype=np.uint8)  # does not compress
    with suppress(OutputError):
        write_whole(path, grid, data, compress=compress)
    if size < 100_000 or size > 200_000:
        assert path.exists() == (size < 100_000)
    assert os.listdir(small_disk) == (["m.tif"] if path.exists() else [])
    if path.exists():
        with rasterio.open(path) as dataset:
            np.testing.assert_array_equal(dataset.read(), data)


def damage_after_close(out: RasterWriter, damage: Any) -> None:
    """Have the file damaged between the moment it is closed and the moment it is looked at again."""
    dataset, path = out._state.dataset, out._state.output.temporary

    class Closing:
        def close(self) -> None:
            dataset.close()
            damage(path)

    out._state.dataset = Closing()


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip_pixels(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 5000] = bytes(5000)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flip_pixels])
def test_file_that_does_not_hold_what_was_written_is_not_published(tmp_path: Path, damage: Any) -> None:
    grid = Grid(200, 300, NORTH_UP, 32633)

    def write() -> None:
        options = {"compress": None, "overviews": False}
        with RasterWriter(tmp_path / "m.tif", grid=grid, names="ab", dtype="uint8", **options) as out:
            for top in range(0, 200, 50):
                out.write(noise(grid)[:, top : top + 50] + 1, Window(0, top, 300, 50))
            damage_after_close(out, damage)

    with pytest.raises(OutputError):
        write()
    assert os.listdir(tmp_path) == []


def test_blocks_without_a_place_in_the_file_are_noticed(tmp_path: Path) -> None:
    grid = GRIDS["larger than a block"]
    profile = {"driver": "GTiff", "height": 700, "width": 530, "count": 1, "dtype": "uint8"}
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "SPARSE_OK": True}
    with rasterio.open(tmp_path / "m.tif", "w", transform=NORTH_UP, **profile, **options) as dataset:
        dataset.write(np.ones((1, 512, 512), np.uint8), window=Window(0, 0, 512, 512))
    with rasterio.open(tmp_path / "m.tif") as dataset:
        size = (tmp_path / "m.tif").stat().st_size
        assert not writer_module.blocks_are_there(dataset, size)
    write_whole(tmp_path / "n.tif", grid, noise(grid))
    with rasterio.open(tmp_path / "n.tif") as dataset:
        size = (tmp_path / "n.tif").stat().st_size
        assert writer_module.blocks_are_there(dataset, size)
        assert not writer_module.blocks_are_there(dataset, size // 2)


def test_invalid_pixels_get_a_value_that_no_valid_pixel_has(tmp_path: Path) -> None:
    grid = Grid(16, 17, NORTH_UP)
    valid = np.ones(grid.shape, bool)
    valid[0, 0] = False
    for taken, nodata in (((), 255), ((255,), 0), ((255, 0), None)):
        data = np.full((1, *grid.shape), 9, np.uint8)
        data[0, 5, : len(taken)] = taken
        raster = Raster(data, grid, ("a",), valid)
        if nodata is None:
            assert refused(write_raster, raster, tmp_path / "m.tif", overwrite=True) == "E-USE-208"
            continue
        write_raster(raster, tmp_path / "m.tif", overwrite=True)
        with open_mask(tmp_path / "m.tif") as mask:
            assert mask.nodata == nodata
            np.testing.assert_array_equal(mask.read().valid, valid)


def test_bands_are_taken_by_number_or_name(tmp_path: Path) -> None:
    grid = GRIDS["utm"]
    data = noise(grid, bands=3)
    write_raster(Raster(data, grid, ("a", "b", "c")), tmp_path / "m.tif")
    with open_mask(tmp_path / "m.tif") as mask:
        assert (mask.count, mask.block_rows) == (3, 48)
        back = mask.read(Window(4, 5, 6, 7), ["c", 1])
        assert back.names == ("c", "a")
        assert back.grid.matches(grid.crop(Window(4, 5, 6, 7)))
        np.testing.assert_array_equal(back.data, data[[2, 0], 5:12, 4:10])
        for wrong in (0, 4, "d"):
            with pytest.raises(BandError, match="no band"):
                mask.read(bands=[wrong])


def test_bands_without_or_with_repeated_descriptions_are_numbered(tmp_path: Path) -> None:
    profile = {"driver": "GTiff", "height": 4, "width": 5, "count": 4, "dtype": "uint8"}
    with rasterio.open(tmp_path / "m.tif", "w", transform=NORTH_UP, **profile) as dataset:
        dataset.write(np.zeros((4, 4, 5), np.uint8))
        dataset.descriptions = ("a", None, "a", " ")
    with open_mask(tmp_path / "m.tif") as mask:
        assert mask.names == ("a", "band_2", "band_3", "band_4")


def test_descriptions_that_are_no_text_are_input_errors(tmp_path: Path) -> None:
    grid, path = GRIDS["utm"], tmp_path / "m.tif"
    write_raster(Raster(noise(grid), grid, ("QQQQ", "b")), path)
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"Q\xf1QQ"))
    with pytest.raises(InputError) as caught, open_mask(path):
        pass
    assert caught.value.code == "E-IN-202"


def test_floats_are_invalid_where_they_are_nan(tmp_path: Path) -> None:
    grid = GRIDS["utm"]
    data = noise(grid, bands=1, dtype="float32")
    data[0, 3:5] = np.nan
    write_whole(tmp_path / "s.tif", grid, data, nodata=float("nan"))
    with open_mask(tmp_path / "s.tif") as scores:
        back = scores.read()
    np.testing.assert_array_equal(back.valid, ~np.isnan(data[0]))
    assert np.isfinite(back.data).all()


def test_files_that_are_no_geotiff_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "vrt.tif").write_text('<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>')
    (tmp_path / "folder.tif").mkdir()

    def read(path: Path) -> None:
        with open_mask(path) as mask:
            mask.read()

    for name in ("missing.tif", "empty.tif", "text.tif", "vrt.tif", "folder.tif"):
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert caught.value.exit_code == 3


def test_damaged_blocks_are_named(tmp_path: Path) -> None:
    grid, path = GRIDS["larger than a block"], tmp_path / "m.tif"
    write_whole(path, grid, noise(grid), overviews=False)
    os.truncate(path, path.stat().st_size // 2)

    def read() -> None:
        with open_mask(path) as mask:
            mask.read(Window(0, 600, 530, 100), [2])

    with pytest.raises(InputError, match="cannot be read") as caught:
        read()
    assert caught.value.code in ("E-IN-201", "E-IN-105")


def test_half_floats_take_half_the_room_and_are_read_as_floats(tmp_path: Path) -> None:
    grid = GRIDS["utm"]
    data = np.random.default_rng(0).random((2, *grid.shape)).astype(np.float16)
    data[0, 3, 5] = np.nan
    sizes = {}
    for dtype in ("float16", "float32"):
        path = tmp_path / f"{dtype}.tif"
        with RasterWriter(path, grid=grid, names=["a", "b"], dtype=dtype, nodata=np.nan, compress=None) as out:
            out.write(data, grid.window)
        with rasterio.open(path) as dataset:
            assert dataset.dtypes == ("float32", "float32")
            np.testing.assert_array_equal(dataset.read(), data.astype(np.float32))
        sizes[dtype] = path.stat().st_size
    assert sizes["float16"] < 0.6 * sizes["float32"]


def test_floats_that_half_floats_cannot_hold_are_refused(tmp_path: Path) -> None:
    grid = GRIDS["utm"]
    with RasterWriter(tmp_path / "m.tif", grid=grid, names=["a"], dtype="float16") as out:
        assert refused(out.write, np.full((1, *grid.shape), 0.1, np.float32), grid.window) == "E-USE-206"
        out.write(np.zeros((1, *grid.shape), np.float16), grid.window)


def test_a_scale_tells_readers_what_stored_numbers_mean(tmp_path: Path) -> None:
    grid = GRIDS["utm"]
    stored = np.arange(grid.height * grid.width, dtype=np.uint32).reshape(1, *grid.shape) % 255
    with RasterWriter(tmp_path / "s.tif", grid=grid, names=["a"], dtype="uint8", nodata=255, scale=1 / 254) as out:
        out.write(stored.astype(np.uint8), grid.window)
    with rasterio.open(tmp_path / "s.tif") as dataset:
        assert dataset.scales == (1 / 254,)
    raster = open_scene(tmp_path / "s.tif").read()
    np.testing.assert_allclose(raster.data, stored / 254, atol=1e-6)
