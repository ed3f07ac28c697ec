"""From a scene to a file of polygons, against the network alone and against a plain script.

The network is satseg's default UNet, trained for a moment so that its masks look like masks. "Forward
alone" is that network on the very tiles that detection reads, already normalised and in memory: what is
left of 1 is all that reading, normalising, thresholding, writing, outlining and saving cost. The plain
script does what tutorials do with rasterio, torch and geopandas, on the same tiles. One torch thread, so
that CPU-seconds are work and not waiting. Run as ``python -m benchmarks.chain``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import torch
from rasterio.features import shapes
from rasterio.windows import Window

from benchmarks.timing import Cost, Costs, Goal, Report, Run, interleave, measure, parse, rounded
from satseg import Model, Scene, detect, load_model, open_scene, train
from satseg.grid import overlap, slices
from satseg.imagery.tiling import plan_tiles
from satseg.learning.inference import predict_tiles
from satseg.synthetic.scene import SYNTHETIC_CLASSES, make_scene, write_scene

SIDE, QUICK_SIDE = 2048, 1024
PLAIN_TILE = 1024
"""Divides both sides: the plain script computes as many pixels as satseg, which trims tiles at the edges."""
MINUTES, QUICK_MINUTES = 2.0, 0.3
FORWARD, SCORES = "forward alone", "satseg, scores of every tile"
RUNS: dict[str, Run] = {}
"""What this process has been prepared for."""
OURS, PLAIN = "satseg detect to GeoPackage", "plain script to GeoPackage"


def trained(folder: Path, minutes: float) -> Path:
    """Return the file of a default model trained on a small scene."""
    data = write_scene(make_scene(1), folder, stem="learn")
    file = folder / "model.safetensors"
    train([data], output=file, minutes=minutes, classes=SYNTHETIC_CLASSES, device="cpu")
    return file


def save_inputs(model: Model, scene: Scene, folder: Path) -> list[tuple[int, ...]]:
    """Save what a detection feeds the network, (1, C, H, W) float32 each; return the shapes."""
    images: list[torch.Tensor] = []
    hook = model.network.register_forward_pre_hook(lambda _, given: images.append(given[0].clone()))
    for _ in predict_tiles(model, scene):
        pass
    hook.remove()
    for number, image in enumerate(images):
        np.save(folder / f"input{number}.npy", image.numpy())
    return [tuple(image.shape) for image in images]


@torch.inference_mode()
def forward(model: Model, images: list[torch.Tensor]) -> None:
    """Run the network, and nothing else."""
    for image in images:
        model.network(image)


@torch.inference_mode()
def plain_script(model: Model, path: Path, output: Path) -> int:
    """Detect with rasterio, torch and geopandas alone; return the number of polygons."""
    grid = open_scene(path).grid
    with rasterio.open(path) as dataset:
        mask = np.zeros((len(model.classes), *dataset.shape), np.uint8)
        for tile in plan_tiles(grid, tile=PLAIN_TILE, halo=model.halo, align=model.stride):
            image = read_padded(dataset, tile.read)
            normal = model.card.normalization.apply(image, (image != 0).any(axis=0))
            scores = model.network(torch.from_numpy(normal)[None]).sigmoid()[0].numpy()
            kept = scores[:, *slices(tile.keep, tile.read)]
            levels = np.array(list(model.thresholds.values()), np.float32)[:, None, None]
            mask[:, *slices(tile.keep, grid.window)] = kept >= levels
        mask[:, (dataset.read() == 0).all(axis=0)] = 0
        transform, crs = dataset.transform, dataset.crs
    features = [
        {"geometry": outline, "properties": {"class_name": name}}
        for name, plane in zip(model.classes, mask, strict=True)
        for outline, _ in shapes(plane, plane > 0, 4, transform)
    ]
    geopandas.GeoDataFrame.from_features(features, crs=crs).to_file(output)
    return len(features)


def read_padded(dataset: rasterio.DatasetReader, window: Window) -> np.ndarray:
    """Return the pixels of a window that may overhang the file; 0 outside."""
    image = np.zeros((dataset.count, window.height, window.width), dataset.dtypes[0])
    inside = overlap(window, Window(0, 0, dataset.width, dataset.height))
    image[:, *slices(inside, window)] = dataset.read(window=inside)
    return image


def prepare(case: str, model_file: Path, path: Path) -> None:
    """Make this process ready for `case` alone."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, folder = load_model(model_file, "cpu"), path.parent
    if case == FORWARD:
        arrays = [np.load(file) for file in sorted(folder.glob("input*.npy"))]
        images = [torch.from_numpy(array).contiguous(memory_format=torch.channels_last) for array in arrays]
        RUNS[case] = lambda: forward(model, images)
    elif case == SCORES:
        RUNS[case] = lambda: sum(1 for _ in predict_tiles(model, open_scene(path)))
    elif case == OURS:
        RUNS[case] = lambda: len(detect(model, path, output=folder / "o.gpkg", min_area=0.0, overwrite=True))
    else:
        RUNS[case] = lambda: plain_script(model, path, folder / "p.gpkg")


def timed(case: str) -> Cost:
    """Run `case` in the process that was prepared for it."""
    return measure(RUNS[case])


def measured(options: argparse.Namespace) -> tuple[Costs, str]:
    """Return the costs of every case, and what they were run on, in words."""
    side, rounds = (QUICK_SIDE, 3) if options.quick else (SIDE, 7)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        file = Path(options.model or trained(folder, QUICK_MINUTES if options.quick else MINUTES))
        model = load_model(file, "cpu")
        path, _ = write_scene(make_scene(2, height=side, width=side), folder, stem="search")
        shapes_read = save_inputs(model, open_scene(path), folder)
        found = len(detect(model, path, min_area=0.0))
        cases: dict[str, Run] = {}
        for case in (FORWARD, SCORES, OURS, PLAIN):
            # Each in its own process: satseg tunes the allocator, which would change the others' costs.
            pool = ProcessPoolExecutor(1, get_context("spawn"), prepare, (case, file, path))
            stack.enter_context(pool)
            cases[case] = partial(lambda pool, case: pool.submit(timed, case).result(), pool, case)
        costs = interleave(cases, rounds=rounds)
    read = sum(shape[-1] * shape[-2] for shape in shapes_read) / side**2
    return costs, (
        f"{side} x {side} pixels, {len(model.bands)} bands uint16 (generated), {len(model.classes)} "
        f"classes, default UNet in float32 on the CPU, {len(shapes_read)} tiles of at most "
        f"{max(map(max, shapes_read))} pixels ({read:.2f} times the scene, halos included); {found} polygons. "
        f"{rounded(rounds)}"
    )


def main() -> None:
    """Measure and print."""
    model = {"help": "a model file of satseg, in place of one trained for the occasion"}
    options = parse(__doc__, model=model)
    warnings.simplefilter("ignore")
    os.environ.setdefault("LIGHTNING_DISABLE_TIPS", "1")
    costs, method = measured(options)
    header = ("case", "CPU s", "CPU time / forward", "forward / CPU time", "forward / wall time")
    report = Report("Scene to polygons", method, header, ("torch", "geopandas", "pyogrio"))
    for name in costs.runs:
        shares = costs.ratio(FORWARD, name), costs.ratio(FORWARD, name, "wall")
        report.rows.append((name, costs.median(name), costs.ratio(name, FORWARD), *shares))
    report.goals.append(Goal("forward alone / detect, CPU time", costs.ratio(FORWARD, OURS).median, 0.9))
    outside = (costs.median(OURS) - costs.median(FORWARD)) / (costs.median(PLAIN) - costs.median(FORWARD))
    report.notes.append(
        f"Outside the network satseg takes {outside:.2f} times the plain script's CPU time. The script keeps "
        "the scene's masks in memory and gives features neither score nor area; satseg streams all through "
        "files."
    )
    report.publish(options, "chain")


if __name__ == "__main__":
    main()
