"""The two loops over every pixel that stand between scene and network, and network and mask, on a CPU.

`pack` turns stored numbers (C, h, w) into what a network reads, normalised and with the channels last;
`encode` turns logits into one byte per class and pixel. As array expressions each takes five passes
over memory and more time than all reading; compiled, one pass each. Rejected: the same through
torch.compile, which compiles anew for every shape. On other devices torch does both
(`forward`), with the same results.

Compiled once per dtype and kept by numba beside this file or in the user's cache folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from satseg.learning.compiled import compiled, readonly
from satseg.vector.layers import FIRST, INVALID, LAST, OUTSIDE

NEAR = 1e-5
"""Logits this far below the threshold's are still compared as scores, which is what the threshold is of."""


def _pack(
    data: NDArray[Any], valid: NDArray[np.bool_], low: NDArray[np.float32], high: NDArray[np.float32],
    offset: NDArray[np.float32], scale: NDArray[np.float32], out: NDArray[np.float32],
) -> None:  # fmt: skip
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            usable = valid[r, c]
            for k in range(out.shape[2]):
                x = np.float32(data[k, r, c])
                x = (min(max(x, low[k]), high[k]) - offset[k]) / scale[k]
                out[r, c, k] = x if usable else np.float32(0)


def _encode(
    logits: NDArray[np.float32], valid: NDArray[np.bool_], near: NDArray[np.float32],
    thresholds: NDArray[np.float32], out: NDArray[np.uint8],
) -> None:  # fmt: skip
    one = np.float32(1)
    for r in range(out.shape[1]):
        for k in range(out.shape[0]):
            least, level = near[k], thresholds[k]
            steps = np.float32(LAST - FIRST) / (one - level)
            for c in range(out.shape[2]):
                code = OUTSIDE
                x = logits[k, r, c]
                if x >= least:
                    score = np.float32(1.0 / (1.0 + math.exp(-np.float64(x))))
                    if score >= level:
                        code = FIRST + int((score - level) * steps + np.float32(0.5))
                out[k, r, c] = code if valid[r, c] else INVALID


def pack(
    data: NDArray[Any], valid: NDArray[np.bool_], bands: dict[str, NDArray[np.float32]], out: NDArray[np.float32]
) -> None:
    """Write (clip(x, low, high) - offset) / scale of `data` into `out`, 0 where not valid.

    Parameters
    ----------
    data : ndarray, (C, h, w), of any real dtype and byte order
    valid : ndarray of bool, (h, w)
    bands : mapping
        low, high, offset and scale, (C,) each: `Normalization.arrays`.
    out : ndarray of float32, (h, w, C)
    """
    rows = (bands["low"], bands["high"], bands["offset"], bands["scale"])
    native = data.astype(data.dtype.newbyteorder("="), copy=False)
    _packer(native.dtype.name)(native, valid, *rows, out)


def encode(
    logits: NDArray[np.float32], valid: NDArray[np.bool_], thresholds: NDArray[np.float32], out: NDArray[np.uint8]
) -> None:
    """Write the code of every class and pixel into `out`.

    Parameters
    ----------
    logits : ndarray of float32, (K, h, w), in any order of memory
    valid : ndarray of bool, (h, w)
    thresholds : ndarray of float32, (K,)
        Scores, 0..1 exclusive, from which on a pixel is of a class.
    out : ndarray of uint8, (K, h, w)
        0 outside, 255 not valid, else 1..254: the score, in equal steps from the threshold to 1.
    """
    levels = thresholds.astype(np.float64)
    near = (np.log(levels / (1 - levels)) - NEAR).astype(np.float32)
    _encoder()(logits, valid, near, thresholds, out)


@cache
def _packer(dtype: str) -> Callable[..., None]:
    number = numba.from_dtype(np.dtype(dtype))
    row = numba.types.Array(numba.float32, 1, "C", readonly=True)
    return compiled(_pack, readonly(number, 3), readonly(numba.boolean, 2), row, row, row, row, numba.float32[:, :, :])


@cache
def _encoder() -> Callable[..., None]:
    row = numba.types.Array(numba.float32, 1, "C", readonly=True)
    return compiled(_encode, readonly(numba.float32, 3), readonly(numba.boolean, 2), row, row, numba.uint8[:, :, :])
