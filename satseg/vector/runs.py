"""Runs: the pieces of equal label that each row of a raster falls into, found by compiled loops.

A row is told by where its runs start, so that tracing works per boundary and never per pixel. Pixels
of one byte are compared eight at a time with the byte of the run. This is also where numba is met:
`entry` and `helper` compile the functions of this module and of `satseg.vector.kernels`.

Rejected: numpy's flatnonzero of differences (several passes and temporaries per pixel), a loop for
each label type (each would be compiled anew: other types are cast some rows at a time instead).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numba.core.event
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
BYTES = np.uint64(0x0101010101010101)
"""Times a byte, eight of it."""
FILES = [Path(__file__).with_name(f"{name}.py") for name in ("runs", "rings", "kernels")]
SOURCES = zlib.crc32(b"".join(file.read_bytes() for file in FILES))
"""Checksum of the compiled files."""
log = logging.getLogger(__name__)


class Runs(NamedTuple):
    """Runs of some rows, row after row, each row ended by a run without width at the last column.

    Parameters
    ----------
    start : ndarray of int32, (N,)
        First column.
    label : ndarray of int64, (N,)
        0 is outside; neighbours in a row differ.
    weight : ndarray of int64, (N,)
        Sum of the weights of the pixels.
    region : ndarray of int32, (N,)
        Number of the region, -1 while it has none.
    """

    start: NDArray[np.int32]
    label: NDArray[np.int64]
    weight: NDArray[np.int64]
    region: NDArray[np.int32]

    @classmethod
    def room(cls, count: int) -> Runs:
        """Return arrays for `count` runs."""
        narrow, wide = np.int32, np.int64
        return cls(np.empty(count, narrow), np.empty(count, wide), np.empty(count, wide), np.empty(count, narrow))


class _Notice(numba.core.event.Listener):
    """Says once that a compilation begins, which keeps the first use waiting for seconds."""

    said = False

    def on_start(self, event: Any) -> None:
        module: str = event.data["dispatcher"].py_func.__module__
        if not self.said and module.startswith("satseg.vector."):
            _Notice.said = True
            log.info("compiling the outline tracer (once; kept in the cache)")

    def on_end(self, event: Any) -> None:
        """Pass over the end, which the abstract class asks for."""


numba.core.event.register("numba:compile", _Notice())  # type: ignore[no-untyped-call]  # numba has no types


def entry(function: Function) -> Function:
    """Return `function` compiled at its first call, without the GIL, and cached on disk where that can be.

    The cache goes by the function's name and file; the name is made to tell all files of the tracer.
    """
    function.__qualname__ = f"{function.__qualname__}_{SOURCES:08x}"
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError as error:  # no folder to write to, neither beside the file nor of the user
        log.warning("the compiled outline tracer cannot be kept, so that every process compiles it: %s", error)
        return cast(Function, numba.njit(nogil=True)(function))


def helper(function: Function) -> Function:
    """Return `function` compiled into each function that calls it."""
    return cast(Function, numba.njit(forceinline=True)(function))


@entry
def code_runs(
    codes: NDArray[np.uint8],
    words: NDArray[np.uint64],
    lead: int,
    tables: NDArray[np.int64],
    weighted: bool,
    runs: Runs,
    offsets: NDArray[np.int64],
    width: int,
) -> None:
    """Find the runs of rows of bytes.

    Parameters
    ----------
    codes : ndarray of uint8, (rows * width,)
    words : ndarray of uint64
        The same memory from byte `lead` on, eight bytes a number.
    tables : ndarray of int64, (2, 256)
        Label and weight of each byte.
    weighted : bool
        Whether weights are to be summed.
    runs : Runs
        Filled from offsets[0] on.
    offsets : ndarray of int64, (rows + 1,)
        Where each row starts among the runs; all but the first are filled in.
    """
    for row in range(len(offsets) - 1):
        offsets[row + 1] = _code_row(codes, words, lead, tables, weighted, runs, offsets[row], row * width, width)


@helper
def _code_row(
    codes: NDArray[np.uint8],
    words: NDArray[np.uint64],
    lead: int,
    tables: NDArray[np.int64],
    weighted: bool,
    runs: Runs,
    at: int,
    first: int,
    width: int,
) -> int:
    code = codes[first]
    label = tables[0, code]
    total = 0
    runs.start[at], runs.label[at] = 0, label
    place, end = first, first + width
    while place < end:
        stop = min(end, place + 8 - ((place - lead) & 7))
        if stop - place == 8 and words[(place - lead) >> 3] == np.uint64(code) * BYTES:
            total += 8 * tables[1, code]
            place = stop
            continue
        while place < stop:
            if codes[place] != code:
                code = codes[place]
                if tables[0, code] != label:
                    label = tables[0, code]
                    runs.weight[at] = total
                    total = 0
                    at += 1
                    runs.start[at], runs.label[at] = place - first, label
            if weighted:
                total += tables[1, code]
            place += 1
    runs.weight[at] = total
    runs.start[at + 1], runs.label[at + 1], runs.weight[at + 1] = width, 0, 0
    return at + 2


@entry
def label_runs(
    labels: NDArray[np.int64],
    weights: NDArray[np.int64],
    runs: Runs,
    offsets: NDArray[np.int64],
) -> None:
    """Find the runs of rows of labels, (rows, width) int64; `weights` is as large, or (0, 0) for none."""
    width = labels.shape[1]
    weighted = weights.shape[0] > 0
    for row in range(len(offsets) - 1):
        at = offsets[row]
        label, total = labels[row, 0], 0
        runs.start[at], runs.label[at] = 0, label
        for col in range(width):
            if labels[row, col] != label:
                label = labels[row, col]
                runs.weight[at] = total
                total = 0
                at += 1
                runs.start[at], runs.label[at] = col, label
            if weighted:
                total += weights[row, col]
        runs.weight[at] = total
        runs.start[at + 1], runs.label[at + 1], runs.weight[at + 1] = width, 0, 0
        offsets[row + 1] = at + 2
