"""AtomicOutput: the one way files come into being. A final name is absent or complete, never half.

Everything is written into a hidden folder beside the target, under the target's own name (drivers
look at suffixes and add side-cars), verified by the caller, flushed to disk, and only then renamed
into place, side-cars first and the main file last. A killed run leaves at most that hidden folder,
which the next run on the same target removes. The folder is locked while its run lives (flock, which
the kernel lets go when a process dies), so that of two runs on one target the second is refused.

Rejected: a temporary file in the system's folder (another file system, so no atomic rename),
writing under the final name with a lock (readers do not look at locks), and telling whether a run
lives by its process number (numbers are used again).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from satseg.errors import OutputError, UsageError

PARTIAL = ".partial"
SHAPEFILE_PARTS = (".shp", ".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn", ".sbx", ".qmd", ".shp.xml")
"""Parts of an older shapefile that must not outlive it (ESRI Shapefile Technical Description, 1998)."""
SIDE_CARS = (".aux.xml", ".ovr", ".msk", "-journal", "-wal", "-shm")
"""Endings that GDAL and SQLite add to a file's name: an older file's overviews, statistics or journal
would be taken for the new file's."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the operating system says when a disk or a quota is full."""
NAME_BYTES = 100
"""Of the target's name in that of the hidden folder; file systems allow 255 bytes in all."""


class AtomicOutput:
    """A file that appears under its name complete or not at all.

    Used as ``with AtomicOutput(path, overwrite=False) as out: write(out.temporary)``. Leaving the
    block without an error publishes everything written into ``out.folder``; leaving it with one
    removes it.

    Parameters
    ----------
    path : path-like
        The final name.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        At construction, so before any work: the folder is missing or not writable, the target
        exists and `overwrite` is off, or the target is a folder. At the start of the block: another
        run is writing the target (E-OUT-007). In it or at its end: the disk is full (E-OUT-006).
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        check_writable(self.path, overwrite=overwrite)
        self._folder: Path | None = None
        self._lock: int | None = None

    def __enter__(self) -> AtomicOutput:
        with os_errors_as_output_errors(self.path), locked(self.path.parent):
            remove_abandoned(self.path)
            # After that, since a run seen alive there may publish before one looks again.
            check_writable(self.path, overwrite=self._overwrite)
            prefix = f"{hidden_prefix(self.path)}{os.getpid()}."
            self._folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=PARTIAL, dir=self.path.parent))
            self._lock = try_lock(self._folder)
        return self

    @property
    def folder(self) -> Path:
        """The hidden folder; exists inside the ``with`` block only."""
        if self._folder is None:
            raise OutputError("AtomicOutput is used as a context manager", path=self.path)
        return self._folder

    @property
    def temporary(self) -> Path:
        """Where to write: the final file's name inside the hidden folder."""
        return self.folder / self.path.name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        folder = self.folder
        try:
            if kind is None:
                with os_errors_as_output_errors(self.path):
                    self._publish(folder)
            elif isinstance(error, OSError) and error.errno in FULL and not isinstance(error, OutputError):
                with os_errors_as_output_errors(self.path):
                    raise error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._folder = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _publish(self, folder: Path) -> None:
        if not self.temporary.exists():
            raise OutputError("nothing was written", path=self.path)
        parts = sorted(folder.iterdir(), key=lambda part: part.name == self.path.name)
        for part in parts:
            flush(part)
        for old in _side_cars(self.path):
            old.unlink(missing_ok=True)
        for part in parts:
            os.replace(part, self.path.parent / part.name)
        flush(self.path.parent)


def check_writable(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise OutputError when `path` could not be written; run before long work starts.

    Codes: E-OUT-002 missing folder, E-OUT-003 exists, E-OUT-004 is a folder, E-OUT-005 read-only,
    E-OUT-006 a name too long, E-OUT-008 a name that is not UTF-8.
    """
    path = Path(path)
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:  # bytes that the libraries below cannot be told of
        raise OutputError("its name is not UTF-8", hint="choose another", code="E-OUT-008", path=path) from error
    with os_errors_as_output_errors(path):
        _check_place(path, overwrite=overwrite)


def _check_place(path: Path, *, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise OutputError(
            f"{path}: folder {path.parent} does not exist", hint="make it first", code="E-OUT-002", path=path
        )
    if path.is_dir():
        raise OutputError(f"{path} is a folder", hint="give a file name", code="E-OUT-004", path=path)
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists", hint="give --overwrite to replace it", code="E-OUT-003", path=path
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write into {path.parent}: {error.strerror}", code="E-OUT-005", path=path
        ) from error


@contextmanager
def os_errors_as_output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's refusals inside the block into one OutputError about `path`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        full = f" ({_free_mib(Path(path).parent)} MiB free)" if error.errno in FULL else ""
        raise OutputError(
            f"cannot write {os.fspath(path)}: {error.strerror or error}{full}", code="E-OUT-006", path=path
        ) from error


def _free_mib(folder: Path) -> int:
    return shutil.disk_usage(folder).free // 2**20 if folder.is_dir() else 0


def check_distinct(outputs: Sequence[str | os.PathLike[str] | None], inputs: Sequence[str] = ()) -> None:
    """Raise UsageError when two outputs have one name, or an output would replace an input."""
    names = [os.path.realpath(path) for path in outputs if path is not None]
    for place, name in enumerate(names):
        role = "another output" if name in names[:place] else "an input"
        if name in names[:place] or name in map(os.path.realpath, inputs):
            raise UsageError(f"output {name} is {role} too", hint="give it a name of its own", code="E-USE-012")


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = False) -> None:
    """Write `text` as UTF-8 under `path`, atomically."""
    with AtomicOutput(path, overwrite=overwrite) as out:
        out.temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Have the disk hold what was written into the file or folder at `path` before returning."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _side_cars(path: Path) -> list[Path]:
    """Files that belong to an older file at `path`, the main one first where parts make up one file."""
    beside = [path.with_name(path.name + ending) for ending in SIDE_CARS]
    if path.suffix.lower() == ".shp":
        return [path.with_suffix(ending) for ending in SHAPEFILE_PARTS] + beside
    if path.suffix.lower() == ".csv" and not path.with_suffix(".shp").exists():
        beside.append(path.with_suffix(".prj"))
    return beside


def hidden_prefix(path: Path) -> str:
    """How the names of hidden folders of `path` start: its name, cut where it is long, and a checksum of it."""
    name = path.name.encode(errors="surrogateescape")[:NAME_BYTES].decode(errors="ignore")
    return f".{name}.{zlib.crc32(os.fsencode(path.name)):08x}."


def remove_abandoned(path: Path, *, ending: str = PARTIAL) -> None:
    """Remove hidden folders of killed runs on `path`; raise OutputError when one's run still lives."""
    prefix = hidden_prefix(path)
    for folder in path.parent.iterdir():
        if not (folder.name.startswith(prefix) and folder.name.endswith(ending)):
            continue
        try:
            lock = try_lock(folder)
        except FileNotFoundError:  # its run has just ended
            continue
        except BlockingIOError as error:
            raise being_written(path, folder.name.removeprefix(prefix).split(".")[0]) from error
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def being_written(path: Path, process: str) -> OutputError:
    """The refusal (E-OUT-007) of a second run on `path`, which `process`, a number or other words, is writing."""
    return OutputError(
        f"{path} is being written by {'process ' if process.isdecimal() else ''}{process}",
        hint="wait for it, or choose another name",
        code="E-OUT-007",
        path=path,
    )


def try_lock(folder: Path) -> int | None:
    """Lock `folder`, or a file, and return its handle; None on a file system that has no locks.

    Raises
    ------
    BlockingIOError
        Someone else holds the lock.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one run at a time look for others and make its own hidden folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
