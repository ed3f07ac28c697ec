"""The contest's labels as layers: one GeoDataFrame per tile, a row for each polygon, classes overlapping.

Multipolygons are taken apart first and their polygons repaired one by one (`satseg.vector.finish.repair`), so that
objects stay objects: a multipolygon whose parts overlap is invalid as a whole while each of its trees is sound. How
many polygons were repaired, and which rows were invalid as a whole, is kept in ``attrs``.
Rejected: ``buffer(0)``, which loses half of a bow-tie, and one merged geometry per class, of which nothing tells the
size of an object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.errors import InputError, LabelError
from satseg.tasks.dstl.facts import CLASS_NUMBERS, GEOJSON_CLASSES, class_names
from satseg.tasks.dstl.tables import POLYGONAL, PathLike, parse_polygons, read_wkt_rows
from satseg.vector.finish import repair

Geometries = NDArray[np.object_]
OVERRUN = 0.05
"""Share of the frame by which a polygon may reach beyond it: the last pixel does, whose near edge Xmax is."""


def read_wkt_labels(
    path: PathLike, extents: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, geopandas.GeoDataFrame]:
    """Return the labels of each tile in a table such as ``train_wkt_v4.csv``.

    Parameters
    ----------
    path : path-like
    extents : mapping of tile to (Xmax, Ymin), optional
        As in ``grid_sizes.csv``: tiles must be among them, and polygons inside.

    Returns
    -------
    dict of GeoDataFrame without CRS, in label units
        class_id, class_name, geometry (valid Polygon or MultiPolygon). ``attrs``: ``repaired`` polygons,
        ``dropped`` ones without area, ``invalid_rows``, the places in the file that were not valid as they stand.

    Raises
    ------
    InputError, LabelError
        As `read_wkt_rows` and `parse_polygons`; a tile that is not among `extents` (E-LAB-311), a polygon outside
        its frame (E-LAB-312).
    """
    parts: dict[str, list[tuple[int, str, Geometries]]] = {}
    for row in read_wkt_rows(path):
        place = f"line {row.line}"
        geometry = parse_polygons(row, path)
        if extents is not None:
            check_inside(geometry, row.image_id, extents, f"{place} ({row.image_id}, class {row.class_id})", path)
        parts.setdefault(row.image_id, []).append((row.class_id, place, np.array([geometry], dtype=object)))
    return {image_id: _layer(found) for image_id, found in parts.items()}


def read_geojson_labels(
    folder: PathLike, extents: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, geopandas.GeoDataFrame]:
    """Return the labels of each tile in a folder such as ``train_geojson_v3``: a folder per tile, a file per class.

    Files called ``Grid...`` are outlines and are left out; so are files of finer classes that none of the ten stands
    for, whose names are in ``attrs["unknown"]``.

    Returns
    -------
    dict of GeoDataFrame
        As `read_wkt_labels`.

    Raises
    ------
    InputError, LabelError
        No such folder (E-IN-301), a file that is no GeoJSON (E-IN-307), a geometry that is no polygon (E-LAB-302),
        E-LAB-311 and E-LAB-312 as in `read_wkt_labels`.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError("there is no such folder", hint="is it unpacked?", code="E-IN-301", path=folder)
    found = {}
    for own in sorted(item for item in place.iterdir() if item.is_dir()):
        parts: list[tuple[int, str, Geometries]] = []
        unknown = []
        for file in sorted(own.glob("*.geojson")):
            name = file.stem.upper()
            if name in GEOJSON_CLASSES:
                shapes = _read_geojson(file)
                if extents is not None:
                    for number, shape in enumerate(shapes, start=1):
                        check_inside(shape, own.name, extents, f"feature {number}", file)
                parts.append((GEOJSON_CLASSES[name], f"{own.name}/{file.name}", shapes))
            elif not name.startswith("GRID"):
                unknown.append(file.stem)
        found[own.name] = _layer(parts)
        found[own.name].attrs["unknown"] = tuple(unknown)
    return found


def class_areas(layer: geopandas.GeoDataFrame) -> NDArray[np.float64]:
    """Return the area of each of the ten classes, (10,) in squared units of the layer; overlaps count once."""
    shapes, numbers = layer.geometry.to_numpy(), layer["class_id"].to_numpy()
    return np.array([shapely.area(shapely.union_all(shapes[numbers == number])) for number in CLASS_NUMBERS])


def as_layer(shapes: Sequence[Any] | Geometries, numbers: Sequence[int] | NDArray[Any]) -> geopandas.GeoDataFrame:
    """Return polygons with their class numbers as a layer without CRS: class_id, class_name, geometry."""
    names = class_names()
    ids = np.asarray(numbers, dtype=np.int64)
    columns = {"class_id": ids, "class_name": np.array([names[int(number)] for number in ids], dtype=object)}
    return geopandas.GeoDataFrame(columns, geometry=np.asarray(shapes, dtype=object), crs=None)


def check_inside(
    geometry: shapely.Geometry, image_id: str, extents: Mapping[str, tuple[float, float]], place: str, path: PathLike
) -> None:
    """Raise LabelError when `image_id` has no extent (E-LAB-311) or `geometry`, at `place` of a file, leaves its frame.

    That is E-LAB-312: beyond it by more than `OVERRUN` of its width or height.
    """
    if image_id not in extents:
        raise LabelError(
            f"{place}: no tile {image_id!r} in grid_sizes.csv, so its frame is unknown", code="E-LAB-311", path=path
        )
    if geometry.is_empty:
        return
    x_max, y_min = extents[image_id]
    left, bottom, right, top = geometry.bounds
    x_slack, y_slack = OVERRUN * x_max, -OVERRUN * y_min
    if left < -x_slack or right > x_max + x_slack or bottom < y_min - y_slack or top > y_slack:
        raise LabelError(
            f"{place}: within ({left:.6g}, {bottom:.6g}, {right:.6g}, {top:.6g}), outside the frame of {image_id}, "
            f"x 0 to {x_max} and y {y_min} to 0",
            hint="are the coordinates in label units, y negative, and of this tile?",
            code="E-LAB-312",
            path=path,
        )


def _layer(parts: Iterable[tuple[int, str, Geometries]]) -> geopandas.GeoDataFrame:
    """Join the classes of a tile: each polygon repaired by itself."""
    shapes: list[Geometries] = [np.empty(0, dtype=object)]
    numbers: list[int] = []
    repaired = dropped = 0
    invalid = []
    for number, place, geometries in parts:
        if not shapely.is_valid(geometries).all():
            invalid.append(place)
        polygons, count = repair(shapely.get_parts(geometries))
        kept = polygons[~shapely.is_missing(polygons)]
        repaired, dropped = repaired + count, dropped + len(polygons) - len(kept)
        shapes.append(kept)
        numbers += [number] * len(kept)
    layer = as_layer(np.concatenate(shapes), numbers)
    layer.attrs.update(repaired=repaired, dropped=dropped, invalid_rows=tuple(invalid))
    return layer


def _read_geojson(path: Path) -> Geometries:
    """Return the geometries of a file in label units, whatever CRS it claims."""
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        texts = [json.dumps(feature["geometry"]) for feature in features if feature["geometry"] is not None]
        shapes: Geometries = np.array([shapely.from_geojson(text) for text in texts] or [], dtype=object)
    except (OSError, ValueError, KeyError, TypeError, shapely.errors.ShapelyError) as error:
        raise InputError(f"it is no GeoJSON of features: {error}", code="E-IN-307", path=path) from error
    for number, shape in enumerate(shapes, start=1):
        if not np.isfinite(shapely.get_coordinates(shape)).all():
            fault = f"feature {number}: a coordinate is not a finite number"
            raise LabelError(fault, code="E-LAB-303", path=path)
        if not (shape.is_empty or shape.geom_type in POLYGONAL):
            raise LabelError(
                f"feature {number}: a {shape.geom_type} has no area", hint="give polygons", code="E-LAB-302", path=path
            )
    flat: Geometries = shapely.force_2d(shapes)
    return flat
