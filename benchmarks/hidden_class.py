"""Do the bands outside the visible matter: the demonstration with all eight bands and with RGB alone.

``python -m benchmarks.hidden_class`` runs the demonstration twice, with equal budgets, and prints the
Jaccard of each class on the scene that was not learnt from. Artificial turf looks like lawn in RGB.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from satseg.demo import MINUTES, run_demo

BAND_SETS = {"all 8 bands": None, "RGB": ("red", "green", "blue")}


def main() -> None:
    """Print one row per class, one column per set of bands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="training budget of each run")
    minutes = parser.parse_args().minutes
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, bands in BAND_SETS.items():
            reports[name] = run_demo(Path(folder) / name.replace(" ", "-"), bands=bands, minutes=minutes).report
    first = next(iter(reports.values()))
    print("| class | " + " | ".join(reports) + " |")
    print("|---|" + "---|" * len(reports))
    for name in first.classes:
        print(f"| {name} | " + " | ".join(_shown(report.classes[name].jaccard) for report in reports.values()) + " |")
    print("| mean | " + " | ".join(_shown(report.mean_jaccard) for report in reports.values()) + " |")


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


if __name__ == "__main__":
    main()
