"""Kinds of town blocks: homes with gardens, flats, a sports ground, works with a car park, a park.

Each kind is a function from a generator and a block to a layout, so that a town is a list of choices.
Sports grounds and gardens hold artificial turf and real lawns of the same shapes, colours and
stripes: what tells them apart lies in the infrared alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.random import Generator
from shapely import LineString, Polygon

from satseg.synthetic.layout import (
    Building,
    Crown,
    Layout,
    Patch,
    Rows,
    StreetFrame,
    Vehicle,
    Wing,
    blob,
    combine,
    crown,
    rectangle,
)

LAWN_DRY = 0.10
"""Share of dry grass in a kept lawn, and the tint of the turf that imitates it."""
PITCHED_ROOFS = {
    "red": (("red_tile", 0.6), ("orange_tile", 0.3), ("brown_tile", 0.1)),
    "brown": (("brown_tile", 0.6), ("slate", 0.25), ("red_tile", 0.15)),
    "mixed": (("red_tile", 0.35), ("brown_tile", 0.25), ("slate", 0.25), ("orange_tile", 0.15)),
}
CAR_COLOURS = (
    ("white_car", 0.36), ("silver_car", 0.26), ("red_car", 0.13), ("blue_car", 0.11), ("black_car", 0.14),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """A box of the street frame between streets, pavements left out: ranges of s and t in metres."""

    frame: StreetFrame
    s: tuple[float, float]
    t: tuple[float, float]

    @property
    def middle(self) -> tuple[float, float]:
        """Its centre (s, t)."""
        return (self.s[0] + self.s[1]) / 2, (self.t[0] + self.t[1]) / 2

    @property
    def outline(self) -> Polygon:
        """Its shape on the ground."""
        return self.frame.box(self.s, self.t)

    def rect(self, ds: float, dt: float, *, along: float, across: float) -> Polygon:
        """Rectangle at (ds, dt) metres from the middle, square to the block's own direction."""
        x, y, angle = self.place(ds, dt)
        return rectangle(x, y, length=along, width=across, angle=angle)

    def place(self, ds: float, dt: float) -> tuple[float, float, float]:
        """Local x, y and angle of a place in the rigid frame at the block's middle."""
        (x, y), angle = self.frame.at(*self.middle), self.frame.heading(*self.middle)
        cos, sin = math.cos(angle), math.sin(angle)
        return x + ds * cos - dt * sin, y + ds * sin + dt * cos, angle


def pick(rng: Generator, table: tuple[tuple[str, float], ...]) -> str:
    """Return a name, by weight."""
    weights = np.array([weight for _, weight in table])
    return table[int(rng.choice(len(table), p=weights / weights.sum()))][0]


def vehicle(rng: Generator, x: float, y: float, angle: float) -> Vehicle:
    """Return a car, or one time in ten a van, heading along `angle` give or take two degrees."""
    van = rng.random() < 0.1
    return Vehicle(
        x=x,
        y=y,
        angle=float(angle + rng.normal(0, 0.035)),
        length=float(rng.uniform(5.4, 6.2) if van else rng.uniform(4.2, 4.8)),
        width=float(rng.uniform(2.1, 2.3) if van else rng.uniform(1.8, 2.0)),
        material="white_car" if van else pick(rng, CAR_COLOURS),
    )


def homes(rng: Generator, block: Block) -> Layout:
    """Two rows of lots back to back, each with a house, a drive and a garden."""
    palette = PITCHED_ROOFS[str(rng.choice(list(PITCHED_ROOFS)))]
    ridge = block.middle[1]
    parts = []
    for front in block.t:
        s = block.s[0]
        while block.s[1] - s > 12:
            width = float(rng.uniform(15, 21))
            if block.s[1] - s - width < 12:
                width = block.s[1] - s
            parts.append(_lot(rng, Block(block.frame, (s, s + width), (front, ridge)), palette))
            s += width
    return combine(parts)


def _lot(rng: Generator, lot: Block, palette: tuple[tuple[str, float], ...]) -> Layout:
    """One lot; its t runs from the street to the back fence, in either direction."""
    front, back = lot.t
    inward, width = math.copysign(1.0, back - front), lot.s[1] - lot.s[0]
    side, middle = float(rng.choice([-1.0, 1.0])), lot.middle[0]
    depth, long = float(rng.uniform(8.5, 10.5)), float(min(width - 6.0, rng.uniform(9.0, 13.5)))
    setback = float(rng.uniform(4.0, 7.0))
    s_house = middle + side * ((width - long) / 2 - 1.0)
    t_house = front + inward * (setback + depth / 2)
    angle = lot.frame.heading(s_house, t_house)
    house = _house(rng, lot.frame.at(s_house, t_house), (long, depth, angle), palette, back=inward)
    garden = Block(
        lot.frame,
        (lot.s[0] + 0.6, lot.s[1] - 0.6),
        (front + inward * (setback + depth + 1.0), back - inward * 0.4),
    )
    s_drive = middle - side * (width / 2 - 2.0)
    drive = _drive(rng, lot.frame, s_drive, (front - inward * 2.0, front + inward * (setback + 5.5)))
    trees = tuple(
        crown(
            rng,
            *lot.frame.at(float(rng.uniform(*garden.s)), float(rng.uniform(min(garden.t), max(garden.t)))),
        )
        for _ in range(int(rng.poisson(2.6)))
    )
    return combine([_grounds(rng, lot), house, drive, _garden(rng, garden), Layout(crowns=trees)])


def _grounds(rng: Generator, lot: Block) -> Layout:
    """Return the lot's own grass, two times in three within a hedge."""
    outline = lot.outline.buffer(-0.2)
    ground = Patch(
        outline,
        str(rng.choice(["lawn", "grass"])),
        "lot",
        shade=float(rng.uniform(0.84, 1.14)),
        dry=float(rng.beta(1.4, 2.2)),
    )
    if rng.random() < 0.35:
        return Layout(patches=(ground,))
    hedge = outline.difference(outline.buffer(-0.8))
    return Layout(patches=(ground, Patch(hedge, "reed", "lot", opacity=0.9, height_m=1.3)))


def _house(
    rng: Generator,
    place: tuple[float, float],
    size: tuple[float, float, float],
    palette: tuple[tuple[str, float], ...],
    *,
    back: float,
) -> Layout:
    """Return a house of (length, depth, angle) at `place`; an L reaches to the `back`, +1 or -1 across."""
    (x, y), (long, depth, angle) = place, size
    wings = [Wing(x, y, long, depth, angle)]
    if rng.random() < 0.35:
        arm, reach = float(rng.uniform(5.0, 6.5)), depth + float(rng.uniform(5.0, 8.0))
        ds, dt = float(rng.choice([-1, 1])) * (long - arm) / 2, back * (reach - depth) / 2
        cos, sin = math.cos(angle), math.sin(angle)
        wings.append(Wing(x + ds * cos - dt * sin, y + ds * sin + dt * cos, reach, arm, angle + math.pi / 2))
    pitch = float(rng.uniform(0.5, 0.9))
    house = Building(
        wings=tuple(wings),
        material=pick(rng, palette),
        form=str(rng.choice(["gable", "hip"], p=[0.65, 0.35])),
        eave_m=float(rng.uniform(3.0, 5.5)),
        pitch=pitch,
        shade=float(rng.uniform(0.85, 1.15)),
    )
    panels: tuple[Patch, ...] = ()
    if len(wings) == 1 and rng.random() < 0.2:
        dt = float(rng.choice([-1, 1])) * depth / 4
        px, py = x - dt * math.sin(angle), y + dt * math.cos(angle)
        outline = rectangle(px, py, length=long * 0.5, width=depth * 0.3, angle=angle)
        panels = (Patch(outline, "solar_panel", "roof"),)
    return Layout(patches=panels, buildings=(house,))


def _drive(rng: Generator, frame: StreetFrame, s: float, t: tuple[float, float]) -> Layout:
    """Return a paved drive between two t at s, mostly with a car."""
    middle = (t[0] + t[1]) / 2
    x, y = frame.at(s, middle)
    angle = frame.heading(s, middle, along="t")
    outline = rectangle(x, y, length=abs(t[1] - t[0]), width=2.9, angle=angle)
    surface = str(rng.choice(["concrete", "gravel"]))
    cars = (vehicle(rng, *frame.at(s, middle + 0.2 * (t[1] - t[0])), angle),) if rng.random() < 0.55 else ()
    return Layout(
        patches=(Patch(outline, surface, "paving", shade=float(rng.uniform(0.75, 1.05))),), vehicles=cars
    )


def _garden(rng: Generator, garden: Block) -> Layout:
    """Return a kept lawn or artificial turf (evenly often), a pool, a terrace, or nothing."""
    room_s, room_t = garden.s[1] - garden.s[0], abs(garden.t[1] - garden.t[0])
    chance = rng.random()
    if room_t < 8 or chance > 0.62:
        return Layout()
    if chance < 0.46:
        outline = garden.rect(0, 0, along=min(room_s - 1.5, 12.0), across=min(room_t - 1.5, 9.0))
        material = "artificial_turf" if rng.random() < 0.5 else "lawn"
        return Layout(patches=(kept_lawn(outline.buffer(-0.8).buffer(0.8), material),))
    outline = garden.rect(0, 0, along=float(rng.uniform(7, 9)), across=float(rng.uniform(3.6, 4.6)))
    basin = outline.buffer(-1).buffer(1)
    return Layout(
        patches=(Patch(basin.buffer(1.1), "concrete", "pool"), Patch(basin, "pool", "pool", label="water"))
    )


def kept_lawn(outline: Polygon, material: str, rows: Rows | None = None) -> Patch:
    """Return a lawn or turf: alike in shape, colour and stripes whichever it is."""
    label = "artificial_turf" if material == "artificial_turf" else None
    return Patch(outline, material, "lawn", label=label, dry=LAWN_DRY, rows=rows)


def sports(rng: Generator, block: Block) -> Layout:
    """Four pitches side by side, two of turf and two of grass, in a mown ground with trees around."""
    along, across = block.s[1] - block.s[0], block.t[1] - block.t[0]
    ground = Patch(block.outline, "grass", "lot", shade=0.95, dry=0.25)
    gap = 4.0
    width, length = (along - 5 * gap) / 4, across - 2 * gap - 2.0
    patches = [ground]
    for place, material in enumerate(rng.permutation(["artificial_turf", "artificial_turf", "lawn", "lawn"])):
        ds = -along / 2 + gap + width / 2 + place * (width + gap)
        patches += _pitch(block, ds, (width, length), str(material))
    corners = [(block.s[i], block.t[j]) for i in (0, 1) for j in (0, 1)]
    trees = tuple(crown(rng, *block.frame.at(s, t), radius=(2.5, 4.0)) for s, t in corners)
    return Layout(patches=tuple(patches), crowns=trees)


def _pitch(block: Block, ds: float, size: tuple[float, float], material: str) -> list[Patch]:
    """Return a pitch of (width, length) with mowing stripes and white lines."""
    width, length = size
    x, y, angle = block.place(ds, 0.0)
    outline = rectangle(x, y, length=width, width=length, angle=angle)
    inner = rectangle(x, y, length=width - 3, width=length - 3, angle=angle)
    halfway = LineString([block.place(ds - width / 2 + 1.5, 0)[:2], block.place(ds + width / 2 - 1.5, 0)[:2]])
    circle = shapely.Point(x, y).buffer(min(4.5, width / 5)).exterior
    lines = shapely.union_all([inner.exterior, halfway, circle]).buffer(0.09, cap_style="flat")
    stripes = Rows(angle=angle, spacing_m=length / 5)
    return [kept_lawn(outline, material, stripes), Patch(lines, "paint", "line", opacity=0.8)]


def works(rng: Generator, block: Block) -> Layout:
    """Return a hall with a flat roof, a smaller one, and a car park."""
    along, across = block.s[1] - block.s[0], block.t[1] - block.t[0]
    park_long = min(0.42 * along, 46.0)
    yard = Patch(block.outline.buffer(-0.5), "concrete", "lot", shade=0.8)
    hall_long = along - park_long - 12
    hall = _flat_roof(rng, block.place(-along / 2 + hall_long / 2 + 4, -3.0), (hall_long, across - 18), 8.5)
    office = _flat_roof(
        rng, block.place(-along / 2 + hall_long * 0.3 + 4, across / 2 - 6.5), (hall_long * 0.55, 8.0), 5.0
    )
    place = along / 2 - park_long / 2 - 2.0
    return combine(
        [Layout(patches=(yard,)), hall, office, car_park(rng, block, place, (park_long, across - 6))]
    )


def _flat_roof(
    rng: Generator, place: tuple[float, float, float], size: tuple[float, float], eave_m: float
) -> Layout:
    """Return a flat-roofed building of (length, width) with plant on its roof."""
    (x, y, angle), (long, wide) = place, size
    building = Building(
        wings=(Wing(x, y, long, wide, angle),),
        material=str(rng.choice(["membrane", "bitumen", "zinc"], p=[0.5, 0.2, 0.3])),
        form="flat",
        eave_m=eave_m,
        shade=float(rng.uniform(0.8, 1.1)),
    )
    units = []
    for _ in range(int(long * wide / 130)):
        ds, dt = rng.uniform(-0.38, 0.38) * long, rng.uniform(-0.36, 0.36) * wide
        spot = (
            x + ds * math.cos(angle) - dt * math.sin(angle),
            y + ds * math.sin(angle) + dt * math.cos(angle),
        )
        size_m = rng.uniform(1.4, 3.0, 2)
        outline = rectangle(*map(float, spot), length=float(size_m[0]), width=float(size_m[1]), angle=angle)
        units.append(Patch(outline, "zinc", "roof", shade=0.9, height_m=eave_m + 1.4))
    return Layout(patches=tuple(units), buildings=(building,))


def car_park(rng: Generator, block: Block, ds: float, size: tuple[float, float]) -> Layout:
    """Asphalt with double rows of marked bays, half of them taken; it counts as road."""
    long, across = size
    patches = [
        Patch(block.rect(ds, 0, along=long, across=across), "asphalt", "road", label="road", shade=1.1)
    ]
    cars = []
    for row in range(int((across + 6) // 16.5)):
        dt = -across / 2 + 8.5 + row * 16.5
        for bay in range(int((long - 4) // 2.7)):
            edge = ds - long / 2 + 2 + bay * 2.7
            patches.append(
                Patch(block.rect(edge, dt, along=0.14, across=10.4), "paint", "marking", opacity=0.75)
            )
            for lane in (-2.7, 2.7):
                if rng.random() < 0.5:
                    x, y, angle = block.place(edge + 1.35, dt + lane)
                    cars.append(vehicle(rng, x, y, angle + math.pi / 2))
    return Layout(patches=tuple(patches), vehicles=tuple(cars))


def flats(rng: Generator, block: Block) -> Layout:
    """Two long flat-roofed blocks of flats, a small car park between them, trees on the lawns."""
    along, across = block.s[1] - block.s[0], block.t[1] - block.t[0]
    parts = [Layout(patches=(Patch(block.outline, "lawn", "lot", shade=0.95, dry=0.2),))]
    for sign in (-1, 1):
        place = block.place(sign * (along / 2 - 11), 0.0)
        x, y, angle = place
        parts.append(_flat_roof(rng, (x, y, angle + math.pi / 2), (across - 14, 12.5), 13.0))
    if along > 70:
        parts.append(car_park(rng, block, 0.0, (min(along - 56, 34.0), 18.0)))
    parts.append(Layout(crowns=_scattered(rng, block, int(along * across / 200))))
    return combine(parts)


def park(rng: Generator, block: Block) -> Layout:
    """Return a lawn with a pond, gravel paths and old trees."""
    ground = Patch(block.outline, "lawn", "lot", shade=0.97, dry=0.18)
    (s0, s1), (t0, t1) = block.s, block.t
    middle = block.frame.at(block.middle[0] + float(rng.uniform(-0.2, 0.2)) * (s1 - s0), block.middle[1])
    pond = blob(rng, *middle, radius=0.26 * (t1 - t0), rough=0.34)
    ring = shapely.LinearRing(pond.buffer(5.0).exterior.coords)
    walk = block.frame.line((s0, float(rng.uniform(t0, t1))), (s1, float(rng.uniform(t0, t1))))
    paths = shapely.union_all([ring.buffer(0.9), walk.buffer(0.9)]).difference(pond.buffer(2.0))
    patches = (ground, *water_patches(pond, "river"), Patch(paths, "gravel", "paving", shade=0.95))
    trees = _scattered(rng, block, int((s1 - s0) * (t1 - t0) / 110), radius=(2.4, 5.4))
    return Layout(patches=patches, crowns=trees)


def _scattered(
    rng: Generator, block: Block, count: int, radius: tuple[float, float] = (2.2, 4.4)
) -> tuple[Crown, ...]:
    return tuple(
        crown(rng, *block.frame.at(float(rng.uniform(*block.s)), float(rng.uniform(*block.t))), radius=radius)
        for _ in range(count)
    )


def water_patches(outline: Polygon, material: str) -> tuple[Patch, ...]:
    """Water with a muddy bank outside its outline and deeper, darker water within."""
    bank = Patch(outline.buffer(1.6), "reed", "bank", opacity=0.9)
    surface = Patch(outline, material, "water", label="water")
    depths = (outline.buffer(-inset) for inset in (1.2, 2.6, 4.2))
    deep = tuple(Patch(shape, "deep_water", "deep", opacity=0.4) for shape in depths if not shape.is_empty)
    return (bank, surface, *deep)
