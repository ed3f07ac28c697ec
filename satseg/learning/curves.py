"""Jaccard of each class at every threshold, from streamed counts.

Scores are counted in 256 bins, for pixels of the class and others apart; true positives, false
positives and false negatives at any bin edge are then sums, and whole scenes cost 4 kB.
"""

from __future__ import annotations

import torch
import torch.distributed

BINS = 256
LOWEST, HIGHEST = 0.05, 0.95
"""Range of thresholds to choose from: outside it a class is not found, it is guessed."""


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
        bins = (scores * BINS).clamp(0, BINS - 1).to(torch.int64)
        usable = labelled[:, 0]
        for k in range(self._counts.shape[0]):
            code = (bins[:, k] + BINS * (target[:, k] > 0))[usable]
            self._counts[k] += torch.bincount(code, minlength=2 * BINS).view(2, BINS)

    def share_between_ranks(self) -> None:
        """Add up the counts of all processes of a distributed run."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._counts)

    def jaccard(self) -> torch.Tensor:
        """(K, BINS): Jaccard at threshold bin / BINS; NaN for a class absent from truth."""
        reached = self._counts.flip(-1).cumsum(-1).flip(-1).double()  # scores >= bin / BINS
        positives, negatives = reached[:, 1], reached[:, 0]
        truth = positives[:, :1]
        ratio = positives / (truth + negatives).clamp(min=1)
        return torch.where(truth > 0, ratio, torch.nan)

    def best(self) -> tuple[list[float], list[float]]:
        """Per class, the threshold of the highest Jaccard and that Jaccard (0.5 and NaN if absent)."""
        curve = self.jaccard().cpu()
        low, high = int(LOWEST * BINS), int(HIGHEST * BINS)
        allowed = torch.nan_to_num(curve[:, low : high + 1], nan=-1.0)
        thresholds, scores = [], []
        for k, row in enumerate(allowed):
            present = bool(row.max() >= 0)
            place = low + int(row.argmax())
            thresholds.append(place / BINS if present else 0.5)
            scores.append(float(curve[k, place]) if present else float("nan"))
        return thresholds, scores
