"""Which networks there are: from a run's options to a new one, from a card to a saved one, and back.

The only room that knows all kinds, the plain UNet, several of it and those of the zoo; others take a `Network`.
A card names the kind and the arguments, checked and bounded by the kind's own configuration. Rejected:
a table where kinds register themselves, for which two are too few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from satseg.errors import UsageError
from satseg.learning.card import Architecture
from satseg.learning.networks.committee import Committee, CommitteeConfig
from satseg.learning.networks.network import Network
from satseg.learning.networks.unet import UNet, UNetConfig, parameter_count
from satseg.learning.networks.zoo import LIBRARY, ZooConfig, ZooNet, drafted
from satseg.run import ModelOptions

__all__ = ["architecture_of", "library_versions", "new_network", "saved_network"]


def new_network(
    options: ModelOptions, *, bands: int, classes: int, prior: float, generator: torch.Generator
) -> Network:
    """Return an untrained network of `options`; what is random in it comes from `generator`.

    Raises
    ------
    UsageError
        An option is out of range.
    ModelError, DependencyError
        As `zoo.ZooNet`.
    """
    kind = UNetConfig if options.encoder is None else ZooConfig
    given = {field.name: getattr(options, field.name) for field in fields(kind) if hasattr(options, field.name)}
    config = kind(bands=bands, classes=classes, **given)
    if isinstance(config, UNetConfig):
        if (options.members or 1) > 1:
            committee = CommitteeConfig(member=config, members=options.members or 1)
            return Committee(committee, prior=prior, generator=generator)
        return UNet(config, prior=prior, generator=generator)
    return ZooNet(config, weights=options.weights, prior=prior, generator=generator)


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
    if architecture.name == "smp":
        drawn = drafted(ZooConfig(**arguments))
        drawn.load_state_dict(weights, assign=True)
        return drawn
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
    if isinstance(network, ZooNet):
        return Architecture(name="smp", arguments=asdict(network.config))
    if isinstance(network, Committee):
        return Architecture(name="committee", arguments=network.config.arguments)
    if isinstance(network, UNet):
        return Architecture(arguments=asdict(network.config))
    raise TypeError(f"a card cannot describe {type(network).__name__}")


def library_versions(network: Network) -> dict[str, str]:
    """Return the version of the package that `network` is from, by its name; nothing for our own."""
    return {LIBRARY: version(LIBRARY)} if isinstance(network, ZooNet) else {}
