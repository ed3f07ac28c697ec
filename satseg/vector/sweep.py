"""Sweep: what the outline tracer keeps between strips, and the memory that its kernels work in.

Compiled code cannot grow an array. Before each row it compares the room there is with the most that a
row can need, and comes back when that is too little; here more is made and the row begun again. Unused
memory of large arrays is not backed by pages, so that room is cheap until it is written to.

Rejected: room for the worst case of the whole raster (hundreds of bytes per pixel), and lists that
grow inside compiled code (numba's typed lists cost more per vertex than all the tracing).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from satseg.errors import GridError
from satseg.vector.kernels import count_vertices, trace_rows
from satseg.vector.outlines import Holes, Outlines, joined, nothing
from satseg.vector.rings import (
    COORDS,
    FREE,
    FREE_REGION,
    HOLE_COORDS,
    HOLE_PX,
    HOLES,
    LIVE,
    MERGED,
    POLYGONS,
    REGIONS,
    RINGS,
    STATES,
    TOP,
    TOP_REGION,
    WEIGHTED,
    Output,
    Work,
)
from satseg.vector.runs import Runs, code_runs, label_runs

Kind = TypeVar("Kind", bound=np.generic)
Finder = Callable[[int, int, NDArray[np.int64]], None]
"""Finds the runs of rows first to last of a strip, and fills in where they start."""
CUT_ROWS = 256
"""Polygons are cut above multiples of this row only, so that strips do not matter."""
BLOCK_PIXELS = 2**18
"""Pixels made into runs at a time: what fits the cache."""
MOST_VERTICES = 2**31 - 1
"""Vertices have numbers of 31 bits; as many take 40 GB."""
SPARE = 2**10
"""Vertices and regions there is room for at first."""
WRITTEN = [COORDS, RINGS, POLYGONS, HOLE_COORDS, HOLES]
"""How much is written, among the numbers of Work.state."""
log = logging.getLogger(__name__)


class Sweep:
    """The rows traced so far: arguments as those of `satseg.vector.trace.OutlineTracer`, and valid."""

    def __init__(self, width: int, transform: Affine, *, hole_px: int, max_vertices: int) -> None:
        self.row = 0
        self._width, self._max_vertices, self._warned = width, max_vertices, False
        self._block = min(CUT_ROWS, max(1, BLOCK_PIXELS // (width + 1)))
        self._runs = Runs.room((self._block + 1) * (width + 1))
        self._place = np.array(transform[:6], np.float64)
        state = np.zeros(STATES, np.int64)
        state[[FREE, FREE_REGION, MERGED]] = -1
        state[HOLE_PX] = min(hole_px, 2**62)
        self._work = Work(
            vertices=np.empty((SPARE, 4), np.int32),
            twins=np.empty(SPARE, np.int32),
            ends=np.empty((width + 1, 2), np.int32),
            regions=np.empty((SPARE, 5), np.int32),
            sums=np.empty(SPARE, np.int64),
            state=state,
        )
        self._out = self._output(0, 0, 0)
        self._parts: list[Outlines] = []
        self._cuts = 0
        self._above = self._blank(0) if width else 0  # runs of the row above, kept first in _runs

    @property
    def live(self) -> int:
        """Vertices of polygons that have not ended."""
        return int(self._work.state[LIVE])

    def feed_codes(self, codes: NDArray[np.uint8], tables: NDArray[np.int64], *, weighted: bool) -> Outlines:
        """Trace rows of bytes, (h, width), with labels and weights by `tables`, (2, 256)."""

        def find(first: int, last: int, offsets: NDArray[np.int64]) -> None:
            flat = np.ascontiguousarray(codes[first:last]).reshape(-1).view()
            flat.flags.writeable = False  # always, for numba compiles anew for the other kind
            lead = -flat.__array_interface__["data"][0] % 8
            words = flat[lead : max(lead, lead + (flat.size - lead) // 8 * 8)].view(np.uint64)
            words = words if sys.byteorder == "little" else words.byteswap()
            code_runs(flat, words, lead, tables, self._runs, offsets, self._width)

        return self._feed(len(codes), find, weighted=weighted)

    def feed_labels(self, labels: NDArray[np.integer], weights: NDArray[np.integer] | None) -> Outlines:
        """Trace rows of labels, (h, width), with weights as large or none."""
        none = np.zeros((0, 0), np.int64)

        def find(first: int, last: int, offsets: NDArray[np.int64]) -> None:
            wide = none if weights is None else weights[first:last].astype(np.int64, order="C")
            label_runs(labels[first:last].astype(np.int64, order="C"), wide, self._runs, offsets)

        return self._feed(len(labels), find, weighted=weights is not None)

    def finish(self) -> Outlines:
        """Trace a row of nothing below the last one."""
        if self._width:
            end = self._blank(self._above)
            self._trace(np.array([0, self._above, end]))
        return self._taken()

    def _blank(self, at: int) -> int:
        """Write a row of nothing into the runs from `at` on, and return its end."""
        runs = self._runs
        runs.start[at : at + 2] = 0, self._width
        runs.label[at : at + 2] = runs.weight[at : at + 2] = 0
        runs.region[at : at + 2] = -1
        return at + 2

    def _feed(self, height: int, find: Finder, *, weighted: bool) -> Outlines:
        if not self._width:
            self.row += height
            return nothing()
        self._work.state[WEIGHTED] = weighted
        if height * self._width // 4 > len(self._out.coords):
            coords = height * self._width // 4  # dense land cover has fewer; more makes a part more
            self._out = self._output(coords, coords // 5, coords if self._work.state[HOLE_PX] else 0)
        first = 0
        while first < height:
            if self.row % CUT_ROWS == 0 and self.live > self._max_vertices:
                self._cut()
            last = min(height, first + self._block, first + CUT_ROWS - self.row % CUT_ROWS)
            offsets = np.zeros(last - first + 2, np.int64)
            offsets[1] = self._above
            find(first, last, offsets[1:])
            self._trace(offsets)
            self.row += last - first
            first = last
        return self._taken()

    def _trace(self, offsets: NDArray[np.int64]) -> None:
        """Trace rows of runs below the row above, and keep the last one as the next row above."""
        done = 0
        while (done := trace_rows(self._work, self._runs, offsets, self._out, done, self.row)) < len(offsets) - 2:
            self._make_room(int(offsets[done + 2] - offsets[done]))
        start, end = offsets[-2:].tolist()
        for kind in self._runs:
            kind[: end - start] = kind[start:end].copy()
        self._above = end - start

    def _make_room(self, runs: int) -> None:
        """Make room for what two rows of `runs` can need at most, see `satseg.vector.kernels`."""
        work, state = self._work, self._work.state
        vertices = self.live + 4 * runs
        if vertices > len(work.vertices):
            count = min(max(vertices, 2 * len(work.vertices)), MOST_VERTICES)
            if count < vertices:
                raise GridError(
                    f"{vertices} vertices are open at row {self.row}", hint="cut the raster", code="E-GRID-209"
                )
            self._work = work = work._replace(
                vertices=_grown(work.vertices, count, state[TOP]), twins=_grown(work.twins, count, state[TOP])
            )
        if state[REGIONS] + runs > len(work.regions):
            count = max(int(state[REGIONS]) + runs, 2 * len(work.regions))
            regions = _grown(work.regions, count, state[TOP_REGION])
            self._work = work._replace(regions=regions, sums=_grown(work.sums, count, state[TOP_REGION]))
        self._make_output(vertices, vertices // 4 + 1)

    def _make_output(self, vertices: int, rings: int) -> None:
        """Make room for so many vertices and rings more: set what is written aside, then make more if need be."""
        coords, made, polygons, hole_coords, holes = self._work.state[WRITTEN].tolist()
        small = self._work.state[HOLE_PX] > 0
        needed = (vertices + rings, rings + 1, vertices + rings if small else 0)
        out = self._out
        room = (len(out.coords), min(len(out.rings), len(out.polygons)), len(out.hole_coords))
        filled = (coords, max(made, polygons), max(hole_coords, 5 * holes))
        if all(more + used <= has for more, used, has in zip(needed, filled, room, strict=True)):
            return
        if coords or hole_coords:
            self._parts.append(self._written())
        if any(more > has for more, has in zip(needed, room, strict=True)):
            self._out = self._output(*(max(2 * more, has) for more, has in zip(needed, room, strict=True)))

    def _output(self, coords: int, rings: int, hole_coords: int) -> Output:
        """Return room for so many coordinates, rings, and coordinates of holes."""
        numbers = {name: np.empty(rings + 1, np.int64) for name in ("values", "pixels", "sums", "bottoms")}
        return Output(
            coords=np.empty((coords, 2)),
            rings=np.zeros(rings + 1, np.int64),
            polygons=np.zeros(rings + 1, np.int64),
            **numbers,
            hole_coords=np.empty((hole_coords, 2)),
            hole_rings=np.zeros(hole_coords // 5 + 2, np.int64),
            hole_values=np.empty(hole_coords // 5 + 2, np.int64),
            place=self._place,
        )

    def _written(self) -> Outlines:
        """Return what is written in the output, which is empty after that."""
        state, out = self._work.state, self._out
        coords, rings, polygons, hole_coords, holes = state[WRITTEN].tolist()
        state[WRITTEN] = 0
        if 2 * coords > len(out.coords):
            self._out = self._output(len(out.coords), len(out.rings), len(out.hole_coords))
            corners = out.coords[:coords]
        else:
            corners = out.coords[:coords].copy()
        values, pixels, sums, bottoms = (
            kind[:polygons].copy() for kind in (out.values, out.pixels, out.sums, out.bottoms)
        )
        small = Holes(
            out.hole_coords[:hole_coords].copy(), out.hole_rings[: holes + 1].copy(), out.hole_values[:holes].copy()
        )
        starts, ends = out.rings[: rings + 1].copy(), out.polygons[: polygons + 1].copy()
        return Outlines(corners, starts, ends, values, pixels, sums, bottoms, small, 0)

    def _taken(self) -> Outlines:
        """Return everything written since the last strip."""
        cut, self._cuts = self._cuts, 0
        last = self._written()
        whole = joined([*self._parts, last]) if self._parts else last
        self._parts.clear()
        return replace(whole, cut=cut) if cut else whole

    def _cut(self) -> None:
        """End the polygons that hold too many vertices above the next row: a row without height lacks them."""
        runs, count = self._runs, self._above
        counts = np.zeros(len(self._work.regions), np.int64)
        count_vertices(self._work, runs, count, counts)
        labels, regions = runs.label[:count], runs.region[:count]
        over = (labels != 0) & (counts[regions] > self._max_vertices)
        if not over.any():
            return
        self._cuts += len(np.unique(regions[over]))
        if not self._warned:
            self._warned = True
            log.warning(
                "a polygon of label %d has more than %d vertices and is cut above row %d, as others may be; "
                "--min-area or fewer classes avoid it",
                labels[over][0], self._max_vertices, self.row,
            )  # fmt: skip
        left = np.where(over, 0, labels)
        kept = np.flatnonzero(np.concatenate([[True], left[1:-1] != left[:-2], [True]]))
        end = count + len(kept)
        runs.start[count:end], runs.label[count:end] = runs.start[kept], left[kept]
        runs.weight[count:end] = 0
        self._trace(np.array([0, count, end]))


def _grown(array: NDArray[Kind], count: int, used: int) -> NDArray[Kind]:
    """Return room for `count` rows of an array, of which `used` are copied."""
    grown = np.empty((count, *array.shape[1:]), array.dtype)
    grown[:used] = array[:used]
    return grown
