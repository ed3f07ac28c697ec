"""Grid on the ground: true metres, outlines and windows by way of other coordinate systems."""

from __future__ import annotations

import math

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.crs import parse_crs, transform_points
from satseg.errors import CRSError
from satseg.grid import SNAP_PX, Grid

GEOD = pyproj.Geod(ellps="WGS84")


def affine(*, length: float, ratio: float, turn: float, shear: float, x: float, y: float) -> Affine:
    cos, sin = math.cos(turn), math.sin(turn)
    across = length * ratio
    return Affine(
        cos * length, (cos * shear - sin) * across, x, sin * length, (sin * shear + cos) * across, y
    )


# --- metres


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 30.0), st.sampled_from([None, 32633, 4326, 2264]))
def test_a_grid_at_a_gsd_has_it(gsd, crs):
    scale = {None: 0.3, 32633: 0.3, 4326: 1e-5, 2264: 1.0}[crs]
    x, y = {4326: (15.0, 50.0), 2264: (1.4e6, 5.4e5)}.get(crs, (5e5, 5.5e6))
    grid = Grid(201, 303, Affine(scale, 0.0, x, 0.0, -scale * 2, y), parse_crs(crs))
    moved = grid.at_gsd(gsd)
    # 1e-3 is what at_gsd calls the same
    assert moved.gsd_m() == pytest.approx(gsd, rel=1.1e-3)
    assert grid.at_gsd(grid.gsd_m()) is grid


PLACES = {
    "degrees, equator": (4326, 9.0, 0.0, 1e-4),
    "degrees, 27 north": (4326, -80.0, 27.0, 1e-4),
    "degrees, 50 north": (4326, 15.0, 50.0, 1e-4),
    "degrees, 78 south": (4326, 166.0, -78.0, 1e-4),
    "web mercator, 27 north": (3857, 77.0, 27.0, 10.0),
    "web mercator, 1.3 south": (3857, 36.8, -1.3, 10.0),
    "web mercator, 70 north": (3857, 25.0, 70.0, 10.0),
    "UTM, middle": (32633, 15.0, 50.0, 10.0),
    "UTM, edge": (32633, 12.0, 1.0, 10.0),
    "feet": (2264, -80.8, 35.2, 30.0),
    "polar": (3031, 0.0, -85.0, 10.0),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("turn", [0.0, 0.5])
def test_pixel_area_is_the_geodesic_area(name, turn):
    epsg, lon, lat, length = PLACES[name]
    x, y = transform_points(4326, epsg, np.array([lon]), np.array([lat]))
    grid = Grid(
        31, 17, affine(length=length, ratio=-1.3, turn=turn, shear=0.1, x=x[0], y=y[0]), parse_crs(epsg)
    )
    rows, cols = np.array([15.0, 15.0, 16.0, 16.0]), np.array([8.0, 9.0, 9.0, 8.0])
    corners = transform_points(epsg, 4326, *grid.xy(rows=rows, cols=cols))
    area = abs(GEOD.polygon_area_perimeter(*corners)[0])
    # UTM is kept as it is, within the half percent of crs.AREAL_SCALE_TOLERANCE; the rest is equal-area
    assert grid.pixel_area_m2() == pytest.approx(area, rel=5e-3 if epsg == 32633 else 1e-4)
    assert grid.gsd_m() == pytest.approx(math.sqrt(grid.pixel_area_m2()))


def test_pixels_of_a_metric_crs_are_exactly_their_size():
    assert Grid(3, 5, Affine(0.5, 0.0, 5e5, 0.0, -0.5, 5.5e6), parse_crs(32633)).gsd_m() == 0.5


def test_one_pixel_and_no_crs_and_local_metres_have_a_size():
    transform = Affine(2.0, 0.0, 0.0, 0.0, -2.0, 0.0)
    assert Grid(1, 1, transform).gsd_m() == 2.0
    assert Grid(1, 1, transform, parse_crs('LOCAL_CS["plan",UNIT["metre",1]]')).gsd_m() == 2.0


def test_a_grid_off_the_earth_has_no_size_in_metres():
    swapped_axes = Grid(5, 7, Affine(1e-4, 0.0, 50.0, 0.0, -1e-4, 115.0), parse_crs(4326))
    with pytest.raises(CRSError) as caught:
        swapped_axes.gsd_m()
    assert caught.value.code == "E-CRS-003"


# --- outlines in another CRS


@settings(max_examples=25, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(2e5, 8e5), st.floats(1e5, 9e6), st.integers(1, 90))
def test_the_outline_in_another_crs_is_the_same_ground(turn, x, y, step):
    transform = affine(length=10.0 * step, ratio=-1.0, turn=turn, shear=0.0, x=x, y=y)
    grid = Grid(31, 57, transform, parse_crs(32633))
    moved = grid.footprint(4326)
    back = shapely.transform(moved, lambda p: np.column_stack(transform_points(4326, 32633, *p.T)))
    here = grid.footprint()
    assert back.symmetric_difference(here).area <= 1e-6 * here.area
    assert grid.footprint("EPSG:32633") == here


def test_the_outline_across_the_antimeridian_is_in_one_piece():
    grid = Grid(101, 303, Affine(1000.0, 0.0, 1.2e5, 0.0, -1000.0, 5e6), parse_crs(32601))
    outline = grid.footprint(4326)
    left, _, right, _ = outline.bounds
    assert right - left < 5
    assert left < -180 < right or left < 180 < right
    area = abs(GEOD.geometry_area_perimeter(outline)[0])
    assert area == pytest.approx(101e3 * 303e3, rel=5e-3)  # UTM's own scale at the zone's edge


def test_an_outline_off_the_earth_is_refused():
    with pytest.raises(CRSError) as caught:
        Grid(5, 7, Affine(1.0, 0.0, 15.0, 0.0, -1.0, 95.0), parse_crs(4326)).footprint(32633)
    assert caught.value.code == "E-CRS-003"


def test_the_outline_of_a_grid_without_crs_is_in_its_own_units():
    grid = Grid(5, 7, Affine.identity())
    assert grid.footprint(4326).bounds == (0, 0, 7, 5)


# --- windows of bounds in another CRS


@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_bounds_in_another_crs_are_moved_and_covered(turn):
    transform = affine(length=10.0, ratio=-1.0, turn=turn, shear=0.0, x=500_000, y=5_000_000)
    grid = Grid(301, 507, transform, parse_crs(32633))
    lon, lat = transform_points(32633, 4326, *grid.xy(rows=[100.0, 180.0], cols=[150.0, 260.0]))
    bounds = (lon.min(), lat.min(), lon.max(), lat.max())
    window = grid.window_of(bounds, 4326)
    xs, ys = np.meshgrid(np.linspace(bounds[0], bounds[2], 40), np.linspace(bounds[1], bounds[3], 40))
    rows, cols = grid.rowcol(
        **dict(zip(("xs", "ys"), transform_points(4326, 32633, xs.ravel(), ys.ravel()), strict=True))
    )
    assert window.row_off <= rows.min() + SNAP_PX
    assert rows.max() <= window.row_off + window.height + SNAP_PX
    assert window.col_off <= cols.min() + SNAP_PX
    assert cols.max() <= window.col_off + window.width + SNAP_PX
    if turn == 0.0:
        assert rows.min() - window.row_off < 1.01
        assert window.col_off + window.width - cols.max() < 1.01
    assert grid.window_of(grid.bounds, "urn:ogc:def:crs:EPSG::32633") == grid.window


def test_bounds_across_the_antimeridian_do_not_become_the_whole_world():
    world = Grid.from_bounds((-180, -90, 180, 90), height=180, width=360, crs=4326)
    with pytest.raises(CRSError, match="antimeridian"):
        world.window_of((1.5e5, 5e6, 3e5, 5.1e6), 32601)


# --- the CRS


def test_a_crs_spelled_otherwise_matches_and_another_does_not():
    transform = Affine(0.3, 0.0, 5e5, 0.0, -0.3, 5e6)
    esri = pyproj.CRS.from_epsg(32633).to_wkt("WKT1_ESRI")
    grid = Grid(5, 7, transform, parse_crs(32633))
    assert grid.matches(Grid(5, 7, transform, parse_crs(esri)))
    assert not grid.matches(Grid(5, 7, transform, parse_crs(32634)))
    assert not grid.matches(Grid(5, 7, transform))
    assert Grid(5, 7, transform).matches(Grid(5, 7, transform))


def test_equal_grids_hash_alike_whatever_the_spelling_of_the_crs():
    transform = Affine(0.3, 0.0, 5e5, 0.0, -0.3, 5e6)
    first = Grid(5, 7, transform, parse_crs(32633))
    second = Grid(5, 7, transform, parse_crs(pyproj.CRS.from_epsg(32633).to_wkt("WKT1_GDAL")))
    assert first == second
    assert len({first, second, Grid(7, 5, transform, parse_crs(32633))}) == 2


def test_any_spelling_of_a_crs_is_taken():
    assert Grid(5, 7, Affine.identity(), "EPSG:32633").crs == parse_crs(32633)
    assert Grid(5, 7, Affine.identity(), "EPSG:32633").is_georeferenced
    assert not Grid(5, 7, Affine.identity()).is_georeferenced


def test_a_bad_crs_is_refused():
    with pytest.raises(CRSError):
        Grid(5, 7, Affine.identity(), "EPSG:999999")


def test_the_notebook_table_escapes_the_crs_name():
    hostile = parse_crs('LOCAL_CS["<script>alert(1)</script>",UNIT["metre",1]]')
    shown = Grid(5, 7, Affine.identity(), hostile)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "5 rows x 7 columns" in shown
