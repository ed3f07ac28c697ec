"""Thresholds and rules of classes, fitted on scored ground with labels.

What counts is the Jaccard of features, pooled over scenes, on pixels whose centres they hold: that asks for nothing but
known ground, and a buffer of half a pixel shows. Per class a threshold first, from scores alone; then least area, least
hole, buffer and simplification one after another, each by all of the chain (`rule_trials`); then who erases whom, and
what becomes another class. A rule must earn its place: a value is taken if it gains `GAIN` over the one that was, or
over none for buffer and simplification, and of values within `GAIN` of the best the least; what a spec says of other
classes is left out where it costs as much. Objects that touch are not cut apart here.

A training does so only when it is told (`fit_rules`), for rules that suit the towns learnt from need not suit others:
after 3 CPU-minutes, one run each, it moved Jaccard and F1 in Nairobi from 0.548 and 0.664 to 0.552 and 0.667, in
Zanzibar from 0.632 and 0.578 to 0.639 and 0.596, in Las Vegas from 0.621 and 0.246 to 0.562 and 0.205
(`benchmarks.accuracy`, "rules fitted"). Least sizes are those of the labels otherwise (`grounds`).

Rejected: all values of all rules together, for what is won on some scenes by one of thousands of combinations is
chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from satseg.classes import EVERY, ClassItem, ShapeRule
from satseg.learning.training.curves import ThresholdCurve
from satseg.learning.training.judged import Judged, laid_together
from satseg.learning.training.rule_trials import RuleTrials

GAIN = 0.002
"""Jaccards closer than this are alike."""
AREAS_PX = (4, 16, 64, 256, 1024)
"""Least areas and holes that are tried, in pixels."""
BUFFERS_PX = (-0.5, 0.5, -1.0, 1.0, -2.0, 2.0, 4.0)
SIMPLIFY_PX = (1.0, 2.0, 4.0)


def fit_rules(classes: Sequence[ClassItem], ground: Sequence[Judged]) -> tuple[ClassItem, ...]:
    """Return `classes` with the thresholds and rules that find most of `ground`; those absent from it as they were."""
    laid = laid_together(ground, reach_m=_reach_m(classes, ground))
    fitted = []
    for k, item in enumerate(classes):
        alone = [one.only(k) for one in laid]
        there = any(bool((one.truth[0] > 0)[one.known].any()) for one in alone)
        fitted.append(_fitted(item.model_copy(update={"threshold": _threshold(alone)}), alone) if there else item)
    return _related(fitted, laid) if any(item.erases or item.becomes for item in fitted) else tuple(fitted)


def jaccards(classes: Sequence[ClassItem], ground: Sequence[Judged]) -> NDArray[np.float64]:
    """Return the pooled Jaccard of the features of each class, (K,); NaN where it is neither there nor found."""
    return _pooled(classes, [RuleTrials(one) for one in laid_together(ground, reach_m=_reach_m(classes, ground))])


def _pooled(classes: Sequence[ClassItem], trials: Sequence[RuleTrials]) -> NDArray[np.float64]:
    counts = sum((trial.counts(classes) for trial in trials), np.zeros((len(classes), 2)))
    with np.errstate(invalid="ignore"):
        ratio: NDArray[np.float64] = counts[:, 0] / counts[:, 1]
    return ratio


def _reach_m(classes: Sequence[ClassItem], ground: Sequence[Judged]) -> float:
    """Return how far features grow at most that are as `classes` have them, or as tries do."""
    grown = max(BUFFERS_PX) * math.sqrt(_pixel_m2(ground))
    return max([grown, *(item.buffer_m for item in classes)])


def _pixel_m2(ground: Sequence[Judged]) -> float:
    """Return the size of the largest pixel, 0 where there is no ground."""
    return max((one.scores.grid.pixel_area_m2() for one in ground), default=0.0)


def _threshold(ground: Sequence[Judged]) -> float:
    """Return the best threshold of a class, which `ground` is of alone."""
    curve = ThresholdCurve(1)
    for one in ground:
        curve.count(one.scores.data, one.truth, one.known)
    return curve.best()[0][0]


def _fitted(item: ClassItem, ground: Sequence[Judged]) -> ClassItem:
    """Return a class with sizes and lengths that suit `ground`, which is of it alone."""
    pixel, trials = _pixel_m2(ground), [RuleTrials(one) for one in ground]
    lonely = item.model_copy(update={"erases": (), "becomes": (), "buffer_m": 0.0, "simplify_m": 0.0})
    tries = {
        "min_sure_m2": [0.0],
        "min_area_m2": [size * pixel for size in AREAS_PX],
        "min_hole_m2": [size * pixel for size in AREAS_PX],
        "buffer_m": [length * pixel**0.5 for length in BUFFERS_PX],
        "simplify_m": [length * pixel**0.5 for length in SIMPLIFY_PX],
    }
    best = float(_pooled([lonely], trials)[0])
    for key, values in tries.items():
        changed = [lonely.model_copy(update={key: value}) for value in values]
        scores = [float(_pooled([one], trials)[0]) for one in changed]
        enough = [k for k, score in enumerate(scores) if score >= max(best + GAIN, max(scores) - GAIN)]
        if enough:
            chosen = min(enough, key=lambda k: abs(values[k]))
            lonely, best = changed[chosen], scores[chosen]
    return lonely.model_copy(update={"erases": item.erases, "becomes": item.becomes})


def _related(classes: Sequence[ClassItem], ground: Sequence[Judged]) -> tuple[ClassItem, ...]:
    """Return `classes` without the rules between them that cost more than they are worth."""
    kept, names, trials = list(classes), [item.name for item in classes], [RuleTrials(one) for one in ground]
    best = float(np.nansum(_pooled(kept, trials)))
    for k, item in enumerate(classes):
        rules: list[str | ShapeRule] = [*item.becomes, *_erased(item, names)]
        for rule in rules:
            trial = [*kept[:k], _without(kept[k], rule, names), *kept[k + 1 :]]
            total = float(np.nansum(_pooled(trial, trials)))
            if total >= best + GAIN:
                kept, best = trial, total
    return tuple(kept)


def _erased(item: ClassItem, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name != item.name and (item.erases == EVERY or name in item.erases))


def _without(item: ClassItem, rule: str | ShapeRule, names: Sequence[str]) -> ClassItem:
    """Return a class that does not become what `rule` says, or does not erase the class of that name."""
    if isinstance(rule, str):
        return item.model_copy(update={"erases": tuple(name for name in _erased(item, names) if name != rule)})
    return item.model_copy(update={"becomes": tuple(other for other in item.becomes if other != rule)})
