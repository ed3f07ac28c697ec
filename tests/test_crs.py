"""Coordinate systems: every spelling means the same, x comes before y, and square metres are honest."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyproj
import pytest
import rasterio.crs
import rasterio.warp
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.crs import (
    describe,
    metric_crs,
    parse_crs,
    proj_data_problem,
    same_crs,
    to_pyproj,
    transform_bounds,
    transform_points,
    transformer,
)
from satseg.errors import CRSError

UTM33 = pyproj.CRS.from_epsg(32633)
GEOD = pyproj.Geod(ellps="WGS84")
SHIFTED = "+proj=utm +zone=33 +ellps=GRS80 +towgs84=500,0,0"
LOCAL_METRES = 'LOCAL_CS["site plan",UNIT["metre",1]]'
LOCAL_FEET = 'LOCAL_CS["site plan",UNIT["foot",0.3048]]'
SPELLINGS = {
    "int": 32633,
    "text": "EPSG:32633",
    "lower case": "epsg:32633",
    "urn": "urn:ogc:def:crs:EPSG::32633",
    "pyproj": UTM33,
    "rasterio": rasterio.crs.CRS.from_epsg(32633),
    "WKT2": UTM33.to_wkt("WKT2_2019"),
    "WKT of GDAL": UTM33.to_wkt("WKT1_GDAL"),
    "WKT of ESRI": UTM33.to_wkt("WKT1_ESRI"),
    "PROJJSON": UTM33.to_json(),
    "PROJ string": "+proj=utm +zone=33 +datum=WGS84 +units=m +no_defs",
}


def geodesic_area(crs, polygon: shapely.Polygon) -> float:
    xs, ys = shapely.get_coordinates(polygon).T
    lon, lat = transform_points(crs, 4326, xs, ys)
    return abs(GEOD.polygon_area_perimeter(lon, lat)[0])


def area_in(target, source, polygon: shapely.Polygon) -> float:
    xs, ys = shapely.get_coordinates(polygon).T
    return shapely.Polygon(np.column_stack(transform_points(source, target, xs, ys))).area


@pytest.mark.parametrize("value", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_parses_to_one_system(value):
    parsed = parse_crs(value)
    assert isinstance(parsed, rasterio.crs.CRS)
    assert same_crs(parsed, 32633)
    assert same_crs(value, "EPSG:32633")
    assert describe(value) == "EPSG:32633"
    assert to_pyproj(parsed).to_epsg() == 32633


def test_no_crs_stays_none():
    assert parse_crs(None) is None
    assert parse_crs(rasterio.crs.CRS()) is None


@pytest.mark.parametrize(
    "value", ["garbage", "", "EPSG:999999", "EPSG:", -7, 3.5, "+proj=nowhere", "GEOGCS[broken"]
)
@pytest.mark.parametrize("call", [parse_crs, to_pyproj, describe, lambda bad: same_crs(bad, 4326)])
def test_a_bad_name_is_a_crs_error_that_quotes_it(call, value):
    with pytest.raises(CRSError) as caught:
        call(value)
    assert caught.value.code == "E-CRS-002"
    assert repr(value) in str(caught.value)
    assert caught.value.hint
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "other",
    [32634, 4326, "EPSG:25833", "+proj=utm +zone=33 +datum=WGS84 +units=us-ft", SHIFTED, LOCAL_METRES, None],
)
def test_different_systems_are_not_the_same(other):
    assert not same_crs(32633, other)
    assert not same_crs(parse_crs(other), parse_crs(32633))


def test_two_absent_systems_are_the_same():
    assert same_crs(None, None)


def test_axis_order_alone_makes_no_difference():
    assert same_crs(4326, "OGC:CRS84")


def test_a_datum_shift_of_its_own_survives_identification():
    """GDAL identifies this one as EPSG:25833, which would lose 500 m."""
    assert parse_crs(SHIFTED).to_epsg() == 25833
    x, y = np.array([500_000.0]), np.array([5_500_000.0])
    moved_x, moved_y = transform_points(parse_crs(SHIFTED), 32633, x, y)
    assert math.hypot(moved_x[0] - x[0], moved_y[0] - y[0]) > 100


def test_a_shift_of_zero_is_identified():
    assert to_pyproj(parse_crs("+proj=utm +zone=33 +ellps=GRS80 +towgs84=0,0,0,0,0,0,0")).to_epsg() == 25833


@pytest.mark.parametrize("epsg", [3035, 2180, 32633, 3857, 2193, 3031, 3995, 5070, 4258])
def test_x_comes_before_y_as_in_gdal(epsg):
    """Some of these put northing or latitude first; GDAL's traditional order is the oracle."""
    lon, lat = {2193: (172.0, -41.0), 3031: (30.0, -80.0), 3995: (30.0, 80.0), 5070: (-98.0, 40.0)}.get(
        epsg, (16.5, 51.25)
    )
    xs, ys = transform_points(4326, epsg, np.array([lon]), np.array([lat]))
    oracle_x, oracle_y = rasterio.warp.transform("EPSG:4326", f"EPSG:{epsg}", [lon], [lat])
    # Two builds of PROJ: a tenth of a millimetre, a nanodegree.
    assert xs == pytest.approx(oracle_x, abs=1e-4 if epsg != 4258 else 1e-9)
    assert ys == pytest.approx(oracle_y, abs=1e-4 if epsg != 4258 else 1e-9)


@settings(max_examples=60, deadline=None)
@given(lon=st.floats(12.0, 18.0), lat=st.floats(-80.0, 84.0))
def test_points_come_back_from_utm(lon, lat):
    there = transform_points(4326, 32633, np.array([lon]), np.array([lat]))
    back = transform_points(32633, 4326, *there)
    assert np.ravel(back) == pytest.approx([lon, lat], abs=1e-9)  # 0.1 mm


def test_points_without_an_image_become_inf():
    xs, ys = transform_points(4326, 32633, np.array([15.0, 15.0]), np.array([95.0, 50.0]))
    assert np.isinf(xs[0])
    assert np.isinf(ys[0])
    assert np.isfinite([xs[1], ys[1]]).all()


def test_no_points_move_to_no_points():
    xs, ys = transform_points(4326, 32633, np.zeros(0), np.zeros(0))
    assert xs.shape == ys.shape == (0,)


def test_no_way_from_a_local_system_is_a_crs_error():
    with pytest.raises(CRSError, match="site plan") as caught:
        transform_points(parse_crs(LOCAL_METRES), 4326, np.array([0.0]), np.array([0.0]))
    assert caught.value.code == "E-CRS-005"
    with pytest.raises(CRSError):
        transform_bounds(4326, parse_crs(LOCAL_METRES), (0.0, 0.0, 1.0, 1.0))


def test_transformers_are_kept_and_agree_between_threads():
    assert transformer(parse_crs(32633), 4326) is transformer(32633, "EPSG:4326")
    xs, ys = np.linspace(4e5, 6e5, 101), np.linspace(5e6, 6e6, 101)
    alone = transform_points(32633, 3857, xs, ys)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: transform_points(32633, 3857, xs, ys), range(12)))
    assert all(np.array_equal(alone, moved) for moved in together)


@settings(max_examples=25, deadline=None)
@given(
    left=st.floats(11.0, 18.0),
    bottom=st.floats(-75.0, 75.0),
    width=st.floats(1e-3, 3.0),
    height=st.floats(1e-3, 5.0),
)
def test_moved_bounds_hold_the_moved_box(left, bottom, width, height):
    box = (left, bottom, left + width, bottom + height)
    moved = transform_bounds(4326, 32633, box)
    assert moved == pyproj.Transformer.from_crs(4326, 32633, always_xy=True).transform_bounds(
        *box, densify_pts=21
    )
    xs, ys = np.meshgrid(np.linspace(box[0], box[2], 9), np.linspace(box[1], box[3], 9))
    xs, ys = transform_points(4326, 32633, xs.ravel(), ys.ravel())
    slack = 1e-3 * max(moved[2] - moved[0], moved[3] - moved[1])  # the edge bends between 23 samples
    assert xs.min() >= moved[0] - slack
    assert ys.min() >= moved[1] - slack
    assert xs.max() <= moved[2] + slack
    assert ys.max() <= moved[3] + slack


def test_bounds_in_their_own_system_are_returned_as_they_are():
    bounds = (4.999999999e5, 5.1e6, 5.1e5, 5.2e6)
    assert transform_bounds("EPSG:32633", parse_crs(UTM33.to_wkt("WKT1_ESRI")), bounds) == bounds


def test_bounds_around_a_pole_reach_it():
    moved = transform_bounds(3031, 4326, (-1e6, -1e6, 1e6, 1e6))
    assert moved[1] == -90
    assert (moved[0], moved[2]) == (-180, 180)


@pytest.mark.parametrize(
    "bounds", [(15.0, 91.0, 16.0, 95.0), (math.nan, 0.0, 1.0, 1.0), (15.0, 50.0, math.inf, 51.0)]
)
def test_bounds_off_the_earth_are_refused(bounds):
    with pytest.raises(CRSError) as caught:
        transform_bounds(4326, 32633, bounds)
    assert caught.value.code == "E-CRS-003"
    assert "EPSG:32633" in str(caught.value)


def test_bounds_across_the_antimeridian_are_refused_not_turned_inside_out():
    west_of_180_to_east = (1.5e5, 5e6, 3e5, 5.1e6)
    with pytest.raises(CRSError, match="antimeridian") as caught:
        transform_bounds(32601, 4326, west_of_180_to_east)
    assert caught.value.code == "E-CRS-004"


@pytest.mark.parametrize(
    ("crs", "bounds"),
    [
        (32633, (499_000.0, 4.9e6, 501_000.0, 4.902e6)),
        (32633, (1.7e5, 0.0, 8.3e5, 9.3e6)),
        (3035, (4.3e6, 3.2e6, 4.4e6, 3.3e6)),
        (5070, (0.0, 1e6, 1e5, 1.1e6)),
        (2180, (5e5, 5e5, 5.1e5, 5.1e5)),
        (27572, (6e5, 2.4e6, 6.1e5, 2.41e6)),
        (2053, (-1e4, 3e6, 1e4, 3.1e6)),
        ("EPSG:32633+5773", (499_000.0, 4.9e6, 501_000.0, 4.902e6)),
        (LOCAL_METRES, (0.0, 0.0, 100.0, 30.0)),
    ],
    ids=str,
)
def test_metres_that_keep_area_are_kept(crs, bounds):
    assert metric_crs(crs, bounds) == to_pyproj(crs)


@settings(max_examples=25, deadline=None)
@given(x=st.floats(1.7e5, 8.2e5), y=st.floats(0.0, 9.3e6), size=st.floats(10.0, 1e4))
def test_utm_area_is_within_the_stated_half_percent(x, y, size):
    box = shapely.segmentize(shapely.box(x, y, x + size, y + size), size / 20)
    assert area_in(metric_crs(32633, box.bounds), 32633, box) == pytest.approx(
        geodesic_area(32633, box), rel=5e-3
    )


@pytest.mark.parametrize(
    ("crs", "bounds"),
    [
        (3857, (1.37e6, 7.2e6, 1.38e6, 7.21e6)),
        (3857, (36.8e5, -1.5e5, 36.9e5, -1.4e5)),
        (3857, (8.5e6, 3.1e6, 8.51e6, 3.11e6)),
        (4326, (15.0, 50.0, 15.01, 50.02)),
        (4326, (-70.0, -54.9, -69.99, -54.85)),
        (2264, (1.4e6, 5.4e5, 1.41e6, 5.5e5)),
        ("+proj=longlat +ellps=bessel", (7.0, 46.0, 7.01, 46.01)),
        (4326, (179.99, -17.0, 180.0, -16.99)),
    ],
    ids=str,
)
def test_other_systems_fall_to_an_equal_area_plane_of_the_place(crs, bounds):
    local = metric_crs(crs, bounds)
    assert local.coordinate_operation.method_name == "Lambert Azimuthal Equal Area"
    box = shapely.segmentize(shapely.box(*bounds), (bounds[2] - bounds[0]) / 10)
    # 1e-4: straight edges between samples, and ellipsoids that differ from WGS 84 (Bessel, GRS 80)
    tolerance = 5e-4 if "bessel" in str(crs) else 1e-4
    assert area_in(local, crs, box) == pytest.approx(geodesic_area(crs, box), rel=tolerance)
    centre = transform_points(crs, local, *np.reshape([box.centroid.x, box.centroid.y], (2, 1)))
    assert np.abs(centre).max() < 1e-2 * math.sqrt(geodesic_area(crs, box))


@settings(max_examples=25, deadline=None)
@given(lon=st.floats(-179.0, 175.0), lat=st.floats(-89.0, 85.0), size=st.floats(1e-4, 3.0))
def test_fallback_area_equals_geodesic_area(lon, lat, size):
    bounds = (lon, lat, lon + size, lat + size)
    box = shapely.segmentize(shapely.box(*bounds), size / 50)
    target = metric_crs(4326, bounds)
    assert area_in(target, 4326, box) == pytest.approx(geodesic_area(4326, box), rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(x=st.floats(-2e7, 1.9e7), y=st.floats(-1.9e7, 1.8e7), size=st.floats(100.0, 4e5))
def test_web_mercator_is_never_taken_for_square_metres(x, y, size):
    bounds = (x, y, x + size, y + size)
    box = shapely.segmentize(shapely.box(*bounds), size / 50)
    target = metric_crs(3857, bounds)
    assert area_in(target, 3857, box) == pytest.approx(geodesic_area(3857, box), rel=1e-4)


@pytest.mark.parametrize(
    ("crs", "bounds"), [(4326, (-180.0, -90.0, 180.0, 90.0)), (3857, (-2e7, -2e7, 2e7, 2e7))]
)
def test_a_global_extent_takes_the_global_equal_area_grid(crs, bounds):
    assert metric_crs(crs, bounds).to_epsg() == 6933


@pytest.mark.parametrize(("crs", "sheet"), [(3031, 6932), (3995, 6931)])
def test_a_polar_mosaic_takes_the_polar_sheet_and_keeps_its_area(crs, sheet):
    bounds = (-2e6, -1.5e6, 1.8e6, 2e6)
    target = metric_crs(crs, bounds)
    assert target.to_epsg() == sheet
    box = shapely.segmentize(shapely.box(*bounds), 2e4)
    lon, lat = transform_points(crs, 4326, *shapely.get_coordinates(box).T)
    around_the_pole = abs(GEOD.polygon_area_perimeter(lon, lat)[0])
    assert area_in(target, crs, box) == pytest.approx(around_the_pole, rel=1e-3)


@pytest.mark.parametrize(
    ("crs", "bounds"),
    [
        (4326, (10.0, 100.0, 11.0, 101.0)),
        (32633, (1e30, 1e30, 2e30, 2e30)),
        (LOCAL_FEET, (0.0, 0.0, 100.0, 30.0)),
        (4326, (math.nan, 0.0, 1.0, 1.0)),
    ],
    ids=str,
)
def test_places_off_the_earth_have_no_square_metres(crs, bounds):
    with pytest.raises(CRSError):
        metric_crs(crs, bounds)


@pytest.mark.parametrize(
    "name", ["EPSG:32633", "EPSG:4326", "EPSG:2264", "ESRI:54009", "ESRI:102003", "OGC:CRS84"]
)
def test_described_codes_parse_back(name):
    assert describe(parse_crs(name)) == name
    assert same_crs(parse_crs(describe(name)), name)


def test_descriptions_of_what_has_no_code():
    assert describe(None) == "none"
    assert describe(LOCAL_METRES) == "site plan"
    assert describe("+proj=longlat +a=6378137 +b=6378137") == "a CRS without a name"


def test_parsed_systems_travel_between_processes():
    for value in (32633, SHIFTED, LOCAL_METRES):
        assert pickle.loads(pickle.dumps(parse_crs(value))) == parse_crs(value)


def test_healthy_proj_data_is_no_problem(monkeypatch, tmp_path):
    monkeypatch.delenv("PROJ_DATA", raising=False)
    monkeypatch.delenv("PROJ_LIB", raising=False)
    assert proj_data_problem() is None


@pytest.mark.parametrize("variable", ["PROJ_DATA", "PROJ_LIB"])
def test_a_foreign_proj_database_is_named(variable, tmp_path):
    code = "from satseg.crs import proj_data_problem; print(proj_data_problem())"
    environment = {k: v for k, v in os.environ.items() if k not in ("PROJ_DATA", "PROJ_LIB")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {variable: str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{variable}={tmp_path}" in run.stdout
