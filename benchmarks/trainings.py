"""One training of `benchmarks.accuracy`, in a process of its own: train on places, find buildings in another, score.

satseg is called as a user calls it, `train` with minutes and a seed and `detect`, once plain and once with each of
the views asked for. Its minutes are wall time; here ``time.monotonic`` is the CPU time of the process while it trains,
on one thread, so that its schedule follows CPU time as the rivals' do. What it does outside that schedule (reading
labels, measuring the bands, the last validation, measuring the halo) belongs to the budget too: a rehearsal of one
step tells how long it takes, and so much less is given as minutes.

Rivals' scores become polygons by `rasterio.features.shapes`, 4-connected, without clean-up. Everything is scored
by `satseg.score`. Run by the parent as ``python -m benchmarks.trainings JOB RESULT``, both JSON files.
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import geopandas
import numpy as np
import rasterio
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely.geometry import shape

from benchmarks.grounds import Clock, Ground, Place
from benchmarks.timing import versions
from satseg import detect, score, train
from satseg.grid import Grid
from satseg.learning.networks.committee import Committee
from satseg.learning.networks.model import Model
from satseg.learning.networks.network import Network
from satseg.scoring.jaccard import pixel_counts

if TYPE_CHECKING:
    from benchmarks.recipes import Rival

OURS = "satseg"
VIEWS = {"flips": " + flips", "d4": " + D4", "scales": " + scales", "d4+scales": " + D4 + scales"}
"""What `tta` of a detection adds to its system's name."""
BUILDING = "building"
PACKAGES = ("satseg", "torch", "lightning", "segmentation_models_pytorch", "torchgeo", "geoai-py")
LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds among which the best is sought."""
LEAST_SHARE = 0.25
"""Of the budget, for satseg's own schedule where the rest would take more: tries of seconds."""
TRUE_COLOUR, FOUND_COLOUR = "yellow", "magenta"


@dataclass(frozen=True, slots=True)
class Job:
    """One training.

    Parameters
    ----------
    system : str
        `OURS`, `OURS` and a name for changed options, or a name of `benchmarks.recipes.RECIPES`.
    minutes : float
        CPU budget.
    seed : int
    scene : str
        The scene that is scored, without ``.tif``; its labels lie beside it.
    data : str
        Folder of the scenes learnt from.
    learnt : list of str
        Their stems.
    options : dict
        Changed keys of satseg's run file.
    views : list of str
        Keys of `VIEWS`, with each of which satseg detects once more.
    keep : str, optional
        Folder for features and pictures.
    """

    system: str
    minutes: float
    seed: int
    scene: str
    data: str
    learnt: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    views: list[str] = field(default_factory=lambda: ["d4"])
    keep: str | None = None

    @property
    def place(self) -> str:
        """Name of the scene that is scored."""
        return Path(self.scene).name

    def places(self) -> list[Place]:
        """Return those learnt from."""
        return [labelled(Path(self.data) / name) for name in self.learnt]


@dataclass(frozen=True, slots=True)
class Row:
    """What one system did on one place; counts are (tp, fp, fn).

    Parameters
    ----------
    system, minutes, seed, place
        As in `Job`.
    cpu_min, wall_min, steps, mpix, parameters
        Of the training; megapixels that went through the network in it.
    predict_cpu_s : float
        From the open scene to scores and polygons.
    threshold : float
        The one polygons were made at.
    areas, pixels, objects : list of float
        Of the polygons: square metres, pixels at 0.30 m, buildings paired at an IoU of 0.5.
    own : list of int
        Pixels of the scores' own grid at `threshold`, before any clean-up.
    curve : dict of threshold to list of int
        The same at each of `LEVELS`.
    made : str
        Day and versions.
    """

    system: str
    minutes: float
    seed: int
    place: str
    cpu_min: float
    wall_min: float
    steps: int
    mpix: float
    parameters: int
    predict_cpu_s: float
    threshold: float
    areas: list[float]
    pixels: list[float]
    objects: list[int]
    own: list[int]
    curve: dict[str, list[int]]
    made: str


def labelled(stem: Path) -> Place:
    """Return the scene at `stem`.tif with the labels beside it."""
    return Place(stem.name, stem.with_suffix(".tif"), stem.with_suffix(".geojson"))


@dataclass(frozen=True, slots=True)
class Found:
    """Buildings found in a place, and the scores (H, W) they were made of with the grid of these."""

    features: geopandas.GeoDataFrame
    scores: NDArray[np.float32]
    transform: Affine
    threshold: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training: its size, and one or more ways to detect with it, by name."""

    parameters: int
    spent: tuple[float, float]
    detectors: dict[str, Callable[[Place, Path], Found]]


def train_satseg(job: Job, clock: Clock) -> Trained:
    """Train satseg as its user would; a forward hook counts steps and pixels.

    ``time.monotonic`` is replaced before the learner is imported, which may keep a reference to it.
    """
    ahead = time.monotonic() - time.process_time()

    def cpu_time() -> float:
        return ahead + time.process_time()

    def watch(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Network) and not isinstance(module, Committee) and module.training:
            clock.step(inputs[0])

    pairs = [(place.scene, place.labels) for place in job.places()]
    options = {"seed": job.seed, "device": "cpu", "field": "class", **job.options}
    with mock.patch("time.monotonic", cpu_time):
        import satseg.learning.training.learner
        import satseg.learning.training.recipe  # noqa: F401  # imports are outside the clock

        clock.begin()
        train(pairs, steps=1, **options)
        minutes = max(job.minutes - clock.spent()[0], LEAST_SHARE * job.minutes)
        hook = torch.nn.modules.module.register_module_forward_pre_hook(watch)
        clock.begin()
        model = train(pairs, minutes=minutes, **options)
        spent = clock.spent()
    hook.remove()
    detectors = {job.system: partial(detected, model, tta="none")}
    detectors |= {job.system + VIEWS[tta]: partial(detected, model, tta=tta) for tta in job.views}
    return Trained(size_of(model.network), spent, detectors)


def train_rival(job: Job, clock: Clock, folder: Path) -> Trained:
    """Train by the recipe called as the job's system."""
    from benchmarks.recipes import RECIPES

    ground = Ground(job.places(), folder, clock, job.seed)
    rival = RECIPES[job.system](ground)
    return Trained(size_of(rival.network), clock.spent(), {job.system: partial(outlined, rival)})


def size_of(network: torch.nn.Module) -> int:
    """Return how many weights `network` has."""
    return sum(weight.numel() for weight in network.parameters())


def detected(model: Model, place: Place, folder: Path, *, tta: str) -> Found:
    """Return what `satseg.detect` finds, at the model's own threshold and resolution."""
    scores = folder / f"scores_{tta}.tif"
    features = detect(model, place.scene, scores=scores, tta=tta)
    with rasterio.open(scores) as source:
        return Found(features, source.read(1), source.transform, model.thresholds[BUILDING])


def outlined(rival: Rival, place: Place, folder: Path) -> Found:
    """Return what a rival's scores at 0.30 m become by `rasterio.features.shapes`."""
    image, profile = place.coarse()
    scores, transform = rival.score(image), profile["transform"]
    mask = (scores >= rival.threshold).astype(np.uint8)
    polygons = [shape(outline) for outline, _ in shapes(mask, mask > 0, 4, transform)]
    names = [BUILDING] * len(polygons)
    features = geopandas.GeoDataFrame({"class_name": names}, geometry=polygons, crs=profile["crs"])
    return Found(features, scores, transform, rival.threshold)


def scored(found: Found, place: Place) -> dict[str, Any]:
    """Return the counts of a `Row`."""
    image, profile = place.coarse()
    height, width = image.shape[1:]
    grid = Grid(height, width, profile["transform"], profile["crs"])
    report = score(found.features, place.labels, scene=grid, truth_field="class", classes=(BUILDING,))
    counts = report.classes[BUILDING]
    truth = place.mask(*found.scores.shape, found.transform)
    return {
        "areas": of_counts(counts.areas), "pixels": of_counts(counts.pixels), "objects": of_counts(counts.objects),
        "own": at_level(found.scores, truth, found.threshold),
        "curve": {str(level): at_level(found.scores, truth, level) for level in LEVELS},
    }  # fmt: skip


def of_counts(counts: Any) -> list[float]:
    """Return (tp, fp, fn) of areas, pixels or objects, to a tenth."""
    return [round(value, 1) for value in (counts.tp, counts.fp, counts.fn)]


def at_level(scores: NDArray[np.float32], truth: NDArray[np.uint8], level: float) -> list[int]:
    """Return (tp, fp, fn) pixels of scores (H, W) from `level` on."""
    return [int(count[0]) for count in pixel_counts(scores >= np.float32(level), truth)]


def keep_pictures(found: Found, place: Place, stem: Path) -> None:
    """Write the features, and the image at 0.30 m with true outlines in yellow and found ones in magenta."""
    from PIL import Image, ImageDraw

    image, profile = place.coarse()
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    draw = ImageDraw.Draw(picture)
    for layer, colour in ((place.truth(), TRUE_COLOUR), (found.features, FOUND_COLOUR)):
        for polygon in shapely.get_parts(layer.geometry.to_numpy()):
            for ring in (polygon.exterior, *polygon.interiors):
                draw.line([~profile["transform"] @ point[:2] for point in ring.coords], fill=colour, width=2)
    picture.save(stem.with_name(stem.name + ".png"))
    found.features.to_file(stem.with_name(stem.name + ".gpkg"))


def run(job: Job) -> list[Row]:
    """Train and score as told; one row for each way to detect."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002  # a library's own augmentation may draw from it
    made = f"{datetime.date.today().isoformat()}: {versions(PACKAGES)}"
    clock, place, rows = Clock(job.minutes), labelled(Path(job.scene)), []
    with tempfile.TemporaryDirectory(prefix="accuracy-") as name:
        folder = Path(name)
        trained = train_satseg(job, clock) if job.system.startswith(OURS) else train_rival(job, clock, folder)
        for system, detector in trained.detectors.items():
            start = time.process_time()
            found = detector(place, folder)
            seconds = time.process_time() - start
            key = (system, job.minutes, job.seed, job.place)
            mpix, minutes = round(clock.pixels / 1e6, 1), [round(value, 3) for value in trained.spent]
            training = (*minutes, clock.steps, mpix, trained.parameters, round(seconds, 1))
            rows.append(Row(*key, *training, round(found.threshold, 3), **scored(found, place), made=made))
            if job.keep:
                keep_pictures(found, place, Path(job.keep) / f"{system} {job.minutes:g} {job.seed} {job.place}")
    return rows


def main(job: str, result: str) -> None:
    """Run the job in the file `job` and write its rows to the file `result`."""
    rows = run(Job(**json.loads(Path(job).read_text(encoding="utf-8"))))
    Path(result).write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
