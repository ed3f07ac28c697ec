"""First layers for other bands than the weights know: what each new band takes of the filters there are.

Two ways. "repeat" gives the bands the known filters in turn, and scales them by known / new, so that answers keep their
size (TernausNetV2's 11 bands from 3, Iglovikov et al. 2018, arXiv 1806.00844; segmentation-models-pytorch does so
too). "wavelength" gives each band the filter of the nearest known wavelength, divided among those that share it. A
way is a matrix (bands, known), so that both, and any order of bands, are one product. Rejected: new filters at random
beside learnt ones, which drown what the others say, and a guess of the wavelength from a band's name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from satseg.errors import BandError
from satseg.learning.card import BandCard

__all__ = ["RGB", "by_name", "by_wavelength", "input_weights", "mixed", "repeated"]

log = logging.getLogger(__name__)

RGB = (
    BandCard(name="red", center_nm=611.4),
    BandCard(name="green", center_nm=549.1),
    BandCard(name="blue", center_nm=464.2),
)
"""Of photographs, in their order: the dominant wavelengths of sRGB's primaries (IEC 61966-2-1, from white D65)."""


def repeated(bands: int, known: int) -> Tensor:
    """Return what `bands` take of `known` filters in turn, (bands, known); one band takes the sum of all."""
    if bands == 1:
        return torch.ones(1, known)
    shares = torch.zeros(bands, known)
    shares[range(bands), [band % known for band in range(bands)]] = known / bands
    return shares


def by_wavelength(bands: Sequence[BandCard], known: Sequence[BandCard]) -> Tensor:
    """Return what each of `bands` takes of the filters of `known`, (bands, known), by the nearest wavelength.

    Bands without a wavelength, such as indices, take nothing: they begin without influence, and a warning names them.

    Raises
    ------
    BandError
        The wavelength of no band is known, or of none of `known` (E-BAND-053).
    """
    return _shares(bands, known, [_nearest(band, known) for band in bands])


def by_name(bands: Sequence[BandCard], known: Sequence[BandCard], how: str) -> Tensor:
    """Return what each of `bands` takes of the filters of `known`, (bands, known): of the same name where there is one.

    The others take theirs in turn for `how` "repeat", as `by_wavelength` for "wavelength"; raises as that does.
    """
    names = [band.name for band in known]
    sources = [
        names.index(band.name) if band.name in names
        else place % len(known) if how == "repeat"
        else _nearest(band, known)
        for place, band in enumerate(bands)
    ]  # fmt: skip
    return _shares(bands, known, sources)


def _nearest(band: BandCard, known: Sequence[BandCard]) -> int | None:
    """Place in `known` of the band whose centre is nearest to that of `band`, where both are known."""
    if band.center_nm is None:
        return None
    gaps = {i: abs(other.center_nm - band.center_nm) for i, other in enumerate(known) if other.center_nm is not None}
    return min(gaps, key=lambda place: gaps[place]) if gaps else None


def _shares(bands: Sequence[BandCard], known: Sequence[BandCard], sources: Sequence[int | None]) -> Tensor:
    """Filters at `sources`, each divided among its bands; all scaled for those of `known` that nobody takes."""
    taken = [source for source in sources if source is not None]
    new = [band.name for band, source in zip(bands, sources, strict=True) if source is None]
    if not taken:
        raise BandError(
            f"no band of {', '.join(new)} is known by its wavelength beside {', '.join(band.name for band in known)}",
            hint="name the sensor (--sensor), or give inflate='repeat'",
            code="E-BAND-053",
        )
    if new:
        log.warning("the wavelength of %s is not known: they begin without influence", ", ".join(new))
    shares = torch.zeros(len(bands), len(known))
    for place, source in enumerate(sources):
        if source is not None:
            shares[place, source] = len(known) / (len(set(taken)) * taken.count(source))
    return shares


def mixed(filters: Tensor, shares: Tensor) -> Tensor:
    """Return `filters` (O, known, h, w) for the bands of `shares` (bands, known), (O, bands, h, w)."""
    return torch.einsum("okhw,bk->obhw", filters, shares.to(filters)).contiguous()


@torch.inference_mode()
def input_weights(network: nn.Module, *, bands: int, side: int) -> tuple[str, ...]:
    """Return the names of the weights that take the bands of an image, in their second dimension.

    Found by trying: they are of the layers that are given the image itself, of `side` x `side` pixels.
    """
    weight = next(network.parameters())
    image = torch.zeros((1, bands, side, side), dtype=weight.dtype, device=weight.device)
    found, hooks, training = [], [], network.training
    for name, layer in network.named_modules():
        own = dict(layer.named_parameters(recurse=False)).get("weight")
        if own is not None and own.ndim == 4 and own.shape[1] == bands:

            def note(_: nn.Module, given: tuple[Tensor, ...], name: str = f"{name}.weight") -> None:
                if given[0] is image:
                    found.append(name)

            hooks.append(layer.register_forward_pre_hook(note))
    network.eval()
    try:
        network(image)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return tuple(found)
