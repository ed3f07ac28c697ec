"""Folds that keep ground together: tiles of one place never stand on both sides of a split.

Three pairs of regions show the same ground at two times, and the labels of twins agree to a percent, so that a split
by tile scores what was learnt by heart. A group here is all the tiles of one ground, mosaics being 5 km wide and their
tiles neighbours; ``by="tile"`` lets neighbours part and keeps only twins together.
Groups are dealt out as `satseg.learning.ground.folds` does for any scenes, rare classes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from satseg.errors import LabelError, UsageError
from satseg.learning.ground.folds import deal
from satseg.tasks.dstl.facts import ground_of, tile_ground_of

By: TypeAlias = Literal["region", "tile"]
GROUNDS: Mapping[By, Callable[[str], str]] = {"region": ground_of, "tile": tile_ground_of}


@dataclass(frozen=True, slots=True)
class Split:
    """Tiles to learn from and tiles to validate on, both sorted."""

    train: tuple[str, ...]
    valid: tuple[str, ...]


def kfold(areas: Mapping[str, ArrayLike], *, folds: int = 5, seed: int = 0, by: By = "region") -> tuple[Split, ...]:
    """Return `folds` splits; every tile is validated on once, and never with its ground in training.

    Parameters
    ----------
    areas : mapping of tile to (K,) areas of its classes
        Only whether a class is there counts; `satseg.tasks.dstl.labels.class_areas` gives them.
    folds : int
        At least 2, and no more than there are grounds.
    seed : int
        Decides between equals; the same seed gives the same folds.
    by : "region" or "tile"
        What is one ground: see the module.

    Raises
    ------
    UsageError
        More folds than grounds, or fewer than 2 (E-USE-303); `by` is neither of the two (E-USE-307).
    """
    groups: dict[str, list[str]] = {}
    ground = _ground(by)
    for image_id in sorted(areas):
        groups.setdefault(ground(image_id), []).append(image_id)
    if not 2 <= folds <= len(groups):
        raise UsageError(
            f"{folds} folds of {len(groups)} grounds ({len(areas)} tiles)",
            hint="give 2 folds or more, and no more than there are grounds",
            code="E-USE-303",
        )
    names = sorted(groups)
    present = np.array([np.any([np.asarray(areas[i]) > 0 for i in groups[name]], axis=0) for name in names])
    sizes = np.array([len(groups[name]) for name in names])
    fold_of = deal(present, sizes, folds=folds, seed=seed)
    held = [tuple(sorted(i for name, own in zip(names, fold_of, strict=True) if own == fold for i in groups[name]))
            for fold in range(folds)]  # fmt: skip
    everything = sorted(areas)
    return tuple(Split(tuple(i for i in everything if i not in valid), valid) for valid in held)


def check_split(train: Iterable[str], valid: Iterable[str], *, by: By = "region") -> None:
    """Raise when ground is on both sides of a split.

    Raises
    ------
    LabelError
        Tiles of one ground on both sides (E-LAB-321), which are named.
    UsageError
        `by` is neither "region" nor "tile" (E-USE-307).
    """
    ground = _ground(by)
    learnt: dict[str, list[str]] = {}
    for image_id in sorted(train):
        learnt.setdefault(ground(image_id), []).append(image_id)
    shared = [(own, learnt[ground(own)][0]) for own in sorted(valid) if ground(own) in learnt]
    if shared:
        held, other = shared[0]
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise LabelError(
            f"validation tile {held} shows ground of training tile {other}{more}",
            hint="split by ground, as `satseg dstl prepare` does",
            code="E-LAB-321",
        )


def _ground(by: By) -> Callable[[str], str]:
    if by not in GROUNDS:
        raise UsageError(f"ground is told apart by {' or '.join(GROUNDS)}, not {by!r}", code="E-USE-307")
    return GROUNDS[by]
