"""Resampling against sums written out by hand, and the invariants every kernel must keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.imagery.resampling import METHODS, make_taps, resample_scattered, resample_separable

MIXING = [method for method in METHODS if method != "nearest"]


def kernel(method: str, ratio: float, at: float, pixel: int) -> float:
    """Weight of a source pixel, written from the definitions: the oracle."""
    if method == "auto":
        method = "average" if ratio > 1 + 1e-6 else "bilinear"
    if method == "nearest":
        return float(pixel == int(np.floor(at + 1e-6)))
    if method == "average":
        low, high = max(pixel, at - ratio / 2), min(pixel + 1, at + ratio / 2)
        return max(0.0, high - low)
    x = abs(pixel + 0.5 - at) / max(1.0, ratio)
    if method == "bilinear":
        return max(0.0, 1 - x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def by_hand(data, valid, rows, cols, ratios, method):
    """Σ w v x / Σ w v over the whole source for each output; valid where Σ w v is half of Σ w or more."""
    out = np.zeros((len(rows), len(cols)))
    ok = np.zeros(out.shape, bool)
    h, w = data.shape
    for i, row in enumerate(rows):
        for j, col in enumerate(cols):
            if not (-1e-6 <= row <= h + 1e-6 and -1e-6 <= col <= w + 1e-6):
                continue
            wr = np.array([kernel(method, ratios[0], min(row, h - 1e-9), k) for k in range(h)])
            wc = np.array([kernel(method, ratios[1], min(col, w - 1e-9), k) for k in range(w)])
            weight = np.outer(wr, wc)
            share = (weight * valid).sum() / weight.sum()
            if share >= 0.5:
                ok[i, j] = True
                out[i, j] = (weight * valid * data).sum() / (weight * valid).sum()
    return out, ok


@st.composite
def axes(draw):
    size = draw(st.integers(1, 12))
    ratio = draw(st.sampled_from([0.25, 0.37, 0.5, 1.0, 1.3, 2.0, 2.9, 5.0]))
    origin = draw(st.floats(-3, size).map(lambda v: round(v, 3)))
    count = draw(st.integers(1, 10))
    flip = draw(st.sampled_from([1, -1]))
    return size, ratio, (origin + 0.013 + ratio * (np.arange(count) + 0.5))[::flip]


@settings(max_examples=80, deadline=None)
@given(axes(), axes(), st.sampled_from(METHODS), st.integers(0, 9999), st.sampled_from([0.0, 0.2, 0.6]))
def test_every_method_equals_the_sums_written_out(row_axis, col_axis, method, seed, holes):
    rng = np.random.default_rng(seed)
    (h, row_ratio, rows), (w, col_ratio, cols) = row_axis, col_axis
    valid = rng.random((h, w)) >= holes
    data = np.where(valid, rng.integers(1, 2000, (h, w)), 0).astype("uint16")
    row_taps = make_taps(rows, size=h, ratio=row_ratio, method=method)
    col_taps = make_taps(cols, size=w, ratio=col_ratio, method=method)
    got, ok = resample_separable(data[None], valid, rows=row_taps, cols=col_taps, dtype="float64")
    wanted, wanted_ok = by_hand(data.astype(float), valid, rows, cols, (row_ratio, col_ratio), method)
    near_half = np.zeros_like(ok)  # shares within noise of one half may fall either way
    if holes:
        near_half = ok != wanted_ok
        assert near_half.sum() <= 2
    np.testing.assert_array_equal(ok[~near_half], wanted_ok[~near_half])
    # 1e-5: weights below 1e-7 are dropped, and cubic shares may be small
    np.testing.assert_allclose(got[0][ok & ~near_half], wanted[ok & ~near_half], rtol=1e-5)
    assert not got[0][~ok].any()


@given(axes(), st.sampled_from(METHODS))
def test_weights_sum_to_one_inside_the_extent(axis, method):
    size, ratio, positions = axis
    taps = make_taps(positions, size=size, ratio=ratio, method=method)
    np.testing.assert_allclose(taps.weight.sum(axis=0)[taps.inside], 1.0, rtol=1e-12)
    assert taps.index.min() >= 0
    assert taps.index.max() < size


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.3, 1.0, 3.7])
def test_a_constant_stays_constant_around_holes(method, ratio):
    valid = np.random.default_rng(0).random((23, 31)) > 0.3
    data = np.where(valid, 777, 0).astype("uint16")[None]
    rows = make_taps(ratio * (np.arange(5) + 0.5), size=23, ratio=ratio, method=method)
    cols = make_taps(ratio * (np.arange(8) + 0.5), size=31, ratio=ratio, method=method)
    out, ok = resample_separable(data, valid, rows=rows, cols=cols, dtype="float32")
    assert ok.any()
    np.testing.assert_allclose(out[0][ok], 777, rtol=1e-5)  # cubic shares magnify float32 noise


@pytest.mark.parametrize("method", ["auto", "bilinear", "cubic"])
def test_refining_reproduces_a_ramp(method):
    rows_at, cols_at = 0.4 * (np.arange(30) + 0.5) + 3, 0.3 * (np.arange(40) + 0.5) + 4
    ramp = (3.0 * (np.arange(20) + 0.5)[:, None] - 2.0 * (np.arange(25) + 0.5) + 100)[None]
    rows = make_taps(rows_at, size=20, ratio=0.4, method=method)
    cols = make_taps(cols_at, size=25, ratio=0.3, method=method)
    out, _ = resample_separable(ramp, None, rows=rows, cols=cols, dtype="float64")
    np.testing.assert_allclose(out[0], 3 * rows_at[:, None] - 2 * cols_at + 100, rtol=1e-12)


@pytest.mark.parametrize(("height", "width", "by"), [(12, 20, 4), (9, 15, 3), (35, 7, 7)])
def test_coarsening_takes_block_means_and_keeps_the_mean(height, width, by):
    data = np.random.default_rng(1).integers(0, 4000, (2, height, width)).astype("uint16")
    rows = make_taps(by * (np.arange(height // by) + 0.5), size=height, ratio=by, method="auto")
    cols = make_taps(by * (np.arange(width // by) + 0.5), size=width, ratio=by, method="auto")
    out, _ = resample_separable(data, None, rows=rows, cols=cols, dtype="float32")
    blocks = data.reshape(2, height // by, by, width // by, by).mean(axis=(2, 4))
    np.testing.assert_allclose(out, blocks, rtol=1e-6)
    np.testing.assert_allclose(out.mean(), data.mean(), rtol=1e-6)


@pytest.mark.parametrize("ratio", [1.7, 2.4, 6.3])
def test_averaging_keeps_the_sum_at_any_ratio(ratio):
    source = np.random.default_rng(2).random((1, 1, 60))
    count = int(60 / ratio)
    cols = make_taps(ratio * (np.arange(count) + 0.5), size=60, ratio=ratio, method="average")
    rows = make_taps(np.array([0.5]), size=1, ratio=1.0, method="average")
    out, _ = resample_separable(source, None, rows=rows, cols=cols, dtype="float64")
    edge = count * ratio
    covered = source[0, 0, : int(edge)].sum() + source[0, 0, int(edge) % 60] * (edge % 1)
    np.testing.assert_allclose(out.sum() * ratio, covered, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(axes(), axes(), st.sampled_from(METHODS), st.booleans())
def test_scattered_positions_on_a_lattice_equal_the_separable_result(row_axis, col_axis, method, holes):
    (h, row_ratio, rows), (w, col_ratio, cols) = row_axis, col_axis
    rng = np.random.default_rng(3)
    valid = rng.random((h, w)) > 0.3 if holes else None
    data = rng.integers(1, 900, (2, h, w)).astype("float32")
    if valid is not None:
        data[:, ~valid] = 0
    mesh = np.meshgrid(rows, cols, indexing="ij")
    apart = [
        make_taps(at, size=size, ratio=ratio, method=method)
        for at, size, ratio in zip((rows, cols), (h, w), (row_ratio, col_ratio), strict=True)
    ]
    each = [
        make_taps(at, size=size, ratio=ratio, method=method)
        for at, size, ratio in zip(mesh, (h, w), (row_ratio, col_ratio), strict=True)
    ]
    wanted, wanted_ok = resample_separable(data, valid, rows=apart[0], cols=apart[1], dtype="float64")
    got, ok = resample_scattered(data, valid, rows=each[0], cols=each[1], dtype="float64")
    same = ok == wanted_ok
    assert (~same).sum() <= 2  # shares of exactly one half, summed in another order
    np.testing.assert_allclose(got[:, same], wanted[:, same], rtol=1e-9)


def test_nearest_keeps_values_and_dtype():
    data = np.array([[[1, 2**31 + 1, 7]]], dtype="uint32")
    rows = make_taps(np.array([0.5]), size=1, ratio=1.0, method="nearest")
    cols = make_taps(np.array([0.2, 0.9, 1.0, 2.999, 3.0]), size=3, ratio=0.5, method="nearest")
    out, ok = resample_separable(data, None, rows=rows, cols=cols, dtype="uint32")
    assert out.dtype == np.uint32
    np.testing.assert_array_equal(out[0, 0], [1, 1, 2**31 + 1, 7, 7])
    assert ok.all()


def test_a_pixel_is_valid_when_half_of_its_weight_is():
    data, valid = np.array([[[4.0, 0.0]]]), np.array([[True, False]])
    rows = make_taps(np.array([0.5]), size=1, ratio=1.0, method="auto")
    cols = make_taps(np.array([0.5, 0.99, 1.0, 1.01, 1.5]), size=2, ratio=0.5, method="auto")
    out, ok = resample_separable(data, valid, rows=rows, cols=cols, dtype="float64")
    np.testing.assert_array_equal(ok[0], [True, True, True, False, False])
    np.testing.assert_allclose(out[0, 0], [4, 4, 4, 0, 0])


def test_positions_nowhere_are_not_valid():
    taps = make_taps(np.array([[np.nan, 0.5], [-0.1, 3.1]]), size=3, ratio=1.0, method="bilinear")
    np.testing.assert_array_equal(taps.inside, [[False, True], [False, False]])


@pytest.mark.parametrize("method", MIXING)
def test_equal_grids_give_the_same_pixels(method):
    data = np.random.default_rng(4).random((1, 6, 9)).astype("float32")
    rows = make_taps(np.arange(6) + 0.5, size=6, ratio=1.0, method=method)
    cols = make_taps(np.arange(9) + 0.5, size=9, ratio=1.0, method=method)
    out, _ = resample_separable(data, None, rows=rows, cols=cols, dtype="float32")
    np.testing.assert_array_equal(out, data)


def test_aligned_pixels_need_no_more_than_their_own_source_pixels():
    taps = make_taps(4 * (np.arange(2) + 0.5) + 8 + 1e-11, size=40, ratio=4.0, method="average")
    assert taps.span() == range(8, 16)
