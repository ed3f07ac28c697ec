"""What a shapefile cannot hold, said before it is written instead of lost while it is.

GDAL cuts long column names and long texts with a warning or without, and breaks off at 2 GiB. Here
names get a stable short form, which is logged; the rest is refused with the way out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import geopandas
import numpy as np
import shapely

from satseg.errors import OutputError

NAME_BYTES, TEXT_BYTES = 10, 254
"""Of a column name and of a text (dBASE III)."""
PART_BYTES = 2**31 - 1
"""Of the .shp and of the .dbf: offsets are signed (ESRI Shapefile Technical Description, 1998)."""
NUMBER_BYTES = 24
"""That GDAL gives a number in the .dbf."""
_POLYGONAL = (-1, 3, 6)  # GEOS type numbers: none, Polygon, MultiPolygon
log = logging.getLogger(__name__)


def as_shapefile(features: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Return `features` with columns that fit a shapefile.

    Raises
    ------
    OutputError
        Geometries that are not polygons (E-OUT-211), texts beyond 254 bytes (E-OUT-212), or more
        than 2 GiB (E-OUT-213).
    """
    kinds = shapely.get_type_id(features.geometry.to_numpy())
    if not np.isin(kinds, _POLYGONAL).all():
        raise OutputError("only polygons go into this shapefile", hint="choose .gpkg", code="E-OUT-211")
    columns = [name for name in features.columns if name != features.geometry.name]
    record = sum(_check_text(features, name) for name in columns)
    points = int(shapely.get_num_coordinates(features.geometry.to_numpy()).sum())
    check_size(len(features), points=points, record=record)
    short = shapefile_columns(columns)
    renamed = {name: cut for name, cut in short.items() if name != cut}
    if renamed:
        log.warning("shapefile columns hold 10 characters: %s", renamed)
    return features.rename(columns=renamed)


def _check_text(features: geopandas.GeoDataFrame, name: str) -> int:
    """Return the bytes that a column takes in each record; raise when a text does not fit."""
    column = features[name].dropna()
    texts = [len(value.encode()) for value in column if isinstance(value, str)]
    longest = max(texts, default=0)
    if longest > TEXT_BYTES:
        raise OutputError(
            f"column {name!r} holds a text of {longest} bytes, a shapefile at most {TEXT_BYTES}",
            hint="choose .gpkg",
            code="E-OUT-212",
        )
    return longest if texts else NUMBER_BYTES


def check_size(count: int, *, points: int, record: int) -> None:
    """Raise OutputError when `count` features of `points` points are more than a shapefile holds (E-OUT-213).

    `record` is the bytes of a feature's texts and numbers.
    """
    shapes = 100 + 56 * count + 16 * points  # headers, boxes, one part each, points
    if max(shapes, record * count) > PART_BYTES:
        raise OutputError(
            f"{count} features are more than the 2 GiB of a shapefile", hint="choose .gpkg", code="E-OUT-213"
        )


def shapefile_columns(columns: Iterable[str]) -> dict[str, str]:
    """Return a name of at most ten characters for each column, no two alike, capitals aside.

    Names that fit stay; others are cut, and numbered where the cut ones collide. The same columns
    always get the same names.
    """
    columns = list(columns)
    short: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(columns, key=lambda name: len(name.encode()) > NAME_BYTES):
        candidate, number = _cut(name, NAME_BYTES), 1
        while candidate.lower() in taken:
            candidate = f"{_cut(name, NAME_BYTES - len(str(number)) - 1)}_{number}"
            number += 1
        taken.add(candidate.lower())
        short[name] = candidate
    return {name: short[name] for name in columns}


def _cut(name: str, size: int) -> str:
    return name.encode()[:size].decode(errors="ignore")
