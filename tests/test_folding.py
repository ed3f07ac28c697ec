"""Networks with less work: the results of the network as it was trained, for every kind of network."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from satseg.learning.networks import folding
from satseg.learning.networks.folding import Convolution, Join, enlarged_weight, lean, onednn_fuses
from satseg.learning.networks.unet import SEED_2017, UNet, UNetConfig

torch.set_num_threads(1)  # tensors this small only wait for the other threads
TOLERANCE = 1e-5
"""Of the largest logit: float32 sums in another order."""


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` in evaluation, with normalisations that are not the identity and logits of about 1."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in ((layer.running_mean, -0.3, 0.3), (layer.running_var, 0.5, 2.0),
                                      (layer.weight.data, 0.5, 1.5), (layer.bias.data, -0.3, 0.3)):  # fmt: skip
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    if isinstance(network, UNet):
        network.head.weight.data.mul_(30)
    return network.eval()


def image(channels: int, height: int = 32, width: int = 48, batch: int = 1) -> torch.Tensor:
    return torch.randn((batch, channels, height, width), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def difference(network: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    expected, found = network(x), other(x.contiguous(memory_format=torch.channels_last))
    assert expected.shape == found.shape
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("norm", ["batch", "channel", "none"])
@pytest.mark.parametrize("activation", ["relu", "elu", "silu", "gelu"])
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear", "transposed"])
@pytest.mark.parametrize("residual", [False, True])
def test_every_unet_keeps_its_results(norm, activation, upsampling, residual, onednn):
    for stem, depth, crop, convs in ((1, 3, 2, 1), (2, 3, 0, 2), (4, 1, 0, 3)):
        config = UNetConfig(
            bands=3, classes=2, width=4, depth=depth, norm=norm, activation=activation, upsampling=upsampling,
            stem=stem, crop=crop, convs_per_level=convs, dropout=0.3,
            residual=residual, decoder_convs=convs, squeeze=residual,
        )  # fmt: skip
        network = lively(UNet(config, generator=torch.Generator().manual_seed(0)))
        rounding = 5 * TOLERANCE if norm == "channel" else TOLERANCE  # it divides by spreads near 0
        assert difference(network, lean(network, onednn=onednn), image(3, batch=2)) <= rounding


def test_lean_unet_has_no_normalisation_left_and_fewer_products():
    network = lively(UNet(UNetConfig(bands=3, classes=2, width=8, depth=3)))
    rewritten = lean(network)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in rewritten.modules())
    assert sum(isinstance(layer, Join) for layer in rewritten.modules()) == 2


def test_ways_around_are_added_by_the_convolution_itself_and_leave_the_input_as_it_is():
    config = UNetConfig(bands=4, classes=2, width=4, depth=3, residual=True, squeeze=True)
    network, x = lively(UNet(config)), image(4)
    rewritten, before = lean(network), x.clone()
    assert difference(network, rewritten, x) <= TOLERANCE
    assert torch.equal(x, before)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in rewritten.modules())
    assert all(block.joined is not None for block in rewritten.modules() if isinstance(block, folding.LeanResidual))


def test_the_network_of_2017_keeps_its_results():
    network = lively(UNet(SEED_2017, generator=torch.Generator().manual_seed(0)))
    assert difference(network, lean(network, onednn=True), image(16, 112, 128)) <= TOLERANCE


def test_the_original_is_not_changed_and_shares_nothing():
    network = lively(UNet(UNetConfig(bands=3, classes=2, width=4, depth=2)))
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        for weight in lean(network, onednn=True).parameters():
            weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_enlarging_and_convolving_is_one_transposed_convolution(coarse, fine, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((1, coarse, height, width), generator=generator, dtype=torch.float64)
    weight = torch.randn((fine, coarse, 3, 3), generator=generator, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    found = F.conv_transpose2d(x, enlarged_weight(weight), stride=2, padding=1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh")])
@pytest.mark.parametrize("odd", [{}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}, {"groups": 3}])
def test_fused_convolution_is_convolution_addend_activation(activation, odd):
    conv = nn.Conv2d(6, 9, 3, **{"padding": 1, **odd})
    x, addend = image(6, 5, 7), image(9, 5, 7)
    with torch.inference_mode():
        alone, sum_ = conv(x), conv(x) + addend
        expected = [alone, sum_] if activation is None else [activation(alone), activation(sum_)]
        for onednn in (False, True):
            unit = Convolution(conv, activation, onednn=onednn)
            found = [unit(x), unit(x, addend.clone())]
            for a, b in zip(expected, found, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


class Residual(nn.Module):
    """A ResNet's block: what torch.fx can follow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


class Foreign(nn.Module):
    """A network with control flow on top, which torch.fx cannot follow, and parts that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.second = nn.ModuleList([Residual(6), Residual(6)])
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            raise ValueError("odd")
        x = self.first(x)
        for block in self.second:
            x = block(x)
        return self.last(x if extra is None else x + extra)


def test_foreign_networks_are_rewritten_part_by_part():
    network = lively(Foreign())
    for onednn in (False, True):
        rewritten = lean(network, onednn=onednn, sample=image(3))
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in rewritten.modules())
        assert difference(network, rewritten, image(3, 34, 26, 2)) <= TOLERANCE
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def test_a_convolution_used_twice_keeps_its_normalisations():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.two(self.conv(F.relu(self.one(self.conv(x))))))

    network = lively(Twice())
    assert difference(network, lean(network, onednn=True, sample=image(3)), image(3, 9, 5)) <= TOLERANCE


def test_a_rewrite_that_changes_results_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(folding, "_by_parts", lambda network, onednn: nn.Conv2d(3, 2, 1))
    network = lively(Foreign())
    with caplog.at_level("DEBUG", logger="satseg"):
        assert difference(network, lean(network, sample=image(3)), image(3)) <= 1e-6
    assert "changed results" in caplog.text


def test_a_network_that_fails_on_rewriting_runs_as_it_is(monkeypatch, caplog):
    def fail(network, onednn):
        raise RuntimeError("no way")

    monkeypatch.setattr(folding, "_by_parts", fail)
    network = lively(Foreign())
    with caplog.at_level("DEBUG", logger="satseg"):
        assert difference(network, lean(network, sample=image(3)), image(3)) <= 1e-6
    assert "no way" in caplog.text


def test_without_onednn_nothing_of_it_is_used(monkeypatch):
    onednn_fuses.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not onednn_fuses(torch.float32)
    onednn_fuses.cache_clear()


def test_an_operation_that_fails_is_not_used(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such operation")

    onednn_fuses.cache_clear()
    monkeypatch.setattr(Convolution, "forward", fail)
    assert not onednn_fuses(torch.float32)
    onednn_fuses.cache_clear()
