"""Cleaning polygons: repair, square metres, small holes, small polygons, simpler outlines.

Works on arrays of shapely polygons, whole layers at a time. Sizes are in square metres whatever the
CRS, by `satseg.crs.metric_crs`; without a CRS they are in squared units. Outlines are simplified as
one coverage, so that edges shared by neighbours stay shared and islands stay in their lakes.

Rejected: `buffer(0)` as a repair (it loses half of a bow-tie; shapely issue 2011), and simplifying
polygon by polygon (opens gaps between neighbours).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from satseg.classes import ClassItem
from satseg.crs import Bounds, CRSLike, metric_crs, same_crs, transformer
from satseg.errors import UsageError

Geometries = NDArray[np.object_]
_POLYGON, _MULTIPOLYGON, _COLLECTION = 3, 6, 7  # GEOS type numbers


@dataclass(frozen=True, slots=True)
class Sure:
    """How sure of a polygon one has to be: of a large one less than of a small one.

    Parameters
    ----------
    least_m2 : float
        Square metres that a polygon's area has, each counted as what its score is of the way from `above` to 1.
    above : float
        Score of which nothing counts, 0..1.
    """

    least_m2: float
    above: float

    def holds(self, areas_m2: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return of which polygons one is sure, (P,); of all those without a score (NaN)."""
        counted = areas_m2 * (scores - self.above) / (1 - self.above)
        return np.isnan(counted) | (counted >= less_rounding(self.least_m2))


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What to clean away; nothing by default.

    Parameters
    ----------
    min_area_m2 : float, or one per class name
        Polygons smaller than this are dropped.
    min_hole_m2 : float, or one per class name
        Holes smaller than this are filled.
    simplify_m : float
        Bends that enclose less than this length squared are cut off; 0 keeps all.
    sure : Sure by class name
        Polygons of which one is less sure are dropped.
    """

    min_area_m2: float | Mapping[str, float] = 0.0
    min_hole_m2: float | Mapping[str, float] = 0.0
    simplify_m: float = 0.0
    sure: Mapping[str, Sure] = field(default_factory=dict)

    @classmethod
    def of(
        cls, classes: Sequence[ClassItem], *, min_area_m2: float | None = None, simplify_m: float = 0.0,
        threshold: float | None = None,
    ) -> Cleaning:  # fmt: skip
        """Return what `classes` say of sizes, or `min_area_m2` in place of all that they say of polygons.

        `threshold` is the one in force, where it is none of theirs.
        """
        asked = [item for item in classes if min_area_m2 is None and item.min_sure_m2 > 0]
        return cls(
            {item.name: item.min_area_m2 if min_area_m2 is None else min_area_m2 for item in classes},
            {item.name: item.min_hole_m2 for item in classes},
            simplify_m,
            {item.name: Sure(item.min_sure_m2, threshold or item.threshold) for item in asked},
        )

    def __post_init__(self) -> None:
        for name in ("min_area_m2", "min_hole_m2", "simplify_m"):
            value = getattr(self, name)
            sizes = value.values() if isinstance(value, Mapping) else (value,)
            if not all(0 <= size < np.inf for size in sizes):
                raise UsageError(f"{name} is {value}, not 0 or a positive number", code="E-USE-201")

    def sizes(self, name: str) -> tuple[float, float]:
        """Return the smallest polygon and the smallest hole of the class `name`, in square metres."""
        both = (self.min_area_m2, self.min_hole_m2)
        area, hole = (size.get(name, 0.0) if isinstance(size, Mapping) else size for size in both)
        return float(area), float(hole)


@dataclass(frozen=True, slots=True)
class Measure:
    """Moves polygons between their CRS and square metres.

    Parameters
    ----------
    crs : CRS or None
        The polygons' own; None measures in its units.
    bounds : (left, bottom, right, top)
        Extent of the whole layer, so that all of it is measured alike.
    """

    crs: CRSLike | None
    bounds: Bounds

    def to_metres(self, polygons: Geometries) -> Geometries:
        """Return `polygons` in the metric CRS."""
        return _moved(polygons, self.crs, self._metric())

    def from_metres(self, polygons: Geometries) -> Geometries:
        """Return `polygons` back in their own CRS."""
        return _moved(polygons, self._metric(), self.crs)

    def areas(self, polygons: Geometries) -> NDArray[np.float64]:
        """Return the area of each polygon in square metres."""
        return np.asarray(shapely.area(self.to_metres(polygons)), dtype=np.float64)

    def _metric(self) -> CRSLike | None:
        return None if self.crs is None else metric_crs(self.crs, self.bounds)


def _moved(polygons: Geometries, source: CRSLike | None, target: CRSLike | None) -> Geometries:
    if source is None or target is None or same_crs(source, target):
        return polygons
    moved: Geometries = shapely.transform(polygons, transformer(source, target).transform, interleaved=False)
    return moved


def repair(geometries: Geometries) -> tuple[Geometries, int]:
    """Return the valid polygons that `geometries` mean, and how many needed repair.

    Parameters
    ----------
    geometries : ndarray of shapely geometries or None

    Returns
    -------
    geometries : ndarray
        Polygons and multipolygons; None where nothing with an area is left.
    count : int
        Polygons that were not valid.
    """
    fixed = np.array(geometries, dtype=object)
    wrong = np.flatnonzero(~shapely.is_missing(fixed) & ~shapely.is_valid(fixed))
    fixed[wrong] = shapely.make_valid(fixed[wrong], method="structure", keep_collapsed=False)
    # GEOS 3.14 leaves parts that share an edge when a ring runs along itself; their union is right.
    touching = wrong[~shapely.is_valid(fixed[wrong])]
    fixed[touching] = [shapely.union_all(shapely.get_parts([geometry])) for geometry in fixed[touching]]
    kinds = shapely.get_type_id(fixed)
    mixed = np.flatnonzero(kinds == _COLLECTION)
    fixed[mixed] = [_polygons_of(geometry) for geometry in fixed[mixed]]
    no_area = ~np.isin(shapely.get_type_id(fixed), (_POLYGON, _MULTIPOLYGON)) | shapely.is_empty(fixed)
    fixed[no_area] = None
    return fixed, len(wrong)


def _polygons_of(collection: shapely.GeometryCollection) -> shapely.Geometry:
    """Return the union of the polygons in a collection, however deep; it may be empty."""
    parts = shapely.get_parts([collection])
    while np.any(shapely.get_type_id(parts) == _COLLECTION):
        parts = shapely.get_parts(parts)
    return shapely.union_all(parts[np.isin(shapely.get_type_id(parts), (_POLYGON, _MULTIPOLYGON))])


def clean(
    polygons: Geometries,
    measure: Measure,
    groups: NDArray[np.integer[Any]] | None = None,
    *,
    min_area_m2: ArrayLike = 0.0,
    min_hole_m2: ArrayLike = 0.0,
) -> tuple[Geometries, NDArray[np.int64]]:
    """Return the polygons with small holes filled, and without the small ones.

    Parameters
    ----------
    polygons : ndarray of Polygon, (P,)
        Those of one group do not overlap. One that lies in a filled hole of its group is dropped:
        it is part of the other now.
    measure : Measure
    groups : ndarray of int, (P,), optional
        The class of each; one class when left out.
    min_area_m2, min_hole_m2 : float, or (P,)
        Square metres; what is exactly as large stays.

    Returns
    -------
    polygons : ndarray of Polygon, (Q,)
    kept : ndarray of int64, (Q,)
        The place of each in the input.
    """
    kept = np.arange(len(polygons))
    least = np.broadcast_to(less_rounding(min_area_m2), kept.shape)
    groups = np.zeros_like(kept) if groups is None else groups
    whole, holes, owners = fill_holes(polygons, measure, min_hole_m2)
    if len(holes):
        inside = shapely.STRtree(shapely.point_on_surface(polygons))
        hole, island = inside.query(holes, predicate="contains")
        kept = np.setdiff1d(kept, island[groups[island] == groups[owners[hole]]])
        polygons = whole[kept]
    if np.any(least > 0):
        large = measure.areas(polygons) >= least[kept]
        polygons, kept = polygons[large], kept[large]
    return polygons, kept


def less_rounding(size: ArrayLike) -> NDArray[np.float64]:
    """Return `size` less the rounding of an area, so that 4 pixels of 0.25 m2 do reach 1 m2."""
    return np.asarray(size, dtype=np.float64) * (1 - 1e-9)


def fill_holes(
    polygons: Geometries, measure: Measure, min_hole_m2: ArrayLike
) -> tuple[Geometries, Geometries, NDArray[np.int64]]:
    """Return the polygons without their small holes, and these.

    Parameters
    ----------
    polygons : ndarray of Polygon, (P,)
    measure : Measure
    min_hole_m2 : float, or (P,)
        Square metres; holes as large stay.

    Returns
    -------
    polygons : ndarray of Polygon, (P,)
    holes : ndarray of Polygon, (Q,)
        The small holes, filled themselves.
    owners : ndarray of int64, (Q,)
        The place of the polygon that each was in.
    """
    least = np.broadcast_to(less_rounding(min_hole_m2), polygons.shape)
    holed = np.flatnonzero((least > 0) & (shapely.get_num_interior_rings(polygons) > 0))
    if not len(holed):
        return polygons, np.empty(0, object), np.empty(0, np.int64)
    kind, coords, (ring_starts, polygon_starts) = shapely.to_ragged_array(polygons[holed])
    rings = shapely.from_ragged_array(kind, coords, (ring_starts, np.arange(len(ring_starts))))
    owner = np.repeat(holed, np.diff(polygon_starts))
    small = measure.areas(rings) < least[owner]
    small[polygon_starts[:-1]] = False  # outer rings
    lengths = np.diff(ring_starts)
    dropped = np.concatenate([[0], np.cumsum(small)])
    whole = shapely.from_ragged_array(
        kind,
        coords[np.repeat(~small, lengths)],
        (np.concatenate([[0], np.cumsum(lengths[~small])]), polygon_starts - dropped[polygon_starts]),
    )
    polygons = polygons.copy()
    polygons[holed] = whole
    return polygons, rings[small], owner[small]


def simplify(polygons: Geometries, measure: Measure, tolerance_m: float) -> Geometries:
    """Return `polygons` with fewer bends, valid, neighbours still sharing their edges.

    Parameters
    ----------
    polygons : ndarray of Polygon, (P,)
        Where they share edges these have the same vertices; then the whole layer is simplified as
        a coverage (Visvalingam and Whyatt 1993; GEOS CoverageSimplifier). Layers whose polygons
        overlap are simplified polygon by polygon (Douglas and Peucker).
    measure : Measure
    tolerance_m : float
        Metres: the square root of the area of the largest bend that may be cut off.
    """
    if not len(polygons) or tolerance_m <= 0:
        return polygons
    metric = measure.to_metres(polygons)
    method: Callable[..., Geometries] = shapely.simplify
    if shapely.coverage_is_valid(metric):
        method = shapely.coverage_simplify
    simple = measure.from_metres(method(metric, tolerance_m))
    # Rounding on the way back can make a line that touches a corner cross it; such a polygon stays as it was.
    broken = ~shapely.is_valid(simple) | shapely.is_empty(simple)
    simple[broken] = polygons[broken]
    return simple
