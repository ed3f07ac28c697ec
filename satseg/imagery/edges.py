"""Edges of imagery, whatever its bands respond to: what labels and products are laid over each other by.

An edge is a complex number: how strong it is, and twice the angle of its normal, so that both sides of it are alike.
Roofs are brighter than their ground in one band and darker in another, and the edge is the same. Rejected: strength
alone, which forgets that edges which cross do not match, and grey values, which need one response for all bands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMOOTH = np.array([1.0, 4.0, 6.0, 4.0, 1.0], np.float32) / 16
"""Binomial window that planes are smoothed by before they are differentiated."""


def image_edges(data: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.complex128] | None:
    """Return edges of all bands as complex numbers: strength, and twice the angle of the normal.

    Parameters
    ----------
    data : ndarray, (C, H, W)
        Values of any dtype.
    valid : ndarray of bool, (H, W)

    Returns
    -------
    ndarray of complex128, (H, W), or None
        Summed over bands, in standard deviations of the strength; 0 within 3 pixels of what is not valid. None where
        less than a quarter is valid, or nothing has an edge.
    """
    inner = shrunk(valid, len(SMOOTH) // 2 + 1)
    if inner.sum() < valid.size // 4:
        return None
    total = np.zeros(valid.shape, np.complex128)
    for band in data:
        values = np.where(valid, np.nan_to_num(band.astype(np.float64), posinf=0, neginf=0), 0.0)
        normals = edge_normals(values) * inner
        limit = float(np.quantile(np.abs(normals[inner]), 0.95))
        if limit > 0:  # a few glaring roofs would drown all others
            total += normals / np.maximum(np.abs(normals), limit)
    spread = float(np.abs(total[inner]).std())
    return total / spread if spread > 0 else None


def edge_normals(plane: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Return the gradient of the smoothed plane, its angle doubled, so that both sides of an edge are alike.

    Parameters
    ----------
    plane : ndarray of float, (H, W)
        At least 2 x 2.

    Returns
    -------
    ndarray of complex, (H, W)
        Absolute value: values per pixel; angle: twice that from columns (right) to rows (down).
    """
    soft = _along(_along(plane, 0), 1)
    down, right = np.gradient(soft)
    gradient = right + 1j * down
    strength = np.abs(gradient)
    doubled: NDArray[np.complex128] = gradient * gradient / np.maximum(strength, np.finfo(np.float32).tiny)
    return doubled


def _along(plane: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """`plane` smoothed along `axis` by a binomial window, as if its border went on for ever."""
    half = len(SMOOTH) // 2
    padded = np.pad(plane, [(half, half) if own == axis else (0, 0) for own in (0, 1)], mode="edge")
    size = plane.shape[axis]
    parts = [_cut(padded, k, size, axis) * share for k, share in enumerate(SMOOTH)]
    return np.asarray(sum(parts), np.float32)


def _cut(plane: NDArray[Any], start: int, size: int, axis: int) -> NDArray[Any]:
    return plane[start : start + size] if axis == 0 else plane[:, start : start + size]


def shrunk(mask: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """Return `mask`, (H, W) of bool, without what lies within `margin` pixels of a False along rows and columns.

    The image's own edge is no outside.
    """
    inner = mask.copy()
    for axis in (0, 1):
        padded = np.pad(inner, [(margin, margin) if own == axis else (0, 0) for own in (0, 1)], mode="edge")
        parts = [_cut(padded, k, mask.shape[axis], axis) for k in range(2 * margin + 1)]
        inner = np.logical_and.reduce(parts)
    return inner


def peak(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row and column (2,) of the highest of `score` (H, W), between pixels by a parabola through its neighbours."""
    row, col = np.unravel_index(int(np.argmax(score)), score.shape)
    return np.array([row + _vertex(score[:, col], int(row)), col + _vertex(score[row], int(col))])


def _vertex(line: NDArray[np.float64], at: int) -> float:
    if not 0 < at < len(line) - 1:
        return 0.0
    before, here, after = line[at - 1 : at + 2]
    curve = before - 2 * here + after
    return float(0.5 * (before - after) / curve) if curve < 0 else 0.0
