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
BYTE, LOWEST = np.uint64(8), np.uint64(255)
"""Bits of a byte; the lowest byte of a word."""
FILES = [Path(__file__).with_name(f"{name}.py") for name in ("runs", "rings", "kernels")]
SOURCES = zlib.crc32(b"".join(file.read_bytes() for file in FILES))
"""Checksum of the compiled files."""
BARE: dict[str, Any] = {"_nrt": False}
"""Without counting references to arrays, which would take six times as long as the tracing: none are made."""
INNER: dict[str, Any] = BARE | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Of functions that compiled ones alone call."""
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


register: Any = numba.core.event.register  # typed in no release of numba or in few
register("numba:compile", _Notice())


def entry(function: Function) -> Function:
    """Return `function` compiled at its first call, without the GIL, and cached on disk where that can be.

    The cache goes by the function's name and file; the name is made to tell all files of the tracer.
    """
    function.__qualname__ = f"{function.__qualname__}_{SOURCES:08x}"
    try:
        return cast(Function, numba.njit(cache=True, nogil=True, **BARE)(function))
    except RuntimeError as error:  # no folder to write to, neither beside the file nor of the user
        log.warning("the compiled outline tracer cannot be kept, so that every process compiles it: %s", error)
        return cast(Function, numba.njit(nogil=True, **BARE)(function))


def helper(function: Function) -> Function:
    """Return `function` compiled into each function that calls it."""
    return cast(Function, numba.njit(forceinline=True, **INNER)(function))


def part(function: Function) -> Function:
    """Return `function` compiled once for all that call it."""
    return cast(Function, numba.njit(**INNER)(function))


@entry
def code_runs(
    codes: NDArray[np.uint8],
    words: NDArray[np.uint64],
    lead: int,
    tables: NDArray[np.int64],
    runs: Runs,
    offsets: NDArray[np.int64],
    width: int,
) -> None:
    """Find the runs of rows of bytes.

    Parameters
    ----------
    codes : ndarray of uint8, (rows * width,)
    words : ndarray of uint64
        The same bytes from `lead` on, eight to a number, the first one lowest.
    tables : ndarray of int64, (2, 256)
        Label and weight of each byte.
    runs : Runs
        Filled from offsets[0] on.
    offsets : ndarray of int64, (rows + 1,)
        Where each row starts among the runs; all but the first are filled in.
    """
    for row in range(len(offsets) - 1):
        end = _code_starts(codes, words, lead, runs.start, offsets[row], row * width, width)
        offsets[row + 1] = _code_labels(codes, tables, runs, offsets[row], end, row * width, width)


@helper
def _code_starts(
    codes: NDArray[np.uint8],
    words: NDArray[np.uint64],
    lead: int,
    start: NDArray[np.int32],
    at: int,
    first: int,
    width: int,
) -> int:
    """Write where codes change in a row, its first column included; return the end."""
    start[at] = 0
    at += 1
    col = 1
    # Columns are written at every pixel and kept where codes change: a branch would be guessed wrong at most runs.
    while col < width:
        place = first + col
        if (place - lead) & 7 or col + 8 > width:
            start[at] = col
            at += codes[place] != codes[place - 1]
            col += 1
            continue
        word = words[(place - lead) >> 3]
        changes = word ^ ((word << BYTE) | np.uint64(codes[place - 1]))
        if changes != 0:
            for k in range(8):
                start[at] = col + k
                at += (changes >> np.uint64(8 * k)) & LOWEST != 0
        col += 8
    return at


@helper
def _code_labels(
    codes: NDArray[np.uint8],
    tables: NDArray[np.int64],
    runs: Runs,
    at: int,
    end: int,
    first: int,
    width: int,
) -> int:
    """Give the runs their labels and weights, join those of one label, and end the row; return its end."""
    start, label, weight = runs.start, runs.label, runs.weight
    start[end] = width
    label[at], weight[at] = tables[0, codes[first]], 0
    for k in range(at, end):
        begin = start[k]
        code = codes[first + begin]
        if tables[0, code] != label[at]:
            at += 1
            start[at], label[at], weight[at] = begin, tables[0, code], 0
        weight[at] += (start[k + 1] - begin) * tables[1, code]
    start[at + 1], label[at + 1], weight[at + 1] = width, 0, 0
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
