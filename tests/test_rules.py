"""Rules after outlines: what erases is kept clear, shapes are turned and sized alike, cuts of rows do not matter."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import geopandas
import numpy as np
import pandas
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize as burn

from satseg.classes import ClassItem, ShapeRule
from satseg.grid import Grid
from satseg.vector import rules as rules_module
from satseg.vector.finish import Cleaning, Measure
from satseg.vector.layers import PlaneCode
from satseg.vector.polygonizer import Polygonizer
from satseg.vector.rules import RuledPolygonizer
from satseg.vector.shapes import LATTICE, PixelFrame, roundness

PLACES = {
    "metres": (Affine(2, 0, 500_000, 0, -2, 5_000_000), 32633),
    "rotated": (Affine(2, 0.5, 500_000, 0.7, -1.5, 5_000_000), 32633),
    "degrees": (Affine(2e-5, 0, 13.4, 0, -2e-5, 52.5), 4326),
    "no crs": (Affine.identity(), None),
}
NAMES = ("water", "roof", "road")


@pytest.fixture(autouse=True)
def short_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply rules every 16 rows, so that small rasters have several steps."""
    monkeypatch.setattr(rules_module, "MOST_ROWS", 16)


def grid_of(place: str, height: int, width: int) -> Grid:
    return Grid(height, width, *PLACES[place])


def items(**rules: dict[str, Any]) -> list[ClassItem]:
    return [
        ClassItem(name=name, id=10 + k, color="#336699", **rules.get(name, {})) for k, name in enumerate(NAMES)
    ]


def noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Codes of overlapping blocks and speckle."""
    rng = np.random.default_rng(seed)
    side = int(rng.integers(2, 7))
    coarse = rng.random((shape[0], shape[1] // side + 1, shape[2] // side + 1)) < rng.uniform(0.1, 0.6)
    mask = np.kron(coarse, np.ones((side, side), bool))[:, : shape[1], : shape[2]] ^ (rng.random(shape) < 0.02)
    return np.where(mask, rng.integers(1, 255, shape), 0).astype(np.uint8)


def ruled(
    codes: np.ndarray, grid: Grid, classes: list[ClassItem], cuts: list[int] | None = None, **options: Any
) -> geopandas.GeoDataFrame:
    cleaning = Cleaning.of(classes, **options)
    traced = RuledPolygonizer(grid, classes, cleaning=cleaning, score_of=[PlaneCode(0.5).score_of] * len(classes))
    edges = [0, *(cuts or []), grid.height]
    parts = [traced.feed(codes[:, top:end]) for top, end in pairwise(edges)] + [traced.finish()]
    assert traced.held == 0
    return pandas.concat([parts[0], *(part for part in parts[1:] if len(part))], ignore_index=True)


def cover(layer: geopandas.GeoDataFrame, name: str) -> shapely.Geometry:
    return shapely.union_all(layer.geometry[layer.class_name == name].to_numpy())


def pixels(layer: geopandas.GeoDataFrame, name: str, grid: Grid) -> np.ndarray:
    shapes = [(shape, 1) for shape in layer.geometry[layer.class_name == name]]
    if not shapes:
        return np.zeros(grid.shape, bool)
    return burn(shapes, out_shape=grid.shape, transform=grid.transform).astype(bool)


def texts(layer: geopandas.GeoDataFrame) -> list[tuple[Any, ...]]:
    return [(row.class_name, row.score, row.area_m2, row.geometry.wkb) for row in layer.itertuples()]


ALL = items(
    water={"erases": "all", "simplify_m": 5.0, "min_area_m2": 20.0},
    roof={"erases": ("road",), "buffer_m": 3.0, "min_hole_m2": 30.0},
    road={"buffer_m": -1.5, "min_area_m2": 12.0},
)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), place=st.sampled_from(sorted(PLACES)), height=st.integers(1, 70))
def test_results_are_valid_clear_of_what_erases_them_and_of_their_least_size(seed, place, height):
    grid = grid_of(place, height, 41)
    layer = ruled(noise(seed, (3, height, 41)), grid, ALL, [height // 3, height // 2])
    assert layer.geometry.is_valid.all()
    assert (layer.geom_type == "Polygon").all()
    water, roof, road = (cover(layer, name) for name in NAMES)
    pixel = abs(grid.transform.determinant)
    rim = LATTICE * 1.5 * np.sqrt(pixel) * (1 + sum(shape.length for shape in (water, roof, road)))
    for over, under in ((water, roof), (water, road), (roof, road)):
        assert shapely.intersection(over, under).area <= rim  # a snapped corner moves an edge by a part of the lattice
    assert (layer.area_m2[layer.class_name == "water"] >= 20 * (1 - 1e-9)).all()
    assert (layer.area_m2[layer.class_name == "road"] >= 12 * (1 - 1e-9)).all()
    for name in NAMES:  # no ground counts twice
        own = layer.geometry[layer.class_name == name].to_numpy()
        assert shapely.area(own).sum() - cover(layer, name).area <= rim
    assert np.allclose(Measure(grid.crs, grid.bounds).areas(layer.geometry.to_numpy()), layer.area_m2)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), place=st.sampled_from(sorted(PLACES)))
def test_neither_features_nor_their_order_depend_on_how_rows_are_cut(seed, place):
    codes, grid = noise(seed, (3, 75, 33)), grid_of(place, 75, 33)
    rng = np.random.default_rng(seed)
    expected = texts(ruled(codes, grid, ALL))
    assert texts(ruled(codes, grid, ALL, sorted(rng.integers(0, 76, 5).tolist()))) == expected


def test_rows_may_come_one_by_one():
    codes, grid = noise(8, (3, 50, 20)), grid_of("rotated", 50, 20)
    assert texts(ruled(codes, grid, ALL, list(range(1, 50)))) == texts(ruled(codes, grid, ALL))


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), place=st.sampled_from(sorted(PLACES)))
def test_erasing_alone_is_erasing_pixels(seed, place):
    codes, grid = noise(seed, (3, 75, 33)), grid_of(place, 75, 33)
    # Water erases roofs, and what is left of these erases roads; water leaves roads alone.
    layer = ruled(codes, grid, items(water={"erases": ("roof",)}, roof={"erases": ("road",)}), [20, 40])
    water, roof, road = codes > 0
    roof = roof & ~water
    for name, expected in zip(NAMES, (water, roof, road & ~roof), strict=True):
        assert np.array_equal(pixels(layer, name, grid), expected)
        own = layer.geometry[layer.class_name == name].to_numpy()
        assert shapely.area(own).sum() == pytest.approx(expected.sum() * abs(grid.transform.determinant), rel=1e-9)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([-2.5, 1.0, 4.0]), st.sampled_from(["metres", "no crs"]))
def test_growing_is_what_geos_grows(seed, metres, place):
    codes, grid = noise(seed, (3, 60, 33)), grid_of(place, 60, 33)
    plain = ruled(codes, grid, items())
    layer = ruled(codes, grid, items(roof={"buffer_m": metres}), [17, 31])
    pixel = np.sqrt(abs(grid.transform.determinant))
    shapes = plain.geometry[plain.class_name == "roof"]
    expected = shapely.union_all(shapes.buffer(metres, quad_segs=4).to_numpy())
    found = cover(layer, "roof")
    slivers = 0.1 * pixel**2 * (1 + len(shapes))
    assert shapely.symmetric_difference(found, expected).area <= LATTICE * pixel * expected.length + slivers
    others = [texts(each[each.class_name != "roof"]) for each in (plain, layer)]
    assert others[0] == others[1]


def test_without_rules_features_are_those_of_the_polygonizer():
    codes, grid = noise(3, (3, 60, 33)), grid_of("rotated", 60, 33)
    plain = Polygonizer(grid, [(10 + k, name) for k, name in enumerate(NAMES)], score_of=[PlaneCode(0.5).score_of] * 3)
    expected = pandas.concat([part for part in (plain.feed(codes), plain.finish()) if len(part)])
    assert sorted(texts(ruled(codes, grid, items()))) == sorted(texts(expected))


def test_only_what_is_kept_erases():
    codes = np.zeros((3, 40, 50), np.uint8)
    codes[2, 10:20] = 200  # a road
    codes[0, 12:14, 5:8] = 200  # a speck of water, 6 pixels
    codes[0, 5:30, 30:40] = 200  # and a pond
    grid = grid_of("no crs", 40, 50)
    layer = ruled(codes, grid, items(water={"erases": ("road",), "min_area_m2": 7.0}))
    road = layer[layer.class_name == "road"]
    assert sorted(road.area_m2) == [100, 300]  # parted by the pond, without a hole where the speck was
    assert road.score.nunique() == 1


def test_what_is_cut_below_the_least_area_is_dropped_and_erases_nothing():
    codes = np.zeros((3, 30, 30), np.uint8)
    codes[0, 5:25, 5:25] = 200  # water over most of a roof
    codes[1, 5:25, 5:26] = 200
    codes[2, 5:25, 20:29] = 200
    classes = items(water={"erases": ("roof",)}, roof={"erases": ("road",), "min_area_m2": 50})
    layer = ruled(codes, grid_of("no crs", 30, 30), classes)
    assert set(layer.class_name) == {"water", "road"}
    assert layer.area_m2[layer.class_name == "road"].item() == 180


def test_a_river_is_told_from_a_lake_by_its_shape():
    codes = np.zeros((3, 120, 120), np.uint8)
    rows, cols = np.indices((120, 120))
    bend = np.abs(np.hypot(rows - 10, cols - 110) - 90) < 4  # a river that bends: its box is nearly square
    lake = (np.hypot((rows - 50) / 1.5, cols - 100) < 10) & ~bend
    codes[0, bend | lake] = 200
    rule = ShapeRule(to="roof", rounder_than=0.3)
    layer = ruled(codes, grid_of("no crs", 120, 120), items(water={"becomes": (rule,)}))
    assert sorted(zip(layer.class_name, layer.area_m2, strict=True)) == [("roof", lake.sum()), ("water", bend.sum())]
    assert set(layer.class_id) == {10, 11}


@pytest.mark.parametrize("place", ["metres", "no crs"])
def test_the_first_rule_that_holds_decides_and_least_areas_are_those_of_the_new_class(place):
    codes = np.zeros((3, 40, 64), np.uint8)
    for k, side in enumerate((2, 4, 8, 16)):
        codes[0, 2 : 2 + side, 15 * k : 15 * k + side] = 200
    grid = grid_of(place, 40, 64)
    pixel = abs(grid.transform.determinant)
    becomes = (ShapeRule(to="roof", below_m2=20 * pixel), ShapeRule(to="road", above_m2=100 * pixel, rounder_than=0.5))
    water = {"becomes": becomes, "min_area_m2": 50 * pixel}
    layer = ruled(codes, grid, items(water=water, roof={"min_area_m2": 5 * pixel}))
    found = dict(zip(layer.class_name, layer.area_m2 / pixel, strict=True))
    assert found == {"roof": 16, "water": 64, "road": 256}


@pytest.mark.parametrize("turn", [0.0, 0.3, 0.7])
def test_roundness_is_the_same_after_turning_and_scaling(turn):
    disc = shapely.Point(3, 4).buffer(10, quad_segs=64)
    square, strip = shapely.box(0, 0, 5, 5), shapely.box(0, 0, 40, 4)
    ring = shapely.difference(disc, shapely.Point(3, 4).buffer(8))
    c, s = 7 * np.cos(turn), 7 * np.sin(turn)
    shapes = shapely.transform(np.array([disc, square, strip, ring]), lambda xy: xy @ np.array([[c, s], [-s, c]]))
    assert roundness(shapes) == pytest.approx([1, 2 / np.pi, 160 / (np.pi * 404), 1], rel=0.01)


def test_what_shrinks_may_fall_apart_vanish_and_keeps_its_score():
    codes = np.zeros((3, 30, 40), np.uint8)
    codes[1, 4:20, 4:14] = codes[1, 4:20, 20:34] = 254  # two roofs
    codes[1, 11:13, 14:20] = 254  # joined by a strip
    codes[1, 25:27, 5:7] = 254  # and a speck that vanishes
    layer = ruled(codes, grid_of("no crs", 30, 40), items(roof={"buffer_m": -2.0}))
    assert len(layer) == 2
    assert (layer.score == 1).all()
    assert sorted(layer.area_m2) == pytest.approx([6 * 12, 10 * 12], abs=0.5)


def test_grown_neighbours_meet_and_stay_apart():
    codes = np.zeros((3, 40, 40), np.uint8)
    codes[1, 5:15, 5:15] = codes[1, 8:30, 17:30] = 200
    layer = ruled(codes, grid_of("no crs", 40, 40), items(roof={"buffer_m": 2.0}))
    one, other = layer.geometry
    assert len(layer) == 2
    assert one.distance(other) < 0.01
    assert shapely.intersection(one, other).area < 0.01


def test_simplified_outlines_have_fewer_corners_and_stay_near():
    rows, cols = np.indices((60, 60))
    codes = np.zeros((3, 60, 60), np.uint8)
    codes[1, np.hypot(rows - 30, cols - 28) < 20] = 200
    codes[1, np.hypot(rows - 30, cols - 28) < 8] = 0
    plain, simple = (ruled(codes, grid_of("no crs", 60, 60), items(roof={"simplify_m": m})) for m in (0.0, 2.0))
    counts = [shapely.get_num_coordinates(layer.geometry.item()) for layer in (plain, simple)]
    assert counts[1] < counts[0] / 2
    assert len(simple.geometry.item().interiors) == 1
    assert simple.geometry.item().hausdorff_distance(plain.geometry.item()) < 4


def test_without_anything_inside_there_is_nothing():
    for height, width in ((1, 1), (40, 1), (1, 40)):
        assert len(ruled(np.zeros((3, height, width), np.uint8), grid_of("metres", height, width), ALL)) == 0


def test_only_what_lies_near_an_open_outline_is_held():
    height, width = 400, 200
    codes = np.zeros((3, height, width), np.uint8)
    codes[0, :, 3:6] = 200  # a river from top to bottom
    codes[2, 2::8, 20:190:8] = 200  # specks of road far from it
    codes[2, 4::40, 2:5] = 200  # and bridges over it
    grid, classes = grid_of("no crs", height, width), items(water={"erases": "all"}, roof={"buffer_m": 1.0})
    traced = RuledPolygonizer(grid, classes, cleaning=Cleaning(), score_of=[PlaneCode(0.5).score_of] * 3)
    held = []
    for top in range(0, height, 16):
        traced.feed(codes[:, top : top + 16])
        held.append(traced.held)
    assert max(held) <= height // 40 + 2 * width // 8 + 1


@pytest.mark.parametrize("place", sorted(PLACES))
def test_reach_covers_what_grows(place):
    grid = grid_of(place, 30, 40)
    frame, measure = PixelFrame(grid), Measure(grid.crs, grid.bounds)
    polygon = np.array([shapely.box(10, 12, 14, 17)])
    grown = shapely.buffer(measure.to_metres(frame.back(polygon)), 7.0)
    bounds = shapely.bounds(frame.of(measure.from_metres(grown)))[0] - np.array([10, 12, 14, 17])
    reach = frame.reach(measure, 7.0)
    assert np.abs(bounds).max() <= reach
    assert reach < 1.5 * np.abs(bounds).max()


def test_simplifying_the_whole_layer_goes_before_the_rules():
    codes, grid = noise(5, (3, 60, 33)), grid_of("metres", 60, 33)
    layer = ruled(codes, grid, ALL, [20, 30], simplify_m=3.0)
    assert layer.geometry.is_valid.all()
    assert shapely.intersection(cover(layer, "water"), cover(layer, "road")).area < 1.0
