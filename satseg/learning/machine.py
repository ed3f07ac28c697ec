"""What the machine at hand can do: devices, number formats in hardware, free cores, memory taken, packages."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeAlias

import torch

from satseg.errors import DependencyError, UsageError

SAMPLE_SECONDS = 0.5
MEMINFO = Path("/proc/meminfo")
PROC_STAT = Path("/proc/stat")
IDLE_FIELDS = (3, 4)
"""Columns "idle" and "iowait" of the first line of /proc/stat (proc(5))."""
Precision: TypeAlias = Literal["32-true", "16-mixed", "bf16-mixed"]
TENSOR_CORES = (7, 0)
"""CUDA compute capability (Volta) from which GPUs multiply float16 in tensor cores."""


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the torch device called `device`: auto (a GPU if there is one), cpu, cuda or cuda:i.

    Raises
    ------
    UsageError
        Another name (E-USE-054), or hardware that is not there (E-USE-055).
    """
    name = str(device)
    kind, _, index = name.partition(":")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or not (name == kind or index.isdecimal()):
        raise UsageError(
            f"device {name!r} is not known", hint="give auto, cpu, cuda or cuda:0", code="E-USE-054"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        found = f"{count} CUDA device{'s' * (count != 1)}"
        raise UsageError(
            f"device {name!r} is not here: torch sees {found}", hint="give auto or cpu", code="E-USE-055"
        )
    return torch.device(name)


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


def precision_for(device: torch.device, wanted: str) -> Precision:
    """Return Lightning's name of the numbers to train in on `device`: `wanted` ("fp32", "bf16"), or what is fastest.

    For "auto" bfloat16 where the hardware has it; else float16 with scaled gradients on a GPU with tensor cores,
    that is from `TENSOR_CORES` on: before them float16 is no faster, or slower by far. Else float32.
    """
    if wanted == "bf16" or (wanted == "auto" and bf16_is_native(device)):
        return "bf16-mixed"
    if wanted == "auto" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= TENSOR_CORES:
        return "16-mixed"
    return "32-true"


def threads_each(device: torch.device, processes: int, *, timed: bool) -> int:
    """Return how many threads each of so many `processes` gets of those that torch would use here.

    As in `threads_for`, cores that other programs keep busy are left to them when `timed` on a CPU.
    """
    threads = torch.get_num_threads()
    busy = busy_cores() if timed and device.type == "cpu" and threads > 1 else 0.0
    return max(1, round(threads - busy) // processes)


@contextmanager
def threads_for(device: torch.device, *, timed: bool, processes: int = 1) -> Iterator[None]:
    """Let torch use as many threads inside the block as there are free cores, when `timed` on a CPU.

    Beside other `processes` of the same training it uses its part of the cores, unless OMP_NUM_THREADS says how
    many; what those do as they start is not taken for other programs.

    Threads of one step wait for the slowest: with another program on one of two cores, a step on two
    threads took five times as long as on one. A budget in steps keeps the number of threads as it is,
    because the last bits of a sum depend on it.
    """
    before = torch.get_num_threads()
    try:
        if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) // processes)))
        elif processes == 1 and timed and device.type == "cpu" and before > 1:
            torch.set_num_threads(threads_each(device, 1, timed=True))
        yield
    finally:
        torch.set_num_threads(before)


def resident_bytes() -> int:
    """Return the memory that this process has now; 0 where /proc tells nothing."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_bytes(device: torch.device) -> float:
    """Return the free memory of a GPU, else of this machine; endless where /proc tells nothing."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free)
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return math.inf
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), math.inf)


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
