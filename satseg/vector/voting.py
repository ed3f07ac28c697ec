"""The vote of layers: where at least K of N layers have a class, as valid polygons.

All outlines of a class are noded together once, the faces between them are counted, and those with enough votes are
joined along the edges that they share: what comes out is the overlay itself, without the slivers that a chain of
pairwise overlays leaves where each rounds anew. Each layer has one vote for a place, however many of its polygons
lie there. Rejected: votes on a raster, which moves every edge to a pixel.

Layers in other CRSs are brought to that of the first, as `satseg score` does.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.crs import CRSLike
from satseg.errors import UsageError
from satseg.output import check_distinct
from satseg.vector.classes import classes_of, with_classes
from satseg.vector.features import as_features, check_target, empty_features, read_features, write_features
from satseg.vector.finish import Geometries, Measure, repair
from satseg.vector.moving import move

__all__ = ["vote"]

log = logging.getLogger(__name__)

PathLike: TypeAlias = str | os.PathLike[str]
LayerLike: TypeAlias = "geopandas.GeoDataFrame | PathLike"
LATTICE_BITS = 48
"""Of the 53 that a coordinate has: outlines are moved by less than a millionth of a metre in UTM."""


def vote(
    layers: Sequence[LayerLike], *, at_least: int | None = None, field: str | None = None,
    min_area_m2: float = 0.0, output: PathLike | None = None, overwrite: bool = False,
) -> geopandas.GeoDataFrame:  # fmt: skip
    """Return where at least so many of `layers` agree on a class.

    Parameters
    ----------
    layers : sequence of GeoDataFrame or path
        Polygons with classes, as `read_features` reads them; a layer without features votes against all.
    at_least : int, optional
        Votes that are needed; more than half of the layers when left out.
    field : str, optional
        Attribute that holds the class; ``class_name`` when left out.
    min_area_m2 : float
        Smaller polygons are left out.
    output : path-like, optional
        Vector file for the result.

    Returns
    -------
    GeoDataFrame in the first layer's CRS
        class_id (of the first layer that knows the class), class_name, score (mean share of the layers that agree,
        0..1), area_m2, geometry (valid polygons).

    Raises
    ------
    UsageError
        Fewer than two layers, or more or less votes than there can be (E-USE-028).
    InputError, LabelError, CRSError, OutputError
        As `read_features`, `satseg.vector.moving.move` and `write_features`.
    """
    needed = len(layers) // 2 + 1 if at_least is None else at_least
    if len(layers) < 2 or not 1 <= needed <= len(layers):
        raise UsageError(
            f"at least {needed} of {len(layers)} layers cannot be asked for",
            hint="give two layers or more, and votes from 1 to their number", code="E-USE-028",
        )  # fmt: skip
    if min_area_m2 < 0:
        raise UsageError(f"a least area of {min_area_m2} m2 is none", code="E-USE-028")
    files = [os.fspath(one) for one in layers if not isinstance(one, geopandas.GeoDataFrame)]
    if output is not None:
        check_distinct([output], inputs=files)
    for path, times in Counter(map(os.path.realpath, files)).items():
        if times > 1:
            log.warning("%s is named %d times: it has as many votes", path, times)
    ballots = [_Ballot.of(one, field, number) for number, one in enumerate(layers, start=1)]
    crs = ballots[0].crs
    if output is not None:
        check_target(output, crs=crs, overwrite=overwrite)
    ballots = [ballot.in_crs(crs) for ballot in ballots]
    found = _result(ballots, needed, crs, min_area_m2)
    if output is not None:
        write_features(found, output, overwrite=overwrite)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Ballot:
    """What one layer says: valid polygons (P,), the class of each, and the number of each class."""

    polygons: Geometries
    names: NDArray[np.object_]
    ids: dict[str, int]
    crs: CRSLike | None

    @classmethod
    def of(cls, layer: LayerLike, field: str | None, number: int) -> _Ballot:
        table = layer if isinstance(layer, geopandas.GeoDataFrame) else read_features(layer, field=field)
        if isinstance(layer, geopandas.GeoDataFrame) and len(layer):
            found = classes_of(table, field, None, f"layer {number}")
            polygons, _ = repair(shapely.force_2d(table.geometry.to_numpy()))
            kept = ~shapely.is_missing(polygons) & np.array([name is not None for name in found])
            named = with_classes(table.set_geometry(geopandas.GeoSeries(polygons, table.index, table.crs)), found, None,
                                 own=field is None)  # fmt: skip
            table = named[kept]
        if not len(table):
            return cls(np.empty(0, object), np.empty(0, object), {}, table.crs)
        names = table["class_name"].to_numpy(dtype=object)
        ids = dict(zip(names, map(int, table["class_id"]), strict=True))
        return cls(table.geometry.to_numpy(), names, ids, table.crs)

    def in_crs(self, crs: CRSLike | None) -> _Ballot:
        return _Ballot(move(self.polygons, self.crs, crs), self.names, self.ids, crs)

    def of_class(self, name: str) -> Geometries:
        """The ground of class `name`, as polygons that have no more than points in common."""
        parts = shapely.get_parts([shapely.union_all(self.polygons[self.names == name])])
        polygons: Geometries = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
        return polygons


def _result(ballots: Sequence[_Ballot], needed: int, crs: CRSLike | None, least: float) -> geopandas.GeoDataFrame:
    ids = _numbers(ballots)
    per_class = {name: _agreed([ballot.of_class(name) for ballot in ballots], needed) for name in ids}
    polygons = np.concatenate([found for found, _ in per_class.values()] or [np.empty(0, object)])
    if not len(polygons):
        return empty_features(crs)
    names = np.repeat(np.array([*per_class], dtype=object), [len(found) for found, _ in per_class.values()])
    scores = np.concatenate([share for _, share in per_class.values()])
    areas = Measure(crs, tuple(shapely.total_bounds(polygons))).areas(polygons)
    kept = areas >= least
    return as_features(
        polygons[kept], class_ids=[ids[name] for name in names[kept]], class_names=names[kept], scores=scores[kept],
        areas_m2=areas[kept], crs=crs,
    )  # fmt: skip


def _numbers(ballots: Sequence[_Ballot]) -> dict[str, int]:
    """Every class with its number in the first layer that knows it, in order; counted anew where two have one."""
    ids: dict[str, int] = {}
    for ballot in ballots:
        ids |= {name: number for name, number in ballot.ids.items() if name not in ids}
    if len(set(ids.values())) < len(ids):
        return {name: number for number, name in enumerate(sorted(ids), start=1)}
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _agreed(layers: Sequence[Geometries], needed: int) -> tuple[Geometries, NDArray[np.float64]]:
    """Polygons where at least `needed` layers have ground, and the mean share of layers that have, in each."""
    nothing: Geometries = np.empty(0, object)
    if sum(len(layer) > 0 for layer in layers) < needed:
        return nothing, np.empty(0)
    outlines = shapely.boundary(np.concatenate(layers))
    # Crossings that are rounded one by one leave faces that overlap by a last digit; on a lattice none do.
    edges = shapely.union_all(outlines, grid_size=_lattice(outlines))
    faces: Geometries = shapely.get_parts([shapely.polygonize(shapely.get_parts([edges]))])
    inside = shapely.point_on_surface(faces)
    votes = np.zeros(len(faces))
    for layer in layers:
        votes[np.unique(shapely.STRtree(inside).query(layer, predicate="intersects")[1])] += 1
    kept = votes >= needed
    if not kept.any():
        return nothing, np.empty(0)
    polygons: Geometries = shapely.get_parts([shapely.coverage_union_all(faces[kept])])
    whose, face = shapely.STRtree(inside[kept]).query(polygons, predicate="intersects")
    areas = shapely.area(faces[kept])[face]
    total = np.bincount(whose, areas * votes[kept][face], minlength=len(polygons))
    return polygons, total / np.bincount(whose, areas, minlength=len(polygons)) / len(layers)


def _lattice(outlines: Geometries) -> float:
    """Mesh on which outlines meet: `LATTICE_BITS` binary places below the farthest coordinate."""
    farthest = float(np.abs(shapely.total_bounds(outlines)).max())
    return math.ldexp(1.0, math.ceil(math.log2(farthest or 1.0)) - LATTICE_BITS)
