"""Jaccard of raster masks: satseg's pixel counts against torchmetrics and scikit-learn.

All get the same uint8 masks in memory and must find the same Jaccard index of each class. torchmetrics is
used as its documentation says for planes that may overlap (multilabel, one update and compute), scikit-learn
by ``jaccard_score`` on flattened planes. Run as ``python -m benchmarks.jaccard``.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import jaccard_score
from torchmetrics.classification import MultilabelJaccardIndex

from benchmarks.timing import Goal, Report, interleave, parse, rounded
from satseg.scoring.jaccard import pixel_counts

SIDE, QUICK_SIDE, CLASSES = 2048, 512, 10
OURS, OURS_VALID, RIVAL, LEARN = (
    "satseg pixel_counts", "satseg pixel_counts, with a validity mask", "torchmetrics MultilabelJaccardIndex",
    "scikit-learn jaccard_score",
)  # fmt: skip
Masks = NDArray[np.uint8]


def make_masks(side: int, seed: int = 0) -> tuple[Masks, Masks]:
    """Return predicted and true masks (K, H, W): blocks of 16 pixels, a tenth of whose pixels differ."""
    rng = np.random.default_rng(seed)
    blocks = rng.random((CLASSES, side // 16, side // 16)) < rng.uniform(0.02, 0.4, (CLASSES, 1, 1))
    truth = np.kron(blocks, np.ones((1, 16, 16))).astype(np.uint8)
    return truth ^ (rng.random(truth.shape) < 0.1), truth


def ours(pred: Masks, truth: Masks, valid: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Return the Jaccard index of each class by satseg."""
    tp, fp, fn = pixel_counts(pred, truth, valid)
    return np.asarray(tp / (tp + fp + fn))


def torchmetrics(pred: Masks, truth: Masks) -> NDArray[np.float64]:
    """Return the same by torchmetrics."""
    metric = MultilabelJaccardIndex(num_labels=len(pred), average="none")
    metric.update(torch.from_numpy(pred)[None], torch.from_numpy(truth)[None])
    return np.asarray(metric.compute())


def sklearn(pred: Masks, truth: Masks) -> NDArray[np.float64]:
    """Return the same by scikit-learn."""
    pairs = zip(pred, truth, strict=True)
    return np.array([jaccard_score(real.ravel(), found.ravel()) for found, real in pairs])


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    side, rounds = (QUICK_SIDE, 3) if options.quick else (SIDE, 7)
    torch.set_num_threads(1)
    pred, truth = make_masks(side)
    valid = np.ones((side, side), bool)
    for rival in (torchmetrics, sklearn):  # torchmetrics counts in whole numbers but divides in float32
        np.testing.assert_allclose(ours(pred, truth), rival(pred, truth), atol=1e-6)
    cases = {
        OURS: lambda: ours(pred, truth),
        OURS_VALID: lambda: ours(pred, truth, valid),
        RIVAL: lambda: torchmetrics(pred, truth),
        LEARN: lambda: sklearn(pred, truth),
    }
    costs = interleave(cases, rounds=rounds)
    report = Report(
        "Jaccard of raster masks",
        f"{CLASSES} classes of {side} x {side} pixels, uint8, in memory; one thread. All find the same "
        f"indices. {rounded(rounds)}",
        ("case", "CPU ms", "million class pixels per CPU-s", "CPU time / satseg"),
        ("torch", "torchmetrics", "scikit-learn"),
    )
    for name in cases:
        rate = pred.size / 1e6 / costs.median(name)
        report.rows.append((name, 1000 * costs.median(name), rate, costs.ratio(name, OURS)))
    report.goals.append(Goal("speed of satseg / torchmetrics", costs.ratio(RIVAL, OURS).median, 20))
    report.publish(options, "jaccard")


if __name__ == "__main__":
    main()
