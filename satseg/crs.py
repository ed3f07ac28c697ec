"""Coordinate reference systems: parsing, moving bounds and points, and honest square metres.

Areas and pixel sizes in a CRS mean metres only if its distortion is small: a roof near the pole is
many times too large in EPSG:3857. `metric_crs` keeps a projected CRS when its areal scale is
within half a percent over the data and otherwise falls to an equal-area projection of the place.
"""

from __future__ import annotations

import os
from typing import TypeAlias

import numpy as np
import pyproj
import rasterio.crs
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio.errors import CRSError as RasterioCRSError

from satseg.errors import CRSError

CRS: TypeAlias = rasterio.crs.CRS
CRSLike: TypeAlias = "rasterio.crs.CRS | pyproj.CRS | str | int"
Bounds: TypeAlias = tuple[float, float, float, float]
"""left, bottom, right, top; west > east never occurs, callers split at the antimeridian."""

AREAL_SCALE_TOLERANCE = 0.005
"""UTM stays within 0.1 % over its zone; EPSG:3857 leaves this band about 4 degrees from the equator."""
LOCAL_EXTENT_M = 1_000_000.0
"""Beyond this extent one azimuthal centre is arbitrary; EPSG:6933 (EASE-Grid 2.0) is used instead."""


def parse_crs(value: CRSLike | None) -> CRS | None:
    """Return `value` as a rasterio CRS; None stays None.

    Raises
    ------
    CRSError
        `value` names no coordinate reference system.
    """
    if value is None or isinstance(value, rasterio.crs.CRS):
        return value or None
    try:
        wkt = pyproj.CRS.from_user_input(value).to_wkt()
        return rasterio.crs.CRS.from_wkt(wkt)
    except (ProjError, RasterioCRSError) as error:
        raise CRSError(
            f"{value!r} is no coordinate reference system", hint="give one such as EPSG:32633", code="E-CRS-002"
        ) from error


def to_pyproj(crs: CRSLike) -> pyproj.CRS:
    """Return the pyproj form of `crs`, which geopandas and PROJ calls take."""
    if isinstance(crs, rasterio.crs.CRS):
        epsg = crs.to_epsg()
        return pyproj.CRS.from_epsg(epsg) if epsg else pyproj.CRS.from_wkt(crs.to_wkt())
    return pyproj.CRS.from_user_input(crs)


def same_crs(first: CRSLike | None, second: CRSLike | None) -> bool:
    """Whether both are absent or both describe one system (axis order aside: all is x, y here)."""
    if first is None or second is None:
        return first is None and second is None
    return first == second or to_pyproj(first).equals(to_pyproj(second), ignore_axis_order=True)


def transform_points(
    source: CRSLike, target: CRSLike, xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `xs`, `ys` moved from `source` to `target`; points PROJ cannot move become inf."""
    mover = pyproj.Transformer.from_crs(to_pyproj(source), to_pyproj(target), always_xy=True)
    out_x, out_y = mover.transform(xs, ys)
    return np.asarray(out_x, dtype=np.float64), np.asarray(out_y, dtype=np.float64)


def transform_bounds(source: CRSLike, target: CRSLike, bounds: Bounds) -> Bounds:
    """Return the envelope in `target` of the box `bounds` of `source`, its edges densified.

    Raises
    ------
    CRSError
        The box has no finite image in `target`.
    """
    if same_crs(source, target):
        return bounds
    mover = pyproj.Transformer.from_crs(to_pyproj(source), to_pyproj(target), always_xy=True)
    moved: Bounds = mover.transform_bounds(*bounds, densify_pts=21)
    if not np.all(np.isfinite(moved)):
        raise CRSError(
            f"bounds {bounds} do not exist in {describe(target)}", hint="check the CRS of the bounds", code="E-CRS-003"
        )
    return moved


def metric_crs(crs: CRSLike, bounds: Bounds) -> pyproj.CRS:
    """Return a CRS in which areas of data at `bounds` (given in `crs`) are square metres.

    `crs` itself when it is projected in metres and its areal scale (PROJ factors) stays within
    `AREAL_SCALE_TOLERANCE` of 1 at the centre and corners; else a Lambert azimuthal equal-area
    projection centred there, or EPSG:6933 for extents beyond `LOCAL_EXTENT_M`.
    """
    own = to_pyproj(crs)
    left, bottom, right, top = bounds
    if own.is_projected and _unit_factor(own) == 1.0 and _keeps_area(own, bounds):
        return own
    geodetic = pyproj.CRS.from_epsg(4326)
    lon, lat = transform_points(own, geodetic, np.array([(left + right) / 2]), np.array([(bottom + top) / 2]))
    if not (np.isfinite(lon[0]) and np.isfinite(lat[0])):
        raise CRSError(
            f"bounds {bounds} do not lie on the Earth in {describe(crs)}", hint="check the CRS", code="E-CRS-003"
        )
    local = pyproj.CRS.from_proj4(f"+proj=laea +lat_0={lat[0]:.6f} +lon_0={lon[0]:.6f} +datum=WGS84 +units=m")
    if np.isfinite(extent := _extent(own, local, bounds)) and extent <= LOCAL_EXTENT_M:
        return local
    return pyproj.CRS.from_epsg(6933)


def _extent(source: pyproj.CRS, target: pyproj.CRS, bounds: Bounds) -> float:
    mover = pyproj.Transformer.from_crs(source, target, always_xy=True)
    left, bottom, right, top = mover.transform_bounds(*bounds, densify_pts=5)
    return float(max(right - left, top - bottom))


def _unit_factor(crs: pyproj.CRS) -> float:
    return float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0


def _keeps_area(crs: pyproj.CRS, bounds: Bounds) -> bool:
    left, bottom, right, top = bounds
    xs = np.array([(left + right) / 2, left, left, right, right])
    ys = np.array([(bottom + top) / 2, bottom, top, bottom, top])
    geodetic = crs.geodetic_crs
    if geodetic is None:
        return False
    try:
        lon, lat = transform_points(crs, geodetic, xs, ys)
        scale = np.asarray(pyproj.Proj(crs).get_factors(lon, lat).areal_scale)
    except ProjError:
        return False
    return bool(np.all(np.abs(scale - 1.0) <= AREAL_SCALE_TOLERANCE))


def describe(crs: CRSLike | None) -> str:
    """Return the shortest name of `crs` a person knows: ``EPSG:32633``, its title, or ``none``."""
    if crs is None:
        return "none"
    parsed = to_pyproj(crs)
    epsg = parsed.to_epsg()
    return f"EPSG:{epsg}" if epsg else parsed.name


def proj_data_problem() -> str | None:
    """Say which environment variable points PROJ at another program's database, or None.

    QGIS, PostgreSQL and conda set these; rasterio's PROJ then fails on every CRS while pyproj and
    pyogrio keep working, so that the failure looks random (faults 38).
    """
    for name in ("PROJ_DATA", "PROJ_LIB"):
        if value := os.environ.get(name):
            try:
                rasterio.crs.CRS.from_epsg(4326).to_wkt()
            except RasterioCRSError:
                return f"{name}={value} belongs to another PROJ"
    return None
