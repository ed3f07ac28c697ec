"""K-fold training: as many models as folds, each scored on scenes that it did not see.

    scenes in groups --deal--> folds --train, K times--> models --detect--> out-of-fold scores --pool--> one table

The folder is the run: its ``run.toml`` says of which options and data it is, models and rasters appear in it one by
one, each whole or absent, and ``folds.json`` at the end. So a stopped run goes on where it was: finished models are
kept, the unfinished one is resumed. The budget is each model's own: K folds take K times as long as one training.
Rejected: a budget shared by all folds, with which the same number would mean another training for each K.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from satseg.errors import UsageError
from satseg.learning.ground.folds import Dealt, deal_scenes
from satseg.learning.ground.grounds import Agreed, agree
from satseg.learning.ground.pairs import Pair, PathLike
from satseg.learning.networks.bundle import read_card
from satseg.learning.networks.ensemble_file import EnsembleFile
from satseg.learning.networks.model import Model, load_model
from satseg.learning.training.fold_report import ENSEMBLE, OUT_OF_FOLD, REPORT, FoldModel, FoldReport, FoldScene
from satseg.learning.training.ranks import given_ranks
from satseg.learning.training.run_folder import check_run, told
from satseg.learning.training.start import Start
from satseg.options import LabelledScene
from satseg.output import being_written, hidden_prefix, os_errors_as_output_errors, try_lock, write_text
from satseg.pipeline import LabelledPair, detect_to_file, open_pairs, plan, train
from satseg.progress import Progress, silent
from satseg.run import RunConfig

log = logging.getLogger(__name__)


def train_folds(
    data: Sequence[LabelledPair] = (),
    *,
    output: PathLike,
    groups: Sequence[str | None] | None = None,
    config: RunConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> FoldReport:
    """Train one model per fold on the scenes of the others, and score each on its own fold.

    Parameters
    ----------
    data : sequence of (scene, labels)
        As in `satseg.train`; those of `config` when left out.
    output : path-like
        Folder to make: ``fold1.safetensors`` ..., their run folders, ``out_of_fold/`` with scores and truth of each
        scene, ``ensemble.toml`` (the mean of all models, with thresholds of the pooled scores) and ``folds.json``.
    groups : sequence of (str or None), optional
        Of each item of `data`: scenes of one group never part. Those of a run file's scenes when left out.
    config, options
        As in `satseg.train`, with ``folds=K``; ``minutes`` or ``steps`` are those of each model.
    resume : bool
        Go on with a stopped run: finished models are kept.

    Returns
    -------
    FoldReport
        Also to be had by ``FoldReport.read(output)``; `table` tells the scores.

    Raises
    ------
    UsageError
        No folds or too many for the groups, or data to validate on, which the folds have themselves.
    LabelError
        A class that only one fold has; and what `satseg.train` raises before it starts.
    OutputError
        The folder is of another run, or being written.
    """
    ready = _ready(data, groups, RunConfig.from_options(options, base=config))
    folder = Path(output)
    check_run(folder, ready.note, resume=resume, overwrite=overwrite, option="-o")
    with _held(folder, ready.note, keep=resume):
        for fold in range(1, ready.dealt.folds + 1):
            model = _model_of(ready, fold, folder, resume=resume, progress=progress)
            _score_held(ready, fold, model, folder, progress)
        return _reported(ready, folder)


def plan_folds(
    data: Sequence[LabelledPair] = (),
    *,
    groups: Sequence[str | None] | None = None,
    config: RunConfig | None = None,
    **options: Any,
) -> Dealt:
    """Check what `train_folds` checks with the same arguments, for each fold; return which scenes are in which."""
    ready = _ready(data, groups, RunConfig.from_options(options, base=config))
    for fold in range(1, ready.dealt.folds + 1):
        learnt, held = ready.sides(fold)
        plan(learnt, valid_data=held, config=ready.run_of(fold), timed=False)
    return ready.dealt


@dataclass(frozen=True, slots=True)
class _Ready:
    """Folds that have passed all checks."""

    run: RunConfig
    pairs: tuple[Pair, ...]
    told: tuple[LabelledScene, ...]
    agreed: Agreed
    dealt: Dealt
    note: str

    def sides(self, fold: int) -> tuple[list[Pair], list[Pair]]:
        """Pairs that the model of `fold` learns from, and those that it is validated on."""
        dealt = self.dealt
        return [self.pairs[place] for place in dealt.learnt(fold)], [self.pairs[place] for place in dealt.held(fold)]

    def run_of(self, fold: int) -> RunConfig:
        """The run file of one fold's training: classes and bands are those of all scenes, whatever the fold has."""
        content = self.run.model_dump(exclude_unset=True)
        content["train"].pop("folds", None)
        own = content.setdefault("data", {})
        own["classes"] = tuple(item.name for item in self.agreed.classes)
        own["bands"] = self.agreed.bands
        own.pop("scenes", None)
        if self.told:
            for key, places in (("scenes", self.dealt.learnt(fold)), ("valid_scenes", self.dealt.held(fold))):
                own[key] = tuple(self.told[place].model_dump(exclude_unset=True) for place in places)
        return RunConfig.from_overrides((), content)


def _ready(data: Sequence[LabelledPair], groups: Sequence[str | None] | None, run: RunConfig) -> _Ready:
    """Open and check all that can be wrong before the first training."""
    if run.train.folds is None:
        raise UsageError("no number of folds", hint="give folds=K, such as 5", code="E-TRN-022")
    if run.data.valid_scenes:
        raise UsageError("folds validate on scenes of their own", hint="give all as training data", code="E-TRN-023")
    if run.train.fit_rules:
        raise UsageError(
            "fit_rules in folds gives each model rules of its own, and models with other rules do not answer as one",
            hint="leave fit_rules out; satseg refit fits the rules of one model", code="E-TRN-028",
        )  # fmt: skip
    if run.model.repeat:
        raise UsageError(
            "folds learn from other data than a model did", hint="repeat the training of one of them", code="E-TRN-032"
        )
    if given_ranks().count > 1:
        raise UsageError("folds are not trained under torchrun or srun", hint="give --devices N", code="E-TRN-024")
    start = None if run.model.start is None else Start.load(run.model.start)
    run = run if start is None else start.options(run)
    items = tuple(data or run.data.scenes)
    named = _groups(items, groups)
    pairs = tuple(open_pairs(items, run, () if start is None else start.card.indices))
    if start is not None:
        _tell_seen(start, pairs)
    agreed = agree(pairs, (), run)
    folds = run.train.folds or 0  # a start's card has none
    dealt = deal_scenes(agreed.grounds, named, folds=folds)
    labelled = tuple(item for item in items if isinstance(item, LabelledScene))
    note = "".join(f"# {line}\n" for line in dealt.to_text().splitlines())
    return _Ready(
        run, pairs, labelled if len(labelled) == len(items) else (), agreed, dealt,
        run.to_toml() + told(pairs, ()) + note,
    )  # fmt: skip


def _tell_seen(start: Start, pairs: Sequence[Pair]) -> None:
    """Warn where the model that all folds start from learnt from files of the same names."""
    seen = {file.name for source in start.card.learnt_from for file in source.files}
    known = [pair.scene.name for pair in pairs if seen & {Path(name).name for name in pair.scene.paths}]
    if known:
        log.warning(
            "%s learnt from %s: scores out of fold are of models that began there", start.file.name, ", ".join(known)
        )


def _groups(items: Sequence[LabelledPair], groups: Sequence[str | None] | None) -> list[str | None]:
    if groups is None:
        return [item.group if isinstance(item, LabelledScene) else None for item in items]
    if len(groups) != len(items):
        raise UsageError(f"{len(groups)} groups of {len(items)} scenes", hint="give one for each", code="E-TRN-025")
    return [*groups]


@contextmanager
def _held(folder: Path, note: str, *, keep: bool) -> Iterator[None]:
    """Make `folder` this run's, alone, and clear what another run left there.

    The note is what is locked: the folder itself is, for a moment, by every file that is written into it.
    """
    path = folder / "run.toml"
    with ExitStack() as locks, os_errors_as_output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _lock(path, folder, locks)
        if not (keep and path.exists()):
            _clear(folder)
            write_text(path, note, overwrite=True)
            _lock(path, folder, locks)
        (folder / OUT_OF_FOLD).mkdir(exist_ok=True)
        kept = locks.pop_all()
    with kept:
        yield


def _lock(path: Path, folder: Path, locks: ExitStack) -> None:
    """Hold `path` until `locks` close, or refuse what another process is at."""
    try:
        handle = try_lock(path)
    except BlockingIOError as error:
        raise being_written(folder, "another process") from error
    if handle is not None:
        locks.callback(os.close, handle)


def _clear(folder: Path) -> None:
    """Remove what a training in folds makes, the sign that it is whole first."""
    for name in (REPORT, ENSEMBLE):
        (folder / name).unlink(missing_ok=True)
    for model in folder.glob("fold*.safetensors"):
        model.unlink()
    for run in (*folder.glob("fold*.run"), folder / OUT_OF_FOLD):
        rmtree(run, ignore_errors=True)


def _model_file(fold: int) -> str:
    return f"fold{fold}.safetensors"


def _model_of(ready: _Ready, fold: int, folder: Path, *, resume: bool, progress: Progress) -> Model:
    """The model of `fold`: trained, or as an earlier part of this run left it."""
    path = folder / _model_file(fold)
    learnt, held = ready.sides(fold)
    progress("folds", fold - 1, ready.dealt.folds, f"fold {fold} of {ready.dealt.folds}")
    if path.exists():
        _check_learnt(path, learnt)
        return load_model(path, ready.run.train.device)
    _forget_scores(folder, [ready.dealt.names[place] for place in ready.dealt.held(fold)])
    return train(learnt, valid_data=held, output=path, config=ready.run_of(fold), resume=resume, progress=progress)


def _check_learnt(path: Path, learnt: Sequence[Pair]) -> None:
    """Raise UsageError when the model at `path` learnt from other files than those of `learnt`."""
    sources = read_card(path).training.sources
    there = [tuple(file.name for file in source.files) for source in sources]
    wanted = [tuple(Path(name).name for name in pair.scene.paths if Path(name).is_file()) for pair in learnt]
    if there != wanted:
        raise UsageError(
            f"{path} learnt from other scenes than this fold's", hint="remove it, or give --overwrite to start anew",
            code="E-TRN-026",
        )  # fmt: skip


def _score_file(name: str) -> str:
    return f"{OUT_OF_FOLD}/{name}.tif"


def _forget_scores(folder: Path, names: Sequence[str]) -> None:
    """Remove scores of the scenes `names`, whole or begun: they are of a model that was removed."""
    with os_errors_as_output_errors(folder):
        for path in (folder / _score_file(name) for name in names):
            path.unlink(missing_ok=True)
            for begun in path.parent.glob(f"{glob.escape(hidden_prefix(path))}*"):
                rmtree(begun, ignore_errors=True)


def _score_held(ready: _Ready, fold: int, model: Model, folder: Path, progress: Progress) -> None:
    """Write the scores of the scenes of `fold` by its model, where they are not there yet."""
    held = ready.dealt.held(fold)
    for number, place in enumerate(held):
        name = ready.dealt.names[place]
        progress("out of fold", number, len(held), name)
        path = folder / _score_file(name)
        if not path.exists():
            # float16 has a logit of 8 for the scores next to 1, and of -16 for those next to 0; bytes have 6 for both.
            detect_to_file(
                model, ready.pairs[place].scene, None, scores=path, resume=True, score_type="float16"
            )


def _reported(ready: _Ready, folder: Path) -> FoldReport:
    """Count all scores, and write the ensemble and the report."""
    from satseg.learning.training.curves import ThresholdCurve
    from satseg.learning.training.out_of_fold import counted, pooled

    dealt, names = ready.dealt, tuple(item.name for item in ready.agreed.classes)
    curves = [ThresholdCurve(len(names)) for _ in range(dealt.folds)]
    scenes = []
    for place, (name, group, fold) in enumerate(zip(dealt.names, dealt.groups, dealt.fold_of, strict=True)):
        one = FoldScene(
            name=name, group=group, fold=fold, scores=_score_file(name), truth=f"{OUT_OF_FOLD}/{name}.truth.tif"
        )
        curves[fold - 1].add(counted(folder / one.scores, folder / one.truth, ready.agreed.grounds[place].labels))
        scenes.append(one)
    models = []
    for file in map(_model_file, range(1, dealt.folds + 1)):
        digest = read_card(folder / file).weights_sha256
        assert digest is not None, "a saved card has it"
        models.append(FoldModel(file=file, weights_sha256=digest))
    report = FoldReport(models=tuple(models), scenes=tuple(scenes), classes=pooled(names, curves))
    team = EnsembleFile.of(
        [(folder / model.file, model.weights_sha256) for model in models], beside=folder / ENSEMBLE,
        thresholds={item.name: item.threshold for item in report.classes},
    )  # fmt: skip
    team.save(folder / ENSEMBLE, overwrite=True)
    report.write(folder)
    return report
