"""Recipes: documents that say all, trained into a folder, detected into layers that a submission takes."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import geopandas
import pytest
import shapely

from satseg.errors import InputError, OutputError, SpecError, UsageError
from satseg.tasks.dstl.detecting import detect_recipe
from satseg.tasks.dstl.facts import class_names
from satseg.tasks.dstl.folder import ContestFolder
from satseg.tasks.dstl.index_parts import FittedIndex, best_cut, write_fitted
from satseg.tasks.dstl.recipe import list_recipes, load_recipe
from satseg.tasks.dstl.training import train_recipe
from satseg.vector.features import read_features
from tests.contests import build_contest

TINY = ("train.steps=2", "train.batch=2", "train.chip=32", "model.width=4", "model.depth=1", "train.device=cpu")
OWN = """
title = "two networks and water"
source = "a test"
base = "dstl"
products = ["rgb", "M"]
[data]
bands = ["rgb_red", "rgb_green", "rgb_blue"]
[[networks]]
name = "built"
classes = ["Buildings", "Road"]
[[networks]]
name = "grown"
classes = ["Trees", "Buildings"]
share = 3.0
[[indices]]
classes = ["Waterway", "Standing water"]
indices = ["ndwi", "ndvi"]
roles = { nir = "nir2" }
registered = false
"""


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    return build_contest(tmp_path_factory.mktemp("contest"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "own.toml"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_of_satseg_are_whole(name):
    recipe = load_recipe(name)
    assert {item.id for item in recipe.class_items} == set(range(1, 11))
    for part in recipe.networks:
        run = recipe.run(part, ["train.batch=3"])
        assert (run.train.batch, run.data.class_spec) == (3, recipe.class_spec)


def test_the_recipe_of_2017_is_its_network():
    from satseg.learning.networks.unet import SEED_2017

    recipe = load_recipe("dstl-2017")
    options = recipe.run(recipe.networks[0])
    told = options.model.model_dump()
    for name in ("width", "depth", "norm", "activation", "crop", "residual", "squeeze", "decoder_convs", "stem"):
        assert told[name] == getattr(SEED_2017, name), name
    assert len(options.data.bands) + len(options.data.indices) == SEED_2017.bands
    assert [part.classes for part in load_recipe("dstl-2017-joint").indices] == [("Waterway", "Standing water")]


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (('base = "dstl"', 'base = "dslt"'), SpecError, "dslt"),
        (('"Trees"', '"Tress"'), SpecError, "Tress"),
        (("share", "shares"), SpecError, "shares"),
        (("bands =", "bandz ="), UsageError, "bandz"),
        (('"grown"', '"built"'), SpecError, "twice"),
        (('["rgb", "M"]', '["rgb", "Q"]'), SpecError, "Q"),
    ],
)
def test_faults_of_a_recipe_are_named(tmp_path, change, error, word):
    (tmp_path / "r.toml").write_text(OWN.replace(*change))
    with pytest.raises(error, match=word):
        load_recipe(tmp_path / "r.toml")
    with pytest.raises(UsageError, match="did you mean"):
        load_recipe("dstl-2071")


def test_a_base_gives_what_is_not_said(own):
    recipe, base = load_recipe(own), load_recipe("dstl")
    assert recipe.thresholds == base.thresholds
    assert recipe.train == base.train
    assert recipe.data == {**base.data, "bands": ["rgb_red", "rgb_green", "rgb_blue"]}


def layer(areas, names):
    shapes = [shapely.box(0, 0, area, 1) for area in areas]
    return geopandas.GeoDataFrame({"class_name": names}, geometry=shapes)


def test_rivers_and_ponds_are_parted_where_their_labels_are():
    layers = [layer([900, 30, 40], ["r", "p", "p"]), layer([500, 60], ["r", "p"])]
    assert 60 < best_cut(layers, ("r", "p")) < 500
    assert best_cut([layer([5, 7], ["r", "r"])], ("r", "p")) <= 5
    assert best_cut([layer([5, 7], ["p", "p"])], ("r", "p")) > 7


def test_fitted_indices_come_back_from_their_file(tmp_path):
    rule = FittedIndex(("Waterway", "Standing water"), "ndwi", 0.25, "above", 80.0, 0.5, {"nir": "nir2"}, None, True)
    write_fitted([rule], tmp_path / "rules.json")
    assert FittedIndex.read(tmp_path / "rules.json") == (rule,)
    assert [(one.to, one.below_m2) for one in rule.becomes] == [("Standing water", 80.0)]
    assert replace(rule, cut_m2=0.0).becomes == ()
    (tmp_path / "rules.json").write_text('[{"index": 1}]')
    with pytest.raises(InputError, match="fitted"):
        FittedIndex.read(tmp_path / "rules.json")


@pytest.fixture(scope="module")
def models(contest, own, tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "m"
    return train_recipe(ContestFolder.open(contest), own, place, overrides=TINY)


def test_a_recipe_is_learnt_into_one_folder(models):
    assert {name: set(found) for name, found in models.scores.items()} == {
        "built": {"Buildings"}, "grown": {"Trees", "Buildings"},
    }  # fmt: skip
    assert models.missing == ("Road",)
    names = {path.name for path in models.path.iterdir() if path.suffix != ".run"}
    assert names == {"recipe.toml", "run.json", "prepared", "rules.json", "built.safetensors", "grown.safetensors"}
    (rule,) = models.rules
    assert rule.classes == ("Waterway", "Standing water")
    assert rule.jaccard > 0.3


def test_a_training_that_was_stopped_goes_on_and_another_does_not(models, contest, own):
    folder = ContestFolder.open(contest)
    before = (models.path / "grown.safetensors").stat().st_mtime_ns
    again = train_recipe(folder, own, models.path, overrides=TINY, resume=True)
    assert again.scores == models.scores
    assert (models.path / "grown.safetensors").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="not empty"):
        train_recipe(folder, own, models.path, overrides=TINY)
    with pytest.raises(UsageError, match="another run"):
        train_recipe(folder, own, models.path, overrides=TINY, seed=1, resume=True)
    with pytest.raises(UsageError, match="another run"):
        train_recipe(folder, "dstl", models.path, overrides=TINY, resume=True)


@pytest.mark.parametrize("minutes", [-1.0, 0.0])
def test_a_budget_that_is_none_is_refused_before_anything_is_written(contest, own, tmp_path, minutes):
    with pytest.raises(UsageError, match="minutes"):
        train_recipe(ContestFolder.open(contest), own, tmp_path / "m", minutes=minutes)
    assert not (tmp_path / "m").exists()


def test_a_training_stopped_between_its_first_two_files_goes_on(contest, own, tmp_path, monkeypatch):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder, place = ContestFolder.open(contest), tmp_path / "m"
    monkeypatch.setattr("satseg.tasks.dstl.training.prepare", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(folder, own, place, overrides=TINY)
    told = (place / "run.json").read_text()
    (place / "run.json").unlink()
    with pytest.raises(UsageError, match="another run"):
        train_recipe(folder, "dstl", place, overrides=TINY, resume=True)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(folder, own, place, overrides=TINY, resume=True)
    assert (place / "run.json").read_text() == told


def test_the_way_from_models_to_a_score(run, models, contest, tmp_path):
    out = run("dstl", "detect", models.path, contest, "-o", tmp_path / "p", "--device", "cpu").done().out
    assert "in 1 tiles" in out, "6020_0_0 is the one scored tile that is there"
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"6020_0_0.gpkg", "detected.txt"}
    out = run("dstl", "submit", contest, tmp_path / "p", "-o", tmp_path / "s.csv").done().out
    assert "of 1 predicted tiles" in out
    out = run("dstl", "detect", models.path, contest, "-o", tmp_path / "p", "--resume", "--tiles", "6010_1_2,6020_0_0")
    assert "in 1 tiles" in out.done().out, "the other is kept"
    with pytest.raises(UsageError, match="other models or options: tta = 'd4'"):
        detect_recipe(models.path, ContestFolder.open(contest), tmp_path / "p", resume=True, tta="d4")
    assert set(read_features(tmp_path / "p" / "6010_1_2.gpkg")["class_name"]) <= {*class_names().values()}


def test_models_that_are_not_there_or_not_finished_are_refused(contest, models, tmp_path):
    folder = ContestFolder.open(contest)
    with pytest.raises(InputError, match="no models") as caught:
        detect_recipe(tmp_path, folder, tmp_path / "p")
    assert caught.value.code == "E-IN-331"
    half = tmp_path / "half"
    half.mkdir()
    for path in models.path.iterdir():
        if path.name != "grown.safetensors":
            (half / path.name).symlink_to(path)
    with pytest.raises(InputError, match="not finished: grown") as caught:
        detect_recipe(half, folder, tmp_path / "p")
    assert caught.value.code == "E-IN-332"
    with pytest.raises(InputError, match="6999_0_0"):
        detect_recipe(models.path, folder, tmp_path / "p", tiles=["6999_0_0"])
    shutil.copytree(contest, tmp_path / "part", copy_function=os.symlink)
    for path in tmp_path.glob("part/*/6010_1_2*.tif"):
        path.unlink()
    with pytest.raises(InputError, match=r"6010_1_2 has no rgb file; unpack [^,]+$"):
        detect_recipe(
            models.path, ContestFolder.open(tmp_path / "part"), tmp_path / "p", tiles=["6020_0_0", "6010_1_2"]
        )
    assert not (tmp_path / "p").exists(), "nothing is begun"
    with pytest.raises(UsageError, match="ttta"):
        detect_recipe(models.path, folder, tmp_path / "p", ttta="d4")


def test_recipes_are_listed_and_printed(run):
    assert run("dstl", "recipes").done().out.split()[0] == "dstl"
    assert 'base = "dstl-2017"' in run("dstl", "recipes", "dstl-2017-joint").done().out
