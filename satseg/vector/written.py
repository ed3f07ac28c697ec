"""What writing a layer at once and writing it in batches share: errors, GDAL's warnings, the closed file.

A file is opened again after it was closed, for a failed write can leave one that reads as empty without
an error. Only counts and the CRS are looked at, so that a file of any size takes little memory.
Rejected: reading everything back and comparing, which costs as much as the writing did.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import geopandas
import pyarrow
import pyarrow.parquet
import pyogrio
import pyproj
from pyogrio.errors import DataLayerError, DataSourceError

from satseg.crs import CRSLike, describe, same_crs, to_pyproj
from satseg.errors import InputError, OutputError
from satseg.output import os_errors_as_output_errors
from satseg.vector.formats import PathLike, VectorFormat
from satseg.vector.wkt_csv import csv_shape

EDGE_M = 500.0
"""Longer edges are divided before a change of CRS: a straight line of 500 m in UTM lies within
a centimetre of the straight line between its ends in longitude and latitude (500^2 / 8 / 6.4e6 m)."""
_ONE_AT_A_TIME = threading.Lock()
log = logging.getLogger(__name__)


def divided(features: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Return `features` with long straight edges divided, so that they follow their curve elsewhere."""
    own = to_pyproj(features.crs)
    if not own.is_projected:
        return features
    longest = EDGE_M / own.axis_info[0].unit_conversion_factor
    return features.set_geometry(features.geometry.segmentize(longest))


def verify(path: Path, form: VectorFormat, final: PathLike, *, count: int, crs: CRSLike | None) -> None:
    """Open the closed file at `path` again and look at how many features it has, and in which CRS.

    Parameters
    ----------
    path : Path
        As it was written.
    form : VectorFormat
    final : path-like
        The name to say in the error.
    count : int
        How many features were written.
    crs : CRS or None
        In which they were given.

    Raises
    ------
    OutputError
        The file does not hold what was written (E-OUT-201).
    """
    try:
        found, place = _shape(path, form)
    except (DataSourceError, DataLayerError, pyarrow.ArrowException, InputError, OSError, KeyError) as error:
        raise not_whole(final) from error
    expected = 4326 if form.driver == "GeoJSON" else crs
    # Shapefiles and CSV spell a CRS in an old way that leaves out part of an unusual one.
    loose = form.driver in ("ESRI Shapefile", "CSV")
    agrees = (place is None) == (expected is None) if loose else same_crs(place, expected)
    if found != count or not agrees:
        log.error("%s: wrote %d in %s, found %d in %s", final, count, describe(expected), found, place)
        raise not_whole(final)


def _shape(path: Path, form: VectorFormat) -> tuple[int, CRSLike | None]:
    """Return how many features a file holds, and its CRS."""
    if form.driver == "CSV":
        return csv_shape(path)
    if form.driver == "Parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            meta = json.loads(file.metadata.metadata[b"geo"])
            crs = meta["columns"][meta["primary_column"]]["crs"]
            if crs is not None and "id" in crs:  # PROJ takes tens of milliseconds to read the whole text
                return file.metadata.num_rows, "{authority}:{code}".format(**crs["id"])
            return file.metadata.num_rows, None if crs is None else pyproj.CRS.from_json_dict(crs)
    info = pyogrio.read_info(path, layer=path.stem, force_feature_count=True)
    return info["features"], info["crs"]


def not_whole(path: PathLike) -> OutputError:
    """Return the error that says that a file is not what was written."""
    return OutputError(
        "the file does not hold what was written", hint="is the disk full?", code="E-OUT-201", path=path
    )


@contextmanager
def as_output_error(path: PathLike) -> Iterator[None]:
    """Turn refusals of the libraries and the operating system inside the block into one OutputError."""
    try:
        with os_errors_as_output_errors(path):
            yield
    except (DataSourceError, DataLayerError, pyarrow.ArrowException, sqlite3.Error) as error:
        raise OutputError(f"cannot write {path}: {error}", code="E-OUT-202", path=path) from error


@contextmanager
def warnings_logged() -> Iterator[None]:
    """Log what GDAL warns of inside the block, but for a missing CRS: callers say so themselves.

    Warnings go through one list for all threads, so that one thread at a time gets in.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if "'crs' was not provided" not in str(warning.message):
            log.warning("%s", warning.message)
