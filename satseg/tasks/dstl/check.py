"""check_folder(): what of the contest is in a folder, and what is odd about it, before work starts.

Headers and tables are read, pixels are not. A fault of one tile is a line of the report and does not stop the others;
a table that cannot be read at all is an error as everywhere. Faults that differ in tiles and numbers alone are of one
kind, of which a few are told, for a folder that lacks a zip has hundreds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import geopandas

from satseg.errors import SatsegError
from satseg.progress import Progress, silent
from satseg.tasks.dstl.facts import IMAGE_ID, MOVED, PRODUCTS, SAMPLE_ROWS, class_names, twins
from satseg.tasks.dstl.folder import GEOJSON_LABELS, SAMPLE, SIXTEEN, THREE, WKT_LABELS, ContestFolder, Tile
from satseg.tasks.dstl.submission import read_sample

MOST_SHOWN = 5
"""Faults of one kind that are told one by one."""
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What a contest folder holds.

    Parameters
    ----------
    path : str
    tiles : int
        Of ``grid_sizes.csv``.
    complete : int
        Tiles with all four files.
    files : mapping of product to count
    labelled : tuple of str
        Tiles with labels.
    polygons : mapping of class name to count
    repaired, dropped : int
        Polygons that were invalid and mended, or had no area.
    invalid_rows : tuple of str
        Where labels were not valid as they stand.
    twins : tuple of tuples of str
        Labelled tiles that show one place.
    sample_rows : int or None
        None without a sample submission.
    faults, warnings : tuple of str
        What keeps a tile from being used; what is odd. Of each kind some, and how many more there are.
    """

    path: str
    tiles: int
    complete: int
    files: Mapping[str, int]
    labelled: tuple[str, ...]
    polygons: Mapping[str, int]
    repaired: int
    dropped: int
    invalid_rows: tuple[str, ...]
    twins: tuple[tuple[str, ...], ...]
    sample_rows: int | None
    faults: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the report as lines."""
        files = ", ".join(f"{product} {count}" for product, count in self.files.items())
        lines = [
            f"{self.path}: {self.tiles} tiles, {self.complete} with all four files ({files})",
            f"labels: {len(self.labelled)} tiles, {sum(self.polygons.values())} polygons, {self.repaired} repaired, "
            f"{self.dropped} without area",
            *(f"  {name:<26}{count:>8}" for name, count in self.polygons.items()),
            *_grouped(f"  invalid as it stands: {place}" for place in self.invalid_rows),
            *_grouped(f"  one place twice: {' and '.join(group)}" for group in self.twins),
            f"sample submission: {'none' if self.sample_rows is None else f'{self.sample_rows} rows'}",
            *(f"fault: {text}" for text in self.faults),
            *(f"warning: {text}" for text in self.warnings),
        ]
        return "\n".join(lines)


def check_folder(folder: ContestFolder, *, progress: Progress = silent) -> FolderReport:
    """Return what `folder` holds and what is odd about it; reads headers, tables and labels, no pixels.

    Raises
    ------
    InputError, LabelError
        Labels or the sample submission are there and cannot be read.
    """
    faults: list[str] = []
    warnings: list[str] = []
    counts: Counter[str] = Counter()
    complete = 0
    for done, image_id in enumerate(folder.image_ids, start=1):
        tile = folder.tile(image_id)
        counts.update(tile.products)
        complete += tile.products == PRODUCTS
        _check_tile(tile, faults, warnings)
        progress("checking", done, len(folder.image_ids), image_id)
    labels = _labels(folder, warnings)
    found: Counter[int] = Counter(int(number) for layer in labels.values() for number in layer["class_id"])
    sample = _sample_rows(folder, warnings)
    faults += [f"tile {i} is labelled and has no files" for i in labels if not folder.tile(i).products]
    warnings += _strangers(folder)
    attrs = [layer.attrs for layer in labels.values()]
    return FolderReport(
        path=str(folder.path),
        tiles=len(folder.image_ids),
        complete=complete,
        files={product: counts[product] for product in PRODUCTS},
        labelled=tuple(sorted(labels)),
        polygons={name: found[number] for number, name in class_names().items()},
        repaired=sum(own["repaired"] for own in attrs),
        dropped=sum(own["dropped"] for own in attrs),
        invalid_rows=tuple(place for own in attrs for place in own["invalid_rows"]),
        twins=twins(labels),
        sample_rows=sample,
        faults=tuple(_grouped(faults)),
        warnings=tuple(_grouped(warnings)),
    )


def _check_tile(tile: Tile, faults: list[str], warnings: list[str]) -> None:
    """Open the files that are there, and add what is wrong."""
    if not tile.products:
        return
    try:
        scene = tile.scene(products=tile.products)
    except SatsegError as error:
        faults.append(f"{error} [{error.code}]")
        return
    if missing := [product for product in PRODUCTS if product not in tile.products]:
        warnings.append(f"tile {tile.image_id} lacks {', '.join(missing)}")
    warnings += scene.warnings


def _labels(folder: ContestFolder, warnings: list[str]) -> dict[str, geopandas.GeoDataFrame]:
    if not any((folder.path / name).exists() for name in (WKT_LABELS, GEOJSON_LABELS)):
        warnings.append(f"neither {WKT_LABELS} nor {GEOJSON_LABELS} is there")
        return {}
    labels = folder.labels()
    names = sorted({name for layer in labels.values() for name in layer.attrs.get("unknown", ())})
    warnings += [f"{GEOJSON_LABELS}: class {name} is none of the ten and is left out" for name in names]
    return labels


def _sample_rows(folder: ContestFolder, warnings: list[str]) -> int | None:
    path = folder.path / SAMPLE
    if not path.is_file():
        warnings.append(f"no {SAMPLE}; a submission needs its order of rows")
        return None
    order = read_sample(path)
    ids = {image_id for image_id, _ in order}
    if len(order) != SAMPLE_ROWS:
        warnings.append(f"{SAMPLE} has {len(order)} rows, the contest's has {SAMPLE_ROWS}")
    if moved := sorted(MOVED & ids):
        warnings.append(f"{SAMPLE} still has {', '.join(moved)}, which moved to train: they are left empty")
    warnings += [f"{SAMPLE}: tile {i} is not in grid_sizes.csv" for i in sorted(ids - set(folder.extents))]
    return len(order)


def _strangers(folder: ContestFolder) -> Iterator[str]:
    """Yield images of tiles that ``grid_sizes.csv`` does not have, and ids of another form."""
    known = {path.name for image_id in folder.image_ids for path in folder.tile(image_id).files.values()}
    for part in (THREE, SIXTEEN):
        place: Path = folder.path / part
        for path in sorted(place.glob("*.tif")) if place.is_dir() else ():
            if path.name not in known:
                yield f"{part}/{path.name} is of no tile in grid_sizes.csv"
    for image_id in folder.image_ids:
        if not IMAGE_ID.fullmatch(image_id):
            yield f"tile {image_id} is not named as the contest's, so that nothing is known of its ground"


def _grouped(texts: Iterable[str]) -> list[str]:
    """Return the first texts of each kind, and how many more of it there are; kinds in order of their first."""
    kinds: dict[str, list[str]] = {}
    for text in texts:
        kinds.setdefault(NUMBER.sub("#", text), []).append(text)
    found = []
    for own in kinds.values():
        found += own[:MOST_SHOWN]
        if len(own) > MOST_SHOWN:
            found.append(f"and {len(own) - MOST_SHOWN} more such as the last")
    return found
