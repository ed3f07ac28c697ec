"""The errors satseg raises: one root, one child per kind of cause.

Each child also inherits the built-in a caller would catch, carries a short stable `code` for
documentation and tests, and knows the exit status that the command line ends with. A message
says what was wrong and the value; the `hint` says what to do.
"""

from __future__ import annotations

import os
from typing import ClassVar


class SatsegError(Exception):
    """Root of every error that satseg raises on purpose.

    Parameters
    ----------
    message : str
        What was wrong, with the offending value, in one line.
    hint : str, optional
        What to do about it; printed after the message.
    code : str, optional
        Stable code such as ``"E-CRS-001"``; the class default when left out.
    path : path-like, optional
        The file at fault, put before the message when the message does not name it.
    """

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "E-RUN-001"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(message)  # first: ImportError's own __init__ clears `path`
        self.message = message
        self.hint = hint
        self.code = code or self.default_code
        self.path = None if path is None else os.fspath(path)

    def __str__(self) -> str:
        place = f"{self.path}: " if self.path and self.path not in self.message else ""
        advice = f"; {self.hint}" if self.hint else ""
        return f"{place}{self.message}{advice}"

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword-only fields when a worker process sends the error home."""
        fields = {"hint": self.hint, "code": self.code, "path": self.path}
        return (_rebuild, (type(self), self.message, fields))


def _rebuild(kind: type[SatsegError], message: str, fields: dict[str, str | None]) -> SatsegError:
    return kind(message, **fields)


class UsageError(SatsegError, ValueError):
    """An argument, option or run file that makes no sense."""

    exit_code = 2
    default_code = "E-USE-001"


class SpecError(UsageError):
    """A sensor, class or run document that does not follow its schema."""

    default_code = "E-SPEC-001"


class InputError(SatsegError, ValueError):
    """A scene, label or model file that is missing, damaged or of another kind."""

    exit_code = 3
    default_code = "E-IN-001"


class CRSError(InputError):
    """A place that is missing, ambiguous or does not match: no CRS, no overlap."""

    default_code = "E-CRS-001"


class BandError(InputError):
    """Bands that a scene does not have, or has in another form."""

    default_code = "E-BAND-001"


class GridError(InputError):
    """Shapes, windows or transforms that do not fit together."""

    default_code = "E-GRID-001"


class LabelError(InputError):
    """Labels that are empty, lack the class field, or do not lie on the scene."""

    default_code = "E-LAB-001"


class ModelError(InputError):
    """A model file that is damaged, foreign, or does not fit the scene."""

    default_code = "E-MOD-001"


class OutputError(SatsegError, OSError):
    """An output that cannot be written: missing folder, existing file, full disk."""

    exit_code = 4
    default_code = "E-OUT-001"


class PartialError(SatsegError, RuntimeError):
    """Some scenes of a batch failed; the others are done."""

    exit_code = 5
    default_code = "E-PART-001"


class RankError(SatsegError, ChildProcessError):
    """A process of a training on several that ended before the others."""

    default_code = "E-RNK-001"


class DependencyError(SatsegError, ImportError):
    """An optional package or weights file that is not there."""

    exit_code = 6
    default_code = "E-DEP-001"


class DeviceError(SatsegError, MemoryError):
    """A device that cannot hold even the smallest piece of work."""

    default_code = "E-DEV-001"
