"""Indices as bands that a network learns from, and that detection computes anew."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from pydantic import ValidationError

import satseg
from satseg.errors import BandError, SpecError, UsageError
from satseg.imagery.scene import open_scene
from satseg.learning.card import IndexCard, ModelCard
from satseg.learning.detection.inference import working_scene
from satseg.learning.detection.job import Detection, DetectOptions
from satseg.learning.detection.products import Targets
from satseg.learning.ground.grounds import prepare
from satseg.learning.ground.pairs import open_pair
from satseg.learning.networks.forward import Wanted
from satseg.learning.networks.model import load_model
from satseg.learning.training.start import Start
from satseg.ledger import Ledger
from satseg.run import RunConfig
from tests.factories import noise, write_tiff
from tests.worlds import squares

OWN = """kind = "indices"
title = "Mine"
source = "Made for the test"
roles = [{ name = "red", low_nm = 600, center_nm = 650, high_nm = 700 }]
[[indices]]
name = "half"
title = "Half"
formula = "(red - red / 3) / (red + 2)"
unit = "reflectance"
source = "Made for the test"
"""
TINY = {"steps": 2, "chip": 32, "batch": 2, "rounds": 1, "device": "cpu", "width": 4, "depth": 2, "stem": 1}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Folder of a scene, and the model that learnt red, NDVI and SAVI (on counts / 2047) of it, saved and loaded."""
    folder = tmp_path_factory.mktemp("learnt")
    path, labels = squares(folder, height=100, width=150)
    labels.to_file(folder / "labels.gpkg")
    satseg.train(
        [(path, labels)], output=folder / "model.safetensors", bands=("red",), indices=("ndvi", "savi"),
        index_scale=1 / 2047, **TINY,
    )  # fmt: skip
    return folder, load_model(folder / "model.safetensors", device="cpu")


def test_prepared_data_have_indices_after_the_bands_and_normalise_them(tmp_path):
    path, labels = squares(tmp_path, height=100, width=150)
    run = RunConfig.from_options({"indices": ("ndvi",), "chip": 32})
    ready = prepare([open_pair(path, labels, None, run.data)], [], run)
    assert ready.bands == ("red", "nir", "ndvi")
    low, high = ready.normalization.low[2], ready.normalization.high[2]
    assert -2 < low < 0 < high < 2
    assert ready.grounds[0].scene.read().names == ready.bands


def test_the_card_says_what_indices_are_computed_from(learnt):
    _, model = learnt
    assert model.bands == ("red", "ndvi", "savi")
    ndvi, savi = model.card.indices
    assert ndvi.bands == {"nir": "nir", "red": "red"}
    assert savi.scale == {"nir": 1 / 2047, "red": 1 / 2047}
    assert savi.unit == "reflectance"
    assert (ndvi.item.formula, ndvi.undefined) == ("(nir - red) / (nir + red)", 0.0)
    assert ModelCard.model_validate(model.card.model_dump(mode="json")) == model.card


def test_detection_computes_the_indices_that_training_saw(learnt):
    folder, model = learnt
    scene = open_scene(folder / "scene.tif")
    work = working_scene(model, scene)
    trained = scene.with_indices("ndvi", "savi", scale=1 / 2047)
    np.testing.assert_array_equal(work.read().data, trained.read(bands=model.bands).data)
    whole = satseg.predict(model, scene)
    own = satseg.predict(model, trained)  # computed by the caller already
    np.testing.assert_array_equal(whole.data, own.data)
    tiled = satseg.predict(model, scene, tile=32, halo="exact")
    np.testing.assert_allclose(tiled.data, whole.data, atol=2e-3)
    assert satseg.detect(model, folder / "scene.tif", output=folder / "found.gpkg", mask=folder / "m.tif") is not None


def test_a_detection_goes_on_with_the_same_indices_alone(learnt, tmp_path):
    folder, model = learnt
    scene = open_scene(folder / "scene.tif")
    targets = Targets(tmp_path / "found.gpkg", None, None, None)

    def header(**told):
        work = working_scene(model, scene.with_indices("ndvi", "savi", **told))
        return Detection.prepare(model, work, DetectOptions(), Wanted()).header(targets)

    with Ledger.open(tmp_path / "found.gpkg", header(scale=1 / 2047), resume=True) as ledger:
        ledger.append({"codes": np.zeros((3, 1, 150), np.uint8)})
    for told, word in (
        ({"scale": 1 / 2048}, "indices"), ({"bands": {"nir": "red"}}, "nir"), ({"undefined": 1.0}, "undefined")
    ):  # fmt: skip
        with pytest.raises(UsageError, match=word):
            Ledger.open(tmp_path / "found.gpkg", header(**{"scale": 1 / 2047, **told}), resume=True)
    Ledger.open(tmp_path / "found.gpkg", header(scale=1 / 2047), resume=True).discard()


def test_a_scene_without_a_band_of_an_index_is_refused_before_work(learnt, tmp_path):
    _, model = learnt
    path = write_tiff(tmp_path / "red.tif", noise(1, 40, 50), descriptions=["red"])
    with pytest.raises(BandError, match=r"the model needs \('red', 'nir'\): nir missing") as caught:
        satseg.predict(model, path)
    assert caught.value.code == "E-BAND-052"


def test_a_scene_in_another_unit_than_the_training_is_refused(tmp_path):
    counts = write_tiff(tmp_path / "counts.tif", noise(2, 9, 13), descriptions=["red", "nir"])
    bits = write_tiff(tmp_path / "floats.tif", noise(2, 9, 13) / np.float32(200), descriptions=["red", "nir"])
    savi, ndvi = map(IndexCard.of, open_scene(bits).with_indices("savi", "ndvi").indices)
    assert savi.on(open_scene(bits)).unit == savi.unit
    with pytest.raises(BandError, match="savi is of reflectance"):
        savi.on(open_scene(counts))
    scaled = write_tiff(tmp_path / "scaled.tif", noise(2, 9, 13), descriptions=["red", "nir"], scale=(0.01, 0))
    with pytest.raises(BandError, match="the model learnt savi of values as stored") as caught:
        savi.on(open_scene(scaled))
    assert caught.value.code == "E-BAND-306"
    assert ndvi.on(open_scene(scaled)).unit == "reflectance"  # a factor cancels out


def test_the_scale_of_a_training_is_not_applied_to_files_that_have_their_own(tmp_path):
    counts = write_tiff(tmp_path / "counts.tif", noise(2, 9, 13), descriptions=["red", "nir"])
    scaled = write_tiff(tmp_path / "scaled.tif", noise(2, 9, 13), descriptions=["red", "nir"], scale=(0.01, 0))
    card = IndexCard.of(open_scene(counts).with_indices("savi", scale=0.01).indices[0])
    first, second = (
        open_scene(path).with_index_bands([card.on(open_scene(path))]).read(bands=["savi"]) for path in (counts, scaled)
    )
    np.testing.assert_allclose(second.data, first.data, rtol=1e-5)


def test_training_scenes_of_several_units_are_refused_for_an_index_of_reflectance(tmp_path):
    path, labels = squares(tmp_path, height=100, width=150)
    values = open_scene(path).read().data
    other = write_tiff(
        tmp_path / "other.tif", values / np.float32(2047), descriptions=["red", "nir"],
        transform=open_scene(path).grid.transform,
    )  # fmt: skip
    scenes = [open_scene(path).with_indices("savi", scale=1 / 2047), open_scene(other).with_indices("savi")]
    run = RunConfig.from_options({"chip": 32})
    pairs = [open_pair(scene, labels, None, run.data) for scene in scenes]
    with pytest.raises(BandError, match="savi is of reflectance in scene, and of values as stored"):
        prepare(pairs, [], run)


def test_fine_tuning_takes_the_indices_of_the_model(learnt):
    folder, _ = learnt
    run = Start.load(folder / "model.safetensors").options(RunConfig.from_options({"steps": 1}))
    assert run.data.indices == ("ndvi", "savi")
    assert run.data.bands == ("red", "ndvi", "savi")
    assert run.data.index_scale == 1 / 2047


def test_a_model_holds_indices_of_ones_own_and_no_path_to_their_document(learnt, tmp_path):
    folder, _ = learnt
    document = tmp_path / "mine.toml"
    document.write_text(OWN)
    pairs, file = [(folder / "scene.tif", folder / "labels.gpkg")], tmp_path / "m.safetensors"
    model = satseg.train(
        pairs, output=file, indices=("half",), index_spec=str(document), index_scale=1 / 2047,
        **TINY,
    )  # fmt: skip
    assert "mine.toml" not in model.card.to_json()
    document.unlink()
    again = satseg.train(pairs, start=str(file), **TINY)
    assert again.card.indices == model.card.indices
    assert again.bands == model.bands == ("red", "nir", "half")


def test_a_card_whose_formula_is_none_is_refused(learnt):
    _, model = learnt
    content = model.card.model_dump(mode="json")
    content["indices"][0]["item"]["formula"] = "__import__('os').getcwd()"
    with pytest.raises(ValidationError, match="a call of an expression is not allowed"):
        ModelCard.model_validate(content)
    content = model.card.model_dump(mode="json")
    content["indices"][0]["item"]["name"] = "other"
    with pytest.raises(ValidationError, match="are not some of"):
        ModelCard.model_validate(content)


def test_the_command_takes_indices_and_refuses_unknown_ones(learnt, run, tmp_path):
    folder, _ = learnt
    pair = ["--data", folder / "scene.tif", folder / "labels.gpkg", "--field", "class_name", "--chip", 32]
    told = run("train", *pair, "--indices", "ndvi, ndwi", "--dry-run")
    assert "ndwi needs a band of green" in told.refused(3, "E-BAND-301")
    assert "3: red, nir, ndvi" in run("train", *pair, "--indices", "ndvi", "--dry-run", "--device", "cpu").done().out


def test_roles_and_documents_of_indices_stand_in_the_run_file(tmp_path):
    path, labels = squares(tmp_path, height=100, width=150)
    run = RunConfig.from_options({"indices": ("ndwi",), "index_roles": {"green": "red"}, "chip": 32})
    assert RunConfig.from_overrides((), tomllib.loads(run.to_toml())) == run
    assert open_pair(path, labels, None, run.data).scene.bands == ("red", "nir", "ndwi")
    with pytest.raises(SpecError):
        open_pair(path, labels, None, RunConfig.from_options({"indices": ("ndwi",), "index_spec": "none"}).data)
