"""Which of the processes of a training this one is, and how they agree; one process is the plain case.

A process learns its rank from the environment, as torchrun and SLURM's srun set it; `launching` sets the same
for the processes that ``--devices N`` starts, so that there is one way to train on several, whoever started it.
Gradients are averaged by DDP. What hangs on a clock or on one batch must be the same on all ranks, or one of them
stops a step before the others, which then wait for it: each step they take the mean of their clocks, and whether
some loss was not finite. That, and what Lightning asks, goes over gloo (``cpu:gloo,cuda:nccl``), for with NCCL
each such word would have the GPU wait.

Rejected: variables of our own beside torchrun's, which would be a second way to be started; Lightning's choice
of the environment, which takes a job script of SLURM without srun for one rank of many; SyncBatchNorm, which
CPUs lack and which batches of 16 chips a rank do not need.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from satseg.errors import RankError, UsageError
from satseg.learning.machine import resolve_device
from satseg.options import TrainOptions

TIMEOUT_S = 300
"""Seconds after which a rank gives up one that is still there but silent; one that is gone is noticed at once."""
LOST = ("gloo", "Connection closed by peer", "Connection reset", "Broken pipe", "NCCL")
"""Words of errors that another process's end causes in this one."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of one process among those of a training.

    Parameters
    ----------
    rank, count : int
        Its number, from 0, of how many, on all machines.
    here : int
        How many of them are on this machine.
    launcher : str
        "torchrun" or "slurm"; empty for a process that is alone.
    """

    rank: int = 0
    count: int = 1
    here: int = 1
    launcher: str = ""

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0


def given_ranks() -> Ranks:
    """Return what the environment says of this process, which is alone where torchrun or srun started but one.

    Raises
    ------
    UsageError
        srun was not told how many processes each machine gets (E-RNK-005).
    """
    say = os.environ.get
    if "TORCHELASTIC_RUN_ID" in os.environ:
        given = Ranks(int(say("RANK", 0)), int(say("WORLD_SIZE", 1)), int(say("LOCAL_WORLD_SIZE", 1)), "torchrun")
    elif "SLURM_PROCID" in os.environ and say("SLURM_JOB_NAME") not in ("bash", "interactive"):
        count, here = int(say("SLURM_NTASKS", 1)), int(say("SLURM_NTASKS_PER_NODE", 0))
        if count > 1 and not here:
            raise UsageError(
                f"SLURM started {count} processes and does not say how many on each machine",
                hint="give srun or sbatch --ntasks-per-node",
                code="E-RNK-005",
            )
        given = Ranks(int(say("SLURM_PROCID", 0)), count, max(1, here), "slurm")
    else:
        return Ranks()
    return given if given.count > 1 else Ranks()


def check_devices(options: TrainOptions) -> None:
    """Raise when this machine cannot give each process of a training what `options` ask for.

    Raises
    ------
    UsageError
        The device is unknown or not here (`resolve_device`); `devices` is not the number that a launcher started
        (E-RNK-002), goes with one GPU by name (E-RNK-003), or exceeds the GPUs that are here (E-RNK-004).
    """
    device, given = resolve_device(options.device), given_ranks()
    if given.count > 1 and options.devices not in (None, given.here):
        raise UsageError(
            f"{options.devices} devices are asked for, {given.launcher} started {given.here} processes here",
            hint="leave --devices out",
            code="E-RNK-002",
        )
    wanted = given.here if given.count > 1 else options.devices or 1
    if device.type != "cuda" or wanted == 1:
        return
    if ":" in options.device:
        raise UsageError(
            f"{options.device} is one GPU, and {wanted} devices are asked for",
            hint="give --device cuda, and CUDA_VISIBLE_DEVICES to choose",
            code="E-RNK-003",
        )
    found = torch.cuda.device_count()
    if wanted > found:
        raise UsageError(
            f"{wanted} GPUs are asked for, torch sees {found}",
            hint=f"give --devices {found} or --device cpu; a task of SLURM must see all GPUs of its machine",
            code="E-RNK-004",
        )


def trainer_options(device: torch.device, *, unused: bool) -> dict[str, Any]:
    """Return how Lightning's trainer is to run this process.

    Parameters
    ----------
    unused : bool
        Whether weights may stay without a gradient in some step, such as those of an encoder that is held.
    """
    given, cuda = given_ranks(), device.type == "cuda"
    placed: dict[str, Any] = {"accelerator": "gpu" if cuda else "cpu"}
    if given.count == 1:
        return placed | {"devices": [device.index or 0] if cuda else 1}
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    slurm = given.launcher == "slurm"
    return placed | {
        "devices": given.here,
        "num_nodes": given.count // given.here,
        "plugins": [SLURMEnvironment(auto_requeue=False) if slurm else TorchElasticEnvironment()],
        "strategy": DDPStrategy(
            process_group_backend="cpu:gloo,cuda:nccl" if cuda else "gloo",
            timeout=timedelta(seconds=TIMEOUT_S),
            find_unused_parameters=unused,
        ),
        "inference_mode": False,  # gloo takes no tensors made in it
    }


def mean_over_ranks(values: Sequence[float]) -> list[float]:
    """Return the mean over all ranks of each of `values`, the same bits on each; of one process, the values."""
    if given_ranks().count == 1:
        return list(values)
    held = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(held)
    mean: list[float] = (held / torch.distributed.get_world_size()).tolist()
    return mean


def rows_of_ranks(rows: torch.Tensor) -> torch.Tensor:
    """Return `rows` (n, ...) of all ranks, one after the other and as many of each, on the CPU; of one, its own."""
    own = rows.detach().cpu()
    if given_ranks().count == 1:
        return own
    of_each = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(of_each, own)
    return torch.cat(of_each)


@contextmanager
def company() -> Iterator[None]:
    """Say in one error that another rank has gone; take leave of the others at a good end.

    Raises
    ------
    RankError
        The connection to another rank broke, or it kept silent for `TIMEOUT_S` (E-RNK-010).
    """
    given = given_ranks()
    try:
        yield
    except RuntimeError as error:
        if given.count == 1 or not (isinstance(error, torch.distributed.DistError) or _of_the_line(error)):
            raise
        raise RankError(
            f"rank {given.rank} of {given.count} lost the others: one has ended, or was silent for {TIMEOUT_S} s",
            hint="see what that one said; --resume goes on from the last checkpoint",
            code="E-RNK-010",
        ) from error
    if given.count > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _of_the_line(error: RuntimeError) -> bool:
    return any(word in str(error) for word in LOST)
