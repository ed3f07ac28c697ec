"""score(): pooling, names, CRSs, places, masks, files and folders; layers are made on the spot."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely

from satseg.crs import to_pyproj
from satseg.errors import CRSError, InputError, LabelError, UsageError
from satseg.grid import Grid
from satseg.imagery.labels import rasterize
from satseg.imagery.scene import open_scene
from satseg.raster import Raster
from satseg.scoring.jaccard import AreaCounts
from satseg.scoring.score import score
from tests.factories import ORIGIN, UTM, north_up, write_tiff

X, Y = ORIGIN


def box(left, bottom, width, height):
    """A rectangle in metres from the origin of the tests' ground, which is in UTM."""
    return shapely.box(X + left, Y + bottom, X + left + width, Y + bottom + height)


def layer(*features, crs=UTM, **columns):
    """GeoDataFrame of (class, geometry) pairs."""
    names, shapes = zip(*features, strict=True) if features else ((), ())
    return geopandas.GeoDataFrame(
        {"class_name": np.array(names, dtype=object), **columns}, geometry=list(shapes), crs=crs
    )


def grid(height=30, width=50, gsd=1.0, crs=UTM):
    """Pixels whose lower left corner is the origin."""
    return Grid(height, width, north_up(gsd, y=Y + height * gsd), crs)


def two_classes():
    truth = layer(("a", box(0, 0, 10, 10)), ("b", box(20, 0, 10, 10)))
    pred = layer(("a", box(5, 0, 10, 10)), ("b", box(20, 0, 10, 10)), ("b", box(20, 5, 10, 10)))
    return pred, truth


# ---- pooling and the mean ----------------------------------------------------------------------------


def test_counts_of_each_class_and_their_mean():
    report = score(*two_classes())
    assert report.classes["a"].areas == AreaCounts(50, 50, 50)
    assert report.classes["b"].areas == AreaCounts(100, 50, 0)
    assert report.mean_jaccard == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert (report.classes["b"].truth_features, report.classes["b"].predicted_features) == (1, 2)
    assert (report.classes["b"].objects.tp, report.classes["b"].objects.fp) == (1, 1)


def test_areas_are_summed_over_scenes_and_not_their_ratios_averaged():
    truth = {"one": layer(("a", box(0, 0, 10, 10))), "two": layer(("a", box(0, 0, 1, 1)))}
    pred = {"one": layer(("a", box(0, 0, 10, 10))), "two": layer(("a", box(5, 5, 1, 1)))}
    report = score(pred, truth)
    assert report.mean_jaccard == pytest.approx(100 / 102, abs=1e-12)
    assert [scene.mean_jaccard for scene in report.scenes.values()] == [1, 0]


def test_ten_classes_of_which_most_are_missed_score_as_in_the_contest():
    truth = [("1", box(0, 0, 10, 10)), ("1", box(20, 0, 1, 1)), ("2", box(0, 20, 4, 4))]
    pred = layer(("1", box(0, 0, 10, 10)), ("1", box(30, 0, 1, 1)), ("2", box(2, 22, 4, 4)))
    missed = [(str(number), box(0, 50, 3, 3)) for number in range(3, 11)]
    report = score(pred, layer(*truth, *missed))
    assert report.mean_jaccard == pytest.approx(0.112324930, abs=1e-9)


def test_scenes_in_different_zones_add_up_in_square_metres():
    here = layer(("a", box(0, 0, 10, 10)))
    there = here.set_crs("EPSG:32634", allow_override=True)
    report = score([here, there], [here, there])
    assert report.classes["a"].tp_m2 == pytest.approx(200)
    assert list(report.scenes) == ["scene 1", "scene 2"]


@pytest.mark.parametrize(
    ("rule", "value", "mean"), [("absent", None, 1.0), ("zero", 0.0, 0.5), ("one", 1.0, 1.0)]
)
def test_a_class_absent_from_both_is_worth_what_the_rule_says(rule, value, mean):
    same = layer(("a", box(0, 0, 10, 10)))
    report = score(same, same, classes=["a", "never"], empty=rule)
    assert report.classes["never"].jaccard == value
    assert report.mean_jaccard == mean
    assert report.empty_rule == rule


def test_nothing_on_either_side_is_no_score():
    report = score(layer(), layer())
    assert (report.mean_jaccard, report.mean_pixel_jaccard, report.classes) == (None, None, {})


def test_nothing_predicted_is_zero_and_everything_missed():
    report = score(layer(), layer(("a", box(0, 0, 10, 10))), scene=grid())
    assert (report.mean_jaccard, report.mean_pixel_jaccard, report.classes["a"].fn_m2) == (0, 0, 100)
    assert report.classes["a"].f1 == 0


def test_an_unknown_rule_is_refused():
    with pytest.raises(UsageError, match="half"):
        score(layer(), layer(), empty="half")


# ---- names -------------------------------------------------------------------------------------------


def test_the_class_field_may_have_any_name_and_predictions_keep_theirs():
    pred, truth = two_classes()
    renamed = truth.rename(columns={"class_name": "kind"})
    assert score(pred, renamed, field="kind").mean_jaccard == score(pred, truth).mean_jaccard
    assert score(pred, renamed, truth_field="kind").mean_jaccard == score(pred, truth).mean_jaccard


def test_numbers_are_class_names_whatever_their_type():
    truth = layer(("x", box(0, 0, 5, 5)), ("y", box(9, 0, 5, 5)), kind=[1, 2])
    pred = layer(("x", box(0, 0, 5, 5)), ("y", box(9, 0, 5, 5)), kind=[1.0, 2.0])
    assert score(pred, truth, field="kind").classes.keys() == {"1", "2"}


@pytest.mark.parametrize("named", ["pred", "truth", "neither"])
def test_one_unnamed_class_is_the_one_class_of_the_other_side(named):
    bare = geopandas.GeoDataFrame(geometry=[box(0, 0, 5, 5)], crs=UTM)
    sides = {"pred": bare, "truth": bare}
    if named != "neither":
        sides[named] = layer(("roof", box(0, 0, 5, 5)))
    report = score(sides["pred"], sides["truth"])
    assert report.classes.keys() == {"feature" if named == "neither" else "roof"}
    assert report.mean_jaccard == 1


def test_an_unnamed_class_takes_the_only_name_asked_for():
    bare = geopandas.GeoDataFrame(geometry=[box(0, 0, 5, 5)], crs=UTM)
    assert score(bare, bare, classes=["roof"]).mean_jaccard == 1


def test_an_unnamed_class_beside_several_stays_unnamed():
    _, truth = two_classes()
    report = score(geopandas.GeoDataFrame(geometry=[box(0, 0, 5, 5)], crs=UTM), truth)
    assert report.classes.keys() == {"a", "b", "feature"}


def test_classes_choose_and_order():
    report = score(*two_classes(), classes=["b", "a"])
    assert list(report.classes) == ["b", "a"]
    chosen = score(*two_classes(), classes=["b"])
    assert list(chosen.classes) == ["b"]
    assert any("'a'" in note for note in chosen.warnings)


def test_a_missing_field_names_those_there_are():
    truth = geopandas.GeoDataFrame({"kind": ["a"]}, geometry=[box(0, 0, 5, 5)], crs=UTM)
    with pytest.raises(LabelError, match="'kind'") as caught:
        score(layer(), truth, field="sort")
    assert caught.value.code == "E-LAB-030"


def test_rows_without_class_or_geometry_are_left_out_and_mentioned():
    truth = layer(("a", box(0, 0, 5, 5)), (None, box(0, 0, 50, 50)), ("a", None), ("a", shapely.Polygon()))
    report = score(layer(("a", box(0, 0, 5, 5))), truth)
    assert report.mean_jaccard == 1
    assert any("no class" in note for note in report.warnings)


def test_points_and_lines_are_refused():
    with pytest.raises(LabelError, match="LineString, Point") as caught:
        score(layer(), layer(("a", shapely.Point(X, Y)), ("a", shapely.LineString([(X, Y), (X + 1, Y)]))))
    assert caught.value.code == "E-LAB-031"


def test_invalid_polygons_are_mended_and_counted():
    bow_tie = shapely.Polygon([(X, Y), (X + 2, Y + 2), (X + 2, Y), (X, Y + 2)])
    lobes = shapely.make_valid(bow_tie)
    report = score(layer(("a", bow_tie)), layer(("a", lobes)))
    assert report.mean_jaccard == 1
    assert report.repaired == {"prediction": 1, "truth": 0}


# ---- CRSs --------------------------------------------------------------------------------------------


def test_degrees_and_metres_of_one_place_agree():
    truth = layer(*[("a", box(30 * i, 20 * i, 12, 17)) for i in range(20)])
    report = score(truth.to_crs(4326), truth)
    assert report.mean_jaccard == pytest.approx(1, abs=1e-6)
    assert report.classes["a"].tp_m2 == pytest.approx(20 * 12 * 17, rel=1e-6)


def test_areas_in_degrees_are_square_metres():
    report = score(layer(), layer(("a", box(0, 0, 100, 100))).to_crs(4326))
    assert report.classes["a"].fn_m2 == pytest.approx(10_000, rel=2e-3)  # UTM's own scale, 0.9996 squared
    assert report.area_unit == "m2"


def test_long_edges_follow_their_curves_into_another_crs():
    truth = layer(("a", box(0, 0, 60_000, 40_000)))
    dense = truth.set_geometry(truth.geometry.segmentize(100)).to_crs(4326)
    assert score(truth, dense).mean_jaccard == pytest.approx(1, abs=1e-6)
    assert score(dense, truth).mean_jaccard == pytest.approx(1, abs=1e-6)
    straight = score(
        truth.to_crs(4326), dense
    ).mean_jaccard  # its edges are straight in degrees: another place
    assert 0.99 < straight < 0.999


def test_without_any_crs_units_are_counted():
    plane = layer(("a", shapely.box(0, 0, 4, 4)), crs=None)
    report = score(layer(("a", shapely.box(2, 2, 6, 6)), crs=None), plane)
    assert report.mean_jaccard == pytest.approx(1 / 7)
    assert report.area_unit == "units2"


def test_one_side_without_crs_is_refused():
    plane = layer(("a", shapely.box(0, 0, 4, 4)), crs=None)
    for pair in ((plane, layer(("a", box(0, 0, 4, 4)))), (layer(("a", box(0, 0, 4, 4))), plane)):
        with pytest.raises(CRSError, match=r"none.*give all a CRS") as caught:
            score(*pair)
        assert caught.value.code == "E-CRS-010"
    with pytest.raises(CRSError):
        score(plane, plane, scene=grid())


def test_an_empty_side_needs_no_crs():
    assert score(layer(crs=None), layer(("a", box(0, 0, 4, 4)))).mean_jaccard == 0


def test_a_prediction_elsewhere_is_bad_but_legal():
    report = score(layer(("a", box(90_000, 0, 4, 4))), layer(("a", box(0, 0, 4, 4))))
    assert report.mean_jaccard == 0
    assert any("different places" in note for note in report.warnings)


def test_truth_off_the_scene_is_refused():
    swapped = layer(("a", shapely.box(45.1, 15.0, 45.2, 15.1)), crs=4326)  # latitude first
    with pytest.raises(LabelError, match="order of x and y") as caught:
        score(layer(), swapped, scene=grid())
    assert caught.value.code == "E-LAB-032"


def test_coordinates_that_do_not_exist_are_refused():
    nowhere = layer(("a", shapely.box(X, Y, X + 5, Y + 5)), crs=4326)
    with pytest.raises(CRSError):
        score(nowhere, layer(("a", box(0, 0, 4, 4))))


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
        layer(
            *[
                ("ab"[i % 2], shapely.box(x, y, x + 3, y + 2))
                for i, (x, y) in enumerate(zip(*side, strict=True))
            ]
        )
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
        assert (areas.tp, areas.fp, areas.fn) == pytest.approx(
            (4 * pixels.tp, 4 * pixels.fp, 4 * pixels.fn), rel=1e-9
        )
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
    path = save(
        geopandas.GeoDataFrame({"kind": ["a"]}, geometry=[box(0, 0, 4, 4)], crs=UTM), tmp_path / "t.gpkg"
    )
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
