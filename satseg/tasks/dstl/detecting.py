"""detect_recipe(): the models of `train_recipe` on a contest's tiles, a vector file for each in metres of its frame.

A recipe of one network and no index goes the way of every detection, in row bands (`satseg.pipeline.detect_to_file`).
Several networks, and indices, meet before they are outlined: scores of a class that several networks know are averaged,
and the rules of the classes (`satseg.vector.rules`) hold between all of them. What is written is what `satseg dstl
submit` reads.
Rejected: outlining each network by itself and joining files, in which no class could erase another.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import geopandas
import numpy as np
import pandas

from satseg.checked import digest_of
from satseg.errors import InputError, OutputError, UsageError
from satseg.imagery.scene import Scene
from satseg.learning.networks.model import Model, load_model
from satseg.output import os_errors_as_output_errors, write_text
from satseg.pipeline import detect_to_file, predict
from satseg.progress import Progress, silent
from satseg.raster import Raster
from satseg.specs import ClassItem
from satseg.tasks.dstl.facts import SCORED
from satseg.tasks.dstl.folder import ContestFolder, Tile
from satseg.tasks.dstl.frame import Units
from satseg.tasks.dstl.index_parts import FittedIndex
from satseg.tasks.dstl.recipe import Recipe, load_recipe
from satseg.tasks.dstl.training import RECIPE, RULES, RUN
from satseg.vector.features import empty_features, write_features
from satseg.vector.finish import Cleaning
from satseg.vector.layers import LAST, PlaneCode
from satseg.vector.rules import RuledPolygonizer

PathLike: TypeAlias = str | os.PathLike[str]
SUFFIX = ".gpkg"
NOTE = "detected.txt"
"""What the files of a folder were made of, so that a resumed detection adds no others."""
UNITS: Units = "metres"
CERTAIN = np.uint8(LAST)
"""The code of what an index says: nothing is more certain or less."""


@dataclass(frozen=True, slots=True)
class Models:
    """What `train_recipe` left in a folder, loaded; made by `load_models`.

    Parameters
    ----------
    recipe : Recipe
    networks : mapping of name to Model
        With the thresholds and least areas that the recipe wants.
    rules : tuple of FittedIndex
    items : tuple of ClassItem
        The ten classes with those thresholds and areas.
    """

    recipe: Recipe
    networks: Mapping[str, Model]
    rules: tuple[FittedIndex, ...]
    items: tuple[ClassItem, ...]

    @property
    def streams(self) -> bool:
        """Whether a tile can be detected in row bands: one network, and nothing that it has to meet."""
        return len(self.networks) == 1 and not self.rules

    def told(self, options: Mapping[str, Any]) -> str:
        """Return a line for each network, the rules and each of the options: what decides what is found."""
        cards = {name: model.card.model_dump_json() for name, model in self.networks.items()}
        parts = {**cards, "rules": repr(self.rules), "classes": repr(self.items)}
        lines = [f"{name} sha256 {digest_of(text)}" for name, text in parts.items()]
        return "\n".join([*lines, *(f"{name} = {value!r}" for name, value in sorted(options.items()))]) + "\n"


def load_models(path: PathLike, *, device: str = "auto") -> Models:
    """Return the models in a folder that `train_recipe` wrote.

    Raises
    ------
    InputError
        No such folder (E-IN-331), or a training that is not finished (E-IN-332).
    ModelError
        A damaged model file.
    """
    place = Path(path)
    if not (place / RECIPE).is_file() or not (place / RUN).is_file():
        raise InputError(
            "it holds no models of a recipe", hint="give the folder that `satseg dstl train` wrote", code="E-IN-331",
            path=path,
        )  # fmt: skip
    recipe = load_recipe(place / RECIPE)
    networks = {
        part.name: load_model(place / f"{part.name}.safetensors", device=device)
        for part in recipe.networks
        if (place / f"{part.name}.safetensors").is_file()
    }
    begun = [part.name for part in recipe.networks if (place / f"{part.name}.run").is_dir()]
    if not networks or (unfinished := sorted({*begun} - {*networks})) or not (place / RULES).is_file():
        raise InputError(
            f"the training is not finished{': ' if networks else ''}{', '.join(unfinished) if networks else ''}",
            hint="go on with `satseg dstl train ... --resume`", code="E-IN-332", path=path,
        )  # fmt: skip
    items = _items(recipe, networks)
    named = {item.name: item for item in items}
    ruled = {name: _with_items(model, named) for name, model in networks.items()}
    return Models(recipe, ruled, FittedIndex.read(place / RULES), items)


def detect_recipe(
    models: Models | PathLike,
    folder: ContestFolder,
    output: PathLike,
    *,
    tiles: Collection[str] | None = None,
    device: str = "auto",
    resume: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, dict[str, int]]:
    """Write what the models find in each tile into the folder `output`, and return the features of each class.

    Parameters
    ----------
    models : Models or path-like
        The folder that `train_recipe` wrote.
    folder : ContestFolder
    output : path-like
        Missing or empty; gets ``ID.gpkg`` for each tile, with class_id, class_name and polygons in metres, and a note
        of what they were made of.
    tiles : collection of str, optional
        The scored tiles whose files are there when left out.
    resume : bool
        Keep the files that are in `output` already, made by the same models and options.
    options
        Of `satseg.pipeline.detect`, over those of the recipe: ``tta="d4"``.

    Raises
    ------
    InputError
        No tile to detect (E-IN-333), or as `load_models`.
    UsageError
        An option is unknown, or what is to be resumed was made by other models or options (E-USE-312).
    OutputError
        `output` is not empty (E-OUT-311), or cannot be written.
    """
    loaded = models if isinstance(models, Models) else load_models(models, device=device)
    wanted = tiles_to_detect(folder, loaded.recipe, tiles)
    place, given = Path(output), {**loaded.recipe.detect, **options}
    with os_errors_as_output_errors(place):
        if place.is_dir() and any(place.iterdir()) and not resume:
            fault = f"{place} is not empty"
            raise OutputError(fault, hint="give --resume or another folder", code="E-OUT-311", path=place)
        place.mkdir(parents=True, exist_ok=True)
    _note(place, loaded.told(given))
    counts = {}
    for done, tile in enumerate(wanted):
        progress("detecting", done, len(wanted), tile.image_id)
        file = place / f"{tile.image_id}{SUFFIX}"
        if not (resume and file.exists()):
            counts[tile.image_id] = _detected(loaded, tile, file, given)
    progress("detecting", len(wanted), len(wanted), "")
    return counts


def _note(place: Path, note: str) -> None:
    """Note what the files of `place` are made of, or see that it is what is noted there."""
    path = place / NOTE
    if not any(place.iterdir()):
        write_text(path, note)
        return
    with os_errors_as_output_errors(path):
        known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if known != note.splitlines():
        other = [line for line in note.splitlines() if line not in known] or ["an option that was given"]
        raise UsageError(
            f"{place} was made by other models or options: {other[0]}",
            hint="resume with those it began with, or give another folder", code="E-USE-312",
        )  # fmt: skip


def tiles_to_detect(folder: ContestFolder, recipe: Recipe, tiles: Collection[str] | None) -> tuple[Tile, ...]:
    """Return the tiles asked for, or the scored ones that have their files.

    Raises
    ------
    InputError
        There is none (E-IN-333), no such tile (E-IN-313), or one without all its files (E-IN-311).
    """
    if tiles is not None:
        found = tuple(map(folder.tile, dict.fromkeys(tiles)))
        for tile in found:
            tile.check_files(recipe.products)
    else:
        found = tuple(tile for tile in folder.tiles(recipe.products) if tile.image_id in SCORED)
    if not found:
        raise InputError(
            f"none of the {len(SCORED)} scored tiles has all files {', '.join(recipe.products)}",
            hint="see `satseg dstl check`, or name the tiles", code="E-IN-333", path=folder.path,
        )  # fmt: skip
    return found


def _items(recipe: Recipe, networks: Mapping[str, Model]) -> tuple[ClassItem, ...]:
    """The ten classes: as the class list has them, or with what validation chose for the first network of each."""
    if recipe.thresholds == "class_spec":
        return recipe.class_items
    chosen: dict[str, ClassItem] = {}
    for model in networks.values():
        chosen = {item.name: item for item in model.card.classes} | chosen
    return tuple(chosen.get(item.name, item) for item in recipe.class_items)


def _with_items(model: Model, items: Mapping[str, ClassItem]) -> Model:
    classes = tuple(items[item.name] for item in model.card.classes)
    return replace(model, card=model.card.model_copy(update={"classes": classes}))


def _detected(models: Models, tile: Tile, file: Path, options: Mapping[str, Any]) -> dict[str, int]:
    """Write the layer of one tile; return the features of each class."""
    if models.streams:
        (model,) = models.networks.values()
        return detect_to_file(model, _scene(tile, models.recipe, model), file, **options)
    layer = _composed(models, tile, options)
    write_features(layer, file)
    return dict(Counter(layer["class_name"]))


def _scene(tile: Tile, recipe: Recipe, model: Model) -> Scene:
    return tile.scene(products=recipe.products, units=UNITS, register=model.card.registers)


def _composed(models: Models, tile: Tile, options: Mapping[str, Any]) -> geopandas.GeoDataFrame:
    """Return the layer of a tile that several networks and indices make together."""
    scores, levels = _scores(models, tile, options), {item.name: item.threshold for item in models.items}
    grid = next(iter(scores.values())).grid
    planes = {name: PlaneCode(levels[name]).codes(raster.data[0], raster.valid) for name, raster in scores.items()}
    named = {item.name: item for item in models.items}
    for rule in models.rules:
        first, mask = rule.classes[0], rule.mask(tile, grid)
        told = np.where(mask.data[0], CERTAIN, np.uint8(0))
        planes[first] = np.maximum(planes[first], told) if first in planes else told
        named[first] = named[first].model_copy(update={"becomes": rule.becomes})
    empty = np.zeros(grid.shape, np.uint8)
    traced = RuledPolygonizer(
        grid, tuple(named.values()), cleaning=Cleaning.of(tuple(named.values())),
        score_of=[PlaneCode(item.threshold).score_of for item in named.values()],
    )  # fmt: skip
    parts = [traced.feed(np.stack([planes.get(name, empty) for name in named])), traced.finish()]
    found = [part for part in parts if len(part)]
    return pandas.concat(found, ignore_index=True) if found else empty_features(None)


def _scores(models: Models, tile: Tile, options: Mapping[str, Any]) -> dict[str, Raster]:
    """Return the scores of each class, one channel: the mean over the networks that know it.

    Raises
    ------
    UsageError
        Networks work at several resolutions (E-USE-311).
    """
    sums: dict[str, Raster] = {}
    counts: Counter[str] = Counter()
    for name, model in models.networks.items():
        found = predict(model, _scene(tile, models.recipe, model), **options)
        if sums and next(iter(sums.values())).grid != found.grid:
            raise UsageError(
                f"network {name} works at another resolution than the others, {found.grid.shape} pixels",
                hint="give all networks of a recipe one gsd", code="E-USE-311",
            )  # fmt: skip
        for class_name, plane in zip(model.classes, found.data, strict=True):
            whole = plane + sums[class_name].data[0] if class_name in sums else plane
            sums[class_name] = Raster(whole[None], found.grid, (class_name,), found.valid)
            counts[class_name] += 1
    return {
        name: raster if counts[name] == 1 else replace(raster, data=raster.data / np.float32(counts[name]))
        for name, raster in sums.items()
    }
