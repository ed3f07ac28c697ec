"""Where pixels of one grid lie on another, against PROJ pixel by pixel."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from satseg.grid import Grid
from satseg.imagery.mapping import WARP_TOLERANCE_PX, Shift, Stretch, Warp, meets, relate
from tests.factories import ORIGIN, UTM, north_up, rotated

UTM_GRID = Grid(150, 210, north_up(10.0), UTM)
GEOGRAPHIC = Grid(180, 300, Affine(1e-4, 0, 14.9985, 0, -1e-4, 45.1545), "EPSG:4326")


def exact(source: Grid, reference: Grid, window: Window) -> np.ndarray:
    """Source rows and columns of pixel centres straight from PROJ: the oracle."""
    rows = np.arange(window.row_off, window.row_off + window.height) + 0.5
    cols = np.arange(window.col_off, window.col_off + window.width) + 0.5
    cols, rows = np.meshgrid(cols, rows)
    xs, ys = reference.xy(rows=rows, cols=cols)
    if source.crs != reference.crs:
        move = pyproj.Transformer.from_crs(reference.crs.to_wkt(), source.crs.to_wkt(), always_xy=True)
        xs, ys = (np.where(np.isfinite(v), v, np.nan) for v in move.transform(xs, ys))
    return np.stack(source.rowcol(xs=xs, ys=ys))


def test_cut_out_grids_are_shifted_by_whole_pixels():
    part = UTM_GRID.crop(Window(7, -3, 20, 30))
    assert relate(UTM_GRID, part) == Shift(-3, 7)
    assert relate(part, UTM_GRID) == Shift(3, -7)


def test_drift_within_a_ten_thousandth_of_a_pixel_is_no_stretch():
    near = Grid(150, 210, north_up(10.0 + 4e-6), UTM)
    assert isinstance(relate(near, UTM_GRID), Shift)
    far = Grid(150, 210, north_up(10.0 + 4e-5), UTM)
    assert isinstance(relate(far, UTM_GRID), Stretch)


def test_half_a_pixel_is_a_stretch():
    half = Grid(150, 210, north_up(10.0, x=ORIGIN[0] + 5), UTM)
    assert relate(half, UTM_GRID) == Stretch(1.0, 0.0, 1.0, -0.5)


def test_south_up_and_non_square_pixels_are_stretches():
    flipped = Grid(150, 210, Affine(20.0, 0, ORIGIN[0], 0, 10.0, ORIGIN[1] - 1500), UTM)
    mapping = relate(flipped, UTM_GRID)
    assert mapping == Stretch(-1.0, 150.0, 0.5, 0.0)
    assert mapping.ratios == (1.0, 0.5)


def test_grids_turned_alike_need_no_warp():
    turned = Grid(50, 60, rotated(30), UTM)
    assert isinstance(relate(turned, turned.zoom(2.5)), Stretch)
    assert relate(turned, turned.crop(Window(3, 4, 5, 6))) == Shift(4, 3)


@pytest.mark.parametrize("degrees", [1, 45, 90, 200])
def test_rotation_is_followed_exactly(degrees):
    turned = Grid(50, 60, rotated(degrees, 7.0), UTM)
    mapping = relate(turned, UTM_GRID)
    assert isinstance(mapping, Warp)
    got = np.stack(mapping.centres(UTM_GRID.window))
    np.testing.assert_allclose(got, exact(turned, UTM_GRID, UTM_GRID.window), atol=1e-6)
    np.testing.assert_allclose(mapping.ratios, 10 / 7, rtol=1e-6)


@pytest.mark.parametrize("reference", [UTM_GRID, UTM_GRID.zoom(0.05), UTM_GRID.zoom(30), UTM_GRID.zoom(120)])
def test_positions_are_within_a_thousandth_of_a_pixel_of_proj(reference):
    for source, grid in ((GEOGRAPHIC, reference), (reference, GEOGRAPHIC)):
        window = Window(0, 0, min(grid.width, 300), min(grid.height, 300))
        got = np.stack(Warp(source, grid).centres(window))
        assert np.abs(got - exact(source, grid, window)).max() <= WARP_TOLERANCE_PX


def test_the_lattice_is_finer_where_the_projection_bends():
    coarse = Grid(200, 200, north_up(5000.0, x=0.0, y=9_000_000.0), UTM)
    source = Grid(2000, 4000, Affine(0.01, 0, -5, 0, -0.01, 85), "EPSG:4326")
    warp = Warp(source, coarse)
    assert warp.step < 16
    got, truth = np.stack(warp.centres(coarse.window)), exact(source, coarse, coarse.window)
    inside = (truth[0] > 0) & (truth[0] < 2000) & (truth[1] > 0) & (truth[1] < 4000)
    # The step is chosen at 81 probes, so between them the bound may be passed a little.
    assert np.abs(got - truth)[:, inside].max() <= 2 * WARP_TOLERANCE_PX


@settings(max_examples=25, deadline=None)
@given(st.integers(-40, 200), st.integers(-40, 200), st.integers(1, 70), st.integers(1, 70))
def test_a_window_of_positions_is_the_crop_of_all(left, top, width, height):
    warp = Warp(GEOGRAPHIC, UTM_GRID)
    wide = np.stack(warp.centres(Window(-50, -50, 350, 350)))
    part = np.stack(warp.centres(Window(left, top, width, height)))
    np.testing.assert_array_equal(part, wide[:, top + 50 : top + 50 + height, left + 50 : left + 50 + width])


def test_the_antimeridian_is_no_edge():
    reference = Grid(40, 400, Affine(1000, 0, 700_000, 0, -1000, 1_000_000), "EPSG:32660")
    world = Grid(1800, 3600, Affine(0.1, 0, -180, 0, -0.1, 90), "EPSG:4326")
    rows, cols = Warp(world, reference).centres(reference.window)
    lon = -180 + 0.1 * cols
    truth, _ = pyproj.Transformer.from_crs("EPSG:32660", "EPSG:4326", always_xy=True).transform(
        *reference.xy(rows=np.full(400, 20.5), cols=np.arange(400) + 0.5)
    )
    assert truth.min() < -179
    assert truth.max() > 179
    np.testing.assert_allclose(lon[20], truth, atol=2e-4)
    assert np.isfinite(rows).all()


def test_a_grid_beyond_180_degrees_is_the_same_ground():
    reference = Grid(30, 40, Affine(0.1, 0, 181, 0, -0.1, 10), "EPSG:4326")
    source = Grid(300, 400, Affine(1000, 0, 100_000, 0, -1000, 1_200_000), "EPSG:32601")
    assert meets(source, reference)
    assert meets(reference, source)


def test_ground_that_a_projection_does_not_show_is_nowhere():
    globe = "+proj=ortho +lat_0=0 +lon_0=0 +datum=WGS84"
    source = Grid(100, 100, Affine(128_000, 0, -6_400_000, 0, -128_000, 6_400_000), globe)
    world = Grid(90, 180, Affine(2, 0, -180, 0, -2, 90), "EPSG:4326")
    rows, cols = Warp(source, world).centres(world.window)
    lon = -180 + 2 * (np.arange(180) + 0.5)
    seen = np.isfinite(rows[45])
    assert seen[np.abs(lon) < 85].all()
    assert not seen[np.abs(lon) > 95].any()
    truth = exact(source, world, world.window)
    both = np.isfinite(rows) & np.isfinite(truth[0])
    assert np.abs(rows - truth[0])[both].max() < 0.01
    assert np.abs(cols - truth[1])[both].max() < 0.01


def test_grids_meet_where_they_share_ground():
    assert meets(GEOGRAPHIC, UTM_GRID)
    tiny = Grid(1, 1, Affine(1e-6, 0, 15.01, 0, -1e-6, 45.15), "EPSG:4326")
    assert meets(tiny, UTM_GRID)
    assert meets(UTM_GRID, tiny)


def test_grids_that_only_touch_do_not_meet():
    beside = Grid(150, 210, north_up(10.0, x=ORIGIN[0] + 2100), UTM)
    assert not meets(beside, UTM_GRID)
    elsewhere = Grid(9, 9, Affine(1e-3, 0, 120.0, 0, -1e-3, 45.2), "EPSG:4326")
    assert not meets(elsewhere, UTM_GRID)
