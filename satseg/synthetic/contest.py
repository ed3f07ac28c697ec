"""A generated contest in the files of DSTL's: labelled tiles, scored tiles, decoys, and the truth kept aside.

The original may not be passed on, and its truth was never published; this stand-in has its layout, its traps
(products that do not lie on each other, sizes in no whole ratio, a band order that the tag tells wrongly,
twin tiles, an invalid polygon, four labelled tiles in the sample submission) and its areas, so that a reader,
a training and a submission can be tested and scored by anybody. Default tiles are a hundredth of the
original's in area and keep its pixel sizes: a car is a car. Rejected: the original's number of trucks on
tiles that small, which would be many times their area.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine

from satseg.errors import OutputError, UsageError
from satseg.grid import Grid
from satseg.imagery.writer import write_raster
from satseg.output import os_errors_as_output_errors, write_text
from satseg.progress import Progress, silent
from satseg.raster import Raster
from satseg.synthetic.contest_country import country_of, grown, look_of
from satseg.synthetic.contest_ground import add_traffic, later, plan_ground
from satseg.synthetic.contest_labels import TileLabels, label_tile, spoilt, to_geojson, to_wkt
from satseg.synthetic.contest_products import Products, photograph
from satseg.synthetic.contest_roster import (
    CONTEST_CLASSES,
    FULL_SIZE,
    GSD_M,
    LABELLED,
    MEAN_SHARES,
    MOVED,
    SCORED,
    TILES_WITH,
    TileId,
    all_ids,
    frame_of,
    rarities_of,
    recipe_of,
    shifts_of,
)

SMALL_SIZE = (335, 340)
MIN_SIDE_PX = 160
SPOILT = ("6010_1_2", 5)
"""Labelled tile and ClassType whose multipolygon is invalid."""
BAND_LISTS = {"rgb": "4;3;2", "P": "1", "M": "6;2;3;7;4;8;5;9", "A": "10;11;12;13;14;15;16;17"}
"""What the TIFF description says of the order of bands; that of M is not the order of the data, as in the original."""


@dataclass(frozen=True, slots=True, eq=False)
class ContestTile:
    """A tile: its images, its labels, and by how far M and A are off, (dx, dy) in RGB pixels."""

    tile: TileId
    products: Products
    labels: TileLabels
    shifts: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Contest:
    """A contest on disk.

    Parameters
    ----------
    folder : Path
    seed : int
    size : tuple of int
        Usual height and width of its RGB images in pixels.
    labelled, scored, decoys : dict of str to tuple of 10 floats
        Tiles that have images, and the share of each class in their area, 0..1; shares of decoys
        and scored tiles are not in the folder but for ``hidden/``.
    """

    folder: Path
    seed: int
    size: tuple[int, int]
    labelled: dict[str, tuple[float, ...]]
    scored: dict[str, tuple[float, ...]]
    decoys: dict[str, tuple[float, ...]]

    def table(self) -> str:
        """Return the mean share of each class over the labelled tiles beside that of the original, in percent."""
        lines = [f"{'class':<26}{'mean %':>10}{'original':>10}{'tiles':>8}{'original':>10}{'scored %':>10}"]
        shares, scored = (np.array(list(group.values())).reshape(-1, 10) for group in (self.labelled, self.scored))
        for number, name in enumerate(CONTEST_CLASSES):
            mean, hidden = (100 * float(part[:, number].sum()) / max(len(part), 1) for part in (shares, scored))
            lines.append(
                f"{name:<26}{mean:>10.4f}{MEAN_SHARES[number]:>10.4f}{int((shares[:, number] > 0).sum()):>8}"
                f"{TILES_WITH[number]:>10}{hidden:>10.4f}"
            )
        return "\n".join(lines)


def make_tile(name: str, *, seed: int = 0, size: tuple[int, int] = SMALL_SIZE) -> ContestTile:
    """Return the tile `name` of the contest that `seed` and `size` stand for: the same alone or among others.

    Parameters
    ----------
    name : str
        One of the 450 ids, such as "6110_1_2".
    seed : int
        0 or more.
    size : tuple of int
        Usual height and width of RGB images in pixels, 160 or more each.

    Raises
    ------
    UsageError
        There is no such tile, or the seed or size is none (E-SYN-001, E-SYN-002, E-SYN-007).
    """
    _check([name], seed, size)
    tile = TileId.parse(name)
    rarities = rarities_of(tile, seed, size[0] * size[1] * GSD_M**2)
    frame, first = frame_of(tile, seed, size), frame_of(tile.ground, seed, size)
    ground = plan_ground(
        tile.ground.rng(seed, 31), recipe_of(tile, seed), rarities, country_of(tile.region, seed),
        width_m=first.rgb[1] * GSD_M, height_m=first.rgb[0] * GSD_M,
    )  # fmt: skip
    twin = tile.ground != tile
    if twin:
        ground = later(tile.rng(seed, 32), ground)
    ground = add_traffic(tile.rng(seed, 33), ground, rarities)
    look, shifts = look_of(tile.region, seed), shifts_of(tile, seed)
    return ContestTile(
        tile=tile,
        products=photograph(tile.rng(seed, 34), grown(ground.layout, look), look, frame, shifts),
        labels=label_tile(ground, frame, unsteady=tile.rng(seed, 35) if twin else None),
        shifts=shifts,
    )


def generate_contest(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    size: tuple[int, int] = SMALL_SIZE,
    tiles: Sequence[str] | None = None,
    decoys: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Contest:
    """Fill `folder` with a contest: images, labels, grid sizes, a sample submission, and the hidden truth.

    Parameters
    ----------
    folder : path-like
        Made where it is missing. Gets three_band/, sixteen_band/, train_geojson_v3/, train_wkt_v4.csv,
        grid_sizes.csv, sample_submission.csv, README.txt; and hidden/ with the truth of the scored
        tiles (solution_wkt.csv) and the shifts (shifts.csv), which are no part of the original's layout.
    seed : int
        0 or more.
    size : tuple of int
        Usual height and width of RGB images in pixels; `FULL_SIZE` for the original's.
    tiles : sequence of str, optional
        Ids to make, of any of the 450; the 25 labelled and 32 scored ones when left out. Labels and truth
        cover the tiles made; grid sizes and the sample submission cover all, as in the original.
    decoys : int
        How many more unlabelled tiles get images; their truth is kept nowhere.
    overwrite : bool
        Whether the folder may hold files already.
    progress : Progress

    Raises
    ------
    UsageError
        As `make_tile`; or `decoys` is not within 0..393.
    OutputError
        The folder is not empty (E-OUT-003) or cannot be written.
    """
    place = Path(folder)
    names = list(dict.fromkeys((*LABELLED, *SCORED) if tiles is None else tiles))
    _check(names, seed, size)
    spare = [str(tile) for tile in all_ids() if str(tile) not in {*LABELLED, *SCORED, *names}]
    if not 0 <= decoys <= len(spare):
        raise UsageError(f"{decoys} decoys are not within 0..{len(spare)}", code="E-SYN-008")
    names += [spare[n] for n in np.random.default_rng([seed, 15]).permutation(len(spare))[:decoys]]
    with os_errors_as_output_errors(place):
        if place.exists() and any(place.iterdir()) and not overwrite:
            raise OutputError(f"{place} is not empty", hint="give --overwrite or another folder", code="E-OUT-003")
        for part in ("three_band", "sixteen_band", "train_geojson_v3", "hidden"):
            (place / part).mkdir(parents=True, exist_ok=True)
    groups: dict[str, dict[str, tuple[float, ...]]] = {"labelled": {}, "scored": {}, "decoys": {}}
    rows: dict[str, list[tuple[str, int, str]]] = {name: [] for name in groups}
    shifts: list[tuple[str, str, str, str]] = []
    for number, name in enumerate(names):
        progress("tiles", number, len(names), name)
        made = make_tile(name, seed=seed, size=size)
        group = "labelled" if name in LABELLED else "scored" if name in SCORED else "decoys"
        _write_images(place, made, overwrite=overwrite)
        groups[group][name] = made.labels.shares
        rows[group] += _label_rows(made)
        shifts += [(name, key, f"{dx:.3f}", f"{dy:.3f}") for key, (dx, dy) in made.shifts.items()]
        if group == "labelled":
            _write_geojson(place / "train_geojson_v3" / name, made.labels, overwrite=overwrite)
    progress("tiles", len(names), len(names), "")
    contest = Contest(place, seed, size, groups["labelled"], groups["scored"], groups["decoys"])
    header = ("ImageId", "ClassType", "MultipolygonWKT")
    texts = {
        "train_wkt_v4.csv": _csv([header, *rows["labelled"]]),
        "grid_sizes.csv": _csv([("", "Xmax", "Ymin"), *_grid_sizes(seed, size)]),
        "sample_submission.csv": _csv([header, *_sample(seed, size)]),
        "hidden/solution_wkt.csv": _csv([header, *rows["scored"]]),
        "hidden/shifts.csv": _csv([("ImageId", "Product", "dx_px", "dy_px"), *shifts]),
        "README.txt": _readme(contest),
    }
    for path, text in texts.items():
        write_text(place / path, text, overwrite=overwrite)
    return contest


def _check(names: Sequence[str], seed: int, size: tuple[int, int]) -> None:
    if seed < 0:
        raise UsageError(f"seed {seed} is negative", hint="give 0 or more", code="E-SYN-001")
    if min(size) < MIN_SIDE_PX:
        raise UsageError(
            f"tiles of {size[0]} x {size[1]} pixels are too small", hint=f"give {MIN_SIDE_PX} or more",
            code="E-SYN-002",
        )  # fmt: skip
    unknown = sorted(set(names) - {str(tile) for tile in all_ids()})
    if unknown:
        raise UsageError(f"no tile '{unknown[0]}'", hint="ids run from 6010_0_0 to 6180_4_4", code="E-SYN-007")


def _write_images(folder: Path, made: ContestTile, *, overwrite: bool) -> None:
    """Write the four images of a tile, without CRS, geotransform or nodata; bands have numbers for names."""
    images = made.products
    for key, data in (("rgb", images.rgb), ("P", images.pan), ("M", images.multi), ("A", images.swir)):
        path = f"three_band/{made.tile}.tif" if key == "rgb" else f"sixteen_band/{made.tile}_{key}.tif"
        grid = Grid(data.shape[1], data.shape[2], Affine.identity(), None)
        names = tuple(f"Band {number}" for number in range(1, len(data) + 1))
        write_raster(
            Raster(data, grid, names), folder / path, overwrite=overwrite, overviews=False,
            description=f"bandlist={BAND_LISTS[key]}",
        )  # fmt: skip


def _write_geojson(folder: Path, labels: TileLabels, *, overwrite: bool) -> None:
    with os_errors_as_output_errors(folder):
        folder.mkdir(exist_ok=True)
    for name, polygons in labels.finer.items():
        write_text(folder / f"{name}.geojson", to_geojson(name, polygons), overwrite=overwrite)


def _label_rows(made: ContestTile) -> list[tuple[str, int, str]]:
    rows = []
    for number, shape in enumerate(made.labels.classes, start=1):
        broken = (str(made.tile), number) == SPOILT and not shape.is_empty
        rows.append((str(made.tile), number, to_wkt(spoilt(shape) if broken else shape)))
    return rows


def _order(seed: int) -> list[TileId]:
    """Return the 450 ids in the shuffled order of this contest's tables."""
    ids = all_ids()
    return [ids[n] for n in np.random.default_rng([seed, 16]).permutation(len(ids))]


def _grid_sizes(seed: int, size: tuple[int, int]) -> list[tuple[str, str, str]]:
    frames = {str(tile): frame_of(tile, seed, size) for tile in _order(seed)}
    return [(name, f"{frame.x_max:.6f}", f"{frame.y_min:.6f}") for name, frame in frames.items()]


def _sample(seed: int, size: tuple[int, int]) -> list[tuple[str, int, str]]:
    """Return the rows of the sample submission: the whole tile as every class of every test tile."""
    rows = []
    for tile in _order(seed):
        if str(tile) in LABELLED and str(tile) not in MOVED:
            continue
        frame = frame_of(tile, seed, size)
        x, y = f"{frame.x_max:.6f}", f"{frame.y_min:.6f}"
        text = f"POLYGON ((0 0, {x} 0, {x} {y}, 0 {y}, 0 0))"
        rows += [(str(tile), number, text) for number in range(1, len(CONTEST_CLASSES) + 1)]
    return rows


def _csv(rows: Sequence[Sequence[str | int]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _readme(contest: Contest) -> str:
    size = "the original's size" if contest.size == FULL_SIZE else "smaller than the original's, at its pixel sizes"
    return (
        f"A contest generated by satseg, seed {contest.seed}: not images of real places.\n\n"
        f"It has the files of the DSTL Satellite Imagery Feature Detection contest of 2016-17. Tiles are about\n"
        f"{contest.size[1]} x {contest.size[0]} pixels of 0.31 m, {size}.\n\n"
        f"Images: {len(contest.labelled)} labelled, {len(contest.scored)} scored and {len(contest.decoys)} other"
        " tiles have them. grid_sizes.csv lists all 450,\n"
        "sample_submission.csv the 429 of a submission; those without images count for nothing.\n"
        f"Labelled tiles {', '.join(MOVED)} are in the sample too.\n"
        "M lies up to 2.75 of its pixels off RGB, A up to 4 of its own; P lies on it. Labels lie on RGB.\n"
        "Bands of M are in the order of wavelength whatever its description says.\n"
        f"The trees of {SPOILT[0]} are an invalid polygon, on purpose.\n\n"
        "hidden/ is no part of the contest: solution_wkt.csv is the truth of the scored tiles, shifts.csv how far\n"
        "M and A are off (what RGB shows at col, row they show at col + dx, row + dy, in RGB pixels).\n\n"
        f"Areas:\n{contest.table()}\n"
    )

