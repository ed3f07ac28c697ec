"""The outline tracer equals GDAL's polygonizer to the bit, fed in any strips, and is always valid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from satseg.errors import GridError, UsageError
from satseg.vector.trace import Outlines, OutlineTracer

SHEARED = Affine(2, 0.5, 100, 0.3, -3, 7)
labels = npst.arrays(
    np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)
)
masks = npst.arrays(
    np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1)
)


def trace(pixels: np.ndarray, *, strip: int | None = None, scores: np.ndarray | None = None) -> Outlines:
    tracer = OutlineTracer(pixels.shape[1])
    for top in range(0, len(pixels), strip or len(pixels)):
        rows = slice(top, top + (strip or len(pixels)))
        tracer.feed(pixels[rows], None if scores is None else scores[rows])
    return tracer.outlines()


def as_set(geometries: Any, values: Any) -> list[tuple[int, str]]:
    texts = shapely.to_wkb(shapely.normalize(np.asarray(geometries, dtype=object)), hex=True)
    return sorted(zip(np.asarray(values).tolist(), texts.tolist(), strict=True))


def by_gdal(pixels: np.ndarray, transform: Affine) -> list[tuple[int, str]]:
    found = list(rasterio.features.shapes(pixels, mask=pixels != 0, connectivity=4, transform=transform))
    return as_set([shapely.geometry.shape(shape) for shape, _ in found], [value for _, value in found])


@settings(max_examples=60, deadline=None)
@given(pixels=labels, strip=st.integers(1, 9))
def test_outlines_of_labels_equal_those_of_gdal_to_the_bit(pixels: np.ndarray, strip: int) -> None:
    outlines = trace(pixels, strip=strip)
    geometries = outlines.geometries(SHEARED)
    assert as_set(geometries, outlines.values) == by_gdal(pixels, SHEARED)
    assert shapely.is_valid(geometries).all()


@settings(max_examples=60, deadline=None)
@given(pixels=masks)
def test_outlines_of_masks_equal_those_of_gdal_and_cover_every_pixel(pixels: np.ndarray) -> None:
    outlines = trace(pixels)
    geometries = outlines.geometries(Affine.identity())
    assert as_set(geometries, outlines.values) == by_gdal(pixels, Affine.identity())
    assert shapely.is_valid(geometries).all()
    assert outlines.pixels.sum() == pixels.sum()
    np.testing.assert_array_equal(shapely.area(geometries), outlines.pixels)


@pytest.mark.parametrize("share", [0.3, 0.55, 0.7, 0.95])
def test_noise_with_lakes_and_islands_equals_gdal_in_any_strips(share: float) -> None:
    pixels = (np.random.default_rng(0).random((90, 131)) < share).astype(np.uint8)
    expected = by_gdal(pixels, SHEARED)
    for strip in (1, 7, 64, 90):
        outlines = trace(pixels, strip=strip)
        assert as_set(outlines.geometries(SHEARED), outlines.values) == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (17, 1), (2, 2)])
def test_everything_and_nothing(shape: tuple[int, int]) -> None:
    whole = trace(np.ones(shape, np.uint8)).geometries(Affine.identity())
    assert shapely.equals(whole, [shapely.box(0, 0, shape[1], shape[0])]).all()
    nothing = trace(np.zeros(shape, np.uint8), scores=np.zeros(shape))
    assert len(nothing.geometries(Affine.identity())) == len(nothing.pixels) == 0


def test_a_raster_wider_than_sixteen_bits_is_traced() -> None:
    pixels = np.zeros((3, 70_001), np.uint8)
    pixels[1, 1::97] = 1
    pixels[0, 69_990:] = 1
    outlines = trace(pixels)
    assert as_set(outlines.geometries(SHEARED), outlines.values) == by_gdal(pixels, SHEARED)


@pytest.mark.parametrize("dtype", ["bool", "int16", "int32", "uint32", "int64"])
def test_labels_may_be_of_any_whole_dtype(dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 3, (9, 11))
    if dtype.startswith("i"):
        pixels[pixels == 2] = -7
    outlines = trace(pixels.astype(dtype))
    whole = pixels.astype(dtype).astype(np.int16)
    assert as_set(outlines.geometries(SHEARED), outlines.values.astype(np.int16)) == by_gdal(whole, SHEARED)


@settings(max_examples=30, deadline=None)
@given(pixels=labels, strip=st.integers(1, 9), seed=st.integers(0, 99))
def test_score_sums_are_those_of_the_pixels_inside(pixels: np.ndarray, strip: int, seed: int) -> None:
    scores = np.random.default_rng(seed).random(pixels.shape).astype(np.float32)
    outlines = trace(pixels, strip=strip, scores=scores)
    assert outlines.score_sums is not None
    for polygon, found in zip(outlines.geometries(Affine.identity()), outlines.score_sums, strict=True):
        inside = rasterio.features.rasterize([polygon], out_shape=pixels.shape, dtype="uint8") == 1
        assert found == pytest.approx(scores[inside].sum(dtype=np.float64), abs=pixels.size * 2**-30)


def test_score_sums_stay_exact_far_from_the_upper_left_corner() -> None:
    scores = np.ones((400, 5000), np.float32)
    pixels = np.zeros(scores.shape, np.uint8)
    pixels[398, 4998] = 1
    scores[398, 4998] = 0.25
    assert trace(pixels, strip=100, scores=scores).score_sums == [0.25]


def test_nan_scores_count_as_nothing_and_others_must_be_shares() -> None:
    pixels = np.ones((2, 2), np.uint8)
    assert trace(pixels, scores=np.array([[np.nan, 1], [0.5, 0]])).score_sums == [1.5]
    with pytest.raises(UsageError, match=r"0..1"):
        trace(pixels, scores=np.full((2, 2), 1.5))


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(GridError):
        OutlineTracer(5).feed(np.zeros((2, 4), np.uint8))
    with pytest.raises(GridError):
        OutlineTracer(4).feed(np.zeros((2, 4), np.uint8), np.zeros((2, 5)))
