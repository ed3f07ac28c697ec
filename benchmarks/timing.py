"""What every benchmark shares: an interleaved runner, ratios with their spread, and the printed report.

The measure is CPU-seconds, not wall time, because other work shares the machine; cases take turns inside
each round, so that a slow minute hits all of them, and a ratio is the median over rounds of the ratios
inside one round. Absolute times are printed for orientation only: another machine has others.
Rejected: pytest-benchmark and asv, which time one case after the other and compare wall times.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Run: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[], float]
RESULTS = Path(__file__).parent / "results"
ALWAYS = ("numpy", "rasterio")
"""Packages whose versions every report states."""


def children_cpu() -> float:
    """Return the CPU-seconds of all child processes that have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU-seconds (all threads) and wall seconds of one run."""

    cpu: float
    wall: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A ratio: the median over rounds, and the least and greatest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        low, median, high = (_digits(value) for value in (self.low, self.median, self.high))
        return f"{median} ({low} to {high})"


class Costs:
    """What each case cost in each round.

    Parameters
    ----------
    runs : mapping of case -> list of Cost
        As many for every case, in order of rounds.
    """

    def __init__(self, runs: Mapping[str, list[Cost]]) -> None:
        self.runs = runs

    def median(self, case: str, kind: str = "cpu") -> float:
        """Return the median seconds of `case`; `kind` is "cpu" or "wall"."""
        return statistics.median(getattr(cost, kind) for cost in self.runs[case])

    def ratio(self, over: str, under: str, kind: str = "cpu") -> Spread:
        """Return the cost of `over` divided by the cost of `under`, round by round."""
        pairs = zip(self.runs[over], self.runs[under], strict=True)
        ratios = [getattr(a, kind) / getattr(b, kind) for a, b in pairs]
        return Spread(statistics.median(ratios), min(ratios), max(ratios))


def interleave(cases: Mapping[str, Run], *, rounds: int, clock: Clock = time.process_time) -> Costs:
    """Run every case once untimed, then `rounds` times in turn, each round starting with another case.

    A case that runs in a process of its own returns its Cost, which then counts.
    """
    for run in cases.values():
        run()
    names = list(cases)
    runs: dict[str, list[Cost]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            runs[name].append(measure(cases[name], clock))
    return Costs(runs)


def measure(run: Run, clock: Clock = time.process_time) -> Cost:
    """Return what one call of `run` costs; garbage of the one before is collected first."""
    gc.collect()
    wall, cpu = time.perf_counter(), clock()
    result = run()
    return result if isinstance(result, Cost) else Cost(clock() - cpu, time.perf_counter() - wall)


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio that satseg sets out to reach.

    Parameters
    ----------
    what : str
    value : float
        As measured.
    limit : float
    at_most : bool
        Whether small is good.
    """

    what: str
    value: float
    limit: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the measured value keeps the limit."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        verdict, sign = "met" if self.met else "MISSED", "at most" if self.at_most else "at least"
        return f"{verdict}: {self.what}: {_digits(self.value)}, goal {sign} {self.limit:g}"


@dataclass(slots=True)
class Report:
    """One benchmark's answer: a table, goals, and what it was measured with.

    Parameters
    ----------
    title : str
    method : str
        What was run on what, in a sentence or two.
    header : sequence of str
    packages : sequence of str
        Distributions to state the versions of, besides `ALWAYS`.
    """

    title: str
    method: str
    header: Sequence[str]
    packages: Sequence[str] = ()
    rows: list[Sequence[object]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the report as Markdown."""
        parts = [f"# {self.title}", self.method, table(self.header, self.rows)]
        parts += ["\n".join(f"- {item}" for item in group) for group in (self.goals, self.notes) if group]
        return "\n\n".join([*parts, f"{date_and_machine()}  \n{versions((*ALWAYS, *self.packages))}"]) + "\n"

    def publish(self, options: argparse.Namespace, name: str) -> None:
        """Print the report, and keep it as results/`name`.md when ``--save`` was given."""
        print(self.text())
        if options.save:
            (RESULTS / f"{name}.md").write_text(self.text(), encoding="utf-8")


def rounded(rounds: int) -> str:
    """Return the sentence that says what the columns of a report hold."""
    return f"Medians of {rounds} interleaved rounds; brackets hold the least and the greatest round."


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, columns aligned; numbers keep three digits."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return _digits(value) if isinstance(value, float) else str(value)


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def date_and_machine() -> str:
    """Return day and machine in general words: what a reader needs to judge the numbers."""
    models = (line.split(":", 1)[1] for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    names = {name.strip() for name in models}
    cpu = ", ".join(sorted(names)) or platform.machine()
    cores = os.cpu_count() or 1
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{datetime.date.today().isoformat()}, {cores} cores {cpu}, {gibibytes:.0f} GiB, no GPU used, "
        f"{platform.system()}, load at the end {load:.1f}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def versions(packages: Sequence[str]) -> str:
    """Return "Python 3.x, name 1.2, ..."; packages that are missing are said to be."""
    found = [f"Python {platform.python_version()}"]
    for name in dict.fromkeys(packages):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def over_seeds(values: Sequence[float], digits: int) -> str:
    """Return the mean over seeds, and each of them."""
    each = " ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.fmean(values):.{digits}f} ({each})"


def parse(description: str | None, **arguments: Mapping[str, object]) -> argparse.Namespace:
    """Return the command line: ``--quick``, ``--save``, and one ``--name`` per further argument."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: does it run, not how fast")
    parser.add_argument("--save", action="store_true", help="also keep the report under benchmarks/results/")
    for name, settings in arguments.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)  # type: ignore[arg-type]
    return parser.parse_args()
