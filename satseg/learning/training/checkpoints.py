"""Checkpoints of a training: when they are written, how, and which one a killed run goes on from.

``last.ckpt`` is the run as it stood at most a minute ago, ``best.ckpt`` the run at its best validation; both
hold everything, so that a run resumed from either becomes the run it would have been. A name is absent or
complete, and the earlier file stays until the new one is whole. On a full disk the two differ: without a new
``last.ckpt`` the run is only less safe, so it says so and goes on; without ``best.ckpt`` it would end with other
weights than its best, so it stops, resumable. A damaged ``last.ckpt`` costs time and not the run: it goes on
from ``best.ckpt``, with a warning. Rejected: Lightning's own writing, which on a full disk can leave half a file
under the name; and a third generation of files, for disks fail less often than they fill.
"""

from __future__ import annotations

import io
import logging
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from satseg.errors import InputError, OutputError
from satseg.output import FULL, AtomicOutput, os_errors_as_output_errors

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60
"""At most this much work is lost to a kill."""
LAST, BEST = "last.ckpt", "best.ckpt"
READ_ERRORS = (OSError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)
"""What torch raises for a file that is torn or changed."""


class Timely(ModelCheckpoint):
    """Writes the last state every minute, between two steps of the optimiser and never within one."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write when it is time; gradients of a step begun are in no checkpoint."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all; see the top of this module for full disks."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` under `path`.

        Raises
        ------
        OutputError
            It cannot be written, and is not ``last.ckpt``.
        """
        path = Path(path)
        content = io.BytesIO()  # torch answers a full disk with errors of its own
        torch.save(checkpoint, content)
        try:
            with AtomicOutput(path, overwrite=True) as out, os_errors_as_output_errors(path):
                out.temporary.write_bytes(content.getbuffer())
        except OutputError as error:
            if path.name != LAST:
                raise
            log.warning("%s; the run goes on, but a kill would take it back to the checkpoint before", error)


def checkpoint_writers(folder: Path) -> list[Callback]:
    """The best weights by validation Jaccard; the last state every minute and at each validation."""
    best = ModelCheckpoint(
        folder, filename=Path(BEST).stem, monitor="jaccard", mode="max", enable_version_counter=False
    )
    often = timedelta(seconds=CHECKPOINT_SECONDS)
    name = Path(LAST).stem
    last = Timely(folder, filename=name, train_time_interval=often, enable_version_counter=False)
    ends = ModelCheckpoint(folder, filename=name, every_n_epochs=1, enable_version_counter=False)
    return [best, last, ends]


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The checkpoint that a run in `folder` goes on from; None where there is none yet.

    Raises
    ------
    InputError
        What is there is damaged: all of it, or the best weights so far (E-TRN-018).
    """
    last, best = folder / LAST, folder / BEST
    if best.exists() and not is_whole(best):
        raise InputError(
            f"{best} is damaged, and the best weights so far with it", hint="train again with --overwrite",
            code="E-TRN-018",
        )  # fmt: skip
    if not last.exists():
        return best if best.exists() else None
    if is_whole(last):
        return last
    if best.exists():
        log.warning("%s is damaged: the run goes on from %s, its best validation so far", last, best.name)
        return best
    raise InputError(
        f"{last} is damaged, and there is no {best.name} yet", hint="train again with --overwrite", code="E-TRN-018"
    )


def is_whole(path: Path) -> bool:
    """Whether `path` reads as a checkpoint, checksums and all."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at checksums
            if archive.testzip() is not None:
                return False
        return "state_dict" in torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS:
        return False


@contextmanager
def full_disks_stop_resumably(folder: Path) -> Iterator[None]:
    """Turn a full disk inside the block, from logs too, into an OutputError (E-TRN-019) that says how to go on."""
    try:
        yield
    except OSError as error:
        cause = error.__cause__ if isinstance(error, OutputError) else error
        if not (isinstance(cause, OSError) and cause.errno in FULL):
            raise
        raise OutputError(
            f"no room in {folder} for the best weights or logs: {error}",
            hint="make room, and go on with --resume",
            code="E-TRN-019",
        ) from error
