"""Polygons as text of a few decimals that is still valid when it is read again.

Rounding vertices one by one makes rings cross: the classic way to lose a whole submission. Here coordinates are
counted in units of the last decimal first, and the union of a class is taken on that lattice (GEOS OverlayNG with
snap rounding), which leaves whole numbers, nodes wherever rings touch, and no part inside another. With 9 decimals a
number of the label frame stays below 1e7, so that reading its text moves a vertex by a hundred-millionth of the
lattice, too little to turn three vertices that are not in line. The text is read back all the same, and mended again
where it is not valid.
Rejected: rounding and ``buffer(0)`` in turns, which loses parts, and tiny buffers, which move every outline.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.errors import OutputError, UsageError
from satseg.vector.finish import repair

Geometries = NDArray[np.object_]
EMPTY = "MULTIPOLYGON EMPTY"
DECIMALS = 9
"""Keeps a box of 10 x 20 pixels to a Jaccard of 0.99998 with itself; 6, the lattice of the labels, to 0.993."""
MOST_DECIMALS = 12
TRIES = 5


def rounded_wkt(polygons: Geometries, *, decimals: int = DECIMALS) -> str:
    """Return the union of `polygons` as the WKT of a valid multipolygon.

    Parameters
    ----------
    polygons : ndarray of shapely geometries
        Of one class; they may overlap or be invalid.
    decimals : int
        After the point, 0 to 12.

    Raises
    ------
    UsageError
        Another number of decimals (E-USE-304).
    OutputError
        No valid text was found (E-OUT-301), which is not known to happen.
    """
    if not 0 <= decimals <= MOST_DECIMALS:
        raise UsageError(f"{decimals} decimals are not 0 to {MOST_DECIMALS}", code="E-USE-304")
    shapes = polygons
    for _ in range(TRIES):
        whole = _on_lattice(shapes, float(10**decimals))
        if whole is None:
            return EMPTY
        text: str = shapely.to_wkt(whole, rounding_precision=decimals, trim=False)
        if shapely.is_valid(shapely.from_wkt(text)):
            return text
        shapes = np.array([shapely.from_wkt(text)], dtype=object)
    raise OutputError(f"{len(polygons)} polygons have no valid text of {decimals} decimals", code="E-OUT-301")


def rounded(polygons: Geometries, *, decimals: int = DECIMALS) -> shapely.Geometry:
    """Return what a reader of `rounded_wkt` sees."""
    return shapely.from_wkt(rounded_wkt(polygons, decimals=decimals))


def _on_lattice(polygons: Geometries, scale: float) -> shapely.MultiPolygon | None:
    """Return the union with vertices at multiples of 1 / `scale`; None where nothing with an area is left."""
    counted = shapely.transform(np.asarray(polygons, dtype=object), lambda points: points * scale)
    sound = repair(counted)[0]
    sound = sound[~shapely.is_missing(sound)]
    whole = shapely.union_all(sound, grid_size=1.0) if len(sound) else shapely.MultiPolygon()
    parts = shapely.get_parts(whole)
    parts = parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)]
    if not len(parts):
        return None
    return shapely.transform(shapely.multipolygons(parts), lambda points: np.rint(points) / scale)
