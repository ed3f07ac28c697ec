"""How rivals of satseg train: five recipes, each a plain loop or its own library, cut by CPU time.

All see the scenes at 0.30 m (`benchmarks.grounds`), start from random weights, and score a whole scene at once.
What is done before `Clock.begin` costs them nothing: imports, files at 0.30 m, tiles, building the network.
`smp_plain`, `torchgeo` and `geoai` are what their documentation shows,
`smp_fast` is what an expert would write with the same network, `seed2017` is arXiv 1706.06169.

Departures, all in their favour: ResNet-18 for ResNet-50 in `torchgeo`, whose plateau scheduler (ten epochs without
gain) never acts in minutes and is left out together with the validation it needs; batch 16 for 128 in `seed2017`,
which would make about twenty steps in ten minutes, windows of 512 in prediction, and no buffer of 3 m. Rejected:
weights trained elsewhere, which would compare what was downloaded.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.grounds import BYTE, Chips, Ground, Image, flipped, recoloured, turned

Scores: TypeAlias = NDArray[np.float32]
"""(H, W), 0..1"""
Score: TypeAlias = Callable[[Image], Scores]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What segmentation_models_pytorch prepares images for its encoders with."""
SEED_WINDOW, SEED_CROP, SEED_THRESHOLD = 512, 16, 0.3


@dataclass(frozen=True, slots=True)
class Rival:
    """What a recipe leaves: scores of a scene, the score from which on a pixel is a building, and weights."""

    score: Score
    network: nn.Module
    threshold: float = 0.5


def learn(
    network: nn.Module, ground: Ground, chips: Chips, *, optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float], loss: Callable[[Tensor, Tensor], Tensor], crop: int = 0, half: bool = False,
) -> None:  # fmt: skip
    """Train until the clock says so; the learning rate follows the share of the budget."""
    network.train()
    while not ground.clock.over:
        image, target = chips()
        for group in optimizer.param_groups:
            group["lr"] = rate(ground.clock.share)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(image)
        optimizer.zero_grad()
        loss(logits.float(), target[..., crop : target.shape[-2] - crop, crop : target.shape[-1] - crop]).backward()
        optimizer.step()
        ground.clock.step(image)


def smp_plain(ground: Ground) -> Rival:
    """Unet of ResNet-18, Dice, Adam 1e-3 along a cosine, flips, 8 chips of 256: the library's own examples."""
    import segmentation_models_pytorch as smp

    network = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=1)
    optimizer = torch.optim.Adam(network.parameters())
    ground.clock.begin()
    ground.read()
    learn(
        network, ground, ground.chips(256, 8, flipped, encoder_input), optimizer=optimizer,
        rate=lambda share: 1e-3 * falling(share), loss=smp.losses.DiceLoss("binary"),
    )  # fmt: skip
    return Rival(partial(binary_scores, network, encoder_input), network)


def smp_fast(ground: Ground) -> Rival:
    """The same Unet in bfloat16 and channels-last, AdamW 2e-3 one-cycle, BCE + Dice, D4 and colour, 16 of 128."""
    import segmentation_models_pytorch as smp

    network = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=1)
    network = network.to(memory_format=torch.channels_last)
    optimizer, dice = torch.optim.AdamW(network.parameters()), smp.losses.DiceLoss("binary")

    def prepare(images: Image) -> Tensor:
        return encoder_input(images).contiguous(memory_format=torch.channels_last)

    ground.clock.begin()
    ground.read()
    learn(
        network, ground, ground.chips(128, 16, recoloured, prepare), optimizer=optimizer,
        rate=lambda share: 2e-3 * one_cycle(share), half=bool(torch.cpu.get_capabilities().get("avx512_bf16")),
        loss=lambda logits, target: F.binary_cross_entropy_with_logits(logits, target) + dice(logits, target),
    )  # fmt: skip
    return Rival(partial(binary_scores, network, encoder_input), network)


def seed2017(ground: Ground) -> Rival:
    """The 2017 network and loss BCE - ln J, NAdam at 1e-3 and then 1e-4, D4, 16 chips of 112; four views, 0.3."""
    from satseg.learning.networks.unet import SEED_2017, UNet
    from satseg.learning.training.losses import bce_minus_log_jaccard

    network = UNet(replace(SEED_2017, bands=3))
    optimizer = torch.optim.NAdam(network.parameters())
    ground.clock.begin()
    ground.read()
    learn(
        network, ground, ground.chips(112, 16, turned, unit_input), optimizer=optimizer, crop=SEED_CROP,
        rate=lambda share: 1e-3 if share < 0.5 else 1e-4, loss=bce_minus_log_jaccard,
    )  # fmt: skip
    return Rival(partial(seed_scores, network), network, SEED_THRESHOLD)


def torchgeo(ground: Ground) -> Rival:
    """SemanticSegmentationTask as it is (cross-entropy, AdamW 1e-3) on RandomGeoSampler, 8 chips of 256, flips."""
    import lightning
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import RandomGeoSampler
    from torchgeo.trainers import SemanticSegmentationTask

    class Images(RasterDataset):  # type: ignore[misc]
        filename_glob = "image_*.tif"

    class Masks(RasterDataset):  # type: ignore[misc]
        filename_glob, is_image = "mask_*.tif", False

    class Task(SemanticSegmentationTask):  # type: ignore[misc]
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            ground.clock.step(batch["image"])
            trainer.should_stop = ground.clock.over

    def change(sample: dict[str, Any]) -> dict[str, Any]:
        axes = [axis for axis in (-1, -2) if torch.rand(()) < 0.5]
        image, mask = sample["image"].flip(axes) / BYTE, sample["mask"].squeeze(0).flip(axes).long()
        return {"image": image, "mask": mask}

    ground.write()
    task = Task(model="unet", backbone="resnet18", weights=None, in_channels=3, num_classes=2)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, callbacks=[Stop()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    ground.clock.begin()
    dataset = Images(ground.folder) & Masks(ground.folder)
    dataset.transforms = change
    sampler = RandomGeoSampler(dataset, size=256, length=10**6)
    trainer.fit(task, DataLoader(dataset, batch_size=8, sampler=sampler, collate_fn=stack_samples))
    return Rival(partial(two_class_scores, task.model), task.model)


class TimeUp(Exception):  # no error: how a training that counts epochs is ended
    """The budget is used up."""


def geoai(ground: Ground) -> Rival:
    """train_segmentation_model with its defaults (ResNet-34, tiles of 256 at 128), the best checkpoint kept.

    It counts epochs, not minutes: a hook of the network it builds ends it.
    """
    from geoai.train import get_smp_model, train_segmentation_model
    from geoai.utils import export_geotiff_tiles

    ground.write()
    tiles, built = ground.folder / "tiles", []
    for place in ground.places:
        parts, image = ground.folder / place.name, ground.folder / f"image_{place.name}.tif"
        export_geotiff_tiles(
            os.fspath(image), os.fspath(parts), os.fspath(place.labels), tile_size=256, stride=128, quiet=True
        )
        for path in [*(parts / "images").iterdir(), *(parts / "labels").iterdir()]:
            (tiles / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.move(path, tiles / path.parent.name / f"{place.name}_{path.name}")

    def watch(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if ground.clock.over:
            raise TimeUp
        if network.training:
            ground.clock.step(inputs[0])

    def build(**options: Any) -> nn.Module:
        built.append(get_smp_model(**options))
        built[0].register_forward_pre_hook(watch)
        return built[0]

    ground.clock.begin()
    with mock.patch("geoai.train.get_smp_model", build), suppress(TimeUp):
        train_segmentation_model(
            os.fspath(tiles / "images"), os.fspath(tiles / "labels"), os.fspath(ground.folder),
            encoder_weights=None, seed=ground.seed, num_workers=0, verbose=False, device=torch.device("cpu"),
        )  # fmt: skip
    network, best = get_smp_model(encoder_weights=None), ground.folder / "best_model.pth"
    network.load_state_dict(torch.load(best, weights_only=True) if best.exists() else built[0].state_dict())
    return Rival(partial(two_class_scores, network), network)


RECIPES: dict[str, Callable[[Ground], Rival]] = {
    recipe.__name__: recipe for recipe in (smp_plain, torchgeo, geoai, smp_fast, seed2017)
}
NEEDS = {
    "smp_plain": "segmentation_models_pytorch", "smp_fast": "segmentation_models_pytorch",
    "torchgeo": "torchgeo.trainers", "geoai": "geoai.train",
}  # fmt: skip
"""Module whose import says whether a recipe can run here."""


def falling(share: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * share))


def one_cycle(share: float, rise: float = 0.1, start: float = 0.04) -> float:
    """Factor of the greatest learning rate (L. Smith, arXiv 1708.07120): cosines up from `start`, and down to 0."""
    if share < rise:
        return start + (1 - start) * (1 - falling(share / rise))
    return falling((share - rise) / (1 - rise))


def encoder_input(images: Image) -> Tensor:
    """Pixels (..., 3, H, W) as encoders of segmentation_models_pytorch want them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (unit_input(images) - mean) / std


def unit_input(images: Image) -> Tensor:
    """Pixels in 0..1."""
    return torch.from_numpy(images).float() / BYTE


def whole(network: nn.Module, image: Tensor) -> Tensor:
    """Logits (K, H, W) of an image (3, H, W), which is mirrored up to multiples of 32 pixels."""
    height, width = image.shape[-2:]
    padded = F.pad(image[None], (0, -width % 32, 0, -height % 32), mode="reflect")
    with torch.inference_mode():
        logits: Tensor = network.eval()(padded)[0, :, :height, :width]
    return logits


def binary_scores(network: nn.Module, prepare: Callable[[Image], Tensor], image: Image) -> Scores:
    """Scores of a network with one output."""
    return whole(network, prepare(image)).sigmoid()[0].numpy()


def two_class_scores(network: nn.Module, image: Image) -> Scores:
    """Scores of a network with an output for the ground and one for buildings."""
    return whole(network, unit_input(image)).softmax(0)[1].numpy()


def seed_scores(network: nn.Module, image: Image) -> Scores:
    """Geometric mean of four views: as it is, both flips, transposed."""
    product = np.ones(image.shape[1:], np.float32)
    for view in (lambda a: a, lambda a: a[..., ::-1, :], lambda a: a[..., ::-1], lambda a: a.swapaxes(-1, -2)):
        product *= view(windowed(network, np.ascontiguousarray(view(image))))
    return product**0.25


def windowed(network: nn.Module, image: Image) -> Scores:
    """Scores from windows whose margin the network crops; the scene is mirrored around."""
    step = SEED_WINDOW - 2 * SEED_CROP
    height, width = image.shape[1:]
    sides = [(SEED_CROP, SEED_CROP + -size % step) for size in (height, width)]
    padded = np.pad(image, ((0, 0), *sides), mode="reflect")
    scores = np.empty((padded.shape[1] - 2 * SEED_CROP, padded.shape[2] - 2 * SEED_CROP), np.float32)
    with torch.inference_mode():
        for row, col in _corners(scores.shape, step):
            chip = unit_input(padded[:, row : row + SEED_WINDOW, col : col + SEED_WINDOW])
            scores[row : row + step, col : col + step] = network.eval()(chip[None]).sigmoid()[0, 0].numpy()
    return scores[:height, :width]


def _corners(shape: tuple[int, ...], step: int) -> Iterator[tuple[int, int]]:
    return ((row, col) for row in range(0, shape[0], step) for col in range(0, shape[1], step))
