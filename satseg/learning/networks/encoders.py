"""What networks on an encoder have in common, whether a library's (`zoo`) or our own (`ternausnet`).

An encoder may start from learnt weights, stay as it is for a share of the budget, and learn more slowly than
the rest. How far such a network looks is found by trying: a block of NaN goes in, and where NaN comes out it has
acted, whatever the weights. Networks that take means over the whole input (squeeze-and-excitation, attention, FPN's
group normalisation, DeepLab's image pooling) have a reach without end; with them, tiles differ from the whole scene.
Rejected: formulas of the reach, one for each of 78 encoders; and freezing by the library, new in its 0.6.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from satseg.learning.networks.network import Network
from satseg.options import ModelOptions

__all__ = ["EncoderNetwork", "hold_encoder", "parameter_groups"]

FIRST_TRY, LAST_TRY = 8, 64
"""Strides over which a reach is looked for: doubled up to 2048 pixels; the farthest of the encoders reaches 1600."""
PARTS = 4
"""Parts of an encoder between which learning rates may fall; ResNets and most others have four stages."""


class EncoderNetwork(Network):
    """A network whose `encoder` may have learnt before; all else of it is new."""

    encoder: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self._held = False
        self._reach: list[int | None] = []

    @property
    def reach(self) -> int | None:
        """Distance beyond which no input pixel acts, in whole strides; None: it acts at any distance.

        Found on the CPU, in about a second of it, when it is first asked for.
        """
        if not self._reach:
            own = copy.deepcopy(self).cpu().float().eval()
            self._reach.append(_reach_of(own))
        return self._reach[0]

    def hold(self, held: bool) -> None:
        """Keep the encoder's weights and statistics as they are, or let them learn (again)."""
        if held != self._held:
            self._held = held
            self.encoder.requires_grad_(not held)
            self.train(self.training)

    def train(self, mode: bool = True) -> EncoderNetwork:
        """Switch to training or evaluation; an encoder that is held stays in evaluation."""
        super().train(mode)
        if self._held:
            self.encoder.eval()
        return self


def hold_encoder(network: Network, options: ModelOptions, share: float) -> None:
    """Hold the encoder of `network` while `share`, 0..1, of the budget is below `options.freeze`; for 1, always.

    What it does depends on the share alone, so that a resumed run goes on as it would have. The plain UNet
    has nothing to hold.
    """
    if isinstance(network, EncoderNetwork):
        network.hold(share < options.freeze or options.freeze >= 1)


def parameter_groups(network: Network, options: ModelOptions) -> list[dict[str, Any]]:
    """Return all weights of `network` as groups for an optimiser, each with a "factor" on the learning rate.

    The plain UNet is one group. Encoders learn at `encoder_rate`; with a `layer_decay` their weights, in order
    from the input on, are four equal parts of which each learns that much slower than the one after (Howard and
    Ruder 2018, arXiv 1801.06146, 3.2).
    """
    if not isinstance(network, EncoderNetwork):
        return [{"params": list(network.parameters()), "factor": 1.0}]
    encoder = list(network.encoder.parameters())
    others = [weight for name, weight in network.named_parameters() if not name.startswith("encoder.")]
    parts = 1 if options.layer_decay == 1 else PARTS
    bounds = [len(encoder) * part // parts for part in range(parts + 1)]
    factors = [options.encoder_rate * options.layer_decay ** (parts - 1 - part) for part in range(parts)]
    groups = [
        {"params": encoder[low:high], "factor": factor}
        for low, high, factor in zip(bounds, bounds[1:], factors, strict=False)
    ]
    return [*groups, {"params": others, "factor": 1.0}]


@torch.inference_mode()
def _reach_of(network: EncoderNetwork) -> int | None:
    """Distance in whole strides over which a block of `stride` pixels acts, or None: without end.

    NaN x 0 is NaN, so that weights do not matter. The input is as narrow as it can be across.
    """
    stride, strides = network.stride, FIRST_TRY
    while strides <= LAST_TRY:
        farthest = max(_spread(network, dim, strides) for dim in (2, 3))
        if farthest < strides:
            return farthest * stride
        strides *= 2
    return None


def _spread(network: EncoderNetwork, dim: int, strides: int) -> int:
    """Strides along `dim` from a block of NaN to the last NaN of the answer, at most `strides`."""
    stride = network.stride
    shape = [1, network.config.bands, stride, stride]
    shape[dim] *= 2 * strides + 1
    image = torch.zeros(shape)
    image.narrow(dim, strides * stride, stride).fill_(torch.nan)
    other = 5 - dim
    touched = network(image).isnan().any(dim=other).any(dim=1)[0].nonzero() // stride
    return max(strides - int(touched.min()), int(touched.max()) - strides)
