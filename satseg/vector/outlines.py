"""Outlines: polygons as flat arrays of coordinates, as the tracer hands them out.

Flat arrays and not objects, for a polygon costs kilobytes as an object and hardly more than its
coordinates here; shapely takes the same three arrays over at once. Rejected: rows and columns with a
transform (half the size, but every user would have to know GDAL's order of sums to get equal bits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Holes:
    """Rings of holes.

    Parameters
    ----------
    coords : ndarray of float64, (N, 2)
        x, y; each ring ends with its first vertex.
    rings : ndarray of int64, (R + 1,)
        Where each ring starts in `coords`.
    values : ndarray of int64, (R,)
        The label of the pixels around each hole.
    """

    coords: NDArray[np.float64]
    rings: NDArray[np.int64]
    values: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outlines:
    """Polygons of connected equal pixels, in the order of the row and then the column where they end.

    Parameters
    ----------
    coords : ndarray of float64, (N, 2)
        x, y; ring after ring, each ending with its first vertex.
    rings : ndarray of int64, (R + 1,)
        Where each ring starts in `coords`; a polygon's outer ring comes before its holes.
    polygons : ndarray of int64, (P + 1,)
        Where each polygon starts among the rings.
    values : ndarray of int64, (P,)
        The label of each polygon's pixels.
    pixels : ndarray of int64, (P,)
        How many pixels each polygon has.
    sums : ndarray of int64, (P,)
        Sum of the weights of those pixels, 0 without weights.
    bottoms : ndarray of int64, (P,)
        The row of the raster after the polygon's last one; never decreases.
    small_holes : Holes
        Holes that closed meanwhile and have at most `hole_px` pixels, islands included; those of
        polygons that are still open are among them.
    cut : int
        How many polygons were cut because they passed `max_vertices`.
    """

    coords: NDArray[np.float64]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]
    values: NDArray[np.int64]
    pixels: NDArray[np.int64]
    sums: NDArray[np.int64]
    bottoms: NDArray[np.int64]
    small_holes: Holes
    cut: int

    def geometries(self) -> NDArray[np.object_]:
        """Return the polygons as shapely geometries, (P,)."""
        made: NDArray[np.object_] = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, self.coords, (self.rings, self.polygons)
        )
        return made


def joined(parts: Sequence[Outlines]) -> Outlines:
    """Return the polygons of all `parts`, in order; none for none."""
    parts = [nothing(), *parts] if len(parts) != 1 else parts
    if len(parts) == 1:
        return parts[0]
    flat = ("coords", "values", "pixels", "sums", "bottoms")
    holes = [part.small_holes for part in parts]
    return Outlines(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in flat},
        rings=_chained([part.rings for part in parts]),
        polygons=_chained([part.polygons for part in parts]),
        small_holes=Holes(
            coords=np.concatenate([part.coords for part in holes]),
            rings=_chained([part.rings for part in holes]),
            values=np.concatenate([part.values for part in holes]),
        ),
        cut=sum(part.cut for part in parts),
    )


def _chained(starts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return starts that go on counting from part to part."""
    sizes = np.concatenate([np.diff(part) for part in starts])
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def nothing() -> Outlines:
    """Return no polygons."""
    none, start, coords = np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros((0, 2))
    return Outlines(coords, start, start, none, none, none, none, Holes(coords, start, none), 0)
