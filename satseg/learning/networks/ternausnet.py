"""TernausNet: a UNet whose encoder is VGG11 or VGG16, which may start from weights learnt on photographs.

Built of plain layers, so that it needs no library: five levels of 3 x 3 convolutions without normalisation, each
followed by a pooling; a centre at a 32nd of the size; and on the way back, at each level, a convolution of what comes
from below beside what went past, then twice the size. The encoder's weights are named as torchvision names VGG's, so
that its files fit. Transposed convolutions double the size, as in the papers; enlarging and a further convolution is
what the author's VGG16 can do instead (`upsampling`). Not taken over: an output of one class alone, and no bands but
three.

Sources: Iglovikov and Shvets 2018 (arXiv 1801.05746), with VGG16 Shvets et al. 2018 (arXiv 1803.01207); encoders
Simonyan and Zisserman 2014 (arXiv 1409.1556, table 1, A and D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from satseg.learning.networks.encoders import EncoderNetwork
from satseg.learning.networks.network import begin_at, he_weights, require, require_counts
from satseg.learning.networks.weights import find_weights, fit_encoder, read_weights
from satseg.options import TernausArch, Upsampling

__all__ = ["PUBLISHED", "TernausConfig", "TernausNet", "drafted"]

ARCHITECTURES: tuple[str, ...] = get_args(TernausArch)
LEVELS: dict[str, tuple[tuple[int, ...], ...]] = {
    "ternausnet11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "ternausnet16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}
"""Filters of the convolutions of each level, finest first."""
RISEN = {"ternausnet11": (256, 256, 128, 64, 32), "ternausnet16": (256, 256, 256, 64, 32)}
"""Filters after each doubling of the size, from the centre on."""
LAST = 32
"""Filters of the last convolution before the head."""
KERNEL = {"ternausnet11": 3, "ternausnet16": 4}
"""Side of a transposed convolution."""
STRIDE = 32
VGG_OF = {"ternausnet11": "vgg11", "ternausnet16": "vgg16"}
PUBLISHED = {
    "vgg11": {
        "imagenet": {"repo_id": "smp-hub/vgg11.imagenet", "revision": "ad8b90e1051c38fdbf399cf5016886a1be357390"},
    },
    "vgg16": {
        "imagenet": {"repo_id": "smp-hub/vgg16.imagenet", "revision": "49d74b799006ee252b86e25acd6f1fd8ac9a99c1"},
    },
}
"""Where the hub has torchvision's weights; as in segmentation-models-pytorch 0.6, `encoders/vgg.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TernausConfig:
    """What a TernausNet is made of.

    Parameters
    ----------
    bands, classes : int
        Input and output channels.
    arch : "ternausnet11" or "ternausnet16"
        22,927,393 weights for three bands and a class; 32,202,337, or 29,306,465 without transposed convolutions.
    upsampling : "transposed", "bilinear" or "nearest"
        How the size is doubled.

    Raises
    ------
    UsageError
        A value outside its range (E-USE-052).
    """

    bands: int
    classes: int
    arch: TernausArch = "ternausnet11"
    upsampling: Upsampling = "transposed"

    def __post_init__(self) -> None:
        require_counts(self, code="E-USE-052")
        for name, known in (("arch", ARCHITECTURES), ("upsampling", get_args(Upsampling))):
            value = getattr(self, name)
            require(value in known, name, value, f"one of {', '.join(known)}", code="E-USE-052")

    @property
    def encoder(self) -> str:
        """The encoder as libraries call it."""
        return VGG_OF[self.arch]

    @property
    def crop(self) -> int:
        """Pixels missing on each side of the output: none."""
        return 0

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of this: there are five poolings."""
        return STRIDE


class TernausNet(EncoderNetwork):
    """VGG's convolutions, a way back to full size, and a head that returns logits.

    Parameters
    ----------
    config : TernausConfig
    weights : str, optional
        Of the encoder: a file, or "imagenet"; random when left out.
    shares : Tensor (bands, 3), optional
        What each band takes of filters of red, green and blue; repeated and rescaled when left out.
    prior : float or sequence of float, optional
        Expected share of each class, 0..1 exclusive: the last bias starts at its log-odds.
    generator : torch.Generator, optional
        Source of the random weights; torch's global one when left out.

    Raises
    ------
    UsageError
        Weights of an unknown name, or a prior that is no share.
    ModelError, DependencyError
        As `weights.find_weights` and `weights.fit_encoder`.
    """

    def __init__(
        self,
        config: TernausConfig,
        *,
        weights: str | None = None,
        shares: Tensor | None = None,
        prior: float | Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config: TernausConfig = config
        levels = LEVELS[config.arch]
        self.encoder = VGG(config.bands, levels)
        skips = [level[-1] for level in reversed(levels)]  # coarsest first
        source, blocks = skips[0], []
        for middle, skip, width in zip([skips[0], *skips[:-1]], skips, RISEN[config.arch], strict=True):
            blocks.append(_rise(config, source, middle, width))
            source = width + skip
        self.decoder = nn.ModuleList([*blocks, _conv(source, LAST)])
        self.head = nn.Conv2d(LAST, config.classes, kernel_size=1)
        he_weights(self, generator)
        begin_at(self.head, prior, config.classes, generator)
        if weights is not None:
            found = read_weights(find_weights(weights, config.encoder, PUBLISHED[config.encoder]))
            fit_encoder(self.encoder, found, bands=config.bands, side=STRIDE, source=weights, shares=shares)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W) of `x` (B, C, H, W).

        Raises
        ------
        BandError
            C is not the number of bands.
        GridError
            H or W is no multiple of `stride`.
        """
        self._check(x)
        *skips, x = self.encoder(x)  # (B, 64, H, W) ... (B, 512, H/16, W/16), and (B, 512, H/32, W/32)
        centre, *blocks = self.decoder
        x = centre(x)  # (B, 256, H/16, W/16)
        for block in blocks:
            x = block(torch.cat([x, skips.pop()], dim=1))  # one level finer, but for the last
        logits: Tensor = self.head(x)
        return logits


class VGG(nn.Module):
    """The convolutions of VGG, without its classifier: each level before its pooling, and the last one pooled."""

    def __init__(self, bands: int, levels: Sequence[Sequence[int]]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in levels:
            for width in level:
                layers += [nn.Conv2d(bands, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                bands = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return (B, 64, H, W), (B, 128, H/2, W/2) ... (B, 512, H/32, W/32) of `x` (B, C, H, W)."""
        levels = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                levels.append(x)
            x = layer(x)
        return [*levels, x]


def drafted(config: TernausConfig) -> TernausNet:
    """Return the network of `config` without memory behind its weights, which are to be assigned."""
    with torch.device("meta"):
        return TernausNet(config)


def _conv(source: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(source, width, kernel_size=3, padding=1), nn.ReLU(inplace=True))


def _rise(config: TernausConfig, source: int, middle: int, width: int) -> nn.Sequential:
    """Return a convolution to `middle` filters and twice the size with `width`."""
    if config.upsampling == "transposed":
        size = KERNEL[config.arch]
        rise = nn.ConvTranspose2d(middle, width, size, stride=2, padding=1, output_padding=size % 2)
        return nn.Sequential(*_conv(source, middle), rise, nn.ReLU(inplace=True))
    smooth = {"align_corners": False} if config.upsampling == "bilinear" else {}
    enlarge = nn.Upsample(scale_factor=2, mode=config.upsampling, **smooth)
    return nn.Sequential(enlarge, *_conv(source, middle), *_conv(middle, width))
