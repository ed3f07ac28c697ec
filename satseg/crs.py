"""Coordinate reference systems: parsing, moving bounds and points, and honest square metres.

Areas and pixel sizes in a CRS mean metres only if its distortion is small: a roof near the pole is
many times too large in EPSG:3857. `metric_crs` keeps a projected CRS when its areal scale is
within half a percent over the data and otherwise falls to an equal-area projection of the place.

Building a transformer takes PROJ from 0.3 ms to a tenth of a second (a change of datum), so that they
and parsed CRSs are kept; pyproj gives each thread its own copy of the PROJ objects inside.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
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
"""UTM stays within 0.2 % over its zone; EPSG:3857, a sphere's map, is 0.7 % off on the equator already."""
AREAL_PROBE_M = 100.0
"""Side of the squares whose true area is measured: far above float noise, far below any distortion."""
LOCAL_EXTENT_M = 1_000_000.0
"""Beyond this extent one azimuthal centre is arbitrary; EASE-Grid 2.0 (EPSG:6933, global) is used instead."""
POLAR_LATITUDE = 60.0
"""Poleward of it EASE-Grid's own polar sheets (EPSG:6931, 6932): the global one tears shapes at the pole."""


def parse_crs(value: CRSLike | None) -> CRS | None:
    """Return `value` as a rasterio CRS; None stays None.

    Raises
    ------
    CRSError
        `value` names no coordinate reference system.
    """
    if value is None or isinstance(value, rasterio.crs.CRS):
        return value or None
    with _naming(value):
        return rasterio.crs.CRS.from_wkt(pyproj.CRS.from_user_input(value).to_wkt())


def to_pyproj(crs: CRSLike) -> pyproj.CRS:
    """Return the pyproj form of `crs`, which geopandas and PROJ calls take.

    Raises
    ------
    CRSError
        `crs` names no coordinate reference system.
    """
    with _naming(crs):
        if isinstance(crs, rasterio.crs.CRS):
            return _from_wkt(crs.wkt)
        return pyproj.CRS.from_user_input(crs)


@lru_cache(maxsize=256)
def _from_wkt(wkt: str) -> pyproj.CRS:
    """Return the EPSG form of a CRS that GDAL can identify, so that all spellings of it are equal.

    Not where the text has a datum shift of its own (TOWGS84): identifying it would drop the shift.
    """
    own = pyproj.CRS.from_wkt(wkt)
    shift = own.coordinate_operation.towgs84 if own.is_bound and own.coordinate_operation else ()
    epsg = None if any(shift) else rasterio.crs.CRS.from_wkt(wkt).to_epsg()
    return pyproj.CRS.from_epsg(epsg) if epsg else own


@contextmanager
def _naming(value: CRSLike) -> Iterator[None]:
    """Turn the libraries' refusals of `value` inside the block into a CRSError."""
    try:
        yield
    except (ProjError, RasterioCRSError) as error:
        raise CRSError(
            f"{value!r} is no coordinate reference system",
            hint="give one such as EPSG:32633",
            code="E-CRS-002",
        ) from error


def same_crs(first: CRSLike | None, second: CRSLike | None) -> bool:
    """Return whether both are absent or both describe one system (axis order aside: all is x, y here)."""
    if first is None or second is None:
        return first is None and second is None
    return first == second or to_pyproj(first).equals(to_pyproj(second), ignore_axis_order=True)


def transformer(source: CRSLike, target: CRSLike) -> pyproj.Transformer:
    """Return PROJ's way from `source` to `target`, x before y whatever the CRSs say; kept for next time.

    Raises
    ------
    CRSError
        No way is known, as from a local engineering CRS to any place on the Earth.
    """
    ends = to_pyproj(source), to_pyproj(target)
    try:
        return _transformer(*(end.srs for end in ends))
    except ProjError as error:
        raise CRSError(
            f"no way is known from {describe(source)} to {describe(target)}",
            hint="give both a CRS with a place on the Earth",
            code="E-CRS-005",
        ) from error


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(source, target, always_xy=True)


def transform_points(
    source: CRSLike, target: CRSLike, xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `xs`, `ys` moved from `source` to `target`; points PROJ cannot move become inf."""
    out_x, out_y = transformer(source, target).transform(xs, ys)
    return np.asarray(out_x, dtype=np.float64), np.asarray(out_y, dtype=np.float64)


def transform_bounds(source: CRSLike, target: CRSLike, bounds: Bounds) -> Bounds:
    """Return the envelope in `target` of the box `bounds` of `source`, its edges densified.

    Raises
    ------
    CRSError
        The box has no finite image in `target`, or its image lies across the antimeridian.
    """
    if same_crs(source, target):
        return bounds
    moved = _moved_bounds(transformer(source, target), bounds, edge_points=21)
    if not np.all(np.isfinite([*bounds, *moved])):
        raise CRSError(
            f"bounds {bounds} do not exist in {describe(target)}",
            hint="check the CRS of the bounds",
            code="E-CRS-003",
        )
    if moved[0] > moved[2]:
        raise CRSError(
            f"bounds {bounds} lie across the antimeridian in {describe(target)}",
            hint="split them at longitude 180",
            code="E-CRS-004",
        )
    return moved


def _moved_bounds(mover: pyproj.Transformer, bounds: Bounds, *, edge_points: int) -> Bounds:
    """Return PROJ's envelope of the moved box, infinite where it has none."""
    try:
        moved: Bounds = mover.transform_bounds(*bounds, densify_pts=edge_points)
    except ProjError:
        return -np.inf, -np.inf, np.inf, np.inf
    return moved


def metric_crs(crs: CRSLike, bounds: Bounds) -> pyproj.CRS:
    """Return a CRS in which areas of data at `bounds` (given in `crs`) are square metres.

    `crs` itself when it is projected in metres and its areal scale stays within
    `AREAL_SCALE_TOLERANCE` of 1 at the centre and corners; else a Lambert azimuthal equal-area
    projection centred there, or EPSG:6933 for extents beyond `LOCAL_EXTENT_M` (its polar sisters for
    projected data centred beyond `POLAR_LATITUDE`). A local engineering CRS in metres is flat and
    kept too.

    Raises
    ------
    CRSError
        The bounds do not lie on the Earth, or the CRS is a local one in other units.
    """
    left, bottom, right, top = map(float, bounds)
    return _metric_crs(to_pyproj(crs), (left, bottom, right, top))


@lru_cache(maxsize=256)
def _metric_crs(own: pyproj.CRS, bounds: Bounds) -> pyproj.CRS:
    left, bottom, right, top = bounds
    metres = _unit_factor(own) == 1.0
    if metres and (own.is_engineering or (own.is_projected and _keeps_area(own, bounds))):
        return own
    middle = np.array([(left + right) / 2]), np.array([(bottom + top) / 2])
    lon, lat = transform_points(own, 4326, *middle)
    if not (np.isfinite(lon[0]) and abs(lat[0]) <= 90):
        raise CRSError(
            f"bounds {bounds} do not lie on the Earth in {describe(own)}",
            hint="check the CRS",
            code="E-CRS-003",
        )
    local = pyproj.CRS.from_proj4(f"+proj=laea +lat_0={lat[0]:.6f} +lon_0={lon[0]:.6f} +datum=WGS84 +units=m")
    if np.isfinite(extent := _extent(own, local, bounds)) and extent <= LOCAL_EXTENT_M:
        return local
    polar = own.is_projected and abs(lat[0]) > POLAR_LATITUDE
    return pyproj.CRS.from_epsg((6931 if lat[0] > 0 else 6932) if polar else 6933)


def _extent(source: pyproj.CRS, target: pyproj.CRS, bounds: Bounds) -> float:
    left, bottom, right, top = _moved_bounds(transformer(source, target), bounds, edge_points=5)
    return float(max(right - left, top - bottom))


def _unit_factor(crs: pyproj.CRS) -> float:
    return float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0


def _keeps_area(crs: pyproj.CRS, bounds: Bounds) -> bool:
    """Return whether small squares at the centre and corners have their area on the ellipsoid.

    Measured with geodesics (Karney 2013, doi 10.1007/s00190-012-0578-z). PROJ's own factors take
    EPSG:3857 for true on the equator.
    """
    geodetic, geod = crs.geodetic_crs, crs.get_geod()
    if geodetic is None or geod is None:
        return False
    left, bottom, right, top = bounds
    half = AREAL_PROBE_M / 2
    xs = np.array([(left + right) / 2, left, left, right, right])[:, None] + [-half, half, half, -half]
    ys = np.array([(bottom + top) / 2, bottom, top, bottom, top])[:, None] + [-half, -half, half, half]
    places = math.degrees(_unit_factor(geodetic)) * np.stack(transform_points(crs, geodetic, xs, ys))
    if not np.isfinite(places).all():
        return False
    areas = np.array([geod.polygon_area_perimeter(*places[:, i])[0] for i in range(len(xs))])
    return bool(np.all(np.abs(AREAL_PROBE_M**2 - np.abs(areas)) <= AREAL_SCALE_TOLERANCE * np.abs(areas)))


def describe(crs: CRSLike | None) -> str:
    """Return the shortest name of `crs` a person knows: ``EPSG:32633``, ``ESRI:54009``, its title, ``none``.

    `parse_crs` takes the codes back.
    """
    if crs is None:
        return "none"
    parsed = to_pyproj(crs)
    if epsg := parsed.to_epsg():
        return f"EPSG:{epsg}"
    if authority := parsed.to_authority():
        return ":".join(authority)
    return str(parsed.name) if parsed.name not in ("unknown", "unnamed", "") else "a CRS without a name"


def proj_data_problem() -> str | None:
    """Say which environment variable points PROJ at another program's database, or None.

    QGIS, PostgreSQL and conda set these; rasterio's PROJ then fails on every CRS while pyproj and
    pyogrio keep working, so that the failure looks random.
    """
    for name in ("PROJ_DATA", "PROJ_LIB"):
        if value := os.environ.get(name):
            try:
                rasterio.crs.CRS.from_epsg(4326).to_wkt()
            except RasterioCRSError:
                return f"{name}={value} belongs to another PROJ"
    return None
