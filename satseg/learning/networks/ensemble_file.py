"""The ensemble file: which models answer together, and how one score is made of theirs.

A small TOML document beside the model files, so that a team is passed on, read and changed as text; the digests
of the members' weights are in it, so that a member that was trained anew is not taken for the one that was meant.
Rejected: one large file with all weights in it, for it would be a copy of each, and of no use to fine-tuning.

How the score of class k is computed of those of the members m, whose logits are x[m, k]:

- a class with a stacker:  sigmoid(sum over m of w[k, m] x[m, k], + b[k]), with logits clipped to +-`LOGIT_LIMIT`;
- mean = "arithmetic":     the mean over m of sigmoid(x[m, k]);
- mean = "geometric":      exp of the mean over m of log sigmoid(x[m, k]).

A member's logit is that of its score after test-time augmentation, so that a stacker fitted on out-of-fold scores p
takes x = log(p / (1 - p)). `combined` is all of this in NumPy: what the network's side is tested against.

Codes: E-SPEC-002 ... 007 as of all documents; E-MOD-040 a member's weights are not those that are named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, ValidationError, model_validator

from satseg.documents import Document, PathLike, Text, fault_at, faults, parse_toml, read_text, validation_message
from satseg.errors import SpecError, UsageError
from satseg.output import AtomicOutput, os_errors_as_output_errors

__all__ = [
    "ClassStacker", "EnsembleFile", "LOGIT_LIMIT", "MEANS", "Mean", "Member", "check_name", "combined",
    "is_ensemble_file", "team_file",
]  # fmt: skip

Mean: TypeAlias = Literal["arithmetic", "geometric"]
MEANS: tuple[str, ...] = get_args(Mean)
SUFFIX = ".toml"
IN_FOLDER = "ensemble.toml"
"""Ensemble file in the folder of a training in folds."""
LOGIT_LIMIT = 15.0
"""Logits are clipped to this before they are stacked: of a score of 1 - 3e-7 float32 tells little more."""


class Member(Document):
    """A model of the team."""

    path: Text = Field(description="of its .safetensors, from the folder of this file")
    weights_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ClassStacker(Document):
    """How the score of one class is made of the members' logits: sigmoid(weights . logits + bias)."""

    weights: Annotated[tuple[float, ...], Field(min_length=1, description="one for each member, in their order")]
    bias: float = 0.0


class EnsembleFile(Document):
    """An ensemble as it is written; see the top of this module for what its parts mean.

    Parameters
    ----------
    members : tuple of Member
        Two or more. The order counts for the stacker's weights alone.
    mean : "arithmetic" or "geometric"
        Over members, and over the views of test-time augmentation.
    thresholds : mapping of str to float
        Of classes by name, 0..1 exclusive; others have the same mean of those of the members.
    stacker : mapping of str to ClassStacker
        Of classes by name; others have the mean.
    """

    format_version: Literal[1] = 1
    mean: Mean = "arithmetic"
    members: Annotated[tuple[Member, ...], Field(min_length=2)]
    thresholds: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    stacker: dict[str, ClassStacker] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_weight_each(self) -> EnsembleFile:
        for name, one in self.stacker.items():
            if len(one.weights) != len(self.members):
                fault = f"class {name!r} has {len(one.weights)} weights for {len(self.members)} members"
                raise fault_at(("stacker", name, "weights"), fault)
        return self

    @classmethod
    def read(cls, path: PathLike) -> EnsembleFile:
        """Return the ensemble file at `path`.

        Raises
        ------
        SpecError
            It is missing, no TOML, or does not follow the schema, with the line; codes as of specs.
        """
        text = read_text(path)
        try:
            return cls.model_validate(parse_toml(text, path))
        except ValidationError as error:
            first, *more = faults(error, cls, text)
            line = f"line {first.line}: " if first.line else ""
            tail = f" (and {len(more)} more)" if more else ""
            raise SpecError(f"{line}{first.message}{tail}", code=first.code, path=path) from error

    @classmethod
    def of(
        cls, weights: Sequence[tuple[PathLike, str]], *, beside: PathLike, mean: Mean = "arithmetic",
        thresholds: Mapping[str, float] | None = None, stacker: Mapping[str, ClassStacker] | None = None,
    ) -> EnsembleFile:  # fmt: skip
        """Return the document of members by path and digest of weights, to be saved as the file `beside`.

        Raises
        ------
        UsageError
            It would not follow the schema: one member, a weight too many, a threshold of 1 (E-USE-024).
        """
        folder = Path(beside).absolute().parent
        try:
            members = tuple(
                Member(path=Path(os.path.relpath(path, folder)).as_posix(), weights_sha256=digest)
                for path, digest in weights
            )
            return cls(members=members, mean=mean, thresholds=dict(thresholds or {}), stacker=dict(stacker or {}))
        except ValidationError as error:
            raise UsageError(validation_message(error, cls), code="E-USE-024") from error

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write the document under `path`.

        Raises
        ------
        UsageError
            The name does not end in .toml, by which such files are told from models (E-USE-023).
        OutputError
            It cannot be written.
        """
        check_name(path)
        with AtomicOutput(path, overwrite=overwrite) as out, os_errors_as_output_errors(path):
            out.temporary.write_text(self.to_toml(), encoding="utf-8")

    def places(self, path: PathLike) -> tuple[Path, ...]:
        """Return where the members are, of the file at `path`."""
        return tuple(Path(path).parent / member.path for member in self.members)

    def to_toml(self) -> str:
        """Return the document as TOML, which reads back as the same document."""
        lines = [f"format_version = {self.format_version}", f"mean = {_toml(self.mean)}"]
        for member in self.members:
            lines += ["", "[[members]]", f"path = {_toml(member.path)}"]
            lines += [f"weights_sha256 = {_toml(member.weights_sha256)}"]
        if self.thresholds:
            lines += ["", "[thresholds]"]
        lines += [f"{_toml(name)} = {_toml(level)}" for name, level in self.thresholds.items()]
        for name, one in self.stacker.items():
            weights = ", ".join(map(_toml, one.weights))
            lines += ["", f"[stacker.{_toml(name)}]", f"weights = [{weights}]", f"bias = {_toml(one.bias)}"]
        return "\n".join(lines) + "\n"


def check_name(path: PathLike) -> None:
    """Raise UsageError (E-USE-023) where `path` would not be known as an ensemble file by its name."""
    if not is_ensemble_file(path):
        raise UsageError(f"{os.fspath(path)}: an ensemble file ends in .toml", code="E-USE-023")


def is_ensemble_file(path: object) -> bool:
    """Whether `path` is the name of an ensemble file, not of a model."""
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).lower().endswith(SUFFIX)


def team_file(path: PathLike) -> PathLike | None:
    """Return the ensemble file that `path` is, or that it has as the folder of a training in folds; None: neither."""
    inside = Path(path) / IN_FOLDER
    if inside.is_file():
        return inside
    return path if is_ensemble_file(path) and Path(path).exists() else None


def combined(
    logits: NDArray[np.floating], mean: Mean = "arithmetic", stackers: Sequence[ClassStacker | None] = ()
) -> NDArray[np.float64]:
    """Return the scores (K, ...) in 0..1 of the members' logits (M, K, ...), as the top of this module says.

    Parameters
    ----------
    stackers : sequence of ClassStacker or None
        One for each class; None: the mean. All have the mean when left out.
    """
    exact = np.asarray(logits, np.float64)
    log_scores = -np.logaddexp(0.0, -exact)
    arithmetic = mean == "arithmetic"
    scores: NDArray[np.float64] = np.exp(log_scores).mean(axis=0) if arithmetic else np.exp(log_scores.mean(axis=0))
    for plane, one in enumerate(stackers):
        if one is not None:
            limited = exact[:, plane].clip(-LOGIT_LIMIT, LOGIT_LIMIT)
            scores[plane] = np.exp(-np.logaddexp(0.0, -(np.tensordot(one.weights, limited, axes=1) + one.bias)))
    return scores


def _toml(value: Any) -> str:
    """A text or a number as TOML; what JSON does not escape and TOML wants escaped is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
