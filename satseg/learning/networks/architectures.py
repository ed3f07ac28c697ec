"""Which networks there are: from a run's options to a new one, from a card to a saved one, and back.

The only room that knows all kinds (the UNet, several of it, TernausNet, those of the zoo); others take a `Network`.
A card names the kind and the arguments, checked and bounded by the kind's own configuration. Rejected:
a table where kinds register themselves, for which three are too few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from satseg.errors import UsageError
from satseg.learning.card import Architecture, BandCard
from satseg.learning.networks import ternausnet, zoo
from satseg.learning.networks.committee import Committee, CommitteeConfig
from satseg.learning.networks.inflation import RGB, by_wavelength
from satseg.learning.networks.network import Network
from satseg.learning.networks.ternausnet import TernausConfig, TernausNet
from satseg.learning.networks.unet import UNet, UNetConfig, parameter_count
from satseg.learning.networks.weights import find_weights
from satseg.learning.networks.zoo import LIBRARY, ZooConfig, ZooNet
from satseg.options import ModelOptions

__all__ = ["architecture_of", "check_network", "library_versions", "new_network", "saved_network"]

CONFIGS: dict[str, type[UNetConfig | TernausConfig | ZooConfig]] = {
    "unet": UNetConfig, "ternausnet": TernausConfig, "smp": ZooConfig,
}  # fmt: skip


def new_network(
    options: ModelOptions,
    *,
    bands: int,
    classes: int,
    prior: float,
    generator: torch.Generator,
    cards: Sequence[BandCard] = (),
) -> Network:
    """Return an untrained network of `options`; what is random in it comes from `generator`.

    Parameters
    ----------
    cards : sequence of BandCard
        Of the bands in order: what "wavelength" (`options.inflate`) goes by.

    Raises
    ------
    UsageError
        An option is out of range.
    ModelError, DependencyError
        As `zoo.ZooNet` and `ternausnet.TernausNet`.
    BandError
        Weights are to serve by wavelength, and none is known (E-BAND-053).
    """
    kind = CONFIGS[options.kind]
    given = {field.name: getattr(options, field.name, None) for field in fields(kind)}
    config = kind(**{"bands": bands, "classes": classes} | {k: v for k, v in given.items() if v is not None})
    if isinstance(config, UNetConfig):
        if (options.members or 1) > 1:
            committee = CommitteeConfig(member=config, members=options.members or 1)
            return Committee(committee, prior=prior, generator=generator)
        return UNet(config, prior=prior, generator=generator)
    shares = by_wavelength(cards, RGB) if options.inflate == "wavelength" else None
    start: dict[str, Any] = {"weights": options.weights, "shares": shares, "prior": prior, "generator": generator}
    return TernausNet(config, **start) if isinstance(config, TernausConfig) else ZooNet(config, **start)


def check_network(options: ModelOptions) -> None:
    """Raise what a network of `options` would raise for its names and for weights that are not there.

    Nothing is built, so that a run can be refused before its data are read; published weights are fetched.

    Raises
    ------
    UsageError, ModelError, DependencyError
        As `zoo.ZooConfig` and `weights.find_weights`.
    """
    if options.encoder is not None:
        ZooConfig(bands=1, classes=1, arch=options.arch, encoder=options.encoder)
    if options.weights is None:
        return
    encoder = options.encoder or ternausnet.VGG_OF[options.arch]
    find_weights(options.weights, encoder, zoo.published(encoder) if options.encoder else ternausnet.PUBLISHED[encoder])


def saved_network(architecture: Architecture, weights: Mapping[str, Tensor]) -> Network:
    """Return the network of `architecture` with `weights`, which are not copied.

    Memory is taken only after sizes have been compared, and nothing is asked of any network.

    Raises
    ------
    UsageError, RuntimeError
        Arguments are out of range, or weights are not those of such a network.
    DependencyError
        The package that the network is from is not installed (E-DEP-010).
    """
    arguments: dict[str, Any] = {**architecture.arguments}
    network: Network
    if architecture.name == "smp":
        network = zoo.drafted(ZooConfig(**arguments))
    elif architecture.name == "ternausnet":
        network = ternausnet.drafted(TernausConfig(**arguments))
    else:
        together = CommitteeConfig.of(arguments) if architecture.name == "committee" else None
        config = UNetConfig(**arguments) if together is None else together.member
        # torch's meta device would do here too, at 150 MB for its own modules.
        asked = parameter_count(config) * (1 if together is None else together.members)
        if asked > sum(value.numel() for value in weights.values()):
            raise UsageError(f"{arguments} asks for more than there are")
        network = UNet(config) if together is None else Committee(together)
    network.load_state_dict(weights, assign=True)
    return network


def architecture_of(network: Network) -> Architecture:
    """Return the architecture part of a card for `network`."""
    if isinstance(network, Committee):
        return Architecture(name="committee", arguments=network.config.arguments)
    for name, kind in (("smp", ZooNet), ("ternausnet", TernausNet), ("unet", UNet)):
        if isinstance(network, kind):
            return Architecture.model_validate({"name": name, "arguments": asdict(network.config)})
    raise TypeError(f"a card cannot describe {type(network).__name__}")


def library_versions(network: Network) -> dict[str, str]:
    """Return the version of the package that `network` is from, by its name; nothing for our own."""
    return {LIBRARY: version(LIBRARY)} if isinstance(network, ZooNet) else {}
