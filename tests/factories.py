"""Small GeoTIFFs of any kind, written by rasterio itself, for tests that read them back.

Import as ``from tests.factories import write_tiff``; nothing here uses satseg, so it can be an oracle.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

UTM = "EPSG:32633"
ORIGIN = (500_000.0, 5_000_000.0)
"""On the central meridian of UTM zone 33, 45.15 degrees north."""


def north_up(
    gsd: float = 10.0, *, x: float = ORIGIN[0], y: float = ORIGIN[1], gsd_y: float | None = None
) -> Affine:
    """Transform of a north-up grid whose upper left corner is at `x`, `y`."""
    return Affine(gsd, 0.0, x, 0.0, -(gsd_y or gsd), y)


def rotated(degrees: float, gsd: float = 10.0, *, x: float = ORIGIN[0], y: float = ORIGIN[1]) -> Affine:
    """Transform of a north-up grid turned about its upper left corner."""
    turn, size = np.deg2rad(degrees), gsd
    cos, sin = np.cos(turn) * size, np.sin(turn) * size
    return Affine(cos, sin, x, sin, -cos, y)


def noise(count: int, height: int, width: int, *, dtype: str = "uint16", seed: int = 0) -> NDArray[Any]:
    """(count, height, width) random values, from 1 up, so that 0 can be nodata."""
    values = np.random.default_rng(seed).integers(1, 120, (count, height, width))
    return values.astype(dtype)


def smooth(height: int, width: int, transform: Affine, *, scale: float = 300.0) -> NDArray[np.float64]:
    """(height, width) of one function of world x, y at pixel centres: the same ground seen by any grid."""
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x = transform.a * cols + transform.b * rows + transform.c - ORIGIN[0]
    y = transform.d * cols + transform.e * rows + transform.f - ORIGIN[1]
    return 100 + 40 * np.sin(x / scale) + 30 * np.cos(y / scale + x / (2 * scale))


def write_tiff(
    path: Path,
    data: ArrayLike,
    *,
    transform: Affine | None = None,
    crs: str | None = UTM,
    nodata: float | None = None,
    descriptions: Sequence[str] = (),
    colours: Sequence[str] = (),
    mask: ArrayLike | None = None,
    scale: tuple[float, float] | None = None,
    colormap: Mapping[int, tuple[int, int, int, int]] | None = None,
    overviews: Sequence[int] = (),
    **profile: Any,
) -> Path:
    """Write (C, H, W) or (H, W) `data` to `path` and return it.

    `transform` is `north_up()` when left out; give ``Affine.identity()`` for a file without a place.
    `colours` are rasterio colour interpretations, `mask` is an internal mask (True = valid), `scale` is
    (scale, offset) of all bands; other options go to rasterio (driver, tiled, compress, interleave, gcps).
    """
    planes = np.asarray(data)
    planes = planes[None] if planes.ndim == 2 else planes
    count, height, width = planes.shape
    place = north_up() if transform is None else transform
    options = {"driver": "GTiff", "nodata": nodata, **profile}
    if place != Affine.identity():
        options |= {"transform": place}
    if crs is not None:
        options |= {"crs": crs}
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        size = {"count": count, "height": height, "width": width, "dtype": planes.dtype}
        with rasterio.open(path, "w", **size, **options) as out:
            if colours:
                out.colorinterp = [ColorInterp[name] for name in colours]
            if descriptions:
                out.descriptions = tuple(descriptions)
            if scale is not None:
                out.scales, out.offsets = (scale[0],) * count, (scale[1],) * count
            out.write(planes)
            if mask is not None:
                out.write_mask(np.asarray(mask, bool))
            if colormap is not None:
                out.write_colormap(1, dict(colormap))
            if overviews:
                out.build_overviews(list(overviews))
    return path
