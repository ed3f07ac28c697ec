"""Who takes part in a generated contest: ids, twins, sizes, shifts, and how much of each class a tile holds.

The ids, the twin regions, the sizes, the misregistration and the class areas are those measured on
the DSTL contest of 2016-17 (docs/design.md says where). Everything here follows from the seed and
the id of one tile, so a tile is the same whatever else is made. Rejected: drawing class shares at
random: one river in two tiles and a truck in eight are what made that contest hard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

CONTEST_CLASSES = (
    "Buildings", "Misc. Manmade structures", "Road", "Track", "Trees", "Crops", "Waterway",
    "Standing water", "Vehicle Large", "Vehicle Small",
)  # fmt: skip
"""Names of the classes; ClassType is the place in this tuple, from 1."""
MEAN_SHARES = (3.301, 0.705, 0.808, 2.999, 10.173, 27.508, 0.501, 0.168, 0.0037, 0.0152)
"""Mean area of each class over the 25 labelled tiles of the original, in percent of a tile."""
TILES_WITH = (12, 17, 11, 23, 25, 14, 2, 13, 8, 13)
"""How many of those 25 hold the class."""
GSD_M = 0.31
FULL_SIZE = (3349, 3396)
REGIONS = tuple(range(6010, 6190, 10))
TWINS = {6140: 6110, 6130: 6020, 6150: 6030}
"""Region to the region that shows the same ground at another time."""
SCORED = (
    "6010_0_1", "6020_0_4", "6020_1_3", "6020_4_3", "6030_1_2", "6030_1_4", "6050_3_3", "6050_4_4",
    "6060_0_0", "6060_0_1", "6060_0_3", "6060_1_4", "6060_2_0", "6060_4_1", "6070_3_4", "6080_4_1",
    "6080_4_4", "6090_3_2", "6090_3_4", "6100_0_2", "6100_2_4", "6110_2_3", "6120_0_2", "6120_1_4",
    "6120_3_3", "6120_4_4", "6140_2_3", "6150_3_4", "6150_4_3", "6160_0_0", "6160_1_4", "6170_4_4",
)  # fmt: skip
MOVED = ("6010_1_2", "6040_4_4", "6070_2_3", "6100_2_2")
"""Labelled tiles that are still in the sample submission."""

_NONE = (0, 0, 0)
_TABLE: dict[str, tuple[tuple[float, ...], tuple[int, int, int]]] = {
    "6010_1_2": ((0, 0.0653, 0, 1.33, 4.56, 0, 0, 0, 0, 0), (0, 44, 0)),
    "6010_4_2": ((0, 0, 0, 1.95, 12.3, 0, 0, 0, 0, 0), _NONE),
    "6010_4_4": ((0, 0, 0, 0, 22.9, 0, 0, 0, 0, 0), _NONE),
    "6040_1_0": ((0, 0, 0, 1.44, 8.01, 0, 0, 0, 0, 0), _NONE),
    "6040_1_3": ((0, 0, 0, 0.202, 18.7, 3.66, 0, 0, 0, 0), _NONE),
    "6040_2_2": ((0, 0, 0, 0.958, 18.7, 0, 0, 0, 0, 0), _NONE),
    "6040_4_4": ((0, 0, 0, 1.89, 2.92, 0, 0, 0, 0, 0), _NONE),
    "6060_2_3": ((0.139, 0.304, 0, 3.03, 8.45, 93.6, 0, 0, 0, 0.000317), (62, 173, 0)),
    "6070_2_3": ((1.55, 0.308, 0.813, 0, 16.0, 0, 10.6, 0.0543, 0, 0.00584), (109, 81, 3)),
    "6090_2_0": ((0, 0.0343, 0, 0.407, 10.1, 28.2, 0, 0.313, 0, 0.000799), (0, 11, 19)),
    "6100_1_3": ((8.77, 2.73, 2.21, 12.3, 6.20, 2.69, 0, 0.684, 0.0110, 0.0459), (2208, 1581, 4)),
    "6100_2_2": ((3.18, 0.819, 1.19, 3.72, 7.61, 44.3, 1.88, 0.0512, 0.0100, 0.0242), (633, 454, 1)),
    "6100_2_3": ((8.22, 1.41, 1.21, 9.59, 7.53, 0, 0, 0.0603, 0.0148, 0.0661), (1690, 1226, 2)),
    "6110_1_2": ((13.1, 2.86, 0.419, 4.18, 3.32, 49.8, 0, 0.153, 0, 0.00647), (1584, 1420, 63)),
    "6110_3_1": ((4.55, 1.26, 3.63, 2.82, 5.41, 57.6, 0, 0.553, 0.0181, 0.0253), (581, 706, 9)),
    "6110_4_0": ((2.41, 0.573, 1.84, 2.81, 5.74, 80.8, 0, 1.42, 0.0136, 0.00167), (437, 502, 24)),
    "6120_2_0": ((1.80, 0.726, 0.851, 4.40, 5.64, 79.6, 0, 0, 0.0138, 0.00405), (573, 1193, 0)),
    "6120_2_2": ((20.7, 2.04, 4.25, 8.65, 4.43, 10.3, 0, 0.286, 0.00758, 0.156), (1962, 3201, 6)),
    "6140_1_2": ((12.9, 2.45, 0.354, 4.15, 3.10, 49.6, 0, 0.142, 0, 0.00857), (1607, 1111, 75)),
    "6140_3_1": ((5.20, 1.43, 3.43, 2.52, 5.89, 57.4, 0, 0.466, 0.00421, 0.0358), (565, 563, 9)),
    "6150_2_3": ((0, 0.606, 0, 3.02, 13.5, 80.7, 0, 0, 0, 0), (0, 47, 0)),
    "6160_2_1": ((0, 0, 0, 2.80, 10.3, 0, 0, 0, 0, 0), _NONE),
    "6170_0_4": ((0, 0.00165, 0, 0.199, 24.9, 0, 0, 0.0152, 0, 0), (0, 1, 8)),
    "6170_2_4": ((0, 0.00106, 0, 2.51, 7.78, 49.5, 0, 0.00889, 0, 0), (0, 1, 1)),
    "6170_4_1": ((0, 0, 0, 0.135, 20.2, 0, 0, 0, 0, 0), _NONE),
}
"""Labelled tile to percent of its area per class, and polygons of buildings, structures and ponds."""
LABELLED = tuple(sorted(_TABLE))
POOLS = {
    6010: ("6010_4_4", "6010_1_2", "6010_4_2"),
    6020: ("6120_2_2", "6100_2_2", "6110_3_1"),
    6030: ("6150_2_3",),
    6040: ("6040_1_0", "6040_1_3", "6040_2_2", "6040_4_4"),
    6050: ("6070_2_3", "6040_1_0", "6100_1_3"),
    6060: ("6060_2_3", "6110_4_0", "6060_2_3", "6090_2_0"),
    6070: ("6070_2_3",),
    6080: ("6170_2_4", "6100_2_3"),
    6090: ("6090_2_0", "6100_2_2"),
    6100: ("6100_2_2", "6100_1_3", "6100_2_3"),
    6110: ("6110_1_2", "6110_3_1", "6110_4_0"),
    6120: ("6120_2_2", "6120_2_0"),
    6160: ("6160_2_1", "6040_2_2"),
    6170: ("6170_2_4", "6170_0_4", "6170_4_1"),
}
"""Region of ground to the labelled tiles that its other tiles take after: a guess, the truth is hidden."""
CAR_M2, TRUCK_M2, LEAST_POND_M2 = 7.0, 15.0, 20.0
MOST_STRUCTURE_M2 = 40.0
"""Mean structures are no larger, which one tile's are: they should not look like houses."""
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
        return TileId(TWINS.get(self.region, self.region), self.row, self.col)

    def rng(self, seed: int, stream: int) -> Generator:
        """Return a generator of random numbers of this tile alone."""
        return np.random.default_rng([seed, stream, self.region, self.row, self.col])


def all_ids() -> tuple[TileId, ...]:
    """Return the 450 ids."""
    return tuple(TileId(region, row, col) for region in REGIONS for row in range(5) for col in range(5))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How much of everything a tile should hold.

    Parameters
    ----------
    shares : tuple of 10 floats in 0..1
        Of the tile's area, in the order of `CONTEST_CLASSES`.
    building_m2, structure_m2, pond_m2 : float
        Mean area of one.
    """

    shares: tuple[float, ...]
    building_m2: float
    structure_m2: float
    pond_m2: float

    def share(self, name: str) -> float:
        """Return the share of a class."""
        return self.shares[CONTEST_CLASSES.index(name)]


def recipe_of(tile: TileId, seed: int) -> Recipe:
    """Return the recipe of a tile; twins have one, other tiles than the labelled vary those of their pool."""
    ground = tile.ground
    sights = [str(TileId(region, tile.row, tile.col)) for region in (ground.region, *_twins_of(ground.region))]
    known = [name for name in sights if name in _TABLE]
    pool = POOLS.get(ground.region, ())
    percent, numbers = _TABLE[known[0] if known else pool[(5 * tile.row + tile.col) % len(pool)]]
    sway = np.ones(10) if known else np.exp(ground.rng(seed, 11).normal(0, 0.15, 10))
    shares = np.minimum(np.array(percent) / 100 * sway, 0.93)
    sizes = [
        share / 100 * TILE_M2 / number if number else usual
        for share, number, usual in zip((percent[0], percent[1], percent[7]), numbers, (70, 14, 190), strict=True)
    ]
    building, structure, pond = sizes
    return Recipe(tuple(float(share) for share in shares), building, min(structure, MOST_STRUCTURE_M2), pond)


def _twins_of(region: int) -> list[int]:
    return [later for later, first in TWINS.items() if first == region]


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
class TileFrame:
    """Sizes of a tile's images, (height, width) in pixels, and its corner in the frame of the labels.

    `x_max` and `y_min` are those of grid_sizes.csv: the official scaling maps them to column
    W * W / (W + 1) and row H * H / (H + 1) of the RGB image of W x H pixels.
    """

    rgb: tuple[int, int]
    pan: tuple[int, int]
    multi: tuple[int, int]
    swir: tuple[int, int]
    x_max: float
    y_min: float

    @property
    def units_per_px(self) -> tuple[float, float]:
        """How much of the label frame's x, and y (negative), go to one RGB pixel."""
        high, wide = self.rgb
        return self.x_max * (wide + 1) / wide**2, self.y_min * (high + 1) / high**2


UNITS_PER_PX = (2.700736e-6, 2.700119e-6)
"""Of the original tiles, along x and y."""


def frame_of(tile: TileId, seed: int, size: tuple[int, int]) -> TileFrame:
    """Return the sizes of a tile in a contest of tiles of about `size` RGB pixels (height, width)."""
    rng = tile.rng(seed, 13)
    high = size[0] + int(rng.integers(-4, 2))
    wide = size[1] + round(float(rng.uniform(-60, 7)) * size[1] / FULL_SIZE[1])
    slack = 3 if wide > 1000 else 1
    pan = (high + int(rng.integers(-slack, slack + 1)), wide + int(rng.integers(-slack, slack + 1)))
    multi = (math.ceil(high / M_RATIO), math.ceil(wide / M_RATIO))
    swir = (round(high / A_RATIO), round(wide / A_RATIO))
    x_max, y_min = (
        round(count**2 / (count + 1) * unit, 6) for count, unit in zip((wide, high), UNITS_PER_PX, strict=True)
    )
    return TileFrame((high, wide), pan, multi, swir, x_max, -y_min)


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
