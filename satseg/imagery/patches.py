"""How alike two products are patch by patch, whatever their bands respond to, and which way they would be more so.

Within a few pixels one band is mostly a straight line of the other: brighter, darker, or inverted. The correlation of
a patch, for every pair of bands, says how nearly, and to its fourth power it is summed: patches where the response is
of another kind (a roof's edge in one band, its shadow's in the other) hardly count, while they would pull a
correlation of gradients by a tenth of a pixel. Nothing is smoothed: aliased detail is the same in both when both have
been averaged over the same ground, and it is what places are told by.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

PATCH_PX = 8
"""Side of a patch."""
POWER = 3
"""Of the correlation, as a weight on its slope."""
FLOOR = 0.05
"""Variance added to that of each patch, in parts of the window's: flat ones have nothing to tell."""
BORDER = 1
"""Pixels around a window that differences at its edge come from."""

Array: TypeAlias = NDArray[np.float64]
Patches: TypeAlias = tuple[Array, Array, NDArray[np.bool_]]
"""Values (C, P, n), their differences down and right (C, 2, P, n), and which patches are valid throughout (P,)."""


def patches_of(data: NDArray[Any], valid: NDArray[np.bool_]) -> Patches:
    """Return the patches of `data` (C, H, W), whose outermost `BORDER` pixels serve for differences alone."""
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    values = np.where(valid, data, 0).astype(np.float64)
    down, right = np.gradient(values, axis=(1, 2))
    moves = np.stack([down, right], axis=1)
    shrunk = valid[2:, 1:-1] & valid[:-2, 1:-1] & valid[1:-1, 2:] & valid[1:-1, :-2] & valid[inner]
    return _cut(values[inner]), _cut(moves[inner]), np.asarray(_cut(shrunk).all(axis=-1))


def slopes_of(first: Patches, second: Patches, turned: Array | None = None) -> tuple[Array, Array] | None:
    """Return slope and bend of the likeness by the motion of the second product against the first.

    Parameters
    ----------
    turned : ndarray (2, H, W), optional
        Rows and columns that pixels go by per unit of rotation.

    Returns
    -------
    (ndarray (k,), ndarray (k, k)) or None
        By rows and columns, and by rotation where that is asked for; means over patches and pairs of bands. None where
        no patch is valid in both, or none has anything to tell.
    """
    known = first[2] & second[2]
    way = None if turned is None else _cut(turned)[:, known]
    ready = [_normalized(one, known, way) for one in (first, second)]
    if ready[0] is None or ready[1] is None:
        return None
    (a, moves_a, own_a), (b, moves_b, own_b) = ready[0], ready[1]
    alike = np.einsum("ipx,jpx->ijp", a, b)
    weight = np.sign(alike) * np.abs(alike) ** POWER
    slope = np.einsum("ijp,ipx,jkpx->k", weight, a, moves_b, optimize=True)
    slope -= np.einsum("ijp,jpx,ikpx->k", weight, b, moves_a, optimize=True)
    slope -= np.einsum("ijp,jkp->k", weight * alike, own_b) - np.einsum("ijp,ikp->k", weight * alike, own_a)
    bend = np.einsum("ijp,ikpx,jlpx->kl", weight, moves_a, moves_b, optimize=True)
    return slope / (2 * alike.size), (bend + bend.T) / (2 * alike.size)


def _normalized(
    patches: Patches, known: NDArray[np.bool_], way: Array | None
) -> tuple[Array, Array, Array] | None:
    """Values of unit length and their differences about their means, and how fast the length changes (C, k, P)."""
    values, moves = patches[0][:, known], patches[1][:, :, known]
    if way is not None:
        moves = np.concatenate([moves, (moves * way).sum(axis=1, keepdims=True)], axis=1)
    values = values - values.mean(axis=-1, keepdims=True)
    moves = moves - moves.mean(axis=-1, keepdims=True)
    power = (values**2).sum(axis=-1)
    if not power.any():
        return None
    floor = FLOOR * power.mean(axis=-1, keepdims=True)
    length = np.sqrt(power + np.where(floor > 0, floor, 1.0))[..., None]
    values, moves = values / length, moves / length[:, None]
    return values, moves, np.einsum("ipx,ikpx->ikp", values, moves)


def _cut(planes: NDArray[Any]) -> NDArray[Any]:
    """Return (..., H, W) as whole patches (..., P, n)."""
    height, width = (size // PATCH_PX for size in planes.shape[-2:])
    whole = planes[..., : height * PATCH_PX, : width * PATCH_PX]
    parts = whole.reshape(*planes.shape[:-2], height, PATCH_PX, width, PATCH_PX)
    return np.moveaxis(parts, -3, -2).reshape(*planes.shape[:-2], height * width, PATCH_PX**2)
