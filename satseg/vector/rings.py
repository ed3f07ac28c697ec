"""Rings of the outline tracer: chains of vertices, how they close, are split, and are written.

A chain is open at both ends until its ring closes. A tail knows its head and a head its tail, so that
nothing is searched. A ring is walked once when it closes, and once as it is written; where it touches
itself at a corner it is split there, which keeps every polygon valid. Holes stay in the chains until
their polygon is finished: a copy beside the chains would only move memory about.

This is a numeric file: v, w are vertices, h and t the head and the tail of a chain. Rejected: pairing
all bends afterwards (holds those of the whole raster), edges in dictionaries (a hundred times slower).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from satseg.vector.runs import helper, part

# Columns of Work.vertices. NEXT of a tail is its chain's head, MATE of a head its chain's tail; in a
# closed hole MATE of the first vertex is the first one of the region's next hole.
ROW, COL, NEXT, MATE = 0, 1, 2, 3
COLUMN, TOUCHES = 2**30 - 1, 2**30
"""Masks of COL: the column, and whether Work.twins has the other vertex at the same corner."""
MARKED, SWAPPED, CLAIMED = -2, -3, -4
"""MATE while a ring is split: on that ring; its successor was swapped; that, and in a new ring."""
# Columns of Work.regions: DSU parent (or next free number), first and last hole (of a region that was
# merged into another in this row: the next such one), a vertex of the closed shell, vertices in holes.
PARENT, FIRST, LAST, SHELL, HELD = 0, 1, 2, 3, 4
# Columns of Work.ends.
TAIL, HEAD = 0, 1
# Numbers in Work.state: first free vertex and region (-1: none), vertices and regions ever used, and used
# now; last region merged in this row; shells closed in this row; how much is written; settings.
FREE, TOP, LIVE, FREE_REGION, TOP_REGION, REGIONS, MERGED, CLOSED = range(8)
COORDS, RINGS, POLYGONS, HOLE_COORDS, HOLES, HOLE_PX, WEIGHTED = range(8, 15)
STATES = 15


class Work(NamedTuple):
    """What is open between two rows.

    Parameters
    ----------
    vertices : ndarray of int32, (V, 4)
    twins : ndarray of int32, (V,)
        The other vertex at a corner where a region touches itself.
    ends : ndarray of int32, (W + 1, 2)
        At each column the tail that goes down there and the head that is met going up.
    regions : ndarray of int32, (G, 5)
    sums : ndarray of int64, (G,)
        Sums of weights.
    state : ndarray of int64, (STATES,)
    """

    vertices: NDArray[np.int32]
    twins: NDArray[np.int32]
    ends: NDArray[np.int32]
    regions: NDArray[np.int32]
    sums: NDArray[np.int64]
    state: NDArray[np.int64]


class Output(NamedTuple):
    """Where polygons are written, as in `satseg.vector.trace.Outlines`; place (6,) is a b c d e f of the transform."""

    coords: NDArray[np.float64]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]
    values: NDArray[np.int64]
    pixels: NDArray[np.int64]
    sums: NDArray[np.int64]
    bottoms: NDArray[np.int64]
    hole_coords: NDArray[np.float64]
    hole_rings: NDArray[np.int64]
    hole_values: NDArray[np.int64]
    place: NDArray[np.float64]


@helper
def new_vertex(work: Work, row: int, col: int) -> int:
    """Return a vertex that is a chain of its own."""
    vertices, state = work.vertices, work.state
    v: int = state[FREE]
    if v >= 0:
        state[FREE] = vertices[v, NEXT]
    else:
        v = state[TOP]
        state[TOP] += 1
    state[LIVE] += 1
    vertices[v, ROW], vertices[v, COL] = row, col
    vertices[v, NEXT] = vertices[v, MATE] = v
    return v


@helper
def extend(work: Work, t: int, v: int) -> None:
    """Put the new vertex v after the tail t."""
    vertices = work.vertices
    h = vertices[t, NEXT]
    vertices[t, NEXT], vertices[v, NEXT] = v, h
    vertices[h, MATE] = v


@helper
def precede(work: Work, v: int, h: int) -> None:
    """Put the new vertex v before the head h."""
    vertices = work.vertices
    t = vertices[h, MATE]
    vertices[v, NEXT], vertices[v, MATE] = h, t
    vertices[t, NEXT] = v


@helper
def closes(work: Work, v: int, h: int) -> bool:
    """Join the tail v to the head h, and return whether that closed a ring."""
    vertices = work.vertices
    head = vertices[v, NEXT]
    if head == h:
        return True
    t = vertices[h, MATE]
    vertices[v, NEXT], vertices[head, MATE] = h, t
    vertices[t, NEXT] = head
    return False


@helper
def pair(work: Work, v: int, w: int) -> None:
    """Note that v and w stand at one corner, bends of equal labels."""
    work.twins[v], work.twins[w] = w, v
    work.vertices[v, COL] |= TOUCHES
    work.vertices[w, COL] |= TOUCHES


@part
def measure(vertices: NDArray[np.int32], first: int) -> tuple[int, int, bool]:
    """Return a ring's number of vertices, of pixels (negative round a hole), and whether twins are on it."""
    count, doubled, touches = 0, 0, False
    v, col = first, vertices[first, COL] & COLUMN
    while True:
        count += 1
        touches |= vertices[v, COL] >= TOUCHES
        row, v = vertices[v, ROW], vertices[v, NEXT]
        after = vertices[v, COL] & COLUMN
        doubled -= (after - col) * row
        col = after
        if v == first:
            return count, doubled, touches


@part
def close_hole(work: Work, out: Output, region: int, first: int, label: int) -> None:
    """Give `region` the ring that just closed, which may fall into several holes."""
    count, pixels, touches = measure(work.vertices, first)
    if touches:
        split(work, out, region, first, label)
    else:
        keep_hole(work, out, region, first, label, count, -pixels)


@part
def keep_hole(work: Work, out: Output, region: int, first: int, label: int, count: int, pixels: int) -> None:
    """Put a hole at the end of the list of `region`, and report a small one."""
    regions, state = work.regions, work.state
    work.vertices[first, MATE] = -1
    if regions[region, FIRST] < 0:
        regions[region, FIRST] = first
    else:
        work.vertices[regions[region, LAST], MATE] = first
    regions[region, LAST] = first
    regions[region, HELD] += count
    if pixels <= state[HOLE_PX]:
        end = write_ring(work.vertices, first, out.hole_coords, state[HOLE_COORDS], out.place)[0]
        out.hole_values[state[HOLES]] = label
        state[HOLES] += 1
        out.hole_rings[state[HOLES]] = state[HOLE_COORDS] = end


@part
def split(work: Work, out: Output, region: int, first: int, label: int) -> int:
    """Split a closed ring where it touches itself; keep the holes, return a vertex of the shell (or -1).

    Swapping the successors of the two bends at a corner makes two rings of one. The arcs between such
    corners lie on one side of a closed curve, so that they never interleave and no swap rejoins rings.
    The old order of the vertices is still known: that of a swapped one is found at its twin.
    """
    vertices, twins = work.vertices, work.twins
    _swap_twins(vertices, twins, first)
    shell, v = -1, first
    while True:
        begins = vertices[v, MATE] == MARKED or vertices[v, MATE] == SWAPPED
        if begins:
            _claim(vertices, v)
        old = vertices[twins[v], NEXT] if vertices[v, MATE] == CLAIMED else vertices[v, NEXT]
        vertices[v, MATE] = -1
        vertices[v, COL] &= COLUMN
        if begins:
            count, pixels, _ = measure(vertices, v)
            if pixels > 0:
                shell = v
            else:
                keep_hole(work, out, region, v, label, count, -pixels)
        v = old
        if v == first:
            return shell


@part
def _swap_twins(vertices: NDArray[np.int32], twins: NDArray[np.int32], first: int) -> None:
    """Swap the successors of twins that are both on the ring; the others' are parted for good."""
    v = first
    while True:
        vertices[v, MATE] = MARKED
        v = vertices[v, NEXT]
        if v == first:
            break
    while True:
        old = vertices[v, NEXT]
        if vertices[v, COL] >= TOUCHES:
            w = twins[v]
            if vertices[v, MATE] == SWAPPED:
                old = vertices[w, NEXT]
            elif vertices[w, MATE] == MARKED:
                vertices[v, NEXT], vertices[w, NEXT] = vertices[w, NEXT], old
                vertices[v, MATE] = vertices[w, MATE] = SWAPPED
            else:
                vertices[v, COL] &= COLUMN
                vertices[w, COL] &= COLUMN
        v = old
        if v == first:
            return


@part
def _claim(vertices: NDArray[np.int32], first: int) -> None:
    """Note that the vertices of a new ring belong to one."""
    v = first
    while True:
        vertices[v, MATE] = CLAIMED if vertices[v, MATE] == SWAPPED else -1
        v = vertices[v, NEXT]
        if v == first:
            return


@part
def write_ring(
    vertices: NDArray[np.int32], first: int, coords: NDArray[np.float64], begin: int, place: NDArray[np.float64]
) -> tuple[int, int, int, bool]:
    """Write a ring from `begin` on; return the end, the last vertex, the pixels, and whether twins are on it."""
    a, b, c, d, e, f = place[0], place[1], place[2], place[3], place[4], place[5]
    at, doubled, touches = begin, 0, False
    v, last, before = first, first, vertices[first, COL] & COLUMN
    while True:
        row, col = vertices[v, ROW], vertices[v, COL]
        touches |= col >= TOUCHES
        col &= COLUMN
        # Along a row's edge both ends have one row. The order of these sums is GDAL's (GDALApplyGeoTransform).
        doubled -= (col - before) * row
        coords[at, 0] = c + col * a + row * b
        coords[at, 1] = f + col * d + row * e
        at += 1
        last, before = v, col
        v = vertices[v, NEXT]
        if v == first:
            break
    doubled -= ((vertices[first, COL] & COLUMN) - before) * vertices[first, ROW]
    coords[at, 0], coords[at, 1] = coords[begin, 0], coords[begin, 1]
    return at + 1, last, doubled, touches


@helper
def emit(work: Work, out: Output, region: int, label: int, row: int) -> None:
    """Write the polygon of a region whose shell has closed, and free its vertices."""
    vertices, state, regions = work.vertices, work.state, work.regions
    shell = int(regions[region, SHELL])
    begin = state[COORDS]
    end, last, pixels, touches = write_ring(vertices, shell, out.coords, begin, out.place)
    if touches:
        shell = split(work, out, region, shell, label)
        end, last, pixels, _ = write_ring(vertices, shell, out.coords, begin, out.place)
    release(work, out, shell, last, end)
    hole = int(regions[region, FIRST])
    while hole >= 0:
        after = int(vertices[hole, MATE])
        end, last, less, _ = write_ring(vertices, hole, out.coords, state[COORDS], out.place)
        pixels += less
        release(work, out, hole, last, end)
        hole = after
    k = state[POLYGONS]
    out.values[k], out.pixels[k], out.sums[k], out.bottoms[k] = label, pixels, work.sums[region], row
    state[POLYGONS] += 1
    out.polygons[k + 1] = state[RINGS]


@helper
def release(work: Work, out: Output, first: int, last: int, end: int) -> None:
    """Free the vertices of a ring that was written up to `end`."""
    state = work.state
    work.vertices[last, NEXT] = state[FREE]
    state[FREE] = first
    state[LIVE] -= end - state[COORDS] - 1
    state[RINGS] += 1
    out.rings[state[RINGS]] = state[COORDS] = end
