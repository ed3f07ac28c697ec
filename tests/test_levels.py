"""Scenes brought to their own levels: what is read, and that training and detection see them so."""

from __future__ import annotations

import logging
from dataclasses import replace

import geopandas
import numpy as np
import pandas
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

import satseg
from satseg.errors import InputError, ModelError, UsageError
from satseg.imagery import levels
from satseg.imagery.levels import (
    ENOUGH_PX,
    OVERLOOKED,
    UNSURE,
    Span,
    Tone,
    all_room,
    brought_near,
    levelled,
    room_around,
    tone,
)
from satseg.imagery.normalization import CLIP_MARGIN, PERCENTILES, Normalization
from satseg.imagery.reader import SceneReader
from satseg.imagery.tiling import scattered_blocks
from satseg.learning.detection import inference
from satseg.learning.ground.grounds import as_detected, prepare
from satseg.learning.networks.average import average
from satseg.learning.networks.ensemble import Ensemble
from satseg.learning.training.start import Start
from satseg.pipeline import open_pairs
from satseg.run import RunConfig
from tests.commands import TINY
from tests.factories import ORIGIN, UTM, noise, write_tiff

HEIGHT, WIDTH, NODATA = 131, 97, -9999.0
NAMES = ("red", "nir")
GAIN, OFFSET = np.array([0.25, 3.0]), np.array([700.0, -40.0])


def values(gain=(1.0, 1.0), offset=(0.0, 0.0)):
    """Bands (2, H, W) float32 with a gap, each x gain + offset."""
    data = noise(2, HEIGHT, WIDTH).astype(np.float32) * np.reshape(gain, (2, 1, 1)) + np.reshape(offset, (2, 1, 1))
    data[:, :40, 60:] = NODATA
    return data.astype(np.float32)


def written(path, **how):
    return write_tiff(path, values(**how), nodata=NODATA, descriptions=NAMES)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a scene, the same under another light, and labels."""
    folder = tmp_path_factory.mktemp("levels")
    written(folder / "day.tif")
    written(folder / "dusk.tif", gain=GAIN, offset=OFFSET)
    gsd = satseg.open_scene(folder / "day.tif").grid.gsd_m()
    corners = [(ORIGIN[0] + gsd * col, ORIGIN[1] - gsd * row) for row in range(5, 120, 25) for col in range(5, 85, 25)]
    boxes = [shapely.box(x, y - 12 * gsd, x + 12 * gsd, y) for x, y in corners]
    geopandas.GeoDataFrame({"class_name": ["a"] * len(boxes)}, geometry=boxes, crs=UTM).to_file(folder / "labels.gpkg")
    return folder


def shifted(scene, moved_scene, labels, moved_labels):
    """Copy a scene and its labels to the ground beside them."""
    moved_scene.write_bytes(scene.read_bytes())
    with rasterio.open(moved_scene, "r+") as copy:
        copy.transform = copy.transform * Affine.translation(2 * WIDTH, 0)
    layer = geopandas.read_file(labels)
    step = 2 * WIDTH * satseg.open_scene(scene).grid.gsd_m()
    layer.assign(geometry=layer.translate(step)).to_file(moved_labels)


def learnt(world, **options):
    config = RunConfig.from_overrides(TINY)
    return satseg.train([(world / "day.tif", world / "labels.gpkg")], config=config, **options)


@pytest.fixture(scope="module")
def model(world):
    return learnt(world, normalize="scene")


@pytest.mark.parametrize("index", [(), ("ndvi",)])
def test_reads_are_of_the_scenes_own_mean_and_spread(world, index):
    plain = satseg.open_scene(world / "day.tif").with_indices(*index)
    scene = levelled(plain)
    raw, whole = plain.read(), scene.read()
    assert whole.data.dtype == scene.dtype == np.float32
    assert np.array_equal(whole.valid, raw.valid)
    for band, found in zip(raw.data.astype(np.float64), whole.data, strict=True):
        known = band[raw.valid]
        low, high = np.percentile(known, PERCENTILES)
        mean, spread = np.clip(known, low, high).mean(), np.clip(known, low, high).std()
        margin = CLIP_MARGIN * (high - low)
        expected = (np.clip(known, low - margin, high + margin) - mean) / spread
        assert np.allclose(found[raw.valid], expected, atol=2e-4)
        assert not found[~raw.valid].any()


def test_any_way_to_read_gives_the_same_values(world):
    scene = levelled(satseg.open_scene(world / "day.tif").with_indices("ndvi"))
    whole, window = scene.read(), Window(50, 20, 60, 33)
    part = whole.data[:, 20:53, 50:]
    out = np.full((3, 33, 60), 7, np.float32)
    with scene.reader() as reader:
        valid = reader.read_into(out, window)
        swapped = reader.read(window, ("nir", "red"))
    assert np.array_equal(out[..., :47], part)
    assert not out[..., 47:].any()
    assert not valid[:, 47:].any()
    assert np.array_equal(swapped.data, out[[1, 0]])
    assert np.array_equal(scene.select(("nir",)).read().data[0], whole.data[1])
    assert levelled(scene) is scene


def test_two_files_of_other_pixels_and_more_than_one_block(tmp_path):
    fine, coarse = noise(1, 300, 610, seed=1), noise(1, 150, 305, seed=2).astype(np.int32) * 70_000
    write_tiff(tmp_path / "fine.tif", fine, descriptions=["red"])
    place = satseg.open_scene(tmp_path / "fine.tif").grid.transform
    write_tiff(tmp_path / "coarse.tif", coarse, transform=place @ Affine.scale(2), descriptions=["nir"])
    scene = levelled(satseg.open_scene([tmp_path / "fine.tif", tmp_path / "coarse.tif"]))
    read = scene.read()
    assert read.data.dtype == scene.dtype == np.float32
    assert np.allclose(read.data.mean(axis=(1, 2)), 0, atol=0.02)
    assert np.allclose(read.data.std(axis=(1, 2)), 1, atol=0.05)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(0, 9))
def test_scattered_blocks_are_the_grid(height, width, side, seed):
    seen = np.zeros((height, width), int)
    for block in scattered_blocks(height, width, side=side, seed=seed):
        seen[block.row_off : block.row_off + block.height, block.col_off : block.col_off + block.width] += 1
    assert (seen == 1).all()


def test_a_scene_without_a_valid_pixel_has_no_levels(tmp_path, model):
    path = write_tiff(tmp_path / "empty.tif", np.full((2, 9, 7), NODATA, np.float32), nodata=NODATA, descriptions=NAMES)
    for work in (lambda: levelled(satseg.open_scene(path)), lambda: satseg.detect(model, path)):
        with pytest.raises(InputError, match="not one valid pixel"):
            work()


def test_a_constant_band_is_zero(tmp_path):
    data = np.stack([np.full((5, 1), 40, np.uint8), np.arange(5, dtype=np.uint8)[:, None]])
    read = levelled(satseg.open_scene(write_tiff(tmp_path / "flat.tif", data))).read().data
    assert not read[0].any()
    assert read[1, -1, 0] > 1


def test_light_does_not_matter_to_a_model_that_learnt_by_levels(world, model):
    def change(model):
        day, dusk = (satseg.predict(model, world / f"{name}.tif").data for name in ("day", "dusk"))
        return abs(day - dusk).max() / day.std()

    assert change(model) < 0.02
    assert change(learnt(world, normalize="data")) > 0.1


def test_a_part_is_detected_as_in_the_whole_and_a_file_is_as_the_model(world, model, tmp_path):
    model.save(tmp_path / "m.safetensors")
    loaded = satseg.load_model(tmp_path / "m.safetensors", device="cpu")
    assert loaded.normalize == "scene"
    scene = satseg.open_scene(world / "day.tif")
    whole = satseg.predict(loaded, scene, halo="exact")
    window = Window(16, 32, 40, 50)
    part = satseg.predict(loaded, scene, halo="exact", bounds=scene.grid.crop(window).bounds)
    assert np.allclose(part.data, whole.data[:, 32:82, 16:56], atol=1e-5)


def test_rules_are_fitted_on_scenes_by_their_levels(world, model):
    day, dusk = (satseg.refit(model, [(world / f"{name}.tif", world / "labels.gpkg")]) for name in ("day", "dusk"))
    assert day.normalize == "scene"
    assert day.thresholds["a"] == pytest.approx(dusk.thresholds["a"], abs=0.02)


def test_models_that_see_scenes_otherwise_are_no_ensemble(world, model):
    with pytest.raises(ModelError, match="own levels") as caught:
        Ensemble.of([model, learnt(world)])
    assert caught.value.code == "E-MOD-046"
    team = Ensemble.of([model, learnt(world, normalize="scene", seed=1)])
    day, dusk = (satseg.predict(team, world / f"{name}.tif").data for name in ("day", "dusk"))
    assert np.allclose(day, dusk, atol=1e-3)
    assert team.info()["normalize"] == model.card.info()["normalize"] == "scene"
    assert "each scene's own" in model.summary()


def test_tuning_takes_the_levels_of_the_model_unless_told_otherwise(world, model, tmp_path, caplog):
    path = tmp_path / "m.safetensors"
    model.save(path)
    again = learnt(world, start=path)
    assert again.normalize == "scene"
    assert again.card.normalization == model.card.normalization
    with caplog.at_level(logging.WARNING):
        other = learnt(world, start=path, normalize="data")
    assert "measured anew" in caplog.text
    assert other.normalize == "data"
    assert [source.tone for source in other.card.training.start_sources] == [()]  # it was of the scene's levels
    assert max(other.card.normalization.offset) > 10


# Brought near


def known(scale=(10.0, 4.0)):
    return Normalization(NAMES, (0.0, 0.0), scale, (-1e6, -1e6), (1e6, 1e6))


def test_room_is_around_the_least_and_the_greatest_mean_of_all_scenes():
    room = room_around([Tone((100.0, 7.0), ENOUGH_PX), Tone((130.0, 6.0), ENOUGH_PX // 4)], known())
    near, nearer = UNSURE, 2 * UNSURE  # of a quarter of the pixels a mean is half as sure
    assert {name: tuple(span)[:3] for name, span in room.items()} == {
        "red": (100 - 10 * near, 130 + 10 * nearer, 10),
        "nir": (6 - 4 * nearer, max(7 + 4 * near, 6 + 4 * nearer), 4),
    }
    assert Tone((0.0,), 9 * ENOUGH_PX).unsure == UNSURE
    assert room_around([], known()) == {}
    assert all_room(Normalization(("red",), (5.0,), (2.0,), (0.0,), (10.0,)))["red"][2:] == (2, -10, 20)


@given(red=st.integers(-60, 60), nir=st.integers(-60, 60))
def test_a_scene_is_moved_by_the_least_that_puts_it_into_the_room(world, red, nir):
    scene = satseg.open_scene(world / "day.tif")
    own, unsure = tone(scene).means, tone(scene).unsure
    room = {"red": Span(own[0] + red, own[0] + red + 20, 4.0), "nir": Span(own[1] + nir - 20, own[1] + nir, 2.0)}
    near = brought_near(scene, room)
    left = [4 * unsure, 2 * unsure]  # what the scene's own mean may be off
    moved = [max(red - left[0], 0) or min(red + 20 + left[0], 0), max(nir - 20 - left[1], 0) or min(nir + left[1], 0)]
    if moved[0] * moved[1] > 0:  # both darker, or both brighter
        alike = min(OVERLOOKED, abs(moved[0]) / 4, abs(moved[1]) / 2) * np.sign(moved[0])
        moved = [moved[0] - 4 * alike, moved[1] - 2 * alike]
    stored, read = scene.read(), near.read()
    assert np.allclose((read.data - stored.data)[:, stored.valid].T, moved, atol=1e-3)
    assert np.array_equal(read.valid, stored.valid)
    assert (near is scene) == (abs(np.array(moved)).max() < 1e-6)
    if near is not scene:
        assert read.data.dtype == np.float32
        assert not read.data[:, ~read.valid].any()
        assert brought_near(near, {"red": Span(1e4, 2e4, 1.0)}) is near


def test_only_bands_with_room_are_moved_and_an_empty_scene_stays(world, tmp_path, caplog):
    scene = satseg.open_scene(world / "day.tif")
    with caplog.at_level(logging.WARNING):
        near = brought_near(scene, {"nir": Span(1000.0, 1001.0, 0.1), "swir": Span(5.0, 6.0, 0.1)})
    assert "day is of another tone" in caplog.text
    assert "red" not in caplog.text
    valid = scene.read().valid
    assert np.array_equal(near.read().data[0, valid], scene.read().data[0, valid])
    assert tone(near).means[1] == pytest.approx(1000, abs=1)
    alone = brought_near(scene.select(["nir"]), {"nir": Span(1000.0, 1001.0, 100.0)})
    own, left = tone(scene), 100 * tone(scene).unsure + 100 * OVERLOOKED
    assert tone(alone).means[0] == pytest.approx(max(own.means[1], 1000 - left), abs=1)
    path = write_tiff(tmp_path / "empty.tif", np.full((2, 9, 7), NODATA, np.float32), nodata=NODATA, descriptions=NAMES)
    empty = satseg.open_scene(path)
    assert tone(empty) is None
    assert brought_near(empty, {"red": Span(1000.0, 1001.0, 1.0)}) is empty


def test_of_a_mosaic_that_is_mostly_empty_a_bounded_number_of_blocks_is_read(monkeypatch, world):
    scene, read = satseg.open_scene(world / "day.tif"), []
    monkeypatch.setattr(levels, "BLOCK_PX", 8)
    monkeypatch.setattr(levels, "TRIED_BLOCKS", 5)
    look = SceneReader.read
    monkeypatch.setattr(SceneReader, "read", lambda self, *window: read.append(window) or look(self, *window))
    assert tone(scene) is not None
    assert len(read) == 5
    assert tone(scene, blocks=2).pixels <= 2 * 8 * 8


def test_a_collar_that_no_nodata_declares_is_not_of_the_tone(tmp_path):
    data = noise(3, 90, 70).clip(4, 251).astype(np.uint8)
    framed = np.pad(data, ((0, 0), (40, 0), (0, 60)))
    framed[:, :40] = 255
    framed[:, 40:, 70:] = noise(3, 90, 60) % 4  # as JPEG leaves black
    bare, collared = (
        satseg.open_scene(write_tiff(tmp_path / f"{name}.tif", pixels))
        for name, pixels in (("bare", data), ("collared", framed))
    )
    assert tone(collared).means == pytest.approx(tone(bare).means, abs=0.5)
    assert tone(collared).pixels == tone(bare).pixels == 90 * 70


@pytest.mark.parametrize("fill", [-9999.0, 65535.0, -3.4028e38])
def test_a_fill_that_no_nodata_declares_moves_nothing(world, tmp_path, fill, caplog):
    data = values()
    data[:, :, :4] = fill
    path = write_tiff(tmp_path / "filled.tif", data, nodata=NODATA if fill != NODATA else None, descriptions=NAMES)
    model = learnt(world)
    found, plain = (satseg.predict(model, path, tone=how).data for how in (None, "own"))
    assert np.array_equal(found, plain)
    assert "another tone" not in caplog.text
    data[0, :, :4] = 100.0  # in one band alone it is no fill; what is beyond float32 is told of
    write_tiff(path, data, descriptions=NAMES)
    assert np.isfinite(satseg.predict(model, path).data).all()
    assert ("tone of filled is not known" in caplog.text) == (fill < -1e38)


def test_brightness_of_all_bands_is_left_beside_an_index_that_does_not_see_it(world, caplog):
    scene = satseg.open_scene(world / "day.tif").with_indices("ndvi")
    red, nir, ndvi = tone(scene).means
    left = 10 * (tone(scene).unsure + 0.9 * OVERLOOKED)
    room = {"red": Span(red + left, red + 99, 10.0), "nir": Span(nir + left, nir + 99, 10.0)}
    assert brought_near(scene, {**room, "ndvi": Span(ndvi, ndvi, 0.1)}) is scene
    assert brought_near(scene.select(["red", "nir"]), room).levels is None
    assert not caplog.text


def test_a_scene_of_another_tone_is_found_in_as_one_of_the_tone_learnt(world, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(levels, "ENOUGH_PX", 9 * 7)  # small scenes are sure of their means too
    written(tmp_path / "dark.tif", offset=(-90.0, 60.0))
    model = learnt(world)
    own = satseg.predict(model, world / "day.tif").data
    assert np.array_equal(satseg.predict(model, world / "day.tif", tone="own").data, own)
    assert "another tone" not in caplog.text
    far, near, told = (satseg.predict(model, tmp_path / "dark.tif", tone=tone).data for tone in ("own", None, "near"))
    assert caplog.text.count("another tone") == 2
    assert abs(near - own).max() < abs(far - own).max() / 2
    assert np.array_equal(near, told)
    assert "another are moved near" in model.summary()
    model.save(tmp_path / "m.safetensors")
    saved = satseg.load_model(tmp_path / "m.safetensors", device="cpu")
    assert (saved.room, saved.normalize) == (model.room, "near")


def test_scenes_are_brought_near_by_default_where_all_classes_are_learnt_apart(world, tmp_path, caplog):
    assert learnt(world).card.info()["normalize"] == "near"
    written(tmp_path / "dark.tif", offset=(-90.0, 60.0))
    labels = geopandas.read_file(world / "labels.gpkg")
    left, bottom, right, top = satseg.open_scene(world / "day.tif").grid.bounds
    field = geopandas.GeoDataFrame({"class_name": ["field"]}, geometry=[shapely.box(left, bottom, right, top)], crs=UTM)
    pandas.concat([labels, field]).to_file(tmp_path / "both.gpkg")
    both = satseg.train([(world / "day.tif", tmp_path / "both.gpkg")], config=RunConfig.from_overrides(TINY))
    for one in (both, learnt(world, normalize="data"), learnt(world, separate=False)):
        assert one.normalize == one.card.info()["normalize"] == "data"
        satseg.predict(one, tmp_path / "dark.tif")
    assert "another tone" not in caplog.text
    satseg.predict(both, tmp_path / "dark.tif", tone="near")
    assert "another tone" in caplog.text


def test_validation_scenes_are_seen_as_detection_will_see_them(world, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(levels, "ENOUGH_PX", 9 * 7)
    written(tmp_path / "dark.tif", offset=(-90.0, 60.0))
    shifted(tmp_path / "dark.tif", tmp_path / "aside.tif", world / "labels.gpkg", tmp_path / "aside.gpkg")
    valid = [(tmp_path / "aside.tif", tmp_path / "aside.gpkg")]
    assert learnt(world, valid_data=valid).room
    assert caplog.text.count("another tone") == 1
    for normalize in (None, "data"):
        run = RunConfig.from_options({"normalize": normalize})
        data = [open_pairs(pairs, run) for pairs in ([(world / "day.tif", world / "labels.gpkg")], valid)]
        prepared = as_detected(prepare(*data, run), normalize)
        (own,), (held,) = prepared.grounds, prepared.validation
        assert own.scene.levels is None
        moved = [kept - seen for kept, seen in zip(tone(held.scene).means, tone(data[1][0].scene).means, strict=True)]
        assert moved == pytest.approx([90, -60] if normalize is None else [0, 0], abs=20)


def test_fine_tuning_knows_the_tones_of_both_trainings(world, tmp_path):
    written(tmp_path / "hazy.tif", offset=(60.0, -40.0))
    day, start = learnt(world), tmp_path / "day.safetensors"
    day.save(start)
    config = RunConfig.from_overrides(TINY)
    tuned = satseg.train([(tmp_path / "hazy.tif", world / "labels.gpkg")], config=config, start=start)
    assert tuned.card.training.start_sources == day.card.training.sources
    assert tuned.card.learnt_from[1:] == day.card.learnt_from
    assert tuned.room["red"].high - tuned.room["red"].low > day.room["red"].high - day.room["red"].low + 50
    # Validation is seen so too: of the day it is near what the start knows.
    shifted(world / "day.tif", tmp_path / "near.tif", world / "labels.gpkg", tmp_path / "near.gpkg")
    run = RunConfig.from_options({"start": str(start)})
    given = [(tmp_path / "hazy.tif", world / "labels.gpkg")], [(tmp_path / "near.tif", tmp_path / "near.gpkg")]
    prepared = prepare(*(open_pairs(pairs, run) for pairs in given), run)
    begun = Start.load(start)
    ready = begun.normalized(prepared)
    assert as_detected(ready, None, begun.sources(ready)).validation[0].scene.levels is None
    assert as_detected(ready, None).validation[0].scene.levels is not None
    unknown = day.card.training.sources[0].model_copy(update={"tone": ()})
    assert as_detected(ready, None, [unknown]) is ready  # nobody knows what the start learnt from


def test_means_of_weights_know_what_all_learnt_from_and_read_as_all_do(world):
    day, fixed = learnt(world), learnt(world, normalize="data")
    for pair in ([day, fixed], [fixed, day]):
        assert average(pair).normalize == "data"
        assert Ensemble.of(pair).normalize == "data"
    both = average([day, learnt(world, rounds=1)])
    assert both.normalize == "near"
    assert both.room == day.room
    source = day.card.training.sources[0].model_copy(update={"crs": None})
    tuned = replace(day, card=day.card.model_copy(
        update={"training": day.card.training.model_copy(update={"start_sources": (source,)})}
    ))  # fmt: skip
    for pair in ([day, tuned], [tuned, day]):
        assert average(pair).card.training.start_sources == (source,)


def test_a_part_brought_near_is_detected_as_in_the_whole(world, tmp_path):
    written(tmp_path / "dark.tif", offset=(-90.0, 60.0))
    model, scene = learnt(world), satseg.open_scene(tmp_path / "dark.tif")
    whole = satseg.predict(model, scene, halo="exact", tone="near")
    bounds = scene.grid.crop(Window(16, 32, 40, 50)).bounds
    part = satseg.predict(model, scene, halo="exact", tone="near", bounds=bounds)
    assert np.allclose(part.data, whole.data[:, 32:82, 16:56], atol=1e-5)


def test_a_vrt_of_files_is_detected_as_their_whole(world, tmp_path, run):
    model, dark = learnt(world), values(offset=(-90.0, 60.0))
    with rasterio.open(written(tmp_path / "whole.tif", offset=(-90.0, 60.0))) as source:
        crs, place, (height, width) = source.crs, source.transform, source.shape
    parts = {name: [] for name in NAMES}
    for row, col in ((0, 0), (0, 50), (70, 0), (70, 50)):
        part = dark[:, row : row + 70, col : col + 50]
        where = place @ Affine.translation(col, row)
        write_tiff(tmp_path / f"{row}_{col}.tif", part, nodata=NODATA, descriptions=NAMES, transform=where)
        for band, found in enumerate(parts.values(), start=1):
            size = f'xSize="{part.shape[2]}" ySize="{part.shape[1]}"'
            found.append(
                f'<SimpleSource><SourceFilename relativeToVRT="1">{row}_{col}.tif</SourceFilename><SourceBand>{band}'
                f'</SourceBand><SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{col}" yOff="{row}" {size}/>'
                "</SimpleSource>"
            )
    bands = "".join(
        f'<VRTRasterBand dataType="Float32" band="{band}"><Description>{name}</Description><NoDataValue>{NODATA}'
        f"</NoDataValue>{''.join(found)}</VRTRasterBand>"
        for band, (name, found) in enumerate(parts.items(), start=1)
    )
    (tmp_path / "tiles.vrt").write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{crs.to_string()}</SRS>'
        f"<GeoTransform>{','.join(map(repr, place.to_gdal()))}</GeoTransform>{bands}</VRTDataset>"
    )
    model.save(tmp_path / "m.safetensors")
    for scene, how in (("whole.tif", ()), ("tiles.vrt", ("--allow-driver", "VRT"))):
        scores = tmp_path / f"{scene}.scores.tif"
        run(
            "detect", tmp_path / "m.safetensors", tmp_path / scene, "-o", tmp_path / f"{scene}.gpkg",
            "--scores", scores, "--device", "cpu", *how,
        ).done()  # fmt: skip
    whole, tiles = (satseg.open_scene(tmp_path / f"{name}.scores.tif").read() for name in ("whole.tif", "tiles.vrt"))
    assert np.array_equal(whole.data, tiles.data, equal_nan=True)
    assert np.array_equal(whole.valid, tiles.valid)


def test_files_of_one_flight_are_moved_alike(world, tmp_path, run, monkeypatch):
    monkeypatch.setattr(levels, "ENOUGH_PX", 9 * 7)  # small scenes are sure of their means too
    monkeypatch.setattr(levels, "ALIKE", 50.0)
    model, dark, folder = learnt(world), values(offset=(-90.0, 60.0)), tmp_path / "flight"
    dark[:, :40] += 3.0  # a field
    folder.mkdir(), (tmp_path / "out").mkdir()
    whole = written(tmp_path / "dark.tif")
    with rasterio.open(whole) as source:
        place = source.transform
    for row, col in ((0, 0), (0, 50), (70, 0), (70, 50)):
        where = place @ Affine.translation(col, row)
        part = dark[[1, 0, 1], row : row + 70, col : col + 50]
        write_tiff(
            folder / f"{row}_{col}.tif", part, nodata=NODATA, descriptions=("blue", *NAMES), transform=where
        )  # fmt: skip
    (folder / "broken.tif").write_bytes((folder / "0_0.tif").read_bytes()[:3000])
    model.save(tmp_path / "m.safetensors")

    def moves(told):
        return [line.split("moved by ")[1].split(" (")[0] for line in told.splitlines() if "moved by" in line]

    one = run("detect", tmp_path / "m.safetensors", folder / "0_0.tif", "-o", tmp_path / "one.gpkg", "--device", "cpu")
    every = run(
        "detect", tmp_path / "m.safetensors", folder, "-o", tmp_path / "out", "--device", "cpu", "--min-area", 0,
        "--threshold", 0.0102,
    )  # fmt: skip
    assert every.status == 5
    assert "5 scenes touch others" in every.err
    assert "touch others" not in one.err
    assert len(moves(every.err)) == 4
    assert len(set(moves(every.err))) == 1
    assert moves(every.err)[0] != moves(one.err)[0]
    scenes = [satseg.open_scene(folder / f"{name}.tif") for name in ("0_0", "0_50", "70_0", "70_50")]
    flight = satseg.flights(scenes)[0]
    counted = []
    monkeypatch.setattr(inference, "tone", lambda *given, blocks=None: counted.append(blocks) or tone(*given))
    for each in scenes:
        alike = satseg.predict(tmp_path / "m.safetensors", each, flight=flight)
    assert counted == [levels.MEASURED_BLOCKS // 4] * 4  # of the files, once for all
    how = {"flight": flight, "threshold": 0.0102, "min_area": 0.0}
    satseg.detect_to_file(model, scenes[3], tmp_path / "alike.gpkg", scores=tmp_path / "alike.tif", **how)
    assert np.array_equal(satseg.open_scene(tmp_path / "alike.tif").read().data, alike.data)
    kept, again = (satseg.read_features(tmp_path / name) for name in ("out/70_50.gpkg", "alike.gpkg"))
    assert len(kept) > 0
    assert kept.equals(again)
    assert np.array_equal(satseg.predict(model, scenes[0], flight=satseg.flights(scenes[:1])[0]).data,
                          satseg.predict(model, scenes[0]).data)  # fmt: skip


def test_a_model_that_knows_no_tone_brings_nothing_near(world, model):
    known = learnt(world)
    sources = tuple(source.model_copy(update={"tone": ()}) for source in known.card.training.sources)
    training = known.card.training.model_copy(update={"sources": sources})
    unknown = replace(known, card=known.card.model_copy(update={"training": training}))
    assert unknown.room == Ensemble.of([known, unknown]).room == {}
    for one, why in ((unknown, "does not know"), (model, "its own levels")):
        with pytest.raises(UsageError, match=why) as caught:
            satseg.predict(one, world / "day.tif", tone="near")
        assert caught.value.code == "E-USE-029"
    with pytest.raises(UsageError, match="'own' or 'near'"):
        satseg.predict(known, world / "day.tif", tone="far")


def test_an_ensemble_leaves_the_room_of_all_its_members(world):
    dusk = satseg.train([(world / "dusk.tif", world / "labels.gpkg")], config=RunConfig.from_overrides(TINY))
    day = learnt(world)
    room = Ensemble.of([day, dusk]).room
    for name in NAMES:
        sides = zip(day.room[name], dusk.room[name], strict=True)
        assert room[name] == (*(choose(both) for choose, both in zip((min, max, min, min, max), sides, strict=True)),)
