"""Means of scores: of the views of one network, and of the members of an ensemble.

Arithmetic, the default: no view that is very sure outvotes the others. Geometric: a class must convince all of them,
as in the recipe of 2017. Either is taken over scores, not over logits, and without leaving 32 bits: the geometric one
over logarithms of scores. Rejected: the mean of logits, in which one view without any doubt decides alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from satseg.learning.networks.ensemble_file import Mean

__all__ = ["entropies", "linked", "unlinked"]


def linked(logits: Tensor, mean: Mean) -> Tensor:
    """Return what the mean is taken of: the scores of `logits`, or the logarithms of these."""
    return logits.sigmoid() if mean == "arithmetic" else F.logsigmoid(logits)


def unlinked(values: Tensor, mean: Mean) -> Tensor:
    """Return the logits of a mean of what `linked` returned; -inf and inf at scores of 0 and 1."""
    if mean == "arithmetic":
        return torch.logit(values)
    return values - torch.log(-torch.expm1(values))


def entropies(scores: Tensor) -> Tensor:
    """Return the binary entropy of `scores`, in bits, in their shape."""
    other = 1 - scores
    nats: Tensor = torch.special.entr(scores) + torch.special.entr(other)
    return nats / math.log(2)
