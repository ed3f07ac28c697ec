"""Test-time augmentation: a tile looked at turned, mirrored, smaller and larger, and the scores averaged.

An object that is too large or too small for what the network learnt is of the right size at another scale.
Scores are averaged, not logits: one view that is very sure does not outvote the others.

Resampling must not show where tiles were cut. A scale of p/q turns every q pixels into p by the same weights
(a tent as wide as the coarser pixel), as one strided convolution; tiles and halo are multiples of all q times the
network's stride (`Views.step`), so that a pixel lies at the same place of its q at every tiling. At the coarsest
scale the network looks further, in pixels of the scene, and each resampling looks a little further still:
`Views.margin` says how far. Rejected: torch's interpolate, which reckons weights in float32 from a tile's own
corner, so that they differ in the fourth digit over a long tile; and scales of the scene read anew, at which
nothing lies on the grid of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

FULL_SIZE = Fraction(1)
SCALES = (Fraction(3, 4), FULL_SIZE, Fraction(3, 2))
"""Within what training zooms chips by default (0.6 to 1.6), at sizes that tiles of few strides allow."""
TURNS = 8
TAPS_BEYOND = 1
"""Pixels on each side of a group whose weights may count: enough down to a third of the size."""


@dataclass(frozen=True, slots=True)
class Views:
    """How often and in which ways the network looks at each tile.

    Parameters
    ----------
    flips : bool
        In all eight flips and quarter turns (D4), at each scale.
    scales : tuple of Fraction
        Sizes at which it is seen, in parts of its own; from 1/3 on.
    """

    flips: bool = False
    scales: tuple[Fraction, ...] = (FULL_SIZE,)

    @property
    def step(self) -> int:
        """Tiles and halo are multiples of this times the network's stride."""
        return math.lcm(*(scale.denominator for scale in self.scales))

    @property
    def work(self) -> float:
        """Pixels through the network for each pixel of a tile."""
        return (TURNS if self.flips else 1) * float(sum(scale**2 for scale in self.scales))

    @property
    def largest(self) -> float:
        """Most pixels that go through the network at one time, for each pixel of a tile."""
        return float(max(self.scales) ** 2)

    def margin(self, pixels: int) -> int:
        """Return what `pixels` of margin at full size must be so that the coarsest view has as many; 0 stays 0."""
        if self.scales == (FULL_SIZE,) or not pixels:
            return pixels
        coarsest = min(FULL_SIZE, *self.scales)
        return math.ceil((pixels + 2) / coarsest)  # a coarse pixel there by the tent, and one back

    def logits(self, network: Callable[[Tensor], Tensor], image: Tensor, *, crop: int) -> Tensor:
        """Logits (B, K, H - 2 crop, W - 2 crop) of the mean of the scores over all views of `image` (B, C, H, W).

        Parameters
        ----------
        network : callable
            Logits of an image, `crop` pixels smaller on each side.
        image : Tensor, float32
            Height and width are multiples of `step` times the network's stride.
        """
        if len(self.scales) == 1 and not self.flips:
            return network(image)
        total = torch.zeros((), device=image.device)
        for scale in self.scales:
            scores = self._scores(network, resampled(image, scale))
            total = total + (scores if scale == 1 else _back(scores, scale, crop=crop))
        return torch.logit(total / len(self.scales))

    def _scores(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Scores of `image`, the mean over D4 if wanted, each turned back."""
        if not self.flips:
            return network(image.contiguous(memory_format=torch.channels_last)).sigmoid()
        total = torch.zeros((), device=image.device)
        for turns in range(4):
            for mirrored in (False, True):
                turned = torch.rot90(image.flip(-1) if mirrored else image, turns, (-2, -1))
                turned = turned.contiguous(memory_format=torch.channels_last)
                scores = torch.rot90(network(turned).sigmoid(), -turns, (-2, -1))
                total = total + (scores.flip(-1) if mirrored else scores)
        return total / TURNS


TTA = {
    "none": Views(),
    "d4": Views(flips=True),
    "scales": Views(scales=SCALES),
    "d4+scales": Views(flips=True, scales=SCALES),
}
"""What the option `tta` may be."""


def resampled(image: Tensor, scale: Fraction) -> Tensor:
    """Return `image` (B, C, H, W) at `scale`: (B, C, H scale, W scale), both whole numbers.

    Linear between pixel centres; where it shrinks the tent is as wide as the new pixels, so that nothing is
    skipped. Beyond its edges `image` goes on as its last pixel.
    """
    if scale == 1:
        return image
    groups, per_group = scale.denominator, scale.numerator
    batch, channels, height, width = image.shape
    alone = image.reshape(batch * channels, 1, height, width)
    padded = F.pad(alone, (TAPS_BEYOND,) * 4, mode="replicate")
    weights = torch.tensor(_weights(groups, per_group), dtype=image.dtype, device=image.device)  # (p, taps)
    both = torch.einsum("ay,bx->abyx", weights, weights).flatten(0, 1)[:, None]  # (p p, 1, taps, taps)
    parts = F.conv2d(padded, both, stride=groups)  # (B C, p p, H/q, W/q)
    larger = F.pixel_shuffle(parts, per_group)
    return larger.reshape(batch, channels, *larger.shape[-2:])


def _back(scores: Tensor, scale: Fraction, *, crop: int) -> Tensor:
    """Scores that were computed at `scale`, `crop` pixels missing there, at full size with `crop` missing there.

    What lies within the wider crop of a coarse view is its nearest score: no tile keeps it, see `Views.margin`.
    """
    whole = F.pad(scores, (crop,) * 4, mode="replicate") if crop else scores
    full = resampled(whole, 1 / scale)
    return full[..., crop:-crop, crop:-crop] if crop else full


@lru_cache
def _weights(group: int, per_group: int) -> Sequence[Sequence[float]]:
    """Weights of a group's pixels, and `TAPS_BEYOND` on each side, in each of the pixels that it becomes."""
    step = Fraction(group, per_group)
    half, reach = Fraction(1, 2), max(FULL_SIZE, step)
    rows = []
    for number in range(per_group):
        centre = (number + half) * step - half
        tent = [max(Fraction(0), 1 - abs(tap - centre) / reach) for tap in range(-TAPS_BEYOND, group + TAPS_BEYOND)]
        rows.append([float(weight / sum(tent)) for weight in tent])
    return rows
