"""How badly the network does on each part of the ground, and how much more often chips lie there for it.

Over a round the learner notes of each chip what share of its labelled pixels is wrong, in the cell of the ground that
the chip is centred on; as the next round begins, these become the weights by which a part of its uniform chips is
drawn (`[train] hard`). They are fixed for that round, part of every checkpoint, and the same on all ranks, for each
notes the chips of all; so a chip still follows from its number and the state at the start of its round.

Errors are counted and not losses summed: a pixel is wrong or right, so that one with a wrong label counts once
however sure the network is, and it means the same under every loss, in a chip without a class as well. They are
taken relative to the mean of all chips at the time, for else what was seen early in a round would pass for hard, and
older rounds count half each time. No cell is drawn more than `MOST` times as often as of uniform chips, nor less than
a `MOST`-th: labels that are plain wrong stay hard for good, and must not eat the run. A chip that cutmix or mixup
changed counts for its own cell with all it shows.

It is off by default, for what it gave was within noise (`benchmarks.accuracy`, Jaccards without and with `hard` 0.5,
one run each): after three CPU-minutes 0.55 and 0.58, 0.53 and 0.54, the same again 0.55 and 0.52, in Nairobi, 0.63 and
0.63, 0.58 and 0.63 in Zanzibar, 0.62 and 0.59, 0.62 and 0.68 in Las Vegas; after ten 0.55 and 0.52, again
0.54, in Nairobi, 0.65 and 0.63 in Zanzibar, 0.74 and 0.76 in Las Vegas.

Rejected: the hardest chips of many drawn (Shrivastava et al. 2016, arXiv 1604.03540), which takes a forward pass for
each chip that is not learnt from; weights that change with every step, with which a chip would follow from the whole
run before it; and stretches of scenes larger than the cache that slide slower over hard ground, for they would leave
those of the classes: there, weights choose within the stretch alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satseg.learning.ground.occupancy import Occupancy

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

MOST = 8.0
"""Times as often as uniform that a cell is drawn at most; also the most that one chip counts of the mean error."""
KEPT = 0.5
"""Of what was noted in a round, in the weights of the round after the next, and so on."""
PRIOR = 1.0
"""Whole chips of mean hardness that each cell is taken to have shown; all there is of a cell never seen."""
LEAST_PACE = 0.05
"""Weight of a batch in the running mean of errors; of the first ones their even share."""
HALVINGS = 60
"""Of the range that the scale of weights is looked for in: to the last bits."""
NOWHERE = -1
"""Cell of a chip where nobody asks."""


class Hardness:
    """Errors of a run by cells of the ground, and the weights of the present round.

    Weights lie in memory that worker processes share, for a loader keeps its workers from round to round.

    Parameters
    ----------
    maps : sequence of Occupancy
        Of all grounds; cells are squares of whole cells of these, of about a chip.
    size : int
        Side of a chip in pixels.
    """

    def __init__(self, maps: Sequence[Occupancy], size: int) -> None:
        sides = np.array([(one.height, one.width) for one in maps])
        group = np.maximum(1, np.rint(size / sides))
        self._sides = sides * group
        self._counts = -(-np.array([one.free.shape for one in maps]) // group.astype(np.int64))
        ends = np.cumsum(self._counts.prod(axis=1))
        self._first = np.concatenate([[0], ends[:-1]])
        self._area = np.zeros(int(ends[-1]))
        for index, one in enumerate(maps):
            rows, cols = np.nonzero(one.free)
            cells = self.cells(np.full(len(rows), index), (rows + 0.5) * one.height, (cols + 0.5) * one.width)
            np.add.at(self._area, cells, one.height * one.width)
        self._weights, self._round = torch.ones(len(self._area), dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        for shared in (self._weights, self._round):
            shared.share_memory_()  # type: ignore[no-untyped-call]  # torch's own gap
        self._errors, self._seen = np.zeros(len(self._area)), np.zeros(len(self._area))
        self._mean, self._batches = 0.0, 0

    @property
    def round(self) -> int:
        """The number of the round whose weights these are; 0, the first, has none."""
        return int(self._round)

    @property
    def weights(self) -> Floats:
        """How often each cell is drawn, as a multiple of uniform, in the present round: a copy."""
        return np.array(self._weights.numpy())

    def cells(self, grounds: NDArray[Any], rows: NDArray[Any], cols: NDArray[Any]) -> Integers:
        """Return the cell of each of some pixels, numbered over all grounds; beyond an edge, that at the edge."""
        index = np.asarray(grounds).astype(np.int64)
        at = np.stack([rows, cols], axis=-1) // self._sides[index]
        down, right = np.moveaxis(at.clip(0, self._counts[index] - 1).astype(np.int64), -1, 0)
        return np.asarray(self._first[index] + down * self._counts[index, 1] + right)

    def note(self, chips: Integers, *, whole: int) -> None:
        """Take in one batch of all ranks.

        Parameters
        ----------
        chips : ndarray of int64 (n, 3)
            Cell, wrong and labelled pixels of each chip, added up over classes (`wrong_pixels`).
        whole : int
            Labelled pixels of a chip that is labelled throughout.
        """
        cells, wrong, known = chips[chips[:, 2] > 0].T
        if not len(cells):
            return
        self._batches += 1
        self._mean += (wrong.sum() / known.sum() - self._mean) * max(1 / self._batches, LEAST_PACE)
        errors = wrong / known
        relative = np.minimum(errors / self._mean, MOST) if self._mean > 0 else np.ones(len(errors))
        np.add.at(self._errors, cells, relative * known / whole)
        np.add.at(self._seen, cells, known / whole)

    def begin(self, number: int) -> None:
        """Make what was noted so far the weights of round `number`, unless it has them already."""
        if number <= self.round:
            return
        self._weights.copy_(torch.from_numpy(self._found()))
        self._errors *= KEPT
        self._seen *= KEPT
        self._round.fill_(number)  # last, for it tells workers to look

    def _found(self) -> Floats:
        """Weights by what was noted: cells take the mean as far as little is known of them."""
        used, weights = self._area > 0, np.ones(len(self._area))
        errors, seen, area = self._errors[used], self._seen[used], self._area[used]
        known = seen > 0
        if known.any():
            mean = np.average(errors[known] / seen[known], weights=area[known])
            weights[used] = bounded((errors + PRIOR * mean) / (seen + PRIOR), area)
        return weights

    def state(self) -> dict[str, Any]:
        """Return what a resumed run goes on with: plain values and tensors."""
        return {
            "round": self.round,
            "weights": self._weights.clone(),
            "errors": torch.from_numpy(self._errors.copy()),
            "seen": torch.from_numpy(self._seen.copy()),
            "mean": float(self._mean),
            "batches": self._batches,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the `state` of the run being resumed, of the same grounds."""
        self._weights.copy_(state["weights"])
        self._round.fill_(int(state["round"]))
        self._errors, self._seen = (state[name].numpy().copy() for name in ("errors", "seen"))
        self._mean, self._batches = float(state["mean"]), int(state["batches"])


def bounded(hardness: Floats, area: Floats) -> Floats:
    """Return weights in proportion to `hardness` (>= 0), with a mean over `area` of 1, from 1 / `MOST` to `MOST`.

    Where a bound cuts some off, the others share what that leaves. All are 1 where nothing is hard.
    """
    low, high = hardness.min(), hardness.max()
    if low <= 0 or low == high:  # 0 is never but of all: see `PRIOR`
        return np.ones(len(hardness))
    least, most = np.log(1 / MOST / high), np.log(MOST / low)
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        enough = np.average(np.clip(np.exp(middle) * hardness, 1 / MOST, MOST), weights=area) >= 1
        least, most = (least, middle) if enough else (middle, most)
    return np.asarray(np.clip(np.exp(least) * hardness, 1 / MOST, MOST))


@torch.no_grad()
def wrong_pixels(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """Return (B, 2) int64: wrong and labelled pixels of each chip, added up over classes.

    A pixel is wrong where its score is on the other side of 1/2 than the truth.

    Parameters
    ----------
    logits, target : Tensor (B, K, H, W)
    labelled : Tensor of bool (B, 1 or K, H, W)
    """
    known = labelled.bool().expand(target.shape)
    wrong = ((logits > 0) != (target > 0.5)) & known
    return torch.stack([wrong.sum(dim=(1, 2, 3)), known.sum(dim=(1, 2, 3))], dim=1)
