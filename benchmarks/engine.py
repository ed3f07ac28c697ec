"""From a scene to a mask file and a file of polygons: against the network alone, and against rivals.

First, how much of `detect_to_file` is its network. Two networks, satseg's default UNet and a ResNet-18 UNet that
satseg knows nothing about, are trained for a moment so that their masks look like masks. "Network alone" is
the same runtime on the very tiles that detection reads, normalised and in memory; what is left of 1 is all that
preparing the engine, reading, normalising, thresholding, outlining, writing and keeping a ledger cost.

Second, what a path costs outside its network, where the network is a 1 x 1 convolution (`benchmarks.rivals`):
the CPU time inside the network is taken off. All paths must have found the same polygons.

One torch thread, so that CPU-seconds are work and not waiting; each case has a process of its own, for satseg
tunes the allocator, which would change the others' costs. Run as ``python -m benchmarks.engine``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor, nn

from benchmarks import rivals
from benchmarks.inference import MODEL, RESNET_CLASSES, WEIGHTS, resnet_model, resnet_unet, train_resnet
from benchmarks.reading import read_plain
from benchmarks.timing import RESULTS, Cost, Costs, Goal, Report, Run, interleave, measure, parse, rounded
from satseg import detect_to_file, load_model, train
from satseg.learning.networks.model import Model
from satseg.learning.networks.runtimes import make_runtime
from satseg.synthetic.scene import SYNTHETIC_CLASSES, make_scene, write_scene

RESNET, UNET = "ResNet-18 UNet", "default UNet"
RESNET_HALO = 32
"""As in the rivals' windows: 512 pixels, of which neighbours share 64."""
ENGINES = {
    "torch float32": ("torch", False),
    "torch bfloat16": ("torch", True),
    "openvino bfloat16": ("openvino", True),
}
ALONE, WHOLE = "network alone", "scene to mask and polygons"
SIDE, QUICK_SIDE = 2048, 512
MINUTES, QUICK_MINUTES = 2.0, 0.2
OURS, OURS_SAME = "satseg, tiles of its own choice", "satseg, the rivals' windows"
WINDOWS, QUICK_WINDOWS = 6, 2
GOALS = {"torch float32": 0.95, "bfloat16": 0.85}
OUTSIDE_GOALS = {rivals.PLAIN: 0.5, rivals.TORCHGEO: 0.5, rivals.GEOAI: 0.25}
MAKE_RUNTIME = "satseg.learning.detection.engine.make_runtime"
READY: dict[str, Run] = {}
CLOCKS: dict[str, Clocked] = {}
PREPARING: list[float] = []
"""What this process has been prepared for, its network, and CPU-seconds that each of its engines took to prepare."""


class Clocked(nn.Module):
    """A network, or a runtime of satseg, that notes how long it computes on its thread, and on how many pixels."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.device, self.name = torch.device("cpu"), "clocked"
        self.seconds, self.pixels = 0.0, 0

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        start = time.thread_time()
        logits = self.inner(image)
        self.seconds += time.thread_time() - start
        self.pixels += image.shape[0] * image.shape[-2] * image.shape[-1]
        return logits


@dataclass(frozen=True, slots=True)
class Share:
    """How much of the whole one network is by one engine.

    Parameters
    ----------
    network, engine : str
    costs : Costs
        Of `ALONE` and `WHOLE`.
    preparing : (float, float)
        CPU-seconds that making the engine ready took, first in a process and as it is in each whole; the
        exported graph is kept with the model.
    """

    network: str
    engine: str
    costs: Costs
    preparing: tuple[float, float]

    @property
    def beside_preparing(self) -> float:
        """The network's share of the whole less what making the engine ready took; median over rounds."""
        pairs = zip(self.costs.runs[ALONE], self.costs.runs[WHOLE], strict=True)
        return statistics.median(alone.cpu / (whole.cpu - self.preparing[1]) for alone, whole in pairs)

    @property
    def row(self) -> tuple[object, ...]:
        """The line of the report's table."""
        costs = self.costs
        shares = costs.ratio(ALONE, WHOLE), costs.ratio(ALONE, WHOLE, "wall")
        seconds = costs.median(ALONE), costs.median(WHOLE), *reversed(self.preparing)
        return (f"{self.network}, {self.engine}", *seconds, *shares, self.beside_preparing)


@dataclass(slots=True)
class Recorder:
    """Stands for `make_runtime`: saves what detection feeds the network."""

    folder: Path
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, model: Model, **options: Any) -> Clocked:
        """Return a runtime that saves its input."""
        runtime = make_runtime(model, **options)

        def run(image: Tensor) -> Tensor:
            np.save(self.folder / f"tile{len(self.shapes):04}.npy", image.permute(0, 2, 3, 1).numpy())
            self.shapes.append(tuple(image.shape))
            return runtime(image)

        return Clocked(run)


def trained(folder: Path, minutes: float) -> None:
    """Train both networks on a small scene and save them in `folder`, where they are not there yet."""
    if not (folder / MODEL).exists():
        data = write_scene(make_scene(1), folder, stem="learn", overwrite=True)
        train([data], output=folder / MODEL, minutes=minutes, classes=SYNTHETIC_CLASSES, device="cpu")
    if not (folder / WEIGHTS).exists():
        torch.save(train_resnet(load_model(folder / MODEL, "cpu"), minutes).state_dict(), folder / WEIGHTS)


def model_of(network: str, folder: Path) -> Model:
    """Return the trained model called `network`."""
    model = load_model(folder / MODEL, "cpu")
    if network == UNET:
        return model
    unet = resnet_unet()
    unet.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    model = resnet_model(model, rivals.Stranger(unet, stride=32, halo=RESNET_HALO))
    return replace(model, card=model.card.model_copy(update={"halo": RESNET_HALO, "halo_tolerance": None}))


def detected(model: Model, scene: Path, folder: Path, **options: Any) -> int:
    """Detect into files and return the number of polygons; everything is kept, however small."""
    found = detect_to_file(
        model, scene, folder / "found.gpkg", mask=folder / "mask.tif", min_area=0.0, overwrite=True, **options
    )
    return sum(found.values())


def prepare_share(part: str, network: str, engine: str, models: Path, scene: Path) -> None:
    """Make this process ready for `ALONE` or `WHOLE`; tiles lie beside `scene`, in a folder of the network's name."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, (name, amp) = model_of(network, models), ENGINES[engine]
    if part == WHOLE:
        READY[part] = partial(_whole, model, scene, engine=name, amp=amp)
        return
    arrays = [np.load(file) for file in sorted((scene.parent / network).glob("tile*.npy"))]
    images = [torch.from_numpy(array).permute(0, 3, 1, 2) for array in arrays]
    runtime = make_runtime(model, engine=name, amp=amp)
    READY[part] = lambda: [runtime(image) for image in images]


def _whole(model: Model, scene: Path, **options: Any) -> int:
    """Detect, and note what preparing the engine took."""

    def made(model: Model, **how: Any) -> object:
        start = time.process_time()
        runtime = make_runtime(model, **how)
        PREPARING.append(time.process_time() - start)
        return runtime

    with mock.patch(MAKE_RUNTIME, made), tempfile.TemporaryDirectory(dir=scene.parent) as folder:
        return detected(model, scene, Path(folder), **options)


def timed(name: str) -> Cost:
    """Run the case that this process was prepared for."""
    return measure(READY[name])


def preparing() -> tuple[float, float]:
    """Return what preparing the engine took the first time in this process, and the median of the others."""
    return PREPARING[0], statistics.median(PREPARING[1:])


@contextmanager
def processes() -> Iterator[Callable[..., ProcessPoolExecutor]]:
    """Yield a function that starts a process and prepares it; all of them end with the block."""
    with ExitStack() as stack:
        yield lambda *given: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), given[0], given[1:]))


def shares(options: argparse.Namespace, folder: Path) -> Report:
    """Measure how much of the whole is the network."""
    side, rounds = (QUICK_SIDE, 2) if options.quick else (SIDE, 5)
    models = Path(options.models or folder)
    trained(models, QUICK_MINUTES if options.quick else MINUTES)
    scene, _ = write_scene(make_scene(2, height=side, width=side), folder, stem="search")
    report = Report(
        "Scene to mask and polygons: how much of it is the network",
        f"{side} x {side} pixels, 8 bands uint16 (generated), on the CPU with one torch thread; "
        f"{len(SYNTHETIC_CLASSES)} classes, {len(RESNET_CLASSES)} for the {RESNET}. Preparing is making a network "
        "ready for its engine, once per run whatever the size of the scene; the first in a process exports a graph "
        f"for OpenVINO. {rounded(rounds)}",
        ("network, engine", "network CPU s", "whole CPU s", "of it preparing", "first preparing",
         "network / whole, CPU time", "network / whole, wall time", "CPU time without preparing"),
        ("torch", "openvino", "segmentation_models_pytorch", "pyogrio"),
    )  # fmt: skip
    for network in (RESNET, UNET):
        recorder = Recorder(folder / network)
        recorder.folder.mkdir()
        with mock.patch(MAKE_RUNTIME, recorder):
            found = detected(model_of(network, models), scene, recorder.folder)
        work = sum(rows * cols for *_, rows, cols in recorder.shapes) / side**2
        report.notes.append(
            f"{network}: {len(recorder.shapes)} tiles of at most {max(max(shape[-2:]) for shape in recorder.shapes)} "
            f"pixels, {work:.2f} pixels through the network for each of the scene's; {found} polygons."
        )
        measured = [share(network, engine, models, scene, rounds) for engine in ENGINES]
        report.rows += [item.row for item in measured]
        report.goals += share_goals(network, measured)
    places = [Window(col, row, 512, 512) for row in range(0, side, 512) for col in range(0, side, 512)]
    decoding = statistics.median(measure(lambda: read_plain(scene, places)).cpu for _ in range(rounds))
    report.notes.append(f"Decoding each block of the scene once, by a plain rasterio loop, costs {decoding:.2f} CPU-s.")
    return report


def share(network: str, engine: str, models: Path, scene: Path, rounds: int) -> Share:
    """Measure the network alone and the whole, in turns."""
    with processes() as start:
        pools = {part: start(prepare_share, part, network, engine, models, scene) for part in (ALONE, WHOLE)}
        cases = {part: partial(_in, pool, part) for part, pool in pools.items()}
        costs = interleave(cases, rounds=rounds)
        return Share(network, engine, costs, pools[WHOLE].submit(preparing).result())


def _in(pool: ProcessPoolExecutor, name: str) -> Cost:
    return pool.submit(timed, name).result()


def share_goals(network: str, measured: list[Share]) -> list[Goal]:
    """Float32 in torch, and of the engines in bfloat16 the one with the fastest network."""
    found = []
    for kind, limit in GOALS.items():
        item = min((m for m in measured if m.engine.endswith(kind)), key=lambda m: m.costs.median(ALONE))
        value = item.costs.ratio(ALONE, WHOLE).median
        found.append(Goal(f"{network}, {item.engine}: network / whole, CPU time", value, limit))
    return found


def prepare_path(path: str, scene: Path) -> None:
    """Make this process ready for one of the paths with the null network."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, folder = rivals.null_model(), _place(path, scene)
    folder.mkdir()
    if path in rivals.PATHS:
        CLOCKS[path] = Clocked(rivals.null_network())
        given = model, scene, folder / "mask.tif", folder / "found.gpkg"
        READY[path] = lambda: rivals.PATHS[path](CLOCKS[path], *given)
        return
    tile = rivals.STRIDE if path == OURS_SAME else None

    def ours() -> int:
        def clocked(model: Model, **options: Any) -> Clocked:
            return CLOCKS.setdefault(path, Clocked(make_runtime(model, **options)))

        with mock.patch(MAKE_RUNTIME, clocked):
            return detected(model, scene, folder, tile=tile)

    READY[path] = ours


def timed_outside(path: str) -> tuple[Cost, int]:
    """Run the path of this process; its CPU time is what it took outside the network. And its pixels."""
    before = CLOCKS[path].seconds if path in CLOCKS else 0.0
    whole = measure(READY[path])
    clock = CLOCKS[path]
    pixels, clock.pixels = clock.pixels, 0
    return Cost(whole.cpu - (clock.seconds - before), whole.wall), pixels


def found_by(path: str, scene: Path) -> tuple[float, ...]:
    """Return number and area of the polygons that `path` wrote last."""
    return tuple(rivals.polygons_of(_place(path, scene) / "found.gpkg"))


def _place(path: str, scene: Path) -> Path:
    """Where `path` writes."""
    return scene.parent / "".join(character for character in path if character.isalpha())


def outside(options: argparse.Namespace, folder: Path) -> Report:
    """Measure what each path costs outside its network."""
    windows, rounds = (QUICK_WINDOWS, 2) if options.quick else (WINDOWS, 5)
    side = rivals.side_of(windows)
    scene = folder / "patches.tif"
    rivals.write_patches(scene, side, side)
    missing = [path for path in rivals.PATHS if not rivals.installed(path)]
    paths = [OURS, OURS_SAME, *(path for path in rivals.PATHS if path not in missing)]
    pixels: dict[str, int] = {}
    with processes() as start:
        pools = {path: start(prepare_path, path, scene) for path in paths}

        def run(path: str) -> Cost:
            cost, pixels[path] = pools[path].submit(timed_outside, path).result()
            return cost

        costs = interleave({path: partial(run, path) for path in paths}, rounds=rounds)
        found = {path: pools[path].submit(found_by, path, scene).result() for path in paths}
    if len(set(found.values())) != 1:
        raise RuntimeError(f"the paths found different polygons: {found}")
    report = Report(
        "Scene to mask and polygons: what is not the network",
        f"A 1 x 1 convolution in place of the network, 8 bands uint16 to {len(rivals.CLASSES)} classes; {side} x "
        f"{side} pixels; windows of {rivals.WINDOW} pixels of which neighbours share {rivals.OVERLAP}; one torch "
        "thread. CPU time without what the convolution took; work is pixels through it for each of the scene's. "
        f"All paths found the same {found[OURS][0]:.0f} polygons. {rounded(rounds)}",
        ("path", "CPU s / MPix", "CPU time, same windows / path", "CPU time, own tiles / path", "wall s / MPix",
         "wall time, same windows / path", "work"),
        ("torch", "torchgeo", "geoai-py", "geopandas", "pyogrio"),
    )  # fmt: skip
    million = side**2 / 1e6
    for path in (OURS_SAME, OURS, *rivals.PATHS):
        if path in missing:
            report.rows.append((path, "not installed", "", "", "", "", ""))
            continue
        same, own, wall = costs.ratio(OURS_SAME, path), costs.ratio(OURS, path), costs.ratio(OURS_SAME, path, "wall")
        seconds = costs.median(path) / million, costs.median(path, "wall") / million
        work = pixels[path] / side**2
        report.rows.append((path, f"{seconds[0]:.3f}", same, own, f"{seconds[1]:.3f}", wall, work))
        if path in OUTSIDE_GOALS:
            what = f"outside the network, {OURS_SAME} / {path}, CPU time"
            report.goals.append(Goal(what, same.median, OUTSIDE_GOALS[path], at_most=True))
    report.notes.append(
        "The rivals hold the masks of the whole scene in memory and give polygons neither score nor area; geoai-py's "
        "mask is one band. satseg streams all through files and keeps a ledger, so that a killed run can go on."
    )
    return report


def main() -> None:
    """Measure and print."""
    options = parse(
        __doc__,
        models={"help": "folder of models trained by an earlier run; they are made there where it has none"},
        only={"choices": ("shares", "outside"), "help": "measure only one of the two"},
    )
    warnings.simplefilter("ignore")
    os.environ.setdefault("LIGHTNING_DISABLE_TIPS", "1")
    texts = []
    for name, part in (("shares", shares), ("outside", outside)):
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                texts.append(part(options, Path(folder)).text())
            print(texts[-1], flush=True)
    if options.save and options.only is None:
        (RESULTS / "engine.md").write_text("\n".join(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
