"""One training of `benchmarks.dstl`, or one full-size tile, in a process of its own.

A recipe is learnt as a user does it, `train_recipe` with minutes and a seed. Its minutes are wall time; here
``time.monotonic`` is the CPU time of the process while it trains, so that its schedule follows CPU time. What a
training does outside its schedule (registering, reading labels, measuring bands and halo, for each network) belongs
to the budget too: a rehearsal of one step for each network tells how long it takes, and so much less is given as
minutes. Run by the parent as ``python -m benchmarks.dstl_runs JOB RESULT``, both JSON files.
"""

from __future__ import annotations

import datetime
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest import mock

import torch

from benchmarks.timing import versions

PACKAGES = ("satseg", "torch", "shapely")
LEAST_SHARE = 0.25
"""Of the budget, for the schedule where the rest would take more: tries of seconds."""


@dataclass(frozen=True, slots=True)
class Job:
    """One recipe on one contest.

    Parameters
    ----------
    system : str
        What it is called.
    recipe : str
        Name or file.
    overrides : list of str
        ``section.key=value``.
    minutes : float
        CPU budget; None for a full-size tile.
    seed : int
    contest : str
        Folder that `generate_contest` filled.
    models : str
        Folder for the models, or, for a full-size tile, of those to use.
    tile : str
        Of a full-size contest; all hidden tiles else.
    options : dict
        Of detection.
    """

    system: str
    recipe: str
    minutes: float
    seed: int
    contest: str
    models: str
    overrides: list[str] = field(default_factory=list)
    tile: str = ""
    options: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """What one recipe did on the hidden tiles.

    Parameters
    ----------
    system, minutes, seed, size
        What was run; size is "height x width" of the tiles.
    cpu_min : float
        Of the training, everything counted.
    detect_cpu_s : float
        Of all hidden tiles.
    steps, parameters : int
        Of all networks.
    classes : mapping of class number to [Jaccard, tp, fp, fn]
        Areas in square metres, about.
    mean : float
    made : str
    """

    system: str
    minutes: float
    seed: int
    size: str
    cpu_min: float
    detect_cpu_s: float
    steps: int
    parameters: int
    classes: dict[str, list[float]]
    mean: float
    made: str


def trained(job: Job) -> float:
    """Train and return the CPU-minutes of it."""
    from satseg.tasks.dstl.folder import ContestFolder

    ahead = time.monotonic() - time.process_time()

    def cpu_time() -> float:
        return ahead + time.process_time()

    with mock.patch("time.monotonic", cpu_time):
        # After the clock is replaced, of which the learner may keep a reference.
        from satseg.tasks.dstl.training import train_recipe

        folder = ContestFolder.open(job.contest)
        with tempfile.TemporaryDirectory() as name:
            begin = time.process_time()
            once = [*job.overrides, "train.steps=1"]
            train_recipe(folder, job.recipe, Path(name) / "m", seed=job.seed, overrides=once)
            rest = (time.process_time() - begin) / 60
        begin = time.process_time()
        minutes = max(job.minutes - rest, LEAST_SHARE * job.minutes)
        train_recipe(folder, job.recipe, job.models, minutes=minutes, seed=job.seed, overrides=job.overrides)
        return (time.process_time() - begin) / 60


def scored(job: Job, cpu_min: float, size: str) -> Row:
    """Return the row of trained models: hidden tiles detected, submitted, scored."""
    from satseg.tasks.dstl.detecting import detect_recipe, load_models
    from satseg.tasks.dstl.facts import GSD_M
    from satseg.tasks.dstl.folder import SAMPLE, ContestFolder
    from satseg.tasks.dstl.generated.contest import HIDDEN, SOLUTION
    from satseg.tasks.dstl.predictions import read_predictions
    from satseg.tasks.dstl.score import score_submission
    from satseg.tasks.dstl.submission import write_submission

    folder, place = ContestFolder.open(job.contest), Path(job.models)
    models = load_models(place, device="cpu")
    begin = time.process_time()
    detect_recipe(models, folder, place / "predictions", **job.options)
    spent = time.process_time() - begin
    submission = place / "submission.csv"
    write_submission(submission, read_predictions(folder, place / "predictions"), sample=folder.path / SAMPLE)
    found = score_submission(submission, folder.path / HIDDEN / SOLUTION)
    unit = (GSD_M / 2.7e-6) ** 2
    classes = {
        str(number): [round(found.jaccard(number) or 0.0, 4), *(round(unit * area, 1) for area in (c.tp, c.fp, c.fn))]
        for number, c in found.classes.items()
    }
    cards = [model.card for model in models.networks.values()]
    return Row(
        job.system, job.minutes, job.seed, size, round(cpu_min, 2), round(spent, 1),
        sum(card.training.steps for card in cards if card.training),
        sum(weight.numel() for model in models.networks.values() for weight in model.network.parameters()),
        classes, round(found.mean or 0.0, 4), f"{datetime.date.today().isoformat()}: {versions(PACKAGES)}",
    )  # fmt: skip


def full_size(job: Job) -> dict[str, float]:
    """Return what one tile costs from its four files to its layer: seconds and the process's peak memory."""
    from satseg.tasks.dstl.detecting import detect_recipe, load_models
    from satseg.tasks.dstl.folder import ContestFolder

    folder = ContestFolder.open(job.contest)
    models = load_models(job.models, device="cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as name:
        counts = detect_recipe(models, folder, Path(name) / "p", tiles=[job.tile], **job.options)
    return {
        "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu,
        "loaded_gib": before / 2**20, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "polygons": float(sum(sum(found.values()) for found in counts.values())),
        "classes": float(len(models.items)),
    }  # fmt: skip


def size_of(contest: str) -> str:
    """Return the size of the tiles of a generated contest as its README says it."""
    text = (Path(contest) / "README.txt").read_text(encoding="utf-8")
    wide, high = text.split("Tiles are about\n")[1].split(" pixels")[0].split(" x ")
    return f"{high} x {wide}"


def main(arguments: Sequence[str]) -> None:
    """Run the job of the first file and write what came of it into the second."""
    job = Job(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    if job.tile:
        made: object = full_size(job)
    else:
        torch.set_num_threads(1)
        made = asdict(scored(job, trained(job), size_of(job.contest)))
    Path(arguments[1]).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
