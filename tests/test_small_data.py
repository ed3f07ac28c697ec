"""Little data: one chip of a city, one tile learnt by heart, classes of a few pixels, gaps, sensors that differ."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely

import satseg
from satseg.errors import UsageError
from satseg.imagery.labels import LabelLayer
from satseg.imagery.suspicions import suspicions
from satseg.learning.ground.grounds import prepare
from satseg.learning.ground.pairs import open_pair
from satseg.run import RunConfig
from satseg.synthetic.scene import make_scene
from tests.factories import write_tiff
from tests.worlds import BANDS, squares

SMALL = {"chip": 64, "batch": 8, "width": 8, "depth": 2, "rounds": 2, "steps": 60, "device": "cpu"}


def overlap_of(mask, truth):
    """Jaccard of two masks."""
    return float((mask & truth).sum() / (mask | truth).sum())


def placed(made, folder, *, name, east):
    """A generated scene's file and labels, `east` metres beside its own place."""
    grid = made.raster.grid
    transform = grid.transform.translation(east, 0) @ grid.transform
    data, crs = np.asarray(made.raster.data), grid.crs.to_wkt()
    path = write_tiff(folder / f"{name}.tif", data, transform=transform, crs=crs, descriptions=made.raster.names)
    return path, made.labels.set_geometry(made.labels.translate(east, 0))


def test_a_tile_is_learnt_by_heart(tmp_path):
    """Every pixel of every class: what no network gets right here, half-size stem or not, is a fault of ours."""
    made = make_scene(3, height=64, width=96)
    tile = placed(made, tmp_path, name="tile", east=0)
    same = placed(made, tmp_path, name="same", east=100_000)  # scored on what it learns from, at another place
    model = satseg.train(
        [tile], valid_data=[same], field="class_name", steps=320, batch=2, chip=64, rounds=2, width=16,
        augmented=False, device="cpu",
    )  # fmt: skip
    found = satseg.predict(model, tile[0])
    truth = satseg.rasterize(tile[1], like=found.grid, classes=model.classes).data > 0
    assert len(model.classes) == 6
    for name, scores, target in zip(model.classes, found.data, truth, strict=True):
        score = overlap_of(scores >= model.thresholds[name], target)
        assert score >= 0.98, name
        assert model.card.scores["validation_jaccard"][name] == pytest.approx(score, abs=0.02)


def test_one_chip_of_a_city_is_learnt_from(data_dir):
    """Buildings, roads and trees of 500 x 650 pixels, part of them held: better than all or nothing everywhere."""
    folder = data_dir / "wv_spacenet"
    scene, labels = folder / "vegas_wv3_8band_u8.tif", folder / "vegas_wv3_labels_1building_2road_3tree.geojson"
    if not scene.is_file():
        pytest.skip(f"{scene} is not there")
    model = satseg.train([(scene, labels)], field="label", steps=60, batch=8, chip=64, rounds=2, device="cpu")
    scores = model.card.scores["validation_jaccard"]
    truth = satseg.rasterize(
        satseg.read_features(labels, field="label"), like=satseg.open_scene(scene).grid, classes=model.classes
    ).data
    assert scores["1"] > 0.5
    for name, plane in zip(model.classes, truth, strict=True):
        assert scores[name] > plane.mean() + 0.1, name
    found = satseg.detect(model, scene)
    assert set(found["class_name"]) == {"1", "2", "3"}


@pytest.mark.parametrize(("height", "width"), [(100, 130), (97, 300), (70, 600)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_scene_is_split_so_that_every_class_is_learnt_and_scored(tmp_path, height, width, seed):
    path, labels = squares(tmp_path, height=height, width=width, seed=seed)
    run = RunConfig.from_options({"chip": 32, "seed": seed})
    (ground,) = prepare([open_pair(path, labels, None, run.data)], (), run).grounds
    held = shapely.union_all([ground.scene.grid.crop(window).footprint() for window in ground.held])
    share = held.area / shapely.box(*labels.total_bounds).area
    assert 0.05 < share < 0.5
    for name in "ab":
        one = labels[labels["class_name"] == name]
        assert one.intersects(held).any()
        assert one.disjoint(held).any()


@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 90), (63, 63)])
def test_a_scene_too_small_to_split_is_refused_with_what_to_give(tmp_path, height, width):
    with pytest.raises(UsageError, match="too few to hold part of them for validation; give --valid-data") as caught:
        satseg.train([squares(tmp_path, height=height, width=width)], **SMALL)
    assert caught.value.code == "E-TRN-003"


def learnt(scores, *names):
    return all(scores[name] is not None and scores[name] > 0.8 for name in names)


def test_a_class_of_one_pixel_in_a_hundred_thousand_leaves_the_others_learnt(tmp_path):
    path, labels = squares(tmp_path, height=390, width=520)
    grid = satseg.open_scene(path).grid
    x, y = grid.xy(rows=[200, 201], cols=[246, 248])  # two pixels of 200,000, between the squares
    pixels = shapely.box(x[0], y[1], x[1], y[0])
    speck = geopandas.GeoDataFrame({"class_name": ["c"]}, geometry=[pixels], crs=labels.crs)
    both = geopandas.pd.concat([labels, speck], ignore_index=True)
    layer = LabelLayer.build(both, grid, ("a", "b", "c"))
    assert [found.kind for found in suspicions([(satseg.open_scene(path), layer)])] == ["class-rare"]
    model = satseg.train([(path, both)], field="class_name", **SMALL)
    assert learnt(model.card.scores["validation_jaccard"], "a", "b")
    found = satseg.predict(model, path)
    assert np.isfinite(found.data).all()
    assert (found.data[2] > 0.5).mean() < 0.05  # not all over either


def test_pixels_that_are_no_numbers_in_one_band_cost_nothing_around_them(tmp_path):
    path, labels = squares(tmp_path, height=200, width=330)
    scene = satseg.open_scene(path)
    data = scene.read().data.astype("float32")
    gone = np.random.default_rng(0).random(data.shape[1:]) < 0.02
    data[1, gone] = np.nan
    gaps = write_tiff(tmp_path / "gaps.tif", data, transform=scene.grid.transform, descriptions=BANDS)
    model = satseg.train([(gaps, labels)], field="class_name", **SMALL)
    assert model.card.scores["skipped_batches"] == 0
    assert learnt(model.card.scores["validation_jaccard"], "a", "b")
    np.testing.assert_array_equal(satseg.predict(model, gaps).valid, ~gone)


@pytest.mark.parametrize("factor", [1 / 2047, 1 / 8, 10, 30])
def test_scenes_in_other_units_are_told_before_training_whatever_the_factor(tmp_path, factor):
    """Reflectances, bytes, digital numbers, in one run: the bands' names agree, the values do not."""
    pairs = []
    for number, times in enumerate((1.0, factor)):
        path, labels = squares(tmp_path, name=f"s{number}", x=500_000.0 + 50_000 * number, seed=number)
        scene = satseg.open_scene(path)
        data = scene.read().data.astype("float32") * times
        scene = satseg.open_scene(
            write_tiff(tmp_path / f"t{number}.tif", data, transform=scene.grid.transform, descriptions=BANDS)
        )
        pairs.append((scene, LabelLayer.build(labels, scene.grid, ("a", "b"))))
    (found,) = suspicions(pairs)
    assert found.kind == "other-units"
    assert "t0" in found.message
    assert "t1" in found.message
