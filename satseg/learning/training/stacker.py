"""A stacker: how much each member's logit counts for a class, by logistic regression on scores of unseen ground.

score = sigmoid(sum over members of w[m] x[m], + b), with w >= 0, so that a member that is surer of a class never makes
the team less sure of it. The loss is the cross-entropy of the pixels that the sample stands for; weights are pulled
towards the plain mean, 1 / M each, so that members that say the same share what they are worth. A pull that costs more
than it is worth, the team being worse than its best member, is loosened. Newton's method on the weights that are not
held at 0 (Bertsekas, "Projected Newton methods for optimization problems with simple constraints", 1982).

Rejected: a tree or a network on top, which sees places where members were wrong and learns those; weights of any sign,
which scores of two likely members bring to +9 and -8; and scikit-learn for forty lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from satseg.errors import UsageError

Floats = NDArray[np.float64]
PULL = 0.01
"""Share of the plain mean's loss that is given for half the squared distance from equal weights."""
STEPS = 100
ENOUGH = 1e-10
"""A step that changes the loss by less of itself is the last."""


@dataclass(frozen=True, slots=True)
class Stacker:
    """Of one class: a weight, 0 or more, for each member, and a bias."""

    weights: tuple[float, ...]
    bias: float

    def logits(self, members: NDArray[np.floating]) -> Floats:
        """Return the team's logits of those of the members (M, ...)."""
        team: Floats = np.tensordot(np.asarray(self.weights), members, axes=1) + self.bias
        return team


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """Samples, and how hard weights are pulled; parameters are the weights, then the bias."""

    inputs: Floats  # (n, M + 1), the last column 1
    signs: Floats  # (n,): 1 for pixels of the class, else -1
    share: Floats  # (n,), of sum 1
    pull: float

    def loss(self, at: Floats) -> float:
        """Mean cross-entropy in nats."""
        return float(self.share @ np.logaddexp(0.0, -self.signs * (self.inputs @ at)))

    def cost(self, at: Floats) -> float:
        """The loss and what the pull adds."""
        return self.loss(at) + self.pull / 2 * float(((at[:-1] - self.even) ** 2).sum())

    @property
    def even(self) -> float:
        """The weight of each member where all have the same."""
        return 1.0 / float(self.inputs.shape[1] - 1)

    def slope(self, at: Floats) -> tuple[Floats, Floats]:
        """Gradient and Hessian of the cost."""
        off = np.exp(-np.logaddexp(0.0, self.signs * (self.inputs @ at)))  # how wrong: 1 - score of what is true
        gradient = self.inputs.T @ (-self.share * self.signs * off)
        hessian = (self.inputs * (self.share * off * (1 - off))[:, None]).T @ self.inputs
        gradient[:-1] += self.pull * (at[:-1] - self.even)
        hessian[np.diag_indices(len(at) - 1)] += self.pull
        return gradient, hessian


def fit_stacker(
    logits: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None, *, pull: float = PULL
) -> Stacker:
    """Return the stacker of one class.

    Parameters
    ----------
    logits : (n, M)
        Of a sample of pixels by each member.
    truth : (n,) bool
        Whether a pixel is of the class.
    weights : (n,), optional
        Pixels that each stands for; one each when left out.
    pull : float
        Towards equal weights, in shares of the plain mean's loss.

    Returns
    -------
    Stacker
        Whose loss on the sample is no more than that of any one member.

    Raises
    ------
    UsageError
        The sample has no pixel of the class, or no other (E-STK-001).
    """
    members, true = np.asarray(logits, np.float64), np.asarray(truth, bool)
    if true.all() or not true.any():
        raise UsageError(
            f"{int(true.sum())} of {len(true)} pixels are of the class: nothing to tell apart", code="E-STK-001"
        )
    share = np.ones(len(true)) if weights is None else np.asarray(weights, np.float64)
    inputs = np.column_stack([members, np.ones(len(true))])
    bare = _Problem(inputs, np.where(true, 1.0, -1.0), share / share.sum(), 0.0)
    count = members.shape[1]
    even = np.array([*np.full(count, 1 / count), 0.0])
    alone = [np.array([*np.eye(count)[member], 0.0]) for member in range(count)]
    best = min(alone, key=bare.loss)
    for looser in (1.0, 0.1, 0.01):
        problem = _Problem(bare.inputs, bare.signs, bare.share, looser * pull * bare.loss(even))
        found = _lowest(problem, min(even, best, key=problem.cost))
        if bare.loss(found) <= bare.loss(best):
            break
    else:
        found = _lowest(bare, best)
    return Stacker(tuple(map(float, found[:-1])), float(found[-1]))


def log_loss(logits: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the mean cross-entropy in nats of scores given as logits (n,)."""
    signed = np.where(np.asarray(truth, bool), 1.0, -1.0) * np.asarray(logits, np.float64)
    return float(np.average(np.logaddexp(0.0, -signed), weights=None if weights is None else np.asarray(weights)))


def _lowest(problem: _Problem, start: Floats) -> Floats:
    """Where the cost is lowest for weights of 0 or more, walking down from `start`."""
    at, cost = start, problem.cost(start)
    for _ in range(STEPS):
        gradient, hessian = problem.slope(at)
        held = (at <= 0) & (gradient > 0)
        held[-1] = False
        free = ~held
        step = np.zeros_like(at)
        ridge = 1e-12 * max(1.0, float(np.trace(hessian)))
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)] + ridge * np.eye(int(free.sum())), -gradient[free])
        found = _shortened(problem, at, step, cost)
        if found is None or cost - problem.cost(found) <= ENOUGH * cost:
            return at if found is None else found
        at, cost = found, problem.cost(found)
    return at


def _shortened(problem: _Problem, at: Floats, step: Floats, cost: float) -> Floats | None:
    """The first of `at` + `step`, half of it and so on, weights kept from below 0, that costs less; None: none."""
    for halving in range(40):
        tried: Floats = at + step / 2.0**halving
        tried[:-1] = tried[:-1].clip(min=0.0)
        if problem.cost(tried) < cost:
            return tried
    return None
