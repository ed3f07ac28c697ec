"""Jaccard counts: worked values, exact areas against GEOS, pixels against torchmetrics and sklearn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import sklearn.metrics
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import wkt

from satseg.errors import GridError
from satseg.scoring import cells
from satseg.scoring.jaccard import AreaCounts, pixel_counts, polygon_counts


def square(left, bottom, side):
    return shapely.box(left, bottom, left + side, bottom + side)


def union_counts(pred, truth):
    """The oracle: one union per layer, one intersection."""
    found, real = shapely.union_all(pred), shapely.union_all(truth)
    common = shapely.intersection(found, real).area
    return common, found.area - common, real.area - common


def scattered(seed, count, side=200.0):
    """Rotated rectangles that overlap each other."""
    rng = np.random.default_rng(seed)
    angle, half = rng.uniform(0, math.pi, count), rng.uniform(1, 12, (count, 2))
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half[:, None]
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    return shapely.polygons(corners @ turn.swapaxes(1, 2) + rng.uniform(0, side, (count, 1, 2)))


# ---- worked values -----------------------------------------------------------------------------------


def test_two_shifted_squares_share_a_seventh():
    counts = polygon_counts([square(0, 0, 4)], [square(2, 2, 4)])
    assert (counts.tp, counts.fp, counts.fn) == (4, 12, 12)
    assert counts.jaccard == pytest.approx(1 / 7, abs=1e-15)


def test_counts_are_summed_over_scenes_before_the_ratio():
    first = polygon_counts([square(0, 0, 10)], [square(0, 0, 10)])
    second = polygon_counts([square(0, 0, 1)], [square(5, 5, 1)])
    assert (first + second).jaccard == pytest.approx(100 / 102, abs=1e-15)


def test_a_hole_in_the_truth_is_a_false_hit():
    with_hole = shapely.Polygon(square(0, 0, 20).exterior.coords, [square(5, 5, 10).exterior.coords])
    assert polygon_counts([square(0, 0, 20)], [with_hole]).jaccard == 0.75


def test_union_comes_before_area_in_one_multipolygon():
    overlapping = shapely.MultiPolygon([shapely.box(0, 0, 2, 2), shapely.box(1, 0, 3, 2)])
    assert polygon_counts([overlapping], [shapely.box(0, 0, 3, 2)]).jaccard == 1


def test_union_comes_before_area_across_features():
    pile = [square(0, 0, 2)] * 5
    assert polygon_counts(pile, [square(0, 0, 2)]) == AreaCounts(4, 0, 0)


def test_a_bow_tie_keeps_both_lobes():
    bow_tie = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    lobes = [shapely.Polygon([(0, 0), (1, 1), (0, 2)]), shapely.Polygon([(2, 2), (2, 0), (1, 1)])]
    assert polygon_counts([bow_tie], lobes).jaccard == 1


def test_perfect_is_one_nothing_found_is_zero_nothing_at_all_is_none():
    assert polygon_counts([square(0, 0, 3)], [square(0, 0, 3)]).jaccard == 1
    assert polygon_counts([], [square(0, 0, 3)]) == AreaCounts(0, 0, 9)
    assert polygon_counts([], [square(0, 0, 3)]).jaccard == 0
    assert polygon_counts([], []).jaccard is None


def test_rounding_to_few_decimals_costs_jaccard():
    left, right, top, bottom = 0.0002700736143, 0.0002970809757, -0.0005400238467, -0.0005940262314
    box = shapely.box(left, bottom, right, top)
    for decimals, expected in ((5, 0.8390), (6, 0.9934), (7, 0.9974), (8, 0.99969)):
        rounded = shapely.transform(box, lambda xy, d=decimals: np.round(xy, d))
        assert polygon_counts([rounded], [box]).jaccard == pytest.approx(expected, abs=6e-5)


def test_contours_through_pixel_centres_lose_a_quarter_of_a_car():
    assert polygon_counts([shapely.box(0, 0, 12, 5)], [shapely.box(-0.5, -0.5, 12.5, 5.5)]).jaccard == 60 / 78


@pytest.mark.parametrize(
    "text",
    [
        "POINT (1 1)",
        "LINESTRING (0 0, 1 1)",
        "POLYGON EMPTY",
        "MULTIPOLYGON EMPTY",
        "GEOMETRYCOLLECTION EMPTY",
    ],
)
def test_what_has_no_area_counts_nothing(text):
    assert polygon_counts([wkt.loads(text)], [square(0, 0, 3)]) == AreaCounts(0, 0, 9)


def test_polygons_inside_a_collection_count():
    mixed = shapely.GeometryCollection([shapely.Point(9, 9), shapely.MultiPolygon([square(0, 0, 3)])])
    assert polygon_counts([mixed, None], [square(0, 0, 3)]) == AreaCounts(9, 0, 0)


def test_only_the_area_of_interest_counts():
    counts = polygon_counts([square(0, 0, 4)], [square(2, 0, 4)], [shapely.box(0, 0, 3, 3), shapely.box(2, 0, 3, 9)])
    assert (counts.tp, counts.fp, counts.fn) == (4, 6, 0)


def test_ignored_places_do_not_count():
    counts = polygon_counts([square(0, 0, 4)], [square(2, 0, 4)], ignore=shapely.box(3, 0, 5, 4))
    assert (counts.tp, counts.fp, counts.fn) == (4, 8, 4)


def test_an_area_of_interest_elsewhere_leaves_nothing():
    assert polygon_counts([square(0, 0, 4)], [square(2, 0, 4)], square(50, 50, 4)).jaccard is None


# ---- cells -------------------------------------------------------------------------------------------


rectangles = st.lists(
    st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 12)] * 2, st.sampled_from([0.0, 0.25, 1 / 3])),
    max_size=16,
).map(lambda rows: [shapely.box(x + s, y, x + s + w, y + h) for x, y, w, h, s in rows])


@settings(max_examples=25, deadline=None)
@given(pred=rectangles, truth=rectangles, leaf=st.sampled_from([15, 60]))
def test_cells_equal_the_union_of_everything(pred, truth, leaf):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "LEAF_VERTICES", leaf)
        counts = polygon_counts(pred, truth)
    assert (counts.tp, counts.fp, counts.fn) == pytest.approx(union_counts(pred, truth), abs=1e-9)


blocks = st.lists(st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 9)] * 2), max_size=12)


def filled(rows):
    """Unit cells that blocks cover: an oracle without geometry."""
    plane = np.zeros((30, 30), bool)
    for x, y, w, h in rows:
        plane[y : y + h, x : x + w] = True
    return plane


@settings(max_examples=25, deadline=None)
@given(pred=blocks, truth=blocks, aoi=blocks, ignore=blocks)
def test_cells_respect_regions(pred, truth, aoi, ignore):
    layers = [[shapely.box(x, y, x + w, y + h) for x, y, w, h in rows] for rows in (pred, truth, aoi, ignore)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "LEAF_VERTICES", 20)
        counts = polygon_counts(*layers[:3], ignore=layers[3])
    tp, fp, fn = pixel_counts(filled(pred), filled(truth), filled(aoi) & ~filled(ignore))
    assert (counts.tp, counts.fp, counts.fn) == pytest.approx((tp[0], fp[0], fn[0]), abs=1e-9)


def test_cells_equal_the_union_on_rotated_overlapping_rectangles():
    pred, truth = scattered(0, 600), scattered(1, 500)
    expected = union_counts(pred, truth)
    assert sum(shapely.area(pred)) > expected[0] + expected[1]  # they do overlap
    counts = polygon_counts(pred, truth)
    assert (counts.tp, counts.fp, counts.fn) == pytest.approx(expected, rel=1e-9)


def test_cells_cut_one_polygon_with_many_holes():
    holes = [square(3.0 * col + 1, 3.0 * row + 1, 1).exterior.coords[::-1] for row in range(40) for col in range(40)]
    sieve = shapely.Polygon(square(0, 0, 121).exterior.coords, holes)
    counts = polygon_counts([sieve], [square(0, 0, 121)])
    assert counts.tp == pytest.approx(121**2 - 1600, rel=1e-12)
    assert counts.fn == pytest.approx(1600, rel=1e-9)


def test_cells_end_on_a_pile_of_copies():
    pile = [shapely.Point(0, 0).buffer(5, quad_segs=4)] * 60
    counts = polygon_counts(pile, pile[:1])
    assert counts.jaccard == pytest.approx(1, rel=1e-12)


def test_cells_hold_far_from_the_origin():
    pred, truth = (shapely.transform(scattered(seed, 300), lambda xy: xy + np.array([5e5, 5e6])) for seed in (2, 3))
    counts = polygon_counts(pred, truth)
    assert (counts.tp, counts.fp, counts.fn) == pytest.approx(union_counts(pred, truth), rel=1e-8)


def test_swapping_sides_swaps_the_errors():
    pred, truth = scattered(4, 200), scattered(5, 250)
    there, back = polygon_counts(pred, truth), polygon_counts(truth, pred)
    assert (there.tp, there.fp, there.fn) == pytest.approx((back.tp, back.fn, back.fp), rel=1e-9)


def test_inputs_stay_as_they_are():
    pred = np.array([shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])], dtype=object)
    before = pred[0]
    polygon_counts(pred, pred)
    assert pred[0] is before


# ---- pixels ------------------------------------------------------------------------------------------


def random_masks(seed):
    """(K, H, W) pairs of odd shapes, with classes that are absent from one side or both."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(2, 6)), *rng.integers(1, 40, 2))
    share = rng.choice([0, 0.1, 0.9], (2, shape[0], 1, 1))
    pred, truth = rng.random((2, *shape)) < share
    valid = rng.random(shape[1:]) < rng.choice([0.0, 0.6, 1.0], p=[0.05, 0.5, 0.45])
    return pred, truth, valid


@pytest.mark.parametrize("seed", range(60))
def test_pixels_equal_torchmetrics_and_sklearn(seed):
    pred, truth, valid = random_masks(seed)
    tp, fp, fn = pixel_counts(pred.astype(np.uint8) * 7, truth, valid)
    flat_pred, flat_truth = pred[:, valid].T, truth[:, valid].T  # (N, K)
    classes = len(pred)
    target = torch.from_numpy(np.where(valid, truth, -1)).reshape(classes, -1).T
    stats = torchmetrics.functional.classification.multilabel_stat_scores(
        torch.from_numpy(pred).reshape(classes, -1).T.int(), target, classes, average="none", ignore_index=-1
    )
    assert stats[:, 0].tolist() == tp.tolist()
    assert stats[:, 1].tolist() == fp.tolist()
    assert stats[:, 3].tolist() == fn.tolist()
    for name in range(classes if len(flat_pred) else 0):
        ours = AreaCounts(int(tp[name]), int(fp[name]), int(fn[name])).jaccard
        theirs = sklearn.metrics.jaccard_score(flat_truth[:, name], flat_pred[:, name], zero_division=0)
        absent = not (flat_truth[:, name].any() or flat_pred[:, name].any())
        assert ours is None if absent else ours == theirs


def test_pixel_chunks_do_not_matter(monkeypatch):
    pred, truth, valid = random_masks(7)
    whole = pixel_counts(pred, truth, valid)
    monkeypatch.setattr("satseg.scoring.jaccard.CHUNK_PX", 1)
    assert np.array_equal(whole, pixel_counts(pred, truth, valid))


def test_pixels_take_one_plane_and_no_validity():
    counts = pixel_counts(np.array([[1, 0, 2]]), np.array([[1, 1, 0]]))
    assert [part.tolist() for part in counts] == [[1], [1], [1]]


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(GridError, match=r"\(1, 2, 3\) and \(1, 3, 2\)") as caught:
        pixel_counts(np.zeros((2, 3)), np.zeros((3, 2)))
    assert caught.value.code == "E-GRID-010"
    with pytest.raises(GridError):
        pixel_counts(np.zeros((2, 3)), np.zeros((2, 3)), np.ones((3, 2), bool))


def test_pixels_of_a_polygonized_block_equal_its_area():
    mask = np.zeros((30, 40), np.uint8)
    mask[5:15, 8:28] = 1
    tp, fp, fn = pixel_counts(mask, mask)
    assert (tp[0], fp[0], fn[0]) == (200, 0, 0)
