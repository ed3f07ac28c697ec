"""Index parts of a recipe: classes that an index tells, fitted to the labelled tiles and applied to others.

Water was found so in 2017, by cuts chosen scene by scene and in part on the test tiles. Here one threshold holds for
all tiles (`satseg.imagery.index_rule`): of the indices that a recipe names, each with its best threshold and side,
the one with the highest Jaccard on the labelled tiles. Two classes that look alike, such as rivers and ponds, are
learnt as one and told apart by area, at the cut that gives their labels the highest mean Jaccard.
Indices are taken of the multispectral file alone: the bands of the three-band file have the same wavelengths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import geopandas
import numpy as np
from numpy.typing import NDArray

from satseg.classes import ShapeRule
from satseg.errors import InputError
from satseg.grid import Grid
from satseg.imagery.index_rule import IndexClassifier, Side
from satseg.imagery.scene import Scene
from satseg.output import write_text
from satseg.progress import Progress, silent
from satseg.raster import Raster
from satseg.tasks.dstl.facts import Product
from satseg.tasks.dstl.folder import ContestFolder, Tile
from satseg.tasks.dstl.frame import Units
from satseg.tasks.dstl.recipe import IndexPart, Recipe

PathLike: TypeAlias = str | os.PathLike[str]
SEEN: tuple[Product, ...] = ("M",)
UNITS: Units = "metres"
EITHER = "either"
"""What both classes of a part are called while they are one."""


@dataclass(frozen=True, slots=True)
class FittedIndex:
    """One or two classes by an index.

    Parameters
    ----------
    classes : tuple of str
        The first is of features of `cut_m2` and more, the second of smaller ones.
    index, threshold, side
        As in `IndexClassifier`.
    cut_m2 : float
        0 for one class.
    jaccard : float
        On the labelled tiles, of all pixels of the classes together.
    roles, scale
        As in `IndexPart`.
    registered : bool
        Whether the tile is registered first.
    """

    classes: tuple[str, ...]
    index: str
    threshold: float
    side: Side
    cut_m2: float
    jaccard: float
    roles: Mapping[str, str]
    scale: float | None
    registered: bool

    def mask(self, tile: Tile, grid: Grid | None = None) -> Raster:
        """Return where a tile is of the classes: one bool channel on `grid`, else the three-band one in metres."""
        scene = tile.scene(products=SEEN, units=UNITS, register=self.registered)
        return self._classifier().apply(scene if grid is None or grid == scene.grid else scene.on_grid(grid))

    @property
    def becomes(self) -> tuple[ShapeRule, ...]:
        """What makes a feature of the first class one of the second."""
        return (ShapeRule(to=self.classes[1], below_m2=self.cut_m2),) if self.cut_m2 > 0 else ()

    @staticmethod
    def read(path: PathLike) -> tuple[FittedIndex, ...]:
        """Return what `write_fitted` wrote.

        Raises
        ------
        InputError
            Missing, or no such file (E-IN-319).
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            return tuple(FittedIndex(**{**one, "classes": tuple(one["classes"])}) for one in found)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"it holds no fitted indices: {error}", code="E-IN-319", path=path) from error

    def __str__(self) -> str:
        parted = f", {self.classes[0]} from {self.cut_m2:g} m2" if len(self.classes) > 1 else ""
        return f"{' and '.join(self.classes)}: {self._classifier()}{parted}"

    def _classifier(self) -> IndexClassifier:
        return IndexClassifier(
            self.index, self.threshold, self.side, EITHER, self.jaccard, None, self.roles, self.scale
        )


def write_fitted(rules: Sequence[FittedIndex], path: PathLike) -> None:
    """Write fitted indices as JSON; raises as `write_text`."""
    write_text(path, json.dumps([asdict(one) for one in rules], indent=2, allow_nan=False) + "\n")


def fit_index_parts(
    folder: ContestFolder, recipe: Recipe, *, progress: Progress = silent
) -> tuple[FittedIndex, ...]:
    """Return the index parts of `recipe` fitted to the labelled tiles; those of no labelled class are left out.

    Raises
    ------
    InputError, LabelError
        Faults of the folder.
    SpecError, BandError
        As `IndexClassifier.fit`.
    """
    if not recipe.indices:
        return ()
    wanted = {*SEEN, *recipe.products}
    tiles = {tile.image_id: tile for tile in folder.tiles(sorted(wanted))}
    layers = {image_id: layer for image_id, layer in folder.labels().items() if image_id in tiles}
    places = {image_id: _in_metres(tiles[image_id], layer) for image_id, layer in layers.items()}
    fitted = []
    for part in recipe.indices:
        whole = [layer[layer["class_name"].isin(part.classes)] for layer in places.values()]
        if not sum(map(len, whole)):
            continue
        data = []
        for done, (image_id, layer) in enumerate(places.items()):
            progress("registering" if part.registered else "opening", done, len(places), image_id)
            scene = tiles[image_id].scene(products=SEEN, units=UNITS, register=part.registered)
            names = layer["class_name"].where(~layer["class_name"].isin(part.classes), EITHER)
            data.append((scene, layer.assign(class_name=names)))
        fitted.append(_fitted(part, data, whole, progress))
    return tuple(fitted)


def _fitted(
    part: IndexPart,
    data: Sequence[tuple[Scene, geopandas.GeoDataFrame]],
    whole: Sequence[geopandas.GeoDataFrame],
    progress: Progress,
) -> FittedIndex:
    found = []
    for done, index in enumerate(part.indices):
        progress("fitting indices", done, len(part.indices), index)
        found.append(
            IndexClassifier.fit(index, data, class_name=EITHER, bands=part.roles or None, scale=part.scale)
        )
    best = max(found, key=lambda one: one.jaccard or 0.0)
    cut = best_cut(whole, part.classes) if len(part.classes) > 1 else 0.0
    return FittedIndex(
        part.classes, best.index, float(best.threshold), best.side, cut, float(best.jaccard or 0.0), dict(part.roles),
        part.scale, part.registered,
    )  # fmt: skip


def best_cut(layers: Sequence[geopandas.GeoDataFrame], classes: Sequence[str]) -> float:
    """Return the area from which on polygons are best said to be of the first class, in the layers' units squared.

    That with the highest mean of both classes' Jaccard indices, by area, over all polygons of `layers`; the middle
    between the polygons that it parts.
    """
    areas = np.concatenate([layer.geometry.area.to_numpy() for layer in layers])
    first = np.concatenate([layer["class_name"].to_numpy() == classes[0] for layer in layers])
    cuts = np.unique(areas)
    cuts = np.concatenate([[0.0], (cuts[1:] + cuts[:-1]) / 2, [cuts[-1] * 2]])

    def mean_jaccard(cut: float) -> float:
        said = areas >= cut
        return float(np.mean([_jaccard(areas, said == side, first == side) for side in (True, False)]))

    return float(max(cuts, key=mean_jaccard))


def _jaccard(areas: NDArray[np.float64], said: NDArray[Any], true: NDArray[Any]) -> float:
    union = float(areas[said | true].sum())
    return float(areas[said & true].sum()) / union if union else 0.0


def _in_metres(tile: Tile, layer: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    shapes = tile.frame().moved(layer.geometry.to_numpy(), source="label", target=UNITS)
    return layer.set_geometry(geopandas.GeoSeries(shapes, index=layer.index))
