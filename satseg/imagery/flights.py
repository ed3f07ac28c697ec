"""Which scenes are tiles of one flight: files beside each other, of the same kind.

A flight or a satellite's pass is often delivered as hundreds of files, and each is too small to tell the light it was
taken in from what happens to be on its ground. Files of one CRS, pixel size, type and bands whose outlines touch are
taken for one flight; whether they are of one light, too, is for whoever measures them to see (`levels.as_flown`).
Rejected: names and dates, which no two providers write alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import shapely

from satseg.imagery.scene import Scene

MOST_FILES = 64
"""Of a flight that are looked at."""
SAME_SIZE = 0.01
"""By how much pixels of one flight may differ in length, as a share."""
SEED = 0


class Flight:
    """Scenes of one flight, and what was last found of them; made by `flights`.

    Parameters
    ----------
    scenes : sequence of Scene
        Those that are looked at.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = tuple(scenes)
        self._seen: tuple[object, tuple[Any, ...]] | None = None

    def each(self, whose: object, look: Callable[[Scene], Any]) -> tuple[Any, ...]:
        """Return what `look` finds of every scene; what it found before, where it was for the same `whose`."""
        if self._seen is None or self._seen[0] is not whose:
            self._seen = whose, tuple(map(look, self.scenes))
        return self._seen[1]


def flights(scenes: Sequence[Scene]) -> list[Flight]:
    """Return of each of `scenes` its flight, the same object for all that are of one.

    A scene without a CRS, or that touches no other of its kind, is a flight by itself. Of a flight of more than
    `MOST_FILES` scenes so many are looked at, and not every scene is among them.
    """
    beside = _neighbours(scenes)
    found: dict[int, Flight] = {}
    for first in range(len(scenes)):
        if first in found:
            continue
        members, waiting = {first}, [first]
        while waiting:
            fresh = beside[waiting.pop()] - members
            members |= fresh
            waiting += fresh
        chosen = np.random.default_rng(SEED).permutation(sorted(members))[:MOST_FILES]
        found |= dict.fromkeys(members, Flight([scenes[at] for at in sorted(chosen)]))
    return [found[at] for at in range(len(scenes))]


def _neighbours(scenes: Sequence[Scene]) -> list[set[int]]:
    """Of each scene the others of its kind that touch it, to within half a pixel."""
    outlines = np.array([scene.grid.footprint() for scene in scenes], dtype=object)
    tree, beside = shapely.STRtree(outlines), []
    for at, scene in enumerate(scenes):
        near = tree.query(outlines[at], predicate="dwithin", distance=max(scene.grid.resolution) / 2)
        beside.append({int(other) for other in near if other != at and _alike(scene, scenes[other])})
    return beside


def _alike(one: Scene, other: Scene) -> bool:
    sizes = np.divide(one.grid.resolution, other.grid.resolution)
    return (
        one.grid.crs is not None
        and one.grid.crs == other.grid.crs
        and (one.bands, one.dtype) == (other.bands, other.dtype)
        and bool((abs(np.log(sizes)) <= SAME_SIZE).all())
    )
