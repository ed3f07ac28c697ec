"""The things of a generated scene and the curved street frame that they stand in.

A layout is plain geometry in local metres (x right, y up, origin at the scene's lower left corner):
flat patches, buildings, tree crowns, vehicles. It is drawn by `rendering` and labelled by `scene`
from the same polygons, which is what makes the labels exact. Streets, lots and fields are boxes in
a frame (s along the main road, t across it) that is bent by two sine waves, so that nothing is
straight and yet nothing can cross itself; a random street graph was rejected because its leftover
shapes look like nothing on Earth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely import LineString, Polygon

LAYERS = (
    "lot", "field", "bank", "water", "deep", "track", "rut", "lawn", "line", "paving", "pool", "road",
    "marking", "vehicle", "glass", "roof",
)  # fmt: skip
"""Order of drawing, lowest first; buildings come before "roof", tree crowns after everything."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A flat piece of ground or roof.

    Parameters
    ----------
    outline : Polygon
        Local metres.
    material, layer : str
        Keys of `satseg.synthetic.spectra.MATERIALS` and `LAYERS`.
    label : str, optional
        The class that it is an instance of.
    shade, dry : float
        Brightness factor and share of dry grass of this object.
    opacity : float
        Share of the ground that it covers, 0..1.
    height_m : float
        Of its surface above the ground; what has height casts a shadow.
    rows : Rows, optional
        Plant rows or mowing stripes.
    """

    outline: Polygon
    material: str
    layer: str
    label: str | None = None
    shade: float = 1.0
    dry: float = 0.0
    opacity: float = 1.0
    height_m: float = 0.0
    rows: Rows | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Parallel rows: `angle` (radians from x), `spacing_m` apart, `between` them another material.

    `cover` is the share of the ground under the rows' own material, 0..1; without `between` rows
    are stripes of slightly different brightness. Every `tramline_m` a pair of wheel marks runs along.
    """

    angle: float
    spacing_m: float
    between: str | None = None
    cover: float = 0.6
    tramline_m: float = 0.0


@dataclass(frozen=True, slots=True)
class Wing:
    """A rectangular part of a building: centre, `length` along `angle` (radians), `width` across."""

    x: float
    y: float
    length: float
    width: float
    angle: float

    @property
    def outline(self) -> Polygon:
        """Its footprint."""
        return rectangle(self.x, self.y, length=self.length, width=self.width, angle=self.angle)


@dataclass(frozen=True, slots=True)
class Building:
    """One or two wings under a roof of `form` flat, gable or hip; `pitch` is rise over run."""

    wings: tuple[Wing, ...]
    material: str
    form: str
    eave_m: float
    pitch: float = 0.0
    shade: float = 1.0

    @property
    def outline(self) -> Polygon:
        """The footprint, a rectangle or an L."""
        return shapely.union_all([wing.outline for wing in self.wings])


@dataclass(frozen=True, slots=True)
class Crown:
    """A tree crown: its radius at azimuth a is `radius` x (1 + sum of `waves` amp*cos(n*a + phase))."""

    x: float
    y: float
    radius: float
    height_m: float
    material: str
    shade: float
    waves: tuple[tuple[int, float, float], ...]

    def reach(self, azimuth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Radius in metres at azimuths in radians."""
        wobble = np.ones_like(azimuth)
        for count, amplitude, phase in self.waves:
            wobble += amplitude * np.cos(count * azimuth + phase)
        return self.radius * wobble

    @property
    def outline(self) -> Polygon:
        """The crown from above, a polygon of 28 sides (within 3 cm of the wavy circle)."""
        azimuth = np.linspace(0, 2 * math.pi, 28, endpoint=False)
        reach = self.reach(azimuth)
        return Polygon(np.column_stack([self.x + reach * np.cos(azimuth), self.y + reach * np.sin(azimuth)]))


@dataclass(frozen=True, slots=True)
class Vehicle:
    """A car or van heading along `angle`."""

    x: float
    y: float
    angle: float
    length: float
    width: float
    material: str

    @property
    def outline(self) -> Polygon:
        """The body from above, corners rounded."""
        return rectangle(
            self.x, self.y, length=self.length - 0.8, width=self.width - 0.8, angle=self.angle
        ).buffer(0.4, quad_segs=2)

    def patches(self) -> tuple[Patch, ...]:
        """Return the body, and windscreen and rear window, which are dark on every car."""
        body = Patch(self.outline, self.material, "vehicle", label="vehicle", height_m=1.5)
        windows = []
        for place, length in ((0.16, 0.13), (-0.36, 0.10)):
            x = self.x + place * self.length * math.cos(self.angle)
            y = self.y + place * self.length * math.sin(self.angle)
            pane = rectangle(x, y, length=length * self.length, width=0.78 * self.width, angle=self.angle)
            windows.append(Patch(pane, "glass", "glass", opacity=0.85, height_m=1.5))
        return (body, *windows)


@dataclass(frozen=True, slots=True)
class Layout:
    """What stands in a scene; layouts add up."""

    patches: tuple[Patch, ...] = ()
    buildings: tuple[Building, ...] = ()
    crowns: tuple[Crown, ...] = ()
    vehicles: tuple[Vehicle, ...] = ()

    def layer(self, *names: str) -> list[Patch]:
        """Return the patches of these layers, in order of the layers."""
        return [patch for name in names for patch in self.patches if patch.layer == name]


def combine(parts: Iterable[Layout]) -> Layout:
    """One layout with everything in `parts`."""
    listed = list(parts)
    return Layout(
        patches=tuple(item for part in listed for item in part.patches),
        buildings=tuple(item for part in listed for item in part.buildings),
        crowns=tuple(item for part in listed for item in part.crowns),
        vehicles=tuple(item for part in listed for item in part.vehicles),
    )


@dataclass(frozen=True, slots=True)
class StreetFrame:
    """The bent frame: s runs along the main road (t = 0), t to its left, both in metres.

    `bend` and `sway` are sine waves (amplitude in m, wavelength in m, phase) that shift t along s
    and s along t.
    """

    x: float
    y: float
    angle: float
    bend: tuple[float, float, float]
    sway: tuple[float, float, float]

    def xy(self, s: ArrayLike, t: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Local x, y of frame positions."""
        s, t = np.asarray(s, np.float64), np.asarray(t, np.float64)
        u, v = s + _wave(self.sway, t), t + _wave(self.bend, s)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return self.x + u * cos - v * sin, self.y + u * sin + v * cos

    def at(self, s: float, t: float) -> tuple[float, float]:
        """Local x, y of one frame position."""
        x, y = self.xy(s, t)
        return float(x), float(y)

    def heading(self, s: float, t: float, *, along: str = "s") -> float:
        """Direction of growing s (or t) at a place, in radians from x."""
        step = 0.5
        ds, dt = (step, 0.0) if along == "s" else (0.0, step)
        (x0, y0), (x1, y1) = self.at(s - ds, t - dt), self.at(s + ds, t + dt)
        return math.atan2(y1 - y0, x1 - x0)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], *, step_m: float = 6.0
    ) -> LineString:
        """Return the image of the straight segment between two (s, t), with a vertex every `step_m`."""
        count = max(2, math.ceil(math.dist(start, end) / step_m) + 1)
        return LineString(
            np.column_stack(
                self.xy(np.linspace(start[0], end[0], count), np.linspace(start[1], end[1], count))
            )
        )

    def box(self, s: tuple[float, float], t: tuple[float, float]) -> Polygon:
        """Return the image of a box of s and t."""
        corners = [(s[0], t[0]), (s[1], t[0]), (s[1], t[1]), (s[0], t[1])]
        sides = [self.line(a, b).coords[:-1] for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]
        return Polygon([point for side in sides for point in side])


def _wave(wave: tuple[float, float, float], position: NDArray[np.float64]) -> NDArray[np.float64]:
    amplitude, length, phase = wave
    return amplitude * np.sin(2 * math.pi * position / length + phase)


def rectangle(x: float, y: float, *, length: float, width: float, angle: float) -> Polygon:
    """Rectangle centred at x, y with `length` along `angle` (radians) and `width` across."""
    ux, uy = math.cos(angle) * length / 2, math.sin(angle) * length / 2
    vx, vy = -math.sin(angle) * width / 2, math.cos(angle) * width / 2
    return Polygon(
        [
            (x - ux - vx, y - uy - vy),
            (x + ux - vx, y + uy - vy),
            (x + ux + vx, y + uy + vy),
            (x - ux + vx, y - uy + vy),
        ]
    )


def blob(rng: np.random.Generator, x: float, y: float, *, radius: float, rough: float = 0.18) -> Polygon:
    """Return a smooth closed shape of about `radius` around x, y: a pond, a grove."""
    azimuth = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    reach = np.ones_like(azimuth)
    for count in (2, 3, 4, 5):
        reach += rng.normal(0, rough / count) * np.cos(count * azimuth + rng.uniform(0, 2 * math.pi))
    reach = radius * np.clip(reach, 0.45, 1.6)
    return Polygon(np.column_stack([x + reach * np.cos(azimuth), y + reach * np.sin(azimuth)]))


def crown(
    rng: np.random.Generator,
    x: float,
    y: float,
    *,
    radius: tuple[float, float] = (2.0, 4.4),
    kind: str = "mixed",
) -> Crown:
    """Return a tree at x, y with a crown radius between the two in metres."""
    kinds = {"mixed": (0.55, 0.33, 0.12), "leafy": (0.6, 0.4, 0.0), "conifer": (0.1, 0.0, 0.9)}
    size = float(rng.uniform(*radius))
    waves = tuple(
        (count, float(rng.uniform(0.2, 1.0) * top), float(rng.uniform(0, 2 * math.pi)))
        for count, top in ((2, 0.10), (3, 0.07), (5, 0.05))
    )
    return Crown(
        x=x,
        y=y,
        radius=size,
        height_m=float(size * rng.uniform(1.5, 2.5) + 1.0),
        material=str(rng.choice(["broadleaf", "light_broadleaf", "conifer"], p=kinds[kind])),
        shade=float(rng.uniform(0.82, 1.18)),
        waves=waves,
    )


def grove(
    rng: np.random.Generator, area: Polygon, *, spacing_m: float = 4.6, kind: str = "mixed"
) -> tuple[Crown, ...]:
    """Trees that fill `area`, on a shaken hexagonal grid so dense that their crowns close."""
    left, bottom, right, top = area.bounds
    rows = np.arange(bottom, top, spacing_m * 0.87)
    cols = np.arange(left, right, spacing_m)
    xs, ys = np.meshgrid(cols, rows)
    xs = xs + (np.arange(len(rows)) % 2)[:, None] * spacing_m / 2
    xs, ys = (axis + rng.uniform(-0.4, 0.4, axis.shape) * spacing_m for axis in (xs, ys))
    inside = shapely.contains_xy(area, xs, ys)
    radius = (0.5 * spacing_m, 1.0 * spacing_m)
    return tuple(
        crown(rng, float(x), float(y), radius=radius, kind=kind)
        for x, y in zip(xs[inside], ys[inside], strict=True)
    )
