"""What bands outside the visible bring: blue, green and red alone against all bands, the rest alike.

On generated scenes of eight WorldView-3 bands, where artificial turf looks like lawn in the visible, and on Landsat 7
of North Carolina (near, short-wave and thermal infrared beside the visible; land classes of 1996 as labels, its eastern
third never learnt from). Same steps, chips, seeds and first weights but for the first layer. It shows what a sensor's
bands are worth to satseg, not how good satseg can be: steps are few and chips small, so that all of it takes
minutes. Run as ``python -m benchmarks.bands``, of one seed with ``--seeds 0``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
import torch

import satseg
from benchmarks.grounds import data_folder
from benchmarks.timing import Goal, Report, over_seeds, parse
from satseg.demo import DETECT_SEED, TRAIN_SEED
from satseg.synthetic.scene import make_scene, write_scene

STEPS, QUICK_STEPS, SEEDS = 400, 5, "0,1"
HEIGHT, WIDTH = 640, 800
SMALL: dict[str, Any] = {"chip": 64, "batch": 16, "rounds": 2}
VISIBLE = ("blue", "green", "red")
LANDSAT_FILES = "10 20 30 40 50 61 70"
LAND = ("developed", "agriculture", "herbaceous", "shrubland", "forest", "water")
"""Values 1 to 6 of ``landclass96.tif``; of 7, sediment, there are 194 pixels."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where is learnt and where is scored.

    Parameters
    ----------
    name : str
    learnt : (Scene, GeoDataFrame)
    searched : Scene
    truth : GeoDataFrame
        Of the scene that is searched.
    place : Polygon, optional
        The part of it that is searched and scored; all of it when left out.
    """

    name: str
    learnt: tuple[satseg.Scene, geopandas.GeoDataFrame]
    searched: satseg.Scene
    truth: geopandas.GeoDataFrame
    place: shapely.Polygon | None = None


def generated(folder: Path, *, quick: bool) -> Ground:
    """Return the demonstration's two scenes, somewhat smaller."""
    (height, width), parts = (256, 320) if quick else (HEIGHT, WIDTH), []
    for stem, seed in (("learn", TRAIN_SEED), ("search", DETECT_SEED)):
        made = make_scene(seed, height=height, width=width)
        image, _ = write_scene(made, folder, stem=stem)
        parts.append((satseg.open_scene(image), made.labels))
    return Ground("generated, 8 bands", parts[0], *parts[1])


def landsat(folder: Path) -> Ground:
    """Return North Carolina: land classes as polygons, the eastern third to be ignored in training."""
    scene = satseg.open_scene([folder / f"lsat7_2000_{name}.tif" for name in LANDSAT_FILES.split()])
    raster = satseg.open_scene(folder / "landclass96.tif").read()
    planes = np.stack([raster.data[0] == value for value in range(1, len(LAND) + 1)])
    truth = satseg.polygonize(satseg.Raster(planes, raster.grid, LAND, raster.valid))
    left, bottom, right, top = raster.grid.bounds
    east = shapely.box(left + (right - left) * 2 / 3, bottom, right, top)
    west = truth.clip(shapely.box(left, bottom, east.bounds[0], top))
    west = west[west.geom_type.isin(("Polygon", "MultiPolygon"))][["class_name", "geometry"]]
    unknown = shapely.box(*raster.grid.bounds).difference(shapely.union_all(west.geometry.array))  # sediment too
    closed = geopandas.GeoDataFrame({"class_name": ["ignore"]}, geometry=[unknown], crs=truth.crs)
    return Ground("Landsat 7, 7 bands", (scene, geopandas.pd.concat([west, closed])), scene, truth, east)


def jaccards(ground: Ground, bands: Sequence[str] | None, *, seed: int, steps: int) -> dict[str, float]:
    """Train with `bands`, detect where nothing was learnt, and return the Jaccard of each class, and their mean."""
    model = satseg.train(
        [ground.learnt], field="class_name", bands=bands, gsd=ground.searched.grid.gsd_m(), steps=steps, seed=seed,
        device="cpu", **SMALL,
    )  # fmt: skip
    place: dict[str, Any] = {} if ground.place is None else {"bounds": ground.place.bounds}
    found = satseg.detect(model, ground.searched, **place)
    report = satseg.score(found, ground.truth, aoi=ground.place or ground.searched, classes=model.classes)
    scores = {name: report.classes[name].jaccard or 0.0 for name in model.classes}
    return {**scores, "mean": float(np.mean([*scores.values()]))}


def compared(ground: Ground, seeds: Sequence[int], steps: int) -> Iterator[tuple[str, list[float], list[float]]]:
    """Jaccards by the visible bands and by all, one per seed, of each class and of all."""
    pairs = [[jaccards(ground, bands, seed=seed, steps=steps) for bands in (VISIBLE, None)] for seed in seeds]
    for name in pairs[0][0]:
        few, many = ([pair[number][name] for pair in pairs] for number in (0, 1))
        yield name, few, many


def main() -> None:
    """Measure and print."""
    options = parse(__doc__, steps={"type": int, "default": STEPS}, seeds={"default": SEEDS})
    torch.set_num_threads(1)
    seeds = [0] if options.quick else [int(seed) for seed in options.seeds.split(",")]
    steps = QUICK_STEPS if options.quick else options.steps
    report = Report(
        "What bands outside the visible bring",
        f"Polygon Jaccard where nothing was learnt from, after {steps} steps of 16 chips of 64 pixels by the default "
        f"network: mean over {len(seeds)} seed{'s' * (len(seeds) > 1)} (and each). The land classes, of 1996, were "
        "themselves classified from an image; Landsat is of 2000.",
        ("ground", "class", "blue, green, red", "all bands", "gain"),
        ("lightning",),
    )
    with tempfile.TemporaryDirectory() as folder:
        grounds = [generated(Path(folder), quick=options.quick)]
        north_carolina = data_folder() / "s2_landsat" / "nc_landsat7"
        if north_carolina.is_dir():
            grounds.append(landsat(north_carolina))
        else:
            report.notes.append(f"Landsat is left out: {north_carolina.name} is not in the folder of SATSEG_DATA")
        for ground in grounds:
            for name, few, many in compared(ground, seeds, steps):
                gain = float(np.mean(many) - np.mean(few))
                report.rows.append((ground.name, name, over_seeds(few, 2), over_seeds(many, 2), f"{gain:+.2f}"))
                if name in ("mean", "artificial_turf"):
                    report.goals.append(Goal(f"gain of {name}, {ground.name}", gain, 0.2 if name != "mean" else 0.02))
    report.publish(options, "bands")


if __name__ == "__main__":
    main()
