"""What makes regions of a contest differ: how people build there, and the light and season of a visit.

A `Country` belongs to the ground, so twin regions share it; a `Look` belongs to one visit of the
satellite. Together they are the shift between the regions that have labels and those that have not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from satseg.synthetic.layout import Layout, Patch
from satseg.synthetic.rendering import Light
from satseg.synthetic.spectra import BANDS
from satseg.tasks.dstl.generated.roster import first_region

CLAY = (("adobe", 0.5), ("concrete", 0.25), ("zinc", 0.25))
TILED = (("red_tile", 0.4), ("orange_tile", 0.25), ("brown_tile", 0.15), ("slate", 0.1), ("zinc", 0.1))
TIN = (("zinc", 0.45), ("brown_tile", 0.2), ("bitumen", 0.15), ("membrane", 0.2))
SEASONS = {
    "green": (
        ("wheat", "soil", 0.85), ("maize", "soil", 0.60), ("beet", "soil", 0.68), ("wheat", "maize", 0.5),
        ("soil", "stubble", 0.80), ("barley", "wheat", 0.45),
    ),
    "ripe": (
        ("barley", "stubble", 0.70), ("maize", "soil", 0.78), ("beet", "soil", 0.80), ("barley", "wheat", 0.80),
        ("stubble", "soil", 0.60), ("barley", "stubble", 0.90),
    ),
    "dry": (
        ("stubble", "soil", 0.55), ("maize", "soil", 0.45), ("beet", "soil", 0.50), ("stubble", "barley", 0.75),
        ("soil", "dirt", 0.75), ("soil", "stubble", 0.70),
    ),
}  # fmt: skip
"""Season to what grows in each of the six kinds of fields: crop, between its rows, share of the ground."""
DRYNESS = {"green": (0.0, 0.25), "ripe": (0.25, 0.5), "dry": (0.5, 0.85)}
LEAVES = {
    "green": {},
    "ripe": {"light_broadleaf": "dry_broadleaf"},
    "dry": {"broadleaf": "dry_broadleaf", "light_broadleaf": "dry_broadleaf"},
}


@dataclass(frozen=True, slots=True)
class Country:
    """How the ground of a region looks and people build there.

    Parameters
    ----------
    angle : float
        Direction of its fields and streets, radians.
    ground, yard : str
        Materials of open ground and of villages.
    bareness : float
        Share of open ground without grass.
    roofs : tuple of (str, float)
        Materials of roofs and their weights.
    flat : float
        Share of flat roofs.
    pools : float
        Share of ponds that are swimming pools.
    kind : {"mixed", "leafy", "conifer"}
        Of trees.
    """

    angle: float
    ground: str
    yard: str
    bareness: float
    roofs: tuple[tuple[str, float], ...]
    flat: float
    pools: float
    kind: str


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One visit: its season, light, and how much each short-wave band is off.

    Parameters
    ----------
    season : str
        Key of `SEASONS`.
    dry : float
        Share of dry grass on open ground and in the grass of villages.
    light : Light
    swir_gain : ndarray of float32, (8,)
    """

    season: str
    dry: float
    light: Light
    swir_gain: NDArray[np.float32]


def country_of(region: int, seed: int) -> Country:
    """Return the country of a region, which twins share."""
    rng = np.random.default_rng([seed, 21, first_region(region)])
    roofs = (CLAY, TILED, TIN)[int(rng.choice(3, p=(0.4, 0.3, 0.3)))]
    return Country(
        angle=float(rng.uniform(0, math.pi)),
        ground=str(rng.choice(["soil", "dirt", "sand", "dry_grass"], p=(0.35, 0.2, 0.15, 0.3))),
        yard=str(rng.choice(["dirt", "sand"])) if roofs == CLAY else str(rng.choice(["dirt", "lawn", "grass"])),
        bareness=float(rng.uniform(0.15, 0.75)),
        roofs=roofs,
        flat=0.85 if roofs == CLAY else 0.2,
        pools=0.3 if roofs == TILED else 0.0,
        kind=str(rng.choice(["mixed", "leafy"], p=(0.4, 0.6))),
    )


def look_of(region: int, seed: int) -> Look:
    """Return the visit that a region was seen at; the later of two twins is seen in another season."""
    rng = np.random.default_rng([seed, 22, region])
    seasons = list(SEASONS)
    if (first := first_region(region)) != region:
        seasons.remove(look_of(first, seed).season)
    season = str(rng.choice(seasons))
    light = Light(
        azimuth=math.radians(float(rng.uniform(-75, -25))),
        elevation=math.radians(float(rng.uniform(42, 68))),
        haze=float(rng.uniform(0.6, 2.2)),
        gain=(rng.uniform(0.86, 1.14) * rng.uniform(0.97, 1.03, len(BANDS))).astype(np.float32),
    )
    swir_gain = (rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 8)).astype(np.float32)
    return Look(season, float(rng.uniform(*DRYNESS[season])), light, swir_gain)


def grown(layout: Layout, look: Look) -> Layout:
    """Return `layout` as it is in the season of `look`: crops, leaves, grass."""
    leaves = LEAVES[look.season]
    crowns = tuple(replace(item, material=leaves.get(item.material, item.material)) for item in layout.crowns)
    return replace(layout, patches=tuple(_grown(patch, look) for patch in layout.patches), crowns=crowns)


def _grown(patch: Patch, look: Look) -> Patch:
    if patch.material.startswith("crop ") and patch.rows is not None:
        material, between, cover = SEASONS[look.season][int(patch.material.removeprefix("crop "))]
        return replace(patch, material=material, rows=replace(patch.rows, between=between, cover=cover))
    if patch.material in ("grass", "lawn"):
        return replace(patch, dry=look.dry)
    return patch
