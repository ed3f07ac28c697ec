"""Plans a scene: the edge of a town on one side of a road, fields, woods and a river on the other.

`plan_layout` chooses the street frame, fills its cells with blocks and fields, and clears what
cannot stand together. Everything comes from the generator it is given, so the same generator
state gives the same town.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import shapely
from numpy.random import Generator
from shapely import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from satseg.synthetic.blocks import Block, flats, homes, park, sports, vehicle, water_patches, works
from satseg.synthetic.layout import (
    Crown,
    Layout,
    Patch,
    Rows,
    StreetFrame,
    Vehicle,
    blob,
    combine,
    crown,
    grove,
)

MAIN_HALF_M, STREET_HALF_M, LANE_HALF_M, TRACK_HALF_M = 4.2, 3.1, 2.6, 2.0
"""Half widths of the main road, town streets, the country lane and dirt tracks."""
PAVEMENT_M = 1.8
BLOCK_KINDS = {"homes": homes, "flats": flats, "sports": sports, "works": works, "park": park}
CROPS = (
    ("wheat", "soil", 0.80), ("maize", "soil", 0.55), ("beet", "soil", 0.66), ("barley", "stubble", 0.65),
    ("maize", "soil", 0.42), ("barley", "wheat", 0.80), ("wheat", "maize", 0.50),
)  # fmt: skip
"""Crop, what shows between its rows, share of the ground that it covers."""


@dataclass(frozen=True, slots=True)
class TownPlan:
    """The lines of a plan in its street frame: t of the streets, s of each row's cross streets.

    `reach` is how far lines must run to leave the scene; `track_t` and `river_t` are negative.
    """

    frame: StreetFrame
    scene: Polygon
    reach: float
    rows: tuple[float, ...]
    cols: tuple[tuple[float, ...], ...]
    lane_s: float
    track_t: float
    river_t: float


def plan_layout(rng: Generator, *, width_m: float, height_m: float) -> Layout:
    """Return what stands in a scene of `width_m` x `height_m` metres, in local metres."""
    plan = _plan(rng, width_m, height_m)
    parts = [_roads(rng, plan), _town(rng, plan), _countryside(rng, plan), _traffic(rng, plan)]
    return _tidy(combine(parts), plan.scene.buffer(15))


def _plan(rng: Generator, width_m: float, height_m: float) -> TownPlan:
    angle = float(rng.uniform(0, 2 * math.pi))
    across = (-math.sin(angle), math.cos(angle))
    half = min(width_m / 2 / max(abs(across[0]), 1e-9), height_m / 2 / max(abs(across[1]), 1e-9))
    offset = float(rng.uniform(-0.05, 0.05)) * half
    bend = (
        min(float(rng.uniform(8, 17)), 0.08 * half),
        float(rng.uniform(380, 560)),
        float(rng.uniform(0, 6.28)),
    )
    sway = (
        min(float(rng.uniform(0, 9)), 0.05 * half),
        float(rng.uniform(300, 480)),
        float(rng.uniform(0, 6.28)),
    )
    frame = StreetFrame(
        width_m / 2 - offset * across[0], height_m / 2 - offset * across[1], angle, bend, sway
    )
    reach = math.hypot(width_m, height_m) / 2 + 60
    rows = [0.0]
    while rows[-1] < reach:
        rows.append(rows[-1] + float(rng.uniform(62, 72)))
    cols = tuple(_cuts(rng, reach, (84, 128)) for _ in rows[1:])
    return TownPlan(
        frame=frame,
        scene=shapely.box(0, 0, width_m, height_m),
        reach=reach,
        rows=tuple(rows),
        cols=cols,
        lane_s=min(cols[0], key=abs),
        track_t=-half * float(rng.uniform(0.36, 0.44)),
        river_t=-half * float(rng.uniform(0.74, 0.82)),
    )


def _cuts(rng: Generator, reach: float, step: tuple[float, float]) -> tuple[float, ...]:
    """Places from -reach to reach, a random step apart; one lies within 50 m of 0."""
    ahead, behind = [float(rng.uniform(-50, 50))], []
    while ahead[-1] < reach:
        ahead.append(ahead[-1] + float(rng.uniform(*step)))
    last = ahead[0]
    while last > -reach:
        last -= float(rng.uniform(*step))
        behind.append(last)
    return (*reversed(behind), *ahead)


def _roads(rng: Generator, plan: TownPlan) -> Layout:
    """Return the paved network as one outline with rounded corners, its pavements, its lane markings."""
    frame, reach = plan.frame, plan.reach
    main = frame.line((-reach, 0), (reach, 0)).buffer(MAIN_HALF_M)
    streets = [frame.line((-reach, t), (reach, t)).buffer(STREET_HALF_M) for t in plan.rows[1:]]
    streets += [
        frame.line((s, t0), (s, t1)).buffer(STREET_HALF_M)
        for t0, t1, cols in zip(plan.rows, plan.rows[1:], plan.cols, strict=False)
        for s in cols
    ]
    lane = frame.line((plan.lane_s, 0), (plan.lane_s, -reach)).buffer(LANE_HALF_M)
    town = shapely.union_all([main, *streets])
    carriageway = shapely.union_all([town, lane]).buffer(3.5).buffer(-3.5)
    patches = [
        Patch(town.buffer(3.5 + PAVEMENT_M).buffer(-3.5), "concrete", "paving", shade=0.92),
        Patch(carriageway, "asphalt", "road", label="road"),
    ]
    dashes = [frame.line((s, 0), (s + 3, 0)).buffer(0.12) for s in np.arange(-reach, reach, 9.0)]
    patches += [Patch(dash, "paint", "marking", opacity=0.8) for dash in dashes]
    for s in plan.cols[0]:
        if rng.random() < 0.6:
            patches += _crossing(frame, s, MAIN_HALF_M + PAVEMENT_M + 2.0)
    return Layout(patches=tuple(patches))


def _crossing(frame: StreetFrame, s: float, t: float) -> list[Patch]:
    """Return a zebra crossing over the cross street at s."""
    across = np.arange(-STREET_HALF_M + 0.5, STREET_HALF_M, 1.0)
    bars = [frame.line((s + d, t - 1.4), (s + d, t + 1.4)).buffer(0.25, cap_style="flat") for d in across]
    return [Patch(bar, "paint", "marking", opacity=0.8) for bar in bars]


def _town(rng: Generator, plan: TownPlan) -> Layout:
    """Every block; the two that show most are a sports ground and homes, then works and a park."""
    inset = STREET_HALF_M + PAVEMENT_M + 0.4
    blocks = []
    for t0, t1, cols in zip(plan.rows, plan.rows[1:], plan.cols, strict=False):
        low = MAIN_HALF_M + PAVEMENT_M + 0.4 if t0 == 0 else t0 + inset
        for s0, s1 in pairwise(cols):
            blocks.append(Block(plan.frame, (s0 + inset, s1 - inset), (low, t1 - inset)))
    blocks = [block for block in blocks if block.outline.intersects(plan.scene)]
    blocks.sort(key=lambda block: -block.outline.intersection(plan.scene.buffer(-25)).area)
    kinds = [*rng.permutation(["sports", "homes"]), *rng.permutation(["works", "park"])]
    parts = []
    for place, block in enumerate(blocks):
        other = str(rng.choice(["homes", "flats", "park", "works"], p=[0.78, 0.12, 0.05, 0.05]))
        parts.append(BLOCK_KINDS[str(kinds[place]) if place < len(kinds) else other](rng, block))
    return combine([*parts, _street_trees(rng, plan)])


def _street_trees(rng: Generator, plan: TownPlan) -> Layout:
    """Rows of trees along some streets, their crowns over the kerb."""
    crowns: list[Crown] = []
    for t in plan.rows[1:]:
        if rng.random() < 0.55:
            side = float(rng.choice([-1, 1])) * (STREET_HALF_M + 1.4)
            step = float(rng.uniform(10, 15))
            places = np.arange(-plan.reach, plan.reach, step) + rng.uniform(0, step)
            kept = places[rng.random(len(places)) < 0.8]
            crowns += [
                crown(rng, *plan.frame.at(float(s), t + side), radius=(1.9, 3.0), kind="leafy") for s in kept
            ]
    return Layout(crowns=tuple(crowns))


def _traffic(rng: Generator, plan: TownPlan) -> Layout:
    """Cars driving on the right of every street, and parked along the kerbs of some."""
    lines = [((-plan.reach, 0.0), (plan.reach, 0.0), 2.0, 55.0)]
    lines += [((-plan.reach, t), (plan.reach, t), 1.9, 52.0) for t in plan.rows[1:]]
    for t0, t1, cols in zip(plan.rows, plan.rows[1:], plan.cols, strict=False):
        lines += [((s, t0 + 8), (s, t1 - 8), 1.9, 60.0) for s in cols]
    lines += [((plan.lane_s, -8.0), (plan.lane_s, -plan.reach), 1.3, 70.0)]
    cars: list[Vehicle] = []
    for start, end, offset, gap in lines:
        length = math.dist(start, end)
        along = "s" if start[1] == end[1] else "t"
        for sign in (-1, 1):
            place = float(rng.exponential(gap))
            while place < length:
                share = place / length
                s, t = (start[i] + share * (end[i] - start[i]) for i in (0, 1))
                heading = plan.frame.heading(s, t, along=along) + (0 if sign < 0 else math.pi)
                x, y = plan.frame.at(s, t)
                right = (x + offset * math.sin(heading), y - offset * math.cos(heading))
                cars.append(vehicle(rng, *right, heading))
                place += 8 + float(rng.exponential(gap))
    return Layout(vehicles=tuple(cars))


def _countryside(rng: Generator, plan: TownPlan) -> Layout:
    """Two strips of fields with tracks along them, then the river, then meadows and woods."""
    bank, tracks = plan.river_t + 15, [plan.track_t]
    if plan.track_t - bank > 45:  # a towpath, where it leaves room for fields
        tracks.append(bank + 2)
        bank += 6.5
    strips = [(plan.track_t + 4.5, -MAIN_HALF_M - 5.0), (bank, plan.track_t - 4.5)]
    lines = [plan.frame.line((-plan.reach, t), (plan.reach, t)) for t in tracks]
    parts = [_tracks([line.buffer(TRACK_HALF_M) for line in lines])]
    for strip in strips:
        if strip[1] - strip[0] > 12:
            parts.append(_strip(rng, plan, strip))
    return combine([*parts, _river(rng, plan), _far_bank(rng, plan)])


def _tracks(outlines: list[Polygon]) -> Layout:
    """Dirt tracks, with a strip of grass between the wheel ruts."""
    patches = []
    for outline in outlines:
        patches.append(Patch(outline.buffer(1.0), "dry_grass", "bank", opacity=0.55))
        patches.append(Patch(outline, "dirt", "track", label="track"))
        spine = outline.buffer(0.45 - TRACK_HALF_M)
        if not spine.is_empty:
            patches.append(Patch(spine, "dry_grass", "rut", opacity=0.45))
    return Layout(patches=tuple(patches))


def _strip(rng: Generator, plan: TownPlan, t: tuple[float, float]) -> Layout:
    """Fields side by side; between them a track, a hedge of trees, or a bare verge."""
    cuts = _cuts(rng, plan.reach, (62, 125))
    parts = []
    order = rng.permutation(len(CROPS))
    for number, (s0, s1) in enumerate(pairwise(cuts)):
        pieces = [(s0, plan.lane_s - 6), (plan.lane_s + 6, s1)] if s0 < plan.lane_s < s1 else [(s0, s1)]
        for piece in pieces:
            if piece[1] - piece[0] > 18:
                parts.append(_field(rng, Block(plan.frame, piece, t), CROPS[order[number % len(CROPS)]]))
        if abs(s1 - plan.lane_s) > 14:
            parts.append(_divider(rng, plan, s1, t))
    return combine(parts)


def _divider(rng: Generator, plan: TownPlan, s: float, t: tuple[float, float]) -> Layout:
    chance = rng.random()
    if chance < 0.4:
        line = plan.frame.line((s, t[0] - 4.5), (s, t[1] + 4.5))
        return _tracks([line.buffer(TRACK_HALF_M)])
    if chance < 0.75:
        places = np.arange(t[0] + 2, t[1] - 2, 5.5) + rng.uniform(-1, 1)
        kept = places[rng.random(len(places)) < 0.85]
        return Layout(
            crowns=tuple(crown(rng, *plan.frame.at(s + float(rng.normal(0, 0.8)), float(p))) for p in kept)
        )
    return Layout()


def _field(rng: Generator, cell: Block, crop: tuple[str, str, float]) -> Layout:
    """Return a field in its crop, nine times in ten; else a meadow or a grove."""
    chance = rng.random()
    outline = cell.outline.buffer(-7).buffer(4)
    if outline.is_empty or not isinstance(outline, Polygon):
        return Layout()
    if chance < 0.10:
        grass = Patch(
            outline, "grass", "field", shade=float(rng.uniform(0.9, 1.1)), dry=float(rng.uniform(0, 0.7))
        )
        return Layout(patches=(grass,))
    if chance < 0.17:
        return _wood(rng, outline)
    material, between, cover = crop
    along = cell.frame.heading(*cell.middle, along=str(rng.choice(["s", "t"])))
    rows = Rows(
        angle=along + float(rng.normal(0, 0.06)),
        spacing_m=float(rng.uniform(2.0, 4.2)),
        between=between,
        cover=cover,
        tramline_m=float(rng.choice([0.0, 18.0, 24.0])),
    )
    return Layout(
        patches=(
            Patch(outline, material, "field", label="crop", shade=float(rng.uniform(0.9, 1.12)), rows=rows),
        )
    )


def _wood(rng: Generator, outline: Polygon) -> Layout:
    kind = str(rng.choice(["mixed", "leafy", "conifer"], p=[0.6, 0.2, 0.2]))
    floor = Patch(outline.buffer(1.0), "forest_floor", "lot", opacity=0.9)
    return Layout(patches=(floor,), crowns=grove(rng, outline.buffer(-1.5), kind=kind))


def _river(rng: Generator, plan: TownPlan) -> Layout:
    """Return a river of varying width that winds about river_t, with trees along it; the lane bridges it."""
    s = np.arange(-plan.reach, plan.reach + 1, 4.0)
    phase = rng.uniform(0, 2 * math.pi, 4)
    middle = plan.river_t + 3.2 * np.sin(s / 38 + phase[0]) + 2.0 * np.sin(s / 21 + phase[1])
    half = 5.6 + 1.0 * np.sin(s / 47 + phase[2]) + 0.5 * np.sin(s / 17 + phase[3])
    near, far = plan.frame.xy(s, middle + half), plan.frame.xy(s, middle - half)
    outline = Polygon(np.vstack([np.column_stack(near), np.column_stack(far)[::-1]]))
    trees = []
    for place, t, wide in zip(s[::2], middle[::2], half[::2], strict=True):
        if rng.random() < 0.34:
            side = float(rng.choice([-1, 1])) * (wide + float(rng.uniform(1.5, 5.0)))
            trees.append(crown(rng, *plan.frame.at(float(place), float(t) + side), kind="leafy"))
    return Layout(patches=water_patches(outline, "river"), crowns=tuple(trees))


def _far_bank(rng: Generator, plan: TownPlan) -> Layout:
    """Woods, meadows with single trees and a pond beyond the river."""
    parts = []
    edge = plan.river_t - 14
    for s in np.arange(-plan.reach, plan.reach, 78.0):
        centre = (float(s + rng.uniform(-12, 12)), float(edge - rng.uniform(30, 44)))
        if abs(centre[0] - plan.lane_s) < 34:
            continue
        if rng.random() < 0.6:
            parts.append(
                _wood(rng, blob(rng, *plan.frame.at(*centre), radius=float(rng.uniform(22, 32)), rough=0.34))
            )
        else:
            spots = rng.normal(0, 14, (int(rng.integers(3, 9)), 2)) + centre
            parts.append(
                Layout(crowns=tuple(crown(rng, *plan.frame.at(*map(float, spot))) for spot in spots))
            )
    return combine(parts)


def _tidy(layout: Layout, area: Polygon) -> Layout:
    """`layout` without what lies outside `area`, trees on roads or in walls, and hidden or touching cars."""
    patches = tuple(
        replace(patch, outline=part)
        for patch in layout.patches
        if patch.outline.intersects(area)
        for part in _parts(patch.outline)
    )
    layout = replace(layout, patches=patches)
    walls = [building.outline for building in layout.buildings]
    hard = [patch.outline.buffer(-1.0) for patch in layout.layer("road", "track", "water")]
    lawns = [patch.outline for patch in layout.layer("lawn", "pool")]
    roofs = shapely.union_all([wall.buffer(0.9) for wall in walls])
    closed = shapely.union_all([roofs, *hard, *lawns])
    inside = [item for item in layout.crowns if area.contains(shapely.Point(item.x, item.y))]
    free = ~shapely.contains_xy(closed, [item.x for item in inside], [item.y for item in inside])
    crowns = tuple(item for item, keep in zip(inside, free, strict=True) if keep)
    cover = shapely.union_all([item.outline for item in crowns])
    vehicles = [item for item in layout.vehicles if area.contains(shapely.Point(item.x, item.y))]
    return Layout(
        patches=tuple(
            patch
            for patch in patches
            if patch.layer not in ("lawn", "pool") or not patch.outline.intersects(roofs)
        ),
        buildings=tuple(item for item in layout.buildings if item.outline.intersects(area)),
        crowns=crowns,
        vehicles=_clear_vehicles(vehicles, shapely.union_all([roofs, cover])),
    )


def _parts(outline: Polygon | MultiPolygon) -> list[Polygon]:
    return list(outline.geoms) if isinstance(outline, MultiPolygon) else [outline]


def _clear_vehicles(vehicles: Sequence[Vehicle], cover: BaseGeometry) -> tuple[Vehicle, ...]:
    """Return the vehicles in the open, of those closer than half a metre the first."""
    outlines = np.array([item.outline for item in vehicles], object)
    shapely.prepare(cover)
    hidden = shapely.intersects(cover, outlines)
    first, second = shapely.STRtree(outlines).query(outlines, predicate="dwithin", distance=0.5)
    pairs = np.column_stack([first, second])[second < first]
    for later, earlier in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        hidden[later] |= not hidden[earlier]
    return tuple(item for item, away in zip(vehicles, hidden, strict=True) if not away)
