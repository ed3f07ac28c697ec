"""Suspicions: planted faults of training data are found, and sound data raise none."""

from __future__ import annotations

import time

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine

from satseg.imagery.label_shift import measure_shift
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import open_scene
from satseg.imagery.suspicions import suspicions
from satseg.synthetic.scene import make_scene, write_scene
from satseg.vector.features import read_features
from tests.factories import UTM, noise, north_up, rotated, write_tiff

CLASSES = ("building", "vehicle")


def moved(labels, grid, rows, cols):
    """`labels` moved by pixels of `grid`, down and right."""
    t = grid.transform
    return labels.set_geometry(labels.translate(t.a * cols + t.b * rows, t.d * cols + t.e * rows))


def kinds(*pairs):
    return [found.kind for found in suspicions(pairs)]


def houses(folder, *, transform=None, rows=0.0, cols=0.0, height=260, width=390, crs=UTM, seed=0, name="houses", **how):
    """A scene of rectangles, dark or bright, of many shapes, and its layer moved by rows and cols."""
    rng, place = np.random.default_rng(seed), transform or north_up(0.5)
    data, boxes = rng.normal(300, 25, (2, height, width)), []
    for top in range(10, height - 34, 40):
        for left in range(10, width - 34, 40):
            h, w, r, c = rng.integers(8, 20, 2).tolist() + rng.integers(0, 8, 2).tolist()
            data[:, top + r : top + r + h, left + c : left + c + w] += rng.choice([-150, 200])
            boxes.append(shapely.box(left + c, top + r, left + c + w, top + r + h))
    corners = np.array(boxes, object)
    shift = Affine(1, 0, cols, 0, 1, rows)
    a = Affine(*(place @ shift)[:6])
    world = shapely.transform(corners, lambda p: np.column_stack([a.a * p[:, 0] + a.b * p[:, 1] + a.c,
                                                                 a.d * p[:, 0] + a.e * p[:, 1] + a.f]))  # fmt: skip
    path = write_tiff(folder / f"{name}.tif", data.clip(1).astype("uint16"), transform=place, crs=crs, **how)
    scene = open_scene(path)
    frame = geopandas.GeoDataFrame(geometry=list(world), crs=crs).assign(class_name="building")
    return scene, LabelLayer.build(frame, scene.grid, ("building",))


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    made = make_scene(5, height=400, width=560)
    image, _ = write_scene(made, tmp_path_factory.mktemp("town"))
    return open_scene(image), made.labels


@pytest.mark.parametrize("shift", [(3.0, -5.0), (-4.0, 2.0), (0.0, 6.5)])
def test_a_planted_shift_of_a_town_is_recovered(town, shift):
    scene, labels = town
    layer = LabelLayer.build(moved(labels, scene.grid, *shift), scene.grid, CLASSES)
    for k in range(len(CLASSES)):
        found = measure_shift(scene, layer, k)
        assert (found.rows, found.cols) == pytest.approx(shift, abs=0.8)
    (said,) = suspicions([(scene, layer)])
    assert said.kind == "shifted-labels"
    assert said.value == pytest.approx(np.hypot(*shift), abs=0.8)


@pytest.mark.parametrize("seed", range(3))
def test_a_sound_town_raises_no_suspicion(tmp_path, seed):
    made = make_scene(seed, height=300, width=420)
    image, _ = write_scene(made, tmp_path)
    scene = open_scene(image)
    present = tuple(sorted(set(made.labels["class_name"])))
    assert kinds((scene, LabelLayer.build(made.labels, scene.grid, present))) == []


@pytest.mark.parametrize("seed", range(6))
def test_sound_houses_raise_no_suspicion(tmp_path, seed):
    assert kinds(houses(tmp_path, seed=seed)) == []


@pytest.mark.parametrize("turn", [0, 30, 200])
def test_a_shift_is_told_in_metres_of_the_ground_on_turned_grids(tmp_path, turn):
    place = rotated(turn, 0.5)
    scene, layer = houses(tmp_path, transform=place, rows=2, cols=-4)
    found = measure_shift(scene, layer, 0)
    assert (found.rows, found.cols) == pytest.approx((2, -4), abs=0.4)
    east, north = place.a * -4 + place.b * 2, place.d * -4 + place.e * 2
    assert (found.east_m, found.north_m) == pytest.approx((east, north), abs=0.2)


def test_a_shift_without_a_crs_is_told_in_pixels(tmp_path):
    scene, layer = houses(tmp_path, rows=4, cols=3, crs=None)
    assert (measure_shift(scene, layer, 0).east_m, measure_shift(scene, layer, 0).north_m) == (None, None)
    (said,) = suspicions([(scene, layer)])
    assert "4.0 px down and 3.0 px right" in str(said).replace("3.9", "4.0").replace("4.1", "4.0").replace("2.9", "3.0")
    assert " m " not in said.message


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_pure_noise_are_not_called_shifted(tmp_path, seed):
    _, layer = houses(tmp_path, seed=seed)
    path = write_tiff(tmp_path / "noise.tif", noise(2, 260, 390, seed=seed), transform=north_up(0.5))
    assert "shifted-labels" not in kinds((open_scene(path), layer))


def test_what_has_no_outline_is_not_judged(tmp_path):
    scene, layer = houses(tmp_path, rows=5)
    whole = LabelLayer(("land",), (np.array([scene.grid.footprint()]),), layer.crs)
    dots = LabelLayer(("dot",), (shapely.buffer(shapely.centroid(layer.geometries[0]), 0.5),), layer.crs)
    few = LabelLayer(("few",), (layer.geometries[0][:3],), layer.crs)
    assert [measure_shift(scene, one, 0) for one in (whole, dots, few)] == [None] * 3


def test_scenes_in_other_units_are_named_with_their_figures(tmp_path):
    one, layer = houses(tmp_path)
    data = (np.asarray(one.read().data) // 8).astype("uint8")
    two = open_scene(write_tiff(tmp_path / "byte.tif", data, transform=north_up(0.5)))
    (said,) = suspicions([(one, layer), (two, layer)])
    assert said.kind == "other-units"
    assert said.value == pytest.approx(8, rel=0.1)
    assert "houses (uint16)" in said.message
    assert "byte (uint8)" in said.message


def test_scenes_stored_otherwise_but_alike_in_size_are_named(tmp_path):
    one, layer = houses(tmp_path)
    two = open_scene(write_tiff(tmp_path / "signed.tif", one.read().data.astype("int16"), transform=north_up(0.5)))
    (said,) = suspicions([(one, layer), (two, layer)])
    assert said.kind == "other-dtypes"
    assert "uint16 in houses" in said.message
    assert "int16 in signed" in said.message


def test_a_band_without_content_is_named(tmp_path):
    scene, layer = houses(tmp_path)
    data = scene.read().data.astype("float32")
    data[1] = 7
    path = write_tiff(tmp_path / "flat.tif", data, transform=north_up(0.5), descriptions=("red", "nir"))
    (said,) = suspicions([(open_scene(path), layer)])
    assert (said.kind, said.value) == ("constant-band", 7)
    assert "nir is 7" in said.message
    data[1] = data[0]
    data[1, :200] = np.nan
    path = write_tiff(tmp_path / "gaps.tif", data, transform=north_up(0.5), descriptions=("red", "nir"))
    (said,) = suspicions([(open_scene(path), layer)])
    assert said.kind == "invalid-band"
    assert "band nir has data on 23.1%" in said.message


def test_a_nearly_empty_scene_and_labels_without_data_are_told(tmp_path):
    scene, layer = houses(tmp_path)
    data = np.array(scene.read().data)
    data[:, 8:] = 0
    path = write_tiff(tmp_path / "strip.tif", data, transform=north_up(0.5), nodata=0)
    found = suspicions([(open_scene(path), layer)])
    assert [one.kind for one in found] == ["invalid-scene", "labels-without-data"]
    assert found[0].value == pytest.approx(8 / 260)


def test_classes_without_a_pixel_are_told_from_those_elsewhere(tmp_path):
    scene, layer = houses(tmp_path)
    x, y = scene.grid.xy(rows=np.arange(10, 200, 20.0), cols=np.arange(10, 200, 20.0))
    specks = shapely.box(x - 0.2, y - 0.2, x + 0.2, y + 0.2)  # around corners of pixels, beside their centres
    away = shapely.box([0.0], [0.0], [5.0], [5.0])
    both = LabelLayer(("building", "speck", "away"), (*layer.geometries, specks, away), layer.crs)
    found = suspicions([(scene, both)])
    assert [one.kind for one in found] == ["class-below-pixel", "class-off-scene"]
    assert found[0].value == pytest.approx(0.64)
    assert "10 features" in found[0].message


def test_a_class_all_over_is_told_and_one_all_known_ground_too(tmp_path):
    scene, layer = houses(tmp_path)
    whole = LabelLayer(("land",), (np.array([scene.grid.footprint()]),), layer.crs)
    assert kinds((scene, whole)) == ["class-everywhere"]
    only = LabelLayer(layer.classes, layer.geometries, layer.crs, unlabelled="ignore")
    assert kinds((scene, only)) == ["class-everywhere"]


def test_ground_that_is_all_ignored_is_told(tmp_path):
    scene, layer = houses(tmp_path)
    cover = np.array([scene.grid.footprint()])
    assert kinds((scene, LabelLayer(layer.classes, layer.geometries, layer.crs, ignored=cover))) == ["unlabelled-scene"]


@pytest.mark.parametrize(("side", "expected"), [(3, ["class-rare"]), (80, [])])
def test_a_rare_class_is_told_with_its_share(tmp_path, side, expected):
    path = write_tiff(tmp_path / "wide.tif", noise(1, 1000, 1300), transform=north_up(1.0))
    scene = open_scene(path)
    x, y = scene.grid.xy(rows=[500, 500 + side], cols=[700, 700 + side])
    layer = LabelLayer(("speck",), (np.array([shapely.box(x[0], y[1], x[1], y[0])]),), scene.grid.crs)
    found = suspicions([(scene, layer)])
    assert [one.kind for one in found] == expected
    for said in found:
        assert said.value == pytest.approx(side**2 / 1.3e6)
        assert "1 in 144,444" in said.message


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1), (3, 5)])
def test_thin_scenes_are_looked_at_too(tmp_path, shape):
    scene = open_scene(write_tiff(tmp_path / "thin.tif", noise(2, *shape), transform=north_up(1.0)))
    half = shapely.box(*scene.grid.crop(scene.grid.window).bounds)
    layer = LabelLayer(("a",), (np.array([half]),), scene.grid.crs)
    assert "class-everywhere" in kinds((scene, layer))


def test_nothing_to_look_at_has_no_suspicion():
    assert suspicions([]) == ()


@pytest.mark.parametrize("place", ["banepa_1", "zanzibar_1"])
def test_real_footprints_are_in_place_and_a_shift_of_them_is_found(data_dir, place):
    scene = open_scene(data_dir / "buildings_oam" / f"{place}.tif")
    labels = read_features(data_dir / "buildings_oam" / f"{place}.geojson")
    labels = labels.to_crs(scene.grid.crs.to_wkt()).assign(class_name="building")
    assert kinds((scene, LabelLayer.build(labels, scene.grid, ("building",)))) == []
    layer = LabelLayer.build(moved(labels, scene.grid, 6, 0), scene.grid, ("building",))
    started = time.process_time()
    (said,) = suspicions([(scene, layer)])
    assert time.process_time() - started < 10
    assert said.kind == "shifted-labels"
    assert said.value == pytest.approx(6, abs=1)
