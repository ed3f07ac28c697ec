"""A scene's bands brought to its own mean and spread, or near the tones known, against other light and other sensors.

What a network learns of colours then holds where a town is darker or hazier than those learnt from, and what
brightness itself says of a class is lost: a field of one crop and a city come out with the same mean. It is an option
of training (`[data] normalize = "scene"`) and off by default, for it costs more than it brings in towns seen by
drones: after 3 CPU-minutes on two of them the Jaccard of buildings in a third was 0.47 against 0.51 in Nairobi and
0.37 against 0.63 in Zanzibar (one run each, `benchmarks.accuracy`).

A scene brought near is moved as little as puts every band's mean within `NEAR` deviations of those of the scenes learnt
from, and stays as it is where it is there already. Evidence: networks that learnt from two or three towns for 4.5
CPU-minutes, Jaccards of their scores for buildings in one more town at 0.5, one run each. Las Vegas, which another
sensor saw: 0.67 as it is, 0.69 brought near, 0.73 with no deviation allowed; of a network whose chips changed no band
by itself 0.16, and 0.64 with none allowed; of two networks after nine CPU-minutes 0.77 and 0.78. Zanzibar, which is
near: 0.61, and 0.57 with none allowed. Nairobi: 0.53, 0.53 and 0.55. With red darker by 25 counts and blue of half the
contrast laid on: Las Vegas 0.22 and 0.62 brought near, Zanzibar 0.11 and 0.56, Nairobi 0.28 and 0.32. A scene has
another mean, too, because other things are in it: pieces of 77 m, each taken for a scene, have 0.60 and 0.59 in
Zanzibar, 0.52 and 0.53 in Nairobi, 0.61 and 0.65 in Las Vegas.
Where a class covers the ground, such as water, it makes the mean, and files of one flight are moved each for itself: so
it is an option of detection, ``tone="near"``, and not the default. Every model card keeps the tones for it.

The statistics are robust as those of a data set are (of values clipped to percentiles), measured on blocks spread over
the whole scene at its working resolution, so that a detection inside an area of interest equals the same pixels of a
detection of everything. Rejected: statistics of a tile, which show its borders; and shifting values in the network
instead of in the reader, where a batch holds chips of several scenes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
from rasterio.windows import Window

from satseg.errors import InputError
from satseg.grid import slices
from satseg.imagery.normalization import FLOAT32_MAX, Normalization, Normalizer
from satseg.imagery.scene import Scene
from satseg.imagery.tiling import scattered_blocks

log = logging.getLogger(__name__)

UNSURE, ENOUGH_PX = 0.05, 1024**2
"""Deviations of the data learnt from, by which the mean of so many pixels may have come out otherwise, over what there
happens to be. Of pieces of Zanzibar, Nairobi and Banepa with sides of 1024, 512, 256 and 128 pixels the means had
spreads of 0.03 to 0.13, 0.08 to 0.34, 0.16 to 0.49 and 0.20 to 0.65."""
BLOCK_PX, SEED = 256, 0
MEASURED_BLOCKS = 64
"""With a valid pixel, per scene: 4 million pixels settle a percentile."""
OVERLOOKED = 0.3
"""Deviations by which all bands together may be darker or brighter: as `[augment] brightness` changes chips."""
ROUNDING = 1e-6
"""Of a deviation, by which a mean may lie outside its room."""
TRIED_BLOCKS = 256
"""Of a scene whose tone is measured: of a mosaic that is mostly empty not every block is read."""
Hidden: TypeAlias = Callable[[Window], Iterable[Window]]
"""hidden(block) -> windows whose pixels in the block do not count."""


@dataclass(frozen=True, slots=True)
class Tone:
    """The mean of each band of a scene, in its units, and of how many pixels it was found."""

    means: tuple[float, ...]
    pixels: int

    @property
    def unsure(self) -> float:
        """By how many deviations of the data learnt from a mean may lie off: the more, the smaller the scene."""
        return UNSURE * max(1.0, math.sqrt(ENOUGH_PX / self.pixels))


class Span(NamedTuple):
    """Between which values the mean of a band lies in scenes that are near, and the band's deviation."""

    low: float
    high: float
    spread: float


Room: TypeAlias = Mapping[str, Span]
"""By band."""


def nothing(block: Window) -> tuple[Window, ...]:
    """Of a block that counts as a whole, what does not count."""
    return ()


def levelled(scene: Scene) -> Scene:
    """Return `scene` with bands of mean 0 and standard deviation 1, float32; itself where it is so already.

    Raises
    ------
    InputError
        Not one valid pixel was found (E-IN-020), or values pass the range of float32 (E-IN-051).
    """
    if scene.levels is not None:
        return scene
    return replace(scene, levels=measured([(scene, nothing)], seed=SEED))


def tone(scene: Scene) -> Tone | None:
    """Return the tone of `scene`, values clipped as in `normalization`; None when no pixel that counts was found.

    Pixels that are 0, or the greatest number of the scene's type, in all bands do not count: collars that no nodata
    value declares.

    Raises
    ------
    InputError
        Values pass the range of float32 (E-IN-051).
    """
    meter = Normalizer(scene.bands)
    fills = (0, np.iinfo(scene.dtype).max) if np.issubdtype(scene.dtype, np.integer) else (0,)
    _look(meter, scene, nothing, seed=SEED, most=TRIED_BLOCKS, fills=fills)
    return Tone(meter.result().offset, meter.count) if meter.count else None


def kept_tone(scene: Scene) -> Tone | None:
    """Return `tone` of a scene to learn from; None also for values that the data as a whole can do with."""
    try:
        return tone(scene)
    except InputError as error:
        log.warning("the tone of %s is not kept: %s", scene.name, error)
        return None


def room_around(tones: Sequence[Tone], known: Normalization) -> dict[str, Span]:
    """Return the room that scenes of `tones`, of the bands of `known` in its order, leave another; none without any."""
    if not tones:
        return {}
    sides = [[np.array(one.means) + sign * one.unsure * np.array(known.scale) for one in tones] for sign in (-1, 1)]
    low, high = np.min(sides[0], axis=0).tolist(), np.max(sides[1], axis=0).tolist()
    return dict(zip(known.names, map(Span, low, high, known.scale), strict=True))


def brought_near(scene: Scene, room: Room) -> Scene:
    """Return `scene` in float32 with bands moved into `room`, as told above; itself where all are, or it is empty.

    Bands without room stay; a scene read by levels already stays too.
    """
    own = tone(scene) if room and scene.levels is None else None
    if own is None:
        return scene
    moves = _moves(own, {name: room[name] for name in scene.bands if name in room}, scene.bands)
    if not any(moves.values()):
        return scene
    told = ", ".join(f"{name} {move:+.3g}" for name, move in moves.items() if move)
    log.warning("%s is of another tone than all scenes learnt from: bands are moved by %s", scene.name, told)
    offset, each = tuple(-moves.get(name, 0.0) for name in scene.bands), (1.0,) * len(scene.bands)
    low, high = (tuple(sign * FLOAT32_MAX for _ in each) for sign in (-1, 1))
    return replace(scene, levels=Normalization(scene.bands, offset, each, low, high))


def _moves(own: Tone, room: Room, bands: Sequence[str]) -> dict[str, float]:
    """What has to be added to each band with room, of a scene with `bands`, to bring it near."""
    if not room:
        return {}
    low, high, spread = np.transpose([*room.values()])
    means = np.array([own.means[bands.index(name)] for name in room])
    away = (np.clip(means, low - own.unsure * spread, high + own.unsure * spread) - means) / spread
    away[abs(away) < ROUNDING] = 0.0
    alike = max(away.min(), 0.0) + min(away.max(), 0.0)  # of all bands, where all are to go one way
    return dict(zip(room, ((away - np.clip(alike, -OVERLOOKED, OVERLOOKED)) * spread).tolist(), strict=True))


def measured(looks: Sequence[tuple[Scene, Hidden]], *, seed: int) -> Normalization:
    """Return the normalization of the pixels of up to `MEASURED_BLOCKS` blocks of each scene that have any which count.

    Raises
    ------
    InputError
        As `levelled`.
    """
    meter = Normalizer(looks[0][0].bands)
    for scene, hidden in looks:
        _look(meter, scene, hidden, seed=seed)
    if meter.count == 0:
        names = ", ".join(scene.name for scene, _ in looks)
        raise InputError(f"not one valid pixel in {names}", hint="check nodata and masks", code="E-IN-020")
    return meter.result()


def _look(
    meter: Normalizer, scene: Scene, hidden: Hidden, *, seed: int, most: int | None = None, fills: Sequence[int] = ()
) -> None:
    """Let `meter` see up to `MEASURED_BLOCKS` blocks of `scene` that have any pixel which counts, of `most` read.

    Pixels that are one of `fills` in all bands do not count.
    """
    seen = 0
    with scene.reader() as reader:
        for block in islice(scattered_blocks(*scene.grid.shape, side=BLOCK_PX, seed=seed), most):
            raster = reader.read(block)
            usable = raster.valid.copy()
            for part in hidden(block):
                usable[slices(part, block)] = False
            for fill in fills:
                usable &= (raster.data != fill).any(axis=0)
            if usable.any():
                meter.update(replace(raster, valid=usable))
                seen += 1
            if seen == MEASURED_BLOCKS:
                break
