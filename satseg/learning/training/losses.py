"""Losses of a multi-label segmentation: cross-entropy, overlaps soft and hard, and the sums of the two.

Every loss takes logits (B, K, H, W), targets of the same shape (bool, uint8 or float in 0..1) and
`labelled` (B, 1 or K, H, W), True where the truth is known; what lies elsewhere has no influence,
NaN included. Sums run over the whole batch and both axes, per class, in float32 at least: a bf16
sum stops growing at 256. Overlaps are averaged over classes, as Iglovikov et al. 2017 do.

A class without one positive labelled pixel in the batch has no overlap to improve: its Jaccard is
0 whatever is predicted, and -ln of it explodes. Such a class is left out of the mean, so that only
the cross-entropy speaks for it; with none left the overlap term is 0. Rejected: a large smoothing
constant, which lets an empty class pull as strongly as its batch happens to be small.

The default is 0.9 BCE - 0.1 ln J. A pixel of a class on a fifth of the ground then gets most of its gradient from BCE,
of one on a hundredth from J. Evidence (`benchmarks.accuracy`), Jaccards of buildings in unseen towns, pooled over
Nairobi and Zanzibar: after three CPU-minutes, means of three seeds, 0.558, with BCE alone 0.562, with BCE - ln J, the
default before, 0.537; after ten, one run each, 0.549, 0.557 and 0.551. In Las Vegas, 26 buildings that another sensor
saw: after three 0.52 to 0.56, 0.51 to 0.58, and with BCE - ln J 0.52 to 0.62; after ten 0.75, 0.72, and 0.71 and 0.72.
On a tile with 71 pixels of buildings that is learnt by heart, BCE alone had 0.94 of them after 320 steps, the default
all. Others in Nairobi, after three minutes and one run each: Lovász 0.57 and an F1 of 0.67, Tversky 0.54 and 0.58,
focal 0.49 and 0.58, boundary 2 0.53 and 0.60, the default 0.55 and 0.66, 0.53 and 0.64. Recipes of the DSTL contest
keep BCE - ln J, with which they were measured.

Cross-entropies take two more parameters, both 0 unless given. `boundary` makes a pixel near a border of
its class count 1 + `boundary` times, found on the batch at hand with two poolings; rejected: the distance
maps of Ronneberger et al. 2015, for they cost more than a step. `smoothing` moves targets that far towards
1/2 (Szegedy et al. 2016, arXiv 1512.00567); overlaps are counts of pixels, and see the targets as they are.
Sums with an overlap take their cross-entropy as a function, into which `make_loss` puts both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from satseg.errors import GridError, SpecError
from satseg.options import TrainOptions
from satseg.specs import suggest

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""loss(logits, targets, labelled) -> scalar Tensor in float32 or float64."""

SMOOTHING = 1e-7
"""Added to both sides of an overlap: moves it by less than 1e-7, and keeps -ln of it under 35."""
BORDER_PX = 2
"""A pixel is near a border when both sides of it lie within this many rows and columns."""


def bce(
    logits: Tensor,
    targets: Tensor,
    labelled: Tensor | None = None,
    *,
    boundary: float = 0.0,
    smoothing: float = 0.0,
) -> Tensor:
    """Binary cross-entropy, mean over labelled pixels and classes; 0 when there are none.

    The mean is weighted, so that `boundary` moves attention and not the size of the loss.
    """
    logits, targets, weight = _usable(logits, targets, labelled)
    if boundary:
        weight = weight * (1 + boundary * near_border(targets, weight > 0))
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return _mean(loss, weight)


def focal(
    logits: Tensor,
    targets: Tensor,
    labelled: Tensor | None = None,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Tensor:
    """Focal loss, mean over labelled pixels and classes (Lin et al. 2017, arXiv 1708.02002).

    `gamma` 0 and `alpha` 0.5 give half the binary cross-entropy. `alpha` weighs the positives.
    """
    logits, targets, weight = _usable(logits, targets, labelled)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    scores = logits.sigmoid()
    missed = scores + targets - 2 * scores * targets  # 1 - the score of what is true
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return _mean(balance * missed**gamma * loss, weight)


def tversky(
    logits: Tensor,
    targets: Tensor,
    labelled: Tensor | None = None,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> Tensor:
    """1 - Tversky index TP / (TP + alpha FP + beta FN) (Salehi et al. 2017, arXiv 1706.05721)."""
    return 1 - _overlap(logits, targets, labelled, alpha=alpha, beta=beta)


def soft_jaccard(logits: Tensor, targets: Tensor, labelled: Tensor | None = None) -> Tensor:
    """1 - J, with J = sum(y p) / sum(y + p - y p)."""
    return 1 - _overlap(logits, targets, labelled, alpha=1.0, beta=1.0)


def soft_dice(logits: Tensor, targets: Tensor, labelled: Tensor | None = None) -> Tensor:
    """1 - D, with D = 2 sum(y p) / sum(y + p)."""
    return 1 - _overlap(logits, targets, labelled, alpha=0.5, beta=0.5)


def log_jaccard(logits: Tensor, targets: Tensor, labelled: Tensor | None = None) -> Tensor:
    """-ln J of the mean soft Jaccard J over the classes present."""
    return -_overlap(logits, targets, labelled, alpha=1.0, beta=1.0).log()


def lovasz(logits: Tensor, targets: Tensor, labelled: Tensor | None = None) -> Tensor:
    """Lovasz hinge: the convex surrogate of 1 - J of hard masks (Berman et al. 2018, arXiv 1705.08790, alg. 1).

    Mean over the classes with a positive pixel; targets between 0 and 1 are taken as the nearer of the two.
    """
    logits, targets, weight = _usable(logits, targets, labelled)
    signs = 2.0 * (targets >= 0.5).to(logits.dtype) - 1.0
    errors = (1 - logits * signs).where(weight > 0, -torch.inf)  # unlabelled ones come last, and count 0
    errors, order = errors.transpose(0, 1).flatten(1).sort(dim=1, descending=True)  # (K, B H W)
    positive = ((signs + 1) / 2 * weight).transpose(0, 1).flatten(1).gather(1, order)
    total = positive.sum(dim=1, keepdim=True)
    jaccard = 1 - (total - positive.cumsum(1)) / (total + (1 - positive).cumsum(1))  # lost, the first n wrong
    steps = torch.diff(jaccard, dim=1, prepend=torch.zeros_like(total))
    present = (total[:, 0] > 0).to(logits.dtype)
    return _mean((errors.relu() * steps).sum(dim=1), present)


def bce_minus_log_jaccard(
    logits: Tensor, targets: Tensor, labelled: Tensor | None = None, *, entropy: Loss = bce
) -> Tensor:
    """BCE - ln J, the loss of Iglovikov et al. 2017 (arXiv 1706.06169, eq. 6)."""
    return entropy(logits, targets, labelled) + log_jaccard(logits, targets, labelled)


def weighted_bce_log_jaccard(
    logits: Tensor, targets: Tensor, labelled: Tensor | None = None, *, weight: float = 0.1, entropy: Loss = bce
) -> Tensor:
    """(1 - weight) BCE - weight ln J (Shvets et al. 2018, arXiv 1803.01207, with 0.3)."""
    return (1 - weight) * entropy(logits, targets, labelled) + weight * log_jaccard(logits, targets, labelled)


def bce_plus_dice(
    logits: Tensor, targets: Tensor, labelled: Tensor | None = None, *, weight: float = 1.0, entropy: Loss = bce
) -> Tensor:
    """BCE + weight (1 - D)."""
    return entropy(logits, targets, labelled) + weight * soft_dice(logits, targets, labelled)


LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        bce,
        focal,
        tversky,
        soft_jaccard,
        soft_dice,
        log_jaccard,
        lovasz,
        bce_minus_log_jaccard,
        weighted_bce_log_jaccard,
        bce_plus_dice,
    )
}


def make_loss(name: str, **params: float) -> Loss:
    """Return the loss called `name` with its keyword parameters filled in; it can be pickled.

    Raises
    ------
    SpecError
        No such loss (E-SPEC-050), or it has no such parameter (E-SPEC-051).
    """
    if name not in LOSSES:
        raise SpecError(f"no loss is called {name!r}{suggest(name, LOSSES)}", code="E-SPEC-050")
    own, of_entropy = _parameters(LOSSES[name]), []
    if "entropy" in own:
        own.remove("entropy")
        of_entropy = _parameters(bce)
    for param in params:
        if param not in own + of_entropy:
            tail = suggest(param, own + of_entropy)
            raise SpecError(f"loss {name} has no parameter {param!r}{tail}", code="E-SPEC-051")
    given = {param: value for param, value in params.items() if param in own}
    moved = {param: value for param, value in params.items() if param not in own}
    return partial(LOSSES[name], **given, **({"entropy": partial(LOSSES["bce"], **moved)} if moved else {}))


def _parameters(loss: Callable[..., Tensor]) -> list[str]:
    parameters = inspect.signature(loss).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def loss_of(options: TrainOptions) -> Loss:
    """Return the loss that a run's options name, with its parameters; raises as `make_loss`.

    `boundary` and `smoothing` are asked of the loss only where they are given, so that one without
    cross-entropy refuses them.
    """
    extra = {name: getattr(options, name) for name in ("boundary", "smoothing") if getattr(options, name)}
    return make_loss(options.loss, **{**options.loss_params, **extra})


def near_border(targets: Tensor, known: Tensor) -> Tensor:
    """Where `targets` (B, K, H, W) change within `BORDER_PX`, 0..1: the spread of the known ones around a pixel."""
    side = 2 * BORDER_PX + 1

    def highest(values: Tensor) -> Tensor:
        values = values.where(known, -torch.inf)
        rows = F.max_pool2d(values, (side, 1), stride=1, padding=(BORDER_PX, 0))
        return F.max_pool2d(rows, (1, side), stride=1, padding=(0, BORDER_PX))

    return (highest(targets) + highest(-targets)).clamp(min=0)


def _usable(logits: Tensor, targets: Tensor, labelled: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and weights, all (B, K, H, W) in one float dtype, 0 where not labelled.

    Logits are replaced and not only weighted by 0, as 0 times inf is NaN.
    """
    if logits.shape != targets.shape or logits.ndim != 4:
        shapes = f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}"
        raise GridError(f"{shapes} are not both (B, K, H, W)", code="E-GRID-053")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logits, targets = logits.to(dtype), targets.to(dtype)
    if labelled is None:
        return logits, targets, torch.ones_like(targets)
    known = labelled.to(torch.bool).expand(logits.shape)
    return logits.where(known, 0.0), targets.where(known, 0.0), known.to(dtype)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of `values` by `weight`; 0 where that is nothing."""
    return (values * weight).sum() / weight.sum().clamp(min=1)


def _overlap(
    logits: Tensor, targets: Tensor, labelled: Tensor | None, *, alpha: float, beta: float
) -> Tensor:
    """Mean Tversky index over the classes with a positive pixel; 1, with gradient 0, without any.

    alpha = beta = 1 is the Jaccard index, alpha = beta = 0.5 the Dice coefficient.
    """
    logits, targets, weight = _usable(logits, targets, labelled)
    scores = logits.sigmoid() * weight
    both = (scores * targets).sum(dim=(0, 2, 3))  # (K,)
    predicted, positive = scores.sum(dim=(0, 2, 3)), targets.sum(dim=(0, 2, 3))
    union = both + alpha * (predicted - both) + beta * (positive - both)
    index = (both + SMOOTHING) / (union + SMOOTHING)
    present = (positive > 0).to(index.dtype)
    nothing = (present.sum() == 0).to(index.dtype)
    return _mean(index, present) + nothing
