"""Augmentation: image and truth stay on top of each other, and nothing comes from nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from satseg.errors import GridError
from satseg.learning.ground.warping import draw_turn
from satseg.learning.training.augment import CUT, augment, recolour, step_generator
from satseg.options import NO_AUGMENTATION, AugmentOptions

torch.set_num_threads(1)  # tensors this small only wait for the other threads
ALL_COLOURS = AugmentOptions(
    gain=0.3, offset=0.3, brightness=0.2, gamma=0.3, shade=0.3, blur=1.0, noise=0.2, jpeg=0.2, band_drop=0.5
)
EVERYTHING = ALL_COLOURS.model_copy(update={"cutmix": 0.5, "mixup": 0.5})


def only(**options: object) -> AugmentOptions:
    """No change but those named; gain and offset of every chip."""
    return NO_AUGMENTATION.model_copy(update={"apart": 1.0, **options})


def coded(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Chips whose every pixel has its own number, in the image and in the targets."""
    numbers = torch.arange(1.0, count * height * width + 1).reshape(count, 1, height, width)
    return numbers.expand(-1, 2, -1, -1).clone(), numbers.to(torch.int32), numbers.remainder(3) > 0


def turns(options: AugmentOptions, count: int = 4000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    drawn = [draw_turn(options, rng) for _ in range(count)]
    return {name: np.array([turn[name] for turn in drawn]) for name in ("angle", "zoom", "mirrored")}


def recoloured(image: torch.Tensor, **options: float) -> torch.Tensor:
    return recolour(image, only(**options), step_generator(0, 0))


def mixed(count: int = 400, height: int = 20, width: int = 30, **options: float):
    """Chips of one number each, 1 to `count`, mixed."""
    image = torch.arange(1.0, count + 1).reshape(count, 1, 1, 1).expand(count, 2, height, width).clone()
    everywhere = torch.ones(count, 1, height, width, dtype=torch.bool)
    return image, augment(image, image[:, :1], everywhere, only(**options), generator=step_generator(2, 0))


# Turns: drawn from a chip's number


def test_turns_are_the_eight_of_d4_about_equally_often():
    drawn = turns(AugmentOptions(zoom=(1.0, 1.0)))
    counts = np.unique(np.column_stack([drawn["angle"], drawn["mirrored"]]), axis=0, return_counts=True)
    assert {tuple(pair) for pair in counts[0]} == {(90.0 * k, flip) for k in range(4) for flip in (0, 1)}
    assert counts[1].min() > 415  # 500 expected, four standard deviations below
    assert (drawn["zoom"] == 1).all()


def test_zoom_is_within_its_limits_and_even_in_its_logarithm():
    zoom = turns(AugmentOptions(zoom=(0.5, 4.0)))["zoom"]
    assert zoom.min() >= 0.5
    assert zoom.max() <= 4.0
    evenly = np.histogram(np.log(zoom), bins=6, range=(np.log(0.5), np.log(4.0)))[0]
    np.testing.assert_allclose(evenly / len(zoom), 1 / 6, atol=0.025)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("d4", [True, False])
def test_asked_share_of_chips_is_turned_by_any_angle(share, d4):
    drawn = turns(AugmentOptions(d4=d4, rotate=share))
    free = drawn["angle"] % 90 != 0
    assert free.mean() == pytest.approx(share, abs=0.03)
    if share:
        spread = np.histogram(drawn["angle"][free], bins=4, range=(0, 360))[0]
        np.testing.assert_allclose(spread / free.sum(), 0.25, atol=0.06)
    if not d4:
        assert not drawn["mirrored"].any()
        assert (drawn["angle"][~free] == 0).all()


@pytest.mark.parametrize("options", [NO_AUGMENTATION, AugmentOptions(), AugmentOptions(rotate=0.5, d4=False)])
def test_a_turn_takes_four_numbers_whatever_the_options(options):
    rng, plain = np.random.default_rng(3), np.random.default_rng(3)
    draw_turn(options, rng)
    plain.random(4)
    assert rng.random() == plain.random()


def test_no_augmentation_turns_nothing():
    drawn = turns(NO_AUGMENTATION, count=50)
    assert (drawn["angle"] == 0).all()
    assert (drawn["zoom"] == 1).all()
    assert not drawn["mirrored"].any()


# Whole batches


def test_no_augmentation_changes_nothing():
    batch = coded(2, 4, 6)
    out = augment(*batch, NO_AUGMENTATION, generator=step_generator(0, 0))
    for before, after in zip(batch, out, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (1, 1), (1, 5)])
def test_arguments_are_left_as_they_are(size):
    batch = coded(3, *size)
    copies = [x.clone() for x in batch]
    out = augment(*batch, EVERYTHING, generator=step_generator(0, 0))
    assert all(torch.equal(x, copy) for x, copy in zip(batch, copies, strict=True))
    assert [x.shape for x in out] == [x.shape for x in batch]
    assert out[0].isfinite().all()


def test_colours_leave_the_truth_alone():
    batch = coded(6, 5, 9)
    _, targets, labelled = augment(*batch, ALL_COLOURS, generator=step_generator(0, 0))
    assert torch.equal(targets, batch[1])
    assert torch.equal(labelled, batch[2])


def test_step_alone_decides_the_batch():
    torch.manual_seed(0)
    first = augment(*coded(4, 8, 8), EVERYTHING, generator=step_generator(5, 17))
    torch.manual_seed(1)
    again = augment(*coded(4, 8, 8), EVERYTHING, generator=step_generator(5, 17))
    other = augment(*coded(4, 8, 8), EVERYTHING, generator=step_generator(5, 18))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_seed_and_step_do_not_blur_into_each_other():
    pairs = [(seed, step) for seed in range(20) for step in range(20)]
    assert len({torch.rand(1, generator=step_generator(*pair)).item() for pair in pairs}) == 400


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_come_back_as_they_went_in(dtype):
    image, targets = torch.rand(2, 2, 8, 8).to(dtype), torch.ones(2, 1, 8, 8, dtype=torch.uint8)
    options = EVERYTHING.model_copy(update={"mixup": 0.0})
    out = augment(image, targets, targets > 0, options, generator=step_generator(0, 0))
    assert [x.dtype for x in out] == [dtype, torch.uint8, torch.bool]
    assert out[0].isfinite().all()
    image, targets, labelled = augment(image, targets, targets > 0, EVERYTHING, generator=step_generator(0, 0))
    assert [x.dtype for x in (image, targets, labelled)] == [dtype, dtype, torch.bool]


def test_chips_that_do_not_match_are_refused():
    image, targets, labelled = coded(2, 6, 6)
    for faulty in (
        (image, targets[..., :5], labelled),
        (image, targets, labelled[:, 0]),
        (image[:1], targets, labelled),
    ):
        with pytest.raises(GridError, match="not of the same chips"):
            augment(*faulty, AugmentOptions(), generator=step_generator(0, 0))


# Colours


@pytest.mark.parametrize("name", ["gain", "offset", "brightness", "gamma", "shade", "blur", "noise", "band_drop"])
def test_invalid_pixels_stay_zero_in_every_band(name):
    image = torch.rand(8, 3, 7, 9) + 0.1
    image[:, :, 2:4, 3:5] = 0
    out = recoloured(image, **{name: 0.9})
    assert out[:, :, 2:4, 3:5].eq(0).all()
    assert not torch.equal(out, image)
    assert out[:, :, 0].ne(0).any(dim=1).all()


def test_zero_switches_every_colour_off_to_the_bit():
    image = torch.randn(3, 4, 6, 5)
    assert recolour(image, NO_AUGMENTATION, step_generator(0, 0)) is image
    for name in ("gain", "offset"):  # these two share a step: the other one must be without effect
        out = recoloured(image, **{name: 1e-30})
        torch.testing.assert_close(out, image, atol=1e-29, rtol=0)


def test_gain_and_offset_are_one_per_band_and_within_their_range():
    image = torch.stack([torch.full((6, 5), 1.0), torch.full((6, 5), 2.0)]).expand(200, 2, 6, 5).clone()
    image[..., 0] *= -1
    out = recoloured(image, gain=0.3, offset=0.2)
    gain = (out[..., 1] - out[..., 0]) / (image[..., 1] - image[..., 0])
    offset = (out[..., 1] + out[..., 0]) / 2
    assert gain.std(dim=2).max() < 1e-5
    assert 0.7 - 1e-6 <= gain.min() < 0.72
    assert 1.28 < gain.max() <= 1.3 + 1e-6
    assert 0.19 < offset.abs().max() <= 0.2 + 1e-6
    assert torch.corrcoef(gain[:, :, 0].T)[0, 1].abs() < 0.3


def test_bands_change_apart_in_a_share_of_the_chips_and_all_chips_in_brightness():
    image = torch.tensor([-1.0, 1.0]).expand(2000, 3, 3, 2).clone()
    out = recoloured(image, gain=0.3, offset=0.2, brightness=0.25, apart=0.3)
    alike = torch.isclose(out, out[:, :1]).flatten(1).all(dim=1)
    assert 0.66 < alike.float().mean() < 0.74
    assert torch.isclose(out, image).flatten(1).all(dim=1).sum() == 0
    kept = recoloured(image, gain=0.3, offset=0.2, apart=0.3)
    assert torch.equal(kept[alike], image[alike])
    assert torch.equal(recoloured(image, gain=0.3, offset=0.2, apart=0.0), image)


def test_brightness_is_the_same_for_all_bands_and_within_its_range():
    image = torch.tensor([-1.0, 1.0]).expand(300, 4, 3, 2).clone()
    out = recoloured(image, brightness=0.25)
    gain, offset = (out[..., 1] - out[..., 0]) / 2, (out[..., 1] + out[..., 0]) / 2
    assert gain.flatten(1).std(dim=1).max() < 1e-5
    assert offset.flatten(1).std(dim=1).max() < 1e-5
    assert 0.75 - 1e-6 <= gain.min() < 0.76
    assert 1.24 < gain.max() <= 1.25 + 1e-6
    assert 0.24 < offset.abs().max() <= 0.25 + 1e-6
    assert torch.corrcoef(torch.stack([gain[:, 0, 0], offset[:, 0, 0]]))[0, 1].abs() < 0.3


def test_gamma_keeps_black_white_and_order_and_is_within_its_range():
    levels = torch.linspace(-3, 3, 13)
    image = levels.expand(300, 2, 1, 13).clone()
    image[..., 6] = 1e-3  # 0 in all bands would be an invalid pixel
    out = recoloured(image, gamma=0.5)
    torch.testing.assert_close(out[..., 0], image[..., 0])
    torch.testing.assert_close(out[..., -1], image[..., -1])
    assert (out.diff(dim=-1) > 0).all()
    power = torch.log((out[..., 3] + 3) / 6) / torch.log((image[..., 3] + 3) / 6)
    assert np.exp(-0.5) - 1e-4 <= power.min() < 0.63
    assert 1.6 < power.max() <= np.exp(0.5) + 1e-4
    assert power[:, 0].allclose(power[:, 1])
    assert (recoloured(torch.full((2, 1, 1, 1), -9.0), gamma=0.5) == -3).all()  # darker than black is black


def test_shade_is_slow_alike_in_all_bands_and_on_half_the_chips():
    image = torch.ones(400, 3, 32, 48)
    change = recoloured(image, shade=0.1) - 1
    hit = change.abs().amax(dim=(1, 2, 3)) > 0
    assert 0.4 < float(hit.float().mean()) < 0.6
    assert change.std(dim=1).max() < 1e-6
    assert 0.05 < float(change[hit].std()) < 0.15
    assert change.diff(dim=-1).abs().max() < 0.07  # a cell is 12 columns wide
    assert change.diff(dim=-2).abs().max() < 0.1
    assert change[hit].flatten(1).std(dim=1).min() > 0.005  # it is no offset


def test_blur_is_up_to_a_mean_of_nine_on_the_asked_share():
    image = torch.ones(500, 2, 9, 11)
    image[:, 1, 4, 5] += 9
    change = recoloured(image, blur=0.4) - image
    assert change[:, 0].abs().max() < 1e-6
    spread = change[:, 1, 3, 4]
    assert torch.allclose(change[:, 1, 4, 5], -8 * spread, atol=1e-5)
    assert torch.allclose(change[:, 1].sum(dim=(1, 2)), torch.zeros(500), atol=1e-4)
    assert change[:, 1, :3].abs().max() < 1e-6
    assert float((spread.abs() > 1e-6).float().mean()) == pytest.approx(0.4, abs=0.07)
    assert -0.7 - 1e-5 <= spread.min() < -0.65  # sharpened
    assert 0.9 < spread.max() <= 1 + 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_blur_leaves_a_single_row_or_column_alone(size):
    image = torch.rand(3, 2, *size) + 1
    assert torch.equal(recoloured(image, blur=1.0), image)


def test_noise_is_of_every_pixel_and_of_any_strength_up_to_the_most():
    image = torch.full((300, 2, 24, 24), 5.0)
    change = recoloured(image, noise=0.5) - image
    strength = change.flatten(1).std(dim=1)
    assert strength.max() < 0.5 * 1.1
    assert np.histogram(strength, bins=4, range=(0, 0.5))[0].min() > 45  # 75 expected
    assert torch.corrcoef(change.permute(1, 0, 2, 3).flatten(1))[0, 1].abs() < 0.02
    assert float(change.mean()) == pytest.approx(0, abs=0.01)


def test_jpeg_rounds_fine_detail_away_and_keeps_the_level():
    rows, cols = torch.arange(21)[:, None], torch.arange(30)
    image = 5 + 0.01 * ((rows + cols) % 2 * 2.0 - 1).expand(200, 2, 21, 30)
    out = recoloured(image, jpeg=2.0)
    spread = out.flatten(1).std(dim=1)
    assert 0.65 < float((spread < 0.002).float().mean()) < 1.0  # of 0.01: the weakest leave it
    assert float((out.mean(dim=(1, 2, 3)) - 5).abs().max()) < 2 / 15 / 16 + 1e-3  # half a step of the mean


def test_jpeg_spoils_no_more_than_the_block_around():
    image = torch.full((50, 1, 21, 30), 5.0)
    image[:, :, 10, 17] += 3
    out = recoloured(image, jpeg=1.0)
    rows, cols = ((out - out[..., :1, :1]).abs() > 1e-4).any(dim=(0, 1)).nonzero().T
    for places, pixel in ((rows, 10), (cols, 17)):
        assert places.min() <= pixel <= places.max()
        assert 4 <= places.max() - places.min() <= 7


def test_jpegs_blocks_begin_anywhere():
    image = torch.randn((1, 1, 24, 24), generator=step_generator(0, 1))
    corners = set()
    for step in range(60):
        change = recolour(image, only(jpeg=5.0), step_generator(0, step))[0, 0] - image[0, 0]
        jumps = (change[:, 1:] + image[0, 0, :, 1:] - change[:, :-1] - image[0, 0, :, :-1]).abs().mean(dim=0)
        corners.add(int(jumps.view(-1)[:16].reshape(2, 8).sum(dim=0).argmax()))
    assert len(corners) >= 5


def test_jpeg_is_of_any_strength_up_to_the_most():
    image = torch.randn((400, 2, 24, 24), generator=step_generator(0, 1))
    error = (recoloured(image, jpeg=0.6) - image).flatten(1).std(dim=1)
    steps = 0.6 * (1 + torch.arange(8)[:, None] + torch.arange(8)) / 15
    most = float((steps**2 / 12).mean().sqrt())  # of what is rounded to even steps
    assert 0.9 * most < float(error.max()) < 1.1 * most
    assert np.histogram(error, bins=4, range=(0, 1.1 * most))[0].min() > 50


def test_band_drop_takes_one_band_of_about_the_asked_share():
    out = recoloured(torch.ones(400, 3, 2, 2), band_drop=0.5)
    dropped = (out == 0).all(dim=(2, 3)).sum(dim=1)
    assert set(dropped.tolist()) == {0, 1}
    assert 0.4 < float(dropped.float().mean()) < 0.6
    assert (out == 0).all(dim=(2, 3)).any(dim=0).all()


def test_single_band_is_never_dropped():
    image = torch.ones(5, 1, 2, 3)
    assert torch.equal(recoloured(image, band_drop=1.0), image)


# Mixing


def test_cutmix_pastes_a_rectangle_of_the_next_chip():
    image, (out, targets, labelled) = mixed(cutmix=1.0)
    count, _, height, width = image.shape
    assert torch.equal(out[:, :1], targets)
    assert labelled.all()
    foreign = out[:, 0] != image[:, 0]
    other = image.roll(1, 0)[:, 0]
    assert torch.equal(out[:, 0][foreign], other[foreign])
    rows, cols = foreign.any(dim=2), foreign.any(dim=1)
    assert torch.equal(foreign, rows[:, :, None] & cols[:, None, :])
    for along, size in ((rows, height), (cols, width)):
        assert (along.int().diff(dim=1).abs().sum(dim=1) <= 2).all()  # in one piece
        sides = along.sum(dim=1)
        assert sides.min() >= int(CUT[0] * size) - 1e-6
        assert sides.max() <= CUT[1] * size + 1
        assert len(sides.unique()) > 5
        assert along.any(dim=0).all()  # anywhere in the chip
    assert foreign.flatten(1).any(dim=1).sum() == count


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_asked_share_of_chips_is_mixed(name):
    image, (out, _, _) = mixed(**{name: 0.3})
    share = (out != image).flatten(1).any(dim=1).float().mean()
    assert float(share) == pytest.approx(0.3, abs=0.08)


def test_cutmix_pastes_what_is_labelled_and_valid_along():
    image, targets, labelled = coded(50, 12, 9)
    image[::2], labelled[::2] = 0, False
    out, truth, known = augment(image, targets, labelled, only(cutmix=1.0), generator=step_generator(0, 0))
    pasted = truth != targets
    empty = torch.arange(50).reshape(-1, 1, 1, 1) % 2 == 0
    assert torch.equal(out[:, :1] == 0, empty ^ pasted)
    assert torch.equal(known, (empty ^ pasted).logical_not() & (truth.remainder(3) > 0))


def test_mixup_blends_the_truth_as_the_image():
    image, (out, targets, labelled) = mixed(mixup=1.0)
    torch.testing.assert_close(out[:, :1], targets)
    assert labelled.all()
    other = image.roll(1, 0)
    weight = ((out - image) / (other - image))[1:, 0]
    assert weight.flatten(1).std(dim=1).max() < 1e-3
    assert weight.min() >= -1e-3
    assert weight.max() <= 0.5 + 1e-3  # a chip keeps the greater part
    assert np.histogram(weight[:, 0, 0], bins=4, range=(0, 0.5))[0].min() > 65  # 100 expected


def test_mixup_knows_the_truth_only_where_both_do():
    image, targets, labelled = coded(60, 6, 7)
    out, _, known = augment(image, targets, labelled, only(mixup=0.5), generator=step_generator(0, 0))
    blended = (out != image).flatten(1).any(dim=1)
    assert 15 < blended.sum() < 45
    assert torch.equal(known[~blended], labelled[~blended])
    assert torch.equal(known[blended], (labelled & labelled.roll(1, 0))[blended])


def test_a_batch_of_one_is_mixed_with_itself():
    batch = coded(1, 8, 9)
    image, targets, labelled = augment(*batch, only(cutmix=1.0, mixup=1.0), generator=step_generator(0, 0))
    torch.testing.assert_close(image, batch[0])
    torch.testing.assert_close(targets, batch[1].float())
    assert torch.equal(labelled, batch[2])
