"""How a model meets a scene: its bands, its resolution, its margin, the area asked for.

Each tile is read with a halo as wide as the network's reach and only its core is kept, so the scores do
not depend on how the scene was cut. Blending overlapping tiles was rejected: it hides seams instead of
removing them, and needs accumulators as large as the scene. The tile lattice is anchored at the scene's
origin and aligned to the network's stride, so that a detection inside `bounds` equals the same pixels of a
detection of everything. The work itself is done by `engine`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
from rasterio.windows import Window

from satseg.errors import GridError, SatsegError, UsageError
from satseg.grid import Grid, slices
from satseg.imagery.flights import Flight
from satseg.imagery.levels import MEASURED_BLOCKS, Tone, brought_near, levelled, tone
from satseg.imagery.scene import Scene
from satseg.learning.detection.engine import RowBand
from satseg.learning.networks.ensemble import Predictor
from satseg.learning.networks.model import Model
from satseg.raster import Raster


def working_scene(model: Predictor, scene: Scene) -> Scene:
    """`scene` with the model's bands, indices among them computed, at its working resolution.

    A scene whose GSD is within 5 % of the model's keeps its own grid, as does one without a CRS,
    whose pixel size is in unknown units.

    Raises
    ------
    BandError
        The scene lacks a band that the model needs, or has it in another unit than an index needs.
    """
    model.check_bands(scene.bands)
    computed = [index.on(scene) for index in model.indices if index.item.name not in scene.bands]
    chosen = scene.with_index_bands(computed).select(model.bands)
    wanted = model.gsd_m
    if wanted is None or scene.grid.crs is None or abs(scene.grid.gsd_m() / wanted - 1) <= 0.05:
        return chosen
    return chosen.at_gsd(wanted)


def toned_scene(
    model: Predictor, scene: Scene, how: Literal["own", "near"] | None = None, flight: Flight | None = None
) -> Scene:
    """Return `scene`, with the model's bands, at its own levels or near the tones the model knows.

    Parameters
    ----------
    how : {"own", "near"}, optional
        As the model says when left out.
    flight : Flight, optional
        Of which the scene is a file.

    Raises
    ------
    UsageError
        `how` is "near", and the model reads scenes by their own levels or does not know the tones of its own.
    InputError
        As `levelled`.
    """
    levels = model.normalize == "scene"
    if how == "near" and (levels or not model.room):
        why = "brings every scene to its own levels" if levels else "does not know the tones it learnt from"
        raise UsageError(f"tone='near', but the model {why}", hint="leave tone out", code="E-USE-029")
    if levels:
        return levelled(scene)
    if (how or model.normalize) != "near":
        return scene
    if flight is None or len(flight.scenes) < 2:
        return brought_near(scene, model.room)
    blocks = math.ceil(MEASURED_BLOCKS / len(flight.scenes))

    def tone_of(one: Scene) -> Tone | None:
        try:
            return tone(working_scene(model, one), model.room, blocks=blocks)
        except SatsegError:  # told where that file itself is worked on
            return None

    known_by = (model.bands, model.gsd_m, *model.room.items())
    return brought_near(scene, model.room, flight.measured(known_by, tone_of))


def chosen_halo(model: Model, halo: int | Literal["exact"] | None) -> int:
    """Return the margin of a tile in pixels: as given, all of the network's reach, or the model's own.

    A margin of pixels counts for all members of an ensemble; the others are each member's own.

    Raises
    ------
    GridError
        It does not even cover the network's own valid-centre crop (E-GRID-010), or "exact" is asked for
        and the network's reach has no end (E-GRID-013).
    """
    if halo is None:
        return model.halo
    if halo == "exact":
        if model.network.reach is None:
            raise GridError(
                "halo exact: this network looks at all of a tile, no halo makes tiles equal the whole scene",
                hint=f"give pixels, such as {model.network.halo}, or leave it out for the measured {model.halo}",
                code="E-GRID-013",
            )
        return model.network.halo
    if halo < model.network.crop:
        raise GridError(
            f"halo {halo} is smaller than the network's crop of {model.network.crop} pixels", code="E-GRID-010"
        )
    return halo


def gather(bands: Iterable[RowBand], grid: Grid, window: Window, names: tuple[str, ...]) -> Raster:
    """Return the scores of row bands as one raster in memory.

    Parameters
    ----------
    bands : iterable of RowBand
        With "scores" in float32.

    Returns
    -------
    Raster, (K, H, W) float32 in 0..1
        On the part `window` of `grid`; invalid pixels hold 0.
    """
    shape = (round(window.height), round(window.width))
    scores = np.zeros((len(names), *shape), np.float32)
    valid = np.zeros(shape, bool)
    for band in bands:
        rows, cols = slices(band.window, window)
        found = band.planes["scores"]
        valid[rows, cols] = ~np.isnan(found[0])
        scores[:, rows, cols] = np.nan_to_num(found, copy=False, nan=0.0)
    return Raster(scores, grid.crop(window), names, valid)
