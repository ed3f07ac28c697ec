"""What stands on a contest tile: fields, houses, structures, water, trees, vehicles, each with its label.

`plan_ground` fills a `Site` until every class covers its share of the tile. It knows nothing of time:
twin tiles get the same ground, from which `later` takes some trees away, and vehicles of their own from
`add_traffic`. Each thing carries one of the finer names of the original's GeoJSON files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.random import Generator
from numpy.typing import NDArray
from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from satseg.synthetic.blocks import vehicle
from satseg.synthetic.layout import Crown, Layout, Patch, Rows, Vehicle, combine
from satseg.tasks.dstl.generated.country import Country
from satseg.tasks.dstl.generated.roster import Rarities, Recipe, pond_m2
from satseg.tasks.dstl.generated.site import MARGIN_M, Cell, Lines, Site, deal, frame_for, lay_lines
from satseg.tasks.dstl.generated.things import Thing, house, pond, structure, trees, truck

HOUSES_SHARE = 0.27
"""Of a village's ground, under roofs; more where the tile has no room."""


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """A planned tile.

    Parameters
    ----------
    site : Site
    lines : Lines
    layout : Layout
        Everything but vehicles; fields are patches of layer "field" whose material is "crop 0".. "crop 5",
        to be replaced by what grows there in a season.
    things : tuple of Thing
        What has a label, crowns left out.
    groves : tuple of (str, Crown)
        Finer name of the label and crown.
    yards : tuple of Polygon
        Where vehicles may stand off the ways.
    """

    site: Site
    lines: Lines
    layout: Layout
    things: tuple[Thing, ...]
    groves: tuple[tuple[str, Crown], ...]
    yards: tuple[Polygon, ...]


def plan_ground(
    rng: Generator, recipe: Recipe, rarities: Rarities, country: Country, *, width_m: float, height_m: float
) -> Ground:
    """Return what stands on a tile of `width_m` x `height_m` metres and some way around it."""
    site = Site(width_m, height_m)
    frame = frame_for(rng, site, country.angle)
    lines = lay_lines(rng, site, recipe, frame)
    river = _river(rng, site, lines, recipe.share("Waterway") * width_m * height_m)
    parts, things = [_cover(rng, site, country)], []
    for part, named in (_ways(lines), _water(river, lines)):
        parts.append(part)
        things += named
    taken = shapely.union_all([thing.outline for thing in things])
    for thing in things:
        site.mark(site.solid if thing.name == "008_WTR_L3_WATERWAY" else site.way, thing.outline)
    village, fields = _land_use(rng, site, lines, recipe, taken)
    yards = tuple(frame.box(cell.s, cell.t) for cell in village)
    for part, named in (
        _crops(rng, site, lines, fields, taken),
        _ponds(rng, site, recipe, rarities.ponds, country),
        _village(rng, site, lines, recipe, village, country),
        _structures(rng, site, recipe, yards, frame.angle),
    ):
        parts.append(part)
        things += named
    groves, floors = trees(rng, site, lines, recipe.share("Trees") * width_m * height_m, country.kind)
    parts.append(Layout(patches=floors, crowns=tuple(crown for _, crown in groves)))
    return Ground(site, lines, combine(parts), tuple(things), groves, yards)


def later(rng: Generator, ground: Ground, felled: float = 0.03) -> Ground:
    """Return `ground` some time later, without a share `felled` of its trees."""
    groves = tuple(item for item in ground.groves if rng.random() >= felled)
    layout = replace(ground.layout, crowns=tuple(crown for _, crown in groves))
    return replace(ground, layout=layout, groves=groves)


def add_traffic(rng: Generator, ground: Ground, rarities: Rarities) -> Ground:
    """Return `ground` with vehicles in the tile, on roads, tracks and in yards, none under a crown."""
    site, busy = ground.site, np.zeros_like(ground.site.solid)
    parts, things = [ground.layout], list(ground.things)
    for name, count in (("003_VH_L4_LARGE_VEHICLE", rarities.large), ("003_VH_L5_SMALL_VEHICLE", rarities.small)):
        for _ in range(count):
            found = _parked(rng, ground, busy, large=name.endswith("LARGE_VEHICLE"))
            if found is None:
                continue
            part, outline = found
            site.mark(busy, outline.buffer(0.6))
            parts.append(part)
            things.append(Thing(name, outline))
    return replace(ground, layout=combine(parts), things=tuple(things))


def _parked(
    rng: Generator, ground: Ground, busy: NDArray[np.bool_], *, large: bool
) -> tuple[Layout, Polygon] | None:
    """Return a vehicle in the open within the tile, and its outline; None when there is no room."""
    site = ground.site
    inner = site.tile.buffer(-3.0)
    for attempt in range(300):
        x, y, angle = _stand(rng, ground, anywhere=attempt > 150)
        if large:
            part, outline = truck(rng, x, y, angle)
        else:
            car: Vehicle = vehicle(rng, x, y, angle)
            part, outline = Layout(vehicles=(car,)), car.outline
        if inner.contains(outline) and site.free(outline, site.solid, site.wood, busy):
            return part, outline
    return None


def _stand(rng: Generator, ground: Ground, *, anywhere: bool) -> tuple[float, float, float]:
    """Return a place for a vehicle: x, y and heading."""
    roads, tracks = ground.lines.roads, ground.lines.tracks
    chance = rng.random()
    ways = roads if roads and (chance < 0.6 or not tracks) else tracks
    if ways and chance < 0.78 and not anywhere:
        way = ways[int(rng.integers(len(ways)))]
        at = float(rng.uniform(0, way.line.length - 1))
        first, second = way.line.interpolate(at), way.line.interpolate(at + 1)
        angle = math.atan2(second.y - first.y, second.x - first.x)
        aside = float(rng.choice([-1, 1])) * 0.25 * way.width if way.width > 4.5 else 0.0
        return first.x - aside * math.sin(angle), first.y + aside * math.cos(angle), angle
    if ground.yards and not anywhere:
        left, bottom, right, top = ground.yards[int(rng.integers(len(ground.yards)))].bounds
        x, y = float(rng.uniform(left, right)), float(rng.uniform(bottom, top))
    else:
        x, y = ground.site.spot(rng, tile=True)
    return x, y, ground.lines.frame.angle + float(rng.choice([0, math.pi / 2])) + float(rng.normal(0, 0.2))


def _cover(rng: Generator, site: Site, country: Country) -> Layout:
    """Return the open ground, in pieces of different dryness."""
    patches = [Patch(site.area, country.ground, "lot", dry=0.0, opacity=country.bareness)]
    for _ in range(3 + int(site.area.area / 2500)):
        x, y = site.spot(rng)
        size = float(rng.uniform(6, 26))
        piece = Polygon(
            [
                (x + size * reach * math.cos(azimuth), y + size * reach * math.sin(azimuth))
                for azimuth, reach in zip(np.linspace(0, 6.0, 14), rng.uniform(0.6, 1.2, 14), strict=True)
            ]
        ).buffer(size / 4)
        material = str(rng.choice(["grass", "dry_grass", country.ground]))
        opacity, shade = float(rng.uniform(0.25, 0.7)), float(rng.uniform(0.85, 1.12))
        patches.append(Patch(piece, material, "lot", shade=shade, opacity=opacity))
    return Layout(patches=tuple(patches))


def _ways(lines: Lines) -> tuple[Layout, list[Thing]]:
    """Return asphalt roads with verges and dirt tracks with grass between the ruts."""
    patches = [Patch(way.outline.buffer(1.2), "gravel", "bank", opacity=0.6) for way in lines.roads]
    patches += [Patch(way.outline, "asphalt", "road") for way in lines.roads]
    for way in lines.tracks:
        patches.append(Patch(way.outline.buffer(0.7), "dry_grass", "bank", opacity=0.5))
        patches.append(Patch(way.outline, "dirt", "track"))
        if way.width > 3.0:
            patches.append(Patch(way.line.buffer(0.4, cap_style="flat"), "dry_grass", "rut", opacity=0.45))
    for way in (way for way in lines.roads if way.width > 5.8):
        patches.append(Patch(way.line.buffer(0.1, cap_style="flat"), "paint", "marking", opacity=0.7))
    roads = shapely.union_all([way.outline for way in lines.roads])
    tracks = shapely.union_all([way.outline for way in lines.tracks]).difference(roads)
    things = [Thing("002_TR_L3_GOOD_ROADS", part) for part in shapely.get_parts(roads)]
    things += [Thing("002_TR_L4_POOR_DIRT_CART_TRACK", part) for part in shapely.get_parts(tracks)]
    return Layout(patches=tuple(patches)), things


def _river(rng: Generator, site: Site, lines: Lines, area: float) -> BaseGeometry:
    """Return a winding river that covers `area` m2 of the tile, across it; empty for none."""
    if area < 5:
        return Polygon()
    reach = math.hypot(*site.size_m) / 2 + MARGIN_M + 60
    s = np.arange(-reach, reach, 4.0)
    phase, scale = rng.uniform(0, 2 * math.pi, 3), min(site.size_m) / 100
    middle = float(rng.uniform(-0.2, 0.2)) * min(site.size_m)
    middle = middle + min(scale, 4) * (3.5 * np.sin(s / (30 * scale) + phase[0]) + 1.6 * np.sin(s / 17 + phase[1]))
    wobble = 1 + 0.16 * np.sin(s / 23 + phase[2])
    low, high = 0.2, 0.5 * min(site.size_m)
    outline = Polygon()
    for _ in range(18):
        half = (low + high) / 2
        near, far = (lines.frame.xy(s, middle + sign * half * wobble) for sign in (1, -1))
        outline = Polygon(np.vstack([np.column_stack(near), np.column_stack(far)[::-1]])).buffer(0)
        low, high = (low, half) if outline.intersection(site.tile).area > area else (half, high)
    return outline


def _water(river: BaseGeometry, lines: Lines) -> tuple[Layout, list[Thing]]:
    """Return the river with banks and a darker middle; ways bridge it, and its label ends there."""
    if river.is_empty:
        return Layout(), []
    patches = [
        Patch(river.buffer(1.4), "reed", "bank", opacity=0.85),
        Patch(river, "river", "water"),
        *(Patch(river.buffer(-inset), "deep_water", "deep", opacity=0.4) for inset in (1.0, 2.4)),
    ]
    ways = shapely.union_all([way.outline for way in (*lines.roads, *lines.tracks)])
    things = [Thing("008_WTR_L3_WATERWAY", part) for part in shapely.get_parts(river.difference(ways))]
    return Layout(patches=tuple(patch for patch in patches if not patch.outline.is_empty)), things


def _land_use(
    rng: Generator, site: Site, lines: Lines, recipe: Recipe, taken: BaseGeometry
) -> tuple[list[Cell], list[Cell]]:
    """Return the cells of the village and of the fields: the one about a road, the others away from it."""
    whole = site.tile.area
    anchor = (0.0, 0.0)
    if lines.roads:
        x, y = site.spot(rng, tile=True)
        near = lines.roads[0].line.intersection(site.tile)
        place = near.interpolate(near.project(shapely.Point(x, y)))
        anchor = (place.x, place.y)
    else:
        anchor = site.spot(rng, tile=True)
    frame = lines.frame
    far = {cell: math.dist(anchor, frame.at(*cell.middle)) + float(rng.uniform(0, 12)) for cell in lines.cells}
    cells = sorted(lines.cells, key=lambda cell: far[cell])
    crops = recipe.share("Crops") * whole
    room = site.tile.difference(taken).area - crops
    roofs = recipe.share("Buildings") * whole
    wanted = min(roofs / HOUSES_SHARE, max(0.9 * room, roofs / 0.55))
    village, rest = deal(site, frame, cells, wanted, taken)
    fields, _ = deal(site, frame, rest[::-1], crops, taken.buffer(0.35))
    return village, fields


def _crops(
    rng: Generator, site: Site, lines: Lines, fields: Sequence[Cell], taken: BaseGeometry
) -> tuple[Layout, list[Thing]]:
    """Return fields in rows, with a label each."""
    patches, things = [], []
    keep_off = taken.buffer(0.3)
    for cell in fields:
        pieces = lines.frame.box(cell.s, cell.t).intersection(site.area).difference(keep_off)
        along = lines.frame.heading(*cell.middle, along=str(rng.choice(["s", "t"])))
        number = int(rng.integers(6))
        rows = Rows(
            angle=along + float(rng.normal(0, 0.05)),
            spacing_m=float(rng.uniform(1.9, 3.8)),
            between="soil",
            cover=0.6,
            tramline_m=float(rng.choice([0.0, 12.0, 18.0])),
        )
        shade = float(rng.uniform(0.9, 1.12))
        for piece in shapely.get_parts(pieces):
            outline = piece.buffer(-0.25)
            if not isinstance(outline, Polygon) or outline.area < 12:
                continue
            patches.append(Patch(outline, f"crop {number}", "field", shade=shade, rows=rows))
            name = "007_AGR_L6_ROW_CROP" if number < 3 else "007_AGR_L2_CONTOUR_PLOUGHING_CROPLAND"
            things.append(Thing(name, outline))
            site.mark(site.field, outline)
    return Layout(patches=tuple(patches)), things


def _ponds(
    rng: Generator, site: Site, recipe: Recipe, count: int, country: Country
) -> tuple[Layout, list[Thing]]:
    """Return `count` ponds (pools, in rich villages) within the tile, clear of ways and water."""
    parts, things = [], []
    mean = pond_m2(recipe, site.tile.area)
    for _ in range(count):
        size = mean * float(rng.uniform(0.75, 1.25))
        for _ in range(300):
            part, outline = pond(rng, *site.spot(rng, tile=True), area=size, pool=country.pools > rng.random())
            if site.tile.contains(outline) and site.free(outline.buffer(1.5), site.solid, site.way):
                site.mark(site.solid, outline.buffer(1.0))
                parts.append(part)
                things.append(Thing("008_WTR_L2_STANDING_WATER", outline))
                break
    return combine(parts), things


def _village(
    rng: Generator, site: Site, lines: Lines, recipe: Recipe, village: Sequence[Cell], country: Country
) -> tuple[Layout, list[Thing]]:
    """Return houses on a shaken lattice in the cells of the village, until they cover their share."""
    frame = lines.frame
    outlines = [frame.box(cell.s, cell.t).buffer(-0.5) for cell in village]
    patches = [Patch(item, country.yard, "lot", opacity=0.55, shade=0.97) for item in outlines if not item.is_empty]
    parts, things, missing = [Layout(patches=tuple(patches))], [], recipe.share("Buildings") * site.tile.area
    step = math.sqrt(recipe.building_m2 / 0.42)
    for _ in range(14):
        spots = [
            (s + float(rng.uniform(-0.2, 0.2)) * step, t + float(rng.uniform(-0.2, 0.2)) * step)
            for cell in village
            for s in np.arange(cell.s[0] + float(rng.uniform(0.3, 0.8)) * step, cell.s[1], step)
            for t in np.arange(cell.t[0] + float(rng.uniform(0.3, 0.8)) * step, cell.t[1], step)
        ]
        for number in rng.permutation(len(spots)):
            s, t = spots[number]
            x, y = frame.at(s, t)
            if missing < 0.3 * recipe.building_m2 and site.inside(x, y):
                continue
            size = recipe.building_m2 * float(np.exp(rng.normal(-0.05, 0.32)))
            part, thing = house(rng, (x, y, frame.heading(s, t)), min(size, 1.3 * max(missing, 25.0)), country)
            if not site.free(thing.outline.buffer(0.7), site.solid, site.way):
                continue
            missing -= site.mark(site.solid, thing.outline)
            parts.append(part)
            things.append(thing)
        if missing < 0.3 * recipe.building_m2:
            break
    return combine(parts), things


def _structures(
    rng: Generator, site: Site, recipe: Recipe, yards: Sequence[Polygon], angle: float
) -> tuple[Layout, list[Thing]]:
    """Return sheds, walls, tanks and frames, most of them in `yards`, until they cover their share."""
    parts, things, missing = [], [], recipe.share("Misc. Manmade structures") * site.tile.area
    for attempt in range(40 + round(12 * missing / recipe.structure_m2)):
        if missing < 0.4 * recipe.structure_m2:
            break
        x, y = site.spot(rng, tile=not yards)
        if yards and (rng.random() < 0.85 or attempt % 2):
            left, bottom, right, top = yards[int(rng.integers(len(yards)))].bounds
            x, y = float(rng.uniform(left, right)), float(rng.uniform(bottom, top))
        size = min(recipe.structure_m2 * float(np.exp(rng.normal(-0.1, 0.45))), 1.5 * missing)
        part, thing = structure(rng, (x, y, angle), max(size, 2.5))
        if site.free(thing.outline.buffer(0.4), site.solid, site.way):
            missing -= site.mark(site.solid, thing.outline)
            parts.append(part)
            things.append(thing)
    return combine(parts), things
