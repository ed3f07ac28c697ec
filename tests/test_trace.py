"""The outline tracer equals GDAL's polygonizer to the bit, in any strips, valid, and in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any
from unittest import mock

import numba
import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from satseg.errors import GridError, UsageError
from satseg.vector import runs
from satseg.vector.trace import Holes, Outlines, OutlineTracer, joined

PIXELS, SHEARED = Affine.identity(), Affine(2, 0.5, 100, 0.3, -3, 7)
STRIPS = (1, 2, 3, 7, 1000)
labels = npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.integers(0, 2))


def trace(pixels: np.ndarray, weights: np.ndarray | None = None, *, strip: int = 1000, **options: Any) -> Outlines:
    tracer = OutlineTracer(pixels.shape[1], **options)
    parts = []
    for top in range(0, len(pixels), strip):
        rows = slice(top, top + strip)
        parts.append(tracer.feed(pixels[rows], None if weights is None else weights[rows]))
    parts.append(tracer.finish())
    assert tracer.open_vertices == 0
    assert tracer.rows == len(pixels)
    return joined(parts)


def as_set(geometries: Any, values: Any) -> list[tuple[int, str]]:
    texts = shapely.to_wkb(shapely.normalize(np.asarray(geometries, dtype=object)), hex=True)
    return sorted(zip(np.asarray(values, dtype=np.int64).tolist(), texts.tolist(), strict=True))


def by_gdal(pixels: np.ndarray, transform: Affine = SHEARED) -> list[tuple[int, str]]:
    found = list(rasterio.features.shapes(pixels, mask=pixels != 0, connectivity=4, transform=transform))
    return as_set([shapely.geometry.shape(shape) for shape, _ in found], [value for _, value in found])


def check_against_gdal(pixels: np.ndarray, *, strip: int = 1000) -> None:
    outlines = trace(pixels, strip=strip, transform=SHEARED)
    geometries = outlines.geometries()
    assert as_set(geometries, outlines.values) == by_gdal(pixels)
    assert shapely.is_valid(geometries).all()


def check_equal(one: Outlines | Holes, other: Outlines | Holes) -> None:
    for field in fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, Holes):
            check_equal(mine, its)
        else:
            np.testing.assert_array_equal(mine, its)


def burnt(outlines: Outlines, shape: tuple[int, int]) -> np.ndarray:
    """Number of the polygon of each pixel, -1 outside; of outlines in pixels."""
    if not len(outlines.values):
        return np.full(shape, -1)
    numbered = zip(outlines.geometries(), range(1, len(outlines.values) + 1), strict=True)
    return rasterio.features.rasterize(numbered, out_shape=shape, dtype="int32").astype(np.int64) - 1


def spiral(side: int) -> np.ndarray:
    """One coil of pixels, one apart from itself."""
    pixels = np.zeros((side, side), np.uint8)
    row, col, step = 0, 0, (0, 1)
    pixels[0, 0] = 1
    for length in [side - 1, *(n for k in range(side - 1, 0, -2) for n in (k, k)), 0]:
        for _ in range(length):
            row, col = row + step[0], col + step[1]
            pixels[row, col] = 1
        step = (step[1], -step[0])
    return pixels


def rings_in_rings(height: int, width: int) -> np.ndarray:
    row, col = np.indices((height, width))
    return (np.minimum.reduce([row, col, height - 1 - row, width - 1 - col]) % 2 + 1).astype(np.uint8)


ROW, COL = np.indices((23, 37))
FIGURES = {
    "checkerboard": (ROW + COL) % 2,
    "checkerboard of two labels": (ROW + COL) % 2 + 1,
    "coarse checkerboard": (ROW // 3 + COL // 2) % 2,
    "diagonal stripes": (ROW + COL) // 3 % 3,
    "diagonal pixels": (ROW - COL) % 7 == 0,
    "spiral": spiral(21),
    "spiral outside": 1 - spiral(21),
    "rings": rings_in_rings(23, 37),
    "rings apart": rings_in_rings(23, 37) % 2,
    "comb": (COL % 2 == 0) | (ROW == 22),
    "comb upside down": (COL % 2 == 0) | (ROW == 0),
    "lattice": (COL % 3 == 0) | (ROW % 4 == 0),
    "all": ROW >= 0,
    "none": ROW < 0,
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_equal_those_of_gdal_in_any_strips(name: str) -> None:
    pixels = FIGURES[name].astype(np.uint8)
    for strip in STRIPS:
        check_against_gdal(pixels, strip=strip)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.6, 0.8, 0.95])
def test_masks_of_noise_equal_those_of_gdal(share: float) -> None:
    rng = np.random.default_rng(int(share * 100))
    for number in range(120):
        height, width = rng.integers(1, 30, 2)
        check_against_gdal((rng.random((height, width)) < share).astype(np.uint8), strip=STRIPS[number % 5])


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("patch", [1, 3])
def test_labels_of_noise_equal_those_of_gdal(count: int, patch: int) -> None:
    rng = np.random.default_rng(count)
    for number in range(60):
        height, width = rng.integers(1, 26, 2)
        pixels = rng.integers(0, count + 1, (height, width)).astype(np.uint8)
        pixels = np.kron(pixels, np.ones((patch, patch), np.uint8))[:height, :width]
        check_against_gdal(pixels, strip=STRIPS[number % 5])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (1, 2)])
def test_strips_of_one_pixel_equal_those_of_gdal(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        check_against_gdal(rng.integers(0, 3, shape).astype(np.uint8))


def test_a_raster_wider_than_sixteen_bits_is_traced() -> None:
    pixels = np.zeros((3, 70_001), np.uint8)
    pixels[1, 1::97] = 1
    pixels[0, 69_990:] = 1
    check_against_gdal(pixels, strip=2)


def test_noise_larger_than_all_room_there_is_at_first_equals_gdal() -> None:
    pixels = np.random.default_rng(0).integers(0, 4, (130, 311)).astype(np.uint8)
    check_against_gdal(pixels)


@settings(max_examples=60, deadline=None)
@given(pixels=labels, data=st.data(), seed=st.integers(0, 9))
def test_arrays_and_their_order_do_not_depend_on_strips(pixels: np.ndarray, data: st.DataObject, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(-5, 99, pixels.shape)
    options: dict[str, Any] = {"hole_px": 3, "transform": SHEARED}
    whole = trace(pixels, weights, **options)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(pixels)))) | {0, len(pixels)})
    tracer = OutlineTracer(pixels.shape[1], **options)
    parts = [tracer.feed(pixels[a:b], weights[a:b]) for a, b in zip(cuts, [*cuts[1:], cuts[-1]], strict=True)]
    check_equal(joined([*parts, tracer.finish()]), whole)


def test_large_noise_does_not_depend_on_strips_either() -> None:
    pixels = np.random.default_rng(1).integers(0, 3, (600, 301)).astype(np.uint8)
    whole = trace(pixels, hole_px=2)
    for strip in (1, 100, 256):
        check_equal(trace(pixels, strip=strip, hole_px=2), whole)


@settings(max_examples=60, deadline=None)
@given(pixels=labels, seed=st.integers(0, 99))
def test_counts_and_sums_are_those_of_the_pixels_inside(pixels: np.ndarray, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(-(2**40), 2**40, pixels.shape)
    outlines = trace(pixels, weights, strip=3)
    numbers = burnt(outlines, pixels.shape)
    np.testing.assert_array_equal(numbers >= 0, pixels > 0)
    inside, count = numbers[numbers >= 0], len(outlines.values)
    np.testing.assert_array_equal(outlines.pixels, np.bincount(inside, minlength=count))
    np.testing.assert_array_equal(outlines.values[inside], pixels[numbers >= 0])
    sums = np.zeros(count, np.int64)
    np.add.at(sums, inside, weights[numbers >= 0])
    np.testing.assert_array_equal(outlines.sums, sums)


@settings(max_examples=40, deadline=None)
@given(pixels=labels)
def test_polygons_come_by_their_last_row_and_then_its_first_column(pixels: np.ndarray) -> None:
    outlines = trace(pixels)
    numbers = burnt(outlines, pixels.shape)
    places = []
    for number, bottom in enumerate(outlines.bottoms):
        row, col = np.nonzero(numbers == number)
        assert row.max() + 1 == bottom
        places.append((bottom, col[row == row.max()].min()))
    assert places == sorted(places)


def test_a_polygon_is_handed_out_with_the_row_below_it() -> None:
    tracer = OutlineTracer(5)
    rows = np.array([[1, 1, 0, 2, 2], [0, 0, 0, 2, 2], [3, 3, 3, 3, 3]], np.uint8)
    found = [tracer.feed(row[None]).values.tolist() for row in rows]
    assert [*found, tracer.finish().values.tolist()] == [[], [1], [2], [3]]


def test_shells_turn_one_way_and_holes_the_other() -> None:
    outlines = trace(rings_in_rings(9, 12) % 2, transform=SHEARED)
    turning = shapely.is_ccw(shapely.linearrings(outlines.coords, indices=np.repeat(
        np.arange(len(outlines.rings) - 1), np.diff(outlines.rings))))  # fmt: skip
    first = np.isin(np.arange(len(turning)), outlines.polygons[:-1])
    assert len(set(turning[first])) == 1
    assert set(turning[~first]) == {not turning[0]}


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_labels_may_be_of_any_whole_dtype(dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 3, (9, 11))
    if dtype.startswith("i"):
        pixels[pixels == 2] = -7
    pixels = pixels.astype(dtype)
    outlines = trace(pixels, transform=SHEARED)
    assert as_set(outlines.geometries(), outlines.values) == by_gdal(pixels.astype(np.int16))


def test_labels_that_agree_in_their_lower_half_are_kept_apart() -> None:
    big = 2**40 + 5
    pixels = np.array([[5, big, big], [5, 5, -big]])
    outlines = trace(pixels)
    assert sorted(outlines.values) == [-big, 5, big]
    assert outlines.pixels[outlines.values == 5] == [3]


@settings(max_examples=40, deadline=None)
@given(
    codes=npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.integers(0, 7)),
    table=st.lists(st.integers(-1, 2), min_size=8, max_size=8),
    shift=st.integers(0, 7),
)
def test_codes_are_labels_and_weights_by_their_tables(codes: np.ndarray, table: list[int], shift: int) -> None:
    label_of, weight_of = np.zeros((2, 256), np.int64)
    label_of[:8] = np.array(table) * 2**35
    weight_of[:8] = np.arange(8) * 2**33 - 5
    # Memory that begins at any byte: codes are read eight at a time.
    shifted = np.concatenate([np.zeros(shift, np.uint8), codes.ravel()])[shift:].reshape(codes.shape)
    tracer = OutlineTracer(codes.shape[1])
    parts = [tracer.feed_coded(shifted[a : a + 4], label_of, weight_of) for a in range(0, len(codes), 4)]
    check_equal(joined([*parts, tracer.finish()]), trace(label_of[codes], weight_of[codes]))


@pytest.mark.parametrize("width", [8, 15, 16, 17, 64, 100])
def test_long_runs_of_codes_are_skipped_rightly(width: int) -> None:
    pixels = np.ones((9, width), np.uint8)
    pixels[4, width // 2 :] = 2
    pixels[6, -1] = 0
    check_against_gdal(pixels)


def test_any_layout_of_memory_will_do() -> None:
    pixels = np.random.default_rng(0).integers(0, 3, (12, 19)).astype(np.uint8)
    fixed = pixels.copy()
    fixed.flags.writeable = False
    wide = np.repeat(pixels, 2, axis=1)
    for same in (fixed, np.asfortranarray(pixels), wide[:, ::2], pixels[::-1][::-1]):
        check_equal(trace(same), trace(pixels))
        check_equal(trace(same, same), trace(pixels, pixels))


def hole_set(holes: Holes) -> list[tuple[int, str]]:
    return as_set([shapely.Polygon(holes.coords[a:b]) for a, b in zip(holes.rings[:-1], holes.rings[1:], strict=True)],
                  holes.values)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(pixels=labels, most=st.integers(1, 9))
def test_small_holes_are_those_of_the_polygons(pixels: np.ndarray, most: int) -> None:
    outlines = trace(pixels, strip=2, hole_px=most, transform=SHEARED)
    polygons = outlines.geometries()
    owners = [value for value, polygon in zip(outlines.values, polygons, strict=True) for _ in polygon.interiors]
    holes = [shapely.Polygon(ring) for polygon in polygons for ring in polygon.interiors]
    limit = (most + 0.5) * abs(SHEARED.determinant)
    small = [k for k, hole in enumerate(holes) if hole.area < limit]
    assert hole_set(outlines.small_holes) == as_set([holes[k] for k in small], [owners[k] for k in small])


def test_a_hole_is_reported_while_its_polygon_is_open() -> None:
    tracer = OutlineTracer(3, hole_px=1)
    assert not len(tracer.feed(np.array([[4, 4, 4], [4, 0, 4]])).small_holes.values)
    closing = tracer.feed(np.array([[4, 4, 4]]))
    assert closing.small_holes.values.tolist() == [4]
    assert closing.small_holes.coords.min(axis=0).tolist() == [1, 1]
    assert not len(closing.values)
    assert not len(tracer.finish().small_holes.values)
    assert not len(trace(np.array([[4, 4, 4], [4, 0, 4], [4, 4, 4]])).small_holes.values)


def test_memory_does_not_follow_the_rows() -> None:
    pattern = np.random.default_rng(0).integers(0, 3, (64, 50)).astype(np.uint8)
    pattern[-1] = 0
    tracer = OutlineTracer(50)
    sizes = []
    for _ in range(40):
        tracer.feed(pattern)
        work = tracer._sweep._work
        sizes.append((tracer.open_vertices, len(work.vertices), len(work.regions), len(tracer._sweep._out.coords)))
    assert len(set(sizes[1:])) == 1
    assert sizes[0][0] == 0


def test_a_polygon_with_too_many_vertices_is_cut_along_a_row(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    pixels = np.where(rng.random((900, 23)) < 0.25, 2, 1).astype(np.uint8)
    weights = rng.integers(0, 9, pixels.shape)
    whole, cut = trace(pixels, weights), trace(pixels, weights, max_vertices=200)
    assert whole.cut == 0
    assert cut.cut == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "--min-area" in caplog.text
    geometries = cut.geometries()
    assert shapely.is_valid(geometries).all()
    assert cut.coords.max(axis=0).tolist() == [23, 900]
    np.testing.assert_array_equal(cut.coords, np.rint(cut.coords))
    for value in (1, 2):
        for kind in ("pixels", "sums"):
            assert getattr(cut, kind)[cut.values == value].sum() == getattr(whole, kind)[whole.values == value].sum()
        pieces = shapely.union_all(geometries[cut.values == value])
        assert shapely.equals(pieces, shapely.union_all(whole.geometries()[whole.values == value]))
    np.testing.assert_array_equal(burnt(cut, pixels.shape) >= 0, True)
    for strip in (1, 100, 256, 300):
        check_equal(trace(pixels, weights, strip=strip, max_vertices=200), cut)


def test_only_polygons_that_are_too_large_are_cut() -> None:
    pixels = np.zeros((600, 40), np.uint8)
    pixels[:, 1:3] = 3
    pixels[:, 6:30:2] = 5
    pixels[::2, 6:30] = 5
    cut = trace(pixels, max_vertices=200)
    assert (cut.values == 3).sum() == 1
    assert (cut.values == 5).sum() == 3
    assert cut.bottoms.tolist() == [256, 512, 600, 600]


@settings(max_examples=60, deadline=None)
@given(pixels=labels, most=st.integers(1, 30), rows=st.integers(1, 3), strip=st.integers(1, 5))
def test_pieces_are_valid_and_cover_the_same_pixels(pixels: np.ndarray, most: int, rows: int, strip: int) -> None:
    with mock.patch("satseg.vector.sweep.CUT_ROWS", rows):
        cut = trace(pixels, pixels, strip=strip, max_vertices=most, hole_px=3)
        check_equal(trace(pixels, pixels, max_vertices=most, hole_px=3), cut)
    assert shapely.is_valid(cut.geometries()).all()
    numbers = burnt(cut, pixels.shape)
    np.testing.assert_array_equal(numbers >= 0, pixels > 0)
    np.testing.assert_array_equal(cut.values[numbers[numbers >= 0]], pixels[numbers >= 0])
    np.testing.assert_array_equal(cut.pixels, np.bincount(numbers[numbers >= 0], minlength=len(cut.values)))
    np.testing.assert_array_equal(cut.sums, cut.pixels * cut.values)


def test_more_vertices_than_there_are_numbers_for_are_refused() -> None:
    with mock.patch("satseg.vector.sweep.MOST_VERTICES", 5000), pytest.raises(GridError, match="open at row"):
        trace(np.indices((4, 4000)).sum(axis=0) % 2)


def test_nothing_is_nothing() -> None:
    for shape in ((0, 5), (5, 0), (0, 0)):
        nothing = trace(np.zeros(shape, np.uint8), np.zeros(shape, np.int64))
        assert len(nothing.geometries()) == len(nothing.values) == 0
    assert len(joined([]).geometries()) == 0
    assert OutlineTracer(5).finish().rings.tolist() == [0]


def test_tracers_in_threads_do_not_meet() -> None:
    rasters = [np.random.default_rng(seed).integers(0, 4, (200, 150)).astype(np.uint8) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for raster, found in zip(rasters, pool.map(trace, rasters), strict=True):
            check_equal(found, trace(raster))


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(GridError, match="5 columns") as caught:
        OutlineTracer(5).feed(np.zeros((2, 4), np.uint8))
    assert caught.value.code == "E-GRID-207"
    with pytest.raises(GridError):
        OutlineTracer(4).feed(np.zeros(4, np.uint8))
    with pytest.raises(GridError):
        OutlineTracer(4).feed(np.zeros((2, 4), np.uint8), np.zeros((2, 5), np.int64))
    with pytest.raises(GridError, match="256"):
        OutlineTracer(4).feed_coded(np.zeros((2, 4), np.uint8), np.zeros(9, np.int64), np.zeros(256, np.int64))
    for width in (-1, 2**30):
        with pytest.raises(GridError, match="columns"):
            OutlineTracer(width)


def test_numbers_that_are_not_whole_or_too_large_are_refused() -> None:
    rows = np.ones((1, 2), np.uint8)
    for wrong in (np.ones((1, 2)), np.full((1, 2), 2**63, np.uint64)):
        with pytest.raises(UsageError):
            OutlineTracer(2).feed(wrong)
        with pytest.raises(UsageError):
            OutlineTracer(2).feed(rows, wrong)
    with pytest.raises(UsageError, match="uint8"):
        OutlineTracer(2).feed_coded(rows.astype(np.int16), np.zeros(256, np.int64), np.zeros(256, np.int64))
    with pytest.raises(UsageError):
        OutlineTracer(2, max_vertices=0)


def test_weights_come_always_or_never_and_nothing_after_the_end() -> None:
    tracer, rows = OutlineTracer(2), np.ones((1, 2), np.uint8)
    tracer.feed(rows)
    with pytest.raises(UsageError, match="some strips"):
        tracer.feed(rows, rows)
    tracer.finish()
    with pytest.raises(UsageError, match="last ones"):
        tracer.feed(rows)
    with pytest.raises(UsageError, match="finished"):
        tracer.finish()


def test_the_compiler_is_imported_when_a_tracer_is_made() -> None:
    check = "import satseg, satseg.vector.trace, sys; assert not {'numba', 'llvmlite'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_without_a_folder_for_the_cache_all_is_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = numba.njit

    def njit(*, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiler(**options)

    monkeypatch.setattr(numba, "njit", njit)

    def add_one(number: int) -> int:
        return number + 1

    assert runs.entry(add_one)(1) == 2
    assert "no locator" in caplog.text


@pytest.mark.slow
def test_compiling_is_announced_once_and_not_when_it_is_kept(tmp_path: Any) -> None:
    code = (
        "import logging; logging.basicConfig(level=logging.INFO); import numpy as np\n"
        "from satseg.vector.trace import OutlineTracer; OutlineTracer(2).feed(np.ones((1, 2), np.uint8))"
    )
    logs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, env={"NUMBA_CACHE_DIR": str(tmp_path)}
        )
        logs.append(done.stderr.decode().count("compiling the outline tracer"))
    assert logs == [1, 0]
