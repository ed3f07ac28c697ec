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
from satseg.synthetic.contest_ground import Ground
from satseg.synthetic.contest_roster import CONTEST_CLASSES, GSD_M, TileFrame
from satseg.synthetic.contest_things import Thing

FINER = {
    "001_MM_L2_LARGE_BUILDING": 1, "001_MM_L3_RESIDENTIAL_BUILDING": 1, "001_MM_L3_NON_RESIDENTIAL_BUILDING": 1,
    "001_MM_L5_MISC_SMALL_STRUCTURE": 2, "002_TR_L3_GOOD_ROADS": 3, "002_TR_L4_POOR_DIRT_CART_TRACK": 4,
    "002_TR_L6_FOOTPATH_TRAIL": 4, "006_VEG_L2_WOODLAND": 5, "006_VEG_L3_HEDGEROWS": 5,
    "006_VEG_L5_GROUP_TREES": 5, "006_VEG_L5_STANDALONE_TREES": 5, "007_AGR_L2_CONTOUR_PLOUGHING_CROPLAND": 6,
    "007_AGR_L6_ROW_CROP": 6, "008_WTR_L3_WATERWAY": 7, "008_WTR_L2_STANDING_WATER": 8,
    "003_VH_L4_LARGE_VEHICLE": 9, "003_VH_L5_SMALL_VEHICLE": 10, "003_VH_L6_MOTORBIKE": 10,
}  # fmt: skip
"""Names of the GeoJSON files to the class that they are part of."""
LATTICE = 1e-6
DECIMALS = 6
EMPTY = "MULTIPOLYGON EMPTY"


@dataclass(frozen=True, slots=True, eq=False)
class TileLabels:
    """The labels of a tile in its label frame.

    Parameters
    ----------
    classes : tuple of 10 MultiPolygons
        In the order of `CONTEST_CLASSES`; empty where there is none.
    finer : dict of str to tuple of Polygons
        The finer classes that the tile has.
    shares : tuple of 10 floats in 0..1
        Of the tile's area.
    """

    classes: tuple[MultiPolygon, ...]
    finer: dict[str, tuple[Polygon, ...]]
    shares: tuple[float, ...]


def label_tile(ground: Ground, frame: TileFrame, *, unsteady: Generator | None = None) -> TileLabels:
    """Return the labels of what stands on the tile; drawn with an unsteady hand where a generator is given."""
    things = [*ground.things, *(Thing(name, crown.outline) for name, crown in ground.groves)]
    if unsteady is not None:
        things = _redrawn(unsteady, things)
    wet = shapely.union_all([item.outline for item in things if FINER[item.name] == 8]).buffer(1.0)
    outlines = np.array(
        [item.outline.difference(wet) if FINER[item.name] == 6 else item.outline for item in things], object
    )
    placed = _in_frame(outlines, frame)
    ids = np.array([FINER[item.name] for item in things], int)
    classes = tuple(_joined(placed[ids == number]) for number in range(1, len(CONTEST_CLASSES) + 1))
    whole = frame.x_max * -frame.y_min
    finer: dict[str, tuple[Polygon, ...]] = {}
    for name in FINER:
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
        if FINER[item.name] not in (2, 5) or rng.random() > 0.03:
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


def _in_frame(outlines: NDArray[np.object_], frame: TileFrame) -> NDArray[np.object_]:
    """Move outlines from metres (y up, origin at the lower left) to the label frame, cut to the tile."""
    step_x, step_y = frame.units_per_px
    high = frame.rgb[0]

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([points[:, 0] / GSD_M * step_x, (high - points[:, 1] / GSD_M) * step_y])

    moved = shapely.transform(outlines, move)
    return np.asarray(shapely.intersection(moved, shapely.box(0, frame.y_min, frame.x_max, 0)), object)


def _joined(shapes: NDArray[np.object_]) -> MultiPolygon:
    """Return the union of `shapes` on the lattice, valid."""
    return MultiPolygon(_polygons([shapely.set_precision(shapely.union_all(shapes), LATTICE)]))


def _polygons(shapes: Sequence[BaseGeometry] | NDArray[np.object_]) -> list[Polygon]:
    parts = shapely.get_parts(np.asarray(shapes, object))
    flat = shapely.get_parts(parts)
    return [part for part in flat if isinstance(part, Polygon) and part.area > 0]
