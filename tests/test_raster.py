"""Raster: pixels that cannot change, names that do not repeat, and invalid pixels that stay invalid."""

from __future__ import annotations

import base64
import copy
import dataclasses
import pickle
import re

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.io import MemoryFile
from rasterio.windows import Window

from satseg.crs import parse_crs
from satseg.errors import BandError, GridError, UsageError
from satseg.grid import Grid
from satseg.raster import Raster, as_planes

PLACE = Affine(0.5, 0.1, 5e5, 0.1, -0.5, 5.5e6)
"""Rotated on purpose."""


def raster_of(data, *, names: tuple[str, ...] | None = None, valid=None, crs=None) -> Raster:
    data = np.asarray(data)
    grid = Grid(*data.shape[1:], PLACE, parse_crs(crs))
    return Raster(data, grid, names or tuple(f"b{i}" for i in range(len(data))), valid)


DTYPES = (np.uint8, np.int16, np.uint16, np.float32, np.float64, np.bool_)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 7)))
)


# --- immutability


def test_pixels_and_validity_are_read_only_and_the_callers_arrays_are_not():
    data, valid = np.zeros((2, 3, 5), np.float32), np.ones((3, 5), bool)
    raster = Raster(data, Grid(3, 5, PLACE), ("red", "nir"), valid)
    with pytest.raises(ValueError, match="read-only"):
        raster.data[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        raster.valid[0, 0] = False
    with pytest.raises(dataclasses.FrozenInstanceError):
        raster.names = ("a", "b")
    data[0, 0, 0], valid[0, 0] = 1, False
    assert data.flags.writeable
    assert valid.flags.writeable


@pytest.mark.parametrize("derive", [
    lambda r: r.select(["b1"]),
    lambda r: r.crop(Window(1, 1, 2, 1)),
    lambda r: r.threshold(0.5),
    lambda r: pickle.loads(pickle.dumps(r)),
    copy.deepcopy,
    lambda r: dataclasses.replace(r, names=("x", "y")),
], ids=["select", "crop", "threshold", "pickle", "deepcopy", "replace"])  # fmt: skip
def test_what_comes_of_a_raster_is_read_only_too(derive):
    derived = derive(raster_of(np.ones((2, 3, 5), np.float32)))
    assert not derived.data.flags.writeable
    assert not derived.valid.flags.writeable


def test_pixels_are_not_copied():
    data = np.zeros((2, 3, 5), np.float32)
    assert np.shares_memory(raster_of(data).data, data)
    assert np.shares_memory(raster_of(data).crop(Window(1, 1, 2, 2)).data, data)


@settings(max_examples=25, deadline=None)
@given(arrays)
def test_rasters_travel_between_processes(data):
    raster = raster_of(data, crs=32633)
    back = pickle.loads(pickle.dumps(raster))
    np.testing.assert_array_equal(back.data, raster.data)
    np.testing.assert_array_equal(back.valid, raster.valid)
    assert (back.grid, back.names, back.data.dtype) == (raster.grid, raster.names, raster.data.dtype)


# --- construction


def test_everything_is_valid_unless_said():
    raster = raster_of(np.zeros((1, 1, 1)))
    assert raster.valid.dtype == bool
    assert raster.valid.all()
    assert raster.shape == (1, 1, 1)


def test_masked_pixels_of_a_masked_array_are_not_valid():
    data = np.ma.masked_equal(np.arange(12).reshape(2, 2, 3), 7)
    raster = raster_of(np.zeros((2, 2, 3)))
    masked = Raster(data, raster.grid, raster.names, np.array([[False, True, True], [True] * 3]))
    assert masked.valid.tolist() == [[False, False, True], [True, True, True]]
    assert type(masked.data) is np.ndarray


@pytest.mark.parametrize("shape", [(3, 5), (1, 5, 3), (1, 3, 4), (1, 1, 3, 5), ()])
def test_pixels_of_another_shape_than_the_grid_are_refused(shape):
    with pytest.raises(GridError, match=re.escape(str(shape))) as caught:
        Raster(np.zeros(shape), Grid(3, 5, PLACE), ("a",))
    assert caught.value.code == "E-GRID-007"


@pytest.mark.parametrize("shape", [(5, 3), (1, 3, 5), (3,)])
def test_validity_of_another_shape_than_the_grid_is_refused(shape):
    with pytest.raises(GridError) as caught:
        Raster(np.zeros((1, 3, 5)), Grid(3, 5, PLACE), ("a",), np.ones(shape, bool))
    assert caught.value.code == "E-GRID-008"


@pytest.mark.parametrize("names", [("red",), ("red", "red"), ("red", "nir", "nir2"), ()])
def test_names_are_one_per_channel_and_unique(names):
    with pytest.raises(BandError) as caught:
        Raster(np.zeros((2, 3, 5)), Grid(3, 5, PLACE), names)
    assert caught.value.code == "E-BAND-001"


# --- select and crop


@settings(max_examples=40, deadline=None)
@given(arrays, st.randoms())
def test_selected_channels_keep_pixels_and_follow_the_asked_order(data, random):
    raster = raster_of(data)
    wanted = random.sample(raster.names, random.randint(1, len(raster.names)))
    chosen = raster.select(wanted)
    assert chosen.names == tuple(wanted)
    assert chosen.grid == raster.grid
    for name in wanted:
        np.testing.assert_array_equal(chosen.select([name]).data[0], data[raster.names.index(name)])


def test_unknown_and_repeated_channels_are_refused():
    raster = raster_of(np.zeros((2, 3, 5)), names=("red", "nir"))
    with pytest.raises(BandError, match="swir") as caught:
        raster.select(["nir", "swir"])
    assert caught.value.code == "E-BAND-002"
    with pytest.raises(BandError):
        raster.select(["red", "red"])


@settings(max_examples=60, deadline=None)
@given(arrays, st.data())
def test_a_crop_holds_the_same_pixels_at_the_same_places(data, draw):
    _, height, width = data.shape
    top, left = draw.draw(st.integers(0, height - 1)), draw.draw(st.integers(0, width - 1))
    window = Window(
        left, top, draw.draw(st.integers(1, width - left)), draw.draw(st.integers(1, height - top))
    )
    valid = np.random.default_rng(0).random((height, width)) < 0.5
    raster = raster_of(data, valid=valid)
    part = raster.crop(window)
    rows, cols = window.toslices()
    np.testing.assert_array_equal(part.data, data[:, rows, cols])
    np.testing.assert_array_equal(part.valid, valid[rows, cols])
    assert part.grid == raster.grid.crop(window)
    assert part.names == raster.names


@pytest.mark.parametrize(
    "window", [(-1, 0, 2, 2), (0, -1, 2, 2), (4, 0, 2, 2), (0, 2, 2, 2), (9, 9, 1, 1), (0, 0, 0, 1)]
)
def test_a_crop_that_reaches_outside_is_refused(window):
    with pytest.raises(GridError, match="3 x 5") as caught:
        raster_of(np.zeros((1, 3, 5))).crop(Window(*window))
    assert caught.value.code == "E-GRID-009"


# --- thresholds


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32) | st.just(float("nan"))),
    hnp.arrays(np.bool_, (3, 4)),
    st.floats(0, 1, width=32),
)
def test_a_threshold_is_reached_on_valid_pixels_only(scores, valid, level):
    reached = raster_of(scores, valid=valid).threshold(level)
    expected = [[v >= level and ok for v, ok in zip(plane.flat, valid.flat, strict=True)] for plane in scores]
    assert reached.data.dtype == bool
    assert reached.data.reshape(2, -1).tolist() == expected
    np.testing.assert_array_equal(reached.valid, valid)


def test_nan_never_reaches_a_threshold():
    assert not raster_of(np.full((2, 3, 5), np.nan)).threshold(-np.inf).data.any()


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.sampled_from([np.float16, np.float32, np.float64]))
def test_a_score_reaches_the_threshold_it_was_rounded_from(level, dtype):
    """float32(0.7) is less than 0.7, and still is the score 0.7."""
    assert raster_of(np.full((1, 1, 3), level, dtype)).threshold(level).data.all()


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 2, 5), elements=st.floats(0, 1, width=32)), st.tuples(*[st.floats(0, 1)] * 3)
)
def test_number_sequence_and_mapping_agree(scores, levels):
    raster = raster_of(scores)
    by_order = raster.threshold(levels)
    by_name = raster.threshold({**dict(zip(raster.names, levels, strict=True)), "another": 0.0})
    one_by_one = [raster.select([n]).threshold(v).data[0] for n, v in zip(raster.names, levels, strict=True)]
    np.testing.assert_array_equal(by_order.data, by_name.data)
    np.testing.assert_array_equal(by_order.data, one_by_one)
    np.testing.assert_array_equal(raster.threshold().data, scores >= 0.5)


def test_masks_and_counts_have_thresholds_too():
    assert raster_of(np.array([[[True, False]]])).threshold(0.5).data.tolist() == [[[True, False]]]
    assert raster_of(np.array([[[0, 1, 255]]], np.uint8)).threshold(0.5).data.tolist() == [
        [[False, True, True]]
    ]


@pytest.mark.parametrize(
    ("levels", "code"),
    [
        ({"b0": 0.5}, "E-USE-002"),
        ([0.5], "E-USE-003"),
        ([0.5] * 3, "E-USE-003"),
        ([[0.5], [0.5]], "E-USE-003"),
    ],
)
def test_thresholds_that_are_not_one_per_channel_are_refused(levels, code):
    with pytest.raises(UsageError) as caught:
        raster_of(np.zeros((2, 3, 5))).threshold(levels)
    assert caught.value.code == code


# --- numpy


def test_numpy_sees_the_pixels():
    data = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
    raster = raster_of(data)
    seen = np.asarray(raster)
    assert np.shares_memory(seen, data)
    assert not seen.flags.writeable
    assert np.asarray(raster, dtype=np.int64).dtype == np.int64
    assert np.mean(raster) == data.mean()
    np.testing.assert_array_equal(np.add(raster, 1), data + 1)


def test_numpy_copies_when_told_and_refuses_when_it_may_not():
    data = np.zeros((2, 3, 5), np.float32)
    raster = raster_of(data)
    taken = np.array(raster)
    taken[:] = 7
    assert not data.any()
    assert np.shares_memory(np.array(raster, copy=False), data)
    with pytest.raises(ValueError, match="copy"):
        np.array(raster, dtype=np.float64, copy=False)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (0, 5), (1, 1)])
def test_planes_of_a_mask(shape):
    mask = np.zeros(shape, np.uint8)
    assert as_planes(mask).shape == (1, *shape)[-3:]
    assert np.shares_memory(as_planes(mask), mask) or mask.size == 0


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 5)])
def test_a_mask_with_other_dimensions_is_refused(shape):
    with pytest.raises(GridError) as caught:
        as_planes(np.zeros(shape))
    assert caught.value.code == "E-GRID-011"


# --- notebooks and geometry


def test_the_notebook_view_escapes_names_and_carries_a_picture():
    raster = raster_of(np.ones((1, 3, 5)), names=("<script>alert(1)</script>",), crs=32633)
    shown = raster._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "EPSG:32633" in shown
    png = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', shown)[1])
    with MemoryFile(png) as memory, pytest.warns(match="geotransform"), memory.open() as picture:
        assert (picture.driver, picture.height, picture.width) == ("PNG", 3, 5)


@pytest.mark.parametrize(
    "raster",
    [
        raster_of(np.zeros((4, 1, 1), np.uint16)),
        raster_of(np.full((1, 3, 5), np.nan, np.float32)),
        raster_of(np.zeros((3, 3, 5)), valid=np.zeros((3, 5), bool)),
        raster_of(np.ones((2, 3, 5), bool)),
        raster_of(np.full((1, 3, 5), np.inf)),
        raster_of(np.zeros((1, 3, 5))).select([]),
    ],
    ids=["one pixel", "NaN", "all invalid", "mask", "infinite", "no channel"],
)
def test_odd_rasters_show_themselves(raster):
    assert "data:image/png" in raster._repr_html_()
    assert f"{raster.valid.mean():.1%} of pixels valid" in raster._repr_html_()


def test_geo_interface_is_the_outline():
    raster = raster_of(np.zeros((1, 3, 5)))
    shape = raster.__geo_interface__
    assert shape["type"] == "Polygon"
    assert shape["coordinates"] == raster.grid.footprint().__geo_interface__["coordinates"]
