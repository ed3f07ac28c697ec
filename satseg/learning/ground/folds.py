"""Which scenes a model of a fold learns from, and which it is validated on: whole ground on one side.

Scenes of one group stay together; those that show the same ground are one group, whatever was said. Groups are dealt
out one by one, those with rare classes first, each to the fold that has least of what it brings (after Sechidis,
Tsoumakas and Vlahavas, "On the stratification of multi-label data", 2011). The training's seed counts for nothing, so
that families with other seeds have the same folds, and can be stacked. Rejected: shuffling until it looks even, which
loses a class of two scenes in most draws; and blocks of one scene, whose neighbours are too much alike to stand for
scenes that were never seen.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.errors import LabelError, UsageError
from satseg.imagery.scene import Scene
from satseg.learning.ground.split import LEAST_SHARED, Ground, shown_in

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dealt:
    """Scenes in folds: for each scene its name, its group and the number of its fold, from 1."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    fold_of: tuple[int, ...]
    folds: int

    def held(self, fold: int) -> tuple[int, ...]:
        """Return the places of the scenes that `fold` is validated on."""
        return tuple(place for place, own in enumerate(self.fold_of) if own == fold)

    def learnt(self, fold: int) -> tuple[int, ...]:
        """Return the places of the scenes that its model learns from."""
        return tuple(place for place, own in enumerate(self.fold_of) if own != fold)

    def to_text(self) -> str:
        """Return a line for each fold: the scenes that it is validated on."""
        lines = []
        for fold in range(1, self.folds + 1):
            lines.append(f"fold {fold} is validated on {', '.join(self.names[place] for place in self.held(fold))}")
        return "\n".join(lines)


def scene_names(scenes: Sequence[Scene]) -> tuple[str, ...]:
    """Return names that files can have, none twice: of each scene its own, or with a number after it."""
    names: list[str] = []
    for scene in scenes:
        stem = "".join("_" if mark in '/\\:*?"<>|' else mark for mark in scene.name) or "scene"
        taken = {name.casefold() for name in names}
        names.append(next(name for name in _numbered(stem) if name.casefold() not in taken))
    return tuple(names)


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1


def deal_scenes(grounds: Sequence[Ground], groups: Sequence[str | None], *, folds: int) -> Dealt:
    """Return `grounds` dealt to `folds` folds, all scenes of one ground to one.

    Parameters
    ----------
    grounds : sequence of Ground
    groups : sequence of (str or None)
        Of each ground; None: a group of its own.
    folds : int
        At least 2, and no more than there are groups.

    Raises
    ------
    UsageError
        More folds than groups, or fewer than 2 (E-TRN-020).
    LabelError
        A class that one fold alone has (E-TRN-021): the model that is to be scored on it could not learn it.
    """
    names = scene_names([ground.scene for ground in grounds])
    joined = joined_groups([ground.scene for ground in grounds], groups, names)
    kinds = sorted(set(joined))
    if not 2 <= folds <= len(kinds):
        raise UsageError(
            f"{folds} folds of {len(kinds)} group{'s' * (len(kinds) != 1)} of scenes ({len(grounds)} in all)",
            hint="give from 2 folds to as many as groups; of one scene, cut parts as scenes of their own",
            code="E-TRN-020",
        )
    counts = np.array([[len(polygons) for polygons in ground.labels.geometries] for ground in grounds])
    pixels = np.array([ground.scene.grid.height * ground.scene.grid.width for ground in grounds])
    members = [np.array([group == kind for group in joined]) for kind in kinds]
    present = np.array([counts[own].any(axis=0) for own in members])
    fold_of_kind = deal(present, np.array([pixels[own].sum() for own in members]), folds=folds)
    _refuse_unlearnt(grounds[0].labels.classes, present, fold_of_kind)
    fold_of = dict(zip(kinds, fold_of_kind, strict=True))
    return Dealt(names, joined, tuple(fold_of[group] + 1 for group in joined), folds)


def _refuse_unlearnt(classes: Sequence[str], present: NDArray[np.bool_], fold_of: Sequence[int]) -> None:
    for k, name in enumerate(classes):
        having = {fold for fold, there in zip(fold_of, present[:, k], strict=True) if there}
        if len(having) == 1:
            raise LabelError(
                f"all of class {name!r} lies in fold {having.pop() + 1}, whose model could not learn it",
                hint="label it in scenes of two groups, give other groups or folds, or leave it out of the classes",
                code="E-TRN-021",
            )


def joined_groups(scenes: Sequence[Scene], groups: Sequence[str | None], names: Sequence[str]) -> tuple[str, ...]:
    """Return the group of each scene, those that show the same ground in one; what is joined is told in the log."""
    known = {group for group in groups if group is not None}
    own = [group if group is not None else _unlike(name, known) for group, name in zip(groups, names, strict=True)]
    for first, second in _pairs_on_one_ground(scenes):
        if own[first] != own[second]:
            log.warning("%s and %s show the same ground: they stay in one fold", names[first], names[second])
            gone = own[second]
            own = [own[first] if group == gone else group for group in own]
    return tuple(own)


def _unlike(name: str, known: set[str]) -> str:
    """`name`, or what is like it and no group that was given."""
    while name in known:
        name = f"{name} (alone)"
    return name


def _pairs_on_one_ground(scenes: Sequence[Scene]) -> Iterator[tuple[int, int]]:
    """Places of scenes that `split.refuse_leaks` would refuse on two sides."""
    files = [{*map(os.path.realpath, scene.paths)} for scene in scenes]
    for second in range(len(scenes)):
        yield from ((first, second) for first in range(second) if files[first] & files[second])
    systems: list[int] = []
    for place, scene in enumerate(scenes):
        if scene.grid.crs is not None and not any(scenes[other].grid.crs == scene.grid.crs for other in systems):
            systems.append(place)
    for system in systems:
        yield from _overlapping(scenes, system)


def _overlapping(scenes: Sequence[Scene], system: int) -> Iterator[tuple[int, int]]:
    """Places of scenes in the CRS of that at `system`, and of others on more than a millionth of their ground."""
    crs = scenes[system].grid.crs
    placed = [place for place, scene in enumerate(scenes) if scene.grid.crs is not None]
    outlines = np.array([shown_in(scenes[place].grid, crs) for place in placed], dtype=object)
    for left, right in shapely.STRtree(outlines).query(outlines, predicate="intersects").T.tolist():
        first, second = placed[left], placed[right]
        if first == second or scenes[second].grid.crs != crs:
            continue
        if outlines[left].intersection(outlines[right]).area > LEAST_SHARED * outlines[right].area:
            yield min(first, second), max(first, second)


def deal(present: NDArray[np.bool_], sizes: NDArray[np.int64], *, folds: int, seed: int = 0) -> list[int]:
    """Return the fold of each group, from 0.

    Parameters
    ----------
    present : ndarray of bool, (G, K)
        Which classes a group has.
    sizes : ndarray, (G,)
        How large it is, in any unit.
    folds : int
        No more than groups; none is left empty.
    seed : int
        Decides between equals.
    """
    rarity = np.where(present.any(axis=0), 1 / np.maximum(present.sum(axis=0), 1), 0.0)
    brings = np.column_stack([present * rarity, sizes / sizes.sum()])
    rng = np.random.default_rng(seed)
    ties = rng.permutation(len(present))
    order = sorted(range(len(present)), key=lambda group: (-float(brings[group].sum()), int(ties[group])))
    fold_of = np.full(len(present), -1)
    held = np.zeros((folds, brings.shape[1]))
    turn = rng.permutation(folds)
    for place, group in enumerate(order):
        # What the fold already has of the classes that come, rare ones weighing most; then its size.
        cost = held[:, :-1] @ brings[group, :-1] + brings.shape[1] * held[:, -1] * brings[group, -1]
        empty = held[:, -1] == 0
        if empty.sum() == len(order) - place:
            cost[~empty] = np.inf  # as many folds wait as groups are left
        fold = int(turn[int(np.argmin(cost[turn]))])
        fold_of[group] = fold
        held[fold] += brings[group]
    return [int(fold) for fold in fold_of]
