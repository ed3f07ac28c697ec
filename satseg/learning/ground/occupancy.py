"""Where a ground can be learnt from, as a coarse map: valid, labelled, and not held for validation.

Chips drawn over the whole of a scene that is mostly nodata, or labelled in a corner, would mostly be empty. So a
scene is looked at through at most `MOST_CELLS` cells a side, each by the pixel at its centre: a decimated read where
overviews or a small file make that cheap, else single pixels of a few blocks, where a cell counts as valid next to
one that is, or under a feature. The map errs towards ground that is of no use, which costs a second draw
(`feed.Chips`); what it leaves out is never drawn. A megabyte and a few seconds, whatever the scene.

Rejected: a full pass over validity, which costs what a scene costs to decode; and rejecting places one by one,
which decodes a hundred blocks for each chip of a scene of which 1 % is valid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.grid import Grid, slices
from satseg.imagery.mapping import Mover, with_pixels
from satseg.imagery.reader import SceneReader
from satseg.imagery.scene import Scene
from satseg.imagery.sources import BandSource
from satseg.learning.ground.split import Ground

MOST_CELLS, CELL_PX = 512, 16
"""Cells along the longer side of a scene at most, and the least side of one in pixels."""
DECODED_IN_ALL = 2**28
"""Stored values that may be decoded to look at all grounds together: two or three seconds."""
PROBES_IN_ALL, LEAST_PROBES = 1024, 16
"""Blocks of large files without overviews that are decoded in all; a scene whose part is less is taken as valid."""
LOOK_PX = 1024
"""Longer side of a decimated read."""


@dataclass(frozen=True, slots=True, eq=False)
class Occupancy:
    """Cells of a scene, and which of them can be learnt from.

    Parameters
    ----------
    grid : Grid
        Whose pixels are the cells.
    free : ndarray of bool, (rows, cols)
    height, width : float
        Of a cell, in pixels of the scene.
    """

    grid: Grid
    free: NDArray[np.bool_]
    height: float
    width: float

    @property
    def area_px(self) -> float:
        """Pixels of the scene that can be learnt from."""
        return float(np.count_nonzero(self.free)) * self.height * self.width

    def near(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether pixels at `rows`, `cols` of the scene lie in a free cell or next to one."""
        grown = _grown(self.free)
        last_row, last_col = self.free.shape[0] - 1, self.free.shape[1] - 1
        down, right = rows // self.height, cols // self.width
        return np.asarray(grown[down.clip(0, last_row).astype(int), right.clip(0, last_col).astype(int)])


def occupancy(ground: Ground, *, among: int = 1) -> Occupancy:
    """Return where `ground` can be learnt from.

    Parameters
    ----------
    among : int
        How many grounds are looked at in all; each gets its part of the work.

    Raises
    ------
    InputError
        A block that was looked at is damaged.
    """
    grid = ground.scene.grid
    side = max(CELL_PX, max(grid.shape) / MOST_CELLS)
    rows, cols = (max(1, math.ceil(length / side)) for length in grid.shape)
    height, width = grid.height / rows, grid.width / cols
    cells = with_pixels(grid, rows=height, cols=width, height=rows, width=cols)
    free = ground.labels.known(cells)  # a cell that known ground touches counts
    for part in ground.closed(grid.window):
        down, right = slices(part, grid.window)
        inside_rows = _within(np.arange(rows), height, down)
        free &= ~(inside_rows[:, None] & _within(np.arange(cols), width, right))
    if free.any() and _may_be_invalid(ground.scene):
        free &= _valid(ground, cells, among)
    return Occupancy(cells, free, height, width)


def _within(cells: NDArray[np.int64], side: float, pixels: slice) -> NDArray[np.bool_]:
    """Whether the centres of cells lie in a range of pixels."""
    centres = (cells + 0.5) * side
    return np.asarray((centres >= pixels.start) & (centres < pixels.stop))


def _may_be_invalid(scene: Scene) -> bool:
    """Whether any pixel of `scene` can be: files without masks that cover its grid have none."""
    files = {source.path: source.file for source in scene.sources}.values()
    marked = any(s.nodata is not None or s.dtype.startswith(("float", "complex")) for s in scene.sources)
    masked = any(file.mask != "none" or file.alpha is not None for file in files)
    return marked or masked or any(not file.grid.matches(scene.grid) for file in files)


def _valid(ground: Ground, cells: Grid, among: int) -> NDArray[np.bool_]:
    """Cells whose centre is valid in every file of the scene."""
    valid = np.ones(cells.shape, bool)
    by_file: dict[str, list[BandSource]] = {}
    for source in ground.scene.sources:
        by_file.setdefault(source.path, []).append(source)
    with ground.scene.reader() as reader:
        if sum(map(_decoded, by_file.values())) > DECODED_IN_ALL / among:
            return _probed(ground, reader, cells, PROBES_IN_ALL // among)
        for sources in by_file.values():
            valid &= _seen(reader, sources, cells)
    return valid


def _decoded(sources: list[BandSource]) -> float:
    """Stored values that a decimated read of a file decodes."""
    file = sources[0].file
    most = max(file.grid.shape) / LOOK_PX
    factor = max((f for f in file.overviews if f <= most), default=1)
    return float(file.grid.height * file.grid.width * file.count) / factor**2


def _seen(reader: SceneReader, sources: list[BandSource], cells: Grid) -> NDArray[np.bool_]:
    """Cells whose centre is valid in one file, by a decimated read of it."""
    own = sources[0].file.grid
    shrink = min(1.0, LOOK_PX / max(own.shape))
    height, width = (max(1, round(length * shrink)) for length in own.shape)
    seen = reader.overview([source.name for source in sources], height=height, width=width)
    mover = Mover(seen.grid, cells)
    rows, cols = np.meshgrid(np.arange(cells.height) + 0.5, np.arange(cells.width) + 0.5, indexing="ij")
    at = mover.move(rows, cols)
    inside = mover.meets(at)
    valid = np.zeros(cells.shape, bool)
    valid[inside] = seen.valid[tuple(np.floor(at[:, inside]).astype(int))]
    return valid


def _probed(ground: Ground, reader: SceneReader, cells: Grid, probes: int) -> NDArray[np.bool_]:
    """Cells near a pixel that is valid among `probes` spread evenly, or under a feature; all where none is."""
    everywhere = np.ones(cells.shape, bool)
    if probes < LEAST_PROBES:
        return everywhere
    grid, side = ground.scene.grid, math.isqrt(probes)
    hits = np.zeros((min(side, grid.height), min(side, grid.width)), bool)
    for row, col in np.ndindex(hits.shape):
        place = ((row + 0.5) * grid.height // hits.shape[0], (col + 0.5) * grid.width // hits.shape[1])
        hits[row, col] = reader.read(_pixel(*place)).valid.all()
    near = _grown(hits)
    rows, cols = (np.arange(n) * m // n for n, m in zip(cells.shape, hits.shape, strict=True))
    valid = near[rows][:, cols]
    points = shapely.point_on_surface(np.concatenate(ground.labels.geometries))
    points = points[~shapely.is_empty(points)]
    down, right = cells.rowcol(xs=shapely.get_x(points), ys=shapely.get_y(points))
    on = (down >= 0) & (down < cells.height) & (right >= 0) & (right < cells.width)
    valid[down[on].astype(int), right[on].astype(int)] = True
    return valid if valid.any() else everywhere


def _pixel(row: float, col: float) -> Window:
    return Window(int(col), int(row), 1, 1)


def _grown(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells that are, or touch one of, `cells`."""
    framed = np.pad(cells, 1)
    along = framed[:-2] | framed[1:-1] | framed[2:]
    return np.asarray(along[:, :-2] | along[:, 1:-1] | along[:, 2:])
