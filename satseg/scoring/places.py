"""Places: where a comparison counts, and on which pixels.

A scene gives all at once: its footprint is the area of interest, its grid the pixels, its image the
picture, and ground that it did not see (nodata, cloud masks) counts for nobody. That ground is
outlined exactly, so that areas and pixels leave out the same places. A vector layer gives an area of
interest alone. Both may be given; then only what lies in both counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import geopandas
import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.crs import to_pyproj
from satseg.errors import UsageError
from satseg.grid import Grid
from satseg.imagery.scene import Scene, open_scene
from satseg.raster import Raster
from satseg.scoring.cells import Geometries, polygonal, sound
from satseg.scoring.layers import RASTER_SUFFIXES, STRIP_PX, Layer, strip_windows, trace
from satseg.vector.features import read_features
from satseg.vector.moving import move

Ground: TypeAlias = "Scene | Raster | Grid"
"""What has pixels with a place."""
AoiLike: TypeAlias = "Ground | geopandas.GeoDataFrame | shapely.Geometry | str | os.PathLike[str]"
SceneLike: TypeAlias = "Ground | str | os.PathLike[str]"


MAX_LATTICE_PX = 2**32
"""Beyond 65 536 pixels a side, a mask stretched to a far-away truth would count nothing for hours."""
BLOCK_ROWS = 512
"""Strips of this many rows are whole blocks of nearly every file, so that none is decoded twice."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Polygons whose union counts; `bare` ones say nothing about their CRS and are in the truth's."""

    polygons: Geometries
    crs: pyproj.CRS | None = None
    bare: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a comparison counts.

    Parameters
    ----------
    grid : Grid or None
        The pixels of the pixel scores; None where nothing names any.
    footprints : tuple of Grid
        Only what lies on all of them counts.
    aoi : Region or None
        Only what lies in it counts.
    unseen : Region or None
        What lies in it does not count.
    image : Scene or Raster or None
        The background of pictures, on `grid`.
    """

    grid: Grid | None = None
    footprints: tuple[Grid, ...] = ()
    aoi: Region | None = None
    unseen: tuple[Region, ...] = field(default=())
    image: Scene | Raster | None = None

    def beside(self, truth: Layer, pred: Layer) -> Place:
        """Return this place with what masks say: off a truth mask, and where it is empty, nothing is known.

        Their grids serve for the pixels where no scene does; that of a prediction is extended to
        the truth, so that what was missed counts.
        """
        place = self
        if truth.grid is not None:
            place = replace(place, footprints=(*place.footprints, truth.grid))
            if truth.unknown is not None and len(truth.unknown):
                place = replace(place, unseen=(*place.unseen, Region(truth.unknown, truth.crs)))
        return place if place.grid is not None else replace(place, grid=truth.grid or _extended(pred, truth))

    def counted(self, crs: pyproj.CRS | None, own: pyproj.CRS | None) -> Geometries | None:
        """Return the area of interest in `crs`, bare geometries being in `own`; None: everywhere."""
        parts = [np.array([grid.footprint(crs)], dtype=object) for grid in self.footprints]
        if self.aoi is not None:
            parts.append(move(self.aoi.polygons, own if self.aoi.bare else self.aoi.crs, crs))
        if len(parts) < 2:
            return parts[0] if parts else None
        common = shapely.intersection_all([shapely.union_all(part) for part in parts])
        return polygonal(np.array([common], dtype=object))

    def uncounted(self, crs: pyproj.CRS | None) -> Geometries:
        """Return the unseen places in `crs`."""
        parts = [move(region.polygons, region.crs, crs) for region in self.unseen]
        return np.concatenate(parts) if parts else np.empty(0, dtype=object)


def find_place(aoi: AoiLike | None, scene: SceneLike | None) -> Place:
    """Return the place that an area of interest and a scene, either of which may be missing, mean.

    Raises
    ------
    UsageError
        The scene has no grid (E-USE-060), or the area of interest has another one (E-USE-061).
    InputError
        A file is missing or damaged.
    """
    ground, outline = _ground(scene), _ground(aoi) if aoi is not None else None
    if scene is not None and ground is None:
        kind = type(scene).__name__
        raise UsageError(f"a {kind} is no scene", hint="give an image or a Grid", code="E-USE-060")
    lead = ground if ground is not None else outline
    place = Place() if lead is None else _place_of(lead)
    if outline is not None and outline is not lead:
        second = _place_of(outline)
        return replace(
            place, footprints=(*place.footprints, *second.footprints), unseen=(*place.unseen, *second.unseen)
        )
    return place if outline is not None or aoi is None else replace(place, aoi=_region(aoi))


def _ground(source: object) -> Ground | None:
    if isinstance(source, Scene | Raster | Grid):
        return source
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in RASTER_SUFFIXES:
        return open_scene(source)
    return None


def _region(aoi: Any) -> Region:
    layer = read_features(aoi) if isinstance(aoi, str | os.PathLike) else aoi
    if isinstance(layer, geopandas.GeoDataFrame):
        crs = None if layer.crs is None else pyproj.CRS(layer.crs)
        return Region(sound(layer.geometry.to_numpy()), crs)
    return Region(sound(layer), bare=True)


def _place_of(ground: Ground) -> Place:
    if isinstance(ground, Grid):
        return Place(ground, (ground,))
    grid = ground.grid
    unseen = trace(_invalid(ground), grid)
    crs = None if grid.crs is None else to_pyproj(grid.crs)
    regions = (Region(unseen, crs),) if len(unseen) else ()
    return Place(grid, (grid,), None, regions, ground)


def _invalid(ground: Scene | Raster) -> Iterator[NDArray[np.bool_]]:
    """Where the image is not valid, strip by strip from the top."""
    if isinstance(ground, Raster):
        yield ~ground.valid
        return
    rows = STRIP_PX // ground.grid.width // len(ground.bands)
    with ground.reader() as reader:
        for window in strip_windows(ground.grid, rows=rows, block_rows=BLOCK_ROWS):
            yield ~reader.read(window).valid


def _extended(pred: Layer, truth: Layer) -> Grid | None:
    """Return the grid of a predicted mask, enlarged to hold all true polygons; None beyond reason."""
    if pred.grid is None:
        return None
    known = truth.in_crs(pred.crs).polygons
    if not len(known):
        return pred.grid
    left, bottom, right, top = shapely.total_bounds(known)
    rows, cols = pred.grid.rowcol(xs=[left, right, right, left], ys=[bottom, bottom, top, top])
    row0, col0 = min(0, int(np.floor(rows.min()))), min(0, int(np.floor(cols.min())))
    row1 = max(pred.grid.height, int(np.ceil(rows.max())))
    col1 = max(pred.grid.width, int(np.ceil(cols.max())))
    if (row1 - row0) * (col1 - col0) > max(MAX_LATTICE_PX, pred.grid.height * pred.grid.width):
        return None
    return pred.grid.crop(Window(col0, row0, col1 - col0, row1 - row0))
