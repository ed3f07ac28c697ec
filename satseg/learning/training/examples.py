"""Example chips of a run as the network sees them, with the truth and with what the trained network says of them.

They are the first chips of the run, drawn, turned and recoloured by the run's own code, so that a mistake in bands,
labels or augmentation is there to be seen. Large chips are drawn smaller, by the same rules: what
they show does not need every pixel, and a page must not keep its run waiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray

from satseg.grid import Grid
from satseg.learning.ground.sampling import ChipSampler
from satseg.learning.training.augment import augment, step_generator
from satseg.learning.training.feed import Chips, stack_chips
from satseg.learning.training.learner import Learner, cut
from satseg.preview import rgb_preview
from satseg.scoring.overlay import CLASS_ALPHA, Pixels, blend, muted, paint

COUNT = 12
SIDE_PX = 256
"""Most pixels a side of a chip that is shown."""
CACHE_BYTES = 128 * 2**20
SCORE_ALPHA = 235
"""Of 255: how much a score of 1 covers the chip below it."""
UNKNOWN = (90, 90, 90, 200)
"""RGBA over ground whose class is not known."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """Pictures of one chip, each (3, h, w) uint8 RGB."""

    image: Pixels
    truth: Pixels
    score: Pixels


def shown_side(chip: int, *, stride: int, crop: int) -> int:
    """Side in pixels at which chips are shown: their own, or the largest up to `SIDE_PX` that the network takes."""
    least = (2 * crop // stride + 1) * stride
    return min(chip, max(SIDE_PX // stride * stride, least))


@torch.inference_mode()
def examples(
    learner: Learner, sampler: ChipSampler, bands: Sequence[str], colors: Mapping[str, str], *, count: int = COUNT
) -> list[Example]:
    """Return pictures of the first `count` chips of `sampler`.

    Parameters
    ----------
    learner : Learner
        Trained, its network in evaluation mode.
    sampler : ChipSampler
        Of chips that the network takes; see `shown_side`.
    bands : sequence of str
        Names of the scene's bands: red, green and blue are shown, else the first three, else the first in grey.
    colors : mapping
        "#rrggbb" of each class.
    """
    dataset = Chips(sampler, cache_bytes=CACHE_BYTES)
    image, valid, target, labelled = (
        part.to(learner.device) for part in stack_chips([dataset[number] for number in range(count)])
    )
    generator = step_generator(learner.options.seed, 1)
    seen, target, labelled = augment(
        learner.normalize(image, valid), target, labelled, learner.changes, generator=generator
    )
    network = learner.network
    scores = network(seen.to(next(network.parameters()).device)).float().sigmoid().cpu().numpy()
    chips, truths, known = (cut(part, network.crop).cpu().numpy() for part in (seen, target, labelled))
    shades = [colors[name] for name in learner.classes]
    return [
        _example(
            rgb_preview(chip, (chip != 0).any(axis=0), bands), truth[: len(shades)] > 0.5, sure.all(axis=0),
            score[: len(shades)], shades,
        )
        for chip, truth, sure, score in zip(chips, truths, known, scores, strict=True)
    ]  # fmt: skip


def _example(
    picture: Pixels,
    truth: NDArray[np.bool_],
    known: NDArray[np.bool_],
    score: NDArray[np.float32],
    shades: Sequence[str],
) -> Example:
    height, width = known.shape
    grid = Grid(height, width, Affine.identity())
    grey = muted(picture)
    painted = paint(zip(shades, truth & known, strict=True), grid, alpha=CLASS_ALPHA)
    painted[:, ~known] = np.array(UNKNOWN, np.uint8)[:, None]
    heat = np.zeros((4, height, width), np.uint8)
    heat[:3] = np.array([list(bytes.fromhex(shade[1:])) for shade in shades], np.uint8)[score.argmax(axis=0)].transpose(
        2, 0, 1
    )
    heat[3] = np.rint(SCORE_ALPHA * score.max(axis=0))
    return Example(blend(picture, None), blend(painted, grey), blend(heat, grey))
