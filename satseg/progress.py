"""How long calls tell what they are doing, without a bar in the library.

A `Progress` is any callable ``progress(stage, done, total, note)``: the stage's name, how much of
it is done and in all (any unit), and a short note such as the current Jaccard. The command line
draws bars from it; a notebook may print it.

A training has more to tell than fits a note. A progress that also has a method ``training`` is given
its figures as a `TrainingStatus` in place of the note; a plain callable goes on getting the note.
Rejected: a second argument beside `progress`, which every call between the trainer and the terminal
would have to carry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

Progress: TypeAlias = Callable[[str, float, float, str], None]


def silent(stage: str, done: float, total: float, note: str) -> None:
    """Ignore progress: the default of every call that reports it."""


@dataclass(frozen=True, slots=True)
class TrainingStatus:
    """Where a training stands.

    Parameters
    ----------
    share : float, 0..1
        Of the budget that is used up.
    step : int
        Optimiser steps done, those of the run that this one resumes included.
    elapsed_s : float
        Seconds spent, the resumed run's included.
    loss : float or None
        Mean over the steps since the last figure; None before the first.
    rate : float or None
        Learning rate of the last step.
    mpix_per_s : float or None
        Million pixels a second that the loss saw lately; None before the second step.
    skipped : int
        Batches left out because their loss was not finite.
    validations : int
        How many are done.
    classes : tuple of str
    last, best : tuple of (float or None), one for each class
        Jaccard, 0..1, of the last validation and of the one with the highest mean; None for a class
        without truth, empty before the first validation.
    """

    share: float
    step: int
    elapsed_s: float = 0.0
    loss: float | None = None
    rate: float | None = None
    mpix_per_s: float | None = None
    skipped: int = 0
    validations: int = 0
    classes: tuple[str, ...] = ()
    last: tuple[float | None, ...] = ()
    best: tuple[float | None, ...] = ()

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest of the budget will take at the pace so far; None before the first step."""
        return self.elapsed_s * (1 - self.share) / self.share if self.share > 0 else None

    def __str__(self) -> str:
        """Return the figures as a short note."""
        last, best = mean_of(self.last), mean_of(self.best)
        notes = [
            f"step {self.step}",
            "" if self.loss is None else f"loss {self.loss:.3f}",
            "" if last is None else f"J {last:.3f}",
            "" if best is None else f"best {best:.3f}",
            "" if self.mpix_per_s is None else f"{self.mpix_per_s:.3g} MPix/s",
            f"skipped {self.skipped}" if self.skipped else "",
        ]
        return "  ".join(filter(None, notes))


def mean_of(scores: Sequence[float | None]) -> float | None:
    """Mean of the scores that are there; None when none is."""
    present = [score for score in scores if score is not None]
    return sum(present) / len(present) if present else None


@runtime_checkable
class TrainingProgress(Protocol):
    """A `Progress` that wants the figures of a training and not a note."""

    def __call__(self, stage: str, done: float, total: float, note: str, /) -> None:
        """Tell of any other stage."""

    def training(self, status: TrainingStatus, /) -> None:
        """Tell where a training stands."""


def training_teller(progress: Progress) -> Callable[[TrainingStatus], None]:
    """Return what tells `progress` of a training in the way it wants."""
    if isinstance(progress, TrainingProgress):
        return progress.training
    return lambda status: progress("train", status.share, 1.0, str(status))
