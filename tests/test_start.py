"""Fine-tuning: a training starts where a model ended, and says what it did not take over; repeating is another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import rasterio
import torch

import satseg
from satseg.errors import ModelError, SatsegError, UsageError
from satseg.learning.card import BandCard, FileHash
from satseg.learning.networks.architectures import architecture_of
from satseg.learning.networks.unet import UNet
from satseg.learning.training import recipe
from satseg.learning.training.start import Start, plane_names
from satseg.run import RunConfig
from tests.factories import write_tiff
from tests.worlds import squares

FAST = {"chip": 32, "batch": 4, "width": 4, "depth": 2, "stem": 2, "rounds": 1, "precision": "fp32", "device": "cpu"}
STILL = {"learning_rate": 1e-12, "steps": 1}
"""A training that moves nothing that shows."""
OWN_LIST = """
kind = "classes"
title = "Mine"
source = "made here"
overlapping = true
classes = [
  { id = 7, name = "b", color = "#010203", min_area_m2 = 3.0, buffer_m = 0.5 },
  { id = 4, name = "a", color = "#040506" },
]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model file with classes a and b, its data, and the folder of its run."""
    folder = tmp_path_factory.mktemp("trained")
    data = squares(folder)
    path = folder / "m.safetensors"
    satseg.train([data], output=path, steps=3, seed=5, field="class_name", **FAST)
    return path, data


def learnt(model):
    """Weights of a model without the statistics of batch normalisation, which each batch moves."""
    state = model.network.state_dict()
    return {name: value for name, value in state.items() if "running" not in name and "tracked" not in name}


def close(one, other, but=()):
    return {name for name in one if not torch.allclose(one[name], other[name], atol=1e-6)} <= set(but)


def test_training_starts_with_weights_normalisation_and_options_of_the_model(trained):
    path, data = trained
    model, old = satseg.train([data], start=path, **STILL), satseg.load_model(path, device="cpu")
    assert close(learnt(model), learnt(old))
    assert model.card.normalization == old.card.normalization
    assert model.card.architecture == old.card.architecture
    assert model.card.gsd_m == old.card.gsd_m
    assert (model.card.training.seed, model.card.training.options["train"]["chip"]) == (5, 32)
    assert model.card.training.start == FileHash.of(path)
    assert model.card.training.options["model"]["start"] == path.name
    assert old.card.training.start is None


def test_a_class_list_of_the_users_own_is_told_by_name_and_known_from_the_model(trained, tmp_path):
    """The path means nothing on another machine, or once the file is gone."""
    spec, path = tmp_path / "mine.toml", tmp_path / "m.safetensors"
    spec.write_text(OWN_LIST)
    model = satseg.train([trained[1]], class_spec=str(spec), field="class_name", steps=1, output=path, **FAST)
    assert model.card.training.options["data"]["class_spec"] == "mine.toml"
    spec.unlink()
    satseg.train([trained[1]], start=path, steps=1, output=tmp_path / "tuned.safetensors")
    tuned = satseg.train([trained[1]], start=tmp_path / "tuned.safetensors", steps=1)
    assert tuned.card.training.options["data"]["class_spec"] == "mine.toml"
    told = {item.name: (item.id, item.color, item.buffer_m) for item in tuned.card.classes}
    assert told == {"b": (7, "#010203", 0.5), "a": (4, "#040506", 0.0)}
    assert next(item.min_area_m2 for item in tuned.card.classes if item.name == "b") == 3.0


def test_options_given_come_before_those_of_the_model(trained):
    path, _ = trained
    start = Start.load(path)
    merged = start.options(RunConfig.from_options({"start": str(path), "minutes": 2, "seed": 9}))
    assert (merged.train.minutes, merged.train.steps, merged.train.seed) == (2, None, 9)
    assert (merged.model.width, merged.train.chip, merged.data.bands) == (4, 32, start.card.band_names)
    assert merged.data.field == "class_name"
    assert merged.data.gsd == start.card.gsd_m


def test_fine_tuned_run_resumes_into_the_run_it_would_have_been(trained, tmp_path):
    path, data = trained

    def stop(stage, done, total, note):
        if stage == "train" and done >= 0.6:
            raise KeyboardInterrupt

    call = {"start": path, "steps": 6, "rounds": 3}
    whole = satseg.train([data], **call)
    with pytest.raises(KeyboardInterrupt):
        satseg.train([data], output=tmp_path / "n.safetensors", progress=stop, **call)
    parts = satseg.train([data], output=tmp_path / "n.safetensors", resume=True, **call)
    state, same = whole.network.state_dict(), parts.network.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)


def test_run_file_in_the_folder_of_a_run_repeats_it(trained, tmp_path):
    path, data = trained
    again = satseg.train([data], config=RunConfig.from_file(path.with_suffix(".run") / "run.toml"))
    old = satseg.load_model(path, device="cpu").network.state_dict()
    assert all(torch.equal(value, old[name]) for name, value in again.network.state_dict().items())


def saved_again(path, data, tmp_path, **options):
    satseg.train([data], start=path, repeat=True, output=tmp_path / "again.safetensors", **options)
    return satseg.load_model(tmp_path / "again.safetensors", device="cpu").card


def test_a_model_and_its_data_repeat_the_training(trained, tmp_path):
    path, data = trained
    old, again = satseg.load_model(path, device="cpu").card, saved_again(path, data, tmp_path)
    assert again.weights_sha256 == old.weights_sha256 is not None
    assert again.training.start is None
    assert again.model_copy(update={"training": old.training}) == old
    assert again.training.model_copy(update={"seconds": old.training.seconds, "options": {}}) == (
        old.training.model_copy(update={"options": {}})
    )
    twice = saved_again(tmp_path / "again.safetensors", data, tmp_path, overwrite=True)
    assert twice.weights_sha256 == old.weights_sha256
    assert saved_again(path, data, tmp_path, overwrite=True, seed=6).weights_sha256 != old.weights_sha256


def test_a_repetition_has_the_networks_that_were_chosen_by_the_budget(trained, tmp_path, monkeypatch):
    _, data = trained
    monkeypatch.setattr(recipe, "LEAST_STEPS", 2)
    path = tmp_path / "m.safetensors"
    satseg.train([data], output=path, steps=4, field="class_name", **FAST)
    monkeypatch.undo()
    old, again = satseg.load_model(path, device="cpu").card, saved_again(path, data, tmp_path)
    assert old.architecture.name == "committee"
    assert (again.architecture, again.weights_sha256) == (old.architecture, old.weights_sha256)


def test_other_data_are_no_repetition(trained, tmp_path):
    path, (scene, labels) = trained
    moved = labels.set_geometry(labels.translate(0.1))
    with pytest.raises(UsageError, match=r"the labels of number 1, .* are others") as caught:
        satseg.train([(scene, moved)], start=path, repeat=True)
    assert caught.value.code == "E-TRN-031"
    with rasterio.open(scene) as there:
        values, place = there.read(), {"transform": there.transform, "crs": there.crs}
    values[0, 0, 0] += 1
    other = write_tiff(tmp_path / "other.tif", values, **place)
    for pairs, said in (
        ([(other, labels)], "number 1 was .*, and other differs"),
        ([(scene, labels)] * 2, "another scene: 1 of them there, 2 here"),
    ):
        with pytest.raises(UsageError, match=said):
            satseg.train(pairs, start=path, repeat=True)
    with pytest.raises(UsageError, match="another scene for validation: 0 of them there, 1 here"):
        satseg.train([(scene, labels)], valid_data=[(scene, labels)], start=path, repeat=True)


def test_what_a_card_has_no_more_than_the_name_of_is_asked_for(trained, tmp_path):
    spec, path = tmp_path / "mine.toml", tmp_path / "m.safetensors"
    spec.write_text(OWN_LIST)
    old = satseg.train([trained[1]], class_spec=str(spec), field="class_name", steps=1, output=path, **FAST)
    with pytest.raises(UsageError, match=r"trained with class_spec 'mine.toml'.*give class_spec") as caught:
        satseg.train([trained[1]], start=path, repeat=True)
    assert caught.value.code == "E-TRN-030"
    again = saved_again(path, trained[1], tmp_path, class_spec=str(spec))
    assert again.classes == old.card.classes
    assert again.weights_sha256 == satseg.load_model(path, device="cpu").card.weights_sha256


def test_a_tuned_model_is_no_training_from_first_weights(trained, tmp_path):
    path, data = trained
    satseg.train([data], start=path, output=tmp_path / "tuned.safetensors", **STILL)
    with pytest.raises(UsageError, match=r"tuned.safetensors is tuned from m.safetensors") as caught:
        satseg.train([data], start=tmp_path / "tuned.safetensors", repeat=True)
    assert caught.value.code == "E-TRN-029"
    with pytest.raises(UsageError, match="give that too"):
        satseg.train([data], repeat=True, steps=1)
    with pytest.raises(UsageError, match="folds learn from other data"):
        satseg.train_folds([data, data], start=path, repeat=True, folds=2, output=tmp_path / "f")


def test_classes_known_by_name_keep_their_part_of_the_last_layer(trained, tmp_path, caplog):
    path, (scene, labels) = trained
    other = labels.replace({"class_name": {"b": "c"}})
    model, old = satseg.train([(scene, other)], start=path, **STILL), satseg.load_model(path, device="cpu")
    assert model.classes == ("a", "c")
    heads = ("head.weight", "head.bias")
    assert close(learnt(model), learnt(old), but=heads)
    ours, theirs = (plane_names(m.classes, m.card.separated) for m in (model, old))
    for name in heads:
        new, known = (
            learnt(m)[name].reshape(len(planes), -1) for m, planes in ((model, ours), (old, theirs))
        )
        assert torch.allclose(new[ours.index("a")], known[theirs.index("a")], atol=1e-6)
        assert not torch.allclose(new[ours.index("c")], known[theirs.index("b")], atol=1e-6)
    assert "does not know c" in caplog.text


@pytest.mark.parametrize("stem", [1, 2, 4])
def test_planes_change_places_with_their_classes(trained, stem):
    card = Start.load(trained[0]).card
    config = dataclasses.replace(UNet(_config(card)).config, classes=3, stem=stem)
    old, new = UNet(config).eval(), UNet(config).eval()
    named = card.model_copy(update={"classes": tuple(card.classes[0].model_copy(update={"name": n}) for n in "xyz")})
    named = named.model_copy(update={"separated": ()})
    Start(FileHash(name="m", sha256="0" * 64), named, old.state_dict()).give_weights(new, ("z", "x", "y"))
    image = torch.randn(1, config.bands, 8 * stem, 12 * stem)
    with torch.inference_mode():
        torch.testing.assert_close(new(image), old(image)[:, [2, 0, 1]])


def _config(card):
    from satseg.learning.networks.unet import UNetConfig

    return UNetConfig(**card.architecture.arguments)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"width": 8}, ModelError, "width=4 there, 8 here"),
        ({"bands": ("red",)}, ModelError, "has bands"),
        ({"encoder_rate": 0.1}, UsageError, "plain UNet"),
        ({"encoder": "resnet18", "weights": "imagenet"}, UsageError, "one of them"),
        ({"loss": "jacard"}, UsageError, "jaccard"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(trained, options, kind, said):
    path, (scene, labels) = trained
    if "bands" in options:
        options = {"bands": (satseg.open_scene(scene).bands[1],)}
    with pytest.raises(kind, match=said):
        satseg.train([(scene, labels)], start=path, **STILL, **options)


def test_start_that_is_no_model_is_refused_before_data_are_read(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"PK not a model")
    for name in ("m.safetensors", "absent.safetensors"):
        with pytest.raises(SatsegError, match=name):
            satseg.train([(tmp_path / "absent.tif", tmp_path / "absent.gpkg")], start=tmp_path / name)


def test_data_in_other_units_are_measured(trained, caplog):
    start = Start.load(trained[0])
    own = start.card.normalization

    @dataclasses.dataclass(frozen=True)
    class Found:
        bands: tuple
        normalization: object
        levelled: bool = False

    far = dataclasses.replace(own, offset=tuple(np.asarray(own.high) * 10), high=tuple(np.asarray(own.high) * 20))
    near = dataclasses.replace(own, offset=tuple((np.asarray(own.low) + own.high) / 2))
    assert start.normalized(Found(own.names, near)).normalization == own
    assert caplog.text == ""
    assert start.normalized(Found(own.names, far)).normalization == far
    assert "other units" in caplog.text


def test_options_of_another_version_are_left_out_with_a_warning(trained, caplog):
    start = Start.load(trained[0])
    options = {**start.card.training.options, "train": {"chip": 64, "spin": 3}}
    card = start.card.model_copy(
        update={"training": start.card.training.model_copy(update={"options": options})}
    )
    merged = dataclasses.replace(start, card=card).options(RunConfig())
    assert merged.train.chip == 64
    assert "spin" in caplog.text


def test_a_card_from_before_an_argument_of_the_network_means_what_loading_it_means(trained):
    start = Start.load(trained[0])
    told = {name: v for name, v in start.card.architecture.arguments.items() if name not in ("residual", "squeeze")}
    card = start.card.model_copy(
        update={"architecture": start.card.architecture.model_copy(update={"arguments": told})}
    )
    merged = dataclasses.replace(start, card=card).options(RunConfig())
    assert RunConfig().model.residual
    assert (merged.model.residual, merged.model.squeeze) == (False, False)


@pytest.mark.parametrize("options", [{"stem": 2}, {"stem": 1, "crop": 3}, {"stem": 1, "residual": True}], ids=str)
def test_first_layer_of_a_model_serves_other_bands_where_it_is_told_how(trained, options):
    card = Start.load(trained[0]).card
    config = dataclasses.replace(_config(card), width=6, **options)
    card = card.model_copy(update={"separated": (), "architecture": architecture_of(old := UNet(config).eval())})
    names = "wxyz"[: config.classes]
    card = card.model_copy(update={"classes": tuple(card.classes[0].model_copy(update={"name": n}) for n in names)})
    start = Start(FileHash(name="m", sha256="0" * 64), card, old.state_dict())
    new = UNet(dataclasses.replace(config, bands=4)).eval()
    bands = [BandCard(name=name) for name in ("nir", "pan", "red", "x")]
    planes = plane_names(card.class_names, ())
    start.give_weights(new, planes, bands=bands, inflate="repeat")  # pan takes that of nir, x that of nir too
    image = torch.randn(1, 2, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(new(image[:, [1, 1, 0, 1]]), old(image))
    with pytest.raises(ModelError, match="another"):
        start.give_weights(new, planes, bands=bands)
    shortcut = UNet(dataclasses.replace(config, bands=6))  # as many as filters: nothing to learn on the way around
    if options.get("stem") == 1 and config.residual:
        with pytest.raises(ModelError, match="another"):
            start.give_weights(shortcut, planes, bands=[BandCard(name=f"b{i}") for i in range(6)], inflate="repeat")


def test_model_is_fine_tuned_on_bands_it_never_saw(trained, tmp_path):
    path, (scene, labels) = trained
    with rasterio.open(scene) as source:
        data = source.read()
        transform = source.transform
    wide = write_tiff(
        tmp_path / "w.tif", data[[1, 0, 1]], transform=transform, crs=labels.crs, descriptions=("nir", "red", "edge")
    )
    with pytest.raises(ModelError, match="inflate"):
        satseg.train([(wide, labels)], start=path, bands=("edge",), **STILL)
    model, old = satseg.train([(wide, labels)], start=path, inflate="repeat", **STILL), satseg.load_model(path)
    assert model.bands == ("nir", "red", "edge")
    at = [model.bands.index(name) for name in old.bands]
    assert [model.card.normalization.offset[place] for place in at] == [*old.card.normalization.offset]
    new, before = learnt(model), learnt(old)
    first, known = new.pop("stem.0.weight"), before.pop("stem.0.weight")
    torch.testing.assert_close(first[:, 0], known[:, 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(first[:, 1], first[:, 2], atol=1e-6, rtol=0)
    torch.testing.assert_close(first[:, 1] + first[:, 2], known[:, 0], atol=1e-6, rtol=0)
    assert close(new, before)
