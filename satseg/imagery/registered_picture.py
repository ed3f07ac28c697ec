"""A picture of what registration did: two products of a scene in the squares of a chequer-board, before and after.

Where products lie on each other, roads and roofs run on from square to square; where they do not, they break at every
border. Both products are read on the scene's grid as anything else reads them, so that what is seen is what is learnt
from. Rejected: a red and green overlay, which shows a difference of response as brightly as one of place.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import UsageError
from satseg.imagery.registration import Registration
from satseg.imagery.scene import Scene
from satseg.imagery.sources import BandSource
from satseg.preview import encode_png, stretch

SIDE_PX, SQUARE_PX, GAP_PX = 384, 48, 6
"""Pixels of the part that is shown, of a square of the board, and between both boards, which is white."""


def registered_picture(
    plain: Scene, moved: Scene, *, window: Window | None = None, square: int = SQUARE_PX
) -> bytes:
    """Return a PNG of two boards: the product that was moved furthest against the others, before and after.

    Parameters
    ----------
    plain, moved : Scene
        As it was opened, and as `satseg.imagery.registration.registered` returns it.
    window : Window, optional
        Part of the scene's grid; its middle when left out.
    square : int
        Side of a square in pixels.

    Raises
    ------
    UsageError
        No product of `moved` was moved (E-USE-083).
    GridError, InputError
        As `Scene.read`.
    """
    furthest = max((one for one in moved.registrations if one.is_moved), key=_length, default=None)
    if furthest is None:
        raise UsageError(
            f"no product of {moved.name} was moved", hint="its registrations say why", code="E-USE-083"
        )
    place = _middle(moved) if window is None else window
    boards = [_board(scene, furthest.paths, place, square) for scene in (plain, moved)]
    gap = np.full((boards[0].shape[0], GAP_PX), 255, np.uint8)
    return encode_png(np.hstack([boards[0], gap, boards[1]])[None])


def _length(found: Registration) -> float:
    return float(np.hypot(found.scene_rows, found.scene_cols))


def _middle(scene: Scene) -> Window:
    height, width = (min(SIDE_PX, side) for side in scene.grid.shape)
    return Window((scene.grid.width - width) // 2, (scene.grid.height - height) // 2, width, height)


def _board(scene: Scene, paths: tuple[str, ...], place: Window, square: int) -> NDArray[np.uint8]:
    """One board (H, W): squares of the product of `paths`, and of all others."""
    theirs = tuple(source for source in scene.sources if source.path in paths)
    others = tuple(source for source in scene.sources if source.path not in paths)
    grey = [_grey(scene, sources, place) for sources in (others, theirs)]
    rows, cols = (np.arange(side) // square for side in grey[0].shape)
    return np.where((rows[:, None] + cols) % 2 == 0, *grey)


def _grey(scene: Scene, sources: tuple[BandSource, ...], place: Window) -> NDArray[np.uint8]:
    """The mean of `sources`, each stretched, (H, W)."""
    part = replace(scene, sources=sources, indices=(), shown=()).read(window=place)
    return np.asarray(np.mean([stretch(band, part.valid) for band in part.data], axis=0), np.uint8)
