"""Outlines of equal pixels, exactly along pixel edges, from rows that are fed one strip at a time.

The bends of all outlines are found strip by strip (`satseg.vector.bends`), and only they are kept:
memory follows the outlines, never the raster. Bends on one grid line pair up into edges, edges into
rings. The result is the one of `rasterio.features.shapes` with 4-connectivity: a ring that would
touch itself at a corner is split there, which keeps every polygon valid.

Rejected: `shapes` itself (a dictionary of tuples per polygon, several times slower, and no way to
feed it), contours through pixel centres (a 13 x 6 pixel car loses a quarter of its area), and
merging polygons of strips by a union (moves vertices).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from satseg.errors import GridError, UsageError
from satseg.vector.bends import BELOW, LEAVES_SIDEWAYS, LEFT_SIDE, SIGN, Bends, find_bends

_Index = NDArray[np.int32]

SMALLEST_SHELL = 8
"""Pixels, hole included, of the smallest ring around a hole: 3 x 3 less one corner."""
CHUNK_BENDS = 2**20
"""Bends turned into polygons at a time."""
SCORE_ONE = 2**30
"""Scores are summed as whole numbers of 2**-30, so that sums are exact whatever their order."""


@dataclass(frozen=True, slots=True)
class Outlines:
    """Polygons of connected equal pixels, in pixel corners.

    Parameters
    ----------
    rows, cols : ndarray of int32, (V,)
        Bends, ring after ring, first bend not repeated.
    rings : ndarray of int64, (R + 1,)
        Where each ring starts in `rows`; a polygon's outer ring comes before its holes.
    polygons : ndarray of int64, (P + 1,)
        Where each polygon starts among the rings.
    values : ndarray, (P,)
        The label of each polygon's pixels.
    pixels : ndarray of int64, (P,)
        How many pixels each polygon has.
    score_sums : ndarray of float64, (P,), or None
        Sum of the scores over those pixels.
    """

    rows: NDArray[np.int32]
    cols: NDArray[np.int32]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]
    values: NDArray[np.generic]
    pixels: NDArray[np.int64]
    score_sums: NDArray[np.float64] | None

    def geometries(self, transform: Affine) -> NDArray[np.object_]:
        """Return the polygons as shapely geometries in the coordinates of `transform`, (P,)."""
        made = np.empty(len(self.polygons) - 1, object)
        # Some polygons at a time, so that the numbers on the way take little beside the polygons.
        marks = np.arange(0, self.rings[-1] + CHUNK_BENDS, CHUNK_BENDS)
        cuts = np.unique(np.searchsorted(self.rings[self.polygons], marks))
        for first, last in pairwise(cuts.tolist()):
            made[first:last] = self._chunk(first, last, transform)
        return made

    def _chunk(self, first: int, last: int, transform: Affine) -> NDArray[np.object_]:
        polygons = self.polygons[first : last + 1]
        rings = self.rings[polygons[0] : polygons[-1] + 1]
        lengths, number = np.diff(rings), np.arange(len(rings))
        closed = np.arange(rings[0], rings[-1] + len(lengths)) - np.repeat(number[:-1], lengths + 1)
        offsets = rings - rings[0] + number
        closed[offsets[1:] - 1] = rings[:-1]
        row, col = self.rows[closed].astype(np.float64), self.cols[closed].astype(np.float64)
        # The order of the sum is GDAL's (GDALApplyGeoTransform), so that results agree to the bit.
        coords = np.empty((len(closed), 2))
        coords[:, 0] = transform.c + col * transform.a + row * transform.b
        coords[:, 1] = transform.f + col * transform.d + row * transform.e
        made: NDArray[np.object_] = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, coords, (offsets, polygons - polygons[0])
        )
        return made


class OutlineTracer:
    """Fed the rows of a label raster from top to bottom, returns its outlines.

    Parameters
    ----------
    width : int
        Columns of the raster.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._row = 0
        self._above: NDArray[np.generic] | None = None
        self._table = np.zeros(width + 1, np.int64)  # last row of the summed-area table of scores
        self._scored = False
        self._parts: list[Bends] = []

    def feed(self, labels: NDArray[np.generic], scores: NDArray[np.floating] | None = None) -> None:
        """Take the next rows.

        Parameters
        ----------
        labels : ndarray, (h, width)
            0 is outside of everything; equal labels that share an edge belong together.
        scores : ndarray of float, (h, width), optional
            0..1, NaN counts as 0; given with every strip or with none.
        """
        if labels.ndim != 2 or labels.shape[1] != self._width:
            raise GridError(f"rows of shape {labels.shape} are not {self._width} columns wide")
        strip = np.zeros((len(labels) + 1, self._width + 2), labels.dtype)
        if self._above is not None:
            strip[0, 1:-1] = self._above
        strip[1:, 1:-1] = labels
        self._parts.append(find_bends(strip, self._row, self._summed(scores, len(labels))))
        self._above = strip[-1, 1:-1]
        self._row += len(labels)

    def outlines(self) -> Outlines:
        """Return the outlines of everything fed so far; the tracer is used up."""
        last = np.zeros((1, self._width), np.uint8 if self._above is None else self._above.dtype)
        self.feed(last, np.zeros(last.shape) if self._scored else None)
        bends = Bends.joined(self._parts)
        self._parts.clear()
        return _assemble(bends)

    def _summed(self, scores: NDArray[np.floating] | None, height: int) -> NDArray[np.int64] | None:
        """Summed-area table at the corners above each row of the strip, (h, width + 1)."""
        if scores is None:
            return None
        self._scored = True
        if scores.shape != (height, self._width):
            raise GridError(f"scores of shape {scores.shape} are not {(height, self._width)}")
        known = np.nan_to_num(scores.astype(np.float64), nan=0.0)
        if known.size and (known.min() < 0.0 or known.max() > 1.0):
            raise UsageError(
                f"scores reach from {known.min():.4g} to {known.max():.4g}, not 0..1", code="E-USE-231"
            )
        table = np.zeros((height + 1, self._width + 1), np.int64)
        np.cumsum(np.rint(known * SCORE_ONE).astype(np.int64), axis=1, out=table[1:, 1:])
        table[0] = self._table
        np.cumsum(table, axis=0, out=table)  # may wrap: differences taken later wrap back
        self._table = table[-1].copy()
        return table[:-1]


def _successors(bends: Bends) -> NDArray[np.int32]:
    """Return the bend that follows each bend on its outline, (V,)."""
    following = np.empty(len(bends.row), np.int32)
    reading = np.arange(len(bends.row), dtype=np.int32)
    below = BELOW[bends.kind]
    left, right = _pairs(reading[below])
    following[left] = right
    left, right = _pairs(reading[~below])
    following[right] = left
    downward = _stable_order(bends.col)
    left_side = LEFT_SIDE[bends.kind[downward]]
    upper, lower = _pairs(downward[left_side])
    following[upper] = lower
    upper, lower = _pairs(downward[~left_side])
    following[lower] = upper
    return following


def _pairs(bends: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    return bends[0::2], bends[1::2]


def _stable_order(cols: NDArray[np.int32]) -> NDArray[np.int32]:
    """Order that sorts by column and keeps rows in order; numpy sorts 16-bit keys by radix."""
    order = np.argsort((cols & 0xFFFF).astype(np.uint16), kind="stable").astype(np.int32)
    if cols.size and cols.max() > 0xFFFF:
        order = order[np.argsort((cols[order] >> 16).astype(np.uint16), kind="stable")]
    return order


def _cycles(successor: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Smallest member of each node's cycle, and the steps from the node to it.

    Each round doubles how far a node has looked ahead, so that the rounds are the logarithm of the
    longest cycle (pointer jumping: Wyllie, The Complexity of Parallel Computations, 1979). When a
    round changes nothing, windows laid end to end around the cycle agree, so all of it was seen.
    """
    smallest = np.arange(len(successor), dtype=np.int32)
    steps = np.zeros(len(successor), np.int32)
    jump, reach = successor, 1
    while True:
        ahead = smallest[jump]
        better = np.flatnonzero(ahead < smallest)
        if not better.size:
            return smallest, steps
        # Both right-hand sides are taken before either array changes.
        new_steps = reach + steps[jump[better]]
        smallest = np.minimum(smallest, ahead)
        steps[better] = new_steps
        jump = jump[jump]
        reach *= 2


def _rings(bends: Bends) -> tuple[_Index, _Index, _Index, _Index]:
    """Rings through the bends, as (half, following, smallest, steps).

    Edges along rows and columns alternate, so every second bend, one left along its row, tells
    the ring: `half` (M,) are those, `smallest` and `steps` (M,) their cycles, and `following` (V,)
    the next bend of each. A ring that touches itself at a corner is split there in two.
    """
    following = _successors(bends)
    sideways = LEAVES_SIDEWAYS[bends.kind]
    half = np.flatnonzero(sideways).astype(np.int32)
    number = np.cumsum(sideways, dtype=np.int32) - np.int32(1)
    smallest, steps = _cycles(number[following[following[half]]])
    first, second = bends.saddles.T
    on_ring = [smallest[number[np.where(sideways[end], end, following[end])]] for end in (first, second)]
    touches = on_ring[0] == on_ring[1]
    if touches.any():
        first, second = first[touches], second[touches]
        following[first], following[second] = following[second], following[first]
        split = np.zeros(len(half), bool)
        split[on_ring[0][touches]] = True
        anew = np.flatnonzero(split[smallest])
        local = np.zeros(len(half), np.int32)
        local[anew] = np.arange(len(anew))
        again, steps[anew] = _cycles(local[number[following[following[half[anew]]]]])
        smallest[anew] = anew[again]
    return half, following, smallest, steps


def _assemble(bends: Bends) -> Outlines:
    half, following, smallest, steps = _rings(bends)
    heads = np.flatnonzero(smallest == np.arange(len(half)))
    ring = np.searchsorted(heads, smallest)
    lengths = np.bincount(ring, minlength=len(heads))
    starts = np.cumsum(lengths) - lengths
    place = starts[ring] + (lengths[ring] - steps) % lengths[ring]
    order = np.empty((len(half), 2), np.int32)
    order[place, 0], order[place, 1] = half, following[half]
    # Signed pixel count of each ring: its edges along rows, weighted by the row; holes are negative.
    along = bends.col[order[:, 1]].astype(np.int64) - bends.col[order[:, 0]]
    pixels = -_sums(along * bends.row[order[:, 0]], starts)
    sums = None
    if bends.table is not None:
        sums = _sums((bends.table * SIGN[bends.kind])[order].sum(axis=1), starts)
    return _nested(bends, order.ravel(), np.append(starts, len(half)) * 2, pixels, sums)


def _sums(values: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.add.reduceat(values, starts) if len(starts) else np.zeros(0, np.int64)


def _nested(
    bends: Bends,
    order: NDArray[np.int32],
    rings: NDArray[np.int64],
    pixels: NDArray[np.int64],
    sums: NDArray[np.int64] | None,
) -> Outlines:
    """Outlines with each hole put after the outer ring that it lies in."""
    rows, cols, values = bends.row[order], bends.col[order], bends.value[order[rings[:-1]]]
    outer, holes = np.flatnonzero(pixels > 0), np.flatnonzero(pixels < 0)
    owner = np.empty(len(pixels), np.int64)
    owner[outer] = np.arange(len(outer))
    if len(holes):
        corner = rings[holes] + 1
        around = outer[pixels[outer] >= SMALLEST_SHELL]
        shells = _ring_polygons(*_take_rings(rows, cols, rings, around))
        owner[holes] = owner[around[_parents(rows[corner], cols[corner], shells, pixels[around])]]
    sequence = np.lexsort((pixels < 0, owner))
    rows, cols, moved = _take_rings(rows, cols, rings, sequence)
    polygons = np.searchsorted(owner[sequence], np.arange(len(outer) + 1))
    return Outlines(
        rows=rows,
        cols=cols,
        rings=moved,
        polygons=polygons,
        values=values[outer],
        pixels=_sums(pixels[sequence], polygons[:-1]),
        score_sums=None if sums is None else _sums(sums[sequence], polygons[:-1]) / SCORE_ONE,
    )


def _take_rings(
    rows: NDArray[np.int32], cols: NDArray[np.int32], rings: NDArray[np.int64], sequence: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Rows, columns and starts of the rings `sequence`, in that order."""
    lengths = np.diff(rings)[sequence]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    taken = np.repeat(rings[:-1][sequence] - starts[:-1], lengths) + np.arange(starts[-1])
    return rows[taken], cols[taken], starts


def _ring_polygons(
    rows: NDArray[np.int32], cols: NDArray[np.int32], rings: NDArray[np.int64]
) -> NDArray[np.object_]:
    none = np.zeros(0, np.int64)
    return Outlines(rows, cols, rings, np.arange(len(rings)), none, none, None).geometries(Affine.identity())


def _parents(
    rows: NDArray[np.int32], cols: NDArray[np.int32], shells: NDArray[np.object_], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each hole, the number of the smallest shell around it.

    `rows`, `cols` are each hole's second bend. A hole's ring starts at the right end of its
    uppermost, then leftmost edge, so this is the left end. The pixel below that corner and left of
    it belongs to the region around the hole: its centre lies inside the right shell and on none.
    """
    inside = shapely.points(cols - 0.5, rows + 0.5)
    shell, hole = shapely.STRtree(inside).query(shells, predicate="contains")
    nearest_first = np.lexsort((sizes[shell], hole))
    found, where = np.unique(hole[nearest_first], return_index=True)
    assert len(found) == len(rows), "every hole has a shell around it"
    return np.asarray(shell[nearest_first][where], dtype=np.int64)
