"""Frame: the obscured coordinates that DSTL's labels are in, and the grids of a tile's files in them.

x runs from 0 to Xmax to the right, y from 0 down to Ymin, which is negative; the origin is the tile's upper left
corner. The official scaling puts column x * W' / Xmax with W' = W * W / (W + 1), W the width of the three-band image,
and rows alike; W - 1, which some solutions use, differs by less than 0.0003 pixels. The frame hides the true place,
so grids in it have no CRS, and its unit is no length: areas in square metres are had in "metres", the same frame
stretched so that a pixel of the three-band image is 0.31 m (`satseg.tasks.dstl.facts.GSD_M`) wide and high.

The four files of a tile cover the same ground with pixels of different sizes. A file of h x w pixels therefore gets
pixels of W / w by H / h three-band pixels: outer edges meet, and 848 columns on 3392 are exactly 4 (1.24 m / 0.31 m).
Rejected: the official scaling with each file's own width, which makes that ratio 4.0035 and moves multispectral
pixels by 3 three-band pixels at the far edge, SWIR by 24, more than the misregistration that is to be found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import shapely
from affine import Affine
from numpy.typing import ArrayLike, NDArray

from satseg.errors import GridError, UsageError
from satseg.grid import Grid
from satseg.tasks.dstl.facts import GSD_M

Units: TypeAlias = Literal["label", "metres", "pixels"]
UNITS: tuple[Units, ...] = ("label", "metres", "pixels")
Scaling: TypeAlias = Literal["official", "minus_one"]
SCALINGS: tuple[Scaling, ...] = ("official", "minus_one")
SQUARE = 0.05
"""Most by which a pixel's width and height may differ, as a share; 0.0003 in the contest's files."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the pixels of a tile's three-band image lie in the frame of its labels.

    Parameters
    ----------
    width, height : int
        Of the three-band image, in pixels.
    x_max, y_min : float
        From ``grid_sizes.csv``; positive and negative.
    scaling : "official" or "minus_one"
        What x_max and y_min stand for: column W * W / (W + 1), or W - 1; rows alike.

    Raises
    ------
    GridError
        An extent that is none (E-GRID-301), or pixels far from square (E-GRID-302): numbers of another tile.
    UsageError
        An unknown scaling (E-USE-305).
    """

    width: int
    height: int
    x_max: float
    y_min: float
    scaling: Scaling = "official"

    def __post_init__(self) -> None:
        finite = math.isfinite(self.x_max) and math.isfinite(self.y_min)
        if not (finite and self.x_max > 0 > self.y_min) or min(self.label_width, self.label_height) <= 0:
            raise GridError(
                f"{self.width} x {self.height} pixels with Xmax {self.x_max} and Ymin {self.y_min} are no frame",
                hint="Xmax is positive and Ymin negative",
                code="E-GRID-301",
            )
        x, y = self.pixel
        if abs(x / y - 1) > SQUARE:
            raise GridError(
                f"pixels of {x:.4g} x {y:.4g} label units are not square: {self.width} x {self.height} pixels with "
                f"Xmax {self.x_max} and Ymin {self.y_min}",
                hint="is it the row of another tile in grid_sizes.csv?",
                code="E-GRID-302",
            )

    @property
    def label_width(self) -> float:
        """W', the column that Xmax stands for."""
        return scaled(self.width, self.scaling)

    @property
    def label_height(self) -> float:
        """H', the row that Ymin stands for."""
        return scaled(self.height, self.scaling)

    @property
    def pixel(self) -> tuple[float, float]:
        """Width and height of a three-band pixel in label units, both positive."""
        return self.x_max / self.label_width, -self.y_min / self.label_height

    def steps(self, units: Units) -> tuple[float, float]:
        """Return how far x and y go for one column and one row, y downwards; in pixels rows count down the image.

        Raises
        ------
        UsageError
            Unknown units (E-USE-306).
        """
        x, y = self.pixel
        known: dict[Units, tuple[float, float]] = {
            "label": (x, -y), "metres": (GSD_M, -GSD_M), "pixels": (1.0, 1.0),
        }  # fmt: skip
        check_units(units)
        return known[units]

    def rowcol(self, *, xs: ArrayLike, ys: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return pixel rows, columns of label coordinates (0.0 is the outer edge of the first)."""
        x, y = self.steps("label")
        return np.asarray(ys, dtype=np.float64) / y, np.asarray(xs, dtype=np.float64) / x

    def xy(self, *, rows: ArrayLike, cols: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return label x, y of pixel positions: the inverse of `rowcol`."""
        x, y = self.steps("label")
        return np.asarray(cols, dtype=np.float64) * x, np.asarray(rows, dtype=np.float64) * y

    def grid(self, *, height: int, width: int, units: Units = "label") -> Grid:
        """Return the grid, without CRS, of a file of `height` x `width` pixels over the tile's ground."""
        x, y = self.steps(units)
        transform = Affine(x * self.width / width, 0.0, 0.0, 0.0, y * self.height / height, 0.0)
        return Grid(height, width, transform)

    def moved(self, geometries: NDArray[np.object_], *, source: Units, target: Units) -> NDArray[np.object_]:
        """Return `geometries` with coordinates in `target` units in place of `source` units."""
        check_units(source)
        if source == target:
            return geometries
        (x0, y0), (x1, y1) = self.steps(source), self.steps(target)
        factors = np.array([x1 / x0, y1 / y0])
        result: Any = shapely.transform(geometries, lambda points: points * factors)
        return np.asarray(result, dtype=object)

    def area_m2(self, area: float) -> float:
        """Return an area in squared label units as square metres."""
        x, y = self.pixel
        return area / (x * y) * GSD_M**2


def scaled(count: int, scaling: Scaling = "official") -> float:
    """Return the column that Xmax of an image of `count` columns stands for; rows alike.

    Raises
    ------
    UsageError
        An unknown scaling (E-USE-305).
    """
    if scaling == "official":
        return count * count / (count + 1)
    if scaling == "minus_one":
        return count - 1.0
    raise UsageError(f"no scaling {scaling!r}; there are {', '.join(SCALINGS)}", code="E-USE-305")


def check_units(units: str) -> None:
    """Raise UsageError (E-USE-306) when `units` is none of `UNITS`."""
    if units not in UNITS:
        raise UsageError(f"no units {units!r}; there are {', '.join(UNITS)}", code="E-USE-306")
