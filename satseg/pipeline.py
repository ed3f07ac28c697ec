"""The story of satseg in three calls: train, detect, evaluate.  A newcomer starts reading here.

    scenes + labels --train--> model --detect--> polygons --evaluate--> Jaccard

Each function checks everything that can be wrong before long work starts, then hands over to the
rooms: `imagery` reads scenes, `learning` knows torch, `vector` makes features, `scoring` counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import geopandas

from satseg.errors import InputError, UsageError
from satseg.imagery.drivers import is_remote
from satseg.imagery.registration import registered
from satseg.imagery.scene import Scene, open_scene
from satseg.imagery.writer import check_raster_target
from satseg.learning.card import FileHash, IndexCard
from satseg.learning.detection.budget import Estimate
from satseg.learning.detection.inference import working_scene
from satseg.learning.detection.job import Detection, DetectOptions, scores_of
from satseg.learning.detection.products import Products, Targets
from satseg.learning.ground import grounds
from satseg.learning.ground.grounds import Prepared, prepare
from satseg.learning.ground.pairs import LabelsLike, Pair, PathLike, SceneLike, open_pair
from satseg.learning.networks.architectures import check_network
from satseg.learning.networks.bundle import check_model_name
from satseg.learning.networks.ensemble import ModelLike, Predictor, as_predictor
from satseg.learning.networks.forward import Wanted
from satseg.learning.networks.model import Model
from satseg.learning.training.losses import loss_of
from satseg.learning.training.ranks import check_devices, given_ranks
from satseg.learning.training.repetition import check_same, repeated
from satseg.learning.training.run_folder import SPLIT_PICTURE, check_run, run_folder, run_place, told
from satseg.learning.training.start import Start, weights_file
from satseg.ledger import Ledger
from satseg.options import LabelledScene
from satseg.output import AtomicOutput, check_distinct, check_writable, os_errors_as_output_errors
from satseg.progress import Progress, silent
from satseg.raster import Raster
from satseg.run import RunConfig
from satseg.vector.features import check_target

if TYPE_CHECKING:
    from satseg.learning.training.plan import Plan

LabelledPair: TypeAlias = "tuple[SceneLike, LabelsLike] | LabelledScene | Pair"


def train(
    data: Sequence[LabelledPair] = (),
    *,
    output: PathLike | None = None,
    valid_data: Sequence[LabelledPair] = (),
    config: RunConfig | None = None,
    run_dir: PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Model:
    """Learn the classes of labelled scenes and return the model, saved under `output` if given.

    Parameters
    ----------
    data : sequence of (scene, labels)
        Scenes are paths, lists of paths (one scene in several files) or open scenes; labels are
        vector files or GeoDataFrames. Those of `config` when left out.
    valid_data : sequence of (scene, labels)
        Scored whole during training; without it blocks of `data` are held out, with a gap.
    config : RunConfig
        A run file's content; `options` override it by name: ``minutes=10``, ``field="class"``,
        ``classes=("building",)``, ``gsd=0.3``, ``seed=1`` (`satseg.options` lists them all).
        ``start="model.safetensors"`` fine-tunes that model: its weights, and its options where none are given;
        ``repeat=True`` with it takes the options alone and refuses data that it did not learn from.
    run_dir : path-like
        Checkpoints and logs; beside `output` when left out. Needed to `resume` a killed run.

    Of the processes that torchrun or SLURM started, the first writes, and each returns the model. With
    ``devices=N`` the N processes are started here.

    Raises
    ------
    UsageError, InputError, LabelError, BandError, OutputError
        Before training starts, for anything wrong with options, data or outputs.
    RankError
        One of several processes ended before its time.
    """
    ready = _ready_to_train(
        data, valid_data, RunConfig.from_options(options, base=config), output=output, run_dir=run_dir,
        resume=resume, overwrite=overwrite,
    )  # fmt: skip
    # Lightning takes seconds to import: neither detection nor a refusal need pay them.
    from satseg.learning.training.launching import fit_on_devices
    from satseg.learning.training.recipe import build_learner, finished_model
    from satseg.learning.training.run_page import write_run_page

    run, prepared, leads = ready.run, ready.prepared, given_ranks().leads
    learner = build_learner(prepared, run, ready.start)
    with run_folder(ready.place, ready.note, resume=resume, leads=leads) as folder:
        outcome = fit_on_devices(learner, prepared, folder=folder, resume=resume, progress=progress)
        model = finished_model(learner, prepared, run, outcome, ready.start, ready.weights)
        if run.train.fit_rules:
            from satseg.fitting import fitted_on

            model = fitted_on(model, prepared.validation, outcome.held)
        if output is not None and leads:
            model.save(output, overwrite=overwrite or resume)
        if ready.place is not None and leads:
            write_run_page(folder, learner, prepared, run, outcome)
    return model


def plan(
    data: Sequence[LabelledPair] = (),
    *,
    output: PathLike | None = None,
    valid_data: Sequence[LabelledPair] = (),
    config: RunConfig | None = None,
    run_dir: PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    timed: bool = True,
    **options: Any,
) -> Plan:
    """Check all that `train` checks with the same arguments, and return what it would do.

    Nothing is trained, and nothing written but ``split.png``, a picture of the split, in a `run_dir` that is given.
    For a budget in steps, two are tried on noise to tell their time, when `timed`.

    Raises
    ------
    UsageError, InputError, LabelError, BandError, OutputError
        What `train` would raise before it starts.
    """
    ready = _ready_to_train(
        data, valid_data, RunConfig.from_options(options, base=config), output=output, run_dir=run_dir,
        resume=resume, overwrite=overwrite,
    )  # fmt: skip
    from satseg.learning.training.plan import plan_of
    from satseg.learning.training.recipe import build_learner

    made = plan_of(ready.prepared, build_learner(ready.prepared, ready.run, ready.start), ready.run, timed=timed)
    if run_dir is not None:
        folder = Path(run_dir)
        with os_errors_as_output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with AtomicOutput(folder / SPLIT_PICTURE, overwrite=True) as out:
                out.temporary.write_bytes(made.picture())
    return made


def predict(model: ModelLike, scene: SceneLike, *, progress: Progress = silent, **options: Any) -> Raster:
    """Scores of every class over `scene` (or its `bounds`), as one raster in memory.

    Parameters
    ----------
    model : Model, Ensemble or path-like, or a sequence of models
        Several answer together, by the mean of their scores; a path may be an ensemble file.

    Returns
    -------
    Raster, (K, H, W) float32 in 0..1
        Channels are the model's classes; the grid is the scene's, or that of the model's working
        resolution where the two differ by more than 5 %. `options` are those of `DetectOptions`.
    """
    chosen, loaded = DetectOptions.of(options), as_predictor(model)
    work = working_scene(loaded, _as_scene(scene, loaded, chosen))
    return scores_of(loaded, work, chosen, progress=progress)


def detect(  # noqa: PLR0913  each is a file to make, or how
    model: ModelLike,
    scene: SceneLike,
    *,
    output: PathLike | None = None,
    mask: PathLike | None = None,
    scores: PathLike | None = None,
    entropy: PathLike | None = None,
    disagreement: PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> geopandas.GeoDataFrame:
    """Polygons of every class the model knows in `scene`.

    The scene is worked on in row bands, so memory does not follow its height; only the features
    returned do. `detect_to_file` does without them.

    Parameters
    ----------
    model : Model, Ensemble or path-like, or a sequence of models
        As of `predict`.
    output : path-like, optional
        Vector file for the features; its suffix picks the format.
    mask : path-like, optional
        GeoTIFF, one uint8 band per class: 1 inside, 0 outside, 255 where the scene is not valid.
    scores : path-like, optional
        GeoTIFF, one band per class of the option `score_type`: 0..1, NaN where the scene is not valid.
    entropy : path-like, optional
        GeoTIFF of one byte: how unsure the model is, the greatest entropy of a class in bits.
    disagreement : path-like, optional
        GeoTIFF of one byte: what the members of an ensemble disagree about, in bits.
    resume : bool
        Go on with an unfinished run that has the same inputs, model and options.
    options
        Those of `DetectOptions`, by name.

    Returns
    -------
    GeoDataFrame in the scene's CRS
        class_id, class_name, score (mean of the pixels, 0..1), area_m2, geometry (valid, holes kept).

    Raises
    ------
    BandError, UsageError, OutputError
        Before any inference, for what the model, options or outputs lack, and for an unfinished run that had others.
    InputError
        The scene has no valid pixel, or turns out damaged.
    """
    targets = Targets(*map(_path, (output, mask, scores, entropy, disagreement)))
    overwrite = overwrite or (resume and _is_begun(targets))
    ready = _prepared(model, scene, targets, DetectOptions.of(options), overwrite=overwrite)
    return _run(ready, targets, collect=True, resume=resume, overwrite=overwrite, progress=progress).features()


def detect_to_file(  # noqa: PLR0913  each is an option of the command line
    model: ModelLike,
    scene: SceneLike,
    output: PathLike | None,
    *,
    mask: PathLike | None = None,
    scores: PathLike | None = None,
    entropy: PathLike | None = None,
    disagreement: PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    announce: Callable[[Estimate], None] | None = None,
    **options: Any,
) -> dict[str, int]:
    """Detect as `detect` does, straight into files, in memory that follows neither scene nor features.

    Parameters
    ----------
    output : path-like or None
        Vector file for the features; None for rasters alone.
    announce : callable, optional
        Told what the detection will take, before it starts; costs a few small passes through the network.

    Returns
    -------
    dict of str to int
        Features of each class that has some.
    """
    targets = Targets(*map(_path, (output, mask, scores, entropy, disagreement)))
    overwrite = overwrite or (resume and _is_begun(targets))
    ready = _prepared(model, scene, targets, DetectOptions.of(options), overwrite=overwrite)
    if announce is not None:
        announce(ready.estimate(targets, timed=True))
    products = _run(ready, targets, collect=False, resume=resume, overwrite=overwrite, progress=progress)
    return {name: products.counts[name] for name in ready.model.classes if products.counts[name]}


def _is_begun(targets: Targets) -> bool:
    """Whether an unfinished run made what is there of `targets`: it was stopped while it published them."""
    return bool(targets.paths) and Ledger.header_of(targets.paths[0]) is not None


def _prepared(
    model: ModelLike, scene: SceneLike, targets: Targets, options: DetectOptions, *, overwrite: bool
) -> Detection:
    """Check everything that can be wrong and choose how to work."""
    loaded = as_predictor(model)
    work = working_scene(loaded, _as_scene(scene, loaded, options))
    if targets.features is not None:
        check_target(targets.features, crs=work.grid.crs, overwrite=overwrite)
    for path in targets.rasters.values():
        check_raster_target(path, overwrite=overwrite)
    check_distinct(targets.paths, inputs=[*work.paths, *([os.fspath(options.aoi)] if options.aoi else [])])
    wanted = Wanted(
        thresholds=options.thresholds(loaded),
        scores=options.score_type if targets.scores is not None else None,
        entropy=targets.entropy is not None,
        disagreement=targets.disagreement is not None,
    )
    ready = Detection.prepare(loaded, work, options, wanted)
    ready.check_room(targets)
    return ready


def _run(
    ready: Detection, targets: Targets, *, collect: bool, resume: bool, overwrite: bool, progress: Progress
) -> Products:
    """Run a detection; with files to make, beside a ledger of what is done of it."""
    if not targets.paths:
        with Products(ready.making(), targets, collect=collect) as products:
            ready.run(products, progress)
        return products
    place = targets.paths[0]
    if resume:
        ready = ready.like(Ledger.header_of(place))
    with Ledger.open(place, ready.header(targets), resume=resume) as ledger:
        try:
            with Products(ready.making(), targets, collect=collect, overwrite=overwrite) as products:
                ready.run_with(ledger, products, progress)
        except InputError:
            # A file on disk must change, and a run with another scene is another run; a server may recover.
            if not any(map(is_remote, ready.scene.paths)):
                ledger.discard()
            raise
        ledger.discard()
    return products


def _as_scene(scene: SceneLike, model: Predictor, options: DetectOptions) -> Scene:
    """`scene`, opened when it is not open yet, and registered when those that `model` learnt from were."""
    register = model.registers if options.register is None else options.register
    if not isinstance(scene, Scene):
        return open_scene(scene, register=register)
    return registered(scene) if register else scene


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A run that has passed all checks of its options, data and outputs."""

    run: RunConfig
    prepared: Prepared
    place: Path | None
    note: str
    start: Start | None
    weights: FileHash | None


def _ready_to_train(
    data: Sequence[LabelledPair],
    valid_data: Sequence[LabelledPair],
    run: RunConfig,
    *,
    output: PathLike | None,
    run_dir: PathLike | None,
    resume: bool,
    overwrite: bool,
) -> _Ready:
    """Open and check everything that training needs; nothing is written."""
    if run.train.folds is not None:
        raise UsageError(f"{run.train.folds} folds are trained by train_folds", code="E-TRN-027")
    told_by = None if run.model.start is None else Start.load(run.model.start)
    start, known = None if run.model.repeat else told_by, () if told_by is None else told_by.card.indices
    if told_by is not None:
        run = repeated(told_by, run) if start is None else told_by.options(run)
    check_options(run)
    pairs = open_pairs(data or run.data.scenes, run, known)
    valid_pairs = open_pairs(valid_data or run.data.valid_scenes, run, known)
    if output is not None:
        check_model_name(output)
        check_writable(output, overwrite=overwrite or resume)
    place, note, weights = run_place(run_dir, output), run.to_toml() + told(pairs, valid_pairs), weights_file(run)
    for role, file in (("start", None if start is None else start.file), ("weights", weights)):
        note += "" if file is None else f"# {role}: {file.sha256}\n"
    if place is not None and given_ranks().leads:
        check_run(place, note, resume=resume, overwrite=overwrite)
    prepared = prepare(pairs, valid_pairs, run, () if start is None else start.known_classes)
    if start is not None:
        prepared = start.normalized(prepared, run.model.inflate)
    elif told_by is not None:
        check_same(told_by, prepared, weights)
    prepared = grounds.as_detected(prepared, run.data.normalize, start.sources(prepared) if start else ())
    return _Ready(run, prepared, place, note, start, weights)


def check_options(run: RunConfig) -> None:
    """Raise UsageError or DependencyError where device, loss or network of `run` cannot be had here."""
    check_devices(run.train)
    loss_of(run.train)
    check_network(run.model)


def open_pairs(data: Sequence[LabelledPair], run: RunConfig, known: Sequence[IndexCard] = ()) -> list[Pair]:
    """Return `data` opened as `run` says, with the indices that a start's card knows; raises as `open_pair`."""
    pairs = []
    for item in data:
        if isinstance(item, Pair):
            pairs.append(item)
            continue
        scene, labels, aoi = (item.scene, item.labels, item.aoi) if isinstance(item, LabelledScene) else (*item, None)
        pairs.append(open_pair(scene, labels, aoi, run.data, learnt=known))
    return pairs
