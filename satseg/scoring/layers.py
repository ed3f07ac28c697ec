"""Layers: what a prediction or a truth says, as sound polygons by class, whatever it came as.

Vector files, GeoDataFrames, masks on disk and in memory all become one kind of value here, so that
nothing after this module asks where polygons came from. Masks are outlined exactly, pixel by pixel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import geopandas
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray

from satseg.crs import CRSLike, describe, same_crs, to_pyproj
from satseg.errors import CRSError, LabelError
from satseg.grid import Grid
from satseg.raster import Raster
from satseg.scoring.cells import Geometries, polygonal
from satseg.vector.features import read_features
from satseg.vector.finish import repair
from satseg.vector.polygonize import polygonize

LayerLike: TypeAlias = "geopandas.GeoDataFrame | Raster | str | os.PathLike[str]"

UNNAMED = "feature"
"""The one class of a layer whose features carry no class."""
RASTER_SUFFIXES = (".tif", ".tiff")
MAX_SEGMENTS = 256
"""Edges longer than this share of a layer's extent are divided before it moves to another CRS, where
straight lines are curves: over 10 km the arc then strays less than a millimetre from its chord."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Sound polygons with class names.

    Parameters
    ----------
    polygons : (N,) array of valid, not empty polygons and multipolygons
    names : (N,) array of str
        The class of each.
    classes : tuple of str
        Every class the layer knows, also those without a polygon.
    crs : pyproj.CRS or None
    grid : Grid, optional
        Of the mask that the layer was.
    unknown : (M,) array of polygons
        Where the mask it was had no value.
    repaired : int
        How many polygons were invalid.
    warnings : tuple of str
    """

    polygons: Geometries
    names: NDArray[np.object_]
    classes: tuple[str, ...]
    crs: pyproj.CRS | None
    grid: Grid | None = None
    unknown: Geometries | None = None
    repaired: int = 0
    warnings: tuple[str, ...] = ()

    def of(self, name: str) -> Geometries:
        """The polygons of class `name`."""
        found: Geometries = self.polygons[self.names == name]
        return found

    def renamed(self, old: str, new: str) -> Layer:
        """This layer with class `old` called `new`."""
        names = np.where(self.names == old, new, self.names)
        return replace(self, names=names, classes=tuple(new if name == old else name for name in self.classes))

    def only(self, classes: Sequence[str]) -> Layer:
        """The features whose class is among `classes`."""
        keep = np.isin(self.names, list(classes))
        return replace(self, polygons=self.polygons[keep], names=self.names[keep])

    def in_crs(self, crs: pyproj.CRS | None) -> Layer:
        """This layer with coordinates in `crs`."""
        polygons = move(self.polygons, self.crs, crs)
        unknown = None if self.unknown is None else move(self.unknown, self.crs, crs)
        return replace(self, polygons=polygons, unknown=unknown, crs=crs)

    def frame(self) -> geopandas.GeoDataFrame:
        """The features as a GeoDataFrame with class_name and geometry."""
        return geopandas.GeoDataFrame(
            {"class_name": pd.Series(self.names, dtype=object)}, geometry=self.polygons, crs=self.crs
        )


def read_layer(
    source: LayerLike, *, field: str | None = None, classes: Sequence[str] | None = None, role: str = "layer"
) -> Layer:
    """Return `source` as a layer.

    Parameters
    ----------
    source : GeoDataFrame, Raster or path
        A mask (Raster or GeoTIFF) has one class per band, where the value is above 0.
    field : str, optional
        Attribute that holds the class; ``class_name`` where there is one when left out, else all
        features are of one class.
    classes : sequence of str, optional
        Names for unnamed features (when it is a single one).
    role : str
        What to call the layer in messages.

    Raises
    ------
    InputError, LabelError
        The file is missing or damaged, has no such field, or no polygons but other geometries.
    """
    if isinstance(source, Raster):
        return _mask_layer(source)
    if not isinstance(source, geopandas.GeoDataFrame):
        if Path(source).suffix.lower() in RASTER_SUFFIXES:
            return _mask_layer(read_mask(source))
        source = read_features(source)
    return _vector_layer(source, _class_names(source, field, role), role)


def move(polygons: Geometries, source: CRSLike | None, target: CRSLike | None) -> Geometries:
    """Return `polygons` in another CRS, long edges divided first so that they follow their curves.

    Raises
    ------
    CRSError
        Only one side has a CRS (E-CRS-010), or points have no image there (E-CRS-011).
    """
    if same_crs(source, target) or not len(polygons):
        return polygons
    if source is None or target is None:
        raise CRSError(
            f"polygons in {describe(source)} cannot be compared in {describe(target)}",
            hint="give both layers a CRS, or neither", code="E-CRS-010",
        )  # fmt: skip
    left, bottom, right, top = shapely.total_bounds(polygons)
    dense = shapely.segmentize(polygons, max(right - left, top - bottom) / MAX_SEGMENTS)
    moved = geopandas.GeoSeries(dense, crs=to_pyproj(source)).to_crs(to_pyproj(target)).to_numpy()
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise CRSError(
            f"coordinates within {left:g} {bottom:g} {right:g} {top:g} in {describe(source)} do not exist in "
            f"{describe(target)}", hint="check the CRS of the layers and the order of x and y", code="E-CRS-011",
        )  # fmt: skip
    return polygonal(repair(moved)[0])


def _class_names(features: geopandas.GeoDataFrame, field: str | None, role: str) -> pd.Series:
    if field is not None and field in features.columns:
        return features[field]
    if "class_name" in features.columns:  # what satseg itself wrote needs no --field
        return features["class_name"]
    if field is not None and len(features):
        columns = [name for name in features.columns if name != features.geometry.name]
        raise LabelError(
            f"{role} has no field {field!r}, only {columns}", hint="give --field one of these", code="E-LAB-030"
        )
    return pd.Series([UNNAMED] * len(features), index=features.index, dtype=object)


def _vector_layer(features: geopandas.GeoDataFrame, classes: pd.Series, role: str) -> Layer:
    geometries: Geometries = features.geometry.to_numpy()
    names = np.array([_class_text(value) for value in classes], dtype=object)
    nameless = classes.isna().to_numpy()
    keep = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries) | nameless)
    polygons, repaired = repair(geometries[keep])
    with_area = shapely.area(polygons) > 0
    flat = int(np.count_nonzero(~with_area))
    if flat and not with_area.any():
        raise LabelError(
            f"{role} has {flat} features and not one polygon with an area, but {polygons[0].geom_type}",
            hint="points and lines are not scored; buffer them first", code="E-LAB-031",
        )  # fmt: skip
    notes = [f"{flat} features of the {role} have no area and were left out"] if flat else []
    if nameless.any():
        notes.append(f"{int(nameless.sum())} features of the {role} have no class and were left out")
    chosen = names[keep][with_area]
    return Layer(
        np.array([_only_polygons(polygon) for polygon in polygons[with_area]], dtype=object),
        chosen,
        tuple(sorted(set(chosen.tolist()))),
        None if features.crs is None else pyproj.CRS(features.crs),
        repaired=repaired,
        warnings=tuple(notes),
    )


def _class_text(value: object) -> str:
    """A class value as its name: 3 and 3.0 are one class."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _only_polygons(geometry: shapely.Geometry) -> shapely.Geometry:
    if geometry.geom_type in ("Polygon", "MultiPolygon"):
        return geometry
    return shapely.multipolygons(polygonal(np.array([geometry], dtype=object)))
