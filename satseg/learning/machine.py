"""What the machine at hand can do: number formats in hardware, cores that are free, packages that are there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from satseg.errors import DependencyError

SAMPLE_SECONDS = 0.5
PROC_STAT = Path("/proc/stat")
IDLE_FIELDS = (3, 4)
"""Columns "idle" and "iowait" of the first line of /proc/stat (proc(5))."""


def bf16_is_native(device: torch.device) -> bool:
    """Whether bfloat16 runs in hardware on `device`, so that training in it is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def optional_package(name: str, *, extra: str) -> ModuleType:
    """Return the package `name`, which the extra of that name installs.

    Raises
    ------
    DependencyError
        It is not installed (E-DEP-010).
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise DependencyError(
            f"package {name} is not installed", hint=f'pip install "satseg[{extra}]"', code="E-DEP-010"
        ) from error


@contextmanager
def threads_for(device: torch.device, *, timed: bool) -> Iterator[None]:
    """Let torch use as many threads inside the block as there are free cores, when `timed` on a CPU.

    Threads of one step wait for the slowest: with another program on one of two cores, a step on two
    threads took five times as long as on one. A budget in steps keeps the number of threads as it is,
    because the last bits of a sum depend on it.
    """
    before = torch.get_num_threads()
    try:
        if timed and device.type == "cpu" and before > 1:
            torch.set_num_threads(max(1, min(before, round(before - busy_cores()))))
        yield
    finally:
        torch.set_num_threads(before)


def busy_cores() -> float:
    """Cores that other programs keep busy, measured while this one sleeps; 0 where /proc/stat is not."""
    if not PROC_STAT.exists():
        return 0.0
    first = _ticks()
    time.sleep(SAMPLE_SECONDS)
    total, idle = (after - before for after, before in zip(_ticks(), first, strict=True))
    cores = sum(line.startswith("cpu") for line in PROC_STAT.read_text().splitlines()) - 1
    return cores * (1 - idle / total) if total else 0.0


def _ticks() -> tuple[int, int]:
    """All ticks since start, over all cores, and the idle ones."""
    fields = [int(field) for field in PROC_STAT.read_text().split("\n", 1)[0].split()[1:]]
    return sum(fields), sum(fields[i] for i in IDLE_FIELDS)
