"""Compiled tracing of outlines: what happens where four pixels meet, corner by corner, row by row.

Around a corner the pixels are a b over c d. A bend is named after the one pixel that differs from its
two neighbours: `convex` when that pixel is the region's, `reflex` when it is the one missing. Outlines
keep their region on the right hand: tops run right, right sides down, bottoms left, left sides up.
Only corners where a run begins or ends are met at all; there are three ways: above, below, or both.

Numbers of regions live in a union-find that is flat again at the end of each row, so that numbers
are used anew. Rejected: labelling first and tracing afterwards (the raster twice, and its labels whole).
This is a numeric file: i and j count runs of the row above and below, v is a vertex.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from satseg.vector.rings import (
    CLOSED,
    COORDS,
    FIRST,
    FREE_REGION,
    HEAD,
    HELD,
    HOLE_COORDS,
    HOLE_PX,
    HOLES,
    LAST,
    LIVE,
    MATE,
    MERGED,
    NEXT,
    PARENT,
    POLYGONS,
    REGIONS,
    RINGS,
    SHELL,
    TAIL,
    TOP_REGION,
    WEIGHTED,
    Output,
    Work,
    close_hole,
    closes,
    emit,
    extend,
    new_vertex,
    pair,
    precede,
)
from satseg.vector.runs import Runs, entry, helper

Corner: TypeAlias = tuple[int, int]
"""Row and column."""
Pixels: TypeAlias = tuple[int, int, int, int]
"""Labels of a b over c d."""
Open: TypeAlias = tuple[int, int]
"""Tail of the top that runs here and head of the bottom, on the way along a row."""


@entry
def trace_rows(work: Work, runs: Runs, offsets: NDArray[np.int64], out: Output, first: int, row: int) -> int:
    """Trace rows of runs, and write the polygons that are finished.

    Parameters
    ----------
    offsets : ndarray of int64, (rows + 2,)
        Where rows start in `runs`; the first is the row above, traced before.
    first : int
        Number of the first row to trace, from 0.
    row : int
        Row of the raster's corners above row number 0.

    Returns
    -------
    int
        Number of the row for which there was no room, else how many rows there are.
    """
    for k in range(first, len(offsets) - 2):
        above, below, end = offsets[k], offsets[k + 1], offsets[k + 2]
        if not _has_room(work, out, above, below, end):
            return k
        _walk(work, runs, out, above, below, row + k)
        _settle(work, runs, below, end)
        if work.state[CLOSED] > 0:
            _emit_closed(work, runs, out, above, below, row + k)
    return len(offsets) - 2


@entry
def count_vertices(work: Work, runs: Runs, count: int, counts: NDArray[np.int64]) -> None:
    """Add to `counts`, (G,), the vertices of each region, those of holes too; `count` runs are the last row."""
    for i in range(count):
        if runs.label[i] != 0:
            region = runs.region[i]
            if counts[region] == 0:
                counts[region] = work.regions[region, HELD]
            tail = work.ends[runs.start[i + 1], TAIL]
            v = work.vertices[tail, NEXT]
            counts[region] += 1
            while v != tail:
                counts[region] += 1
                v = work.vertices[v, NEXT]


@helper
def _has_room(work: Work, out: Output, above: int, below: int, end: int) -> bool:
    """Whether everything may close in this row: four bends at each corner, and all vertices leave."""
    state = work.state
    vertices = state[LIVE] + 4 * (end - above)
    rings = vertices // 4 + 1
    if vertices > len(work.vertices) or state[REGIONS] + end - below > len(work.regions):
        return False
    if state[COORDS] + vertices + rings > len(out.coords) or state[RINGS] + rings >= len(out.rings):
        return False
    if state[POLYGONS] + below - above >= len(out.polygons):
        return False
    if state[HOLE_PX] == 0:
        return True
    fits: bool = state[HOLE_COORDS] + vertices + rings <= len(out.hole_coords)
    return fits and state[HOLES] + rings < len(out.hole_rings)


@helper
def _walk(work: Work, runs: Runs, out: Output, i: int, j: int, row: int) -> None:
    """Go along the corners between two rows: join regions and chains."""
    start, label, region = runs.start, runs.label, runs.region
    width = len(work.ends) - 1
    a = b = c = d = 0 * label[i]  # of int64, lest all that follows is compiled for other numbers too
    tops: Open = (a - 1, a - 1)
    while True:
        col, below = int(start[i]), int(start[j])
        if col == below:
            b, d = label[i], label[j]
            i, j = i + 1, j + 1
            region[j - 1] = -1
            if a != c or b != d:
                tops = _both(work, runs, i, (row, col), (a, b, c, d), tops)
            if col == width:
                return
        elif col < below:
            b = label[i]
            i += 1
            tops = _upper(work, runs, out, i, (row, col), (a, b, c, d), tops)
        else:
            d = label[j]
            j += 1
            region[j - 1] = -1
            tops = _lower(work, (row, below), (a, b, c, d), tops)
        if b == d and b != 0:
            _connect(work, runs, i - 1, j - 1)
        a, c = b, d


@helper
def _both(work: Work, runs: Runs, i: int, at: Corner, pixels: Pixels, tops: Open) -> Open:
    """Bends where a boundary above meets one below: convex ones only."""
    (row, col), (a, b, c, d), (top, bottom), ends = at, pixels, tops, work.ends
    ended = begun = -1
    if a != c:
        if a != 0:
            ended = _end_run(work, runs, i, row, col, bottom)
        if c != 0:
            begun = new_vertex(work, row, col)
            extend(work, top, begun)
            ends[col, TAIL] = begun
    if b != d:
        if b != 0:
            bottom = new_vertex(work, row, col)
            precede(work, bottom, ends[col, HEAD])
            if c == b:
                pair(work, begun, bottom)
        if d != 0:
            top = new_vertex(work, row, col)
            ends[col, HEAD] = top
            if a == d and ended >= 0:
                pair(work, ended, top)
    return top, bottom


@helper
def _upper(work: Work, runs: Runs, out: Output, i: int, at: Corner, pixels: Pixels, tops: Open) -> Open:
    """Bends where a boundary above ends on one run below, c and d."""
    (row, col), (a, b, c, _), (top, bottom), ends = at, pixels, tops, work.ends
    if a == c:
        if a != 0:
            after = new_vertex(work, row, col)
            extend(work, ends[col, TAIL], after)
            top = after
    elif a != 0:
        _end_run(work, runs, i, row, col, bottom)
    if b == c:
        if b != 0:
            v = new_vertex(work, row, col)
            extend(work, tops[0], v)
            if closes(work, v, ends[col, HEAD]):
                close_hole(work, out, root(work, int(runs.region[i - 1])), v, b)
    elif b != 0:
        bottom = new_vertex(work, row, col)
        precede(work, bottom, ends[col, HEAD])
    return top, bottom


@helper
def _lower(work: Work, at: Corner, pixels: Pixels, tops: Open) -> Open:
    """Bends where a boundary below begins under one run above, a and b."""
    (row, col), (a, _, c, d), (top, bottom), ends = at, pixels, tops, work.ends
    if a == d:
        if a != 0:
            v = new_vertex(work, row, col)
            precede(work, v, bottom)
            ends[col, HEAD] = v
    elif d != 0:
        top = new_vertex(work, row, col)
        ends[col, HEAD] = top
    if a == c:
        if a != 0:
            bottom = new_vertex(work, row, col)
            ends[col, TAIL] = bottom
    elif c != 0:
        v = new_vertex(work, row, col)
        extend(work, tops[0], v)
        ends[col, TAIL] = v
    return top, bottom


@helper
def _end_run(work: Work, runs: Runs, i: int, row: int, col: int, bottom: int) -> int:
    """Bend at the lower right of run i - 2; return the vertex, or -1 where the shell of its region closed."""
    v = new_vertex(work, row, col)
    extend(work, work.ends[col, TAIL], v)
    if closes(work, v, bottom):
        # What closes here has no runs below, so that it was not merged in this row either.
        work.regions[runs.region[i - 2], SHELL] = v
        work.state[CLOSED] += 1
        return -1
    return v


@helper
def root(work: Work, region: int) -> int:
    """Return the number that `region` goes by since it was merged."""
    while work.regions[region, PARENT] != region:
        region = int(work.regions[region, PARENT])
    return region


@helper
def _connect(work: Work, runs: Runs, i: int, j: int) -> None:
    """Join run j below to the region of run i above."""
    region = root(work, int(runs.region[i]))
    if runs.region[j] < 0:
        runs.region[j] = region
        return
    winner = root(work, int(runs.region[j]))
    if winner != region:
        _merge(work, winner, region)


@helper
def _merge(work: Work, winner: int, loser: int) -> None:
    regions, state = work.regions, work.state
    regions[loser, PARENT] = winner
    work.sums[winner] += work.sums[loser]
    regions[winner, HELD] += regions[loser, HELD]
    if regions[loser, FIRST] >= 0:
        if regions[winner, FIRST] >= 0:
            work.vertices[regions[winner, LAST], MATE] = regions[loser, FIRST]
        else:
            regions[winner, FIRST] = regions[loser, FIRST]
        regions[winner, LAST] = regions[loser, LAST]
    regions[loser, LAST] = state[MERGED]
    state[MERGED] = loser


@helper
def _settle(work: Work, runs: Runs, below: int, end: int) -> None:
    """Give each run of the row below its region, and free the numbers of regions that were merged."""
    state = work.state
    merged, weighted = state[MERGED] >= 0, state[WEIGHTED] > 0
    for j in range(below, end):
        if runs.label[j] != 0:
            region = int(runs.region[j])
            if region < 0:
                region = _new_region(work)
                runs.region[j] = region
            elif merged:
                region = root(work, region)
                runs.region[j] = region
            if weighted:
                work.sums[region] += runs.weight[j]
    while state[MERGED] >= 0:
        loser = int(state[MERGED])
        state[MERGED] = work.regions[loser, LAST]
        _free_region(work, loser)


@helper
def _new_region(work: Work) -> int:
    state, regions = work.state, work.regions
    region: int = state[FREE_REGION]
    if region >= 0:
        state[FREE_REGION] = regions[region, PARENT]
    else:
        region = state[TOP_REGION]
        state[TOP_REGION] += 1
    state[REGIONS] += 1
    regions[region, PARENT] = region
    regions[region, FIRST] = regions[region, LAST] = regions[region, SHELL] = -1
    regions[region, HELD] = 0
    work.sums[region] = 0
    return region


@helper
def _free_region(work: Work, region: int) -> None:
    work.regions[region, PARENT] = work.state[FREE_REGION]
    work.regions[region, SHELL] = -1
    work.state[FREE_REGION] = region
    work.state[REGIONS] -= 1


@helper
def _emit_closed(work: Work, runs: Runs, out: Output, above: int, below: int, row: int) -> None:
    """Write the polygons whose shells closed, in the order of their first run in their last row."""
    state = work.state
    for i in range(above, below):
        if state[CLOSED] == 0:
            return
        region = int(runs.region[i])
        if runs.label[i] != 0 and work.regions[region, SHELL] >= 0:
            emit(work, out, region, runs.label[i], row)
            _free_region(work, region)
            state[CLOSED] -= 1
