"""Do labels lie where the imagery shows their objects: the shift between outlines and edges.

Outlines of polygons are laid over the edges of the imagery at every shift within reach, in windows
around some features. The score of a shift is how strong the edges under the outlines are, counted
by how well they run along them (the squared cosine between both normals), in units of the
window's spread. Averaged over windows its peak is where the labels belong. The sign of an edge is
left out, since roofs are brighter or darker than their ground.

A peak counts only when it is beyond chance: it stands clear of zero shift window by window, and both
halves of the windows put it in the same place. Rejected: phase correlation of images and burnt masks, which
needs one contrast for all objects; and matching polygon by polygon, lost where roofs look alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.grid import Grid
from satseg.imagery.edges import SMOOTH, edge_normals, image_edges, peak
from satseg.imagery.labels import Geometries, LabelLayer
from satseg.imagery.scene import Scene, SceneReader

LEAST_OBJECT_PX = 4.0
"""Side of the median object below which its outline is no line: it fills the pixels it crosses."""
MOST_OBJECT_PX = 160.0
"""Above it features are land cover, whose borders are drawn through gradual changes."""
REACH_PX = (4, 24)
"""Least and most shift looked for; between them the side of the median object."""
WINDOW_PX = (64, 128)
"""Least and most side of a window; between them three median objects."""
WINDOWS = 24
LEAST_WINDOWS = 6
SAME_PLACE_PX = 1.5
"""Half the windows may put the peak so far from where the other half puts it."""
LEAST_T = (3.5, 3.0)
"""The peak's gain over zero shift, in standard errors over windows, that is asked for where labels keep nothing of
the fit, and how much more where they keep all: the best of 2401 shifts of noise has 3.6, but not in both halves."""
LEAST_AGREEING = 2 / 3
MOST_KEPT = 0.6
"""Above it the outlines fit as they lie, and what fits better still is most often the border of a shadow."""
ENOUGH_POINTS = 5000
"""Features of a class that windows are chosen among."""


@dataclass(frozen=True, slots=True)
class Shift:
    """Where labels lie against what they outline.

    Attributes
    ----------
    rows, cols : float
        Pixels that the labels lie down and right of the imagery's edges.
    east_m, north_m : float or None
        The same on the ground, along the axes of a metric CRS; None without a CRS.
    windows : int
        Windows that were compared.
    agreeing : float, 0..1
        Share of them in which the found place fits better than zero shift.
    t : float
        Mean gain over zero shift, in standard errors over the windows.
    edges : (float, float)
        Strength of the edges under the outlines, as they lie and at the found place, in units of the
        edges' spread.
    kept : float
        Share of the fit found that the outlines have as they lie: 0 what a chance place has, 1 all of it.
    parted : float
        Pixels between the places found by either half of the windows.
    """

    rows: float
    cols: float
    east_m: float | None
    north_m: float | None
    windows: int
    agreeing: float
    t: float
    edges: tuple[float, float]
    kept: float
    parted: float

    @property
    def length(self) -> float:
        """Pixels between where the labels lie and where they fit."""
        return math.hypot(self.rows, self.cols)

    @property
    def is_certain(self) -> bool:
        """Whether the gain is beyond chance, most windows show it, and both halves agree on the place."""
        clear = self.t >= LEAST_T[0] + LEAST_T[1] * max(self.kept, 0.0) and self.kept <= MOST_KEPT
        return clear and self.agreeing >= LEAST_AGREEING and self.parted <= SAME_PLACE_PX

    @property
    def is_none(self) -> bool:
        """Whether the outlines fit best where they lie, to a pixel, in both halves of the windows."""
        return self.length <= 1 and self.parted <= 1


def measure_shift(
    scene: Scene, labels: LabelLayer, index: int, *, windows: int = WINDOWS, seed: int = 0
) -> Shift | None:
    """Return how far the polygons of class `index` of `labels` lie from the edges of `scene`.

    Parameters
    ----------
    scene : Scene
    labels : LabelLayer
        In the scene's CRS.
    index : int
        Which of its classes.
    windows : int
        Windows that are read at most.
    seed : int
        Draws the windows.

    Returns
    -------
    Shift or None
        None where it cannot be told: objects too small or too large to have an outline, or fewer
        than `LEAST_WINDOWS` windows with outlines.
    """
    polygons = _on_scene(labels.geometries[index], scene.grid)
    side = _median_side(polygons, scene.grid)
    if not LEAST_OBJECT_PX <= side <= MOST_OBJECT_PX:
        return None
    reach = int(np.clip(math.ceil(side), *REACH_PX))
    size = int(np.clip(3 * side, *WINDOW_PX))
    only = LabelLayer((labels.classes[index],), (polygons,), labels.crs)
    with scene.reader() as reader:
        maps = [
            found
            for place in _places(polygons, scene.grid, size=size, windows=windows, seed=seed)
            if (found := _edges_by_shift(reader, only, place, reach)) is not None
        ]
    return _judge(np.stack(maps), scene.grid, reach) if len(maps) >= LEAST_WINDOWS else None


def _on_scene(polygons: Geometries, grid: Grid) -> Geometries:
    footprint = grid.footprint()
    shapely.prepare(footprint)
    found: Geometries = polygons[shapely.intersects(footprint, polygons)]
    return found


def _median_side(polygons: Geometries, grid: Grid) -> float:
    """Square root of the median area, in pixels; 0 when there is none."""
    if not len(polygons):
        return 0.0
    return math.sqrt(float(np.median(shapely.area(polygons))) / abs(grid.transform.determinant))


def _places(polygons: Geometries, grid: Grid, *, size: int, windows: int, seed: int) -> list[Window]:
    """Windows of `size`, no two alike, that each hold a point of a feature, in a seeded order."""
    rng = np.random.default_rng((seed, len(polygons)))
    drawn = rng.permutation(len(polygons))[:ENOUGH_POINTS]
    points = shapely.point_on_surface(polygons[drawn])
    rows, cols = grid.rowcol(xs=shapely.get_x(points), ys=shapely.get_y(points))
    inside = (rows >= 0) & (rows < grid.height) & (cols >= 0) & (cols < grid.width)
    cells = np.column_stack([rows[inside] // size, cols[inside] // size]).astype(int)
    return [Window(col * size, row * size, size, size) for row, col in list(dict.fromkeys(map(tuple, cells)))[:windows]]


def _edges_by_shift(
    reader: SceneReader, labels: LabelLayer, place: Window, reach: int
) -> NDArray[np.float64] | None:
    """Strength of the edges under the outlines in `place` when these move by each shift of up to `reach`.

    Returns
    -------
    ndarray (2 reach + 1, 2 reach + 1) or None
        By rows and columns moved, zero in the middle. None where there are no outlines or no edges.
    """
    margin = reach + len(SMOOTH)
    around = Window(
        place.col_off - margin, place.row_off - margin, place.width + 2 * margin, place.height + 2 * margin
    )
    raster = reader.read(around)
    edges = image_edges(raster.data, raster.valid)
    outline = edge_normals(labels.planes(raster.grid)[0].astype(np.float64))
    kept = np.zeros(raster.grid.shape, bool)
    kept[margin:-margin, margin:-margin] = True
    outline *= kept & raster.valid
    weight = float(np.abs(outline).sum())
    if edges is None or weight <= 0:
        return None
    return _correlate(edges, outline, reach) / weight


def _correlate(
    edges: NDArray[np.complex128], outline: NDArray[np.complex128], reach: int
) -> NDArray[np.float64]:
    """Sum over pixels of |edge| |outline| cos^2(angle between) for each shift of the outline.

    With angles doubled cos^2 x is (1 + cos 2x) / 2: a correlation of strengths and one of vectors.
    """
    edge, line = edges.astype(np.complex64), outline.astype(np.complex64)
    product = np.fft.fft2(edge) * np.conj(np.fft.fft2(line))
    product += np.fft.fft2(np.abs(edge)) * np.conj(np.fft.fft2(np.abs(line)))
    around = np.arange(-reach, reach + 1)
    return np.asarray(np.fft.ifft2(product).real[np.ix_(around, around)] / 2, np.float64)


def _judge(maps: NDArray[np.float64], grid: Grid, reach: int) -> Shift:
    """The peak of the mean of `maps` (windows, 2 reach + 1, 2 reach + 1), and how far it can be trusted."""
    mean = maps.mean(axis=0)
    row, col = peak(mean).tolist()
    halves = np.array([peak(maps[start::2].mean(axis=0)) for start in (0, 1)])
    gains = maps[:, round(row), round(col)] - maps[:, reach, reach]
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    down, right = reach - row, reach - col  # labels belong at the peak, so that they lie the other way of it
    east, north = grid.step_m(rows=down, cols=right)
    chance, here, best = float(np.median(mean)), float(mean[reach, reach]), float(mean[round(row), round(col)])
    return Shift(
        rows=down,
        cols=right,
        east_m=east,
        north_m=north,
        windows=len(maps),
        agreeing=float((gains > 0).mean()),
        t=float(gains.mean()) / error if error > 0 else 0.0,
        edges=(here, best),
        kept=(here - chance) / (best - chance) if best > chance else 1.0,
        parted=float(np.hypot(*(halves[0] - halves[1]))),
    )
