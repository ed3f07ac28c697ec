"""The stacker: known weights come back, and no member alone does better on the sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.errors import UsageError
from satseg.learning.training.stacker import Stacker, fit_stacker, log_loss


def made(seed, n, weights, bias, spread=2.0):
    """Logits of members that agree in part, and truth drawn from the sigmoid of their weighted sum."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, spread, (n, 1)) + rng.normal(0, 1, (n, len(weights)))
    truth = rng.random(n) < 1 / (1 + np.exp(-(logits @ np.array(weights) + bias)))
    return logits, truth


def test_known_weights_are_recovered():
    weights, bias = (0.7, 0.0, 1.1), -0.4
    logits, truth = made(0, 60_000, weights, bias)
    found = fit_stacker(logits, truth, pull=0.0)
    assert found.weights == pytest.approx(weights, abs=0.06), "of 60,000 draws"
    assert found.bias == pytest.approx(bias, abs=0.1)
    assert fit_stacker(logits, truth).weights == pytest.approx(found.weights, abs=0.05), "the pull is weak"


def test_without_pull_it_is_the_logistic_regression_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    logits, truth = made(1, 3000, (0.6, 0.8), 0.3)
    weights = np.random.default_rng(2).random(3000) + 0.1
    oracle = linear_model.LogisticRegression(C=1e9, tol=1e-10, max_iter=500)
    oracle.fit(logits, truth, sample_weight=weights)
    found = fit_stacker(logits, truth, weights, pull=0.0)
    assert found.weights == pytest.approx(oracle.coef_[0], abs=1e-4)
    assert found.bias == pytest.approx(oracle.intercept_[0], abs=1e-4)


def test_a_member_that_speaks_against_the_class_gets_no_weight():
    logits, truth = made(3, 5000, (1.0, -0.5), 0.0)
    found = fit_stacker(logits, truth)
    assert found.weights[1] == 0.0 < found.weights[0]


def test_members_that_say_the_same_share_their_weight():
    logits, truth = made(4, 4000, (1.0,), 0.0)
    first, second = fit_stacker(np.repeat(logits, 2, axis=1), truth).weights
    assert first == pytest.approx(second, rel=1e-6)


def test_pixels_that_stand_for_more_count_as_often():
    logits, truth = made(5, 900, (0.5, 0.9), 0.2)
    times = np.random.default_rng(6).integers(1, 5, 900)
    weighted = fit_stacker(logits, truth, times)
    repeated = fit_stacker(np.repeat(logits, times, axis=0), np.repeat(truth, times))
    assert (*weighted.weights, weighted.bias) == pytest.approx((*repeated.weights, repeated.bias), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000), members=st.integers(1, 4), n=st.integers(2, 60), spread=st.sampled_from([0.0, 0.5, 6.0]),
    rare=st.booleans(), pull=st.sampled_from([0.0, 0.01, 100.0]),
)  # fmt: skip
def test_it_never_has_a_greater_loss_on_its_sample_than_the_best_member(seed, members, n, spread, rare, pull):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(0, 1, (n, 1)) * spread + rng.normal(0, 2, (n, members))).clip(-15, 15)
    truth = rng.random(n) < (0.05 if rare else 0.5)
    truth[:2] = True, False
    weights = rng.choice([1.0, 1000.0], n)
    found = fit_stacker(logits, truth, weights, pull=pull)
    best = min(log_loss(logits[:, m], truth, weights) for m in range(members))
    assert log_loss(found.logits(logits.T), truth, weights) <= best * (1 + 1e-9)
    assert min(found.weights) >= 0
    assert np.isfinite([*found.weights, found.bias]).all()


def test_a_sample_of_one_kind_is_refused():
    for truth in (np.ones(5, bool), np.zeros(5, bool)):
        with pytest.raises(UsageError, match="tell apart") as caught:
            fit_stacker(np.zeros((5, 2)), truth)
        assert caught.value.code == "E-STK-001"


def test_team_logits_are_of_any_shape():
    team = Stacker((2.0, 0.5), 1.0).logits(np.ones((2, 3, 5), np.float32))
    assert team.shape == (3, 5)
    assert (team == 3.5).all()
