"""Places that chips are drawn from: cells of free ground, and points in the features of each class.

A place is a row of ground, row and col, spread (twice) and weight, in float32: a large country has millions. Cells
weigh what their area is. A feature smaller than a chip is one place and one larger as many as the chips that it
fills, on a lattice over it. Rejected: pixels of a burnt mask, which costs a pass over all of the ground.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.grid import Grid, slices
from satseg.imagery.labels import Geometries
from satseg.learning.ground.occupancy import Occupancy
from satseg.learning.ground.split import Ground

Floats: TypeAlias = NDArray[np.float64]
Places: TypeAlias = NDArray[np.float32]

MOST_POINTS = 4096
"""Points of a lattice that the ground around one large feature is looked at."""


def cells_of(maps: Sequence[Occupancy]) -> Places:
    """(n, 6) of ground, row and col of the centre, height, width and area of each free cell."""
    found = []
    for index, one in enumerate(maps):
        rows, cols = np.nonzero(one.free)
        middle = (rows + 0.5) * one.height, (cols + 0.5) * one.width
        size = (np.full(len(rows), value) for value in (one.height, one.width, one.height * one.width))
        found.append(np.column_stack([np.full(len(rows), index), *middle, *size]).astype(np.float32))
    return np.concatenate(found)


def features_of(grounds: Sequence[Ground], maps: Sequence[Occupancy], size: int) -> list[Places]:
    """Per class (n, 6) of ground, row, col, spread (twice) and weight: points in features, on trainable ground."""
    found = []
    for k in range(len(grounds[0].labels.classes)):
        parts = []
        for index, ground in enumerate(grounds):
            points = _points_inside(_shown(ground.labels.geometries[k], ground.scene.grid), size)
            points = points[_trainable(ground, maps[index], points)]
            parts.append(np.column_stack([np.full(len(points), index), points]).astype(np.float32))
        found.append(np.concatenate(parts))
    return found


def _trainable(ground: Ground, near: Occupancy, points: Floats) -> NDArray[np.bool_]:
    """Which of `points` (n, row and col first) are on the scene, near ground of use and not held."""
    rows, cols, grid = points[:, 0], points[:, 1], ground.scene.grid
    free = (rows >= 0) & (rows < grid.height) & (cols >= 0) & (cols < grid.width)
    free[free] = near.near(rows[free], cols[free])
    for part in ground.closed(grid.window):
        down, right = slices(part, grid.window)
        free &= ~((rows >= down.start) & (rows < down.stop) & (cols >= right.start) & (cols < right.stop))
    return free


def _points_inside(polygons: Geometries, size: int) -> Floats:
    """(n, 5) of row, col, spread (twice) and weight: a point in a small polygon, a lattice of chips in a large one."""
    middle = shapely.point_on_surface(polygons)
    spread = np.full(len(polygons), size - 2.0)
    ones = np.column_stack([shapely.get_y(middle), shapely.get_x(middle), spread, spread, np.ones(len(polygons))])
    large = shapely.area(polygons) > size**2
    found = [ones[~large]]
    for polygon, one in zip(polygons[large], ones[large], strict=True):
        lattice = _lattice(polygon, size)
        found.append(lattice if len(lattice) else one[None])
    return np.concatenate(found)


def _lattice(polygon: shapely.Geometry, size: int) -> Floats:
    """(n, 5) as `_points_inside`: points of a lattice `size` apart that lie in `polygon`; wider in a vast one."""
    left, top, right, bottom = polygon.bounds
    step = max(float(size), math.sqrt((right - left) * (bottom - top) / MOST_POINTS))
    ends = (top, bottom), (left, right)
    rows, cols = ((np.arange(low // step, high // step + 1) + 0.5) * step for low, high in ends)
    rows, cols = (axis.ravel() for axis in np.meshgrid(rows, cols, indexing="ij"))
    shapely.prepare(polygon)
    inside = shapely.contains_xy(polygon, cols, rows)
    same = np.full(int(inside.sum()), step)
    return np.column_stack([rows[inside], cols[inside], same - 2, same - 2, (same / size) ** 2])


def _shown(polygons: Geometries, grid: Grid) -> Geometries:
    """What `grid` shows of `polygons`, x and y in its columns and rows."""

    def moved(xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
        rows, cols = grid.rowcol(xs=xs, ys=ys)
        return cols, rows

    shown: Geometries = shapely.transform(polygons, moved, interleaved=False)
    left, top, right, bottom = shapely.bounds(shown).T
    beyond = (left < 0) | (top < 0) | (right > grid.width) | (bottom > grid.height)
    if beyond.any():
        shown[beyond] = shapely.clip_by_rect(shown[beyond], 0, 0, grid.width, grid.height)
    return np.asarray(shown[shapely.area(shown) > 0], object)
