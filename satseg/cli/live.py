"""What commands show while they work: a bar on a terminal, lines in a log, a table of a training.

Each is a `satseg.progress.Progress`. The terminal is redrawn by rich four times a second from the last figures
told, so that telling costs nothing; rich is imported when there is a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from satseg.progress import Progress, TrainingStatus, mean_of

if TYPE_CHECKING:
    import rich.progress
    from rich.table import Table

NONE = "\N{EN DASH}"
"""What stands for a figure that does not exist."""


class Lines:
    """Progress for logs: one line per tenth of a stage, one per validation of a training."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._started = time.monotonic()

    def __call__(self, stage: str, done: float, total: float, note: str) -> None:
        """Write a line when another tenth of the stage is done."""
        tenth = int(10 * done / total) if total else 10
        if tenth > self._last.get(stage, -1):
            self._last[stage] = tenth
            seconds = time.monotonic() - self._started
            click.echo(f"{stage} {10 * tenth:3d} %  {seconds:6.0f} s  {note}".rstrip(), err=True)

    def training(self, status: TrainingStatus) -> None:
        """Write a line when there has been another validation."""
        if status.validations < self._last.get("train", 0):  # of another training, which has just begun
            self._last["train"] = 0
        if status.validations <= self._last.get("train", 0):
            return
        self._last["train"] = status.validations
        scores = ", ".join(f"{name} {_ratio(score)}" for name, score in zip(status.classes, status.last, strict=True))
        left = "" if status.left_s is None else f"  left {status.left_s:.0f} s"
        click.echo(
            f"train {100 * status.share:3.0f} %  {status.elapsed_s:6.0f} s  {status}{left}  ({scores})", err=True
        )


class Terminal:
    """Progress for terminals: a bar per stage, and under them the figures of a training.

    Parameters
    ----------
    bars : rich.progress.Progress
        Not started: what is shown is this object.
    """

    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._status: TrainingStatus | None = None

    def __call__(self, stage: str, done: float, total: float, note: str) -> None:
        """Move the stage's bar."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)

    def training(self, status: TrainingStatus) -> None:
        """Show `status`."""
        self("train", status.share, 1.0, "")
        self._status = status

    def __rich__(self) -> Any:
        """What rich draws: the bars, and the tables once there is a training."""
        from rich.console import Group

        return self._bars if self._status is None else Group(self._bars, *training_tables(self._status))


def training_tables(status: TrainingStatus) -> tuple[Table, ...]:
    """Return the figures of a training, and after its first validation the Jaccards, as rich tables."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    figures = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    columns = {
        "loss": _figure(status.loss, ".4f"),
        "MPix/s": _figure(status.mpix_per_s, ".3g"),
        "step": f"{status.step:,}",
        "skipped": f"{status.skipped:,}",
        "learning rate": _figure(status.rate, ".2e"),
        "time left": NONE if status.left_s is None else clock(status.left_s),
    }
    for name in columns:
        figures.add_column(name, justify="right")
    figures.add_row(*columns.values())
    if not status.last:
        return (figures,)
    scores = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_footer=len(status.classes) > 1)
    scores.add_column("Jaccard", footer="mean")
    scores.add_column("last", _ratio(mean_of(status.last)), justify="right")
    scores.add_column("best", _ratio(mean_of(status.best)), justify="right")
    for name, last, best in zip(status.classes, status.last, status.best, strict=True):
        scores.add_row(Text(name), _ratio(last), _ratio(best))
    return figures, scores


@contextmanager
def terminal() -> Iterator[Progress]:
    """Show progress on stderr, a terminal, while the block runs; the last figures stay there."""
    from rich.console import Console
    from rich.live import Live
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:>8}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    console = Console(stderr=True)
    shown = Terminal(Bars(*columns, console=console))
    with Live(shown, console=console):
        yield shown


def clock(seconds: float) -> str:
    """``h:mm:ss`` of `seconds`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _figure(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _ratio(value: float | None) -> str:
    return _figure(value, ".3f")
