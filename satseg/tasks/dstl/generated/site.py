"""The ground of a contest tile before anything stands on it: its lines, its cells, and what is taken.

A tile is cut by the lines of a bent frame (`layout.StreetFrame`). Some of them become roads and tracks,
wide and long enough for the share they should have; the cells between them are dealt out to villages and
fields, the last one in part, so that areas come out as asked. A `Site` keeps what is taken on a raster
of half a metre. Rejected: growing land use from noise, whose shapes are no fields and whose areas
have to be searched for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from numpy.random import Generator
from numpy.typing import NDArray
from shapely import LineString, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import substring

from satseg.synthetic.layout import StreetFrame
from satseg.tasks.dstl.generated.roster import Recipe

MARGIN_M = 36.0
"""How far the ground goes on around a tile: A may be shifted by 29 m."""
STEP_M = 0.5
ROAD_WIDTHS, TRACK_WIDTHS = (5.0, 6.6, 9.0), (2.6, 3.7, 6.5)
"""Least, usual and most metres."""


class Site:
    """A tile, the ground around it, and rasters of what is taken.

    Attributes
    ----------
    tile, area : Polygon
        The tile, from (0, 0) in local metres, and all that is planned.
    solid, way, field, wood : ndarray of bool
        Half-metre rasters over `area`: built on or water; roads and tracks; sown; under crowns.
    """

    def __init__(self, width_m: float, height_m: float) -> None:
        self.tile = shapely.box(0, 0, width_m, height_m)
        self.area = shapely.box(-MARGIN_M, -MARGIN_M, width_m + MARGIN_M, height_m + MARGIN_M)
        self.size_m = (width_m, height_m)
        shape = tuple(math.ceil((side + 2 * MARGIN_M) / STEP_M) for side in (height_m, width_m))
        self.solid, self.way, self.field, self.wood = (np.zeros(shape, bool) for _ in range(4))
        self._inside = np.zeros(shape, bool)
        first = round(MARGIN_M / STEP_M)
        self._inside[first : first + round(height_m / STEP_M), first : first + round(width_m / STEP_M)] = True

    def pixels(self, outline: BaseGeometry) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows (up from the bottom) and columns of the raster whose centres lie in `outline`."""
        left, bottom, right, top = (value + MARGIN_M for value in outline.bounds)
        high, wide = self.solid.shape
        rows = np.arange(max(math.floor(bottom / STEP_M), 0), min(math.ceil(top / STEP_M), high))
        cols = np.arange(max(math.floor(left / STEP_M), 0), min(math.ceil(right / STEP_M), wide))
        if not (len(rows) and len(cols)):
            return np.zeros(0, np.intp), np.zeros(0, np.intp)
        xs, ys = np.meshgrid((cols + 0.5) * STEP_M - MARGIN_M, (rows + 0.5) * STEP_M - MARGIN_M)
        shapely.prepare(outline)
        within = np.nonzero(shapely.contains_xy(outline, xs, ys))
        return rows[within[0]], cols[within[1]]

    def free(self, outline: BaseGeometry, *planes: NDArray[np.bool_]) -> bool:
        """Return whether `outline` lies in the area and covers nothing marked in `planes`."""
        place = self.pixels(outline)
        return len(place[0]) > 0 and not any(plane[place].any() for plane in planes)

    def mark(self, plane: NDArray[np.bool_], outline: BaseGeometry) -> float:
        """Mark `outline` in `plane`; return how much of the tile, in m2, was not marked before."""
        rows, cols = self.pixels(outline)
        fresh = ~plane[rows, cols] & self._inside[rows, cols]
        plane[rows, cols] = True
        return float(fresh.sum()) * STEP_M**2

    def at(self, plane: NDArray[np.bool_], x: float, y: float) -> bool:
        """Return whether `plane` is marked at x, y, or these lie outside the area."""
        row, col = (math.floor((value + MARGIN_M) / STEP_M) for value in (y, x))
        high, wide = plane.shape
        return not (0 <= row < high and 0 <= col < wide) or bool(plane[row, col])

    def inside(self, x: float, y: float) -> bool:
        """Return whether x, y lie in the tile."""
        return 0 <= x <= self.size_m[0] and 0 <= y <= self.size_m[1]

    def spot(self, rng: Generator, *, tile: bool = False) -> tuple[float, float]:
        """Return a random place in the area, or in the tile."""
        left, bottom, right, top = (self.tile if tile else self.area).bounds
        return float(rng.uniform(left, right)), float(rng.uniform(bottom, top))


@dataclass(frozen=True, slots=True)
class Way:
    """A road or track: its middle line and its width in metres."""

    line: LineString
    width: float

    @property
    def outline(self) -> Polygon:
        """Its surface."""
        return self.line.buffer(self.width / 2, cap_style="flat")


@dataclass(frozen=True, slots=True)
class Cell:
    """A box of the frame: ranges of s and t in metres."""

    s: tuple[float, float]
    t: tuple[float, float]

    def split(self, share: float) -> tuple[Cell, Cell]:
        """Return its first part, `share` of the way along s, and the rest."""
        middle = self.s[0] + share * (self.s[1] - self.s[0])
        return Cell((self.s[0], middle), self.t), Cell((middle, self.s[1]), self.t)

    @property
    def middle(self) -> tuple[float, float]:
        """Its centre (s, t)."""
        return (self.s[0] + self.s[1]) / 2, (self.t[0] + self.t[1]) / 2


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of a tile: roads, tracks, the rest (bounds of fields), and the cells between all."""

    frame: StreetFrame
    roads: tuple[Way, ...]
    tracks: tuple[Way, ...]
    bounds: tuple[LineString, ...]
    cells: tuple[Cell, ...]


def frame_for(rng: Generator, site: Site, angle: float) -> StreetFrame:
    """Return a gently bent frame about the tile's middle, some five degrees around `angle` in radians."""
    wide, high = site.size_m
    half = min(wide, high) / 2
    bend = (min(float(rng.uniform(5, 16)), 0.07 * half), float(rng.uniform(260, 520)), float(rng.uniform(0, 6.28)))
    sway = (min(float(rng.uniform(0, 9)), 0.05 * half), float(rng.uniform(260, 480)), float(rng.uniform(0, 6.28)))
    return StreetFrame(wide / 2, high / 2, angle + float(rng.normal(0, 0.09)), bend, sway)


def lay_lines(rng: Generator, site: Site, recipe: Recipe, frame: StreetFrame) -> Lines:
    """Cut the ground into cells and make roads and tracks of some of the cuts."""
    wide, high = site.size_m
    area, side = wide * high, math.sqrt(wide * high)
    wanted = {name: recipe.share(name) * area for name in ("Road", "Track")}
    count = sum(
        math.ceil(wanted[name] / (widths[1] * 0.9 * side)) if wanted[name] else 0
        for name, widths in (("Road", ROAD_WIDTHS), ("Track", TRACK_WIDTHS))
    )
    step = min(float(rng.uniform(60, 105)), 2 * side / (count + 1.0), 0.72 * side)
    reach = math.hypot(wide, high) / 2 + MARGIN_M + 20
    cuts = {axis: _cuts(rng, reach, step * shape) for axis, shape in (("s", 1.25), ("t", 0.8))}
    lines = {(axis, place): _line(frame, axis, place, reach) for axis in "st" for place in cuts[axis]}
    chords = {key: line.intersection(site.tile).length for key, line in lines.items()}
    keys = [key for key in lines if chords[key] > 0.45 * side]
    keys = [keys[n] for n in rng.permutation(len(keys))]
    roads, keys = _choose(site, {key: lines[key] for key in keys}, wanted["Road"], ROAD_WIDTHS)
    tracks, keys = _choose(site, {key: lines[key] for key in keys}, wanted["Track"], TRACK_WIDTHS)
    ways = [key for key in lines if key not in keys]
    cells = []
    for t in pairwise(cuts["t"]):
        edges = [s if ("s", s) in ways else s + float(rng.uniform(-0.28, 0.28)) * step for s in cuts["s"]]
        cells += [Cell(s, t) for s in pairwise(sorted(edges))]
    shown = [cell for cell in cells if frame.box(cell.s, cell.t).intersects(site.area)]
    bounds = tuple(lines[key] for key in keys if key[0] == "t")
    bounds += tuple(frame.line((cell.s[0], cell.t[0]), (cell.s[0], cell.t[1])) for cell in shown)
    return Lines(frame, tuple(roads), tuple(tracks), bounds, tuple(shown))


def _cuts(rng: Generator, reach: float, step: float) -> list[float]:
    """Return places from -reach to reach, about `step` apart."""
    count = math.ceil(2 * reach / step)
    places = -reach + (np.arange(count + 1) + float(rng.uniform(-0.5, 0.5))) * step
    return [float(place) for place in places + rng.uniform(-0.22, 0.22, len(places)) * step]


def _line(frame: StreetFrame, axis: str, place: float, reach: float) -> LineString:
    ends = (-reach - 60, reach + 60)
    start, end = ((end, place) if axis == "t" else (place, end) for end in ends)
    return frame.line(start, end)


Key = tuple[str, float]


def _choose(
    site: Site, lines: dict[Key, LineString], area: float, widths: tuple[float, float, float]
) -> tuple[list[Way], list[Key]]:
    """Return ways of `area` m2 within the tile, along the first of `lines`, and the lines left over.

    A way that even at the least width would take too much ends within the tile.
    """
    keys, ways = list(lines), []
    least, usual, most = widths
    while keys and area > 12.0:
        chord = lines[keys[0]].intersection(site.tile).length
        left = math.ceil(area / (usual * chord) - 0.4)
        width = float(np.clip(area / (chord * min(max(left, 1), len(keys))), least, most))
        line = lines[keys.pop(0)]
        if width * chord > 1.15 * area:
            line = _shortened(line, site.tile, area / width)
            area = 0.0
        ways.append(Way(line, width))
        area -= width * chord
    return ways, keys


def _shortened(line: LineString, tile: Polygon, length: float) -> LineString:
    """Return `line` from its start until `length` of it lies in the tile."""
    low, high = 0.0, float(line.length)
    for _ in range(24):
        middle = (low + high) / 2
        if substring(line, 0, middle).intersection(tile).length < length:
            low = middle
        else:
            high = middle
    return substring(line, 0, high)


def deal(
    site: Site, frame: StreetFrame, cells: list[Cell], area: float, blocked: BaseGeometry
) -> tuple[list[Cell], list[Cell]]:
    """Return the first cells that hold `area` m2 of the tile free of `blocked`, and the cells left over."""
    cells, dealt = list(cells), []
    while cells and area > 4.0:
        cell = cells.pop(0)
        room = _room(site, frame, cell, blocked)
        if room > 1.03 * area:
            low, high = 0.0, 1.0
            for _ in range(9):
                middle = (low + high) / 2
                enough = _room(site, frame, cell.split(middle)[0], blocked) > area
                low, high = (low, middle) if enough else (middle, high)
            cell, rest = cell.split(high)
            cells.insert(0, rest)
            room = area
        dealt.append(cell)
        area -= room
    return dealt, cells


def _room(site: Site, frame: StreetFrame, cell: Cell, blocked: BaseGeometry) -> float:
    return float(frame.box(cell.s, cell.t).intersection(site.tile).difference(blocked).area)
