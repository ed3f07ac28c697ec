"""Training data that are not what they seem: what a look at some blocks finds before hours are spent on them.

Errors are for what cannot be learnt from. A suspicion is a warning about what can, and most likely should not
be: labels beside their objects, scenes in different units, bands without content, classes without pixels.
Each says what was seen, the value and what to do. The look is at a few blocks per scene, so that it takes seconds
and little memory whatever the scenes' size; a share is of what was looked at. Rejected: a full pass, which costs
as much as training does, and refusing such data, since each has a case in which it is meant so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import LabelError
from satseg.grid import Grid
from satseg.imagery.label_shift import LEAST_WINDOWS, WINDOWS, Shift, measure_shift
from satseg.imagery.labels import Geometries, LabelLayer
from satseg.imagery.scene import Scene
from satseg.imagery.tiling import block_at

BLOCK_PX = 256
BLOCKS = 16
"""Blocks looked at per scene, evenly spread; and half as many more around features."""
BLOCKS_IN_ALL = 600
SHIFT_WINDOWS_IN_ALL = 288
"""Windows in which labels are compared with edges, over all scenes and classes; each costs some 20 ms."""
LEAST_SHIFT_PX = 1.5
"""Labels drawn by hand are often a pixel off."""
SAMPLE_PX = 4096
"""Values per block and band that a scene's level is taken from."""
UNITS_FACTOR = 5.0
"""Sun, haze and ground change the level of all bands together by less; 8 and 11 bits differ by 8."""
BAND_SHARE = 0.9
"""Share of the ground of the other bands from which on a band is taken to cover it."""
SCENE_SHARE = 0.1
"""Least share of valid ground: a strip that crosses a grid leaves much of it empty by right."""
COVERED = 0.999
RARE = 1e-5
LARGEST_TRIED = 200
"""Features, the largest of a class, that must all miss every pixel's centre for the class to be called empty."""

Pairs = Sequence[tuple[Scene, LabelLayer]]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something about training data that is probably not meant; its text is ready for a log.

    Attributes
    ----------
    kind : str
        ``shifted-labels``, ``other-units``, ``other-dtypes``, ``constant-band``, ``invalid-band``, ``invalid-scene``,
        ``unlabelled-scene``, ``labels-without-data``, ``class-off-scene``, ``class-below-pixel``, ``class-everywhere``
        or ``class-rare``; ``other-resolutions`` of `satseg.learning.ground.resolution`.
    message : str
        What was seen, with the value.
    value : float
        The figure that was compared: a length in pixels, a ratio or a share.
    hint : str
        What to do.
    fatal : bool
        Whether nothing can be learnt from the scene or of the class, and all of it was looked at.
    """

    kind: str
    message: str
    value: float
    hint: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What blocks of a scene, or the whole of it, hold: pixels, (K,) by class; `spread` (3, C) is 5, 50, 95 %."""

    whole: bool
    pixels: int
    valid: int
    known: int
    labelled: int
    covered: NDArray[np.int64]
    burnt: NDArray[np.int64]
    usable: NDArray[np.int64]
    spread: NDArray[np.float64]
    constant: NDArray[np.bool_]

    @property
    def level(self) -> NDArray[np.float64]:
        """Magnitude of each band's values, (C,)."""
        return np.asarray(np.abs(self.spread).max(axis=0), np.float64)


def suspicions(data: Pairs, *, seed: int = 0) -> tuple[Suspicion, ...]:
    """Return what is odd about labelled scenes that share bands and classes, the gravest kinds first.

    Parameters
    ----------
    data : sequence of (Scene, LabelLayer)
        At the working resolution; each layer in its scene's CRS.
    seed : int
        Draws the windows around features.

    Raises
    ------
    InputError
        A block that was looked at is damaged.
    """
    if not data:
        return ()
    seen = [_look(scene, labels, _blocks_for(len(data)), seed) for scene, labels in data]
    found = [*_shifts(data, seed), *_units(data, seen)]
    for (scene, labels), own in zip(data, seen, strict=True):
        found += [*_bands(scene, own, _blocks_for(len(data))), *_labelling(scene, labels, own)]
    for k, name in enumerate(data[0][1].classes):
        found += _class(data, seen, k, name)
    return tuple(found)


def refuse_hopeless(found: Sequence[Suspicion], data: Pairs) -> None:
    """Raise when `found` in `data` leaves no scene, or no class, that anything can be learnt from.

    Raises
    ------
    LabelError
        With what is wrong with the first of them (E-LAB-221).
    """
    fatal = [one for one in found if one.fatal]
    of_classes = [one for one in fatal if one.kind.startswith("class-")]
    of_scenes = [one for one in fatal if one not in of_classes]
    for group, total in ((of_scenes, len(data)), (of_classes, len(data[0][1].classes) if data else 0)):
        if group and len(group) == total:
            more = f" (and {total - 1} more alike)" if total > 1 else ""
            raise LabelError(f"nothing can be learnt: {group[0].message}{more}", hint=group[0].hint, code="E-LAB-221")


def _blocks_for(scenes: int) -> int:
    return int(np.clip(BLOCKS_IN_ALL // scenes, 4, BLOCKS))


def _spread_blocks(grid: Grid, count: int) -> list[Window]:
    """Up to `count` blocks of the grid, evenly spread over it."""
    rows, cols = -(-grid.height // BLOCK_PX), -(-grid.width // BLOCK_PX)
    down = min(rows, max(1, round((count * rows / cols) ** 0.5)), count)
    across = min(cols, count // down)
    down = min(rows, count // across)
    chosen = [np.unique(np.linspace(0, n - 1, k).round().astype(int)) for n, k in ((rows, down), (cols, across))]
    return [block_at(*grid.shape, int(row), int(col), side=BLOCK_PX) for row in chosen[0] for col in chosen[1]]


def _feature_blocks(grid: Grid, labels: LabelLayer, count: int, seed: int) -> list[Window]:
    """Up to `count` blocks that hold features, drawn class by class in turn."""
    rng = np.random.default_rng((seed, grid.height, grid.width))
    cells: dict[tuple[int, int], None] = {}
    for polygons in labels.geometries:
        drawn = polygons[rng.permutation(len(polygons))[: 50 * count]]
        own: dict[tuple[int, int], None] = {}
        for row, col in zip(*_positions(drawn, grid), strict=True):
            own.setdefault((int(row) // BLOCK_PX, int(col) // BLOCK_PX))
        cells.update(dict.fromkeys(list(own)[: max(1, count // len(labels.classes))]))
    return [block_at(*grid.shape, row, col, side=BLOCK_PX) for row, col in cells]


def _positions(polygons: Geometries, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and columns of a point inside each polygon, for those that have it on the grid."""
    points = shapely.point_on_surface(polygons[~shapely.is_empty(polygons)])
    rows, cols = grid.rowcol(xs=shapely.get_x(points), ys=shapely.get_y(points))
    inside = (rows >= 0) & (rows < grid.height) & (cols >= 0) & (cols < grid.width)
    return rows[inside], cols[inside]


def _look(scene: Scene, labels: LabelLayer, count: int, seed: int) -> _Seen:
    even = _spread_blocks(scene.grid, count)
    near = [block for block in _feature_blocks(scene.grid, labels, count // 2, seed) if block not in even]
    rng = np.random.default_rng((seed, len(even)))
    counts = dict.fromkeys(("pixels", "valid", "known", "labelled"), 0)
    covered, burnt, usable = (np.zeros(len(labels.classes), np.int64) for _ in range(3))
    values, low, high = [], np.full(len(scene.bands), np.inf), np.full(len(scene.bands), -np.inf)
    with scene.reader() as reader:
        for number, block in enumerate([*even, *near]):
            raster = reader.read(block)
            targets, known = labels.burn(raster.grid)
            usable_px = known & raster.valid
            counts["known"] += int(known.sum())
            burnt += (targets & known).sum(axis=(1, 2), dtype=np.int64)
            usable += (targets & usable_px).sum(axis=(1, 2), dtype=np.int64)
            if number < len(even):
                counts["pixels"] += known.size
                counts["valid"] += int(raster.valid.sum())
                covered += (targets & usable_px).sum(axis=(1, 2), dtype=np.int64)
                counts["labelled"] += int(usable_px.sum())
            places = np.flatnonzero(raster.valid)
            if len(places):
                flat = raster.data.reshape(len(scene.bands), -1)
                inside = flat if len(places) == flat.shape[1] else flat[:, places]
                low, high = np.minimum(low, inside.min(axis=1)), np.maximum(high, inside.max(axis=1))
                values.append(flat[:, rng.choice(places, min(SAMPLE_PX, len(places)), replace=False)])
    sample = np.concatenate(values, axis=1).astype(np.float64) if values else np.zeros((len(scene.bands), 1))
    spread = np.percentile(sample, (5, 50, 95), axis=1)
    whole = counts["pixels"] == scene.grid.height * scene.grid.width
    return _Seen(whole, **counts, covered=covered, burnt=burnt, usable=usable, spread=spread, constant=low == high)


def _shifts(data: Pairs, seed: int) -> Iterator[Suspicion]:
    """Labels beside their objects, scene by scene; none where another class of the scene lies in place."""
    jobs = [(i, k) for i, (_, labels) in enumerate(data) for k in range(len(labels.classes))]
    most = SHIFT_WINDOWS_IN_ALL // LEAST_WINDOWS
    jobs = [jobs[int(at)] for at in np.linspace(0, len(jobs) - 1, min(most, len(jobs)))]
    windows = min(WINDOWS, SHIFT_WINDOWS_IN_ALL // len(jobs))
    found: dict[int, dict[str, Shift]] = {}
    for i, k in jobs:
        scene, labels = data[i]
        if (shift := measure_shift(scene, labels, k, windows=windows, seed=seed)) is not None:
            found.setdefault(i, {})[labels.classes[k]] = shift
    for i, shifts in found.items():
        off = {name: s for name, s in shifts.items() if s.is_certain and s.length >= LEAST_SHIFT_PX}
        if off and not any(shift.is_none for shift in shifts.values()):
            yield _shifted(data[i][0].name, off)


def _shifted(scene: str, off: dict[str, Shift]) -> Suspicion:
    shift = max(off.values(), key=lambda own: own.edges[1])  # sharp outlines: shadows draw others aside
    down, right = "down" if shift.rows >= 0 else "up", "right" if shift.cols >= 0 else "left"
    pixels = f"{abs(shift.rows):.1f} px {down} and {abs(shift.cols):.1f} px {right}"
    ground = ""
    if shift.east_m is not None and shift.north_m is not None:
        east, north = "east" if shift.east_m >= 0 else "west", "north" if shift.north_m >= 0 else "south"
        ground = f", {abs(shift.east_m):.2f} m {east} and {abs(shift.north_m):.2f} m {north}"
    return Suspicion(
        "shifted-labels",
        f"{scene}: labels of {', '.join(off)} lie about {pixels} of the edges they fit{ground}, "
        f"in {shift.agreeing:.0%} of {shift.windows} windows",
        shift.length,
        "move them back or check both CRSs and datums (shadows and leaning walls look so too)",
    )


def _units(data: Pairs, seen: Sequence[_Seen]) -> Iterator[Suspicion]:
    """Scenes whose bands differ in size all together; failing that, in how they are stored."""
    able = [i for i, own in enumerate(seen) if own.level.all()]
    if len(able) > 1:
        levels = np.log([seen[i].level for i in able])
        sizes = np.median(levels - levels.mean(axis=0), axis=1)  # one dark band makes no other sensor
        ratio = float(np.exp(sizes.max() - sizes.min()))
        if ratio > UNITS_FACTOR:
            ends = [able[int(np.argmin(sizes))], able[int(np.argmax(sizes))]]
            said = " but ".join(_range(data[i][0], seen[i]) for i in ends)
            hint = "bring all to one unit, such as reflectance, or train on one kind"
            yield Suspicion("other-units", f"{said}: values differ {ratio:.3g} times", ratio, hint)
            return
    kinds: dict[str, list[str]] = {}
    for scene, _ in data:
        stored = {"float" if s.is_scaled or s.dtype.startswith("float") else s.dtype for s in scene.sources}
        kinds.setdefault("/".join(sorted(stored)), []).append(scene.name)
    if len(kinds) > 1:
        said = ", ".join(f"{kind} in {_some(names)}" for kind, names in kinds.items())
        hint = "make sure that they are of one sensor and in one unit"
        yield Suspicion("other-dtypes", f"bands are stored as {said}", float(len(kinds)), hint)


def _range(scene: Scene, seen: _Seen) -> str:
    low, middle, high = seen.spread[:, 0]
    stored = "/".join(sorted({source.dtype for source in scene.sources}))
    return f"{scene.name} ({stored}) holds {middle:.4g} ({low:.4g} to {high:.4g}) in {scene.bands[0]!r}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _bands(scene: Scene, seen: _Seen, count: int) -> Iterator[Suspicion]:
    """Bands that say nothing, and ground without data."""
    flat = [name for name, constant in zip(scene.bands, seen.constant, strict=True) if constant]
    if flat:
        value = float(seen.spread[1, scene.bands.index(flat[0])])
        hint = "leave it out with --bands, or check the file"
        yield Suspicion("constant-band", f"{scene.name}: band {', '.join(flat)} is {value:.6g} all over", value, hint)
    share = seen.valid / seen.pixels
    if share >= BAND_SHARE:
        return
    own = {name: _valid_share(scene.select([name]), count) for name in scene.bands}
    most = max(own.values())
    blame = {name: part for name, part in own.items() if part < BAND_SHARE * most}
    for name, part in blame.items():
        said = f"{scene.name}: band {name} has data on {part:.1%} of the ground and another on {most:.1%}"
        hint = "no band is used where one lacks: leave it out with --bands, or fill it"
        yield Suspicion("invalid-band", said, part, hint)
    if not blame and share < SCENE_SHARE:
        said = f"{scene.name}: {share:.1%} of the ground has data"
        yield Suspicion("invalid-scene", said, share, "check its nodata value and mask, or cut it to its data")


def _valid_share(scene: Scene, count: int) -> float:
    with scene.reader() as reader:
        shares = [reader.read(block).valid for block in _spread_blocks(scene.grid, count)]
    return float(sum(int(one.sum()) for one in shares) / sum(one.size for one in shares))


def _labelling(scene: Scene, labels: LabelLayer, seen: _Seen) -> Iterator[Suspicion]:
    """Scenes that teach nothing."""
    if not seen.known:
        said = f"{scene.name}: no pixel is labelled where features were looked at"
        hint = f"check the area of interest and what is to be ignored (unlabelled={labels.unlabelled!r})"
        yield Suspicion("unlabelled-scene", said, 0.0, hint, seen.whole)
    elif seen.burnt.any() and not seen.usable.any():
        said = f"{scene.name}: not one of the {int(seen.burnt.sum())} labelled pixels looked at has data"
        hint = "check the scene's nodata and the labels' CRS"
        yield Suspicion("labels-without-data", said, 0.0, hint, seen.whole)


def _class(data: Pairs, seen: Sequence[_Seen], k: int, name: str) -> Iterator[Suspicion]:
    """A class that has no pixel, next to none, or all of them."""
    features = sum(len(labels.geometries[k]) for _, labels in data)
    labelled = sum(own.labelled for own in seen)
    if not any(own.burnt[k] for own in seen):
        empty = _empty(data, k, name, features)
        if empty is not None:
            yield empty
            return
    covered = sum(int(own.covered[k]) for own in seen)
    if labelled and covered / labelled > COVERED:
        said = f"class {name} covers {covered / labelled:.2%} of the labelled ground: there is nothing to tell it from"
        hint = "label what it is not, too, or leave unlabelled ground as background"
        yield Suspicion("class-everywhere", said, covered / labelled, hint)
    share = _share(data, seen, k)
    if 0 < share < RARE:
        said = f"class {name} covers 1 in {1 / share:,.0f} labelled pixels, in {features} features"
        yield Suspicion("class-rare", said, share, "give an aoi around it, label more of it, or raise train.balance")


def _empty(data: Pairs, k: int, name: str, features: int) -> Suspicion | None:
    """The finding that no feature of the class has a pixel, or None when one has."""
    on_scene = [(scene, labels, _touching(labels.geometries[k], scene.grid)) for scene, labels in data]
    count = sum(len(polygons) for _, _, polygons in on_scene)
    if not count:
        said = f"class {name}: none of its {features} features lies on a scene"
        return Suspicion("class-off-scene", said, 0.0, "leave it out with --classes, or give its scene", fatal=True)
    largest = 0.0
    for scene, labels, polygons in on_scene:
        areas = shapely.area(polygons) / abs(scene.grid.transform.determinant)
        tried = polygons[np.argsort(-areas)[:LARGEST_TRIED]]
        single = LabelLayer((name,), (tried,), labels.crs)
        largest = max(largest, float(areas.max(initial=0.0)))
        for row, col in zip(*_positions(tried, scene.grid), strict=True):
            if single.planes(scene.grid.crop(Window(int(col) - 16, int(row) - 16, 32, 32))).any():
                return None
    said = f"class {name}: none of its {count} features holds a pixel's centre, the largest is {largest:.2g} pixels"
    hint = "give finer imagery or --gsd, or leave it out with --classes"
    return Suspicion("class-below-pixel", said, largest, hint, fatal=count <= LARGEST_TRIED)


def _touching(polygons: Geometries, grid: Grid) -> Geometries:
    footprint = grid.footprint()
    shapely.prepare(footprint)
    found: Geometries = polygons[shapely.intersects(footprint, polygons)]
    return found


def _share(data: Pairs, seen: Sequence[_Seen], k: int) -> float:
    """Share of the labelled ground that features of the class cover, by their areas."""
    covered = ground = 0.0
    for (scene, labels), own in zip(data, seen, strict=True):
        outline, polygons = scene.grid.footprint(), _touching(labels.geometries[k], scene.grid)
        shapely.prepare(outline)
        within = shapely.contains_properly(outline, polygons)
        area = float(shapely.area(polygons[within]).sum())
        area += float(shapely.area(shapely.intersection(polygons[~within], outline)).sum())
        covered += area / abs(scene.grid.transform.determinant)
        ground += own.labelled / own.pixels * scene.grid.height * scene.grid.width
    return covered / ground if ground else 0.0
