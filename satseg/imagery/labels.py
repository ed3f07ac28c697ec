"""Vector labels to masks: K planes of 0 and 1 on a grid, and which pixels are labelled at all.

A pixel belongs to a class when its centre lies inside a polygon of it, by GDAL's rule exactly
(`rasterio.features.rasterize`); classes may overlap, so each has a plane of its own. A `LabelLayer`
is moved to a scene's CRS and indexed once, and then burns any window of that ground.

Rejected: one plane of class numbers (the later class would erase the earlier), and widening lines
and points to polygons here (how wide is the user's knowledge).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize as burn_shapes
from rasterio.windows import Window

from satseg.crs import CRS, CRSLike, describe, parse_crs, same_crs, to_pyproj
from satseg.errors import CRSError, LabelError, UsageError
from satseg.grid import Grid
from satseg.imagery.drivers import gdal_env
from satseg.imagery.writer import RasterWriter
from satseg.raster import Raster

if TYPE_CHECKING:
    import geopandas
    import pandas

Geometries: TypeAlias = NDArray[np.object_]
Strings: TypeAlias = NDArray[np.object_]

CLASS_FIELD = "class_name"
SINGLE_CLASS = "feature"
"""Name of the class when nothing names one."""
STRIP_ROWS = 512
CLIP_VERTICES = 2000
"""Polygons with more are cut to a window before burning: a land cover polygon may span the scene."""
_POLYGONAL = (3, 6)  # GEOS type numbers
log = logging.getLogger(__name__)


def rasterize(
    labels: geopandas.GeoDataFrame,
    *,
    like: Grid,
    classes: Sequence[str] | None = None,
    field: str = CLASS_FIELD,
    all_touched: bool = False,
) -> Raster:
    """Burn labels into one plane of 0 and 1 per class.

    Parameters
    ----------
    labels : GeoDataFrame
        Polygons in any CRS; rows without geometry are skipped.
    like : Grid
        The grid of the result.
    classes : sequence of str, optional
        The planes in order; the sorted names of `field` when left out.
    field : str
        Column of class names. When there is no such column every feature is of one class: the only
        one of `classes`, else ``feature``.
    all_touched : bool
        Burn every pixel that a polygon touches, not those whose centre lies inside.

    Returns
    -------
    Raster, (K, H, W) uint8
        1 inside, 0 outside; all pixels valid.

    Raises
    ------
    LabelError
        No such column with several classes; points or lines only.
    CRSError
        One of labels and grid has a CRS and the other has none.
    """
    layer = LabelLayer.of(labels, like, classes, field=field)
    planes = layer.planes(like, all_touched=all_touched)
    return Raster(planes, like, layer.classes)


def rasterize_file(
    labels: geopandas.GeoDataFrame,
    path: str | os.PathLike[str],
    *,
    like: Grid,
    classes: Sequence[str] | None = None,
    all_touched: bool = False,
    overwrite: bool = False,
) -> None:
    """Write what `rasterize` returns as a GeoTIFF, some rows at a time.

    Raises
    ------
    LabelError, CRSError
        As `rasterize`.
    OutputError
        The file cannot be written.
    """
    layer = LabelLayer.of(labels, like, classes)
    if not layer.touches(like):
        log.warning("%s: no label lies on the grid, all of it is 0", os.fspath(path))
    with RasterWriter(path, grid=like, names=layer.classes, dtype=np.uint8, overwrite=overwrite) as out:
        for top in range(0, like.height, STRIP_ROWS):
            window = Window(0, top, like.width, min(STRIP_ROWS, like.height - top))
            out.write(layer.planes(like.crop(window), all_touched=all_touched), window)


@dataclass(frozen=True, slots=True, eq=False)
class LabelLayer:
    """Labels of one ground, ready to be burnt window by window; immutable and picklable.

    Parameters
    ----------
    classes : tuple of str
    geometries : tuple of ndarray of Polygon, one array per class
        In the CRS of the grids that will be burnt.
    crs : CRS or None
    ignored : ndarray of Polygon
        Ground whose class is unknown.
    aoi : ndarray of Polygon, optional
        Ground outside of these is not labelled.
    unlabelled : {"background", "ignore"}
        What ground without any label is.
    """

    classes: tuple[str, ...]
    geometries: tuple[Geometries, ...]
    crs: CRS | None = None
    ignored: Geometries = field(default_factory=lambda: np.empty(0, object))
    aoi: Geometries | None = None
    unlabelled: Literal["background", "ignore"] = "background"
    _tree: shapely.STRtree = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.unlabelled not in ("background", "ignore"):
            raise UsageError(
                f"unlabelled={self.unlabelled!r} is neither 'background' nor 'ignore'", code="E-USE-211"
            )
        object.__setattr__(self, "_tree", shapely.STRtree(np.concatenate([*self.geometries, self.ignored])))

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the index out of a pickle: it is rebuilt faster than sent."""
        return LabelLayer, (self.classes, self.geometries, self.crs, self.ignored, self.aoi, self.unlabelled)

    @classmethod
    def of(
        cls,
        labels: geopandas.GeoDataFrame,
        grid: Grid,
        classes: Sequence[str] | None = None,
        *,
        field: str = CLASS_FIELD,
    ) -> LabelLayer:
        """Return the polygons of `labels` by class, in the CRS of `grid`; they may lie elsewhere.

        Raises
        ------
        LabelError, CRSError
            As `rasterize`.
        """
        names = _class_names(labels, classes, field)
        if classes is None:
            classes = sorted({name for name in names if name is not None}) or [SINGLE_CLASS]
        if len(set(classes)) != len(classes):
            raise UsageError(f"classes {tuple(classes)} repeat a name", code="E-USE-212")
        return cls(tuple(classes), tuple(_by_class(labels, names, grid, classes)), grid.crs)

    @classmethod
    def build(
        cls,
        labels: geopandas.GeoDataFrame,
        grid: Grid,
        classes: Sequence[str],
        *,
        aoi: shapely.Geometry | None = None,
        unlabelled: Literal["background", "ignore"] = "background",
        ignore: str = "ignore",
    ) -> LabelLayer:
        """Return the layer of a scene that is to be learnt from.

        Parameters
        ----------
        labels : GeoDataFrame
            With a column ``class_name``.
        grid : Grid
            Of the scene.
        classes : sequence of str
        aoi : Polygon or MultiPolygon, optional
            In the CRS of `grid`.
        unlabelled : {"background", "ignore"}
            What ground without any label is.
        ignore : str
            Name of the features that cover ground of unknown class.

        Raises
        ------
        LabelError
            No labels at all, points or lines only, or not one of them on the scene.
        CRSError
            One of labels and scene has a CRS and the other has none.
        """
        if ignore in classes:
            raise UsageError(f"{ignore!r} marks ground to ignore and cannot be a class", code="E-USE-213")
        names = _class_names(labels, classes, CLASS_FIELD)
        *geometries, ignored = _by_class(labels, names, grid, (*classes, ignore))
        area = None if aoi is None else _parts(np.array([aoi], dtype=object))[0]
        layer = cls(tuple(classes), tuple(geometries), grid.crs, ignored, area, unlabelled)
        layer.check_overlap(grid, labels)
        return layer

    def check_overlap(self, grid: Grid, labels: geopandas.GeoDataFrame) -> None:
        """Raise LabelError when no feature touches `grid`; `labels` are what the message tells of."""
        if not len(labels):
            raise LabelError(
                "there are no labels", hint="a scene needs at least one labelled feature", code="E-LAB-201"
            )
        if self.touches(grid):
            return
        extent = ", ".join(f"{side:.7g}" for side in labels.total_bounds)
        place = ", ".join(f"{side:.7g}" for side in grid.bounds)
        raise LabelError(
            f"no label of these classes lies on the scene: labels {extent} in {describe(labels.crs)}, "
            f"scene {place} in {describe(grid.crs)}",
            hint="check the CRS and the class names of both",
            code="E-LAB-202",
        )

    def touches(self, grid: Grid) -> bool:
        """Return whether any feature has a point in common with `grid`."""
        return len(self._tree.query(grid.footprint(), predicate="intersects")) > 0

    def burn(self, grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Burn the labels on `grid`.

        Returns
        -------
        targets : ndarray of uint8, (K, h, w)
            1 where a pixel's centre lies in the class.
        labelled : ndarray of bool, (h, w)
            False outside the area of interest, on ignored ground, and on ground without any label
            when that is to be ignored.

        Raises
        ------
        CRSError
            `grid` is in another CRS.
        """
        if not same_crs(grid.crs, self.crs):
            there, here = describe(self.crs), describe(grid.crs)
            raise CRSError(f"labels in {there} cannot be burnt in {here}", code="E-CRS-202")
        targets = self.planes(grid)
        return targets, self.known(grid, targets)

    def known(self, grid: Grid, targets: NDArray[np.uint8] | None = None) -> NDArray[np.bool_]:
        """Whether truth is known, (h, w): at a pixel's centre, where `targets` are of, or of any ground it touches."""
        touched, known = targets is None, np.ones(grid.shape, bool)
        if self.unlabelled == "ignore":
            known &= (self.planes(grid, all_touched=True) if targets is None else targets).any(axis=0)
        if self.aoi is not None:
            known &= _burnt(_cut(self.aoi, grid), grid, all_touched=touched).view(bool)
        if len(self.ignored):
            known &= ~_burnt(self._near(grid)[-1], grid).view(bool)
        return known

    def planes(self, grid: Grid, *, all_touched: bool = False) -> NDArray[np.uint8]:
        """Return one plane of 0 and 1 per class, (K, h, w)."""
        near = self._near(grid)[:-1]
        return np.stack([_burnt(polygons, grid, all_touched=all_touched) for polygons in near])

    def _near(self, grid: Grid) -> list[Geometries]:
        """Return the polygons around `grid`, class by class, those to ignore last."""
        found = np.sort(self._tree.query(shapely.box(*_with_margin(grid))))
        ends = np.cumsum([len(polygons) for polygons in self.geometries])
        by_class = np.split(found, np.searchsorted(found, ends))
        return [_cut(self._tree.geometries[part], grid) for part in by_class]


def class_labels(column: pandas.Series) -> Strings:
    """Return the class names that an attribute's values stand for: 3 and 3.0 are ``3``, a gap is None.

    Returns
    -------
    ndarray of str or None, as long as `column`
    """
    codes, values = column.factorize()
    by_code = np.array([*map(_class_label, values), None], dtype=object)  # a gap has the code -1
    names: Strings = by_code[codes]
    return names


def _class_label(value: Any) -> str:
    if isinstance(value, float | np.floating) and np.isfinite(value) and value == int(value):
        value = int(value)
    return str(value)


def _class_names(labels: geopandas.GeoDataFrame, classes: Sequence[str] | None, field: str) -> Strings:
    """Return the class name of each row, None where it has none."""
    if field in labels.columns:
        return class_labels(labels[field])
    if (classes is not None and len(classes) > 1) or field != CLASS_FIELD:
        raise LabelError(
            f"labels have no column {field!r}, only {sorted(map(str, labels.columns))}",
            hint="name the column that holds the class",
            code="E-LAB-203",
        )
    return np.full(len(labels), classes[0] if classes else SINGLE_CLASS, dtype=object)


def _by_class(
    labels: geopandas.GeoDataFrame, names: Strings, grid: Grid, classes: Sequence[str]
) -> list[Geometries]:
    polygons, rows = _polygons(labels)
    polygons = _moved(polygons, labels.crs, grid.crs)
    return [polygons[names[rows] == name] for name in classes]


def _polygons(labels: geopandas.GeoDataFrame) -> tuple[Geometries, NDArray[np.int64]]:
    """Return the single polygons of `labels` and the row that each comes from."""
    geometries = labels.geometry.to_numpy()
    present = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    polygonal = np.isin(shapely.get_type_id(geometries), _POLYGONAL)
    other = int(np.count_nonzero(present & ~polygonal))
    if other and not np.any(present & polygonal):
        raise LabelError(
            f"all {other} labels are points or lines, which cover no pixels",
            hint="widen them first, such as with geopandas' buffer",
            code="E-LAB-204",
        )
    if other:
        log.warning("%d labels that are not polygons are left out", other)
    rows = np.flatnonzero(present & polygonal)
    polygons, of = _parts(geometries[rows])
    return polygons, rows[of]


def _parts(geometries: Geometries) -> tuple[Geometries, NDArray[np.int64]]:
    parts, of = shapely.get_parts(geometries, return_index=True)
    solid = (shapely.get_type_id(parts) == _POLYGONAL[0]) & ~shapely.is_empty(parts)
    return parts[solid], of[solid]


def _moved(polygons: Geometries, source: CRSLike | None, target: CRSLike | None) -> Geometries:
    """Return `polygons` in `target`; those that have no image there are not on the scene and empty."""
    if (source is None) != (target is None):
        raise CRSError(
            f"labels in {describe(source)} cannot be laid over a grid in {describe(target)}",
            hint="give the one without a CRS its own (--src-crs for scenes, set_crs for labels)",
            code="E-CRS-201",
        )
    if source is None or target is None or same_crs(parse_crs(source), target):
        return polygons
    mover = pyproj.Transformer.from_crs(to_pyproj(source), to_pyproj(target), always_xy=True)
    moved: Geometries = shapely.transform(polygons, mover.transform, interleaved=False)
    moved[~np.isfinite(shapely.bounds(moved)).all(axis=1)] = shapely.Polygon()
    return moved


def _with_margin(grid: Grid) -> tuple[float, float, float, float]:
    """Envelope of the grid and a pixel around it."""
    around = Window(-1, -1, grid.width + 2, grid.height + 2)
    return grid.crop(around).bounds


def _cut(polygons: Geometries, grid: Grid) -> Geometries:
    """Return `polygons` with the very long ones cut to the surroundings of `grid`."""
    long = shapely.get_num_coordinates(polygons) > CLIP_VERTICES
    if not long.any():
        return polygons
    clipped, _ = _parts(shapely.clip_by_rect(polygons[long], *_with_margin(grid)))
    return np.concatenate([polygons[~long], clipped])


def _burnt(polygons: Geometries, grid: Grid, *, all_touched: bool = False) -> NDArray[np.uint8]:
    plane = np.zeros(grid.shape, np.uint8)
    polygons = polygons[~shapely.is_empty(polygons)]
    if len(polygons):
        with gdal_env():
            burn_shapes(_as_geojson(polygons), out=plane, transform=grid.transform, all_touched=all_touched)
    return plane


def _as_geojson(polygons: Geometries) -> Iterable[dict[str, Any]]:
    """Return what rasterio takes; all coordinates at once, five times faster than shapely.mapping."""
    _, coords, (ring_starts, polygon_starts) = shapely.to_ragged_array(polygons, include_z=False)
    points = coords.tolist()
    rings = [points[start:end] for start, end in pairwise(ring_starts.tolist())]
    outlines = pairwise(polygon_starts.tolist())
    return [{"type": "Polygon", "coordinates": rings[start:end]} for start, end in outlines]
