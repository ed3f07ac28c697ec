"""Two products of one ground for tests of registration: the second coarser, and shifted by parts of its pixels.

Import as ``from tests.lands import ...``. Pixels are exact means over the ground they show, so that what was planted
is the truth to the last digit, at any ratio of pixel sizes.
"""

from __future__ import annotations

import numpy as np
from affine import Affine

from tests.factories import north_up, write_tiff

SHIFT = (2.30, -1.70)
SIDES = (310, 370)
"""Height and width of the ground in fine pixels of a metre, where nothing else is said."""


def ground(height, width, seed=0):
    """A smooth land of fields, roads and roofs in three bands of different response, one value per fine pixel."""
    rng = np.random.default_rng(seed)
    planes = np.full((3, height, width), 300.0) + np.add.outer(np.arange(height), np.arange(width)) / 10
    for _ in range(height * width // 2500):  # fields
        r, c, h, w = rng.integers((0, 0, 20, 20), (height, width, 90, 90))
        planes[:, r : r + h, c : c + w] = rng.integers(250, 900, 3)[:, None, None]
    for at in rng.integers(0, width, width // 100):
        planes[:, :, at : at + 6] = 420
    for at in rng.integers(0, height, height // 100):
        planes[:, at : at + 7] = 430
    for _ in range(height * width // 400):  # roofs and crowns
        r, c, h, w = rng.integers((0, 0, 4, 4), (height, width, 16, 16))
        planes[:, r : r + h, c : c + w] = rng.integers(150, 1500, 3)[:, None, None]
    return planes


def seen(planes, size, top, left, height, width):
    """Means of `planes` (C, H, W) over pixels of `size` fine ones, the first at `top`, `left`: what a sensor sees."""
    total = np.pad(planes.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))

    def at(values, edges, axis):
        low = np.floor(edges).astype(int)
        part = (edges - low).reshape((-1, 1) if axis == 1 else (-1,))
        return values.take(low, axis) * (1 - part) + values.take(low + 1, axis) * part

    rows, cols = (start + size * np.arange(n + 1) for start, n in ((top, height), (left, width)))
    return np.diff(np.diff(at(at(total, rows, 1), cols, 2), axis=1), axis=2) / size**2


def pair(folder, *, ratio=1.0, shift=SHIFT, sides=SIDES, change=lambda data: data, place=None, **how):
    """Two files of one ground: the first as it is, the second lying `shift` of its own pixels down and right."""
    edge = int(12 * ratio) + 8
    planes = ground(sides[0] + 2 * edge, sides[1] + 2 * edge)
    place = place or north_up(1.0)
    one = seen(planes, 1.0, edge, edge, *sides).round().astype("uint16")
    starts = [edge - step * ratio for step in shift]
    other = change(seen(planes, ratio, *starts, *(int(side / ratio) for side in sides)))
    grow = Affine.scale(ratio)
    files = [folder / "fine.tif", folder / "coarse.tif"]
    write_tiff(files[0], one, transform=place, **how)
    dtype = other.dtype if other.dtype.kind == "u" else "uint16"
    write_tiff(files[1], other.round().astype(dtype), transform=Affine(*(place @ grow)[:6]), **how)
    return files


def only(scene):
    (found,) = scene.registrations
    return found
