"""Objects cut apart: by what lies near them, and never by how the rows came."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from satseg.grid import Grid
from satseg.imagery.cores import core_layer, median_widths, object_classes
from satseg.imagery.labels import LabelLayer
from satseg.vector.layers import FIRST, INVALID, LAST, OUTSIDE
from satseg.vector.separate import LEAST_CORE_PX, MARGIN, SLAB, Separator


def separated(codes: np.ndarray, *cuts: int, pairs=((0, 1),), planes=1, least_px=None) -> np.ndarray:
    """All rows of `codes`, handed over in parts that end at `cuts`."""
    separator = Separator(pairs, planes=planes, least_px=least_px)
    ends = [0, *sorted(cuts), codes.shape[1]]
    parts = [separator.feed(codes[:, top:bottom]) for top, bottom in pairwise(ends)]
    rest = separator.finish()
    return np.concatenate([*parts, *([] if rest is None else [rest])], axis=1)


def roofs(height: int, width: int, side: int) -> np.ndarray:
    """Codes of roofs that touch all over, and of their cores."""
    rows, cols = np.mgrid[:height, :width]
    inside = (rows % side >= 2) & (rows % side < side - 2) & (cols % side >= 2) & (cols % side < side - 2)
    edge = np.minimum(rows % side, cols % side) == 0
    mask = np.where(edge, FIRST, LAST).astype(np.uint8)
    return np.stack([mask, np.where(inside, LAST, OUTSIDE).astype(np.uint8)])


def parts(mask: np.ndarray) -> int:
    return int(ndimage.label((mask > OUTSIDE) & (mask < INVALID))[1])


@pytest.mark.parametrize(("height", "width", "side"), [(40, 60, 10), (530, 45, 15), (9, 27, 9)])
def test_touching_roofs_come_apart_and_lose_one_pixel_where_they_met(height, width, side):
    codes = roofs(height, width, side)
    found = separated(codes)
    assert parts(codes[0]) == 1
    assert parts(found[0]) == -(-height // side) * -(-width // side)
    changed = found[0] != codes[0]
    assert (found[0][changed] == OUTSIDE).all()
    assert changed.mean() <= 2 / side


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_how_rows_are_handed_over_changes_nothing(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    height = data.draw(st.integers(1, 2 * SLAB + MARGIN + 20))
    smooth = ndimage.uniform_filter(rng.random((2, height, 23)), (0, 5, 5))
    codes = np.where(smooth > 0.47, (smooth * 250).astype(np.uint8), OUTSIDE).astype(np.uint8)
    codes[:, rng.random((height, 23)) < 0.02] = INVALID
    cuts = data.draw(st.lists(st.integers(0, height), max_size=5))
    least = [data.draw(st.sampled_from([0, 30]))]
    np.testing.assert_array_equal(separated(codes, *cuts, least_px=least), separated(codes, least_px=least))


def test_only_the_mask_is_cut_and_only_where_two_basins_meet():
    rng = np.random.default_rng(3)
    smooth = ndimage.uniform_filter(rng.random((2, 300, 80)), (0, 7, 7))
    mask = np.where(smooth[0] > 0.48, 100, OUTSIDE).astype(np.uint8)
    cores = np.where(smooth[1] > 0.53, LAST, OUTSIDE).astype(np.uint8)
    found = separated(np.stack([mask, cores]))[0]
    assert set(np.unique(found[found != mask])) <= {OUTSIDE}
    assert parts(found) > parts(mask)
    labels, count = ndimage.label((cores > 0) & (mask > 0))
    sizes = np.bincount(labels.ravel())[1:]
    pieces, _ = ndimage.label(found > 0)
    kept = [set(np.unique(pieces[labels == k + 1])) - {0} for k in range(count) if sizes[k] >= LEAST_CORE_PX]
    assert len({piece for one in kept for piece in one}) >= len(kept)  # no piece holds two cores


def test_one_core_no_core_and_specks_cut_nothing():
    codes = roofs(30, 30, 30)
    np.testing.assert_array_equal(separated(codes)[0], codes[0])
    codes[1] = OUTSIDE
    np.testing.assert_array_equal(separated(codes)[0], codes[0])
    codes[1, 5:7, 5:8], codes[1, 20:22, 20:23] = LAST, LAST  # six pixels each
    np.testing.assert_array_equal(separated(codes)[0], codes[0])


def test_cores_smaller_than_the_least_are_no_seeds():
    codes = roofs(60, 60, 15)  # cores of 11 x 11 pixels
    for least, count in ((0, 16), (121, 16), (122, 1), (1e30, 1)):
        assert parts(separated(codes, least_px=[least])[0]) == count


@pytest.mark.parametrize("top", [0, 100, 150, 158, 160, 161, 170, 340])
def test_where_slabs_end_cores_are_not_taken_for_small(top):
    codes = np.zeros((2, 480, 80), np.uint8)
    codes[0, top : top + 140, 10:62] = LAST
    for col in (10, 36):
        codes[1, top + 3 : top + 137, col + 3 : col + 23] = LAST  # 2680 pixels
    assert parts(separated(codes, least_px=[2680])[0]) == 2


def test_planes_without_cores_pass_as_they_are():
    codes = np.concatenate([roofs(350, 40, 10), roofs(350, 40, 10)[:1]])[[0, 2, 1]]
    found = separated(codes, 7, 200, pairs=((1, 2),), planes=2)
    np.testing.assert_array_equal(found[0], codes[0])
    assert parts(found[1]) == 35 * 4
    np.testing.assert_array_equal(separated(codes, 100, pairs=(), planes=2), codes[:2])


GRID = Grid(height=200, width=300, transform=Affine(0.5, 0, 1000, 0, -0.5, 2000), crs="EPSG:32633")


def layer(*polygons) -> LabelLayer:
    return LabelLayer(("thing",), (np.array(polygons, dtype=object),), GRID.crs)


def test_cores_lie_inside_their_objects_and_apart_where_objects_touch():
    houses = [shapely.box(1010 + 8 * i, 1950, 1018 + 8 * i, 1960) for i in range(10)]
    labels = layer(*houses, shapely.box(1100, 1950, 1101.5, 1951.5))
    cores = core_layer(labels, GRID, ["thing"])
    burnt, whole = cores.planes(GRID)[0], labels.planes(GRID)[0]
    assert (burnt <= whole).all()
    assert parts(whole) == 2
    assert parts(burnt) == 11  # the smallest, 3 x 3 pixels, too
    assert shapely.area(cores.geometries[0][0]) == pytest.approx((8 - 3) * (10 - 3))  # 3 pixels of 0.5 m each side


def test_cores_of_a_rotated_or_unplaced_grid_are_drawn_in_by_pixels():
    turned = Grid(height=90, width=120, transform=Affine.rotation(30) @ Affine.scale(2, -2), crs=None)
    outline = shapely.transform(shapely.box(20, 20, 60, 50), lambda xy: np.column_stack(turned.transform * xy.T))
    labels = LabelLayer(("a",), (np.array([outline], dtype=object),), None)
    (core,) = core_layer(labels, turned, ["a"]).geometries[0]
    assert core.area == pytest.approx(34 * 24 * 4)


def test_compact_objects_are_told_from_roads_specks_and_ground():
    houses = [shapely.box(1000 + 9 * i, 1950, 1008 + 9 * i, 1960) for i in range(12)]
    roads = [shapely.box(1000, 1990 - 4 * i, 1150, 1992 - 4 * i) for i in range(12)]
    specks = [shapely.box(1000 + 3 * i, 1930, 1001 + 3 * i, 1931) for i in range(12)]
    fields = [shapely.box(1000 + 200 * i, 1900, 1190 + 200 * i, 2090) for i in range(12)]
    for polygons, expected in ((houses, ("thing",)), (roads, ()), (specks, ()), (fields, ()), (houses[:9], ())):
        assert object_classes(median_widths([(GRID, layer(*polygons))])) == expected
