"""train_recipe(): a recipe's networks and index rules learnt from a contest folder, into one folder of models.

The folder holds what detection needs and what a run that was stopped goes on from: the recipe as it was given,
``run.json`` with what was asked for, ``prepared/`` (`satseg.tasks.dstl.prepare`), ``rules.json`` with the fitted
indices, and a model file for each network with the folder of its run beside it. Networks are trained one after the
other, each for its share of the minutes, by `satseg.pipeline.train` as any run file is.
Rejected: training all networks of a recipe at once, which shares a CPU and gains nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from satseg.errors import OutputError, UsageError
from satseg.learning.networks.bundle import read_card
from satseg.options import DEFAULT_MINUTES
from satseg.output import os_errors_as_output_errors, write_text
from satseg.pipeline import check_options, train
from satseg.progress import Progress, silent
from satseg.run import RunConfig
from satseg.tasks.dstl.folder import ContestFolder
from satseg.tasks.dstl.index_parts import FittedIndex, fit_index_parts, write_fitted
from satseg.tasks.dstl.prepare import WHOLE, prepare
from satseg.tasks.dstl.recipe import NetworkPart, Recipe, recipe_of, recipe_text

PathLike: TypeAlias = str | os.PathLike[str]
RECIPE, RUN, PREPARED, RULES = "recipe.toml", "run.json", "prepared", "rules.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedRecipe:
    """What `train_recipe` made.

    Parameters
    ----------
    path : Path
        The folder of models.
    scores : mapping of network to (mapping of class name to validation Jaccard or None)
    rules : tuple of FittedIndex
    missing : tuple of str
        Classes that the recipe wants and no labelled tile has.
    """

    path: Path
    scores: Mapping[str, Mapping[str, float | None]]
    rules: tuple[FittedIndex, ...]
    missing: tuple[str, ...]


def train_recipe(
    folder: ContestFolder,
    recipe: PathLike,
    path: PathLike,
    *,
    minutes: float | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress = silent,
) -> TrainedRecipe:
    """Learn `recipe` from the labelled tiles of `folder` and write the models into the folder `path`.

    Parameters
    ----------
    folder : ContestFolder
    recipe : str or path-like
        A name such as ``"dstl"``, or a file.
    path : path-like
        Missing or empty, but to `resume`.
    minutes : float, optional
        For all networks together, by their shares; 10 when left out, unless the recipe or `overrides` give steps.
    seed : int
    overrides : sequence of str
        ``section.key=value`` for every network, as on the command line of `satseg train`.
    resume : bool
        Go on with a run that was stopped; it must be the same one.

    Raises
    ------
    UsageError
        No such recipe, options that make no sense, or another run than the one to resume (E-USE-310).
    InputError, LabelError
        Faults of the folder.
    OutputError
        `path` is not empty (E-OUT-311), or cannot be written.
    """
    place, text = Path(path), recipe_text(recipe)
    chosen = recipe_of(text, recipe)
    runs = {part.name: _timed(chosen, part, overrides, minutes=minutes, seed=seed) for part in chosen.networks}
    for run in runs.values():
        check_options(run)
    note = {"seed": seed, "minutes": minutes, "overrides": list(overrides)}
    _begin(place, text, json.dumps(note, indent=2) + "\n", resume=resume)
    ready = place / PREPARED
    if not ready.exists():
        prepare(folder, ready, folds=0, products=chosen.products, progress=progress)
    rules = _rules(folder, chosen, place / RULES, progress)
    base = RunConfig.from_file(ready / WHOLE)
    known = base.data.classes or ()
    scores, missing = {}, []
    for part in chosen.networks:
        wanted = part.classes or tuple(item.name for item in chosen.class_items)
        missing += [name for name in wanted if name not in known]
        classes = tuple(name for name in wanted if name in known)
        if not classes:
            log.warning("network %s has nothing to learn: no labelled tile has %s", part.name, ", ".join(wanted))
            continue
        given = {"scenes": base.data.scenes, "classes": classes}
        scores[part.name] = _learnt(RunConfig.from_options(given, base=runs[part.name]), place, part, progress)
    return TrainedRecipe(place, scores, rules, tuple(dict.fromkeys(missing)))


def _begin(place: Path, text: str, note: str, *, resume: bool) -> None:
    """Note recipe and run in the folder, or see that they are those noted there."""
    files = {RECIPE: text, RUN: note}
    with os_errors_as_output_errors(place):
        if place.is_dir() and any(place.iterdir()):
            if not resume:
                raise OutputError(
                    f"{place} is not empty", hint="give --resume or another folder", code="E-OUT-311", path=place
                )
            for name, content in files.items():
                known = (place / name).read_text(encoding="utf-8") if (place / name).is_file() else None
                if known is None and {path.name for path in place.iterdir()} <= files.keys():
                    continue  # stopped between the two files, before anything was made
                if known != content:
                    raise UsageError(
                        f"{place / name} is of another run",
                        hint="resume with the recipe and options that it began with", code="E-USE-310",
                    )  # fmt: skip
        place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if not (place / name).exists():
            write_text(place / name, content)


def _rules(folder: ContestFolder, recipe: Recipe, path: Path, progress: Progress) -> tuple[FittedIndex, ...]:
    if path.is_file():
        return FittedIndex.read(path)
    rules = fit_index_parts(folder, recipe, progress=progress)
    write_fitted(rules, path)
    return rules


def _timed(
    recipe: Recipe, part: NetworkPart, overrides: Sequence[str], *, minutes: float | None, seed: int
) -> RunConfig:
    """The run of a network, with its share of the minutes: not where steps are given, unless minutes are too."""
    run = recipe.run(part, overrides)
    given: dict[str, Any] = {"seed": seed}
    if minutes is not None or run.train.steps is None:
        whole = DEFAULT_MINUTES if minutes is None else minutes
        given["minutes"] = whole * part.share / sum(one.share for one in recipe.networks)
    return RunConfig.from_options(given, base=run)


def _learnt(run: RunConfig, place: Path, part: NetworkPart, progress: Progress) -> dict[str, float | None]:
    """Train one network, or go on with it, and return its validation Jaccards."""
    output = place / f"{part.name}.safetensors"
    if output.exists():
        scores: Any = read_card(output).scores
    else:
        begun = (place / f"{part.name}.run").is_dir()
        scores = train(config=run, output=output, resume=begun, progress=progress).card.scores
    return dict(scores["validation_jaccard"])
