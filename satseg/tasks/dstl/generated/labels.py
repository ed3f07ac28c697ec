"""Labels of a contest tile as the original gives them: WKT and GeoJSON in the frame that hides the place.

Vertices lie on a lattice of a millionth, which is 0.37 of an RGB pixel. Each class is one valid
multipolygon, its parts joined, because scores are areas; each finer class of the GeoJSON keeps its things
apart. Rejected: perfect vertices. A reader has to live with rounding, and with one invalid ring.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.random import Generator
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

from satseg.errors import UsageError
from satseg.tasks.dstl.facts import CLASS_NUMBERS, GEOJSON_CLASSES, GSD_M
from satseg.tasks.dstl.frame import Frame
from satseg.tasks.dstl.generated.ground import Ground
from satseg.tasks.dstl.generated.things import Thing
from satseg.tasks.dstl.rounding import EMPTY

LATTICE = 1e-6
DECIMALS = 6


@dataclass(frozen=True, slots=True, eq=False)
class TileLabels:
    """The labels of a tile in its label frame.

    Parameters
    ----------
    classes : tuple of 10 MultiPolygons
        In the order of class numbers; empty where there is none.
    finer : dict of str to tuple of Polygons
        The finer classes that the tile has.
    shares : tuple of 10 floats in 0..1
        Of the tile's area.
    """

    classes: tuple[MultiPolygon, ...]
    finer: dict[str, tuple[Polygon, ...]]
    shares: tuple[float, ...]


def label_tile(ground: Ground, frame: Frame, *, unsteady: Generator | None = None) -> TileLabels:
    """Return the labels of what stands on the tile; drawn with an unsteady hand where a generator is given."""
    things = [*ground.things, *(Thing(name, crown.outline) for name, crown in ground.groves)]
    if unsteady is not None:
        things = _redrawn(unsteady, things)
    wet = shapely.union_all([item.outline for item in things if GEOJSON_CLASSES[item.name] == 8]).buffer(1.0)
    outlines = np.array(
        [item.outline.difference(wet) if GEOJSON_CLASSES[item.name] == 6 else item.outline for item in things], object
    )
    placed = _in_frame(outlines, frame)
    ids = np.array([GEOJSON_CLASSES[item.name] for item in things], int)
    classes = tuple(_joined(placed[ids == number]) for number in CLASS_NUMBERS)
    whole = frame.x_max * -frame.y_min
    finer: dict[str, tuple[Polygon, ...]] = {}
    for name in GEOJSON_CLASSES:
        mine = [item.name == name for item in things]
        pieces = tuple(_polygons(shapely.set_precision(placed[mine], LATTICE)))
        if pieces:
            finer[name] = pieces
    return TileLabels(classes, finer, tuple(float(shape.area) / whole for shape in classes))


def _redrawn(rng: Generator, things: Sequence[Thing]) -> list[Thing]:
    """Return things as another hand would outline them: up to some decimetres off, a few small ones missed."""
    drawn = []
    for item in things:
        aside, up = (float(value) for value in rng.normal(0, 0.12, 2))
        if GEOJSON_CLASSES[item.name] not in (2, 5) or rng.random() > 0.03:
            drawn.append(Thing(item.name, translate(item.outline, aside, up)))
    return drawn


def spoilt(shape: MultiPolygon) -> MultiPolygon:
    """Return `shape` with the first ring that can be made to cross itself made so: two vertices change places.

    Raises
    ------
    UsageError
        No ring of it can.
    """
    parts = list(shape.geoms)
    for number, part in enumerate(parts):
        points = shapely.get_coordinates(part.exterior)[:-1]
        for first in range(1, len(points) - 2):
            swapped = points.copy()
            swapped[[first, first + 1]] = points[[first + 1, first]]
            candidate = Polygon(swapped, [ring.coords for ring in part.interiors])
            if not candidate.is_valid:
                return MultiPolygon([*parts[:number], candidate, *parts[number + 1 :]])
    raise UsageError("no ring of this shape can be made invalid", code="E-SYN-006")


def to_wkt(shape: MultiPolygon) -> str:
    """Return the text of a class, six decimals."""
    return EMPTY if shape.is_empty else shapely.to_wkt(shape, rounding_precision=DECIMALS, trim=False)


def to_geojson(name: str, polygons: Sequence[Polygon]) -> str:
    """Return a finer class as a FeatureCollection in the label frame, without a CRS as the original."""
    features = [
        {"type": "Feature", "properties": {"LABEL": name}, "geometry": json.loads(shapely.to_geojson(polygon))}
        for polygon in polygons
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}) + "\n"


def _in_frame(outlines: NDArray[np.object_], frame: Frame) -> NDArray[np.object_]:
    """Move outlines from metres (y up, origin at the lower left) to the label frame, cut to the tile."""
    step_x, step_y = frame.steps("label")

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([points[:, 0] / GSD_M * step_x, (frame.height - points[:, 1] / GSD_M) * step_y])

    moved = shapely.transform(outlines, move)
    return np.asarray(shapely.intersection(moved, shapely.box(0, frame.y_min, frame.x_max, 0)), object)


def _joined(shapes: NDArray[np.object_]) -> MultiPolygon:
    """Return the union of `shapes` on the lattice, valid."""
    return MultiPolygon(_polygons([shapely.set_precision(shapely.union_all(shapes), LATTICE)]))


def _polygons(shapes: Sequence[BaseGeometry] | NDArray[np.object_]) -> list[Polygon]:
    parts = shapely.get_parts(np.asarray(shapes, object))
    flat = shapely.get_parts(parts)
    return [part for part in flat if isinstance(part, Polygon) and part.area > 0]
