"""Averaged weights: one network whose weights are the mean of several's, which costs no more than one to run.

Of trainings that began with the same weights, or that went on from each other: only there do the units of networks
correspond (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima"; Wortsman et al. 2022, "Model soups").
Whether they do cannot be told from the files, so that is for the user to know; what can be told is refused: other
networks, bands, normalisation, classes or resolution. Statistics of batch normalisation are averaged as weights are,
for the ground that they would be measured on anew is not in a model file. Rejected: an average of ensembles of
different networks, for which there is `ensemble`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from satseg.errors import ModelError, UsageError
from satseg.learning.card import ModelCard, TrainingSource
from satseg.learning.networks.ensemble import identity
from satseg.learning.networks.model import Model, load_model
from satseg.learning.networks.together import check_together, common_items

__all__ = ["average"]

ALIKE = {
    "architecture": "networks", "bands": "bands", "indices": "indices", "normalization": "normalisations",
    "class_names": "classes", "separated": "classes learnt apart", "gsd_m": "resolutions",
}  # fmt: skip
"""Parts of the card in which all models are the same, and what to call them."""
MOST_SHOWN = 200
"""Characters of a part that differs."""


def average(models: Sequence[Model | str | os.PathLike[str]]) -> Model:
    """Return a model whose weights and buffers are the mean of those of `models`, in any order to the last bit.

    Thresholds are the mean too, clean-up the least and the halo the widest of any; validation scores are nobody's.

    Parameters
    ----------
    models : sequence of Model or path-like
        Two or more, alike but for their weights.

    Raises
    ------
    UsageError
        Fewer than two (E-USE-025).
    ModelError
        They differ in more than their weights (E-MOD-044, or as of ensembles); what differs is named.
    """
    loaded = [one if isinstance(one, Model) else load_model(one) for one in models]
    names = [f"model {n}" if isinstance(one, Model) else os.fspath(one) for n, one in enumerate(models, start=1)]
    if len(loaded) < 2:
        raise UsageError(f"the mean of {len(loaded)} model is no mean", hint="give two or more", code="E-USE-025")
    for model, name in zip(loaded[1:], names[1:], strict=True):
        _check_alike(loaded[0].card, model.card, f"{names[0]} and {name}")
    check_together([model.card for model in loaded], names)
    loaded.sort(key=identity)
    states = [model.network.state_dict() for model in loaded]
    network = copy.deepcopy(loaded[0].network)
    network.load_state_dict({name: _mean([state[name] for state in states]) for name in states[0]})
    digests = tuple(identity(model)[0] for model in loaded)
    return replace(loaded[0], card=_card([model.card for model in loaded], digests), network=network)


def _check_alike(first: ModelCard, other: ModelCard, pair: str) -> None:
    for part, called in ALIKE.items():
        if getattr(first, part) != getattr(other, part):
            place, ours, theirs = _difference(*(_plain(card, part) for card in (first, other)))
            raise ModelError(
                f"{pair} have other {called}: {place}{_short(ours)} and {_short(theirs)}",
                hint="weights are averaged of trainings from one start (train --from); of others make an ensemble",
                code="E-MOD-044",
            )


def _plain(card: ModelCard, part: str) -> Any:
    """A part of the card, as lists, mappings and plain values."""
    document = card.model_dump(mode="json")
    return document[part] if part in document else list(getattr(card, part))


def _difference(ours: Any, theirs: Any, place: str = "") -> tuple[str, Any, Any]:
    """The first place in which two plain values differ, and what is there."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        key = next(key for key in (*ours, *theirs) if ours.get(key) != theirs.get(key))
        return _difference(ours.get(key), theirs.get(key), f"{key} ")
    return place, ours, theirs


def _short(part: Any) -> str:
    text = str(part)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _mean(values: Sequence[Tensor]) -> Tensor:
    """The mean in float64, as the type that they have; of counts (batches seen) the most."""
    stacked = torch.stack([value.detach().cpu() for value in values])
    if not stacked.is_floating_point():
        return stacked.amax(dim=0)
    return stacked.to(torch.float64).mean(dim=0).to(stacked.dtype)


def _each(sources: Sequence[TrainingSource]) -> tuple[TrainingSource, ...]:
    """`sources` without those that come again, whose tone another training may have found otherwise."""
    known: dict[str, TrainingSource] = {}
    for source in sorted(sources, key=lambda one: not one.tone):
        known.setdefault(source.model_dump_json(exclude={"tone", "tone_px"}), source)
    return tuple(known.values())


def _card(cards: Sequence[ModelCard], digests: tuple[str, ...]) -> ModelCard:
    """What the mean says about itself: it is of all that its parts learnt from, and nobody has scored it yet."""
    tolerances = [card.halo_tolerance for card in cards if card.halo_tolerance is not None]
    first = cards[0].training
    options, data = dict(first.options), first.options.get("data")
    if len({card.normalize for card in cards}) > 1:  # as an ensemble of them reads scenes
        options["data"] = {**(data if isinstance(data, dict) else {}), "normalize": "data"}
    learnt, before = (
        _each([source for card in cards for source in getattr(card.training, name)])
        for name in ("sources", "start_sources")
    )
    warnings = tuple(dict.fromkeys(text for card in cards for text in card.training.warnings))
    told = {
        "sources": learnt, "start_sources": before, "options": options, "mean_of": digests, "validation": (),
        "warnings": warnings, "weights": None,
    }  # fmt: skip
    training = first.model_copy(update={**told, "steps": None, "seconds": None})
    update = {
        "classes": common_items(cards), "halo": max(card.halo for card in cards),
        "halo_tolerance": max(tolerances, default=None), "scores": {}, "training": training, "weights_sha256": None,
    }  # fmt: skip
    return cards[0].model_copy(update=update)
