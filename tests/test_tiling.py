"""Tiles partition the area exactly, and a pixel's tile does not depend on the area asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

from satseg.errors import GridError, UsageError
from satseg.grid import Grid, overlap, slices
from satseg.imagery.tiling import plan_tiles
from tests.factories import north_up


def grid_of(height: int, width: int) -> Grid:
    return Grid(height, width, north_up())


@st.composite
def plans(draw):
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    tile, halo = draw(st.integers(1, 40)), draw(st.integers(0, 20))
    align = draw(st.sampled_from([1, 2, 3, 8]))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    size = draw(st.integers(1, width - left)), draw(st.integers(1, height - top))
    window = Window(left, top, *size)
    return grid_of(height, width), tile, halo, align, window


@given(plans())
def test_keeps_partition_the_area_exactly(case):
    grid, tile, halo, align, window = case
    plan = plan_tiles(grid, tile=tile, halo=halo, window=window, align=align)
    count = np.zeros(grid.shape, int)
    for one in plan:
        count[slices(one.keep, grid.window)] += 1
    wanted = np.zeros(grid.shape, int)
    wanted[slices(window, grid.window)] = 1
    np.testing.assert_array_equal(count, wanted)
    assert len(plan) == len(list(plan))


@given(plans())
def test_reads_are_cells_and_halo_of_one_size_anchored_at_the_origin(case):
    grid, tile, halo, align, window = case
    plan = plan_tiles(grid, tile=tile, halo=halo, window=window, align=align)
    assert plan.tile % align == 0
    assert plan.halo % align == 0
    assert 0 <= plan.tile - tile < align
    assert 0 <= plan.halo - halo < align
    for one in plan:
        assert (one.read.height, one.read.width) == plan.read_size
        assert one.read.row_off + plan.halo == one.row * plan.tile
        assert one.read.col_off + plan.halo == one.col * plan.tile
        cell = Window(one.col * plan.tile, one.row * plan.tile, plan.tile, plan.tile)
        assert one.keep == overlap(cell, window)


@given(plans())
def test_the_area_does_not_move_a_pixel_to_another_read(case):
    grid, tile, halo, align, window = case
    whole = {(t.row, t.col): t.read for t in plan_tiles(grid, tile=tile, halo=halo, align=align)}
    part = plan_tiles(grid, tile=tile, halo=halo, align=align, window=window)
    assert all(whole[t.row, t.col] == t.read for t in part)


@given(plans())
def test_row_bands_hold_their_tiles(case):
    grid, tile, halo, align, window = case
    plan = plan_tiles(grid, tile=tile, halo=halo, window=window, align=align)
    bands = list(plan.rows)
    assert [band.row for band in bands] == list(plan.row_range)
    assert sum(int(band.keep.height) for band in bands) == window.height
    for band in bands:
        assert (band.keep.col_off, band.keep.width) == (window.col_off, window.width)
        assert sum(int(t.keep.width) for t in band.tiles) == window.width
        assert all(overlap(t.read, band.read) == t.read for t in band.tiles)
        assert band == plan.row(band.row)


def test_the_known_scene_has_the_known_number_of_tiles():
    assert len(plan_tiles(grid_of(3349, 3396), tile=80, halo=16)) == 1806


def test_a_window_is_clipped_to_the_grid():
    plan = plan_tiles(grid_of(10, 12), tile=8, halo=2, window=Window(-5, 4, 100, 100))
    assert plan.window == Window(0, 4, 12, 6)


def test_a_million_pixels_a_side_plan_at_once():
    plan = plan_tiles(grid_of(10**6, 10**6), tile=512, halo=64)
    assert len(plan) == 1954**2
    assert plan.row(1953).tiles[-1].keep == Window(1953 * 512, 1953 * 512, 64, 64)


@pytest.mark.parametrize(
    "sizes", [{"tile": 0, "halo": 1}, {"tile": 8, "halo": -1}, {"tile": 8, "halo": 0, "align": 0}]
)
def test_senseless_sizes_are_refused(sizes):
    with pytest.raises(UsageError):
        plan_tiles(grid_of(5, 5), **sizes)


def test_an_area_off_the_grid_is_refused():
    with pytest.raises(GridError, match="does not touch") as caught:
        plan_tiles(grid_of(5, 7), tile=4, halo=0, window=Window(7, 0, 3, 3))
    assert caught.value.code == "E-GRID-112"


def test_a_row_off_the_area_is_refused():
    plan = plan_tiles(grid_of(20, 20), tile=5, halo=0, window=Window(0, 0, 20, 5))
    with pytest.raises(GridError) as caught:
        plan.row(1)
    assert caught.value.code == "E-GRID-111"


@given(plans(), st.integers(1, 40), st.integers(0, 3))
def test_tight_reads_hold_the_halo_where_the_grid_goes_on_and_end_where_it_ends(case, tile_width, beyond):
    grid, tile, halo, align, window = case
    plan = plan_tiles(grid, tile=tile, halo=halo, window=window, align=align, tile_width=tile_width)
    beyond *= align
    pixels = 0
    for one in map(lambda tile: plan.tight(tile, beyond=beyond), plan):
        read, keep = one.read, one.keep
        pixels += read.height * read.width
        axes = (
            (read.row_off, read.height, keep.row_off, keep.height, grid.height),
            (read.col_off, read.width, keep.col_off, keep.width, grid.width),
        )
        for start, length, first, kept, size in axes:
            end = -(-size // align) * align + beyond
            assert start % align == length % align == 0
            assert start <= max(first - plan.halo, -beyond)
            assert start + length >= min(first + kept + plan.halo, end)
            assert -beyond <= start < start + length <= end
            assert length < kept + 2 * plan.halo + 2 * align
    assert pixels == pytest.approx(plan.work(beyond=beyond) * window.height * window.width)


def test_cells_may_be_wider_than_high():
    plan = plan_tiles(grid_of(100, 300), tile=32, halo=8, align=8, tile_width=96)
    assert (plan.tile, plan.tile_width, plan.read_size, len(plan)) == (32, 96, (48, 112), 4 * 4)
