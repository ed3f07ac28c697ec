"""Starts the processes of ``--devices N`` on this machine, watches over them, and ends them together.

Each rank is ``python -c`` of this module with torchrun's variables in its environment; the checked data and the
untrained learner come to it pickled in a file, so that data are prepared, and their faults told, once. This process
trains nothing itself: it hosts the meeting point (a store on a port that the system chose), hears rank 0's progress,
and can therefore tell which rank died even where the others hang in a collective; it then ends them. The weights come
back as ``best.ckpt``. A rank ends itself when this process is gone, for the line between them then closes.

Rejected: Lightning's script launcher, which runs ``sys.argv`` again, and so a notebook or a caller's script;
``ddp_spawn`` and multiprocessing's spawn, which import the caller's ``__main__`` again and fail where it has no guard;
fork, which takes threads of OpenMP, GDAL and numba and a CUDA context into the child, where they do not work;
torchrun's agent as a library, which would start this process's command again at each failure; rank 0 in this
process, which then sits in a collective, deaf, when another rank dies.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, but not in its __all__

from satseg.errors import RankError, SatsegError, UsageError
from satseg.learning.ground.grounds import Prepared
from satseg.learning.machine import threads_each
from satseg.learning.training.checkpoints import BEST
from satseg.learning.training.curves import ThresholdCurve
from satseg.learning.training.learner import Learner, Outcome, fit, restore
from satseg.learning.training.ranks import given_ranks
from satseg.progress import Progress, TrainingStatus, training_teller

HOST = "127.0.0.1"
LOOPBACK = Path("/sys/class/net/lo")
LOOK_S = 0.5
"""Seconds between two looks at whether all processes live."""
GRACE_S = 5.0
"""Seconds that the other ranks have to end by themselves, and to say why, when one has failed."""
CODE = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from satseg.learning.training.launching import run_rank
run_rank()
"""


def fit_on_devices(
    learner: Learner, prepared: Prepared, *, folder: Path, resume: bool, progress: Progress
) -> Outcome:
    """Train `learner` as `learner.fit` does, in as many processes as its options say, and return alike.

    Where torchrun or srun started this process, it is one of theirs already and starts none.

    Raises
    ------
    UsageError
        The data cannot be handed to other processes (E-RNK-006).
    RankError
        A process ended before its time (E-RNK-011); the error says which and why.
    """
    count = learner.options.devices or 1
    if count == 1 or given_ranks().count > 1:
        return fit(learner, prepared, folder=folder, resume=resume, progress=progress)
    level = logging.getLogger("satseg").getEffectiveLevel()
    with _started(count, _pickled((learner, prepared, folder, resume, level)), _environment(learner, count)) as ranks:
        outcome, learner.curve = _Watch(ranks, progress).result()
    restore(learner, folder / BEST)
    return outcome


@dataclass(slots=True)
class _Process:
    rank: int
    process: subprocess.Popen[bytes]
    line: Connection
    error: SatsegError | None = None

    @property
    def status(self) -> int | None:
        """As `Popen.returncode`: None while it runs, negative for a signal."""
        return self.process.poll()


class _Watch:
    """Hears all ranks until each has ended; the first that fails ends the training."""

    def __init__(self, ranks: list[_Process], progress: Progress) -> None:
        self._ranks, self._tell = ranks, training_teller(progress)
        self._lines = {item.line: item for item in ranks}
        self._result: tuple[Outcome, ThresholdCurve]

    def result(self) -> tuple[Outcome, ThresholdCurve]:
        """Return what rank 0 sent at its end, once all have ended well."""
        going = True
        while going:
            self._hear(LOOK_S)
            going = bool(self._lines) or any(item.status is None for item in self._ranks)
            if any(item.error or item.status for item in self._ranks):
                self._fail()
        return self._result

    def _hear(self, seconds: float) -> None:
        if not self._lines:
            time.sleep(seconds / 10)
        for line in wait([*self._lines], seconds):
            assert isinstance(line, Connection)
            try:
                kind, content = pickle.loads(line.recv_bytes())
            except (EOFError, OSError):
                del self._lines[line]
                continue
            self._take(self._lines[line], kind, content)

    def _take(self, item: _Process, kind: str, content: Any) -> None:
        if kind == "status":
            self._tell(content)
        elif kind == "log":
            logger = logging.getLogger(content["name"])
            if logger.isEnabledFor(content["levelno"]):
                logger.handle(logging.makeLogRecord(content))
        elif kind == "failed":
            item.error, trace = content
            item.error.add_note(trace)
        else:
            self._result = content

    def _fail(self) -> None:
        """Give the other ranks time to say why, and raise the cause: not one that only lost the others."""
        end = time.monotonic() + GRACE_S
        while self._lines and time.monotonic() < end:
            self._hear(LOOK_S)
        failed = [item for item in self._ranks if item.error or item.status]
        cause = min(failed, key=lambda item: (isinstance(item.error, RankError), (item.status or 0) >= 0, item.rank))
        if cause.error is not None and not isinstance(cause.error, RankError | _Fault):
            raise cause.error
        raise RankError(
            f"rank {cause.rank} of {len(self._ranks)} {_how(cause)}",
            hint="--resume goes on from the last checkpoint",
            code="E-RNK-011",
        ) from cause.error


def _how(item: _Process) -> str:
    if item.error is not None:
        return f"failed: {item.error}"
    status = item.process.wait()
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _pickled(job: object) -> bytes:
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UsageError(
            f"the data cannot be handed to other processes: {error}",
            hint="give scenes and labels as paths, or devices=1",
            code="E-RNK-006",
        ) from error


def _environment(learner: Learner, count: int) -> dict[str, str]:
    """Return the environment that all ranks share: torchrun's variables, and a part of the cores each."""
    threads = threads_each(learner.target, count, timed=learner.budget.minutes is not None)
    shared = {
        "TORCHELASTIC_RUN_ID": "satseg",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": HOST,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "OMP_NUM_THREADS": str(threads),
    }
    if LOOPBACK.exists():  # else gloo looks the host's name up, which may lead nowhere
        shared["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", LOOPBACK.name)
    return {**os.environ, **shared}


@contextmanager
def _started(count: int, job: bytes, environment: dict[str, str]) -> Iterator[list[_Process]]:
    """Run `count` ranks on `job` inside the block; none of them outlives it."""
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    environment["MASTER_PORT"] = str(store.port)
    ranks: list[_Process] = []
    with tempfile.TemporaryDirectory(prefix="satseg-ranks-") as folder:
        file = Path(folder, "job")
        file.write_bytes(job)
        try:
            for rank in range(count):
                ranks.append(_start(rank, file, environment))
            yield ranks
        finally:
            _end(ranks)
    del store  # kept until here: the ranks meet there


def _start(rank: int, job: Path, environment: dict[str, str]) -> _Process:
    ours, theirs = Pipe()
    quiet = ["-W", "ignore"] if rank else []
    command = [sys.executable, *quiet, "-c", CODE, json.dumps(sys.path), str(job), str(theirs.fileno())]
    named = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    process = subprocess.Popen(
        command, env={**environment, **named}, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    theirs.close()
    return _Process(rank, process, ours)


def _end(ranks: list[_Process]) -> None:
    """End what still runs, with a moment to do so."""
    for item in ranks:
        if item.status is None:
            item.process.terminate()
    end = time.monotonic() + GRACE_S
    for item in ranks:
        try:
            item.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            item.process.kill()
            item.process.wait()
        item.line.close()


class _Home:
    """The way from a rank to the process that started it; several threads may send."""

    def __init__(self, line: Connection) -> None:
        self._line, self._lock = line, threading.Lock()

    def send(self, kind: str, content: object) -> None:
        """Send `content`; `_Watch` knows the kinds."""
        with self._lock:
            self._line.send_bytes(pickle.dumps((kind, content)))  # `send` shares tensors, which do not outlive us

    def __call__(self, stage: str, done: float, total: float, note: str, /) -> None:
        """Drop what is not of a training: `fit` tells of nothing else."""

    def training(self, status: TrainingStatus, /) -> None:
        """Send where the training stands."""
        self.send("status", status)

    def failed(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Send what ended this rank, and where it was raised: its ``sys.excepthook``."""
        sent = error if isinstance(error, SatsegError) else _Fault(f"{kind.__name__}: {error}")
        self.send("failed", (sent, "".join(traceback.format_exception(kind, error, trace))))


class _Fault(SatsegError):
    """What a rank raised that is no error of satseg's."""


class _Records(logging.Handler):
    """Sends log records home, as the text they make."""

    def __init__(self, home: _Home) -> None:
        super().__init__()
        self._home = home

    def emit(self, record: logging.LogRecord) -> None:
        """Send one, without what may not be sent."""
        plain = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
        self._home.send("log", plain | {"msg": record.getMessage()})


def run_rank() -> None:
    """Be one rank: take the job, train, and send home what came of it."""
    line = Connection(int(sys.argv[3]))
    threading.Thread(target=_end_with_parent, args=(line,), daemon=True).start()
    home, given, log = _Home(line), given_ranks(), logging.getLogger("satseg")
    sys.excepthook = home.failed
    learner, prepared, folder, resume, level = pickle.loads(Path(sys.argv[2]).read_bytes())
    log.propagate = False
    log.setLevel(level if given.leads else logging.CRITICAL + 1)
    log.addHandler(_Records(home))
    outcome = fit(learner, prepared, folder=folder, resume=resume, progress=home)
    if given.leads:
        home.send("done", (outcome, learner.curve.to(torch.device("cpu"))))


def _end_with_parent(line: Connection) -> None:
    """Wait for the line to close, which it does when the process at its other end is gone; then end at once."""
    try:
        line.recv()
    except (EOFError, OSError):
        os._exit(1)
