"""A scene's bands brought to its own mean and spread, or near the tones known, against other light and other sensors.

What a network learns of colours then holds where a town is darker or hazier than those learnt from, and what
brightness itself says of a class is lost: a field of one crop and a city come out with the same mean. It is an option
of training (`[data] normalize = "scene"`) and off by default, for it costs more than it brings in towns seen by
drones: after 3 CPU-minutes on two of them the Jaccard of buildings in a third was 0.47 against 0.51 in Nairobi and
0.37 against 0.63 in Zanzibar (one run each, `benchmarks.accuracy`).

A scene brought near is moved by about the least that puts every band's mean among those of the scenes learnt from, and
stays as it is where it is there already. A mean is of what happens to be in a scene, too, the sea or a field: so each
may lie off by `UNSURE` deviations, more for a small scene, and what all bands are darker or brighter by in common is
left, up to `OVERLOOKED`, for networks are taught not to mind that. Spectral indices are bands of their own here; after
a move they no longer are what their formula gives. Evidence: networks that learnt from other towns for 3 to 4.5
CPU-minutes, polygon Jaccard / F1 of buildings as the scene is, and brought near.

================================ ==================== ==================== ==========================
learnt from, bands apart in      Nairobi              Zanzibar             Las Vegas (another sensor)
================================ ==================== ==================== ==========================
other towns, all chips (2, 1, 2) .552/.658, .565/.687 .612/.573, .613/.564 .595/.303, .652/.316
other towns, half (2 runs each)  .555/.647, .561/.696 .648/.595, .656/.606 .548/.208, .695/.343
other towns, none (1 run each)   .547/.657, .551/.679 .615/.573, .632/.582 .098/.026, .666/.500
Banepa alone, all (1 run)        .488/.610, .482/.587 .334/.292, .567/.514 .501/.157, .723/.413
================================ ==================== ==================== ==========================

Files of one flight (`imagery.flights`) have one tone, the median of theirs, unless a file's own lies so far off that it
must be of another light. Pieces of 77 and 154 m as files, Jaccards of scores at 0.4, means of two networks of 3
CPU-minutes on other towns: as they are, each brought near by itself, and as a flight.

===== ===================== ===================== =====================
piece Nairobi               Zanzibar              Las Vegas
===== ===================== ===================== =====================
77 m  0.499, 0.506, 0.518   0.610, 0.612, 0.622   0.446, 0.547, 0.606
154 m 0.506, 0.508, 0.512   0.610, 0.622, 0.636   0.463, 0.602, 0.618
===== ===================== ===================== =====================

Rejected: 0.1 deviations in all for any scene, however small (pieces of Zanzibar 0.566 and 0.624, with networks that
have 0.657 and 0.668 as they are); moving only what bands differ by, as precisely as that can be measured (0.533 in
Zanzibar, whose ground is of another colour); batch normalisation by statistics of the new scene (Nairobi 0.525 for
0.564, Zanzibar 0.195 for 0.597).

Where a class covers the ground, such as water or forest, it makes the mean: so this is the default of models whose
classes are all compact objects, learnt apart, and of no other; ``tone`` of a detection says otherwise. Every model card
keeps the tones of the scenes learnt from.

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
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import InputError
from satseg.grid import slices
from satseg.imagery.flights import flights
from satseg.imagery.normalization import FLOAT32_MAX, Normalization, Normalizer
from satseg.imagery.scene import Scene
from satseg.imagery.tiling import scattered_blocks

log = logging.getLogger(__name__)

UNSURE, ENOUGH_PX = 0.075, 512**2
"""Deviations of the data learnt from, by which the mean of so many pixels may have come out otherwise, over what there
happens to be. Of pieces of Zanzibar, Nairobi and Banepa with sides of 1024, 512, 256 and 128 pixels the means had
spreads of 0.03 to 0.13, 0.08 to 0.34, 0.16 to 0.49 and 0.20 to 0.65."""
BLOCK_PX, SEED = 256, 0
MEASURED_BLOCKS = 64
"""With a valid pixel, per scene: 4 million pixels settle a percentile."""
OVERLOOKED = 0.3
"""Deviations by which all bands together may be darker or brighter: as `[augment] brightness` changes chips."""
ALIKE = 5.0
"""Times as far as a mean may lie off, by which that of a file may differ from its flight's: what is farther is of
another light. Of 369 pieces of 128 to 512 pixels a side, of three flights, two were. Rejected: three deviations of the
flight's files, where that is more; pieces of 154 m of Zanzibar, one of which lies so far off, had 0.637 for 0.650.
"""
JPEG_COUNTS = 3
"""By which compression moves the black or white of a collar."""
ROUNDING = 1e-6
"""Of a deviation, by which a mean may lie outside its room."""
TRIED_BLOCKS = 256
"""Of a scene whose tone is measured: of a mosaic that is mostly empty not every block is read."""
Hidden: TypeAlias = Callable[[Window], Iterable[Window]]
"""hidden(block) -> windows whose pixels in the block do not count."""
Blank: TypeAlias = Callable[[NDArray[Any]], NDArray[np.bool_]]
"""blank(data (C, H, W)) -> which pixels (H, W) are no ground."""


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
    """Between which values the mean of a band lies in scenes that are near, its deviation, and its limits."""

    low: float
    high: float
    spread: float
    least: float = -math.inf
    most: float = math.inf

    @classmethod
    def over(cls, spans: Sequence[Span]) -> Span:
        """All of `spans`, and what lies between them."""
        low, high, spread, least, most = zip(*spans, strict=True)
        return cls(min(low), max(high), min(spread), min(least), max(most))


ANY = Span(-math.inf, math.inf, math.inf)
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


def tone(scene: Scene, room: Room | None = None, *, blocks: int = MEASURED_BLOCKS) -> Tone | None:
    """Return the tone of `scene`, values clipped as in `normalization`; None when no pixel that counts was found.

    A fill that no nodata value declares does not count: what is 0, or the greatest number of the scene's type, in all
    bands, within 3 counts where they are bytes (as JPEG leaves a collar), and what is outside the limits of `room` in
    all bands. None also, with a warning, where values pass the range of float32. Up to `blocks` blocks are measured.
    """
    meter = Normalizer(scene.bands)
    least, most = np.array([(span.least, span.most) for span in _spans(scene, room or {})]).T[:, :, None, None]
    slack = JPEG_COUNTS if scene.dtype == np.uint8 else 0
    full = np.iinfo(scene.dtype).max - slack if np.issubdtype(scene.dtype, np.integer) else np.inf

    def blank(data: NDArray[Any]) -> NDArray[np.bool_]:
        found = ((data >= -slack) & (data <= slack)).all(axis=0) | (data >= full).all(axis=0)
        return np.asarray(found | ((data < least) | (data > most)).all(axis=0))

    try:
        _look(meter, scene, nothing, seed=SEED, wanted=blocks, most=TRIED_BLOCKS, blank=blank)
        return Tone(meter.result().offset, meter.count) if meter.count else None
    except InputError as error:
        log.warning("the tone of %s is not known: %s", scene.name, error)
        return None


def _spans(scene: Scene, room: Room) -> list[Span]:
    """`room` of each band of `scene`."""
    return [room.get(name, ANY) for name in scene.bands]


def as_flown(own: Tone, others: Sequence[Tone | None], room: Sequence[Span]) -> Tone:
    """Return the tone of the flight that a file of tone `own` is of, the median of its files; `own` where it is not so.

    Namely where it lies farther from the flight's, in a band of `room`, than a file of its size may.
    """
    known = [one for one in others if one is not None]
    if len(known) < 2:
        return own
    common = np.median([one.means for one in known], axis=0)
    unsure = own.unsure * np.array([span.spread for span in room])
    if (abs(common - own.means) > ALIKE * unsure).any():
        return own
    return Tone(tuple(common.tolist()), sum(one.pixels for one in known))


def tones(scenes: Sequence[Scene], room: Room) -> list[Tone | None]:
    """Return of each scene, all of the same bands, its tone, or that of its flight."""
    own = {id(scene): tone(scene, room) for scene in scenes}
    return [
        (one := own[id(scene)]) and as_flown(one, [own[id(other)] for other in flight.scenes], _spans(scene, room))
        for scene, flight in zip(scenes, flights(scenes), strict=True)
    ]


def all_room(known: Normalization) -> dict[str, Span]:
    """Return room for any mean of the bands of `known`, values limited as any light can make them.

    Which is thrice the width to which they are clipped.
    """
    sides = zip(known.names, known.scale, known.low, known.high, strict=True)
    return {
        name: Span(-math.inf, math.inf, spread, 2 * low - high, 2 * high - low) for name, spread, low, high in sides
    }


def room_around(tones: Sequence[Tone], known: Normalization) -> dict[str, Span]:
    """Return the room that scenes of `tones`, of the bands of `known` in its order, leave another; none without any."""
    if not tones:
        return {}
    room = {}
    for place, (name, span) in enumerate(all_room(known).items()):
        seen = [(one.means[place], one.unsure * span.spread) for one in tones]
        room[name] = Span.over([span._replace(low=mean - margin, high=mean + margin) for mean, margin in seen])
    return room


def brought_near(scene: Scene, room: Room, flight: Sequence[Tone | None] = ()) -> Scene:
    """Return `scene` in float32 with bands moved into `room`, as told above; itself where all are, or it is empty.

    Bands without room stay; a scene read by levels already stays too. A file of a flight is moved as the tones of the
    flight's files say.
    """
    if scene.levels is not None or not any(name in room for name in scene.bands):
        return scene
    own = tone(scene, room)
    return _near(scene, own and as_flown(own, flight, _spans(scene, room)), room)


def all_near(scenes: Sequence[Scene], room: Room) -> list[Scene]:
    """Return `scenes`, of the same bands, brought near, those of one flight together."""
    return [_near(scene, own, room) for scene, own in zip(scenes, tones(scenes, room), strict=True)]


def _near(scene: Scene, own: Tone | None, room: Room) -> Scene:
    """`scene`, of the tone `own`, moved into `room`."""
    spans = {name: room[name] for name in scene.bands if name in room}
    moves = _moves(own, spans, scene) if own is not None and spans else {}
    if not any(moves.values()):
        return scene
    told = ", ".join(f"{name} {move:+.3g}" for name, move in moves.items() if move)
    log.warning(
        "%s is of another tone than all that was learnt from: bands are moved by %s (tone 'own' leaves them)",
        scene.name, told,
    )  # fmt: skip
    offset, each = tuple(-moves.get(name, 0.0) for name in scene.bands), (1.0,) * len(scene.bands)
    low, high = (tuple(sign * FLOAT32_MAX for _ in each) for sign in (-1, 1))
    return replace(scene, levels=Normalization(scene.bands, offset, each, low, high))


def _moves(own: Tone, room: Room, scene: Scene) -> dict[str, float]:
    """What has to be added to each band with room to bring `scene`, of the tone `own`, near."""
    low, high, spread = np.transpose([*room.values()])[:3]
    means = np.array([own.means[scene.bands.index(name)] for name in room])
    away = (np.clip(means, low - own.unsure * spread, high + own.unsure * spread) - means) / spread
    computed = {index.name for index in scene.indices}  # of ratios, which brightness does not change
    lit = np.array([name not in computed for name in room])
    if lit.any():  # what all are to go in one direction
        alike = max(away[lit].min(), 0.0) + min(away[lit].max(), 0.0)
        away[lit] -= np.clip(alike, -OVERLOOKED, OVERLOOKED)
    away[abs(away) < ROUNDING] = 0.0
    return dict(zip(room, (away * spread).tolist(), strict=True))


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
    meter: Normalizer,
    scene: Scene,
    hidden: Hidden,
    *,
    seed: int,
    wanted: int = MEASURED_BLOCKS,
    most: int | None = None,
    blank: Blank | None = None,
) -> None:
    """Let `meter` see `wanted` blocks of `scene` that have any pixel which counts, of `most` read."""
    seen = 0
    with scene.reader() as reader:
        for block in islice(scattered_blocks(*scene.grid.shape, side=BLOCK_PX, seed=seed), most):
            raster = reader.read(block)
            usable = raster.valid.copy()
            for part in hidden(block):
                usable[slices(part, block)] = False
            if blank is not None:
                usable &= ~blank(raster.data)
            if usable.any():
                meter.update(replace(raster, valid=usable))
                seen += 1
            if seen == wanted:
                break
