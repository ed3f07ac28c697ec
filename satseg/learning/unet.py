"""The UNet: any number of bands in, one plane of logits per class out.

One frozen `UNetConfig` describes every variant, from the network of 2017 (`SEED_2017`) to the
cheap default, which works behind a stride-2 stem and returns to full resolution by a pixel
shuffle: the same compute sees several times as many pixels. `reach` says exactly how far an input
pixel acts, so that a tile read with that margin gives the same output as the whole scene.

Rejected: group and instance normalisation. Their statistics span the tile, so the output of a
pixel would depend on where the tile's border lies; "channel" normalises each pixel by itself.

Source of the architecture: Ronneberger et al. 2015 (arXiv 1505.04597); of the 2017 settings:
Iglovikov et al. 2017 (arXiv 1706.06169); of the pixel shuffle: Shi et al. 2016 (arXiv 1609.05158).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from satseg.errors import UsageError
from satseg.learning.network import Network, log_odds

Norm: TypeAlias = Literal["batch", "channel", "none"]
Activation: TypeAlias = Literal["relu", "elu", "silu", "gelu"]
Upsampling: TypeAlias = Literal["nearest", "bilinear", "transposed"]

RANGES = {
    "bands": (1, 4096),
    "classes": (1, 4096),
    "width": (1, 2048),
    "depth": (1, 8),
    "convs_per_level": (1, 8),
    "crop": (0, 4096),
}
"""Accepted values, bounded so that a foreign model card cannot ask for a network without end."""
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU}
HEAD_STD = 0.01
"""Spread of the last layer's weights at the start: small, so that training starts at the prior."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetConfig:
    """What a UNet is made of.

    Parameters
    ----------
    bands, classes : int
        Input and output channels.
    width : int
        Filters of the finest level.
    width_multiplier : float
        Filters of each further level, relative to the one above.
    depth : int
        Levels, counting the finest; there are depth - 1 poolings by 2.
    convs_per_level : int
        3 x 3 convolutions, each with normalisation and activation, in a level's block.
    norm : "batch", "channel" or "none"
        "channel" is a LayerNorm over the channels of each pixel.
    activation : "relu", "elu", "silu" or "gelu"
    upsampling : "nearest", "bilinear" (align_corners=False) or "transposed" (2 x 2, stride 2)
    crop : int
        Pixels cut off each side of the output, whose values depend on the zero padding.
    stem : 1, 2 or 4
        Stride of the first convolution; above 1 a pixel shuffle brings the logits back to full size.
    dropout : float, 0..1
        Probability of dropping a whole channel of the deepest level while training.

    Raises
    ------
    UsageError
        A value outside its range.
    """

    bands: int
    classes: int
    width: int = 32
    width_multiplier: float = 2.0
    depth: int = 4
    convs_per_level: int = 2
    norm: Norm = "batch"
    activation: Activation = "relu"
    upsampling: Upsampling = "nearest"
    crop: int = 0
    stem: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, (lowest, highest) in RANGES.items():
            value = getattr(self, name)
            holds = isinstance(value, int) and lowest <= value <= highest
            _require(holds, self, name, f"a whole number from {lowest} to {highest}")
        for name, allowed in (("norm", Norm), ("activation", Activation), ("upsampling", Upsampling)):
            choices = get_args(allowed)
            _require(getattr(self, name) in choices, self, name, f"one of {', '.join(choices)}")
        _require(self.stem in (1, 2, 4), self, "stem", "1, 2 or 4")
        _require(0 <= self.dropout < 1, self, "dropout", "at least 0 and below 1")
        _require(0.25 <= self.width_multiplier <= 4, self, "width_multiplier", "between 0.25 and 4")
        _require(max(self.widths) <= 8192, self, "width", f"small enough: levels of {self.widths} filters")

    @property
    def widths(self) -> tuple[int, ...]:
        """Filters of each level, finest first."""
        factor = self.width_multiplier
        return tuple(max(1, round(self.width * factor**level)) for level in range(self.depth))

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of this."""
        return self.stem << (self.depth - 1)


def _require(holds: bool, config: UNetConfig, name: str, allowed: str) -> None:
    if not holds:
        raise UsageError(f"UNet {name}={getattr(config, name)!r} is not {allowed}", code="E-USE-050")


SEED_2017 = UNetConfig(bands=16, classes=1, width=32, depth=5, norm="batch", activation="elu", crop=16)
"""The network of arXiv 1706.06169: 7,856,289 trainable parameters, 16 x 112 x 112 to 1 x 80 x 80."""


def default_config(bands: int, classes: int) -> UNetConfig:
    """Return the network trained unless another is asked for: 32-64-128-256 behind a stride-2 stem.

    On buildings at 0.3 m, after ten minutes on one core, a network of this shape reached a pooled
    pixel Jaccard of 0.58 where full-resolution and ResNet-18 UNets reached 0.51 to 0.56: a step
    costs less, so more pixels are seen. A training step on one core with bfloat16 takes 1.7 CPU
    seconds per million pixels; bilinear upsampling would add a tenth to that.
    """
    return UNetConfig(bands=bands, classes=classes, width=32, depth=4, stem=2)


class UNet(Network):
    """Encoder, decoder with skip connections, and a head that returns logits at full resolution.

    Parameters
    ----------
    config : UNetConfig
    prior : float or sequence of float, optional
        Expected share of each class, 0..1 exclusive: the last bias starts at its log-odds, so that
        the first steps are not spent on learning that a class is rare (Lin et al. 2017, 4.1).
    generator : torch.Generator, optional
        Source of the initial weights; torch's global one when left out.

    Raises
    ------
    UsageError
        `prior` is not between 0 and 1, or not one per class.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        prior: float | Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config: UNetConfig = config
        widths = config.widths
        self.stem = _stem(config) if config.stem > 1 else nn.Identity()
        sources = (config.bands if config.stem == 1 else widths[0], *widths)
        self.encoder = nn.ModuleList(
            _block(config, below, above) for below, above in zip(sources, widths, strict=False)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        coarse_to_fine = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.upsample = nn.ModuleList(_upsampler(config, coarse, fine) for coarse, fine in coarse_to_fine)
        self.decoder = nn.ModuleList(
            _block(config, (fine if config.upsampling == "transposed" else coarse) + fine, fine)
            for coarse, fine in coarse_to_fine
        )
        self.head = _head(config)
        self._initialise(log_odds(prior, config.classes), generator)

    def _initialise(self, bias: Tensor, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=HEAD_STD, generator=generator)
        if self.head.bias is not None:
            with torch.no_grad():
                self.head.bias.copy_(bias.repeat_interleave(self.config.stem**2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H - 2 crop, W - 2 crop) of `x` (B, C, H, W).

        Raises
        ------
        BandError
            C is not the number of bands.
        GridError
            H or W is no multiple of `stride`, or too small for the crop.
        """
        self._check(x)
        x = self.stem(x)  # (B, widths[0], H/stem, W/stem), or (B, C, H, W) without a stem
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level else x)  # (B, widths[l], H/(stem 2^l), W/(stem 2^l))
            skips.append(x)
        x = self.dropout(skips.pop())
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            x = block(torch.cat([upsample(x), skips.pop()], dim=1))  # one level finer
        x = self.head(x)  # (B, K stem^2, H/stem, W/stem)
        if self.config.stem > 1:
            x = F.pixel_shuffle(x, self.config.stem)  # (B, K, H, W)
        crop = self.config.crop
        return x[:, :, crop:-crop, crop:-crop] if crop else x

    @property
    def reach(self) -> int:
        """Greatest distance, in rows or columns, over which an input pixel acts on an output pixel."""
        return reach(self.config)


def reach(config: UNetConfig) -> int:
    """Greatest distance in pixels from an output pixel to an input pixel that acts on it.

    Exact: the interval of rows that one output row depends on is followed back through every
    layer, for each of the `stride` positions an output row can have, and the farthest end counts.
    Half the usual "receptive field" would be too small, as the field is not centred on the pixel.
    """
    farthest = 0
    for row in range(config.stride):
        low, high = _dependencies(config, row)
        farthest = max(farthest, row - low, high - row)
    return farthest


def parameter_count(config: UNetConfig) -> int:
    """Number of trainable weights of the network that `config` describes, without building it."""
    widths, convs = config.widths, config.convs_per_level
    norms = 0 if config.norm == "none" else 2

    def block(source: int, width: int) -> int:
        first, further = _conv_weights(source, width, 3), _conv_weights(width, width, 3)
        return first + (convs - 1) * further + convs * norms * width

    total = 0 if config.stem == 1 else _conv_weights(config.bands, widths[0], 2 * config.stem) + norms * widths[0]
    sources = (config.bands if config.stem == 1 else widths[0], *widths)
    total += sum(block(source, width) for source, width in zip(sources, widths, strict=False))
    for fine, coarse in pairwise(widths):
        transposed = config.upsampling == "transposed"
        total += block((fine if transposed else coarse) + fine, fine)
        total += _conv_weights(coarse, fine, 2) if transposed else 0
    return total + _conv_weights(widths[0], config.classes * config.stem**2, 1 if config.stem == 1 else 3)


def _conv_weights(source: int, width: int, size: int) -> int:
    return (source * size**2 + 1) * width


def _dependencies(config: UNetConfig, row: int) -> tuple[int, int]:
    """First and last input row on which output row `row` depends."""
    head_margin = 0 if config.stem == 1 else 1
    low, high = row // config.stem - head_margin, row // config.stem + head_margin
    wanted: list[tuple[int, int]] = []  # of each level's encoder output, finest first
    for _ in range(config.depth - 1):  # down the decoder
        low, high = low - config.convs_per_level, high + config.convs_per_level
        wanted.append((low, high))
        if config.upsampling == "bilinear":  # row 2k blends k-1 and k, row 2k+1 blends k and k+1
            low, high = (low - 1) // 2, (high + 1) // 2
        else:
            low, high = low // 2, high // 2
    low, high = low - config.convs_per_level, high + config.convs_per_level
    for skip_low, skip_high in reversed(wanted):  # and up the encoder
        low, high = min(2 * low, skip_low), max(2 * high + 1, skip_high)  # through the pooling
        low, high = low - config.convs_per_level, high + config.convs_per_level
    if config.stem > 1:  # kernel 2 stem, padding stem / 2
        margin = config.stem // 2
        low, high = low * config.stem - margin, (high + 1) * config.stem + margin - 1
    return low, high


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of (B, C, H, W); cheap when that is channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _norm_and_activation(config: UNetConfig, width: int) -> list[nn.Module]:
    norms: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm2d, "channel": ChannelNorm}
    norm = [norms[config.norm](width)] if config.norm in norms else []
    activation = ACTIVATIONS[config.activation]
    in_place = {} if config.activation == "gelu" else {"inplace": True}
    return [*norm, activation(**in_place)]


def _block(config: UNetConfig, source: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(config.convs_per_level):
        layers.append(nn.Conv2d(source if index == 0 else width, width, kernel_size=3, padding=1))
        layers += _norm_and_activation(config, width)
    return nn.Sequential(*layers)


def _stem(config: UNetConfig) -> nn.Sequential:
    """Return a strided convolution whose kernel is centred on its output pixel: no shift creeps in."""
    step, width = config.stem, config.widths[0]
    conv = nn.Conv2d(config.bands, width, kernel_size=2 * step, stride=step, padding=step // 2)
    return nn.Sequential(conv, *_norm_and_activation(config, width))


def _upsampler(config: UNetConfig, coarse: int, fine: int) -> nn.Module:
    if config.upsampling == "transposed":
        return nn.ConvTranspose2d(coarse, fine, kernel_size=2, stride=2)
    if config.upsampling == "bilinear":
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Upsample(scale_factor=2, mode="nearest")


def _head(config: UNetConfig) -> nn.Conv2d:
    """1 x 1 at full resolution; 3 x 3 before a pixel shuffle, so that sub-pixels see their neighbours."""
    size = 1 if config.stem == 1 else 3
    return nn.Conv2d(config.widths[0], config.classes * config.stem**2, kernel_size=size, padding=size // 2)
