"""The command line of ensembles: detect, ensemble, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio

from satseg.learning.detection import engine
from satseg.ledger import Ledger
from satseg.vector.features import read_features
from tests.worlds import squares, tiny_model


@pytest.fixture
def town(tmp_path):
    squares(tmp_path, height=90, width=131)
    for number in (1, 2):
        tiny_model(seed=number, depth=2).save(tmp_path / f"{number}.safetensors")
    return tmp_path


def places(folder):
    return [folder / "1.safetensors", folder / "2.safetensors"]


def test_models_answer_together_and_a_file_of_them_is_the_same(town, run, monkeypatch):
    monkeypatch.chdir(town)
    how = ("--min-area", "0", "--mean", "geometric", "--tile", "48")
    run("detect", *places(town), "scene.tif", "-o", "a.gpkg", "--ensemble", "--scores", "a.tif", *how).done()
    said = run("ensemble", *places(town)[::-1], "-o", "team.toml", "--mean", "geometric").done().out
    assert said == "team.toml: geometric mean of 2 models\n"
    run("detect", "team.toml", "scene.tif", "-o", "b.gpkg", "--scores", "b.tif", *how[:2], *how[4:]).done()
    alone = run("detect", "1.safetensors", "scene.tif", "-o", "c.gpkg", *how).done().err
    assert "have no geometric mean" in alone
    first, second = map(read_features, ("a.gpkg", "b.gpkg"))
    assert len(first) > 5
    assert first.geometry.to_wkb().tolist() == second.geometry.to_wkb().tolist()
    with rasterio.open("a.tif") as one, rasterio.open("b.tif") as other:
        np.testing.assert_array_equal(one.read(), other.read())


def test_a_stopped_ensemble_goes_on_to_the_same_bytes(town, run, monkeypatch):
    monkeypatch.chdir(town)
    command = ["detect", *places(town), "scene.tif", "--ensemble", "--tile", "16", "--min-area", "0"]
    files = ("--disagreement", "d.tif", "--mask", "m.tif")
    (town / "whole").mkdir()
    run(*command, "-o", "whole/out.fgb", "--disagreement", "whole/d.tif", "--mask", "whole/m.tif").done()
    append, start = Ledger.append, engine._Devices.start

    def stop(ledger, planes):
        append(ledger, planes)
        if ledger.finished == 2:
            raise KeyboardInterrupt

    begun = []
    monkeypatch.setattr(Ledger, "append", stop)
    assert run(*command, "-o", "out.fgb", *files).status == 130
    monkeypatch.setattr(Ledger, "append", append)
    monkeypatch.setattr(engine._Devices, "start", lambda *given: (begun.append(given[1]), start(*given))[1])
    refused = run("-q", *command, "-o", "out.fgb", *files, "--resume", "--mean", "geometric")
    assert "mean" in refused.refused(2, "E-USE-030")
    run(*command, "-o", "out.fgb", *files, "--resume").done()
    assert begun == list(range(2, 6))
    assert (town / "out.fgb").read_bytes() == (town / "whole" / "out.fgb").read_bytes()
    with rasterio.open("d.tif") as one, rasterio.open("whole/d.tif") as other:
        np.testing.assert_array_equal(one.read(), other.read())
        assert one.descriptions == ("disagreement",)


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("1.safetensors", "2.safetensors", "scene.tif"), 2, "E-USE-000"),
        (("1.safetensors", "scene.tif", "--ensemble"), 2, "E-USE-000"),
        (("1.safetensors", "scene.tif", "--disagreement", "d.tif"), 2, "E-USE-027"),
        (("1.safetensors", "scene.tif", "--mean", "harmonic"), 2, "E-USE-000"),
        (("1.safetensors", "b.safetensors", "scene.tif", "--ensemble"), 3, "E-MOD-041"),
        (("1.safetensors", "none.safetensors", "scene.tif", "--ensemble"), 3, "E-MOD-010"),
        (("none.toml", "scene.tif"), 3, "E-MOD-010"),
        (("bad.toml", "scene.tif"), 2, "E-SPEC-005"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(town, run, monkeypatch, arguments, status, code):
    monkeypatch.chdir(town)
    tiny_model(classes=("a", "c")).save("b.safetensors")
    (town / "bad.toml").write_text('mean = "geometric"\n')
    run("-q", "detect", *arguments, "-o", "out.gpkg").refused(status, code)
    assert not (town / "out.gpkg").exists()


def test_info_tells_of_models_and_ensembles(town, run, monkeypatch):
    monkeypatch.chdir(town)
    run("ensemble", "1.safetensors", "2.safetensors", "-o", "team.toml").done()
    told = run("info", "team.toml", "1.safetensors").done().out
    assert "arithmetic mean of 2 models" in told
    assert told.count("threshold 0.5") == 4
    facts = json.loads(run("info", "team.toml", "--json").done().out)
    assert len(facts["members"]) == 2
    assert [item["name"] for item in facts["classes"]] == ["a", "b"]
    assert facts["files"] == ["1.safetensors", "2.safetensors"]
    (town / "family").mkdir()
    run("ensemble", "1.safetensors", "2.safetensors", "-o", "family/ensemble.toml").done()
    assert "../1.safetensors" in run("info", "family").done().out
    run("info", "none.toml").refused(3, "E-IN-101")


def test_the_same_model_twice_is_told_of(town, run, monkeypatch):
    monkeypatch.chdir(town)
    said = run("ensemble", "1.safetensors", "2.safetensors", "1.safetensors", "-o", "team.toml").done().err
    assert "1.safetensors has the weights of 1.safetensors: they count twice" in said


def test_an_ensemble_of_one_and_of_strangers_is_refused(town, run, monkeypatch):
    monkeypatch.chdir(town)
    run("ensemble", "1.safetensors", "-o", "team.toml").refused(2, "E-USE-025")
    run("ensemble", "1.safetensors", "2.safetensors", "-o", "team.json").refused(2, "E-USE-023")
    run("ensemble", "1.safetensors", "scene.tif", "-o", "team.toml").refused(3, "E-MOD-012")
    run("ensemble", "1.safetensors", "2.safetensors", "-o", "team.toml").done()
    run("ensemble", "1.safetensors", "2.safetensors", "-o", "team.toml").refused(4, "E-OUT-003")
