"""Jaccard in two readings, exact areas of polygons and pixels of masks: counts first, ratios last.

True, false-positive and false-negative areas add up over classes' tiles and scenes; the ratio is
taken once at the end (the DSTL rule: a false hit on a scene without the class costs its area, not a
whole scene). Unions come before areas, because features of one layer may overlap.

Rejected: averaging ratios of tiles, which lets an almost empty tile outweigh a full one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from satseg.errors import GridError
from satseg.raster import as_planes
from satseg.scoring.cells import pooled_areas, sound

CHUNK_PX = 2**18
"""Pixels counted at a time: the four planes of a chunk stay in a core's second-level cache."""


@dataclass(frozen=True, slots=True)
class AreaCounts:
    """True, false-positive and false-negative area (square metres, or pixels), which add up.

    Source of the measure: P. Jaccard, "Etude comparative de la distribution florale", 1901.
    """

    tp: float = 0.0
    fp: float = 0.0
    fn: float = 0.0

    def __add__(self, other: AreaCounts) -> AreaCounts:
        return AreaCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def union(self) -> float:
        """Area of both sides together."""
        return self.tp + self.fp + self.fn

    @property
    def jaccard(self) -> float | None:
        """Jaccard index tp / (tp + fp + fn), 0..1; None when there is nothing on either side."""
        return self.tp / self.union if self.union > 0 else None


def polygon_counts(
    pred: ArrayLike, truth: ArrayLike, aoi: ArrayLike | None = None, *, ignore: ArrayLike | None = None
) -> AreaCounts:
    """Return the exact areas of agreement and error between two layers of one class.

    Parameters
    ----------
    pred, truth : sequences of shapely geometries in one planar CRS
        Members may overlap or be invalid (`satseg.vector.finish.repair` mends them); what is not
        polygonal has no area.
    aoi : geometry or sequence of them, optional
        Only places in their union count.
    ignore : geometry or sequence of them, optional
        Places in their union do not count.

    Returns
    -------
    AreaCounts in squared units of the CRS
    """
    regions = [None if region is None else sound(region) for region in (aoi, ignore)]
    return AreaCounts(*pooled_areas(sound(pred), sound(truth), aoi=regions[0], ignore=regions[1]))


def pixel_counts(
    pred: ArrayLike, truth: ArrayLike, valid: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the pixels of agreement and error of each class: (tp, fp, fn), each (K,) int64.

    Streams through cache-sized chunks, so that it takes no memory to speak of.

    Parameters
    ----------
    pred, truth : (K, H, W) or (H, W), any dtype
        A pixel is of the class where the value is not 0.
    valid : (H, W) bool, optional
        Pixels that count; all when left out.

    Raises
    ------
    GridError
        The shapes differ.
    """
    found, real = as_planes(pred), as_planes(truth)
    usable = None if valid is None else np.asarray(valid, bool)
    if found.shape != real.shape or (usable is not None and usable.shape != found.shape[1:]):
        shapes = " and ".join(str(array.shape) for array in (found, real, usable) if array is not None)
        raise GridError(f"masks of shapes {shapes} do not lie over each other", code="E-GRID-010")
    planes = zip(found, real, strict=True)
    counts = np.array([_plane_counts(*pair, usable) for pair in planes], dtype=np.int64).reshape(-1, 3)
    tp, predicted, actual = counts.T
    return tp, predicted - tp, actual - tp


def _plane_counts(pred: NDArray[Any], truth: NDArray[Any], valid: NDArray[np.bool_] | None) -> tuple[int, int, int]:
    """Pixels in both, in `pred`, in `truth`."""
    both = predicted = actual = 0
    step = max(1, CHUNK_PX // max(1, pred.shape[1]))
    for row in range(0, pred.shape[0], step):
        rows = slice(row, row + step)
        found, real = _truthy(pred[rows]), _truthy(truth[rows])
        if valid is not None:
            found, real = found & valid[rows], real & valid[rows]
        predicted += int(np.count_nonzero(found))
        actual += int(np.count_nonzero(real))
        both += int(np.count_nonzero(found & real))
    return both, predicted, actual


def _truthy(values: NDArray[Any]) -> NDArray[np.bool_]:
    # numpy compares bool with 0 three times slower than uint8
    return values if values.dtype == np.bool_ else values != 0
