"""The members' answers become one, a member at a time.

An ensemble holds a few planes of one batch, whatever the number of its members: what is summed up of those that have
answered. How a score is made of theirs stands in `ensemble_file`, and there in NumPy too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from satseg.learning.networks.ensemble import Predictor
from satseg.learning.networks.ensemble_file import LOGIT_LIMIT, ClassStacker, Mean
from satseg.learning.networks.means import entropies, linked, unlinked

__all__ = ["Blend", "Blending"]


@dataclass(frozen=True, slots=True)
class Blending:
    """How one answer is made of the members'.

    Parameters
    ----------
    mean : "arithmetic" or "geometric"
    classes : int
        Planes of classes, K; those of cores follow.
    planes : tuple of tuple of int
        Where each member's planes are among those of the ensemble, P.
    stackers : tuple of (plane, ClassStacker)
        Of classes that have one, weights in the order in which members answer.
    apart : bool
        Whether the members' disagreement is to be known.
    """

    mean: Mean
    classes: int
    planes: tuple[tuple[int, ...], ...]
    stackers: tuple[tuple[int, ClassStacker], ...] = ()
    apart: bool = False

    @classmethod
    def of(cls, model: Predictor, mean: Mean, *, apart: bool = False) -> Blending:
        """Return how the members of `model` are blended."""
        names = [*model.classes, *model.separated]  # a class stands first among them, its cores last
        count = len(model.classes)
        planes = tuple(
            (*range(count), *(names.index(name, count) for name in member.separated)) for member in model.members
        )
        return cls(mean, count, planes, model.stackers, apart)

    def begin(self) -> Blend:
        """Return a blend of one piece of ground, to which no member has answered yet."""
        return Blend(self)


class Blend:
    """What members say of one piece of ground, as far as they have answered."""

    def __init__(self, how: Blending) -> None:
        self._how, self._members = how, 0
        self._counts = [sum(plane in planes for planes in how.planes) for plane in range(1 + max(map(max, how.planes)))]
        self._total = self._scores = self._entropies = torch.zeros(())
        self._stacked: list[Tensor] = []

    def add(self, logits: Tensor) -> None:
        """Take the logits (p, h, w) of the next member."""
        how = self._how
        if not self._members:
            self._total = logits.new_zeros((len(self._counts), *logits.shape[1:]))
            self._stacked = [torch.full_like(logits[0], one.bias) for _, one in how.stackers]
        self._total[list(how.planes[self._members])] += linked(logits, how.mean)
        for so_far, (plane, one) in zip(self._stacked, how.stackers, strict=True):
            so_far += one.weights[self._members] * logits[plane].clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        if how.apart:
            scores = logits[: how.classes].sigmoid()
            self._scores = self._scores.to(scores) + scores
            self._entropies = self._entropies.to(scores) + entropies(scores)
        self._members += 1

    def logits(self) -> Tensor:
        """Return the logits (P, h, w) of the members' common scores."""
        counts = self._total.new_tensor(self._counts)[:, None, None]
        found = unlinked(self._total / counts, self._how.mean)
        for stacked, (plane, _) in zip(self._stacked, self._how.stackers, strict=True):
            found[plane] = stacked
        return found

    def disagreement(self) -> Tensor:
        """Return the greatest disagreement over a class (1, h, w), in bits of 0..1.

        That is the mutual information between the class and the member asked (Houlsby et al. 2011, arXiv:1112.5745):
        the entropy of the mean score less the mean entropy of the scores. 0 where all members say the same, however
        unsure they are; 1 where half are sure of it and half are sure of the contrary.
        """
        common = entropies(self._scores / self._members)
        return (common - self._entropies / self._members).clamp(0, 1).amax(dim=0, keepdim=True)
