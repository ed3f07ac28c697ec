"""Planes on their way to features: what the tracer finishes is cleaned and held until it is certain.

`PlaneStream` cleans as `satseg.vector.finish.clean` does to a whole layer, and is never more than some
rows behind the tracer: small holes are filled when their polygon is finished, small polygons dropped,
and polygons in a small hole dropped when the tracer reports that hole. Those are finished before the
hole is, so everything waits for as many rows as a small hole may have pixels. Where outlines meet at
corners a distant row decides whether a place is a hole; polygons in places of that kind (see
`satseg.vector.pockets`) wait for the end of the raster. `PlaneWhole` keeps everything until the end:
simplifying needs the neighbours, and so do small holes among several classes of one plane.

Rejected: leaving holes unfilled that were reported late, which would depend on where polygons join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.grid import Grid
from satseg.vector.finish import Cleaning, Geometries, Measure, clean, fill_holes, less_rounding, simplify
from satseg.vector.trace import Outlines

OUTSIDE, FIRST, LAST, INVALID = 0, 1, 254, 255
"""Codes of a pixel: not of the class; of it, with a score from the threshold to 1; not valid."""
LABELS = np.where(np.isin(np.arange(256), (OUTSIDE, INVALID)), 0, 1).astype(np.int64)
WEIGHTS = np.where(LABELS > 0, np.arange(256), 0).astype(np.int64)
"""Label and weight of each code: weights are the codes themselves, so that their mean is a mean code."""
LEAST_LAKE = 5
"""Pixels of the smallest hole with a polygon in it: one pixel and its four neighbours."""
MESH, MARGIN = 9, 0.98
"""Pixels probed along each side of a grid for the smallest, and what of it is counted on: between two
probes the size of a pixel changes by far less."""


@dataclass(frozen=True, slots=True)
class PlaneCode:
    """How the codes of a plane read: 0 outside, 255 not valid, between them inside with a score.

    Parameters
    ----------
    threshold : float
        Score of code 1, 0..1; scores rise evenly to 1 at code 254.
    """

    threshold: float

    @property
    def score_of(self) -> tuple[float, float]:
        """(offset, scale): score = offset + scale x code; so the mean score is that of the mean code."""
        scale = (1 - self.threshold) / (LAST - FIRST)
        return self.threshold - FIRST * scale, scale

    def codes(self, scores: NDArray[np.floating], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """Return the codes nearest to `scores` (any shape); NaN is outside, what is not `valid` 255."""
        offset, scale = self.score_of
        exact = np.asarray(scores, dtype=np.float64)
        steps = np.rint((np.nan_to_num(exact) - offset) / scale) if scale > 0 else np.full(exact.shape, LAST)
        codes = np.where(exact >= self.threshold, np.clip(steps, FIRST, LAST), OUTSIDE).astype(np.uint8)
        return codes if valid is None else np.where(valid, codes, np.uint8(INVALID))


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which class the polygons of a plane are of, and what is small in it.

    Parameters
    ----------
    named : (number, name) or None
        The one class of the plane; None: a class per value.
    cleaning : Cleaning
    """

    named: tuple[int, str] | None
    cleaning: Cleaning

    def largest_hole_m2(self) -> float:
        """Return the greatest of the least holes of the classes."""
        if self.named:
            return self.cleaning.sizes(self.named[1])[1]
        hole = self.cleaning.min_hole_m2
        return max(hole.values(), default=0.0) if isinstance(hole, Mapping) else hole

    def columns(self, values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
        """Return class number and class name for each label, (P,) each."""
        labels, which = np.unique(values, return_inverse=True)
        classes = [self.named or (int(label), str(int(label))) for label in labels]
        numbers, names = np.array([number for number, _ in classes], np.int64), np.empty(len(classes), object)
        names[:] = [name for _, name in classes]
        return numbers[which], names[which]

    def sizes(self, values: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the least polygon and the least hole for each label in square metres, (P,) each."""
        labels, which = np.unique(values, return_inverse=True)
        names = [self.named[1] if self.named else str(int(label)) for label in labels]
        both = np.array([self.cleaning.sizes(name) for name in names]).reshape(-1, 2)[which]
        return both[:, 0], both[:, 1]

    def sure(self, areas_m2: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return of which polygons one is sure enough, (P,); of all those of a plane whose values are classes."""
        wanted = self.cleaning.sure.get(self.named[1]) if self.named else None
        return np.ones(len(scores), bool) if wanted is None else wanted.holds(areas_m2, scores)


@dataclass(frozen=True, slots=True)
class Finished:
    """Polygons of one plane, (P,) each.

    Parameters
    ----------
    polygons : ndarray of Polygon
    values : ndarray of int64
        Label.
    scores : ndarray of float64
        0..1, or NaN.
    areas_m2 : ndarray of float64
    bottoms : ndarray of int64
        The row after the last one.
    rows, cols : ndarray of int64
        The first pixel; -1 for a polygon too large to lie in a small hole.
    """

    polygons: Geometries
    values: NDArray[np.int64]
    scores: NDArray[np.float64]
    areas_m2: NDArray[np.float64]
    bottoms: NDArray[np.int64]
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.polygons)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Finished:
        return Finished(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Finished]) -> Finished:
        """Return several as one, in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def none(cls) -> Finished:
        """Return no polygons."""
        whole, real = np.empty(0, np.int64), np.empty(0, np.float64)
        return cls(np.empty(0, object), whole, real, real, whole, whole, whole)


class Plane(Protocol):
    """Takes what the tracer finishes, in order, and lets go of what is certain."""

    def take(self, outlines: Outlines, codes: NDArray[np.uint8]) -> None:
        """Take what is finished by the next rows, `codes` (h, W)."""

    def release(self, limit: int) -> Finished:
        """Return what has its last row above `limit` and was not returned yet, in the tracer's order."""

    def pending(self) -> Geometries:
        """Return the polygons that were taken and not returned yet."""

    def finish(self) -> Finished:
        """Return the rest; nothing may be taken after."""


class PlaneStream:
    """Cleans polygons on the way.

    Parameters
    ----------
    grid : Grid
    kinds : Kinds
    measure : Measure
    score_of : (offset, scale) or None
        Score of a mean weight; None: NaN.
    lake_px : int
        Pixels that a small hole has at most; 0 where none can hold a polygon.
    """

    def __init__(
        self, grid: Grid, kinds: Kinds, measure: Measure, *, score_of: tuple[float, float] | None, lake_px: int
    ) -> None:
        self._grid, self._kinds, self._measure, self._score_of = grid, kinds, measure, score_of
        self._lake_px = lake_px
        self._held, self._waiting = Finished.none(), Finished.none()
        self._pockets = None
        if lake_px:
            from satseg.vector.pockets import Pockets  # compiled, so not before it is needed

            self._pockets = Pockets(grid.width, LABELS == 0, lake_px)

    def take(self, outlines: Outlines, codes: NDArray[np.uint8]) -> None:
        """Take what is finished by the next rows, `codes` (h, W)."""
        if self._pockets is not None:
            self._pockets.feed(codes)
        self._held = Finished.joined([self._held, self._cleaned(outlines)])
        self._drop_islands(outlines)

    def release(self, limit: int) -> Finished:
        """Return what has its last row above `limit`, except what may lie in a hole still."""
        due = self._held.bottoms <= limit
        ready, self._held = self._held[due], self._held[~due]
        if self._pockets is None:
            return ready
        maybe = self._in_pockets(ready)
        self._pockets.forget(limit - self._lake_px)
        if maybe.any():
            self._waiting = Finished.joined([self._waiting, ready[maybe]])
        return ready[~maybe]

    def pending(self) -> Geometries:
        """Return the polygons that are held."""
        held: Geometries = np.concatenate([self._waiting.polygons, self._held.polygons])
        return held

    def finish(self) -> Finished:
        """Return the rest."""
        rest = Finished.joined([self._waiting, self._held])
        self._held = self._waiting = Finished.none()
        return rest

    def _cleaned(self, outlines: Outlines) -> Finished:
        """Return the polygons with small holes filled, without the small ones."""
        found = finished(outlines, self._score_of)
        if not len(found):
            return found
        least, hole = self._kinds.sizes(found.values)
        polygons, _, _ = fill_holes(found.polygons, self._measure, hole)
        areas = self._measure.areas(polygons)
        rows, cols = found.rows, found.cols
        if self._pockets is not None:
            rows, cols = self._first_pixels(outlines)
        whole = Finished(polygons, found.values, found.scores, areas, found.bottoms, rows, cols)
        kept = ((least <= 0) | (areas >= less_rounding(least))) & self._kinds.sure(areas, found.scores)
        return whole if kept.all() else whole[kept]

    def _first_pixels(self, outlines: Outlines) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and column of the first pixel of polygons that could lie in a small hole, -1 of others."""
        rows, cols = np.full((2, len(outlines.pixels)), -1, np.int64)
        small = np.flatnonzero(outlines.pixels < self._lake_px)
        if len(small):
            shells = outlines.polygons[small]
            starts, lengths = outlines.rings[shells], np.diff(outlines.rings)[shells]
            offsets = np.cumsum(lengths) - lengths
            corners = np.repeat(starts - offsets, lengths) + np.arange(lengths.sum())
            row, col = self._corners(outlines.coords[corners])
            place = np.minimum.reduceat(row * (self._grid.width + 1) + col, offsets)
            rows[small], cols[small] = np.divmod(place, self._grid.width + 1)
        return rows, cols

    def _corners(self, coords: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pixel corners (row, column) at world coordinates (N, 2)."""
        rows, cols = self._grid.rowcol(xs=coords[:, 0], ys=coords[:, 1])
        return np.rint(rows).astype(np.int64), np.rint(cols).astype(np.int64)

    def _drop_islands(self, outlines: Outlines) -> None:
        """Drop what lies in small holes that the tracer has just closed."""
        holes = outlines.small_holes
        if self._pockets is None or not len(holes.values):
            return
        rings = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, holes.coords, (holes.rings, np.arange(len(holes.rings)))
        )
        _, least = self._kinds.sizes(holes.values)
        rings = rings[self._measure.areas(rings) < less_rounding(least)]
        if len(rings):
            self._held, self._waiting = self._outside(self._held, rings), self._outside(self._waiting, rings)

    def _outside(self, found: Finished, rings: Geometries) -> Finished:
        """Return `found` without what lies in `rings`."""
        maybe = np.flatnonzero(found.rows >= 0)
        if not len(maybe):
            return found
        xs, ys = self._grid.xy(rows=found.rows[maybe] + 0.5, cols=found.cols[maybe] + 0.5)
        _, inside = shapely.STRtree(shapely.points(xs, ys)).query(rings, predicate="contains")
        kept = np.ones(len(found), bool)
        kept[maybe[inside]] = False
        return found if kept.all() else found[kept]

    def _in_pockets(self, found: Finished) -> NDArray[np.bool_]:
        """Return which polygons touch small places only, seen from their left sides, (P,)."""
        assert self._pockets is not None
        inside = (found.rows >= 0) & self._pockets.right_of_small(found.rows, found.cols)
        maybe = np.flatnonzero(inside)
        if len(maybe):
            rows, cols, owner = self._left_sides(found.polygons[maybe])
            large = ~self._pockets.right_of_small(rows, cols)
            inside[maybe[owner[large]]] = False
        return inside

    def _left_sides(self, polygons: Geometries) -> tuple[NDArray[np.int64], ...]:
        """Return the upper pixel (row, column) right of each left side of the shells, and whose it is."""
        coords, owner = shapely.get_coordinates(shapely.get_exterior_ring(polygons), return_index=True)
        row, col = self._corners(coords)
        goes_on = owner[1:] == owner[:-1]
        cross = np.where(goes_on, col[:-1] * row[1:] - col[1:] * row[:-1], 0)
        turn = np.sign(np.bincount(owner[:-1], cross, minlength=len(polygons)))
        # Clockwise as rows are counted downwards: tops run right, left sides up.
        left = np.flatnonzero(goes_on & ((row[1:] - row[:-1]) * turn[owner[:-1]] < 0))
        return np.minimum(row[left], row[left + 1]), col[left], owner[left]


class PlaneWhole:
    """Cleans and simplifies all polygons at the end.

    Parameters
    ----------
    grid : Grid
    kinds : Kinds
    measure : Measure
    score_of : (offset, scale) or None
    dense : bool
        Outlines come in pixels, and get a vertex at every pixel corner they pass: only so do neighbours
        of different values have the same vertices where a third one begins.
    """

    def __init__(
        self, grid: Grid, kinds: Kinds, measure: Measure, *, score_of: tuple[float, float] | None, dense: bool
    ) -> None:
        self._grid, self._kinds, self._measure, self._score_of = grid, kinds, measure, score_of
        self._dense = dense
        self._parts = [Finished.none()]

    def take(self, outlines: Outlines, codes: NDArray[np.uint8]) -> None:
        """Take what is finished by the next rows."""
        self._parts.append(finished(outlines, self._score_of))

    def release(self, limit: int) -> Finished:
        """Return nothing: all comes at the end."""
        return Finished.none()

    def pending(self) -> Geometries:
        """Return everything so far."""
        return Finished.joined(self._parts).polygons

    def finish(self) -> Finished:
        """Return everything."""
        found = Finished.joined(self._parts)
        self._parts = [Finished.none()]
        polygons = self._placed(found.polygons) if self._dense else found.polygons
        least, hole = self._kinds.sizes(found.values)
        polygons, kept = clean(polygons, self._measure, found.values, min_area_m2=least, min_hole_m2=hole)
        if self._kinds.cleaning.sure:
            sure = self._kinds.sure(self._measure.areas(polygons), found.scores[kept])
            polygons, kept = polygons[sure], kept[sure]
        polygons, found = simplify(polygons, self._measure, self._kinds.cleaning.simplify_m), found[kept]
        areas = self._measure.areas(polygons)
        return Finished(polygons, found.values, found.scores, areas, found.bottoms, found.rows, found.cols)

    def _placed(self, polygons: Geometries) -> Geometries:
        t = self._grid.transform
        moved: Geometries = shapely.transform(
            shapely.segmentize(polygons, 1.0),
            lambda c, r: (t.c + c * t.a + r * t.b, t.f + c * t.d + r * t.e),
            interleaved=False,
        )
        return moved


def finished(outlines: Outlines, score_of: tuple[float, float] | None) -> Finished:
    """Return the tracer's polygons as they are, areas unknown."""
    polygons = outlines.geometries()
    scores = np.full(len(polygons), np.nan)
    if score_of is not None:
        scores = np.clip(score_of[0] + score_of[1] * (outlines.sums / outlines.pixels), 0.0, 1.0)
    none = np.full(len(polygons), -1, np.int64)
    unknown = np.full(len(polygons), np.nan)
    return Finished(polygons, outlines.values, scores, unknown, outlines.bottoms, none, none)


def small_hole_px(grid: Grid, measure: Measure, min_hole_m2: float) -> int:
    """Return how many pixels a hole below `min_hole_m2` can have, 0 where that is too few to hold a polygon."""
    if min_hole_m2 <= 0:
        return 0
    rows = np.linspace(0, grid.height - 1, MESH)[:, None, None] + np.array([0, 0, 1, 1])
    cols = np.linspace(0, grid.width - 1, MESH)[None, :, None] + np.array([0, 1, 1, 0])
    rows, cols = (side.reshape(-1, 4) for side in np.broadcast_arrays(rows, cols))
    xs, ys = grid.xy(rows=rows, cols=cols)
    areas = measure.areas(shapely.polygons(np.stack([xs, ys], axis=-1)))
    least, pixels = MARGIN * float(np.min(areas)), grid.height * grid.width
    most = min(min_hole_m2 / least, pixels) if least > 0 else pixels  # NaN: no image there
    return int(most) if most >= LEAST_LAKE else 0
