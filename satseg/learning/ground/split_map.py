"""Maps of a split: which ground is learnt from, which is held for validation, and the gap between them.

Drawn twice, as characters for a terminal and as a picture, from the same three questions: is a cell held, is it
too near to what is held, does it carry labels. Cells are found by arithmetic on windows and on polygons, and
polygons smaller than a cell fill one, so that a small class shows on a small map too. The scene's pixels are
read only where a background is asked for: at the resolution of the map that means all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from satseg.grid import Grid
from satseg.imagery.labels import LabelLayer
from satseg.learning.ground.split import Ground, grown
from satseg.preview import rgb_preview
from satseg.scoring.overlay import BACKGROUND, CLASS_ALPHA, Pixels, blend, paint

LEARNT, GAP, HELD = 0, 1, 2
"""What a cell is."""
HELD_COLOR = "#0072b2"
"""Okabe and Ito, "Color Universal Design", 2008."""
HELD_ALPHA, EDGE_PX = 70, 3
GAP_COLOR, GAP_ALPHA = "#4a4a48", 90
HATCH_PX, HATCH_ALPHA = 8, 220
"""Distance of the lines that the gap is hatched with, and how much they cover."""
LABELLED_MARK, BARE_MARK = "\N{LIGHT SHADE}", "\N{MIDDLE DOT}"
GAP_MARK, HELD_MARK = "\N{MEDIUM SHADE}", "\N{FULL BLOCK}"
LEGEND = f"{HELD_MARK} held  {GAP_MARK} gap  {LABELLED_MARK} learnt from, labelled  {BARE_MARK} learnt from"
TEXT_WIDTH, TEXT_HEIGHT = 64, 24
"""Most characters of a map."""
CHARACTER = 2.0
"""Height of a character in its widths."""
SPACING_PX = 8
MOST_SCENES = 12
"""On one picture."""
SIDE_PX = 1024
"""Most pixels a side of a map of one scene; half as many for several."""


def cells(ground: Ground, height: int, width: int, *, validation: bool = False) -> NDArray[np.uint8]:
    """(height, width) of LEARNT, GAP or HELD over the whole scene.

    A cell is held when its centre is, and gap when it touches ground that is not learnt from.

    Parameters
    ----------
    validation : bool
        Whether the scene is only validated on; without rectangles of its own all of it is held.
    """
    states = np.zeros((height, width), np.uint8)
    if validation and not ground.held:
        states[:] = HELD
        return states
    rows, cols = ground.scene.grid.height / height, ground.scene.grid.width / width
    for window in (*ground.held, *ground.barred):
        wide = grown(window, ground.gap)
        tops, lefts = np.arange(height) * rows, np.arange(width) * cols
        in_rows = (tops + rows > wide.row_off) & (tops < wide.row_off + wide.height)
        in_cols = (lefts + cols > wide.col_off) & (lefts < wide.col_off + wide.width)
        states[np.ix_(in_rows, in_cols)] = GAP
    for window in ground.held:
        states[np.ix_(_centres_in(height, rows, window.row_off, window.height),
                      _centres_in(width, cols, window.col_off, window.width))] = HELD  # fmt: skip
    return states


def class_cells(labels: LabelLayer, grid: Grid) -> NDArray[np.bool_]:
    """(K, h, w): the cells of `grid` that each class touches.

    Polygons smaller than a cell are put where their middle is: to burn them one by one takes seconds where
    there are a hundred thousand.
    """
    t = grid.transform
    cell = np.array([abs(t.a) + abs(t.b), abs(t.d) + abs(t.e)])
    small, large = [], []
    for polygons in labels.geometries:
        bounds = shapely.bounds(polygons)
        tiny = (bounds[:, 2:] - bounds[:, :2] < cell).all(axis=1)
        small.append((bounds[tiny, :2] + bounds[tiny, 2:]) / 2)
        large.append(polygons[~tiny])
    planes = LabelLayer(labels.classes, tuple(large), labels.crs).planes(grid, all_touched=True) > 0
    for plane, middles in zip(planes, small, strict=True):
        rows, cols = (np.floor(x).astype(int) for x in grid.rowcol(xs=middles[:, 0], ys=middles[:, 1]))
        inside = (rows >= 0) & (rows < grid.height) & (cols >= 0) & (cols < grid.width)
        plane[rows[inside], cols[inside]] = True
    return planes


def split_text(ground: Ground, *, validation: bool = False) -> str:
    """Return the map as lines of block characters; `LEGEND` says what they mean."""
    height, width = ground.scene.grid.shape
    rows, cols = _text_size(height, width)
    states = cells(ground, rows, cols, validation=validation)
    labelled = class_cells(ground.labels, _stretched(ground.scene.grid, rows, cols)).any(axis=0)
    marks = np.where(labelled, LABELLED_MARK, BARE_MARK)
    marks = np.where(states == GAP, GAP_MARK, np.where(states == HELD, HELD_MARK, marks))
    return "\n".join("".join(row) for row in marks)


def split_picture(
    ground: Ground, colors: Mapping[str, str], *, side: int = SIDE_PX, validation: bool = False, image: bool = False
) -> Pixels:
    """Return the map as (3, h, w) RGB of at most `side` pixels a side: classes, the gap grey, what is held blue.

    Parameters
    ----------
    colors : mapping
        "#rrggbb" of each class.
    image : bool
        Whether the scene lies below; then all of it is read.
    """
    grid = ground.scene.grid
    factor = max(1.0, max(grid.shape) / side)
    below, small = _background(ground, factor) if image else (None, grid.zoom(factor))
    planes = class_cells(ground.labels, small)
    classes = paint([(colors[name], plane) for name, plane in zip(ground.labels.classes, planes, strict=True)],
                    small, alpha=CLASS_ALPHA)  # fmt: skip
    states = cells(ground, *small.shape, validation=validation)
    picture = np.concatenate([blend(classes, below), np.full((1, *small.shape), 255, np.uint8)])
    return blend(_veil(states), picture)


def split_sheet(
    grounds: Sequence[Ground], validation: Sequence[Ground], colors: Mapping[str, str], *, image: bool = False
) -> Pixels:
    """Return one picture, (3, h, w) RGB, of the maps of all scenes below each other; at most `MOST_SCENES`."""
    own = [(ground, False) for ground in grounds]
    own += [(ground, True) for ground in validation if all(ground is not other for other in grounds)]
    side = SIDE_PX if len(own) == 1 else SIDE_PX // 2
    maps = [split_picture(g, colors, side=side, validation=v, image=image) for g, v in own[:MOST_SCENES]]
    width = max(picture.shape[2] for picture in maps)
    height = sum(picture.shape[1] for picture in maps) + SPACING_PX * (len(maps) - 1)
    sheet = np.empty((3, height, width), np.uint8)
    sheet[:] = np.array(BACKGROUND, np.uint8)[:, None, None]
    top = 0
    for picture in maps:
        _, rows, cols = picture.shape
        sheet[:, top : top + rows, :cols] = picture
        top += rows + SPACING_PX
    return sheet


def _veil(states: NDArray[np.uint8]) -> Pixels:
    """(4, h, w) RGBA over a map: what is held in a thick frame, the gap hatched, told apart in any colours below."""
    height, width = states.shape
    veil = np.zeros((4, height, width), np.uint8)
    held, gap = states == HELD, states == GAP
    lines = gap & ((np.arange(height)[:, None] + np.arange(width)) % HATCH_PX < 2)
    for mask, color, alpha in (
        (held, HELD_COLOR, HELD_ALPHA), (gap, GAP_COLOR, GAP_ALPHA), (lines, GAP_COLOR, HATCH_ALPHA),
        (held & ~_shrunk(held, EDGE_PX), "#ffffff", 255), (held & ~_shrunk(held, EDGE_PX - 1), HELD_COLOR, 255),
    ):  # fmt: skip
        veil[:3, mask] = np.frombuffer(bytes.fromhex(color[1:]), np.uint8)[:, None]
        veil[3, mask] = alpha
    return veil


def _shrunk(mask: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """Pixels of `mask` with nothing else within `margin` rows or columns of them; the frame counts as inside."""
    for axis in (0, 1):
        wide = np.pad(mask, [(margin, margin) if axis == a else (0, 0) for a in (0, 1)], constant_values=True)
        mask = np.all(np.lib.stride_tricks.sliding_window_view(wide, 2 * margin + 1, axis=axis), axis=-1)
    return mask


def _centres_in(count: int, step: float, start: float, length: float) -> NDArray[np.bool_]:
    centres = (np.arange(count) + 0.5) * step
    inside: NDArray[np.bool_] = (centres >= start) & (centres < start + length)
    return inside


def _text_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of characters for a scene, in its proportions as far as whole characters allow."""
    scale = min(TEXT_WIDTH / width, TEXT_HEIGHT * CHARACTER / height)
    return max(1, round(height * scale / CHARACTER)), max(1, round(width * scale))


def _stretched(grid: Grid, height: int, width: int) -> Grid:
    """The extent of `grid` in `height` x `width` pixels of any shape."""
    t, down, right = grid.transform, grid.height / height, grid.width / width
    return Grid(height, width, Affine(t.a * right, t.b * down, t.c, t.d * right, t.e * down, t.f), grid.crs)


def _background(ground: Ground, factor: float) -> tuple[Pixels, Grid]:
    """The scene as RGBA with pixels `factor` times as long, and the grid of that."""
    scene = ground.scene.at_gsd(ground.scene.grid.gsd_m() * factor) if factor > 1 else ground.scene
    raster = scene.read()
    return rgb_preview(raster.data, raster.valid, raster.names, max_side=max(raster.grid.shape)), raster.grid
