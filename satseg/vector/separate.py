"""Objects that touch in a mask, cut apart: each grows from a core of its own, and where two meet runs a cut.

A network that is asked only for roofs runs neighbours together; asked for their insides too, it keeps those
apart. `Separator` takes the codes of a class and of its cores row by row. Cores grow through the mask, all of them a
pixel at a time, and each pixel belongs to the core that reaches it first. Of two neighbours in different
basins the upper or left one becomes outside, so that 4-connected outlines part.

Work goes by slabs of `SLAB` rows counted from the top, each seen with `MARGIN` rows around: a cut depends on
what lies near it and never on how the rows were computed or handed over. Two cores that join only further
away than that are taken for two, which leaves a slit in a polygon and does not part it.

Rejected: flooding the highest scores first (F1 at IoU 0.5 was the same within 0.005, and the last digit of a score
would move a cut), growth on the whole raster (memory follows the scene), in tiles of the network (cuts would depend
on tiles), on finished polygons (a merged town has no bound, and is what needs cutting most).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from satseg.vector.layers import INVALID, OUTSIDE
from satseg.vector.runs import entry

SLAB, MARGIN = 160, 48
"""Rows cut at a time, and rows seen above and below them: more than an object's width, at 10 bytes a pixel."""
LEAST_CORE_PX = 8
"""Cores of fewer pixels are specks and no seeds."""
MOST_PX = 2**31 - 1
WORK_BYTES = 10
"""Bytes per pixel of a slab with its margins: codes, basins, queue."""


class Separator:
    """Cuts objects apart in rows of codes.

    Parameters
    ----------
    pairs : sequence of (int, int)
        Plane of a class, and plane of its cores, among those that are fed.
    planes : int
        How many planes come out: the first ones.
    least_px : sequence of float, optional
        Pixels of the smallest core that is a seed, one per pair; `LEAST_CORE_PX` when left out, and at least.
    """

    def __init__(
        self, pairs: Sequence[tuple[int, int]], *, planes: int, least_px: Sequence[float] | None = None
    ) -> None:
        self._pairs, self._planes = tuple(pairs), planes
        sizes = [0.0] * len(self._pairs) if least_px is None else least_px
        self._seed_px = [round(min(max(LEAST_CORE_PX, size), MOST_PX)) for size in sizes]
        self._held: list[NDArray[np.uint8]] = []
        self._above = 0  # rows held that are finished, and seen as a margin

    def feed(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Take the next rows and return those that are certain now, in order.

        Parameters
        ----------
        codes : ndarray of uint8 (P, h, W)
            0 outside, 1..254 inside with a score, 255 not valid (`satseg.vector.layers`).

        Returns
        -------
        ndarray of uint8 (planes, h', W)
        """
        if not self._pairs:
            return codes[: self._planes]
        self._held.append(codes)
        if sum(part.shape[1] for part in self._held) < self._above + SLAB + MARGIN:
            return codes[: self._planes, :0]
        return self._cut_slabs(last=False)

    def finish(self) -> NDArray[np.uint8] | None:
        """Return the rows that were still held; None without any."""
        if not self._held:
            return None
        rest = self._cut_slabs(last=True)
        self._held, self._above = [], 0
        return rest

    def _cut_slabs(self, *, last: bool) -> NDArray[np.uint8]:
        rows = self._held[0] if len(self._held) == 1 else np.concatenate(self._held, axis=1)
        done, top, count = [], self._above, rows.shape[1]
        while top + SLAB + MARGIN <= count or (last and top < count):
            bottom = min(top + SLAB, count)
            done.append(self._cut(rows[:, max(0, top - MARGIN) : bottom + MARGIN], min(top, MARGIN), bottom - top))
            top = bottom
        first = max(0, top - MARGIN)
        self._held, self._above = [rows[:, first:].copy()], top - first
        return np.concatenate(done, axis=1) if done else rows[: self._planes, :0]

    def _cut(self, rows: NDArray[np.uint8], first: int, count: int) -> NDArray[np.uint8]:
        """Return rows `first` to `first` + `count`, cut."""
        result = rows[: self._planes, first : first + count].copy()
        shape = rows.shape[1:]
        basins, queue = np.empty(shape, np.int32), np.empty(rows[0].size, np.int32)
        open_at = (0 if first else -1, shape[0] - 1 if shape[0] == first + count + MARGIN else -1)
        for (plane, core), least in zip(self._pairs, self._seed_px, strict=True):
            mask, cores = np.ascontiguousarray(rows[plane]), np.ascontiguousarray(rows[core])
            if _seeds(mask, cores, basins, queue, (least, LEAST_CORE_PX), open_at) > 1:
                _flood(mask, basins, queue)
                _part(mask, basins, first, result[plane])
        return result


@entry
def _seeds(
    mask: NDArray[np.uint8], cores: NDArray[np.uint8], basins: NDArray[np.int32], queue: NDArray[np.int32],
    least: tuple[int, int], open_at: tuple[int, int],
) -> int:  # fmt: skip
    """Number the 4-connected cores inside the mask, from 1, and return how many.

    Those of fewer pixels than `least` has first are left out, or than it has last where they reach a row of `open_at`:
    they may go on there.
    """
    height, width = mask.shape
    count = 0
    for r in range(height):
        for c in range(width):
            inside = 0 < mask[r, c] < 255 and 0 < cores[r, c] < 255
            basins[r, c] = -1 if inside else 0  # -1: a core without a number
    for r in range(height):
        for c in range(width):
            if basins[r, c] != -1:
                continue
            count += 1
            basins[r, c], queue[0] = count, r * width + c
            size, done, cut_off = 1, 0, False
            while done < size:
                place = queue[done]
                done += 1
                y, x = place // width, place % width
                cut_off = cut_off or y == open_at[0] or y == open_at[1]
                for k in range(4):
                    v, u = y + (k == 0) - (k == 1), x + (k == 2) - (k == 3)
                    if 0 <= v < height and 0 <= u < width and basins[v, u] == -1:
                        basins[v, u], queue[size] = count, v * width + u
                        size += 1
            if size < (least[1] if cut_off else least[0]):
                for i in range(size):
                    basins[queue[i] // width, queue[i] % width] = 0
                count -= 1
    return count


@entry
def _flood(mask: NDArray[np.uint8], basins: NDArray[np.int32], queue: NDArray[np.int32]) -> None:
    """Grow the basins over the mask, a pixel at a time in all of them."""
    height, width = mask.shape
    count, done = 0, 0
    for r in range(height):
        for c in range(width):
            if basins[r, c] > 0:
                queue[count] = r * width + c
                count += 1
    while done < count:
        place = queue[done]
        done += 1
        y, x = place // width, place % width
        for k in range(4):
            v, u = y + (k == 0) - (k == 1), x + (k == 2) - (k == 3)
            if 0 <= v < height and 0 <= u < width and basins[v, u] == 0 and 0 < mask[v, u] < INVALID:
                basins[v, u], queue[count] = basins[y, x], v * width + u
                count += 1


@entry
def _part(mask: NDArray[np.uint8], basins: NDArray[np.int32], first: int, out: NDArray[np.uint8]) -> None:
    """Set to outside, in `out` (rows from `first` on), what has another basin to its right or below."""
    height, width = mask.shape
    for i in range(out.shape[0]):
        r = first + i
        for c in range(width):
            own = basins[r, c]
            if own <= 0:
                continue
            right = basins[r, c + 1] if c + 1 < width else own
            below = basins[r + 1, c] if r + 1 < height else own
            if (right > 0 and right != own) or (below > 0 and below != own):
                out[i, c] = OUTSIDE
