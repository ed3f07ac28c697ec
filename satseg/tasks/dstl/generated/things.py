"""Single things of a contest tile: houses, structures, ponds, trucks, and trees in hedges and groves.

Each maker takes a generator and a place and returns what is drawn and what is labelled; whether there
is room is the planner's to find out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.random import Generator
from shapely import Polygon

from satseg.synthetic.blocks import pick, water_patches
from satseg.synthetic.layout import Building, Crown, Layout, Patch, Wing, blob, crown, grove, rectangle
from satseg.tasks.dstl.generated.country import Country
from satseg.tasks.dstl.generated.site import Lines, Site

Place = tuple[float, float, float]
LARGE_M2 = 230.0
"""From here on a building is labelled as a large one."""


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that has a label: the finer name of the original's GeoJSON files, and its outline."""

    name: str
    outline: Polygon


def house(rng: Generator, place: Place, area: float, country: Country) -> tuple[Layout, Thing]:
    """Return a house of about `area` m2 at x, y and angle."""
    x, y, angle = place
    angle += float(rng.choice([0, math.pi / 2])) + float(rng.normal(0, 0.05))
    ratio = float(rng.uniform(1.0, 1.9))
    long, deep = math.sqrt(area * ratio), math.sqrt(area / ratio)
    wings = [Wing(x, y, long, deep, angle)]
    if area > 60 and rng.random() < 0.3:
        wings = [Wing(x, y, long, 0.62 * deep, angle)]
        arm, ds, dt = 0.42 * long, float(rng.choice([-1, 1])) * 0.29 * long, 0.35 * deep
        cos, sin = math.cos(angle), math.sin(angle)
        wings.append(Wing(x + ds * cos - dt * sin, y + ds * sin + dt * cos, 1.1 * deep, arm, angle + math.pi / 2))
    flat = area > LARGE_M2 or rng.random() < country.flat
    building = Building(
        wings=tuple(wings),
        material=pick(rng, country.roofs),
        form="flat" if flat else str(rng.choice(["gable", "hip"], p=[0.65, 0.35])),
        eave_m=float(rng.uniform(2.6, 4.2)) + (2.0 if area > LARGE_M2 else 0.0),
        pitch=float(rng.uniform(0.4, 0.8)),
        shade=float(rng.uniform(0.85, 1.15)),
    )
    name = "001_MM_L3_RESIDENTIAL_BUILDING" if rng.random() < 0.8 else "001_MM_L3_NON_RESIDENTIAL_BUILDING"
    outline = building.outline
    label = outline if isinstance(outline, Polygon) else outline.convex_hull
    return Layout(buildings=(building,)), Thing("001_MM_L2_LARGE_BUILDING" if area > LARGE_M2 else name, label)


def structure(rng: Generator, place: Place, area: float) -> tuple[Layout, Thing]:
    """Return a shed, wall, tank or plastic tunnel of about `area` m2."""
    x, y, angle = place
    angle += float(rng.choice([0, math.pi / 2])) + float(rng.normal(0, 0.08))
    kind = str(rng.choice(["shed", "wall", "tank", "tunnel"], p=[0.5, 0.25, 0.13, 0.12]))
    if kind == "tank":
        outline = shapely.Point(x, y).buffer(math.sqrt(area / math.pi), quad_segs=5)
        material, height = str(rng.choice(["zinc", "concrete"])), 2.5
    else:
        width = {"shed": math.sqrt(area / 1.4), "wall": 0.9, "tunnel": math.sqrt(area / 3)}[kind]
        length = area / width
        if length > 26:
            width, length = area / 26, 26.0
        outline = rectangle(x, y, length=length, width=width, angle=angle)
        choices = {
            "shed": ["zinc", "brown_tile", "membrane", "bitumen"], "wall": ["concrete", "adobe"],
            "tunnel": ["membrane"],
        }  # fmt: skip
        material, height = str(rng.choice(choices[kind])), 1.8 if kind == "tunnel" else 2.2
    patch = Patch(outline, material, "paving", shade=float(rng.uniform(0.85, 1.1)), height_m=height)
    return Layout(patches=(patch,)), Thing("001_MM_L5_MISC_SMALL_STRUCTURE", outline)


def pond(rng: Generator, x: float, y: float, *, area: float, pool: bool) -> tuple[Layout, Polygon]:
    """Return a pond, or a tiled pool, of `area` m2 about x, y."""
    if pool:
        long = math.sqrt(area * 1.8)
        basin = rectangle(x, y, length=long, width=area / long, angle=float(rng.uniform(0, 3.2)))
        patches = (Patch(basin.buffer(1.0), "concrete", "pool"), Patch(basin, "pool", "pool"))
        return Layout(patches=patches), basin
    shape = blob(rng, x, y, radius=10.0, rough=0.22)
    factor = math.sqrt(area / shape.area)
    outline = shapely.transform(shape, lambda points: (points - (x, y)) * factor + (x, y))
    material = str(rng.choice(["turbid_water", "deep_water", "river"], p=[0.6, 0.25, 0.15]))
    return Layout(patches=water_patches(outline, material)), outline


def truck(rng: Generator, x: float, y: float, angle: float) -> tuple[Layout, Polygon]:
    """Return a lorry or bus: a long body and, for lorries, a cab apart."""
    length, width = float(rng.uniform(6.0, 8.0)), float(rng.uniform(2.2, 2.5))
    outline = rectangle(x, y, length=length, width=width, angle=angle)
    body = str(rng.choice(["white_car", "silver_car", "red_car", "blue_car"], p=[0.5, 0.2, 0.15, 0.15]))
    cab_x, cab_y = x + 0.4 * length * math.cos(angle), y + 0.4 * length * math.sin(angle)
    cab = rectangle(cab_x, cab_y, length=0.2 * length, width=width, angle=angle)
    gap_x, gap_y = x + 0.28 * length * math.cos(angle), y + 0.28 * length * math.sin(angle)
    gap = rectangle(gap_x, gap_y, length=0.35, width=width, angle=angle)
    patches = (
        Patch(outline, body, "vehicle", height_m=3.2),
        Patch(cab, str(rng.choice(["white_car", "red_car", "blue_car"])), "vehicle", height_m=2.8),
        Patch(gap, "black_car", "glass", opacity=0.8, height_m=1.0),
    )
    return Layout(patches=patches), outline


def trees(
    rng: Generator, site: Site, lines: Lines, area: float, kind: str
) -> tuple[tuple[tuple[str, Crown], ...], tuple[Patch, ...]]:
    """Return trees whose crowns cover `area` m2 of the tile, with their labels' names, and forest floors.

    Hedges stand on the bounds of fields and beside tracks, groves and single trees on open ground;
    where fields leave none, hedges prevail. Crowns may reach over ways and fields, stems may not stand there.
    """
    found: list[tuple[str, Crown]] = []
    floors: list[Patch] = []
    open_share = _open_share(rng, site)
    chances = (0.25, 0.35, 0.4) if open_share > 0.25 else (0.55, 0.1, 0.35)
    for _ in range(60 + round(area)):
        if area < 6:
            break
        group = str(rng.choice(["hedge", "grove", "single"], p=chances))
        if group == "grove":
            shape = blob(rng, *site.spot(rng), radius=float(rng.uniform(6, 20)), rough=0.3)
            crowns = grove(rng, shape, spacing_m=float(rng.uniform(4.2, 5.4)), kind=kind)
            name = "006_VEG_L2_WOODLAND" if len(crowns) > 12 else "006_VEG_L5_GROUP_TREES"
            if area > 0.5 * shape.area:
                floors.append(Patch(shape, "forest_floor", "lot", opacity=0.7))
        elif group == "hedge":
            crowns, name = tuple(_hedge(rng, site, lines, kind)), "006_VEG_L3_HEDGEROWS"
        else:
            crowns = (crown(rng, *site.spot(rng), radius=(1.9, 4.8), kind=kind),)
            name = "006_VEG_L5_STANDALONE_TREES"
        for item in crowns:
            inside = site.inside(item.x, item.y)
            if (inside and area < 6) or not _may_grow(rng, site, item, loose=group == "hedge"):
                continue
            area -= site.mark(site.wood, item.outline)
            found.append((name, item))
    return tuple(found), tuple(floors)


def _hedge(rng: Generator, site: Site, lines: Lines, kind: str) -> Iterator[Crown]:
    """Yield a row of trees along a bound of fields or beside a track."""
    ways = lines.tracks if lines.tracks and rng.random() < 0.4 else ()
    line = ways[int(rng.integers(len(ways)))].line if ways else lines.bounds[int(rng.integers(len(lines.bounds)))]
    side = float(rng.choice([-1, 1])) * (ways[0].width / 2 + float(rng.uniform(0.8, 2.2))) if ways else 0.0
    step, long = float(rng.uniform(3.6, 6.5)), float(rng.uniform(20, 70))
    place = float(rng.uniform(0, max(line.length - long, 1.0)))
    end = min(place + long, line.length - 1)
    radius = (1.6, float(rng.uniform(2.6, 4.2)))
    while place < end:
        first, second = line.interpolate(place), line.interpolate(place + 1)
        x = first.x - side * (second.y - first.y) + float(rng.normal(0, 0.5))
        y = first.y + side * (second.x - first.x) + float(rng.normal(0, 0.5))
        yield crown(rng, x, y, radius=radius, kind=kind)
        place += step * float(rng.uniform(0.8, 1.5))


def _may_grow(rng: Generator, site: Site, item: Crown, *, loose: bool) -> bool:
    """Return whether a stem may stand there: off ways and walls, and seldom in a field unless in a hedge."""
    if site.at(site.solid, item.x, item.y) or site.at(site.way, item.x, item.y):
        return False
    core = shapely.Point(item.x, item.y).buffer(0.55 * item.radius, quad_segs=3)
    if not site.free(core, site.solid):
        return False
    return loose or not site.at(site.field, item.x, item.y) or rng.random() < 0.05


def _open_share(rng: Generator, site: Site) -> float:
    """Return the share of the tile that is neither field nor built on, from 200 places."""
    spots = [site.spot(rng, tile=True) for _ in range(200)]
    return float(np.mean([not (site.at(site.field, *spot) or site.at(site.solid, *spot)) for spot in spots]))
