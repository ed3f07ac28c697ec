"""stack(): families of K-fold models made one ensemble, weights learnt on scores of ground that no model had seen.

    folders --sample--> logits and truth --fit, per class--> weights --score, fold by fold--> ensemble file

What the stacker is worth is told by stackers that did not see a fold, scored on it; what is written is fitted to all
of them. A class that they score no better than the plain mean keeps the mean. A family's weight is spread evenly over
its folds, so that on new ground its logit is the mean of theirs. Rejected: choosing weights by Jaccard, which has
steps, and whose optimum on a few objects is chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satseg.documents import PathLike
from satseg.learning.networks.ensemble import cards_together
from satseg.learning.networks.ensemble_file import ClassStacker, EnsembleFile, check_name
from satseg.learning.training.curves import ThresholdCurve
from satseg.learning.training.families import Families, Sample, Strip
from satseg.learning.training.fold_report import aligned, ratio
from satseg.learning.training.stacker import Stacker, fit_stacker
from satseg.output import check_writable
from satseg.progress import Progress, mean_of, silent


@dataclass(frozen=True, slots=True)
class StackedClass:
    """How one class is made of the families, and its pooled Jaccard (None: it is nowhere) in several ways.

    Parameters
    ----------
    weights, bias
        Of the stacker, a weight for each family.
    threshold : float
        Of the ensemble.
    alone : tuple of (float or None)
        Each family's.
    mean : float or None
        Of the mean of their scores.
    stacked : float or None
        By stackers that did not see the fold they are scored on.
    is_stacked : bool
        Whether the ensemble uses the stacker; else the mean.
    """

    name: str
    weights: tuple[float, ...]
    bias: float
    threshold: float
    alone: tuple[float | None, ...]
    mean: float | None
    stacked: float | None
    is_stacked: bool


@dataclass(frozen=True, slots=True)
class StackReport:
    """What came of stacking: the families' names, and the classes."""

    families: tuple[str, ...]
    classes: tuple[StackedClass, ...]

    def table(self) -> str:
        """Return weights and Jaccards as text, a row for each class."""
        weights = (f"w {name}" for name in self.families)
        rows = [("class", *self.families, "mean", "stacked", "threshold", "used", *weights, "bias")]
        for item in self.classes:
            scores = map(ratio, (*item.alone, item.mean, item.stacked))
            used = "stacked" if item.is_stacked else "mean"
            terms = (f"{value:.2f}" for value in (*item.weights, item.bias))
            rows.append((item.name, *scores, f"{item.threshold:.2f}", used, *terms))
        columns = zip(*((*item.alone, item.mean, item.stacked) for item in self.classes), strict=True)
        means = [ratio(mean_of(column)) for column in columns]
        rows.append(("mean", *means, *[""] * (3 + len(self.families))))
        return aligned(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def stack(
    families: Sequence[PathLike], output: PathLike, *, seed: int = 0, overwrite: bool = False,
    progress: Progress = silent,
) -> StackReport:  # fmt: skip
    """Fit stackers over families of K-fold models, and write the ensemble of them all.

    Parameters
    ----------
    families : sequence of path-like
        Two or more folders that `satseg.train_folds` made of the same scenes, labels, classes and folds.
    output : path-like
        Ensemble file (.toml) to write; `satseg.detect` takes it in place of a model.
    seed : int
        Decides which pixels are in the sample.

    Raises
    ------
    UsageError, InputError, ModelError
        Families that do not fit together, or rasters that are missing or of other labels; `output` is no .toml.
    OutputError
        The file cannot be written.
    """
    check_name(output)
    check_writable(output, overwrite=overwrite)
    group = Families.open(families)
    cards_together([file for file, _ in group.members])
    progress("stack", 0, 3, "sample")
    samples = group.samples(seed=seed)
    progress("stack", 1, 3, "weights")
    plan = _Plan.fitted(samples, {scene.fold for scene in group.reports[0].scenes})
    progress("stack", 2, 3, "scores")
    tables = _judged(group, plan)
    progress("stack", 3, 3, "")
    report = StackReport(tuple(folder.name for folder in group.folders), _classes(group, plan, tables))
    _file(group, report, output).save(output, overwrite=overwrite)
    return report


@dataclass(frozen=True, slots=True)
class _Plan:
    """Of each class a stacker fitted to all folds, and by number of a fold one that did not see it; None: none."""

    whole: tuple[Stacker | None, ...]
    unseen: dict[int, tuple[Stacker | None, ...]]

    @classmethod
    def fitted(cls, samples: Sequence[Sample], folds: Iterable[int]) -> _Plan:
        whole = tuple(_fitted(sample) for sample in samples)
        return cls(whole, {fold: tuple(_fitted(s.of_folds(s.folds != fold)) for s in samples) for fold in folds})


def _fitted(sample: Sample) -> Stacker | None:
    """The stacker of a sample, if it has pixels of both kinds."""
    if sample.truth.all() or not sample.truth.any():
        return None
    return fit_stacker(sample.logits, sample.truth, sample.weights)


def _judged(group: Families, plan: _Plan) -> list[ThresholdCurve]:
    """Counts of each family alone, of their mean, of stackers that did not see the fold, and of those that did."""
    count, families = len(group.class_names), len(group.folders)
    curves = [ThresholdCurve(count) for _ in range(families + 3)]
    for _, strip in group.strips():
        alone = _sigmoid(strip.logits)
        mean = alone.mean(axis=0)
        unseen, seen = (_stacked(strip, mean, own) for own in (plan.unseen[strip.fold], plan.whole))
        for curve, scores in zip(curves, (*alone, mean, unseen, seen), strict=True):
            curve.count(scores, strip.truth, strip.usable)
    return curves


def _stacked(strip: Strip, mean: NDArray[np.float32], stackers: Sequence[Stacker | None]) -> NDArray[np.float32]:
    scores = mean.copy()
    for k, stacker in enumerate(stackers):
        if stacker is not None:
            scores[k] = _sigmoid(stacker.logits(strip.logits[:, k]))
    return scores


def _sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = np.exp(-np.logaddexp(0.0, -logits)).astype(np.float32)
    return scores


def _classes(group: Families, plan: _Plan, curves: Sequence[ThresholdCurve]) -> tuple[StackedClass, ...]:
    found = [curve.best() for curve in curves]
    ratios = [[None if value != value else value for value in scores] for _, scores in found]
    *alone, mean, unseen, _ = ratios
    classes = []
    for k, (name, stacker) in enumerate(zip(group.class_names, plan.whole, strict=True)):
        better = stacker is not None and (unseen[k] or 0.0) > (mean[k] or 0.0)
        levels, _ = found[-1] if better else found[-3]
        weights, bias = (stacker.weights, stacker.bias) if stacker else ((1 / len(alone),) * len(alone), 0.0)
        own = tuple(one[k] for one in alone)
        classes.append(StackedClass(name, weights, bias, levels[k], own, mean[k], unseen[k], better))
    return tuple(classes)


def _file(group: Families, report: StackReport, output: PathLike) -> EnsembleFile:
    """The ensemble of all models: a family's weight spread over its folds."""
    counts = [len(family.models) for family in group.reports]
    stackers = {}
    for item in report.classes:
        if item.is_stacked:
            spread = np.repeat(np.divide(item.weights, counts), counts)
            stackers[item.name] = ClassStacker(weights=tuple(spread.tolist()), bias=item.bias)
    thresholds = {item.name: item.threshold for item in report.classes}
    return EnsembleFile.of(group.members, beside=output, thresholds=thresholds, stacker=stackers)
