"""Cleaning polygons: repair keeps all ground, sizes are square metres, simplifying opens no gaps."""

from __future__ import annotations

from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.errors import UsageError
from satseg.vector.finish import Cleaning, Measure, clean, fill_holes, repair, simplify
from satseg.vector.trace import OutlineTracer

UNITS = Measure(None, (0, 0, 100, 100))
RING = shapely.difference(shapely.box(0, 0, 10, 10), shapely.box(4, 4, 6, 6))
ISLAND = shapely.box(4.5, 4.5, 5.5, 5.5)


def array(*geometries: Any) -> np.ndarray:
    out = np.empty(len(geometries), object)
    out[:] = geometries
    return out


def outlined(labels: np.ndarray) -> np.ndarray:
    tracer = OutlineTracer(labels.shape[1])
    return np.concatenate([part.geometries() for part in (tracer.feed(labels), tracer.finish())])


def traced(seed: int, values: int, *, dense: bool = False, scale: float = 1.0) -> np.ndarray:
    """Outlines of blocks of noise."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, values, (9, 11)), np.ones((4, 4), int))
    pixels = np.where(rng.random((36, 44)) < 0.15, rng.integers(0, values, (36, 44)), coarse)
    polygons = outlined(pixels.astype(np.uint8))
    polygons = shapely.segmentize(polygons, 1.0) if dense else polygons
    return shapely.transform(polygons, lambda points: points * scale)


def test_bow_tie_keeps_both_lobes() -> None:
    bow_tie = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    assert bow_tie.area == 0
    assert bow_tie.buffer(0).area == 1  # what a repair by buffer(0) would keep
    fixed, count = repair(array(bow_tie))
    assert (fixed[0].area, count) == (2, 1)
    assert fixed[0].is_valid


def test_overlapping_parts_count_once() -> None:
    both = shapely.MultiPolygon([shapely.box(0, 0, 2, 2), shapely.box(1, 0, 3, 2)])
    fixed, count = repair(array(both))
    assert (both.area, fixed[0].area, count) == (8, 6, 1)


def test_repair_keeps_polygons_of_collections_and_nothing_without_area() -> None:
    box, line, point = shapely.box(0, 0, 1, 1), shapely.LineString([(0, 0), (1, 1)]), shapely.Point(0, 0)
    inner = shapely.GeometryCollection([shapely.box(2, 0, 3, 1), point])
    mixed = shapely.GeometryCollection([line, box, inner])
    spike = shapely.Polygon([(0, 0), (1, 1), (2, 2)])
    fixed, count = repair(array(box, mixed, line, point, None, shapely.Polygon(), spike))
    assert count == 1
    assert fixed[0] is box
    assert fixed[1].area == 2
    assert list(fixed[2:]) == [None] * 5


def test_ring_that_runs_along_itself_becomes_one_valid_polygon() -> None:
    # GEOS 3.14.1 makes two parts of it that share an edge, which is no valid multipolygon.
    fixed, _ = repair(array(shapely.Polygon([(0, 1), (0, 2), (1, 1), (0, 1), (0, 0), (1, 1)])))
    assert fixed[0].is_valid
    assert fixed[0].area == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=9))
def test_repair_always_gives_valid_polygons_or_nothing(corners: list[tuple[int, int]]) -> None:
    fixed, _ = repair(array(shapely.Polygon(corners)))
    assert fixed[0] is None or (fixed[0].is_valid and fixed[0].geom_type in ("Polygon", "MultiPolygon"))
    assert fixed[0] is None or fixed[0].area > 0


def test_polygons_below_the_least_area_go_and_equal_ones_stay() -> None:
    boxes = array(*[shapely.box(0, 0, side, 1) for side in (0.999, 1, 1.001)])
    polygons, kept = clean(boxes, UNITS, min_area_m2=1.0)
    assert kept.tolist() == [1, 2]
    assert list(polygons) == [boxes[1], boxes[2]]
    tenths = array(shapely.box(0.1, 0.2, 0.4, 0.5))  # 0.09 but for rounding
    assert len(clean(tenths, UNITS, min_area_m2=0.09)[0]) == 1


def test_small_holes_are_filled_and_their_islands_taken_in() -> None:
    polygons, kept = clean(array(RING, ISLAND), UNITS, min_hole_m2=4.5)
    assert kept.tolist() == [0]
    assert shapely.equals(polygons[0], shapely.box(0, 0, 10, 10))


def test_filled_holes_are_told_with_their_owners() -> None:
    box = shapely.box(20, 0, 30, 10)
    polygons, holes, owners = fill_holes(array(box, RING), UNITS, [5.0, 4.5])
    assert polygons[0] is box
    assert shapely.equals(polygons[1], shapely.box(0, 0, 10, 10))
    assert shapely.equals(holes[0], shapely.box(4, 4, 6, 6))
    assert owners.tolist() == [1]
    assert [len(part) for part in fill_holes(array(box, RING), UNITS, 4.0)] == [2, 0, 0]


def test_a_polygon_whose_middle_is_its_own_small_hole_stays() -> None:
    middle = shapely.difference(shapely.box(0, 0, 9, 9), shapely.box(4, 1, 5, 8))
    polygons, kept = clean(array(middle), UNITS, min_hole_m2=8.0)
    assert kept.tolist() == [0]
    assert polygons[0].area == 81


def test_holes_as_large_as_the_least_and_larger_stay() -> None:
    polygons, kept = clean(array(RING, ISLAND), UNITS, min_hole_m2=4.0)
    assert kept.tolist() == [0, 1]
    assert list(polygons) == [RING, ISLAND]


def test_islands_of_another_class_stay_when_a_hole_is_filled() -> None:
    polygons, kept = clean(array(RING, ISLAND), UNITS, np.array([1, 2]), min_hole_m2=4.5)
    assert kept.tolist() == [0, 1]
    assert polygons[0].area == 100


def test_each_polygon_may_have_its_own_sizes() -> None:
    holes = shapely.MultiPolygon([shapely.box(21, 1, 22, 2), shapely.box(24, 4, 28, 8)])
    two = shapely.difference(shapely.box(20, 0, 30, 10), holes)
    polygons, kept = clean(array(RING, two, ISLAND), UNITS, min_hole_m2=[0, 2, 0], min_area_m2=[0, 0, 2])
    assert kept.tolist() == [0, 1]
    assert [polygon.area for polygon in polygons] == [96, 84]


@pytest.mark.parametrize("crs", [4326, 32633, 3857])
def test_sizes_are_square_metres_in_every_crs(crs: int) -> None:
    boxes = [shapely.box(400_000, 5_000_000, 400_000 + side, 5_000_010) for side in (9.8, 10.3)]
    layer = geopandas.GeoSeries(boxes, crs=32633).to_crs(crs)
    measure = Measure(crs, tuple(layer.total_bounds))
    assert measure.areas(layer.to_numpy()) == pytest.approx([98, 103], rel=2e-3)  # UTM's own scale is 0.9997
    assert len(clean(layer.to_numpy(), measure, min_area_m2=100.0)[0]) == 1


def test_nothing_asked_changes_nothing() -> None:
    polygons = traced(0, 3)
    same, kept = clean(polygons, UNITS)
    assert same is polygons
    assert kept.tolist() == list(range(len(polygons)))
    assert simplify(polygons, UNITS, 0.0) is polygons
    nothing = np.empty(0, object)
    assert len(simplify(nothing, UNITS, 3.0)) == 0
    assert len(clean(nothing, UNITS, min_area_m2=1, min_hole_m2=1)[0]) == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), tolerance=st.sampled_from([0.3, 1.0, 2.5, 20.0]))
def test_simplified_neighbours_still_share_their_edges(seed: int, tolerance: float) -> None:
    polygons = traced(seed, 3, dense=True)
    simple = simplify(polygons, UNITS, tolerance)
    assert shapely.is_valid(simple).all()
    assert not shapely.is_empty(simple).any()
    assert shapely.coverage_is_valid(simple)
    assert shapely.get_num_coordinates(simple).sum() <= shapely.get_num_coordinates(polygons).sum()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_simplified_islands_stay_in_their_lakes(seed: int) -> None:
    polygons = traced(seed, 2)
    simple = simplify(polygons, UNITS, 1.5)
    assert shapely.is_valid(simple).all()
    assert shapely.union_all(simple).area == pytest.approx(shapely.area(simple).sum())


def test_steps_of_a_slanting_edge_become_a_line_within_a_pixel() -> None:
    stairs = np.tril(np.ones((40, 40), np.uint8))
    polygons = outlined(stairs)
    simple = simplify(polygons, UNITS, 1.0)
    assert shapely.get_num_coordinates(simple[0]) < 12 < shapely.get_num_coordinates(polygons[0])
    assert shapely.hausdorff_distance(simple[0], polygons[0]) <= 1.0


def test_overlapping_polygons_are_simplified_one_by_one() -> None:
    circles = shapely.buffer(shapely.points([(0, 0), (1, 0)]), 2, quad_segs=64)
    simple = simplify(circles, UNITS, 0.1)
    assert shapely.is_valid(simple).all()
    assert shapely.get_num_coordinates(simple).max() < 30


def test_tolerance_is_in_metres_also_in_degrees() -> None:
    degrees = traced(5, 2, scale=1e-5)  # pixels of about a metre
    measure = Measure(4326, tuple(shapely.total_bounds(degrees)))
    simple = simplify(degrees, measure, 1.5)
    assert shapely.is_valid(simple).all()
    assert 0.2 < shapely.get_num_coordinates(simple).sum() / shapely.get_num_coordinates(degrees).sum() < 0.9
    assert measure.areas(simple).sum() == pytest.approx(measure.areas(degrees).sum(), rel=0.05)


@pytest.mark.parametrize("size", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["min_area_m2", "min_hole_m2", "simplify_m"])
def test_sizes_that_are_none_are_refused(name: str, size: float) -> None:
    with pytest.raises(UsageError, match=name):
        Cleaning(**{name: size})


def test_sizes_are_for_all_classes_or_by_name() -> None:
    assert Cleaning(3, {"a": 2}).sizes("a") == (3, 2)
    assert Cleaning(3, {"a": 2}).sizes("b") == (3, 0)
    with pytest.raises(UsageError):
        Cleaning({"a": -1})
