"""Polygonizer: features of a stream equal those of the whole layer, however its rows are cut."""

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
from hypothesis.extra import numpy as npst

from satseg.errors import SatsegError
from satseg.grid import Grid
from satseg.imagery.labels import rasterize
from satseg.vector import polygonizer as polygonizer_module
from satseg.vector.finish import Cleaning, Measure, Sure, clean
from satseg.vector.layers import LABELS, WEIGHTS, PlaneCode, small_hole_px
from satseg.vector.pockets import Pockets
from satseg.vector.polygonizer import Polygonizer
from satseg.vector.trace import OutlineTracer

PLACES = {
    "metres": (Affine(2, 0, 500_000, 0, -2, 5_000_000), 32633),
    "rotated": (Affine(2, 0.5, 500_000, 0.7, -1.5, 5_000_000), 32633),
    "degrees": (Affine(2e-5, 0, 13.4, 0, -2e-5, 52.5), 4326),
    "no crs": (Affine.identity(), None),
}
CLASSES = [(3, "roof"), (7, "tree"), (8, "road")]
SCORES = [PlaneCode(0.5).score_of, PlaneCode(0.0).score_of, PlaneCode(0.9).score_of]


def grid_of(place: str, height: int, width: int) -> Grid:
    transform, crs = PLACES[place]
    return Grid(height, width, transform, crs)


def noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Codes of blocks and speckle, dense enough that outlines meet at corners everywhere."""
    rng = np.random.default_rng(seed)
    side = int(rng.integers(1, 4))
    coarse = rng.random((shape[0], shape[1] // side + 1, shape[2] // side + 1)) < rng.uniform(0.4, 0.9)
    mask = np.kron(coarse, np.ones((side, side), bool))[:, : shape[1], : shape[2]] ^ (rng.random(shape) < 0.05)
    return np.where(mask, rng.integers(1, 255, shape), rng.choice([0, 255], shape)).astype(np.uint8)


def cuts_of(seed: int, height: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return sorted(rng.integers(0, height + 1, rng.integers(0, 6)).tolist())


def fed(codes: np.ndarray, grid: Grid, cuts: list[int], **options: Any) -> list[geopandas.GeoDataFrame]:
    options = {"score_of": SCORES[: len(codes)]} | options
    traced = Polygonizer(grid, CLASSES[: len(codes)], **options)
    edges = [0, *cuts, grid.height]
    batches = [traced.feed(codes[:, top:end]) for top, end in pairwise(edges)]
    batches.append(traced.finish())
    assert sum(traced.counts) == sum(map(len, batches))
    return batches


def joined(batches: list[geopandas.GeoDataFrame]) -> geopandas.GeoDataFrame:
    return pandas.concat(batches, ignore_index=True)


def whole(codes: np.ndarray, grid: Grid, cleaning: Cleaning) -> set[tuple[bytes, str, float, float]]:
    """The features as the functions for whole layers make them."""
    measure, found = Measure(grid.crs, grid.bounds), set()
    for k, (_, name) in enumerate(CLASSES[: len(codes)]):
        tracer = OutlineTracer(grid.width, transform=grid.transform)
        parts = [tracer.feed_coded(codes[k], LABELS, WEIGHTS), tracer.finish()]
        polygons = np.concatenate([part.geometries() for part in parts])
        means = np.concatenate([part.sums / part.pixels for part in parts])
        area, hole = cleaning.sizes(name)
        polygons, kept = clean(polygons, measure, min_area_m2=area, min_hole_m2=hole)
        scores, areas = SCORES[k][0] + SCORES[k][1] * means[kept], measure.areas(polygons)
        if name in cleaning.sure:
            least, above = cleaning.sure[name].least_m2, cleaning.sure[name].above
            sure = areas * (scores - above) >= least * (1 - above) * (1 - 1e-9)
            polygons, scores, areas = polygons[sure], scores[sure], areas[sure]
        found |= rows_of(polygons, [name] * len(polygons), scores, areas)
    return found


def rows_of(polygons: Any, names: Any, scores: Any, areas: Any) -> set[tuple[bytes, str, float, float]]:
    keys = shapely.to_wkb(shapely.normalize(np.asarray(polygons)))
    return set(zip(keys, names, np.round(scores, 9).tolist(), np.round(areas, 6).tolist(), strict=True))


def rows(layer: geopandas.GeoDataFrame) -> set[tuple[bytes, str, float, float]]:
    found = rows_of(layer.geometry.to_numpy(), layer.class_name, layer.score, layer.area_m2)
    assert len(found) == len(layer)
    return found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 60), st.integers(1, 25)),
    place=st.sampled_from(list(PLACES)),
    area=st.sampled_from([0.0, 3.0, 20.0]),
    hole=st.sampled_from([0.0, 3.0, 9.0, 21.0, 100.0, 1e4]),
    sure=st.sampled_from([None, 0.7, 5.2]),
)
def test_a_stream_is_cleaned_as_a_whole_layer(
    seed: int, shape: tuple[int, int, int], place: str, area: float, hole: float, sure: float | None
) -> None:
    grid, codes = grid_of(place, *shape[1:]), noise(seed, shape)
    pixel = grid.pixel_area_m2()
    asked = {} if sure is None else {"roof": Sure(sure * pixel, 0.47)}
    cleaning = Cleaning(area * pixel, {"roof": hole * pixel, "tree": 12.0 * pixel}, sure=asked)
    expected = whole(codes, grid, cleaning)
    layers = [joined(fed(codes, grid, cuts_of(seed + n, grid.height), cleaning=cleaning)) for n in range(3)]
    assert rows(layers[0]) == expected
    for layer in layers[1:]:
        pandas.testing.assert_frame_equal(layer, layers[0])  # the order too


RING = [
    (1, 2), (1, 3), (1, 4), (2, 4), (2, 5), (3, 5), (4, 5), (4, 4), (5, 4), (5, 3), (5, 2), (4, 2), (4, 1), (3, 1),
    (2, 1), (2, 2),
]  # fmt: skip
"""Pixels around a hole of five, of which the middle one is an island."""


@pytest.mark.parametrize(
    ("gaps", "tails", "dropped"),
    [
        ([], [], True),  # a hole of its own
        ([(5, 4)], [2], True),  # it touches the outside at a corner; the polygon ends far below
        ([(5, 4), (1, 4)], [2, 5], True),  # of two parts, which are joined far below
        ([(5, 4), (1, 4)], [2], False),  # of two polygons: no hole
        ([(5, 4), (1, 4), (1, 3)], [2, 5], False),  # open
    ],
)
def test_islands_go_with_their_hole_however_late_it_is_one(
    gaps: list[tuple[int, int]], tails: list[int], dropped: bool
) -> None:
    codes = np.zeros((1, 40, 9), np.uint8)
    for place in [*RING, (3, 3)]:
        codes[0][place] = place not in gaps
    codes[0, 5:30, tails] = 1
    codes[0, 29, 2 : max(tails, default=2) + 1] = 1
    grid = grid_of("no crs", 40, 9)
    for cleaning in (Cleaning(min_hole_m2=5.5), Cleaning(min_hole_m2=5.0)):
        expected = whole(codes, grid, cleaning)
        for step in (1, 7, 40):
            assert rows(joined(fed(codes, grid, list(range(0, 40, step)), cleaning=cleaning))) == expected
    kept, left = (len(whole(codes, grid, Cleaning(min_hole_m2=size))) for size in (5.0, 5.5))
    assert kept - left == dropped


def test_islands_that_lie_in_no_small_place_do_not_wait() -> None:
    codes = np.ones((1, 60, 20), np.uint8)
    codes[0, 2:-2, 5:12] = 0
    codes[0, 4:50:4, 8] = 1
    grid, cleaning = grid_of("no crs", 60, 20), Cleaning(min_hole_m2=9.0)
    batches = fed(codes, grid, list(range(60)), cleaning=cleaning)
    assert sum(map(len, batches[:-1])) == 12
    assert len(batches[-1]) == 1


def test_batches_come_by_finishing_row_then_class() -> None:
    grid, codes = grid_of("no crs", 30, 20), noise(4, (3, 30, 20))
    layer = joined(fed(codes, grid, list(range(30))))
    bottoms = shapely.bounds(layer.geometry.to_numpy())[:, 3]  # pixel space: rows run down
    assert np.all(np.diff(bottoms) >= 0)
    same = np.diff(bottoms) == 0
    assert np.all(np.diff(layer.class_id)[same] >= 0)


def test_features_come_while_rows_are_fed_and_burning_them_restores_the_mask() -> None:
    grid, codes = grid_of("metres", 60, 20), noise(1, (2, 60, 20))
    codes[:, ::6] = 0
    batches = fed(codes, grid, list(range(0, 60, 3)))
    assert np.count_nonzero([len(batch) for batch in batches]) > 10
    back = rasterize(joined(batches), like=grid, classes=["roof", "tree"]).data
    np.testing.assert_array_equal(back, (codes > 0) & (codes < 255))


def test_threads_change_nothing() -> None:
    grid, codes = grid_of("metres", 50, 40), noise(2, (3, 50, 40))
    for cleaning in (Cleaning(), Cleaning(20.0, 60.0)):
        one, three = (fed(codes, grid, [10, 20, 21], cleaning=cleaning, threads=n) for n in (1, 3))
        for left, right in zip(one, three, strict=True):
            pandas.testing.assert_frame_equal(left, right)


def test_simplified_layers_come_at_the_end() -> None:
    grid, codes = grid_of("metres", 40, 40), noise(3, (2, 40, 40))
    cleaning = Cleaning(min_hole_m2=30.0, simplify_m=1.5)
    batches = fed(codes, grid, [7, 20], cleaning=cleaning)
    assert [len(batch) > 0 for batch in batches] == [False, False, False, True]
    again = fed(codes, grid, [], cleaning=cleaning)
    pandas.testing.assert_frame_equal(batches[-1], again[-1])
    assert batches[-1].is_valid.all()


@pytest.mark.parametrize("simplify_m", [0.0, 0.1])
def test_what_is_small_has_to_be_surer(simplify_m: float) -> None:
    codes = np.zeros((1, 12, 30), np.uint8)
    for col, size, code in ((1, 3, 100), (6, 3, 150), (12, 6, 50), (20, 6, 20)):  # 9 and 36 pixels of 4 m2
        codes[0, 2 : 2 + size, col : col + size] = code
    cleaning = Cleaning(4.0, simplify_m=simplify_m, sure={"roof": Sure(20.0, 0.5)})
    layer = joined(fed(codes, grid_of("metres", 12, 30), [4], cleaning=cleaning))
    # areas by (code - 1) / 253, which is where its score lies between 0.5 and 1: 14.1, 21.2, 27.9 and 10.8
    assert layer.area_m2.tolist() == pytest.approx([36.0, 144.0], rel=2e-3)
    assert len(joined(fed(codes, grid_of("metres", 12, 30), [], cleaning=cleaning, score_of=None))) == 4


def test_without_scores_they_are_nan_and_empty_masks_give_empty_batches() -> None:
    grid = grid_of("degrees", 5, 7)
    empty = np.full((2, 5, 7), 255, np.uint8)
    for batch in fed(empty, grid, [2, 2], cleaning=Cleaning(1, 10)):
        assert len(batch) == 0
        assert list(batch.columns) == ["class_id", "class_name", "score", "area_m2", "geometry"]
        assert batch.crs.to_epsg() == 4326
    assert joined(fed(np.ones((1, 5, 7), np.uint8), grid, [], score_of=None)).score.isna().all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 9), (1, 9, 1)])
def test_the_smallest_rasters(shape: tuple[int, int, int]) -> None:
    grid, codes = grid_of("no crs", *shape[1:]), np.ones(shape, np.uint8)
    layer = joined(fed(codes, grid, list(range(shape[1])), cleaning=Cleaning(1.0, 5.0)))
    assert layer.area_m2.tolist() == [shape[1] * shape[2]] * shape[0]


def test_rows_that_do_not_fit_are_refused() -> None:
    traced = Polygonizer(grid_of("no crs", 5, 7), CLASSES[:2])
    traced.feed(np.zeros((2, 3, 7), np.uint8))
    for codes in (
        np.zeros((2, 3, 7), np.uint8), np.zeros((1, 1, 7), np.uint8), np.zeros((2, 1, 6), np.uint8),
        np.zeros((2, 1, 7), bool), np.zeros((2, 7), np.uint8),
    ):  # fmt: skip
        with pytest.raises(SatsegError) as caught:
            traced.feed(codes)
        assert caught.value.code == "E-GRID-204"


def test_a_flood_of_polygons_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(polygonizer_module, "FLOOD", 5)
    fed(noise(0, (1, 40, 40)), grid_of("no crs", 40, 40), list(range(0, 40, 4)))
    assert caplog.text.count("polygons in band roof: noise? A minimum area") == 1


@given(threshold=st.floats(0, 1), scores=npst.arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1)))
def test_codes_keep_the_mask_exactly_and_scores_to_half_a_step(threshold: float, scores: np.ndarray) -> None:
    code = PlaneCode(threshold)
    valid = np.arange(len(scores)) % 3 > 0
    codes = code.codes(scores, valid)
    assert np.array_equal(LABELS[codes] > 0, (scores >= threshold) & valid)
    assert np.all(codes[~valid] == 255)
    offset, scale = code.score_of
    inside = LABELS[codes] > 0
    assert np.abs(offset + scale * codes[inside] - scores[inside]).max(initial=0) <= scale / 2 + 1e-9
    assert code.codes(np.array([np.nan])).tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(
    mask=npst.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))),
    most=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_pockets_are_the_small_places_that_reach_no_border(mask: np.ndarray, most: int, cuts: list[int]) -> None:
    height, width = mask.shape
    pockets = Pockets(width, LABELS == 0, most)
    edges = [0, *sorted(min(cut, height) for cut in cuts), height]
    for top, end in pairwise(edges):
        pockets.feed(mask[top:end].astype(np.uint8))
    small = np.zeros(mask.shape, bool)
    outside = Grid(height, width, Affine.identity())
    tracer = OutlineTracer(width)
    for part in (tracer.feed((~mask).astype(np.uint8)), tracer.finish()):
        for polygon, pixels in zip(part.geometries(), part.pixels, strict=True):
            left, top, right, bottom = polygon.bounds
            if pixels <= most and min(left, top) > 0 and right < width and bottom < height:
                one = geopandas.GeoDataFrame({"class_name": ["a"]}, geometry=[polygon])
                small |= rasterize(one, like=outside, classes=["a"]).data[0] > 0
    row, col = np.nonzero(mask[:, 1:] & ~mask[:, :-1])
    assert pockets.right_of_small(row, col + 1).tolist() == small[row, col].tolist()


@pytest.mark.parametrize("place", list(PLACES))
def test_no_hole_below_the_least_has_more_pixels_than_is_counted_on(place: str) -> None:
    grid = grid_of(place, 300, 500)
    measure, pixel = Measure(grid.crs, grid.bounds), grid.pixel_area_m2()
    most = small_hole_px(grid, measure, 64 * pixel)
    assert 64 <= most <= 70
    assert small_hole_px(grid, measure, 4 * pixel) == small_hole_px(grid, measure, 0.0) == 0
    assert small_hole_px(grid, measure, 1e12) == 300 * 500


def test_pixels_near_a_pole_are_counted_as_small_as_they_are() -> None:
    grid = Grid(180, 20, Affine(0.5, 0, 0, 0, -0.5, 90))
    grid = Grid(180, 20, grid.transform, 4326)
    measure = Measure(grid.crs, grid.bounds)
    north = measure.areas(np.array([shapely.box(0, 89.5, 0.5, 90)]))[0]
    assert small_hole_px(grid, measure, 20 * north) >= 20
