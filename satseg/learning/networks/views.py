"""Test-time augmentation: a tile looked at turned, mirrored, smaller and larger, and the scores averaged.

An object that is too large or too small for what the network learnt is of the right size at another scale.
Scores are averaged, not logits: one view that is very sure does not outvote the others. Their geometric mean, as the
recipe of 2017 took it, is there too (`means`); what lies between pixels of a coarser view is then of that kind as well.

What it gains is small and uneven, and so it is off by default. `benchmarks.accuracy`, one network of three CPU-minutes
for each of Nairobi, Zanzibar and Las Vegas, Jaccard and F1: plain 0.55 and 0.63, 0.62 and 0.55, 0.57 and 0.37; d4 0.54
and 0.64, 0.61 and 0.60, 0.59 and 0.32; scales 0.55 and 0.67, 0.60 and 0.55, 0.60 and 0.32; both 0.55 and 0.70, 0.59 and
0.56, 0.62 and 0.38, at 4, 2.5 and 15 times the CPU time of a detection. Over 19 networks of 3 to 30 minutes d4 brought
0.005 of Jaccard and 0.01 of F1.

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
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from satseg.learning.networks.ensemble_file import Mean
from satseg.learning.networks.means import linked, unlinked

FULL_SIZE = Fraction(1)
SCALES = (Fraction(3, 4), FULL_SIZE, Fraction(3, 2))
"""Within what training zooms chips by default (0.6 to 1.6), at sizes that tiles of few strides allow."""
Turn: TypeAlias = tuple[int, bool]
"""Quarter turns to the left, after a flip of left and right or not."""
UPRIGHT: tuple[Turn, ...] = ((0, False),)
FLIPS: tuple[Turn, ...] = ((0, False), (2, True), (0, True), (1, True))
"""The four views of the recipe of 2017: as it is, top and bottom flipped, left and right flipped, transposed."""
D4: tuple[Turn, ...] = tuple((quarters, mirrored) for quarters in range(4) for mirrored in (False, True))
TAPS_BEYOND = 1
"""Pixels on each side of a group whose weights may count: enough down to a third of the size."""


@dataclass(frozen=True, slots=True)
class Views:
    """How often and in which ways the network looks at each tile.

    Parameters
    ----------
    turns : tuple of Turn
        In which flips and quarter turns, at each scale.
    scales : tuple of Fraction
        Sizes at which it is seen, in parts of its own; from 1/3 on.
    mean : "arithmetic" or "geometric"
        Of the scores.
    """

    turns: tuple[Turn, ...] = UPRIGHT
    scales: tuple[Fraction, ...] = (FULL_SIZE,)
    mean: Mean = "arithmetic"

    @property
    def step(self) -> int:
        """Tiles and halo are multiples of this times the network's stride."""
        return math.lcm(*(scale.denominator for scale in self.scales))

    @property
    def work(self) -> float:
        """Pixels through the network for each pixel of a tile."""
        return len(self.turns) * float(sum(scale**2 for scale in self.scales))

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
        """Logits (B, K, H - 2 crop, W - 2 crop) of the mean score over all views of `image` (B, C, H, W).

        Parameters
        ----------
        network : callable
            Logits of an image, `crop` pixels smaller on each side.
        image : Tensor, float32
            Height and width are multiples of `step` times the network's stride.
        """
        if len(self.scales) == 1 and len(self.turns) == 1:
            return network(image)
        total = torch.zeros((), device=image.device)
        for scale in self.scales:
            values = self._turned(network, resampled(image, scale))
            total = total + (values if scale == 1 else _back(values, scale, crop=crop))
        return unlinked(total / len(self.scales), self.mean)

    def _turned(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """What the mean of `image` is taken of, itself the mean over all turns, each turned back."""
        total = torch.zeros((), device=image.device)
        for quarters, mirrored in self.turns:
            turned = torch.rot90(image.flip(-1) if mirrored else image, quarters, (-2, -1))
            turned = turned.contiguous(memory_format=torch.channels_last)
            values = torch.rot90(linked(network(turned), self.mean), -quarters, (-2, -1))
            total = total + (values.flip(-1) if mirrored else values)
        return total / len(self.turns)


TTA = {
    "none": Views(),
    "flips": Views(turns=FLIPS),
    "d4": Views(turns=D4),
    "scales": Views(scales=SCALES),
    "d4+scales": Views(turns=D4, scales=SCALES),
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

    Or their logarithms. What lies within the wider crop of a coarse view is its nearest one: no tile keeps it,
    see `Views.margin`.
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
