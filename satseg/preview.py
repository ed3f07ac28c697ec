"""Small pictures of rasters for notebooks and reports: a stretched RGB, encoded as PNG.

Encoding goes through GDAL's in-memory PNG driver, which is here anyway; matplotlib and Pillow are
not needed to look at a scene.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile

MAX_SIDE_PX = 512
STRETCH_PERCENT = (2.0, 98.0)
"""The usual contrast stretch of GIS viewers (QGIS: cumulative count cut 2-98 %)."""
RGB_NAMES = ("red", "green", "blue")


def rgb_preview(
    data: NDArray[Any], valid: NDArray[np.bool_], names: Sequence[str], *, max_side: int = MAX_SIDE_PX
) -> NDArray[np.uint8]:
    """Return (4, h, w) uint8 RGBA of at most `max_side` pixels a side; invalid pixels transparent.

    Red, green and blue are taken by name; else the first three channels, else the first as grey.
    Each channel is stretched between its 2nd and 98th percentile over valid pixels.
    """
    step = max(1, -(-max(data.shape[1:]) // max_side))
    small, usable = data[:, ::step, ::step], valid[::step, ::step]
    by_name = all(name in names for name in RGB_NAMES)
    first = list(range(3)) if len(names) >= 3 else [0, 0, 0]
    order = [list(names).index(name) for name in RGB_NAMES] if by_name else first
    planes = [stretch(small[i], usable) for i in order]
    return np.stack([*planes, np.where(usable, 255, 0).astype(np.uint8)])


def stretch(band: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return `band` (H, W) scaled to 0..255 between its 2nd and 98th percentile over `valid`."""
    values = band[valid & np.isfinite(band)].astype(np.float64)
    if values.size == 0:
        return np.zeros(band.shape, np.uint8)
    low, high = np.percentile(values, STRETCH_PERCENT)
    span = high - low if high > low else 1.0
    scaled = (np.nan_to_num(band.astype(np.float64)) - low) / span
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return the PNG file of `pixels`, (1|3|4, H, W) uint8."""
    count, height, width = pixels.shape
    with MemoryFile(ext=".png") as memory:
        with memory.open(driver="PNG", count=count, height=height, width=width, dtype="uint8") as target:
            target.write(pixels)
        return bytes(memory.read())


def picture_tag(pixels: NDArray[np.uint8], alt: str = "preview") -> str:
    """Return an HTML img element that carries `pixels` inside itself."""
    encoded = base64.b64encode(encode_png(pixels)).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{encoded}"/>'
