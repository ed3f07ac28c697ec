"""Features as CSV: geometry as WKT in a column of its own, the CRS in a .prj beside.

Read and written without GDAL: WKT keeps all 17 digits of a coordinate, texts such as ``NA`` stay
texts, and a row may be larger than a megabyte.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import geopandas
import numpy as np
import pandas
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError as ProjCRSError

from satseg.crs import to_pyproj
from satseg.errors import InputError

GEOMETRY_COLUMN = "WKT"
GEOMETRY_NAMES = ("wkt", "geometry", "geom", "the_geom", "wkt_geom")
ROWS = 50_000
"""Features turned to text at a time."""
DIGITS = 17
"""Enough to bring every double back (IEEE 754)."""


def write_csv(features: geopandas.GeoDataFrame, path: Path) -> None:
    """Write `features` to `path`, and their CRS to the .prj beside it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        add_rows(features, file, header=True)
    write_prj(features.crs, path)


def add_rows(features: geopandas.GeoDataFrame, file: TextIO, *, header: bool) -> None:
    """Write `features` to the open `file`, after a line of column names where `header` says so."""
    table = pandas.DataFrame(features.drop(columns=features.geometry.name))
    geometries = features.geometry.to_numpy()
    for start in range(0, max(len(table), 1), ROWS):
        part = table.iloc[start : start + ROWS].copy()
        texts = shapely.to_wkt(geometries[start : start + ROWS], rounding_precision=DIGITS)
        part.insert(0, GEOMETRY_COLUMN, texts)
        part.to_csv(file, index=False, header=header and start == 0, quoting=csv.QUOTE_NONNUMERIC)


def write_prj(crs: pyproj.CRS | None, path: Path) -> None:
    """Write `crs` to the .prj beside `path`; nothing without one."""
    if crs is not None:
        path.with_suffix(".prj").write_text(_wkt_of(to_pyproj(crs)), encoding="utf-8")


def csv_shape(path: Path) -> tuple[int, pyproj.CRS | None]:
    """Return how many features a CSV file written here holds, and the CRS beside it."""
    rows = pandas.read_csv(path, chunksize=ROWS, usecols=[GEOMETRY_COLUMN], keep_default_na=False)
    with rows as parts:
        return sum(len(part) for part in parts), _crs_beside(path)


def _wkt_of(crs: pyproj.CRS) -> str:
    """Return the WKT that old programs read, or the current one where the old cannot say it."""
    try:
        return crs.to_wkt("WKT1_ESRI")
    except ProjCRSError:
        return crs.to_wkt()


def read_csv(path: Path) -> geopandas.GeoDataFrame:
    """Return the features of a CSV file; without a .prj beside it they have no CRS.

    Raises
    ------
    InputError
        It is no table (E-IN-221), has no column of WKT (E-IN-222) or a row of it is none (E-IN-223),
        or the .prj is none (E-IN-224).
    """
    try:
        table = pandas.read_csv(path, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"it is no CSV table: {error}", code="E-IN-221", path=path) from error
    column = _geometry_column([str(name) for name in table.columns])
    if column is None:
        raise InputError(
            f"none of the columns {list(table.columns)} holds WKT",
            hint=f"call it {GEOMETRY_COLUMN}",
            code="E-IN-222",
            path=path,
        )
    geometries = _from_wkt(table[column], path)
    return geopandas.GeoDataFrame(table.drop(columns=column), geometry=geometries, crs=_crs_beside(path))


def _geometry_column(names: Sequence[str]) -> str | None:
    known = [name for name in names if name.lower() in GEOMETRY_NAMES]
    return next(iter(known + [name for name in names if name.lower().endswith("wkt")]), None)


def _from_wkt(column: pandas.Series, path: Path) -> NDArray[np.object_]:
    texts = column.astype(object).where(column.notna(), None).to_numpy(dtype=object)
    try:
        geometries: NDArray[np.object_] = shapely.from_wkt(texts, on_invalid="ignore")
    except TypeError as error:
        raise InputError(f"column {column.name!r} holds no WKT", code="E-IN-223", path=path) from error
    bad = np.flatnonzero(shapely.is_missing(geometries) & column.notna().to_numpy())
    if len(bad):
        raise InputError(
            f"{str(texts[bad[0]])[:60]!r} in row {bad[0] + 2} is no WKT", code="E-IN-223", path=path
        )
    return geometries


def _crs_beside(path: Path) -> pyproj.CRS | None:
    prj = path.with_suffix(".prj")
    if not prj.is_file():
        return None
    try:
        crs = pyproj.CRS.from_user_input(prj.read_text(encoding="utf-8"))
    except (ProjCRSError, UnicodeDecodeError) as error:
        raise InputError(f"{prj} names no CRS", code="E-IN-224", path=path) from error
    epsg = crs.to_epsg()
    return pyproj.CRS.from_epsg(epsg) if epsg else crs
