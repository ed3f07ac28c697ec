"""Networks on the encoders of segmentation-models-pytorch ("smp"), which may start from learnt weights.

The library builds encoder, decoder and head; this room gives them the house's interface. The library is
asked for when such a network is, and weights are read in training alone: a model file is loaded from itself.
Rejected: the library's own first layers for other bands, which know no wavelengths.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from satseg.errors import UsageError
from satseg.learning.machine import optional_package
from satseg.learning.networks.encoders import EncoderNetwork
from satseg.learning.networks.network import begin_at, require_counts
from satseg.learning.networks.weights import EXTRA, find_weights, fit_encoder, read_weights
from satseg.options import ZooArch
from satseg.specs import suggest

__all__ = ["ZooConfig", "ZooNet", "published", "drafted", "ARCHITECTURES", "LIBRARY"]

LIBRARY = "segmentation_models_pytorch"
ARCHITECTURES: tuple[str, ...] = get_args(ZooArch)
STRIDES = {"deeplabv3plus": 16}
"""Of the coarsest level, where it is not `USUAL_STRIDE`: DeepLab dilates its last level instead."""
USUAL_STRIDE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooConfig:
    """What a network of the library is made of.

    Parameters
    ----------
    bands, classes : int
        Input and output channels.
    arch : str
        One of `ARCHITECTURES`, by the library's name.
    encoder : str
        By the library's name.

    Raises
    ------
    UsageError
        A value outside its range, or an encoder that the library does not have (E-USE-056).
    DependencyError
        The library is not installed (E-DEP-010).
    """

    bands: int
    classes: int
    arch: str = "unet"
    encoder: str = "resnet34"

    def __post_init__(self) -> None:
        require_counts(self, code="E-USE-056")
        for name, known in (("arch", ARCHITECTURES), ("encoder", tuple(_library().encoders.encoders))):
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"{name} {value!r} is not known{suggest(str(value), known)}", code="E-USE-056")

    @property
    def crop(self) -> int:
        """Pixels missing on each side of the output: none."""
        return 0

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of this."""
        return STRIDES.get(self.arch, USUAL_STRIDE)


class ZooNet(EncoderNetwork):
    """Encoder, decoder and head of the library, whose names its weights keep.

    Parameters
    ----------
    config : ZooConfig
    weights : str, optional
        Of the encoder: a file, or a name that the library has published; random when left out.
    shares : Tensor (bands, 3), optional
        What each band takes of filters of red, green and blue; repeated and rescaled when left out.
    prior : float or sequence of float, optional
        Expected share of each class, 0..1 exclusive: the last bias starts at its log-odds.
    generator : torch.Generator, optional
        Source of the random weights; torch's global one when left out.

    Raises
    ------
    UsageError
        The library has no such decoder for this encoder (E-USE-058), weights of an unknown name, or a
        prior that is no share.
    ModelError, DependencyError
        As `weights.find_weights` and `weights.fit_encoder`.
    """

    def __init__(
        self,
        config: ZooConfig,
        *,
        weights: str | None = None,
        shares: Tensor | None = None,
        prior: float | Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config: ZooConfig = config
        with _seeded(generator):
            model = _built(config)
        self.encoder, self.decoder, self.segmentation_head = model.encoder, model.decoder, model.segmentation_head
        if weights is not None:
            found = read_weights(find_weights(weights, config.encoder, published(config.encoder)))
            fit_encoder(self.encoder, found, bands=config.bands, side=USUAL_STRIDE, source=weights, shares=shares)
        begin_at(self.segmentation_head[0], prior, config.classes, generator)

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
        levels = self.encoder(x)  # [(B, C, H, W), (B, C1, H/2, W/2), ...]
        logits: Tensor = self.segmentation_head(self.decoder(levels))
        return logits


def drafted(config: ZooConfig) -> ZooNet:
    """Return the network of `config` without memory behind its weights, which are to be assigned.

    Where the library needs values to build one (its "mit" encoders), it is a real one, of at most 90 million weights.
    """
    with torch.random.fork_rng(devices=[]):
        with suppress(RuntimeError), torch.device("meta"):
            network = ZooNet(config)
            if dict(network.named_buffers()).keys() <= network.state_dict().keys():
                return network
        return ZooNet(config)


def _library() -> Any:
    return optional_package(LIBRARY, extra=EXTRA)


def published(encoder: str) -> dict[str, dict[str, str]]:
    """Return where the library has weights of `encoder`, by their names."""
    known: dict[str, dict[str, str]] = _library().encoders.encoders[encoder]["pretrained_settings"]
    return known


def _built(config: ZooConfig) -> Any:
    """Return the library's model, its weights random and nothing asked of any network."""
    library = _library()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # old names of encoders, which files may bear
            return library.create_model(
                config.arch, config.encoder, encoder_weights=None, in_channels=config.bands, classes=config.classes
            )
    except (ValueError, NotImplementedError, KeyError) as error:
        raise UsageError(
            f"arch {config.arch!r} cannot stand on encoder {config.encoder!r}: {error}",
            hint="take arch='unet', or a resnet as encoder",
            code="E-USE-058",
        ) from error


@contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Draw from a number of `generator` inside the block, where the library takes no generator."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
