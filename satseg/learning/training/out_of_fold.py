"""Scores of scenes by models that did not see them, against their labels: counted by class and fold, in strips.

Each scene is scored by one model, so that what comes out is what new ground would give, save that a model of all
scenes has learnt from more. The truth is burnt on the pixels of the scores themselves, and written beside them.
Rejected: keeping the counts of the training's own validations, which are of the same pixels but lose the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rasterio.windows import Window

from satseg.grid import Grid
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import open_scene
from satseg.imagery.writer import RasterWriter
from satseg.learning.training.curves import ThresholdCurve
from satseg.learning.training.fold_report import PooledScore

STRIP_ROWS = 128
UNKNOWN = 255
"""In a file of truth: not valid, or not labelled."""


def strips(grid: Grid) -> Iterator[Window]:
    """Windows of up to `STRIP_ROWS` whole rows, from top to bottom."""
    for top in range(0, grid.height, STRIP_ROWS):
        yield Window(0, top, grid.width, min(STRIP_ROWS, grid.height - top))


def counted(scores: Path, truth: Path, labels: LabelLayer) -> ThresholdCurve:
    """Write the file `truth` of what `labels` say on the pixels of the file `scores`, and return the counts of both.

    Raises
    ------
    InputError
        The scores cannot be read.
    OutputError
        The truth cannot be written.
    """
    scene, curve = open_scene(scores, bands=labels.classes), ThresholdCurve(len(labels.classes))
    writing = RasterWriter(
        truth, grid=scene.grid, names=labels.classes, dtype="uint8", nodata=UNKNOWN, overwrite=True, overviews=False,
        description="labels where they are known: 1 inside, 0 outside",
    )  # fmt: skip
    with scene.reader() as reader, writing as out:
        for window in strips(scene.grid):
            raster = reader.read(window)
            targets, labelled = labels.burn(scene.grid.crop(window))
            usable = labelled & raster.valid
            curve.count(raster.data, targets, usable)
            targets[:, ~usable] = UNKNOWN
            out.write(targets, window)
    return curve


def pooled(names: Sequence[str], curves: Sequence[ThresholdCurve]) -> tuple[PooledScore, ...]:
    """Return each class's threshold over all folds' counts together, and its Jaccard there, pooled and by fold."""
    whole = ThresholdCurve(len(names))
    for curve in curves:
        whole.add(curve)
    thresholds, _ = whole.best()
    by_fold = [curve.counts_at(thresholds) for curve in curves]
    found = []
    for k, (name, level, (tp, fp, fn)) in enumerate(zip(names, thresholds, whole.counts_at(thresholds), strict=True)):
        ratios = tuple(_jaccard(*counts[k]) for counts in by_fold)
        found.append(
            PooledScore(
                name=name, threshold=level, tp=tp, fp=fp, fn=fn, jaccard=_jaccard(tp, fp, fn), jaccard_of_folds=ratios
            )
        )
    return tuple(found)


def _jaccard(tp: int, fp: int, fn: int) -> float | None:
    """Intersection over union; None where the truth has nothing of the class."""
    return tp / (tp + fp + fn) if tp + fn else None
