"""The insides of objects, burnt beside the objects themselves: what tells neighbours apart that touch.

A core is an object's polygon drawn in by `INSET_PX`, or by a share of its own width where it is small, so that
even the smallest keeps one. Taught beside the class, cores of neighbouring roofs stay apart where the roofs run
together (`satseg.vector.separate` makes the cut), and learning both is better for the class too: after 400
steps on buildings at 0.3 m (left-out half of Banepa; Nairobi; Zanzibar) F1 at IoU 0.5 went from 0.07 to 0.34 where
roofs are dense and stayed within noise where they stand apart (0.48, 0.50).

Rejected: a class of contacts to subtract (0.21 and a worse mask), a deeper core of half the depth (0.34 too, but
it depends on the whole object, which a window need not show).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.grid import Grid
from satseg.imagery.labels import Geometries, LabelLayer

INSET_PX, INSET_SHARE = 3.0, 0.45
"""How far a core is drawn in: pixels, and at most this share of half the object's mean width."""
LEAST_OBJECTS = 10
"""A class of fewer polygons is not judged."""
LEAST_COMPACT = 0.4
"""4 pi area / perimeter^2 of the median object: 0.79 is a square, 0.4 a strip of 1 to 6; roads lie far below."""
WIDTHS_PX = (6.0, 128.0)
"""Mean widths (4 area / perimeter) of the median object: below there is no inside, above no window shows a whole."""


def median_widths(data: Sequence[tuple[Grid, LabelLayer]]) -> dict[str, float]:
    """Return the mean width in pixels (4 area / perimeter) of the median object of each class of compact objects.

    Parameters
    ----------
    data : sequence of (Grid, LabelLayer)
        Of one set of classes, each layer in the CRS of its grid.
    """
    widths: dict[str, float] = {}
    for k, name in enumerate(data[0][1].classes if data else ()):
        polygons = np.concatenate([_in_pixels(layer.geometries[k], grid) for grid, layer in data])
        polygons = polygons[~shapely.is_empty(polygons)]
        if len(polygons) < LEAST_OBJECTS:
            continue
        area, around = shapely.area(polygons), np.maximum(shapely.length(polygons), 1e-9)
        if np.median(4 * np.pi * area / around**2) >= LEAST_COMPACT:
            widths[name] = float(np.median(4 * area / around))
    return widths


def object_classes(widths: Mapping[str, float]) -> tuple[str, ...]:
    """Return the classes whose compact objects a network can see whole, in their order.

    Parameters
    ----------
    widths : mapping of str to float
        In pixels, as `median_widths` returns them.
    """
    low, high = WIDTHS_PX
    return tuple(name for name, width in widths.items() if low <= width <= high)


def core_layer(labels: LabelLayer, grid: Grid, names: Sequence[str]) -> LabelLayer:
    """Return a layer of the cores of the classes called `names`, in the CRS of `labels`."""
    cores = []
    for name in names:
        polygons = _in_pixels(labels.geometries[labels.classes.index(name)], grid)
        around = np.maximum(shapely.length(polygons), 1e-9)
        inset = np.minimum(INSET_PX, INSET_SHARE * 2 * shapely.area(polygons) / around)
        inner = shapely.get_parts(shapely.buffer(polygons, -inset, join_style="mitre"))
        cores.append(_on_ground(inner[~shapely.is_empty(inner)], grid))
    return LabelLayer(tuple(names), tuple(cores), labels.crs)


def _in_pixels(polygons: Geometries, grid: Grid) -> Geometries:
    inverse = ~grid.transform
    moved: Geometries = shapely.transform(polygons, lambda xy: _applied(inverse, xy))
    return moved


def _on_ground(polygons: Geometries, grid: Grid) -> Geometries:
    moved: Geometries = shapely.transform(polygons, lambda xy: _applied(grid.transform, xy))
    return moved


def _applied(transform: object, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = transform * (xy[:, 0], xy[:, 1])  # type: ignore[operator]
    return np.column_stack([x, y])
