"""Which scenes are files of one flight: beside each other and of one kind.

A flight or a satellite's pass is often delivered as hundreds of files, and each is too small to tell the light it was
taken in from what happens to be on its ground. Files of one CRS, pixel size, type and bands whose outlines touch are
taken for one flight, those that cover each other for two; whether a file is of the flight's light is for whoever
measures it to see (`levels.as_flown`). Rejected: names and dates, which no two providers write alike.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.crs import describe
from satseg.errors import UsageError
from satseg.imagery.scene import Scene

MOST_FILES = 64
"""Of a flight that are looked at."""
SAME_SIZE = 0.01
"""By how much pixels of one flight may differ in length, as a share."""
COVERED = 0.5
"""Share of the smaller of two files from which on they are of two flights, such as of two dates."""
SEED = 0


class Flight:
    """Scenes of one flight, and what was last measured of them; made by `flights`.

    Parameters
    ----------
    scenes : sequence of Scene
        Those that are looked at.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = tuple(scenes)
        self._last: tuple[Hashable, tuple[Any, ...]] | None = None

    def measured(self, key: Hashable, measure: Callable[[Scene], Any]) -> tuple[Any, ...]:
        """Return what `measure` finds of each scene, or what it found under the same `key` the last time."""
        if self._last is None or self._last[0] != key:
            self._last = key, tuple(map(measure, self.scenes))
        return self._last[1]


def flights(scenes: Iterable[Scene]) -> list[Flight]:
    """Return of each of `scenes` its flight, the same object for all that are of one.

    A scene without a CRS, or that touches no other of its kind, is a flight by itself. Of a flight of more than
    `MOST_FILES` scenes so many are looked at, the same ones in whatever order they come.

    Raises
    ------
    UsageError
        Something else than open scenes.
    """
    found = [] if isinstance(scenes, Scene) else list(scenes)
    if isinstance(scenes, Scene) or not all(isinstance(one, Scene) for one in found):
        raise UsageError(
            "flights are of several open scenes", hint="give [satseg.open_scene(path) for path in paths]",
            code="E-USE-033",
        )  # fmt: skip
    members = [{at} for at in range(len(found))]
    for one, other in _neighbours(found):
        small, large = sorted((members[one], members[other]), key=len)
        if small is not large:
            large |= small
            for at in small:
                members[at] = large
    groups = {id(group): sorted(group) for group in members}
    flight_of = {key: Flight(_looked_at([found[at] for at in group])) for key, group in groups.items()}
    return [flight_of[id(group)] for group in members]


def _looked_at(scenes: Sequence[Scene]) -> list[Scene]:
    """Up to `MOST_FILES` of `scenes`, the same ones in whatever order they come."""
    placed = sorted(scenes, key=lambda scene: (scene.grid.bounds, scene.name))
    chosen = np.random.default_rng(SEED).permutation(len(placed))[:MOST_FILES]
    return [placed[at] for at in sorted(chosen)]


def _neighbours(scenes: Sequence[Scene]) -> NDArray[np.intp]:
    """Pairs (N, 2) of scenes of one kind that touch, to within half a pixel, and do not cover each other."""
    kinds: dict[object, list[int]] = {}
    for at, scene in enumerate(scenes):
        if scene.grid.crs is not None:
            kinds.setdefault((describe(scene.grid.crs), scene.bands, scene.dtype), []).append(at)
    pairs = [np.empty((0, 2), np.intp)]
    for kind in kinds.values():
        members = np.array(kind)
        outlines = np.array([scenes[at].grid.footprint() for at in kind], dtype=object)
        sizes = np.log([scenes[at].grid.resolution for at in kind])
        apart = np.exp(sizes).max(axis=1) / 2
        one, other = shapely.STRtree(outlines).query(outlines, predicate="dwithin", distance=apart)
        one, other = one[one < other], other[one < other]
        alike = (abs(sizes[one] - sizes[other]) <= SAME_SIZE).all(axis=1)
        one, other = one[alike], other[alike]
        common = shapely.area(shapely.intersection(outlines[one], outlines[other]))
        beside = common < COVERED * np.minimum(*shapely.area([outlines[one], outlines[other]]))
        pairs.append(members[np.column_stack([one, other])[beside]])
    return np.concatenate(pairs)
