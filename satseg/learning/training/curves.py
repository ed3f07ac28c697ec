"""Jaccard of each class at every threshold, from streamed counts.

Scores are counted in 256 bins, for pixels of the class and others apart; true positives, false
positives and false negatives at any bin edge are then sums, and whole scenes cost 4 kB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray

BINS = 256
LOWEST, HIGHEST = 0.05, 0.95
"""Range of thresholds to choose from: outside it a class is not found, it is guessed."""
USUAL = 0.4
"""A threshold to stay near. Where scores are probabilities, the one of the greatest F1 is half that F1, so below 1/2
(Lipton et al. 2014, arXiv 1402.1892), and unseen ground comes lower than held ground beside what was learnt from. Of 17
networks, 0.4 instead of the one nearest 1/2 that is alike there changed the Jaccard of buildings by -0.01 in Nairobi,
0.01 in Zanzibar, 0.04 in Las Vegas and 0.01 in Banepa, by 0.01 on average."""
PLATEAU = 0.005
"""Jaccards closer than this are alike, and more so the fewer true pixels stand behind them."""


class ThresholdCurve:
    """Counts of `classes` classes; feed with `update`, read with `best`."""

    def __init__(self, classes: int) -> None:
        self._counts = torch.zeros(classes, 2, BINS, dtype=torch.int64)  # (K, absent|present, bin)

    def to(self, device: torch.device) -> ThresholdCurve:
        """Count on `device`."""
        self._counts = self._counts.to(device)
        return self

    def update(self, scores: torch.Tensor, target: torch.Tensor, labelled: torch.Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        scores : (B, K, H, W) float, 0..1
        target : (B, K, H, W), 0 or 1
        labelled : (B, 1, H, W) bool: pixels that count
        """
        usable = labelled[:, 0]
        for k in range(self._counts.shape[0]):
            bins = (scores[:, k][usable] * BINS).clamp(0, BINS - 1).to(torch.int64)
            code = bins + BINS * (target[:, k][usable] > 0)
            self._counts[k] += torch.bincount(code, minlength=2 * BINS).view(2, BINS)

    def count(self, scores: NDArray[np.floating], truth: NDArray[Any], usable: NDArray[np.bool_]) -> None:
        """Add pixels in arrays: scores (K, H, W) in 0..1, truth alike, and which of them (H, W) count."""
        planes = (np.asarray(scores, np.float32)[None], np.asarray(truth, np.uint8)[None], usable[None, None])
        self.update(*(torch.from_numpy(np.require(plane, requirements="W")) for plane in planes))

    def share_between_ranks(self) -> None:
        """Add up the counts of all processes of a distributed run."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._counts)

    def add(self, other: ThresholdCurve) -> None:
        """Add the counts of `other`, of as many classes."""
        self._counts += other._counts.to(self._counts.device)

    def counts_at(self, thresholds: Sequence[float]) -> list[tuple[int, int, int]]:
        """Per class, true positives, false positives and false negatives at its threshold (a multiple of 1 / BINS)."""
        found = []
        for (others, truth), level in zip(self._counts.cpu(), thresholds, strict=True):
            place = round(level * BINS)
            hits = int(truth[place:].sum())
            found.append((hits, int(others[place:].sum()), int(truth.sum()) - hits))
        return found

    def jaccard(self) -> torch.Tensor:
        """(K, BINS): Jaccard at threshold bin / BINS; NaN for a class absent from truth."""
        reached = self._counts.flip(-1).cumsum(-1).flip(-1).double()  # scores >= bin / BINS
        positives, negatives = reached[:, 1], reached[:, 0]
        truth = positives[:, :1]
        ratio = positives / (truth + negatives).clamp(min=1)
        return torch.where(truth > 0, ratio, torch.nan)

    def told(self) -> list[list[float | None]]:
        """Per class, the Jaccard at thresholds 0.05, 0.1 .. 0.95; None for a class absent from truth."""
        places = [round(BINS * twentieth / 20) for twentieth in range(1, 20)]
        return [
            [None if value != value else round(value, 4) for value in row]
            for row in self.jaccard().cpu()[:, places].tolist()
        ]

    def best(self) -> tuple[list[float], list[float]]:
        """Per class, the chosen threshold and the Jaccard there (0.5 and NaN for an absent class).

        Of all thresholds whose Jaccard is within `PLATEAU` + 0.5 / sqrt(true pixels) of the highest,
        the one nearest `USUAL`: the curve is flat on top, and its exact peak is chance.
        """
        curve, truth = self.jaccard().cpu(), self._counts[:, 1].sum(-1).cpu()
        places = torch.arange(BINS)
        allowed = (places >= LOWEST * BINS) & (places <= HIGHEST * BINS)
        thresholds, scores = [], []
        for row, pixels in zip(curve, truth.tolist(), strict=True):
            if not pixels:
                thresholds.append(0.5)
                scores.append(float("nan"))
                continue
            good = allowed & (row >= row[allowed].max() - PLATEAU - 0.5 / pixels**0.5)
            place = int(places[good][(places[good] - round(USUAL * BINS)).abs().argmin()])
            thresholds.append(place / BINS)
            scores.append(float(row[place]))
        return thresholds, scores
