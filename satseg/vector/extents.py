"""OpenExtents: where a plane's outlines lie that are not finished yet, told while rows go by.

What stands around a finished polygon can be told once nothing open comes near it. Only the boxes of connected pixels
are kept that reach the last row: some numbers for each, whatever they hold. Rejected: asking the tracer, whose chains
of vertices know nothing of columns until they are walked, and the topmost open row alone, by which one river would
hold back the whole width of a scene.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from satseg.vector.runs import entry, helper

Numbers = NDArray[np.int64]
BLOCK_PIXELS = 2**20
"""Pixels looked at between two tidyings: what room for their runs takes stays small."""
TOP, LEFT, RIGHT, GROUP = 0, 1, 2, 3


class OpenExtents:
    """Fed rows, knows the boxes of connected pixels (by edges) that reach the last one.

    Parameters
    ----------
    width : int
        Columns of the raster.
    inside : ndarray of bool, (256,)
        Which codes are inside.
    """

    def __init__(self, width: int, inside: NDArray[np.bool_]) -> None:
        self._width, self._inside = width, inside
        self._rows = 0
        self._runs = np.zeros((3, 0), np.int64)  # start, end and group of the runs of the last row
        self._groups = np.zeros((4, 0), np.int64)  # top, left, right and parent

    def feed(self, codes: NDArray[np.uint8]) -> None:
        """Take the next rows, (h, width)."""
        step = max(1, BLOCK_PIXELS // max(1, self._width))
        for top in range(0, len(codes) if self._width else 0, step):
            self._take(np.ascontiguousarray(codes[top : top + step]))

    def boxes(self) -> NDArray[np.float64]:
        """Return left, top, right and bottom of each in pixel corners, (N, 4)."""
        top, left, right, _ = self._groups
        return np.stack([left, top, right, np.full_like(top, self._rows)], axis=1).astype(np.float64)

    def _take(self, codes: NDArray[np.uint8]) -> None:
        most = self._width // 2 + 1
        open_groups = self._groups.shape[1]
        groups = np.empty((4, open_groups + len(codes) * most), np.int64)
        groups[:, :open_groups] = self._groups
        runs = np.empty((2, 3, most), np.int64)
        runs[0, :, : self._runs.shape[1]] = self._runs
        side, count = join_rows(codes, self._inside, self._rows, runs, self._runs.shape[1], groups, open_groups)
        self._rows += len(codes)
        last = runs[side, :, :count]
        roots, which = np.unique(last[2], return_inverse=True)
        self._runs = np.stack([last[0], last[1], which.reshape(-1)])
        self._groups = groups[:, roots]
        self._groups[GROUP] = np.arange(len(roots))


@entry
def join_rows(
    codes: NDArray[np.uint8],
    inside: NDArray[np.bool_],
    row: int,
    runs: Numbers,
    above: int,
    groups: Numbers,
    made: int,
) -> tuple[int, int]:
    """Join the runs of rows to groups.

    Parameters
    ----------
    codes : ndarray of uint8, (h, W)
    inside : ndarray of bool, (256,)
    row : int
        Number of the first row.
    runs : ndarray of int64, (2, 3, N)
        Start, end and group; `above` of them in runs[0] are of the row before.
    groups : ndarray of int64, (4, G)
        Top, left, right and parent, `made` of them so far.

    Returns
    -------
    side, count : int
        The runs of the last row are the first `count` of runs[side], their groups roots.
    """
    side = 0
    for k in range(len(codes)):
        count = _find_runs(codes[k], inside, runs[1 - side])
        for j in range(count):
            groups[TOP, made] = row + k
            groups[LEFT, made], groups[RIGHT, made] = runs[1 - side, 0, j], runs[1 - side, 1, j]
            groups[GROUP, made] = runs[1 - side, 2, j] = made
            made += 1
        i, j = 0, 0
        while i < above and j < count:
            if runs[side, 0, i] < runs[1 - side, 1, j] and runs[1 - side, 0, j] < runs[side, 1, i]:
                _unite(groups, runs[side, 2, i], runs[1 - side, 2, j])
            if runs[side, 1, i] < runs[1 - side, 1, j]:
                i += 1
            else:
                j += 1
        side, above = 1 - side, count
    for j in range(above):
        runs[side, 2, j] = _root(groups, runs[side, 2, j])
    return side, above


@helper
def _find_runs(codes: NDArray[np.uint8], inside: NDArray[np.bool_], runs: Numbers) -> int:
    """Write where the runs of inside pixels start and end; return how many there are."""
    width, col, count = len(codes), 0, 0
    while col < width:
        while col < width and not inside[codes[col]]:
            col += 1
        if col == width:
            break
        runs[0, count] = col
        while col < width and inside[codes[col]]:
            col += 1
        runs[1, count] = col
        count += 1
    return count


@helper
def _root(groups: Numbers, one: int) -> int:
    while groups[GROUP, one] != one:
        groups[GROUP, one] = groups[GROUP, groups[GROUP, one]]
        one = groups[GROUP, one]
    return one


@helper
def _unite(groups: Numbers, one: int, other: int) -> None:
    """Make one group of two, and their boxes one."""
    one, other = _root(groups, one), _root(groups, other)
    if one != other:
        low, high = min(one, other), max(one, other)
        groups[GROUP, high] = low
        groups[TOP, low] = min(groups[TOP, low], groups[TOP, high])
        groups[LEFT, low] = min(groups[LEFT, low], groups[LEFT, high])
        groups[RIGHT, low] = max(groups[RIGHT, low], groups[RIGHT, high])
