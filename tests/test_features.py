"""Vector files: every format keeps what it is given, foreign and damaged files are refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine

from satseg.errors import LabelError, OutputError, SatsegError
from satseg.grid import Grid
from satseg.imagery.labels import rasterize
from satseg.vector.features import as_features, check_target, empty_features, read_features, write_features
from satseg.vector.formats import FORMATS
from satseg.vector.polygonize import polygonize
from satseg.vector.shapefile import shapefile_columns

DISK_SIZE = "256k"

SUFFIXES = [".shp", ".gpkg", ".geojson", ".json", ".fgb", ".parquet", ".geoparquet", ".csv"]
COLUMNS = ["class_id", "class_name", "score", "area_m2", "geometry"]
LOCAL = "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m"
BOWTIE = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])


def layer(crs: Any = 32633, *, count: int = 3) -> geopandas.GeoDataFrame:
    """A polygon with a hole, a multipolygon, a triangle; classes é, b, é."""
    x, y = 500_000.123456789, 5_000_000.987654321
    ring = shapely.difference(shapely.box(x, y, x + 10, y + 10), shapely.box(x + 4, y + 4, x + 6, y + 6))
    two = shapely.MultiPolygon([shapely.box(x + 20, y, x + 21, y + 1), shapely.box(x + 22, y, x + 23, y + 1)])
    triangle = shapely.Polygon([(x + 30, y), (x + 31, y + 1 / 3), (x + 30, y + 1)])
    made = as_features(
        np.array([ring, two, triangle], dtype=object),
        class_ids=[2, 1, 2],
        class_names=["é", "b", "é"],
        scores=[0.25, np.nan, 1.0],
        areas_m2=[96.0, 2.0, 0.5],
        crs=32633,
    )
    made = made.iloc[:count]
    return made if crs is None or crs == 32633 else made.to_crs(crs)


def features_of(polygons: list[shapely.Polygon], crs: Any, **columns: Any) -> geopandas.GeoDataFrame:
    count = len(polygons)
    values = {"class_ids": [1] * count, "class_names": ["a"] * count, "scores": [1.0] * count} | columns
    return as_features(np.array(polygons), areas_m2=[1.0] * count, crs=crs, **values)


def table(geometries: list[Any], crs: Any = 32633, **columns: Any) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(columns, geometry=geometries, crs=crs)


def boxes(count: int) -> list[shapely.Polygon]:
    return [shapely.box(k, 0, k + 1, 1) for k in range(count)]


def save(made: geopandas.GeoDataFrame, path: Path, driver: str | None = None, **options: Any) -> Path:
    pyogrio.write_dataframe(made, path, driver=driver, **options)
    return path


def code_of(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SatsegError) as caught:
        call(*args, **kwargs)
    return caught.value.code


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_back_columns_classes_and_geometries(tmp_path: Path, suffix: str) -> None:
    made, path = layer(), tmp_path / f"out{suffix}"
    write_features(made, path)
    back = read_features(path).sort_values("area_m2", ascending=False, ignore_index=True)  # FlatGeobuf sorts
    assert list(back.columns) == COLUMNS
    assert back.dtypes.to_dict() == made.dtypes.to_dict()
    pandas.testing.assert_frame_equal(back.drop(columns="geometry"), made.drop(columns="geometry"))
    if "json" in suffix:
        assert back.crs.to_epsg() == 4326
        assert shapely.hausdorff_distance(back.geometry.to_crs(32633), made.geometry).max() < 1e-4
    else:
        assert back.crs == made.crs
        for one, other in zip(back.geometry, made.geometry, strict=True):
            corners = [{tuple(xy) for xy in shapely.get_coordinates(shape)} for shape in (one, other)]
            assert corners[0] == corners[1]  # to the last bit
            assert shapely.equals(one, other)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("crs", [32633, 4326, LOCAL, "EPSG:2263", "EPSG:7405", None])
def test_the_crs_survives_also_in_an_empty_layer(tmp_path: Path, suffix: str, crs: Any) -> None:
    path = tmp_path / f"out{suffix}"
    if crs is None and "json" in suffix:
        assert code_of(check_target, path, crs=None) == "E-CRS-211"
        assert code_of(write_features, empty_features(), path) == "E-CRS-211"
        return
    for made in (empty_features(crs), features_of(boxes(1), crs)):
        write_features(made, path, overwrite=True)
        back = read_features(path)
        assert len(back) == len(made)
        assert list(back.columns) == COLUMNS
        if crs is None:
            assert back.crs is None
        elif "json" in suffix:
            assert back.crs.to_epsg() == 4326
        else:
            expected = pyproj.CRS(crs)
            flat = expected.sub_crs_list[0] if expected.is_compound else expected
            assert any(back.crs.equals(known, ignore_axis_order=True) for known in (expected, flat))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_existing_files_stay_unless_overwriting_and_nothing_else_is_left(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write_features(layer(), path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert code_of(write_features, layer(count=1), path) == "E-OUT-003"
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    write_features(layer(count=1), path, overwrite=True)
    assert len(read_features(path)) == 1
    assert set(os.listdir(tmp_path)) == set(before)


@pytest.mark.parametrize("name", ["out.kml", "out.foo", "out", "out.tif", "out.shp.zip", "out.gml"])
def test_unknown_suffixes_are_refused_with_the_list(tmp_path: Path, name: str) -> None:
    with pytest.raises(SatsegError, match=r"\.shp \.gpkg \.geojson") as caught:
        write_features(layer(), tmp_path / name)
    assert (caught.value.code, caught.value.exit_code) == ("E-USE-221", 2)
    assert os.listdir(tmp_path) == []


def test_suffixes_may_be_in_capitals(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        assert FORMATS[suffix] is check_target(tmp_path / f"OUT{suffix.upper()}", crs=4326)
    write_features(layer(), tmp_path / "OUT.SHP")
    assert len(read_features(tmp_path / "OUT.SHP")) == 3


def test_missing_folder_is_told_before_the_work(tmp_path: Path) -> None:
    assert code_of(check_target, tmp_path / "no" / "a.gpkg", crs=4326) == "E-OUT-002"


def test_layer_can_be_written_in_another_crs(tmp_path: Path) -> None:
    write_features(layer(), tmp_path / "a.gpkg", crs=32634)
    back = read_features(tmp_path / "a.gpkg")
    assert back.crs.to_epsg() == 32634
    assert shapely.hausdorff_distance(back.geometry.to_crs(32633), layer().geometry).max() < 1e-6
    assert code_of(write_features, empty_features(), tmp_path / "b.gpkg", crs=3035).startswith("E-CRS")


def test_geojson_follows_rfc_7946(tmp_path: Path) -> None:
    write_features(layer(), tmp_path / "a.geojson")
    text = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    assert "crs" not in text
    assert text["features"][1]["properties"]["score"] is None
    x, y = text["features"][0]["geometry"]["coordinates"][0][0]
    assert 14 < x < 16
    assert 45 < y < 46
    for feature in read_features(tmp_path / "a.geojson").geometry:
        for part in getattr(feature, "geoms", [feature]):
            assert part.exterior.is_ccw


@pytest.mark.parametrize(
    ("wide", "crs"),
    [
        (shapely.box(800_000, -20_000, 860_000, 20_000), 32660),
        (shapely.box(140_000, -20_000, 200_000, 20_000), 32601),
        (shapely.box(-20_000, -20_000, 20_000, 20_000), "+proj=laea +lon_0=180 +datum=WGS84"),
    ],
)
def test_geojson_splits_polygons_at_the_antimeridian(tmp_path: Path, wide: shapely.Polygon, crs: Any) -> None:
    made = features_of([wide], crs)
    write_features(made, tmp_path / "a.geojson")
    back = read_features(tmp_path / "a.geojson")
    parts = shapely.get_parts(back.geometry)
    assert {tuple(np.sign(part.bounds[::2])) for part in parts} == {(1, 1), (-1, -1)}
    assert back.geometry.to_crs(6933).area.sum() == pytest.approx(wide.area, rel=0.01)
    assert all(part.bounds[2] - part.bounds[0] < 1 for part in parts)


def test_geojson_keeps_a_small_box_in_degrees(tmp_path: Path) -> None:
    # Columns 100..110, rows 200..220 of a scene with pixels of 2.7e-6 degrees; at 5 decimals J is 0.84.
    x, y = 2.700736143e-6, 2.700119234e-6
    box = shapely.box(100 * x, -220 * y, 110 * x, -200 * y)
    write_features(features_of([box], 4326), tmp_path / "a.geojson")
    back = read_features(tmp_path / "a.geojson").geometry[0]
    assert box.intersection(back).area / box.union(back).area > 0.9999


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_without_geometry_are_written_and_dropped_when_read(tmp_path: Path, suffix: str) -> None:
    made = features_of([*boxes(2)], 4326)
    made.loc[0, "geometry"] = None
    write_features(made, tmp_path / f"a{suffix}")
    back = read_features(tmp_path / f"a{suffix}")
    assert (len(back), back.attrs["dropped"]) == (1, 1)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".parquet", ".csv"])
def test_other_geometries_go_into_formats_that_take_them(tmp_path: Path, suffix: str) -> None:
    write_features(table([shapely.Point(0, 0), shapely.box(0, 0, 1, 1)], 4326), tmp_path / f"a{suffix}")
    assert read_features(tmp_path / f"a{suffix}").attrs["dropped"] == 1


def test_long_straight_edges_stay_where_they_were_in_geojson(tmp_path: Path) -> None:
    grid = Grid(2500, 2500, Affine(10, 0, 300_000, 0, -10, 6_600_000), 32633)
    mask = np.zeros(grid.shape, bool)
    mask[3:-3, 3:-3] = True
    write_features(polygonize(mask, grid=grid), tmp_path / "a.geojson")
    burnt = rasterize(read_features(tmp_path / "a.geojson"), like=grid).data[0]
    np.testing.assert_array_equal(burnt, mask)


def test_geopackage_is_of_a_version_that_older_programs_read(tmp_path: Path) -> None:
    write_features(layer(), tmp_path / "roofs.gpkg")
    assert pyogrio.list_layers(tmp_path / "roofs.gpkg")[0][0] == "roofs"
    with closing(sqlite3.connect(tmp_path / "roofs.gpkg")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (10300,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_geopackage_carries_a_style_with_a_colour_per_class(tmp_path: Path) -> None:
    made = layer()
    made["class_name"] = ['a "quoted" <name>', "b", "b"]
    write_features(made, tmp_path / "a.gpkg", colors={"b": "#102030", "absent": "#000000"})
    with closing(sqlite3.connect(tmp_path / "a.gpkg")) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(layer_styles)")]
        query = "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        row = database.execute(query).fetchone()
        listed = database.execute("SELECT data_type FROM gpkg_contents ORDER BY table_name").fetchall()
    assert columns == [
        "id", "f_table_catalog", "f_table_schema", "f_table_name", "f_geometry_column", "styleName",
        "styleQML", "styleSLD", "useAsDefault", "description", "owner", "ui", "update_time",
    ]  # fmt: skip
    assert row[:3] == ("a", "geom", 1)
    assert listed == [("features",), ("attributes",)]
    renderer = ElementTree.fromstring(row[3].split("\n", 1)[1]).find("renderer-v2")
    assert renderer is not None
    assert renderer.attrib["attr"] == "class_name"
    values = {item.attrib["value"]: item.attrib["symbol"] for item in renderer.iter("category")}
    colors = {
        symbol.attrib["name"]: symbol.find("layer/prop[@k='outline_color']").attrib["v"]  # type: ignore[union-attr]
        for symbol in renderer.iter("symbol")
    }
    assert set(values) == {'a "quoted" <name>', "b"}
    assert colors[values["b"]] == "16,32,48,255"
    assert code_of(write_features, made, tmp_path / "b.gpkg", colors={"b": "red"}) == "E-USE-207"
    assert not (tmp_path / "b.gpkg").exists()


def test_a_column_called_fid_is_kept_under_another_name(tmp_path: Path) -> None:
    made = table(boxes(2), fid=[7, 7], class_name=["a", "b"])
    write_features(made, tmp_path / "a.gpkg")
    assert read_features(tmp_path / "a.gpkg")["fid_1"].tolist() == [7, 7]


def test_parquet_is_geoparquet_with_boxes(tmp_path: Path) -> None:
    import pyarrow.parquet

    write_features(layer(), tmp_path / "a.parquet")
    meta = json.loads(pyarrow.parquet.read_schema(tmp_path / "a.parquet").metadata[b"geo"])
    assert meta["version"] == "1.1.0"
    assert "bbox" in meta["columns"]["geometry"]["covering"]


def test_csv_holds_wkt_and_a_prj_lies_beside(tmp_path: Path) -> None:
    write_features(layer(), tmp_path / "a.csv")
    header = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == '"WKT","class_id","class_name","score","area_m2"'
    assert pyproj.CRS((tmp_path / "a.prj").read_text()).to_epsg() == 32633
    (tmp_path / "a.prj").unlink()
    assert read_features(tmp_path / "a.csv").crs is None


def test_csv_of_others_is_read_with_huge_rows_and_texts_that_look_like_gaps(tmp_path: Path) -> None:
    angle = np.linspace(0, 6.28, 40_000)
    star = shapely.Polygon(np.column_stack([np.cos(angle), np.sin(angle)]))
    rows = [f'6010_1_2,NA,"{star.wkt}"', "6010_1_2,2,MULTIPOLYGON EMPTY", f'6010_1_2,,"{boxes(1)[0].wkt}"']
    (tmp_path / "a.csv").write_text("ImageId,ClassType,MultipolygonWKT\n" + "\n".join(rows))
    back = read_features(tmp_path / "a.csv", field="ClassType")
    assert back.class_name.tolist() == ["NA"]
    assert shapely.get_num_coordinates(back.geometry[0]) > 39_000
    assert back.attrs["dropped"] == 2


def test_shapefile_columns_are_short_stable_and_different() -> None:
    names = ["class_name", "probability", "probability_max", "PROBABILIT", "überlänge_x", "Name", "name"]
    short = shapefile_columns(names)
    assert short == shapefile_columns(names)
    assert list(short) == names
    assert short["class_name"] == "class_name"
    assert all(len(value.encode()) <= 10 for value in short.values())
    assert len({value.lower() for value in short.values()}) == len(names)


def test_shapefile_renames_are_logged_and_values_kept(tmp_path: Path, caplog: Any) -> None:
    made = table(boxes(2), class_name=["a", "b"], probability=[1.5, 2.5], probability_max=[3, 4])
    with caplog.at_level(logging.WARNING):
        write_features(made, tmp_path / "a.shp")
    assert "'probability': 'probabilit'" in caplog.text
    back = read_features(tmp_path / "a.shp")
    assert back["probabilit"].tolist() == [1.5, 2.5]
    assert back["probabil_1"].tolist() == [3, 4]


def test_shapefile_refuses_what_it_would_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.shp"
    assert code_of(write_features, table(boxes(1), note=["é" * 128]), path) == "E-OUT-212"
    assert code_of(write_features, table([shapely.Point(0, 0)]), path) == "E-OUT-211"
    monkeypatch.setattr("satseg.vector.shapefile.PART_BYTES", 500)
    assert code_of(write_features, table(boxes(5)), path) == "E-OUT-213"
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    write_features(table(boxes(1), note=["é" * 127]), path)
    assert read_features(path)["note"].tolist() == ["é" * 127]


def test_file_that_reads_back_differently_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pyogrio.write_dataframe
    lossy = lambda made, *args, **kw: write(made.iloc[:1], *args, **kw)  # noqa: E731
    monkeypatch.setattr(pyogrio, "write_dataframe", lossy)
    for suffix in (".shp", ".gpkg", ".geojson", ".fgb"):
        assert code_of(write_features, layer(), tmp_path / f"a{suffix}") == "E-OUT-201"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".shp", ".gpkg", ".geojson", ".fgb", ".parquet", ".csv"])
def test_full_disk_is_an_output_error_and_leaves_nothing(small_disk: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    circles = shapely.buffer(shapely.points(rng.random((2000, 2)) * 1000), 1)
    with pytest.raises(OutputError) as caught:
        write_features(table(list(circles), class_name=["a"] * 2000), small_disk / f"a{suffix}")
    assert caught.value.exit_code == 4
    assert os.listdir(small_disk) == []


KILLED = """
import sys, time
import geopandas, shapely
from satseg.vector import features
write = features._write
def slow(*args):
    write(*args)
    print("written", flush=True)
    time.sleep(60)
features._write = slow
made = geopandas.GeoDataFrame({"class_name": ["a"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
features.write_features(made, sys.argv[1], overwrite=True)
"""


def test_killed_run_leaves_the_older_file_and_the_next_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    write_features(layer(), path)
    child = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "written\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert len(read_features(path)) == 3
    assert len(os.listdir(tmp_path)) == 2
    write_features(layer(count=2), path, overwrite=True)
    assert os.listdir(tmp_path) == ["a.gpkg"]
    assert len(read_features(path)) == 2


@pytest.mark.parametrize(
    ("name", "driver"),
    [
        ("a.shp", "ESRI Shapefile"),
        ("a.gpkg", "GPKG"),
        ("a.geojson", "GeoJSON"),
        ("a.geojsonl", "GeoJSONSeq"),
        ("a.fgb", "FlatGeobuf"),
        ("a.kml", "LIBKML"),
        ("a.gdb", "OpenFileGDB"),
    ],
)
def test_files_of_other_programs_are_read_by_their_content(tmp_path: Path, name: str, driver: str) -> None:
    made = table([shapely.box(0, 0, 2, 1), shapely.box(4, 0, 5, 1)], 4326, kind=["a", "b"])
    path = save(made, tmp_path / name, driver, layer="x")
    back = read_features(path, field="kind").sort_values("class_id")
    assert back.class_name.tolist() == ["a", "b"]
    assert back.class_id.tolist() == [1, 2]
    assert shapely.area(back.geometry.to_numpy()).tolist() == [2, 1]


def test_content_tells_the_format_whatever_the_name(tmp_path: Path) -> None:
    save(table(boxes(2)), tmp_path / "a.gpkg").rename(tmp_path / "labels.dat")
    assert len(read_features(tmp_path / "labels.dat")) == 2
    save(table(boxes(2)), tmp_path / "b.geojson").rename(tmp_path / "b.shp")
    assert len(read_features(tmp_path / "b.shp")) == 2


def test_invalid_polygons_are_repaired_and_counted(tmp_path: Path, caplog: Any) -> None:
    path = save(table([BOWTIE, shapely.box(4, 0, 5, 1)]), tmp_path / "a.gpkg")
    with caplog.at_level(logging.WARNING):
        back = read_features(path)
    assert back.geometry.area.tolist() == [2, 1]
    assert back.is_valid.all()
    assert back.attrs == {"repaired": 1, "dropped": 0}
    assert "1 features repaired" in caplog.text


def test_without_a_field_every_feature_is_of_one_class(tmp_path: Path) -> None:
    path = save(table(boxes(2), kind=["a", "b"]), tmp_path / "a.gpkg")
    assert read_features(path).class_name.tolist() == ["feature"] * 2
    assert read_features(path, classes=["house"]).class_name.tolist() == ["house"] * 2
    assert code_of(read_features, path, classes=["a", "b"]) == "E-LAB-211"


@pytest.mark.parametrize("values", [[3, 1, 2, None], [3.0, 1.0, 2.0, np.nan], ["3", "1", "2", None]])
def test_numbers_become_class_names_without_a_point(tmp_path: Path, values: list[Any]) -> None:
    made = table(boxes(4), label=pandas.Series(values))
    back = read_features(save(made, tmp_path / "a.gpkg"), field="label")
    assert back.class_name.tolist() == ["3", "1", "2"]
    assert back.class_id.tolist() == [3, 1, 2]
    assert back.attrs["dropped"] == 1


def test_classes_choose_and_number_the_rows(tmp_path: Path, caplog: Any) -> None:
    path = save(table(boxes(4), kind=["a", "b", "c", "a"], note=[1, 2, 3, 4]), tmp_path / "a.gpkg")
    with caplog.at_level(logging.WARNING):
        back = read_features(path, field="kind", classes=["c", "a"])
    assert back.class_id.tolist() == [2, 1, 2]
    assert back["note"].tolist() == [1, 3, 4]
    assert "1 features dropped" in caplog.text
    with pytest.raises(LabelError, match=r"\['x'\]; the file has \['a', 'b', 'c'\]") as caught:
        read_features(path, field="kind", classes=["x"])
    assert caught.value.code == "E-LAB-213"


def test_missing_field_names_the_nearest(tmp_path: Path) -> None:
    path = save(table(boxes(1), kind=["a"], colour=["red"]), tmp_path / "a.gpkg")
    with pytest.raises(LabelError, match="'kind'") as caught:
        read_features(path, field="Kind_")
    assert (caught.value.code, caught.value.exit_code) == ("E-LAB-211", 3)


def test_own_class_numbers_are_kept(tmp_path: Path) -> None:
    made = features_of(boxes(2), 4326, class_ids=[9, 4], class_names=["a", "b"])
    write_features(made, tmp_path / "a.gpkg")
    assert read_features(tmp_path / "a.gpkg").class_id.tolist() == [9, 4]
    assert read_features(tmp_path / "a.gpkg", classes=["b", "a"]).class_id.tolist() == [2, 1]


def test_heights_go_and_things_without_area_are_dropped(tmp_path: Path) -> None:
    high = shapely.Polygon([(0, 0, 5), (1, 0, 5), (1, 1, 5)])
    made = table([high, shapely.Point(0, 0), shapely.LineString([(0, 0), (1, 1)]), None, shapely.Polygon()])
    back = read_features(save(made, tmp_path / "a.gpkg", geometry_type="Unknown"))
    assert len(back) == 1
    assert not back.has_z.any()
    assert back.attrs["dropped"] == 4
    lines = save(table([shapely.LineString([(0, 0), (1, 1)])]), tmp_path / "b.gpkg")
    assert code_of(read_features, lines) == "E-LAB-212"


def test_a_file_of_several_layers_needs_a_name(tmp_path: Path) -> None:
    path = save(table(boxes(1)), tmp_path / "a.gpkg", layer="one")
    save(table(boxes(2)), path, layer="two", append=True)
    assert code_of(read_features, path) == "E-IN-218"
    assert len(read_features(path, layer="two")) == 2
    assert code_of(read_features, path, layer="three") == "E-IN-216"


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("empty.geojson", b"", "E-IN-213"),
        ("text.geojson", b"hello", "E-IN-214"),
        ("text.shp", b"hello", "E-IN-214"),
        ("binary.gpkg", bytes(range(256)), "E-IN-214"),
        ("half.geojson", b'{"type": "FeatureCollection", "features": [{"type"', "E-IN-216"),
        ("other.json", b'{"a": 1}', "E-IN-216"),
        ("magic.gpkg", b"SQLite format 3\x00" + bytes(200), "E-IN-216"),
        ("magic.fgb", b"fgb\x03fgb\x00" + bytes(200), "E-IN-217"),
        ("magic.parquet", b"PAR1" + bytes(200), "E-IN-216"),
        ("magic.shp", b"\x00\x00\x27\x0a" + bytes(200), "E-IN-216"),
        ("bomb.kml", b'<?xml version="1.0"?><!DOCTYPE k [<!ENTITY a "b">]><kml>&a;</kml>', "E-IN-214"),
        ("plain.csv", b"a,b\n1,2\n", "E-IN-222"),
        ("number.csv", b"wkt,b\n1,2\n", "E-IN-223"),
        ("wrong.csv", b"wkt,b\nPOLYGON ((0 0,2\n", "E-IN-223"),
        ("binary.csv", b"wkt\n\xff\xfe\x00", "E-IN-221"),
    ],
)
def test_files_that_hold_no_features_are_input_errors(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    assert code_of(read_features, write_bytes(tmp_path / name, content)) == code


def test_what_is_no_file_is_an_input_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.geojson")
    (tmp_path / "folder.shp").mkdir()
    assert code_of(read_features, tmp_path / "missing.gpkg") == "E-IN-211"
    assert code_of(read_features, tmp_path / "folder.shp") == "E-IN-212"
    assert code_of(read_features, tmp_path / "pipe.geojson") == "E-IN-212"
    assert code_of(read_features, tmp_path / "nul\0.gpkg") == "E-IN-211"


def test_a_prj_that_names_no_crs_is_told(tmp_path: Path) -> None:
    write_features(layer(), tmp_path / "a.csv")
    (tmp_path / "a.prj").write_text("nonsense")
    assert code_of(read_features, tmp_path / "a.csv") == "E-IN-224"


@pytest.mark.parametrize("name", ["labels.geojson", "labels.shp", "labels.gpkg", "labels.kml", "labels.vrt"])
def test_a_vrt_under_any_name_does_not_read_another_file(tmp_path: Path, name: str) -> None:
    canary = save(table(boxes(2), secret=["s", "t"]), tmp_path / "canary.gpkg")
    vrt = (
        f'<OGRVRTDataSource><OGRVRTLayer name="canary"><SrcDataSource>{canary}</SrcDataSource>'
        "</OGRVRTLayer></OGRVRTDataSource>"
    )
    for text in (vrt, "\ufeff \n" + vrt, '<?xml version="1.0"?>\n<!-- <kml -->' + vrt):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        assert code_of(read_features, path) == "E-IN-214"


def test_json_that_runs_a_pipeline_is_not_run(tmp_path: Path) -> None:
    canary, target = save(table(boxes(2)), tmp_path / "canary.gpkg"), tmp_path / "stolen.gpkg"
    command = f"gdal vector pipeline ! read {canary} ! write {target}"
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "gdal_streamed_alg", "command_line": command}))
    assert code_of(read_features, path) == "E-IN-216"
    assert not target.exists()


def test_texts_and_names_that_are_damaged_are_input_errors(tmp_path: Path) -> None:
    write_features(table(boxes(2), alpha=["QQQQ", "b"], bravo=["a", "b"]), tmp_path / "a.shp")
    dbf = tmp_path / "a.dbf"
    whole = dbf.read_bytes()
    dbf.write_bytes(whole.replace(b"QQQQ", b"Q\xf1QQ"))
    assert code_of(read_features, tmp_path / "a.shp") == "E-IN-216"
    dbf.write_bytes(whole.replace(b"bravo", b"alpha"))
    assert code_of(read_features, tmp_path / "a.shp") == "E-IN-216"


@pytest.mark.parametrize("suffix", [".shp", ".gpkg", ".geojson", ".fgb", ".parquet", ".csv"])
def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path: Path, suffix: str) -> None:
    write_features(layer(), tmp_path / f"a{suffix}")
    path = tmp_path / f"a{suffix}"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(15):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 5):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.integers(1, len(content) * 4)])
        with suppress(SatsegError):
            read_features(path)


def test_a_shapefile_without_its_parts_is_an_input_error(tmp_path: Path) -> None:
    write_features(layer(), tmp_path / "a.shp")
    (tmp_path / "a.shx").unlink()
    assert code_of(read_features, tmp_path / "a.shp") == "E-IN-216"


@pytest.mark.parametrize("name", ["with space.gpkg", "ünïcødé.shp", "a#b%20.geojson", "-dash.fgb", "a?b.csv"])
def test_odd_names_are_read_and_written_like_any_other(tmp_path: Path, name: str) -> None:
    write_features(layer(), tmp_path / name)
    assert len(read_features(tmp_path / name)) == 3


def test_paths_may_be_relative_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.geojson", "a.gpkg", "-a.shp"):
        write_features(layer(), name)
        assert len(read_features(name)) == 3


@pytest.mark.data
def test_real_labels_are_read_with_their_classes(data_dir: Path, tmp_path: Path) -> None:
    back = read_features(data_dir / "wv_spacenet" / "vegas_wv3_labels_1building_2road_3tree.geojson")
    assert back.is_valid.all()
    assert len(back) > 10
    shutil.copy(data_dir / "wv_spacenet" / "vegas2_wv3_buildings.gpkg", tmp_path / "b.gpkg")
    assert read_features(tmp_path / "b.gpkg").is_valid.all()
