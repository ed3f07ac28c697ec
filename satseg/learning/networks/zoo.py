"""Networks on the encoders of segmentation-models-pytorch ("smp"), which may start from learnt weights.

The library builds encoder, decoder and head; this room gives them the house's interface. The library is
asked for when such a network is, and weights are read in training alone: a model file is loaded from itself.
How far a network looks is found by trying: a block of NaN goes in, and where NaN comes out it has acted,
whatever the weights. Networks that take means over the whole input (squeeze-and-excitation, attention, FPN's group
normalisation, DeepLab's image pooling) have a reach without end; with them, tiles differ from the whole scene.
Rejected: formulas of the reach, one for each of 76 encoders; and the library's own freezing, new in its 0.6.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from satseg.errors import UsageError
from satseg.learning.machine import optional_package
from satseg.learning.networks.network import Network, log_odds
from satseg.learning.networks.unet import HEAD_STD
from satseg.learning.networks.weights import EXTRA, find_weights, fit_encoder, read_weights
from satseg.run import ModelOptions
from satseg.specs import suggest

__all__ = [
    "ZooConfig", "ZooNet", "check_encoder", "hold_encoder", "parameter_groups", "drafted", "ARCHITECTURES", "LIBRARY",
]  # fmt: skip

LIBRARY = "segmentation_models_pytorch"
ARCHITECTURES: tuple[str, ...] = get_args(ModelOptions.model_fields["arch"].annotation)
STRIDES = {"deeplabv3plus": 16}
"""Of the coarsest level, where it is not `USUAL_STRIDE`: DeepLab dilates its last level instead."""
USUAL_STRIDE = 32
MOST = 4096
"""Bands, classes: bounded so that a foreign model card cannot ask for a network without end."""
FIRST_TRY, LAST_TRY = 8, 64
"""Strides over which a reach is looked for: doubled up to 2048 pixels; the farthest of the encoders reaches 1600."""
PARTS = 4
"""Parts of an encoder between which learning rates may fall; ResNets and most others have four stages."""


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
        for name in ("bands", "classes"):
            value = getattr(self, name)
            if not (isinstance(value, int) and 1 <= value <= MOST):
                raise UsageError(f"{name}={value!r} is not a whole number from 1 to {MOST}", code="E-USE-056")
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


class ZooNet(Network):
    """Encoder, decoder and head of the library, whose names its weights keep.

    Parameters
    ----------
    config : ZooConfig
    weights : str, optional
        Of the encoder: a file, or a name that the library has published; random when left out.
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
        prior: float | Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config: ZooConfig = config
        with _seeded(generator):
            model = _built(config, bands=config.bands if weights is None else 3)
        self.encoder, self.decoder, self.segmentation_head = model.encoder, model.decoder, model.segmentation_head
        if weights is not None:
            found = find_weights(weights, config.encoder, _published(config.encoder))
            fit_encoder(self.encoder, read_weights(found), bands=config.bands, source=weights)
        head = self.segmentation_head[0]
        nn.init.normal_(head.weight, std=HEAD_STD, generator=generator)
        with torch.no_grad():
            head.bias.copy_(log_odds(prior, config.classes))
        self._held = False
        self._reach: list[int | None] = []

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

    @property
    def reach(self) -> int | None:
        """Distance beyond which no input pixel acts, in whole strides; None: it acts at any distance.

        Found on the CPU, in about a second of it, when it is first asked for.
        """
        if not self._reach:
            own = copy.deepcopy(self).cpu().float().eval()
            self._reach.append(_reach_of(own))
        return self._reach[0]

    def hold(self, held: bool) -> None:
        """Keep the encoder's weights and statistics as they are, or let them learn (again)."""
        if held != self._held:
            self._held = held
            self.encoder.requires_grad_(not held)
            self.train(self.training)

    def train(self, mode: bool = True) -> ZooNet:
        """Switch to training or evaluation; an encoder that is held stays in evaluation."""
        super().train(mode)
        if self._held:
            self.encoder.eval()
        return self


def check_encoder(options: ModelOptions) -> None:
    """Raise what a network of `options` would raise for its names and for weights that are not there.

    Nothing is built, so that a run can be refused before its data are read; published weights are fetched.

    Raises
    ------
    UsageError, ModelError, DependencyError
        As `ZooConfig` and `weights.find_weights`.
    """
    if options.encoder is None:
        return
    ZooConfig(bands=1, classes=1, arch=options.arch, encoder=options.encoder)
    if options.weights is not None:
        find_weights(options.weights, options.encoder, _published(options.encoder))


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


def hold_encoder(network: Network, options: ModelOptions, share: float) -> None:
    """Hold the encoder of `network` while `share`, 0..1, of the budget is below `options.freeze`; for 1, always.

    What it does depends on the share alone, so that a resumed run goes on as it would have. The plain UNet
    has nothing to hold.
    """
    if isinstance(network, ZooNet):
        network.hold(share < options.freeze or options.freeze >= 1)


def parameter_groups(network: Network, options: ModelOptions) -> list[dict[str, Any]]:
    """Return all weights of `network` as groups for an optimiser, each with a "factor" on the learning rate.

    The plain UNet is one group. Encoders learn at `encoder_rate`; with a `layer_decay` their weights, in order
    from the input on, are four equal parts of which each learns that much slower than the one after (Howard and
    Ruder 2018, arXiv 1801.06146, 3.2).
    """
    if not isinstance(network, ZooNet):
        return [{"params": list(network.parameters()), "factor": 1.0}]
    encoder = list(network.encoder.parameters())
    others = [*network.decoder.parameters(), *network.segmentation_head.parameters()]
    parts = 1 if options.layer_decay == 1 else PARTS
    bounds = [len(encoder) * part // parts for part in range(parts + 1)]
    factors = [options.encoder_rate * options.layer_decay ** (parts - 1 - part) for part in range(parts)]
    groups = [
        {"params": encoder[low:high], "factor": factor}
        for low, high, factor in zip(bounds, bounds[1:], factors, strict=False)
    ]
    return [*groups, {"params": others, "factor": 1.0}]


def _library() -> Any:
    return optional_package(LIBRARY, extra=EXTRA)


def _published(encoder: str) -> dict[str, dict[str, str]]:
    """Return where the library has weights of `encoder`, by their names."""
    known: dict[str, dict[str, str]] = _library().encoders.encoders[encoder]["pretrained_settings"]
    return known


def _built(config: ZooConfig, *, bands: int) -> Any:
    """Return the library's model, its weights random and nothing asked of any network."""
    library = _library()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # old names of encoders, which files may bear
            return library.create_model(
                config.arch, config.encoder, encoder_weights=None, in_channels=bands, classes=config.classes
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


@torch.inference_mode()
def _reach_of(network: ZooNet) -> int | None:
    """Distance in whole strides over which a block of `stride` pixels acts, or None: without end.

    NaN x 0 is NaN, so that weights do not matter. The input is as narrow as it can be across.
    """
    stride, strides = network.stride, FIRST_TRY
    while strides <= LAST_TRY:
        farthest = max(_spread(network, dim, strides) for dim in (2, 3))
        if farthest < strides:
            return farthest * stride
        strides *= 2
    return None


def _spread(network: ZooNet, dim: int, strides: int) -> int:
    """Strides along `dim` from a block of NaN to the last NaN of the answer, at most `strides`."""
    stride = network.stride
    shape = [1, network.config.bands, stride, stride]
    shape[dim] *= 2 * strides + 1
    image = torch.zeros(shape)
    image.narrow(dim, strides * stride, stride).fill_(torch.nan)
    other = 5 - dim
    touched = network(image).isnan().any(dim=other).any(dim=1)[0].nonzero() // stride
    return max(strides - int(touched.min()), int(touched.max()) - strides)
