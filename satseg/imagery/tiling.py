"""Tiles: windows to predict, whose reads overhang by a halo and whose keeps cover every pixel once.

The tile lattice is anchored at the grid's origin, never at the area of interest, and tile and halo
are multiples of the network's stride: a pixel lies at the same place of the same read whatever part
of the scene is asked for, so its result is the same. Reads are all of one size and may overhang the
grid, so that they batch; no edge is dropped and none is shifted inward (a shifted last tile sees
other neighbours than its lattice place would give it). A plan is index arithmetic: nothing is listed
before it is asked for, so a grid of a million pixels a side plans at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    tile : int
        Side of a lattice cell in pixels.
    halo : int
        How far a read reaches beyond its cell on each side, in pixels.
    """

    window: Window
    tile: int
    halo: int

    @property
    def read_size(self) -> int:
        """Side of every read in pixels."""
        return self.tile + 2 * self.halo

    @property
    def row_range(self) -> range:
        """Lattice rows that touch the area."""
        return _cells(self.window.row_off, self.window.height, self.tile)

    @property
    def col_range(self) -> range:
        """Lattice columns that touch the area."""
        return _cells(self.window.col_off, self.window.width, self.tile)

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
        top, left = row * self.tile, col * self.tile
        keep = overlap(Window(left, top, self.tile, self.tile), self.window)
        if keep is None:
            raise GridError(f"tile ({row}, {col}) does not touch {self.window}", code="E-GRID-111")
        return Tile(row, col, Window(left - self.halo, top - self.halo, self.read_size, self.read_size), keep)

    def __iter__(self) -> Iterator[Tile]:
        for band in self.rows:
            yield from band.tiles

    def __len__(self) -> int:
        return len(self.row_range) * len(self.col_range)


def plan_tiles(grid: Grid, *, tile: int, halo: int, window: Window | None = None, align: int = 1) -> TilePlan:
    """Return the tiles whose keeps partition `window` of `grid`.

    Parameters
    ----------
    grid : Grid
        Its origin anchors the lattice.
    tile : int
        Side of the part of a tile that is kept, in pixels; rounded up to a multiple of `align`.
    halo : int
        How far reads reach beyond it on each side, in pixels; rounded up to a multiple of `align`.
    window : Window, optional
        Area of interest in pixels of `grid`, clipped to it; the whole grid when left out.
    align : int
        The network's stride: the factor its deepest level shrinks by.

    Raises
    ------
    UsageError
        A size that is not positive, or a negative halo.
    GridError
        The window does not touch the grid.
    """
    if tile < 1 or halo < 0 or align < 1:
        raise UsageError(f"tile {tile}, halo {halo}, align {align}: need tile >= 1, halo >= 0, align >= 1")
    area = grid.window if window is None else overlap(window, grid.window)
    if area is None:
        raise GridError(
            f"window {window} does not touch a grid of {grid.height} x {grid.width} pixels", code="E-GRID-112"
        )
    return TilePlan(area, _round_up(tile, align), _round_up(halo, align))


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _cells(start: int, length: int, tile: int) -> range:
    return range(start // tile, -(-(start + length) // tile))
