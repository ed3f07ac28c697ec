"""Augmentation: image and truth stay on top of each other, and nothing comes from nowhere."""

from __future__ import annotations

import pytest
import torch

from satseg.errors import GridError, UsageError
from satseg.learning.augment import NO_AUGMENTATION, Augmentation, Augmenter, step_generator

torch.set_num_threads(1)  # tensors this small only wait for the other threads
GEOMETRY_ONLY = {"gain": 0.0, "offset": 0.0}
D4_ONLY = Augmentation(zoom=(1.0, 1.0), **GEOMETRY_ONLY)


def coded(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Chips whose every pixel has its own number, in the image and in the targets."""
    numbers = torch.arange(1.0, count * height * width + 1).reshape(count, 1, height, width)
    return numbers.expand(-1, 2, -1, -1).clone(), numbers.to(torch.int32), numbers.remainder(3) > 0


def d4(x: torch.Tensor) -> list[torch.Tensor]:
    return [torch.rot90(y, turns, (-2, -1)) for y in (x, x.flip(-1)) for turns in range(4)]


def test_turns_move_image_targets_and_labelled_alike():
    image, targets, labelled = Augmenter(D4_ONLY)(*coded(40, 5, 5), generator=step_generator(0, 0))
    assert torch.equal(image[:, :1], targets.float())
    assert torch.equal(image[:, 1:], targets.float())
    assert torch.equal(labelled, targets.remainder(3) > 0)


def test_turns_are_the_eight_of_d4_about_equally_often():
    original = coded(1, 4, 4)[0]
    batch = original.expand(800, -1, -1, -1)
    blank = torch.ones(800, 1, 4, 4, dtype=torch.bool)
    image, _, _ = Augmenter(D4_ONLY)(batch, blank, blank, generator=step_generator(3, 1))
    counts = [int((image == member).all(dim=(1, 2, 3)).sum()) for member in d4(original[0])]
    assert sum(counts) == 800
    assert min(counts) > 60  # 100 expected, four standard deviations below


def test_chips_that_are_not_square_keep_their_shape():
    image, targets, _ = Augmenter(D4_ONLY)(*coded(64, 3, 7), generator=step_generator(0, 5))
    assert image.shape == (64, 2, 3, 7)
    assert torch.equal(image[:, :1], targets.float())
    halves = {tuple(chip[0, ::2, ::6].sub(chip.min()).flatten().tolist()) for chip in image}
    assert len(halves) == 4


@pytest.mark.parametrize("factor", [0.7, 1.0 + 1e-9, 1.4])
def test_zoom_scales_about_the_centre_and_keeps_the_alignment(factor):
    size = 33
    rows = torch.linspace(-1, 1, size)[:, None].expand(size, size)
    image = torch.stack([rows + 3, rows.T + 3])[None]
    targets = (image[:, :1] > 3.3).to(torch.uint8)
    everywhere = torch.ones(1, 1, size, size, dtype=torch.bool)
    config = Augmentation(d4=False, zoom=(factor, factor), **GEOMETRY_ONLY)
    zoomed, truth, labelled = Augmenter(config)(image, targets, everywhere, generator=step_generator(0, 0))
    inside = labelled[:, 0]
    expected = torch.stack([rows / factor + 3, rows.T / factor + 3])[None]
    torch.testing.assert_close(
        zoomed.permute(1, 0, 2, 3)[:, inside], expected.permute(1, 0, 2, 3)[:, inside], atol=1e-5, rtol=0
    )
    far_from_edge = inside & ((zoomed[:, 0] - 3.3).abs() > 2 / size)
    assert torch.equal(truth[:, 0][far_from_edge], (zoomed[:, 0] > 3.3).to(torch.uint8)[far_from_edge])
    share = float(labelled.float().mean())
    assert share == pytest.approx(min(1.0, factor) ** 2, abs=0.07)


def test_pixels_from_outside_the_chip_are_unlabelled_and_zero():
    config = Augmentation(d4=False, zoom=(0.5, 0.5), gain=0.5, offset=0.5, noise=0.3)
    image, targets = torch.full((2, 3, 16, 24), 5.0), torch.ones(2, 1, 16, 24, dtype=torch.uint8)
    image, targets, labelled = Augmenter(config)(image, targets, targets > 0, generator=step_generator(1, 1))
    outside = torch.ones(16, 24, dtype=torch.bool)
    outside[3:13, 5:19] = False
    assert not labelled[..., outside].any()
    assert image[..., outside].eq(0).all()
    assert targets[..., outside].eq(0).all()
    assert labelled[..., 5:11, 7:17].all()


def test_chips_of_source_size_have_no_outside():
    augmenter = Augmenter(Augmentation(zoom=(0.7, 1.4)), size=20)
    assert augmenter.source_size == 29
    side = augmenter.source_size
    everywhere = torch.ones(16, 1, side, side, dtype=torch.bool)
    image, targets, labelled = augmenter(
        torch.ones(16, 2, side, side), everywhere, everywhere, generator=step_generator(0, 2)
    )
    assert image.shape[-2:] == targets.shape[-2:] == labelled.shape[-2:] == (20, 20)
    assert labelled.all()


def test_size_without_zoom_cuts_the_centre():
    numbers = coded(1, 9, 11)[0]
    image, _, _ = Augmenter(NO_AUGMENTATION, size=5)(
        numbers, numbers, numbers > 0, generator=step_generator(0, 0)
    )
    assert torch.equal(image, numbers[..., 2:7, 3:8])


def test_unlabelled_pixels_stay_unlabelled_under_zoom():
    labelled = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    labelled[..., 10:20, 5:9] = False
    config = Augmentation(d4=False, zoom=(1.3, 1.3), **GEOMETRY_ONLY)
    image = (~labelled).float().expand(-1, 2, -1, -1)
    moved, _, known = Augmenter(config)(image, labelled, labelled, generator=step_generator(0, 0))
    assert moved[:, :1][known].abs().max() < 2e-3  # no labelled pixel holds a blend with an unlabelled one
    assert not known.all()


def test_no_augmentation_changes_nothing():
    batch = coded(2, 4, 6)
    out = Augmenter(NO_AUGMENTATION)(*batch, generator=step_generator(0, 0))
    for before, after in zip(batch, out, strict=True):
        assert torch.equal(before, after)


def test_arguments_are_left_as_they_are():
    batch = coded(3, 8, 8)
    copies = [x.clone() for x in batch]
    config = Augmentation(noise=0.1, band_drop=1.0)
    Augmenter(config)(*batch, generator=step_generator(0, 0))
    assert all(torch.equal(x, copy) for x, copy in zip(batch, copies, strict=True))


def test_gain_and_offset_are_one_per_band_and_within_their_range():
    config = Augmentation(d4=False, zoom=(1.0, 1.0), gain=0.3, offset=0.2)
    image = torch.stack([torch.full((6, 5), 1.0), torch.full((6, 5), 2.0)]).expand(200, 2, 6, 5).clone()
    image[..., 0] *= -1
    out, _, _ = Augmenter(config)(image, image > 0, image[:, :1] > 0, generator=step_generator(0, 0))
    gain = (out[..., 1] - out[..., 0]) / (image[..., 1] - image[..., 0])
    offset = (out[..., 1] + out[..., 0]) / 2
    assert gain.std(dim=2).max() < 1e-5
    assert 0.7 <= gain.min() < 0.72
    assert 1.28 < gain.max() <= 1.3
    assert 0.19 < offset.abs().max() <= 0.2
    assert torch.corrcoef(gain[:, :, 0].T)[0, 1].abs() < 0.3


def test_invalid_pixels_stay_zero_in_every_band():
    image = torch.rand(4, 3, 7, 9) + 0.1
    image[:, :, 2:4, 3:5] = 0
    config = Augmentation(d4=False, zoom=(1.0, 1.0), offset=0.5, noise=0.5)
    out, _, _ = Augmenter(config)(image, image > 0, image[:, :1] > 0, generator=step_generator(0, 0))
    assert out[:, :, 2:4, 3:5].eq(0).all()
    assert out[:, :, 0].ne(0).all()


def test_band_drop_takes_one_band_of_about_the_asked_share():
    config = Augmentation(d4=False, zoom=(1.0, 1.0), band_drop=0.5, **GEOMETRY_ONLY)
    image = torch.ones(400, 3, 2, 2)
    out, _, _ = Augmenter(config)(image, image > 0, image[:, :1] > 0, generator=step_generator(0, 0))
    dropped = (out == 0).all(dim=(2, 3)).sum(dim=1)
    assert set(dropped.tolist()) == {0, 1}
    assert 0.4 < float(dropped.float().mean()) < 0.6
    assert (out == 0).all(dim=(2, 3)).any(dim=0).all()


def test_single_band_is_never_dropped():
    config = Augmentation(d4=False, zoom=(1.0, 1.0), band_drop=1.0, **GEOMETRY_ONLY)
    image = torch.ones(5, 1, 2, 3)
    assert torch.equal(Augmenter(config)(image, image, image > 0, generator=step_generator(0, 0))[0], image)


def test_step_alone_decides_the_batch():
    config = Augmentation(noise=0.1, band_drop=0.3)
    torch.manual_seed(0)
    first = Augmenter(config)(*coded(4, 8, 8), generator=step_generator(5, 17))
    torch.manual_seed(1)
    again = Augmenter(config)(*coded(4, 8, 8), generator=step_generator(5, 17))
    other = Augmenter(config)(*coded(4, 8, 8), generator=step_generator(5, 18))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_seed_and_step_do_not_blur_into_each_other():
    pairs = [(seed, step) for seed in range(20) for step in range(20)]
    assert len({torch.rand(1, generator=step_generator(*pair)).item() for pair in pairs}) == 400


def test_types_come_back_as_they_went_in():
    image, targets = torch.rand(2, 2, 8, 8).half(), torch.ones(2, 1, 8, 8, dtype=torch.uint8)
    image, targets, labelled = Augmenter(Augmentation(noise=0.1))(
        image, targets, targets > 0, generator=step_generator(0, 0)
    )
    assert (image.dtype, targets.dtype, labelled.dtype) == (torch.float16, torch.uint8, torch.bool)
    assert image.isfinite().all()


@pytest.mark.parametrize(
    "values",
    [{"zoom": (0.0, 1.0)}, {"zoom": (1.4, 0.7)}, {"gain": 1.0}, {"gain": -0.1}, {"offset": -1.0},
     {"noise": float("nan")}, {"band_drop": 1.1}],
    ids=str,
)  # fmt: skip
def test_impossible_settings_are_refused(values):
    with pytest.raises(UsageError, match=next(iter(values))):
        Augmentation(**values)


def test_chips_that_do_not_match_are_refused():
    image, targets, labelled = coded(2, 6, 6)
    with pytest.raises(GridError, match="not of the same chips"):
        Augmenter(D4_ONLY)(image, targets[..., :5], labelled, generator=step_generator(0, 0))
    with pytest.raises(GridError, match="not of the same chips"):
        Augmenter(D4_ONLY)(image, targets, labelled[:, 0], generator=step_generator(0, 0))
    with pytest.raises(GridError, match="smaller than 8"):
        Augmenter(D4_ONLY, size=8)(image, targets, labelled, generator=step_generator(0, 0))
