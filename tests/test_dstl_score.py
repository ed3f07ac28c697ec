"""The contest's score: worked values, empty rules, and an oracle that counts pixels."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from rasterio.features import rasterize

from satseg.errors import InputError, LabelError
from satseg.tasks.dstl.labels import as_layer
from satseg.tasks.dstl.score import score_submission
from tests.contests import wkt_table

NUMBERS = range(1, 11)


def box(left, bottom, right, top):
    return shapely.box(left, bottom, right, top)


def scored(tmp_path, prediction, truth, **options):
    return score_submission(
        wkt_table(prediction, tmp_path / "p.csv"), wkt_table(truth, tmp_path / "t.csv"), **options
    )


def test_two_squares_that_overlap_by_a_quarter(tmp_path):  # M1
    found = scored(tmp_path, {"a": {1: box(0, 0, 4, 4)}}, {"a": {1: box(2, 2, 6, 6)}})
    counts = found.classes[1]
    assert (counts.tp, counts.fp, counts.fn) == pytest.approx((4, 12, 12), abs=1e-9)
    assert found.jaccard(1) == pytest.approx(1 / 7, abs=1e-9)


def test_areas_are_pooled_over_images_before_the_ratio(tmp_path):  # M2
    same = box(0, 0, 10, 10)
    found = scored(
        tmp_path, {"a": {1: same}, "b": {1: box(0, 0, 1, 1)}}, {"a": {1: same}, "b": {1: box(5, 5, 6, 6)}}
    )
    assert found.jaccard(1) == pytest.approx(0.980392157, abs=1e-9) == pytest.approx(100 / 102, abs=1e-9)


def test_the_score_is_the_plain_mean_of_ten(tmp_path):  # M3
    same = box(0, 0, 10, 10)
    found = scored(
        tmp_path,
        {"a": {1: same, 2: box(0, 0, 4, 4)}, "b": {1: box(0, 0, 1, 1)}},
        {"a": {1: same, 2: box(2, 2, 6, 6)}, "b": {1: box(5, 5, 6, 6)}},
    )
    assert found.mean == pytest.approx(0.112324930, abs=1e-9)


def test_a_hole_counts(tmp_path):  # M4
    whole = box(0, 0, 20, 20)
    found = scored(tmp_path, {"a": {1: whole}}, {"a": {1: whole.difference(box(5, 5, 15, 15))}})
    assert found.jaccard(1) == pytest.approx(0.75, abs=1e-9)


def test_parts_that_overlap_count_once(tmp_path):  # M5
    found = scored(
        tmp_path, {"a": {1: shapely.MultiPolygon([box(0, 0, 2, 2), box(1, 0, 3, 2)])}}, {"a": {1: box(0, 0, 3, 2)}}
    )
    assert found.jaccard(1) == pytest.approx(1, abs=1e-9)
    assert found.classes[1].tp == pytest.approx(6, abs=1e-9)
    assert found.invalid_lines == (2,), "and the contest's server would refuse it"


def test_both_lobes_of_a_bow_tie_count(tmp_path):  # M6
    tie = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    lobes = shapely.MultiPolygon([shapely.Polygon([(0, 0), (1, 1), (0, 2)]), shapely.Polygon([(2, 0), (2, 2), (1, 1)])])
    assert scored(tmp_path, {"a": {1: tie}}, {"a": {1: lobes}}).jaccard(1) == pytest.approx(1, abs=1e-9)
    with pytest.raises(LabelError, match="line 2"):
        scored(tmp_path, {"a": {1: tie}}, {"a": {1: lobes}}, strict=True)


@pytest.mark.parametrize(("empty", "rest"), [("zero", 0.0), ("one", 1.0), ("absent", None)])
def test_perfect_nothing_and_empty_classes(tmp_path, empty, rest):  # M7
    truth = {"a": {1: box(0, 0, 1, 1), 2: box(3, 3, 4, 4)}}
    perfect = scored(tmp_path, truth, truth, empty=empty)
    assert perfect.jaccard(1) == 1
    assert perfect.jaccard(3) == rest
    assert perfect.mean == pytest.approx({"zero": 0.2, "one": 1.0, "absent": 1.0}[empty])
    nothing = scored(tmp_path, {"a": {}}, truth, empty=empty)
    assert nothing.jaccard(1) == nothing.jaccard(2) == 0
    assert scored(tmp_path, {"a": {}}, {"a": {}}, empty=empty).mean == rest


@pytest.mark.parametrize("seed", range(5))
def test_counting_pixels_gives_the_same(tmp_path, seed):
    rng = np.random.default_rng(seed)
    side = 60
    unit = 1.5e-4  # label units: areas of 1e-8

    def draw():
        corners = rng.integers(0, side - 8, (rng.integers(0, 12), 2))
        sizes = rng.integers(1, 9, (len(corners), 2))
        return [box(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]

    layers = [{i: {n: draw() for n in NUMBERS} for i in "ab"} for _ in range(2)]
    tables = [
        {i: {n: shapely.MultiPolygon([shapely.affinity.scale(s, unit, -unit, origin=(0, 0)) for s in shapes])
             for n, shapes in own.items() if shapes} for i, own in layer.items()} for layer in layers
    ]  # fmt: skip
    found = scored(tmp_path, *tables)
    for number in NUMBERS:
        masks = [
            np.array([rasterize(own[number], (side, side)) if own[number] else np.zeros((side, side), np.uint8)
                      for own in layer.values()], bool)
            for layer in layers
        ]  # fmt: skip
        counts = found.classes[number]
        exact = np.array([(masks[0] & masks[1]).sum(), (masks[0] & ~masks[1]).sum(), (~masks[0] & masks[1]).sum()])
        assert np.array([counts.tp, counts.fp, counts.fn]) / unit**2 == pytest.approx(exact, abs=1e-6)


def test_truth_may_be_layers_and_tiles_may_be_chosen(tmp_path):
    prediction = wkt_table({"a": {1: box(0, 0, 2, 2)}, "b": {}, "decoy": {1: box(0, 0, 9, 9)}}, tmp_path / "p.csv")
    truth = {
        "a": as_layer([box(0, 0, 1, 2), box(1, 0, 2, 2)], [1, 1]),
        "b": as_layer([box(0, 0, 1, 1)], [1]),
    }
    assert score_submission(prediction, truth).jaccard(1) == pytest.approx(0.8)
    alone = score_submission(prediction, truth, image_ids=["a"])
    assert alone.jaccard(1) == pytest.approx(1)
    assert alone.image_ids == ("a",)


def test_missing_rows_and_tiles_are_errors_since_leaving_them_out_flatters(tmp_path):
    whole = {"a": {1: box(0, 0, 1, 1)}, "b": {1: box(0, 0, 1, 1)}}
    with pytest.raises(InputError, match=r"10 rows .*b class 1") as caught:
        scored(tmp_path, {"a": whole["a"]}, whole)
    assert caught.value.code == "E-IN-322"
    with pytest.raises(InputError, match="no tile c") as caught:
        scored(tmp_path, whole, whole, image_ids=["c"])
    assert caught.value.code == "E-IN-321"


def test_a_truth_that_lacks_rows_is_refused_and_the_rows_named(tmp_path):
    prediction = wkt_table({"a": {1: box(0, 0, 1, 1)}}, tmp_path / "p.csv")
    lines = prediction.read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join(line for line in lines if not line.startswith("a,7")) + "\n")
    with pytest.raises(InputError, match=r"the truth lacks 1 rows .*a class 7") as caught:
        score_submission(prediction, tmp_path / "t.csv")
    assert caught.value.code == "E-IN-322"


def test_the_score_is_told_as_json_and_as_a_table(tmp_path):
    found = scored(tmp_path, {"a": {1: box(0, 0, 4, 4)}}, {"a": {1: box(2, 2, 6, 6)}}, empty="absent")
    told = found.to_dict()
    assert told["score"] == pytest.approx(1 / 7)
    assert told["classes"][0]["name"] == "Buildings"
    assert told["classes"][4]["jaccard"] is None
    assert '"score"' in found.to_json()
    lines = found.table().splitlines()
    assert len(lines) == 12
    assert "0.1429" in lines[1]
    assert "-" in lines[2]
    assert lines[-1].endswith("0.1429")
