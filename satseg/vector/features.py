"""Features: polygons with a class, as a GeoDataFrame; the one door to vector files.

Columns are class_id, class_name, score (0..1), area_m2, geometry: at most ten characters, so that
they survive a shapefile. Files are recognised by content when read and chosen by suffix when
written (`satseg.vector.formats`); what is written is read back before it appears under its name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import geopandas
import numpy as np
import pandas
import pyarrow
import pyogrio
import shapely
from numpy.typing import ArrayLike
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj.exceptions import ProjError

from satseg.crs import CRSLike, same_crs, to_pyproj
from satseg.errors import CRSError, InputError, LabelError
from satseg.imagery.labels import CLASS_FIELD
from satseg.output import AtomicOutput
from satseg.vector.classes import classes_of, with_classes
from satseg.vector.finish import Geometries, repair
from satseg.vector.formats import PathLike, VectorFormat, check_target, source_driver
from satseg.vector.shapefile import as_shapefile
from satseg.vector.styles import add_style, class_colors
from satseg.vector.wkt_csv import read_csv, write_csv
from satseg.vector.written import as_output_error, divided, verify, warnings_logged

__all__ = ["read_features", "write_features", "check_target", "as_features", "empty_features"]

_FAILURES = (
    DataSourceError, DataLayerError, pyarrow.ArrowException, shapely.errors.ShapelyError, ValueError, OSError,
    KeyError, ProjError,  # geopandas on metadata of Parquet that name other columns or no CRS
    UnboundLocalError,  # pyogrio 0.13 on a CRS that PROJ refuses
)  # fmt: skip
log = logging.getLogger(__name__)


def as_features(
    geometries: Geometries,
    *,
    class_ids: ArrayLike,
    class_names: ArrayLike,
    scores: ArrayLike,
    areas_m2: ArrayLike,
    crs: CRSLike | None,
) -> geopandas.GeoDataFrame:
    """Return a layer of features with the columns that satseg writes.

    Parameters
    ----------
    geometries : ndarray of Polygon, (P,)
    class_ids, class_names, scores, areas_m2 : array-like, (P,)
        Whole numbers, texts, 0..1 or NaN, square metres.
    crs : CRS or None
    """
    columns = {
        "class_id": np.asarray(class_ids, dtype=np.int64),
        "class_name": pandas.Series(np.asarray(class_names, dtype=object), dtype="str"),
        "score": np.asarray(scores, dtype=np.float64),
        "area_m2": np.asarray(areas_m2, dtype=np.float64),
    }
    place = None if crs is None else to_pyproj(crs)
    return geopandas.GeoDataFrame(columns, geometry=geometries, crs=place)


def empty_features(crs: CRSLike | None = None) -> geopandas.GeoDataFrame:
    """Return a layer without features, with all columns."""
    nothing: Geometries = np.empty(0, object)
    return as_features(nothing, class_ids=[], class_names=[], scores=[], areas_m2=[], crs=crs)


def read_features(
    path: PathLike,
    *,
    field: str | None = None,
    classes: Sequence[str] | None = None,
    layer: str | None = None,
) -> geopandas.GeoDataFrame:
    """Read polygons and their classes from a vector file.

    Parameters
    ----------
    path : path-like
        Shapefile, GeoPackage, GeoJSON, FlatGeobuf, GeoParquet, KML, file geodatabase or CSV with a
        column of WKT; told by content, not by suffix.
    field : str, optional
        Attribute that holds the class; numbers become their digits. When left out, ``class_name``
        where there is one, else every feature is of one class: `classes` if that is a single one,
        else ``feature``.
    classes : sequence of str, optional
        Keep these only.
    layer : str, optional
        Of a file with several.

    Returns
    -------
    GeoDataFrame in the CRS of the file
        All attributes, with class_id (from 1 in the order of `classes`, or of the sorted names) and
        class_name; valid polygons and multipolygons. ``attrs["repaired"]`` counts those that were
        not valid, ``attrs["dropped"]`` the rows without class, without area, or of other classes.

    Raises
    ------
    InputError
        The file is missing, damaged, or of no format that is read.
    LabelError
        The attribute is missing (E-LAB-211), no feature is a polygon (E-LAB-212), or none is of the
        classes asked for (E-LAB-213).
    """
    table = _read(path, source_driver(path), layer)
    if not len(table):
        found = empty_features(table.crs)
        found.attrs.update(repaired=0, dropped=0)
        return found
    names = classes_of(table, field, classes, path)
    polygons, repaired = repair(shapely.force_2d(table.geometry.to_numpy()))
    if shapely.is_missing(polygons).all():
        raise LabelError(
            f"none of {len(table)} features is a polygon",
            hint="widen lines and points first, such as with geopandas' buffer",
            code="E-LAB-212",
            path=path,
        )
    wanted = {name for name in names if name is not None} if classes is None else set(classes)
    kept = np.array([name in wanted for name in names]) & ~shapely.is_missing(polygons)
    if not kept.any():
        there = sorted({str(name) for name in names})
        raise LabelError(
            f"no polygon is of the classes {sorted(wanted)}; the file has {there}",
            hint="check --field and --classes",
            code="E-LAB-213",
            path=path,
        )
    table = table.set_geometry(geopandas.GeoSeries(polygons, index=table.index, crs=table.crs))
    table = with_classes(table, names, classes, own=field in (None, CLASS_FIELD))[kept]
    table.attrs.update(repaired=repaired, dropped=int(np.count_nonzero(~kept)))
    _report(table, path)
    return table.reset_index(drop=True)


def _report(table: geopandas.GeoDataFrame, path: PathLike) -> None:
    for what in ("repaired", "dropped"):
        if table.attrs[what]:
            log.warning("%s: %d features %s", path, table.attrs[what], what)


def _read(path: PathLike, driver: str, layer: str | None) -> geopandas.GeoDataFrame:
    place = Path(path).absolute()
    try:
        if driver == "CSV":
            return read_csv(place)
        if driver == "Parquet":
            return geopandas.read_parquet(place)
        # The prefix keeps every other driver that takes JSON from opening it.
        source = f"{driver}:{place}" if driver.startswith("GeoJSON") else str(place)
        with warnings_logged():
            layer = _only_layer(source, path) if layer is None else layer
            found = pyogrio.read_info(source, layer=layer)["driver"]
            if found != driver:
                raise InputError(f"it is a {found} file, which is not read", code="E-IN-215", path=path)
            # By Arrow a FlatGeobuf's missing geometries come as texts of no bytes, which nothing reads.
            table = pyogrio.read_dataframe(source, layer=layer, use_arrow=driver != "FlatGeobuf")
            _check_columns(table)
    except InputError:
        raise
    except _FAILURES as error:
        raise InputError(
            f"it cannot be read: {error}", hint="the file is damaged or cut short", code="E-IN-216", path=path
        ) from error
    if not isinstance(table, geopandas.GeoDataFrame):
        raise InputError(f"layer {layer!r} has no geometries", code="E-IN-217", path=path)
    return table


def _check_columns(table: pandas.DataFrame) -> None:
    """Raise ValueError for names that repeat, and for texts that are no UTF-8.

    pandas would find out about texts only when they are used.
    """
    if not table.columns.is_unique:
        raise ValueError(f"columns {list(table.columns)} repeat a name")
    for name in table.columns:
        if isinstance(table[name].dtype, pandas.StringDtype):
            pyarrow.array(table[name].array).validate(full=True)


def _only_layer(source: str, path: PathLike) -> str:
    layers = [str(name) for name, kind in pyogrio.list_layers(source) if kind is not None]
    if not layers:
        raise InputError(
            "it has no layer with geometries", hint="the file is damaged, or holds tables only", code="E-IN-217",
            path=path,
        )  # fmt: skip
    if len(layers) > 1:
        raise InputError(
            f"it has {len(layers)} layers with geometries: {', '.join(layers)}",
            hint="name one with layer=",
            code="E-IN-218",
            path=path,
        )
    return layers[0]


def write_features(
    features: geopandas.GeoDataFrame,
    path: PathLike,
    *,
    overwrite: bool = False,
    crs: CRSLike | None = None,
    colors: Mapping[str, str] | None = None,
) -> None:
    """Write features; the suffix of `path` picks the format.

    Parameters
    ----------
    features : GeoDataFrame
        Any columns; a shapefile gets names of ten characters, which is logged.
    path : path-like
        ``.shp .gpkg .geojson .json .fgb .parquet .geoparquet .csv``. GeoJSON follows RFC 7946:
        longitude and latitude, split at the antimeridian. CSV holds WKT, and the CRS in a .prj.
    overwrite : bool
        Whether existing files may be replaced.
    crs : optional
        To write in; the features' own when left out.
    colors : mapping of class name to "#rrggbb", optional
        For the style inside a GeoPackage.

    Raises
    ------
    UsageError
        The suffix is unknown.
    CRSError
        GeoJSON, or `crs`, of features without a CRS.
    OutputError
        The file cannot be written, or the format cannot hold the features.
    """
    form = check_target(path, crs=features.crs, overwrite=overwrite)
    table = _prepared(features, form, crs)
    with AtomicOutput(path, overwrite=overwrite) as out:
        with as_output_error(path):
            _write(table, form, out.temporary)
            if form.driver == "GPKG" and CLASS_FIELD in table:
                names = sorted({str(name) for name in table[CLASS_FIELD].dropna()})
                add_style(out.temporary, class_colors(names, colors))
        verify(out.temporary, form, path, count=len(table), crs=table.crs)


def _prepared(
    features: geopandas.GeoDataFrame, form: VectorFormat, crs: CRSLike | None
) -> geopandas.GeoDataFrame:
    table = features.rename(columns={name: str(name) for name in features.columns})
    if crs is not None and not same_crs(features.crs, crs):
        if features.crs is None:
            raise CRSError("features without a CRS cannot be moved to another", hint="set theirs first")
        table = divided(table).to_crs(to_pyproj(crs))
    elif form.driver == "GeoJSON":
        table = divided(table)  # GDAL moves it to longitude and latitude
    if form.driver == "ESRI Shapefile":
        table = as_shapefile(table)
    if form.driver == "GPKG":
        table = table.rename(columns={name: f"{name}_1" for name in table.columns if name.lower() == "fid"})
    return table


def _write(table: geopandas.GeoDataFrame, form: VectorFormat, path: Path) -> None:
    if form.driver == "CSV":
        write_csv(table, path)
    elif form.driver == "Parquet":
        # The box of each feature beside it lets readers skip what they do not need (GeoParquet 1.1).
        table.to_parquet(
            path, index=False, compression="zstd", write_covering_bbox=True, schema_version="1.1.0"
        )
    else:
        kind, promote = _geometry_type(table, form)
        made = path.with_suffix(path.suffix.lower())  # GDAL would make a .shp of a .SHP, and then not find it
        with warnings_logged():
            pyogrio.write_dataframe(
                table, made, layer=path.stem, driver=form.driver, use_arrow=True, geometry_type=kind,
                promote_to_multi=promote, dataset_options=dict(form.dataset_options),
                layer_options=_layer_options(table, form),
            )  # fmt: skip
        made.replace(path)


def _layer_options(table: geopandas.GeoDataFrame, form: VectorFormat) -> dict[str, str]:
    options = dict(form.layer_options)
    if form.driver == "FlatGeobuf" and table.geometry.isna().any():
        options["SPATIAL_INDEX"] = "NO"  # an index of nothing is refused
    return options


def _geometry_type(table: geopandas.GeoDataFrame, form: VectorFormat) -> tuple[str, bool]:
    """Return the type of the layer, and whether single polygons must be wrapped to fit it."""
    kinds = set(table.geom_type.dropna())
    if form.driver in ("ESRI Shapefile", "GeoJSON") or kinds <= {"Polygon"}:
        return ("Unknown" if form.driver == "GeoJSON" else "Polygon"), False
    return ("MultiPolygon", True) if kinds <= {"Polygon", "MultiPolygon"} else ("Unknown", False)
