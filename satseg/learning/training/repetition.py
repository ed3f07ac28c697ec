"""A training repeated from the card of its model (`[model] repeat`, ``--from MODEL --repeat``).

The card has the options as they were given, the seed, and the content of the data, so that the same network is drawn
and learns the same chips. On one machine with a budget in steps that gives equal weights; a budget in minutes ends at
another step. Options that are given come first, such as another seed, and are told of. A card names no folders: scenes,
labels and files of the user's own are given again, and are refused where they are not those learnt from, in their
order. What cannot be compared is told of: files that are not on this disk, what a VRT names, and labels of cards from
before these had a digest. Rejected: the weights compared in the end, which tells that something differs when all is
done.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from satseg.errors import UsageError
from satseg.learning.card import FileHash, ModelCard, TrainingSource
from satseg.learning.ground.grounds import Prepared, source_of
from satseg.learning.ground.split import Ground
from satseg.learning.training.start import Start
from satseg.options import names_file
from satseg.run import RunConfig
from satseg.specs import is_path

log = logging.getLogger(__name__)

AGAIN = {("data", "scenes"), ("data", "valid_scenes"), ("model", "start"), ("model", "repeat")}
"""Options that are given again, for a card names no folders, or that say what is repeated."""


def repeated(start: Start, run: RunConfig) -> RunConfig:
    """Return `run` with the options of the training of `start`, from first weights.

    Options that are given and are others are told of.

    Raises
    ------
    UsageError
        The model was tuned from another or is a mean of several (E-TRN-029), or a file that its training read is not
        given (E-TRN-030).
    """
    training, name = start.card.training, start.file.name
    if training.mean_of:
        hint = "repeat the training of one of them"
        raise UsageError(f"{name} is a mean of {len(training.mean_of)} models", hint=hint, code="E-TRN-029")
    if training.start is not None:
        raise UsageError(
            f"{name} is tuned from {training.start.name}, and only a training from first weights is repeated",
            hint="run the run.toml in its folder again", code="E-TRN-029",
        )  # fmt: skip
    given, files = run.model_dump(exclude_unset=True), _files(start.card)
    for section, option, file in files:
        if given.get(section, {}).get(option) is None:
            raise UsageError(
                f"{name} was trained with {section}.{option} {file!r}, of which its card has no more than the name",
                hint=f"give {section}.{option} with the path of that file", code="E-TRN-030",
            )  # fmt: skip
    known = start.known(run)
    merged = start.options(run, known)
    before, after = known.model_dump(), merged.model_dump()
    same = {*AGAIN, *((section, option) for section, option, _ in files)}
    changed = [
        f"{section}.{option}={value!r}"
        for section, options in after.items()
        for option, value in options.items()
        if (section, option) not in same and value not in (None, before[section][option])
    ]
    if changed:
        log.warning("no mere repetition: %s was not trained with %s", name, ", ".join(changed))
    return merged.model_copy(update={"model": merged.model.model_copy(update={"start": None, "repeat": False})})


def check_same(start: Start, prepared: Prepared, weights: FileHash | None) -> None:
    """Raise UsageError (E-TRN-031) where data or an encoder's first weights are not those that `start` learnt from.

    What cannot be compared is told of.
    """
    card, name = start.card, start.file.name
    training, resampled = card.training, prepared.gsd_m != card.gsd_m
    sides = [("scene", training.sources, prepared.grounds)]
    if all(source.labels_sha256 is not None for source in training.sources):
        sides.append(("scene for validation", training.validation, prepared.apart))
    else:
        log.warning("the card of %s is from before labels had a digest: its scenes alone are compared", name)
    for role, there, grounds in sides:
        fault = _other_data(there, grounds, resampled=resampled)
        if fault is not None:
            raise UsageError(
                f"{name} learnt from another {role}: {fault}",
                hint="give the same data in the same order, or leave repeat out to fine-tune", code="E-TRN-031",
            )  # fmt: skip
    paths = [path for ground in prepared.grounds for path in ground.scene.paths]
    untold = [path for path in paths if not Path(path).is_file() or path.lower().endswith(".vrt")]
    if untold:
        log.warning("whether %s has the pixels that %s learnt from cannot be told", ", ".join(untold), name)
    if training.weights is not None and (weights is None or weights.sha256 != training.weights.sha256):
        files = training.weights, weights
        first, here = ("none" if one is None else f"{one.name} (SHA-256 {one.sha256[:12]})" for one in files)
        raise UsageError(
            f"the first weights of {name} were {first}, and here are {here}",
            hint="give model.weights with the path of that file", code="E-TRN-031",
        )  # fmt: skip


def _other_data(there: Sequence[TrainingSource], here: Sequence[Ground], *, resampled: bool) -> str | None:
    """What tells grounds from the sources learnt from, in order; None where nothing does."""
    if len(there) != len(here):
        return f"{len(there)} of them there, {len(here)} here"
    for place, (one, ground) in enumerate(zip(there, here, strict=True), 1):
        other = source_of(ground)  # reads all of its files
        was, now = (", ".join(file.name for file in source.files) or "no file" for source in (one, other))
        if [file.sha256 for file in one.files] != [file.sha256 for file in other.files]:
            return f"number {place} was {was}, and {now} here has other bytes"
        if one.crs != other.crs or (one.bounds != other.bounds and not resampled):
            return f"number {place} was {was} in {one.bounds} of {one.crs}, here it is in {other.bounds} of {other.crs}"
        if one.labels_sha256 not in (None, other.labels_sha256):
            return f"the labels of number {place}, {now}, are others, in another order, or read by another field"
    return None


def _files(card: ModelCard) -> list[tuple[str, str, str]]:
    """Section and name of options of the training that were files of the user's own, and those files' names."""
    found = []
    for section, option in (("data", "class_spec"), ("data", "sensor"), ("model", "weights")):
        options = card.training.options.get(section)
        told = options.get(option) if isinstance(options, dict) else None
        if isinstance(told, str) and (names_file(told) if option == "weights" else is_path(told)):
            found.append((section, option, Path(told).name))
    return found
