"""What a run has logged, read back from the CSV files of its folder.

A resumed run begins a file anew and puts the earlier one aside under a number; read together, the later
file counts from its first step on. The files are read and not the reporter asked, so that the curves of a run
can be drawn from its folder alone.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Points: TypeAlias = tuple[tuple[float, float], ...]
"""(step, value) in order of steps."""

PREFIX = "jaccard/"
MOST_POINTS = 300
"""Of a curve; more are averaged in groups."""


@dataclass(frozen=True, slots=True)
class History:
    """Curves of a run over its steps: loss, learning rate, Jaccard of each class and their mean."""

    loss: Points = ()
    rate: Points = ()
    jaccard: tuple[tuple[str, Points], ...] = ()
    mean: Points = ()


def read_history(folder: Path, classes: Sequence[str], *, steps: int) -> History:
    """Curves of the run of `steps` steps in `folder`; empty where nothing was logged.

    A class without truth has no point. What is logged after the last step, numbered ``steps - 1``, is the
    validation of the best weights when the run was over: no part of its curves.
    """
    rows = [row for row in _rows(folder) if float(row["step"]) < steps]
    return History(
        thinned(_points(rows, "loss")),
        thinned(_points(rows, "learning_rate")),
        tuple((name, _points(rows, PREFIX + name)) for name in classes),
        _points(rows, "jaccard"),
    )


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points: means of equal groups of neighbours."""
    size = -(-len(points) // most)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((_mean(x for x, _ in group), _mean(y for _, y in group)) for group in groups)


def _rows(folder: Path) -> list[dict[str, str]]:
    """Rows of all files of the run, without those that a resumed run did again."""
    earlier = sorted(folder.glob("metrics.*.csv"), key=lambda path: int(path.name.split(".")[1]))
    rows: list[dict[str, str]] = []
    for path in (*earlier, folder / "metrics.csv"):
        if path.exists():
            with path.open(newline="", encoding="utf-8") as stream:
                later = [row for row in csv.DictReader(stream) if row.get("step")]
            first = min((float(row["step"]) for row in later), default=float("inf"))
            rows = [row for row in rows if float(row["step"]) < first] + later
    return rows


def _points(rows: Iterable[dict[str, str]], column: str) -> Points:
    found: dict[float, float] = {}
    for row in rows:
        text = row.get(column)
        if text and text != "nan":
            found.setdefault(float(row["step"]), float(text))
    return tuple(sorted(found.items()))


def _mean(values: Iterable[float]) -> float:
    present = [*values]
    return sum(present) / len(present)
