"""Masks to features: polygons exactly along pixel edges, with class, mean score and square metres.

A mask comes from an array or from a file of any size, some rows of all bands at a time; features go
into one layer, or as they come into a file. All ways give the same features (`satseg.vector.polygonizer`).
Pixels belong together when they share an edge; holes are kept; every polygon is valid; burning the
polygons back restores the mask exactly. A layer in memory is sorted by band; a file gets features in
the order in which rows finish them, for only so can it be written while the mask is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import geopandas
import numpy as np
from numpy.typing import ArrayLike, NDArray
from rasterio.windows import Window

from satseg.crs import CRSLike
from satseg.errors import BandError, GridError, UsageError
from satseg.grid import Grid
from satseg.imagery.maskfile import MaskFile
from satseg.imagery.writer import open_mask
from satseg.raster import Raster, as_planes
from satseg.vector.finish import Cleaning
from satseg.vector.layers import Finished, PlaneCode
from satseg.vector.polygonizer import Batch, Planes, Polygonizer
from satseg.vector.stream import FeatureWriter

__all__ = ["polygonize", "polygonize_file", "polygonize_to_file", "Polygonizer", "PlaneCode"]

PathLike = str | os.PathLike[str]
Sizes = float | Mapping[str, float]
STRIP_PIXELS = 2**21
"""Pixels traced at a time, all bands together: a few megabytes of working memory, and rows enough for numpy."""
MAX_WHOLE = 2.0**53
"""Beyond this a float is always a whole number and says nothing."""
SCORE_ONE = 2**30
"""Scores are summed as whole numbers of 2**-30, so that sums are exact whatever their order."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of all bands.

    Parameters
    ----------
    pixels : ndarray, (K, h, W)
    valid : ndarray of bool, (K, h, W)
    scores : ndarray of float, (K, h, W), or None
    """

    pixels: NDArray[Any]
    valid: NDArray[np.bool_]
    scores: NDArray[np.floating[Any]] | None


@dataclass(frozen=True, slots=True)
class _Job:
    """A mask on its way to features."""

    names: Sequence[str]
    planes: Planes
    strips: Iterable[Strip]
    values: bool

    def batches(self) -> Iterator[Batch]:
        """Yield what is finished, strip after strip, and then the rest."""
        for strip in self.strips:
            weights = None if strip.scores is None else [_weights(plane) for plane in strip.scores]
            yield self.planes.feed_labels(_labels(strip, values=self.values), weights)
        yield self.planes.finish()

    def layer(self) -> geopandas.GeoDataFrame:
        """Return all features, band after band."""
        parts = list(self.batches())
        found, planes = Finished.joined([part for part, _ in parts]), np.concatenate([place for _, place in parts])
        order = np.argsort(planes, kind="stable")
        return self.planes.features((found[order], planes[order]))


@dataclass(frozen=True, slots=True)
class _Source:
    """A mask file, and the file of its scores."""

    path: PathLike
    bands: Sequence[int | str] | None
    scores_path: PathLike | None
    score_scale: float
    src_crs: CRSLike | None

    def open(
        self, stack: ExitStack, *, values: bool, cleaning: Cleaning, class_ids: Mapping[str, int] | Sequence[int] | None
    ) -> _Job:
        """Return the job; `stack` closes the files."""
        mask = stack.enter_context(open_mask(self.path, src_crs=self.src_crs))
        indexes = mask.indexes(self.bands)
        scores, channels = None, [0] * mask.count
        if self.scores_path is not None:
            scores = stack.enter_context(open_mask(self.scores_path, src_crs=self.src_crs))
            channels = _score_channels(scores.names, scores.grid, mask.names, mask.grid)
        strips = _file_strips(mask, indexes, scores, [channels[k] for k in indexes], self.score_scale)
        names = [mask.names[k] for k in indexes]
        scored = scores is not None
        planes = _planes(
            names, mask.grid, values=values, scored=scored, cleaning=cleaning, class_ids=class_ids
        )
        return _Job(names, planes, strips, values)


def polygonize(
    mask: Raster | ArrayLike,
    *,
    grid: Grid | None = None,
    names: Sequence[str] | None = None,
    values: bool = False,
    scores: Raster | None = None,
    min_area_m2: Sizes = 0.0,
    min_hole_m2: Sizes = 0.0,
    simplify_m: float = 0.0,
    class_ids: Mapping[str, int] | Sequence[int] | None = None,
) -> geopandas.GeoDataFrame:
    """Return the outlines of each class of a mask.

    Parameters
    ----------
    mask : Raster or array, (K, H, W) or (H, W)
        Bands of bool or numbers; pixels > 0 belong to the band's class. Pixels that are not valid
        belong to none.
    grid : Grid, optional
        Of an array; a Raster has its own.
    names : sequence of str, optional
        Class names in band order: the Raster's own when left out; ``feature`` for a single array
        band, ``class_1``, ``class_2``... for several.
    values : bool
        One class per pixel value in place of one per band. 0 and invalid pixels are outside; the
        values are whole numbers, class_id is the value and class_name its digits.
    scores : Raster, (K, H, W) float in 0..1, optional
        On the same grid; the channel named like the class, or else the one in the same place.
    min_area_m2, min_hole_m2 : float or mapping by class name
        Polygons below are dropped, holes below are filled. Squared units without a CRS.
    simplify_m : float
        Tolerance in metres; edges shared by neighbours stay shared. 0 keeps every pixel edge.
    class_ids : mapping by name, or sequence in band order, optional
        1, 2, 3... when left out.

    Returns
    -------
    GeoDataFrame in the CRS of the grid
        class_id, class_name, score (mean over the pixels outlined, 0..1, NaN without `scores`),
        area_m2, geometry (Polygon).

    Raises
    ------
    GridError
        An array without a grid, or scores on another grid.
    BandError
        Names, numbers or scores that do not fit the bands.
    UsageError
        Negative sizes, scores beyond 0..1, or fractions as `values`.
    """
    raster = _as_raster(mask, grid, names)
    if scores is not None:
        scores = _matching_scores(scores, raster)
    cleaning = Cleaning(min_area_m2, min_hole_m2, simplify_m)
    scored = scores is not None
    planes = _planes(
        raster.names, raster.grid, values=values, scored=scored, cleaning=cleaning, class_ids=class_ids
    )
    return _Job(raster.names, planes, _array_strips(raster, scores), values).layer()


def polygonize_file(  # noqa: PLR0913  each is an option of the command line or of detection
    path: PathLike,
    *,
    bands: Sequence[int | str] | None = None,
    values: bool = False,
    scores_path: PathLike | None = None,
    score_scale: float = 1.0,
    min_area_m2: Sizes = 0.0,
    min_hole_m2: Sizes = 0.0,
    simplify_m: float = 0.0,
    class_ids: Mapping[str, int] | Sequence[int] | None = None,
    src_crs: CRSLike | None = None,
) -> geopandas.GeoDataFrame:
    """Return what `polygonize` returns for a mask file, without ever holding the whole mask.

    Parameters
    ----------
    path : path-like
        GeoTIFF; class names are the descriptions of its bands.
    bands : sequence of int or str, optional
        Numbers from 1, or names; all when left out.
    scores_path : path-like, optional
        GeoTIFF of scores on the same grid, its bands named alike or in the same order.
    score_scale : float
        Scores are the pixels of that file times this.
    values, min_area_m2, min_hole_m2, simplify_m, class_ids
        As in `polygonize`.
    src_crs : optional
        CRS of a mask that states none.

    Raises
    ------
    InputError
        A file is missing, damaged, or no GeoTIFF.
    GridError, BandError, UsageError
        As in `polygonize`.
    """
    source = _Source(path, bands, scores_path, score_scale, src_crs)
    cleaning = Cleaning(min_area_m2, min_hole_m2, simplify_m)
    with ExitStack() as stack:
        return source.open(stack, values=values, cleaning=cleaning, class_ids=class_ids).layer()


def polygonize_to_file(  # noqa: PLR0913  each is an option of the command line
    path: PathLike,
    output: PathLike,
    *,
    bands: Sequence[int | str] | None = None,
    values: bool = False,
    scores_path: PathLike | None = None,
    score_scale: float = 1.0,
    min_area_m2: Sizes = 0.0,
    min_hole_m2: Sizes = 0.0,
    simplify_m: float = 0.0,
    class_ids: Mapping[str, int] | Sequence[int] | None = None,
    src_crs: CRSLike | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the features of a mask file to a file, holding neither as a whole; return the features per class.

    Parameters
    ----------
    path : path-like
        As in `polygonize_file`, like the arguments that are not named here.
    output : path-like
        As in `write_features`. Features come in the order in which rows finish them.
    simplify_m : float
        More than 0 needs all features at a time; so does `min_hole_m2` with `values`.
    overwrite : bool
        Whether existing files may be replaced.

    Returns
    -------
    dict of class name to int
        All bands in their order; with `values`, the values found, smallest first.

    Raises
    ------
    InputError, GridError, BandError, UsageError
        As in `polygonize_file`.
    OutputError, CRSError
        As in `write_features`, where it can be told before the work.
    """
    source = _Source(path, bands, scores_path, score_scale, src_crs)
    cleaning = Cleaning(min_area_m2, min_hole_m2, simplify_m)
    counts: dict[str, int] = {}
    with ExitStack() as stack:
        job = source.open(stack, values=values, cleaning=cleaning, class_ids=class_ids)
        counts |= {} if values else dict.fromkeys(job.names, 0)
        out = stack.enter_context(FeatureWriter(output, crs=job.planes.grid.crs, overwrite=overwrite))
        for batch in job.batches():
            features = job.planes.features(batch)
            out.write(features)
            for name, count in features["class_name"].value_counts().items():
                counts[str(name)] = counts.get(str(name), 0) + int(count)
    return counts if not values else dict(sorted(counts.items(), key=lambda item: int(item[0])))


def _as_raster(mask: Raster | ArrayLike, grid: Grid | None, names: Sequence[str] | None) -> Raster:
    if isinstance(mask, Raster):
        return mask if names is None else replace(mask, names=tuple(names))
    planes = as_planes(mask)
    if grid is None:
        raise GridError(
            f"a mask of shape {planes.shape} has no place",
            hint="give grid=, such as scene.grid",
            code="E-GRID-201",
        )
    if names is None:
        names = ("feature",) if len(planes) == 1 else [f"class_{k + 1}" for k in range(len(planes))]
    return Raster(planes, grid, tuple(names))


def _matching_scores(scores: Raster, mask: Raster) -> Raster:
    """Return `scores` with its channels in the order of the mask's bands."""
    channels = _score_channels(scores.names, scores.grid, mask.names, mask.grid)
    return Raster(scores.data[channels], mask.grid, mask.names, scores.valid)


def _score_channels(
    names: tuple[str, ...], grid: Grid, mask_names: tuple[str, ...], mask_grid: Grid
) -> list[int]:
    """Return the number of the score channel of each band of the mask."""
    if not grid.matches(mask_grid):
        raise GridError("scores and mask do not lie on the same grid", code="E-GRID-202")
    if set(mask_names) <= set(names):
        return [names.index(name) for name in mask_names]
    if len(names) != len(mask_names):
        raise BandError(f"scores of {names} are not those of {mask_names}", code="E-BAND-201")
    return list(range(len(names)))


def _strip_windows(height: int, width: int, multiple: int = 1) -> Iterator[Window]:
    rows = max(1, STRIP_PIXELS // width // multiple) * multiple
    for top in range(0, height, rows):
        yield Window(0, top, width, min(rows, height - top))


def _array_strips(raster: Raster, scores: Raster | None) -> Iterator[Strip]:
    count, height, width = raster.shape
    for window in _strip_windows(height, width * max(1, count)):
        rows = slice(window.row_off, window.row_off + window.height)
        pixels = raster.data[:, rows]
        valid = np.broadcast_to(raster.valid[rows], pixels.shape)
        yield Strip(pixels, valid, None if scores is None else scores.data[:, rows])


def _file_strips(
    mask: MaskFile, indexes: Sequence[int], scores: MaskFile | None, channels: Sequence[int], scale: float
) -> Iterator[Strip]:
    height, width = mask.grid.shape
    for strip in _strip_windows(height, width * max(1, len(indexes)), multiple=mask.block_rows):
        window = Window(0, strip.row_off, width, strip.height)
        pixels, valid = mask.read_planes(window, [k + 1 for k in indexes])
        marks = None
        if scores is not None:
            found, known = scores.read_planes(window, [k + 1 for k in channels])
            marks = np.where(known, found, 0).astype(np.float32) * np.float32(scale)
        yield Strip(pixels, valid, marks)


def _planes(
    names: Sequence[str],
    grid: Grid,
    *,
    values: bool,
    scored: bool,
    cleaning: Cleaning,
    class_ids: Mapping[str, int] | Sequence[int] | None,
) -> Planes:
    ids = _class_ids(names, class_ids)
    classes = [None if values else (ids[name], name) for name in names]
    score_of = [(0.0, 1 / SCORE_ONE)] * len(names) if scored else None
    return Planes(grid, classes, cleaning=cleaning, score_of=score_of)


def _class_ids(names: Sequence[str], given: Mapping[str, int] | Sequence[int] | None) -> dict[str, int]:
    if given is None:
        return {name: number for number, name in enumerate(names, start=1)}
    if isinstance(given, Mapping):
        missing = [name for name in names if name not in given]
        if missing:
            raise BandError(f"no class number for {missing}", code="E-BAND-202")
        return {name: given[name] for name in names}
    if len(given) != len(names):
        raise BandError(f"{len(given)} class numbers for {len(names)} bands", code="E-BAND-202")
    return dict(zip(names, given, strict=True))


def _labels(strip: Strip, *, values: bool) -> list[NDArray[Any]]:
    """Return the labels of each band, (h, W) each."""
    bands = zip(strip.pixels, strip.valid, strict=True)
    if values:
        return [_value_labels(pixels, valid) for pixels, valid in bands]
    return [((pixels > 0) & valid).view(np.uint8) for pixels, valid in bands]


def _value_labels(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the pixel values as labels, 0 where invalid."""
    labels = np.where(valid, pixels, np.zeros((), pixels.dtype))
    if np.issubdtype(pixels.dtype, np.floating):
        labels = np.where(np.isfinite(labels), labels, 0)
        if np.any((labels != np.rint(labels)) | (np.abs(labels) > MAX_WHOLE)):
            raise UsageError(
                "pixel values are fractions or huge, not class numbers",
                hint="leave out --values",
                code="E-USE-202",
            )
        return labels.astype(np.int64)
    return labels.view(np.uint8) if labels.dtype == bool else labels


def _weights(scores: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return scores 0..1 as whole numbers of `SCORE_ONE`; NaN counts as 0.

    Raises
    ------
    UsageError
        A score is beyond 0..1 (E-USE-231).
    """
    known = np.nan_to_num(scores.astype(np.float64), nan=0.0)
    if known.size and (known.min() < 0.0 or known.max() > 1.0):
        raise UsageError(f"scores reach from {known.min():.4g} to {known.max():.4g}, not 0..1", code="E-USE-231")
    return np.rint(known * SCORE_ONE).astype(np.int64)
