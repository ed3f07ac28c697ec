"""Pockets: places so small that they could be a small hole, told while rows go by.

A polygon in a small hole belongs to what surrounds it once the hole is filled. Whether a place is a
hole can turn out long after, for outlines that meet at a corner may be one polygon or two, which a
distant row decides. What is known within a few rows is that a place is too large: the pixels outside
that touch the polygon, joined by edges, are more than the hole may have, or reach the border of the
raster. No outline runs through such pixels, so that a polygon beside them lies in no small hole.

Outside pixels are kept as runs, joined from row to row (run-based labelling: He, Chao and Suzuki,
IEEE Trans. Image Processing 17(5), 2008). Rejected: tracing the outside as polygons (its largest one
spans the whole raster), and waiting for all polygons around (holds everything right of a road).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from satseg.vector.runs import entry, helper

Numbers = NDArray[np.int64]


class Pockets:
    """Fed rows, knows which runs of outside pixels belong to small places.

    Parameters
    ----------
    width : int
        Columns of the raster.
    outside : ndarray of bool, (256,)
        Which codes are outside.
    most : int
        Pixels of the largest place that is small.
    """

    def __init__(self, width: int, outside: NDArray[np.bool_], most: int) -> None:
        self._width, self._outside, self._most = width, outside, most
        self._rows = 0
        # Runs (row, start, end, group's first run, size of the group at its first run) of open groups: all
        # of a small one, those in the last row of a large one, whose size is most + 1.
        self._open = np.zeros((5, 0), np.int64)
        self._small = np.zeros(0, np.int64)  # keys of runs in small places, sorted

    def feed(self, codes: NDArray[np.uint8]) -> None:
        """Take the next rows, (h, width)."""
        if not codes.size:
            return
        count = self._open.shape[1]
        runs = np.empty((5, count + len(codes) * (self._width // 2 + 1)), np.int64)
        runs[:, :count] = self._open
        last = int(np.searchsorted(self._open[0], self._rows - 1))
        total = join_runs(np.ascontiguousarray(codes), self._outside, self._most, self._rows, runs, count, last)
        self._rows += len(codes)
        self._settle(runs[:, :total])

    def _settle(self, runs: Numbers) -> None:
        """Note the small places that have ended, and keep what goes on."""
        row, start, end, group, size = runs
        small = size[group] <= self._most
        goes_on = np.zeros(len(row), bool)
        goes_on[group[row == self._rows - 1]] = True
        goes_on = goes_on[group]
        ended = small & ~goes_on
        self._small = np.union1d(self._small, self._keys(row[ended], end[ended]))
        kept = np.flatnonzero(goes_on & (small | (row == self._rows - 1)))
        _, first, which = np.unique(group[kept], return_index=True, return_inverse=True)
        self._open = np.stack([row[kept], start[kept], end[kept], first[which], size[group[kept]]])

    def _keys(self, rows: Numbers, cols: Numbers) -> Numbers:
        return rows * (self._width + 1) + cols

    def right_of_small(self, rows: Numbers, cols: Numbers) -> NDArray[np.bool_]:
        """Return whether the pixels at `rows`, `cols` follow in their row on a small place that has ended."""
        return np.isin(self._keys(rows, cols), self._small, kind="sort")

    def forget(self, row: int) -> None:
        """Let go of what lies above `row`."""
        self._small = self._small[np.searchsorted(self._small, row * (self._width + 1)) :]


@entry
def join_runs(
    codes: NDArray[np.uint8],
    outside: NDArray[np.bool_],
    most: int,
    row: int,
    runs: Numbers,
    count: int,
    above: int,
) -> int:
    """Find the runs of outside pixels and join those that share an edge from row to row.

    Parameters
    ----------
    codes : ndarray of uint8, (h, W)
    outside : ndarray of bool, (256,)
    most : int
        Sizes stop at one more than this; so large is at once what touches the border.
    row : int
        Number of the first row.
    runs : ndarray of int64, (5, N)
        Row, start, end, group, size, filled from `count` on; those from `above` to `count` are of the row before.
        A group is the number of its first run, where its size stands.

    Returns
    -------
    int
        How many runs there are.
    """
    for k in range(len(codes)):
        first = count
        count = _find_row(codes[k], outside, most, row + k, runs, count)
        i, j = above, first
        while i < first and j < count:
            if runs[1, i] < runs[2, j] and runs[1, j] < runs[2, i]:
                _unite(runs, most, i, j)
            if runs[2, i] < runs[2, j]:
                i += 1
            else:
                j += 1
        above = first
    for i in range(count):
        runs[3, i] = runs[3, runs[3, i]]
    return count


@helper
def _find_row(
    codes: NDArray[np.uint8], outside: NDArray[np.bool_], most: int, row: int, runs: Numbers, count: int
) -> int:
    """Put the runs of a row behind the others, each a group of its own."""
    width, col = len(codes), 0
    while col < width:
        begin = col
        while col < width and outside[codes[col]]:
            col += 1
        if col > begin:
            large = begin == 0 or col == width or row == 0
            runs[0, count], runs[1, count], runs[2, count], runs[3, count] = row, begin, col, count
            runs[4, count] = most + 1 if large else min(col - begin, most + 1)
            count += 1
        while col < width and not outside[codes[col]]:
            col += 1
    return count


@helper
def _unite(runs: Numbers, most: int, one: int, other: int) -> None:
    """Make one group of those of two runs."""
    while runs[3, one] != one:
        one = runs[3, one]
    while runs[3, other] != other:
        other = runs[3, other]
    if one != other:
        low, high = min(one, other), max(one, other)
        runs[3, high] = low
        runs[4, low] = min(runs[4, low] + runs[4, high], most + 1)
