"""Chips: training windows drawn straight from scenes and vector labels, and the split that keeps them honest.

No chip is ever exported: chip number i of a run with a given seed is a pure function of (seed, i),
so that workers, ranks and resumed runs all draw the same ones. Scenes are decoded block by block
into a bounded cache, because random windows on a compressed file cost three times a sequential
pass when every chip decodes its blocks again.

Validation is a set of whole rectangles of ground. They and a gap around them are blanked out of
training chips, so that not a pixel of them is learnt from, however small the scene. A split of
shuffled chips would put neighbours, even overlapping ones, on both sides and flatter the score.
"""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.crs import describe
from satseg.errors import LabelError, UsageError
from satseg.grid import overlap, slices
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import Scene, SceneReader

BLOCK_PX = 256
"""Side of a cached block: a few file blocks, and at most nine of them under a 512-pixel chip."""
DRAWS_PER_CHIP = 100
"""Positions tried before a mostly blank chip is taken after all; rejection is rare."""
LEAST_FREE = 0.5
"""Share of a chip that must be free of validation ground."""
SMALLEST_BLOCK_PX = 32
MOST_HELD = 0.6
"""Share of a class's features that validation may take before another block is preferred."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ground:
    """A labelled scene at its working resolution, with the part of it kept for validation.

    Parameters
    ----------
    scene : Scene
        Bands and grid that the network will see.
    labels : LabelLayer
        Classes and unlabelled areas, in the scene's CRS.
    held : tuple of Window
        Rectangles of the scene's grid that are not learnt from.
    gap : int
        Pixels around those rectangles that are not learnt from either.
    barred : tuple of Window
        Where this scene shows ground that another scene holds for validation; not learnt from.
    """

    scene: Scene
    labels: LabelLayer
    held: tuple[Window, ...] = ()
    gap: int = 0
    barred: tuple[Window, ...] = ()

    def closed(self, window: Window) -> list[Window]:
        """Parts of `window` that are held for validation, or too near to it."""
        parts = (overlap(window, grown(held, self.gap)) for held in (*self.held, *self.barred))
        return [part for part in parts if part is not None]

    def free_share(self, window: Window) -> float:
        """Share of `window` that may be learnt from, 0..1 (overlapping gaps count twice)."""
        closed = float(sum(part.height * part.width for part in self.closed(window)))
        return 1 - closed / float(window.height * window.width)


@dataclass(frozen=True, slots=True)
class Chip:
    """One training sample: native-valued bands and the truth about them.

    Attributes
    ----------
    image : ndarray (C, S, S), the scene's dtype; 0 where invalid
    valid : ndarray of bool (S, S)
    target : ndarray of uint8 (K, S, S), 0 or 1
    labelled : ndarray of bool (S, S): where the truth is known
    """

    image: NDArray[Any]
    valid: NDArray[np.bool_]
    target: NDArray[np.uint8]
    labelled: NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        """Bytes held by the four arrays."""
        return self.image.nbytes + self.valid.nbytes + self.target.nbytes + self.labelled.nbytes


class ChipReader:
    """Reads chips of one `Ground`, through a bounded cache of decoded and burnt blocks.

    Parameters
    ----------
    ground : Ground
    cache_bytes : int
        The least recently used blocks are dropped beyond it.
    blank : bool
        Whether ground held for validation is made invalid and unlabelled: for training.
    """

    def __init__(self, ground: Ground, *, cache_bytes: int, blank: bool = False) -> None:
        self.ground = ground
        self._blank = blank
        self._reader: SceneReader = ground.scene.reader()
        self._cache: OrderedDict[tuple[int, int], Chip] = OrderedDict()
        self._room = cache_bytes

    def read(self, window: Window) -> Chip:
        """The chip at `window`, which may overhang the scene; outside is invalid and unlabelled."""
        chip = self._empty(window)
        for row in range(window.row_off // BLOCK_PX, -(-(window.row_off + window.height) // BLOCK_PX)):
            for col in range(window.col_off // BLOCK_PX, -(-(window.col_off + window.width) // BLOCK_PX)):
                place = Window(col * BLOCK_PX, row * BLOCK_PX, BLOCK_PX, BLOCK_PX)
                if overlap(place, self.ground.scene.grid.window) is not None:
                    _paste(self._block(row, col, place), place, chip, window)
        for part in self.ground.closed(window) if self._blank else ():
            rows, cols = slices(part, window)
            chip.image[:, rows, cols] = 0
            chip.valid[rows, cols] = chip.labelled[rows, cols] = False
        return chip

    def _empty(self, window: Window) -> Chip:
        shape = (window.height, window.width)
        scene, classes = self.ground.scene, self.ground.labels.classes
        return Chip(
            np.zeros((len(scene.bands), *shape), scene.dtype),
            np.zeros(shape, bool),
            np.zeros((len(classes), *shape), np.uint8),
            np.zeros(shape, bool),
        )

    def _block(self, row: int, col: int, place: Window) -> Chip:
        if (row, col) in self._cache:
            self._cache.move_to_end((row, col))
            return self._cache[row, col]
        raster = self._reader.read(place)
        target, labelled = self.ground.labels.burn(raster.grid)
        block = Chip(raster.data, raster.valid, target, labelled & raster.valid)
        self._cache[row, col] = block
        self._room -= block.nbytes
        while self._room < 0 and len(self._cache) > 1:
            self._room += self._cache.popitem(last=False)[1].nbytes
        return block

    def close(self) -> None:
        """Let go of file handles and blocks."""
        self._reader.close()
        self._cache.clear()


def _paste(source: Chip, place: Window, target: Chip, window: Window) -> None:
    common = overlap(place, window)
    if common is None:
        return
    from_rows, from_cols = slices(common, place)
    to_rows, to_cols = slices(common, window)
    target.image[:, to_rows, to_cols] = source.image[:, from_rows, from_cols]
    target.valid[to_rows, to_cols] = source.valid[from_rows, from_cols]
    target.target[:, to_rows, to_cols] = source.target[:, from_rows, from_cols]
    target.labelled[to_rows, to_cols] = source.labelled[from_rows, from_cols]


class ChipSampler:
    """Where chip number i lies: uniform over the ground, or around a feature of a class drawn evenly.

    Parameters
    ----------
    grounds : sequence of Ground
    size : int
        Side of a chip in pixels.
    seed : int
    balance : float, 0..1
        Share of chips centred near a random feature of a random class, so that a class covering
        0.01 % of the area is seen; the rest are uniform over the ground.
    """

    def __init__(self, grounds: Sequence[Ground], *, size: int, seed: int, balance: float) -> None:
        self.grounds = tuple(grounds)
        self.size, self.seed, self.balance = size, seed, balance
        areas = np.array([g.scene.grid.height * g.scene.grid.width for g in self.grounds], float)
        self._shares = areas / areas.sum()
        self._anchors = _anchors_by_class(self.grounds)

    def place(self, number: int) -> tuple[int, Window]:
        """The index of the ground and the window of chip `number`."""
        rng = np.random.default_rng((self.seed, number))
        near_feature = bool(self._anchors) and rng.random() < self.balance
        for _ in range(DRAWS_PER_CHIP):
            index, row, col = self._near_feature(rng) if near_feature else self._anywhere(rng)
            window = self._window(self.grounds[index], row, col)
            if self.grounds[index].free_share(window) >= LEAST_FREE:
                break
        return index, window

    def _anywhere(self, rng: np.random.Generator) -> tuple[int, float, float]:
        index = int(rng.choice(len(self.grounds), p=self._shares))
        grid = self.grounds[index].scene.grid
        return index, rng.uniform(0, grid.height), rng.uniform(0, grid.width)

    def _near_feature(self, rng: np.random.Generator) -> tuple[int, float, float]:
        of_class = self._anchors[int(rng.integers(len(self._anchors)))]
        index, row, col = of_class[int(rng.integers(len(of_class)))]
        jitter = rng.uniform(-self.size / 2, self.size / 2, 2)
        return int(index), row + jitter[0], col + jitter[1]

    def _window(self, ground: Ground, row: float, col: float) -> Window:
        """Window centred at (row, col), moved inside the scene as far as the scene is large enough."""
        grid = ground.scene.grid
        top = min(max(math.floor(row - self.size / 2), 0), max(grid.height - self.size, 0))
        left = min(max(math.floor(col - self.size / 2), 0), max(grid.width - self.size, 0))
        return Window(left, top, self.size, self.size)


def _anchors_by_class(grounds: Sequence[Ground]) -> list[NDArray[np.float64]]:
    """Per class with any feature: (n, 3) of ground index, row, col of a point inside each."""
    classes = grounds[0].labels.classes if grounds else ()
    found: list[list[NDArray[np.float64]]] = [[] for _ in classes]
    for index, ground in enumerate(grounds):
        grid = ground.scene.grid
        for k, geometries in enumerate(ground.labels.geometries):
            points = shapely.point_on_surface(geometries[~shapely.is_empty(geometries)])
            rows, cols = grid.rowcol(xs=shapely.get_x(points), ys=shapely.get_y(points))
            inside = (rows >= 0) & (rows < grid.height) & (cols >= 0) & (cols < grid.width)
            rows, cols = rows[inside], cols[inside]
            closed = [bool(ground.closed(Window(int(c), int(r), 1, 1))) for r, c in zip(rows, cols, strict=True)]
            free = ~np.array(closed, dtype=bool)
            found[k].append(np.column_stack([np.full(free.sum(), index), rows[free], cols[free]]))
    merged = [np.concatenate(parts) for parts in found if parts]
    return [anchors for anchors in merged if len(anchors)]


def grown(window: Window, margin: int) -> Window:
    """`window` with `margin` pixels more on every side."""
    return Window(
        window.col_off - margin, window.row_off - margin, window.width + 2 * margin, window.height + 2 * margin
    )


def hold_out(ground: Ground, *, share: float, chip: int, seed: int) -> Ground:
    """`ground` with about `share` of its area held as whole blocks that carry labels, and a gap.

    The scene is cut into blocks of at most eight chips a side, three of which make up `share`.
    Blocks are held one by one, each time the one that brings every class nearest to `share` of its
    features (ties in a seeded order), so that rare classes are both learnt and scored. The gap is
    a quarter of a chip or block, whichever is smaller.

    Raises
    ------
    UsageError
        The scene is too small to be cut.
    """
    area = _labelled_window(ground)
    block = int(np.clip(math.sqrt(area.height * area.width * share / 3), SMALLEST_BLOCK_PX, 8 * chip))
    rows, cols = max(1, round(area.height / block)), max(1, round(area.width / block))
    if rows * cols < 3:
        raise UsageError(
            f"{ground.scene.name}: labels on {area.height} x {area.width} pixels are too few to hold part of them "
            "for validation",
            hint="give --valid-data",
            code="E-TRN-003",
        )
    windows = [_cell(area, rows, cols, place) for place in range(rows * cols)]
    features = _features_in(ground, windows)
    chosen = _choose(features, [w.height * w.width for w in windows], share=share, seed=seed)
    if not features[chosen].any():
        log.warning("%s: no label lies on the ground held for validation; give --valid-data", ground.scene.name)
    return replace(ground, held=tuple(windows[i] for i in chosen), gap=min(chip, block) // 4)


def _labelled_window(ground: Ground) -> Window:
    """The part of the scene around its labels: blocks elsewhere would hold nothing to score."""
    grid = ground.scene.grid
    left, bottom, right, top = shapely.total_bounds(np.concatenate(ground.labels.geometries))
    if not (left < right and bottom < top):
        return grid.window
    rows, cols = grid.rowcol(xs=[left, right, right, left], ys=[bottom, bottom, top, top])
    row, col = math.floor(rows.min()), math.floor(cols.min())
    around = Window(col, row, math.ceil(cols.max()) - col, math.ceil(rows.max()) - row)
    return overlap(around, grid.window) or grid.window


def _choose(features: NDArray[np.float64], areas: Sequence[int], *, share: float, seed: int) -> list[int]:
    """Indexes of blocks that together hold about `share` of the area and of each class's features.

    `features` is (blocks, classes) counts.
    """
    shares = features / np.maximum(features.sum(axis=0), 1)
    order = np.random.default_rng((seed, len(areas))).permutation(len(areas))
    chosen: list[int] = []
    while not chosen or sum(areas[i] for i in chosen) < (share - 0.02) * sum(areas):
        held = shares[chosen].sum(axis=0)
        miss = [np.abs(held + shares[i] - share).sum() + _unfit(held + shares[i], shares[i]) for i in order]
        miss = [np.inf if i in chosen else cost for i, cost in zip(order, miss, strict=True)]
        chosen.append(int(order[int(np.argmin(miss))]))
    return chosen


def _unfit(held: NDArray[np.float64], block: NDArray[np.float64]) -> float:
    """Cost of holding a block without any label, or one that leaves a class too little to learn from."""
    return 100.0 * (not block.any()) + 10.0 * float((held > MOST_HELD).sum())


def _cell(area: Window, rows: int, cols: int, place: int) -> Window:
    row, col = divmod(place, cols)
    top, bottom = area.height * row // rows, area.height * (row + 1) // rows
    left, right = area.width * col // cols, area.width * (col + 1) // cols
    return Window(area.col_off + left, area.row_off + top, right - left, bottom - top)


def _features_in(ground: Ground, windows: Sequence[Window]) -> NDArray[np.float64]:
    """(windows, classes): how many features of each class touch each window."""
    outlines = [ground.scene.grid.crop(window).footprint() for window in windows]
    counts = np.zeros((len(windows), len(ground.labels.classes)))
    for k, geometries in enumerate(ground.labels.geometries):
        touched, _ = shapely.STRtree(geometries).query(outlines, predicate="intersects")
        counts[:, k] = np.bincount(touched, minlength=len(windows))
    return counts


def bar_shared_ground(grounds: Sequence[Ground]) -> tuple[Ground, ...]:
    """Return `grounds` with what each shows of the ground that another holds barred from learning."""
    return tuple(replace(ground, barred=tuple(_shown_of_others(ground, grounds))) for ground in grounds)


def _shown_of_others(ground: Ground, grounds: Sequence[Ground]) -> Iterator[Window]:
    grid = ground.scene.grid
    for other in grounds:
        source = other.scene.grid
        if other is ground or grid.crs is None or source.crs is None:
            continue
        for held in other.held:
            outline = shapely.get_coordinates(source.crop(held).footprint(grid.crs))
            rows, cols = grid.rowcol(xs=outline[:, 0], ys=outline[:, 1])
            row, col = math.floor(rows.min()), math.floor(cols.min())
            shown = Window(col, row, math.ceil(cols.max()) - col, math.ceil(rows.max()) - row)
            if overlap(shown, grid.window) is not None:
                yield shown


def refuse_leaks(training: Sequence[Ground], validation: Sequence[Ground]) -> None:
    """Raise when a validation scene lies on the ground of a training scene.

    Raises
    ------
    LabelError
        With the two names and the share of the validation scene that would leak.
    """
    for held in validation:
        outline = held.scene.grid.footprint()
        for ground in training:
            if (held.scene.grid.crs is None) != (ground.scene.grid.crs is None):
                continue
            other = ground.scene.grid.footprint(held.scene.grid.crs)
            same_files = {*map(os.path.realpath, held.scene.paths)} & {*map(os.path.realpath, ground.scene.paths)}
            placed = held.scene.grid.crs is not None
            share = 1.0 if same_files else outline.intersection(other).area / outline.area if placed else 0.0
            if share > 1e-6:
                raise LabelError(
                    f"validation scene {held.scene.name} shares {share:.1%} of its ground with training scene "
                    f"{ground.scene.name} ({describe(held.scene.grid.crs)})",
                    hint="validate on other ground, or leave --valid-data out for a blocked split",
                    code="E-TRN-004",
                )
