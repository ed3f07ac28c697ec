"""Layers: what a prediction or a truth says, as sound polygons by class, whatever it came as.

Vector files, GeoDataFrames, masks on disk and in memory all become one kind of value here, so that
nothing after this module asks where polygons came from. Masks are outlined exactly, pixel by pixel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import geopandas
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.crs import to_pyproj
from satseg.errors import LabelError, UsageError
from satseg.grid import Grid
from satseg.imagery.labels import CLASS_FIELD, SINGLE_CLASS, class_labels
from satseg.imagery.writer import open_mask
from satseg.raster import Raster
from satseg.scoring.cells import Geometries
from satseg.vector.features import read_features
from satseg.vector.finish import repair
from satseg.vector.moving import move
from satseg.vector.polygonize import polygonize, polygonize_file
from satseg.vector.trace import OutlineTracer, joined

LayerLike: TypeAlias = "geopandas.GeoDataFrame | Raster | str | os.PathLike[str]"

UNNAMED = SINGLE_CLASS
"""The one class of a layer whose features carry none."""
RASTER_SUFFIXES = (".tif", ".tiff")
NO_FIELD = "E-LAB-211"
"""What `read_features` says when a file lacks the class attribute."""
STRIP_PX = 2**24
"""Pixels of a mask whose validity is read at a time."""


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
    field : str or None
        The attribute that the classes were read from.
    """

    polygons: Geometries
    names: NDArray[np.object_]
    classes: tuple[str, ...]
    crs: pyproj.CRS | None
    grid: Grid | None = None
    unknown: Geometries | None = None
    repaired: int = 0
    warnings: tuple[str, ...] = ()
    field: str | None = None

    def of(self, name: str) -> Geometries:
        """Return the polygons of class `name`."""
        found: Geometries = self.polygons[self.names == name]
        return found

    def renamed(self, old: str, new: str) -> Layer:
        """Return this layer with class `old` called `new`."""
        names = np.where(self.names == old, new, self.names)
        classes = tuple(new if name == old else name for name in self.classes)
        return replace(self, names=names, classes=classes)

    def only(self, classes: Sequence[str]) -> Layer:
        """Return the features whose class is among `classes`."""
        keep = np.isin(self.names, list(classes))
        return replace(self, polygons=self.polygons[keep], names=self.names[keep])

    def in_crs(self, crs: pyproj.CRS | None) -> Layer:
        """Return this layer with coordinates in `crs`."""
        polygons = move(self.polygons, self.crs, crs)
        unknown = None if self.unknown is None else move(self.unknown, self.crs, crs)
        return replace(self, polygons=polygons, unknown=unknown, crs=crs)

    def frame(self) -> geopandas.GeoDataFrame:
        """Return the features as a GeoDataFrame with class_name and geometry."""
        return geopandas.GeoDataFrame(
            {"class_name": pd.Series(self.names, dtype=object)}, geometry=self.polygons, crs=self.crs
        )


def read_layer(source: LayerLike, *, field: str | None = None, role: str = "layer") -> Layer:
    """Return `source` as a layer.

    Parameters
    ----------
    source : GeoDataFrame, Raster or path
        A mask (Raster or GeoTIFF) has one class per band, where the value is above 0.
    field : str, optional
        Attribute that holds the class. Where it is missing, or left out, ``class_name`` does, as
        satseg writes it; else all features are of one class.
    role : str
        What to call the layer in messages.

    Raises
    ------
    InputError, LabelError
        The file is missing or damaged, has no such field, or no polygons but other geometries.
    UsageError
        `source` is something else, or a raster of scores.
    """
    if isinstance(source, Raster):
        return _raster_layer(source)
    if isinstance(source, geopandas.GeoDataFrame):
        return _vector_layer(source, field, role)
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise UsageError(f"a {kind} is no {role}", hint="give a GeoDataFrame, a Raster or a file", code="E-USE-066")
    if Path(source).suffix.lower() in RASTER_SUFFIXES:
        return _mask_file_layer(source)
    features = _read_file(source, field)
    layer = _vector_layer(features, CLASS_FIELD, role)
    dropped = features.attrs["dropped"]
    notes = (f"{dropped} features of the {role} have no class or no area",) if dropped else ()
    own = field if field in features.columns else CLASS_FIELD
    return replace(layer, repaired=features.attrs["repaired"], warnings=notes, field=own)


def _read_file(path: str | os.PathLike[str], field: str | None) -> geopandas.GeoDataFrame:
    """Read a vector file by `field`, or where it has none by the column that satseg itself writes."""
    try:
        return read_features(path, field=field)
    except LabelError as missing:
        if field is None or missing.code != NO_FIELD:
            raise
        try:
            return read_features(path, field=CLASS_FIELD)
        except LabelError as neither:
            raise missing from neither


def trace(planes: Iterable[NDArray[np.bool_]], grid: Grid) -> Geometries:
    """Return the outlines of what is True in `planes`, strips (h, W) of one mask on `grid`, top down."""
    tracer = OutlineTracer(grid.width, transform=grid.transform)
    parts = [tracer.feed(plane) for plane in planes]
    outlines: Geometries = joined([*parts, tracer.finish()]).geometries()
    return outlines


def strip_windows(grid: Grid, *, rows: int, block_rows: int = 1) -> Iterator[Window]:
    """Yield windows of about `rows` rows that cover `grid` from the top, whole blocks each."""
    step = max(1, rows // block_rows) * block_rows
    for top in range(0, grid.height, step):
        yield Window(0, top, grid.width, min(step, grid.height - top))


def _raster_layer(mask: Raster) -> Layer:
    unknown = trace([_unknown(mask)], mask.grid)
    return _outlined(polygonize(mask), mask.names, grid=mask.grid, unknown=unknown)


def _mask_file_layer(path: str | os.PathLike[str]) -> Layer:
    with open_mask(path) as mask:
        grid, names = mask.grid, mask.names
        strips = strip_windows(grid, rows=STRIP_PX // grid.width, block_rows=mask.block_rows)
        unknown = trace((_unknown(mask.read(strip)) for strip in strips), grid)
    return _outlined(polygonize_file(path), names, grid=grid, unknown=unknown)


def _unknown(mask: Raster) -> NDArray[np.bool_]:
    """Return where `mask` is not valid; scores, whose every pixel is above 0, are refused."""
    if mask.data.dtype.kind == "f" and ((mask.data > 0) & (mask.data < 1)).any():
        raise UsageError(
            f"bands {mask.names} hold fractions: these are scores, not masks",
            hint="make masks of them with threshold(0.5)",
            code="E-USE-067",
        )
    return ~mask.valid


def _outlined(features: geopandas.GeoDataFrame, classes: tuple[str, ...], *, grid: Grid, unknown: Geometries) -> Layer:
    if len(classes) == 1 and classes[0] == "band_1":  # a band without a description
        features, classes = features.assign(class_name=UNNAMED), (UNNAMED,)
    names = features["class_name"].to_numpy(dtype=object)
    crs = None if grid.crs is None else to_pyproj(grid.crs)
    return Layer(features.geometry.to_numpy(), names, classes, crs, grid=grid, unknown=unknown)


def _vector_layer(features: geopandas.GeoDataFrame, field: str | None, role: str) -> Layer:
    classes = _class_names(features, field, role)
    geometries: Geometries = features.geometry.to_numpy()
    named = ~pd.isna(classes)
    there = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    polygons, repaired = repair(geometries[named & there])
    solid = ~shapely.is_missing(polygons)
    if len(polygons) and not solid.any():
        kinds = sorted({geometry.geom_type for geometry in geometries[named & there]})
        raise LabelError(
            f"{role} has {len(polygons)} features and not one polygon, but {', '.join(kinds)}",
            hint="points and lines have no area to score; buffer them first", code="E-LAB-031",
        )  # fmt: skip
    lost = {"class": np.count_nonzero(~named), "area": np.count_nonzero(~solid)}
    names = classes[named & there][solid]
    return Layer(
        polygons[solid],
        names,
        tuple(sorted(set(names.tolist()))),
        None if features.crs is None else pyproj.CRS(features.crs),
        repaired=repaired,
        warnings=tuple(f"{n} features of the {role} have no {what}" for what, n in lost.items() if n),
        field=field if field in features.columns else CLASS_FIELD,
    )


def _class_names(features: geopandas.GeoDataFrame, field: str | None, role: str) -> NDArray[np.object_]:
    for name in (field, CLASS_FIELD):
        if name is not None and name in features.columns:
            return class_labels(features[name])
    if field is not None and len(features):
        columns = [name for name in features.columns if name != features.geometry.name]
        raise LabelError(f"{role} has no field {field!r}, only {columns}", hint="give one of these", code="E-LAB-030")
    return np.full(len(features), UNNAMED, dtype=object)
