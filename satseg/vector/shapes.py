"""Features changed one by one: of another class by their shape, grown or shrunk, simplified.

Growing is round, so that a roof grows alike whichever way it is turned. How round a feature is, is the share of its
smallest enclosing circle that it fills, holes included (Reock 1961): the same after turning, moving and scaling, and of
pixel edges as of smooth ones. Rejected: 4 pi A / P2, for a perimeter along pixel edges is up to 4/pi too long, by the
way it is turned, and the longer the finer the pixels; length by width of the smallest rotated rectangle, in which
a river with a bend is as wide as long.

`PixelFrame` brings outlines onto a lattice of 1/1024 pixel and back: there pixel corners are whole numbers, overlays
are exact (snap rounding: Hobby 1999), and a ground given to one class is not part of another by the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.classes import ClassItem, ShapeRule
from satseg.grid import Grid
from satseg.vector.finish import Geometries, Measure, fill_holes, less_rounding, repair

LATTICE = 2.0**-10
"""Pixels between two places that a vertex of the rules may have."""
LEAST_PX = 2.0**-4
"""Pieces of fewer pixels are what overlays leave along edges, and no things."""
QUARTER_SEGMENTS = 4
"""Lines of a quarter circle round a corner that grows: 2 % of the buffer less than a circle at most."""
MESH = 9
"""Places along each side of a grid where the size of its pixels is probed."""
_POLYGON = 3  # GEOS type number


@dataclass(frozen=True, slots=True)
class PixelFrame:
    """Moves outlines between the CRS of a grid and its pixel corners (x the column, y the row).

    Parameters
    ----------
    grid : Grid
    """

    grid: Grid

    def of(self, polygons: Geometries) -> Geometries:
        """Return `polygons` in pixels, each vertex on the lattice; valid, polygons and multipolygons, or None."""

        def placed(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
            rows, cols = self.grid.rowcol(xs=xs, ys=ys)
            return np.rint(cols / LATTICE) * LATTICE, np.rint(rows / LATTICE) * LATTICE

        moved: Geometries = shapely.transform(polygons, placed, interleaved=False)
        broken = np.flatnonzero(~shapely.is_valid(moved))
        if len(broken):
            moved[broken] = repair(moved[broken])[0]
            # What a repair adds where lines cross need not lie on the lattice.
            moved[broken] = shapely.set_precision(moved[broken], LATTICE)
        return moved

    def back(self, polygons: Geometries) -> Geometries:
        """Return polygons in the grid's CRS; pixel corners to the bit where the tracer puts them."""
        t = self.grid.transform
        moved: Geometries = shapely.transform(
            polygons, lambda c, r: (t.c + c * t.a + r * t.b, t.f + c * t.d + r * t.e), interleaved=False
        )
        return moved

    def reach(self, measure: Measure, distance_m: float) -> float:
        """Return how many rows or columns `distance_m` takes at most; infinite where that cannot be told."""
        rows = np.linspace(0, self.grid.height, MESH)[:, None, None] + np.array([0, 0, 1])
        cols = np.linspace(0, self.grid.width, MESH)[None, :, None] + np.array([0, 1, 0])
        rows, cols = (side.reshape(-1) for side in np.broadcast_arrays(rows, cols))
        points = shapely.points(*self.grid.xy(rows=rows, cols=cols))
        corner, right, down = shapely.get_coordinates(measure.to_metres(points)).reshape(-1, 3, 2).swapaxes(0, 1)
        steps = np.stack([right - corner, down - corner], axis=-1)  # (N, 2, 2): metres of a column and of a row
        if not np.all(np.isfinite(steps)) or np.any(np.linalg.det(steps) == 0):
            return np.inf
        return 1.05 * distance_m * float(np.linalg.norm(np.linalg.inv(steps), axis=2).max())


def roundness(polygons: Geometries) -> NDArray[np.float64]:
    """Return the share of its smallest enclosing circle that each polygon fills, holes included, 0..1."""
    shells = shapely.polygons(shapely.get_exterior_ring(polygons))
    circles = np.pi * shapely.minimum_bounding_radius(shells) ** 2
    share: NDArray[np.float64] = np.divide(shapely.area(shells), circles, out=np.zeros(len(shells)), where=circles > 0)
    return share


def first_rule(rules: tuple[ShapeRule, ...], areas: NDArray[np.float64], metric: Geometries) -> NDArray[np.int64]:
    """Return the number of the first of `rules` that holds for each polygon, -1 for none.

    Parameters
    ----------
    rules : tuple of ShapeRule
    areas : ndarray of float64, (P,)
        Square metres.
    metric : ndarray of Polygon, (P,)
        In a CRS of metres.
    """
    found = np.full(len(areas), -1, np.int64)
    by_shape = any({*rule.conditions} & {"rounder_than", "slimmer_than"} for rule in rules)
    shape = roundness(metric) if by_shape else np.zeros(len(areas))
    for number, rule in reversed(list(enumerate(rules))):
        holds = np.ones(len(areas), bool)
        for values, low, high in (
            (areas, rule.above_m2, rule.below_m2), (shape, rule.rounder_than, rule.slimmer_than),
        ):  # fmt: skip
            holds &= (values > (-np.inf if low is None else low)) & (values < (np.inf if high is None else high))
        found[holds] = number
    return found


def reshaped(polygons: Geometries, measure: Measure, item: ClassItem) -> tuple[Geometries, NDArray[np.int64]]:
    """Return `polygons` grown or shrunk and simplified as `item` says, and which of them each is of.

    Parameters
    ----------
    polygons : ndarray of Polygon, (P,)
    measure : Measure
    item : ClassItem
        Its `buffer_m`, `simplify_m`, `min_area_m2` and `min_hole_m2`.

    Returns
    -------
    polygons : ndarray of Polygon, (Q,)
        Valid, of the least sizes; a polygon that falls apart comes as several, one that vanishes as none.
    owners : ndarray of int64, (Q,)
        Rising.
    """
    owners = np.arange(len(polygons))
    if item.buffer_m and len(polygons):
        grown = shapely.buffer(measure.to_metres(polygons), item.buffer_m, quad_segs=QUARTER_SEGMENTS)
        polygons, owners = parts_of(measure.from_metres(grown))
    if item.simplify_m > 0:
        polygons = simplified(polygons, measure, item.simplify_m)
    polygons, _, _ = fill_holes(polygons, measure, item.min_hole_m2)
    kept = measure.areas(polygons) >= less_rounding(item.min_area_m2)
    return polygons[kept], owners[kept]


def simplified(polygons: Geometries, measure: Measure, tolerance_m: float) -> Geometries:
    """Return `polygons` with fewer bends, each by itself; as `satseg.vector.finish.simplify` else.

    Alone, because with others around it the outline of one would depend on which are finished.
    """
    metric = measure.to_metres(polygons).copy()
    for k in range(len(metric)):
        metric[k : k + 1] = shapely.coverage_simplify(metric[k : k + 1], tolerance_m)
    simple = measure.from_metres(metric).copy()
    broken = ~shapely.is_valid(simple) | shapely.is_empty(simple)
    simple[broken] = polygons[broken]
    return simple


def parts_of(geometries: Geometries) -> tuple[Geometries, NDArray[np.int64]]:
    """Return the polygons that `geometries` consist of, repaired, and the place of the geometry that each is of."""
    fixed, _ = repair(geometries)
    parts, owners = shapely.get_parts(fixed, return_index=True)
    kept = (shapely.get_type_id(parts) == _POLYGON) & ~shapely.is_empty(parts)
    return parts[kept], owners[kept].astype(np.int64)


def without(polygons: Geometries, others: Geometries, *, earlier: bool = False) -> Geometries:
    """Return `polygons` without the ground of `others`, both on the lattice of `PixelFrame`.

    Parameters
    ----------
    polygons : ndarray of Polygon, (P,)
    others : ndarray of Polygon, (Q,)
    earlier : bool
        `others` end with `polygons` themselves, and only what comes before one takes from it.

    Returns
    -------
    ndarray, (P,)
        Polygons, multipolygons, empty where nothing is left.
    """
    left = polygons.copy()
    which, by = shapely.STRtree(others).query(polygons, predicate="intersects")
    if earlier:
        before = by < which + len(others) - len(polygons)
        which, by = which[before], by[before]
    # Neighbours that only touch stay as they are, to the bit.
    shared = shapely.relate_pattern(polygons[which], others[by], "T********")
    order = np.lexsort((by[shared], which[shared]))
    which, by = which[shared][order], by[shared][order]
    if not len(which):
        return left
    places, starts = np.unique(which, return_index=True)
    for place, group in zip(places, np.split(by, starts[1:]), strict=True):
        cover = others[group[0]] if len(group) == 1 else shapely.union_all(others[group], grid_size=LATTICE)
        left[place] = shapely.difference(left[place], cover, grid_size=LATTICE)
    return left
