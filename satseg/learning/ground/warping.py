"""Chips seen under any turn and zoom: one compiled pass from decoded pixels to the chip.

A `View` says where the rows and columns of a chip lie in a scene; `warp` fills the chip from it, the image by
bilinear interpolation, the truth by the nearest pixel. A pixel is valid, or labelled, where every pixel that it
is blended from is. Beyond the edge of a scene that is smaller than the view the scene is mirrored: zeros
there would teach what an edge of zeros looks like.

Rejected: torch's grid_sample on the batch, which took 0.7 CPU seconds for a million pixels of a chip, nearly
as much as training on them; this takes 0.03. Warping an image is no part of the randomness, so it may run in
a loader: a view is drawn by `sampling` from the chip's number alone (`draw_turn`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, TypedDict

import numba
import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.learning.compiled import compiled, readonly
from satseg.options import AugmentOptions


class Turn(TypedDict):
    """How a chip lies on its scene: degrees, magnification, and whether its columns run backwards."""

    angle: float
    zoom: float
    mirrored: bool


def draw_turn(options: AugmentOptions, rng: np.random.Generator) -> Turn:
    """Draw how a chip is turned and zoomed; always four numbers of `rng`, whatever the options."""
    any_angle, free, size, mirror = rng.random(4)
    low, high = (math.log(limit) for limit in options.zoom)
    quarter = 90.0 * math.floor(4 * any_angle) if options.d4 else 0.0
    return Turn(
        angle=360.0 * any_angle if free < options.rotate else quarter,
        zoom=math.exp(low + (high - low) * size),
        mirrored=options.d4 and mirror < 0.5,
    )


@dataclass(frozen=True, slots=True)
class View:
    """Where a square chip lies in a scene.

    Parameters
    ----------
    row, col : float
        Of the chip's centre, in pixels from the upper left corner of the scene.
    down, right : (rows, cols)
        The way in the scene for one row down, and one column right, in the chip.
    """

    row: float
    col: float
    down: tuple[float, float] = (1.0, 0.0)
    right: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def turned(cls, row: float, col: float, *, angle: float, zoom: float, mirrored: bool) -> View:
        """Return a view turned by `angle` degrees and magnified by `zoom`, its columns mirrored first if asked."""
        cos, sin = _cos_sin(angle)
        flip = -1.0 if mirrored else 1.0
        return cls(row, col, (cos / zoom, sin / zoom), (-sin * flip / zoom, cos * flip / zoom))

    @classmethod
    def of(cls, window: Window) -> View:
        """Return the view of a square window as it is."""
        return cls(window.row_off + window.height / 2, window.col_off + window.width / 2)

    def extent(self, size: int) -> tuple[float, float]:
        """Height and width in the scene of the rectangle around a chip of `size` pixels a side."""
        return tuple(size * (abs(d) + abs(r)) for d, r in zip(self.down, self.right, strict=True))  # type: ignore[return-value]

    def window(self, size: int) -> Window:
        """Return the window around all scene pixels that a chip of `size` pixels a side is blended from."""
        half_height, half_width = (side * (size - 1) / size / 2 for side in self.extent(size))
        row, col = self.row - 0.5, self.col - 0.5  # from centres of pixels; magnified, it asks for one beyond its edge
        top, bottom = math.floor(row - half_height), math.ceil(row + half_height) + 1
        left, right = math.floor(col - half_width), math.ceil(col + half_width) + 1
        return Window(left, top, right - left, bottom - top)


def _cos_sin(angle: float) -> tuple[float, float]:
    """Cosine and sine of an angle in degrees, exact for quarter turns."""
    if angle % 90 == 0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(angle % 360) // 90]
    return math.cos(math.radians(angle)), math.sin(math.radians(angle))


Arrays: TypeAlias = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.uint8], NDArray[np.bool_]]
"""image (C, S, S), valid (S, S), target (K, S, S), labelled (S, S)."""


def warp(
    image: NDArray[Any],
    valid: NDArray[np.bool_],
    target: NDArray[np.uint8],
    labelled: NDArray[np.bool_],
    view: View,
    *,
    place: Window,
    size: int,
) -> Arrays:
    """Return the chip of `size` pixels a side that `view` shows.

    Parameters
    ----------
    image : ndarray (C, h, w) of any real dtype
    valid, labelled : ndarray of bool (h, w)
    target : ndarray of uint8 (K, h, w)
    view : View
    place : Window
        Where the arrays lie in the scene: all of ``view.window(size)`` that the scene has.
    size : int

    Returns
    -------
    image, valid, target, labelled
        The image 0 where not valid, the target 0 where not labelled.
    """
    square = (size, size)
    out = (
        np.empty((len(image), *square), np.float32), np.empty(square, bool),
        np.empty((len(target), *square), np.uint8), np.empty(square, bool),
    )  # fmt: skip
    where = np.array([view.row - place.row_off, view.col - place.col_off, *view.down, *view.right])
    native = np.ascontiguousarray(image.astype(image.dtype.newbyteorder("="), copy=False))
    fill = _warper(native.dtype.name)
    fill(native, *(np.ascontiguousarray(plane) for plane in (valid, target, labelled)), where, *out)
    return out


@cache
def _warper(dtype: str) -> Callable[..., None]:
    flags, truth, image = (
        numba.types.Array(number, dimensions, "C", readonly=True)
        for number, dimensions in ((numba.boolean, 2), (numba.uint8, 3), (numba.from_dtype(np.dtype(dtype)), 3))
    )
    made = (numba.float32[:, :, ::1], numba.boolean[:, ::1], numba.uint8[:, :, ::1], numba.boolean[:, ::1])
    return compiled(_warp, image, flags, truth, flags, readonly(numba.float64, 1), *made)


def _warp(
    image: NDArray[Any], valid: NDArray[np.bool_], target: NDArray[np.uint8], labelled: NDArray[np.bool_],
    where: NDArray[np.float64],
    out: NDArray[np.float32], usable: NDArray[np.bool_], truth: NDArray[np.uint8], known: NDArray[np.bool_],
) -> None:  # fmt: skip
    rows, cols, size = valid.shape[0], valid.shape[1], usable.shape[0]
    bands, pixels = image.reshape(image.shape[0], -1), image.shape[1] * image.shape[2]
    truths, fine, sure = target.reshape(target.shape[0], pixels), valid.reshape(pixels), labelled.reshape(pixels)
    at, part = np.empty((5, size), np.uint32), np.empty((2, size), np.float32)
    for i in range(size):
        for j in range(size):
            u, v = i + 0.5 - size / 2, j + 0.5 - size / 2
            r = where[0] + where[2] * u + where[4] * v - 0.5
            c = where[1] + where[3] * u + where[5] * v - 0.5
            while rows > 1 and (r < 0 or r > rows - 1):
                r = -r if r < 0 else 2 * (rows - 1) - r
            while cols > 1 and (c < 0 or c > cols - 1):
                c = -c if c < 0 else 2 * (cols - 1) - c
            r, c = r if rows > 1 else 0.0, c if cols > 1 else 0.0
            r0, c0 = int(r), int(c)
            down, right = cols * (r > r0), np.int64(c > c0)  # a neighbour of weight 0 has no say
            first = r0 * cols + c0
            fr, fc = np.float32(r - r0), np.float32(c - c0)
            at[0, j], at[1, j], at[2, j], at[3, j] = first, first + right, first + down, first + down + right
            at[4, j] = first + (down if fr >= 0.5 else 0) + (right if fc >= 0.5 else 0)
            part[0, j], part[1, j] = fr, fc
        for j in range(size):
            a, b, c, d = at[0, j], at[1, j], at[2, j], at[3, j]
            usable[i, j] = fine[a] & fine[b] & fine[c] & fine[d]
            known[i, j] = sure[a] & sure[b] & sure[c] & sure[d]
        for k in range(out.shape[0]):  # band by band, as they lie in memory
            band = bands[k]
            for j in range(size):
                upper, lower = np.float32(band[at[0, j]]), np.float32(band[at[2, j]])
                upper += (np.float32(band[at[1, j]]) - upper) * part[1, j]
                lower += (np.float32(band[at[3, j]]) - lower) * part[1, j]
                value = upper + (lower - upper) * part[0, j]
                out[k, i, j] = value if usable[i, j] else np.float32(0)
        for k in range(truth.shape[0]):
            for j in range(size):
                truth[k, i, j] = truths[k, at[4, j]] if known[i, j] else 0
