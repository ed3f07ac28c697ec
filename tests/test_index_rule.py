"""Classes by an index and a threshold: the fit against brute force, masks against reads."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import satseg
from satseg.errors import LabelError, UsageError
from satseg.imagery.index_rule import IndexClassifier, _ranks, _search
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import open_scene
from satseg.vector.features import read_features
from tests.factories import UTM, noise, north_up, write_tiff


def ground(folder, seed, *, crs=UTM, ignored=False):
    """A scene whose nir is low in a labelled rectangle, with nodata and, if asked for, ground to ignore."""
    rng = np.random.default_rng(seed)
    red, nir = rng.integers(80, 120, (31, 47)), rng.integers(90, 200, (31, 47))
    nir[8:20, 10:30] -= 70
    data = np.stack([red, nir]).astype("uint16")
    data[:, :4, :6] = 0
    path = write_tiff(folder / f"s{seed}.tif", data, nodata=0, descriptions=["red", "nir"], transform=north_up(1.0))
    boxes, names = [shapely.box(500_010, 4_999_980, 500_030, 4_999_992)], ["water"]
    if ignored:
        boxes, names = [*boxes, shapely.box(500_000, 4_999_969, 500_047, 4_999_974)], [*names, "ignore"]
    return open_scene(path), geopandas.GeoDataFrame({"class_name": names}, geometry=boxes, crs=crs)


def pooled(data):
    """NDVI and truth of all pixels that count."""
    values, truth = [], []
    for scene, labels in data:
        raster = satseg.index(scene, "ndvi")
        targets, known = LabelLayer.build(labels, scene.grid, ("water",)).burn(scene.grid)
        known = known & raster.valid
        values.append(raster.data[0][known])
        truth.append(targets[0][known] != 0)
    return np.concatenate(values), np.concatenate(truth)


def brute(values, truth):
    """Best Jaccard of ``values >= t`` and the highest t that has it."""
    scores = [
        (int((truth & (values >= t)).sum()) / int((truth | (values >= t)).sum()), float(t)) for t in np.unique(values)
    ]
    return max(scores)


@pytest.mark.parametrize("ignored", [False, True])
def test_the_fit_is_the_best_threshold_over_all_scenes_together(tmp_path, ignored):
    data = [ground(tmp_path, seed, ignored=ignored) for seed in (1, 2)]
    values, truth = pooled(data)
    wanted, negative = brute(-values, truth)
    rule = IndexClassifier.fit("ndvi", data, class_name="water")
    assert rule.side == "below"
    assert (rule.jaccard, rule.threshold) == (wanted, -negative)
    assert IndexClassifier.fit("ndvi", data, class_name="water") == rule
    above = IndexClassifier.fit("ndvi", data, class_name="water", side="above")
    assert (above.jaccard, above.threshold) == brute(values, truth)


def test_the_mask_has_the_jaccard_of_the_fit(tmp_path):
    data = [ground(tmp_path, 3)]
    rule = IndexClassifier.fit("ndvi", data, class_name="water")
    scene, labels = data[0]
    mask = rule.apply(scene)
    truth = LabelLayer.build(labels, scene.grid, ("water",)).planes(scene.grid)[0] != 0
    truth &= mask.valid
    assert (mask.data[0] & truth).sum() / (mask.data[0] | truth).sum() == rule.jaccard
    assert not mask.data[0][~mask.valid].any()


values_of = st.lists(st.sampled_from([-2.5, -1.0, -1.0000001, 0.0, 1e-30, 0.5, 0.50000006, 0.51, 3.0, 1e9]), min_size=1)


@settings(deadline=None)
@given(values=values_of, data=st.data())
def test_the_search_in_bins_equals_brute_force_for_any_values(values, data):
    numbers = np.array(values, np.float32)
    truth = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    if not truth.any():
        truth[0] = True
    bins = _ranks(numbers) >> 16
    counts = np.stack([np.bincount(bins[~truth], minlength=2**16), np.bincount(bins[truth], minlength=2**16)])
    entered = counts[:, ::-1].cumsum(axis=1)[:, ::-1] - counts
    threshold, jaccard = _search(numbers, truth, entered, int(truth.sum()))
    assert (jaccard, threshold) == brute(numbers, truth)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2).filter(lambda v: v[0] < v[1]))
def test_ranks_keep_the_order_of_floats(pair):
    low, high = _ranks(np.array(pair, np.float32) + np.float32(0))
    assert 0 <= low < high < 2**32


def test_masks_are_streamed_and_become_polygons(tmp_path, run):
    scene, _ = ground(tmp_path, 4)
    rule = IndexClassifier("ndvi", 0.0, "below", "water")
    count = rule.write(scene, tmp_path / "mask.tif")
    wanted = rule.apply(scene)
    with rasterio.open(tmp_path / "mask.tif") as dataset:
        assert (dataset.descriptions, dataset.nodata) == (("water",), 255)
        found = dataset.read()
    np.testing.assert_array_equal(found, np.where(wanted.valid, wanted.data, 255))
    assert count == (found == 1).sum()
    rest = ["-o", tmp_path / "cli.tif", "--below", 0, "--class", "water"]
    assert f"{count} pixels of water: ndvi <= 0" in run("index", tmp_path / "s4.tif", "ndvi", *rest).done().out
    with rasterio.open(tmp_path / "cli.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), found)
    run("polygonize", tmp_path / "cli.tif", "-o", tmp_path / "water.gpkg").done()
    assert read_features(tmp_path / "water.gpkg").area.sum() == pytest.approx(count)


def test_a_rule_that_is_none_and_data_without_the_class_are_refused(tmp_path, run):
    with pytest.raises(UsageError, match="are no rule"):
        IndexClassifier("ndvi", float("nan"))
    scene, labels = ground(tmp_path, 5)
    hidden = labels.assign(geometry=[shapely.box(500_000, 4_999_997, 500_005, 5_000_000)])  # under nodata
    with pytest.raises(LabelError, match="no valid pixel is of class 'water'"):
        IndexClassifier.fit("ndvi", [(scene, hidden)], class_name="water")
    told = run("index", tmp_path / "s5.tif", "ndvi", "sr", "-o", tmp_path / "m.tif", "--above", 0)
    assert "a mask is of one NAME" in told.refused(2, "E-USE-000")


def test_scenes_that_have_only_other_classes_tell_where_the_class_is_not(tmp_path):
    data = [ground(tmp_path, 1), ground(tmp_path, 2)]
    data[1] = (data[1][0], data[1][1].assign(class_name="meadow"))
    values, truth = [], []
    for scene, labels in data:
        raster = satseg.index(scene, "ndvi")
        values.append(raster.data[0][raster.valid])
        wet = labels["class_name"][0] == "water"
        burnt = LabelLayer.build(labels, scene.grid, ("water", "meadow")).burn(scene.grid)[0][0] != 0
        truth.append((burnt & wet)[raster.valid])
    wanted, negative = brute(-np.concatenate(values), np.concatenate(truth))
    rule = IndexClassifier.fit("ndvi", data, class_name="water", side="below")
    assert (rule.jaccard, rule.threshold) == (wanted, -negative)


def test_a_scene_of_noise_has_a_threshold_too(tmp_path):
    path = write_tiff(tmp_path / "noise.tif", noise(2, 20, 33), descriptions=["red", "nir"], transform=north_up(1.0))
    labels = geopandas.GeoDataFrame(geometry=[shapely.box(500_003, 4_999_985, 500_020, 4_999_995)], crs=UTM)
    rule = IndexClassifier.fit("ndvi", [(open_scene(path), labels)])
    assert 0 < rule.jaccard < 1
