"""The contest's tables and labels as layers; every fault with its file and line."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import shapely

from satseg.errors import InputError, LabelError, UsageError
from satseg.tasks.dstl.facts import GEOJSON_CLASSES, dstl_classes, ground_of, tile_ground_of, twins
from satseg.tasks.dstl.folder import ContestFolder
from satseg.tasks.dstl.labels import class_areas, read_geojson_labels, read_wkt_labels
from satseg.tasks.dstl.tables import read_grid_sizes, read_wkt_rows
from tests.contests import IDS, LABELLED, X_MAX, Y_MIN, build_contest, pixel_box, usual_labels, wkt_table, write_geojson

HEAD = "ImageId,ClassType,MultipolygonWKT\n"
EXTENTS = {"6010_1_2": (X_MAX, Y_MIN)}


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    return ContestFolder.open(build_contest(tmp_path_factory.mktemp("contest"), LABELLED))


def table(tmp_path, *rows):
    path = tmp_path / "train_wkt_v4.csv"
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows))
    return path


def test_labels_are_polygons_with_the_classes_of_the_spec(contest):
    labels = contest.labels()
    assert sorted(labels) == sorted(LABELLED)
    layer = labels["6010_1_2"]
    assert list(layer.columns) == ["class_id", "class_name", "geometry"]
    assert layer.crs is None
    assert sorted(layer["class_id"]) == [1, 1, 5, 5, 7], "multipolygons are taken apart"
    assert set(layer["class_name"]) == {"Buildings", "Trees", "Waterway"} <= set(dstl_classes().class_names)
    assert layer.attrs == {"repaired": 0, "dropped": 0, "invalid_rows": ()}
    assert layer.total_bounds[3] <= 0, "y is negative"


def test_labels_lie_on_the_pixels_that_they_are_of(contest):
    from satseg.imagery.labels import rasterize

    image_id = "6010_1_2"
    frame, scene = contest.tile(image_id).frame(), contest.tile(image_id).scene()
    masks = rasterize(contest.labels_of(image_id), like=scene.grid, classes=["Buildings"])
    assert masks.data[0].sum() == 12 * 10 + 15 * 12
    assert masks.data[0, 5:15, 5:17].all()
    assert frame.width == scene.grid.width


def test_all_three_ways_to_say_nothing_and_a_single_polygon_are_taken(tmp_path):
    box = pixel_box(1, 1, 9, 9)
    path = table(
        tmp_path, "6010_1_2,1,MULTIPOLYGON EMPTY", '6010_1_2,2,"GEOMETRYCOLLECTION EMPTY"',
        f'6010_1_2,3,"{shapely.to_wkt(box, rounding_precision=17)}"', "6010_1_2,4,POLYGON EMPTY",
    )  # fmt: skip
    layer = read_wkt_labels(path, EXTENTS)["6010_1_2"]
    assert list(layer["class_name"]) == ["Road"]
    assert layer.geometry.iloc[0].symmetric_difference(box).area < 1e-9 * box.area


def test_bow_ties_keep_both_lobes_and_are_counted(tmp_path):
    tie = "POLYGON ((0 0, 0.002 -0.002, 0.002 0, 0 -0.002, 0 0))"
    path = table(tmp_path, f'6010_1_2,5,"{tie}"', "6010_1_2,6,MULTIPOLYGON EMPTY")
    layer = read_wkt_labels(path, EXTENTS)["6010_1_2"]
    assert layer.attrs["repaired"] == 1
    assert layer.attrs["invalid_rows"] == ("line 2",)
    assert layer.geometry.is_valid.all()
    assert class_areas(layer)[4] == pytest.approx(2e-6)


def test_parts_that_overlap_stay_objects_and_count_their_ground_once(tmp_path):
    both = shapely.MultiPolygon([pixel_box(0, 0, 20, 20), pixel_box(10, 0, 30, 20)])
    layer = read_wkt_labels(wkt_table({"6010_1_2": {5: both}}, tmp_path / "t.csv"))["6010_1_2"]
    assert len(layer) == 2
    assert layer.attrs["repaired"] == 0
    assert len(layer.attrs["invalid_rows"]) == 1, "as a whole it is invalid"
    assert class_areas(layer)[4] == pytest.approx(pixel_box(0, 0, 30, 20).area)


def test_a_row_longer_than_pythons_csv_limit_is_read_and_the_limit_stays(tmp_path):
    before = csv.field_size_limit()
    angles = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    ring = np.column_stack([0.004 + 0.003 * np.cos(angles), -0.004 + 0.003 * np.sin(angles)])
    path = wkt_table({"6010_1_2": {6: shapely.Polygon(ring)}}, tmp_path / "t.csv")
    assert max(map(len, path.read_text().splitlines())) > 5 * before
    layer = read_wkt_labels(path, EXTENTS)["6010_1_2"]
    assert shapely.get_num_coordinates(layer.geometry.iloc[0]) == 20_001
    assert csv.field_size_limit() == before == 131_072


@pytest.mark.parametrize(
    ("row", "kind", "code", "said"),
    [
        ('6010_1_2,1,"POLYGON ((0 0, 1 1"', LabelError, "E-LAB-301", "line 3"),
        ("6010_1_2,1,", LabelError, "E-LAB-301", "line 3"),
        ("6010_1_2,1", LabelError, "E-LAB-301", "line 3"),
        ("6010_1_2,1,POINT (0 0)", LabelError, "E-LAB-302", "Point"),
        ('6010_1_2,1,"POLYGON ((0 0, 1 nan, 1 1, 0 0))"', LabelError, "E-LAB-303", "line 3"),
        ('6010_1_2,1,"POLYGON ((0 0, 1e999 1, 1 1, 0 0))"', LabelError, "E-LAB-303", "line 3"),
        ("6999_9_9,1,MULTIPOLYGON EMPTY", LabelError, "E-LAB-311", "6999_9_9"),
        ('6010_1_2,1,"POLYGON ((0 0, 0.001 0, 0.001 0.001, 0 0))"', LabelError, "E-LAB-312", "y negative"),
        ('6010_1_2,1,"POLYGON ((0 0, 31 0, 31 -31, 0 0))"', LabelError, "E-LAB-312", "label units"),
        ("6010_1_2,11,MULTIPOLYGON EMPTY", InputError, "E-IN-306", "'11'"),
        ("6010_1_2,one,MULTIPOLYGON EMPTY", InputError, "E-IN-306", "'one'"),
        (",1,MULTIPOLYGON EMPTY", InputError, "E-IN-306", "line 3"),
        ("6010_1_2,2,MULTIPOLYGON EMPTY", InputError, "E-IN-304", "twice"),
        ("6010_1_2,3,a,b", InputError, "E-IN-302", "line 3"),
        ('6010_1_2,3,"POLYGON', InputError, "E-IN-302", "no CSV"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, row, kind, code, said):
    path = table(tmp_path, "6010_1_2,2,MULTIPOLYGON EMPTY", row)
    with pytest.raises(kind, match=said) as caught:
        read_wkt_labels(path, EXTENTS)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "E-IN-301"),
        ("", "E-IN-302"),
        ("a,b,c\n1,2,3\n", "E-IN-303"),
        ("ImageId,Xmax,Ymin\n6010_1_2,0.009,-0.009\n", "E-IN-303"),
        (",Xmax,Ymin\n6010_1_2,0.009,0.009\n", "E-IN-305"),
        (",Xmax,Ymin\n6010_1_2,x,-0.009\n", "E-IN-305"),
        (",Xmax,Ymin\n6010_1_2,inf,-0.009\n", "E-IN-305"),
        (",Xmax,Ymin\n6010_1_2,0.009,-0.009\n6010_1_2,0.009,-0.009\n", "E-IN-304"),
    ],
)
def test_grid_sizes_that_are_none_are_refused(tmp_path, text, code):
    path = tmp_path / "grid_sizes.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_grid_sizes(path)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_grid_sizes_have_a_first_header_cell_of_nothing(tmp_path):
    path = tmp_path / "grid_sizes.csv"
    path.write_bytes(b"\xef\xbb\xbf,Xmax,Ymin\r\n6120_2_4,0.009188,-0.00904\r\n\r\n")
    assert read_grid_sizes(path) == {"6120_2_4": (0.009188, -0.00904)}


def test_text_that_is_not_utf8_is_no_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(HEAD.encode() + b"\xff\xfe,1,x\n")
    with pytest.raises(InputError, match="no CSV"):
        list(read_wkt_rows(path))


def test_geojson_gives_what_wkt_gives(tmp_path, contest):
    for image_id, classes in usual_labels().items():
        for name, number in (("001_MM_L2_LARGE_BUILDING", 1), ("006_VEG_L2_WOODLAND", 5), ("008_WTR_L3_WATERWAY", 7)):
            if number in classes:
                write_geojson(tmp_path / image_id / f"{name}.geojson", list(classes[number].geoms))
        write_geojson(tmp_path / image_id / f"Grid_{image_id}.geojson", [shapely.box(0, Y_MIN, X_MAX, 0)])
    found = read_geojson_labels(tmp_path, contest.extents)
    for image_id, layer in contest.labels().items():
        assert class_areas(found[image_id]) == pytest.approx(class_areas(layer), abs=1e-16)
        assert len(found[image_id]) == len(layer)
        assert found[image_id].attrs["unknown"] == ()


def test_18_geojson_names_stand_for_the_ten_classes(tmp_path):
    assert len(GEOJSON_CLASSES) == 18
    assert set(GEOJSON_CLASSES.values()) == set(range(1, 11))
    write_geojson(tmp_path / "6010_1_2" / "007_AGR_L7_FARM_ANIMALS_IN_FIELD.geojson", [pixel_box(0, 0, 5, 5)])
    layer = read_geojson_labels(tmp_path)["6010_1_2"]
    assert not len(layer)
    assert layer.attrs["unknown"] == ("007_AGR_L7_FARM_ANIMALS_IN_FIELD",)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "E-IN-307"),
        ("[]", "E-IN-307"),
        ('{"features": [{"geometry": {"type": "Point", "coordinates": [0, 0]}}]}', "E-LAB-302"),
        ('{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0,0],[1,0],[1,1],[0,0]]]}}]}', "E-LAB-312"),
    ],
)
def test_bad_geojson_is_named(tmp_path, text, code):
    path = tmp_path / "6010_1_2" / "002_TR_L3_GOOD_ROADS.geojson"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises((InputError, LabelError)) as caught:
        read_geojson_labels(tmp_path, EXTENTS)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_tiles_that_are_not_there_or_not_labelled_are_told(contest, tmp_path):
    with pytest.raises(InputError, match="did you mean") as caught:
        contest.tile("6010_1_1")
    assert caught.value.code == "E-IN-313"
    whole = ContestFolder.open(build_contest(tmp_path, (IDS[0], IDS[4])))
    with pytest.raises(LabelError) as caught:
        whole.labels_of(IDS[4])
    assert caught.value.code == "E-LAB-313"
    (tmp_path / "train_wkt_v4.csv").unlink()
    with pytest.raises(InputError) as caught:
        whole.labels()
    assert caught.value.code == "E-IN-314"
    with pytest.raises(UsageError):
        whole.labels(form="kml")
    with pytest.raises(InputError) as caught:
        ContestFolder.open(tmp_path / "nowhere")
    assert caught.value.code == "E-IN-312"


def test_regions_shown_twice_are_one_ground():
    assert ground_of("6140_1_2") == ground_of("6110_0_0") == "6110"
    assert ground_of("6130_1_2") == ground_of("6020_4_4")
    assert ground_of("6150_0_0") == ground_of("6030_0_0")
    assert tile_ground_of("6140_1_2") == tile_ground_of("6110_1_2") != tile_ground_of("6110_1_3")
    assert ground_of("my tile") == "my tile"
    assert twins(["6140_3_1", "6110_1_2", "6140_1_2", "6010_0_0"]) == (("6110_1_2", "6140_1_2"),)
