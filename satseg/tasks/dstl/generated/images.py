"""Photographs a planned tile: the RGB, panchromatic, multispectral and short-wave images of one visit.

The ground is drawn once at RGB resolution in the eight multispectral bands and once at 1.24 m in the
eight short-wave ones; M and A are exact means over their own, shifted, larger pixels. Rejected: making
M by resizing the RGB image, which leaves nothing below a pixel to register.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from satseg.synthetic.layout import Layout
from satseg.synthetic.rendering import BLUR_PX, COUNTS_PER_REFLECTANCE, MAX_COUNT, Canvas, Light, blur, paint
from satseg.synthetic.shortwave import SWIR
from satseg.synthetic.spectra import BANDS, VNIR, BandSet
from satseg.tasks.dstl.facts import GSD_M
from satseg.tasks.dstl.generated.country import Look
from satseg.tasks.dstl.generated.roster import Sizes
from satseg.tasks.dstl.generated.site import MARGIN_M

Pixels = NDArray[np.float32]

EDGE_PX = 16
"""RGB pixels drawn around the tile: M may be shifted by 11."""
SWIR_STEP_M = 4 * GSD_M
SWIR_COUNTS, SWIR_MOST = 13_000.0, 16_383
"""Counts to a reflectance of 1, and the most that fourteen bits hold."""
PAN_WEIGHTS = np.array([0, 0.14, 0.20, 0.18, 0.20, 0.17, 0.11, 0], np.float32)
"""Of the multispectral bands in the panchromatic one, 450-800 nm."""
RGB = tuple(BANDS.index(name) for name in ("red", "green", "blue"))
M_NOISE, RGB_NOISE, PAN_NOISE, SWIR_NOISE = (1.5, 0.004), (2.5, 0.008), (2.5, 0.006), (12.0, 0.004)
"""Sigma in counts: a constant part and one in proportion to the count."""


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """The images of one tile, (bands, height, width) uint16: RGB, P and M in 11 bits, A in 14."""

    rgb: NDArray[np.uint16]
    pan: NDArray[np.uint16]
    multi: NDArray[np.uint16]
    swir: NDArray[np.uint16]


def photograph(
    rng: Generator, layout: Layout, look: Look, sizes: Sizes, shifts: dict[str, tuple[float, float]]
) -> Images:
    """Return the images of `layout`, whose origin is the tile's lower left corner.

    `shifts` holds (dx, dy) of M and A in RGB pixels, right and down: what RGB shows at (col, row) they
    show at (col + dx, row + dy), in their own pixels.
    """
    high, wide = sizes.rgb
    canvas = Canvas(
        rng, height=high + 2 * EDGE_PX, width=wide + 2 * EDGE_PX, gsd_m=GSD_M,
        corner=(-EDGE_PX * GSD_M, -EDGE_PX * GSD_M),
    )  # fmt: skip
    near = _seen(rng, canvas, layout, look.light, VNIR)
    near *= look.light.gain[:, None, None]
    inner = slice(EDGE_PX, EDGE_PX + high), slice(EDGE_PX, EDGE_PX + wide)
    colours = blur(near[list(RGB)], BLUR_PX)[:, *inner]
    pan = np.tensordot(PAN_WEIGHTS, near, 1)[None]
    tile = (float(EDGE_PX), float(EDGE_PX), float(high), float(wide))
    swir = _shortwave(rng, layout, look, sizes, shifts["A"])
    scale = COUNTS_PER_REFLECTANCE
    return Images(
        rgb=_counts(rng, colours * scale, RGB_NOISE, MAX_COUNT),
        pan=_counts(rng, area_mean(pan, tile, sizes.pan) * scale, PAN_NOISE, MAX_COUNT),
        multi=_counts(rng, area_mean(near, _moved(tile, shifts["M"]), sizes.multi) * scale, M_NOISE, MAX_COUNT),
        swir=_counts(rng, swir, SWIR_NOISE, SWIR_MOST),
    )


def area_mean(planes: Pixels, box: tuple[float, float, float, float], shape: tuple[int, int]) -> Pixels:
    """Return the exact means of `planes` over the pixels of a grid of `shape` laid over `box`.

    Parameters
    ----------
    planes : ndarray, (C, H, W)
    box : tuple of float
        Top row, left column, height and width in pixels of `planes`; must lie in them.
    shape : tuple of int
        Height and width of the result.

    Returns
    -------
    ndarray of float32, (C, *shape)
    """
    means = np.asarray(planes, np.float64)
    for axis, (start, length, count) in enumerate(zip(box[:2], box[2:], shape, strict=True), start=1):
        edges = start + np.arange(count + 1) * (length / count)
        first = np.minimum(np.floor(edges).astype(int), means.shape[axis] - 1)
        part = np.expand_dims(edges - first, 1) if axis == 1 else (edges - first)[None, :]
        zero = np.zeros_like(means.take([0], axis))
        sums = np.concatenate([zero, np.cumsum(means, axis)], axis)
        at = sums.take(first, axis) + part * means.take(first, axis)
        means = np.diff(at, axis=axis) / (length / count)
    return np.asarray(means, np.float32)


def _moved(
    box: tuple[float, float, float, float], shift: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return where a sensor looks whose image shows things moved by `shift` (dx, dy)."""
    return box[0] - shift[1], box[1] - shift[0], box[2], box[3]


def _shortwave(
    rng: Generator, layout: Layout, look: Look, sizes: Sizes, shift: tuple[float, float]
) -> Pixels:
    """Return A before noise, in counts: drawn in pixels of four RGB ones, then averaged."""
    high_m, wide_m = (side * GSD_M for side in sizes.rgb)
    edge = math.floor(MARGIN_M / SWIR_STEP_M)
    rows, cols = (math.ceil(side / SWIR_STEP_M) + 2 * edge for side in (high_m, wide_m))
    corner = (-edge * SWIR_STEP_M, -edge * SWIR_STEP_M)
    canvas = Canvas(rng, height=rows, width=cols, gsd_m=SWIR_STEP_M, corner=corner, bands=SWIR)
    far = _seen(rng, canvas, layout, look.light, SWIR) * (look.swir_gain * np.float32(SWIR_COUNTS))[:, None, None]
    high, wide = high_m / SWIR_STEP_M, wide_m / SWIR_STEP_M
    box = _moved((rows - edge - high, float(edge), high, wide), (shift[0] / 4, shift[1] / 4))
    return area_mean(far, box, sizes.swir)


def _seen(rng: Generator, canvas: Canvas, layout: Layout, light: Light, bands: BandSet) -> Pixels:
    """Return what reaches the sensor: the lit ground under slightly uneven light, and haze."""
    lit = paint(canvas, layout, light)
    rows, cols = lit.shape[1:]
    tilt = rng.uniform(-0.03, 0.03, 2)
    slope = 1 + tilt[0] * np.linspace(-1, 1, rows)[:, None] + tilt[1] * np.linspace(-1, 1, cols)[None, :]
    lit *= slope.astype(np.float32)
    lit += np.float32(light.haze) * bands.haze[:, None, None]
    return lit


def _counts(rng: Generator, clean: Pixels, noise: tuple[float, float], most: int) -> NDArray[np.uint16]:
    """Return noisy counts in 1..`most`."""
    constant, share = noise
    noisy = clean + rng.standard_normal(clean.shape, np.float32) * (constant + share * clean)
    return np.asarray(np.clip(np.rint(noisy), 1, most), np.uint16)
