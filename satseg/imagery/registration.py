"""Registration: products of one place laid over each other, each moved as a whole to where the finest product lies.

Files on one grid are delivered together and move as one product; where all are on one grid, each is by itself.
From fine to coarse each product is compared with all that lie right already, so that far infrared has near infrared
to be compared with, not visible light alone. What is found moves the product's grid and nothing else: its pixels are
resampled once, as they would have been, and a window is still the crop of the whole. A place that is not clear of
chance, that windows do not agree on, or that cannot be measured is not used: the product stays where its file says,
and the scene says so.

Rejected: warping the pixels, which resamples them twice; and using what was found whatever it is worth, since the fits
that fail are off by hundreds of pixels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from satseg.errors import CRSError
from satseg.grid import Grid
from satseg.imagery.alignment import LEAST_SIDE, LEAST_WINDOWS, Alignment, Motion, align
from satseg.imagery.mapping import Mover, Shift, relate
from satseg.imagery.sources import BandSource, finest_grid

if TYPE_CHECKING:
    from satseg.imagery.scene import Scene

MOST_BANDS = 8
"""Bands of either side that are compared; of more, as many evenly over their order."""
MOST_SECOND = 0.75
"""Height of the next best place, in parts of the peak's: of chance places the best two are nearly alike."""
LEAST_AGREEING = 0.5
MOST_PARTED_PX = 2.0
MOST_ERROR_PX = 0.3
KEPT_PX = 0.1
"""Products that share their pixels with the scene keep them where they lie off by less: resampling would cost more."""
DIGITS = 3
"""Of a pixel: what is found is rounded, so that another machine finds the same."""
TURN_DIGITS = 7


@dataclass(frozen=True, slots=True)
class Registration:
    """How far a product lay from the scene's finest one, and whether that was put right.

    Attributes
    ----------
    paths : tuple of str
        Its files.
    accepted : bool
        False: nothing reliable was found, and the product stays where its files say.
    rows, cols : float
        Pixels of its own that it lay down and right of where it belongs, now put right; 0 where nothing is moved.
    turn_deg : float
        Degrees that it was turned by, from east to north, about its middle.
    scene_rows, scene_cols : float
        The shift in pixels of the finest product.
    east_m, north_m : float or None
        The shift on the ground, along the axes of a metric CRS; None without a CRS.
    error : float or None
        Standard error of the shift in pixels of the product (see `satseg.imagery.alignment`); None where unknown.
    windows : int
        That were compared.
    reason : str
        In words: what was found, or why that is not used.
    """

    paths: tuple[str, ...]
    accepted: bool
    rows: float = 0.0
    cols: float = 0.0
    turn_deg: float = 0.0
    scene_rows: float = 0.0
    scene_cols: float = 0.0
    east_m: float | None = None
    north_m: float | None = None
    error: float | None = None
    windows: int = 0
    reason: str = ""

    @property
    def is_moved(self) -> bool:
        """Whether the product lies elsewhere than its files say."""
        return bool(self.rows or self.cols or self.turn_deg)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return {**asdict(self), "paths": list(self.paths)}

    def __str__(self) -> str:
        return f"{', '.join(self.paths)}: {'' if self.accepted else 'not registered: '}{self.reason}"


@dataclass(frozen=True, slots=True)
class _Product:
    """Bands that move together."""

    grid: Grid
    sources: tuple[BandSource, ...] = field(default=())

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source.path for source in self.sources))


def registered(scene: Scene, *, turning: bool = False) -> Scene:
    """Return `scene` with every product laid over the finest one; reads some windows of each.

    What is found does not depend on the grid that the scene is read on. A scene of one file, and one that has been
    registered, is returned as it is.

    Parameters
    ----------
    turning : bool
        Whether products may be turned too, by what the windows say.

    Returns
    -------
    Scene
        With a `Registration` of each product but the finest; those that failed are among its warnings.

    Raises
    ------
    InputError
        Blocks of a file are damaged.
    GridError, CRSError
        A product that was moved has no ground in common with the scene any more.
    """
    if scene.registrations or len(scene.paths) == 1:
        return scene
    lead, *others = _products(scene)
    stored = replace(scene, grid=lead.grid, indices=(), shown=())
    settled, found = list(lead.sources), []
    moved: dict[str, Grid] = {}
    for product in others:
        motion, one = _register(stored, tuple(settled), product, turning=turning)
        found.append(one)
        grid = motion.undone(product.grid)
        sources = product.sources
        if one.is_moved:
            moved |= dict.fromkeys(product.paths, grid)
            sources = tuple(_at(source, grid) for source in sources)
        if one.accepted:
            settled += sources
    sources = tuple(_at(source, moved[source.path]) if source.path in moved else source for source in scene.sources)
    said = tuple(str(each) for each in found if not each.accepted)
    result = replace(scene, sources=sources, registrations=tuple(found), warnings=(*scene.warnings, *said))
    result.check_ground()
    return result


def _at(source: BandSource, grid: Grid) -> BandSource:
    return replace(source, file=replace(source.file, grid=grid))


def _products(scene: Scene) -> list[_Product]:
    """What moves together, from fine to coarse; one on the scene's grid leads, else one of the finest grid."""
    grids: dict[str, Grid] = {}
    for source in scene.sources:
        like = (grid for grid in grids.values() if grid.matches(source.grid))
        grids.setdefault(source.path, next(like, source.grid))
    alone = len({id(grid) for grid in grids.values()}) == 1
    groups: dict[object, list[BandSource]] = {}
    for source in scene.sources:
        groups.setdefault(source.path if alone else id(grids[source.path]), []).append(source)
    products = [_Product(own[0].grid, tuple(own)) for own in groups.values()]
    finest = finest_grid([source.file for source in scene.sources])
    first = next(product for grid in (scene.grid, finest) for product in products if product.grid.matches(grid))
    rest = [product for product in products if product is not first]
    return [first, *sorted(rest, key=lambda product: _coarseness(product.grid, first.grid))]


def _coarseness(grid: Grid, finest: Grid) -> float:
    """Pixels of `finest` that a pixel of `grid` is long."""
    mapping = relate(grid, finest)
    return 1.0 if isinstance(mapping, Shift) else 1 / math.sqrt(math.prod(mapping.ratios))


def _register(
    scene: Scene, settled: tuple[BandSource, ...], product: _Product, *, turning: bool
) -> tuple[Motion, Registration]:
    """How `product` lies against the `settled` bands of `scene`, on the grid that leads, and what is made of it."""
    if min(product.grid.shape) < LEAST_SIDE:
        size = f"{product.grid.height} x {product.grid.width}"
        return _failed(product, None, f"{size} px are too few to find a place by, {LEAST_SIDE} a side are needed")
    ours = replace(scene, sources=_compared(product.sources), grid=product.grid)
    alignment = align(replace(scene, sources=_compared(settled)), ours, turning=turning)
    fault = _fault(alignment)
    if alignment is None or fault is not None:
        return _failed(product, alignment, fault or "")
    motion = Motion(
        round(alignment.motion.rows, DIGITS), round(alignment.motion.cols, DIGITS),
        round(alignment.motion.turn, TURN_DIGITS),
    )  # fmt: skip
    length = math.hypot(motion.rows, motion.cols)
    error = round(alignment.error, DIGITS)
    known: dict[str, Any] = {"error": error, "windows": alignment.windows}
    if length < KEPT_PX and not motion.turn and isinstance(relate(product.grid, scene.grid), Shift):
        reason = f"{length:.2f} +- {error:.2f} px off, and left as it is to keep its pixels"
        return Motion(), Registration(product.paths, True, reason=reason, **known)
    return motion, _moved(scene.grid, product, motion, known)


def _moved(grid: Grid, product: _Product, motion: Motion, known: dict[str, Any]) -> Registration:
    middle = np.array([product.grid.height / 2, product.grid.width / 2])
    ends = np.stack([middle, middle + np.array([motion.rows, motion.cols])], axis=1)
    scene_rows, scene_cols = np.diff(Mover(grid, product.grid).move(*ends), axis=1)[:, 0].tolist()
    try:
        east_m, north_m = product.grid.step_m(rows=motion.rows, cols=motion.cols)
    except CRSError:  # a CRS whose metres cannot be told
        east_m, north_m = None, None
    shift = f"lay {motion.rows:+.2f} rows, {motion.cols:+.2f} columns +- {known['error']:.2f} px of its own off"
    turn = math.degrees(motion.turn)
    return Registration(
        product.paths, True, motion.rows, motion.cols, turn, scene_rows, scene_cols, east_m, north_m,
        reason=shift + (f", turned by {turn:.3f} degrees" if turn else ""), **known,
    )  # fmt: skip


def _failed(product: _Product, alignment: Alignment | None, reason: str) -> tuple[Motion, Registration]:
    windows = 0 if alignment is None else alignment.windows
    return Motion(), Registration(product.paths, False, windows=windows, reason=reason)


def _fault(alignment: Alignment | None) -> str | None:
    """Why `alignment` cannot be relied on; None where it can."""
    if alignment is None:
        return f"fewer than {LEAST_WINDOWS} windows show structure in it and in the finer products"
    motion, reach = alignment.motion, alignment.reach
    if alignment.second > MOST_SECOND or alignment.agreeing < LEAST_AGREEING:
        return f"no place within {reach} px suits it clearly better than others"
    if max(abs(motion.rows), abs(motion.cols)) > reach - 1:
        return f"its place is at the edge of the {reach} px looked at, or beyond"
    if alignment.parted > MOST_PARTED_PX:
        return f"windows disagree: halves of them find places {alignment.parted:.1f} px apart"
    if not alignment.error <= MOST_ERROR_PX:
        return f"windows disagree on its place within {reach} px"
    return None


def _compared(sources: tuple[BandSource, ...]) -> tuple[BandSource, ...]:
    """Up to `MOST_BANDS` of `sources`, resampled by the way that keeps means."""
    chosen = np.unique(np.linspace(0, len(sources) - 1, MOST_BANDS).round().astype(int))
    return tuple(replace(sources[i], resampling="auto") for i in chosen)
