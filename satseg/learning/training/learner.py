"""Training on Lightning: one module, one budget, chips by number.

Everything random is a function of (seed, step): which chips, how they are turned, the first
weights. So two CPU runs of equal steps and seed give equal weights, and a killed run resumes into
the run it would have been. The learning rate follows the elapsed share of the budget, which makes
the same schedule fit ``minutes`` and ``steps``.

An "epoch" of Lightning is one of `rounds` equal parts of the budget, ended by the sampler; that puts
validation where it belongs without counting the chips of an endless stream.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from satseg.errors import InputError
from satseg.imagery.normalization import Normalization
from satseg.learning.ground.grounds import Prepared
from satseg.learning.ground.hardness import Hardness, wrong_pixels
from satseg.learning.machine import precision_for, threads_for
from satseg.learning.networks.encoders import hold_encoder, parameter_groups
from satseg.learning.networks.forward import Standardize
from satseg.learning.networks.network import Network
from satseg.learning.training.augment import augment, step_generator
from satseg.learning.training.checkpoints import (
    BEST,
    CheckpointFiles,
    checkpoint_to_resume,
    checkpoint_writers,
    full_disks_stop_resumably,
)
from satseg.learning.training.curves import ThresholdCurve
from satseg.learning.training.feed import (
    Batch,
    Budget,
    Moment,
    PlacedBatch,
    training_batches,
    training_sampler,
    validation_tiles,
)
from satseg.learning.training.held import HeldScores, held_scores
from satseg.learning.training.judged import Judged
from satseg.learning.training.losses import loss_of
from satseg.learning.training.ranks import company, given_ranks, mean_over_ranks, rows_of_ranks, trainer_options
from satseg.learning.training.reporting import Reporter
from satseg.learning.training.steps import (
    Patience,
    Statistics,
    averaged_copy,
    clipped,
    optimizer_of,
    schedule,
    take_into_average,
)
from satseg.progress import Progress
from satseg.run import RunConfig

log = logging.getLogger(__name__)


class Learner(lightning.LightningModule):
    """The network with its loss, schedule and whole-ground validation.

    Parameters
    ----------
    network : Network
    normalization : Normalization
    run : RunConfig
    classes : sequence of str
    device : torch.device
        Where `fit` trains.
    """

    def __init__(
        self,
        network: Network,
        normalization: Normalization,
        run: RunConfig,
        *,
        classes: Sequence[str],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.average = averaged_copy(self.network) if run.train.ema else None
        self.target = device
        self.normalize = Standardize(normalization)
        self.options, self.tuning, self.changes = run.train, run.model, run.changes
        self.classes = tuple(classes)
        self.loss = loss_of(run.train)
        self.budget = Budget(run.train.steps, run.train.minutes)
        self.curve = ThresholdCurve(len(self.classes))
        self.skipped = 0
        self.void = self.idle = False
        """Whether the batch at hand is skipped; whether all of its step have been so far."""
        self.statistics = Statistics(self.network)
        self.resumed_round = 0
        """Round that a resumed run goes on with: asking for the first batch, Lightning may have the one before."""
        self.hardness: Hardness | None = None
        """Of the ground that `fit` trains on, where chips go by it."""
        self.held: HeldScores | None = None
        """Keeps what validation finds, once it is to be kept."""

    @property
    def judged(self) -> Network:
        """The network to validate and to keep: the one that learns, or the average of it."""
        return self.network if self.average is None else self.average

    def training_step(self, batch: PlacedBatch, batch_idx: int) -> torch.Tensor | None:
        """Loss of one augmented batch; where it is not finite on some rank, all skip it, and count it."""
        image, valid, target, labelled, cells = batch
        image = self.normalize(image, valid)
        part = self.global_step * self.options.accumulate + batch_idx % self.options.accumulate
        number = part * self.trainer.world_size + self.global_rank
        generator = step_generator(self.options.seed, number + 1)  # 0 drew the first weights
        image, target, labelled = augment(image, target, labelled, self.changes, generator=generator)
        self.network.take_turn(self.global_step)
        logits = self.network(image.contiguous(memory_format=torch.channels_last))
        target, labelled = cut(target, self.network.crop), cut(labelled, self.network.crop)
        loss: torch.Tensor = self.loss(logits, target, labelled)
        mean = self._agree(float(loss.detach()))
        self.skipped += self.void
        self.idle = self.void and (self.idle or batch_idx % self.options.accumulate == 0)
        if self.void:
            self.statistics.restore()
            return nothing(self.network) if self.trainer.world_size > 1 else None
        self.log("loss", mean, prog_bar=False)
        if self.hardness is not None:
            count = len(self.classes)  # what the rest predicts are cores
            wrong = wrong_pixels(logits[:, :count], target[:, :count], labelled)
            chips = rows_of_ranks(torch.cat([cells[:, None], wrong], dim=1))
            self.hardness.note(chips.numpy(), whole=count * labelled[0, 0].numel())
        return loss

    def _agree(self, loss: float) -> float:
        """Mean loss of all ranks; all skip the step when one has to, and go by the mean of their clocks."""
        alone, bad = self.trainer.world_size == 1, not np.isfinite(loss)
        told = mean_over_ranks([float(bad), 0.0 if bad else loss, self.budget.elapsed_s])
        self.void = told[0] > 0
        self.budget.agreed_s = None if alone else told[2]
        return told[1]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep a skipped step from moving weights by decay and momentum."""
        if self.idle and self.trainer.world_size > 1:
            for weight in self.network.parameters():
                weight.grad = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch's pixels to the threshold curve, and keep them where they are to be kept."""
        image, valid, target, labelled = batch
        logits = self.judged(self.normalize(image, valid).contiguous(memory_format=torch.channels_last))
        crop, count = self.network.crop, len(self.classes)
        scores, truth, known = logits[:, :count].float().sigmoid(), cut(target[:, :count], crop), cut(labelled, crop)
        self.curve.update(scores, truth, known)
        if self.held is not None:
            self.held.take(batch_idx, scores=scores[0], truth=truth[0], valid=cut(valid, crop)[0, 0], known=known[0, 0])

    def on_validation_epoch_start(self) -> None:
        """Forget the previous validation."""
        self.curve = ThresholdCurve(len(self.classes)).to(self.device)

    def on_validation_epoch_end(self) -> None:
        """Log the Jaccard of each class at its best threshold, and their mean as ``jaccard``."""
        self.curve.share_between_ranks()
        _, scores = self.curve.best()
        for name, score in zip(self.classes, scores, strict=True):
            self.log(f"jaccard/{name}", score, sync_dist=False)
        present = [score for score in scores if score == score]
        unknown = self.budget.share(self.global_step) - 1  # no truth to choose by: the last weights are kept
        self.log("jaccard", float(np.mean(present)) if present else unknown, sync_dist=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the run; the rate is set before each step from the elapsed share of the budget."""
        return optimizer_of(parameter_groups(self.network, self.tuning), self.options)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate of this step."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        share = self.budget.share(self.global_step)
        hold_encoder(self.network, self.tuning, share)
        rate = self.options.learning_rate * schedule(share, self.options)
        for group in optimizer.param_groups:  # type: ignore[union-attr]  # one optimiser, see above
            group["lr"] = rate * group["factor"]

    def on_train_start(self) -> None:
        """Take the statistics of the start, or of the run being resumed, for sound, and its time on all ranks."""
        self.statistics = Statistics(self.network)
        if self.trainer.world_size > 1:
            self.budget.agreed_s = self.budget.before_s
        if self.current_epoch > 0:  # without a validation there are no weights to keep
            self._end_in_time()

    def on_train_epoch_end(self) -> None:
        """End a run whose budget is used up before its rounds: each of those left would take a step at least."""
        self._end_in_time()

    def _end_in_time(self) -> None:
        if self.budget.share(self.global_step) >= 1:
            self.trainer.should_stop = True

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clip; a step whose gradients are not finite changes nothing, and is counted with the skipped."""
        if clipped(optimizer, self.options.clip_norm):
            self.statistics.keep()
        else:
            self.skipped += 1
            self.statistics.restore()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step, and take it into the average."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            take_into_average(self.average, self.network, step=self.global_step + 1, decay=self.options.ema)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the time spent, what was skipped and what is hard, so that a resumed run goes on with them."""
        checkpoint["elapsed_s"], checkpoint["skipped"] = self.budget.elapsed_s, self.skipped
        checkpoint["round"] = self.current_epoch + self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if self.hardness is not None:
            checkpoint["hardness"] = self.hardness.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count the time of the run being resumed, and what it skipped; take its errors over."""
        self.budget.resume(float(checkpoint["elapsed_s"]))
        self.skipped = int(checkpoint["skipped"])
        self.resumed_round = int(checkpoint["round"])
        if self.hardness is not None:
            self.hardness.restore(checkpoint["hardness"])

    def moment(self) -> Moment:
        """Where the run stands as a round begins, which is when errors become the round's weights."""
        number = max(self.current_epoch, self.resumed_round)
        if self.hardness is not None:
            self.hardness.begin(number)
        until = (number + 1) / (self.trainer.max_epochs or 1)
        return Moment(self.global_step, until, self.trainer.global_rank, self.trainer.world_size)


def nothing(network: Network) -> torch.Tensor:
    """A loss of 0 whose gradient is 0 for each weight, so that DDP finds the step whole."""
    return sum((weight.sum() for weight in network.parameters() if weight.requires_grad), torch.zeros(())) * 0.0


def cut(planes: torch.Tensor, margin: int) -> torch.Tensor:
    """`planes` (..., H, W) without `margin` pixels on every side."""
    return planes if margin == 0 else planes[..., margin:-margin, margin:-margin]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run leaves: the thresholds and scores of the weights now in the network.

    `held` are its scores of the ground held for validation, where one process has them all and rules are to be fitted.
    """

    thresholds: tuple[float, ...]
    jaccard: tuple[float | None, ...]
    steps: int
    seconds: float
    skipped: int
    held: tuple[Judged, ...] | None = None


def fit(learner: Learner, prepared: Prepared, *, folder: Path, resume: bool, progress: Progress) -> Outcome:
    """Train `learner` in place, as one of the ranks given, and leave its best weights in its network.

    Parameters
    ----------
    prepared : Prepared
        Where chips come from, and the ground held for validation.
    folder : Path
        Run folder: ``last.ckpt``, ``best.ckpt``, ``metrics.csv``, TensorBoard events.
    resume : bool
        Go on from the last checkpoint when there is one.

    Raises
    ------
    InputError
        The checkpoints to resume from are damaged.
    OutputError
        The disk is full, so that the best weights or the logs cannot be kept; the run can be resumed.
    """
    given = given_ranks()
    checkpoint = checkpoint_to_resume(folder) if resume else None
    options = learner.options
    sampler = training_sampler(prepared.grounds, options, learner.changes)
    learner.hardness = sampler.hardness
    chips = training_batches(
        sampler, options, budget=learner.budget, moment=learner.moment, ranks=given.count,
        learners=learner.network.learners,
    )  # fmt: skip
    tiles = validation_tiles(prepared, options, learner.network, rank=given.rank, ranks=given.count)
    if given.leads:
        _keep_metrics(folder)
    timed = learner.budget.minutes is not None
    with _quiet(), threads_for(learner.target, timed=timed, processes=given.here), company():
        patience = [Patience(options.patience)] if options.patience else []
        trainer = _trainer(learner, folder, [*checkpoint_writers(folder), *patience, Reporter(progress)])
        with _interrupts(), full_disks_stop_resumably(folder):
            trainer.fit(learner, chips, tiles, ckpt_path=checkpoint)
        steps, seconds = trainer.global_step, learner.budget.elapsed_s
        if timed and given.leads and steps >= learner.budget.most_steps:
            log.info("%d steps have seen the ground often enough; passes = 0 would go on", steps)
        if given.leads:  # validating, the others take the weights over
            restore(learner, folder / BEST)
        if options.fit_rules and given.count == 1:
            learner.held = held_scores(prepared, tiles, learner.network, classes=learner.classes)
        trainer.validate(learner, tiles, verbose=False)
    thresholds, scores = learner.curve.best()
    jaccard = tuple(None if score != score else score for score in scores)
    held = None if learner.held is None else learner.held.judged()
    return Outcome(tuple(thresholds), jaccard, steps, seconds, learner.skipped, held)


def _keep_metrics(folder: Path) -> None:
    """Put the metrics of the run being resumed aside: the CSV logger starts its file anew."""
    metrics = folder / "metrics.csv"
    if metrics.exists():
        parts = len([*folder.glob("metrics.*.csv")])
        metrics.rename(folder / f"metrics.{parts + 1}.csv")


def restore(learner: Learner, checkpoint: Path) -> None:
    """Load the weights of `checkpoint` into `learner` (plain data only, nothing is executed).

    An average of them becomes the network.

    Raises
    ------
    InputError
        No validation ever finished, so there are no best weights.
    """
    if not checkpoint.exists():
        raise InputError(f"{checkpoint} is missing", hint="train again without --resume", code="E-TRN-005")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    learner.load_state_dict(state)
    learner.network.load_state_dict(learner.judged.state_dict())


def _trainer(learner: Learner, folder: Path, callbacks: list[Callback]) -> lightning.Trainer:
    options, device = learner.options, learner.target
    placed = trainer_options(device, unused=learner.tuning.freeze > 0 or learner.network.learners > 1)
    plugins = placed.pop("plugins", [])
    return lightning.Trainer(
        **placed,
        precision=precision_for(device, options.precision),
        max_epochs=min(options.rounds, options.steps or options.rounds),
        gradient_clip_val=options.clip_norm,
        accumulate_grad_batches=options.accumulate,
        plugins=[CheckpointFiles(), *plugins],
        logger=[CSVLogger(folder, name="", version=""), TensorBoardLogger(folder, name="", version="")],
        callbacks=callbacks,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def _interrupts() -> Iterator[None]:
    """Let Ctrl-C be KeyboardInterrupt for our callers; Lightning answers it with ``sys.exit(1)``."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's banners and advice off the terminal; its errors still come."""
    noisy = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning.*")
            warnings.filterwarnings("ignore", message=r".*(isinstance\(treespec, LeafSpec\)|lr_scheduler).*")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
