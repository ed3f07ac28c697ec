"""Several networks that answer as one: in training one at a time, in detection their mean, in a file one model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import satseg
from satseg.errors import ModelError, UsageError
from satseg.learning.card import Architecture
from satseg.learning.networks.architectures import architecture_of, saved_network
from satseg.learning.networks.committee import Committee, CommitteeConfig
from satseg.learning.networks.export import onnx_bytes
from satseg.learning.networks.folding import lean
from satseg.learning.networks.model import Model
from satseg.learning.networks.unet import UNet, UNetConfig
from satseg.learning.training.recipe import members_for
from satseg.options import TrainOptions
from satseg.run import RunConfig
from tests.test_bundle import card_of
from tests.test_training import FAST, weights
from tests.worlds import squares

torch.set_num_threads(1)
MEMBER = UNetConfig(bands=2, classes=3, width=3, depth=3, stem=2, residual=True, decoder_convs=1, squeeze=True, crop=2)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def committee():
    """Three members whose statistics are those of noise."""
    network = Committee(CommitteeConfig(member=MEMBER, members=3), generator=torch.Generator().manual_seed(0))
    for step in range(3):
        network.take_turn(step)
        network.train()(noise(seed=step))
    return network.eval()


def noise(height=32, width=40, *, seed=9):
    return torch.randn(2, 2, height, width, generator=torch.Generator().manual_seed(seed))


def test_answer_is_the_mean_of_the_members_logits(committee):
    with torch.inference_mode():
        each = torch.stack([member(noise()) for member in committee.members])
        assert torch.allclose(committee(noise()), each.mean(dim=0), atol=1e-6)
    assert not torch.allclose(each[0], each[1])


def test_one_member_learns_at_a_time(committee):
    committee.train()
    for step in range(4):
        committee.zero_grad(set_to_none=True)
        committee.take_turn(step)
        committee(noise()).sum().backward()
        learning = {int(name.split(".")[1]) for name, weight in committee.named_parameters() if weight.grad is not None}
        assert learning == {step % 3}


def test_sizes_are_those_of_a_member(committee):
    member = UNet(MEMBER)
    assert (committee.reach, committee.halo) == (member.reach, member.halo)
    assert (committee.stride, committee.crop, committee.learners, member.learners) == (8, 2, 3, 1)
    with pytest.raises(satseg.SatsegError, match="multiples of 8"):
        committee(noise(32, 41))


def test_lean_committee_answers_the_same(committee):
    with torch.inference_mode():
        assert torch.allclose(lean(committee)(noise()), committee(noise()), atol=1e-5)


def test_exported_committee_answers_the_same(committee):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    single = dataclasses.replace(MEMBER, classes=1)
    network = Committee(CommitteeConfig(member=single, members=2), generator=torch.Generator().manual_seed(1)).eval()
    card = card_of(network)
    session = onnxruntime.InferenceSession(onnx_bytes(Model(card, network, CPU)))
    (found,) = session.run(None, {"image": noise().numpy()})
    with torch.inference_mode():
        assert np.allclose(found, network(noise()).numpy(), atol=1e-4)


def test_committee_survives_its_card(committee):
    saved = saved_network(architecture_of(committee), committee.state_dict()).eval()
    assert isinstance(saved, Committee)
    with torch.inference_mode():
        assert torch.equal(saved(noise()), committee(noise()))


@pytest.mark.parametrize("members", [1, 33, 2.5, "two"])
def test_card_that_asks_for_too_many_or_too_few_is_refused(committee, members):
    arguments = {**architecture_of(committee).arguments, "members": members}
    with pytest.raises(UsageError, match="members"):
        saved_network(Architecture(name="committee", arguments=arguments), committee.state_dict())


def test_card_that_asks_for_more_than_the_file_has_is_refused(committee):
    arguments = {**architecture_of(committee).arguments, "members": 30}
    with pytest.raises(UsageError, match="more than there are"):
        saved_network(Architecture(name="committee", arguments=arguments), committee.state_dict())


# --- in training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("committee")
    data, path = squares(folder), folder / "m.safetensors"
    return data, path, satseg.train([data], output=path, steps=6, members=2, **FAST)


def test_members_learn_apart_and_come_back_from_the_file(trained):
    data, path, model = trained
    first, second = (member.state_dict() for member in model.network.members)
    assert any(not torch.equal(first[name], second[name]) for name in first if name.endswith("weight"))
    assert model.card.architecture.name == "committee"
    counts = [next(int(n) for name, n in state.items() if name.endswith("tracked")) for state in (first, second)]
    assert counts in ([2, 1], [3, 3])  # after the first or the second round
    loaded = satseg.load_model(path, device="cpu")
    options = {"tile": 64, "amp": False}
    here, there = (satseg.predict(one, data[0], **options).data for one in (model, loaded))
    assert np.array_equal(here, there)


def test_scores_are_those_of_the_mean_logit(trained):
    data, _, model = trained
    each = []
    for member in model.network.members:
        card = model.card.model_copy(update={"architecture": architecture_of(member)})
        each.append(satseg.predict(Model(card, member, CPU), data[0], amp=False, halo="exact").data)
    odds = [np.log(score / (1 - score)) for score in np.asarray(each, float)]
    found = satseg.predict(model, data[0], amp=False, halo="exact").data
    assert np.allclose(found, 1 / (1 + np.exp(-np.mean(odds, axis=0))), atol=1e-5)


def test_killed_run_of_several_resumes_into_the_run_it_would_have_been(trained, tmp_path):
    data, _, whole = trained

    def stop_halfway(stage, done, total, note):
        if stage == "train" and done >= 0.6:
            raise KeyboardInterrupt

    options = {"steps": 6, "members": 2, **FAST}
    with pytest.raises(KeyboardInterrupt):
        satseg.train([data], output=tmp_path / "n.safetensors", progress=stop_halfway, **options)
    parts = satseg.train([data], output=tmp_path / "n.safetensors", resume=True, **options)
    assert all(torch.equal(value, weights(parts)[name]) for name, value in weights(whole).items())


def test_fine_tuning_goes_on_with_as_many_members(trained):
    data, path, model = trained
    tuned = satseg.train([data], start=path, steps=1, learning_rate=1e-12)
    old, new = weights(model), weights(tuned)
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old if name.endswith("weight"))
    with pytest.raises(ModelError, match="members=2 there, 3 here"):
        satseg.train([data], start=path, steps=1, members=3)


def test_a_single_network_is_fine_tuned_alone_whatever_the_budget(trained, tmp_path):
    data, _, _ = trained
    satseg.train([data], output=tmp_path / "one.safetensors", steps=2, **FAST)
    planned = satseg.plan([data], start=tmp_path / "one.safetensors", minutes=60, device="cpu")
    alone = satseg.load_model(tmp_path / "one.safetensors", device="cpu").network
    assert planned.parameters == sum(weight.numel() for weight in alone.parameters())


@pytest.mark.parametrize(
    ("budget", "device", "bands", "members"),
    [
        ({"minutes": 1}, CPU, 3, 1),
        ({"minutes": 8.9}, CPU, 3, 1),
        ({"minutes": 10}, CPU, 3, 2),
        ({"minutes": 13.5}, CPU, 3, 3),
        ({"minutes": 600}, CPU, 3, 3),
        ({"minutes": 10}, CPU, 8, 1),
        ({"minutes": 15}, CPU, 8, 2),
        ({"minutes": 10}, CPU, 20, 1),
        ({"steps": 1200}, CPU, 20, 2),
        ({"minutes": 2}, CUDA, 3, 2),
        ({"steps": 10}, CPU, 3, 1),
        ({"steps": 1200}, CPU, 3, 2),
        ({"steps": 100_000}, CUDA, 3, 3),
    ],
)
def test_members_follow_from_the_budget(budget, device, bands, members):
    assert members_for(TrainOptions(**budget), device, bands=bands) == members


def test_encoders_learn_alone():
    with pytest.raises(UsageError, match="members"):
        RunConfig.from_options({"encoder": "resnet18", "members": 2})
