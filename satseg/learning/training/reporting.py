"""What a training tells while it runs: one callback that turns the trainer's state into a `TrainingStatus`.

The figures are taken where they are: steps and time from the learner's budget, the loss from the step's
output, Jaccards from what a validation logged. Losses are summed on the device and fetched twice a
second: to ask a GPU for a number after each step would have it wait for the answer.

The best validation is kept in checkpoints, so that a resumed run goes on with it. The learning rate is logged
beside the loss, for the curves of the run folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from satseg.progress import Progress, TrainingStatus, mean_of, training_teller

FETCH_S = 0.5
"""Seconds between two looks at a loss that lies on a GPU."""
MEMORY = 0.9
"""Weight of the earlier steps in the mean time of a step."""


class Reporter(Callback):
    """Tells `progress` after each step and each validation where the training stands.

    Parameters
    ----------
    progress : Progress
        Given a `TrainingStatus` when it has a method for it, else share and note.
    """

    def __init__(self, progress: Progress) -> None:
        self._told = training_teller(progress)
        self._validations = 0
        self._last: tuple[float | None, ...] = ()
        self._best: tuple[float | None, ...] = ()
        self._losses = _Losses()
        self._ended_s: float | None = None
        self._step_s: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with, as plain values."""
        return {"validations": self._validations, "last": [*self._last], "best": [*self._best]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the validations of the run being resumed."""
        self._validations = int(state_dict["validations"])
        self._last, self._best = tuple(state_dict["last"]), tuple(state_dict["best"])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step, log its learning rate, and tell."""
        now = time.monotonic()
        if self._ended_s is not None:
            taken = now - self._ended_s
            self._step_s = taken if self._step_s is None else MEMORY * self._step_s + (1 - MEMORY) * taken
        self._ended_s = now
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None and not pl_module.void:
            self._losses.add(loss.detach() * trainer.accumulate_grad_batches, now)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # through the module it costs half a millisecond
            for logger in trainer.loggers:
                logger.log_metrics({"learning_rate": _rate(trainer)}, trainer.global_step - 1)
        self._tell(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Leave the time of a validation out of that of a step."""
        self._ended_s = None

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the Jaccards of a validation within the training, and tell."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._last = tuple(_score(trainer.callback_metrics.get(f"jaccard/{name}")) for name in pl_module.classes)
        self._validations += 1
        if not self._best or (mean_of(self._last) or 0.0) > (mean_of(self._best) or 0.0):
            self._best = self._last
        self._tell(trainer, pl_module)

    def _tell(self, trainer: Any, module: Any) -> None:
        if not trainer.is_global_zero:
            return
        status = TrainingStatus(
            share=module.budget.share(module.global_step),
            step=module.global_step,
            elapsed_s=module.budget.elapsed_s,
            loss=self._losses.mean,
            rate=_rate(trainer),
            mpix_per_s=_pixels(trainer, module) / self._step_s / 1e6 if self._step_s else None,
            skipped=module.skipped,
            validations=self._validations,
            classes=module.classes,
            last=self._last,
            best=self._best,
        )
        self._told(status)


class _Losses:
    """Mean loss of the steps between two looks at it."""

    def __init__(self) -> None:
        self.mean: float | None = None
        self._sum: torch.Tensor | None = None
        self._count = 0
        self._fetched_s = -FETCH_S

    def add(self, loss: torch.Tensor, now: float) -> None:
        """Add one step's; on a CPU, and on a GPU every `FETCH_S`, the mean is looked at."""
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1
        if loss.device.type == "cpu" or now - self._fetched_s >= FETCH_S:
            self.mean = float(self._sum) / self._count
            self._sum, self._count, self._fetched_s = None, 0, now


def _pixels(trainer: Any, module: Any) -> int:
    """Pixels that the loss sees in one step, of all processes."""
    side = module.options.chip - 2 * module.network.crop
    return int(module.options.batch * side**2 * trainer.world_size)


def _rate(trainer: Any) -> float:
    return max(float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups)


def _score(metric: torch.Tensor | None) -> float | None:
    """A logged Jaccard; None for a class without truth, which is logged as NaN."""
    value = float("nan") if metric is None else float(metric)
    return None if value != value else value
