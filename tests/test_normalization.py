"""Normalization: statistics of valid pixels only, and finite numbers whatever the bands hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from satseg.errors import BandError, InputError, UsageError
from satseg.grid import Grid
from satseg.imagery.normalization import Normalization, Normalizer, measure
from satseg.raster import Raster


def raster(data: np.ndarray, valid: np.ndarray | None = None, names: tuple[str, ...] | None = None) -> Raster:
    grid = Grid(data.shape[1], data.shape[2], Affine(1, 0, 0, 0, -1, 0))
    return Raster(data, grid, names or tuple(f"b{i}" for i in range(len(data))), valid)


def plain(names=("red", "nir1")) -> Normalization:
    return Normalization(names, (10.0, 20.0), (2.0, 4.0), (0.0, 0.0), (100.0, 100.0))


def test_offset_and_scale_are_mean_and_deviation_of_clipped_values():
    values = np.random.default_rng(0).normal((100, 3000), (5, 400), (61, 83, 2)).transpose(2, 0, 1)
    found = measure([raster(values.astype(np.float32))])
    for k, band in enumerate(values.astype(np.float32).astype(float)):
        low, high = np.percentile(band, (0.5, 99.5))
        clipped = np.clip(band, low, high)
        assert found.offset[k] == pytest.approx(clipped.mean(), rel=1e-12)
        assert found.scale[k] == pytest.approx(clipped.std(), rel=1e-12)
        assert found.low[k] == pytest.approx(low - (high - low) / 2)
        assert found.high[k] == pytest.approx(high + (high - low) / 2)


def test_pieces_measure_as_the_whole():
    values = np.random.default_rng(1).integers(0, 4000, (2, 40, 31)).astype(np.uint16)
    whole = measure([raster(values)])
    parts = measure(raster(piece) for piece in np.array_split(values, 7, axis=1))
    np.testing.assert_allclose(parts.offset, whole.offset, rtol=1e-12)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-12)
    assert parts.low == whole.low


def test_sample_of_a_large_set_is_uniform_over_all_rasters():
    normalizer = Normalizer(("b0",), sample_pixels=4000)
    for level in range(50):
        normalizer.update(raster(np.full((1, 20, 50), level, np.uint8)))
    found = normalizer.result()
    assert normalizer.count == 50_000
    assert found.offset[0] == pytest.approx(24.5, abs=4 * 14.4 / np.sqrt(4000))
    assert found.scale[0] == pytest.approx(14.43, rel=0.05)


def test_same_rasters_give_the_same_numbers():
    rasters = [raster(np.random.default_rng(i).random((2, 30, 40))) for i in range(5)]
    first, second = (Normalizer(("b0", "b1"), sample_pixels=500) for _ in range(2))
    for item in rasters:
        first.update(item)
        second.update(item)
    assert first.result() == second.result()


def test_invalid_pixels_are_not_measured():
    values = np.full((1, 10, 13), 7.0, np.float32)
    values[0, ::2] = np.arange(13)
    valid = np.zeros((10, 13), bool)
    valid[::2] = True
    values[0, 1::2] = 9999
    found = measure([raster(values, valid)])
    assert found.offset[0] == pytest.approx(6.0)
    assert found.high[0] < 20


def test_one_broken_band_takes_a_pixel_out_of_all():
    values = np.tile(np.array([1.0, 2.0, 3.0, 4.0], np.float32), (2, 1, 1))
    values[0, 0, 3], values[1, 0, 0] = np.nan, np.inf
    found = measure([raster(values)])
    assert found.offset == (2.5, 2.5)


def test_hot_pixels_do_not_decide_the_scale():
    values = np.random.default_rng(2).normal(500, 50, (1, 100, 101)).astype(np.float32)
    quiet = measure([raster(values)])
    values[0, 50, :30] = 65535
    hot = measure([raster(values)])
    assert hot.scale[0] == pytest.approx(quiet.scale[0], rel=0.05)
    assert hot.apply(values, np.ones(values.shape[1:], bool)).max() < 10


def test_brighter_scene_is_not_flattened():
    values = np.random.default_rng(3).uniform(100, 200, (1, 50, 60))
    found = measure([raster(values)])
    brighter = found.apply(values * 1.2, np.ones((50, 60), bool))
    assert len(np.unique(brighter[values > 166])) > 500


def test_constant_band_becomes_zero_not_infinite():
    found = measure([raster(np.full((2, 5, 6), 42, np.uint16))])
    assert found.scale == (1.0, 1.0)
    other = np.full((2, 5, 6), 50, np.uint16)
    assert np.array_equal(found.apply(other, np.ones((5, 6), bool)), np.zeros((2, 5, 6), np.float32))


def test_rare_values_on_constant_ground_are_kept():
    values = np.zeros((1, 100, 100), np.uint8)
    values[0, 0, :10] = 1
    found = measure([raster(values)])
    assert found.apply(values, np.ones((100, 100), bool))[0, 0, 0] > 5


def test_no_valid_pixel_is_an_input_error():
    with pytest.raises(InputError, match="no valid pixel") as caught:
        measure([raster(np.zeros((1, 3, 4)), np.zeros((3, 4), bool))])
    assert caught.value.code == "E-IN-050"
    with pytest.raises(InputError, match="no valid pixel"):
        measure([])


def test_undeclared_nodata_beyond_float32_is_an_input_error():
    values = np.full((1, 4, 5), -1.7e308)
    values[0, :2] = 1
    with pytest.raises(InputError, match="nodata") as caught:
        measure([raster(values)])
    assert caught.value.code == "E-IN-051"


def test_apply_clips_shifts_and_scales():
    data = np.array([[[12, 300]], [[0, 20]]], np.uint16)
    out = plain().apply(data, np.ones((1, 2), bool))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, [[[1, 45]], [[-5, 0]]])


DTYPES = st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, np.bool_])


@given(DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, (2, 3, 5))), hnp.arrays(bool, (3, 5)))
@settings(max_examples=80, deadline=None)
def test_apply_is_finite_and_zero_where_invalid(data, valid):
    out = plain().apply(data, valid)
    assert np.isfinite(out).all()
    assert not out[:, ~valid].any()


@given(hnp.arrays(np.float64, (1, 4, 6), elements=st.floats(-1e30, 1e30)))
@settings(max_examples=80, deadline=None)
def test_whatever_is_measured_can_be_applied(data):
    found = measure([raster(data)])
    out = found.apply(data, np.ones((4, 6), bool))
    assert np.isfinite(out).all()
    assert np.abs(out).max() < 1e3


def test_nan_on_a_valid_pixel_becomes_zero():
    data = np.array([[[np.nan, np.inf]], [[20.0, -np.inf]]], np.float32)
    np.testing.assert_array_equal(plain().apply(data, np.ones((1, 2), bool)), np.zeros((2, 1, 2)))


def test_arrays_apply_as_apply_does():
    data = np.random.default_rng(4).uniform(-50, 200, (2, 6, 7)).astype(np.float32)
    rows = {name: values[:, None, None] for name, values in plain().arrays().items()}
    expected = (np.clip(data, rows["low"], rows["high"]) - rows["offset"]) / rows["scale"]
    np.testing.assert_array_equal(plain().apply(data, np.ones((6, 7), bool)), expected)


def test_json_round_trip_is_exact():
    found = measure([raster(np.random.default_rng(5).random((3, 20, 21)))])
    assert Normalization.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_bands_are_taken_by_name():
    both = np.stack([np.full((3, 4), 5.0), np.arange(12.0).reshape(3, 4)])
    normalizer = Normalizer(("nir1",))
    normalizer.update(raster(both, names=("red", "nir1")))
    assert normalizer.result().offset == (5.5,)
    assert plain().select(["nir1"]) == Normalization(("nir1",), (20.0,), (4.0,), (0.0,), (100.0,))


def test_missing_band_is_refused():
    with pytest.raises(BandError, match="swir1"):
        Normalizer(("swir1",)).update(raster(np.zeros((1, 2, 3))))
    with pytest.raises(BandError, match="swir1"):
        plain().select(["swir1"])
    with pytest.raises(BandError, match="2 bands"):
        plain().apply(np.zeros((3, 2, 2)), np.ones((2, 2), bool))


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": (1.0,)}, {"scale": (0.0, 1.0)}, {"scale": (1.0, -1.0)}, {"scale": (1.0, float("nan"))},
        {"low": (float("-inf"), 0.0)}, {"low": (200.0, 0.0)}, {"names": ("red", "red")}, {"gain": (1.0, 1.0)},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_values_are_refused(changes):
    with pytest.raises(UsageError):
        Normalization.from_dict({**plain().to_dict(), **changes})
