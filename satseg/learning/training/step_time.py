"""How long a training step takes, tried on noise before there is a run."""

from __future__ import annotations

import copy
import time

import torch

from satseg.learning.machine import free_bytes, precision_for
from satseg.learning.training.learner import Learner

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def step_seconds(learner: Learner, *, bands: int, memory: int) -> float | None:
    """Return the seconds of the second of two steps of a copy of the network; None where memory does not allow one.

    Reading and augmenting chips, the loss and the optimiser are not in it.

    Parameters
    ----------
    bands : int
    memory : int
        Bytes that a step takes (`plan.memory_bytes`).
    """
    target, options = learner.target, learner.options
    if memory > free_bytes(target):
        return None
    network = copy.deepcopy(learner.network).to(target).train()
    dtype = DTYPES.get(precision_for(target, options.precision))
    noise, seconds = torch.Generator().manual_seed(options.seed), 0.0
    try:
        for _ in range(2):
            began = time.perf_counter()
            for _ in range(options.accumulate):
                chips = torch.rand(options.batch, bands, options.chip, options.chip, generator=noise).to(target)
                with torch.autocast(target.type, dtype, enabled=dtype is not None):
                    logits = network(chips.contiguous(memory_format=torch.channels_last))
                logits.float().square().mean().backward()
            if target.type == "cuda":
                torch.cuda.synchronize(target)
            seconds = time.perf_counter() - began
    except torch.OutOfMemoryError:
        return None
    return seconds
