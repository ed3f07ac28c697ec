"""Who takes part in a generated contest: ids, twins, sizes, shifts, and how much of each class a tile holds.

The twin regions, the sizes, the misregistration, each class's mean area and the number of tiles that hold it are those
measured on the DSTL contest of 2016-17 (docs/design.md says where); which tile holds how much is made up. Everything
here follows from the seed and the id of one tile, so a tile is the same whatever else is made. Rejected: drawing every
share by itself: one river in two tiles and a truck in eight are what made that contest hard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from satseg.tasks.dstl.facts import GSD_M, SAME_GROUND, SCORED, class_names
from satseg.tasks.dstl.frame import Frame, scaled

MEAN_SHARES = (3.301, 0.705, 0.808, 2.999, 10.173, 27.508, 0.501, 0.168, 0.0037, 0.0152)
"""Mean area of each class over the 25 labelled tiles of the original, in percent of a tile."""
TILES_WITH = (12, 17, 11, 23, 25, 14, 2, 13, 8, 13)
"""How many of those 25 hold the class."""
FULL_SIZE = (3349, 3396)
REGIONS = tuple(range(6010, 6190, 10))
LABELLED_KINDS = {
    "6010_1_2": "forest", "6010_2_4": "wood", "6010_4_2": "forest", "6040_0_3": "wood", "6040_1_0": "forest",
    "6040_2_3": "wood", "6040_4_4": "forest", "6060_2_3": "fields", "6070_2_3": "river", "6090_1_3": "fields",
    "6100_2_2": "river", "6100_4_0": "village", "6100_4_1": "town", "6110_1_2": "town", "6110_3_1": "village",
    "6110_4_0": "fields", "6120_0_1": "town", "6120_3_2": "village", "6140_1_2": "town", "6140_3_1": "village",
    "6150_1_3": "fields", "6160_2_1": "forest", "6170_0_4": "forest", "6170_1_0": "wood", "6170_1_4": "forest",
}
"""Labelled tile to what kind of country it shows."""
LABELLED = tuple(LABELLED_KINDS)
KINDS = {
    "forest": (0.02, 0.05, 0.0, 0.4, 1.8, 0.02, 0.0, 0.1, 0.0, 0.0),
    "wood": (0.05, 0.1, 0.1, 0.5, 1.5, 0.5, 0.0, 0.15, 0.0, 0.05),
    "fields": (0.5, 0.6, 0.5, 1.0, 0.7, 4.0, 0.0, 0.8, 0.7, 0.2),
    "village": (1.5, 1.5, 1.5, 1.3, 0.6, 2.0, 0.0, 1.2, 1.2, 1.0),
    "river": (1.0, 1.0, 1.0, 1.0, 0.9, 1.0, 1.0, 0.6, 0.9, 0.7),
    "town": (3.5, 2.5, 1.8, 1.6, 0.4, 1.0, 0.0, 1.0, 1.0, 2.0),
}
"""Kind of country to how much it leans to each class, against the others."""
SIZES_M2 = (75.0, 15.6, 204.0)
"""Mean area of a building, a structure and a pond: areas over counts of the original's 25 tiles."""
CAR_M2, TRUCK_M2, LEAST_POND_M2 = 7.0, 15.0, 20.0
MOST_SHARE = 0.93
"""Of a tile that one class takes: the most in the original."""
TILE_M2 = FULL_SIZE[0] * FULL_SIZE[1] * GSD_M**2
"""Area of an original tile."""
M_RATIO, A_RATIO = 4.0, 24.96
"""RGB pixels to one of M and of A: 3348 x 3392 go with 837 x 848 and 134 x 136."""
M_SHIFT_PX, M_SHIFT_MOST_PX = 0.67, 2.75
"""Mean of the exponential (median 0.46, 90 % 1.54) and the most, in M pixels: measured 0.47, 1.52, 2.75."""
A_SHIFT_RGB_PX, A_SHIFT_SHAPE, A_SHIFT_MOST_PX = 25.69, 1.38, 95.0
"""Weibull scale and shape (median 19.7, 90 % 47.0) and the most, in RGB pixels; larger ones were failed fits."""


@dataclass(frozen=True, slots=True)
class TileId:
    """One tile of the 450: its region and its place in the region's 5 x 5 mosaic."""

    region: int
    row: int
    col: int

    def __str__(self) -> str:
        return f"{self.region}_{self.row}_{self.col}"

    @classmethod
    def parse(cls, text: str) -> TileId:
        """Return the id of ``RRRR_r_c``."""
        region, row, col = (int(part) for part in text.split("_"))
        return cls(region, row, col)

    @property
    def ground(self) -> TileId:
        """The tile that shows this ground first: itself but for the later of two twins."""
        return TileId(first_region(self.region), self.row, self.col)

    def rng(self, seed: int, stream: int) -> Generator:
        """Return a generator of random numbers of this tile alone."""
        return np.random.default_rng([seed, stream, self.region, self.row, self.col])


def first_region(region: int) -> int:
    """Return the region that shows the ground of `region` first: itself but for the later of two twins."""
    return int(SAME_GROUND.get(str(region), region))


def all_ids() -> tuple[TileId, ...]:
    """Return the 450 ids."""
    return tuple(TileId(region, row, col) for region in REGIONS for row in range(5) for col in range(5))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How much of everything a tile should hold.

    Parameters
    ----------
    shares : tuple of 10 floats in 0..1
        Of the tile's area, in the order of the class numbers.
    building_m2, structure_m2, pond_m2 : float
        Mean area of one.
    """

    shares: tuple[float, ...]
    building_m2: float
    structure_m2: float
    pond_m2: float

    def share(self, name: str) -> float:
        """Return the share of a class."""
        return self.shares[list(class_names().values()).index(name)]


def recipe_of(tile: TileId, seed: int) -> Recipe:
    """Return the recipe of a tile; twins have one, other tiles than the labelled vary that of one of them."""
    known, table = [TileId.parse(name) for name in LABELLED], _labelled_shares()
    same = [number for number, other in enumerate(known) if other.ground == tile.ground]
    near = [number for number, other in enumerate(known) if other.ground.region == tile.ground.region]
    pool = same or near or [*range(len(known))]
    shares = table[pool[(5 * tile.row + tile.col + tile.region // 10) % len(pool)] if not same else same[0]]
    if not same:
        shares = shares * np.exp(tile.ground.rng(seed, 11).normal(0, 0.15, 10))
    return Recipe(tuple(float(share) for share in np.minimum(shares, MOST_SHARE)), *SIZES_M2)


@cache
def _labelled_shares() -> NDArray[np.float64]:
    """Shares (25, 10) of the labelled tiles: of each class the mean and the number of tiles that hold it are kept."""
    grounds = [TileId.parse(name).ground for name in LABELLED]
    sway = {ground: np.exp(np.random.default_rng([7, *astuple(ground)]).normal(0, 0.4, 10)) for ground in grounds}
    leaning = np.array([KINDS[kind] for kind in LABELLED_KINDS.values()])
    leaning = leaning * np.array([sway[ground] for ground in grounds])
    shares: NDArray[np.float64] = np.zeros(leaning.shape)
    for k, (mean, count) in enumerate(zip(MEAN_SHARES, TILES_WITH, strict=True)):
        held: list[int] = []
        for number in np.argsort(-leaning[:, k], kind="stable"):
            twins = [other for other, ground in enumerate(grounds) if ground == grounds[number]]
            if number not in held and len(held) + len(twins) <= count:
                held += twins
        weight, wanted = leaning[held, k], mean / 100 * len(LABELLED)
        for _ in range(20):  # a share has an end: the others make up for it
            shares[held, k] = np.minimum(weight * wanted / weight.sum(), MOST_SHARE)
            weight = np.where(shares[held, k] < MOST_SHARE, weight * wanted / shares[held, k].sum(), weight)
    return shares


@dataclass(frozen=True, slots=True)
class Rarities:
    """How many ponds, large and small vehicles a tile holds."""

    ponds: int
    large: int
    small: int


def rarities_of(tile: TileId, seed: int, area_m2: float) -> Rarities:
    """Return the counts of rare things in a tile of `area_m2`, as even over the tiles as whole numbers go.

    A small tile holds a fraction of a truck. Over the labelled tiles (and over the scored ones) the
    fractions add up, and a tile gets what the sum passes in whole numbers there; the sum is at least 1.
    """
    group = next((names for names in (LABELLED, SCORED) if str(tile) in names), (str(tile),))
    tiles = [TileId.parse(name) for name in group]
    recipes = [recipe_of(item, seed) for item in tiles]
    least = 1.0 if len(tiles) > 1 else 0.0
    starts = np.random.default_rng([seed, 12]).uniform(0.2, 0.8, 3)
    here = tiles.index(tile)
    firsts = [item.ground for item in tiles]
    wanted = [item.share("Standing water") * area_m2 / pond_m2(item, area_m2) for item in recipes]
    once = [0.0 if firsts[n] in firsts[:n] else want for n, want in enumerate(wanted)]
    ponds = even_counts(once, float(starts[0]), least)[firsts.index(tile.ground)]
    large = [item.share("Vehicle Large") * area_m2 / TRUCK_M2 for item in recipes]
    small = [item.share("Vehicle Small") * area_m2 / CAR_M2 for item in recipes]
    return Rarities(
        ponds=ponds,
        large=even_counts(large, float(starts[1]), least)[here],
        small=even_counts(small, float(starts[2]), least)[here],
    )


def pond_m2(recipe: Recipe, area_m2: float) -> float:
    """Return the mean area of a pond, which is no more than a hundredth of the tile."""
    return max(LEAST_POND_M2, min(recipe.pond_m2, area_m2 / 120))


def even_counts(expected: Sequence[float], start: float, least: float = 0.0) -> list[int]:
    """Return whole numbers whose running sum follows that of `expected`, scaled up to `least` in all."""
    total = math.fsum(expected)
    factor = least / total if 1e-9 < total < least else 1.0
    sums = np.floor(np.cumsum([0.0, *expected]) * factor + start)
    counts = np.diff(sums).astype(int)
    if least and total and not counts.any():
        counts[int(np.argmax(expected))] = 1
    return [int(count) for count in counts]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a tile's images, (height, width) in pixels, and the frame of its labels."""

    rgb: tuple[int, int]
    pan: tuple[int, int]
    multi: tuple[int, int]
    swir: tuple[int, int]
    frame: Frame


UNITS_PER_PX = (2.700736e-6, 2.700119e-6)
"""Of the original tiles, along x and y."""


def sizes_of(tile: TileId, seed: int, size: tuple[int, int]) -> Sizes:
    """Return the sizes and the frame of a tile in a contest of tiles of about `size` RGB pixels (height, width)."""
    rng = tile.rng(seed, 13)
    high = size[0] + int(rng.integers(-4, 2))
    wide = size[1] + round(float(rng.uniform(-60, 7)) * size[1] / FULL_SIZE[1])
    slack = 3 if wide > 1000 else 1
    pan = (high + int(rng.integers(-slack, slack + 1)), wide + int(rng.integers(-slack, slack + 1)))
    multi = (math.ceil(high / M_RATIO), math.ceil(wide / M_RATIO))
    swir = (round(high / A_RATIO), round(wide / A_RATIO))
    x_max, y_min = (
        round(scaled(count) * unit, 6) for count, unit in zip((wide, high), UNITS_PER_PX, strict=True)
    )
    return Sizes((high, wide), pan, multi, swir, Frame(wide, high, x_max, -y_min))


def shifts_of(tile: TileId, seed: int) -> dict[str, tuple[float, float]]:
    """Return the shift (dx, dy) of what M and A show against RGB, in RGB pixels, right and down.

    P has none: the RGB image is sharpened with it. A's shift is not scaled down with the tile: what a
    registration has to find is a fraction of A's pixel, on a small tile as on a large one.
    """
    rng = tile.rng(seed, 14)
    lengths = {
        "M": min(float(rng.exponential(M_SHIFT_PX)), M_SHIFT_MOST_PX) * M_RATIO,
        "A": min(float(rng.weibull(A_SHIFT_SHAPE)) * A_SHIFT_RGB_PX, A_SHIFT_MOST_PX),
    }
    shifts = {}
    for product, length in lengths.items():
        angle = float(rng.uniform(0, 2 * math.pi))
        shifts[product] = (length * math.cos(angle), length * math.sin(angle))
    return shifts
