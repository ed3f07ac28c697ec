"""score() on places, masks, files and folders; layers are made on the spot."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely

from satseg.crs import to_pyproj
from satseg.errors import InputError, LabelError, UsageError
from satseg.grid import Grid
from satseg.imagery.labels import rasterize
from satseg.imagery.scene import open_scene
from satseg.raster import Raster
from satseg.scoring.jaccard import AreaCounts
from satseg.scoring.score import score
from tests.factories import UTM, north_up, write_tiff
from tests.layers import Y, box, grid, layer, two_classes

# ---- places ------------------------------------------------------------------------------------------


def aois(folder):
    region = box(0, 0, 12, 40)
    frame = geopandas.GeoDataFrame(geometry=[region], crs=UTM)
    frame.to_file(folder / "aoi.geojson", driver="GeoJSON")
    return [
        region,
        frame,
        frame.to_crs(4326),
        folder / "aoi.geojson",
        Grid(40, 12, north_up(1.0, y=Y + 40), UTM),
    ]


def test_only_the_area_of_interest_counts_however_it_is_given(tmp_path):
    for aoi in aois(tmp_path):
        report = score(*two_classes(), aoi=aoi)
        assert report.classes["a"].areas.tp == pytest.approx(50, abs=0.01)
        assert report.classes["a"].areas.fp == pytest.approx(20, abs=0.01)
        assert report.classes["b"].areas.union == pytest.approx(0, abs=0.01)
        assert report.classes["b"].truth_features == 0


def test_both_a_scene_and_an_area_of_interest_bound_what_counts():
    report = score(*two_classes(), aoi=box(7, 0, 100, 100), scene=grid(width=12))
    assert report.classes["a"].areas == AreaCounts(30, 20, 0)
    assert report.classes["a"].pixels == AreaCounts(30, 20, 0)


def test_ground_marked_ignore_counts_for_nobody():
    pred, truth = two_classes()
    marked = geopandas.GeoDataFrame(
        {"class_name": [*truth["class_name"], "ignore"]},
        geometry=[*truth.geometry, box(10, 0, 10, 30)],
        crs=UTM,
    )
    report = score(pred, marked, scene=grid())
    assert report.classes["a"].areas == AreaCounts(50, 0, 50)
    assert report.classes["a"].pixels == AreaCounts(50, 0, 50)
    assert report.classes.keys() == {"a", "b"}


def test_ground_the_scene_did_not_see_counts_for_nobody():
    data = np.full((3, 30, 50), 9, np.uint8)
    valid = np.ones((30, 50), bool)
    valid[:, 10:15] = False
    seen = Raster(data, grid(), ("red", "green", "blue"), valid)
    report = score(*two_classes(), aoi=seen)
    assert report.classes["a"].areas == AreaCounts(50, 0, 50)
    assert report.classes["a"].pixels == AreaCounts(50, 0, 50)


def test_a_scene_without_a_valid_pixel_leaves_no_score():
    blind = Raster(np.zeros((1, 30, 50)), grid(), ("grey",), np.zeros((30, 50), bool))
    assert score(*two_classes(), scene=blind).mean_jaccard is None


def test_scene_files_serve_as_area_grid_and_mask(tmp_path):
    data = np.full((3, 30, 50), 9, np.uint8)
    data[:, :, 10:15] = 0
    path = write_tiff(tmp_path / "town.tif", data, transform=north_up(1.0, y=Y + 30), nodata=0)
    for place in (path, open_scene(path)):
        report = score(*two_classes(), scene=place)
        assert report.classes["a"].pixels == AreaCounts(50, 0, 50)
        assert list(report.scenes) == ["town"]


def test_what_is_no_scene_is_refused(tmp_path):
    with pytest.raises(UsageError, match="GeoDataFrame is no scene"):
        score(layer(), layer(), scene=layer())


# ---- pixels and masks --------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 17])
def test_pixel_counts_equal_burnt_masks(turn):
    rng = np.random.default_rng(turn)
    pixels = grid(37, 61, 0.5)
    if turn:
        pixels = Grid(37, 61, pixels.transform @ pixels.transform.rotation(turn), UTM)
    xs, ys = pixels.xy(rows=rng.uniform(0, 37, (2, 30)), cols=rng.uniform(0, 61, (2, 30)))
    sides = [
        layer(*[("ab"[i % 2], shapely.box(x, y, x + 3, y + 2)) for i, (x, y) in enumerate(zip(*side, strict=True))])
        for side in zip(xs, ys, strict=True)
    ]
    report = score(*sides, scene=pixels)
    found, real = (rasterize(side, like=pixels, classes=("a", "b")).data > 0 for side in sides)
    for plane, name in enumerate("ab"):
        expected = AreaCounts(
            (found[plane] & real[plane]).sum(),
            (found[plane] & ~real[plane]).sum(),
            (real[plane] & ~found[plane]).sum(),
        )
        assert report.classes[name].pixels == expected


def test_strips_do_not_matter(monkeypatch):
    whole = score(*two_classes(), scene=grid()).classes["a"].pixels
    monkeypatch.setattr("satseg.scoring.pixels.STRIP_VALUES", 1)
    assert score(*two_classes(), scene=grid()).classes["a"].pixels == whole


def test_areas_and_pixels_of_masks_agree():
    rng = np.random.default_rng(3)
    masks = [Raster(rng.random((2, 30, 50)) < 0.4, grid(gsd=2.0), ("a", "b")) for _ in range(2)]
    report = score(*masks)
    for name in "ab":
        pixels, areas = report.classes[name].pixels, report.classes[name].areas
        assert (areas.tp, areas.fp, areas.fn) == pytest.approx((4 * pixels.tp, 4 * pixels.fp, 4 * pixels.fn), rel=1e-9)
        assert pixels.tp == (masks[0].data & masks[1].data)["ab".index(name)].sum()


def test_outside_a_truth_mask_nothing_is_known():
    truth = Raster(np.ones((1, 10, 10), np.uint8), grid(10, 10), ("a",), np.eye(10) == 0)
    report = score(layer(("a", box(0, 0, 30, 30))), truth)
    assert report.classes["a"].areas == AreaCounts(90, 0, 0)
    assert report.classes["a"].pixels == AreaCounts(90, 0, 0)


def test_beyond_a_predicted_mask_everything_is_missed():
    pred = Raster(np.ones((1, 10, 10), np.uint8), grid(10, 10), ("a",), np.eye(10) == 0)
    report = score(pred, layer(("a", box(0, 0, 20, 10))))
    assert report.classes["a"].areas == AreaCounts(90, 0, 110)
    assert report.classes["a"].pixels == AreaCounts(90, 0, 110)


def test_mask_files_take_their_classes_from_descriptions(tmp_path):
    mask = np.zeros((2, 30, 50), np.uint8)
    mask[0, 20:, :10] = 1
    mask[1, 20:, 20:30] = 1
    mask[:, 0, 0] = 255
    where = {"transform": north_up(1.0, y=Y + 30), "nodata": 255}
    pred = write_tiff(tmp_path / "pred.tif", mask, descriptions=("a", "b"), **where)
    report = score(pred, two_classes()[1])
    assert (report.mean_jaccard, report.mean_pixel_jaccard) == (1, 1)
    assert list(report.scenes) == ["pred"]
    bare = write_tiff(tmp_path / "bare.tif", mask[:1], **where)
    assert score(bare, two_classes()[1].iloc[:1]).classes.keys() == {"a"}
    assert score(layer(), pred).classes["a"].fn_m2 == 100


def test_scores_are_no_masks(tmp_path):
    fractions = np.full((1, 30, 50), 0.3, np.float32)
    path = write_tiff(tmp_path / "scores.tif", fractions, transform=north_up(1.0, y=Y + 30))
    for scores in (Raster(fractions, grid(), ("a",)), path):
        with pytest.raises(UsageError, match="threshold") as caught:
            score(scores, layer())
        assert caught.value.code == "E-USE-067"


def test_a_truth_far_beyond_a_mask_costs_the_pixel_score_only():
    pred = Raster(np.ones((1, 10, 10), np.uint8), grid(10, 10), ("a",))
    report = score(pred, layer(("a", box(0, 0, 10, 10)), ("a", box(80_000, 80_000, 10, 10))))
    assert report.classes["a"].areas == AreaCounts(100, 0, 100)
    assert report.mean_pixel_jaccard is None
    assert any("pixel score" in note for note in report.warnings)


def test_no_grid_means_no_pixel_score():
    report = score(*two_classes())
    assert report.mean_pixel_jaccard is None
    assert report.classes["a"].pixel_jaccard is None


def test_objects_can_be_left_out():
    assert score(*two_classes(), objects=False).classes["a"].f1 is None


# ---- files and pairs ---------------------------------------------------------------------------------


def save(frame, path):
    frame.to_file(path)
    return path


def test_vector_files_and_folders_of_them(tmp_path):
    pred, truth = two_classes()
    for side, frame in (("pred", pred), ("truth", truth)):
        (tmp_path / side).mkdir()
        save(frame, tmp_path / side / "north.gpkg")
        save(frame.iloc[:1], tmp_path / side / "south.gpkg")
    (tmp_path / "pred" / "notes.json").write_text("{}")
    save(pred, tmp_path / "pred" / "west.gpkg")
    report = score(tmp_path / "pred", tmp_path / "truth")
    assert list(report.scenes) == ["north", "south"]
    assert report.classes["a"].areas == AreaCounts(100, 100, 100)
    assert any("west" in note for note in report.warnings)
    single = score(str(tmp_path / "pred" / "north.gpkg"), tmp_path / "truth" / "north.gpkg", field="kind")
    assert single.mean_jaccard == score(pred, truth).mean_jaccard


def test_a_file_without_the_field_is_refused(tmp_path):
    path = save(geopandas.GeoDataFrame({"kind": ["a"]}, geometry=[box(0, 0, 4, 4)], crs=UTM), tmp_path / "t.gpkg")
    with pytest.raises(LabelError, match="kind"):
        score(layer(), path, field="sort")


def test_a_truth_without_prediction_is_refused(tmp_path):
    same = layer(("a", box(0, 0, 4, 4)))
    with pytest.raises(InputError, match="'b'") as caught:
        score({"a": same}, {"a": same, "b": same})
    assert caught.value.code == "E-IN-062"


@pytest.mark.parametrize("aoi", [[box(0, 0, 9, 9)] * 3, {"x": box(0, 0, 9, 9)}])
def test_areas_of_interest_must_fit_the_pairs(aoi):
    same = layer(("a", box(0, 0, 4, 4)))
    with pytest.raises(UsageError):
        score([same, same], [same, same], aoi=aoi)


def test_each_scene_may_have_its_own_area_of_interest():
    same = layer(("a", box(0, 0, 4, 4)))
    report = score([same, same], [same, same], aoi=[box(0, 0, 1, 4), box(0, 0, 2, 4)])
    assert report.classes["a"].tp_m2 == 12


def test_sequences_of_different_lengths_are_refused():
    with pytest.raises(UsageError, match="1 predictions and 2 truths"):
        score([layer()], [layer(), layer()])


def test_folders_without_layers_or_with_doubles_are_refused(tmp_path):
    with pytest.raises(InputError, match="no vector files"):
        score(tmp_path, tmp_path)
    for suffix in ("gpkg", "geojson"):
        save(layer(("a", box(0, 0, 4, 4))).to_crs(4326), tmp_path / f"x.{suffix}")
    with pytest.raises(InputError, match=r"x\.geojson and x\.gpkg"):
        score(tmp_path, tmp_path)


def test_missing_files_are_input_errors(tmp_path):
    for name in ("gone.gpkg", "gone.tif"):
        with pytest.raises(InputError):
            score(tmp_path / name, layer())


def test_progress_is_told_scene_by_scene():
    told = []
    same = layer(("a", box(0, 0, 4, 4)))
    score([same, same], [same, same], progress=lambda *step: told.append(step))
    assert told == [("score", 1, 2, "scene 1"), ("score", 2, 2, "scene 2")]


def test_swapping_prediction_and_truth_swaps_the_errors():
    pred, truth = two_classes()
    there, back = score(pred, truth, scene=grid()), score(truth, pred, scene=grid())
    for name in "ab":
        first, second = there.classes[name], back.classes[name]
        assert (first.areas.fp, first.pixels.fp, first.objects.fp) == (
            second.areas.fn, second.pixels.fn, second.objects.fn,
        )  # fmt: skip
    assert there.mean_jaccard == back.mean_jaccard


def test_inputs_stay_as_they_are():
    pred, truth = two_classes()
    copies = pred.copy(), truth.copy()
    score(pred, truth, scene=grid())
    assert pred.equals(copies[0])
    assert truth.equals(copies[1])
    assert to_pyproj(truth.crs) == to_pyproj(UTM)
