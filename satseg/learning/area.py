"""The area of interest: the part of a scene that is learnt from, or looked at.

One function, for a training and a detection alike, so that the same file means the same ground to both. Rejected: a
copy beside each, which would come to differ in what it refuses.
"""

from __future__ import annotations

import os

from satseg.crs import describe
from satseg.errors import CRSError, LabelError
from satseg.imagery.labels import Geometries
from satseg.imagery.scene import Scene
from satseg.vector.features import read_features


def area_of_interest(path: str | os.PathLike[str], scene: Scene) -> Geometries:
    """Return the polygons of the vector file at `path` in the CRS of `scene`.

    Raises
    ------
    InputError
        The file is not readable.
    CRSError
        Only one of the two has a CRS (E-CRS-020).
    LabelError
        The area does not touch the scene (E-LAB-011).
    """
    region, crs = read_features(path), scene.grid.crs
    if (crs is None) != (region.crs is None):
        raise CRSError(
            f"{os.fspath(path)} is in {describe(region.crs)}, {scene.name} in {describe(crs)}",
            hint="give both a CRS (--src-crs for the scene)",
            code="E-CRS-020",
        )
    moved = region if crs is None else region.to_crs(crs.to_wkt())
    if not moved.intersects(scene.grid.footprint()).any():
        raise LabelError(f"the area {os.fspath(path)} does not touch {scene.name}", code="E-LAB-011")
    polygons: Geometries = moved.geometry.to_numpy()
    return polygons
