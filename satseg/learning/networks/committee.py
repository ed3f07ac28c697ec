"""Several UNets that answer as one: the same budget, better scores in places that nobody has seen.

What a network makes of a new town depends much on chance, and means of several depend less; and a network that sees
its ground too often learns it by heart. So a long run trains some in turn, a step each, and their mean logit is the
answer; they share chips, schedule and file, and are one network to everybody else. How many, and what it brings,
`training.recipe.members_for` says. Detection takes as many times longer as there are members.

Rejected: one network trained for as many steps as all of them, which gains on the ground it knows and loses
elsewhere; averaged weights, which only members from one common start can share (Wortsman et al. 2022, arXiv
2203.05482), and which brought nothing along one run; and several model files, which are for models of different
runs (`ensemble_file`).

Source: Lakshminarayanan et al. 2017, arXiv 1612.01474.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from satseg.errors import UsageError
from satseg.learning.networks.network import Network
from satseg.learning.networks.unet import UNet, UNetConfig, reach

MOST_MEMBERS = 32
"""Bounded so that a foreign model card cannot ask for networks without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitteeConfig:
    """What a committee is made of.

    Parameters
    ----------
    member : UNetConfig
        Of each of them.
    members : int
        How many, 2 or more.

    Raises
    ------
    UsageError
        `members` is out of range.
    """

    member: UNetConfig
    members: int

    def __post_init__(self) -> None:
        if not (isinstance(self.members, int) and 2 <= self.members <= MOST_MEMBERS):
            raise UsageError(
                f"members={self.members!r} is not a whole number from 2 to {MOST_MEMBERS}", code="E-USE-050"
            )

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> CommitteeConfig:
        """Return the configuration whose `arguments` these are."""
        member = {name: value for name, value in arguments.items() if name != "members"}
        return cls(member=UNetConfig(**member), members=arguments["members"])

    @property
    def arguments(self) -> dict[str, Any]:
        """The members' arguments and their number, as a card has them."""
        return {**asdict(self.member), "members": self.members}

    @property
    def bands(self) -> int:
        """Input channels."""
        return self.member.bands

    @property
    def classes(self) -> int:
        """Output channels."""
        return self.member.classes

    @property
    def crop(self) -> int:
        """Pixels missing on each side of the output."""
        return self.member.crop

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of this."""
        return self.member.stride


class Committee(Network):
    """UNets of one configuration, of which one learns at a time, and whose mean logit is the answer.

    Parameters
    ----------
    config : CommitteeConfig
    prior, generator
        As `UNet` takes them; members are drawn from `generator` one after the other.
    """

    def __init__(
        self,
        config: CommitteeConfig,
        *,
        prior: float | Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config: CommitteeConfig = config
        self.members = nn.ModuleList(
            UNet(config.member, prior=prior, generator=generator) for _ in range(config.members)
        )
        self._turn = 0

    @classmethod
    def joined(cls, config: CommitteeConfig, members: Sequence[nn.Module]) -> Committee:
        """Return a committee of `members`, which compute what UNets of `config` would."""
        committee = cls.__new__(cls)
        nn.Module.__init__(committee)
        committee.config, committee.members, committee._turn = config, nn.ModuleList(members), 0
        return committee

    @property
    def learners(self) -> int:
        """How many members there are, of which one learns at a time."""
        return len(self.members)

    def take_turn(self, step: int) -> None:
        """Let member `step` modulo their number be the one that learns."""
        self._turn = step % len(self.members)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H - 2 crop, W - 2 crop) of `x` (B, C, H, W): the mean, while training those of one member.

        Raises
        ------
        BandError, GridError
            As `UNet.forward`.
        """
        if self.training:
            learning: Tensor = self.members[self._turn](x)
            return learning
        first, *others = self.members
        total: Tensor = first(x)
        for member in others:
            total = total + member(x)
        return total / len(self.members)

    @property
    def reach(self) -> int:
        """Greatest distance, in rows or columns, over which an input pixel acts on an output pixel."""
        return reach(self.config.member)
