"""Object counts against a brute-force matching, and the rules at the edge of the area of interest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.errors import UsageError
from satseg.scoring.objects import ObjectCounts, match_objects, object_counts

boxes = st.lists(
    st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 4)] * 2).map(
        lambda row: shapely.box(row[0], row[1], row[0] + row[2], row[1] + row[3])
    ),
    max_size=6,
)


def iou(first, second):
    return shapely.intersection(first, second).area / shapely.union(first, second).area


def best_matching(pred, truth, threshold):
    """The oracle: every way to give each prediction a different truth."""
    close = np.array([[iou(p, t) >= threshold for t in truth] for p in pred], bool).reshape(len(pred), len(truth))
    small, large = sorted((len(pred), len(truth)))
    close = close if len(pred) <= len(truth) else close.T
    ways = itertools.permutations(range(large), small)
    return max(sum(bool(close[i, j]) for i, j in enumerate(way)) for way in ways)


@settings(max_examples=60, deadline=None)
@given(pred=boxes, truth=boxes, threshold=st.sampled_from([0.2, 0.5, 0.75, 1.0]))
def test_as_many_pairs_as_any_way_finds(pred, truth, threshold):
    counts = object_counts(pred, truth, iou=threshold)
    tp = best_matching(pred, truth, threshold)
    assert (counts.tp, counts.fp, counts.fn) == (tp, len(pred) - tp, len(truth) - tp)


@settings(max_examples=50, deadline=None)
@given(pred=boxes, truth=boxes)
def test_each_feature_is_in_one_pair_of_enough_overlap(pred, truth):
    pairs = match_objects(np.array(pred, dtype=object), np.array(truth, dtype=object))
    assert len(set(pairs[:, 0].tolist())) == len(set(pairs[:, 1].tolist())) == len(pairs)
    assert all(iou(pred[p], truth[t]) >= 0.5 - 1e-9 for p, t in pairs)


def test_an_iou_of_exactly_one_half_is_a_pair():
    assert object_counts([shapely.box(0, 0, 3, 1)], [shapely.box(1, 0, 4, 1)]) == ObjectCounts(1, 0, 0)


def test_a_claimed_truth_moves_on_so_that_both_predictions_are_paired():
    truth = [shapely.box(0, 0, 10, 1), shapely.box(0, 0, 8, 1)]
    pred = [shapely.box(0, 0, 10, 1), shapely.box(0, 0, 18, 1)]  # the second fits only the first truth
    assert object_counts(pred, truth) == ObjectCounts(2, 0, 0)


def test_one_prediction_over_two_houses_finds_neither():
    houses = [shapely.box(0, 0, 1, 1), shapely.box(1.2, 0, 2.2, 1)]
    assert object_counts([shapely.box(0, 0, 2.2, 1)], houses) == ObjectCounts(0, 1, 2)


def test_a_chain_longer_than_the_recursion_limit_is_solved():
    truth = shapely.box(np.arange(1200.0), 0, np.arange(1200.0) + 3, 1)
    pred = shapely.box(np.arange(1200.0) + 1, 0, np.arange(1200.0) + 4, 1)
    assert object_counts(pred, truth) == ObjectCounts(1200, 0, 0)


def test_ratios_are_of_the_counts():
    counts = ObjectCounts(6, 2, 4) + ObjectCounts(0, 0, 0)
    assert (counts.precision, counts.recall, counts.f1) == (0.75, 0.6, pytest.approx(2 / 3))


def test_ratios_of_nothing_are_none():
    assert (ObjectCounts().precision, ObjectCounts().recall, ObjectCounts().f1) == (None, None, None)
    assert object_counts([], [shapely.box(0, 0, 1, 1)]).f1 == 0


def test_features_outside_the_area_of_interest_do_not_count():
    inside, outside = shapely.box(1, 1, 2, 2), shapely.box(20, 1, 22, 3)
    aoi = shapely.box(0, 0, 10, 10)
    assert object_counts([inside, outside], [inside, outside], aoi=aoi) == ObjectCounts(1, 0, 0)
    assert object_counts([outside], [inside], aoi=aoi) == ObjectCounts(0, 0, 1)


def test_a_pair_on_the_edge_counts_once_and_costs_nothing():
    pred, truth = shapely.box(8, 0, 11, 1), shapely.box(9, 0, 12, 1)  # points at 9.5 inside, 10.5 outside
    assert object_counts([pred], [truth], aoi=shapely.box(0, 0, 10, 10)) == ObjectCounts(1, 0, 0)


def test_a_roof_cut_by_the_edge_is_found_by_what_can_be_seen_of_it():
    aoi, roof = shapely.box(0, 0, 10, 10), shapely.box(8, 0, 18, 4)
    assert object_counts([shapely.box(8, 0, 10, 4)], [roof], aoi=aoi) == ObjectCounts(1, 0, 0)
    assert object_counts([], [roof], aoi=aoi) == ObjectCounts(0, 0, 0)  # most of it was never seen


def test_a_roof_with_a_gap_in_the_image_is_found_by_the_rest():
    roof, gap = shapely.box(0, 0, 10, 4), [shapely.box(1, 0, 4, 9), shapely.box(3, 0, 9, 9)]
    seen = [shapely.box(0, 0, 1, 4), shapely.box(9, 0, 10, 4)]
    counts = object_counts([shapely.MultiPolygon(seen)], [roof], ignore=gap)
    assert counts == ObjectCounts(1, 0, 0)


def test_features_on_ignored_places_do_not_count():
    lost, kept = shapely.box(0, 0, 1, 1), shapely.box(5, 5, 6, 6)
    assert object_counts([lost, kept], [kept], ignore=[shapely.box(-1, -1, 2, 2)]) == ObjectCounts(1, 0, 0)


def test_invalid_polygons_are_mended_before_they_are_compared():
    bow_tie = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    assert object_counts([bow_tie], [bow_tie]) == ObjectCounts(1, 0, 0)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(UsageError):
        object_counts([], [], iou=threshold)
