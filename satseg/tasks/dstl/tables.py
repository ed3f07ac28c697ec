"""The contest's CSV files, row by row: grid sizes, labels, submissions; the one place that knows their form.

Every fault names the file and the line. Rows are parsed some at a time, so that a submission of hundreds of megabytes
takes little memory. They are split by pandas' parser, which has no limit on a field: rows of 0.7 MB of WKT are common.
Rejected: Python's csv module, whose limit of 131 072 characters can be raised for the whole process only, which is
not a library's to do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas
import shapely

from satseg.errors import InputError, LabelError
from satseg.tasks.dstl.facts import CLASS_NUMBERS

PathLike: TypeAlias = str | os.PathLike[str]

GRID_HEADER = ("", "Xmax", "Ymin")
LABEL_HEADER = ("ImageId", "ClassType", "MultipolygonWKT")
ROWS = 256
"""Rows parsed at a time."""
SHOWN = 60
"""Characters of a bad value in its error."""
POLYGONAL = ("Polygon", "MultiPolygon")


@dataclass(frozen=True, slots=True)
class WktRow:
    """A line of a table of labels or predictions, its WKT not looked at yet.

    Parameters
    ----------
    line : int
        In the file, from 1.
    image_id : str
    class_id : int
        1 to 10.
    wkt : str
    """

    line: int
    image_id: str
    class_id: int
    wkt: str

    @property
    def key(self) -> tuple[str, int]:
        """Tile and class, which no other line of the file has."""
        return self.image_id, self.class_id


def read_grid_sizes(path: PathLike) -> Mapping[str, tuple[float, float]]:
    """Return (Xmax, Ymin) of each tile, in the order of the file.

    Raises
    ------
    InputError
        Missing (E-IN-301), no such table (E-IN-302, E-IN-303), a tile twice (E-IN-304), or numbers that are no
        extent (E-IN-305).
    """
    found: dict[str, tuple[float, float]] = {}
    for line, (image_id, right, bottom) in _lines(path, GRID_HEADER):
        if image_id in found:
            raise InputError(f"line {line}: tile {image_id!r} is there twice", code="E-IN-304", path=path)
        x_max, y_min = _number(right), _number(bottom)
        if not (image_id and 0 < x_max < math.inf and -math.inf < y_min < 0):
            raise InputError(
                f"line {line}: {image_id!r}, Xmax {right!r}, Ymin {bottom!r} are no tile and extent",
                hint="Xmax is positive and Ymin negative", code="E-IN-305", path=path,
            )  # fmt: skip
        found[image_id] = (x_max, y_min)
    return found


def read_wkt_rows(path: PathLike) -> Iterator[WktRow]:
    """Yield the rows of ``train_wkt_v4.csv``, of a submission, or of its sample.

    Raises
    ------
    InputError
        Missing (E-IN-301), no such table (E-IN-302, E-IN-303), a tile and class twice (E-IN-304), or a class
        that is none of the ten (E-IN-306).
    """
    seen: set[tuple[str, int]] = set()
    for line, (image_id, number, wkt) in _lines(path, LABEL_HEADER):
        if not (image_id and number.isdecimal() and int(number) in CLASS_NUMBERS):
            raise InputError(
                f"line {line}: tile {image_id[:SHOWN]!r} and class {number[:SHOWN]!r}; classes are 1 to 10",
                code="E-IN-306", path=path,
            )  # fmt: skip
        row = WktRow(line, image_id, int(number), wkt)
        if row.key in seen:
            raise InputError(
                f"line {line}: tile {image_id!r} and class {number} are there twice", code="E-IN-304", path=path
            )
        seen.add(row.key)
        yield row


def parse_polygons(row: WktRow, path: PathLike) -> shapely.Geometry:
    """Return the polygon, multipolygon or empty geometry of a row, in two dimensions, valid or not.

    Raises
    ------
    LabelError
        It is no WKT (E-LAB-301), no polygon (E-LAB-302), or has coordinates that are no numbers (E-LAB-303).
    """
    place = f"line {row.line} ({row.image_id}, class {row.class_id})"
    try:
        with np.errstate(all="ignore"):  # endless coordinates raise the processor's flags, then are refused below
            geometry = shapely.from_wkt(row.wkt)
    except shapely.errors.ShapelyError as error:
        raise LabelError(
            f"{place}: {row.wkt[:SHOWN]!r} is no WKT: {error}", hint="is the file cut short?", code="E-LAB-301",
            path=path,
        ) from error  # fmt: skip
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise LabelError(f"{place}: a coordinate is not a finite number", code="E-LAB-303", path=path)
    if not (geometry.is_empty or geometry.geom_type in POLYGONAL):
        raise LabelError(
            f"{place}: a {geometry.geom_type} has no area", hint="give POLYGON or MULTIPOLYGON", code="E-LAB-302",
            path=path,
        )  # fmt: skip
    return shapely.force_2d(geometry)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _lines(path: PathLike, header: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield line numbers and fields after the header, which must be `header`; blank lines are passed over."""
    place = Path(path)
    if not place.is_file():
        raise InputError("there is no such file", hint="is it unpacked?", code="E-IN-301", path=path)
    try:
        with pandas.read_csv(
            place, header=None, dtype=str, na_filter=False, chunksize=ROWS, encoding="utf-8-sig",
            skip_blank_lines=False,
        ) as parts:  # fmt: skip
            line = 0
            for part in parts:
                for fields in part.itertuples(index=False, name=None):
                    line += 1
                    if line == 1:
                        _check_header(fields, header, path)
                    elif any(fields):
                        yield line, tuple(map(str, fields))
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"it is no CSV table: {error}", code="E-IN-302", path=path) from error


def _check_header(fields: Sequence[str], header: Sequence[str], path: PathLike) -> None:
    if tuple(fields) != tuple(header):
        raise InputError(
            f"line 1: the header is {','.join(fields)[:SHOWN]!r}, not {','.join(header)!r}",
            hint="give the contest's own file",
            code="E-IN-303",
            path=path,
        )
