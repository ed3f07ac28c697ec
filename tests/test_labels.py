"""Labels to masks: GDAL's pixel-centre rule, one plane per class, any window alike."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from satseg.errors import CRSError, LabelError, SatsegError, UsageError
from satseg.grid import Grid, slices
from satseg.imagery.labels import LabelLayer, rasterize, rasterize_file
from satseg.imagery.writer import open_mask

PIXELS = Grid(40, 57, Affine.identity())
UTM = Grid(40, 57, Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000), 32633)
ROTATED = Grid(40, 57, UTM.transform * Affine.rotation(30), 32633)
SOUTH_UP = Grid(40, 57, Affine(0.5, 0, 400_000, 0, 0.7, 5_000_000), 32633)


def labels(geometries: list[Any], names: list[Any] | None = None, crs: Any = None) -> geopandas.GeoDataFrame:
    columns = {} if names is None else {"class_name": names}
    return geopandas.GeoDataFrame(columns, geometry=geometries, crs=crs)


def scattered(grid: Grid, *, count: int = 12, seed: int = 0, names: str = "ab") -> geopandas.GeoDataFrame:
    """Random triangles and quadrangles on and around `grid`."""
    rng = np.random.default_rng(seed)
    shapes = []
    for _ in range(count):
        middle = rng.random(2) * (grid.height + 10, grid.width + 10) - 5
        corners = middle + rng.normal(scale=6, size=(rng.integers(3, 5), 2))
        xs, ys = grid.xy(rows=corners[:, 0], cols=corners[:, 1])
        shapes.append(shapely.convex_hull(shapely.MultiPoint(np.column_stack([xs, ys]))))
    return labels(shapes, list(rng.choice(list(names), count)), grid.crs)


def oracle(table: geopandas.GeoDataFrame, grid: Grid, name: str, **options: Any) -> np.ndarray:
    shapes = table.geometry[table.class_name == name]
    if not len(shapes):
        return np.zeros(grid.shape, np.uint8)
    return rasterio.features.rasterize(
        shapes, out_shape=grid.shape, transform=grid.transform, dtype="uint8", **options
    )


def code_of(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SatsegError) as caught:
        call(*args, **kwargs)
    return caught.value.code


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), touched=st.booleans(), which=st.integers(0, 3))
def test_planes_equal_those_of_rasterio(seed: int, touched: bool, which: int) -> None:
    grid = (PIXELS, UTM, ROTATED, SOUTH_UP)[which]
    table = scattered(grid, seed=seed)
    burnt = rasterize(table, like=grid, classes=["a", "b"], all_touched=touched)
    assert burnt.names == ("a", "b")
    for name, plane in zip("ab", burnt.data, strict=True):
        np.testing.assert_array_equal(plane, oracle(table, grid, name, all_touched=touched))


def test_box_of_ten_by_twenty_pixels_burns_two_hundred() -> None:
    burnt = rasterize(labels([shapely.box(10, 5, 20, 25)]), like=PIXELS)
    assert burnt.names == ("feature",)
    assert burnt.data.dtype == np.uint8
    assert burnt.data.sum() == 200


def test_overlapping_classes_keep_their_planes() -> None:
    table = labels([shapely.box(0, 0, 10, 10), shapely.box(5, 5, 15, 15)], ["a", "b"])
    burnt = rasterize(table, like=PIXELS, classes=["b", "a", "absent"])
    assert burnt.names == ("b", "a", "absent")
    assert [int(plane.sum()) for plane in burnt.data] == [100, 100, 0]
    assert (burnt.data[0] & burnt.data[1]).sum() == 25


def test_holes_stay_open_and_overlapping_parts_are_one() -> None:
    ring = shapely.difference(shapely.box(0, 0, 20, 20), shapely.box(5, 5, 15, 15))
    both = shapely.MultiPolygon([shapely.box(30, 0, 32, 2), shapely.box(31, 0, 33, 2)])
    assert rasterize(labels([ring]), like=PIXELS).data.sum() == 300
    assert rasterize(labels([both]), like=PIXELS).data.sum() == 6


def test_rows_without_geometry_or_class_burn_nothing() -> None:
    shapes = [None, shapely.Polygon(), shapely.box(0, 0, 2, 2), shapely.box(0, 0, 9, 9)]
    table = labels(shapes, ["a", "a", "a", None])
    burnt = rasterize(table, like=PIXELS)
    assert burnt.names == ("a",)
    assert burnt.data.sum() == 4
    assert rasterize(table.iloc[:2], like=PIXELS, classes=["a"]).data.sum() == 0
    assert rasterize(table.iloc[:0], like=PIXELS).names == ("feature",)


@pytest.mark.parametrize("crs", [4326, 3857, 32634, 2154])
def test_labels_in_another_crs_burn_the_same_pixels(crs: int) -> None:
    table = scattered(UTM, seed=3)
    here = rasterize(table, like=UTM, classes=["a", "b"]).data
    there = rasterize(table.to_crs(crs), like=UTM, classes=["a", "b"]).data
    assert np.count_nonzero(here != there) <= 2  # a centre within a nanometre of an edge may fall either side
    assert here.any()


def test_labels_beyond_the_reach_of_the_grids_crs_burn_nothing() -> None:
    world = labels([shapely.box(-180, -90, -100, 90), shapely.box(14, 45, 16, 46)], ["a", "a"], 4326)
    assert rasterize(world, like=UTM).data.shape == (1, *UTM.shape)


def test_labels_and_grid_must_both_have_a_crs_or_neither() -> None:
    assert code_of(rasterize, scattered(PIXELS), like=UTM) == "E-CRS-201"
    assert code_of(rasterize, scattered(UTM), like=PIXELS) == "E-CRS-201"
    with pytest.raises(CRSError, match="none"):
        LabelLayer.build(scattered(PIXELS), UTM, ["a", "b"])


def test_lines_and_points_alone_are_refused_and_among_polygons_left_out(caplog: Any) -> None:
    line, point = shapely.LineString([(0, 0), (9, 9)]), shapely.Point(3, 3)
    assert code_of(rasterize, labels([line, point]), like=PIXELS) == "E-LAB-204"
    with caplog.at_level(logging.WARNING):
        assert rasterize(labels([line, point, shapely.box(0, 0, 2, 2)]), like=PIXELS).data.sum() == 4
    assert "2 labels that are not polygons" in caplog.text


def test_classes_come_from_any_column_and_numbers_are_their_digits() -> None:
    table = labels([shapely.box(0, 0, 1, 1), shapely.box(1, 0, 3, 1), shapely.box(5, 5, 9, 9)])
    table["kind"] = [2, 1.0, np.nan]
    burnt = rasterize(table, like=PIXELS, field="kind")
    assert burnt.names == ("1", "2")
    assert [int(plane.sum()) for plane in burnt.data] == [2, 1]


def test_missing_class_column_is_refused_when_it_would_be_a_guess() -> None:
    table = labels([shapely.box(0, 0, 2, 2)])
    assert rasterize(table, like=PIXELS, classes=["house"]).names == ("house",)
    assert code_of(rasterize, table, like=PIXELS, classes=["a", "b"]) == "E-LAB-203"
    assert code_of(rasterize, table, like=PIXELS, field="kind") == "E-LAB-203"
    assert code_of(rasterize, scattered(PIXELS), like=PIXELS, classes=["a", "a"]) == "E-USE-212"


def test_file_holds_what_rasterize_returns(tmp_path: Path) -> None:
    grid = Grid(1100, 23, UTM.transform, 32633)
    table = scattered(grid, count=60)
    rasterize_file(table, tmp_path / "m.tif", like=grid, classes=["a", "b"])
    with open_mask(tmp_path / "m.tif") as mask:
        back = mask.read()
    whole = rasterize(table, like=grid, classes=["a", "b"])
    assert back.names == whole.names
    assert back.grid.matches(grid)
    np.testing.assert_array_equal(back.data, whole.data)


windows = st.builds(Window, st.integers(-9, 50), st.integers(-9, 35), st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=20, deadline=None)
@given(window=windows, seed=st.integers(0, 50), rotated=st.booleans())
def test_every_window_burns_as_its_part_of_the_whole(window: Window, seed: int, rotated: bool) -> None:
    grid = ROTATED if rotated else UTM
    table = scattered(grid, seed=seed, names="abi")
    table["class_name"] = table.class_name.replace("i", "ignore")
    area = shapely.box(*grid.crop(Window(5, 5, 40, 30)).bounds)
    layer = LabelLayer.build(table, grid, ["a", "b"], aoi=area)
    around = Window(-10, -10, 110, 100)
    targets, labelled = layer.burn(grid.crop(window))
    all_targets, all_labelled = layer.burn(grid.crop(around))
    rows, cols = slices(window, around)
    np.testing.assert_array_equal(targets, all_targets[:, rows, cols])
    np.testing.assert_array_equal(labelled, all_labelled[rows, cols])


def test_ground_is_labelled_inside_the_area_and_off_what_is_to_be_ignored() -> None:
    shapes = [shapely.box(0, 0, 10, 10), shapely.box(8, 0, 12, 4), shapely.box(30, 30, 50, 39)]
    table = labels(shapes, ["a", "ignore", "b"])
    layer = LabelLayer.build(table, PIXELS, ["a", "b"], aoi=shapely.box(0, 0, 40, 40))
    targets, labelled = layer.burn(PIXELS)
    assert targets.dtype == np.uint8
    assert labelled.dtype == bool
    assert [int(plane.sum()) for plane in targets] == [100, 180]
    expected = np.zeros(PIXELS.shape, bool)
    expected[:40, :40] = True
    expected[:4, 8:12] = False
    np.testing.assert_array_equal(labelled, expected)
    strict = LabelLayer.build(table, PIXELS, ["a", "b"], unlabelled="ignore")
    targets, labelled = strict.burn(PIXELS)
    expected = targets.any(axis=0)
    expected[:4, 8:12] = False
    np.testing.assert_array_equal(labelled, expected)


def test_a_polygon_of_many_vertices_burns_like_a_short_one() -> None:
    angle = np.linspace(0, 2 * np.pi, 5001)[:-1]
    radius = 18 + 2 * np.sin(40 * angle)
    star = shapely.Polygon(np.column_stack([28 + radius * np.cos(angle), 20 + radius * np.sin(angle)]))
    layer = LabelLayer.build(labels([star], ["a"]), PIXELS, ["a"])
    whole = rasterio.features.rasterize([star], out_shape=PIXELS.shape, dtype="uint8")
    for window in (Window(0, 0, 20, 20), Window(21, 3, 13, 17), Window(40, 20, 17, 20)):
        rows, cols = slices(window, PIXELS.window)
        np.testing.assert_array_equal(layer.burn(PIXELS.crop(window))[0][0], whole[rows, cols])


def test_layer_survives_pickling() -> None:
    table = scattered(UTM)
    layer = LabelLayer.build(table, UTM, ["a", "b"], aoi=shapely.box(*UTM.bounds), unlabelled="ignore")
    back = pickle.loads(pickle.dumps(layer))
    assert back.classes == layer.classes
    for one, other in zip(layer.burn(UTM), back.burn(UTM), strict=True):
        np.testing.assert_array_equal(one, other)


def test_labels_off_the_scene_are_refused_with_both_places() -> None:
    far = labels([shapely.box(10, 50, 11, 51)], ["a"], 4326)
    with pytest.raises(LabelError, match=r"10, 50, 11, 51 in EPSG:4326.*in EPSG:32633") as caught:
        LabelLayer.build(far, UTM, ["a"])
    assert caught.value.code == "E-LAB-202"
    assert caught.value.exit_code == 3
    swapped = scattered(UTM).to_crs(4326)
    swapped["geometry"] = shapely.transform(swapped.geometry, lambda x, y: (y, x), interleaved=False)
    assert code_of(LabelLayer.build, swapped, UTM, ["a", "b"]) == "E-LAB-202"
    assert code_of(LabelLayer.build, scattered(UTM), UTM, ["c", "d"]) == "E-LAB-202"


def test_a_layer_needs_labels_and_a_sensible_setting() -> None:
    table = scattered(UTM)
    assert code_of(LabelLayer.build, table.iloc[:0], UTM, ["a"]) == "E-LAB-201"
    assert code_of(LabelLayer.build, table, UTM, ["a", "ignore"]) == "E-USE-213"
    with pytest.raises(UsageError, match="'other'"):
        LabelLayer.build(table, UTM, ["a", "b"], unlabelled="other")  # type: ignore[arg-type]
    layer = LabelLayer.build(table, UTM, ["a", "b"])
    assert code_of(layer.burn, PIXELS) == "E-CRS-202"
