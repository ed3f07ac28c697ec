"""Chips: training samples drawn straight from scenes and vector labels, turned and zoomed as they are read.

No chip is ever exported: chip number i of a run with a given seed is a pure function of (seed, i),
so that workers, ranks and resumed runs all draw the same ones. Scenes are decoded block by block
into a bounded cache, because random windows on a compressed file cost three times a sequential
pass when every chip decodes its blocks again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.grid import overlap, slices
from satseg.imagery.scene import SceneReader
from satseg.learning.augment import draw_turn
from satseg.learning.split import Ground
from satseg.learning.warping import View, warp
from satseg.run import AugmentOptions

BLOCK_PX = 256
"""Side of a cached block: a few file blocks, and at most nine of them under a 512-pixel chip."""
DRAWS_PER_CHIP = 100
"""Positions tried before a mostly blank chip is taken after all; rejection is rare."""
LEAST_FREE = 0.5
"""Share of a chip that must be free of validation ground."""


@dataclass(frozen=True, slots=True)
class Chip:
    """One training sample: bands in the scene's units, and the truth about them.

    Attributes
    ----------
    image : ndarray (C, S, S), the scene's dtype, float32 of a view; 0 where invalid
    valid : ndarray of bool (S, S)
    target : ndarray of uint8 (K, S, S), 0 or 1: of the classes, then of cores
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

    def view(self, view: View, *, size: int) -> Chip:
        """The chip of `size` pixels a side that `view` shows; a scene smaller than that is mirrored at its edges."""
        place = overlap(view.window(size), self.ground.scene.grid.window) or self.ground.scene.grid.window
        seen = self.read(place)
        return Chip(*warp(seen.image, seen.valid, seen.target, seen.labelled, view, place=place, size=size))

    def _empty(self, window: Window) -> Chip:
        shape = (window.height, window.width)
        scene = self.ground.scene
        return Chip(
            np.zeros((len(scene.bands), *shape), scene.dtype),
            np.zeros(shape, bool),
            np.zeros((self.ground.planes, *shape), np.uint8),
            np.zeros(shape, bool),
        )

    def _block(self, row: int, col: int, place: Window) -> Chip:
        if (row, col) in self._cache:
            self._cache.move_to_end((row, col))
            return self._cache[row, col]
        raster = self._reader.read(place)
        target, labelled = self.ground.labels.burn(raster.grid)
        if self.ground.cores is not None:
            target = np.concatenate([target, self.ground.cores.planes(raster.grid)])
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
    """Which view chip number i shows: uniform over the ground, or around a feature of a class drawn evenly.

    Parameters
    ----------
    grounds : sequence of Ground
    size : int
        Side of a chip in pixels.
    seed : int
    balance : float, 0..1
        Share of chips centred near a random feature of a random class, so that a class covering
        0.01 % of the area is seen; the rest are uniform over the ground.
    changes : AugmentOptions
        How chips are turned and zoomed.
    """

    def __init__(
        self, grounds: Sequence[Ground], *, size: int, seed: int, balance: float, changes: AugmentOptions
    ) -> None:
        self.grounds = tuple(grounds)
        self.size, self.seed, self.balance, self.changes = size, seed, balance, changes
        areas = np.array([g.scene.grid.height * g.scene.grid.width for g in self.grounds], float)
        self._shares = areas / areas.sum()
        self._anchors = _anchors_by_class(self.grounds)

    def place(self, number: int) -> tuple[int, View]:
        """The index of the ground and the view of chip `number`."""
        rng = np.random.default_rng((self.seed, number))
        near_feature = bool(self._anchors) and rng.random() < self.balance
        turn = draw_turn(self.changes, rng)
        height, width = View.turned(0, 0, **turn).extent(self.size)
        for _ in range(DRAWS_PER_CHIP):
            index, row, col = self._near_feature(rng, height, width) if near_feature else self._anywhere(rng)
            grid = self.grounds[index].scene.grid
            row, col = _inside(row, height, grid.height), _inside(col, width, grid.width)
            view = View.turned(row, col, **turn)
            if self.grounds[index].free_share(view.window(self.size)) >= LEAST_FREE:
                break
        return index, view

    def _anywhere(self, rng: np.random.Generator) -> tuple[int, float, float]:
        index = int(rng.choice(len(self.grounds), p=self._shares))
        grid = self.grounds[index].scene.grid
        return index, rng.uniform(0, grid.height), rng.uniform(0, grid.width)

    def _near_feature(self, rng: np.random.Generator, height: float, width: float) -> tuple[int, float, float]:
        of_class = self._anchors[int(rng.integers(len(self._anchors)))]
        index, row, col = of_class[int(rng.integers(len(of_class)))]
        return int(index), row + rng.uniform(-height / 2, height / 2), col + rng.uniform(-width / 2, width / 2)


def _inside(centre: float, extent: float, size: int) -> float:
    """`centre` moved so that a view of `extent` pixels lies inside `size`, as far as it fits; to whole pixels."""
    low, high = extent / 2, size - extent / 2
    inside = size / 2 if low > high else centre
    return float(np.clip(np.floor(inside - low) + low, min(low, high), max(low, high)))


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
