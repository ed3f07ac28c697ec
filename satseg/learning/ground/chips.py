"""Chips: training samples read straight from scenes and vector labels, turned and zoomed as they are read.

No chip is ever exported. Scenes are decoded and labels burnt block by block into a bounded cache, because random
windows on a compressed file cost many times a sequential pass when every chip decodes its blocks again; the
grounds of a run share one cache, in which what was used last stays. Where chips lie is `sampling`.
Rejected: a cache per ground, of which a hundred scenes would each get a hundredth, needed or not.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.grid import overlap, slices
from satseg.imagery.scene import SceneReader
from satseg.learning.ground.hardness import NOWHERE
from satseg.learning.ground.split import Ground
from satseg.learning.ground.warping import View, warp

BLOCK_PX, READ_PX = 256, 512
"""Side of a cached block, at most nine of them under a 512-pixel chip; and of the square around it that is read at
once: files have blocks of up to 512 pixels, and burning labels costs more by the window than by the pixel."""


@dataclass(frozen=True, slots=True)
class Chip:
    """One training sample: bands in the scene's units, and the truth about them.

    Attributes
    ----------
    image : ndarray (C, S, S), the scene's dtype, float32 of a view; 0 where invalid
    valid : ndarray of bool (S, S)
    target : ndarray of uint8 (K, S, S), 0 or 1: of the classes, then of cores
    labelled : ndarray of bool (S, S): where the truth is known
    cell : int
        Of the ground, that errors in this chip are noted for (`hardness`).
    """

    image: NDArray[Any]
    valid: NDArray[np.bool_]
    target: NDArray[np.uint8]
    labelled: NDArray[np.bool_]
    cell: int = NOWHERE

    @property
    def nbytes(self) -> int:
        """Bytes held by the four arrays."""
        return self.image.nbytes + self.valid.nbytes + self.target.nbytes + self.labelled.nbytes


class Blocks:
    """Decoded and burnt blocks of any grounds; the least recently used are dropped beyond `room` bytes."""

    def __init__(self, room: int) -> None:
        self._kept: OrderedDict[tuple[int, int, int], Chip] = OrderedDict()
        self._room = room

    def get(self, key: tuple[int, int, int]) -> Chip | None:
        """Return the block of (reader, row, col) if it is here."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: tuple[int, int, int], block: Chip) -> None:
        """Keep `block`, in place of the ones longest unused."""
        if key in self._kept:
            self._room += self._kept.pop(key).nbytes
        self._kept[key] = block
        self._room -= block.nbytes
        while self._room < 0 and len(self._kept) > 1:
            self._room += self._kept.popitem(last=False)[1].nbytes


class ChipReader:
    """Reads chips of one `Ground`, through a bounded cache of decoded and burnt blocks.

    Parameters
    ----------
    ground : Ground
    cache_bytes : int
        Of blocks of its own, unless it shares those of other readers.
    blank : bool
        Whether ground held for validation is made invalid and unlabelled: for training.
    shared : (Blocks, int), optional
        Blocks kept together with those of other readers, and this reader's number among them.
    """

    def __init__(
        self, ground: Ground, *, cache_bytes: int = 0, blank: bool = False, shared: tuple[Blocks, int] | None = None
    ) -> None:
        self.ground = ground
        self._blank = blank
        self._reader: SceneReader = ground.scene.reader()
        self._blocks, self._number = shared or (Blocks(cache_bytes), 0)

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
        kept = self._blocks.get((self._number, row, col))
        if kept is not None:
            return kept
        for corner, block in self._read_around(place):
            self._blocks.put((self._number, *corner), block)
            if corner == (row, col):
                wanted = block
        return wanted

    def _read_around(self, place: Window) -> list[tuple[tuple[int, int], Chip]]:
        """All blocks of the square of `READ_PX` that a block lies in, read and burnt at once; (row, col) of each."""
        left, top = (int(at) // READ_PX * READ_PX for at in (place.col_off, place.row_off))
        square = overlap(Window(left, top, READ_PX, READ_PX), self.ground.scene.grid.window) or place
        raster = self._reader.read(square)
        target, labelled = self.ground.labels.burn(raster.grid)
        if self.ground.cores is not None:
            target = np.concatenate([target, self.ground.cores.planes(raster.grid)])
        read = Chip(raster.data, raster.valid, target, labelled & raster.valid)
        found = []
        for row in range(top, top + square.height, BLOCK_PX):
            for col in range(left, left + square.width, BLOCK_PX):
                block = self._empty(Window(col, row, BLOCK_PX, BLOCK_PX))
                _paste(read, square, block, Window(col, row, BLOCK_PX, BLOCK_PX))
                found.append(((row // BLOCK_PX, col // BLOCK_PX), block))
        return found

    def close(self) -> None:
        """Let go of file handles; a later read opens them again."""
        self._reader.close()


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
