"""What a delivery in files costs: a town nobody learnt from, whole and cut into files, at the same network.

The tone of a file of 77 m says more of what lies on it than of its light. Each town is found by networks that learnt
from the other two (Las Vegas: from all three), whole and in files: as they are, each moved near the tones learnt from
by itself, and all files of the flight moved alike (`satseg.flights`). Features of all files of a town are scored
together, so that roofs cut at a file's edge count against all three. A VRT of the files is found as the whole is.
Steps are told, not minutes, so that a machine's load is not measured. Run as ``python -m benchmarks.flights``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import rasterio
import torch
from rasterio.windows import Window

import satseg
from benchmarks.grounds import Place, data_folder, has_vegas, las_vegas
from benchmarks.timing import Goal, Report, over_seeds, parse
from benchmarks.trainings import BUILDING, labelled
from satseg.learning.networks.model import Model

STEPS, QUICK_STEPS, SEEDS = 500, 5, "0,1"
SIDES = (512, 1024)
"""Pixels."""
LEARNT = ("banepa_1", "zanzibar_1", "nairobi_1")
SOUGHT = ("nairobi_1", "zanzibar_1")
WHOLE, APART, TOGETHER = "the whole", "each by itself", "as one flight"
CASES: dict[str, dict[str, Any]] = {"as they are": {"tone": "own"}, APART: {"tone": "near"}}


def cut(place: Place, folder: Path, side: int) -> list[Path]:
    """Write the scene of `place` into `folder` as files of up to `side` pixels a side."""
    paths = []
    with rasterio.open(place.scene) as source:
        for row in range(0, source.height, side):
            for col in range(0, source.width, side):
                window = Window(col, row, min(side, source.width - col), min(side, source.height - row))
                grid = {"transform": source.window_transform(window), "height": window.height, "width": window.width}
                like = {"crs": source.crs, "count": source.count, "dtype": source.dtypes[0], "nodata": source.nodata}
                paths.append(folder / f"{place.name}_{side}_{row}_{col}.tif")
                with rasterio.open(paths[-1], "w", driver="GTiff", **grid, **like) as out:
                    out.write(source.read(window=window))
    return paths


def found_in(model: Model, paths: Sequence[Path]) -> Iterator[tuple[str, geopandas.GeoDataFrame]]:
    """Each case, and the features of all files in it."""
    scenes = [satseg.open_scene(path) for path in paths]
    together = [{"tone": "near", "flight": flight} for flight in satseg.flights(scenes)]
    for case, options in (*((name, [one] * len(scenes)) for name, one in CASES.items()), (TOGETHER, together)):
        layers = [satseg.detect(model, scene, **one) for scene, one in zip(scenes, options, strict=True)]
        yield case, pandas.concat(layers, ignore_index=True)


def scores(model: Model, place: Place, folder: Path) -> Iterator[tuple[int, int, str, float, float]]:
    """Side of a file (0: the whole), how many files, case, polygon Jaccard, and F1 of the objects."""
    scene = satseg.open_scene(place.scene)
    layers = [(0, 1, WHOLE, satseg.detect(model, scene))]
    for side in SIDES:
        paths = cut(place, folder, side)
        layers += [(side, len(paths), *found) for found in found_in(model, paths)]
    for side, count, case, layer in layers:
        report = satseg.score(layer, place.labels, scene=scene, truth_field="class", classes=(BUILDING,))
        counts = report.classes[BUILDING]
        yield side, count, case, counts.jaccard or 0.0, counts.f1 or 0.0


def main() -> None:
    """Measure and print."""
    options = parse(__doc__, steps={"type": int, "default": STEPS}, seeds={"default": SEEDS})
    data = data_folder()
    if not (data / "buildings_oam").is_dir():
        sys.exit(f"there is no buildings_oam in {data}: tell the folder of real imagery as SATSEG_DATA")
    torch.set_num_threads(1)
    seeds = [0] if options.quick else [int(seed) for seed in options.seeds.split(",")]
    steps = QUICK_STEPS if options.quick else options.steps
    report = Report(
        "A flight delivered in files",
        f"Buildings of a town that the network did not learn from, {steps} steps by the default recipe: mean over "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)} (and each). Features of all files of a town are scored together.",
        ("town", "side of a file, pixels", "files", "how they are found", "polygon J", "F1"),
        ("lightning",),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = [labelled(data / "buildings_oam" / place) for place in LEARNT]
        sought = [place for place in places if place.name in SOUGHT]
        if has_vegas(data):
            sought.append(las_vegas(data, folder))
        for place in sought:
            learnt = [(one.scene, one.labels) for one in places if one.name != place.name]
            rounds = [
                list(scores(satseg.train(learnt, field="class", steps=steps, seed=seed, device="cpu"), place, folder))
                for seed in seeds
            ]
            add(report, place.name, rounds)
    report.publish(options, "flights")


def add(report: Report, town: str, rounds: Sequence[Sequence[tuple[int, int, str, float, float]]]) -> None:
    """Add the rows of a town, and its goals; `rounds` holds the same cases for each seed."""
    means: dict[tuple[int, str], float] = {}
    for cases in zip(*rounds, strict=True):
        side, count, case = cases[0][:3]
        jaccards, f1s = ([one[at] for one in cases] for at in (3, 4))
        report.rows.append((town, side or "-", count, case, over_seeds(jaccards, 3), over_seeds(f1s, 3)))
        means[side, case] = float(np.mean(jaccards))
    for side in SIDES:
        ratio = means[side, TOGETHER] / max(means[side, APART], 1e-9)
        report.goals.append(Goal(f"{town}, files of {side} pixels: J {TOGETHER} / {APART}", ratio, 1.0))


if __name__ == "__main__":
    main()
