"""Scored ground with labels, what rules are fitted on; many small pieces are laid together on one canvas.

Held blocks of a few dozen pixels are many, and each pass of outlines, overlays and burning over one costs milliseconds
whatever is on it. So pieces whose pixels are alike in metres lie below each other on one grid, further apart than
features grow, on ground that is not valid: outlines are those of the pieces, each by itself. Rejected: processes for
the pieces, which cost as much CPU time; and pieces side by side at their true places, for scenes have one each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from satseg.crs import metric_crs, same_crs
from satseg.grid import Grid
from satseg.imagery.labels import LabelLayer
from satseg.raster import Raster
from satseg.vector.finish import Measure
from satseg.vector.shapes import PixelFrame

ALIKE = 1e-3
"""Pixels whose sides differ by less of their length are alike."""
LARGE_PX = 2**20
"""Pieces of more pixels stay by themselves: what a pass costs follows their pixels, and so would a copy's memory."""
PROBES = 3
"""Pixels along each side of a grid that are looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Scores of some ground, and what is there.

    Parameters
    ----------
    scores : Raster, (K, H, W) float in 0..1
        Of the classes in order.
    truth : ndarray of uint8, (K, H, W)
    known : ndarray of bool, (H, W)
        Pixels that count.
    """

    scores: Raster
    truth: NDArray[np.uint8]
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, scores: Raster, labels: LabelLayer) -> Judged:
        """Return scores with the labels of the same classes."""
        truth, known = labels.burn(scores.grid)
        return cls(scores, truth, known & scores.valid)

    def only(self, k: int) -> Judged:
        """Return what concerns class `k` alone."""
        one = slice(k, k + 1)
        scores = Raster(self.scores.data[one], self.scores.grid, self.scores.names[one], self.scores.valid)
        return Judged(scores, self.truth[one], self.known)


def laid_together(ground: Sequence[Judged], *, reach_m: float) -> tuple[Judged, ...]:
    """Return `ground` with small pieces of like pixels on common grids, in metres and without a CRS.

    Parameters
    ----------
    ground : sequence of Judged
        Of the same classes.
    reach_m : float
        How far features grow at most: pieces lie twice that apart.
    """
    alone: list[Judged] = []
    groups: list[tuple[NDArray[np.float64], list[Judged]]] = []
    for one in ground:
        sides = None if one.known.size > LARGE_PX else pixel_sides(one.scores.grid)
        if sides is None:
            alone.append(one)
            continue
        like = next((pieces for other, pieces in groups if _alike(sides, other)), None)
        if like is None:
            groups.append((sides, [one]))
        else:
            like.append(one)
    laid = [pieces[0] if len(pieces) == 1 else _canvas(pieces, sides, reach_m) for sides, pieces in groups]
    return (*alone, *laid)


def pixel_sides(grid: Grid) -> NDArray[np.float64] | None:
    """Return the sides of a pixel of `grid` in metres, (2, 2): of a column and of a row; None if they vary over it."""
    t = grid.transform
    if grid.crs is None or same_crs(metric_crs(grid.crs, grid.bounds), grid.crs):
        return np.array([[t.a, t.d], [t.b, t.e]])
    rows, cols = (np.linspace(0, size, PROBES) for size in grid.shape)
    rows, cols = (places.reshape(-1, 1) for places in np.meshgrid(rows, cols))
    xs, ys = grid.xy(rows=rows + np.array([0, 0, 1]), cols=cols + np.array([0, 1, 0]))
    points = Measure(grid.crs, grid.bounds).to_metres(shapely.points(xs.ravel(), ys.ravel()))
    corners = shapely.get_coordinates(points).reshape(-1, 3, 2)
    sides = corners[:, 1:] - corners[:, :1]
    middle: NDArray[np.float64] = sides[len(sides) // 2]
    return middle if all(_alike(one, middle) for one in sides) else None


def _alike(sides: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool(np.abs(sides - other).max() <= ALIKE * np.abs(other).max())


def _canvas(pieces: Sequence[Judged], sides: NDArray[np.float64], reach_m: float) -> Judged:
    heights, widths = zip(*(one.known.shape for one in pieces), strict=True)
    (a, d), (b, e) = sides.tolist()
    pixel = Grid(1, 1, Affine(a, b, 0.0, d, e, 0.0))
    gap = 2 + math.ceil(2 * PixelFrame(pixel).reach(Measure(None, pixel.bounds), reach_m)) if reach_m else 1
    tops = np.cumsum([0, *heights[:-1]]) + gap * np.arange(len(pieces))
    first = pieces[0]
    shape = (int(tops[-1]) + heights[-1], max(widths))
    scores = np.zeros((len(first.truth), *shape), first.scores.data.dtype)
    truth, known, valid = np.zeros(scores.shape, np.uint8), np.zeros(shape, bool), np.zeros(shape, bool)
    for one, top in zip(pieces, tops.tolist(), strict=True):
        place = np.s_[top : top + one.known.shape[0], : one.known.shape[1]]
        scores[(..., *place)], truth[(..., *place)] = one.scores.data, one.truth
        known[place], valid[place] = one.known, one.scores.valid
    grid = Grid(*shape, pixel.transform)
    return Judged(Raster(scores, grid, first.scores.names, valid), truth, known)
