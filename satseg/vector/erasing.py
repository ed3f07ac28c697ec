"""Erasing: features lose the ground of classes that go before theirs, as soon as that is certain.

What erases is what stands in the result: grown, of its least size, and less what was taken from it. So a feature waits
until no outline that is still open, and no other that waits, can become a part of what erases it: until the rows fed
are past it by what others may grow, and the boxes of what is open leave it alone. What is held is what lies near
open outlines, and not the scene. Features of one class that grew or were simplified may meet; the one finished later
loses what the earlier one has, so that objects stay apart and no ground counts twice.

Rejected: erasing in the mask, pixel by pixel, which needs no waiting: specks below a least size would punch holes into
roads, roofs would erase less than they cover once grown, and water would erase before it is known to be standing or
flowing. The 2017 chain drew its grown and cleaned polygons as masks to erase with, which is this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.classes import ClassItem, erased_by, erasing_order
from satseg.vector.finish import Geometries, less_rounding
from satseg.vector.shapes import LEAST_PX, parts_of, without

Areas: TypeAlias = Callable[[Geometries], NDArray[np.float64]]
Boxes = NDArray[np.float64]
"""Left, top, right, bottom in pixel corners, (N, 4)."""
NO_BOXES = np.empty((0, 4))


@dataclass(frozen=True, slots=True)
class Things:
    """Features of one class in pixels, (P,) each.

    Parameters
    ----------
    polygons : ndarray of Polygon
        On the lattice of `satseg.vector.shapes.PixelFrame`.
    numbers : ndarray of int64
        In the order in which they were finished; parts of one have one number.
    scores : ndarray of float64
    """

    polygons: Geometries
    numbers: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.polygons)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Things:
        return Things(self.polygons[chosen], self.numbers[chosen], self.scores[chosen])

    @classmethod
    def joined(cls, parts: Sequence[Things]) -> Things:
        """Return several as one, in their order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def none(cls) -> Things:
        """Return no features."""
        return cls(np.empty(0, object), np.empty(0, np.int64), np.empty(0))

    def of(self, geometries: Geometries) -> Things:
        """Return the polygons that `geometries`, one for each feature, fall into; slivers are left out."""
        parts, owners = parts_of(geometries)
        kept = shapely.area(parts) >= LEAST_PX
        return Things(parts[kept], self.numbers[owners[kept]], self.scores[owners[kept]])


class Erasing:
    """Takes features as they are finished, gives them back when nothing can take from them any more.

    Parameters
    ----------
    classes : sequence of ClassItem
        Names in their rules are all among them.
    reaches : sequence of float
        How many rows or columns features of each grow at most.
    areas : callable
        Square metres of polygons in pixels.
    """

    def __init__(
        self,
        classes: Sequence[ClassItem],
        *,
        reaches: Sequence[float],
        areas: Areas,
    ) -> None:
        self._classes, self._reaches, self._areas = classes, reaches, areas
        self._order, self._erased_by = erasing_order(classes), erased_by(classes)
        count = range(len(classes))
        self._erases = [[k for k in count if e in self._erased_by[k]] for e in count]
        self._sources = [
            [j for j, item in enumerate(classes) if j == k or any(rule.to == classes[k].name for rule in item.becomes)]
            for k in count
        ]
        self._meet = [
            item.buffer_m > 0 or item.simplify_m > 0 or len(self._sources[k]) > 1 for k, item in enumerate(classes)
        ]
        self._waiting = [Things.none() for _ in count]
        self._own = [np.empty(0, object) for _ in count]  # as grown, what later ones of the class lose
        self._settled = [np.empty(0, object) for _ in count]  # as given back, what erased classes lose

    @property
    def held(self) -> int:
        """Features that wait."""
        return sum(map(len, self._waiting))

    def concerns(self, k: int) -> bool:
        """Whether features of class `k` lose ground or take it, and so go through here."""
        return bool(self._erased_by[k] or self._erases[k] or self._meet[k])

    @property
    def watched(self) -> tuple[int, ...]:
        """Planes whose open outlines decide what is certain."""
        planes = {j for k in range(len(self._classes)) if self.concerns(k) for j in self._sources[k]}
        return tuple(sorted(planes))

    def settle(self, come: Sequence[Things], boxes: Sequence[Boxes], row: float) -> list[Things]:
        """Take the features that were finished, in order, and return those that are certain now.

        Parameters
        ----------
        come : sequence of Things
            For each class.
        boxes : sequence of ndarray, (N, 4)
            For each plane, of outlines that may still come.
        row : float
            Rows fed; infinite at the end.
        """
        done = []
        for k in self._order:
            self._waiting[k] = Things.joined([self._waiting[k], self._apart(k, come[k])])
            ready = ~self._touched(shapely.bounds(self._waiting[k].polygons), self._erased_by[k], boxes, row)
            certain, self._waiting[k] = self._waiting[k][ready], self._waiting[k][~ready]
            done.append((k, self._cleared(k, certain)))
        self._forget(boxes, row)
        return [things for _, things in sorted(done, key=lambda pair: pair[0])]

    def _apart(self, k: int, come: Things) -> Things:
        """Return what is finished without what earlier ones of its class have."""
        if not self._meet[k] or not len(come):
            return come
        self._own[k] = np.concatenate([self._own[k], come.polygons])
        return come.of(without(come.polygons, self._own[k], earlier=True))

    def _cleared(self, k: int, certain: Things) -> Things:
        """Return features without the ground of what erases them, of their least size."""
        covers = np.concatenate([np.empty(0, object), *(self._settled[e] for e in self._erased_by[k])])
        certain = cleared(certain, covers, self._classes[k].min_area_m2, areas=self._areas)
        if self._erases[k]:
            self._settled[k] = np.concatenate([self._settled[k], certain.polygons])
        return certain

    def _touched(self, bounds: Boxes, by: Iterable[int], boxes: Sequence[Boxes], row: float) -> NDArray[np.bool_]:
        """Return which boxes something of the classes `by` may come into that is not settled, (P,)."""
        touched = np.zeros(len(bounds), bool)
        for e in by:
            reach = self._reaches[e]
            touched |= bounds[:, 3] > row - reach
            near = [boxes[j] + np.array([-reach, -reach, reach, reach]) for j in self._sources[e]]
            found = np.concatenate([NO_BOXES, *near, shapely.bounds(self._waiting[e].polygons).reshape(-1, 4)])
            places = shapely.STRtree(shapely.box(*found.T)).query(shapely.box(*bounds.T))[0]
            touched[places] = True
        return touched

    def _forget(self, boxes: Sequence[Boxes], row: float) -> None:
        """Let go of what nothing can lose ground to any more."""
        for k in range(len(self._classes)):
            own, settled = self._own[k], self._settled[k]
            self._own[k] = own[self._touched(shapely.bounds(own).reshape(-1, 4), [k], boxes, row)]
            self._settled[k] = settled[
                self._touched(shapely.bounds(settled).reshape(-1, 4), self._erases[k], boxes, row)
            ]


def cleared(things: Things, covers: Geometries, least_m2: float, *, areas: Areas) -> Things:
    """Return features without the ground of `covers`, and only those of at least `least_m2` square metres."""
    if len(covers) and len(things):
        things = things.of(without(things.polygons, covers))
    return things[areas(things.polygons) >= less_rounding(least_m2)] if least_m2 else things
