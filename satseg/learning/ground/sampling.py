"""Which view of which ground chip number i of a run shows: uniform, or around a feature of a class.

It is a pure function of (seed, i), and of weights that stay for a round where some chips go to hard ground
(`hardness`), so that workers, ranks and resumed runs all draw the same chips. Several scenes
count by what can be learnt from them: uniform chips by trainable area (`occupancy`), chips around
features by label area, where a feature smaller than a chip counts as one and a larger one as the chips it fills,
spread over it. Rejected: label area alone, which would leave the cars to the car parks, and the number of features
alone, which showed one spot of a forest for ever.

Where the scenes decoded exceed the cache, chips come from a stretch of ground that the cache holds, and that slides
over regions in an order drawn anew for each pass: `REUSE` chips' worth are seen of a place before it is left. Every
place and feature is as likely as ever over a pass, and a class keeps its share of chips at every moment; for both
to hold, each class slides at its own pace, and the order of regions is such that all are on the same ground at the
same time. Rejected: places shuffled over everything, of which each decodes the blocks under it anew; an order that
minds no class, in which stretches drift apart and the cache holds none of them; and features drawn from where the
uniform chips are, which shows those of thinly labelled ground many times as often as others.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import LabelError
from satseg.grid import Grid
from satseg.learning.ground.chips import READ_PX
from satseg.learning.ground.hardness import NOWHERE, Hardness
from satseg.learning.ground.occupancy import occupancy
from satseg.learning.ground.places import Places, cells_of, features_of
from satseg.learning.ground.split import Ground
from satseg.learning.ground.warping import View, draw_turn
from satseg.options import AugmentOptions

log = logging.getLogger(__name__)

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

DRAWS_PER_CHIP = 100
"""Positions tried before a mostly blank chip is taken after all; rejection is rare."""
LEAST_FREE = 0.5
"""Share of a chip that must be free of validation ground."""
REUSE = 8.0
"""Chips' worth of pixels drawn from a stretch of ground for each of its pixels."""
CACHE_SHARE = 0.6
"""Of the cache that a stretch takes; the rest is for classes that are ahead or behind, and for rare ones."""
MOST_CANDIDATES = 64
"""Regions that the next one of a pass is chosen from, of very many; of fewer the root, so that passes differ."""
LARGEST_REGION_PX = 2048
EDGE_PX = 1
"""A view may be blended from pixels this far beyond its extent: those of the next region would cost a block each."""
LEAST_FEATURES = 16
"""Features of a class in a stretch; rare classes are drawn from all of theirs."""


class ChipSampler:
    """Where chips lie.

    With K classes that have a feature on trainable ground, each of them is in at least ``balance / K`` of the
    chips, however rare: these are placed so that a point of a feature of it lies inside (near the edge of a scene
    and turned by no multiple of 90 degrees, one may lose it). The rest are uniform over trainable ground, but for
    a share `hard` of them that goes by the errors of earlier rounds from the second round on.

    Parameters
    ----------
    grounds : sequence of Ground
    size : int
        Side of a chip in pixels.
    seed : int
    balance : float, 0..1
        Share of chips around a feature of a random class.
    changes : AugmentOptions
        How chips are turned and zoomed.
    cache_bytes : int, optional
        Of decoded blocks, per process: chips keep to stretches that fit. Over everything when left out.
    hard : float, 0..1

    Attributes
    ----------
    hardness : Hardness or None
        What the learner is to tell of its errors; None where `hard` is 0.

    Raises
    ------
    LabelError
        Not a pixel of any ground can be learnt from.
    """

    def __init__(
        self,
        grounds: Sequence[Ground],
        *,
        size: int,
        seed: int,
        balance: float,
        changes: AugmentOptions,
        cache_bytes: int | None = None,
        hard: float = 0.0,
    ) -> None:
        self.grounds = tuple(grounds)
        self.size, self.seed, self.balance, self.changes, self.hard = size, seed, balance, changes, hard
        maps = [occupancy(ground, among=len(self.grounds)) for ground in self.grounds]
        self.area_px = area = sum(one.area_px for one in maps)
        empty = [g.scene.name for g, one in zip(self.grounds, maps, strict=True) if not one.free.any()]
        if area == 0:
            raise LabelError(
                f"no pixel of {', '.join(empty)} is valid, labelled and free of validation ground",
                hint="check nodata, the area of interest and [train] valid_share",
                code="E-LAB-012",
            )
        for name in empty:
            log.warning("%s: no pixel is valid, labelled and free of validation ground; it is left out", name)
        room = math.inf if cache_bytes is None else CACHE_SHARE * cache_bytes / max(map(_pixel_bytes, self.grounds))
        self._share = min(1.0, room / area)
        self._passes_per_chip = size**2 / (REUSE * area) if self._share < 1 else 0.0
        cells, features = cells_of(maps), [one for one in features_of(self.grounds, maps, size) if len(one)]
        sliding = [one for one in features if len(one) > LEAST_FEATURES]
        regions = _Regions(self.grounds, _region_px(room), seed, [cells, *sliding])
        self._cells = _Deck(cells, regions)
        self.hardness = Hardness(maps, size) if hard else None
        self._hard = None if self.hardness is None else _HardDeck(self._cells, self.hardness)
        self._features = [_Deck(one, regions) for one in features]

    def place(self, number: int, attempt: int = 0) -> tuple[int, View]:
        """The index of the ground and the view of chip `number`; another one for every `attempt`."""
        rng = np.random.default_rng((self.seed, number, attempt) if attempt else (self.seed, number))
        near_feature = bool(self._features) and rng.random() < self.balance
        turn = View.turned(0, 0, **draw_turn(self.changes, rng))
        deck = self._features[int(rng.integers(len(self._features)))] if near_feature else self._uniform(rng)
        axes = np.array([turn.down, turn.right] if near_feature else np.eye(2))
        height, width = (side + 2 * EDGE_PX for side in turn.extent(self.size))
        for _ in range(DRAWS_PER_CHIP):
            index, row, col, within = deck.draw(rng, number * self._passes_per_chip, self._share, axes)
            if within is None or within.height < height or within.width < width:
                within = _whole(self.grounds[index].scene.grid)
            row = within.row_off + _inside(row - within.row_off, height, within.height)
            col = within.col_off + _inside(col - within.col_off, width, within.width)
            view = replace(turn, row=row, col=col)
            if self.grounds[index].free_share(view.window(self.size)) >= LEAST_FREE:
                break
        return index, view

    def cell(self, index: int, view: View) -> int:
        """The cell of the ground that errors in a chip count for: that of its centre; `NOWHERE` if nobody asks."""
        if self.hardness is None:
            return NOWHERE
        return int(self.hardness.cells(np.array(index), np.array(view.row), np.array(view.col)))

    def _uniform(self, rng: np.random.Generator) -> _Deck:
        """The deck of a chip that goes to no feature; in the first round, whose errors nobody knows, all are alike."""
        if self._hard is not None and self._hard.take_up() and rng.random() < self.hard:
            return self._hard
        return self._cells


def _whole(grid: Grid) -> Window:
    """All of `grid`, and what a view at its edge may ask for beyond."""
    return Window(-EDGE_PX, -EDGE_PX, grid.width + 2 * EDGE_PX, grid.height + 2 * EDGE_PX)


def _inside(centre: float, extent: float, size: int) -> float:
    """`centre` moved so that a view of `extent` pixels lies inside `size`, as far as it fits; to whole pixels."""
    low, high = extent / 2, size - extent / 2
    inside = size / 2 if low > high else centre
    return float(np.clip(np.floor(inside - low) + low, min(low, high), max(low, high)))


def _pixel_bytes(ground: Ground) -> int:
    """Bytes that a pixel takes decoded: bands, truth, and two flags."""
    return len(ground.scene.bands) * ground.scene.dtype.itemsize + ground.planes + 2


def _region_px(room: float) -> int:
    """Side of a region: at least four make up a stretch of `room` pixels, of whole reads."""
    side = min(LARGEST_REGION_PX, math.sqrt(room / 4))
    return max(1, int(side // READ_PX)) * READ_PX


class _Regions:
    """Squares that grounds are cut into, numbered over all of them; cuts and order are drawn anew for each pass.

    Chips stay inside their region, so that no block is decoded for its neighbour's sake; as the cuts move from pass
    to pass by whole reads, no place is at the edge of a region for good. At any moment of a pass about the same share
    of each of `decks`, uniform places first, lies in the regions that have been.
    """

    def __init__(self, grounds: Sequence[Ground], side: int, seed: int, decks: Sequence[Places]) -> None:
        self._grids, self._side, self._seed = [ground.scene.grid for ground in grounds], side, seed
        self._decks, self._ordered = decks, (-1, np.zeros(0, np.int64))
        self._across = np.array([-(-grid.width // side) + 1 for grid in self._grids])
        down = np.array([-(-grid.height // side) + 1 for grid in self._grids])
        ends = np.cumsum(self._across * down)
        self._first, self._count = np.concatenate([[0], ends[:-1]]), int(ends[-1])

    def ranks(self, places: Places, number: int) -> Integers:
        """Return where the region of each of `places` comes in pass `number`."""
        if self._ordered[0] != number:
            self._ordered = number, self._order(number)
        return np.asarray(self._ordered[1][self._regions_of(places, number)])

    def _regions_of(self, places: Places, number: int) -> Integers:
        index = places[:, 0].astype(np.int64)
        shifted = (places[:, 1:3].astype(np.int64) + self._cut(number)) // self._side
        return np.asarray(self._first[index] + shifted[:, 0] * self._across[index] + shifted[:, 1])

    def _order(self, number: int) -> Integers:
        """Where each region with a place comes in pass `number`: at random, but classes keep up with uniform places."""
        shares = [
            np.bincount(self._regions_of(one, number), one[:, 5], self._count) / one[:, 5].sum(dtype=np.float64)
            for one in self._decks
        ]
        gain = np.stack(shares[1:] or shares, axis=1) - shares[0][:, None]
        waiting = np.random.default_rng((self._seed, number, self._count)).permutation(np.flatnonzero(sum(shares)))
        candidates = min(MOST_CANDIDATES, math.isqrt(len(waiting)) + 1)
        ahead = np.zeros(gain.shape[1])
        ranks = np.zeros(self._count, np.int64)
        for rank in range(len(waiting)):
            offered = gain[waiting[rank : rank + candidates]]
            chosen = rank + int(np.argmin(((ahead + offered) ** 2).sum(axis=1)))
            waiting[rank], waiting[chosen] = waiting[chosen], waiting[rank]
            ahead += gain[waiting[rank]]
            ranks[waiting[rank]] = rank
        return ranks

    def around(self, place: Places, number: int) -> Window:
        """Return the region of one place, as far as the scene has it, and what is beyond the edge of the scene."""
        cut, grid = self._cut(number), self._grids[int(place[0])]
        corner = (place[1:3].astype(np.int64) + cut) // self._side * self._side - cut
        ends = [
            (int(low) if low > 0 else -EDGE_PX, int(low) + self._side if low + self._side < size else size + EDGE_PX)
            for low, size in zip(corner, (grid.height, grid.width), strict=True)
        ]
        (top, bottom), (left, right) = ends
        return Window(left, top, right - left, bottom - top)

    def _cut(self, number: int) -> Integers:
        blocks = np.random.default_rng((self._seed, number)).integers(0, self._side // READ_PX, 2)
        return np.asarray(blocks * READ_PX)


class _Deck:
    """Places to draw from, by weight: `places` is (n, 6) of `cells_of` or `features_of`."""

    def __init__(self, places: Places, regions: _Regions) -> None:
        self._places, self._regions = places, regions
        self._reach = np.cumsum(places[:, 5], dtype=np.float64)
        self._passes: OrderedDict[int, tuple[Integers, Floats]] = OrderedDict()

    def draw(
        self, rng: np.random.Generator, passes: float, share: float, axes: Floats
    ) -> tuple[int, float, float, Window | None]:
        """Return ground, row and col out of the `share` that comes after `passes` passes, and the region to stay in.

        The place is shifted along `axes`; out of all of them, there is no region.
        """
        stretch = max(share, LEAST_FEATURES / len(self._places))
        within = None
        if stretch >= 1:
            place = self._places[_pick(self._reach, rng.random())]
        else:
            at, number = math.modf(self._between(passes, passes + stretch, rng.random()))
            order, reach = self._pass(int(number))
            place = self._places[order[_pick(reach, at)]]
            within = self._regions.around(place, int(number))
        shift = (rng.uniform(-0.5, 0.5, 2) * place[3:5]) @ axes
        return int(place[0]), float(place[1] + shift[0]), float(place[2] + shift[1]), within

    def _between(self, low: float, high: float, share: float) -> float:
        """Where in its passes a draw falls, `share` of the way from `low` to `high`."""
        return low + (high - low) * share

    def _pass(self, number: int) -> tuple[Integers, Floats]:
        """The order of places in a pass, region by region, and their weights added up."""
        if number not in self._passes:
            order = np.argsort(self._regions.ranks(self._places, number), kind="stable")
            self._keep(number, order, self._places[order, 5])
        return self._passes[number]

    def _keep(self, number: int, order: Integers, weights: NDArray[Any]) -> None:
        self._passes[number] = order, np.cumsum(weights, dtype=np.float64)
        while len(self._passes) > 2:
            self._passes.popitem(last=False)


class _HardDeck(_Deck):
    """Uniform places by how hard the ground is; in stretches, those of the very ground that uniform chips are on."""

    def __init__(self, even: _Deck, hardness: Hardness) -> None:
        super().__init__(even._places, even._regions)
        self._even, self._hardness, self._round = even, hardness, 0
        self._cells = hardness.cells(*self._places[:, :3].T)
        self._weights = self._places[:, 5].astype(np.float64)

    def take_up(self) -> bool:
        """Take up the weights of a round that has begun; return whether there are any."""
        if self._round != self._hardness.round:
            self._round = self._hardness.round
            self._weights = self._places[:, 5] * self._hardness.weights[self._cells]
            self._reach = np.cumsum(self._weights)
            self._passes.clear()
        return self._round > 0

    def _between(self, low: float, high: float, share: float) -> float:
        return super()._between(self._weighed(low), self._weighed(high), share)

    def _weighed(self, passes: float) -> float:
        """Passes over the weights after which this deck is where uniform places are after `passes`."""
        at, number = math.modf(passes)
        (_, even), (_, reach) = self._even._pass(int(number)), self._pass(int(number))
        place = _pick(even, at)
        before, done = (0.0, 0.0) if place == 0 else (even[place - 1], reach[place - 1])
        part = (at * even[-1] - before) / (even[place] - before)
        return number + float((done + part * (reach[place] - done)) / reach[-1])

    def _pass(self, number: int) -> tuple[Integers, Floats]:
        if number not in self._passes:
            order, _ = self._even._pass(number)
            self._keep(number, order, self._weights[order])
        return self._passes[number]


def _pick(reach: Floats, at: float) -> int:
    """Index of the place that `at` (0..1) of the weights, added up in `reach`, falls on."""
    return min(int(np.searchsorted(reach, at * reach[-1], side="right")), len(reach) - 1)
