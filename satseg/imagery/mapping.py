"""How the pixels of one grid lie on another: a shift, a stretch along rows and columns, or a warp.

`relate` picks the simplest relation that holds to a ten-thousandth of a pixel over the whole grid. A
warp (another CRS, or rotation between the grids) asks PROJ for the corners of a lattice of cells and
interpolates between them. The lattice is anchored at the reference grid's origin and positions depend on
nothing else, so a window of them equals the crop of the whole. Its step is halved from 16 pixels until
the interpolation is within a thousandth of a source pixel of PROJ; cells over which positions jump (poles,
the antimeridian, the edge of a projection) are computed pixel by pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.crs import same_crs, to_pyproj, transformer
from satseg.grid import SNAP_PX, Grid

LATTICE_TOLERANCE_PX = 1e-4
"""Drift over the whole grid below which two grids share their pixels, as in `Grid.matches`."""
WARP_TOLERANCE_PX = 1e-3
FIRST_STEP_PX = 16
JUMP = 4.0
"""A cell whose corners spread over this many times its expected size is not interpolated."""
SAMPLES = 33
"""A side of the mesh that tells whether grids meet; probes of a warp make do with fewer."""
PROBES = 9
Positions: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shift:
    """Source pixel = reference pixel + (rows, cols): the grids share their pixels."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Source position = origin + step x reference position, apart for rows and columns."""

    row_step: float
    row_origin: float
    col_step: float
    col_origin: float

    @property
    def ratios(self) -> tuple[float, float]:
        """Height and width of a reference pixel in source pixels."""
        return abs(self.row_step), abs(self.col_step)

    def centres(self, window: Window) -> tuple[Positions, Positions]:
        """Return source rows (H,) and columns (W,) of the centres of the window's rows and columns."""
        rows, cols = _centres(window)
        return self.row_step * rows + self.row_origin, self.col_step * cols + self.col_origin


class Mover:
    """Source positions of reference positions by way of the world, through PROJ where CRSs differ.

    Parameters
    ----------
    source, reference : Grid
        Both with a CRS or both without.
    """

    def __init__(self, source: Grid, reference: Grid) -> None:
        self.source, self.reference = source, reference
        self._proj: pyproj.Transformer | None = None
        self._turn: float | None = None
        if source.crs is not None and reference.crs is not None and not same_crs(source.crs, reference.crs):
            self._proj = transformer(reference.crs, source.crs)
            self._turn = _full_turn(source)

    def move(self, rows: Positions, cols: Positions) -> Positions:
        """Return source rows, columns (2, ...) of reference positions (...), NaN where none exist."""
        xs, ys = self.reference.xy(rows=rows, cols=cols)
        if self._proj is not None:
            xs, ys = self._proj.transform(xs, ys)
            lost = ~(np.isfinite(xs) & np.isfinite(ys))
            xs, ys = np.where(lost, np.nan, xs), np.where(lost, np.nan, ys)
        out_rows, out_cols = self.source.rowcol(xs=xs, ys=ys)
        if self._turn is not None:
            # Longitude 181 is -179: take the turn nearest to the source's centre.
            west = self.source.width / 2 - self._turn / 2
            out_cols = west + (out_cols - west) % self._turn
        return np.stack([out_rows, out_cols])

    def meets(self, at: Positions) -> NDArray[np.bool_]:
        """Return whether source positions (2, ...) lie in the source by more than noise; NaN does not."""
        size = np.array(self.source.shape).reshape(2, *(1,) * (at.ndim - 1))
        within = (at > SNAP_PX) & (at < size - SNAP_PX)
        return np.asarray(within[0] & within[1])


class Warp:
    """Any other relation: a lattice of exact positions, interpolated (see the module's text).

    Parameters
    ----------
    source, reference : Grid
        Both with a CRS or both without.
    """

    def __init__(self, source: Grid, reference: Grid) -> None:
        self._mover = Mover(source, reference)
        self.ratios = self._measure_ratios()
        self.step = self._measure_step()

    def centres(self, window: Window) -> tuple[Positions, Positions]:
        """Return source rows, columns of the window's pixel centres, both (H, W); NaN where none exist."""
        rows, cols = _centres(window)
        at = self._mover.move(*_mesh(rows, cols)) if self.step == 1 else self._interpolate(rows, cols)
        return at[0], at[1]

    def _interpolate(self, rows: Positions, cols: Positions) -> Positions:
        row_nodes, row_cell, down = self._cells(rows)
        col_nodes, col_cell, right = self._cells(cols)
        nodes = self._mover.move(*_mesh(row_nodes, col_nodes))
        down = down[:, None]
        along = nodes[:, row_cell] * (1 - down) + nodes[:, row_cell + 1] * down
        at: Positions = along[:, :, col_cell] * (1 - right) + along[:, :, col_cell + 1] * right
        corners = np.stack([nodes[:, :-1, :-1], nodes[:, 1:, :-1], nodes[:, :-1, 1:], nodes[:, 1:, 1:]])
        rough = self._rough(corners, self.step)[row_cell][:, col_cell]
        if rough.any():
            which_rows, which_cols = np.nonzero(rough)
            at[:, rough] = self._mover.move(rows[which_rows], cols[which_cols])
        return at

    def _cells(self, centres: Positions) -> tuple[Positions, NDArray[np.int64], Positions]:
        """Return lattice nodes around `centres` of an axis, and for each its cell and place in it (0..1)."""
        cells = np.floor(centres / self.step).astype(np.int64)
        nodes = np.arange(cells[0], cells[-1] + 2)
        return (nodes * self.step).astype(np.float64), cells - nodes[0], centres / self.step - cells

    def _rough(self, corners: Positions, step: int) -> NDArray[np.bool_]:
        """Return which cells have a corner nowhere, or corners (4, 2, ...) too far apart to interpolate."""
        spread = corners.max(axis=0) - corners.min(axis=0)  # NaN where a corner is
        limit = JUMP * (step * np.array(self.ratios) + 1)
        smooth: NDArray[np.bool_] = (spread <= limit.reshape(2, *(1,) * (spread.ndim - 1))).all(axis=0)
        return ~smooth

    def _measure_ratios(self) -> tuple[float, float]:
        """Return height and width of a reference pixel in source pixels: medians where the grids meet."""
        rows, cols = _sample(self._mover.reference, PROBES)
        here = self._mover.move(rows, cols)
        down, right = self._mover.move(rows + 0.5, cols) - here, self._mover.move(rows, cols + 0.5) - here
        lengths = 2 * np.hypot(down, right)
        use = _preferred(np.isfinite(lengths).all(axis=0), self._mover.meets(here))
        if not use.any():
            return 1.0, 1.0
        height, width = np.median(lengths[:, use], axis=1)
        return float(height), float(width)

    def _measure_step(self) -> int:
        """Return the largest lattice step, 16 px halved as needed, that is true to `WARP_TOLERANCE_PX`."""
        rows, cols = _sample(self._mover.reference, PROBES)
        step = FIRST_STEP_PX
        while step > 1:
            top: Positions = np.floor(rows / step) * step
            left: Positions = np.floor(cols / step) * step
            ends = [self._mover.move(top + dr * step, left + dc * step) for dr in (0, 1) for dc in (0, 1)]
            corners = np.stack(ends)
            # The centre of a cell is where bilinear interpolation is furthest off.
            truth = self._mover.move(top + step / 2, left + step / 2)
            error = np.abs(corners.mean(axis=0) - truth)
            smooth = ~self._rough(corners, step) & np.isfinite(error).all(axis=0)
            use = _preferred(smooth, self._mover.meets(truth))
            if not use.any() or error[:, use].max() <= WARP_TOLERANCE_PX:
                return step
            step //= 2
        return 1


Mapping: TypeAlias = Shift | Stretch | Warp


def relate(source: Grid, reference: Grid) -> Mapping:
    """Return the simplest relation that takes pixels of `reference` to pixels of `source`.

    Both grids have a CRS, or neither has one.
    """
    if not same_crs(source.crs, reference.crs):
        return Warp(source, reference)
    own, ref, area = source.transform, reference.transform, source.transform.determinant
    height, width = reference.height, reference.width
    row_drift = (own.a * ref.d - own.d * ref.a) / area * width  # of a row, from its first column to its last
    col_drift = (own.e * ref.b - own.b * ref.e) / area * height
    if max(abs(row_drift), abs(col_drift)) > LATTICE_TOLERANCE_PX:
        return Warp(source, reference)
    row_step = (own.a * ref.e - own.d * ref.b) / area
    col_step = (own.e * ref.a - own.b * ref.d) / area
    rows, cols = source.rowcol(xs=[ref.c], ys=[ref.f])
    row, col = float(rows[0]), float(cols[0])
    row_drift = abs(row_step - 1) * height + abs(row - round(row))
    col_drift = abs(col_step - 1) * width + abs(col - round(col))
    if max(row_drift, col_drift) <= LATTICE_TOLERANCE_PX:
        return Shift(round(row), round(col))
    return Stretch(row_step, row, col_step, col)


def with_pixels(grid: Grid, *, rows: float, cols: float, height: int, width: int) -> Grid:
    """Return a grid of `height` x `width` pixels, each `rows` x `cols` pixels of `grid`, from its origin."""
    t = grid.transform
    return Grid(height, width, Affine(t.a * cols, t.b * rows, t.c, t.d * cols, t.e * rows, t.f), grid.crs)


def meets(source: Grid, reference: Grid) -> bool:
    """Return whether some ground is on both grids, judged at a mesh of points of each."""
    forth, back = Mover(source, reference), Mover(reference, source)
    met = forth.meets(forth.move(*_sample(reference, SAMPLES))).any()
    return bool(met or back.meets(back.move(*_sample(source, SAMPLES))).any())


def _centres(window: Window) -> tuple[Positions, Positions]:
    """Return the pixel centres of the window's rows and of its columns."""
    top, left = round(window.row_off), round(window.col_off)
    rows = np.arange(top, top + round(window.height), dtype=np.float64)
    cols = np.arange(left, left + round(window.width), dtype=np.float64)
    return rows + 0.5, cols + 0.5


def _mesh(rows: Positions, cols: Positions) -> tuple[Positions, Positions]:
    mesh_rows, mesh_cols = np.meshgrid(rows, cols, indexing="ij")
    return mesh_rows, mesh_cols


def _sample(grid: Grid, count: int) -> tuple[Positions, Positions]:
    """Return a mesh of positions over the grid, its edges included."""
    return _mesh(np.linspace(0, grid.height, count), np.linspace(0, grid.width, count))


def _preferred(possible: NDArray[np.bool_], preferred: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return possible & preferred if (possible & preferred).any() else possible


def _full_turn(grid: Grid) -> float | None:
    """Return 360 degrees in columns of a geographic grid whose rows run along parallels; else None."""
    if grid.crs is None or not grid.is_rectilinear:
        return None
    crs = to_pyproj(grid.crs)
    if not crs.is_geographic or not crs.axis_info:
        return None
    return abs(2 * math.pi / float(crs.axis_info[0].unit_conversion_factor) / grid.transform.a)
