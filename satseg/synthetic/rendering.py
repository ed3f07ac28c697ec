"""Draws a layout as a multispectral image: reflectance, relief, shadow, air and sensor.

Edges are drawn by area coverage (3 x 3 samples a pixel), so a pixel belongs to a polygon in the
image exactly as far as it does on the ground; light comes from one sun over one height map, so
that every shadow points the same way. Ray tracing was rejected: at half a metre a pixel nobody
could tell, and it takes minutes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.random import Generator
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.windows import Window
from shapely import Polygon
from shapely.geometry import mapping

from satseg.grid import Grid, overlap, slices
from satseg.synthetic.layout import LAYERS, Building, Crown, Layout, Patch, Wing
from satseg.synthetic.spectra import BANDS, HAZE, MATERIALS, VNIR, BandSet, mixed_reflectance

Pixels = NDArray[np.float32]

SAMPLES = 3
"""Samples per pixel side for area coverage."""
COUNTS_PER_REFLECTANCE = 2600.0
MAX_COUNT = 2047
"""Eleven bits, as WorldView-2 and WorldView-3 record."""
BLUR_PX = 0.55
"""Sigma of the point spread: about the blur of pan-sharpened half-metre imagery."""


@dataclass(frozen=True, slots=True)
class Light:
    """The sun and the air of one scene.

    Parameters
    ----------
    azimuth, elevation : float
        Of the sun in radians: azimuth from x towards y (north is up), elevation above the horizon.
    haze : float
        Path reflectance relative to a clear day.
    gain : ndarray, (8,)
        Calibration and illumination factor of each band.
    """

    azimuth: float
    elevation: float
    haze: float
    gain: Pixels

    @property
    def slope(self) -> tuple[float, float]:
        """Steps in x and y towards the sun per metre of height."""
        run = 1.0 / math.tan(self.elevation)
        return math.cos(self.azimuth) * run, math.sin(self.azimuth) * run


def random_light(rng: Generator) -> Light:
    """Return a late morning in the northern mid-latitudes: sun from the south east, some haze."""
    return Light(
        azimuth=math.radians(float(rng.uniform(-68, -38))),
        elevation=math.radians(float(rng.uniform(44, 56))),
        haze=float(rng.uniform(0.7, 1.3)),
        gain=(rng.uniform(0.94, 1.06) * rng.uniform(0.985, 1.015, len(BANDS))).astype(np.float32),
    )


class Canvas:
    """Reflectance and height of a scene while it is being drawn.

    Attributes
    ----------
    grid : Grid
        In local metres, no CRS.
    corner : tuple of float
        Local x, y of its lower left corner.
    bands : BandSet
        What it is drawn in.
    pixels : ndarray of float32, (bands, H, W)
        Reflectance.
    height : ndarray of float32, (H, W)
        Metres above the ground.
    noise : ndarray of float32, (3, H, W)
        Unit-variance fields that vary by pixel, over metres, over tens of metres.
    """

    def __init__(
        self, rng: Generator, *, height: int, width: int, gsd_m: float, corner: tuple[float, float] = (0.0, 0.0),
        bands: BandSet = VNIR,
    ) -> None:  # fmt: skip
        left, bottom = corner
        self.grid = Grid(height, width, Affine(gsd_m, 0, left, 0, -gsd_m, bottom + height * gsd_m))
        self.gsd_m, self.corner, self.bands = gsd_m, corner, bands
        scales = ((1.2, 0.9), (9.0, 1.3), (90.0, 2.2))
        self.noise = np.stack(
            [power_noise(rng, height, width, scale_px=scale / gsd_m, slope=slope) for scale, slope in scales]
        )
        self.height = np.zeros((height, width), np.float32)
        dry = np.clip(0.34 + 0.24 * self.noise[2] + 0.12 * self.noise[1], 0, 1)
        fresh, straw = self.colour("grass"), self.colour("dry_grass")
        ground = fresh[:, None, None] * (1 - dry) + straw[:, None, None] * dry
        self.pixels: Pixels = ground * (1 + np.tensordot(_roughness(["grass"])[0], self.noise, 1))

    def colour(self, material: str, *, dry: float = 0.0, shade: float = 1.0) -> Pixels:
        """Reflectance (bands,) of a material, as `mixed_reflectance`."""
        return mixed_reflectance(material, dry=dry, shade=shade, bands=self.bands)

    def window(self, outline: Polygon, margin_m: float = 1.0) -> Window | None:
        """Whole pixels about `outline` that lie in the image; None when none do."""
        left, bottom, right, top = outline.bounds
        rows, cols = self.grid.rowcol(
            xs=[left - margin_m, right + margin_m], ys=[bottom - margin_m, top + margin_m]
        )
        row, col = math.floor(rows.min()), math.floor(cols.min())
        size = Window(col, row, math.ceil(cols.max()) - col, math.ceil(rows.max()) - row)
        return overlap(size, self.grid.window)

    def xy(self, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Local x (1, w) and y (h, 1) of the pixel centres of `window`."""
        cols = window.col_off + np.arange(round(window.width)) + 0.5
        rows = window.row_off + np.arange(round(window.height)) + 0.5
        left, bottom = self.corner
        return (left + cols * self.gsd_m)[None, :], (bottom + (self.grid.height - rows) * self.gsd_m)[:, None]

    def blend(self, window: Window, cover: Pixels, colour: Pixels) -> None:
        """Lay `colour` (bands, h, w) over the pixels of `window` with `cover` (h, w) in 0..1."""
        rows, cols = slices(window, self.grid.window)
        part = self.pixels[:, rows, cols]
        part += (colour - part) * cover

    def raise_to(self, window: Window, cover: Pixels, height: Pixels) -> None:
        """Lift the height map to `height` (h, w) where at least half a pixel is covered."""
        rows, cols = slices(window, self.grid.window)
        part = self.height[rows, cols]
        np.maximum(part, np.where(cover >= 0.5, height, 0), out=part)

    def texture(self, window: Window, material: str) -> Pixels:
        """Brightness factors (h, w) of `material` in `window`."""
        rows, cols = slices(window, self.grid.window)
        return np.asarray(
            1 + np.tensordot(_roughness([material])[0], self.noise[:, rows, cols], 1), np.float32
        )


def draw(rng: Generator, layout: Layout, *, height: int, width: int, gsd_m: float) -> NDArray[np.uint16]:
    """Return the image of `layout`: (8, height, width) uint16 in 1..2047, bands as in `BANDS`."""
    canvas = Canvas(rng, height=height, width=width, gsd_m=gsd_m)
    light = random_light(rng)
    return _record(rng, paint(canvas, layout, light), light)


def paint(canvas: Canvas, layout: Layout, light: Light) -> Pixels:
    """Draw `layout` on `canvas`; return its reflectance times the light on it, (bands, H, W) float32."""
    for layer in LAYERS[: LAYERS.index("roof")]:
        _draw_layer(canvas, layout.layer(layer))
    _draw_layer(canvas, [patch for item in layout.vehicles for patch in item.patches()])
    _draw_buildings(canvas, layout.buildings, light)
    _draw_layer(canvas, layout.layer("roof"))
    for item in layout.crowns:
        _draw_crown(canvas, item, light)
    return np.asarray(canvas.pixels * _sunlight(canvas, light), np.float32)


def _draw_layer(canvas: Canvas, patches: Sequence[Patch]) -> None:
    """Draw patches with rows one by one, all others together."""
    plain = [patch for patch in patches if patch.rows is None]
    if plain:
        _draw_plain(canvas, plain)
    for patch in patches:
        if patch.rows is not None:
            _draw_rows(canvas, patch)


def _draw_plain(canvas: Canvas, patches: Sequence[Patch]) -> None:
    """Colour each pixel by the patch on it; the later patch wins where they overlap."""
    window = canvas.window(shapely.box(*shapely.total_bounds([patch.outline for patch in patches])))
    if window is None:
        return
    shapes = [(patch.outline, number + 1) for number, patch in enumerate(patches)]
    cover, owner = coverage(canvas.grid.crop(window), shapes)
    rows, cols = np.nonzero(cover)
    owner_at = owner[rows, cols] - 1
    colours = np.stack([canvas.colour(p.material, dry=p.dry, shade=p.shade) for p in patches])
    rough = _roughness([patch.material for patch in patches])
    share = cover[rows, cols] * np.array([patch.opacity for patch in patches], np.float32)[owner_at]
    rows, cols = rows + round(window.row_off), cols + round(window.col_off)
    factor = 1 + np.einsum("np,pn->n", rough[owner_at], canvas.noise[:, rows, cols])
    below = canvas.pixels[:, rows, cols]
    canvas.pixels[:, rows, cols] = below + (colours.T[:, owner_at] * factor - below) * share
    heights = np.array([patch.height_m for patch in patches], np.float32)[owner_at]
    canvas.height[rows, cols] = np.maximum(canvas.height[rows, cols], np.where(share >= 0.5, heights, 0))


def _draw_rows(canvas: Canvas, patch: Patch) -> None:
    """Draw a field or a striped lawn: its own material in rows, another (or a darker own) between."""
    window, rows = canvas.window(patch.outline), patch.rows
    if window is None or rows is None:
        return
    cover, _ = coverage(canvas.grid.crop(window), [(patch.outline, 1)])
    xs, ys = canvas.xy(window)
    bands, cols = slices(window, canvas.grid.window)
    drift = 0.15 * canvas.noise[1][bands, cols]
    across = (ys * math.cos(rows.angle) - xs * math.sin(rows.angle) + drift) / rows.spacing_m
    swing = np.cos(2 * math.pi * across)
    own = canvas.colour(patch.material, dry=patch.dry, shade=patch.shade)
    if rows.between is None:
        other, share = own * 0.9, 0.5 + 0.5 * np.tanh(4 * swing)
    else:
        other = canvas.colour(rows.between, shade=patch.shade)
        thrift = rows.cover + 0.06 * canvas.noise[2][bands, cols] + 0.05 * canvas.noise[1][bands, cols]
        share = np.clip(thrift + 0.34 * swing, 0, 1)
        if rows.tramline_m:
            apart = np.abs((across * rows.spacing_m) % rows.tramline_m - rows.tramline_m / 2)
            share = np.where(np.abs(apart - 0.9) < 0.3, 0.25 * share, share)
    share = share.astype(np.float32)
    colour = own[:, None, None] * share + other[:, None, None] * (1 - share)
    canvas.blend(window, cover * np.float32(patch.opacity), colour * canvas.texture(window, patch.material))


def _draw_buildings(canvas: Canvas, buildings: Sequence[Building], light: Light) -> None:
    """Draw roofs, each face as bright as its tilt towards the sun makes it."""
    outlines = [building.outline for building in buildings]
    if not outlines:
        return
    shapes = [(outline, number + 1) for number, outline in enumerate(outlines)]
    covers, owners = coverage(canvas.grid, shapes)
    for building, (outline, number) in zip(buildings, shapes, strict=True):
        window = canvas.window(outline)
        if window is None:
            continue
        place = slices(window, canvas.grid.window)
        cover = np.where(owners[place] == number, covers[place], 0)
        height, shade = np.zeros(cover.shape, np.float32), np.ones(cover.shape, np.float32)
        for wing in building.wings:
            rise, bright = _roof(canvas.xy(window), wing, building, light)
            height, shade = np.where(rise > height, (rise, bright), (height, shade))
        colour = canvas.colour(building.material, shade=building.shade)[:, None, None]
        canvas.blend(window, cover, colour * shade * canvas.texture(window, building.material))
        canvas.raise_to(window, cover, height)


def _roof(
    xy: tuple[NDArray[np.float64], NDArray[np.float64]], wing: Wing, building: Building, light: Light
) -> tuple[Pixels, Pixels]:
    """Height above ground and brightness factor of one wing's roof at positions x, y."""
    dx, dy = xy[0] - wing.x, xy[1] - wing.y
    cos, sin = math.cos(wing.angle), math.sin(wing.angle)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    side, end = wing.width / 2 - np.abs(v), wing.length / 2 - np.abs(u)
    inside = (side > -0.8) & (end > -0.8)
    if building.form == "flat":
        rim = np.minimum(side, end) < 0.7
        return np.where(inside, building.eave_m, 0).astype(np.float32), np.where(rim, 0.82, 1.0).astype(
            np.float32
        )
    hipped = (end < side) if building.form == "hip" else np.zeros(side.shape, bool)
    rise = building.pitch * np.maximum(np.where(hipped, end, side), 0)
    # The roof falls away from the ridge: its gradient points inwards.
    gu, gv = (
        np.where(hipped, -np.sign(u), 0) * building.pitch,
        np.where(hipped, 0, -np.sign(v)) * building.pitch,
    )
    bright = _lambert(gu * cos - gv * sin, gu * sin + gv * cos, light)
    tiles = 1 + 0.04 * np.cos(2 * math.pi * np.where(hipped, u, v) / 1.1)
    ridge = np.where(np.abs(side - wing.width / 2) < 0.3, 1.1, 1.0)
    height = np.where(inside, building.eave_m + rise, 0)
    return height.astype(np.float32), (bright * tiles * ridge).astype(np.float32)


def _lambert(gx: NDArray[np.float64], gy: NDArray[np.float64], light: Light) -> NDArray[np.float64]:
    """Brightness of a surface of gradient (gx, gy) relative to a level one: 70 % sun, 30 % sky."""
    to_x, to_y = light.slope
    facing = (1 - gx * to_x - gy * to_y) / np.sqrt(1 + gx**2 + gy**2)
    return np.asarray(0.3 + 0.7 * np.clip(facing, 0, 1.6))


def _draw_crown(canvas: Canvas, tree: Crown, light: Light) -> None:
    """Draw a tree as a leafy dome; where crowns overlap the higher leaf is seen."""
    window = canvas.window(shapely.box(tree.x, tree.y, tree.x, tree.y).buffer(tree.radius * 1.25))
    if window is None:
        return
    xs, ys = canvas.xy(window)
    dx, dy = xs - tree.x, ys - tree.y
    distance = np.hypot(dx, dy)
    reach = tree.reach(np.arctan2(dy, dx))
    cover = np.clip((reach - distance) / canvas.gsd_m + 0.5, 0, 1).astype(np.float32)
    rows, cols = slices(window, canvas.grid.window)
    leaves = canvas.noise[0][rows, cols]
    ratio = np.minimum(distance / reach, 1.0)
    depth = min(tree.height_m * 0.62, 1.25 * tree.radius)
    height = (tree.height_m - depth * ratio**2 + 0.25 * leaves).astype(np.float32)
    cover = np.where(height >= canvas.height[rows, cols] - 0.2, cover, 0)
    steep = -2 * depth / np.maximum(reach, 0.5) ** 2
    bright = _lambert(steep * dx, steep * dy, light) * tree.shade * (1.12 - 0.25 * ratio**3)
    colour = canvas.colour(tree.material)[:, None, None] * bright.astype(np.float32)
    canvas.blend(window, cover, colour * canvas.texture(window, tree.material))
    canvas.raise_to(window, cover, height)


def _sunlight(canvas: Canvas, light: Light) -> Pixels:
    """Share of the light that reaches each pixel, (bands, H, W): 1 in the sun, skylight in shadow.

    Walks from every pixel towards the sun, a pixel at a time, and compares the ray's height with
    the ground's; the last half metre of height fades, which softens edges.
    """
    dx, dy = light.slope
    step = canvas.gsd_m / max(abs(dx), abs(dy))
    surface, top = canvas.height, float(canvas.height.max())
    pad = math.ceil(top / step) + 2
    around = np.pad(surface, pad)
    shadow = np.zeros_like(surface)
    rows, cols = surface.shape
    for count in range(1, math.ceil(top / step) + 1):
        rise = count * step
        row, col = pad - round(rise * dy / canvas.gsd_m), pad + round(rise * dx / canvas.gsd_m)
        blocker = around[row : row + rows, col : col + cols]
        np.maximum(shadow, blocker - surface - np.float32(rise), out=shadow)
    shadow = blur(np.clip(shadow / 0.6, 0, 1)[None], 0.5)[0]
    return np.asarray(1 - shadow * (1 - canvas.bands.skylight[:, None, None]), np.float32)


def _record(rng: Generator, reflectance: Pixels, light: Light) -> NDArray[np.uint16]:
    """Return counts after tilted light, haze, blur and noise, in eleven bits less 0, the nodata value."""
    rows, cols = reflectance.shape[1:]
    tilt = rng.uniform(-0.03, 0.03, 2)
    slope = 1 + tilt[0] * np.linspace(-1, 1, rows)[:, None] + tilt[1] * np.linspace(-1, 1, cols)[None, :]
    seen = reflectance * slope.astype(np.float32) + np.float32(light.haze) * HAZE[:, None, None]
    counts = blur(seen, BLUR_PX) * (light.gain * np.float32(COUNTS_PER_REFLECTANCE))[:, None, None]
    noise = rng.standard_normal(counts.shape, np.float32)
    counts += noise * (2.0 + 0.006 * counts)
    return np.clip(np.rint(counts), 1, MAX_COUNT).astype(np.uint16)


def coverage(grid: Grid, shapes: Sequence[tuple[Polygon, int]]) -> tuple[Pixels, NDArray[np.int32]]:
    """Share of each pixel that `shapes` cover, (H, W) in 0..1, and the number of the shape seen there.

    A pixel whose centre lies in no shape takes the number of one that touches it; the last shape wins.
    """
    listed = [(mapping(outline), number) for outline, number in shapes]
    fine = grid.zoom(1 / SAMPLES)
    ones = rasterize(
        [(outline, 1) for outline, _ in listed], out_shape=fine.shape, transform=fine.transform, dtype="uint8"
    )
    total = np.zeros(grid.shape, np.uint8)
    for i in range(SAMPLES):
        for j in range(SAMPLES):
            total += ones[i::SAMPLES, j::SAMPLES]
    owner = rasterize(listed, out_shape=grid.shape, transform=grid.transform, all_touched=True, dtype="int32")
    exact = rasterize(listed, out_shape=grid.shape, transform=grid.transform, dtype="int32")
    owner = np.where(exact > 0, exact, owner)
    cover = np.where(owner > 0, total, 0).astype(np.float32) / np.float32(SAMPLES**2)
    return cover, owner


def power_noise(rng: Generator, height: int, width: int, *, scale_px: float, slope: float) -> Pixels:
    """Random field (height, width) of unit variance: flat spectrum up to 1/`scale_px`, then f**-`slope`."""
    tall, wide = height + -height % 64 + 64, width + -width % 64 + 64
    frequency = np.hypot(np.fft.fftfreq(tall)[:, None], np.fft.rfftfreq(wide)[None, :])
    amplitude = (frequency**2 + scale_px**-2.0) ** (-slope / 2)
    amplitude[0, 0] = 0
    phase = rng.standard_normal((2, *amplitude.shape), np.float32)
    field = np.fft.irfft2((phase[0] + 1j * phase[1]) * amplitude, s=(tall, wide))
    return np.asarray(field[:height, :width] / field.std(), np.float32)


def blur(planes: Pixels, sigma_px: float) -> Pixels:
    """Gaussian blur of (C, H, W) along rows and columns, edges repeated."""
    reach = max(1, math.ceil(3 * sigma_px))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        size = planes.shape[axis]
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        padded = np.pad(planes, pad, mode="edge")
        cut = [slice(None)] * 3
        total = np.zeros_like(planes)
        for place, weight in enumerate(weights):
            cut[axis] = slice(place, place + size)
            total += weight * padded[tuple(cut)]
        planes = total
    return planes


def _roughness(materials: Sequence[str]) -> Pixels:
    """Return the three noise amplitudes of each material, (N, 3)."""
    listed = [MATERIALS[name] for name in materials]
    return np.array([(item.grain, item.patch, item.broad) for item in listed], np.float32)
