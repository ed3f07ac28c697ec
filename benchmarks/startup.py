"""How long the command line takes to say what it can do, against importing click and numpy.

``satseg --help`` must feel instant although torch, GDAL and pandas stand behind it: they are imported by the
command that needs them. Whole processes are measured, interpreter included, as a user would feel them.
Run as ``python -m benchmarks.startup``.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.timing import Goal, Report, children_cpu, interleave, parse, rounded

ROOT = Path(__file__).parents[1]
BARE, RIVAL, HELP, IMPORT, VERSION = (
    "python -c pass", "import click, numpy", "satseg --help", "import satseg", "satseg --version",
)  # fmt: skip
TORCH = "import torch"
COMMANDS = {
    BARE: ("-c", "pass"),
    RIVAL: ("-c", "import click, numpy"),
    IMPORT: ("-c", "import satseg"),
    HELP: ("-m", "satseg", "--help"),
    VERSION: ("-m", "satseg", "--version"),
    "satseg detect --help": ("-m", "satseg", "detect", "--help"),
    "satseg train --help": ("-m", "satseg", "train", "--help"),
    TORCH: ("-c", "import torch"),
}


def start(arguments: tuple[str, ...]) -> None:
    """Run Python with `arguments` to its end, from the checkout's root."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    rounds = 5 if options.quick else 15
    cases = {name: partial(start, arguments) for name, arguments in COMMANDS.items()}
    costs = interleave(cases, rounds=rounds, clock=children_cpu)
    report = Report(
        "Start-up",
        f"Whole processes, files in the page cache. {rounded(rounds)}",
        ("case", "CPU ms", f"CPU time / {RIVAL}", "wall / same"),
        ("click", "torch"),
    )
    for name in cases:
        ratios = costs.ratio(name, RIVAL), costs.ratio(name, RIVAL, "wall")
        report.rows.append((name, 1000 * costs.median(name), *ratios))
    value = costs.ratio(HELP, RIVAL).median
    report.goals.append(Goal(f"time of {HELP} / {RIVAL}", value, 4, at_most=True))
    report.publish(options, "startup")


if __name__ == "__main__":
    main()
