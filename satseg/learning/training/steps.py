"""The optimiser, and what happens around a step of it: weights kept sound, averaged, and a run ended in time.

An average of weights along the way (Polyak and Juditsky 1992) is a network of its own inside the learner, so that
checkpoints, devices and ranks take it along; validation and the model use it instead of the weights that learn. Its
first steps count more (at most (1 + n) / (10 + n) is kept of it), for else the random weights of the start stay in it
through a short run. Statistics of batch normalisation are averaged alike: they belong to the weights. It is off by
default: in Nairobi, after three CPU-minutes (`benchmarks.accuracy`), an average of 0.99 had a Jaccard of 0.55 and, the
same again, 0.53, as the weights at the end have, whose learning rate has come down by then; with BCE alone it lost in
Las Vegas. Rejected: swapping weights around validations, which leaves either kind in a checkpoint by the order of
callbacks.

The step schedule and Nadam are those of 2017 (arXiv 1706.06169): a rate for half of the budget and a tenth of it for
the other half, the optimiser of Dozat 2016 as Keras has it, whose momentum comes up over some hundred steps.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from satseg.learning.networks.network import Network
from satseg.options import TrainOptions

log = logging.getLogger(__name__)

LEAST_RATE = 0.01
"""Of the full learning rate, at the end of the cosine."""
LATE_RATE = 0.1
"""Of the full learning rate, in the second half of the step schedule."""


def optimizer_of(groups: list[dict[str, Any]], options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser that `options` name, for groups of weights; decay pulls at weights, not at their gradients."""
    given: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "nadam":
        return torch.optim.NAdam(groups, decoupled_weight_decay=True, **given)
    # Saves 3 % of a step's time on a CPU; on a GPU it would undo the scaling of gradients itself, after the clipping.
    cpu = all(weight.device.type == "cpu" for group in groups for weight in group["params"])
    return torch.optim.AdamW(groups, fused=True if cpu else None, **given)


def schedule(share: float, options: TrainOptions) -> float:
    """Factor of the learning rate after `share`, 0..1, of the budget: a linear rise over `warmup`, then a fall.

    The cosine falls to `LEAST_RATE` all the way; the step falls to `LATE_RATE` at half of the budget.
    """
    if share < options.warmup:
        return max(0.02, share / options.warmup)
    if options.schedule == "step":
        return 1.0 if share < 0.5 else LATE_RATE
    fall = min(1.0, (share - options.warmup) / (1 - options.warmup))
    return LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * fall))


def averaged_copy(network: Network) -> Network:
    """A network to hold the average of `network`, now equal to it; it does not learn."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def take_into_average(average: Network, network: Network, *, step: int, decay: float) -> None:
    """Move `average` towards `network` after `step` steps, counted from 1; whole numbers are copied."""
    kept = min(decay, (1 + step) / (10 + step))
    pairs = zip(average.state_dict().values(), network.state_dict().values(), strict=True)
    moving: list[tuple[Tensor, Tensor]] = []
    for old, new in pairs:
        if old.is_floating_point():
            moving.append((old, new))
        else:
            old.copy_(new)
    torch._foreach_lerp_([old for old, _ in moving], [new for _, new in moving], 1 - kept)


class Statistics:
    """The running statistics of a network as they were after the last sound step.

    A forward pass moves them before anyone can see that it was of no use, and NaN never leaves a mean again.
    """

    def __init__(self, network: nn.Module) -> None:
        self._now = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._kept = [buffer.clone() for buffer in self._now]

    def keep(self) -> None:
        """Take the present ones for sound."""
        if self._now:
            torch._foreach_copy_(self._kept, self._now)

    def restore(self) -> None:
        """Go back to those last kept."""
        if self._now:
            torch._foreach_copy_(self._now, self._kept)


def clipped(optimizer: torch.optim.Optimizer, norm: float) -> bool:
    """Scale the gradients of `optimizer` down to at most `norm`, and return True; False, and none, if not finite."""
    weights: Iterable[Tensor] = [weight for group in optimizer.param_groups for weight in group["params"]]
    if torch.isfinite(nn.utils.clip_grad_norm_(weights, norm)):
        return True
    optimizer.zero_grad(set_to_none=True)  # weights without a gradient stay where they are
    return False


class Patience(Callback):
    """Ends a run after `rounds` validations in a row without a better mean Jaccard.

    It is told in checkpoints, so that a run that was killed as it stopped does not start again.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._best = float("-inf")
        self._waited = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with, as plain values."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the patience left to the run being resumed."""
        self._best, self._waited = float(state_dict["best"]), int(state_dict["waited"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Do not go on with a run that had ended."""
        trainer.should_stop = self._waited >= self._rounds

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Count the validation, and end the run when patience is out."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        jaccard = float(trainer.callback_metrics["jaccard"])
        self._waited = 0 if jaccard > self._best else self._waited + 1
        self._best = max(self._best, jaccard)
        if self._waited >= self._rounds:
            log.info("no better validation in %d rounds: the run ends at step %d", self._waited, trainer.global_step)
            trainer.should_stop = True
