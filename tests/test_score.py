"""score(): pooling, names and CRSs; layers are made on the spot."""

from __future__ import annotations

import geopandas
import pytest
import shapely

from satseg.errors import CRSError, LabelError, UsageError
from satseg.scoring.jaccard import AreaCounts
from satseg.scoring.score import score
from tests.factories import UTM
from tests.layers import X, Y, box, grid, layer, two_classes

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


@pytest.mark.parametrize(("rule", "value", "mean"), [("absent", None, 1.0), ("zero", 0.0, 0.5), ("one", 1.0, 1.0)])
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
    straight = score(truth.to_crs(4326), dense).mean_jaccard  # its edges are straight in degrees: another place
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


def test_an_area_of_interest_without_crs_is_refused_unless_it_is_a_bare_geometry():
    pred, truth = two_classes()
    region = geopandas.GeoDataFrame(geometry=[box(0, 0, 12, 40)])
    with pytest.raises(CRSError):
        score(pred, truth, aoi=region)
    assert score(pred, truth, aoi=region.geometry[0]).classes["a"].areas == AreaCounts(50, 20, 50)


def test_what_is_no_layer_is_refused():
    with pytest.raises(UsageError, match="a dict is no prediction"):
        score([{}], [layer()])
