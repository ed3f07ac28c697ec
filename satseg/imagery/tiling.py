"""Tiles: windows to predict, whose reads overhang by a halo and whose keeps cover every pixel once.

The tile lattice is anchored at the grid's origin, never at the area of interest, and tile and halo
are multiples of the network's stride: a pixel lies at the same place of the same read whatever part
of the scene is asked for, so its result is the same. Reads are all of one size and may overhang the
grid, so that they batch; no edge is dropped and none is shifted inward (a shifted last tile sees
other neighbours than its lattice place would give it). `TilePlan.tight` cuts a read down to what its
keep needs: nothing beyond the keep's halo, and nothing beyond the grid, where every tiling ends
alike and the network pads as it did in training. A plan is index arithmetic: nothing is listed
before it is asked for, so a grid of a million pixels a side plans at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from rasterio.windows import Window

from satseg.errors import GridError, UsageError
from satseg.grid import Grid, overlap


@dataclass(frozen=True, slots=True)
class Tile:
    """One window to read and the part of it to keep.

    Parameters
    ----------
    row, col : int
        Place in the lattice of tiles; (0, 0) starts at the grid's first pixel.
    read : Window
        The lattice cell and its halo, always full size; may overhang the grid.
    keep : Window
        The part of the cell inside the area asked for; keeps partition it exactly.
    """

    row: int
    col: int
    read: Window
    keep: Window


@dataclass(frozen=True, slots=True)
class TileRow:
    """One row band of tiles: the unit of work, of resume and of distribution.

    Parameters
    ----------
    row : int
        Row of the lattice.
    keep : Window
        What the band's tiles keep together: the full width asked for.
    tiles : tuple of Tile
        From left to right.
    """

    row: int
    keep: Window
    tiles: tuple[Tile, ...]

    @property
    def read(self) -> Window:
        """The window that holds the reads of all tiles of the band."""
        first, last = self.tiles[0].read, self.tiles[-1].read
        return Window(first.col_off, first.row_off, last.col_off + last.width - first.col_off, first.height)


@dataclass(frozen=True, slots=True)
class TilePlan:
    """All tiles of an area, computed when asked for.

    Parameters
    ----------
    window : Window
        The area: what the keeps partition. Inside the grid.
    tile, tile_width : int
        Height and width of a lattice cell in pixels.
    halo : int
        How far a read reaches beyond its cell on each side, in pixels.
    align : int
        Tile and halo are multiples of this.
    height, width : int
        Of the grid.
    """

    window: Window
    tile: int
    tile_width: int
    halo: int
    align: int
    height: int
    width: int

    @property
    def read_size(self) -> tuple[int, int]:
        """Height and width of every read in pixels."""
        return self.tile + 2 * self.halo, self.tile_width + 2 * self.halo

    @property
    def row_range(self) -> range:
        """Lattice rows that touch the area."""
        return _cells(self.window.row_off, self.window.height, self.tile)

    @property
    def col_range(self) -> range:
        """Lattice columns that touch the area."""
        return _cells(self.window.col_off, self.window.width, self.tile_width)

    @property
    def rows(self) -> Iterator[TileRow]:
        """The row bands from top to bottom."""
        return map(self.row, self.row_range)

    def row(self, row: int) -> TileRow:
        """Return the row band of lattice row `row`.

        Raises
        ------
        GridError
            No tile of that row touches the area.
        """
        tiles = tuple(self.tile_at(row, col) for col in self.col_range)
        top = tiles[0].keep
        return TileRow(row, Window(self.window.col_off, top.row_off, self.window.width, top.height), tiles)

    def tile_at(self, row: int, col: int) -> Tile:
        """Return the tile at lattice place `row`, `col`.

        Raises
        ------
        GridError
            It does not touch the area.
        """
        top, left = row * self.tile, col * self.tile_width
        keep = overlap(Window(left, top, self.tile_width, self.tile), self.window)
        if keep is None:
            raise GridError(f"tile ({row}, {col}) does not touch {self.window}", code="E-GRID-111")
        height, width = self.read_size
        return Tile(row, col, Window(left - self.halo, top - self.halo, width, height), keep)

    def tight(self, tile: Tile, *, beyond: int = 0) -> Tile:
        """Return `tile` with a read of only what its keep needs.

        That is the keep and its halo, cut off where the grid ends (the grid's size is rounded up to
        `align` first, and reads may go `beyond` it by that many pixels, for networks that return less
        than they are given). `align` still divides the place of every read.
        """
        keep = tile.keep
        top, height = _reach(keep.row_off, keep.height, self.halo, self.align, self.height, beyond)
        left, width = _reach(keep.col_off, keep.width, self.halo, self.align, self.width, beyond)
        return replace(tile, read=Window(left, top, width, height))

    def work(self, *, beyond: int = 0) -> float:
        """Return how many pixels tight reads hold for each pixel of the area."""
        rows = _reaches(self.window.row_off, self.window.height, self.tile, self, self.height, beyond)
        cols = _reaches(self.window.col_off, self.window.width, self.tile_width, self, self.width, beyond)
        return float(rows / self.window.height * cols / self.window.width)

    def __iter__(self) -> Iterator[Tile]:
        for band in self.rows:
            yield from band.tiles

    def __len__(self) -> int:
        return len(self.row_range) * len(self.col_range)


def plan_tiles(
    grid: Grid,
    *,
    tile: int,
    halo: int,
    window: Window | None = None,
    align: int = 1,
    tile_width: int | None = None,
) -> TilePlan:
    """Return the tiles whose keeps partition `window` of `grid`.

    Parameters
    ----------
    grid : Grid
        Its origin anchors the lattice.
    tile : int
        Height of the part of a tile that is kept, in pixels; rounded up to a multiple of `align`.
    halo : int
        How far reads reach beyond it on each side, in pixels; rounded up to a multiple of `align`.
    window : Window, optional
        Area of interest in pixels of `grid`, clipped to it; the whole grid when left out.
    align : int
        The network's stride: the factor its deepest level shrinks by.
    tile_width : int, optional
        Its width, treated alike; as its height when left out.

    Raises
    ------
    UsageError
        A size that is not positive, or a negative halo.
    GridError
        The window does not touch the grid.
    """
    across = tile if tile_width is None else tile_width
    if min(tile, across, align) < 1 or halo < 0:
        raise UsageError(f"tile {tile} x {across}, halo {halo}, align {align}: need tile >= 1, halo >= 0, align >= 1")
    area = grid.window if window is None else overlap(window, grid.window)
    if area is None:
        raise GridError(
            f"window {window} does not touch a grid of {grid.height} x {grid.width} pixels", code="E-GRID-112"
        )
    return TilePlan(
        area, round_up(tile, align), round_up(across, align), round_up(halo, align), align, grid.height, grid.width
    )


def _reach(start: int, length: int, halo: int, align: int, size: int, beyond: int) -> tuple[int, int]:
    """Start and length of the read around a keep along one axis of `size` pixels."""
    first = max(start // align * align - halo, -beyond)
    last = min(round_up(start + length, align) + halo, round_up(size, align) + beyond)
    return first, last - first


def _reaches(start: int, length: int, tile: int, plan: TilePlan, size: int, beyond: int) -> int:
    """Sum of the lengths of the reads along one axis: `_reach` for all cells at once."""
    cells = np.asarray(_cells(start, length, tile)) * tile
    first, last = np.maximum(cells, start), np.minimum(cells + tile, start + length)
    low = np.maximum(first // plan.align * plan.align - plan.halo, -beyond)
    high = np.minimum(-(-last // plan.align) * plan.align + plan.halo, round_up(size, plan.align) + beyond)
    return int((high - low).sum())


def scattered_blocks(height: int, width: int, *, side: int, seed: int) -> Iterator[Window]:
    """Yield the blocks of `side` pixels that `height` x `width` are made of, in an order that only `seed` decides."""
    rows, cols = -(-height // side), -(-width // side)
    for number in np.random.default_rng((seed, rows, cols)).permutation(rows * cols):
        yield block_at(height, width, *divmod(int(number), cols), side=side)


def block_at(height: int, width: int, row: int, col: int, *, side: int) -> Window:
    """Return the block of `side` pixels in this row and column of blocks, cut at the end of `height` x `width`."""
    top, left = row * side, col * side
    return Window(left, top, min(side, width - left), min(side, height - top))


def round_up(size: int, step: int) -> int:
    """Return the least multiple of `step` that is not below `size`."""
    return -(-size // step) * step


def _cells(start: int, length: int, tile: int) -> range:
    return range(start // tile, -(-(start + length) // tile))
