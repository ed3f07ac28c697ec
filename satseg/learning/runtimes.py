"""What computes a model's network: one small contract, and the ways to keep it.

A runtime takes normalised tiles and returns logits, nothing else; who reads, cuts and thresholds need
not know which it is. "torch" needs nothing but torch and gives the masks of the network as it was
trained, from fewer operations (`folding`).

bfloat16 means bfloat16 weights, not autocast: autocast converts every weight in every call and keeps
wide what need not be wide, for the same masks. The model itself is never changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from satseg.errors import UsageError
from satseg.learning.bundle import Model
from satseg.learning.folding import lean, onednn_fuses

__all__ = ["Runtime", "ENGINES", "make_runtime", "agreement"]

ENGINES = ("torch", "onnx", "openvino")


class Runtime(Protocol):
    """A network ready to compute.

    Attributes
    ----------
    device : torch.device
        Where its input and output are.
    name : str
        In a few words, for reports.
    """

    device: torch.device
    name: str

    def __call__(self, image: Tensor) -> Tensor:
        """Logits (B, K, H - 2 crop, W - 2 crop) float32 of `image` (B, C, H, W) float32, normalised.

        `image` is not changed, and nothing of it is kept; on a CPU channels_last spares a copy.
        """


def make_runtime(
    model: Model, *, engine: str = "torch", amp: bool = False, device: torch.device | None = None
) -> Runtime:
    """Return what computes the network of `model`.

    Parameters
    ----------
    model : Model
        Not changed: weights are copied.
    engine : "torch", "onnx" or "openvino"
    amp : bool
        Compute in bfloat16; logits still come back in float32.
    device : torch.device, optional
        The model's own when left out.

    Raises
    ------
    UsageError
        An engine of another name (E-USE-070).
    """
    place = model.device if device is None else device
    if engine == "torch":
        return TorchRuntime(model, amp=amp, device=place)
    raise UsageError(f"engine {engine!r} is not known", hint=f"give one of {', '.join(ENGINES)}", code="E-USE-070")


class TorchRuntime:
    """The network in torch: normalisations folded, channels last; see `Runtime`."""

    def __init__(self, model: Model, *, amp: bool, device: torch.device) -> None:
        self.device = device
        self.name = f"torch {'bfloat16' if amp else 'float32'}"
        self._dtype = torch.bfloat16 if amp else torch.float32
        onednn = device.type == "cpu" and onednn_fuses(self._dtype)
        network = lean(model.network, onednn=onednn, sample=_sample(model))
        self._network = network.to(device, self._dtype).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        """Logits, as `Runtime` says."""
        given = image.to(self._dtype).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self._network(given)
        return logits.float()


def _sample(model: Model) -> Tensor:
    """Noise of a size that the network accepts, wider than high, on the model's device."""
    stride = model.stride
    crop = int(model.card.architecture.arguments.get("crop", 0))
    side = -(-max(2 * crop + 1, 64) // stride) * stride
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1, len(model.bands), side, side + stride), generator=generator).to(model.device)


def agreement(model: Model, images: Iterable[Tensor], runtime: Runtime) -> float:
    """Share, 0..1, of the pixels and classes whose mask by `runtime` is that of the network in float32.

    Parameters
    ----------
    model : Model
        Its network is run as it is, its thresholds make the masks.
    images : iterable of Tensor (B, C, H, W) float32
        Normalised.
    """
    levels = torch.tensor([*model.thresholds.values()], device=model.device).logit()[:, None, None]
    same = total = 0
    for image in images:
        with torch.inference_mode():
            expected = model.network(image.to(model.device)) >= levels
        found = runtime(image.to(runtime.device)).to(model.device) >= levels
        same += int((expected == found).sum())
        total += expected.numel()
    return same / total if total else 1.0
