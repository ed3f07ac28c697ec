"""Scores of the ground held for validation, kept as the last validation makes them: what rules are fitted on.

So the ground is read and predicted once. Scores are put together for each held block, for features cross the reads of
validation. Rejected: `satseg.predict` on each block, ten seconds on the 75 blocks of 25 small tiles, most of it
for what lies around them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch.utils.data import DataLoader

from satseg.grid import overlap, slices
from satseg.learning.ground.chips import Chip
from satseg.learning.ground.grounds import Prepared
from satseg.learning.ground.split import Ground
from satseg.learning.networks.network import Network
from satseg.learning.training.feed import HeldTiles
from satseg.learning.training.judged import Judged
from satseg.raster import Raster


def held_scores(
    prepared: Prepared, tiles: DataLoader[Chip], network: Network, *, classes: Sequence[str]
) -> HeldScores:
    """Return what keeps the scores of `tiles` as `validation_tiles` makes them."""
    assert isinstance(tiles.dataset, HeldTiles)
    return HeldScores(prepared.validation, tiles.dataset, names=classes, crop=network.crop)


class HeldScores:
    """Takes the reads of one validation, gives back what they say of each held block.

    Parameters
    ----------
    grounds : sequence of Ground
        What `tiles` cover.
    tiles : HeldTiles
        Of one rank alone.
    names : sequence of str
        Of the classes.
    crop : int
        Pixels that the network leaves out on each side of a read.
    """

    def __init__(self, grounds: Sequence[Ground], tiles: HeldTiles, *, names: Sequence[str], crop: int) -> None:
        self._tiles, self._names, self._crop = tiles, tuple(names), crop
        self._blocks = [[_Block(ground, window, self._names) for window in ground.blocks] for ground in grounds]

    def take(
        self, number: int, *, scores: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor, known: torch.Tensor
    ) -> None:
        """Take read `number`: scores and truth (K, h, w), which pixels are valid, and which count (h, w)."""
        index, read = self._tiles.read_of(number)
        top, left = read.window.row_off + self._crop, read.window.col_off + self._crop
        inner = Window(left, top, scores.shape[-1], scores.shape[-2])
        planes = [plane.cpu().numpy() for plane in (scores, truth, valid, known)]
        for keep in read.keeps:
            for block in self._blocks[index]:
                block.take(planes, inner, keep)

    def judged(self) -> tuple[Judged, ...]:
        """Return all blocks."""
        return tuple(block.judged() for blocks in self._blocks for block in blocks)


class _Block:
    def __init__(self, ground: Ground, window: Window, names: tuple[str, ...]) -> None:
        self._grid, self._window, self._names = ground.scene.grid.crop(window), window, names
        shape = (window.height, window.width)
        self._scores, self._truth = np.zeros((len(names), *shape), np.float32), np.zeros((len(names), *shape), np.uint8)
        self._valid, self._known = np.zeros(shape, bool), np.zeros(shape, bool)

    def take(self, planes: Sequence[NDArray[np.generic]], window: Window, keep: Window) -> None:
        common = overlap(keep, self._window)
        if common is None:
            return
        there, here = slices(common, window), slices(common, self._window)
        for own, plane in zip((self._scores, self._truth, self._valid, self._known), planes, strict=True):
            own[(..., *here)] = plane[(..., *there)]

    def judged(self) -> Judged:
        return Judged(Raster(self._scores, self._grid, self._names, self._valid), self._truth, self._known)
