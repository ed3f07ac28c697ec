"""Training data with faults: refused in a word before training, told of in a warning, or learnt from all the same."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from rasterio.enums import ColorInterp

import satseg
from satseg.errors import InputError, LabelError, UsageError
from satseg.imagery.labels import LabelLayer
from satseg.imagery.suspicions import refuse_hopeless, suspicions
from satseg.learning.ground.chips import ChipReader
from satseg.learning.ground.grounds import prepare
from satseg.learning.ground.pairs import open_pair
from satseg.learning.ground.resolution import unlike_resolutions
from satseg.learning.ground.sampling import ChipSampler
from satseg.options import AugmentOptions
from satseg.run import RunConfig
from tests.commands import TINY
from tests.factories import UTM, noise, north_up, write_tiff
from tests.worlds import BANDS, squares

FAST = {"chip": 32, "batch": 4, "width": 4, "depth": 2, "stem": 1, "rounds": 1, "steps": 2, "device": "cpu"}


def boxes(scene, places, names):
    """Labels named `names` on (top, left, height, width) pixels of the open `scene`."""
    found = []
    for top, left, height, width in places:
        x, y = scene.grid.xy(rows=[top, top + height], cols=[left, left + width])
        found.append(shapely.box(x[0], y[1], x[1], y[0]))
    crs = None if scene.grid.crs is None else scene.grid.crs.to_wkt()
    return geopandas.GeoDataFrame({"class_name": list(names)}, geometry=found, crs=crs)


def added(labels, geometry, name):
    more = geopandas.GeoDataFrame({"class_name": [name]}, geometry=[geometry], crs=labels.crs)
    return geopandas.pd.concat([labels, more], ignore_index=True)


def speck_of(path):
    """Around a corner of pixels, beside their centres."""
    x, y = satseg.open_scene(path).grid.xy(rows=[50], cols=[60])
    return shapely.box(x[0] - 0.2, y[0] - 0.2, x[0] + 0.2, y[0] + 0.2)


def rewritten(path, name, data, **how):
    return write_tiff(path.parent / name, data, transform=satseg.open_scene(path).grid.transform,
                      descriptions=BANDS, **how)  # fmt: skip


def told(*data):
    """Kinds of suspicion about pairs of scene and labels, and the refusal if there is one."""
    names = tuple(sorted({name for _, labels in data for name in labels["class_name"]} - {"ignore"}))
    pairs = []
    for path, labels in data:
        scene = satseg.open_scene(path)
        pairs.append((scene, LabelLayer.build(labels, scene.grid, names)))
    found = suspicions(pairs)
    refuse_hopeless(found, pairs)
    return [one.kind for one in found]


def is_sound(model):
    return all(bool(torch.isfinite(value).all()) for value in model.network.state_dict().values())


@pytest.fixture
def world(tmp_path):
    return squares(tmp_path)


def test_sound_data_raise_no_suspicion(world):
    assert told(world) == []


def test_a_class_without_a_pixel_has_no_score_and_is_told(world):
    path, labels = world
    labels = added(labels, speck_of(path), "c")
    model = satseg.train([(path, labels)], **FAST)
    assert model.card.class_names == ("a", "b", "c")
    assert model.card.scores["validation_jaccard"]["c"] is None
    assert is_sound(model)
    assert told((path, labels)) == ["class-below-pixel"]


def test_a_class_off_the_scene_is_told(world):
    path, labels = world
    assert told((path, added(labels, shapely.box(0, 0, 5, 5), "d"))) == ["class-off-scene"]


def test_only_classes_without_a_pixel_are_hopeless(world):
    path, labels = world
    with pytest.raises(LabelError, match="class c: none of its 1 features holds a pixel's centre") as caught:
        told((path, added(labels.iloc[:0], speck_of(path), "c")))
    assert caught.value.code == "E-LAB-221"


def test_one_scene_too_small_to_split_is_refused_and_learnt_from_with_validation_data(run, tmp_path, world):
    small = squares(tmp_path, name="small", height=40, width=40, x=600_000.0)
    with pytest.raises(UsageError, match="--valid-data") as caught:
        satseg.train([small], **FAST)
    assert caught.value.code == "E-TRN-003"
    small[1].to_file(tmp_path / "small.gpkg")
    args = ("train", "-o", tmp_path / "m.safetensors", "--data", small[0], tmp_path / "small.gpkg", *TINY)
    assert "too few" in run(*args).refused(2, "E-TRN-003")
    assert not (tmp_path / "m.safetensors").exists()
    own = small[1].assign(class_name="a")
    assert is_sound(satseg.train([(small[0], own)], valid_data=[(world[0], world[1].assign(class_name="a"))], **FAST))


def test_ground_that_is_all_ignored_is_told_in_one_scene_and_hopeless_in_all(tmp_path, world):
    path, labels = world
    ignored = added(labels, shapely.box(*satseg.open_scene(path).grid.bounds), "ignore")
    other = squares(tmp_path, name="other", x=600_000.0)
    assert told((path, ignored), other) == ["unlabelled-scene"]
    assert is_sound(satseg.train([(path, ignored), other], **FAST))
    with pytest.raises(LabelError, match="no pixel is labelled"):
        told((path, ignored))


@pytest.mark.parametrize("rows", [20, 45])
def test_a_band_without_data_on_a_part_of_the_ground_is_told_where_that_part_is_large(world, rows):
    path, labels = world
    data = satseg.open_scene(path).read().data.astype("float32")
    data[1, :rows] = np.nan
    data[:, -10:] = np.nan
    gaps = rewritten(path, "gaps.tif", data)
    assert told((gaps, labels)) == ["invalid-band"]


@pytest.mark.parametrize("both", [False, True])
def test_a_part_that_all_bands_lack_or_a_small_one_is_not_told(world, both):
    path, labels = world
    data = satseg.open_scene(path).read().data.astype("float32")
    data[0 if both else 1, : 60 if both else 8] = np.nan
    data[1, : 60 if both else 8] = np.nan
    assert told((rewritten(path, "gaps.tif", data), labels)) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_not_learnt_from(world, value):
    path, labels = world
    data = satseg.open_scene(path).read().data.astype("float32")
    data[1, :120] = value
    gaps = rewritten(path, "gaps.tif", data)
    model = satseg.train([(gaps, labels)], **FAST)
    assert is_sound(model)
    assert model.card.scores["skipped_batches"] == 0
    assert all(np.isfinite([*row]).all() for row in model.card.normalization.arrays().values())
    assert told((gaps, labels)) == ["invalid-band"]


def test_a_band_without_any_number_is_refused(run, tmp_path, world):
    path, labels = world
    data = satseg.open_scene(path).read().data.astype("float32")
    data[1] = np.nan
    gaps = rewritten(path, "gaps.tif", data)
    with pytest.raises(InputError, match="not one valid pixel in gaps"):
        satseg.train([(gaps, labels)], **FAST)
    labels.to_file(tmp_path / "l.gpkg")
    args = ("train", "-o", tmp_path / "m.safetensors", "--data", gaps, tmp_path / "l.gpkg", *TINY)
    run(*args, "--field", "class_name").refused(3, "E-IN-020")


def test_a_constant_band_is_learnt_from_and_told(world):
    path, labels = world
    data = np.array(satseg.open_scene(path).read().data)
    data[1] = 5
    flat = rewritten(path, "flat.tif", data)
    assert is_sound(satseg.train([(flat, labels)], **FAST))
    assert told((flat, labels)) == ["constant-band"]


def test_one_object_in_four_million_pixels_is_in_nearly_all_chips_placed_around_features(tmp_path):
    scene = satseg.open_scene(write_tiff(tmp_path / "wide.tif", noise(2, 1800, 2222), transform=north_up(1.0)))
    labels = boxes(scene, [(1000, 700, 3, 3)], "a")
    with pytest.raises(UsageError, match="labels on 3 x 3 pixels of 1 m are too few"):
        satseg.train([(scene, labels)], **FAST)
    far = satseg.open_scene(write_tiff(tmp_path / "far.tif", noise(2, 60, 70), transform=north_up(1.0, x=700_000.0)))
    run = RunConfig.from_options(FAST)
    places = ((scene, 1000, 700), (far, 20, 20))
    pairs = [open_pair(one, boxes(one, [(row, col, 3, 3)], "a"), None, run.data) for one, row, col in places]
    (ground,) = prepare(pairs[:1], pairs[1:], run).grounds
    sampler = ChipSampler([ground], size=64, seed=0, balance=0.5, changes=AugmentOptions())
    reader = ChipReader(ground, cache_bytes=2**25, blank=True)
    share = np.mean([reader.read(sampler.place(n)[1].window(64)).target.any() for n in range(120)])
    assert 0.35 < share < 0.65
    assert [one.kind for one in suspicions([(ground.scene, ground.labels)])] == ["class-rare"]


def test_labels_off_the_scene_are_refused_with_both_places(run, tmp_path, world):
    path, labels = world
    off = labels.set_geometry(labels.translate(1e6, 0))
    with pytest.raises(LabelError, match=r"labels 1500008.*scene 500000"):
        satseg.train([(path, off)], **FAST)
    off.to_file(tmp_path / "l.gpkg")
    args = ("train", "-o", tmp_path / "m.safetensors", "--data", path, tmp_path / "l.gpkg", *TINY)
    run(*args, "--field", "class_name").refused(3, "E-LAB-202")


@pytest.mark.parametrize("upright", [False, True])
def test_a_scene_one_pixel_wide_is_learnt_from(tmp_path, upright):
    shape = (300, 1) if upright else (1, 300)
    scene = satseg.open_scene(
        write_tiff(tmp_path / "thin.tif", noise(2, *shape), transform=north_up(1.0), descriptions=BANDS)
    )
    places = [(at, 0, 12, 1) if upright else (0, at, 1, 12) for at in range(5, 290, 30)]
    assert is_sound(satseg.train([(scene, boxes(scene, places, "ab" * 5))], **FAST))


def test_scenes_in_two_utm_zones_are_learnt_from_each_in_its_own(tmp_path, world):
    other = squares(tmp_path, name="zone34", crs="EPSG:32634", seed=3)
    model = satseg.train([world, other], **FAST)
    assert [source.crs for source in model.card.training.sources] == [UTM, "EPSG:32634"]
    assert told(world, other) == []


def test_a_scene_that_makes_all_far_coarser_is_told_in_log_plan_and_card(tmp_path, caplog):
    world = squares(tmp_path, height=420, width=560)
    coarse = squares(tmp_path, name="coarse", x=510_000.0, gsd=4.0)
    said = "coarse has pixels of 4 m, and all is learnt at 4 m for it: scene has 1 m"
    made = satseg.plan([world, coarse], **FAST)
    assert [text.partition(";")[0] for text in made.warnings] == [said]
    assert made.to_dict()["warnings"] == made.warnings
    assert said in caplog.text
    model = satseg.train([world, coarse], **FAST, run_dir=tmp_path / "run")
    assert model.card.training.warnings == made.warnings
    assert said in (tmp_path / "run" / "report.html").read_text()


def test_scenes_of_one_name_and_those_that_are_validated_on_are_looked_at_too(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    world = squares(tmp_path / "one", height=420, width=560)
    coarse = squares(tmp_path / "two", x=510_000.0, gsd=4.0)
    for data in ([world, coarse], [coarse, world]):
        assert "scene has pixels of 4 m" in satseg.plan(data, **FAST).warnings[0]
    assert "scene has pixels of 4 m" in satseg.plan([world], valid_data=[coarse], **FAST).warnings[0]


def test_large_objects_that_make_all_coarser_are_no_scene_that_does(tmp_path):
    labels = [satseg.open_scene(squares(tmp_path, name=name, gsd=gsd, x=x)[0]) for name, gsd, x in
              (("fine", 1.0, 5e5), ("coarse", 4.0, 5.1e5))]  # fmt: skip
    assert not [*unlike_resolutions(labels, 11.0, asked=False)]
    assert not [*unlike_resolutions(labels, 5.0, asked=False)]
    assert [*unlike_resolutions(labels, 4.0, asked=False)]


def test_what_files_and_pixels_are_warned_of_is_in_the_card_without_folders(tmp_path, world):
    path, labels = world
    data = np.array(satseg.open_scene(path).read().data)
    data[1] = 5
    flat = rewritten(path, "flat.tif", data)
    with rasterio.open(flat, "r+") as file:
        file.colorinterp = (ColorInterp.palette, ColorInterp.undefined)
        file.write_colormap(1, {0: (1, 2, 3, 255)})
    warnings = satseg.train([(flat, labels)], **FAST).card.training.warnings
    assert satseg.open_scene(flat).warnings[0].startswith(f"{flat}: ")
    assert warnings[0].startswith("flat.tif: ")
    assert any("band nir is 5 all over" in text for text in warnings)
    assert not any(str(tmp_path) in text for text in warnings)


def test_each_band_that_lacks_data_is_told_with_its_own_share(world):
    path, labels = world
    data = np.concatenate([satseg.open_scene(path).read().data, noise(1, 140, 210)]).astype("float32")
    data[0, :28], data[1, :112] = np.nan, np.nan
    three = write_tiff(path.parent / "three.tif", data, transform=satseg.open_scene(path).grid.transform,
                       descriptions=(*BANDS, "blue"))  # fmt: skip
    scene = satseg.open_scene(three)
    layer = LabelLayer.build(labels, scene.grid, ("a", "b"))
    texts = [str(one) for one in suspicions([(scene, layer)]) if one.kind == "invalid-band"]
    assert ["red has data on 80.0% of the ground and another on 100.0%" in texts[0],
            "nir has data on 20.0% of the ground and another on 100.0%" in texts[1]] == [True, True]  # fmt: skip


def test_a_scene_enlarged_to_the_resolution_asked_for_is_told_and_no_other(tmp_path):
    world = squares(tmp_path, height=300, width=420)
    coarse, near = (squares(tmp_path, name=f"s{g}", x=500_000 + 1000 * g, gsd=g) for g in (4.0, 3.0))
    (text,) = satseg.plan([world, coarse], gsd=1.0, **FAST).warnings
    assert "s4.0 has pixels of 4 m and is enlarged 4 times" in text
    assert satseg.plan([world, near], **FAST).warnings == ()
    assert satseg.plan([world, near], gsd=1.0, **FAST).warnings == ()
    assert satseg.plan([world, coarse], gsd=2.0, **FAST).warnings == ()


def test_a_scene_too_small_at_the_resolution_of_another_is_told_so(tmp_path, world, caplog):
    wide = squares(tmp_path, name="wide", x=510_000.0, gsd=8.0)
    with pytest.raises(UsageError, match=r"scene: labels on 1\d x 2\d pixels of 8 m are too few") as caught:
        satseg.plan([world, wide], **FAST)
    assert "--gsd" in caught.value.hint
    assert "wide has pixels of 8 m" in caplog.text


def test_labels_in_another_zone_than_the_scene_are_moved_to_it(world):
    path, labels = world
    assert told((path, labels.to_crs("EPSG:32634"))) == []


def test_bytes_and_words_in_one_run_are_learnt_from_and_told(tmp_path, world):
    path, labels = squares(tmp_path, name="words", x=600_000.0)
    data = (np.asarray(satseg.open_scene(path).read().data) // 8).astype("uint8")
    byte = rewritten(path, "bytes.tif", data)
    assert is_sound(satseg.train([world, (byte, labels)], **FAST))
    assert told(world, (byte, labels)) == ["other-units"]


def test_a_scene_with_one_percent_of_data_is_learnt_from_and_told(tmp_path):
    path, labels = squares(tmp_path, height=100, width=130)
    data = np.zeros((2, 1000, 1300), "uint16")
    data[:, :100, :130] = satseg.open_scene(path).read().data
    corner = rewritten(path, "corner.tif", data, nodata=0)
    assert is_sound(satseg.train([(corner, labels)], **FAST))
    assert told((corner, labels)) == ["invalid-scene"]


def test_labels_on_ground_without_data_are_hopeless(world):
    path, labels = world
    data = np.array(satseg.open_scene(path).read().data)
    data[:, :, 4:] = 0
    strip = rewritten(path, "strip.tif", data, nodata=0)
    with pytest.raises(LabelError, match="labelled pixels looked at has data"):
        told((strip, labels))
