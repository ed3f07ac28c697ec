"""Spectral indices as rasters: in memory, or streamed into a GeoTIFF some rows at a time.

Both go by the same `IndexBand`s as indices among a scene's bands do. What metadata cannot tell is looked for in the
values: stored floats of which one band is counts and another shares of 1, or that are no reflectance where reflectance
is needed. A raster in memory, which has no units, is looked at whole, a scene in a few places.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import BandError
from satseg.imagery.geotiff import BLOCK
from satseg.imagery.indices import FLOATS, SHARE, Candidate, IndexBand, Scale, add_indices, index_bands
from satseg.imagery.rows import RowReader
from satseg.imagery.scene import Scene
from satseg.imagery.writer import RasterWriter, check_raster_target
from satseg.output import check_distinct
from satseg.progress import Progress, silent
from satseg.raster import Raster
from satseg.specs import IndexSpec, SensorSpec, sensor_spec

PathLike = str | os.PathLike[str]
LOOKS, LOOK_PX = 3, 64
"""Places along each side, and their size, at which a scene's values are looked at."""
SMALL, LARGE = 2.0, 50.0
"""Largest values of two bands that are of different units: reflectance hardly passes 1.5, few counts stay below 50."""
NO_REFLECTANCE = 10.0

log = logging.getLogger(__name__)


def index(
    image: Scene | Raster,
    *names: str,
    sensor: str | SensorSpec | None = None,
    spec: IndexSpec | None = None,
    bands: Mapping[str, str] | None = None,
    scale: Scale | None = None,
    undefined: float | None = None,
    window: Window | None = None,
) -> Raster:
    """Return spectral indices of a scene or of a raster, such as ``index(scene, "ndvi")``.

    Parameters
    ----------
    image : Scene or Raster
        A raster's channels are its bands, all in one unit.
    names : str
        Of the shipped indices, or of those in `spec`.
    sensor : str or SensorSpec, optional
        What the bands of a raster are; scenes know it.
    bands, scale, undefined
        As `satseg.imagery.indices.index_bands`.
    window : Window, optional
        Part of the image; all when left out.

    Returns
    -------
    Raster, (indices, H, W) float32, or float64 where the image's values need it
        Not valid where the image is not, or an index is undefined (unless a value stands for that): 0 there.

    Raises
    ------
    SpecError, BandError
        As `index_bands`; values of several units (E-BAND-302) or that are no reflectance (E-BAND-303).
    """
    told: dict[str, Any] = {"spec": spec, "bands": bands, "scale": scale, "undefined": undefined}
    if isinstance(image, Raster):
        return _of_raster(image if window is None else image.crop(window), names, sensor, told)
    scene = index_scene(image, *names, **told)
    return scene.read(window=window)


def index_scene(scene: Scene, *names: str, **told: Any) -> Scene:
    """Return `scene` with the indices called `names` as its only bands; for the rest as `index`."""
    bare = replace(scene, indices=(), shown=())
    found = index_bands(names, [Candidate.of(source) for source in scene.sources], **told)
    check_scene(bare, found)
    return bare.with_index_bands(found).select([band.name for band in found])


def write_index(
    scene: Scene,
    path: PathLike,
    *names: str,
    spec: IndexSpec | None = None,
    bands: Mapping[str, str] | None = None,
    scale: Scale | None = None,
    undefined: float | None = None,
    window: Window | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> None:
    """Write indices of `scene` as a GeoTIFF, one float32 band each, NaN where there is none.

    Memory follows the scene's width, not its height. Parameters are those of `index`.

    Raises
    ------
    SpecError, BandError
        As `index`.
    OutputError, UsageError
        The file cannot be written.
    """
    check_raster_target(path, overwrite=overwrite)
    check_distinct([path], inputs=scene.paths)
    none = math.nan if undefined is None else undefined  # each index has gaps of its own
    chosen = index_scene(scene, *names, spec=spec, bands=bands, scale=scale, undefined=none)
    place = scene.grid.window if window is None else window
    with RasterWriter(
        path, grid=scene.grid.crop(place), names=chosen.bands, dtype=np.float32, nodata=math.nan, overwrite=overwrite,
        resampling="average", description="; ".join(band.told() for band in chosen.indices), in_rows=True,
    ) as out:  # fmt: skip
        for data, valid, part in strips(chosen, place, progress):
            if valid is not None:
                data[:, ~valid] = np.nan
            out.write(data.astype(np.float32, copy=False), part)


def strips(
    scene: Scene, window: Window, progress: Progress = silent
) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None, Window]]:
    """Yield `window` of `scene` from top to bottom, `BLOCK` rows at a time, each block of its files decoded once.

    Yields
    ------
    data (C, h, w), valid (h, w) or None where all is, and the place of both inside `window`. The same memory
    each time.
    """
    top, left, height, width = map(round, (window.row_off, window.col_off, window.height, window.width))
    data = np.empty((len(scene.bands), min(BLOCK, height), width), scene.dtype)
    valid = np.empty(data.shape[1:], bool)
    with RowReader(scene, rows=range(top, top + height), cols=range(left, left + width), threads=2) as rows:
        for first in range(0, height, BLOCK):
            count = min(BLOCK, height - first)
            view = rows.window(top + first, top + first + count)
            whole = view.copy_into(data[:, :count], valid[:count], Window(left, top + first, width, count))
            yield data[:, :count], None if whole else valid[:count], Window(0, first, width, count)
            progress("index", first + count, height, "")


def _of_raster(
    raster: Raster, names: Sequence[str], sensor: str | SensorSpec | None, told: dict[str, Any]
) -> Raster:
    known = sensor_spec(sensor) if isinstance(sensor, str) else sensor
    specs = {band.name: band for band in known.bands} if known else {}
    among = [Candidate(name, str(raster.data.dtype), spec=specs.get(name)) for name in raster.names]
    found = index_bands(names, among, **told)
    kind = np.result_type(raster.data.dtype, np.float32)
    used = {one.band for band in found for one in band.inputs}
    planes = {name: raster.data[raster.names.index(name)].astype(kind) for name in sorted(used)}
    valid = raster.valid.copy()
    for plane in planes.values():
        valid &= np.isfinite(plane)
    for plane in planes.values():
        plane[~valid] = 0
    _check_values(found, {name: float(np.abs(plane).max(initial=0.0)) for name, plane in planes.items()})
    data = np.empty((len(found), *raster.grid.shape), kind)
    names = tuple(band.name for band in found)
    lost = add_indices(found, planes, dict(zip(names, data, strict=True)))
    if lost is not None:
        valid &= ~lost
    data[:, ~valid] = 0
    return Raster(data, raster.grid, names, valid)


def check_scene(scene: Scene, indices: Sequence[IndexBand]) -> None:
    """Look at a few places of `scene` and raise BandError where values are not of one unit; warn of shares.

    Only stored floats are looked at, of which neither file nor sensor tells the unit.
    """
    for band in indices:
        if band.unit == SHARE and not band.formula.is_scale_free:
            log.warning("%s is computed on shares of the full scale, not on reflectance; scale= says better", band.name)
    used = sorted({one.band for band in indices for one in band.inputs if one.unit.name == FLOATS})
    if not used:
        return
    largest = np.zeros(len(used))
    with scene.select(used).reader() as reader:
        for part in _places(scene.grid.height, scene.grid.width):
            raster = reader.read(part)
            largest = np.maximum(largest, np.abs(raster.data).max(axis=(1, 2)))
    _check_values(indices, dict(zip(used, map(float, largest), strict=True)))


def _places(height: int, width: int) -> Iterator[Window]:
    rows, cols = min(LOOK_PX, height), min(LOOK_PX, width)
    for down in range(LOOKS):
        for along in range(LOOKS):
            yield Window((width - cols) * along // (LOOKS - 1), (height - rows) * down // (LOOKS - 1), cols, rows)


def _check_values(indices: Sequence[IndexBand], largest: Mapping[str, float]) -> None:
    """Raise BandError where the largest values of stored floats, by band, are of several units or no reflectance."""
    for band in indices:
        if band.unit != FLOATS:
            continue
        seen = {one.band: largest[one.band] for one in band.inputs if largest[one.band] > 0}
        said = ", ".join(f"{name} up to {value:.6g}" for name, value in seen.items())
        if seen and min(seen.values()) <= SMALL and max(seen.values()) >= LARGE:
            raise BandError(
                f"{band.name} mixes units: {said}",
                hint="bring all to one unit, or give scale= (--scale) for each",
                code="E-BAND-302",
            )
        if seen and not band.formula.is_scale_free and max(seen.values()) > NO_REFLECTANCE:
            raise BandError(
                f"{band.name} is of reflectance, and the bands hold {said}",
                hint="give scale= (--scale), the factor to reflectance, such as 1/10000",
                code="E-BAND-303",
            )
