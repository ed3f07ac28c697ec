"""A training repeated from the card of its model (`[model] repeat`, ``--from MODEL --repeat``).

The card has every option and the content of the data, so that the model file and the data are enough: the same network
is drawn from the same seed, and learns the same chips. On one machine with a budget in steps that gives equal weights;
a budget in minutes ends at another step. Options that are given come first, such as another seed. Data are told again,
for a card names no folders, and must be those learnt from, in their order: what has other labels is another training.
Rejected: the weights compared in the end, which says that something differs when all is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from satseg.errors import UsageError
from satseg.learning.card import FileHash, ModelCard, TrainingSource
from satseg.learning.ground.pairs import Pair
from satseg.learning.training.start import Start
from satseg.options import names_file
from satseg.run import RunConfig
from satseg.specs import is_path


def repeated(
    run: RunConfig, start: Start, pairs: Sequence[Pair], valid_pairs: Sequence[Pair], weights: FileHash | None
) -> RunConfig:
    """Return `run`, which has the options of `start`, as a training from first weights.

    Parameters
    ----------
    weights : FileHash or None
        The file of an encoder's first weights.

    Raises
    ------
    UsageError
        The model was tuned from another or is a mean of several (E-TRN-029), a file that its training read is not told
        (E-TRN-030), or the data or first weights are others (E-TRN-031).
    """
    training, name = start.card.training, start.file.name
    if training.start is not None or training.mean_of:
        made = "a mean of models" if training.start is None else f"tuned from {training.start.name}"
        raise UsageError(
            f"{name} is {made}, and only a training from first weights is repeated",
            hint="run the run.toml in its folder again", code="E-TRN-029",
        )  # fmt: skip
    for option, file in _files(start.card).items():
        if getattr(run.model if option == "weights" else run.data, option) is None:
            raise UsageError(
                f"{name} was trained with {option} {file!r}, of which its card has no more than the name",
                hint=f"give {option} with the path of that file", code="E-TRN-030",
            )  # fmt: skip
    _check_same(name, "scene", training.sources, pairs)
    _check_same(name, "scene for validation", training.validation, valid_pairs)
    if training.weights is not None and (weights is None or weights.sha256 != training.weights.sha256):
        raise UsageError(f"first weights are not those of {name}", code="E-TRN-031")
    return run.model_copy(update={"model": run.model.model_copy(update={"start": None, "repeat": False})})


def _files(card: ModelCard) -> dict[str, str]:
    """Options of the training that were files of the user's own, by the names that the card has of them."""
    model = card.training.options.get("model")
    told = {name: card.told(name) for name in ("class_spec", "sensor")}
    files = {name: Path(value).name for name, value in told.items() if isinstance(value, str) and is_path(value)}
    weights = model.get("weights") if isinstance(model, dict) else None
    return files | ({"weights": weights} if isinstance(weights, str) and names_file(weights) else {})


def _check_same(name: str, role: str, learnt: Sequence[TrainingSource], pairs: Sequence[Pair]) -> None:
    """Raise UsageError (E-TRN-031) where `pairs` are not what the model called `name` learnt from."""
    for place, (source, pair) in enumerate(zip_longest(learnt, pairs), 1):
        if source is None or pair is None:
            fault = f"{len(learnt)} of them there, {len(pairs)} here"
        elif tuple(_digests(pair)) != tuple(file.sha256 for file in source.files):
            fault = f"number {place} was {', '.join(file.name for file in source.files)}, and {pair.scene.name} differs"
        elif source.labels_sha256 not in (None, pair.labels_sha256):
            fault = f"the labels of number {place}, {pair.scene.name}, are others, or read by another field"
        else:
            continue
        raise UsageError(
            f"{name} learnt from another {role}: {fault}",
            hint="give the same data in the same order, or fine-tune without repeat", code="E-TRN-031",
        )  # fmt: skip


def _digests(pair: Pair) -> list[str]:
    return [FileHash.of(path).sha256 for path in pair.scene.paths if Path(path).is_file()]
