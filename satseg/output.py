"""AtomicOutput: the one way files come into being. A final name is absent or complete, never half.

Everything is written into a hidden folder beside the target, under the target's own name (drivers
look at suffixes and add side-cars), verified by the caller, flushed to disk, and only then renamed
into place, side-cars first and the main file last. A killed run leaves at most that hidden folder,
which the next run on the same target removes once its process is gone.

Rejected: a temporary file in the system's folder (another file system, so no atomic rename), and
writing under the final name with a lock (readers do not look at locks).
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from satseg.errors import OutputError

PARTIAL = ".partial"
SHAPEFILE_PARTS = (".shp", ".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn", ".sbx", ".qmd")
"""Parts of an older shapefile that must not outlive it (ESRI Shapefile Technical Description, 1998)."""


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
        exists and `overwrite` is off, or the target is a folder. At exit: the disk is full.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        check_writable(self.path, overwrite=overwrite)
        self._folder: Path | None = None

    def __enter__(self) -> AtomicOutput:
        _remove_abandoned(self.path)
        prefix = f".{self.path.name[:64]}.{socket.gethostname()[:32]}.{os.getpid()}."
        with os_errors_as_output_errors(self.path):
            self._folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=PARTIAL, dir=self.path.parent))
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
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._folder = None

    def _publish(self, folder: Path) -> None:
        if not self.temporary.exists():
            raise OutputError("nothing was written", path=self.path)
        parts = sorted(folder.iterdir(), key=lambda part: part.name == self.path.name)
        for part in parts:
            _flush(part)
        if self.path.suffix.lower() == ".shp":
            for suffix in SHAPEFILE_PARTS:
                self.path.with_suffix(suffix).unlink(missing_ok=True)
        for part in parts:
            os.replace(part, self.path.parent / part.name)
        _flush(self.path.parent)


def check_writable(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise OutputError when `path` could not be written; run before long work starts.

    Codes: E-OUT-002 missing folder, E-OUT-003 exists, E-OUT-004 is a folder, E-OUT-005 read-only.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise OutputError(
            f"{path}: folder {path.parent} does not exist", hint="make it first", code="E-OUT-002", path=path
        )
    if path.is_dir():
        raise OutputError(f"{path} is a folder", hint="give a file name", code="E-OUT-004", path=path)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists", hint="give --overwrite to replace it", code="E-OUT-003", path=path)
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
        free = shutil.disk_usage(Path(path).parent).free // 2**20 if Path(path).parent.is_dir() else 0
        full = f" ({free} MiB free)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OutputError(
            f"cannot write {os.fspath(path)}: {error.strerror or error}{full}", code="E-OUT-006", path=path
        ) from error


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = False) -> None:
    """Write `text` as UTF-8 under `path`, atomically."""
    with AtomicOutput(path, overwrite=overwrite) as out:
        out.temporary.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_abandoned(path: Path) -> None:
    """Remove hidden folders of `path` whose process on this host no longer runs."""
    prefix = f".{path.name[:64]}.{socket.gethostname()[:32]}."
    for folder in path.parent.glob(f".*{PARTIAL}"):
        if folder.name.startswith(prefix):
            pid = folder.name[len(prefix) :].split(".")[0]
            if pid.isdigit() and not _runs(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
