"""Thresholds and rules of a trained model, fitted anew on labelled scenes: the weights stay.

Scores of the scenes are held in memory, four bytes for each class and pixel, for every value that is tried goes over
them again. Rejected: a fit inside detection, which sees no labels, and one from masks, which have lost the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from satseg.errors import LabelError, UsageError
from satseg.learning.detection.inference import working_scene
from satseg.learning.detection.job import DetectOptions, scores_of
from satseg.learning.ground.grounds import label_layer
from satseg.learning.ground.pairs import LabelsLike, PathLike, SceneLike, open_pair
from satseg.learning.ground.split import Ground
from satseg.learning.networks.bundle import check_model_name
from satseg.learning.networks.model import Model, load_model
from satseg.learning.training.judged import Judged
from satseg.learning.training.rule_fit import fit_rules, jaccards
from satseg.options import DataOptions
from satseg.output import check_writable
from satseg.progress import Progress, silent


def refit(
    model: Model | PathLike,
    data: Sequence[tuple[SceneLike, LabelsLike]],
    *,
    output: PathLike | None = None,
    options: DataOptions | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Model:
    """Return `model` with thresholds and rules that find most of `data`, saved under `output` if given.

    Parameters
    ----------
    data : sequence of (scene, labels)
        Not those that it was trained on: on these its scores are better than they will be.
    options : DataOptions, optional
        How scenes and labels are read: `field`, `sensor`, `unlabelled`, `src_crs` and the like.

    Raises
    ------
    UsageError
        There are no data, or `output` is no name of a model file.
    LabelError
        Labels have none of the model's classes (E-LAB-010), or do not lie on their scene.
    BandError, InputError, OutputError
        As `predict` and `Model.save`.
    """
    if not data:
        raise UsageError("no data to fit rules on", hint="give --data SCENE LABELS", code="E-TRN-001")
    if output is not None:
        check_model_name(output)
        check_writable(output, overwrite=overwrite)
    loaded = model if isinstance(model, Model) else load_model(model)
    chosen = options or DataOptions()
    chosen = chosen.model_copy(update={"registered": chosen.registered or loaded.card.registers})
    ground = [_judged(loaded, scene, labels, chosen, progress) for scene, labels in data]
    fitted = _with_rules(loaded, ground)
    if output is not None:
        fitted.save(output, overwrite=overwrite)
    return fitted


def fitted_on(model: Model, grounds: Sequence[Ground], held: Sequence[Judged] | None = None) -> Model:
    """Return `model` with thresholds and rules that find most of what `grounds` hold for validation.

    Parameters
    ----------
    held : sequence of Judged, optional
        Scores of all of that by `model`; predicted when left out.
    """
    if held is not None:
        return _with_rules(model, held)
    found = []
    for ground in grounds:
        work = working_scene(model, ground.scene)
        for window in ground.blocks:
            part = DetectOptions(bounds=ground.scene.grid.crop(window).bounds, tone="own")  # as it was prepared
            found.append(Judged.of(scores_of(model, work, part), ground.labels))
    return _with_rules(model, found)


def _judged(
    model: Model, scene: SceneLike, labels: LabelsLike, options: DataOptions, progress: Progress
) -> Judged:
    pair = open_pair(scene, labels, None, options)
    there = {*pair.labels["class_name"]}
    if not there & {*model.classes}:
        raise LabelError(
            f"labels of {pair.scene.name} have classes {sorted(there)}, the model finds {list(model.classes)}",
            hint="check --field",
            code="E-LAB-010",
        )
    work = working_scene(model, pair.scene)
    layer = label_layer(replace(pair, scene=work), model.classes, options)
    return Judged.of(scores_of(model, work, progress=progress), layer)


def _with_rules(model: Model, ground: Sequence[Judged]) -> Model:
    """Return `model` with fitted classes, its card telling what they brought."""
    before = model.card.classes
    fitted = fit_rules(before, ground)
    told = {
        name: {"before": _plain(one), "after": _plain(other)}
        for name, one, other in zip(model.classes, jaccards(before, ground), jaccards(fitted, ground), strict=True)
    }
    card = model.card.model_copy(update={"classes": fitted, "scores": {**model.card.scores, "rules_jaccard": told}})
    return replace(model, card=card)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
