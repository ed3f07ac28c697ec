"""Registration from end to end: training, detection, resuming and the command line, on a scene in two shifted files."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

import satseg
from satseg.errors import UsageError
from satseg.learning.ground.pairs import open_pair
from satseg.learning.networks.bundle import read_card
from satseg.ledger import Ledger
from satseg.run import RunConfig
from tests.commands import TINY
from tests.factories import ORIGIN, UTM
from tests.lands import SHIFT, pair

HOW = {"tile": 64, "min_area": 0.0, "halo": "exact"}
"""Some five row bands."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder of a scene in two files, the coarser one shifted, and labels of it."""
    folder = tmp_path_factory.mktemp("registered")
    for path, names in zip(pair(folder, ratio=2.0), (("blue", "green", "red"), ("nir", "b11", "b12")), strict=True):
        with rasterio.open(path, "r+") as file:
            file.descriptions = names
    corners = [(ORIGIN[0] + col, ORIGIN[1] - row) for row in range(10, 280, 30) for col in range(10, 340, 30)]
    boxes = [shapely.box(x, y - 14, x + 14, y) for x, y in corners]
    geopandas.GeoDataFrame({"class_name": "a"}, geometry=boxes, index=range(len(boxes)), crs=UTM).to_file(
        folder / "labels.gpkg"
    )
    return folder


@pytest.fixture(scope="module")
def model(world):
    """File of a model that learnt for two steps from the scene, registered."""
    return learnt(world, registered=True)


def learnt(world: Path, **options: object) -> Path:
    path, config = world / "model.safetensors", RunConfig.from_overrides(TINY)
    satseg.train([(files(world), world / "labels.gpkg")], output=path, config=config, **options)
    return path


def files(world: Path) -> list[Path]:
    return [world / "fine.tif", world / "coarse.tif"]


def joined(world: Path) -> str:
    return ",".join(map(str, files(world)))


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def test_info_tells_how_far_a_product_lay(run, world):
    facts = json.loads(run("info", "--scene-files", joined(world), "--register", "--json").done().out)
    (found,) = facts["registrations"]
    assert found["accepted"]
    assert (found["rows"], found["cols"]) == pytest.approx(SHIFT, abs=0.1)
    assert (found["east_m"], found["north_m"]) == pytest.approx((2 * SHIFT[1], -2 * SHIFT[0]), abs=0.2)
    assert found["paths"] == [str(world / "coarse.tif")]
    page = run("info", "--scene-files", joined(world), "--register").done().out
    assert "registered: " in page
    assert "+2.30 rows, -1.70 columns" in page
    plain = run("info", "--scene-files", joined(world), "--json").done().out
    assert json.loads(plain)["registrations"] == []


def test_what_was_learnt_registered_is_detected_registered(run, world, model, tmp_path):
    assert read_card(model).registers
    said = (world / "model.run" / "run.toml").read_text()
    assert "registered = true" in said
    assert "coarse.tif, moved -2.3" in said
    itself, plain = tmp_path / "itself.tif", tmp_path / "plain.tif"
    args = ("detect", model, "--scene-files", joined(world), "--device", "cpu")
    run(*args, "-o", tmp_path / "itself.gpkg", "--scores", itself).done()
    run(*args, "-o", tmp_path / "plain.gpkg", "--scores", plain, "--no-register").done()
    for path, register in ((itself, True), (plain, False)):
        expected = satseg.predict(model, satseg.open_scene(files(world), register=register), register=register)
        assert np.allclose(expected.data, np.nan_to_num(pixels(path)), atol=1e-5)
    assert not np.array_equal(pixels(itself), pixels(plain), equal_nan=True)


def test_a_registered_scene_is_detected_as_files_that_lie_right(world, model, tmp_path):
    paths = [tmp_path / path.name for path in files(world)]
    for source, path in zip(files(world), paths, strict=True):
        path.write_bytes(source.read_bytes())
    scene = satseg.open_scene(paths, register=True)
    registered = satseg.predict(model, scene).data
    with rasterio.open(paths[1], "r+") as file:
        file.transform = scene.sources[-1].grid.transform
    assert np.array_equal(satseg.predict(model, satseg.open_scene(paths), register=False).data, registered)


def test_an_open_scene_is_registered_as_its_files_are(world, model):
    plain = satseg.open_scene(files(world))
    expected = satseg.predict(model, files(world)).data
    assert np.array_equal(satseg.predict(model, plain).data, expected)
    assert np.array_equal(satseg.predict(model, plain.at_gsd(plain.grid.gsd_m())).data, expected)
    assert not np.array_equal(satseg.predict(model, plain, register=False).data, expected)


@pytest.mark.parametrize("told", [True, False])
def test_training_registers_open_scenes_and_the_card_says_what_was_done(world, tmp_path, told):
    config = RunConfig.from_overrides(TINY)
    scene = satseg.open_scene(files(world), register=not told)
    trained = satseg.train([(scene, world / "labels.gpkg")], config=config, registered=told)
    assert trained.card.registers
    labels = satseg.read_features(world / "labels.gpkg")
    run = RunConfig.from_options({"registered": told})
    assert open_pair(scene, labels, None, run.data).scene == satseg.open_scene(files(world), register=True)


def test_training_goes_on_with_the_same_registration_alone(world, model):
    first = satseg.load_model(model, device="cpu").network.state_dict()
    with pytest.raises(UsageError) as caught:
        learnt(world, registered=False, resume=True, overwrite=True)
    assert caught.value.code == "E-TRN-006"
    learnt(world, registered=True, resume=True, overwrite=True)
    again = satseg.load_model(model, device="cpu").network.state_dict()  # the card tells the seconds spent
    assert all(np.array_equal(first[name], again[name]) for name in first)


def stopped(world, model, output, monkeypatch, **options):
    """Run a detection that fails when two bands are in its ledger."""

    def append(self, arrays, original=Ledger.append):
        if self.finished == 2:
            raise RuntimeError("stopped")
        original(self, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", append)
        with pytest.raises(RuntimeError, match="stopped"):
            satseg.detect_to_file(model, files(world), output, **HOW, **options)


def test_a_stopped_detection_goes_on_registered_to_the_same_bytes(run, world, model, tmp_path, monkeypatch):
    whole = [tmp_path / "whole.gpkg", tmp_path / "whole.tif"]
    satseg.detect_to_file(model, files(world), whole[0], scores=whole[1], **HOW)
    output, scores = tmp_path / "found.gpkg", tmp_path / "found.tif"
    stopped(world, model, output, monkeypatch, scores=scores)
    plain = satseg.open_scene(files(world))
    with pytest.raises(UsageError, match="registered") as caught:
        satseg.detect_to_file(model, plain, output, scores=scores, resume=True, register=False, **HOW)
    assert caught.value.code == "E-USE-030"
    args = ("--scene-files", joined(world), "-o", output, "--scores", scores, "--tile", 64, "--min-area", 0)
    args += ("--halo", "exact", "--device", "cpu", "--resume")
    said = run("detect", model, *args, "--no-register")
    assert (said.status, "registered" in said.err, "[E-USE-030]" in said.err) == (2, True, True)
    run("detect", model, *args).done()
    assert scores.read_bytes() == whole[1].read_bytes()
    first, second = (satseg.read_features(path) for path in (whole[0], output))
    assert first.equals(second)
