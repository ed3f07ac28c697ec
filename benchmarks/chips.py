"""Training chips: random ones of a scene larger than the cache against one sequential pass; and against rivals.

The sequential pass reads the aligned windows of 512 pixels once and burns their labels, the least that anybody must
do to see the scene. Random chips are what a training run draws, turned and zoomed, half of them around features,
with the cache as it is in the middle of a run.

Rivals draw windows of the same size from the same scene of 8 bands with the same vector labels, in batches, without
workers, and all from a cold start: TorchGeo's RandomGeoSampler over its raster and vector datasets, the same with
labels burnt to a file beforehand, and Raster Vision's random windows. satseg turns and zooms its chips besides.
Run as ``python -m benchmarks.chips``.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path

os.environ.setdefault("GDAL_CACHEMAX", "256")

import geopandas
import numpy as np
import rasterio
import shapely
import torch
from rasterio.features import rasterize
from torch.utils.data import DataLoader

from benchmarks.reading import BANDS, WINDOW, windows, write_scene
from benchmarks.timing import Goal, Report, Run, interleave, parse, rounded
from satseg import open_scene
from satseg.imagery.labels import LabelLayer
from satseg.learning.ground.sampling import ChipSampler
from satseg.learning.ground.split import Ground
from satseg.learning.training.feed import Chips, stack_chips
from satseg.options import AugmentOptions

CHIP, BATCH, CLASSES = 128, 16, ("house", "field")
SIDE, QUICK_SIDE = 4096, 2048
RIVALS, QUICK_RIVALS = (2048, 64), (1024, 32)
"""Side of the scene, and chips a round: a few CPU-seconds for the slowest."""
SHARE = 5
"""The cache holds this part of the scene decoded, and so does GDAL's."""
PIXEL_BYTES = 2 * BANDS + len(CLASSES) + 2
DENSITY = 1.6e-4
"""Features per pixel: a town's."""
SEQUENTIAL, STRETCHES = "sequential pass, windows of 512", "random chips"
OURS, TORCHGEO = "satseg", "TorchGeo RandomGeoSampler, vector labels"
BURNT, RASTER_VISION = "TorchGeo RandomGeoSampler, labels burnt to a file before", "Raster Vision random windows"


def make_labels(side: int, seed: int = 0) -> geopandas.GeoDataFrame:
    """Return houses of 12 to 30 pixels and a field of some 200 for every twenty, in the CRS of `write_scene`."""
    rng = np.random.default_rng(seed)
    number = int(side**2 * DENSITY)
    fields = rng.random(number) < 0.05
    half = np.where(fields[:, None], rng.uniform(60, 120, (number, 2)), rng.uniform(6, 15, (number, 2))) * 0.5
    x, y = 300_000 + rng.uniform(0, side, number) * 0.5, 5_700_000 - rng.uniform(0, side, number) * 0.5
    shapes = shapely.box(x - half[:, 0], y - half[:, 1], x + half[:, 0], y + half[:, 1])
    names = np.where(fields, CLASSES[1], CLASSES[0])
    columns = {"class_name": names, "class_id": 1 + fields.astype(int)}
    return geopandas.GeoDataFrame(columns, geometry=shapes, crs="EPSG:32633")


def make_ground(path: Path, labels: geopandas.GeoDataFrame) -> Ground:
    """Return the scene at `path` with its labels."""
    scene = open_scene(path)
    return Ground(scene, LabelLayer.build(labels, scene.grid, CLASSES))


def one_pass(ground: Ground, side: int) -> None:
    """Read the aligned windows of the upper `side` rows and columns and burn their labels."""
    with ground.scene.reader() as reader:
        for place in windows(side):
            ground.labels.burn(reader.read(place).grid)


def steady(ground: Ground, chips: int, *, cache_bytes: int) -> Run:
    """Return what draws the next `chips` chips of a run that has filled its cache."""
    sampler = ChipSampler(
        [ground], size=CHIP, seed=0, balance=0.5, changes=AugmentOptions(), cache_bytes=cache_bytes
    )
    dataset, numbers = Chips(sampler, cache_bytes=cache_bytes), count()

    def run() -> None:
        for number, _ in zip(numbers, range(chips), strict=False):
            dataset[number]

    for _ in range(2):
        run()
    return run


def report_stretches(side: int, rounds: int) -> Report:
    """Measure random chips of a scene `SHARE` times the cache."""
    room = side**2 * PIXEL_BYTES // SHARE
    part, chips = side // 2, side**2 // 4 // CHIP**2
    with tempfile.TemporaryDirectory() as folder, rasterio.Env(GDAL_CACHEMAX=room):
        path = Path(folder) / "scene.tif"
        write_scene(path, side)
        ground = make_ground(path, make_labels(side))
        cases: dict[str, Run] = {
            SEQUENTIAL: lambda: one_pass(ground, part),
            STRETCHES: steady(ground, chips, cache_bytes=room),
        }
        costs = interleave(cases, rounds=rounds)
    report = Report(
        "Random chips of a scene larger than the cache",
        f"{side} x {side} pixels, {BANDS} bands uint16, tiled {WINDOW}, deflate with predictor 2, "
        f"{int(side**2 * DENSITY)} polygons of two classes; chips of {CHIP} pixels, half around features, turned "
        f"and zoomed as by default. The cache, {room / 2**20:.0f} MiB, holds a fifth of the scene decoded; GDAL's "
        f"is as large. Each case delivers {part**2 / 1e6:.1f} Mpx a round. {rounded(rounds)}",
        ("case", "Mpx per CPU s", "speed / sequential pass"),
    )
    for case in cases:
        report.rows.append((case, part**2 / 1e6 / costs.median(case), costs.ratio(SEQUENTIAL, case)))
    value = costs.ratio(SEQUENTIAL, STRETCHES).median
    report.goals.append(Goal("speed of random chips / a sequential pass, in pixels per CPU second", value, 0.7))
    return report


def ours(path: Path, labels: Path, number: int) -> int:
    """Return how many chips satseg's loader yields, opening everything anew."""
    sampler = ChipSampler(
        [make_ground(path, geopandas.read_file(labels))], size=CHIP, seed=0, balance=0.5, changes=AugmentOptions(),
        cache_bytes=2**30,
    )  # fmt: skip
    batches = [range(first, first + BATCH) for first in range(0, number, BATCH)]
    loader = DataLoader(Chips(sampler, cache_bytes=2**30), batch_sampler=batches, collate_fn=stack_chips)
    return sum(len(image) for image, *_ in loader)


def torchgeo_case(path: Path, labels: Path, number: int, *, burnt: bool) -> Callable[[], int]:
    """Return a pass of TorchGeo's random sampler over the intersection of image and labels."""
    from torchgeo.datasets import RasterDataset, VectorDataset, stack_samples
    from torchgeo.samplers import RandomGeoSampler

    class Mask(RasterDataset):  # type: ignore[misc]  # torchgeo has no types
        is_image = False

    def run() -> int:
        RasterDataset._cached_load_warp_file.cache_clear()
        image = RasterDataset(os.fspath(path))
        same = {"crs": image.crs, "res": image.res}
        truth = Mask(os.fspath(labels)) if burnt else VectorDataset(os.fspath(labels), label_name="class_id", **same)
        dataset = image & truth
        sampler = RandomGeoSampler(dataset, size=CHIP, length=number)
        loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=stack_samples)
        return sum(len(batch["image"]) for batch in loader if tuple(batch["mask"].shape[-2:]) == (CHIP, CHIP))

    return run


def raster_vision_case(path: Path, labels: Path, number: int) -> Callable[[], int]:
    """Return a pass of Raster Vision's random windows, as its notebooks make them."""
    from rastervision.core.data import ClassConfig
    from rastervision.pytorch_learner import SemanticSegmentationRandomWindowGeoDataset

    def run() -> int:
        config = ClassConfig(names=["ground", *CLASSES], null_class="ground")
        dataset = SemanticSegmentationRandomWindowGeoDataset.from_uris(
            class_config=config, image_uri=os.fspath(path), label_vector_uri=os.fspath(labels), out_size=CHIP,
            size_lims=(CHIP, CHIP + 1), padding=0, max_windows=number,
        )  # fmt: skip
        return sum(len(image) for image, _ in DataLoader(dataset, batch_size=BATCH))

    return run


def write_labels(folder: Path, side: int) -> tuple[Path, Path, Path]:
    """Write the labels of a scene as a GeoPackage, as GeoJSON in degrees, and burnt to a GeoTIFF."""
    labels = make_labels(side)
    vector, degrees, burnt = folder / "labels.gpkg", folder / "labels.geojson", folder / "labels.tif"
    labels.to_file(vector)
    labels.to_crs(4326).to_file(degrees, driver="GeoJSON")
    with rasterio.open(folder / "scene.tif") as scene:
        shape, transform, crs = scene.shape, scene.transform, scene.crs
    plane = rasterize(zip(labels.geometry, labels.class_id, strict=True), shape, transform=transform, dtype="uint8")
    with rasterio.open(
        burnt, "w", driver="GTiff", height=shape[0], width=shape[1], count=1, dtype="uint8", crs=crs,
        transform=transform, tiled=True, blockxsize=WINDOW, blockysize=WINDOW, compress="deflate",
    ) as out:  # fmt: skip
        out.write(plane, 1)
    return vector, degrees, burnt


def checked(run: Callable[[], int], number: int) -> Run:
    """Return `run`, which must give `number` chips."""

    def counted() -> None:
        found = run()
        if found != number:
            raise RuntimeError(f"{found} chips of {CHIP} pixels instead of {number}")

    return counted


def report_rivals(side: int, number: int, rounds: int) -> Report:
    """Measure chips per CPU second of each way of drawing them."""
    with tempfile.TemporaryDirectory() as name, rasterio.Env(GDAL_CACHEMAX=2 * side**2 * 2 * BANDS):
        folder = Path(name)
        path = folder / "scene.tif"
        write_scene(path, side)
        vector, degrees, burnt = write_labels(folder, side)
        cases: dict[str, Callable[[], int]] = {OURS: lambda: ours(path, vector, number)}
        if importlib.util.find_spec("torchgeo"):
            cases[TORCHGEO] = torchgeo_case(path, vector, number, burnt=False)
            cases[BURNT] = torchgeo_case(path, burnt, number, burnt=True)
        if importlib.util.find_spec("rastervision"):
            cases[RASTER_VISION] = raster_vision_case(path, degrees, number)
        costs = interleave({case: checked(run, number) for case, run in cases.items()}, rounds=rounds)
    report = Report(
        "Training chips against TorchGeo and Raster Vision",
        f"{number} chips of {CHIP} pixels in batches of {BATCH} from {side} x {side} pixels of {BANDS} bands, "
        f"uint16, tiled {WINDOW}, deflate with predictor 2, {int(side**2 * DENSITY)} polygons in a GeoPackage "
        "(GeoJSON for Raster Vision). Every case opens scene and labels anew; GDAL's cache holds the whole scene "
        f"decoded, which helps those that decode a block more than once. One torch thread. {rounded(rounds)}",
        ("case", "chips per CPU s", "CPU time / satseg"),
        ("torch", "torchgeo", "rastervision_core"),
    )
    for case in (OURS, TORCHGEO, BURNT, RASTER_VISION):
        if case in costs.runs:
            report.rows.append((case, number / costs.median(case), costs.ratio(case, OURS)))
        else:
            report.rows.append((case, "not installed", ""))
    for case, limit in ((TORCHGEO, 3), (RASTER_VISION, 2)):
        if case in costs.runs:
            report.goals.append(Goal(f"speed of satseg / {case}", costs.ratio(case, OURS).median, limit))
    return report


def main() -> None:
    """Measure and print."""
    part = {"choices": ("stretches", "rivals"), "help": "measure only one of the two reports"}
    options = parse(__doc__, only=part)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.only != "rivals":
        report_stretches(*((QUICK_SIDE, 3) if options.quick else (SIDE, 5))).publish(options, "chips")
    if options.only != "stretches":
        report_rivals(*(QUICK_RIVALS if options.quick else RIVALS), 3).publish(options, "chip_rivals")


if __name__ == "__main__":
    main()
