"""Losses: worked values, masks that keep everything out, and finite numbers whatever comes."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from satseg.errors import GridError, SpecError
from satseg.learning.training import losses
from satseg.learning.training.losses import BORDER_PX, LOSSES, loss_of, make_loss, near_border
from satseg.options import TrainOptions

torch.set_num_threads(1)  # tensors this small only wait for the other threads
Y = torch.tensor([1.0, 1, 0, 0]).reshape(1, 1, 2, 2)
P = torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=torch.float64).reshape(1, 1, 2, 2)
WORKED = {
    "bce": 0.366984588,
    "soft_jaccard": 1 - 0.538461538,
    "log_jaccard": 0.619039208,
    "bce_minus_log_jaccard": 0.986023796,
    "weighted_bce_log_jaccard": 0.9 * 0.366984588 + 0.1 * 0.619039208,
    "soft_dice": 1 - 0.7,
    "tversky": 1 - 0.7,
    "bce_plus_dice": 0.366984588 + 0.3,
    "lovasz": 0.594534892 * 2 / 3,  # hinges of 0.6 and 0.4, one of each side; the others are right by more than 1
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", WORKED)
def test_worked_values(name, dtype):
    assert float(make_loss(name)(P.logit().to(dtype), Y)) == pytest.approx(WORKED[name], abs=1e-6)


def random_case(seed: int, shape=(3, 2, 5, 7)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = torch.rand(shape, generator=generator) < 0.3
    labelled = torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 0.7
    return logits, targets, labelled


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_overlaps_equal_loops_over_labelled_pixels(seed):
    logits, targets, labelled = random_case(seed)
    p, y = logits.sigmoid().numpy(), targets.numpy()
    known = labelled.expand(logits.shape).numpy()
    jaccards, dices = [], []
    for k in range(logits.shape[1]):
        pk, yk = p[:, k][known[:, k]], y[:, k][known[:, k]].astype(float)
        if yk.sum():
            both = (pk * yk).sum()
            jaccards.append(both / (pk.sum() + yk.sum() - both))
            dices.append(2 * both / (pk.sum() + yk.sum()))
    jaccard, dice = (np.mean(values) if values else 1.0 for values in (jaccards, dices))
    assert float(losses.soft_jaccard(logits, targets, labelled)) == pytest.approx(1 - jaccard, abs=1e-6)
    assert float(losses.soft_dice(logits, targets, labelled)) == pytest.approx(1 - dice, abs=1e-6)
    assert float(losses.log_jaccard(logits, targets, labelled)) == pytest.approx(-np.log(jaccard), abs=1e-5)


def test_bce_is_torch_bce_of_the_labelled_pixels():
    logits, targets, labelled = random_case(1)
    known = labelled.expand(logits.shape)
    expected = F.binary_cross_entropy_with_logits(logits[known], targets[known].double())
    torch.testing.assert_close(losses.bce(logits, targets, labelled), expected)


def test_focal_without_focus_is_half_the_bce():
    logits, targets, labelled = random_case(2)
    half = losses.focal(logits, targets, labelled, gamma=0.0, alpha=0.5)
    torch.testing.assert_close(half, losses.bce(logits, targets, labelled) / 2)


def test_focal_equals_its_formula():
    p, y = P.numpy().ravel(), Y.numpy().ravel()
    pt, at = np.where(y == 1, p, 1 - p), np.where(y == 1, 0.25, 0.75)
    expected = np.mean(-at * (1 - pt) ** 2 * np.log(pt))
    assert float(losses.focal(P.logit(), Y)) == pytest.approx(expected, abs=1e-9)


def test_tversky_has_jaccard_and_dice_as_special_cases():
    logits, targets, labelled = random_case(3)
    for alpha, special in ((1.0, losses.soft_jaccard), (0.5, losses.soft_dice)):
        index = losses.tversky(logits, targets, labelled, alpha=alpha, beta=alpha)
        torch.testing.assert_close(index, special(logits, targets, labelled))


def test_tversky_alpha_weighs_false_positives():
    over, under = torch.full((1, 1, 4, 4), 9.0), torch.full((1, 1, 4, 4), -9.0)
    targets = torch.zeros(1, 1, 4, 4)
    targets[..., :2, :] = 1
    strict, lenient = (losses.tversky(over, targets, alpha=a, beta=1 - a) for a in (0.9, 0.1))
    assert strict > lenient
    assert losses.tversky(under, targets, alpha=0.1, beta=0.9) > 0.9


def test_weighted_sum_spans_from_bce_to_log_jaccard():
    case = random_case(4)
    assert float(losses.weighted_bce_log_jaccard(P.logit(), Y, weight=0.3)) == pytest.approx(0.442600974, abs=1e-6)
    torch.testing.assert_close(losses.weighted_bce_log_jaccard(*case, weight=0.0), losses.bce(*case))
    torch.testing.assert_close(losses.weighted_bce_log_jaccard(*case, weight=1.0), losses.log_jaccard(*case))


@pytest.mark.parametrize("name", LOSSES)
def test_unlabelled_pixels_have_no_influence_and_no_gradient(name):
    logits, targets, labelled = random_case(5)
    known = labelled.expand(logits.shape)
    spoilt = logits.where(known, torch.nan).float().requires_grad_()
    noise = targets.float().where(known, torch.inf)
    loss = make_loss(name)(spoilt, noise, labelled)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(make_loss(name)(logits.float(), targets, labelled)))
    assert spoilt.grad[~known].eq(0).all()
    assert spoilt.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_one_mask_for_all_classes_or_one_each(name):
    logits, targets, labelled = random_case(6)
    loss = make_loss(name)
    torch.testing.assert_close(
        loss(logits, targets, labelled), loss(logits, targets, labelled.expand(logits.shape).contiguous())
    )


HARD = {
    "no positive": (lambda t: t.zero_(), None, 1.0),
    "all positive": (lambda t: t.fill_(1), None, 1.0),
    "nothing labelled": (lambda t: t, False, 1.0),
    "one class absent": (lambda t: t[:, 0].zero_(), None, 1.0),
    "sure and wrong": (lambda t: t, None, -1e4),
    "sure and right": (lambda t: t, None, 1e4),
    "no positive, sure and wrong": (lambda t: t.zero_(), None, -1e4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_finite(name, case, dtype):
    change, labelled, factor = HARD[case]
    targets = (torch.arange(2 * 2 * 5 * 7).reshape(2, 2, 5, 7) % 3 == 0).float()
    change(targets)
    logits = (factor * (2 * targets - 1)).to(dtype).requires_grad_()
    mask = None if labelled is None else torch.full((2, 1, 5, 7), labelled)
    loss = make_loss(name)(logits, targets, mask)
    loss.backward()
    assert loss.dtype == torch.float32
    assert math.isfinite(float(loss.detach()))
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["log_jaccard", "soft_jaccard", "soft_dice", "tversky", "lovasz"])
def test_batch_without_positives_gives_no_overlap_loss(name):
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = make_loss(name)(logits, torch.zeros(2, 3, 4, 5))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad.eq(0).all()


def test_absent_class_is_left_out_of_the_mean_but_still_learnt_by_bce():
    logits, targets, _ = random_case(7, shape=(2, 2, 6, 5))
    targets[:, 1] = False
    logits.requires_grad_()
    alone = losses.log_jaccard(logits[:, :1], targets[:, :1])
    torch.testing.assert_close(losses.log_jaccard(logits, targets), alone)
    losses.bce_minus_log_jaccard(logits, targets).backward()
    assert (logits.grad[:, 1] > 0).all()


def test_positive_pixel_that_is_not_labelled_does_not_make_a_class_present():
    logits, targets, _ = random_case(8, shape=(1, 1, 3, 4))
    targets[:] = False
    targets[0, 0, 0, 0] = True
    labelled = torch.ones(1, 1, 3, 4, dtype=torch.bool)
    labelled[0, 0, 0, 0] = False
    assert float(losses.log_jaccard(logits, targets, labelled)) == 0.0


def test_sums_run_over_the_whole_batch():
    logits, targets, _ = random_case(9, shape=(4, 1, 3, 5))
    joined = losses.log_jaccard(logits, targets)
    torch.testing.assert_close(
        joined, losses.log_jaccard(logits.reshape(1, 1, 12, 5), targets.reshape(1, 1, 12, 5))
    )


@pytest.mark.parametrize("name", LOSSES)
def test_sums_of_bf16_logits_are_float32_even_under_autocast(name):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 1, 256, 300, generator=generator).bfloat16()
    targets = torch.rand(2, 1, 256, 300, generator=generator) < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        loss = make_loss(name)(logits, targets)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(make_loss(name)(logits.double(), targets)), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_the_value(name):
    logits, targets, labelled = random_case(10, shape=(2, 2, 3, 2))
    assert torch.autograd.gradcheck(lambda x: make_loss(name)(x, targets, labelled), logits.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32])
def test_target_types_are_alike(name, kind):
    logits, targets, _ = random_case(11)
    loss = make_loss(name)
    torch.testing.assert_close(loss(logits, targets.to(kind)), loss(logits, targets.double()))


@pytest.mark.parametrize("name", LOSSES)
def test_right_and_sure_costs_nothing(name):
    assert float(make_loss(name)(40 * (2 * Y - 1), Y)) == pytest.approx(0.0, abs=1e-6)


def test_losses_travel_to_workers():
    loss = pickle.loads(pickle.dumps(make_loss("weighted_bce_log_jaccard", weight=0.5)))
    assert float(loss(P.logit(), Y)) == pytest.approx(0.5 * 0.986023796, abs=1e-6)


def test_unknown_loss_and_parameter_are_refused_with_a_suggestion():
    with pytest.raises(SpecError, match="did you mean 'soft_jaccard'") as caught:
        make_loss("soft_jacard")
    assert caught.value.code == "E-SPEC-050"
    with pytest.raises(SpecError, match="did you mean 'weight'") as caught:
        make_loss("weighted_bce_log_jaccard", weigth=0.5)
    assert caught.value.code == "E-SPEC-051"
    with pytest.raises(SpecError, match="did you mean 'boundary'"):
        make_loss("bce_plus_dice", boundry=0.5)
    for name, param in (("bce", "weight"), ("bce_plus_dice", "entropy")):
        with pytest.raises(SpecError, match=f"no parameter '{param}'"):
            make_loss(name, **{param: 0.5})


def lost_overlap(wrong: set[int], positive: set[int]) -> float:
    """1 - J of a mask that is wrong in exactly these pixels; that of no pixel at all is 0."""
    union = positive | wrong
    return len(wrong) / len(union) if union else 0.0


def lovasz_by_definition(errors, positive) -> float:
    """The Lovasz extension of `lost_overlap` at the hinge of `errors` (Berman et al. 2018, definition 1)."""
    hinge = np.maximum(errors, 0)
    total, wrong, before = 0.0, set(), 0.0
    for pixel in np.argsort(-hinge, kind="stable"):
        wrong = wrong | {int(pixel)}
        after = lost_overlap(wrong, positive)
        total, before = total + hinge[pixel] * (after - before), after
    return total


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_lovasz_equals_its_definition_on_labelled_pixels(seed):
    logits, targets, labelled = random_case(seed, shape=(2, 3, 3, 4))
    targets[:, 2] = False
    found = []
    for k in range(3):
        known = labelled[:, 0].numpy()
        z, y = logits[:, k].numpy()[known], targets[:, k].numpy()[known]
        if y.any():
            found.append(lovasz_by_definition(1 - z * (2.0 * y - 1), {int(i) for i in np.flatnonzero(y)}))
    expected = np.mean(found) if found else 0.0
    assert float(losses.lovasz(logits, targets, labelled)) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 2**12 - 1), st.integers(1, 2**12 - 1))
@settings(max_examples=50, deadline=None)
def test_lovasz_at_unit_margins_is_the_overlap_lost(said_bits, true_bits):
    said, true = (torch.tensor([bits >> i & 1 for i in range(12)]).bool() for bits in (said_bits, true_bits))
    logits = (2.0 * said.double() - 1).reshape(1, 1, 3, 4)  # a wrong pixel has hinge 2, a right one 0
    jaccard = float((said & true).sum() / (said | true).sum())
    assert float(losses.lovasz(logits, true.reshape(1, 1, 3, 4))) == pytest.approx(2 * (1 - jaccard))


def border_by_loops(target, known):
    height, width = target.shape
    near = np.zeros(target.shape)
    for row in range(height):
        for col in range(width):
            box = np.s_[max(0, row - BORDER_PX) : row + BORDER_PX + 1, max(0, col - BORDER_PX) : col + BORDER_PX + 1]
            seen = target[box][known[box]]
            near[row, col] = seen.max() - seen.min() if seen.size else 0
    return near


@pytest.mark.parametrize("shape", [(2, 2, 9, 13), (1, 1, 1, 1), (1, 1, 1, 8), (1, 1, 3, 2)])
def test_border_is_the_spread_of_known_targets_around_a_pixel(shape):
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(shape, generator=generator) < 0.08).float() * torch.rand(shape, generator=generator)
    known = torch.rand(shape, generator=generator) < 0.6
    near = near_border(targets, known).numpy()
    for b in range(shape[0]):
        for k in range(shape[1]):
            expected = border_by_loops(targets[b, k].numpy(), known[b, k].numpy())
            np.testing.assert_allclose(near[b, k], expected, atol=1e-6)


def test_edge_of_what_is_labelled_is_no_border():
    targets = torch.ones(1, 1, 8, 11)
    known = torch.ones_like(targets).bool()
    known[..., 6:] = False
    targets[..., 6:] = 0
    assert near_border(targets, known).eq(0).all()


def test_boundary_weighs_pixels_near_a_border():
    logits, _, labelled = random_case(12, shape=(2, 1, 12, 9))
    targets = torch.zeros(2, 1, 12, 9)
    targets[0, 0, :, :3] = 1
    plain = F.binary_cross_entropy_with_logits(logits, targets.double(), reduction="none")
    weight = torch.ones(2, 1, 12, 9)
    weight[0, 0, :, 1:5] += 3.0  # within two columns of both sides
    labelled = torch.ones_like(labelled)
    expected = (plain * weight).sum() / weight.sum()
    torch.testing.assert_close(losses.bce(logits, targets, labelled, boundary=3.0), expected)
    extra = make_loss("bce_minus_log_jaccard", boundary=3.0)(logits, targets, labelled)
    torch.testing.assert_close(extra - losses.log_jaccard(logits, targets, labelled), expected)


CROSS_ENTROPIES = ["bce", "bce_minus_log_jaccard", "weighted_bce_log_jaccard", "bce_plus_dice"]


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_smoothing_changes_the_cross_entropy_alone(name):
    logits, targets, labelled = random_case(13)
    soft = targets.double() * 0.8 + 0.1
    share = {"weighted_bce_log_jaccard": 0.9}.get(name, 1.0)
    moved = make_loss(name, smoothing=0.2)(logits, targets, labelled) - make_loss(name)(logits, targets, labelled)
    expected = share * (losses.bce(logits, soft, labelled) - losses.bce(logits, targets, labelled))
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_boundary_and_smoothing_keep_unlabelled_pixels_out_and_gradients_right(name):
    logits, targets, labelled = random_case(14, shape=(2, 2, 4, 3))
    loss = make_loss(name, boundary=2.0, smoothing=0.1)
    known = labelled.expand(logits.shape)
    spoilt, noise = logits.where(known, torch.nan), targets.double().where(known, torch.inf)
    torch.testing.assert_close(loss(spoilt, noise, labelled), loss(logits, targets, labelled))
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, labelled), logits.requires_grad_())


def test_loss_of_a_run_has_the_parameters_of_the_run():
    logits, targets, labelled = random_case(15)
    options = TrainOptions(loss="weighted_bce_log_jaccard", loss_params={"weight": 0.6}, boundary=2, smoothing=0.1)
    entropy = losses.bce(logits, targets, labelled, boundary=2.0, smoothing=0.1)
    expected = 0.4 * entropy + 0.6 * losses.log_jaccard(logits, targets, labelled)
    assert float(loss_of(options)(logits, targets, labelled)) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    "options", [{"loss_params": {"weigth": 1.0}}, {"loss": "soft_dice", "smoothing": 0.1}, {"loss": "jacard"}]
)
def test_run_whose_loss_has_no_such_parameter_is_refused(options):
    with pytest.raises(SpecError, match=r"no parameter|no loss"):
        loss_of(TrainOptions(**options))


@pytest.mark.parametrize("shape", [(1, 1, 4, 5), (1, 2, 5, 4), (2, 4, 5)])
def test_shapes_that_differ_are_refused(shape):
    with pytest.raises(GridError, match="targets"):
        losses.bce(torch.zeros(1, 2, 4, 5), torch.zeros(shape))
