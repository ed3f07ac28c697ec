"""Fine-tuning: a training starts where a model ended, and says what it did not take over; repeating is another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from rasterio.windows import Window
from safetensors.torch import load_file, save_file

import satseg
from satseg.cli.main import main
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
ENCODER = {"chip": 32, "batch": 4, "rounds": 1, "precision": "fp32", "device": "cpu"}
OWN_SENSOR = """
kind = "sensor"
title = "Mine"
source = "made here"
bands = [ { name = "red", low_nm = 600, high_nm = 700 }, { name = "nir", low_nm = 800, high_nm = 900 } ]
[[products]]
name = "stack"
bands = ["red", "nir"]
"""
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


def repetition_of(tmp_path, data, *, before=None, **options):
    """Cards of a training with `options` and of its repetition, given the options of `again` besides."""
    again = options.pop("again", {})
    path = tmp_path / "m.safetensors"
    how = {**FAST, "steps": 2, "seed": 5, "field": "class_name", **options}
    satseg.train(data, output=path, **how)
    if before is not None:
        before()
    satseg.train(data, start=path, repeat=True, output=tmp_path / "again.safetensors", **again)
    return tuple(satseg.load_model(tmp_path / f"{name}.safetensors", device="cpu").card for name in ("m", "again"))


def same_model(old, again):
    """Whether the cards are equal but for the time it took, and for what was left to choose and now is told."""
    for card in (old, again):
        for name in ("members", "upsampling"):
            card.training.options["model"].pop(name, None)
    seconds = {"seconds": old.training.seconds}
    return again.model_copy(update={"training": again.training.model_copy(update=seconds)}) == old


def test_a_model_and_its_data_repeat_the_training(tmp_path):
    data = squares(tmp_path)
    old, again = repetition_of(tmp_path, [data])
    assert same_model(old, again)
    assert old.weights_sha256 is not None
    satseg.train([data], start=tmp_path / "again.safetensors", repeat=True, output=tmp_path / "twice.safetensors")
    assert same_model(old, satseg.load_model(tmp_path / "twice.safetensors", device="cpu").card)


def test_a_repetition_has_the_networks_that_were_chosen_by_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "LEAST_STEPS", 2)
    old, again = repetition_of(tmp_path, [squares(tmp_path)], steps=4, before=monkeypatch.undo)
    assert old.architecture.name == "committee"
    assert same_model(old, again)


def test_scenes_of_nearly_one_resolution_and_one_without_a_crs_are_repeated(tmp_path):
    """Asked for, the working resolution would mean another thing than chosen."""
    near = squares(tmp_path, name="near", gsd=1.04, x=510_000.0)
    held = squares(tmp_path, name="held", x=600_000.0)
    nowhere, labels = squares(tmp_path, name="nowhere", crs=None)
    for data, valid in (([squares(tmp_path), near], [held]), ([squares(tmp_path), (nowhere, labels)], [])):
        old, again = repetition_of(
            tmp_path, data, valid_data=valid, overwrite=True, again={"valid_data": valid, "overwrite": True}
        )
        assert same_model(old, again)


def test_bands_of_several_files_and_indices_are_repeated(tmp_path):
    scene, labels = squares(tmp_path)
    with rasterio.open(scene) as there:
        values, place = there.read(), {"transform": there.transform, "crs": there.crs}
    files = [
        write_tiff(tmp_path / f"{name}.tif", band[None], descriptions=[name], **place)
        for name, band in zip(("red", "nir", "pan"), (*values, values[0]), strict=True)
    ]
    old, again = repetition_of(tmp_path, [(files, labels)], bands=("nir", "red"), indices=("ndvi",))
    assert old.band_names == ("nir", "red", "ndvi")
    assert same_model(old, again)


def test_first_weights_of_an_encoder_are_given_again(tmp_path, capsys):
    pytest.importorskip("segmentation_models_pytorch")
    data, weights = squares(tmp_path), tmp_path / "w.safetensors"
    network = satseg.train([data], steps=1, encoder="resnet18", **ENCODER).network
    save_file({name: value.contiguous() for name, value in network.encoder.state_dict().items()}, weights)
    options = {**ENCODER, "encoder": "resnet18", "weights": str(weights), "freeze": 0.5, "width": 32, "depth": 4}
    old, again = repetition_of(tmp_path, [data], again={"weights": str(weights)}, **options)
    assert same_model(old, again)
    path = tmp_path / "m.safetensors"
    with pytest.raises(UsageError, match=r"trained with model.weights 'w.safetensors'") as caught:
        satseg.train([data], start=path, repeat=True)
    assert caught.value.code == "E-TRN-030"
    other = tmp_path / "other.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, other)
    with pytest.raises(UsageError, match=r"were w.safetensors .*here are other.safetensors") as caught:
        satseg.train([data], start=path, repeat=True, weights=str(other))
    assert caught.value.code == "E-TRN-031"
    assert main(["train", "--from", str(path), "--repeat", "--print-config", f'model.weights="{weights}"']) == 0
    assert f'weights = "{weights}"' in capsys.readouterr().out


def test_other_data_are_no_repetition(trained, tmp_path):
    path, (scene, labels) = trained
    moved = labels.set_geometry(labels.translate(0.1))
    with rasterio.open(scene) as there:
        values, place = there.read(), {"transform": there.transform, "crs": there.crs}
    values[0, 0, 0] += 1
    other, opened = write_tiff(tmp_path / "other.tif", values, **place), satseg.open_scene(scene)
    cut = dataclasses.replace(opened, grid=opened.grid.crop(Window(0, 0, opened.grid.width - 8, opened.grid.height)))
    for pairs, said in (
        ([(scene, moved)], "the labels of number 1, .* are others"),
        ([(other, labels)], "number 1 was .*, and other.tif here has other bytes"),
        ([(cut, labels)], r"number 1 was .* in \(.*, here it is in \("),
        ([(scene, labels)] * 2, "another scene: 1 of them there, 2 here"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            satseg.train(pairs, start=path, repeat=True)
        assert caught.value.code == "E-TRN-031"
    with pytest.raises(UsageError, match="no training data"):
        satseg.train(start=path, repeat=True)
    held = squares(tmp_path, name="held", x=600_000.0)
    with pytest.raises(UsageError, match="another scene for validation: 0 of them there, 1 here"):
        satseg.train([(scene, labels)], valid_data=[held], start=path, repeat=True)


def test_what_cannot_be_compared_or_is_another_option_is_told_of(trained, tmp_path, caplog):
    path, data = trained
    old = tmp_path / "old.safetensors"
    model = satseg.load_model(path, device="cpu")
    sources = tuple(one.model_copy(update={"labels_sha256": None}) for one in model.card.training.sources)
    training = model.card.training.model_copy(update={"sources": sources})
    dataclasses.replace(model, card=model.card.model_copy(update={"training": training})).save(old)
    satseg.train([data], start=old, repeat=True)
    assert "the card of old.safetensors is from before labels had a digest" in caplog.text
    assert "no mere repetition" not in caplog.text
    caplog.clear()
    again = satseg.train([data], start=path, repeat=True, seed=6, batch=4)
    assert "no mere repetition: m.safetensors was not trained with train.seed=6\n" in caplog.text
    assert again.card.training.seed == 6


def test_what_a_card_has_no_more_than_the_name_of_is_asked_for(tmp_path):
    spec, data = tmp_path / "mine.toml", squares(tmp_path)
    spec.write_text(OWN_LIST)
    old, again = repetition_of(tmp_path, [data], class_spec=str(spec), again={"class_spec": str(spec)})
    assert same_model(old, again)
    with pytest.raises(UsageError, match=r"trained with data.class_spec 'mine.toml'.*give data.class_spec") as caught:
        satseg.train([data], start=tmp_path / "m.safetensors", repeat=True)
    assert caught.value.code == "E-TRN-030"


def test_a_sensor_of_the_users_own_is_asked_for_before_data_are_opened(tmp_path):
    """Without it the bands have other names, and an index would ask for those."""
    spec, (named, labels) = tmp_path / "mine.toml", squares(tmp_path)
    spec.write_text(OWN_SENSOR)
    with rasterio.open(named) as there:
        scene = write_tiff(tmp_path / "s.tif", there.read(), transform=there.transform, crs=there.crs)
    told = {"sensor": str(spec)}
    old, again = repetition_of(tmp_path, [(scene, labels)], indices=("ndvi",), again=told, **told)
    assert old.band_names == ("red", "nir", "ndvi")
    assert same_model(old, again)
    with pytest.raises(UsageError, match=r"trained with data.sensor 'mine.toml'"):
        satseg.train([(tmp_path / "absent.tif", labels)], start=tmp_path / "m.safetensors", repeat=True)


def test_whether_a_vrt_names_the_same_files_is_not_known_and_said(tmp_path, caplog):
    scene, labels = squares(tmp_path)
    rasterio.shutil.copy(scene, tmp_path / "s.vrt", driver="VRT")
    old, again = repetition_of(tmp_path, [(tmp_path / "s.vrt", labels)], allow_driver=("VRT",))
    assert same_model(old, again)
    assert "s.vrt has the pixels that m.safetensors learnt from cannot be told" in caplog.text


def test_a_repetition_is_resumed_and_takes_its_data_from_a_run_file(trained, tmp_path):
    path, data = trained
    run = RunConfig.from_file(path.with_suffix(".run") / "run.toml")
    satseg.train([data], config=run, start=path, repeat=True, output=tmp_path / "again.safetensors")
    satseg.train([data], config=run, start=path, repeat=True, output=tmp_path / "again.safetensors", resume=True)
    again, old = (satseg.load_model(one, device="cpu").card for one in (tmp_path / "again.safetensors", path))
    assert again.weights_sha256 == old.weights_sha256


def test_a_model_that_did_not_begin_with_first_weights_is_not_repeated(trained, tmp_path):
    path, data = trained
    satseg.train([data], start=path, output=tmp_path / "tuned.safetensors", **STILL)
    satseg.average([path, path]).save(tmp_path / "mean.safetensors")
    for name, said in (("tuned", "tuned.safetensors is tuned from m.safetensors"), ("mean", "is a mean of 2 models")):
        with pytest.raises(UsageError, match=said) as caught:
            satseg.train([data], start=tmp_path / f"{name}.safetensors", repeat=True)
        assert caught.value.code == "E-TRN-029"
    with pytest.raises(UsageError, match="give that by start too"):
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
