"""FeatureWriter: batches make the file that one call makes, nothing half stays, memory is bounded."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pyarrow.parquet
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.errors import OutputError, SatsegError
from satseg.vector import stream
from satseg.vector.features import as_features, empty_features, read_features, write_features
from satseg.vector.stream import FeatureWriter

DISK_SIZE = "256k"

SUFFIXES = [".shp", ".gpkg", ".geojson", ".fgb", ".parquet", ".csv"]


def layer(count: int, crs: Any = 32633, *, seed: int = 0) -> geopandas.GeoDataFrame:
    """Triangles and boxes with a hole of classes é, b and Ω, some of them without a score."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(500_000, 501_000, (count, 2)) if crs != 4326 else rng.uniform(10, 10.1, (count, 2))
    side = 1e-4 if crs == 4326 else 8.0
    boxes = shapely.box(*corner.T, *(corner + side).T)
    shapes = shapely.difference(boxes, shapely.buffer(shapely.centroid(boxes), side / 8, quad_segs=2))
    shapes[::3] = shapely.convex_hull(shapely.boundary(shapely.buffer(shapely.points(corner[::3]), side, quad_segs=1)))
    kinds = rng.integers(0, 3, count)
    return as_features(
        shapes,
        class_ids=kinds + 1,
        class_names=np.array(["é", "b", "Ω x"], object)[kinds],
        scores=np.where(rng.random(count) < 0.2, np.nan, rng.random(count)),
        areas_m2=rng.uniform(1, 1e9, count),
        crs=crs,
    )


def in_batches(made: geopandas.GeoDataFrame, path: Path, cuts: list[int], **options: Any) -> FeatureWriter:
    edges = [0, *sorted(cuts), len(made)]
    with FeatureWriter(path, crs=made.crs, **options) as out:
        for start, stop in pairwise(edges):
            out.write(made.iloc[start:stop])
    return out


def read(path: Path) -> geopandas.GeoDataFrame:
    return read_features(path).sort_values(["area_m2"], ignore_index=True)  # FlatGeobuf has an order of its own


def assert_same(one: geopandas.GeoDataFrame, other: geopandas.GeoDataFrame) -> None:
    assert one.crs == other.crs
    assert one.geometry.to_wkb().tolist() == other.geometry.to_wkb().tolist()
    pandas.testing.assert_frame_equal(one.drop(columns="geometry"), other.drop(columns="geometry"))


def code_of(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SatsegError) as caught:
        call(*args, **kwargs)
    return caught.value.code


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("write ")]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".json", ".geoparquet"])
@pytest.mark.parametrize("crs", [32633, 4326, "EPSG:7405", None])
def test_batches_make_the_file_that_one_call_makes(tmp_path: Path, suffix: str, crs: Any) -> None:
    if crs is None and "json" in suffix:
        assert code_of(FeatureWriter, tmp_path / f"a{suffix}", crs=None) == "E-CRS-211"
        return
    made = layer(40, crs)
    write_features(made, tmp_path / f"whole{suffix}")
    whole = read(tmp_path / f"whole{suffix}")
    for number, cuts in enumerate([[], [17], [0, 0, 1, 5, 5, 20, 39, 40]]):
        path = tmp_path / f"parts{number}{suffix}"
        assert in_batches(made, path, cuts).count == 40
        assert_same(read(path), whole)
    ours, others = ({p.suffix for p in tmp_path.glob(f"{name}.*")} for name in ("parts0", "whole"))
    assert ours == others


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=8, deadline=None)
@given(count=st.integers(0, 30), cuts=st.lists(st.integers(0, 30), max_size=6), limit=st.integers(1, 4000))
def test_steps_of_any_size_make_the_same_file(
    tmp_path_factory: Any, suffix: str, count: int, cuts: list[int], limit: int
) -> None:
    folder, made = tmp_path_factory.mktemp("steps"), layer(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BATCH_BYTES", limit)
        in_batches(made, folder / f"a{suffix}", [min(cut, count) for cut in cuts])
    write_features(made, folder / f"b{suffix}")
    assert_same(read(folder / f"a{suffix}"), read(folder / f"b{suffix}"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("crs", [32633, None])
def test_a_file_without_features_has_its_columns_and_crs(tmp_path: Path, suffix: str, crs: Any) -> None:
    if crs is None and suffix == ".geojson":
        return
    for name, batches in (("none", []), ("empty", [empty_features(crs)])):
        path = tmp_path / f"{name}{suffix}"
        with FeatureWriter(path, crs=crs) as out:
            for batch in batches:
                out.write(batch)
        back = read_features(path)
        assert len(back) == out.count == 0
        assert list(back.columns) == list(empty_features().columns)
        assert back.crs == (None if crs is None else 4326 if suffix == ".geojson" else crs)
        if suffix in (".shp", ".gpkg", ".fgb"):
            fields = pyogrio.read_info(path, layer=path.stem)["fields"].tolist()
            assert fields == ["class_id", "class_name", "score", "area_m2"]


def test_geoparquet_has_the_head_that_geopandas_writes(tmp_path: Path) -> None:
    made = layer(30)
    in_batches(made, tmp_path / "a.parquet", [10, 20])
    write_features(made, tmp_path / "b.parquet")
    heads = [pyarrow.parquet.read_schema(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    assert heads[0].names == heads[1].names
    ours, theirs = (json.loads(head.metadata[b"geo"]) for head in heads)
    assert ours == theirs
    window = geopandas.read_parquet(tmp_path / "a.parquet", bbox=tuple(made.geometry[3].bounds))
    assert made.geometry[3].wkb in [shape.wkb for shape in window.geometry]


def test_style_has_the_given_classes_and_those_that_came(tmp_path: Path) -> None:
    in_batches(layer(10), tmp_path / "a.gpkg", [5], colors={"b": "#102030"}, classes=["b", "absent"])
    with closing(sqlite3.connect(tmp_path / "a.gpkg")) as database:
        style = database.execute("SELECT styleQML FROM layer_styles").fetchone()[0]
    assert all(f'value="{name}"' in style for name in ("b", "absent", "é", "Ω x"))
    assert "16,32,48,255" in style
    assert code_of(FeatureWriter, tmp_path / "b.gpkg", crs=4326, colors={"b": "red"}) == "E-USE-207"


def test_long_straight_edges_are_divided_in_geojson(tmp_path: Path) -> None:
    made = as_features(
        np.array([shapely.box(400_000, 5_000_000, 420_000, 5_000_010)]), class_ids=[1], class_names=["a"], scores=[1.0],
        areas_m2=[2e5], crs=32633,
    )  # fmt: skip
    in_batches(made, tmp_path / "a.geojson", [])
    assert shapely.get_num_coordinates(read_features(tmp_path / "a.geojson").geometry[0]) > 80


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_error_in_the_block_leaves_nothing_and_comes_through(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for count in (0, 1, 5):
        with pytest.raises(KeyError, match="mine"), FeatureWriter(path, crs=32633) as out:  # noqa: PT012
            for seed in range(count):
                out.write(layer(50, seed=seed))
                out._flush()
            raise KeyError("mine")
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_existing_files_stay_unless_overwriting(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    in_batches(layer(3), path, [])
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert code_of(FeatureWriter, path, crs=32633) == "E-OUT-003"
    with pytest.raises(KeyError), FeatureWriter(path, crs=32633, overwrite=True) as out:  # noqa: PT012
        out.write(layer(4))
        raise KeyError
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    in_batches(layer(4), path, [2], overwrite=True)
    assert len(read_features(path)) == 4
    assert set(os.listdir(tmp_path)) == set(before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_is_an_output_error_and_leaves_nothing(
    small_disk: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BATCH_BYTES", 20_000)
    with pytest.raises(OutputError) as caught:
        in_batches(layer(6000), small_disk / f"a{suffix}", list(range(0, 6000, 500)))
    assert caught.value.exit_code == 4
    assert f"a{suffix}" in str(caught.value)
    assert os.listdir(small_disk) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_that_reads_back_differently_is_not_published(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(OutputError) as caught, FeatureWriter(tmp_path / f"a{suffix}", crs=32633) as out:  # noqa: PT012
        out.write(layer(3))
        out._count += 1
    assert caught.value.code == "E-OUT-201"
    assert os.listdir(tmp_path) == []


def test_shapefile_refuses_what_it_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, long = tmp_path / "a.shp", layer(2).assign(class_name="é" * 128)
    assert code_of(in_batches, long, path, []) == "E-OUT-212"
    monkeypatch.setattr("satseg.vector.shapefile.PART_BYTES", 30_000)
    assert code_of(in_batches, layer(500), path, [100, 200, 300, 400]) == "E-OUT-213"
    monkeypatch.undo()
    in_batches(layer(2).assign(class_name="é" * 127), path, [])
    assert read_features(path).class_name.tolist() == ["é" * 127] * 2


def test_what_is_no_batch_of_this_file_is_refused(tmp_path: Path) -> None:
    good = layer(2)
    wrong = {
        "E-USE-232": [good.assign(more=1), good.drop(columns="score"), good.set_geometry(good.centroid)],
        "E-CRS-212": [good.to_crs(4326), good.set_crs(None, allow_override=True)],
    }
    for code, batches in wrong.items():
        for batch in batches:
            with FeatureWriter(tmp_path / "b.gpkg", crs=32633, overwrite=True) as out:
                assert code_of(out.write, batch) == code
                out.write(good)
            assert len(read_features(tmp_path / "b.gpkg")) == 2
    left = FeatureWriter(tmp_path / "c.gpkg", crs=32633)
    assert code_of(left.write, good) == "E-USE-233"
    assert code_of(FeatureWriter, tmp_path / "x.kml", crs=4326) == "E-USE-221"
    assert code_of(FeatureWriter, tmp_path / "no" / "x.gpkg", crs=4326) == "E-OUT-002"


def test_other_files_may_be_read_and_written_while_one_is_open(tmp_path: Path, caplog: Any) -> None:
    with (
        caplog.at_level(logging.WARNING),
        FeatureWriter(tmp_path / "a.gpkg", crs=None) as one,
        FeatureWriter(tmp_path / "b.fgb", crs=32633) as two,
    ):
        one.write(layer(3, None))
        write_features(layer(2), tmp_path / "c.gpkg")
        two.write(read_features(tmp_path / "c.gpkg"))
    assert [len(read_features(tmp_path / name)) for name in ("a.gpkg", "b.fgb", "c.gpkg")] == [3, 2, 2]
    assert caplog.text == ""


def test_capital_suffixes_and_names_beyond_ascii(tmp_path: Path) -> None:
    for name in ("OUT.SHP", "häuser 1.gpkg", "o.FGB"):
        in_batches(layer(3), tmp_path / name, [1])
        assert len(read_features(tmp_path / name)) == 3


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".csv", ".shp"])
def test_memory_does_not_follow_the_number_of_batches(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BATCH_BYTES", 2**18)
    batch = layer(250)

    def peak(count: int) -> int:
        tracemalloc.reset_peak()
        with FeatureWriter(tmp_path / f"{count}{suffix}", crs=32633) as out:
            for _ in range(count):
                out.write(batch.copy())
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        few, many = peak(12), peak(72)
    finally:
        tracemalloc.stop()
    # numpy and Python only: a held batch has some 100 kB of texts and pointers, sixty of them 6 MB.
    assert many < few + 1_000_000
