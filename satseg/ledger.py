"""Ledger: the finished bands of a long run, kept beside its output until that is published.

A detection of a big scene runs for hours. Each band of rows that is done goes into a file of its own in
a hidden folder beside the target; after a kill or a power failure at any moment a rerun finds the bands
whole, contiguous from 0, and goes on from there to the same bytes. The folder comes into being with its
header inside by one rename, and goes by one. A band is written under another name, flushed, renamed, and
the folder flushed. The folder is locked while its run lives, as in `output`.

Rejected: one growing file (a torn end is told from a flipped byte only by reading all of it), a data base
(its journal writes every pixel twice), and refusing to resume when the header is damaged (bands name their
run by the header's checksum, so those of the same run are known to be good, and the rest is removed).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from numpy.typing import NDArray
from pydantic import JsonValue

from satseg.bandfile import band_bytes, is_band, read_band
from satseg.checked import canonical, checked, content_of, differences, digest_of
from satseg.errors import InputError, OutputError, UsageError
from satseg.output import (
    PARTIAL,
    being_written,
    check_writable,
    flush,
    hidden_prefix,
    locked,
    os_errors_as_output_errors,
    remove_abandoned,
    try_lock,
)

log = logging.getLogger(__name__)

HEADER, NOTES, PROCESS, BAND, UNFINISHED = "header.json", "notes.json", "process", ".band", ".writing"
LEAVING = f".run{PARTIAL}"
"""Ending of a ledger's folder that is being made or removed; `output` removes what a killed run leaves."""
SAMPLES, SAMPLE_BYTES = 64, 64 * 2**10


class Ledger:
    """The bands of one run that are finished, durable and locked against other runs.

    Used as ``with Ledger.open(target, header, resume=True) as ledger``: bands before `ledger.finished`
    are read, the others are computed and appended, and `discard` is called when every output is
    published. Leaving the block without `discard` keeps the folder for a later run, unless no band is in it.
    `append` and `note` may be called from another thread than `open`.
    """

    def __init__(self, target: Path, folder: Path, run: str) -> None:
        self.target = target
        self.finished = 0
        """Number of bands that are stored and intact, contiguous from 0."""
        self.bytes_stored = 0
        """Size of their files."""
        self._folder: Path | None = folder
        self._held = ExitStack()  # closes the lock's handle
        self._run = run
        self._notes: dict[str, JsonValue] = {}
        self._turn = threading.RLock()

    @classmethod
    def open(
        cls, target: str | os.PathLike[str], header: Mapping[str, JsonValue], *, resume: bool
    ) -> Ledger:
        """Lock the ledger of `target`, a new one or, on `resume`, that of an unfinished run.

        Parameters
        ----------
        target : path-like
            The run's main output; whether it may be replaced is for its writer to say, and first.
        header : mapping of JSON values
            All that decides the bytes of the bands: inputs (see `identity_of`), model, options, grid,
            band plan, version. NaN is allowed.
        resume : bool
            Go on with an unfinished run where there is one. Without it such a run is removed, and a
            warning says what is lost.

        Raises
        ------
        UsageError
            The unfinished run had another header; each difference is named (E-USE-030).
        OutputError
            As `check_writable`; another run lives (E-OUT-007); the disk is full (E-OUT-006).
        """
        target = Path(target)
        check_writable(target, overwrite=True)
        given = json.loads(canonical(header))
        with ExitStack() as held, os_errors_as_output_errors(target):
            folder = _found_or_made(target, given, held, resume=resume)
            ledger = cls(target, folder, _same_run(target, folder, given))
            ledger._take_stock(folder)
            ledger._held = held.pop_all()
        return ledger

    @staticmethod
    def header_of(target: str | os.PathLike[str]) -> dict[str, JsonValue] | None:
        """Return the header of the unfinished run of `target`; None where there is none, or a damaged one."""
        header: dict[str, JsonValue] | None = content_of(_folder_of(Path(target)) / HEADER)
        return header

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """The hidden folder; there is none after `close` or `discard`."""
        if self._folder is None:
            raise OutputError("the ledger of its run is closed", code="E-OUT-020", path=self.target)
        return self._folder

    @property
    def notes(self) -> Mapping[str, JsonValue]:
        """What was noted, in earlier runs too."""
        return MappingProxyType(self._notes)

    def append(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Store `arrays` as band number `finished`; durable when this returns.

        Parameters
        ----------
        arrays : mapping of ndarray
            By name; of any shape, of numbers or truth values.

        Raises
        ------
        UsageError
            An array of another dtype (E-USE-031).
        OutputError
            The disk is full (E-OUT-006): the bands before stay good, and this one may be tried again.
        """
        with self._turn, os_errors_as_output_errors(self.target):
            path = _band(self.folder, self.finished)
            _write_durably(path, band_bytes(arrays, run=self._run, number=self.finished))
            self.bytes_stored += path.stat().st_size
            self.finished += 1

    def read(self, number: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of band `number` as they were appended, in their order.

        Raises
        ------
        UsageError
            There is no such band (E-USE-032).
        OutputError
            Its file has been damaged since (E-OUT-021).
        """
        if not 0 <= number < self.finished:
            raise UsageError(f"band {number} is not among the {self.finished} finished ones", code="E-USE-032")
        path = _band(self.folder, number)
        try:
            arrays = read_band(path, run=self._run, number=number)
        except OSError as error:
            raise _lost(path, error.strerror or str(error)) from error
        if arrays is None:
            raise _lost(path, "it is damaged")
        return arrays

    def note(self, key: str, value: JsonValue) -> None:
        """Keep `value` under `key`: times, counts and the like to look at, not compared on resume."""
        with self._turn, os_errors_as_output_errors(self.target):
            notes = self._notes | {key: value}
            _write_durably(self.folder / NOTES, [checked(notes)])
            self._notes = notes

    def discard(self) -> None:
        """Remove the folder: every output is published. Does nothing a second time."""
        with self._turn:
            if self._folder is None:
                return
            try:
                with locked(self.target.parent):
                    leaving = _set_aside(self.target, self._folder)
                shutil.rmtree(leaving)
            except OSError as error:  # the outputs are whole: no reason to fail
                log.warning("%s: the folder of the finished run stays: %s", self._folder, error.strerror)
            self._release()

    def close(self) -> None:
        """Let go of the folder, which stays for a later run if a band is in it. Does nothing a second time."""
        with self._turn:
            if self.finished:
                self._release()
            else:
                self.discard()

    def _release(self) -> None:
        self._folder = None
        self._held.close()

    def _take_stock(self, folder: Path) -> None:
        """Count the bands that are intact from 0 on, and remove all others and what was half written."""
        self._notes = content_of(folder / NOTES) or {}
        for path in folder.glob(f"*{UNFINISHED}"):
            path.unlink()
        stored = set(folder.glob(f"*{BAND}"))
        count = len(stored)
        while (path := _band(folder, self.finished)) in stored and self._is_intact(path):
            self.bytes_stored += path.stat().st_size
            self.finished += 1
            stored.remove(path)
        if stored:
            log.warning(
                "%s: band %d of the unfinished run is missing or damaged: the run goes on from there, without %d of "
                "%d bands", self.target, self.finished, len(stored), count,
            )
        for path in stored:
            path.unlink()
        flush(folder)

    def _is_intact(self, path: Path) -> bool:
        try:
            return is_band(path, run=self._run, number=self.finished)
        except OSError as error:
            if error.errno != errno.EIO:  # a bad sector is damage; a missing permission is not
                raise
            return False


def identity_of(path: str | os.PathLike[str]) -> dict[str, JsonValue]:
    """Return the size in bytes, mtime_ns and sha256 of a sample of the file at `path`.

    The sample is 64 pieces of 64 KiB, evenly spaced, the first and the last included: all of a file up
    to 4 MiB, and a few milliseconds' reading of one of 100 GB.

    Raises
    ------
    InputError
        It cannot be read (E-IN-030).
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            room = status.st_size - SAMPLES * SAMPLE_BYTES
            for number in range(SAMPLES):
                file.seek(number * SAMPLE_BYTES + max(0, room) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", code="E-IN-030", path=path) from error
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest.hexdigest()}


def _found_or_made(target: Path, given: JsonValue, held: ExitStack, *, resume: bool) -> Path:
    """Return the folder of `target`'s ledger, which has a header inside, and have `held` keep its lock."""
    folder = _folder_of(target)
    with locked(target.parent):
        remove_abandoned(target, ending=LEAVING)
        if folder.is_dir() and resume:
            _hold(target, folder, held)
            (folder / PROCESS).write_text(str(os.getpid()))
            return folder
        if folder.is_dir():
            with ExitStack() as old:
                _hold(target, folder, old)
                if count := len(list(folder.glob(f"*{BAND}"))):
                    log.warning(
                        "%s: an unfinished run with %d band%s is started anew; --resume would go on with it",
                        target, count, "s" if count > 1 else "",
                    )
                shutil.rmtree(_set_aside(target, folder), ignore_errors=True)
        _make(target, folder, given, held)
    return folder


def _folder_of(target: Path) -> Path:
    return target.with_name(f"{hidden_prefix(target)}run")


def _make(target: Path, folder: Path, given: JsonValue, held: ExitStack) -> None:
    """Make `folder`, locked and with its header, in one step."""
    fresh = Path(tempfile.mkdtemp(LEAVING, f"{hidden_prefix(target)}{os.getpid()}.", target.parent))
    try:
        _hold(target, fresh, held)
        (fresh / PROCESS).write_text(str(os.getpid()))
        _write_durably(fresh / HEADER, [checked(given)])
        os.rename(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    flush(target.parent)


def _set_aside(target: Path, folder: Path) -> Path:
    """Rename `folder`, so that its parts are not taken for a run while they go, and return its new name."""
    leaving = folder.with_name(f"{hidden_prefix(target)}{os.getpid()}.{secrets.token_hex(4)}{LEAVING}")
    os.rename(folder, leaving)
    return leaving


def _hold(target: Path, folder: Path, held: ExitStack) -> None:
    """Lock `folder` until `held` is closed; raise OutputError when another run has it."""
    try:
        lock = try_lock(folder)
    except BlockingIOError as error:
        process = "of unknown number"
        with suppress(OSError):
            process = (folder / PROCESS).read_text(errors="replace") or process
        raise being_written(target, process) from error
    if lock is not None:
        held.callback(os.close, lock)


def _same_run(target: Path, folder: Path, given: JsonValue) -> str:
    """Return the checksum by which bands in `folder` name their run; raise UsageError when it is another."""
    stored = content_of(folder / HEADER)
    if stored is None:
        _write_durably(folder / HEADER, [checked(given)])
        return digest_of(given)
    if words := list(differences(stored, given)):
        raise UsageError(
            f"the unfinished run of {target} is another: {'; '.join(words)}",
            hint="leave out --resume to start anew",
            code="E-USE-030",
        )
    return digest_of(stored)


def _band(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}{BAND}"


def _write_durably(path: Path, pieces: Iterable[bytes]) -> None:
    """Write `pieces` under `path`, which is whole or absent at every moment and durable on return."""
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    flush(path.parent)


def _lost(path: Path, cause: str) -> OutputError:
    return OutputError(
        f"a finished band cannot be read back: {cause}",
        hint="run again with --resume: it goes on from the band before",
        code="E-OUT-021",
        path=path,
    )
