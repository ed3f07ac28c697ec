"""Submissions: the sample's rows in its order, every geometry valid as it will be read."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.errors import LabelError, OutputError, UsageError
from satseg.tasks.dstl.folder import ContestFolder
from satseg.tasks.dstl.frame import Frame
from satseg.tasks.dstl.labels import as_layer, class_areas
from satseg.tasks.dstl.predictions import read_predictions
from satseg.tasks.dstl.rounding import EMPTY, rounded, rounded_wkt
from satseg.tasks.dstl.submission import (
    read_sample,
    read_submission,
    submission_layer,
    write_submission,
    write_submission_layer,
)
from satseg.vector.features import read_features, write_features
from tests.contests import IDS, build_contest, pixel_box, sample_table

HOUSE, TREE = pixel_box(10, 10, 20, 22), pixel_box(15, 15, 30, 30)
M8 = Frame(3396, 3349, 0.009169, -0.00904)


def layer(*shapes, numbers=None):
    return as_layer(np.array(shapes, dtype=object), numbers or [1] * len(shapes))


@pytest.fixture
def sample(tmp_path):
    return sample_table(tmp_path / "sample.csv")


def test_rows_come_in_the_order_of_the_sample_and_the_rest_is_empty(tmp_path, sample):
    path = tmp_path / "submission.csv"
    done = write_submission(path, {"6030_4_4": layer(HOUSE, TREE, numbers=[1, 5])}, sample=sample)
    assert (done.rows, done.filled, done.moved) == (30, 2, ())
    rows = list(read_submission(path, strict=True))
    assert [(row.image_id, row.class_id) for row in rows] == list(read_sample(sample))
    filled = {(row.image_id, row.class_id): row.geometry for row in rows if not row.geometry.is_empty}
    assert set(filled) == {("6030_4_4", 1), ("6030_4_4", 5)}
    assert filled["6030_4_4", 1].geom_type == "MultiPolygon"
    assert filled["6030_4_4", 1].area == pytest.approx(HOUSE.area, rel=1e-3)
    lines = path.read_text().splitlines()
    assert lines[0] == "ImageId,ClassType,MultipolygonWKT"
    assert len(lines) == 31
    assert lines[1] == "6020_0_0,1,MULTIPOLYGON EMPTY"
    assert "e-" not in path.read_text(), "no exponents, which not every reader of WKT takes"


def test_the_contests_own_sample_gives_4290_rows(tmp_path):
    regions = range(6010, 6190, 10)
    ids = [f"{region}_{row}_{col}" for region in regions for row in range(5) for col in range(5)][:429]
    order = [(i, number) for i in ids for number in range(1, 11)]
    done = write_submission(tmp_path / "s.csv", {ids[-1]: layer(HOUSE)}, sample=order)
    assert (done.rows, done.filled) == (4290, 1)
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 4291


def test_moved_tiles_stay_empty_whatever_was_predicted(tmp_path, sample):
    done = write_submission(tmp_path / "s.csv", {"6070_2_3": layer(HOUSE)}, sample=sample)
    assert done.moved == ("6070_2_3",)
    assert done.filled == 0
    kept = write_submission(tmp_path / "t.csv", {"6070_2_3": layer(HOUSE)}, sample=sample, empty=())
    assert kept.filled == 1


def test_tiles_and_classes_that_the_contest_does_not_have_are_refused(tmp_path, sample):
    with pytest.raises(LabelError, match="6999_0_0") as caught:
        write_submission(tmp_path / "s.csv", {"6999_0_0": layer(HOUSE)}, sample=sample)
    assert caught.value.code == "E-LAB-331"
    odd = geopandas.GeoDataFrame({"class_id": [11]}, geometry=[HOUSE])
    for wrong in (odd, odd.drop(columns="class_id")):
        with pytest.raises(LabelError, match="6030_4_4") as caught:
            write_submission(tmp_path / "s.csv", {"6030_4_4": wrong}, sample=sample)
        assert caught.value.code == "E-LAB-332"
    assert not (tmp_path / "s.csv").exists(), "complete or absent"


def test_an_existing_file_is_kept_unless_asked(tmp_path, sample):
    (tmp_path / "s.csv").write_text("mine")
    with pytest.raises(OutputError):
        write_submission(tmp_path / "s.csv", {}, sample=sample)
    assert (tmp_path / "s.csv").read_text() == "mine"
    write_submission(tmp_path / "s.csv", {}, sample=sample, overwrite=True)


def test_one_tile_at_a_time_is_asked_for(tmp_path, sample):
    asked = []

    class Lazy(dict):
        def __getitem__(self, key):
            asked.append(key)
            return layer(HOUSE)

    write_submission(tmp_path / "s.csv", Lazy.fromkeys(["6030_4_4", "6020_0_0"]), sample=sample)
    assert asked == ["6020_0_0", "6030_4_4"], "once each, when its rows come"


@pytest.mark.parametrize(("decimals", "jaccard"), [(5, 0.8390), (6, 0.9934), (7, 0.9974), (8, 0.99969), (9, 0.99998)])
def test_rounding_costs_what_was_worked_by_hand(decimals, jaccard):
    # shared facts 6.3-M9; at 4 decimals the box is gone
    box = M8.moved(np.array([shapely.box(100, 200, 110, 220)]), source="pixels", target="label")
    text = rounded(box, decimals=decimals)
    both = text.intersection(box[0]).area
    found = both / (text.area + box[0].area - both)
    assert found == pytest.approx(jaccard, abs=6e-5)
    # and exactly what a rounded rectangle has
    left, bottom, right, top = np.round(box[0].bounds, decimals)
    assert text.equals_exact(shapely.MultiPolygon([shapely.box(left, bottom, right, top)]).normalize(), 1e-12) or (
        text.area == pytest.approx((right - left) * (top - bottom), rel=1e-9)
    )
    assert rounded_wkt(box, decimals=4) == EMPTY


coordinates = st.tuples(st.integers(0, 40), st.integers(-40, 0))
rings = st.lists(coordinates, min_size=3, max_size=12)


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(rings, min_size=1, max_size=5), scale=st.sampled_from([1.3e-9, 1e-8, 2.7e-6, 2.2e-4]),
       turn=st.floats(0, 3), decimals=st.sampled_from([8, 9]))  # fmt: skip
def test_ugly_polygons_are_valid_as_read_and_keep_their_area(shapes, scale, turn, decimals):
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = [np.array(ring) @ turned for ring in shapes]
    ugly = np.array([shapely.Polygon(ring * scale) for ring in points], dtype=object)
    text = rounded_wkt(ugly, decimals=decimals)
    found = shapely.from_wkt(text)
    assert found.is_valid
    assert found.geom_type == "MultiPolygon"
    mended = shapely.union_all([shapely.make_valid(one, method="structure", keep_collapsed=False) for one in ugly])
    outline = sum(one.length for one in ugly)
    assert abs(found.area - mended.area) <= 2 * outline * 10**-decimals + 1e-22
    assert rounded_wkt(np.array([found]), decimals=decimals) == text or found.area == pytest.approx(
        rounded(np.array([found]), decimals=decimals).area, rel=1e-9
    ), "rounding again changes nothing"


def test_parts_that_touch_or_overlap_become_one_valid_multipolygon():
    squares = np.array([pixel_box(0, 0, 5, 5), pixel_box(5, 0, 9, 5), pixel_box(9, 5, 12, 8), pixel_box(3, 3, 7, 7)])
    found = rounded(squares)
    assert found.is_valid
    assert found.area == pytest.approx(shapely.union_all(squares).area, rel=1e-3)
    holed = pixel_box(0, 0, 20, 20).difference(pixel_box(5, 5, 15, 15))
    assert len(rounded(np.array([holed])).geoms[0].interiors) == 1
    assert rounded_wkt(np.array([], dtype=object)) == rounded_wkt(np.array([shapely.Polygon()])) == EMPTY


def test_impossible_decimals_are_refused():
    with pytest.raises(UsageError, match="13"):
        rounded_wkt(np.array([HOUSE]), decimals=13)


@pytest.mark.parametrize("suffix", [".gpkg", ".shp"])
def test_a_submission_is_a_layer_too(tmp_path, sample, suffix):
    write_submission(
        tmp_path / "s.csv", {"6030_4_4": layer(HOUSE, TREE, numbers=[1, 5]), "6020_0_0": layer(TREE)}, sample=sample
    )
    write_submission_layer(tmp_path / "s.csv", tmp_path / f"s{suffix}")
    found = read_features(tmp_path / f"s{suffix}")
    assert list(found["image_id"]) == ["6020_0_0", "6030_4_4", "6030_4_4"]
    assert list(found["class_id"]) == [1, 1, 5]
    assert list(found["class_name"]) == ["Buildings", "Buildings", "Trees"]
    assert found.crs is None
    assert found.total_bounds[3] < 0
    assert found.geometry.area.sum() == pytest.approx(2 * TREE.area + HOUSE.area, rel=1e-3)


def test_an_empty_submission_is_an_empty_layer(tmp_path, sample):
    write_submission(tmp_path / "s.csv", {}, sample=sample)
    assert not len(submission_layer(tmp_path / "s.csv"))


def test_invalid_rows_are_refused_by_line_when_strict(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(
        "ImageId,ClassType,MultipolygonWKT\n6010_1_2,1,MULTIPOLYGON EMPTY\n"
        '6010_1_2,2,"MULTIPOLYGON (((0 0, 2 2, 2 0, 0 2, 0 0)))"\n'
    )
    assert len(list(read_submission(path))) == 2
    with pytest.raises(LabelError, match=r"line 3 .*Self-intersection\[1 1\]") as caught:
        list(read_submission(path, strict=True))
    assert caught.value.code == "E-LAB-333"


@pytest.mark.parametrize("units", ["label", "metres", "pixels"])
def test_predictions_come_back_from_the_units_they_are_in(tmp_path, units):
    contest = ContestFolder.open(build_contest(tmp_path, IDS[:2]))
    frame = contest.tile(IDS[0]).frame()
    truth = contest.labels()[IDS[0]]
    shapes = frame.moved(truth.geometry.to_numpy(), source="label", target=units)
    folder = tmp_path / "predictions"
    folder.mkdir()
    write_features(truth.set_geometry(geopandas.GeoSeries(shapes)), folder / f"{IDS[0]}.gpkg")
    (folder / "notes.txt").write_text("not a layer")
    found = read_predictions(contest, folder, units=units)
    assert list(found) == [IDS[0]]
    assert IDS[0] in found
    assert len(found) == 1
    assert class_areas(found[IDS[0]]) == pytest.approx(class_areas(truth), rel=1e-9)
    for other in {"label", "metres", "pixels"} - {units}:
        if "label" in (units, other):  # metres and pixels are a factor of 3 apart, which no layer need show
            with pytest.raises(LabelError, match="units") as caught:
                read_predictions(contest, folder, units=other)[IDS[0]]
            assert caught.value.code in ("E-LAB-312", "E-LAB-342"), "beyond the tile, or a dot in its corner"


def test_predictions_of_one_file_are_told_apart_by_image_id(tmp_path):
    contest = ContestFolder.open(build_contest(tmp_path, IDS[:2]))
    write_submission(
        tmp_path / "s.csv", {IDS[1]: layer(HOUSE), IDS[0]: layer(TREE, numbers=[5])},
        sample=[(i, n) for i in IDS[:2] for n in range(1, 11)], empty=(),
    )  # fmt: skip
    write_submission_layer(tmp_path / "s.csv", tmp_path / "all.gpkg")
    found = read_predictions(contest, tmp_path / "all.gpkg", units="label")
    assert sorted(found) == sorted(IDS[:2])
    assert list(found[IDS[0]]["class_id"]) == [5]
    table = read_features(tmp_path / "all.gpkg")
    table["image_id"] = [IDS[0], None]
    write_features(table, tmp_path / "some.gpkg")
    with pytest.raises(LabelError, match="1 features have no image_id, the first is feature 2") as caught:
        read_predictions(contest, tmp_path / "some.gpkg", units="label")
    assert caught.value.code == "E-LAB-343"


def test_predictions_that_cannot_be_told_are_refused(tmp_path):
    contest = ContestFolder.open(build_contest(tmp_path, IDS[:1]))
    folder = tmp_path / "predictions"
    with pytest.raises(Exception, match="no such file"):
        read_predictions(contest, folder)
    folder.mkdir()
    with pytest.raises(Exception, match="no vector file"):
        read_predictions(contest, folder)
    write_features(layer(HOUSE).assign(class_name="hut"), folder / f"{IDS[0]}.gpkg")
    with pytest.raises(LabelError, match="'hut'"):
        read_predictions(contest, folder, units="label")[IDS[0]]
    with pytest.raises(LabelError, match="image_id"):
        read_predictions(contest, folder / f"{IDS[0]}.gpkg")
    write_features(layer(HOUSE), folder / f"{IDS[0]}.csv")
    with pytest.raises(Exception, match="both"):
        read_predictions(contest, folder)
