"""`satseg detect`: folders and patterns of scenes, areas, budgets, engines, and what it says first."""

from __future__ import annotations

import shutil
import sys

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

import satseg
from satseg.ledger import Ledger
from tests.commands import same_features


@pytest.fixture
def folder(town, tmp_path):
    place = tmp_path / "scenes"
    place.mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copy(town / name, place / name)
    (place / "notes.txt").write_text("no scene")
    (place / ".hidden.tif").write_text("no scene either")
    (tmp_path / "out").mkdir()
    return place


def test_a_folder_stands_for_its_scenes(detect, folder, tmp_path, expected):
    said = detect(folder, "-o", tmp_path / "out", "--suffix", ".parquet").done()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.parquet", "b.parquet"]
    assert same_features(geopandas.read_parquet(tmp_path / "out" / "a.parquet"), expected)
    assert len(said.out.splitlines()) == 2
    assert "scenes 100 %" in said.err


def test_a_pattern_stands_for_what_it_matches(detect, folder, tmp_path):
    detect(folder / "?.tif", "-o", tmp_path / "out").done()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.gpkg", "b.gpkg"]
    detect(folder / "b*.tif", "-o", tmp_path / "b.gpkg").done()  # one match is one scene
    assert (tmp_path / "b.gpkg").is_file()


def test_a_folder_without_scenes_and_a_pattern_without_matches_are_refused(detect, folder, tmp_path):
    for nothing in (tmp_path / "out", folder / "*.jp2"):
        assert "no scene" in detect(nothing, "-o", tmp_path / "out").refused(3, "E-IN-021")


def test_a_folder_of_one_scene_still_needs_a_folder_for_its_output(detect, folder, tmp_path):
    (folder / "b.tif").unlink()
    detect(folder, "-o", tmp_path / "found.gpkg").refused(4, "E-OUT-002")
    detect(folder, "-o", tmp_path / "out").done()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.gpkg"]


def test_one_scene_whose_unfinished_run_was_another_fails_alone(detect, folder, tmp_path):
    out = tmp_path / "out"
    with Ledger.open(out / "a.gpkg", {"tiles": 1}, resume=False) as ledger:
        ledger.append({"codes": np.zeros((1, 2, 3), np.uint8)})
    said = detect(folder, "-o", out, "--resume")
    assert said.status == 5
    assert "[E-USE-030]" in said.out.splitlines()[0]
    assert (out / "b.gpkg").is_file()


def test_the_cost_is_told_first_and_not_when_quiet(run, town, tmp_path):
    args = ("detect", town / "model.safetensors", town / "a.tif", "-o", tmp_path / "f.gpkg")
    first = run(*args).done().err.splitlines()[0]
    for word in ("a: ", "Mpx", "tile", "x through the network", "memory", "disk", "about"):
        assert word in first
    assert run(*args, "--overwrite", "-q").done().err == ""


def test_only_the_area_of_interest_is_looked_at(detect, town, tmp_path, expected):
    left, bottom, right, top = satseg.open_scene(town / "a.tif").grid.bounds
    area = shapely.box(left, bottom, (left + right) / 2, top)
    layer = geopandas.GeoDataFrame(geometry=[area], crs=expected.crs).to_crs("EPSG:4326")
    layer.to_file(tmp_path / "area.gpkg")
    mask = tmp_path / "m.tif"
    detect(town / "a.tif", "-o", tmp_path / "f.parquet", "--aoi", tmp_path / "area.gpkg", "--mask", mask).done()
    found = geopandas.read_parquet(tmp_path / "f.parquet")
    assert 0 < len(found) < len(expected)
    assert found.geometry.within(area.buffer(1.1)).all()
    with rasterio.open(mask) as dataset:
        valid = dataset.read(1) != 255
    assert 0.4 < valid.mean() < 0.6


def test_an_area_off_the_scene_is_refused(detect, town, tmp_path, expected):
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=expected.crs).to_file(tmp_path / "far.gpkg")
    detect(town / "a.tif", "-o", tmp_path / "f.gpkg", "--aoi", tmp_path / "far.gpkg").refused(3, "E-LAB-011")


@pytest.mark.parametrize("text", ["lots", "4X", "0", "-1G", ""])
def test_memory_that_is_no_size_is_refused(detect, town, tmp_path, text):
    detect(town / "a.tif", "-o", tmp_path / "f.gpkg", "--max-memory", text).refused(2, "E-USE-000")


def test_too_little_memory_is_refused_before_work(detect, town, tmp_path):
    line = detect(town / "a.tif", "-o", tmp_path / "f.gpkg", "--max-memory", "20M").refused(2, "E-USE-060")
    assert "--max-memory 20 MiB is too little" in line
    assert not list(tmp_path.iterdir())
    detect(town / "a.tif", "-o", tmp_path / "f.gpkg", "--max-memory", "8G").done()


def test_halo_is_a_number_or_exact(detect, town, tmp_path, expected):
    detect(town / "a.tif", "-o", tmp_path / "f.parquet", "--halo", "exact", "--tile", 32).done()
    assert same_features(geopandas.read_parquet(tmp_path / "f.parquet"), expected)
    detect(town / "a.tif", "-o", tmp_path / "g.gpkg", "--halo", "wide").refused(2, "E-USE-000")


def test_several_devices_share_the_work(run, town, tmp_path, expected):
    args = ("detect", town / "model.safetensors", town / "a.tif", "-o", tmp_path / "f.parquet", "--tile", 32)
    run(*args, "--device", "cpu,cpu").done()
    assert same_features(geopandas.read_parquet(tmp_path / "f.parquet"), expected)
    run(*args, "--overwrite", "--device", "cpu,cuda:99").refused(2, "E-USE-055")


@pytest.mark.parametrize(("engine", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_engine_that_is_not_installed_says_how_to_get_it(detect, town, tmp_path, monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    said = detect(town / "a.tif", "-o", tmp_path / "f.gpkg", "--engine", engine)
    assert said.status == 6
    assert f'pip install "satseg[{engine}]"' in said.err.splitlines()[-1]


def test_entropy_and_scores_are_written_as_asked(detect, town, tmp_path):
    outputs = ("--scores", tmp_path / "s.tif", "--score-type", "uint8", "--entropy", tmp_path / "e.tif")
    detect(town / "a.tif", "-o", tmp_path / "f.gpkg", *outputs).done()
    with rasterio.open(tmp_path / "s.tif") as scores, rasterio.open(tmp_path / "e.tif") as entropy:
        assert (set(scores.dtypes), entropy.dtypes, entropy.descriptions) == ({"uint8"}, ("uint8",), ("entropy",))
        assert scores.scales == (1 / 254,) * 2
        assert entropy.read().max() <= 254


@pytest.mark.parametrize("output", ["--mask", "--scores", "--entropy"])
def test_rasters_of_several_scenes_have_no_name(detect, town, tmp_path, output):
    args = ("-o", tmp_path, output, tmp_path / "m.tif")
    detect(town / "a.tif", town / "b.tif", *args).refused(2, "E-USE-000")
