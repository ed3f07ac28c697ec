"""How wide a tile's margin must be for a trained network: measured, since it is less than all it could be.

A network can look as far as its layers reach (`Network.reach`), and hardly does: influence fades with
distance. A smaller halo means fewer pixels computed twice and lower row bands, so that it decides both time
and memory. Measured is what matters: pieces of the training ground are scored with all the margin the network
can use, and again with less; the halo is the least, of multiples of the stride, with which no score moves
by more than a tolerance. `--halo exact` takes all of it.

Rejected: the gradient's extent ("effective receptive field", Luo et al. 2016), which says how influence fades
on average. The zero padding at a tile's edge is no average disturbance, and seams are seen where it is worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from rasterio.windows import Window

from satseg.imagery.normalization import Normalization
from satseg.imagery.scene import Scene
from satseg.imagery.tiling import round_up
from satseg.learning.networks.forward import Standardize
from satseg.learning.networks.network import Network

TOLERANCE = 1e-3
"""Greatest change of a score, 0..1, that a halo may leave: masks then differ in about one pixel of a million."""
CORE_PX = 128
"""Side of a piece whose scores are compared: its edge is what counts, its middle lies further from the cut."""
PIECES = 8


def measure_halo(
    network: Network, normalization: Normalization, scenes: Sequence[Scene], *, seed: int = 0, pieces: int = PIECES,
    tolerance: float = TOLERANCE,
) -> int:  # fmt: skip
    """Return the margin in pixels beyond which no pixel moves a score by more than `tolerance`.

    Parameters
    ----------
    network : Network
        Trained; on any device.
    normalization : Normalization
        Of the scenes' bands.
    scenes : sequence of Scene
        At the working resolution, with the network's bands: the ground it has learnt on.
    seed : int
        Of the places that are looked at.
    pieces : int
        How many places.
    tolerance : float
        Of a score, 0..1.

    Returns
    -------
    int
        A multiple of the network's stride, at least its crop, at most `network.halo` if that is more.
    """
    least = round_up(network.crop, network.stride)
    if least >= network.halo:  # it cuts off more than it reaches
        return least
    device = next(network.parameters()).device
    normalize, training = Standardize(normalization).to(device), network.training
    network.eval()
    enough = least
    try:
        for image in _images(scenes, network, normalize, device, seed=seed, pieces=pieces):
            enough = _enough_for(network, image, tolerance, at_least=enough)
    finally:
        network.train(training)
    return enough


def _images(
    scenes: Sequence[Scene], network: Network, normalize: Standardize, device: torch.device, *, seed: int, pieces: int
) -> Iterable[torch.Tensor]:
    """Normalised pieces (1, C, h, w) of the scenes with all the margin there is, at places drawn for each."""
    rng, stride = np.random.default_rng(seed), network.stride
    side = round_up(CORE_PX, stride) + 2 * network.halo
    for number in range(pieces):
        scene = scenes[number % len(scenes)]
        at = [int(rng.integers(0, max(1, size - side + 1))) // stride * stride for size in scene.grid.shape]
        with scene.reader() as reader:
            raster = reader.read(Window(at[1], at[0], side, side))
        if raster.valid.any():
            image = torch.from_numpy(raster.data.astype(np.float32))[None].to(device)
            yield normalize(image, torch.from_numpy(np.array(raster.valid))[None, None].to(device))


@torch.inference_mode()
def _enough_for(network: Network, image: torch.Tensor, tolerance: float, *, at_least: int) -> int:
    """Least halo, from `at_least` on, with which no score of the core of `image` moves by more: found by halving.

    Change is taken to fall with width, and what is returned has been tried; going down stride by stride would take
    minutes for networks that reach over 500 pixels.
    """
    exact, stride, crop, size = network.halo, network.stride, network.crop, image.shape[-1]

    def core_scores(halo: int) -> torch.Tensor:
        cut = slice(exact - halo, size - exact + halo)
        kept = slice(halo - crop, size - 2 * exact + halo - crop)
        logits: torch.Tensor = network(image[..., cut, cut])
        return logits[..., kept, kept].float().sigmoid()

    full = core_scores(exact)

    def holds(halo: int) -> bool:
        return float((core_scores(halo) - full).abs().max()) <= tolerance

    if at_least == exact or holds(at_least):
        return at_least
    fails, enough = at_least // stride, exact // stride
    while enough - fails > 1:
        middle = (fails + enough) // 2
        fails, enough = (fails, middle) if holds(middle * stride) else (middle, enough)
    return enough * stride
