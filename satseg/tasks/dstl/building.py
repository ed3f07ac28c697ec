"""built_folder(): a folder of many files that appears whole or not at all.

It is filled in a hidden folder beside its place and renamed at the end; what a killed run left is removed by the next
one (`satseg.output`, whose locks tell the two apart). A folder that is replaced is moved aside first, so that nothing
of it is mixed with what is new, and it must show by a mark that it was made so: no other folder is ever removed.
Rejected: files written one by one into the final folder, half of which a broken run leaves under the final name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from satseg.errors import OutputError
from satseg.output import PARTIAL, hidden_prefix, locked, os_errors_as_output_errors, remove_abandoned, try_lock


@contextmanager
def built_folder(
    path: str | os.PathLike[str], *, replaced: tuple[str, str] | None = None, overwrite: bool = False
) -> Iterator[Path]:
    """Yield a hidden folder that becomes `path` when the block ends without an error, and is removed otherwise.

    Parameters
    ----------
    path : path-like
        Missing, or an empty folder.
    replaced : (name, start), optional
        A folder at `path` may be replaced if its file `name` begins with the text `start`,
    overwrite : bool
        and is then.

    Raises
    ------
    OutputError
        `path` is there and not to be replaced (E-OUT-311), another run is writing it (E-OUT-007), or it cannot be
        written.
    """
    place = Path(os.path.abspath(path))
    check_free(place, replaced=replaced, overwrite=overwrite)
    with os_errors_as_output_errors(place), locked(place.parent):
        remove_abandoned(place)
        prefix = f"{hidden_prefix(place)}{os.getpid()}."
        hidden = Path(tempfile.mkdtemp(prefix=prefix, suffix=PARTIAL, dir=place.parent))
        lock = try_lock(hidden)
    fresh = hidden / place.name
    try:
        with os_errors_as_output_errors(place):
            fresh.mkdir()
            yield fresh
            check_free(place, replaced=replaced, overwrite=overwrite)
            if place.is_dir() and any(place.iterdir()):
                place.rename(hidden / f"{place.name}.old")
            fresh.rename(place)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def check_free(path: Path, *, replaced: tuple[str, str] | None = None, overwrite: bool = False) -> None:
    """Raise OutputError (E-OUT-311) when a new folder cannot be put at `path`; see `built_folder`."""
    if not (path.exists() or path.is_symlink()):
        return
    why = " and satseg did not make it so, so it is not replaced" if overwrite else " and is not empty"
    hint = "give a new folder"
    if path.is_dir() and not path.is_symlink():
        ours = replaced is not None and _is_marked(path / replaced[0], replaced[1])
        if (ours and overwrite) or not any(path.iterdir()):
            return
        if ours:
            why, hint = "", "overwrite it, by --overwrite, or give a new folder"
    raise OutputError(f"{path} exists{why}", hint=hint, code="E-OUT-311", path=path)


def _is_marked(file: Path, start: str) -> bool:
    return file.is_file() and file.read_bytes()[: len(start.encode())] == start.encode()
