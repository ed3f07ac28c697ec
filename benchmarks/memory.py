"""Peak memory of a detection: of large scenes, of the default network, of scenes that grow taller, over time.

Every run has a process of its own, whose peak resident size is what the kernel says it was; `detect_to_file`
writes polygons and mask. The threshold model knows a class by one pixel's first band, so that nothing but the
chain takes memory; the default UNet is untrained, for its memory is that of a trained one, and sees the top of
the large scene. The giant is mostly holes, which a file may leave unwritten; no value means "no data", so that
all of it is computed, and scattered blocks hold patches of every class (`benchmarks.rivals`).
The rival is the usual script: read the scene, run the network in tiles, outline with `rasterio.features.shapes`.
Run as ``python -m benchmarks.memory``.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from benchmarks.timing import RESULTS, Goal, Report, parse

if TYPE_CHECKING:  # a child's import: it would count as memory of this process, which its children inherit
    from satseg.learning.networks.model import Model

ROOT = Path(__file__).parents[1]
PICTURE = RESULTS / "memory_over_time.png"
TILE = 512
NAMES = ("coastal", "blue", "green", "yellow", "red", "red_edge", "nir1", "nir2")
LARGE, QUICK_LARGE = 20_000, 2048
NARROW, HEIGHTS, QUICK_HEIGHTS = 2048, (2048, 8192), (1024, 2048)
UNET_ROWS, QUICK_UNET_ROWS = 2048, 512
GIANT, QUICK_GIANT = 100_000, 10_000
GIANT_PERCENT, GIANT_MEMORY, EVERY_BLOCK = 5, 4 * 2**30, 7
"""Of the giant's rows that are run, bytes it may take, and blocks there of which one is written."""
SQUARE_PX = 40
BRIGHT, DARK, SHADES = 1500, 400, 32
OURS, RIVAL = "satseg, threshold model", "rasterio, torch and shapes, scene in memory"
UNET, SPARSE = "satseg, default UNet", "satseg, 1 x 1 convolution to 10 classes"
MOST_BYTES = 1.5 * 2**30
SAMPLE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run told.

    Parameters
    ----------
    features : int
    start, peak, reckoned : int
        Bytes: after imports, at most, and as satseg said beforehand (0: it did not).
    samples : list of (seconds, bytes)
        Resident size over time.
    steps : list of (seconds, CPU-seconds, share)
        When which share of the rows, 0..1, was done.
    """

    features: int
    start: int
    peak: int
    reckoned: int
    samples: list[tuple[float, int]]
    steps: list[tuple[float, float, float]]


def transform() -> Affine:
    """Return the place of every scene."""
    return Affine(0.5, 0, 300_000, 0, -0.5, 5_700_000)


def write_squares(path: Path, height: int, width: int) -> None:
    """Write one bright square in each block of a shaded ground, a row of blocks at a time."""
    with _created(path, height, width) as out:
        ground = DARK + np.arange(width) // 16 % SHADES
        for top in range(0, height, TILE):
            strip = np.broadcast_to(ground, (len(NAMES), min(TILE, height - top), width)).astype(np.uint16)
            for left in range(0, width - SQUARE_PX, TILE):
                strip[:, 10 : 10 + SQUARE_PX, left + top % 97 : left + top % 97 + SQUARE_PX] = BRIGHT
            out.write(strip, window=Window(0, top, width, strip.shape[1]))


def squares_in(height: int, width: int) -> int:
    """Return how many squares `write_squares` draws whole: sizes are chosen so that none is cut."""
    return len(range(0, height, TILE)) * len(range(0, width - SQUARE_PX, TILE))


def write_sparse(path: Path, side: int) -> None:
    """Write a file of holes, with blocks of patches scattered over its first rows."""
    from benchmarks.rivals import patches

    block = patches(np.random.default_rng(0), TILE, TILE)
    with _created(path, side, side, SPARSE_OK=True, BIGTIFF="YES") as out:
        tops = range(0, side * GIANT_PERCENT // 100, TILE)
        for number, (top, left) in enumerate(product(tops, range(0, side - TILE, TILE))):
            if number % EVERY_BLOCK == 0:
                out.write(block, window=Window(left, top, TILE, TILE))


def _created(path: Path, height: int, width: int, **options: Any) -> Any:
    out = rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=len(NAMES), dtype="uint16", crs="EPSG:32633",
        transform=transform(), tiled=True, blockxsize=TILE, blockysize=TILE, compress="deflate", predictor=2,
        interleave="pixel", NUM_THREADS="ALL_CPUS", **options,
    )  # fmt: skip
    out.descriptions = NAMES
    return out


def run_rival(scene: Path, output: Path) -> int:
    """Detect as a plain script does; return the number of features."""
    import geopandas
    import torch
    from rasterio.features import shapes

    model = threshold_model()
    with rasterio.open(scene) as dataset:
        image, transform, crs = dataset.read(), dataset.transform, dataset.crs
    normal = model.card.normalization.apply(image, np.ones(image.shape[1:], bool))
    scores = np.zeros((1, *image.shape[1:]), np.float32)
    with torch.inference_mode():
        for row in range(0, image.shape[1], TILE):
            for col in range(0, image.shape[2], TILE):
                rows, cols = slice(row, row + TILE), slice(col, col + TILE)
                logits = model.network(torch.from_numpy(normal[None, :, rows, cols]))
                scores[:, rows, cols] = logits.sigmoid()[0].numpy()
    mask = (scores[0] >= 0.5).astype(np.uint8)
    outlines = [{"geometry": shape, "properties": {}} for shape, _ in shapes(mask, mask > 0, 4, transform)]
    geopandas.GeoDataFrame.from_features(outlines, crs=crs).to_file(output)
    return len(outlines)


def threshold_model() -> Model:
    """Return a model whose class is where the first band is bright: one filter, no neighbours."""
    import torch

    from satseg.learning.networks.unet import UNet, UNetConfig

    network = UNet(UNetConfig(bands=len(NAMES), classes=1, width=1, depth=1, convs_per_level=1, norm="none")).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        network.encoder[0][0].weight[0, 0, 1, 1] = 1.0
        network.head.weight[:] = 10.0
        network.head.bias[:] = -5.0
    return _model(network, 1)


def untrained_model() -> Model:
    """Return the default UNet with 8 classes as training starts with it where they are rare: it finds nothing."""
    import torch

    from satseg.learning.networks.unet import UNet, default_config

    torch.manual_seed(0)
    return _model(UNet(default_config(len(NAMES), 8), prior=0.01).eval(), 8)


def _model(network: Any, classes: int) -> Model:
    import torch

    from satseg.imagery.normalization import Normalization
    from satseg.learning.card import BandCard, ModelCard
    from satseg.learning.networks.architectures import architecture_of
    from satseg.learning.networks.model import Model
    from satseg.specs import ClassItem

    levels = ((level,) * len(NAMES) for level in (float(DARK), float(BRIGHT - DARK), 0.0, 2047.0))
    card = ModelCard(
        architecture=architecture_of(network),
        bands=tuple(BandCard(name=name) for name in NAMES),
        normalization=Normalization(NAMES, *levels),
        classes=tuple(ClassItem(name=f"class{i}", id=i + 1, color="#336699") for i in range(classes)),
        halo=network.halo,
        stride=network.stride,
    )
    return Model(card, network, torch.device("cpu"))


def sparse_model() -> Model:
    """Return the null model of `benchmarks.rivals`, for which holes are of no class."""
    from benchmarks.rivals import null_model

    return null_model(ground=False)


MODELS: dict[str, Callable[[], Model]] = {OURS: threshold_model, UNET: untrained_model, SPARSE: sparse_model}


def child(case: str, scene: str, rows: str) -> None:
    """Run one case on the first rows in this process, and print what `Measured` holds."""
    import geopandas  # noqa: F401  # what all cases import counts as the start, not as their work
    import torch

    from satseg import detect_to_file

    MODELS.get(case, threshold_model)()
    torch.set_num_threads(1)
    samples: list[tuple[float, int]] = []
    steps, told, start, cpu = [(0.0, 0.0, 0.0)], [0], peak_bytes(), time.process_time()
    with tempfile.TemporaryDirectory(dir=Path(scene).parent) as name, sampled(samples) as clock:
        output = Path(name) / "found.gpkg"
        if case == RIVAL:
            count = run_rival(Path(scene), output)
        else:
            with rasterio.open(scene) as dataset:
                left, _, right, top = dataset.bounds
                bounds = left, top - float(rows) * dataset.res[1], right, top
            found = detect_to_file(
                MODELS[case](), scene, output, mask=output.with_suffix(".tif"), bounds=bounds,
                max_memory=GIANT_MEMORY if case == SPARSE else None,
                progress=lambda _, done, total, __: steps.append((clock(), time.process_time() - cpu, done / total)),
                announce=lambda estimate: told.append(estimate.memory_bytes),
            )  # fmt: skip
            count = sum(found.values())
    figures = {"features": count, "start": start, "peak": peak_bytes(), "reckoned": told[-1]}
    print(json.dumps({**figures, "samples": samples, "steps": steps}))


@contextmanager
def sampled(samples: list[tuple[float, int]]) -> Iterator[Callable[[], float]]:
    """Add the resident size to `samples` again and again; yields the clock."""
    from satseg.learning.machine import resident_bytes

    begun, ended = time.perf_counter(), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            samples.append((time.perf_counter() - begun, resident_bytes()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: time.perf_counter() - begun
    finally:
        ended.set()
        thread.join()


def peak_bytes() -> int:
    """Return the largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_child(*arguments: object) -> str:
    """Run this module with `arguments` in a process of its own; return the last line it prints."""
    # A process inherits the peak of the one that started it, so this one stays small: no torch, no strips here.
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return done.stdout.splitlines()[-1] if done.stdout else ""


def measured(case: str, scene: Path, rows: int, squares: int | None = None) -> Measured:
    """Return what `child` prints for `case` on the first rows of `scene`, where so many squares must be found."""
    run = Measured(**json.loads(in_child("--child", case, scene, rows)))
    if squares not in (None, run.features):
        raise RuntimeError(f"{case} found {run.features} squares of {squares}")
    return run


def scene_of(folder: Path, height: int, width: int) -> Path:
    """Return a scene with squares; written once, by a process of its own."""
    path = folder / f"{height}x{width}.tif"
    if not path.exists():
        in_child("--write", path, height, width)
    return path


def seconds_at(run: Measured, share: float) -> tuple[float, float]:
    """Return the wall and CPU-seconds at which `share` of the rows was done, between the steps that were told."""
    wall, cpu, shares = zip(*run.steps, strict=True)
    return float(np.interp(share, shares, wall)), float(np.interp(share, shares, cpu))


def report_peaks(folder: Path, quick: bool, runs: dict[str, Measured]) -> Report:
    """Measure large and growing scenes; what the picture shows of them goes into `runs`."""
    side, heights = (QUICK_LARGE, QUICK_HEIGHTS) if quick else (LARGE, HEIGHTS)
    report = Report(
        "Peak memory of detect_to_file",
        f"{len(NAMES)} bands uint16, a bright square in each {TILE} pixels; polygons and mask written; one torch "
        "thread, one process per run, one run each. Reckoned is what satseg said before it started.",
        ("case", "rows x columns", "seconds", "peak MiB", "of it above imports", "reckoned MiB"),
        ("torch", "geopandas"),
    )

    def row(case: str, height: int, width: int, rows: int) -> Measured:
        squares = None if case == UNET else squares_in(height, width)
        run = measured(case, scene_of(folder, height, width), rows, squares)
        told = run.reckoned / 2**20 if run.reckoned else "-"
        sizes = run.peak / 2**20, (run.peak - run.start) / 2**20, told
        report.rows.append((case, f"{rows} x {width}", run.samples[-1][0], *sizes))
        return run

    large = row(OURS, side, side, side)
    tall = row(OURS, 2 * side, side, 2 * side)
    unet = row(UNET, side, side, QUICK_UNET_ROWS if quick else UNET_ROWS)
    for height, case in product(heights, (OURS, RIVAL)):
        row(case, height, NARROW, height)
    runs[f"{side} x {side}, threshold model"], runs[f"{2 * side} x {side}, threshold model"] = large, tall
    runs[f"{side} wide, top rows, default UNet"] = unet
    gib = {name: run.peak / 2**30 for name, run in (("threshold model", large), ("default UNet", unet))}
    for name, peak in gib.items():
        goal = Goal(f"{side} pixels wide, {name}: peak in GiB", peak, MOST_BYTES / 2**30, at_most=True)
        report.goals.append(goal)
    report.goals.append(Goal("peak at twice the height / peak", tall.peak / large.peak, 1.05, at_most=True))
    return report


def report_giant(folder: Path, quick: bool, runs: dict[str, Measured]) -> Report:
    """Measure the top of a giant that is mostly holes."""
    side = QUICK_GIANT if quick else GIANT
    scene = folder / "sparse.tif"
    in_child("--write", scene, side, 0)
    rows = side * GIANT_PERCENT // 100
    run = measured(SPARSE, scene, rows)
    runs[f"{side} x {side}, first {GIANT_PERCENT} %, 1 x 1 convolution"] = run
    report = Report(
        "A giant over time",
        f"{side} x {side} pixels, {len(NAMES)} bands uint16, of which the first {GIANT_PERCENT} % are run: "
        f"{side * rows / 1e6:.0f} MPix to 10 classes, {run.features} polygons, mask and polygons written, one torch "
        f"thread, --max-memory {GIANT_MEMORY / 2**30:.0f} GiB.",
        ("done of the giant", "wall s", "CPU s", "CPU s for this percent", "peak MiB so far"),
        ("torch", "pyogrio"),
    )
    marks = [seconds_at(run, percent / GIANT_PERCENT) for percent in range(GIANT_PERCENT + 1)]
    peaks = [max((size for at, size in run.samples if at <= wall), default=run.start) for wall, _ in marks]
    paces = [after - before for (_, before), (_, after) in pairwise(marks)]
    for percent in range(1, GIANT_PERCENT + 1):
        report.rows.append((f"{percent} %", *marks[percent], paces[percent - 1], peaks[percent] / 2**20))
    peak = max(run.peak, peaks[-1])
    report.goals += [
        Goal("CPU time of the dearest / cheapest percent", max(paces) / min(paces), 1.2, at_most=True),
        Goal("peak over the run / peak by the second percent", peak / peaks[2], 1.05, at_most=True),
        Goal("peak in GiB", peak / 2**30, GIANT_MEMORY / 2**30, at_most=True),
    ]
    report.notes.append(f"Reckoned beforehand: {run.reckoned / 2**20:.0f} MiB. The last sample came after publishing.")
    return report


def draw(runs: dict[str, Measured]) -> None:
    """Draw resident sizes over time into `PICTURE`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for name, run in runs.items():
        seconds, sizes = zip(*run.samples, strict=True)
        axes.plot(seconds, np.array(sizes) / 2**30, label=name, linewidth=1)
    axes.set(xlabel="seconds", ylabel="resident GiB", ylim=(0, None), xlim=(0, None))
    axes.legend(fontsize="small", loc="lower right")
    figure.savefig(PICTURE, dpi=90)


def main() -> None:
    """Measure and print."""
    options = parse(
        __doc__,
        child={"nargs": 3, "metavar": ("CASE", "SCENE", "ROWS")},
        write={"nargs": 3, "metavar": ("SCENE", "ROWS", "COLUMNS")},
    )
    if options.child:
        child(*options.child)
        return
    if options.write:
        path, rows, columns = Path(options.write[0]), *map(int, options.write[1:])
        write_squares(path, rows, columns) if columns else write_sparse(path, rows)
        return
    runs: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as name:
        texts = []
        for part in (report_peaks, report_giant):
            texts.append(part(Path(name), options.quick, runs).text())
            print(texts[-1], flush=True)
    if options.save:
        (RESULTS / "memory.md").write_text("\n".join([*texts, f"![over time]({PICTURE.name})\n"]), encoding="utf-8")
        draw(runs)


if __name__ == "__main__":
    main()
