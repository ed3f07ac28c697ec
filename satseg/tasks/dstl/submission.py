"""Submissions: a row of WKT for each tile and class, in the order of the contest's sample, written and read in turn.

The order, the tiles and the moved ones come from the sample file; tiles without a prediction get empty rows. Rows are
made and written one by one, the layer of one tile in memory at a time, so that a submission of hundreds of megabytes
costs no more than its largest tile. Every geometry is valid as it will be read (`satseg.tasks.dstl.rounding`): the
contest's server refused a whole submission for one self-intersection.
Rejected: pandas' ``to_csv`` of all rows, which holds all the text at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import geopandas
import numpy as np
import shapely

from satseg.errors import LabelError
from satseg.output import AtomicOutput
from satseg.tasks.dstl.facts import CLASS_NUMBERS, MOVED
from satseg.tasks.dstl.labels import as_layer
from satseg.tasks.dstl.rounding import DECIMALS, EMPTY, rounded_wkt
from satseg.tasks.dstl.tables import LABEL_HEADER, PathLike, parse_polygons, read_wkt_rows
from satseg.vector.features import write_features
from satseg.vector.finish import repair

Order = Sequence[tuple[str, int]]
SHOWN_IDS = 5


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_submission` wrote.

    Parameters
    ----------
    rows, filled : int
        All rows, and those with a polygon.
    moved : tuple of str
        Tiles with a prediction that were left empty because they moved to the training set.
    """

    rows: int
    filled: int
    moved: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SubmissionRow:
    """A row as read: its line, tile, class and geometry, valid or not."""

    line: int
    image_id: str
    class_id: int
    geometry: shapely.Geometry


def read_sample(path: PathLike) -> tuple[tuple[str, int], ...]:
    """Return the tiles and classes of ``sample_submission.csv``, in its order; raises as `read_wkt_rows`."""
    return tuple(row.key for row in read_wkt_rows(path))


def write_submission(
    path: PathLike,
    features: Mapping[str, geopandas.GeoDataFrame],
    *,
    sample: PathLike | Order,
    decimals: int = DECIMALS,
    empty: Iterable[str] = MOVED,
    overwrite: bool = False,
) -> Written:
    """Write the CSV that the contest takes.

    Parameters
    ----------
    path : path-like
    features : mapping of tile to GeoDataFrame in label units
        class_id (1 to 10) and geometry; a tile is looked up when its rows come, so that a mapping may read it then.
    sample : path-like, or (tile, class) in order
        ``sample_submission.csv``: the rows to write.
    decimals : int
        At least 8 keep small objects what they are (see `rounding`).
    empty : tiles whose rows stay empty whatever was predicted; the four moved ones.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    LabelError
        Tiles that the sample does not have (E-LAB-331), or a class that is none of the ten (E-LAB-332).
    UsageError
        An impossible number of decimals.
    OutputError
        The file cannot be written.
    """
    order = tuple(sample) if isinstance(sample, Sequence) and not isinstance(sample, str) else read_sample(sample)
    _check_known(features, {image_id for image_id, _ in order})
    left = frozenset(empty)
    moved = tuple(sorted(left & set(features)))
    filled = 0
    with AtomicOutput(path, overwrite=overwrite) as out, out.temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(LABEL_HEADER) + "\n")
        for image_id, number, wkt in _rows(features, order, left, decimals):
            quoted = wkt if wkt == EMPTY else f'"{wkt}"'
            file.write(f"{image_id},{number},{quoted}\n")
            filled += wkt != EMPTY
    return Written(len(order), filled, moved)


def read_submission(path: PathLike, *, strict: bool = False) -> Iterator[SubmissionRow]:
    """Yield the rows of a submission, or of any table of its form, one after the other.

    Parameters
    ----------
    strict : bool
        Refuse what the contest's server refused: geometries that are not valid as they stand.

    Raises
    ------
    InputError, LabelError
        As `read_wkt_rows` and `parse_polygons`; with `strict` a geometry that is not valid (E-LAB-333).
    """
    for row in read_wkt_rows(path):
        geometry = parse_polygons(row, path)
        if strict and not shapely.is_valid(geometry):
            raise LabelError(
                f"line {row.line} ({row.image_id}, class {row.class_id}): {shapely.is_valid_reason(geometry)}",
                hint="the contest's server refuses the whole file for it; write it with `satseg dstl submit`",
                code="E-LAB-333", path=path,
            )  # fmt: skip
        yield SubmissionRow(row.line, row.image_id, row.class_id, geometry)


def submission_layer(path: PathLike) -> geopandas.GeoDataFrame:
    """Return the polygons of a submission as one layer without CRS, in label units (y negative).

    image_id, class_id, class_name, geometry: a row for each polygon. All of it is in memory.
    """
    shapes, numbers, ids = [], [], []
    for row in read_submission(path):
        parts = repair(shapely.get_parts([row.geometry]))[0]
        kept = parts[~shapely.is_missing(parts)]
        shapes.append(kept)
        numbers += [row.class_id] * len(kept)
        ids += [row.image_id] * len(kept)
    layer = as_layer(np.concatenate([np.empty(0, dtype=object), *shapes]), numbers)
    layer.insert(0, "image_id", np.array(ids, dtype=object))
    return layer


def write_submission_layer(submission: PathLike, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a submission as a shapefile, GeoPackage or another vector file; raises as `write_features`."""
    write_features(submission_layer(submission), path, overwrite=overwrite)


def _check_known(features: Mapping[str, geopandas.GeoDataFrame], known: set[str]) -> None:
    unknown = sorted(set(features) - known)
    if unknown:
        more = f" and {len(unknown) - SHOWN_IDS} more" if len(unknown) > SHOWN_IDS else ""
        raise LabelError(
            f"the sample submission has no tile {', '.join(unknown[:SHOWN_IDS])}{more}",
            hint="predict its tiles, or leave these out",
            code="E-LAB-331",
        )


def _rows(
    features: Mapping[str, geopandas.GeoDataFrame], order: Order, left: frozenset[str], decimals: int
) -> Iterator[tuple[str, int, str]]:
    """Yield tile, class and WKT of every row; the layer of the last tile is kept, as its rows stand together."""
    last: str | None = None
    shapes, numbers = np.empty(0, dtype=object), np.empty(0, dtype=np.int64)
    for image_id, number in order:
        if image_id in left or image_id not in features:
            yield image_id, number, EMPTY
            continue
        if image_id != last:
            layer, last = features[image_id], image_id
            shapes, numbers = layer.geometry.to_numpy(), _numbers(layer, image_id)
        yield image_id, number, rounded_wkt(shapes[numbers == number], decimals=decimals)


def _numbers(layer: geopandas.GeoDataFrame, image_id: str) -> np.ndarray:
    """Return the class numbers of a layer."""
    numbers = layer["class_id"].to_numpy() if "class_id" in layer else np.array([None] * len(layer), dtype=object)
    odd = sorted({str(number) for number in numbers if number not in CLASS_NUMBERS})
    if odd:
        raise LabelError(
            f"tile {image_id}: class_id {', '.join(odd[:SHOWN_IDS])} is none of the classes 1 to 10",
            hint="give features with class_id, as `satseg detect` writes them from a model of the ten classes",
            code="E-LAB-332",
        )
    return numbers.astype(np.int64)
