"""The same network with less work: what `runtimes` computes in place of the network as it was trained.

Three rewrites, each exact but for rounding. A batch normalisation in evaluation is a line per channel
and goes into the weights of the convolution before it. An activation is applied by oneDNN while the
convolution's result is still in registers. And a 3 x 3 convolution of a picture enlarged by pixel
repetition meets every coarse pixel several times: summed beforehand its weights are those of a 4 x 4
transposed convolution of the coarse picture with 16 instead of 36 products, so that the first
convolution of a decoder level needs neither enlarging nor concatenating (`Join`).

Networks that are not our UNet are rewritten part by part where torch.fx can follow them. Rejected:
torch.compile, whose first call costs most of a minute, and torch.jit's optimiser, which is deprecated.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterable
from functools import cache
from inspect import signature

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from satseg.learning.networks.committee import Committee
from satseg.learning.networks.unet import Residual, UNet

__all__ = ["lean", "Convolution", "Join", "onednn_fuses"]

log = logging.getLogger(__name__)

ONEDNN_NAMES = {nn.ReLU: "relu", nn.SiLU: "swish", nn.GELU: "gelu"}
"""Activations that oneDNN applies itself; GELU by the error function, as torch's default does."""
RELUS = (torch.relu, F.relu, "relu", "relu_")
"""How networks call the activation without a layer of its own."""
REWRITE_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What a network's own code may raise when it is given no tensor but torch.fx's stand-in."""
CHECK_TOLERANCE = 1e-4
"""Of the largest logit: what summing float32 in another order may change in a deep network."""


def lean(
    network: nn.Module, *, onednn: bool = False, join: bool = True, sample: Tensor | None = None
) -> nn.Module:
    """Return a network with the results of `network` in evaluation, to rounding, and less work.

    Parameters
    ----------
    network : Module
        Left as it is; the copy shares no weights with it.
    onednn : bool
        Use oneDNN's fused operations, on the CPU alone; see `onednn_fuses`.
    join : bool
        Use transposed convolutions in place of enlarging.
    sample : Tensor (B, C, H, W), optional
        An input to compare both networks with when `network` is not of `UNet`s. Where they differ, or
        without a sample, a plain copy is returned.
    """
    if isinstance(network, Committee):
        members = [lean(member, onednn=onednn, join=join) for member in network.members]
        return Committee.joined(network.config, members).eval()
    if isinstance(network, UNet):
        return LeanUNet(network, onednn=onednn, join=join).eval()
    plain = copy.deepcopy(network).eval()
    if sample is None:
        return plain
    try:
        rewritten = _by_parts(copy.deepcopy(plain), onednn).eval()
        with torch.inference_mode():
            expected, found = plain(sample), rewritten(sample)
    except REWRITE_ERRORS as error:
        log.debug("%s runs as it is, rewriting it failed: %s", type(network).__name__, error)
        return plain
    change = float((expected - found).abs().max() / expected.abs().max().clamp(min=1.0))
    if not change <= CHECK_TOLERANCE:
        log.debug("%s runs as it is, rewriting it changed results by %g", type(network).__name__, change)
        return plain
    return rewritten


@cache
def onednn_fuses(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor have oneDNN's fused convolution in `dtype`, tried on one pixel.

    The operation is the one that torch.compile itself uses; torch does not promise to keep it.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    conv = nn.Conv2d(1, 1, 1).to(dtype)
    image = torch.ones((1, 1, 1, 1), dtype=dtype)
    try:
        with torch.inference_mode():
            found = Convolution(conv, nn.ReLU(), onednn=True)(image, image.clone())
            expected = torch.relu(conv(image) + image)
    except (RuntimeError, AttributeError) as error:
        log.debug("oneDNN's fused convolution is not used: %s", error)
        return False
    return torch.allclose(found, expected, atol=0.05)


class Convolution(nn.Module):
    """A convolution, then an optional addend, then an optional activation, in one pass where that is possible.

    Parameters
    ----------
    conv : Conv2d
    activation : Module, optional
    onednn : bool
        Call oneDNN's fused operation; without it the steps are done one by one, in place.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None = None, *, onednn: bool) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation
        plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        self.name = "none" if activation is None else ONEDNN_NAMES.get(type(activation))
        if isinstance(activation, nn.GELU) and activation.approximate != "none":
            self.name = None
        self.fused = onednn and plain and self.name is not None

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Return activation(conv(x) + addend); `addend` has the result's shape, and may be overwritten."""
        conv = self.conv
        if not self.fused:
            y: Tensor = conv(x)
            y = y if addend is None else y.add_(addend)
            return y if self.activation is None else self.activation(y)
        place = (conv.padding, conv.stride, conv.dilation, conv.groups)
        operations = torch.ops.mkldnn
        if addend is None:
            return operations._convolution_pointwise(  # type: ignore[no-any-return]
                x, conv.weight, conv.bias, *place, self.name, [], "none" if self.name == "gelu" else None
            )
        joined: Tensor = operations._convolution_pointwise_.binary(
            addend, x, conv.weight, conv.bias, *place, "add", None, "relu" if self.name == "relu" else None, [], None
        )
        return joined if self.name in ("none", "relu") or self.activation is None else self.activation(joined)


class Join(nn.Module):
    """A 3 x 3 convolution of cat(enlarge(coarse), skip), where enlarge repeats every pixel twice each way.

    Parameters
    ----------
    first : Convolution
        Of coarse + skip channels, kernel 3, padding 1.
    coarse : int
        Channels of the coarse picture, which come first.
    """

    def __init__(self, first: Convolution, coarse: int) -> None:
        super().__init__()
        conv = first.conv
        weight = enlarged_weight(conv.weight.detach()[:, :coarse])
        self.rise = nn.ConvTranspose2d(coarse, conv.out_channels, 4, stride=2, padding=1)
        self.rise.weight = nn.Parameter(weight)
        self.rise.bias = nn.Parameter(conv.bias.detach().clone()) if conv.bias is not None else None
        rest = nn.Conv2d(conv.in_channels - coarse, conv.out_channels, 3, padding=1, bias=False)
        rest.weight = nn.Parameter(conv.weight.detach()[:, coarse:].clone())
        self.skip = Convolution(rest, first.activation, onednn=first.fused)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Return (B, K, H, W) of `coarse` (B, C, H/2, W/2) and `skip` (B, S, H, W)."""
        joined: Tensor = self.skip(skip, self.rise(coarse))
        return joined


def enlarged_weight(weight: Tensor) -> Tensor:
    """Weights (C, K, 4, 4) of the transposed convolution that does enlarging by 2 and `weight` (K, C, 3, 3).

    Row o of the result takes rows o - 1, o, o + 1 of the enlarged picture, whose row j is coarse row
    j // 2. A transposed convolution with stride 2 and padding 1 adds coarse row i to row o by its
    weight t = o - 2 i + 1. So t gathers the weights k with (o + k - 1) // 2 = i: k = 2 - t and 3 - t.
    """
    gather = torch.zeros((4, 3), dtype=weight.dtype, device=weight.device)
    for place in range(4):
        for row in (2 - place, 3 - place):
            if 0 <= row < 3:
                gather[place, row] = 1.0
    return torch.einsum("tk,ul,ockl->cotu", gather, gather, weight).contiguous()


class LeanUNet(UNet):
    """A UNet for inference alone, made from another: same configuration, same results, less work."""

    def __init__(self, network: UNet, *, onednn: bool, join: bool) -> None:
        nn.Module.__init__(self)
        source = copy.deepcopy(network).eval()
        self.config = network.config
        self.stem = nn.Sequential(*_units(source.stem.children(), onednn))
        self.encoder = nn.ModuleList(
            LeanResidual(block, onednn=onednn) if isinstance(block, Residual)
            else nn.Sequential(*_units(block.children(), onednn)) for block in source.encoder
        )  # fmt: skip
        if self.config.squeeze:
            self.squeeze = nn.ModuleList(nn.Sequential(*_units(unit.children(), onednn)) for unit in source.squeeze)
        self.upsample, self.decoder = nn.ModuleList(), nn.ModuleList()
        widths = self.config.widths[-2::-1] if self.config.squeeze else self.config.widths[:0:-1]
        for width, upsample, block in zip(widths, source.upsample, source.decoder, strict=True):
            first, *others = _units(block.children(), onednn)
            if join and self.config.upsampling == "nearest" and isinstance(first, Convolution):
                self.upsample.append(Join(first, width))
            else:
                self.upsample.append(_Concatenation(upsample, first))
            self.decoder.append(nn.Sequential(*others))
        self.out = Convolution(source.head, onednn=onednn)

    def forward(self, x: Tensor) -> Tensor:
        """Logits as `UNet.forward` returns them."""
        self._check(x)
        x = x.clone() if self.config.residual and self.config.stem == 1 else self.stem(x)  # may be overwritten
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        x = skips.pop()
        for level, (join, block) in enumerate(zip(self.upsample, self.decoder, strict=True)):
            x = self.squeeze[level](x) if self.config.squeeze else x
            x = block(join(x, skips.pop()))
        x = self.out(x)
        if self.config.stem > 1:
            x = F.pixel_shuffle(x, self.config.stem)
        crop = self.config.crop
        return x[:, :, crop:-crop, crop:-crop] if crop else x


class LeanResidual(nn.Module):
    """A `Residual` whose sum and activation are done with its last convolution, where that has no other norm.

    What goes in may be overwritten.
    """

    def __init__(self, block: Residual, *, onednn: bool) -> None:
        super().__init__()
        *first, last = _units(block.body.children(), onednn)
        self.around = nn.Sequential(*_units(block.around.children(), onednn))
        self.joined = _grown(last, block.activation, onednn)
        self.first = nn.Sequential(*first) if self.joined is not None else nn.Sequential(*first, last)
        self.activation = block.activation

    def forward(self, x: Tensor) -> Tensor:
        """Return as `Residual.forward`."""
        around, inner = self.around(x), self.first(x)
        if self.joined is None:
            return self.activation(inner + around)  # type: ignore[no-any-return]
        return self.joined(inner, around.clone() if around is inner else around)  # type: ignore[no-any-return]


class _Concatenation(nn.Module):
    """The first convolution of a decoder level as the UNet has it, for enlarging other than by repetition."""

    def __init__(self, upsample: nn.Module, first: nn.Module) -> None:
        super().__init__()
        self.upsample, self.first = upsample, first

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.first(torch.cat([self.upsample(coarse), skip], dim=1))
        return joined


def _units(layers: Iterable[nn.Module], onednn: bool) -> list[nn.Module]:
    """`layers`, which follow each other, with normalisations folded and activations fused."""
    units: list[nn.Module] = []
    for layer in layers:
        grown = _grown(units[-1], layer, onednn) if units else None
        if grown is not None:
            units[-1] = grown
        elif type(layer) is nn.Conv2d:
            units.append(Convolution(layer, onednn=onednn))
        elif not isinstance(layer, nn.Identity):
            units.append(layer)
    return units


def _grown(before: nn.Module | None, layer: nn.Module, onednn: bool) -> Convolution | None:
    """`before` with `layer` taken in; None when it cannot be."""
    if not isinstance(before, Convolution) or before.activation is not None:
        return None
    if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
        return Convolution(fuse_conv_bn_eval(before.conv, layer), onednn=onednn)
    return Convolution(before.conv, layer, onednn=onednn) if type(layer) in ONEDNN_NAMES else None


def _by_parts(module: nn.Module, onednn: bool) -> nn.Module:
    """`module`, changed: each greatest part that torch.fx can follow is rewritten.

    A part takes one tensor: with more arguments, whether one is None would be decided while tracing.
    """
    children = list(module.named_children())
    if not children:
        return module
    if len(signature(module.forward).parameters) == 1 and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        try:
            return _rewritten(fx.symbolic_trace(module), onednn)
        except REWRITE_ERRORS as error:
            log.debug("torch.fx cannot follow %s: %s", type(module).__name__, error)
    for name, child in children:
        setattr(module, name, _by_parts(child, onednn))
    return module


def _rewritten(traced: fx.GraphModule, onednn: bool) -> fx.GraphModule:
    """`traced`, changed: layers after a convolution that nothing else reads are taken into it."""
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        layer = _layer(traced, node)
        if type(layer) is nn.Conv2d and calls[node.target] == 1:
            traced.set_submodule(str(node.target), Convolution(layer, onednn=onednn))
        source = node.args[0] if len(node.args) == 1 else None
        if layer is None or not isinstance(source, fx.Node) or len(source.users) != 1:
            continue
        grown = _grown(_layer(traced, source), layer, onednn)
        if grown is not None:
            traced.set_submodule(str(source.target), grown)
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _layer(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """What `node` calls, when that is a layer or a function that is one."""
    if node.op == "call_module":
        return traced.get_submodule(str(node.target))
    return nn.ReLU() if node.target in RELUS and len(node.args) == 1 else None
