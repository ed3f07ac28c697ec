"""Previews: the right size, clear where nothing is known, and PNG files that other readers decode."""

from __future__ import annotations

import base64
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.io import MemoryFile

from satseg.preview import encode_png, picture_tag, rgb_preview, stretch


def decoded(png: bytes) -> np.ndarray:
    """Pixels as GDAL reads them; it remarks that a picture has no place, writing must not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with MemoryFile(png) as memory, memory.open() as picture:
            return picture.read()


# --- encode_png


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 33), st.integers(1, 21))))
def test_gdal_decodes_the_same_pixels(pixels):
    np.testing.assert_array_equal(decoded(encode_png(pixels)), pixels)


def test_views_and_read_only_pixels_encode_too():
    pixels = np.arange(3 * 20 * 14, dtype=np.uint8).reshape(20, 14, 3).transpose(2, 0, 1)[:, ::2, ::-1]
    pixels.flags.writeable = False
    np.testing.assert_array_equal(decoded(encode_png(pixels)), pixels)


def test_writing_a_picture_says_nothing_and_leaves_the_users_filters_alone():
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        encode_png(np.zeros((4, 3, 5), np.uint8))
    assert not said
    assert list(warnings.filters) == before


def test_the_same_pixels_give_the_same_file():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 31, 17), np.uint8)
    assert encode_png(pixels) == encode_png(pixels.copy(order="F"))


def test_flat_pictures_are_small():
    assert len(encode_png(np.zeros((4, 512, 500), np.uint8))) < 5_000


# --- stretch


values = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0])


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(1, 5)), elements=values)
    | hnp.arrays(np.int64, st.tuples(st.integers(1, 8), st.integers(1, 5)))
    | hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 5))),
    st.integers(0, 2**32),
)
def test_stretch_keeps_the_order_of_values(band, seed):
    shades = stretch(band, np.random.default_rng(seed).random(band.shape) < 0.7)
    assert shades.dtype == np.uint8
    assert shades.shape == band.shape
    known = ~np.isnan(band)
    order = np.argsort(band[known], kind="stable")
    assert (np.diff(shades[known][order].astype(int)) >= 0).all()
    assert not shades[~known].any()


def test_stretch_runs_from_the_2nd_to_the_98th_percentile_of_valid_pixels():
    band = np.arange(1001, dtype=np.float32).reshape(7, 143)
    valid = band < 501  # values 0..500: percentiles 10 and 490
    shades = stretch(band, valid)
    assert not shades[band <= 10].any()
    assert (shades[band >= 490] == 255).all()
    middle = shades[(band > 10) & (band < 490)].astype(int)
    expected = (band[(band > 10) & (band < 490)] - 10) / 480 * 255
    assert np.abs(middle - expected).max() <= 1


@pytest.mark.parametrize("value", [0, 7, -3.5, 1e300, np.nan, np.inf, -np.inf, True])
def test_one_value_everywhere_is_one_shade(value):
    for valid in (True, False):
        assert len(np.unique(stretch(np.full((3, 5), value), np.full((3, 5), valid)))) == 1


def test_a_rare_class_of_a_mask_is_seen():
    mask = np.zeros((40, 50), bool)
    mask[3, 4] = True
    shades = stretch(mask, np.ones_like(mask))
    assert shades[3, 4] == 255
    assert np.count_nonzero(shades) == 1


def test_infinite_pixels_do_not_spoil_the_others():
    band = np.linspace(0.1, 0.4, 63).reshape(7, 9)
    with_inf = band.copy()
    with_inf[0, 0], with_inf[-1, -1] = -np.inf, np.inf
    shades = stretch(with_inf, np.ones((7, 9), bool))
    assert (shades[0, 0], shades[-1, -1]) == (0, 255)
    assert len(np.unique(shades)) > 50


# --- rgb_preview


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 70), st.integers(1, 40))
def test_pictures_are_decimated_alike_on_both_sides(height, width, limit):
    data = np.zeros((3, height, width), np.uint8)
    rows, cols = rgb_preview(data, np.ones((height, width), bool), ("a", "b", "c"), max_side=limit).shape[1:]
    assert max(rows, cols) <= limit
    step = -(-max(height, width) // limit)
    assert (rows, cols) == (-(-height // step), -(-width // step))


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 31), st.integers(1, 17))))
def test_clear_exactly_where_invalid(valid):
    data = np.random.default_rng(0).random((4, *valid.shape))
    picture = rgb_preview(data, valid, ("red", "green", "blue", "nir"))
    assert picture.shape == (4, *valid.shape)
    np.testing.assert_array_equal(picture[3], np.where(valid, 255, 0))


def test_red_green_blue_are_found_by_name():
    rng = np.random.default_rng(0)
    data = rng.random((5, 11, 7))
    valid = np.ones((11, 7), bool)
    picture = rgb_preview(data, valid, ("blue", "nir", "green", "swir1", "red"))
    for plane, band in zip(picture, (4, 2, 0), strict=False):
        np.testing.assert_array_equal(plane, stretch(data[band], valid))


def test_without_those_names_the_first_three_and_else_grey():
    data = np.random.default_rng(0).random((4, 11, 7))
    valid = np.ones((11, 7), bool)
    four = rgb_preview(data, valid, ("b1", "b2", "b3", "b4"))
    np.testing.assert_array_equal(four[:3], [stretch(data[i], valid) for i in range(3)])
    two = rgb_preview(data[:2], valid, ("building", "road"))
    np.testing.assert_array_equal(two[:3], [stretch(data[0], valid)] * 3)


def test_no_channels_make_a_black_picture():
    picture = rgb_preview(np.zeros((0, 3, 5)), np.ones((3, 5), bool), ())
    assert picture.shape == (4, 3, 5)
    assert not picture[:3].any()


def test_all_invalid_is_all_clear():
    picture = rgb_preview(np.full((3, 3, 5), np.nan), np.zeros((3, 5), bool), ("a", "b", "c"))
    assert not picture.any()


# --- picture_tag


def test_the_tag_carries_the_picture_and_escapes_its_text():
    pixels = np.random.default_rng(0).integers(0, 255, (4, 3, 5), np.uint8)
    tag = picture_tag(pixels, alt='"><script>')
    assert "<script>" not in tag
    png = base64.b64decode(re.search(r'base64,([^"]+)"', tag)[1])
    np.testing.assert_array_equal(decoded(png), pixels)
