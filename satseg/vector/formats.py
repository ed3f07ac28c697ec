"""Which vector formats there are: chosen by suffix when writing, recognised by content when reading.

GDAL left to itself takes the suffix for nothing: it wrote a shapefile called x.kml, and a VRT named
labels.geojson read another file of the machine. So suffixes are looked up in a table, and a file is
opened only after its first bytes said what it is; XML is refused, but for KML.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from satseg.crs import CRSLike
from satseg.errors import CRSError, InputError, UsageError
from satseg.output import check_writable

PathLike = str | os.PathLike[str]
HEAD_BYTES = 2048


@dataclass(frozen=True, slots=True)
class VectorFormat:
    """A format that features are written in.

    Parameters
    ----------
    driver : str
        GDAL's name; "Parquet" and "CSV" are written without GDAL.
    dataset_options, layer_options : mapping
        GDAL's creation options.
    """

    driver: str
    dataset_options: Mapping[str, str] = field(default_factory=dict)
    layer_options: Mapping[str, str] = field(default_factory=dict)


_GEOJSON = VectorFormat(
    # RFC 7946: longitude and latitude, polygons split at the antimeridian. Ten decimals of a degree
    # are a hundredth of a millimetre; GDAL's seven would move the corners of 0.3 m pixels.
    "GeoJSON", layer_options={"RFC7946": "YES", "COORDINATE_PRECISION": "10"},
)  # fmt: skip
_PARQUET = VectorFormat("Parquet")
FORMATS: Mapping[str, VectorFormat] = MappingProxyType(
    {
        ".shp": VectorFormat("ESRI Shapefile", layer_options={"ENCODING": "UTF-8"}),
        # GDAL writes version 1.4, of which QGIS and ArcGIS of 2022 and before warn.
        ".gpkg": VectorFormat("GPKG", dataset_options={"VERSION": "1.3"}, layer_options={"FID": "fid"}),
        ".geojson": _GEOJSON,
        ".json": _GEOJSON,
        ".fgb": VectorFormat("FlatGeobuf"),
        ".parquet": _PARQUET,
        ".geoparquet": _PARQUET,
        ".csv": VectorFormat("CSV"),
    }
)


def format_of(path: PathLike) -> VectorFormat:
    """Return the format that the suffix of `path` names.

    Raises
    ------
    UsageError
        No format has this suffix (E-USE-221).
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"{os.fspath(path)}: no vector format is written as {suffix or 'a file without suffix'}",
            hint=f"choose one of {' '.join(FORMATS)}",
            code="E-USE-221",
        )
    return FORMATS[suffix]


def check_target(path: PathLike, *, crs: CRSLike | None, overwrite: bool = False) -> VectorFormat:
    """Return the format of `path`, or raise what writing there would raise; run before long work.

    Raises
    ------
    UsageError
        The suffix is unknown.
    CRSError
        GeoJSON without a CRS (E-CRS-211): its coordinates are longitudes and latitudes.
    OutputError
        As `check_writable`.
    """
    form = format_of(path)
    if form is _GEOJSON and crs is None:
        raise CRSError(
            f"{os.fspath(path)}: GeoJSON holds longitudes and latitudes, and these features have no CRS",
            hint="give --src-crs, or choose .gpkg, .shp, .fgb, .parquet or .csv",
            code="E-CRS-211",
        )
    check_writable(path, overwrite=overwrite)
    return form


def source_driver(path: PathLike) -> str:
    """Return the driver that may read the file at `path`, by its first bytes.

    Raises
    ------
    InputError
        It is missing (E-IN-211), a folder or no regular file (E-IN-212), empty (E-IN-213), or of no
        format that is read (E-IN-214).
    """
    place = Path(path)
    if place.suffix.lower() == ".gdb" and os.path.isdir(place):
        return "OpenFileGDB"
    head = _head(place)
    for magic, driver in _MAGIC:
        if head.startswith(magic):
            return driver
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith((b"{", b"\x1e")):
        lines = place.suffix.lower() in (".geojsonl", ".geojsons", ".ndjson") or text.startswith(b"\x1e")
        return "GeoJSONSeq" if lines else "GeoJSON"
    if text.startswith(b"<") and not _KML.match(text):
        raise InputError(
            "it is XML, which can make GDAL read other files",
            hint="convert it to GeoPackage first",
            code="E-IN-214",
            path=path,
        )
    if text.startswith(b"<"):
        return "LIBKML"
    if place.suffix.lower() == ".csv":
        return "CSV"
    raise InputError(
        "it is in no vector format that is read",
        hint="give a shapefile (.shp), GeoPackage, GeoJSON, FlatGeobuf, GeoParquet, KML or CSV with WKT",
        code="E-IN-214",
        path=path,
    )


_MAGIC = (
    (b"\x00\x00\x27\x0a", "ESRI Shapefile"),
    (b"SQLite format 3\x00", "GPKG"),
    (b"fgb", "FlatGeobuf"),
    (b"PAR1", "Parquet"),
)
# A document type could define entities, so that a KML with one is no KML here.
_KML = re.compile(rb"(<\?xml[^>]*\?>)?\s*(<!--.*?-->\s*)*<kml\b", re.DOTALL)


def _head(path: Path) -> bytes:
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist", hint="check the name", code="E-IN-211", path=path)
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise InputError(f"{path} is {kind}", hint="give a vector file", code="E-IN-212", path=path)
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}", code="E-IN-212", path=path) from error
    if not head:
        raise InputError(f"{path} is empty (0 bytes)", code="E-IN-213", path=path)
    return head
