"""Small features have to be surer than large ones: from a class's `min_sure_m2` to what `detect` returns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine

import satseg
from satseg.classes import ClassItem, ShapeRule
from satseg.grid import Grid
from satseg.learning.networks.ensemble import Ensemble
from satseg.vector.finish import Cleaning, Sure
from satseg.vector.layers import PlaneCode
from satseg.vector.polygonizer import Polygonizer
from satseg.vector.rules import RuledPolygonizer
from tests.factories import noise, north_up, write_tiff
from tests.worlds import BANDS, tiny_model

PIXEL_M2 = 0.25


@pytest.fixture
def scene(tmp_path):
    pixels = noise(2, 70, 111).astype("uint16") * 8
    return write_tiff(tmp_path / "scene.tif", pixels, transform=north_up(PIXEL_M2**0.5), descriptions=BANDS)


def with_items(model, **changes):
    classes = tuple(item.model_copy(update=changes) for item in model.card.classes)
    return replace(model, card=model.card.model_copy(update={"classes": classes}))


def sure_area(found, threshold):
    return (found.area_m2 * (found.score - threshold) / (1 - threshold)).to_numpy()


@pytest.mark.parametrize("threshold", [None, 0.2, 0.7])
def test_detect_drops_what_it_is_not_sure_of_by_the_threshold_in_force(scene, threshold):
    model, options = tiny_model(), {"threshold": threshold, "tile": 48}
    every = satseg.detect(model, scene, **options)
    counted = sure_area(every, 0.5 if threshold is None else threshold)
    asked = float(np.median(counted)) * 1.001
    found = satseg.detect(with_items(model, min_sure_m2=asked), scene, **options)
    assert found.geometry.to_wkb().tolist() == every[counted >= asked].geometry.to_wkb().tolist()
    assert 0 < len(found) < len(every)


@pytest.mark.parametrize("least", [0.0, 4.0])
def test_a_least_area_given_takes_the_place_of_all_the_model_says_of_small_ones(scene, least):
    model = with_items(tiny_model(), min_area_m2=1.0, min_sure_m2=30.0)
    found = satseg.detect(model, scene, min_area=least, tile=48)
    every = satseg.detect(tiny_model(), scene, tile=48)
    assert len(found) == (every.area_m2 >= least).sum()


def test_masks_do_not_follow_least_areas_but_the_least_core(tmp_path):
    pixels = np.kron(noise(2, 10, 14), np.ones((1, 9, 9))).astype("uint16") * 8
    scene = write_tiff(tmp_path / "blocks.tif", pixels, transform=north_up(PIXEL_M2**0.5), descriptions=BANDS)
    masks = {}
    for name, core, least in (("a", 3.0, 0.0), ("b", 3.0, 100.0), ("c", 0.0, 0.0), ("d", 1e30, 0.0)):
        model = with_items(tiny_model(seed=3, separated=("b",)), min_core_m2=core)
        satseg.detect(model, scene, mask=tmp_path / f"{name}.tif", min_area=least, threshold=0.2, tile=48)
        with rasterio.open(tmp_path / f"{name}.tif") as source:
            masks[name] = source.read()
    np.testing.assert_array_equal(masks["a"], masks["b"])
    counts = [int((masks[name][1] == 1).sum()) for name in "cad"]
    assert counts[0] < counts[1] < counts[2]  # fewer cores, fewer cuts


def test_of_several_models_the_least_holds():
    models = [with_items(tiny_model(seed=seed), min_sure_m2=9.0 * seed, min_core_m2=seed) for seed in (1, 2)]
    assert [(item.min_sure_m2, item.min_core_m2) for item in Ensemble.of(models).items] == [(9.0, 1.0)] * 2


def test_what_classes_say_becomes_cleaning():
    common = {"id": 1, "color": "#000000", "threshold": 0.4, "min_area_m2": 8.0}
    roof, road = (ClassItem(name=name, **common) for name in ("roof", "road"))
    classes = (roof.model_copy(update={"min_sure_m2": 6.0}), road)
    cleaning = Cleaning.of(classes, simplify_m=2.0)
    assert (cleaning.sizes("roof"), cleaning.simplify_m, cleaning.sure) == ((8.0, 0.0), 2.0, {"roof": Sure(6.0, 0.4)})
    given = Cleaning.of(classes, min_area_m2=0.0)
    assert (given.sizes("roof"), given.sure) == ((0.0, 0.0), {})


@pytest.mark.parametrize(
    ("lake", "pond", "kept"),
    [(400.0, 0.0, True), (0.0, 70.0, True), (0.0, 90.0, False), (90.0, 70.0, True), (70.0, 90.0, False)],
)
def test_a_feature_is_asked_by_the_class_that_it_becomes(lake, pond, kept):
    rule = ShapeRule(to="pond", below_m2=300.0)
    classes = (
        ClassItem(name="lake", id=1, color="#000000", min_sure_m2=lake, becomes=(rule,)),
        ClassItem(name="pond", id=2, color="#000000", min_sure_m2=pond),
    )
    codes = np.zeros((2, 40, 40), np.uint8)
    codes[0, 10:20, 10:20] = 203  # 100 of which 80 count
    traced = RuledPolygonizer(
        Grid(40, 40, Affine.identity()), classes, cleaning=Cleaning.of(classes),
        score_of=[PlaneCode(item.threshold).score_of for item in classes],
    )  # fmt: skip
    names = [name for part in (traced.feed(codes), traced.finish()) for name in part.class_name]
    assert names == (["pond"] if kept else [])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_without_sizes_polygons_off_the_earth_stay():
    disk = Grid(60, 60, Affine(200_000, 0, -6e6, 0, -200_000, 6e6), "+proj=geos +h=35786000 +lon_0=0")
    codes = np.zeros((1, 60, 60), np.uint8)
    codes[0, 2:4, 2:4] = codes[0, 30:34, 30:34] = 200
    traced = Polygonizer(disk, [(1, "roof")])
    assert sum(len(part) for part in (traced.feed(codes), traced.finish())) == 2
