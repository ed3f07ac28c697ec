"""Masks to features: polygons exactly along pixel edges, with class, mean score and square metres.

The pixels of each band are traced row by row (`satseg.vector.trace`), from an array or straight
from a file of any size; both ways give the same layer. Pixels belong together when they share an
edge; holes are kept; every polygon is valid; burning the polygons back restores the mask exactly.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import geopandas
import numpy as np
import shapely
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from rasterio.windows import Window

from satseg.crs import CRSLike
from satseg.errors import BandError, GridError, UsageError
from satseg.grid import Grid
from satseg.imagery.maskfile import MaskFile
from satseg.imagery.writer import open_mask
from satseg.raster import Raster, as_planes
from satseg.vector.features import as_features
from satseg.vector.finish import Cleaning, Geometries, Measure, clean, simplify
from satseg.vector.trace import Outlines, OutlineTracer

PathLike = str | os.PathLike[str]
Strip = tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.floating[Any]] | None]
"""Some rows of one band: pixels (h, W), where they are valid (h, W), their scores (h, W)."""
STRIP_PIXELS = 2**21
"""Pixels traced at a time: a few megabytes of working memory, and rows long enough for numpy."""
MAX_WHOLE = 2.0**53
"""Beyond this a float is always a whole number and says nothing."""
FLOOD = 1_000_000
"""More polygons of one band than this are more likely noise than things."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Plane:
    """One band on its way to polygons."""

    name: str
    strips: Iterable[Strip]


@dataclass(frozen=True, slots=True)
class _Found:
    """The polygons of one band, (P,) each."""

    class_ids: NDArray[np.int64]
    class_names: NDArray[np.object_]
    scores: NDArray[np.float64]
    polygons: Geometries


def polygonize(
    mask: Raster | ArrayLike,
    *,
    grid: Grid | None = None,
    names: Sequence[str] | None = None,
    values: bool = False,
    scores: Raster | None = None,
    min_area_m2: float | Mapping[str, float] = 0.0,
    min_hole_m2: float | Mapping[str, float] = 0.0,
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
    planes = [_Plane(name, _array_strips(raster, scores, k)) for k, name in enumerate(raster.names)]
    cleaning = Cleaning(min_area_m2, min_hole_m2, simplify_m)
    return _layer(planes, raster.grid, values=values, cleaning=cleaning, class_ids=class_ids)


def polygonize_file(  # noqa: PLR0913  each is an option of the command line or of detection
    path: PathLike,
    *,
    bands: Sequence[int | str] | None = None,
    values: bool = False,
    scores_path: PathLike | None = None,
    score_scale: float = 1.0,
    min_area_m2: float | Mapping[str, float] = 0.0,
    min_hole_m2: float | Mapping[str, float] = 0.0,
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
    with ExitStack() as stack:
        mask = stack.enter_context(open_mask(path, src_crs=src_crs))
        indexes = mask.indexes(bands)
        scores, channels = None, [0] * mask.count
        if scores_path is not None:
            scores = stack.enter_context(open_mask(scores_path, src_crs=src_crs))
            channels = _score_channels(scores.names, scores.grid, mask.names, mask.grid)
        planes = [
            _Plane(mask.names[k], _file_strips(mask, k, scores, channels[k], score_scale)) for k in indexes
        ]
        cleaning = Cleaning(min_area_m2, min_hole_m2, simplify_m)
        return _layer(planes, mask.grid, values=values, cleaning=cleaning, class_ids=class_ids)


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


def _array_strips(raster: Raster, scores: Raster | None, k: int) -> Iterator[Strip]:
    for window in _strip_windows(*raster.grid.shape):
        rows = slice(window.row_off, window.row_off + window.height)
        yield raster.data[k, rows], raster.valid[rows], None if scores is None else scores.data[k, rows]


def _file_strips(
    mask: MaskFile, k: int, scores: MaskFile | None, channel: int, scale: float
) -> Iterator[Strip]:
    for window in _strip_windows(*mask.grid.shape, multiple=mask.block_rows):
        part = mask.read(window, [k + 1])
        marks = None
        if scores is not None:
            marks = scores.read(window, [channel + 1]).data[0].astype(np.float32) * np.float32(scale)
        yield part.data[0], part.valid, marks


def _layer(
    planes: Sequence[_Plane],
    grid: Grid,
    *,
    values: bool,
    cleaning: Cleaning,
    class_ids: Mapping[str, int] | Sequence[int] | None,
) -> geopandas.GeoDataFrame:
    measure = Measure(grid.crs, grid.bounds)
    ids = _class_ids([plane.name for plane in planes], class_ids)
    found = []
    for plane in planes:
        outlines = _trace(plane, grid.width, values=values)
        # Only neighbours of different values share edges, which then need vertices where a third one begins.
        polygons = _geometries(outlines, grid.transform, dense=values and cleaning.simplify_m > 0)
        classes = None if values else (ids[plane.name], plane.name)
        found.append(_cleaned(outlines, polygons, classes, measure, cleaning))
        if len(found[-1].polygons) > FLOOD:
            log.warning(
                "%d polygons in band %s: noise? A minimum area keeps them out",
                len(found[-1].polygons),
                plane.name,
            )
    polygons = _joined([part.polygons for part in found])
    return as_features(
        polygons,
        class_ids=_joined([part.class_ids for part in found]),
        class_names=_joined([part.class_names for part in found]),
        scores=_joined([part.scores for part in found]),
        areas_m2=measure.areas(polygons),
        crs=grid.crs,
    )


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, object)


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


def _trace(plane: _Plane, width: int, *, values: bool) -> Outlines:
    tracer = OutlineTracer(width)
    for pixels, valid, scores in plane.strips:
        labels = _value_labels(pixels, valid) if values else ((pixels > 0) & valid).view(np.uint8)
        tracer.feed(labels, scores)
    return tracer.outlines()


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


def _geometries(outlines: Outlines, transform: Affine, *, dense: bool) -> Geometries:
    """Return the polygons; `dense` ones have a vertex at every pixel corner they pass."""
    if not dense:
        return outlines.geometries(transform)
    t = transform
    fine = shapely.segmentize(outlines.geometries(Affine.identity()), 1.0)
    moved: Geometries = shapely.transform(
        fine, lambda c, r: (t.c + c * t.a + r * t.b, t.f + c * t.d + r * t.e), interleaved=False
    )
    return moved


def _cleaned(
    outlines: Outlines,
    polygons: Geometries,
    named: tuple[int, str] | None,
    measure: Measure,
    cleaning: Cleaning,
) -> _Found:
    """Give the polygons of one band their classes, `named` or by value, and clean them."""
    labels, which = np.unique(outlines.values, return_inverse=True)
    classes = [named if named else (int(label), str(int(label))) for label in labels]
    sizes = np.array([cleaning.sizes(name) for _, name in classes]).reshape(-1, 2)[which]
    polygons, kept = clean(polygons, measure, which, min_area_m2=sizes[:, 0], min_hole_m2=sizes[:, 1])
    scores = np.full(len(outlines.pixels), np.nan)
    if outlines.score_sums is not None:
        scores = outlines.score_sums / outlines.pixels
    return _Found(
        class_ids=np.array([number for number, _ in classes], np.int64)[which[kept]],
        class_names=np.array([name for _, name in classes], object)[which[kept]],
        scores=scores[kept],
        polygons=simplify(polygons, measure, cleaning.simplify_m),
    )
