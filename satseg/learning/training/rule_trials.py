"""Rules of classes tried on scored ground, one set after another: what a set shares with the last is not done again.

What comes out is the ground of `satseg.vector.rules.RuledPolygonizer`, by the same steps on the whole layer at once:
outlines at the threshold, cleaned, made of another class, grown and simplified, erased. Each step of each class is kept
under what it depends on; so a least area costs no tracing, and leaving a rule out only what its class erases.
Kept are the steps of the last two sets: the best, and one that differs from it in a rule, share the rest.

One step is left out: features of a class that grew into each other are not parted. Their ground together is the same,
but for rests below the least area, and parting them is most of the work where a class is found everywhere. Rejected:
the polygonizer itself for each try, a hundred times as dear on many small pieces; and erasing by masks, where what is
left of a feature has no size of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from satseg.classes import ClassItem, erased_by, erasing_order
from satseg.grid import Grid
from satseg.imagery.labels import LabelLayer
from satseg.learning.training.judged import Judged
from satseg.vector.erasing import Things, cleared
from satseg.vector.finish import Cleaning, Geometries, Measure, clean
from satseg.vector.layers import Finished, PlaneCode
from satseg.vector.polygonizer import Planes
from satseg.vector.rules import first_cleaning
from satseg.vector.shapes import PixelFrame, first_rule, reshaped

Made = TypeVar("Made")


class RuleTrials:
    """Counts what the features of classes cover of what is there.

    Parameters
    ----------
    ground : Judged
    """

    def __init__(self, ground: Judged) -> None:
        self._ground, self._grid = ground, ground.scores.grid
        self._truth = (ground.truth > 0) & ground.known
        self._frame, self._measure = PixelFrame(self._grid), Measure(self._grid.crs, self._grid.bounds)
        self._pixels = Grid(*self._grid.shape, Affine.identity())
        self._numbers: dict[Hashable, int] = {}
        self._made: dict[int, Any] = {}
        self._earlier: dict[int, Any] = {}
        self._counts: dict[int, tuple[int, int]] = {}

    def counts(self, classes: Sequence[ClassItem]) -> NDArray[np.int64]:
        """Return (K, 2) pixels of each class that are both there and found, and that are either."""
        self._earlier, self._made = self._made, {}
        erasers = erased_by(classes)
        settled: dict[int, int] = {}
        for k in erasing_order(classes):
            settled[k] = self._settled(classes, k, [settled[e] for e in erasers[k]])
        return np.array([self._counted(k, settled[k]) for k in range(len(classes))], np.int64).reshape(-1, 2)

    def _step(self, key: Hashable, make: Callable[[], Made]) -> int:
        """Return the number of the step called `key`, made now unless it was."""
        number = self._numbers.setdefault(key, len(self._numbers))
        if number not in self._made:
            self._made[number] = self._earlier[number] if number in self._earlier else make()
        return number

    def _counted(self, k: int, settled: int) -> tuple[int, int]:
        if settled not in self._counts:
            things: Things = self._made[settled]
            layer = LabelLayer(("",), (things.polygons,))
            found = layer.planes(self._pixels)[0].view(bool) & self._ground.known
            truth = self._truth[k]
            self._counts[settled] = int((found & truth).sum()), int((found | truth).sum())
        return self._counts[settled]

    def _settled(self, classes: Sequence[ClassItem], k: int, erasers: Sequence[int]) -> int:
        """Return the step that leaves features of class `k` as they stand in the result."""
        shaped, least = self._shaped(classes, k), classes[k].min_area_m2

        def make() -> Things:
            covers = np.concatenate([np.empty(0, object), *(self._made[e].polygons for e in erasers)])
            return cleared(self._made[shaped], covers, least, areas=self._areas)

        return self._step(("settled", shaped, tuple(erasers), least), make)

    def _shaped(self, classes: Sequence[ClassItem], k: int) -> int:
        """Return the step that shapes features of class `k`, those of other classes among them that become of it."""
        item, to = classes[k], [one.name for one in classes]
        sources = [j for j, one in enumerate(classes) if j == k or any(rule.to == item.name for rule in one.becomes)]
        steps = [self._cleaned(classes, j) for j in sources]
        rules = [classes[j].becomes for j in sources]
        sure = Cleaning.of(classes).sure.get(item.name)

        def make() -> Things:
            parts, again = [], False
            for j, step in zip(sources, steps, strict=True):
                found: Finished = self._made[step]
                found = found[self._kinds(found, j, classes[j], to) == k]
                if classes[j].becomes:
                    again = True
                    found = found if sure is None else found[sure.holds(found.areas_m2, found.scores)]
                parts.append(found)
            return self._things(Finished.joined(parts).polygons, item, again=again)

        lengths = (item.min_area_m2, item.min_hole_m2, item.buffer_m, item.simplify_m)
        return self._step(("shaped", k, lengths, sure, tuple(steps), tuple(rules)), make)

    def _things(self, polygons: Geometries, item: ClassItem, *, again: bool) -> Things:
        """Return features as the lengths of `item` shape each, in pixels; `again`: sizes too, without any length."""
        numbers = np.arange(len(polygons))
        if len(polygons) and (item.reshapes or again):
            polygons, numbers = reshaped(polygons, self._measure, item)
        return Things(polygons, numbers, np.zeros(len(polygons))).of(self._frame.of(polygons))

    def _kinds(self, found: Finished, k: int, item: ClassItem, names: Sequence[str]) -> NDArray[np.int64]:
        """Return of which class each feature of plane `k` is."""
        if not item.becomes or not len(found):
            return np.full(len(found), k)
        targets = np.array([*(names.index(rule.to) for rule in item.becomes), k])  # the last for -1
        return targets[first_rule(item.becomes, found.areas_m2, self._measure.to_metres(found.polygons))]

    def _cleaned(self, classes: Sequence[ClassItem], k: int) -> int:
        """Return the step that cleans plane `k`, as far as can be before the class of a feature is certain."""
        item, first = classes[k], first_cleaning(classes, Cleaning.of(classes))
        (lowest, _), sure = first.sizes(item.name), first.sure.get(item.name)
        traced = self._traced(k, item.threshold)

        def make() -> Finished:
            found: Finished = self._made[traced]
            polygons, kept = clean(found.polygons, self._measure, min_area_m2=lowest, min_hole_m2=item.min_hole_m2)
            rest = found[kept]
            areas = self._areas_m2(polygons)
            whole = Finished(polygons, rest.values, rest.scores, areas, rest.bottoms, rest.rows, rest.cols)
            return whole if sure is None else whole[sure.holds(areas, rest.scores)]

        return self._step(("cleaned", traced, lowest, item.min_hole_m2, sure), make)

    def _traced(self, k: int, threshold: float) -> int:
        """Return the step that traces plane `k`, nothing cleaned away."""

        def make() -> Finished:
            code = PlaneCode(threshold)
            planes = Planes(self._grid, [(1, "")], cleaning=Cleaning(), score_of=[code.score_of])
            codes = code.codes(self._ground.scores.data[k], self._ground.scores.valid)
            return Finished.joined([planes.feed_codes(codes[None])[0], planes.finish()[0]])

        return self._step(("traced", k, threshold), make)

    def _areas_m2(self, polygons: Geometries) -> NDArray[np.float64]:
        return self._measure.areas(polygons)

    def _areas(self, polygons: Geometries) -> NDArray[np.float64]:
        """Return square metres of polygons in pixels."""
        return self._measure.areas(self._frame.back(polygons))
