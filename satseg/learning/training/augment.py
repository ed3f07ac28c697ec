"""Random changes of training chips: colours and mixing, in the batch.

Turns and zooms are done while a chip is read (`ground/warping.py`), for they need the ground around it. All else
works on whole batches of tensors, on the device, in normalised units: 0 is a band's mean, 1 its standard deviation.
Every draw comes from a generator that is an argument, so that step i of a run with a given seed sees the same batch on
any machine, resumed or not (`step_generator`).

Which changes are on by default was decided by leaving one place out: Nairobi and Zanzibar, each learnt without, and
Las Vegas from either. With gain and offset 0.2 and zoom 0.7 to 1.4 alone, Jaccards after 1500 steps of 16 x 128 px
were 0.50, 0.56, 0.68, 0.43; about as on by default now, after 1000, 0.48, 0.64, 0.70, 0.59; with twice as much
colour, after 1500, 0.43, 0.65, 0.73, 0.69. In 400 steps none of it helps: what more steps learn of three towns
without it is those towns. In `benchmarks.accuracy`, after 3 CPU-minutes and one run each, Jaccards without any change
of colour were 0.56 in Nairobi (0.51 with) and 0.46 in Zanzibar (0.63 with); with half of the chips left in their own
colours, after 10 minutes, 0.54 in Nairobi (0.51 without) and 0.51 in Las Vegas (0.75). Free rotation with zoom 0.5 to 2
did not help beyond noise (0.05 from run to run). Bands that change together, in brightness and gamma, serve towns seen
by drones; each by itself, in gain and offset, the other sensor. After 4.5 CPU-minutes and one network, in Nairobi,
Zanzibar and Las Vegas, Jaccards were 0.54, 0.62, 0.67 with gain and offset on all chips; without 0.55, 0.65, 0.15; with
them on half of the chips 0.54, 0.65, 0.54 and 0.55, 0.63, 0.54 (two seeds); on 30 % of the chips, doubled, 0.50, 0.60,
0.67; on half, with brightness 0.5 and gamma 0.4, 0.55, 0.61, 0.42; without any change of colour 0.56, 0.59, 0.12. All
this was of scenes as they are. Detection that brings scenes near (`imagery.levels`) takes over what the other sensor
needs, and half of the chips is best: 0.56, 0.66 and 0.70 there, with all chips 0.57, 0.61 and 0.65; after ten minutes
0.55 and 0.65 in Nairobi and Zanzibar, with all chips 0.53 and 0.63. Without zoom 0.53 and 0.64 after 4.5 minutes.
With three CPU-minutes, scenes brought near and no change of colour at all, 0.58, 0.55 and 0.55 in Nairobi (one seed
twice; 0.55 and 0.53 with), 0.59 in Zanzibar (0.63), 0.53 in Las Vegas (0.62); with bands that change together alone
0.66 in Zanzibar, 0.44 in Las Vegas. One run each in Nairobi: shade 0.5 0.54, band_drop 0.2 0.55, cutmix 0.3 0.54,
mixup 0.3 0.55: nothing beyond noise, and all stay off; jpeg was not tried there. Nairobi's labels lie a few pixels off
and lack large roofs, so that 0.02 there means little.
Sources: cutmix, Yun et al. 2019 (arXiv 1905.04899); mixup, Zhang et al. 2017 (arXiv 1710.09412).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from satseg.errors import GridError
from satseg.options import AugmentOptions

DARKEST = -3.0
"""Deviations below the mean that gamma takes for black."""
SPAN = 6.0
"""Deviations from black to white, for gamma."""
SHADE_CELLS = 4
"""Cells a side of the coarse field that a shade is made of: it changes slowly over a chip."""
COLOURS = ("gain", "offset", "brightness", "gamma", "shade", "blur", "noise", "jpeg", "band_drop")
"""Options that change colours."""
BLOCK = 8
"""Side of JPEG's blocks in pixels."""
CUT = (0.3, 0.7)
"""Sides of the part that cutmix exchanges, in shares of the chip's."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of one training step, well mixed from `seed` and `step` (both >= 0)."""
    state = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def augment(
    image: Tensor, targets: Tensor, labelled: Tensor, options: AugmentOptions, *, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch with its colours changed and its chips mixed; the arguments stay as they are.

    Parameters
    ----------
    image : Tensor (B, C, H, W), floating, normalised
        0 in every band where invalid; there cutmix and mixup put what the next chip of the batch has.
    targets : Tensor (B, K, H, W), any dtype; floating in what comes back where chips are blended
    labelled : Tensor of bool (B, 1 or K, H, W)
    options : AugmentOptions
    generator : torch.Generator
        On the CPU, whatever the device of the batch.

    Raises
    ------
    GridError
        Shapes disagree.
    """
    shapes = [tuple(x.shape) for x in (image, targets, labelled)]
    if any(len(shape) != 4 for shape in shapes) or len({(s[0], *s[2:]) for s in shapes}) != 1:
        raise GridError(f"shapes {shapes} of image, targets and labelled are not of the same chips")
    image = recolour(image, options, generator)
    if options.cutmix:
        image, targets, labelled = _cut_and_paste(image, targets, labelled, options.cutmix, generator)
    if options.mixup:
        image, targets, labelled = _blend(image, targets, labelled, options.mixup, generator)
    return image, targets, labelled


def recolour(image: Tensor, options: AugmentOptions, generator: torch.Generator) -> Tensor:
    """Return `image` (B, C, H, W) in other light, haze and sharpness; invalid pixels, 0 in all bands, stay 0.

    One copy is made and changed in place, light in one pass: with 20 bands a batch is 21 MB, and one new tensor for
    each change took a third of a training step.
    """
    if not any(getattr(options, name) for name in COLOURS):
        return image
    count, bands = image.shape[:2]
    alike, apart = (count, 1, 1, 1), (count, bands, 1, 1)
    factor, shift = torch.ones(apart), torch.zeros(apart)
    if options.gain or options.offset:
        factor = _factor(apart, options.gain, generator)
        shift = options.offset * _signed(apart, generator)
        if options.apart < 1:
            kept = _uniform(alike, generator) >= options.apart
            factor, shift = factor.masked_fill(kept, 1.0), shift.masked_fill(kept, 0.0)
    if options.brightness:
        more = _factor(alike, options.brightness, generator)
        factor, shift = factor * more, shift * more + options.brightness * _signed(alike, generator)
    if options.gamma:
        power = torch.exp(options.gamma * _signed(alike, generator)).to(image)
        changed = image * (factor / SPAN).to(image)
        changed.add_(((shift - DARKEST) / SPAN).to(image)).clamp_(min=0).pow_(power).mul_(SPAN).add_(DARKEST)
    else:
        changed = (image * factor.to(image)).add_(shift.to(image))
    if options.shade:
        changed.add_(options.shade * _shade(image.shape, generator).to(image))
    if options.blur:
        _sharpen(changed, options.blur, generator)
    if options.noise:
        strength = options.noise * _uniform(alike, generator)
        changed.add_(torch.randn(image.shape, generator=generator).mul_(strength).to(image))
    if options.jpeg:
        _round_blocks(changed, options.jpeg * _uniform(alike, generator), generator)
    if options.band_drop and bands > 1:
        hit = _uniform((count, 1), generator) < options.band_drop
        chosen = torch.randint(bands, (count, 1), generator=generator) == torch.arange(bands)
        changed.masked_fill_((hit & chosen)[:, :, None, None].to(image.device), 0.0)
    return changed.masked_fill_((image == 0).all(dim=1, keepdim=True), 0.0)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


def _signed(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2 * _uniform(shape, generator) - 1


def _factor(shape: tuple[int, ...], most: float, generator: torch.Generator) -> Tensor:
    return 1 + most * _signed(shape, generator)


def _shade(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A slow field (B, 1, H, W) of half the chips, of about unit spread: haze and the shadow of clouds."""
    coarse = torch.randn((shape[0], 1, SHADE_CELLS, SHADE_CELLS), generator=generator)
    field = F.interpolate(coarse, tuple(shape[2:]), mode="bicubic", align_corners=False)
    return field * (_uniform((shape[0], 1, 1, 1), generator) < 0.5)


def _sharpen(image: Tensor, share: float, generator: torch.Generator) -> None:
    """Blur (mostly) or sharpen a share of the chips of `image`, in place, by up to one 3 x 3 mean."""
    if min(image.shape[2:]) < 2:
        return
    amount = (1.7 * _uniform((len(image),), generator) - 0.7) * (_uniform((len(image),), generator) < share)
    hit = amount.nonzero()[:, 0].to(image.device)
    if len(hit):
        chosen = image[hit]
        mean = F.avg_pool2d(F.pad(chosen, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        image[hit] = torch.lerp(chosen, mean, amount.to(image)[hit, None, None, None])


def _round_blocks(image: Tensor, coarsest: Tensor, generator: torch.Generator) -> None:
    """Round the cosine transform of blocks of `image`, in place, to steps of up to `coarsest` (B, 1, 1, 1).

    Steps grow evenly with the frequency, and are of a band's own units: JPEG has a table of them (ITU-T T.81, annex K),
    and tells light from colour. The blocks' corner is drawn for the batch.
    """
    count, bands, height, width = image.shape
    at, frequency = (torch.arange(BLOCK) + 0.5) / BLOCK, torch.arange(BLOCK)[:, None]
    cosines = torch.cos(torch.pi * at * frequency) * torch.where(frequency == 0, 1.0, 2**0.5) / BLOCK**0.5
    growth = (1 + frequency + frequency.T) / (2 * BLOCK - 1)
    steps = (coarsest.clamp(min=1e-6) * growth).view(count, 1, 1, BLOCK, 1, BLOCK)
    cosines, steps = cosines.to(image.device), steps.to(image.device)
    top, left = torch.randint(BLOCK, (2,), generator=generator).tolist()
    sides = (left, -(left + width) % BLOCK, top, -(top + height) % BLOCK)
    with torch.autocast(image.device.type, enabled=False):
        padded = F.pad(image.float(), sides, mode="replicate")
        blocks = padded.reshape(count, bands, padded.shape[2] // BLOCK, BLOCK, padded.shape[3] // BLOCK, BLOCK)
        spectrum = torch.einsum("ui,bcrikj,vj->bcrukv", cosines, blocks, cosines).div_(steps).round_().mul_(steps)
        back = torch.einsum("ui,bcrukv,vj->bcrikj", cosines, spectrum, cosines)
    image.copy_(back.reshape(padded.shape)[..., top : top + height, left : left + width])


def _cut_and_paste(
    image: Tensor, targets: Tensor, labelled: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A rectangle of the next chip of the batch in each of a share of the chips."""
    count, (height, width) = len(image), image.shape[2:]
    sides = CUT[0] + (CUT[1] - CUT[0]) * _uniform((count, 2), generator)
    corner = _uniform((count, 2), generator) * (1 - sides)
    hit = _uniform((count,), generator) < share
    rows, cols = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    in_rows = (rows >= corner[:, :1]) & (rows < corner[:, :1] + sides[:, :1])
    in_cols = (cols >= corner[:, 1:]) & (cols < corner[:, 1:] + sides[:, 1:])
    taken = (in_rows[:, :, None] & in_cols[:, None, :] & hit[:, None, None])[:, None].to(image.device)
    return tuple(torch.where(taken, x.roll(1, 0), x) for x in (image, targets, labelled))  # type: ignore[return-value]


def _blend(
    image: Tensor, targets: Tensor, labelled: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A share of the chips blended with the next one of the batch, the truth alike; known where both are."""
    count = (len(image), 1, 1, 1)
    weight = 0.5 * _uniform(count, generator) * (_uniform(count, generator) < share)
    weight = weight.to(image)
    truth = targets.to(image.dtype)
    known = torch.where(weight > 0, labelled & labelled.roll(1, 0), labelled)
    return torch.lerp(image, image.roll(1, 0), weight), torch.lerp(truth, truth.roll(1, 0), weight), known
