"""`satseg train`: run files and options that say the same, budgets, data of several kinds, and resuming."""

from __future__ import annotations

import json
import os
import re
import tomllib

import geopandas
import rasterio

import satseg
from satseg.learning.networks.bundle import read_card
from tests.commands import TINY, files_under

RUN = """
[data]
scenes = [{ scene = ["a_red.tif", "a_nir.tif"], labels = "a.parquet" }]
field = "kind"
[model]
width = 4
depth = 2
stem = 1
[train]
steps = 50
chip = 32
batch = 2
rounds = 1
device = "cpu"
"""


def options_of(model):
    return read_card(model).training.options


def test_print_config_shows_every_default_and_reads_back(run, tmp_path):
    printed = run("train", "--print-config").done().out
    content = tomllib.loads(printed)
    assert set(content) >= {"data", "model", "train"}
    assert content["train"]["minutes"] == 10
    (tmp_path / "run.toml").write_text(printed)
    assert run("train", tmp_path / "run.toml", "--print-config").done().out == printed


def test_options_and_overrides_stand_over_the_run_file(run, tmp_path):
    (tmp_path / "run.toml").write_text(RUN)
    args = ("train", tmp_path / "run.toml", "--print-config", "train.chip=48", "--batch", 3, "--minutes", 2)
    found = tomllib.loads(run(*args).done().out)
    assert found["train"]["minutes"] == 2
    assert "steps" not in found["train"]
    assert (found["train"]["chip"], found["train"]["batch"], found["train"]["rounds"]) == (48, 3, 1)
    assert found["data"]["scenes"][0]["scene"] == [str(tmp_path / name) for name in ("a_red.tif", "a_nir.tif")]


def test_data_on_the_command_line_stand_in_the_run_file_too(run, town, tmp_path, monkeypatch):
    monkeypatch.chdir(town)
    args = ("--data", "a_red.tif,a_nir.tif", "a.gpkg", "--valid-data", "b.tif", "b.gpkg")
    printed = run("train", *args, "--print-config").done().out
    (tmp_path / "run.toml").write_text(printed)
    assert run("train", tmp_path / "run.toml", "--print-config").done().out == printed
    found = tomllib.loads(printed)["data"]
    both = [str(town / "a_red.tif"), str(town / "a_nir.tif")]
    assert found["scenes"] == [{"scene": both, "labels": str(town / "a.gpkg")}]
    assert found["valid_scenes"] == [{"scene": str(town / "b.tif"), "labels": str(town / "b.gpkg")}]


def test_overrides_need_no_run_file(run):
    found = tomllib.loads(run("train", "train.steps=7", "--field", "kind", "--print-config").done().out)
    assert (found["train"]["steps"], found["data"]["field"]) == (7, "kind")


def test_a_run_file_trains_a_model_that_detects(run, town, tmp_path):
    (town / "run.toml").write_text(RUN)
    model = tmp_path / "model.safetensors"
    said = run("train", town / "run.toml", "train.steps=2", "-o", model).done()
    assert said.out.splitlines()[0] == str(model)
    assert "validation Jaccard" in said.out
    assert "train 100 %" in said.err
    card = read_card(model)
    assert (card.band_names, card.class_names) == (("red", "nir"), ("A", "B"))
    assert card.training.steps == 2
    assert (tmp_path / "model.run" / "run.toml").is_file()
    run("detect", model, town / "b.tif", "-o", tmp_path / "found.gpkg", "--device", "cpu").done()
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "model.run", "found.gpkg"}


def test_several_data_and_validation_scenes(run, town, tmp_path):
    model, both = tmp_path / "model.safetensors", f"{town / 'a_red.tif'},{town / 'a_nir.tif'}"
    args = ["--data", both, town / "a.gpkg", "--valid-data", town / "b.tif", town / "b.gpkg", "--field", "class_name"]
    args += ["--classes", "b,a", "--bands", "2", "--gsd", 2, "--run-dir", tmp_path / "logs", "--seed", 3]
    run("train", "-o", model, *args, *TINY).done()
    card = read_card(model)
    assert (card.band_names, card.class_names, card.gsd_m) == (("nir",), ("b", "a"), 2)
    assert card.training.seed == 3
    assert (tmp_path / "logs").is_dir()
    args = ["--data", town / "a.tif", town / "a.gpkg", "--data", town / "b.tif", town / "b.gpkg"]
    run("train", "-o", model, *args, "--overwrite", *TINY).done()
    assert len(read_card(model).training.sources) == 2
    assert options_of(model)["train"]["steps"] == 2


def test_a_scene_without_crs_trains_in_pixels_or_with_src_crs(run, town, tmp_path):
    model = tmp_path / "model.safetensors"
    args = ("train", "-o", model, "--data", town / "bare.tif")
    run(*args, town / "bare.parquet", *TINY).done()
    assert read_card(model).gsd_m is None
    line = run(*args, town / "a.gpkg", "--overwrite", *TINY).refused(3, "E-CRS-201")
    assert "--src-crs" in line
    run(*args, town / "a.gpkg", "--src-crs", "EPSG:32633", "--overwrite", *TINY).done()
    assert read_card(model).gsd_m == 1


def test_a_finished_run_is_resumed_into_the_same_model(run, town, tmp_path):
    args = ("train", "--data", town / "a.tif", town / "a.gpkg", "-o", tmp_path / "m.safetensors", *TINY)
    run(*args).done()
    weights = read_card(tmp_path / "m.safetensors").weights_sha256
    (tmp_path / "m.safetensors").unlink()
    run(*args).refused(4, "E-OUT-010")
    run(*args, "--resume").done()
    assert read_card(tmp_path / "m.safetensors").weights_sha256 == weights
    (tmp_path / "m.safetensors").unlink()
    run(*args, "--resume", "train.batch=3").refused(2, "E-TRN-006")
    run(*args, "--data", town / "b.tif", town / "b.gpkg", "--resume").refused(2, "E-TRN-006")


def test_a_run_is_not_resumed_with_labels_or_pixels_that_changed_in_their_files(run, town, tmp_path):
    scene, labels = tmp_path / "a.tif", tmp_path / "a.gpkg"
    scene.write_bytes((town / "a.tif").read_bytes())
    layer = geopandas.read_file(town / "a.gpkg")
    layer.to_file(labels)
    args = ("train", "--data", scene, labels, "-o", tmp_path / "m.safetensors", *TINY)
    run(*args).done()
    sources = [read_card(tmp_path / "m.safetensors").training.sources]
    (tmp_path / "m.safetensors").unlink()
    layer.set_geometry(layer.translate(1.0, 0)).to_file(labels)
    line = run(*args, "--resume").refused(2, "E-TRN-006")
    assert "a, " in line
    assert line.count(" of the labels") == 2  # there and here
    run(*args, "--overwrite").done()
    sources.append(read_card(tmp_path / "m.safetensors").training.sources)
    (tmp_path / "m.safetensors").unlink()
    os.utime(scene)
    run(*args, "--resume").done()  # the same content
    (tmp_path / "m.safetensors").unlink()
    data = satseg.open_scene(scene).read().data.copy()
    data[0, 3, 5] += 1
    with rasterio.open(scene, "r+") as file:
        file.write(data)
    run(*args, "--resume").refused(2, "E-TRN-006")
    (old,), (new,) = sources
    assert old.labels_sha256 != new.labels_sha256
    assert old.files == new.files


def test_a_dry_run_prints_the_plan_and_trains_nothing(run, town, tmp_path):
    args = ("train", "--data", town / "a.tif", town / "a.gpkg", "--valid-data", town / "b.tif", town / "b.gpkg", *TINY)
    said = run(*args, "--dry-run").done()
    assert said.err == ""
    for text in ("a: 90 x 131 pixels, 1 m, EPSG:32633", "b: 90 x 131", "32 x 32 pixels, 2 a step", "2 steps", "held"):
        assert text in said.out, said.out
    found = json.loads(run(*args, "--dry-run", "--json", "-o", tmp_path / "m.safetensors").done().out)
    assert [item["name"] for item in found["classes"]] == ["a", "b"]
    assert (found["steps"], found["networks"], found["warnings"]) == (2, 1, [])
    assert found["seconds"] > 0
    assert re.search(r"budget +2 steps, about \d+ seconds for the network, on cpu", said.out)
    several = (*args, "model.members=3", "--minutes", 30, "--dry-run")
    found = json.loads(run(*several, "--json").done().out)
    assert (found["networks"], found["seconds"]) == (3, None)
    assert "parameters in 3 networks that learn in turn and answer as one" in run(*several).done().out
    assert not files_under(tmp_path)
    run(*args, "--dry-run", "--run-dir", tmp_path / "logs").done()
    assert files_under(tmp_path) == {tmp_path / "logs", tmp_path / "logs" / "split.png"}


def test_a_dry_run_refuses_what_the_run_would(run, town, tmp_path):
    args = ("train", "--data", town / "a.tif", town / "a.gpkg", *TINY, "--dry-run")
    run(*args, "-o", tmp_path / "m.pth").refused(2, "E-USE-022")
    run(*args, "--classes", "a,c").refused(3, "E-LAB-010")
    run("train", *TINY, "--dry-run").refused(2, "E-TRN-001")
    run("train", "--print-config", "--json").refused(2, "E-USE-000")


def test_a_run_leaves_a_page_beside_its_model(run, town, tmp_path):
    args = ("train", "--data", town / "a.tif", town / "a.gpkg", "-o", tmp_path / "m.safetensors", *TINY)
    run(*args).done()
    page = tmp_path / "m.run" / "report.html"
    assert page.read_text().startswith("<!doctype html>")
    page.write_text("of an earlier run")
    run(*args, "--overwrite").done()
    assert page.read_text().startswith("<!doctype html>")
    assert run(*args, "--overwrite", "-q").done().err == ""


def test_a_model_is_fine_tuned_and_its_options_are_printed(run, town, tmp_path, monkeypatch):
    monkeypatch.chdir(town)
    old = read_card("model.safetensors")
    args = ("train", "--from", "model.safetensors", "--data", "a.tif", "a.gpkg", "--steps", 2)
    printed = tomllib.loads(run(*args, "--print-config").done().out)
    assert printed["model"]["start"] == str(town / "model.safetensors")
    assert printed["model"]["width"] == old.architecture.arguments["width"]
    assert printed["data"]["bands"] == [*old.band_names]
    run(*args, "--device", "cpu", "-o", tmp_path / "tuned.safetensors").done()
    card = read_card(tmp_path / "tuned.safetensors")
    assert card.training.start is not None
    assert (card.architecture, card.training.steps) == (old.architecture, 2)
    failed = run("train", "--from", "absent.safetensors", "--data", "a.tif", "a.gpkg", "-o", tmp_path / "x.safetensors")
    assert "absent.safetensors" in failed.err
