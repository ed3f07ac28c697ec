"""Polygons in another CRS than they were drawn in, without straying from where their edges run.

A straight edge is a curve in another CRS: long ones are divided first, and what rounding broke is mended. Here, and
not in `scoring`, for layers that vote must lie on one another just as those that are compared.
"""

from __future__ import annotations

import geopandas
import numpy as np
import shapely

from satseg.crs import CRSLike, describe, same_crs, to_pyproj
from satseg.errors import CRSError
from satseg.vector.finish import Geometries, repair

MAX_SEGMENTS = 256
"""Edges longer than this share of a layer's extent are divided before it moves to another CRS, where
straight lines are curves: over 10 km the arc then strays less than a millimetre from its chord."""


def move(polygons: Geometries, source: CRSLike | None, target: CRSLike | None) -> Geometries:
    """Return `polygons` in another CRS, long edges divided first so that they follow their curves.

    Raises
    ------
    CRSError
        Only one side has a CRS (E-CRS-010), or points have no image there (E-CRS-011).
    """
    if same_crs(source, target) or not len(polygons):
        return polygons
    if source is None or target is None:
        raise CRSError(
            f"polygons in {describe(source)} cannot be compared in {describe(target)}",
            hint="give both layers a CRS, or neither", code="E-CRS-010",
        )  # fmt: skip
    left, bottom, right, top = shapely.total_bounds(polygons)
    dense = shapely.segmentize(polygons, max(right - left, top - bottom) / MAX_SEGMENTS)
    moved = geopandas.GeoSeries(dense, crs=to_pyproj(source)).to_crs(to_pyproj(target)).to_numpy()
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise CRSError(
            f"coordinates within {left:g} {bottom:g} {right:g} {top:g} in {describe(source)} do not exist in "
            f"{describe(target)}", hint="check the CRS and the order of x and y", code="E-CRS-011",
        )  # fmt: skip
    mended = repair(moved)[0]
    mended[shapely.is_missing(mended)] = shapely.Polygon()  # a speck that rounding closed; rows stay in step
    return mended
