"""RuledPolygonizer: what a Polygonizer returns, after the rules of each class.

In this order: outlines at the threshold, small holes filled, small polygons dropped (`satseg.vector.layers`); a feature
becomes one of another class by its size and shape; it grows or shrinks, and is simplified (`satseg.vector.shapes`);
classes lose the ground of those that erase them (`satseg.vector.erasing`); what is below the least area is dropped
again. Masks stay what the network says.

Features are looked at after every so many rows, a number that the grid decides; those that are certain then come in the
order in which they were finished. So neither they nor their order depend on how rows are cut. Of classes without rules
they pass through as they are. Rejected: a pass over the file of features at the end, which a stopped run would have to
know of, and rules as code of each task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import geopandas
import numpy as np
import pandas
import shapely
from numpy.typing import NDArray

from satseg.classes import ClassItem
from satseg.grid import Grid
from satseg.vector.erasing import NO_BOXES, Boxes, Erasing, Things
from satseg.vector.extents import OpenExtents
from satseg.vector.features import as_features, empty_features
from satseg.vector.finish import Cleaning, Geometries, Measure
from satseg.vector.layers import LABELS, Finished
from satseg.vector.polygonizer import Batch, Planes, ScoreOf
from satseg.vector.shapes import PixelFrame, first_rule, parts_of, reshaped

SLAB_PIXELS = 2**23
FEWEST_ROWS, MOST_ROWS = 16, 256
"""Rules are applied after this many rows, about `SLAB_PIXELS` of all planes together."""


class RuledPolygonizer:
    """Fed codes from top to bottom, returns features as they are certain, by the rules of their classes.

    Parameters
    ----------
    grid : Grid
        Of the whole mask.
    classes : sequence of ClassItem
        One per plane; names in their rules are all among them.
    cleaning : Cleaning
        Least sizes, which hold in place of those of `classes`; its `simplify_m`, if any, in place of theirs.
    score_of, threads
        As in `satseg.vector.polygonizer.Polygonizer`.

    Raises
    ------
    CRSError
        The grid does not lie on the Earth.
    """

    def __init__(
        self, grid: Grid, classes: Sequence[ClassItem], *, cleaning: Cleaning, score_of: ScoreOf, threads: int = 1
    ) -> None:
        self._grid, self._frame, self._measure = grid, PixelFrame(grid), Measure(grid.crs, grid.bounds)
        self._classes = [_sized(item, cleaning) for item in classes]
        named = [(item.id, item.name) for item in classes]
        first = first_cleaning(classes, cleaning)
        self._planes = Planes(grid, named, cleaning=first, score_of=score_of, threads=threads)
        grow = [max(0.0, item.buffer_m) for item in self._classes]
        reaches = [self._frame.reach(self._measure, length) if length else 0.0 for length in grow]
        self._sure = cleaning.sure
        self._erasing = Erasing(
            self._classes, reaches=reaches, areas=lambda found: self._measure.areas(self._frame.back(found))
        )
        self._extents = {k: OpenExtents(grid.width, LABELS > 0) for k in self._erasing.watched}
        # Simplifying all together needs the whole layer first.
        self._slab = grid.height + 1 if cleaning.simplify_m > 0 else slab_rows(grid, len(classes))
        self._row = self._count = 0
        self._come: list[Batch] = []

    @property
    def held(self) -> int:
        """Features that wait for what may erase them."""
        return self._erasing.held

    def feed(self, codes: NDArray[np.uint8]) -> geopandas.GeoDataFrame:
        """Return the features that are certain after the next rows, (K, h, W); see `Polygonizer.feed`."""
        parts, top = [], 0
        while top < codes.shape[1]:
            rows = codes[:, top : top + self._slab - self._row % self._slab]
            top += rows.shape[1]
            self._row += rows.shape[1]
            self._come.append(self._planes.feed_codes(rows))
            for k, extents in self._extents.items():
                extents.feed(rows[k])
            if self._row % self._slab == 0:
                parts.append(self._step(self._row))
        parts = [part for part in parts if len(part)]
        if len(parts) < 2:
            return parts[0] if parts else empty_features(self._grid.crs)
        whole: geopandas.GeoDataFrame = pandas.concat(parts, ignore_index=True)
        return whole

    def finish(self) -> geopandas.GeoDataFrame:
        """Return the features that are left; the polygonizer is used up."""
        self._come.append(self._planes.finish())
        return self._step(np.inf)

    def _step(self, row: float) -> geopandas.GeoDataFrame:
        """Apply the rules to what has come; `row` as in `Erasing.settle`."""
        found = Finished.joined([Finished.none(), *(batch for batch, _ in self._come)])
        kinds = np.concatenate([np.empty(0, np.int64), *(planes for _, planes in self._come)])
        self._come = []
        numbers = np.arange(self._count, self._count + len(found))
        self._count += len(found)
        kinds, changed = self._kinds(found, kinds)
        sure = self._sure_of(found, kinds, changed)
        found, kinds, changed, numbers = found[sure], kinds[sure], changed[sure], numbers[sure]
        come, passing = [], []
        for k in range(len(self._classes)):
            own = np.flatnonzero(kinds == k)
            things = self._reshaped(k, Things(found.polygons[own], numbers[own], found.scores[own]), changed[own])
            to_erasing = self._erasing.concerns(k)
            passing.append(Things.none() if to_erasing else things)
            come.append(things.of(self._frame.of(things.polygons)) if to_erasing else Things.none())
        settled = self._erasing.settle(come, self._open_boxes(row), row)
        return self._layer([*passing, *(self._back(things) for things in settled)])

    def _kinds(self, found: Finished, planes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the class of each feature, and whether its sizes are to be looked at again, (P,) each."""
        kinds, again = planes.copy(), np.zeros(len(planes), bool)
        names = [item.name for item in self._classes]
        for k, item in enumerate(self._classes):
            own = np.flatnonzero(planes == k)
            if not item.becomes or not len(own):
                continue
            rule = first_rule(item.becomes, found.areas_m2[own], self._measure.to_metres(found.polygons[own]))
            targets = np.array([*(names.index(one.to) for one in item.becomes), k])  # the last for -1
            kinds[own], again[own] = targets[rule], True
        return kinds, again

    def _sure_of(
        self, found: Finished, kinds: NDArray[np.int64], changed: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Return of which features one is sure enough, (P,): those that may have `changed` their class are asked."""
        sure = np.ones(len(found), bool)
        for k, item in enumerate(self._classes):
            own = np.flatnonzero(changed & (kinds == k))
            if len(own) and item.name in self._sure:
                sure[own] = self._sure[item.name].holds(found.areas_m2[own], found.scores[own])
        return sure

    def _reshaped(self, k: int, things: Things, again: NDArray[np.bool_]) -> Things:
        """Return features as the rules of class `k` shape each."""
        item = self._classes[k]
        if not len(things) or not (item.reshapes or again.any()):
            return things
        polygons, owners = reshaped(things.polygons, self._measure, item)
        return Things(polygons, things.numbers[owners], things.scores[owners])

    def _open_boxes(self, row: float) -> list[Boxes]:
        """Return the boxes of what may still come, for each plane."""
        if row == np.inf:
            return [NO_BOXES] * len(self._classes)
        return [
            np.concatenate([self._extents[k].boxes(), self._boxes(self._planes.pending(k))])
            if k in self._extents
            else NO_BOXES
            for k in range(len(self._classes))
        ]

    def _boxes(self, polygons: Geometries) -> Boxes:
        return shapely.bounds(self._frame.of(polygons)).reshape(-1, 4) if len(polygons) else NO_BOXES

    def _back(self, things: Things) -> Things:
        """Return features in the CRS of the grid."""
        polygons, owners = parts_of(self._frame.back(things.polygons))
        return Things(polygons, things.numbers[owners], things.scores[owners])

    def _layer(self, parts: Sequence[Things]) -> geopandas.GeoDataFrame:
        """Return features in the order of their numbers; `parts` are of all classes, twice over."""
        whole = Things.joined(parts)
        kinds = np.repeat(np.arange(len(parts)) % len(self._classes), [len(part) for part in parts])
        order = np.argsort(whole.numbers, kind="stable")
        whole, kinds = whole[order], kinds[order]
        ids = np.array([item.id for item in self._classes])
        names = np.array([item.name for item in self._classes], object)
        return as_features(
            whole.polygons, class_ids=ids[kinds], class_names=names[kinds], scores=whole.scores,
            areas_m2=self._measure.areas(whole.polygons), crs=self._grid.crs,
        )  # fmt: skip


def first_cleaning(classes: Sequence[ClassItem], cleaning: Cleaning) -> Cleaning:
    """Return what of `cleaning` may be done before the class of a feature is certain."""
    may_be = {item.name: (item.name, *(rule.to for rule in item.becomes)) for item in classes}
    lowest = {name: min(cleaning.sizes(other)[0] for other in others) for name, others in may_be.items()}
    alone = {name: sure for name, sure in cleaning.sure.items() if may_be[name] == (name,)}
    return replace(cleaning, min_area_m2=lowest, sure=alone)


def slab_rows(grid: Grid, planes: int) -> int:
    """Return after how many rows the rules are applied."""
    return int(np.clip(SLAB_PIXELS // max(1, grid.width * planes), FEWEST_ROWS, MOST_ROWS))


def _sized(item: ClassItem, cleaning: Cleaning) -> ClassItem:
    """Return a class with the sizes that hold for it."""
    area, hole = cleaning.sizes(item.name)
    sizes = {"min_area_m2": area, "min_hole_m2": hole}
    return item.model_copy(update=sizes | ({"simplify_m": 0.0} if cleaning.simplify_m > 0 else {}))
