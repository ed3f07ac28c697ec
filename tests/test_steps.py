"""Steps of a training: averaged weights, accumulated gradients, patience, and steps that must not count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import satseg
from satseg.learning.networks.unet import UNet, UNetConfig
from satseg.learning.training import learner
from satseg.learning.training.feed import Budget, Moment, RoundSampler
from satseg.learning.training.steps import averaged_copy, optimizer_of, schedule, take_into_average
from satseg.options import TrainOptions
from tests.worlds import squares

FAST = {"chip": 32, "batch": 4, "width": 4, "depth": 2, "stem": 1, "rounds": 2, "precision": "fp32", "device": "cpu"}


def weights(model):
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def stop_at(share):
    def progress(stage, done, total, note):
        if stage == "train" and done >= share:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    "options",
    [{"ema": 0.9}, {"accumulate": 2, "optimizer": "nadam"}, {"patience": 9, "ema": 0.5, "accumulate": 3}],
    ids=str,
)
def test_killed_run_resumes_into_the_run_it_would_have_been(tmp_path, options):
    data = [squares(tmp_path)]
    call = {**FAST, "steps": 10, "rounds": 3, "seed": 1, **options}
    whole = satseg.train(data, output=tmp_path / "whole.safetensors", **call)
    with pytest.raises(KeyboardInterrupt):
        satseg.train(data, output=tmp_path / "parts.safetensors", progress=stop_at(0.6), **call)
    parts = satseg.train(data, output=tmp_path / "parts.safetensors", resume=True, **call)
    assert equal(weights(whole), weights(parts))
    assert whole.card.scores == parts.card.scores


def test_run_killed_between_checkpoints_resumes_alike_when_batches_accumulate(tmp_path, monkeypatch):
    from satseg.learning.training import checkpoints

    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0)  # after each step, as far as it may
    data = [squares(tmp_path)]
    call = {**FAST, "steps": 7, "rounds": 1, "seed": 1, "accumulate": 3}
    whole = satseg.train(data, output=tmp_path / "whole.safetensors", **call)
    with pytest.raises(KeyboardInterrupt):
        satseg.train(data, output=tmp_path / "parts.safetensors", progress=stop_at(0.5), **call)
    parts = satseg.train(data, output=tmp_path / "parts.safetensors", resume=True, **call)
    assert equal(weights(whole), weights(parts))


def rates(**options):
    return np.array([schedule(float(share), TrainOptions(**options)) for share in np.linspace(0, 1, 101)])


def test_cosine_rises_then_falls_to_a_hundredth():
    found = rates(warmup=0.1)
    assert found[:10].max() < found[10] == pytest.approx(1.0)
    assert (np.diff(found[10:]) <= 1e-12).all()
    assert found[-1] == pytest.approx(0.01)


def test_step_is_a_tenth_from_half_the_budget_on():
    assert np.array_equal(rates(schedule="step", warmup=0.0), [1.0] * 50 + [0.1] * 51)
    rise = np.clip(np.arange(50) / 10, 0.02, 1)
    np.testing.assert_allclose(rates(schedule="step", warmup=0.1)[:50], rise, atol=1e-12)


def nadam_by_formula(weight, gradients, *, rate, decay, betas=(0.9, 0.999), warming=0.004, eps=1e-8):
    """Dozat 2016, with the schedule of momentum that Keras takes from its section 3.1; decay as Loshchilov's."""
    m = v = 0.0
    product = 1.0
    for t, gradient in enumerate(gradients, 1):
        now, then = (betas[0] * (1 - 0.5 * 0.96 ** (n * warming)) for n in (t, t + 1))
        product *= now
        weight *= 1 - rate * decay
        m, v = betas[0] * m + (1 - betas[0]) * gradient, betas[1] * v + (1 - betas[1]) * gradient**2
        step = (1 - now) * gradient / (1 - product) + then * m / (1 - product * then)
        weight -= rate * step / (math.sqrt(v / (1 - betas[1] ** t)) + eps)
    return weight


def test_nadam_is_that_of_dozat_and_decays_as_adamw_does():
    weight = torch.nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
    options = TrainOptions(optimizer="nadam", learning_rate=0.02, weight_decay=0.1)
    optimizer = optimizer_of([{"params": [weight], "factor": 1.0}], options)
    gradients = [0.5, -0.3, 0.9, 0.1]
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    assert weight.item() == pytest.approx(nadam_by_formula(0.7, gradients, rate=0.02, decay=0.1), rel=1e-9)
    assert type(optimizer_of([{"params": [weight]}], TrainOptions())) is torch.optim.AdamW


def test_average_follows_its_formula_statistics_too():
    network = UNet(UNetConfig(bands=2, classes=1, width=4, depth=2), generator=torch.Generator().manual_seed(0))
    average = averaged_copy(network)
    expected = {name: value.clone().double() for name, value in average.state_dict().items()}
    for step in range(1, 40):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.add_(1 if value.dtype == torch.int64 else 0.1 * torch.randn_like(value))
        take_into_average(average, network, step=step, decay=0.8)
        kept = min(0.8, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            expected[name] = value if value.dtype == torch.int64 else kept * expected[name] + (1 - kept) * value
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6)
    assert not any(weight.requires_grad for weight in average.parameters())


def test_average_is_validated_and_kept_and_off_by_default(tmp_path, monkeypatch):
    data, seen = [squares(tmp_path)], []
    monkeypatch.setattr(learner, "take_into_average", lambda average, network, **_: seen.append((average, network)))
    start = weights(satseg.train(data, steps=4, ema=0.9, **FAST))  # an average that never moves is the start
    average, network = seen[0]
    assert len(seen) == 4
    assert equal(start, average.state_dict())
    assert equal(network.state_dict(), average.state_dict())
    satseg.train(data, steps=2, **FAST)
    assert len(seen) == 4


def test_averaged_weights_differ_from_the_last_ones(tmp_path):
    data = [squares(tmp_path)]
    one, other = (weights(satseg.train(data, steps=6, ema=ema, **FAST)) for ema in (0.0, 0.9))
    assert not equal(one, other)
    assert all(bool(torch.isfinite(value).all()) for value in other.values())


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_batches_equal_one_large_batch(tmp_path, monkeypatch, parts):
    def mean(logits, target, labelled):  # over all pixels: batches differ in how many of theirs are labelled
        return F.binary_cross_entropy_with_logits(logits, target.float())

    monkeypatch.setattr(learner, "loss_of", lambda options: mean)
    data = [squares(tmp_path)]
    call = {**FAST, "norm": "none", "augmented": False, "steps": 3, "rounds": 1}
    large = weights(satseg.train(data, **{**call, "batch": 8}))
    small = weights(satseg.train(data, **{**call, "batch": 8 // parts, "accumulate": parts}))
    for name, value in large.items():
        # Adam divides gradients by their own size, so that rounding of small ones shows; a step moves 5e-3
        torch.testing.assert_close(small[name], value, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("ranks", "accumulate", "steps", "rounds"), [(1, 1, 5, 2), (2, 3, 7, 3), (3, 2, 4, 4)])
def test_chip_numbers_of_a_run_are_all_numbers_once(ranks, accumulate, steps, rounds):
    numbers = []
    for rank in range(ranks):
        step = 0
        for number in range(rounds):
            moment = Moment(step, (number + 1) / rounds, rank, ranks)
            sampler = RoundSampler(Budget(steps, None), 4, lambda moment=moment: moment, accumulate=accumulate)
            batches = [*sampler]
            assert len(batches) % accumulate == 0
            step += len(batches) // accumulate
            numbers += [number for batch in batches for number in batch]
        assert step == steps
    assert sorted(numbers) == list(range(4 * ranks * accumulate * steps))


def test_steps_count_steps_and_not_batches(tmp_path):
    card = satseg.train([squares(tmp_path)], steps=5, accumulate=3, **FAST).card
    assert card.training.steps == 5


def judged(monkeypatch, jaccards):
    """Have validations find `jaccards`, one after the other, whatever the network."""
    found = iter(jaccards)
    monkeypatch.setattr(learner.ThresholdCurve, "best", lambda curve: ([0.5, 0.5], [next(found, 0.0)] * 2))


def test_patience_ends_a_run_after_rounds_without_a_better_validation(tmp_path, monkeypatch):
    judged(monkeypatch, [0.1, 0.4, 0.4, 0.3, 0.9, 0.9])
    call = {**FAST, "steps": 24, "rounds": 6}
    assert satseg.train([squares(tmp_path)], patience=2, **call).card.training.steps == 16
    judged(monkeypatch, [0.1, 0.4, 0.4, 0.3, 0.9, 0.9])
    assert satseg.train([squares(tmp_path)], **call).card.training.steps == 24


def test_run_that_had_ended_early_does_not_start_again(tmp_path, monkeypatch):
    judged(monkeypatch, [0.4, 0.3, 0.2, 0.9])
    call = {**FAST, "steps": 24, "rounds": 6, "patience": 2, "output": tmp_path / "m.safetensors"}
    first = satseg.train([squares(tmp_path)], **call)
    again = satseg.train([squares(tmp_path)], resume=True, **call)
    assert first.card.training.steps == again.card.training.steps == 12
    assert equal(weights(first), weights(again))


def exploding(step):
    """A loss of finite value whose gradient is infinite at `step`, counted from 0."""
    calls = iter(range(1000))

    def loss(logits, target, labelled):
        plain = logits.square().mean()
        return plain + (logits * 0).abs().sqrt().sum() if next(calls) == step else plain

    return lambda options: loss


def test_step_with_a_gradient_that_is_not_finite_changes_no_weight(tmp_path, monkeypatch):
    seen = {}

    class Watched(learner.Learner):
        def configure_gradient_clipping(self, optimizer, *args, **kwargs):
            super().configure_gradient_clipping(optimizer, *args, **kwargs)
            state = {name: value.clone() for name, value in self.network.state_dict().items()}
            seen[self.global_step] = (state, self.skipped)

    from satseg.learning.training import recipe

    monkeypatch.setattr(recipe, "Learner", Watched)
    monkeypatch.setattr(learner, "loss_of", exploding(2))
    satseg.train([squares(tmp_path)], steps=5, **{**FAST, "rounds": 1})
    assert [skipped for _, skipped in seen.values()] == [0, 0, 1, 1, 1]
    changed = {name for name in seen[2][0] if not torch.equal(seen[2][0][name], seen[3][0][name])}
    assert all("running" in name or "tracked" in name for name in changed)
    assert all(value.isfinite().all() for state, _ in seen.values() for value in state.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_batch_that_floods_the_network_leaves_no_trace_in_its_statistics(tmp_path, monkeypatch, value):
    calls = iter(range(1000))
    plain = learner.augment

    def flooded(image, target, labelled, changes, *, generator):
        image, target, labelled = plain(image, target, labelled, changes, generator=generator)
        return image * value if next(calls) == 2 else image, target, labelled

    monkeypatch.setattr(learner, "augment", flooded)
    model = satseg.train([squares(tmp_path)], steps=5, **FAST)
    assert model.card.scores["skipped_batches"] == 1
    assert all(bool(torch.isfinite(weight).all()) for weight in weights(model).values())


def test_the_optimiser_works_in_one_pass_on_a_cpu_alone():
    """Elsewhere a scaler of half precision must find it as it finds any other: it unscales before the clipping."""
    for place, fused in (("cpu", True), ("meta", None)):
        weight = torch.nn.Parameter(torch.zeros(2, device=place))
        assert optimizer_of([{"params": [weight]}], TrainOptions()).defaults["fused"] is fused
