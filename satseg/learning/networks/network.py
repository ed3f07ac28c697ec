"""What every network of the house has in common: its sizes, what it refuses, how far it looks.

The streaming engine, training and the model file ask a network for these few things and for nothing
else, so that the plain UNet (`unet`) and networks from a library (`zoo`) are used alike. Rejected: a
wrapper that pads what does not fit, for a padded border changes scores without a word.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from satseg.errors import BandError, GridError, UsageError
from satseg.imagery.tiling import round_up

UNBOUNDED_HALO_PX = 256
"""Widest margin tried where a reach has no end; twice a training chip, beyond which such a network saw nothing."""


class NetworkConfig(Protocol):
    """What a network is made of, as far as others need to know."""

    @property
    def bands(self) -> int:
        """Input channels."""

    @property
    def classes(self) -> int:
        """Output channels."""

    @property
    def crop(self) -> int:
        """Pixels missing on each side of the output."""

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of this."""


class Network(nn.Module, ABC):
    """Logits (B, K, H - 2 crop, W - 2 crop) of an input (B, C, H, W), whose size is a multiple of the stride."""

    config: NetworkConfig

    @property
    @abstractmethod
    def reach(self) -> int | None:
        """Greatest distance, in rows or columns, over which an input pixel acts; None: over any distance."""

    @property
    def halo(self) -> int:
        """`reach` rounded up to a multiple of `stride`: tiles read with it equal the whole scene.

        `UNBOUNDED_HALO_PX` where the reach has no end; no halo makes tiles equal the whole scene there.
        """
        return round_up(UNBOUNDED_HALO_PX if self.reach is None else self.reach, self.stride)

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of this; tiles align to it."""
        return self.config.stride

    @property
    def crop(self) -> int:
        """Pixels missing on each side of the output."""
        return self.config.crop

    @property
    def learners(self) -> int:
        """How many networks of it learn in turn, a step each."""
        return 1

    def take_turn(self, step: int) -> None:
        """Be ready for training step number `step`: nothing to do for a network that learns as a whole."""

    def _check(self, x: Tensor) -> None:
        """Raise BandError or GridError for an input of another shape than the network's."""
        if x.ndim != 4 or x.shape[1] != self.config.bands:
            wanted = f"(batch, {self.config.bands} bands, rows, cols)"
            raise BandError(f"input of shape {tuple(x.shape)} is not {wanted}", code="E-BAND-050")
        height, width = x.shape[-2:]
        smallest = 2 * self.crop + 1
        fits = [round_up(max(size, smallest), self.stride) for size in (height, width)]
        if fits != [height, width]:
            larger = f" and more than {2 * self.crop}" if self.crop else ""
            raise GridError(
                f"input of {height} x {width} pixels: the network needs multiples of {self.stride}{larger}",
                hint=f"pad to {fits[0]} x {fits[1]}",
                code="E-GRID-052",
            )


def log_odds(prior: float | Sequence[float] | None, classes: int) -> Tensor:
    """Return the biases (K,) at which scores start at the shares `prior`; zeros without one.

    Raises
    ------
    UsageError
        `prior` is not between 0 and 1, or not one per class (E-USE-051).
    """
    if prior is None:
        return torch.zeros(classes)
    shares = [prior] * classes if isinstance(prior, (int, float)) else [*prior]
    if len(shares) != classes or not all(0 < share < 1 for share in shares):
        raise UsageError(
            f"prior {prior} is not one share between 0 and 1 for each of {classes} classes", code="E-USE-051"
        )
    return torch.tensor([math.log(share / (1 - share)) for share in shares])
