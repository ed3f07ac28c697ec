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

HEAD_STD = 0.01
"""Spread of the last layer's weights at the start: small, so that training starts at the prior."""
MOST = 4096
"""Bands, classes: bounded so that a foreign model card cannot ask for a network without end."""
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


def require(holds: bool, name: str, value: object, allowed: str, *, code: str) -> None:
    """Raise UsageError with `code` unless `holds`: the argument called `name` is not `allowed`."""
    if not holds:
        raise UsageError(f"{name}={value!r} is not {allowed}", code=code)


def require_counts(config: NetworkConfig, *, code: str) -> None:
    """Raise UsageError with `code` unless bands and classes of `config` are whole numbers from 1 to `MOST`."""
    for name in ("bands", "classes"):
        value = getattr(config, name)
        holds = isinstance(value, int) and 1 <= value <= MOST
        require(holds, name, value, f"a whole number from 1 to {MOST}", code=code)


def he_weights(network: nn.Module, generator: torch.Generator | None) -> None:
    """Draw the weights of all convolutions of `network` as He et al. 2015 (arXiv 1502.01852) do; biases are 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def begin_at(
    head: nn.Conv2d, prior: float | Sequence[float] | None, classes: int, generator: torch.Generator | None
) -> None:
    """Let the last layer give the shares `prior` at first, whatever comes; a class may have several of its planes.

    So the first steps are not spent on learning that a class is rare (Lin et al. 2017, arXiv 1708.02002, 4.1); raises
    as `log_odds`.
    """
    bias = log_odds(prior, classes)
    nn.init.normal_(head.weight, std=HEAD_STD, generator=generator)
    if head.bias is not None:
        with torch.no_grad():
            head.bias.copy_(bias.repeat_interleave(head.out_channels // classes))


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
