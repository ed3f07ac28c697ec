"""prepare(): the contest's folder made ready for `satseg train`, without copying a pixel.

A run file names files, and the contest's files state no place. So each is linked into ``scenes/`` with a side-car of a
few hundred bytes, GDAL's ``.aux.xml``, which gives it the place and the band names that `Tile.scene` gives it; four
links are then a scene for every command of satseg, and of QGIS. Labels are written once per tile, folds by ground as
run files. Coordinates are metres of the tile's frame (0.31 m a pixel, see `frame`), so that least areas of the class
list ``dstl``, which are in square metres, mean what they say; `read_predictions` brings them back. Run files of several
products ask for registration: M lies off by some pixels of RGB, A by tens, and the outer edges say nothing of it.
Rejected: one GeoTIFF of 20 bands per tile on the three-band grid (455 MB each, 200 GB for 450 tiles of 20 GB), a VRT
(which can read any file, and is not opened unless asked for), and world files (they name no bands).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import geopandas
import numpy as np

from satseg.errors import InputError
from satseg.imagery.scene import Scene
from satseg.progress import Progress, silent
from satseg.tasks.dstl.building import built_folder, check_free
from satseg.tasks.dstl.facts import PRODUCTS, SENSOR, Product, dstl_classes, ground_of
from satseg.tasks.dstl.folder import ContestFolder, Tile, check_products
from satseg.tasks.dstl.folds import By, Split, check_split, kfold
from satseg.tasks.dstl.frame import Units
from satseg.tasks.dstl.labels import class_areas
from satseg.tasks.dstl.tables import PathLike
from satseg.vector.features import write_features

SCENES, LABELS, FOLDS, WHOLE = "scenes", "labels", "folds.json", "all.toml"
UNITS: Units = "metres"
"""Of all coordinates that are written."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What `prepare` wrote.

    Parameters
    ----------
    path : Path
        The folder.
    tiles, labelled : tuple of str
        Tiles with a scene, and those of them with labels.
    splits : tuple of Split
        One per run file ``fold1.toml``, ...
    missing : mapping of fold number to class names
        Classes that the fold's training tiles lack, left out of its run file.
    """

    path: Path
    tiles: tuple[str, ...]
    labelled: tuple[str, ...]
    splits: tuple[Split, ...]
    missing: Mapping[int, tuple[str, ...]]


def prepare(
    folder: ContestFolder,
    path: PathLike,
    *,
    folds: int = 5,
    seed: int = 0,
    by: By = "region",
    products: Sequence[Product] = PRODUCTS,
    progress: Progress = silent,
) -> Ready:
    """Write scenes (links), labels, folds and run files into the new folder `path`.

    ``scenes/ID.tif``, ``ID_P.tif``, ...: links with side-cars, of every tile that has all `products`.
    ``labels/ID.gpkg``: class_id, class_name and polygons of each labelled tile. ``folds.json``: which tiles a fold
    holds. ``fold1.toml`` ...: run files that validate on one fold. ``all.toml``: a run file of all labelled tiles,
    which holds blocks of them. A scene opened from the links lies on the three-band file's grid, as `Tile.scene` does:
    it comes first, and no other has pixels that are finer by a hundredth.

    Parameters
    ----------
    folder : ContestFolder
    path : path-like
        Missing or empty; appears whole or not at all.
    folds, seed, by
        As in `kfold`; 0 folds write ``all.toml`` alone.
    products : sequence of "rgb", "P", "M", "A"
        That a scene is made of; the three-band file leads in any case.

    Raises
    ------
    InputError, LabelError
        Faults of the folder, or no labelled tile has its files (E-IN-315).
    UsageError
        As `kfold`; or `products` are none, unknown or repeat (E-USE-301).
    OutputError
        `path` is not empty (E-OUT-311), or cannot be written.
    """
    place = Path(path)
    check_free(place)
    check_products(products)
    wanted = tuple(dict.fromkeys(("rgb", *products)))
    tiles = {tile.image_id: tile for tile in folder.tiles(wanted)}
    labels = {image_id: layer for image_id, layer in folder.labels().items() if image_id in tiles}
    if not labels:
        raise InputError(
            f"no labelled tile has all files {', '.join(wanted)}", hint="see `satseg dstl check`", code="E-IN-315",
            path=folder.path,
        )  # fmt: skip
    areas = {image_id: class_areas(layer) for image_id, layer in labels.items()}
    splits = kfold(areas, folds=folds, seed=seed, by=by) if folds else ()
    with built_folder(place) as hidden:
        _fill(hidden, tiles, labels, wanted, progress)
        missing = _write_runs(hidden, splits, areas, wanted, seed=seed, by=by)
    return Ready(place, tuple(tiles), tuple(sorted(labels)), splits, missing)


def _fill(
    folder: Path,
    tiles: Mapping[str, Tile],
    labels: Mapping[str, geopandas.GeoDataFrame],
    products: Sequence[Product],
    progress: Progress,
) -> None:
    """Write the scene of every tile, and the labels of those that have some."""
    (folder / SCENES).mkdir()
    (folder / LABELS).mkdir()
    for done, (image_id, tile) in enumerate(tiles.items(), start=1):
        scene = tile.scene(products=products, units=UNITS)
        for product in products:
            link = folder / SCENES / tile.files[product].name
            link.symlink_to(os.path.abspath(tile.files[product]))
            link.with_name(f"{link.name}.aux.xml").write_text(_side_car(scene, tile.files[product]), encoding="utf-8")
        if image_id in labels:
            layer = labels[image_id]
            shapes = tile.frame().moved(layer.geometry.to_numpy(), source="label", target=UNITS)
            write_features(layer.set_geometry(geopandas.GeoSeries(shapes)), folder / LABELS / f"{image_id}.gpkg")
        progress("preparing", done, len(tiles), image_id)


def _side_car(scene: Scene, path: Path) -> str:
    """Return GDAL's description (persistent auxiliary metadata) of a file: its place, and its bands' names."""
    sources = [source for source in scene.sources if source.path == os.fspath(path)]
    t = sources[0].grid.transform
    numbers = ", ".join(f"{value:.17g}" for value in (t.c, t.a, t.b, t.f, t.d, t.e))
    bands = "".join(
        f'  <PAMRasterBand band="{source.index}"><Description>{escape(source.name)}</Description></PAMRasterBand>\n'
        for source in sources
    )
    return f"<PAMDataset>\n  <GeoTransform>{numbers}</GeoTransform>\n{bands}</PAMDataset>\n"


def _write_runs(
    folder: Path,
    splits: Sequence[Split],
    areas: Mapping[str, np.ndarray],
    products: Sequence[Product],
    *,
    seed: int,
    by: By,
) -> dict[int, tuple[str, ...]]:
    """Write the folds and their run files; return the classes that the training tiles of each lack."""
    missing = {}
    for number, split in enumerate(splits, start=1):
        check_split(split.train, split.valid, by=by)
        title = f"Fold {number} of {len(splits)}: validates on ground that it does not learn from."
        text, lacking = _run_file(title, split, areas, products)
        (folder / f"fold{number}.toml").write_text(text, encoding="utf-8")
        if lacking:
            missing[number] = lacking
    everything = Split(tuple(sorted(areas)), ())
    text, _ = _run_file("All labelled tiles; blocks of them are held for validation.", everything, areas, products)
    (folder / WHOLE).write_text(text, encoding="utf-8")
    found = {
        "seed": seed,
        "by": by,
        "folds": [list(split.valid) for split in splits],
        "grounds": {image_id: ground_of(image_id) for image_id in sorted(areas)},
    }
    (folder / FOLDS).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return missing


def _run_file(
    title: str, split: Split, areas: Mapping[str, np.ndarray], products: Sequence[Product]
) -> tuple[str, tuple[str, ...]]:
    """Return a run file, and the classes that no training tile has; a network cannot learn those."""
    total = np.sum([areas[image_id] for image_id in split.train], axis=0)
    classes = dstl_classes().classes
    known = [item.name for item in classes if total[item.id - 1] > 0]
    lacking = tuple(item.name for item in classes if total[item.id - 1] <= 0)
    lines = [
        f"# {title}",
        "# Coordinates are metres of each tile's frame, 0.31 m a pixel; `satseg dstl submit` brings them back.",
        *([f"# Not in the training tiles: {', '.join(lacking)}"] if lacking else []),
        "[data]",
        f'sensor = "{SENSOR}"',
        'class_spec = "dstl"',
        *(["registered = true"] if len(products) > 1 else []),
        f"classes = {json.dumps(known)}",
        *_scene_lines("scenes", split.train, products),
        *(_scene_lines("valid_scenes", split.valid, products) if split.valid else []),
    ]
    return "\n".join(lines) + "\n", lacking


def _scene_lines(key: str, image_ids: Sequence[str], products: Sequence[Product]) -> list[str]:
    rows = []
    for image_id in image_ids:
        files = [f"{SCENES}/{image_id}{'' if product == 'rgb' else '_' + product}.tif" for product in products]
        rows.append(f'  {{ scene = {json.dumps(files)}, labels = "{LABELS}/{image_id}.gpkg" }},')
    return [f"{key} = [", *rows, "]"]
