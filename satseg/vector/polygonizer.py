"""Polygonizer: fed the rows of all planes of a mask, returns features as soon as they are certain.

One pass over the rows serves all planes. What the tracers finish is cleaned and held by the planes
(`satseg.vector.layers`); what they let go of comes by the row that finishes a polygon, then by plane,
then in the tracer's order, so that features and their order do not depend on how the rows are cut.

Rejected: one pass per plane (decodes a file as often as it has bands), and an order by plane (the
second plane would have to wait for the end of the first).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import geopandas
import numpy as np
from affine import Affine
from numpy.typing import NDArray

from satseg.errors import GridError
from satseg.grid import Grid
from satseg.vector.features import as_features
from satseg.vector.finish import Cleaning, Geometries, Measure
from satseg.vector.layers import LABELS, WEIGHTS, Finished, Kinds, Plane, PlaneStream, PlaneWhole, small_hole_px
from satseg.vector.trace import Outlines, OutlineTracer

Classes: TypeAlias = "Sequence[tuple[int, str] | None]"
"""Number and name per plane; None: every value of the plane is a class, its digits the name."""
ScoreOf: TypeAlias = "Sequence[tuple[float, float]]"
"""(offset, scale) per plane: score = offset + scale x mean weight."""
Batch: TypeAlias = tuple[Finished, NDArray[np.int64]]
"""Polygons, and the plane of each."""
FLOOD = 1_000_000
"""More polygons of one band than this are more likely noise than things."""
log = logging.getLogger(__name__)


class Polygonizer:
    """Fed codes from top to bottom, returns features as they are finished.

    Polygons are held for as many rows as a small hole has pixels at most; those in a place that outlines
    which meet at a corner could still make a small hole of, until the end. `simplify_m` needs the whole
    layer: then everything comes from `finish`.

    Parameters
    ----------
    grid : Grid
        Of the whole mask.
    classes : sequence of (number, name)
        One per plane.
    cleaning : Cleaning, optional
    score_of : sequence of (offset, scale), optional
        One per plane: the score of a mean code, such as `PlaneCode.score_of`. NaN when left out.
    threads : int
        Planes that are traced at a time; the features are the same.

    Raises
    ------
    CRSError
        There are sizes in square metres, and the grid does not lie on the Earth.
    """

    def __init__(
        self,
        grid: Grid,
        classes: Sequence[tuple[int, str]],
        *,
        cleaning: Cleaning | None = None,
        score_of: ScoreOf | None = None,
        threads: int = 1,
    ) -> None:
        self._planes = Planes(grid, classes, cleaning=cleaning, score_of=score_of, threads=threads)

    @property
    def counts(self) -> tuple[int, ...]:
        """Features returned so far, per plane."""
        return tuple(self._planes.counts)

    def feed(self, codes: NDArray[np.uint8]) -> geopandas.GeoDataFrame:
        """Return the features that are finished by the next rows.

        Parameters
        ----------
        codes : ndarray of uint8, (K, h, W)
            As `PlaneCode` says.

        Returns
        -------
        GeoDataFrame
            With the columns of `as_features`; often empty.

        Raises
        ------
        GridError
            The rows do not fit the grid, or are more than it has left (E-GRID-204).
        """
        return self._planes.features(self._planes.feed_codes(codes))

    def finish(self) -> geopandas.GeoDataFrame:
        """Return the features that are left; the polygonizer is used up."""
        return self._planes.features(self._planes.finish())


class Planes:
    """What traces and cleans several planes; parameters as in `Polygonizer`, but for what `classes` may be."""

    def __init__(
        self,
        grid: Grid,
        classes: Classes,
        *,
        cleaning: Cleaning | None = None,
        score_of: ScoreOf | None = None,
        threads: int = 1,
    ) -> None:
        self.grid = grid
        self._rows = self._hold = 0
        self._kinds = [Kinds(named, cleaning or Cleaning()) for named in classes]
        self.counts = [0] * len(classes)
        self._tracers: list[OutlineTracer] = []
        self._planes: list[Plane] = []
        measure = Measure(grid.crs, grid.bounds)
        for k, kinds in enumerate(self._kinds):
            self._add(kinds, measure, None if score_of is None else score_of[k])
        several = threads > 1 and len(classes) > 1
        self._pool = ThreadPoolExecutor(min(threads, len(classes)), "polygonize") if several else None

    def _add(self, kinds: Kinds, measure: Measure, score_of: tuple[float, float] | None) -> None:
        grid, by_value, simple = self.grid, kinds.named is None, kinds.cleaning.simplify_m > 0
        lake_px = small_hole_px(grid, measure, kinds.largest_hole_m2())
        if simple or (by_value and lake_px):
            # Only neighbours of different values share edges, which then need vertices where a third one begins.
            dense = simple and by_value
            self._tracers.append(OutlineTracer(grid.width, transform=Affine.identity() if dense else grid.transform))
            self._planes.append(PlaneWhole(grid, kinds, measure, score_of=score_of, dense=dense))
            return
        self._tracers.append(OutlineTracer(grid.width, transform=grid.transform, hole_px=lake_px))
        self._planes.append(PlaneStream(grid, kinds, measure, score_of=score_of, lake_px=lake_px))
        self._hold = max(self._hold, lake_px)

    def feed_codes(self, codes: NDArray[np.uint8]) -> Batch:
        """Return what is finished by the next rows of codes, (K, h, W) uint8."""
        expected = (len(self._planes), self.grid.height - self._rows, self.grid.width)
        fits = codes.ndim == 3 and codes.shape[::2] == expected[::2] and codes.shape[1] <= expected[1]
        if not fits or codes.dtype != np.uint8:
            raise GridError(
                f"codes of shape {codes.shape}, {codes.dtype}, are not rows of uint8 in {expected[0]} planes of "
                f"{expected[2]} columns, of which {expected[1]} are left",
                code="E-GRID-204",
            )
        traces = [partial(self._tracers[k].feed_coded, plane, LABELS, WEIGHTS) for k, plane in enumerate(codes)]
        return self._step(traces, list(codes))

    def feed_labels(
        self, labels: Sequence[NDArray[Any]], weights: Sequence[NDArray[np.int64]] | None = None
    ) -> Batch:
        """Return what is finished by the next rows of labels and of whole weights, (h, W) for each plane.

        Labels are 0 and 1, or any whole numbers where values are classes.
        """
        marks = [None] * len(labels) if weights is None else weights
        traces = [partial(self._tracers[k].feed, plane, marks[k]) for k, plane in enumerate(labels)]
        return self._step(traces, labels)

    def finish(self) -> Batch:
        """Return what is left."""
        nothing = np.zeros((0, self.grid.width), np.uint8)
        self._each(lambda k: self._planes[k].take(self._tracers[k].finish(), nothing))
        if self._pool is not None:
            self._pool.shutdown()
        return self._merged([plane.finish() for plane in self._planes])

    def pending(self, k: int) -> Geometries:
        """Return the polygons of plane `k` that are finished, and not certain yet."""
        return self._planes[k].pending()

    def features(self, batch: Batch) -> geopandas.GeoDataFrame:
        """Return polygons as features with the classes of their planes."""
        found, planes = batch
        numbers, names = np.empty(len(found), np.int64), np.empty(len(found), object)
        for k, kinds in enumerate(self._kinds):
            own = planes == k
            numbers[own], names[own] = kinds.columns(found.values[own])
        return as_features(
            found.polygons, class_ids=numbers, class_names=names, scores=found.scores, areas_m2=found.areas_m2,
            crs=self.grid.crs,
        )  # fmt: skip

    def _step(self, traces: Sequence[Callable[[], Outlines]], codes: Sequence[NDArray[Any]]) -> Batch:
        self._rows += len(codes[0]) if codes else 0
        self._each(lambda k: self._planes[k].take(traces[k](), codes[k]))
        # A polygon whose last row was the last one fed may go on below, or be cut there.
        limit = self._rows - 1 - self._hold
        return self._merged([plane.release(limit) for plane in self._planes])

    def _each(self, work: Callable[[int], None]) -> None:
        """Run `work` for each plane."""
        for _ in (map if self._pool is None else self._pool.map)(work, range(len(self._planes))):
            pass

    def _merged(self, parts: Sequence[Finished]) -> Batch:
        """Return what the planes let go of, by finishing row, then plane."""
        for k, part in enumerate(parts):
            before, self.counts[k] = self.counts[k], self.counts[k] + len(part)
            if before <= FLOOD < self.counts[k]:
                named = self._kinds[k].named
                name = named[1] if named else k + 1
                log.warning("more than %d polygons in band %s: noise? A minimum area keeps them out", FLOOD, name)
        planes = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        found = Finished.joined([Finished.none(), *parts])
        order = np.argsort(found.bottoms, kind="stable")
        return found[order], planes[order]
