"""Views: turned, zoomed and mirrored chips against numpy's turns and scipy's interpolation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window
from scipy import ndimage

from satseg.grid import overlap
from satseg.learning.ground.warping import View, warp

DTYPES = ["uint8", "uint16", "int16", "float32", "float64", ">u2", ">f4"]


def scene(height: int, width: int, *, dtype: str = "float32", gaps: float = 0.0, seed: int = 0):
    """Image (2, H, W) of 0..250, valid, target (2, H, W), labelled; a share of `gaps` invalid and unlabelled."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 250, (2, height, width)).astype(dtype)
    valid, labelled = rng.random((2, height, width)) >= gaps
    return image, valid, rng.integers(0, 2, (2, height, width)).astype(np.uint8), labelled & valid


def whole(arrays) -> Window:
    return Window(0, 0, arrays[1].shape[1], arrays[1].shape[0])


def show(arrays, view: View, size: int, place: Window | None = None):
    return warp(*arrays, view, place=place or whole(arrays), size=size)


def cut(arrays, window: Window):
    rows = slice(window.row_off, window.row_off + window.height)
    cols = slice(window.col_off, window.col_off + window.width)
    return [np.ascontiguousarray(array[..., rows, cols]) for array in arrays]


def expected_as_is(arrays):
    """What a chip holds of arrays that it shows pixel by pixel."""
    image, valid, target, labelled = arrays
    return [np.where(valid, image, 0).astype(np.float32), valid, np.where(labelled, target, 0), labelled]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def positions(view: View, size: int, height: int, width: int):
    """Rows and columns (S, S) in a mirrored scene of the chip's pixel centres; whole where a pixel is hit."""
    u, v = np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 2, indexing="ij")
    places = []
    for centre, down, right, count in zip((view.row, view.col), view.down, view.right, (height, width), strict=True):
        at = centre - 0.5 + down * u + right * v
        period = max(2 * (count - 1), 1)
        at = np.minimum(at % period, period - at % period) if count > 1 else np.zeros_like(at)
        places.append(at)
    return places


def clear(rows, cols, tie: float = 0.0):
    """Where neither is within rounding of a whole number plus `tie`, at which neighbours change."""
    return np.all([np.abs(at - tie - np.round(at - tie)) > 1e-6 for at in (rows, cols)], axis=0)


def certain(view: View, rows, cols):
    """Where rounding has no say in which neighbours a pixel has: in views of whole eighths it never has."""
    exact = all((8 * step).is_integer() for step in (*view.down, *view.right))
    return clear(rows, cols) | exact


def interpolated(plane, view: View, size: int):
    """`plane` by scipy's own affine transform, mirrored at its outermost pixel centres."""
    matrix = np.column_stack([view.down, view.right])
    start = np.array([view.row, view.col]) - 0.5 - matrix @ np.full(2, (size - 1) / 2)
    return ndimage.affine_transform(
        plane.astype(np.float64), matrix, start, output_shape=(size, size), order=1, mode="mirror"
    )


@st.composite
def views(draw, height: int = 23, width: int = 37, *, inside: bool = False):
    """A turned and zoomed view of a size, somewhere on a scene."""
    view = View.turned(
        draw(st.integers(0, 2 * height)) / 2,
        draw(st.integers(0, 2 * width)) / 2,
        angle=draw(st.one_of(st.sampled_from([0.0, 90.0, 180.0, 270.0]), st.floats(0, 360))),
        zoom=draw(st.sampled_from([0.5, 0.7, 1.0, 1.3, 2.0, 5.0])),
        mirrored=draw(st.booleans()),
    )
    size = draw(st.integers(1, 9))
    if inside:
        extent = view.extent(size)
        assume(extent[0] / 2 <= view.row <= height - extent[0] / 2)
        assume(extent[1] / 2 <= view.col <= width - extent[1] / 2)
    return view, size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 8, 9])
def test_view_of_a_window_is_the_window_to_the_bit(dtype, size):
    arrays = scene(13, 29, dtype=dtype, gaps=0.2)
    window = Window(17, 3, size, size)
    assert View.of(window).window(size) == window
    assert_same(show(arrays, View.of(window), size), expected_as_is(cut(arrays, window)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [6, 7])
def test_the_eight_of_d4_are_numpys_to_the_bit(dtype, size):
    arrays = scene(11, 19, dtype=dtype, gaps=0.2)
    window = Window(9, 3, size, size)
    expected = expected_as_is(cut(arrays, window))
    centre = (window.row_off + size / 2, window.col_off + size / 2)
    seen = set()
    for mirrored in (False, True):
        for turns in range(4):
            view = View.turned(*centre, angle=90.0 * turns, zoom=1.0, mirrored=mirrored)
            assert view.window(size) == window
            found = show(arrays, view, size)
            turned = [np.rot90(array, -turns, (-2, -1)) for array in expected]
            assert_same(found, [array[..., ::-1] if mirrored else array for array in turned])
            seen.add(found[0].tobytes())
    assert len(seen) == 8


def test_zoom_magnifies():
    ramp = np.tile(np.arange(40.0), (1, 30, 1))
    everywhere = np.ones((30, 40), bool)
    view = View.turned(15, 20, angle=0, zoom=2.0, mirrored=False)
    image, *_ = warp(ramp, everywhere, ramp.astype(np.uint8), everywhere, view, place=Window(0, 0, 40, 30), size=10)
    np.testing.assert_allclose(np.diff(image[0], axis=1), 0.5, atol=1e-5)
    assert view.extent(10) == (5, 5)


@settings(max_examples=200, deadline=None)
@given(views(), st.sampled_from([0.0, 0.05, 0.4]))
@example((View(3.5, 16.5, (2.0, 2.1e-6), (-2.1e-6, 2.0)), 2), 0.05)  # an invalid corner weighs 1e-6 of 1e-6
def test_every_view_is_as_scipy_interpolates_it(drawn, gaps):
    view, size = drawn
    arrays = scene(23, 37, gaps=gaps, seed=size)
    image, valid, target, labelled = show(arrays, view, size)
    for k in range(2):
        expected = interpolated(arrays[0][k], view, size)
        np.testing.assert_allclose(image[k][valid], expected[valid], atol=250 * 1e-4, rtol=0)
    assert not image[:, ~valid].any()
    assert not target[:, ~labelled].any()
    rows, cols = positions(view, size, 23, 37)
    sure = certain(view, rows, cols)
    # An invalid pixel has a say with any weight: 0 to the bit, or of a sure pixel at least 1e-6 each way, so 1e-12.
    for found, source in ((valid, arrays[1]), (labelled, arrays[3])):
        np.testing.assert_array_equal(found[sure], (interpolated(~source, view, size) == 0)[sure])
    sure = labelled & clear(rows, cols, tie=0.5)
    nearest = arrays[2][:, np.round(rows).astype(int), np.round(cols).astype(int)]
    np.testing.assert_array_equal(target[:, sure], nearest[:, sure])


@settings(max_examples=200, deadline=None)
@given(views())
def test_a_pixel_is_known_where_all_it_is_blended_from_are(drawn):
    view, size = drawn
    arrays = scene(23, 37, gaps=0.3, seed=size)
    _, valid, _, labelled = show(arrays, view, size)
    rows, cols = positions(view, size, 23, 37)
    sure = certain(view, rows, cols)
    for found, source in ((valid, arrays[1]), (labelled, arrays[3])):
        every = np.ones_like(found)
        for r in (np.floor(rows), np.ceil(rows)):
            for c in (np.floor(cols), np.ceil(cols)):
                every &= source[r.astype(int), c.astype(int)]
        np.testing.assert_array_equal(found[sure], every[sure])


@settings(max_examples=200, deadline=None)
@given(views(inside=True))
def test_window_holds_every_pixel_that_a_view_is_blended_from(drawn):
    view, size = drawn
    arrays = scene(23, 37, gaps=0.1, seed=size)
    window = overlap(view.window(size), whole(arrays))
    image, valid, target, labelled = show(cut(arrays, window), view, size, window)
    around, valid_too, target_too, labelled_too = show(arrays, view, size)
    rows, cols = positions(view, size, 23, 37)
    sure, both = certain(view, rows, cols), valid & valid_too
    np.testing.assert_array_equal(valid[sure], valid_too[sure])
    np.testing.assert_array_equal(labelled[sure], labelled_too[sure])
    np.testing.assert_allclose(image[:, both], around[:, both], atol=1e-3)
    sure = labelled & labelled_too & clear(rows, cols, tie=0.5)
    np.testing.assert_array_equal(target[:, sure], target_too[:, sure])


@settings(max_examples=100, deadline=None)
@given(views(inside=True))
def test_window_holds_no_row_or_column_in_vain(drawn):
    view, size = drawn
    window = view.window(size)
    height, width = view.extent(size)
    assert window.height <= height * (size - 1) / size + 3
    assert window.width <= width * (size - 1) / size + 3


@pytest.mark.parametrize(("height", "width", "size"), [(5, 7, 11), (6, 20, 12), (3, 2, 15), (9, 4, 6), (2, 3, 20)])
def test_scene_smaller_than_the_view_is_mirrored(height, width, size):
    arrays = scene(height, width, gaps=0.2)
    above, left = (size - height) // 2, (size - width) // 2
    pads = [(max(0, n), max(0, size - m - n)) for n, m in ((above, height), (left, width))]
    padded = [np.pad(a, [(0, 0)] * (a.ndim - 2) + pads, mode="reflect") for a in arrays]
    expected = expected_as_is(cut(padded, Window(max(0, -left), max(0, -above), size, size)))
    assert_same(show(arrays, View.of(Window(-left, -above, size, size)), size), expected)


@pytest.mark.parametrize("angle", [0.0, 90.0, 33.0])
def test_one_pixel_of_scene_fills_the_chip(angle):
    image, _, target, _ = arrays = scene(1, 1)
    view = View.turned(0.5, 0.5, angle=angle, zoom=1.0, mirrored=True)
    shown = show(arrays, view, 4)
    everywhere = np.ones((4, 4), bool)
    assert_same(shown, [image + np.zeros((2, 4, 4)), everywhere, target + np.zeros((2, 4, 4)), everywhere])


@pytest.mark.parametrize(("height", "width"), [(1, 6), (6, 1)])
def test_one_row_or_column_of_scene_is_repeated(height, width):
    arrays = scene(height, width)
    window = Window(width // 3, height // 3, 4, 4)
    long = [np.repeat(a, 6, axis=-2 if height == 1 else -1) for a in arrays]
    assert_same(show(arrays, View.of(window), 4), expected_as_is(cut(long, Window(2, 2, 4, 4))))


def test_no_number_in_a_pixel_without_weight_does_no_harm():
    arrays = scene(9, 12)
    arrays[0][:, 4, 7] = np.nan
    arrays[1][4, 7] = False
    for turns in range(4):
        view = View.turned(4.5, 5.5, angle=90.0 * turns, zoom=1.0, mirrored=False)
        image, valid, _, _ = show(arrays, view, 5)
        assert (~valid).sum() == 1
        assert np.isfinite(image).all()
        assert (image[:, ~valid] == 0).all()


@settings(max_examples=100, deadline=None)
@given(views())
def test_no_number_under_invalid_pixels_stays_out(drawn):
    view, size = drawn
    arrays = scene(23, 37, gaps=0.3, seed=size)
    arrays[0][:, ~arrays[1]] = np.nan
    assert np.isfinite(show(arrays, view, size)[0]).all()


def test_arguments_may_be_read_only_and_in_any_order_of_memory():
    arrays = scene(15, 21, gaps=0.1)
    view = View.turned(7.5, 10.5, angle=25.0, zoom=1.2, mirrored=True)
    expected = show(arrays, view, 8)
    kept = [array.copy() for array in arrays]
    turned = [np.asfortranarray(array) for array in arrays]
    for array in turned:
        array.flags.writeable = False
    assert_same(show(turned, view, 8), expected)
    assert_same(arrays, kept)


def test_no_classes_and_no_bands_make_empty_planes():
    image, valid, target, labelled = scene(8, 9)
    shown = show((image[:0], valid, target[:0], labelled), View(4, 4), 4)
    assert shown[0].shape == shown[2].shape == (0, 4, 4)
    assert shown[1].all()
