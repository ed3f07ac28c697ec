"""The UNet: any number of bands in, one plane of logits per class out.

One frozen `UNetConfig` describes every variant, from the network of 2017 (`SEED_2017`) to the
cheap default, which works behind a stride-2 stem and returns to full resolution by a pixel
shuffle: the same compute sees several times as many pixels. `reach` says exactly how far an input
pixel acts, so that a tile read with that margin gives the same output as the whole scene.

What the default spends its compute on was chosen by Jaccard in unseen towns after equal CPU time
(`default_config`): encoder blocks with a way around them (He et al. 2015, arXiv 1512.03385), and one
convolution a level on the way back, of a coarse picture with no more filters than the level has.

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

from satseg.learning.networks.network import Network, begin_at, he_weights, require, require_counts
from satseg.options import Upsampling

Norm: TypeAlias = Literal["batch", "channel", "none"]
Activation: TypeAlias = Literal["relu", "elu", "silu", "gelu"]

RANGES = {
    "width": (1, 2048),
    "depth": (1, 8),
    "convs_per_level": (1, 8),
    "decoder_convs": (1, 8),
    "crop": (0, 4096),
}
"""Accepted values, bounded so that a foreign model card cannot ask for a network without end."""
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU}
RESIDUAL_GAIN = 0.3
"""Of a block's last normalisation at the start, beside the 1 of the way around it."""


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
        3 x 3 convolutions, each with normalisation and activation, in a block of the encoder.
    residual : bool
        Add what goes into a block of the encoder to what comes out of its last normalisation.
    decoder_convs : int
        3 x 3 convolutions of each level on the way back.
    squeeze : bool
        Bring the coarse picture to the finer level's filters by a 1 x 1 convolution before it is enlarged.
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
    residual: bool = False
    decoder_convs: int = 2
    squeeze: bool = False
    norm: Norm = "batch"
    activation: Activation = "relu"
    upsampling: Upsampling = "nearest"
    crop: int = 0
    stem: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_counts(self, code="E-USE-050")
        for name, (lowest, highest) in RANGES.items():
            value = getattr(self, name)
            holds = isinstance(value, int) and lowest <= value <= highest
            _require(holds, self, name, f"a whole number from {lowest} to {highest}")
        for name, allowed in (("norm", Norm), ("activation", Activation), ("upsampling", Upsampling)):
            choices = get_args(allowed)
            _require(getattr(self, name) in choices, self, name, f"one of {', '.join(choices)}")
        for name in ("residual", "squeeze"):
            _require(isinstance(getattr(self, name), bool), self, name, "true or false")
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
    require(holds, name, getattr(config, name), allowed, code="E-USE-050")


SEED_2017 = UNetConfig(bands=16, classes=1, width=32, depth=5, norm="batch", activation="elu", crop=16)
"""The network of arXiv 1706.06169: 7,856,289 trainable parameters, 16 x 112 x 112 to 1 x 80 x 80."""


def default_config(bands: int, classes: int) -> UNetConfig:
    """Return the network trained unless another is asked for: 32-64-128-256 behind a stride-2 stem.

    Roofs of Nairobi, Zanzibar and Las Vegas, each learnt without, after equal CPU time (434 to 588 steps of 16 x
    128 px, two seeds, mean of four Jaccards): 0.51 and 0.55 with two plain convolutions a level both ways; 0.60 and
    0.63 as here, a step costing three quarters of that; 0.61 and 0.61 with two blocks at each of the two coarse
    levels, whose step costs as much as the plain one's; 0.57 with a stem of stride 4 and 64-128-256 filters; 0.59
    with 24-48-96-192 and more blocks. A run to the next differs by 0.02. A level more gave Nairobi 0.44 for 0.52 after
    ten CPU-minutes, a level less 0.49 and 0.52 after three, where it has 0.53 (two runs).
    """
    return UNetConfig(
        bands=bands, classes=classes, width=32, depth=4, stem=2, residual=True, decoder_convs=1, squeeze=True
    )


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
        if config.squeeze:
            self.squeeze = nn.ModuleList(_unit(config, coarse, fine, size=1) for coarse, fine in coarse_to_fine)
            coarse_to_fine = [(fine, fine) for _, fine in coarse_to_fine]
        self.upsample = nn.ModuleList(_upsampler(config, coarse, fine) for coarse, fine in coarse_to_fine)
        self.decoder = nn.ModuleList(
            _convs(config, (fine if config.upsampling == "transposed" else coarse) + fine, fine, config.decoder_convs)
            for coarse, fine in coarse_to_fine
        )
        self.head = _head(config)
        he_weights(self, generator)
        for module in self.modules():
            if isinstance(module, Residual):
                module.soften()
        begin_at(self.head, prior, config.classes, generator)

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
        for level, (upsample, block) in enumerate(zip(self.upsample, self.decoder, strict=True)):
            x = self.squeeze[level](x) if self.config.squeeze else x
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
    widths = config.widths
    norms = 0 if config.norm == "none" else 2

    def convs(source: int, width: int, count: int, size: int = 3) -> int:
        first, further = _conv_weights(source, width, size), _conv_weights(width, width, size)
        return first + (count - 1) * further + count * norms * width

    def block(source: int, width: int) -> int:
        around = convs(source, width, 1, size=1) if config.residual and source != width else 0
        return convs(source, width, config.convs_per_level) + around

    total = 0 if config.stem == 1 else convs(config.bands, widths[0], 1, size=2 * config.stem)
    sources = (config.bands if config.stem == 1 else widths[0], *widths)
    total += sum(block(source, width) for source, width in zip(sources, widths, strict=False))
    for fine, coarse in pairwise(widths):
        transposed = config.upsampling == "transposed"
        total += convs(coarse, fine, 1, size=1) if config.squeeze else 0
        risen = fine if config.squeeze else coarse
        total += convs((fine if transposed else risen) + fine, fine, config.decoder_convs)
        total += _conv_weights(risen, fine, 2) if transposed else 0
    return total + _conv_weights(widths[0], config.classes * config.stem**2, 1 if config.stem == 1 else 3)


def _conv_weights(source: int, width: int, size: int) -> int:
    return (source * size**2 + 1) * width


def _dependencies(config: UNetConfig, row: int) -> tuple[int, int]:
    """First and last input row on which output row `row` depends."""
    head_margin = 0 if config.stem == 1 else 1
    low, high = row // config.stem - head_margin, row // config.stem + head_margin
    wanted: list[tuple[int, int]] = []  # of each level's encoder output, finest first
    for _ in range(config.depth - 1):  # down the decoder
        low, high = low - config.decoder_convs, high + config.decoder_convs
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


class Residual(nn.Module):
    """A block of the encoder that adds what goes in to what comes out, then activates.

    Where widths differ, the way around is a 1 x 1 convolution and a normalisation.
    """

    def __init__(self, config: UNetConfig, source: int, width: int) -> None:
        super().__init__()
        *body, self.activation = _convs(config, source, width, config.convs_per_level)
        self.body = nn.Sequential(*body)
        way: nn.Sequential | list[nn.Module] = [] if source == width else _unit(config, source, width, size=1)[:-1]
        self.around = nn.Sequential(*way)

    def soften(self) -> None:
        """Let the block begin as little more than its way around (Goyal et al. 2017, arXiv 1706.02677, 5.1)."""
        last = self.body[-1]
        if not isinstance(last, nn.Conv2d):
            nn.init.constant_(last.weight, RESIDUAL_GAIN)  # type: ignore[arg-type]  # a norm's

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H, W) of `x` (B, source, H, W)."""
        return self.activation(self.body(x) + self.around(x))  # type: ignore[no-any-return]


def _block(config: UNetConfig, source: int, width: int) -> nn.Module:
    if config.residual:
        return Residual(config, source, width)
    return _convs(config, source, width, config.convs_per_level)


def _convs(config: UNetConfig, source: int, width: int, count: int) -> nn.Sequential:
    sources = [source] + (count - 1) * [width]
    return nn.Sequential(*(layer for one in sources for layer in _unit(config, one, width)))


def _unit(config: UNetConfig, source: int, width: int, size: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(source, width, kernel_size=size, padding=size // 2)
    return nn.Sequential(conv, *_norm_and_activation(config, width))


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
