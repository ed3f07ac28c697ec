"""Whether models can answer as one, and the classes that they then have in common.

Told from their cards alone, so that an ensemble file is made of models without loading a weight. What differs from the
first model is named: one raster of scores is made of all, so classes, their order and the resolution are the same,
and an index means one thing. Thresholds and clean-up may differ, and are brought together. Rejected: members matched
by the names of their classes alone, of which one member would be silent where others know a class more.

Codes: E-MOD-041 classes, 042 resolutions, 043 indices that do not fit together, 045 rules of a class, 046 levels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import fmean, geometric_mean

from satseg.classes import ClassItem
from satseg.errors import ModelError, UsageError
from satseg.learning.card import IndexCard, ModelCard
from satseg.learning.networks.ensemble_file import Mean

log = logging.getLogger(__name__)

SAME_GSD = 0.05
"""Share by which working resolutions may differ: as a scene's may from its model's."""
SIZES = ("min_area_m2", "min_sure_m2", "min_core_m2", "min_hole_m2")
"""Of clean-up, of which the least of several models' holds."""


def check_together(cards: Sequence[ModelCard], names: Sequence[str]) -> None:
    """Raise when models, called `names`, cannot answer as one; what differs from the first is named.

    Raises
    ------
    ModelError
        They differ in classes (E-MOD-041), resolution (042), an index (043), rules (045) or levels (046).
    UsageError
        They are fewer than two (E-USE-025).
    """
    if len(cards) < 2:
        raise UsageError(f"an ensemble of {len(cards)} is none", hint="give two models or more", code="E-USE-025")
    first = cards[0]
    for card, name in zip(cards[1:], names[1:], strict=True):
        pair = f"{names[0]} and {name}"
        ours, theirs = ([f"{item.name} ({item.id})" for item in one.classes] for one in (first, card))
        if ours != theirs:
            raise ModelError(
                f"{pair} know other classes: {', '.join(ours)} and {', '.join(theirs)}",
                hint="members know the same classes, by name and number, in the same order", code="E-MOD-041",
            )  # fmt: skip
        for one, other in zip(first.classes, card.classes, strict=True):
            if (one.erases, one.becomes) != (other.erases, other.becomes):
                raise ModelError(
                    f"{pair} have other rules of {one.name!r}: {'; '.join(one.rules)} and {'; '.join(other.rules)}",
                    hint="train members with one class list", code="E-MOD-045",
                )  # fmt: skip
        if not _same_gsd(first.gsd_m, card.gsd_m):
            raise ModelError(
                f"{pair} work at other resolutions: {_metres(first.gsd_m)} and {_metres(card.gsd_m)}",
                hint="train members with one --gsd", code="E-MOD-042",
            )  # fmt: skip
        if (first.normalize == "scene") != (card.normalize == "scene"):
            raise ModelError(
                f"{pair} see scenes otherwise: one by the scene's own levels, the other by those of its data",
                hint="train members with one normalize=", code="E-MOD-046",
            )  # fmt: skip
    _tell_twice(cards, names)
    known: dict[str, tuple[str, IndexCard]] = {}
    for card, name in zip(cards, names, strict=True):
        for index in card.indices:
            earlier, meant = known.setdefault(index.item.name, (name, index))
            if meant != index:
                raise ModelError(f"{earlier} and {name} mean other things by {index.item.name}", code="E-MOD-043")


def _tell_twice(cards: Sequence[ModelCard], names: Sequence[str]) -> None:
    """Warn of models with the same weights, each of which has a say: of saved ones, whose cards know their weights."""
    known: dict[str, str] = {}
    for card, name in zip(cards, names, strict=True):
        if card.weights_sha256 in known:
            log.warning("%s has the weights of %s: they count twice", name, known[card.weights_sha256])
        elif card.weights_sha256 is not None:
            known[card.weights_sha256] = name


def _same_gsd(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one / other - 1) <= SAME_GSD


def _metres(gsd_m: float | None) -> str:
    return "that of the scene" if gsd_m is None else f"{gsd_m:.4g} m"


def common_items(
    cards: Sequence[ModelCard], mean: Mean = "arithmetic", thresholds: Mapping[str, float] | None = None
) -> tuple[ClassItem, ...]:
    """Return the classes of several models: `thresholds` where given, else the mean of theirs, which scores are too."""
    items, given = [], thresholds or {}
    for same in zip(*(card.classes for card in cards), strict=True):
        first = same[0]
        levels = [item.threshold for item in same]
        own = fmean(levels) if mean == "arithmetic" else geometric_mean(levels)
        least = {name: min(getattr(item, name) for item in same) for name in SIZES}
        lengths = {name: fmean(getattr(item, name) for item in same) for name in ("buffer_m", "simplify_m")}
        items.append(first.model_copy(update={"threshold": given.get(first.name, own), **least, **lengths}))
    return tuple(items)
