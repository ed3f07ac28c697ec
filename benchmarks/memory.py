"""Peak memory of a detection as the scene grows taller, against a script that holds the scene in memory.

Every height has a process of its own, whose peak resident size is what the kernel says it was. The scene
holds bright squares, as many in a tall one as in a short one, for features are the one thing that `detect`
returns whole; the model is a single pixel's threshold, so that nothing but the chain takes memory. The
rival is the usual script: read the scene, run the network in tiles, outline with `rasterio.features.shapes`.
Run as ``python -m benchmarks.memory``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from benchmarks.timing import Goal, Report, parse

if TYPE_CHECKING:  # a child's import: it would count as memory of this process, which its children inherit
    from satseg.learning.bundle import Model

ROOT = Path(__file__).parents[1]
WIDTH, TILE = 2048, 512
NAMES = ("coastal", "blue", "green", "yellow", "red", "red_edge", "nir1", "nir2")
HEIGHTS, QUICK_HEIGHTS = (2048, 4096, 8192, 16384), (1024, 2048)
SQUARES, SQUARE_PX = 16, 40
BRIGHT, DARK, NOISE = 1500, 400, 40
OURS, RIVAL = "satseg detect", "rasterio, torch and shapes, scene in memory"


def write_scene(path: Path, height: int) -> None:
    """Write `SQUARES` bright squares on a noisy ground, strip by strip."""
    rng = np.random.default_rng(height)
    step = height // SQUARES
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=WIDTH, count=len(NAMES), dtype="uint16",
        crs="EPSG:32633", transform=Affine(0.5, 0, 300_000, 0, -0.5, 5_700_000), tiled=True,
        blockxsize=TILE, blockysize=TILE, compress="deflate", predictor=2, interleave="pixel",
    ) as out:  # fmt: skip
        out.descriptions = NAMES
        for top in range(0, height, step):
            strip = rng.normal(DARK, NOISE, (len(NAMES), step, WIDTH))
            col = int(rng.integers(0, WIDTH - SQUARE_PX))
            strip[:, 10 : 10 + SQUARE_PX, col : col + SQUARE_PX] = BRIGHT
            out.write(strip.astype(np.uint16), window=Window(0, top, WIDTH, step))


def run_ours(scene: str, output: str) -> int:
    """Detect with satseg; return the number of features."""
    from satseg import detect, open_scene

    return len(detect(threshold_model(), open_scene(scene), output=output))


def run_rival(scene: str, output: str) -> int:
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
            for col in range(0, WIDTH, TILE):
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

    from satseg.imagery.normalization import Normalization
    from satseg.learning.bundle import Model, architecture_of
    from satseg.learning.card import BandCard, ModelCard
    from satseg.learning.unet import UNet, UNetConfig
    from satseg.specs import ClassItem

    config = UNetConfig(bands=len(NAMES), classes=1, width=1, depth=1, convs_per_level=1, norm="none")
    network = UNet(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        network.encoder[0][0].weight[0, 0, 1, 1] = 1.0
        network.head.weight[:] = 10.0
        network.head.bias[:] = -5.0
    levels = ((level,) * len(NAMES) for level in (float(DARK), float(BRIGHT - DARK), 0.0, 2047.0))
    card = ModelCard(
        architecture=architecture_of(network),
        bands=tuple(BandCard(name=name) for name in NAMES),
        normalization=Normalization(NAMES, *levels),
        classes=(ClassItem(name="square", id=1, color="#336699"),),
        halo=network.halo,
        stride=network.stride,
    )
    return Model(card, network, torch.device("cpu"))


def child(case: str, scene: str, output: str) -> None:
    """Run one case in this process, and print how many features and how many bytes it came to."""
    import geopandas  # noqa: F401  # what both cases import counts as the start, not as their work
    import torch

    threshold_model()
    torch.set_num_threads(1)
    start = peak_bytes()
    count = run_rival(scene, output) if case == RIVAL else run_ours(scene, output)
    print(json.dumps({"features": count, "start": start, "peak": peak_bytes()}))


def peak_bytes() -> int:
    """Return the largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measured(case: str, height: int, folder: Path) -> dict[str, int]:
    """Return what `child` prints for `case` on a scene of `height` rows."""
    # A process inherits the peak of the one that started it, so this one stays small: no torch here.
    arguments = ["--child", case, os.fspath(folder / f"{height}.tif"), os.fspath(folder / f"{height}.gpkg")]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    if found["features"] != SQUARES:
        raise RuntimeError(f"{case} found {found['features']} squares of {SQUARES}")
    (folder / f"{height}.gpkg").unlink()
    return found


def main() -> None:
    """Measure and print."""
    options = parse(__doc__, child={"nargs": 3, "metavar": ("CASE", "SCENE", "OUTPUT")})
    if options.child:
        child(*options.child)
        return
    heights = QUICK_HEIGHTS if options.quick else HEIGHTS
    repeats = 1 if options.quick else 3
    peaks: dict[tuple[str, int], list[dict[str, int]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for height in heights:
            write_scene(Path(name) / f"{height}.tif", height)
        for _ in range(repeats):
            for height in heights:
                for case in (OURS, RIVAL):
                    peaks.setdefault((case, height), []).append(measured(case, height, Path(name)))
    report = Report(
        "Peak memory of detect",
        f"Scenes {WIDTH} pixels wide, {len(NAMES)} bands uint16, {SQUARES} features in each; one torch "
        f"thread, one process per run. Medians of {repeats} runs.",
        ("case", "rows", "peak MB", "of it above imports", f"peak / at {heights[0]} rows"),
        ("torch", "geopandas"),
    )
    for case in (OURS, RIVAL):
        least = median(peaks[case, heights[0]], "peak")
        for height in heights:
            peak, start = (median(peaks[case, height], key) for key in ("peak", "start"))
            report.rows.append((case, height, peak / 1e6, (peak - start) / 1e6, peak / least))
    ours = [median(peaks[OURS, height], "peak") for height in heights]
    change = max(ours) / min(ours)
    report.goals.append(Goal("satseg's peak, greatest / least over heights", change, 1.05, at_most=True))
    report.publish(options, "memory")


def median(runs: list[dict[str, int]], key: str) -> float:
    """Return the median of one figure over repeated runs."""
    return float(np.median([run[key] for run in runs]))


if __name__ == "__main__":
    main()
