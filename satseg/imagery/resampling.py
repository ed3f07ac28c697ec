"""Resampling as weighted sums of source pixels, in numpy, from absolute pixel positions.

Every output pixel is a function of where its centre lies on the source and of nothing else, so a
window equals the crop of the whole, bit for bit, and tiled inference can equal the untiled one.
GDAL's warper was rejected: its approximate transformer and its choice of overview depend on how the
read is cut. Along an axis where the output is coarser, kernels are stretched by the ratio of the
pixel sizes, so that nothing aliases. Pixels that are not valid take no part; weights are shared out
among the others.

Kernels: nearest; bilinear (triangle); cubic with a = -0.5 (Keys 1981, IEEE Trans. ASSP 29(6)); average
(overlap with the output pixel's own area, which keeps means). "auto" is bilinear where the output is
finer and average where it is coarser: the two are one kernel at equal size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

from satseg.grid import SNAP_PX

Method: TypeAlias = Literal["auto", "nearest", "bilinear", "cubic", "average"]
Term: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float64]]
METHODS: tuple[str, ...] = get_args(Method)
MIN_VALID_SHARE = 0.5
"""An output pixel is valid when at least half of its weight lies on valid source pixels."""
NEGLIGIBLE_WEIGHT = 1e-7
"""Weights below this come from float noise in the position; dropping them reads fewer pixels."""
WIDE_RATIO = 2.0
"""Above this ratio sums have many terms and run in float64; below it float32 loses nothing that shows."""
KEYS_A = -0.5


@dataclass(frozen=True, slots=True)
class Taps:
    """Which source pixels make up each output position along one axis, with what weights.

    Parameters
    ----------
    index : ndarray of int64, (T, ...)
        Source pixels, inside the source's range; T taps for each output position.
    weight : ndarray of float64, (T, ...)
        Sums to 1 over the taps; 0 where a tap would lie outside the source.
    inside : ndarray of bool, (...)
        Whether the output's centre lies in the source's extent.
    wide : bool
        Whether sums have so many terms that they run in float64; by the ratio, never by the window.
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float64]
    inside: NDArray[np.bool_]
    wide: bool

    def span(self) -> range | None:
        """Return the source pixels that outputs inside the extent use; None when there are none."""
        used = (self.weight != 0) & self.inside
        if not used.any():
            return None
        return range(int(self.index[used].min()), int(self.index[used].max()) + 1)

    def within(self, span: range) -> Taps:
        """Return the same taps on a source cut to `span`."""
        return replace(self, index=np.clip(self.index - span.start, 0, len(span) - 1))


def kernel_of(method: str, ratio: float) -> str:
    """Return the kernel that `method` means where output pixels are `ratio` source pixels long."""
    if method == "auto":
        return "average" if ratio > 1 + SNAP_PX else "bilinear"
    return method


def make_taps(positions: NDArray[np.float64], *, size: int, ratio: float, method: str) -> Taps:
    """Return the taps of output centres at `positions` on a source axis of `size` pixels.

    Parameters
    ----------
    positions : ndarray of float64, any shape
        In source pixels (0.5 is the first pixel's centre); NaN where there is no source.
    size : int
        Source pixels along the axis.
    ratio : float
        Length of an output pixel in source pixels.
    method : str
        One of `METHODS`.
    """
    known = np.isfinite(positions)
    at = positions if known.all() else np.where(known, positions, 0.0)
    inside = known & (at >= -SNAP_PX) & (at <= size + SNAP_PX)
    kernel = kernel_of(method, ratio)
    if kernel == "nearest":
        # Centres on a pixel's edge go to the far pixel, whatever the float noise: windows agree.
        index = np.clip(np.floor(at + SNAP_PX), 0, size - 1).astype(np.int64)[None]
        return Taps(index, np.ones(index.shape), inside, wide=False)
    first, count, reach = _support(kernel, at, ratio)
    index = first[None] + np.arange(count).reshape(-1, *(1,) * at.ndim)
    weight = _weights(kernel, index, at, reach)
    weight[(index < 0) | (index >= size) | (np.abs(weight) < NEGLIGIBLE_WEIGHT)] = 0.0
    total = weight.sum(axis=0)
    weight /= np.where(total == 0, 1.0, total)
    needed = [bool(plane.any()) for plane in weight]
    kept = slice(None) if all(needed) or not any(needed) else needed
    return Taps(np.clip(index[kept], 0, size - 1), weight[kept], inside, wide=ratio > WIDE_RATIO)


def _support(kernel: str, at: NDArray[np.float64], ratio: float) -> tuple[NDArray[np.int64], int, float]:
    """Return first source pixel, number of taps, and the kernel's scale: half a box, or the stretch."""
    if kernel == "average":
        half = ratio / 2
        return np.floor(at - half + NEGLIGIBLE_WEIGHT).astype(np.int64), math.ceil(ratio - 1e-9) + 1, half
    stretch = max(1.0, ratio)
    reach = stretch * (1 if kernel == "bilinear" else 2)
    # Centres k + 0.5 strictly inside (at - reach, at + reach): at most ceil(2 reach) of them.
    return np.floor(at - reach + 0.5).astype(np.int64), math.ceil(2 * reach - 1e-9), stretch


def _weights(
    kernel: str, index: NDArray[np.int64], at: NDArray[np.float64], scale: float
) -> NDArray[np.float64]:
    if kernel == "average":
        covered = np.minimum(index + 1, at + scale) - np.maximum(index, at - scale)
        box: NDArray[np.float64] = np.maximum(covered, 0.0) / (2 * scale)
        return box
    distance = np.abs(index + 0.5 - at) / scale
    if kernel == "bilinear":
        triangle: NDArray[np.float64] = np.maximum(1.0 - distance, 0.0)
        return triangle
    near = ((KEYS_A + 2) * distance - (KEYS_A + 3)) * distance**2 + 1
    far = KEYS_A * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def resample_separable(
    data: NDArray[Any], valid: NDArray[np.bool_] | None, *, rows: Taps, cols: Taps, dtype: DTypeLike
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return `data` resampled along rows, then columns, and where the result is valid.

    Parameters
    ----------
    data : ndarray, (C, h, w)
        Holds 0 where not valid.
    valid : ndarray of bool, (h, w), or None
        None: all valid.
    rows, cols : Taps, (T, H) and (T, W)
        Of the output's H rows and W columns.
    dtype
        Of the result.

    Returns
    -------
    ndarray, (C, H, W) of `dtype`, 0 where not valid; ndarray of bool, (H, W)
    """
    work = _work_dtype(dtype, rows.wide or cols.wide)
    mixed = _mix(_mix(data, rows, axis=1, work=work), cols, axis=2, work=work)
    ok = rows.inside[:, None] & cols.inside[None, :]
    if valid is None:
        return _finish(mixed, ok, None, dtype)
    lost = _mix(_mix((~valid)[None], rows, axis=1, work=work), cols, axis=2, work=work)[0]
    return _finish(mixed, ok, lost, dtype)


def resample_scattered(
    data: NDArray[Any], valid: NDArray[np.bool_] | None, *, rows: Taps, cols: Taps, dtype: DTypeLike
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return `data` resampled where every output pixel has its own position on the source.

    As `resample_separable`, but `rows` and `cols` hold taps of shape (T, H, W).
    """
    work = _work_dtype(dtype, rows.wide or cols.wide)
    planes = data.reshape(len(data), -1)
    count = len(rows.index) * len(cols.index)
    mixed = _sum(planes, _pairs(rows, cols, width=data.shape[2]), count=count, axis=1, work=work)
    ok = rows.inside & cols.inside
    if valid is None:
        return _finish(mixed, ok, None, dtype)
    bad = (~valid).reshape(1, -1)
    lost = _sum(bad, _pairs(rows, cols, width=data.shape[2]), count=count, axis=1, work=work)[0]
    return _finish(mixed, ok, lost, dtype)


def _pairs(rows: Taps, cols: Taps, *, width: int) -> Iterator[Term]:
    """Yield for each pair of a row tap and a column tap the place in a plane `width` wide, and the weight."""
    for row, row_weight in zip(rows.index, rows.weight, strict=True):
        for col, col_weight in zip(cols.index, cols.weight, strict=True):
            yield row * width + col, row_weight * col_weight


def _work_dtype(dtype: DTypeLike, wide: bool) -> np.dtype[Any]:
    return np.dtype(np.float64 if wide or np.dtype(dtype) == np.float64 else np.float32)


def _mix(array: NDArray[Any], taps: Taps, *, axis: int, work: np.dtype[Any]) -> NDArray[Any]:
    """Return `array` (C, h, w) mixed along `axis`."""
    shape = (-1, 1) if axis == 1 else (-1,)
    terms = zip(taps.index, (weight.reshape(shape) for weight in taps.weight), strict=True)
    return _sum(array, terms, count=len(taps.index), axis=axis, work=work)


def _sum(
    array: NDArray[Any], terms: Iterator[Term], *, count: int, axis: int, work: np.dtype[Any]
) -> NDArray[Any]:
    """Return the weighted sum of picks from `array` along `axis`; a single pick keeps the dtype.

    Terms are added in the order of taps, one ufunc each: every output pixel gets the same operations in
    the same order whatever the window, which a matrix product does not promise.
    """
    index, weight = next(terms)
    array = array if count == 1 else array.astype(work, copy=False)
    total: NDArray[Any] = np.take(array, index, axis=axis)
    if count == 1:
        return total
    total *= weight.astype(work)
    term = np.empty_like(total)  # one buffer for all terms: fresh memory costs more than the sum
    for index, weight in terms:
        np.take(array, index, axis=axis, out=term, mode="clip")
        term *= weight.astype(work)
        total += term
    return total


def _finish(
    mixed: NDArray[Any], ok: NDArray[np.bool_], lost: NDArray[Any] | None, dtype: DTypeLike
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Share out the weight `lost` on invalid pixels, and zero what is not valid.

    Where no tap was invalid `lost` is exactly 0 and the division by 1 changes no bit: the result
    does not depend on invalid pixels elsewhere in the window.
    """
    if lost is not None:
        kept = 1.0 - lost.astype(np.float64)
        ok = ok & (kept >= MIN_VALID_SHARE - SNAP_PX)
        if mixed.dtype.kind == "f" and lost.any():
            mixed = mixed / np.where(ok, kept, 1.0).astype(mixed.dtype)
    result = mixed.astype(dtype, copy=False)
    if not ok.all():
        result = np.where(ok, result, np.zeros((), result.dtype))
    return result, ok
