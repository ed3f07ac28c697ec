"""Grid: any invertible transform, positions that come back, windows that cover, metres that are true."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import rasterio.transform
import rasterio.windows
import shapely
from affine import Affine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from satseg.crs import parse_crs
from satseg.errors import CRSError, GridError
from satseg.grid import SNAP_PX, Grid, envelope, overlap, slices

EPS = np.finfo(float).eps
# rasterio 1.4 multiplies transforms with the sign that affine 3 deprecates
ORACLE_NOTICE = pytest.mark.filterwarnings("ignore:Use .@. matmul:PendingDeprecationWarning")

sizes = st.integers(1, 400)
lengths = st.floats(0.01, 1000.0)
places = st.floats(-1e7, 1e7)
whole = st.integers(-500, 500)


def affine(*, length: float, ratio: float, turn: float, shear: float, x: float, y: float) -> Affine:
    cos, sin = math.cos(turn), math.sin(turn)
    across = length * ratio
    return Affine(
        cos * length, (cos * shear - sin) * across, x, sin * length, (sin * shear + cos) * across, y
    )


transforms = st.builds(
    affine,
    length=lengths,
    ratio=st.floats(0.2, 5.0) | st.floats(-5.0, -0.2),
    turn=st.sampled_from([0.0, 0.0, math.pi / 2, math.pi]) | st.floats(0.0, 2 * math.pi),
    shear=st.just(0.0) | st.floats(-1.0, 1.0),
    x=places,
    y=places,
)
straight = st.builds(
    lambda a, e, x, y: Affine(a, 0.0, x, 0.0, e, y),
    lengths | lengths.map(lambda v: -v),
    lengths | lengths.map(lambda v: -v),
    places,
    places,
)
grids = st.builds(Grid, sizes, sizes, transforms)
straight_grids = st.builds(Grid, sizes, sizes, straight)
windows = st.builds(Window, whole, whole, sizes, sizes)


def noise_px(grid: Grid) -> float:
    """Error of a pixel position that float64 world coordinates of this size cannot avoid."""
    far = np.abs([*grid.bounds, grid.transform.c, grid.transform.f]).max()
    t = grid.transform
    shortest = abs(t.determinant) / math.hypot(t.a, t.b, t.d, t.e)
    return 16 * EPS * (far / shortest + max(grid.shape) + 1000)


# --- positions


@settings(max_examples=100, deadline=None)
@given(grids, st.lists(st.tuples(st.floats(-500, 500), st.floats(-500, 500)), min_size=1, max_size=5))
def test_positions_come_back_under_any_transform(grid, positions):
    rows, cols = np.array(positions).T
    xs, ys = grid.xy(rows=rows, cols=cols)
    back_rows, back_cols = grid.rowcol(xs=xs, ys=ys)
    assert np.abs(back_rows - rows).max() <= noise_px(grid)
    assert np.abs(back_cols - cols).max() <= noise_px(grid)


@ORACLE_NOTICE
@settings(max_examples=50, deadline=None)
@given(grids)
def test_positions_agree_with_rasterio(grid):
    rows, cols = [0, grid.height - 1, 3], [0, 2, grid.width - 1]
    xs, ys = grid.xy(rows=np.array(rows) + 0.5, cols=np.array(cols) + 0.5)
    oracle_x, oracle_y = rasterio.transform.xy(grid.transform, rows, cols)
    slack = 16 * EPS * np.abs(grid.bounds).max()
    assert xs == pytest.approx(np.asarray(oracle_x), abs=slack)
    assert ys == pytest.approx(np.asarray(oracle_y), abs=slack)


def test_no_positions_are_no_positions():
    rows, cols = Grid(3, 5, Affine.identity()).rowcol(xs=[], ys=[])
    assert rows.shape == cols.shape == (0,)


def test_small_pixels_far_from_the_origin_keep_their_digits():
    grid = Grid(7, 9, Affine(0.01, 0.0, 20_037_508.0, 0.0, -0.01, 20_037_508.0))
    rows, cols = grid.rowcol(xs=[20_037_508.05], ys=[20_037_507.97])
    assert cols[0] == pytest.approx(5.0, abs=SNAP_PX)
    assert rows[0] == pytest.approx(3.0, abs=SNAP_PX)


# --- extents


@settings(max_examples=50, deadline=None)
@given(sizes, sizes, lengths, lengths, places, places)
def test_bounds_of_a_north_up_grid_are_rasterios(height, width, a, e, x, y):
    grid = Grid(height, width, Affine(a, 0.0, x, 0.0, -e, y))
    assert grid.bounds == rasterio.transform.array_bounds(height, width, grid.transform)


@settings(max_examples=50, deadline=None)
@given(grids)
def test_bounds_are_the_envelope_of_the_outline(grid):
    # Widths, not positions: the outline adds its parts in another order.
    slack = 16 * EPS * np.abs(grid.bounds).max()
    assert grid.footprint().bounds == pytest.approx(grid.bounds, abs=slack)
    assert envelope(grid.transform, grid.window) == grid.bounds


@settings(max_examples=50, deadline=None)
@given(grids)
def test_outline_has_the_area_of_the_pixels(grid):
    area = grid.height * grid.width * grid.pixel_area_m2()
    outline = grid.footprint()
    assert outline.is_valid
    reach = np.abs(grid.bounds).max() * outline.length * 16 * EPS
    assert outline.area == pytest.approx(area, rel=1e-9, abs=reach)


@settings(max_examples=50, deadline=None)
@given(sizes, sizes, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1.0, 1e6), st.floats(1.0, 1e6))
def test_a_grid_from_bounds_fills_them(height, width, left, bottom, across, up):
    bounds = (left, bottom, left + across, bottom + up)
    grid = Grid.from_bounds(bounds, height=height, width=width, crs=32633)
    assert grid.shape == (height, width)
    assert grid.bounds == pytest.approx(bounds, rel=1e-12, abs=1e-8)
    assert grid.transform.e < 0 < grid.transform.a
    assert grid.is_rectilinear


def test_resolution_is_the_length_of_the_two_steps():
    grid = Grid(3, 4, affine(length=2.0, ratio=1.5, turn=0.7, shear=0.0, x=0, y=0))
    assert grid.resolution == pytest.approx((2.0, 3.0))
    assert not grid.is_rectilinear
    assert not Grid(3, 4, Affine(0.0, 2.0, 0.0, 2.0, 0.0, 0.0)).is_rectilinear
    assert Grid(3, 4, Affine(2.0, 0.0, 0.0, 0.0, 3.0, 0.0)).is_rectilinear


# --- crops


@settings(max_examples=80, deadline=None)
@given(grids, windows, st.floats(0, 300), st.floats(0, 300))
def test_a_crop_is_the_same_ground_at_an_offset_even_outside(grid, window, row, col):
    part = grid.crop(window)
    assert part.shape == (window.height, window.width)
    assert part.crs == grid.crs
    here = np.ravel(part.xy(rows=[row], cols=[col]))
    there = np.ravel(grid.xy(rows=[row + window.row_off], cols=[col + window.col_off]))
    far = np.abs([*part.bounds, *grid.bounds, *here]).max()
    assert here == pytest.approx(there, abs=16 * EPS * far)


@ORACLE_NOTICE
@settings(max_examples=50, deadline=None)
@given(grids, windows)
def test_a_crops_transform_is_rasterios(grid, window):
    oracle = rasterio.windows.transform(window, grid.transform)
    far = np.abs([*grid.bounds, oracle.c, oracle.f]).max()
    assert tuple(grid.crop(window).transform[:6]) == pytest.approx(
        tuple(oracle[:6]), rel=1e-12, abs=8 * EPS * far
    )


@settings(max_examples=30, deadline=None)
@given(grids)
def test_the_whole_crop_is_the_grid(grid):
    assert grid.crop(grid.window) == grid


def test_an_empty_crop_is_refused():
    with pytest.raises(GridError, match="empty"):
        Grid(5, 7, Affine.identity()).crop(Window(0, 0, 0, 3))


# --- windows of bounds


@settings(max_examples=100, deadline=None)
@given(grids, st.tuples(*[st.floats(-0.3, 1.3)] * 4))
def test_the_window_covers_the_bounds_and_no_row_or_column_more(grid, ends):
    row0, row1 = sorted((ends[0] * grid.height, ends[1] * grid.height))
    col0, col1 = sorted((ends[2] * grid.width, ends[3] * grid.width))
    xs, ys = grid.xy(rows=[row0, row0, row1, row1], cols=[col0, col1, col0, col1])
    bounds = (xs.min(), ys.min(), xs.max(), ys.max())
    assume(bounds[0] < bounds[2] and bounds[1] < bounds[3])
    rows, cols = grid.rowcol(xs=[*bounds[::2]] * 2, ys=np.repeat(bounds[1::2], 2))
    noise = SNAP_PX + noise_px(grid)
    low, high = np.array([rows.min(), cols.min()]), np.array([rows.max(), cols.max()])
    size = np.array(grid.shape)
    assume((high - low > 4 * noise).all())
    if ((high <= 0) | (low >= size)).any():
        with pytest.raises(GridError, match="do not touch"):
            grid.window_of(bounds)
        return
    assume(((high > noise) & (low < size - noise)).all())
    window = grid.window_of(bounds)
    first = np.array([window.row_off, window.col_off])
    last = first + np.array([window.height, window.width])
    assert (first >= 0).all()
    assert (last <= size).all()
    assert (first <= np.maximum(low, 0) + noise).all()
    assert (last >= np.minimum(high, size) - noise).all()
    assert (first + 1 > low - noise).all()
    assert (last - 1 < high + noise).all()


@settings(max_examples=80, deadline=None)
@given(straight_grids, st.data())
def test_the_bounds_of_a_window_give_that_window(grid, data):
    top = data.draw(st.integers(0, grid.height - 1))
    left = data.draw(st.integers(0, grid.width - 1))
    height = data.draw(st.integers(1, grid.height - top))
    width = data.draw(st.integers(1, grid.width - left))
    window = Window(left, top, width, height)
    assume(noise_px(grid) < SNAP_PX)
    assert grid.window_of(grid.crop(window).bounds) == window
    assert grid.window_of(grid.bounds) == grid.window


def test_windows_are_whole_numbers():
    window = Grid(50, 70, Affine(0.5, 0.0, 10.0, 0.0, -0.5, 90.0)).window_of((11.1, 70.1, 12.9, 72.3))
    assert all(isinstance(v, int) for v in window.flatten())
    assert window == Window(2, 35, 4, 5)


@pytest.mark.parametrize(
    "bounds",
    [
        (5.0, 1.0, 5.0, 2.0),
        (5.0, 2.0, 6.0, 2.0),
        (6.0, 1.0, 5.0, 2.0),
        (math.nan, 1.0, 5.0, 2.0),
        (0.0, 1.0, math.inf, 2.0),
        (-math.inf, -math.inf, math.inf, math.inf),
    ],
)
def test_empty_and_endless_bounds_are_refused(bounds):
    for call in (
        Grid(5, 7, Affine.identity()).window_of,
        lambda box: Grid.from_bounds(box, height=3, width=2),
    ):
        with pytest.raises(GridError, match="left bottom right top") as caught:
            call(bounds)
        assert caught.value.code == "E-GRID-003"


@pytest.mark.parametrize("bounds", [(7.0, 0.0, 9.0, 5.0), (-2.0, 0.0, 0.0, 5.0), (0.0, 5.0, 7.0, 6.0)])
def test_bounds_that_only_touch_the_edge_are_off_the_grid(bounds):
    with pytest.raises(GridError) as caught:
        Grid(5, 7, Affine.identity()).window_of(bounds)
    assert caught.value.code == "E-GRID-004"
    assert "(0.0, 0.0, 7.0, 5.0)" in str(caught.value)


def test_bounds_with_a_crs_mean_nothing_on_a_grid_without():
    with pytest.raises(CRSError, match="EPSG:4326") as caught:
        Grid(5, 7, Affine.identity()).window_of((0, 0, 1, 1), 4326)
    assert caught.value.code == "E-CRS-001"
    assert caught.value.hint


# --- pixel sizes


@settings(max_examples=60, deadline=None)
@given(grids, st.floats(0.05, 50.0))
def test_zoom_keeps_the_corner_and_scales_the_pixel(grid, factor):
    coarse = grid.zoom(factor)
    assert coarse.xy(rows=[0.0], cols=[0.0]) == grid.xy(rows=[0.0], cols=[0.0])
    assert coarse.resolution == pytest.approx(tuple(factor * r for r in grid.resolution), rel=1e-12)
    for new, old in zip(coarse.shape, grid.shape, strict=True):
        assert new >= 1
        assert abs(new * factor - old) < factor


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_zoom_that_is_no_positive_number_is_refused(factor):
    grid = Grid(5, 7, Affine.identity(), parse_crs(32633))
    with pytest.raises(GridError) as caught:
        grid.zoom(factor)
    assert caught.value.code == "E-GRID-005"
    with pytest.raises(GridError) as caught:
        grid.at_gsd(factor)
    assert caught.value.code == "E-GRID-006"


# --- equality


@settings(max_examples=60, deadline=None)
@given(grids, st.sampled_from([(0.5, 0.0), (0.0, 0.5), (-0.01, 0.0)]))
def test_a_grid_matches_itself_and_not_half_a_pixel_aside(grid, shift):
    t = grid.transform
    row, col = shift
    aside = Affine(t.a, t.b, t.c + t.a * col + t.b * row, t.d, t.e, t.f + t.d * col + t.e * row)
    assume(noise_px(grid) < 1e-5)
    assert grid.matches(grid)
    assert not grid.matches(dataclasses.replace(grid, transform=aside))
    assert not grid.matches(dataclasses.replace(grid, height=grid.height + 1))


def test_pixel_drift_at_the_far_corner_is_a_mismatch():
    grid = Grid(5, 20_000, Affine(1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    assert not grid.matches(Grid(5, 20_000, Affine(1.0 + 1e-7, 0.0, 0.0, 0.0, -1.0, 0.0)))


@settings(max_examples=25, deadline=None)
@given(grids, st.sampled_from([None, 32633, 4326, 'LOCAL_CS["plan",UNIT["metre",1]]']))
def test_grids_travel_between_processes(grid, crs):
    placed = dataclasses.replace(grid, crs=parse_crs(crs))
    assert pickle.loads(pickle.dumps(placed)) == placed


def test_a_grid_cannot_be_changed():
    grid = Grid(5, 7, Affine.identity())
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.height = 6
    assert grid.shape == (5, 7)
    assert grid.window == Window(0, 0, 7, 5)


# --- refusals


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (-1, 5)])
def test_empty_grids_are_refused(shape):
    with pytest.raises(GridError) as caught:
        Grid(*shape, Affine.identity())
    assert caught.value.code == "E-GRID-001"
    with pytest.raises(GridError) as caught:
        Grid.from_bounds((0, 0, 1, 1), height=shape[0], width=shape[1])
    assert caught.value.code == "E-GRID-001"


@pytest.mark.parametrize(
    "numbers",
    [
        (0, 0, 0, 0, 0, 0),
        (1, 1, 0, 1, 1, 0),
        (1, 0, 0, 0, 0, 0),
        (math.nan, 0, 0, 0, 1, 0),
        (1, 0, math.inf, 0, 1, 0),
        (1e200, 0, 0, 0, 1e200, 0),
    ],
)
def test_transforms_without_area_are_refused(numbers):
    with pytest.raises(GridError) as caught:
        Grid(5, 7, Affine(*map(float, numbers)))
    assert caught.value.code == "E-GRID-002"


# --- windows among themselves


@settings(max_examples=80, deadline=None)
@given(windows, windows)
def test_overlap_is_what_geometry_says(first, second):
    def box(w: Window) -> shapely.Polygon:
        return shapely.box(w.col_off, w.row_off, w.col_off + w.width, w.row_off + w.height)

    common = overlap(first, second)
    shared = box(first).intersection(box(second))
    assert (common is None) == (shared.area == 0)
    assert common == overlap(second, first)
    if common is not None:
        assert box(common).equals(shared)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.data())
def test_slices_cut_the_window_out_of_an_array(height, width, data):
    within = Window(data.draw(whole), data.draw(whole), width, height)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    part = Window(within.col_off + left, within.row_off + top, width - left, height - top)
    rows, cols = np.mgrid[:height, :width]
    cut = slices(part, within)
    assert rows[cut].shape == (part.height, part.width)
    assert (rows[cut][0, 0], cols[cut][0, 0]) == (top, left)
