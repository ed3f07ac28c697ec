"""Random changes of a training batch: the eight turns, zoom, per-band gain and offset, band drop.

Works on whole batches of tensors, on the device, in normalised units: 0 is a band's mean, 1 its
standard deviation. Every draw comes from a generator that is an argument, so that step i of a run
with a given seed sees the same batch on any machine, resumed or not (`step_generator`).

Rejected: augmentation per chip in loader workers. It decodes nothing, yet would occupy the cores
that decode, and its random state would depend on the number of workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from satseg.errors import GridError, UsageError

WHOLE = 0.999
"""A zoomed pixel is labelled when at least this share of its blend was: all of it, save rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far chips are changed.

    Parameters
    ----------
    d4 : bool
        Flips and quarter turns, all eight equally likely; four of them on chips that are not square.
    zoom : (low, high)
        Range of the magnification, drawn log-uniformly; above 1 objects grow. (1, 1) is none.
    gain, offset : float
        Each band of each chip becomes x (1 +- gain) +- offset, drawn uniformly.
    noise : float
        Standard deviation of Gaussian noise per pixel and band.
    band_drop : float, 0..1
        Probability that one band of a chip, drawn evenly, is set to its mean. 0 by default: it
        buys tolerance to a missing band with steps that a short training does not have.

    Raises
    ------
    UsageError
        A value outside its range.
    """

    d4: bool = True
    zoom: tuple[float, float] = (0.7, 1.4)
    gain: float = 0.2
    offset: float = 0.2
    noise: float = 0.0
    band_drop: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.zoom
        if not 0.1 <= low <= high <= 10:
            raise UsageError(f"zoom {self.zoom} is not (low, high) between 0.1 and 10", code="E-USE-052")
        if not (0 <= self.gain < 1 and 0 <= self.offset < math.inf and 0 <= self.noise < math.inf):
            values = f"gain {self.gain}, offset {self.offset}, noise {self.noise}"
            raise UsageError(f"{values}: all must be 0 or more, gain below 1", code="E-USE-052")
        if not 0 <= self.band_drop <= 1:
            raise UsageError(f"band_drop {self.band_drop} is no probability", code="E-USE-052")


NO_AUGMENTATION = Augmentation(d4=False, zoom=(1.0, 1.0), gain=0.0, offset=0.0)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of one training step, well mixed from `seed` and `step` (both >= 0)."""
    state = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


class Augmenter:
    """Changes batches of chips as an `Augmentation` says.

    Parameters
    ----------
    config : Augmentation
    size : int, optional
        Side of the chips that come out, in pixels, cut from the centre; that of the batch when
        left out. With batches of `source_size` no zoom reaches outside its chip.
    """

    def __init__(self, config: Augmentation, *, size: int | None = None) -> None:
        self.config = config
        self.size = size

    @property
    def source_size(self) -> int | None:
        """Side of the chips to draw so that even the smallest zoom fills `size` with real pixels."""
        return None if self.size is None else max(self.size, math.ceil(self.size / self.config.zoom[0]))

    def __call__(
        self, image: Tensor, targets: Tensor, labelled: Tensor, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `image`, `targets` and `labelled`, changed alike; the arguments stay as they are.

        Parameters
        ----------
        image : Tensor (B, C, H, W), floating, normalised
            0 in every band where invalid; stays so.
        targets : Tensor (B, K, H, W), any dtype
        labelled : Tensor of bool (B, 1 or K, H, W)
            False in what comes back where a pixel comes from outside the chip.
        generator : torch.Generator
            On the CPU, whatever the device of the batch.

        Raises
        ------
        GridError
            Shapes disagree, or the chips are smaller than `size`.
        """
        self._check(image, targets, labelled)
        if self.config.d4:
            turns = _turns(len(image), square=image.shape[-1] == image.shape[-2], generator=generator)
            image, targets, labelled = (_turn(x, turns.to(x.device)) for x in (image, targets, labelled))
        if self.config.zoom != (1.0, 1.0):
            image, targets, labelled = self._zoom(image, targets, labelled, generator)
        elif self.size is not None:
            image, targets, labelled = (_centre(x, self.size) for x in (image, targets, labelled))
        return self._recolour(image, generator), targets, labelled

    def _check(self, image: Tensor, targets: Tensor, labelled: Tensor) -> None:
        shapes = [tuple(x.shape) for x in (image, targets, labelled)]
        if any(len(shape) != 4 for shape in shapes) or len({(s[0], *s[2:]) for s in shapes}) != 1:
            raise GridError(f"shapes {shapes} of image, targets and labelled are not of the same chips")
        if self.size is not None and min(image.shape[2:]) < self.size:
            raise GridError(f"chips of {tuple(image.shape[2:])} pixels are smaller than {self.size}")

    def _zoom(
        self, image: Tensor, targets: Tensor, labelled: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, _, height, width = image.shape
        out_height, out_width = (height, width) if self.size is None else (self.size, self.size)
        low, high = (math.log(limit) for limit in self.config.zoom)
        factor = torch.exp(low + (high - low) * _uniform(count, generator)).to(image.device)
        affine = image.new_zeros((count, 2, 3), dtype=torch.float32)
        affine[:, 0, 0] = out_width / width / factor
        affine[:, 1, 1] = out_height / height / factor
        places = F.affine_grid(affine, [count, 1, out_height, out_width], align_corners=False)
        certain = _sample(labelled, places, "bilinear") >= WHOLE
        targets = _sample(targets, places, "nearest").to(targets.dtype)
        return _sample(image, places, "bilinear").to(image.dtype), targets, certain

    def _recolour(self, image: Tensor, generator: torch.Generator) -> Tensor:
        count, bands = image.shape[:2]
        config, shape = self.config, (count, bands, 1, 1)
        changed = image
        if config.gain or config.offset:
            gain = 1 + config.gain * (2 * _uniform(shape, generator) - 1)
            offset = config.offset * (2 * _uniform(shape, generator) - 1)
            changed = changed * gain.to(image) + offset.to(image)
        if config.noise:
            changed = changed + config.noise * torch.randn(image.shape, generator=generator).to(image)
        if config.band_drop and bands > 1:
            hit = _uniform((count, 1), generator) < config.band_drop
            chosen = torch.randint(bands, (count, 1), generator=generator) == torch.arange(bands)
            changed = changed.masked_fill((hit & chosen)[:, :, None, None].to(image.device), 0.0)
        if changed is image:
            return image
        return changed.where((image != 0).any(dim=1, keepdim=True), 0.0)  # invalid pixels stay 0


def _uniform(shape: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


def _turns(count: int, *, square: bool, generator: torch.Generator) -> Tensor:
    """Per chip three draws, (count, 3) bool: flip rows, flip columns, transpose: all of D4."""
    turns = torch.rand((count, 3), generator=generator) < 0.5
    turns[:, 2] &= square
    return turns


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    flip_rows, flip_cols, transpose = turns[:, :, None, None, None].unbind(dim=1)
    x = torch.where(flip_rows, x.flip(-2), x)
    x = torch.where(flip_cols, x.flip(-1), x)
    return torch.where(transpose, x.transpose(-2, -1), x) if turns[:, 2].any() else x


def _centre(x: Tensor, size: int) -> Tensor:
    top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
    return x[..., top : top + size, left : left + size]


def _sample(x: Tensor, places: Tensor, mode: str) -> Tensor:
    """`x` in float32 at `places` (B, H, W, 2); outside of it lies 0."""
    return F.grid_sample(x.float(), places, mode=mode, padding_mode="zeros", align_corners=False)
