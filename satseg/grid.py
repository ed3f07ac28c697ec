"""Grid: shape, transform and CRS of a raster as one immutable value.

Functions take one `Grid` instead of three arguments that could disagree. Pixel (0, 0) is the upper
left pixel of the array, its corner is at column 0.0, row 0.0, its centre at 0.5, 0.5. Any affine
transform is allowed: rotated, sheared, south-up, non-square; only `bounds` becomes an envelope.
Windows are rasterio's, with whole-number offsets here, and may overhang the grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.crs import CRS, Bounds, CRSLike, describe, metric_crs, parse_crs, same_crs, transform_bounds, transform_points
from satseg.errors import CRSError, GridError

SNAP_PX = 1e-6
"""Two pixel positions closer than this are one: far above float noise, far below any resampling."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the pixels of an array lie.

    Parameters
    ----------
    height, width : int
        Size in pixels, both at least 1.
    transform : Affine
        From (column, row) to world (x, y); must be invertible.
    crs : CRS or None
        None: pixel space, no place on Earth.
    """

    height: int
    width: int
    transform: Affine
    crs: CRS | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise GridError(f"a grid of {self.height} x {self.width} pixels is empty")
        if not all(map(math.isfinite, self.transform[:6])) or self.transform.determinant == 0:
            raise GridError(f"transform {tuple(self.transform[:6])} maps pixels to no area", code="E-GRID-002")
        object.__setattr__(self, "crs", parse_crs(self.crs))

    @classmethod
    def from_bounds(cls, bounds: Bounds, *, height: int, width: int, crs: CRSLike | None = None) -> Grid:
        """North-up grid of `height` x `width` pixels that fills `bounds` (left, bottom, right, top)."""
        left, bottom, right, top = bounds
        transform = Affine((right - left) / width, 0.0, left, 0.0, (bottom - top) / height, top)
        return cls(height, width, transform, parse_crs(crs))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), as numpy has it."""
        return self.height, self.width

    @property
    def window(self) -> Window:
        """The whole grid as a window."""
        return Window(0, 0, self.width, self.height)

    @property
    def bounds(self) -> Bounds:
        """Envelope (left, bottom, right, top) of the four corners, in units of the CRS."""
        return envelope(self.transform, self.window)

    @property
    def resolution(self) -> tuple[float, float]:
        """Length of a pixel's column step and row step, (x, y), in units of the CRS."""
        t = self.transform
        return math.hypot(t.a, t.d), math.hypot(t.b, t.e)

    @property
    def is_rectilinear(self) -> bool:
        """Whether rows and columns run along x and y (no rotation, no shear)."""
        t = self.transform
        return abs(t.b) <= SNAP_PX * abs(t.a) and abs(t.d) <= SNAP_PX * abs(t.e)

    @property
    def is_georeferenced(self) -> bool:
        """Whether there is a CRS, so that results have a place on Earth."""
        return self.crs is not None

    def pixel_area_m2(self) -> float:
        """Area of the grid's central pixel in square metres; in squared units without a CRS."""
        if self.crs is None:
            return abs(self.transform.determinant)
        row, col = self.height / 2, self.width / 2
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=float) + (col - 0.5, row - 0.5)
        xs, ys = self.xy(rows=corners[:, 1], cols=corners[:, 0])
        xs, ys = transform_points(self.crs, metric_crs(self.crs, self.bounds), xs, ys)
        return float(shapely.Polygon(np.column_stack([xs, ys])).area)

    def gsd_m(self) -> float:
        """Ground sampling distance in metres: the square root of the central pixel's area.

        Without a CRS the pixel size is in unknown units and returned as it is.
        """
        return math.sqrt(self.pixel_area_m2())

    def xy(
        self, *, rows: NDArray[np.float64] | Iterable[float], cols: NDArray[np.float64] | Iterable[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """World x, y of fractional pixel positions (0.5, 0.5 is the centre of the first pixel)."""
        r, c = np.asarray(rows, dtype=np.float64), np.asarray(cols, dtype=np.float64)
        t = self.transform
        return t.a * c + t.b * r + t.c, t.d * c + t.e * r + t.f

    def rowcol(
        self, *, xs: NDArray[np.float64] | Iterable[float], ys: NDArray[np.float64] | Iterable[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fractional pixel rows, columns of world positions: the inverse of `xy`."""
        x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
        t = ~self.transform
        return t.d * x + t.e * y + t.f, t.a * x + t.b * y + t.c

    def crop(self, window: Window) -> Grid:
        """The grid of `window`, which may overhang this one."""
        top, left = round(window.row_off), round(window.col_off)
        return replace(
            self,
            height=round(window.height),
            width=round(window.width),
            transform=self.transform * Affine.translation(left, top),
        )

    def zoom(self, factor: float) -> Grid:
        """This extent with pixels `factor` times as long; sizes round to at least one pixel.

        The upper left corner and the pixel size are exact; the far edge moves by less than a pixel.
        """
        if not factor > 0 or not math.isfinite(factor):
            raise GridError(f"zoom factor {factor} is not a positive number")
        return replace(
            self,
            height=max(1, round(self.height / factor)),
            width=max(1, round(self.width / factor)),
            transform=self.transform * Affine.scale(factor),
        )

    def at_gsd(self, gsd_m: float) -> Grid:
        """This extent at a ground sampling distance of `gsd_m` metres (units without a CRS).

        Raises
        ------
        GridError
            `gsd_m` is not a positive number.
        """
        if not gsd_m > 0 or not math.isfinite(gsd_m):
            raise GridError(f"gsd {gsd_m} m is not a positive length", hint="give metres, such as 0.3")
        factor = gsd_m / self.gsd_m()
        return self if abs(factor - 1) < 1e-3 else self.zoom(factor)

    def window_of(self, bounds: Bounds, crs: CRSLike | None = None) -> Window:
        """Smallest window of whole pixels that covers `bounds`, clipped to the grid.

        Parameters
        ----------
        bounds : (left, bottom, right, top)
        crs : optional
            The CRS of `bounds`; this grid's when left out.

        Raises
        ------
        CRSError
            `crs` is given and this grid has none, or the bounds have no image here.
        GridError
            The bounds are empty, or do not touch the grid.
        """
        left, bottom, right, top = bounds
        if not (left < right and bottom < top):
            raise GridError(f"bounds {bounds} are empty", hint="the order is left bottom right top", code="E-GRID-003")
        if crs is not None and not same_crs(crs, self.crs):
            if self.crs is None:
                raise CRSError("the scene has no CRS, so bounds in another CRS mean nothing on it")
            left, bottom, right, top = transform_bounds(crs, self.crs, bounds)
        rows, cols = self.rowcol(xs=[left, right, right, left], ys=[bottom, bottom, top, top])
        row0, col0 = max(0, math.floor(rows.min() + SNAP_PX)), max(0, math.floor(cols.min() + SNAP_PX))
        row1 = min(self.height, math.ceil(rows.max() - SNAP_PX))
        col1 = min(self.width, math.ceil(cols.max() - SNAP_PX))
        if row0 >= row1 or col0 >= col1:
            raise GridError(
                f"bounds {bounds} do not touch the scene, whose bounds are {self.bounds} in {describe(self.crs)}",
                code="E-GRID-003",
            )
        return Window(col0, row0, col1 - col0, row1 - row0)

    def footprint(self, crs: CRSLike | None = None) -> shapely.Polygon:
        """Outline of the grid, in `crs` when given (edges densified, so that they stay curved)."""
        moves = crs is not None and self.crs is not None and not same_crs(crs, self.crs)
        along = np.linspace(0, 1, 21 if moves else 1, endpoint=False)
        zero, one = np.zeros_like(along), np.ones_like(along)
        cols = np.concatenate([along, one, 1 - along, zero]) * self.width
        rows = np.concatenate([zero, along, one, 1 - along]) * self.height
        xs, ys = self.xy(rows=rows, cols=cols)
        if moves and crs is not None and self.crs is not None:
            xs, ys = transform_points(self.crs, crs, xs, ys)
        return shapely.Polygon(np.column_stack([xs, ys]))

    def matches(self, other: Grid) -> bool:
        """Whether both grids lay the same pixels on the same ground, to a ten-thousandth of a pixel."""
        if self.shape != other.shape or not same_crs(self.crs, other.crs):
            return False
        corner_rows, corner_cols = np.array([0.0, 0.0, self.height]), np.array([0.0, self.width, 0.0])
        xs, ys = self.xy(rows=corner_rows, cols=corner_cols)
        rows, cols = other.rowcol(xs=xs, ys=ys)
        drift = max(np.abs(rows - corner_rows).max(), np.abs(cols - corner_cols).max())
        return bool(drift <= 1e-4)

    def _repr_html_(self) -> str:
        rows = {
            "size": f"{self.height} rows x {self.width} columns",
            "pixel": "{:.6g} x {:.6g}".format(*self.resolution),
            "CRS": describe(self.crs),
            "bounds": ", ".join(f"{v:.10g}" for v in self.bounds),
        }
        cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows.items())
        return f"<table>{cells}</table>"


def overlap(first: Window, second: Window) -> Window | None:
    """The part common to both windows, or None; unlike rasterio's, never raises."""
    top, left = max(first.row_off, second.row_off), max(first.col_off, second.col_off)
    bottom = min(first.row_off + first.height, second.row_off + second.height)
    right = min(first.col_off + first.width, second.col_off + second.width)
    return Window(left, top, right - left, bottom - top) if top < bottom and left < right else None


def slices(window: Window, within: Window) -> tuple[slice, slice]:
    """Row and column slices that cut `window` out of an array that covers `within`."""
    top, left = round(window.row_off - within.row_off), round(window.col_off - within.col_off)
    return slice(top, top + round(window.height)), slice(left, left + round(window.width))


def envelope(transform: Affine, window: Window) -> Bounds:
    """Envelope (left, bottom, right, top) of the corners of `window` under `transform`."""
    top, left = window.row_off, window.col_off
    corners = [transform * (left + dx * window.width, top + dy * window.height) for dx in (0, 1) for dy in (0, 1)]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
