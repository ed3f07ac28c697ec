"""Grid: shape, transform and CRS of a raster as one immutable value.

Functions take one `Grid` instead of three arguments that could disagree. Pixel (0, 0) is the upper
left pixel of the array, its corner is at column 0.0, row 0.0, its centre at 0.5, 0.5. Any affine
transform is allowed: rotated, sheared, south-up, non-square; only `bounds` becomes an envelope.
Windows are rasterio's, with whole-number offsets here, and may overhang the grid. Transforms are
applied number by number: affine 3 deprecates the only product sign that affine 2 knows.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.crs import (
    CRS,
    Bounds,
    CRSLike,
    describe,
    metric_crs,
    parse_crs,
    same_crs,
    to_pyproj,
    transform_bounds,
    transform_points,
)
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
        numbers, area = tuple(self.transform[:6]), self.transform.determinant
        if not all(map(math.isfinite, (*numbers, area))) or area == 0:
            raise GridError(f"transform {numbers} maps pixels to no area", code="E-GRID-002")
        object.__setattr__(self, "crs", parse_crs(self.crs))

    @classmethod
    def from_bounds(cls, bounds: Bounds, *, height: int, width: int, crs: CRSLike | None = None) -> Grid:
        """Return the north-up grid of `height` x `width` pixels that fills `bounds`.

        Raises
        ------
        GridError
            The size or the bounds (left, bottom, right, top) are empty.
        """
        left, bottom, right, top = _ordered(bounds)
        rows, cols = max(1, height), max(1, width)  # a size below 1 is refused by the class itself
        transform = Affine((right - left) / cols, 0.0, left, 0.0, (bottom - top) / rows, top)
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
        """Return the area of the grid's central pixel in square metres; in squared units without a CRS.

        Raises
        ------
        CRSError
            The grid does not lie on the Earth.
        """
        metric = None if self.crs is None else metric_crs(self.crs, self.bounds)
        if self.crs is None or metric == to_pyproj(self.crs):
            return abs(self.transform.determinant)
        rows = self.height / 2 + np.array([-0.5, -0.5, 0.5, 0.5])
        cols = self.width / 2 + np.array([-0.5, 0.5, 0.5, -0.5])
        xs, ys = self.xy(rows=rows, cols=cols)
        xs, ys = transform_points(self.crs, metric, xs, ys)
        return float(shapely.Polygon(np.column_stack([xs, ys])).area)

    def gsd_m(self) -> float:
        """Return the ground sampling distance in metres: the square root of the central pixel's area.

        Without a CRS the pixel size is in unknown units and returned as it is.
        """
        return math.sqrt(self.pixel_area_m2())

    def xy(
        self, *, rows: NDArray[np.float64] | Iterable[float], cols: NDArray[np.float64] | Iterable[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return world x, y of fractional pixel positions (0.5, 0.5 is the centre of the first pixel)."""
        r, c = np.asarray(rows, dtype=np.float64), np.asarray(cols, dtype=np.float64)
        t = self.transform
        return t.a * c + t.b * r + t.c, t.d * c + t.e * r + t.f

    def rowcol(
        self, *, xs: NDArray[np.float64] | Iterable[float], ys: NDArray[np.float64] | Iterable[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return fractional pixel rows, columns of world positions: the inverse of `xy`.

        The corner is subtracted first: metres from the equator cost half the digits of a product.
        """
        t = self.transform
        x, y = np.asarray(xs, dtype=np.float64) - t.c, np.asarray(ys, dtype=np.float64) - t.f
        return (t.a * y - t.d * x) / t.determinant, (t.e * x - t.b * y) / t.determinant

    def step_m(self, *, rows: float, cols: float) -> tuple[float, float] | tuple[None, None]:
        """Return metres east and north of a step of `rows`, `cols` from the grid's middle; None without a CRS.

        Along the axes of a metric CRS: `metric_crs` of this grid.
        """
        if self.crs is None:
            return None, None
        xs, ys = self.xy(rows=self.height / 2 + np.array([0, rows]), cols=self.width / 2 + np.array([0, cols]))
        xs, ys = transform_points(self.crs, metric_crs(self.crs, self.bounds), xs, ys)
        return float(xs[1] - xs[0]), float(ys[1] - ys[0])

    def crop(self, window: Window) -> Grid:
        """Return the grid of `window`, which may overhang this one."""
        t = self.transform
        x, y = self.xy(rows=[round(window.row_off)], cols=[round(window.col_off)])
        return replace(
            self,
            height=round(window.height),
            width=round(window.width),
            transform=Affine(t.a, t.b, float(x[0]), t.d, t.e, float(y[0])),
        )

    def zoom(self, factor: float) -> Grid:
        """Return this extent with pixels `factor` times as long; sizes round to at least one pixel.

        The upper left corner and the pixel size are exact; the far edge moves by less than a pixel.

        Raises
        ------
        GridError
            `factor` is not a positive number.
        """
        if not factor > 0 or not math.isfinite(factor):
            raise GridError(f"zoom factor {factor} is not a positive number", code="E-GRID-005")
        t = self.transform
        return replace(
            self,
            height=max(1, round(self.height / factor)),
            width=max(1, round(self.width / factor)),
            transform=Affine(t.a * factor, t.b * factor, t.c, t.d * factor, t.e * factor, t.f),
        )

    def at_gsd(self, gsd_m: float) -> Grid:
        """Return this extent at a ground sampling distance of `gsd_m` metres (units without a CRS).

        Raises
        ------
        GridError
            `gsd_m` is not a positive number.
        """
        if not gsd_m > 0 or not math.isfinite(gsd_m):
            raise GridError(
                f"gsd {gsd_m} m is not a positive length", hint="give metres, such as 0.3", code="E-GRID-006"
            )
        factor = gsd_m / self.gsd_m()
        return self if abs(factor - 1) < 1e-3 else self.zoom(factor)

    def window_of(self, bounds: Bounds, crs: CRSLike | None = None) -> Window:
        """Return the smallest window of whole pixels that covers `bounds`, clipped to the grid.

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
        left, bottom, right, top = _ordered(bounds)
        if crs is not None and not same_crs(crs, self.crs):
            if self.crs is None:
                raise CRSError(
                    f"the scene has no CRS, so bounds in {describe(crs)} mean nothing on it",
                    hint="give its CRS, or the bounds in its own units",
                )
            left, bottom, right, top = transform_bounds(crs, self.crs, bounds)
        rows, cols = self.rowcol(xs=[left, right, right, left], ys=[bottom, bottom, top, top])
        row0, col0 = max(0, math.floor(rows.min() + SNAP_PX)), max(0, math.floor(cols.min() + SNAP_PX))
        row1 = min(self.height, math.ceil(rows.max() - SNAP_PX))
        col1 = min(self.width, math.ceil(cols.max() - SNAP_PX))
        if row0 >= row1 or col0 >= col1:
            raise GridError(
                f"bounds {bounds} do not touch the scene, which has {self.bounds} in {describe(self.crs)}",
                code="E-GRID-004",
            )
        return Window(col0, row0, col1 - col0, row1 - row0)

    def footprint(self, crs: CRSLike | None = None) -> shapely.Polygon:
        """Return the outline of the grid, in `crs` when given (edges densified, so that they stay curved).

        Longitudes run on past 180 where the grid lies across the antimeridian.

        Raises
        ------
        CRSError
            A part of the outline has no image in `crs`.
        """
        moves = crs is not None and self.crs is not None and not same_crs(crs, self.crs)
        along = np.linspace(0, 1, 21 if moves else 1, endpoint=False)
        zero, one = np.zeros_like(along), np.ones_like(along)
        cols = np.concatenate([along, one, 1 - along, zero]) * self.width
        rows = np.concatenate([zero, along, one, 1 - along]) * self.height
        xs, ys = self.xy(rows=rows, cols=cols)
        if moves and crs is not None and self.crs is not None:
            xs, ys = transform_points(self.crs, crs, xs, ys)
            if not np.isfinite([xs, ys]).all():
                raise CRSError(
                    f"bounds {self.bounds} in {describe(self.crs)} do not exist in {describe(crs)}",
                    hint="check the scene's CRS",
                    code="E-CRS-003",
                )
            xs = np.unwrap(xs, period=360.0) if to_pyproj(crs).is_geographic else xs
        return shapely.Polygon(np.column_stack([xs, ys]))

    def matches(self, other: Grid) -> bool:
        """Return whether both grids lay the same pixels on the same ground, to 1e-4 of a pixel."""
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
        cells = "".join(
            f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items()
        )
        return f"<table>{cells}</table>"


def overlap(first: Window, second: Window) -> Window | None:
    """Return the part common to both windows, or None; unlike rasterio's, never raises."""
    top, left = max(first.row_off, second.row_off), max(first.col_off, second.col_off)
    bottom = min(first.row_off + first.height, second.row_off + second.height)
    right = min(first.col_off + first.width, second.col_off + second.width)
    return Window(left, top, right - left, bottom - top) if top < bottom and left < right else None


def hull(first: Window, second: Window) -> Window:
    """Return the least window that holds both."""
    top, left = min(first.row_off, second.row_off), min(first.col_off, second.col_off)
    bottom = max(first.row_off + first.height, second.row_off + second.height)
    right = max(first.col_off + first.width, second.col_off + second.width)
    return Window(left, top, right - left, bottom - top)


def slices(window: Window, within: Window) -> tuple[slice, slice]:
    """Return row and column slices that cut `window` out of an array that covers `within`."""
    top, left = round(window.row_off - within.row_off), round(window.col_off - within.col_off)
    return slice(top, top + round(window.height)), slice(left, left + round(window.width))


def envelope(transform: Affine, window: Window) -> Bounds:
    """Return the envelope (left, bottom, right, top) of the corners of `window` under `transform`."""
    t = transform
    rows = (window.row_off, window.row_off + window.height)
    cols = (window.col_off, window.col_off + window.width)
    xs = [t.a * col + t.b * row + t.c for row in rows for col in cols]
    ys = [t.d * col + t.e * row + t.f for row in rows for col in cols]
    return min(xs), min(ys), max(xs), max(ys)


def _ordered(bounds: Bounds) -> Bounds:
    """Return `bounds`, which must be finite and hold an area."""
    left, bottom, right, top = bounds
    if not (left < right and bottom < top and all(map(math.isfinite, bounds))):
        raise GridError(
            f"bounds {bounds} are empty or endless",
            hint="the order is left bottom right top",
            code="E-GRID-003",
        )
    return left, bottom, right, top
