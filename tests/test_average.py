"""Averaged checkpoints: the mean of weights and buffers, of what is alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from satseg.errors import ModelError, UsageError
from satseg.learning.card import FileHash, TrainingSource
from satseg.learning.networks.average import average
from satseg.learning.networks.model import load_model
from tests.worlds import tiny_model


def with_buffers(model, shift):
    """`model` whose batch statistics have moved."""
    with torch.no_grad():
        for name, buffer in model.network.named_buffers():
            buffer += buffer.new_tensor(7 * shift if "batches" in name else shift)
    return model


def test_every_weight_and_statistic_is_the_mean():
    models = [with_buffers(tiny_model(seed=seed, depth=2), seed) for seed in (1, 2, 4)]
    found = average(models).network.state_dict()
    counts = 0
    for name, value in found.items():
        parts = np.stack([model.network.state_dict()[name].numpy().astype(np.float64) for model in models])
        counts += "batches" in name
        expected = parts.max(axis=0) if "batches" in name else parts.mean(axis=0)
        np.testing.assert_array_equal(value.numpy(), expected.astype(value.numpy().dtype), err_msg=name)
    assert counts


def test_the_order_changes_no_bit_and_the_parts_stay_as_they_are():
    models = [tiny_model(seed=seed, depth=2) for seed in (1, 2, 3)]
    before = [{k: v.clone() for k, v in model.network.state_dict().items()} for model in models]
    first, second = average(models), average(models[::-1])
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name])
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.network.state_dict().items())
    assert first.card == second.card


def test_the_card_says_of_which_it_is_the_mean_and_claims_no_score(tmp_path):
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for path, level in zip(paths, (0.2, 0.6), strict=True):
        model = tiny_model(seed=int(path.stem), depth=2)
        items = tuple(item.model_copy(update={"threshold": level, "min_area_m2": level}) for item in model.items)
        scored = {"validation_jaccard": {"a": 0.9}}
        told = {"validation": (TrainingSource(crs="EPSG:32633"),), "warnings": ("dark", path.stem),
                "weights": FileHash(name="w.pth", sha256=64 * "0")}  # fmt: skip
        training = model.card.training.model_copy(update=told)
        update = {"classes": items, "scores": scored, "training": training}
        replace(model, card=model.card.model_copy(update=update)).save(path)
    made = average(paths)
    made.save(tmp_path / "mean.safetensors")
    again = load_model(tmp_path / "mean.safetensors")
    assert set(again.card.training.mean_of) == {load_model(path).card.weights_sha256 for path in paths}
    assert again.thresholds == pytest.approx({"a": 0.4, "b": 0.4})
    assert [item.min_area_m2 for item in again.items] == [0.2, 0.2]
    assert again.card.scores == {}
    training = again.card.training
    assert (training.validation, training.weights) == ((), None)
    assert sorted(training.warnings) == ["1", "2", "dark"]


def test_a_model_with_itself_is_itself():
    model = tiny_model(seed=5)
    twice = average([model, model]).network.state_dict()
    assert all(torch.equal(value, twice[name]) for name, value in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("other", "says"),
    [({"depth": 2}, "networks: depth 3 and 2;"), ({"classes": ("a", "c")}, "classes"),
     ({"gsd_m": 2.0}, "resolutions: None and 2.0"), ({"separated": ("a",)}, "networks")],
)  # fmt: skip
def test_models_that_are_not_alike_are_refused_by_what_differs(other, says):
    with pytest.raises(ModelError, match=f"model 1 and model 2 have other {says}") as refused:
        average([tiny_model(), tiny_model(**other)])
    assert refused.value.code == "E-MOD-044"


def test_another_normalisation_is_refused():
    model = tiny_model()
    normal = replace(model.card.normalization, scale=(100.0, 100.0))
    other = replace(model, card=model.card.model_copy(update={"normalization": normal}))
    with pytest.raises(ModelError, match=r"normalisations: scale \[[^a-z]+\] and \[100.0, 100.0\];"):
        average([model, other])


def test_a_checkpoint_and_an_ensemble_file_are_refused_with_what_to_give_instead(tmp_path):
    for name, content, hint in (("last.ckpt", b"PK\3\4", "--resume alone"), ("team.toml", b"mean = 1", "one model")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=hint):
            average([tmp_path / name, tiny_model()])


def test_one_model_has_no_mean():
    with pytest.raises(UsageError, match="no mean"):
        average([tiny_model()])


def test_the_command_writes_a_model(tmp_path, run):
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for path in paths:
        tiny_model(seed=int(path.stem), depth=2).save(path)
    out = tmp_path / "mean.safetensors"
    assert run("average", *paths, "-o", out).done().out == f"{out}: mean of 2 models\n"
    assert load_model(out).classes == ("a", "b")
    run("average", *paths, "-o", out).refused(4, "E-OUT-003")
    run("average", *paths, "-o", tmp_path / "mean.pt").refused(2, "E-USE-022")
    run("average", paths[0], "-o", tmp_path / "one.safetensors").refused(2, "E-USE-025")
    tiny_model(depth=3).save(tmp_path / "3.safetensors")
    run("average", *paths, tmp_path / "3.safetensors", "-o", tmp_path / "x.safetensors").refused(3, "E-MOD-044")
    assert not (tmp_path / "x.safetensors").exists()
