"""Rules tried on whole layers: the ground that comes out is what detection gives, and so are the fitted rules."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from satseg.classes import ClassItem, ShapeRule
from satseg.grid import Grid
from satseg.imagery.labels import rasterize
from satseg.learning.training import rule_fit, rule_trials
from satseg.learning.training.judged import LARGE_PX, Judged, laid_together, pixel_sides
from satseg.learning.training.rule_fit import fit_rules, jaccards
from satseg.learning.training.rule_trials import RuleTrials
from satseg.raster import Raster
from satseg.vector.finish import Cleaning
from satseg.vector.layers import PlaneCode
from satseg.vector.rules import RuledPolygonizer

NAMES = ("a", "b", "c")


def item(name: str, **rules: object) -> ClassItem:
    return ClassItem(name=name, id=1 + NAMES.index(name), color="#336699", **rules)


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Rough patches of all sizes with holes, 0..1."""
    coarse = rng.random((height // 4 + 1, width // 4 + 1)).repeat(4, 0).repeat(4, 1)[:height, :width]
    return (0.7 * coarse + 0.3 * rng.random((height, width))).astype(np.float32)


def ground(seed: int, *, height: int = 31, width: int = 23, classes: int = 3, grid: Grid | None = None) -> Judged:
    rng = np.random.default_rng(seed)
    scores = np.stack([blobs(rng, height, width) for _ in range(classes)])
    valid = rng.random((height, width)) > 0.01
    truth = (scores + rng.normal(0, 0.1, scores.shape) > 0.5).astype(np.uint8)
    own = grid or Grid(height, width, Affine.identity())
    return Judged(Raster(scores, own, NAMES[:classes], valid), truth, valid & (rng.random(valid.shape) > 0.1))


class Streamed:
    """Counts as `RuleTrials`, by what detection runs."""

    def __init__(self, one: Judged) -> None:
        self._one = one

    def counts(self, classes: list[ClassItem]) -> np.ndarray:
        one, grid = self._one, self._one.scores.grid
        codes = [PlaneCode(c.threshold) for c in classes]
        scores = [code.score_of for code in codes]
        traced = RuledPolygonizer(grid, classes, cleaning=Cleaning.of(classes), score_of=scores)
        planes = [code.codes(plane, one.scores.valid) for code, plane in zip(codes, one.scores.data, strict=True)]
        found = np.zeros(one.truth.shape, bool)
        for part in (traced.feed(np.stack(planes)), traced.finish()):
            if len(part):
                found |= rasterize(part, like=grid, classes=[c.name for c in classes]).data > 0
        found, truth = found & one.known, (one.truth > 0) & one.known
        return np.stack([(found & truth).sum((1, 2)), (found | truth).sum((1, 2))], axis=1)


# Lengths that put no edge on a pixel's centre, where the last digit decides.
lengths = st.sampled_from([0.0, 0.0, -0.7, 0.3, 1.3, 2.3])
sizes = st.sampled_from([0.0, 0.0, 3.0, 20.0, 150.0])
# Features that grow into each other are parted by detection alone, which shows in rests below a least area.
rules = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from([0.4, 0.5, 0.7]), "min_area_m2": sizes, "min_hole_m2": sizes, "buffer_m": lengths,
        "min_sure_m2": st.sampled_from([0.0, 0.0, 7.0, 40.0]),
    }
)  # fmt: skip


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**16), items=st.tuples(rules, rules, rules), erases=st.sampled_from([(), "all", ("c",)]),
    becomes=st.sampled_from([(), (ShapeRule(to="b", rounder_than=0.45), ShapeRule(to="c", above_m2=60.0))]),
)
def test_what_is_counted_is_the_ground_that_detection_gives(seed, items, erases, becomes):
    one = ground(seed)
    meeting = bool(becomes)
    kinds = [dict(one, min_area_m2=0.0) if one["buffer_m"] > 0 or meeting else one for one in items]
    first = item("a", **kinds[0], erases=erases, becomes=becomes)
    classes = [first, item("b", **kinds[1], erases=("c",)), item("c", **kinds[2])]
    plain = [first.model_copy(update={"becomes": (), "buffer_m": 0.0}), *classes[1:]]
    trials, streamed = RuleTrials(one), Streamed(one)
    for tried in (classes, plain):
        np.testing.assert_array_equal(trials.counts(tried), streamed.counts(tried))


@pytest.mark.parametrize("seed", range(2))
def test_the_fit_is_that_of_the_slow_search(monkeypatch, seed):
    tries = {"AREAS_PX": (4, 64), "BUFFERS_PX": (-0.7, 0.7, 2.0), "SIMPLIFY_PX": (2.0,)}
    for name, values in tries.items():
        monkeypatch.setattr(rule_fit, name, values)
    pieces = [ground(2 * seed, classes=2), ground(2 * seed + 1, height=27, classes=2)]
    classes = [item("a", erases="all", min_area_m2=9.0), item("b", becomes=(ShapeRule(to="a", below_m2=30.0),))]
    fitted = fit_rules(classes, pieces)
    monkeypatch.setattr(rule_fit, "RuleTrials", Streamed)
    monkeypatch.setattr(rule_fit, "laid_together", lambda pieces, reach_m: tuple(pieces))
    assert fitted == fit_rules(classes, pieces)


def test_pieces_laid_together_count_as_each_by_itself():
    pieces = [ground(seed, height=20 + 3 * seed, width=30 - 2 * seed) for seed in range(4)]
    classes = [item("a", buffer_m=5.3, erases="all"), item("b", buffer_m=2.3), item("c", min_area_m2=9.0)]
    (laid,) = laid_together(pieces, reach_m=5.3)
    assert laid.known.sum() == sum(one.known.sum() for one in pieces)
    alone = sum(RuleTrials(one).counts(classes) for one in pieces)
    np.testing.assert_array_equal(RuleTrials(laid).counts(classes), alone)


def test_pieces_in_degrees_are_measured_in_metres():
    near = Grid(31, 23, Affine(1e-5, 0, 11.0, 0, -1e-5, 48.0), 4326)
    pieces = [ground(seed, grid=near.crop(Window(30 * seed, 0, 23, 31))) for seed in range(2)]
    (laid,) = laid_together(pieces, reach_m=2.0)
    assert laid.scores.grid.crs is None
    assert laid.scores.grid.pixel_area_m2() == pytest.approx(near.pixel_area_m2(), rel=1e-4)
    assert abs(pixel_sides(near)[0, 0]) == pytest.approx(0.746, rel=1e-2)
    classes = [item("a", min_area_m2=8.3), item("b", buffer_m=0.3), item("c", min_hole_m2=5.3, erases=("a",))]
    alone = sum(RuleTrials(one).counts(classes) for one in pieces)
    np.testing.assert_allclose(RuleTrials(laid).counts(classes), alone, rtol=0.01)


def test_pieces_that_differ_or_are_large_stay_by_themselves():
    fine = Grid(31, 23, Affine(0.5, 0, 0, 0, -0.5, 0), 32633)
    wide = Grid(31, 23, Affine(0.5, 0, 0, 0, -0.5, 0), 4326)  # twenty degrees: no two pixels alike
    assert pixel_sides(wide) is None
    pieces = [ground(0), ground(1, grid=fine), ground(2, grid=wide), ground(3)]
    laid = laid_together(pieces, reach_m=1.0)
    assert [one.known.shape for one in laid] == [(31, 23), (2 * 31 + 5, 23), (31, 23)]
    assert laid[0] is pieces[2]
    assert laid[2] is pieces[1]
    large = Judged(
        Raster(np.zeros((1, 2, LARGE_PX), np.float32), Grid(2, LARGE_PX, Affine.identity()), ("a",)),
        np.zeros((1, 2, LARGE_PX), np.uint8), np.zeros((2, LARGE_PX), bool),
    )  # fmt: skip
    assert laid_together([large, large], reach_m=1.0) == (large, large)


def test_nothing_found_and_nothing_there_is_no_number():
    nothing = Judged(
        Raster(np.zeros((1, 1, 1), np.float32), Grid(1, 1, Affine.identity()), ("a",)),
        np.zeros((1, 1, 1), np.uint8), np.ones((1, 1), bool),
    )  # fmt: skip
    assert np.isnan(jaccards([item("a", buffer_m=1.0, simplify_m=1.0)], [nothing, nothing]))


def test_a_plane_is_traced_once_for_all_that_is_tried(monkeypatch):
    traced = []
    planes = rule_trials.Planes
    monkeypatch.setattr(rule_trials, "Planes", lambda *args, **options: traced.append(1) or planes(*args, **options))
    trials = RuleTrials(ground(0))
    for size in (0.0, 4.0, 9.0, 0.0):
        trials.counts([item("a", min_area_m2=size), item("b", buffer_m=size), item("c", min_hole_m2=size)])
    assert len(traced) == 3
