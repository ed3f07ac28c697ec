"""The network alone: a model as a user of torch runs it, against every engine of satseg.

Two networks: satseg's default UNet, and a ResNet-18 UNet of segmentation-models-pytorch, which satseg
knows nothing about. Both are trained for a moment, so that their masks look like masks, and run on tiles of
another generated scene, normalised and in memory. "eager" is the network in evaluation in torch's usual
memory format, as tutorials run it. An engine is as fast as it is and as right as its masks: the table has
both, the goals want both. Each engine has a process and all cores. Run as ``python -m benchmarks.inference``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import Cost, Costs, Goal, Report, Run, interleave, measure, parse, rounded
from satseg import train
from satseg.imagery.labels import rasterize
from satseg.learning.card import Architecture
from satseg.learning.networks.model import Model, load_model
from satseg.learning.networks.runtimes import agreement, make_runtime
from satseg.specs import ClassItem
from satseg.synthetic.scene import SYNTHETIC_CLASSES, SyntheticScene, make_scene, write_scene

EAGER = "eager float32"
ENGINES = {
    "torch float32": ("torch", False),
    "onnx float32": ("onnx", False),
    "openvino float32": ("openvino", False),
    "torch bfloat16": ("torch", True),
    "openvino bfloat16": ("openvino", True),
}
TILE, QUICK_TILE = 1024, 256
EDGE_PX = 448
"""Width of the last tile: the size changes from call to call, as at a scene's edge. Divided by both strides."""
MINUTES, QUICK_MINUTES = 2.0, 0.2
CHIP, BATCH, RATE = 256, 4, 2e-3
OURS, THEIRS = "default UNet", "ResNet-18 UNet"
RESNET_CLASSES = (*SYNTHETIC_CLASSES, "anything", "nothing")
MODEL, WEIGHTS = "model.safetensors", "resnet18.pt"
PREPARED: dict[str, tuple[Model, list[Tensor], Callable[[Tensor], Tensor]]] = {}
"""What this process has been prepared for."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How fast and how right one engine was.

    Parameters
    ----------
    name : str
    costs : Costs
        Of all engines on one network.
    wrong : float
        Pixels and classes, of 10,000, whose mask is not the eager network's.
    """

    name: str
    costs: Costs
    wrong: float

    def row(self, network: str) -> tuple[object, ...]:
        """The line of the report's table."""
        gains = (self.costs.ratio(EAGER, self.name), self.costs.ratio(EAGER, self.name, "wall"))
        return (f"{network}, {self.name}", self.costs.median(self.name), *gains, f"{100 - self.wrong / 100:.4f} %")


def resnet_unet() -> nn.Module:
    """The rival's network, without weights."""
    import segmentation_models_pytorch as smp  # a rival that need not be installed to read this file

    network: nn.Module = smp.Unet("resnet18", encoder_weights=None, in_channels=8, classes=len(RESNET_CLASSES))
    return network


def resnet_model(model: Model, network: nn.Module) -> Model:
    """`network` as a model of satseg, with the bands and the normalisation of `model`."""
    classes = tuple(ClassItem(name=name, id=i + 1, color="#336699") for i, name in enumerate(RESNET_CLASSES))
    card = model.card.model_copy(
        update={
            "architecture": Architecture(arguments={"bands": len(model.bands), "classes": len(classes)}),
            "classes": classes,
            "stride": 32,
        }
    )
    return replace(model, card=card, network=network.eval())  # type: ignore[arg-type]  # a stranger, on purpose


def normalised(model: Model, scene: SyntheticScene) -> Tensor:
    """`scene` as the network takes it, (1, C, H, W) float32."""
    raster = scene.raster
    return torch.from_numpy(model.card.normalization.apply(raster.data, raster.valid))[None]


def train_resnet(model: Model, minutes: float) -> nn.Module:
    """A ResNet-18 UNet that has learnt the scene of `model` for `minutes`."""
    torch.manual_seed(0)
    scene = make_scene(1)
    image = normalised(model, scene)[0]
    planes = torch.from_numpy(rasterize(scene.labels, like=scene.raster.grid, classes=SYNTHETIC_CLASSES).data)
    anything = planes.any(dim=0, keepdim=True)
    target = torch.cat([planes, anything, ~anything]).float()
    network = resnet_unet().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    start, spent = time.monotonic(), 0.0
    while spent < 1:
        chips = [_chip(image, target) for _ in range(BATCH)]
        images, masks = (torch.stack(parts) for parts in zip(*chips, strict=True))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        spent = (time.monotonic() - start) / (60 * minutes)
        optimizer.param_groups[0]["lr"] = RATE * max(1 - spent, 0)
    return network.eval()


def _chip(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    row, col = (int(torch.randint(0, size - CHIP + 1, ())) for size in image.shape[-2:])
    place = (..., slice(row, row + CHIP), slice(col, col + CHIP))
    return image[place], target[place]


def save_tiles(model: Model, folder: Path, tile: int) -> list[tuple[int, ...]]:
    """Save what the engines get: two whole tiles and a narrow one of a scene not learnt; return the shapes."""
    image = normalised(model, make_scene(2, height=tile, width=2 * tile + EDGE_PX))
    tiles = image.split([tile, tile, EDGE_PX], dim=-1)
    for number, part in enumerate(tiles):
        np.save(folder / f"tile{number}.npy", part.numpy())
    return [tuple(part.shape) for part in tiles]


def prepare(network: str, name: str, folder: Path, threads: int) -> None:
    """Make this process ready to run `network` on the engine called `name` alone."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    model = load_model(folder / MODEL, "cpu")
    if network == THEIRS:
        unet = resnet_unet()
        unet.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
        model = resnet_model(model, unet)
    model.network.to(memory_format=torch.contiguous_format)
    images = [torch.from_numpy(np.load(file)) for file in sorted(folder.glob("tile*.npy"))]
    if name == EAGER:
        PREPARED[name] = model, images, model.network
        return
    engine, amp = ENGINES[name]
    channels_last = [image.contiguous(memory_format=torch.channels_last) for image in images]
    PREPARED[name] = model, channels_last, make_runtime(model, engine=engine, amp=amp)


@torch.inference_mode()
def timed(name: str) -> Cost:
    """Run every tile once in the process that was prepared for it."""
    _, images, run = PREPARED[name]
    return measure(lambda: [run(image) for image in images])


def wrong_masks(name: str) -> float:
    """Of 10,000 pixels and classes, those whose mask is not the eager network's."""
    model, images, run = PREPARED[name]
    return 0.0 if name == EAGER else 10_000 * (1 - agreement(model, images, run))  # type: ignore[arg-type]


def measured(network: str, folder: Path, rounds: int) -> list[Engine]:
    """Every engine on `network`."""
    names = [EAGER, *ENGINES]
    with ExitStack() as stack:
        pools, cases = {}, dict[str, Run]()
        for name in names:
            given = (network, name, folder, torch.get_num_threads())
            pools[name] = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), prepare, given))
            cases[name] = partial(lambda pool, name: pool.submit(timed, name).result(), pools[name], name)
        costs = interleave(cases, rounds=rounds)
        return [Engine(name, costs, pools[name].submit(wrong_masks, name).result()) for name in names]


def goals(network: str, engines: Sequence[Engine]) -> list[Goal]:
    """What is wanted: 1.7 times the speed with the same masks, 3 times with nearly the same."""
    found: list[Goal] = []
    for kind, gain, wrong in (("float32", 1.7, 1.0), ("bfloat16", 3.0, 50.0)):
        for engine in (item for item in engines if item.name in ENGINES and item.name.endswith(kind)):
            what = f"{network}, {engine.name}"
            found.append(Goal(f"{what}, eager / engine, CPU time", engine.costs.ratio(EAGER, engine.name).median, gain))
            found.append(Goal(f"{what}, masks that differ, of 10,000", engine.wrong, wrong, at_most=True))
    return found


def prepared_files(options: argparse.Namespace, folder: Path) -> tuple[Model, list[tuple[int, ...]]]:
    """Train both networks and save them and the tiles in `folder`; return satseg's model and the tiles' shapes."""
    minutes = QUICK_MINUTES if options.quick else MINUTES
    data = write_scene(make_scene(1), folder, stem="learn")
    train([data], output=folder / MODEL, minutes=minutes, classes=SYNTHETIC_CLASSES, device="cpu")
    model = load_model(folder / MODEL, "cpu")
    torch.save(train_resnet(model, minutes).state_dict(), folder / WEIGHTS)
    return model, save_tiles(model, folder, QUICK_TILE if options.quick else TILE)


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    warnings.simplefilter("ignore")
    os.environ.setdefault("LIGHTNING_DISABLE_TIPS", "1")
    rounds = 3 if options.quick else 7
    with tempfile.TemporaryDirectory() as name:
        model, shapes = prepared_files(options, Path(name))
        results = {network: measured(network, Path(name), rounds) for network in (OURS, THEIRS)}
    sizes = ", ".join(f"{height} x {width}" for *_, height, width in shapes)
    method = (
        f"Tiles of {sizes} pixels, {len(model.bands)} bands, normalised and in memory; {OURS} with "
        f"{len(model.classes)} classes, {THEIRS} with {len(RESNET_CLASSES)}; {torch.get_num_threads()} threads. "
        f"{rounded(rounds)} Same mask: pixels and classes on the same side of their threshold as by the eager network."
    )
    header = ("network, engine", "CPU s", "CPU time, eager / engine", "wall time, eager / engine", "same mask")
    packages = ("torch", "onnx", "onnxruntime", "openvino", "segmentation_models_pytorch")
    report = Report("The network by every engine", method, header, packages)
    for network, engines in results.items():
        report.rows += [engine.row(network) for engine in engines]
        report.goals += goals(network, engines)
    report.notes.append(
        "float32 engines add the same products in another order: masks differ where a logit is within a millionth "
        "or so of its threshold, and one pixel in 10,000 still counts as the same mask."
    )
    report.publish(options, "inference")


if __name__ == "__main__":
    main()
