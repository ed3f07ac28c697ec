"""Object scores: how many true features were found, one prediction each, at an IoU of a half or more.

Jaccard on areas forgives losing every car beside one large field; counting objects does not. A pair
counts when its intersection over union reaches the threshold; each feature may be in one pair only,
and the number of pairs is the largest possible. Above one half, on layers that do not overlap
themselves, there is only one way to pair (Kirillov et al., "Panoptic Segmentation", 2019, section 4.1).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from satseg.errors import UsageError
from satseg.scoring.cells import Geometries, sound
from satseg.vector.finish import repair

IOU = 0.5
"""The threshold of PASCAL VOC and SpaceNet."""
IOU_NOISE = 1e-9
"""Rounding of areas in projected coordinates; a pair at exactly the threshold counts."""


@dataclass(frozen=True, slots=True)
class ObjectCounts:
    """Features found, invented and missed, which add up over scenes."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: ObjectCounts) -> ObjectCounts:
        return ObjectCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float | None:
        """Share of predicted features that are true, 0..1; None without predictions."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else None

    @property
    def recall(self) -> float | None:
        """Share of true features that were found, 0..1; None without true features."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else None

    @property
    def f1(self) -> float | None:
        """2 tp / (2 tp + fp + fn), 0..1; None when there is nothing on either side."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else None


def object_counts(
    pred: ArrayLike,
    truth: ArrayLike,
    *,
    iou: float = IOU,
    aoi: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> ObjectCounts:
    """Return how many features of one class were found, invented and missed.

    Features are compared by their parts inside the area of interest and outside ignored places, so
    that a roof cut by the edge of a scene is found by what could be seen of it. An unpaired feature
    counts when the representative point of the whole lies there, a pair when that holds for one of
    its two.

    Parameters
    ----------
    pred, truth : sequences of shapely polygons or multipolygons in one planar CRS
        Each is one object.
    iou : float
        Least intersection over union of a pair, above 0, at most 1.
    aoi, ignore : geometry or sequence of them, optional

    Raises
    ------
    UsageError
        `iou` is out of range.
    """
    if not 0 < iou <= 1:
        raise UsageError(f"an IoU threshold of {iou} is not in 0..1", hint="0.5 is usual", code="E-USE-065")
    regions = [None if region is None else sound(region) for region in (aoi, ignore)]
    return paired_counts(sound(pred), sound(truth), iou=iou, aoi=regions[0], ignore=regions[1])


def paired_counts(
    pred: Geometries,
    truth: Geometries,
    *,
    iou: float = IOU,
    aoi: Geometries | None = None,
    ignore: Geometries | None = None,
) -> ObjectCounts:
    """Return what `object_counts` does, of arrays of polygons known to be valid."""
    parts = [_visible_parts(layer, aoi, ignore) for layer in (pred, truth)]
    pairs = match_objects(*parts, iou=iou)
    found_counts, real_counts = (_is_counted(layer, aoi, ignore) for layer in (pred, truth))
    tp = int(np.count_nonzero(found_counts[pairs[:, 0]] | real_counts[pairs[:, 1]]))
    found_counts[pairs[:, 0]] = real_counts[pairs[:, 1]] = False
    return ObjectCounts(tp, int(np.count_nonzero(found_counts)), int(np.count_nonzero(real_counts)))


def match_objects(pred: Geometries, truth: Geometries, *, iou: float = IOU) -> NDArray[np.intp]:
    """Return the largest one-to-one matching of valid polygons as (n, 2) positions (pred, truth)."""
    pairs, values = _close_pairs(pred, truth, iou)
    order = np.argsort(-values, kind="stable")  # the closest pair first, so that ties settle sensibly
    return _largest_matching(pairs[order])


def _close_pairs(pred: Geometries, truth: Geometries, iou: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return pairs (n, 2) whose IoU reaches `iou`, and their IoU.

    IoU >= t means an intersection of at least t / (1 + t) of the summed areas. Neither polygon's
    area nor the overlap of their boxes may be less, which drops almost all pairs before the
    expensive intersection (one field that contains ten thousand trees has none left).
    """
    first, second = shapely.STRtree(truth).query(pred)
    areas, others = shapely.area(pred)[first], shapely.area(truth)[second]
    least = (iou - IOU_NOISE) / (1 + iou) * (areas + others)
    box, other = shapely.bounds(pred)[first], shapely.bounds(truth)[second]
    sides = np.minimum(box[:, 2:], other[:, 2:]) - np.maximum(box[:, :2], other[:, :2])
    keep = (np.minimum(np.minimum(areas, others), sides[:, 0] * sides[:, 1]) >= least) & (least > 0)
    first, second, total = first[keep], second[keep], (areas + others)[keep]
    common = shapely.area(shapely.intersection(pred[first], truth[second]))
    values = common / (total - common)
    close = values >= iou - IOU_NOISE
    return np.column_stack([first, second])[close], values[close]


def _largest_matching(pairs: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the largest set of `pairs` (n, 2) in which no position repeats, by augmenting paths.

    Source: H. W. Kuhn, "The Hungarian method for the assignment problem", 1955.
    """
    wanted: dict[int, list[int]] = {}
    for pred, truth in pairs.tolist():
        wanted.setdefault(pred, []).append(truth)
    held: dict[int, int] = {}
    owner: dict[int, int] = {}
    for pred in wanted:
        _augment(pred, wanted, held=held, owner=owner)
    return np.array(sorted(held.items()), dtype=np.intp).reshape(-1, 2)


def _augment(start: int, wanted: dict[int, list[int]], *, held: dict[int, int], owner: dict[int, int]) -> None:
    """Find `start` a partner, moving owners along the shortest chain; changes `held` and `owner`."""
    asked_by: dict[int, int] = {}
    queue = deque([start])
    while queue:
        pred = queue.popleft()
        for truth in wanted[pred]:
            if truth in asked_by:
                continue
            asked_by[truth] = pred
            if truth in owner:
                queue.append(owner[truth])
                continue
            _move_along(truth, asked_by, held=held, owner=owner)
            return


def _move_along(truth: int, asked_by: dict[int, int], *, held: dict[int, int], owner: dict[int, int]) -> None:
    """Give `truth` to who asked for it, what that one held to who asked for that, and so on."""
    free: int | None = truth
    while free is not None:
        pred = asked_by[free]
        previous = held.get(pred)
        held[pred], owner[free] = free, pred
        free = previous


def _visible_parts(features: Geometries, aoi: Geometries | None, ignore: Geometries | None) -> Geometries:
    """Return what of each feature lies in `aoi` and in no `ignore`; an empty polygon where nothing does."""
    parts = features.copy()
    if aoi is not None:
        region = shapely.union_all(aoi)
        shapely.prepare(region)
        cut = ~shapely.covers(region, parts)
        parts[cut] = _polygons(shapely.intersection(parts[cut], region))
    if ignore is not None and len(ignore):
        rows, near = shapely.STRtree(ignore).query(parts, predicate="intersects")
        touched, starts = np.unique(rows, return_index=True)  # rows come in order
        for row, hidden in zip(touched, np.split(near, starts)[1:], strict=True):
            parts[row] = shapely.difference(parts[row], shapely.union_all(ignore[hidden]))
        parts[touched] = _polygons(parts[touched])
    return parts


def _polygons(parts: Geometries) -> Geometries:
    """Return `parts` without the points and lines that cuts leave, on which GEOS overlays fail."""
    mended = repair(parts)[0]
    mended[shapely.is_missing(mended)] = shapely.Polygon()
    return mended


def _is_counted(features: Geometries, aoi: Geometries | None, ignore: Geometries | None) -> NDArray[np.bool_]:
    """Return where a feature's representative point lies in `aoi` and in no `ignore`."""
    counted = np.ones(len(features), bool)
    points = shapely.STRtree(shapely.point_on_surface(features))
    if aoi is not None:
        counted[:] = False
        counted[points.query(aoi, predicate="intersects")[1]] = True
    if ignore is not None:
        counted[points.query(ignore, predicate="intersects")[1]] = False
    return counted
