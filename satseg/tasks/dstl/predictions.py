"""Predictions: vector files of a folder as layers in label units, read when a tile's turn comes.

A file per tile, called after it (``6120_2_4.gpkg``), or one file of all with a column ``image_id``. Coordinates are
metres of the tile's frame where `prepare` made the scenes, pixels where a bare file was detected on, or label units;
which of them cannot be told from the numbers with certainty, so it is said, and what leaves the tile is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.errors import InputError, LabelError
from satseg.scoring.pairs import VECTOR_SUFFIXES
from satseg.tasks.dstl.facts import class_names
from satseg.tasks.dstl.folder import ContestFolder
from satseg.tasks.dstl.frame import Frame, Units, check_units
from satseg.tasks.dstl.labels import as_layer, check_inside
from satseg.tasks.dstl.tables import PathLike
from satseg.vector.features import read_features

IMAGE_FIELD = "image_id"
DOT_PX = 0.5
"""Pixels of the three-band file that no layer of polygons is smaller than."""


class Predictions(Mapping[str, geopandas.GeoDataFrame]):
    """Layers by tile, each read when it is looked up; made by `read_predictions`.

    Parameters
    ----------
    files : mapping of tile to path
        One file per tile.
    layers : mapping of tile to GeoDataFrame
        What is in memory already.
    folder : ContestFolder
        For the frames.
    units : "metres", "label" or "pixels"
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        layers: Mapping[str, geopandas.GeoDataFrame],
        *,
        folder: ContestFolder,
        units: Units,
    ) -> None:
        self._files, self._layers, self._folder, self._units = files, layers, folder, units

    def __iter__(self) -> Iterator[str]:
        return iter((*self._files, *self._layers))

    def __len__(self) -> int:
        return len(self._files) + len(self._layers)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._files or image_id in self._layers

    def __getitem__(self, image_id: str) -> geopandas.GeoDataFrame:
        """Return the tile's polygons in label units: class_id, class_name, geometry.

        Raises
        ------
        InputError
            The file is damaged, or `grid_sizes.csv` has no such tile.
        LabelError
            A class that is none of the ten (E-LAB-332), or polygons outside the tile (E-LAB-312).
        """
        path = self._files.get(image_id, self._folder.path)
        layer = self._layers[image_id] if image_id in self._layers else read_features(path)
        numbers = {name: number for number, name in class_names().items()}
        names = [str(name) for name in layer["class_name"]]
        odd = sorted(set(names) - set(numbers))
        if odd:
            raise LabelError(
                f"tile {image_id}: {', '.join(map(repr, odd[:5]))} are no classes of the contest",
                hint=f"class_name is one of {', '.join(numbers)}",
                code="E-LAB-332",
                path=path,
            )
        shapes = layer.geometry.to_numpy()
        if self._units != "label" and len(shapes):
            frame = self._folder.tile(image_id).frame()
            self._check_size(shapes, frame, path)
            shapes = frame.moved(shapes, source=self._units, target="label")
        for number, shape in enumerate(shapes, start=1):
            check_inside(shape, image_id, self._folder.extents, f"feature {number} in {self._units}", path)
        return as_layer(shapes, [numbers[name] for name in names])

    def _check_size(self, shapes: NDArray[np.object_], frame: Frame, path: Path) -> None:
        """Raise LabelError (E-LAB-342) when everything lies in a dot: label units read as metres or pixels do."""
        left, bottom, right, top = shapely.total_bounds(shapes).tolist()
        x, y = frame.steps(self._units)
        if max((right - left) / x, (top - bottom) / abs(y)) < DOT_PX:
            raise LabelError(
                f"all {len(shapes)} features lie within {DOT_PX} pixels, if they are in {self._units}",
                hint="are they in other units? say which with --units",
                code="E-LAB-342",
                path=path,
            )


def read_predictions(folder: ContestFolder, path: PathLike, *, units: Units = "metres") -> Predictions:
    """Return what was predicted for each tile, in label units.

    Parameters
    ----------
    folder : ContestFolder
        Whose three-band files give the frames.
    path : path-like
        A folder with a vector file per tile, or one file with a column ``image_id``.
    units : "metres", "label" or "pixels"
        Of the predictions: metres on scenes of `prepare`, pixels on the contest's bare files.

    Raises
    ------
    InputError
        No such path (E-IN-316), no vector file in the folder (E-IN-317), or two of a tile (E-IN-318).
    LabelError
        One file without a column ``image_id`` (E-LAB-341), or with features that state none (E-LAB-343).
    UsageError
        Unknown `units` (E-USE-306).
    """
    check_units(units)
    place = Path(path)
    if place.is_dir():
        return Predictions(_files(place), {}, folder=folder, units=units)
    if not place.is_file():
        raise InputError("there is no such file or folder", code="E-IN-316", path=path)
    table = read_features(place)
    if IMAGE_FIELD not in table and len(table):
        raise LabelError(
            f"no column {IMAGE_FIELD!r} says which tile a feature is of; there are {list(table.columns)}",
            hint="give a folder with a file per tile, such as 6120_2_4.gpkg", code="E-LAB-341", path=path,
        )  # fmt: skip
    if len(table) and table[IMAGE_FIELD].isna().any():
        first = int(table[IMAGE_FIELD].isna().to_numpy().argmax()) + 1
        raise LabelError(
            f"{int(table[IMAGE_FIELD].isna().sum())} features have no {IMAGE_FIELD}, the first is feature {first}",
            hint="say of each which tile it is of", code="E-LAB-343", path=path,
        )  # fmt: skip
    ids = table[IMAGE_FIELD].astype(str).to_numpy() if len(table) else np.empty(0, dtype=object)
    layers = {image_id: table[ids == image_id] for image_id in sorted(set(ids))}
    return Predictions({}, layers, folder=folder, units=units)


def _files(place: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(place.iterdir()):
        if path.suffix.lower() in VECTOR_SUFFIXES:
            if path.stem in found:
                raise InputError(
                    f"tile {path.stem} has both {found[path.stem].name} and {path.name}", hint="keep one of them",
                    code="E-IN-318", path=place,
                )  # fmt: skip
            found[path.stem] = path
    if not found:
        raise InputError(
            "no vector file is in it", hint=f"a file per tile: {' '.join(VECTOR_SUFFIXES)}", code="E-IN-317", path=place
        )
    return found
