"""The UNet: the network of 2017 to the weight, an exact reach, and tiles that equal the whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satseg.errors import BandError, GridError, UsageError
from satseg.learning.networks.architectures import new_network
from satseg.learning.networks.unet import SEED_2017, Residual, UNet, UNetConfig, default_config, parameter_count, reach
from satseg.options import ModelOptions

torch.set_num_threads(1)  # tensors this small only wait for the other threads


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**changes) -> UNetConfig:
    return UNetConfig(**{"bands": 2, "classes": 1, "width": 2, "depth": 3, **changes})


def positive(config: UNetConfig, *, constant: bool = False) -> UNet:
    """A network without biases and with positive weights: its response shows its whole support."""
    network = UNet(config, generator=generator()).double().eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            else:
                weight.fill_(1.0) if constant else weight.abs_().add_(0.1)
                weight /= weight[0].numel()
    return network


OF_2017 = {
    "width": 32, "depth": 5, "stem": 1, "residual": False, "decoder_convs": 2, "squeeze": False, "activation": "elu",
    "crop": 16,
}  # fmt: skip
"""The network of 2017 as a run file names it."""


def test_options_of_a_run_name_the_network_of_2017():
    options = ModelOptions(**OF_2017)
    network = new_network(options, bands=16, classes=1, prior=0.5, generator=generator())
    assert network.config == SEED_2017


def test_seed_network_has_7856289_weights_and_maps_112_to_80():
    network = UNet(SEED_2017)
    trainable = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    assert trainable == 7_856_289
    statistics = sum(value.numel() for value in network.buffers() if value.is_floating_point())
    assert trainable + statistics == 7_862_177  # Keras counts means and variances too
    assert network(torch.zeros(1, 16, 112, 112)).shape == (1, 1, 80, 80)
    assert SEED_2017.widths == (32, 64, 128, 256, 512)


def test_default_network_has_less_than_two_million_weights():
    network = UNet(default_config(bands=3, classes=1))
    assert 1.6e6 < sum(weight.numel() for weight in network.parameters()) < 1.7e6
    assert network.stride == 16


def test_blocks_begin_as_little_more_than_the_way_around_them():
    network = UNet(default_config(bands=3, classes=1), generator=generator())
    blocks = [layer for layer in network.modules() if isinstance(layer, Residual)]
    assert len(blocks) == 4
    for block in blocks:
        x = torch.randn(2, next(block.body.parameters()).shape[1], 16, 16, generator=generator())
        around = block.around(x)
        within = block.body(x)
        assert within.std() < 0.4 * around.std()


REACHES = [
    small(norm="none", depth=1),
    small(norm="none", depth=1, stem=4, convs_per_level=1),
    small(norm="none", depth=2, stem=2, upsampling="bilinear"),
    small(norm="none", depth=3),
    small(norm="none", depth=3, upsampling="bilinear", convs_per_level=1),
    small(norm="none", depth=3, upsampling="transposed", convs_per_level=3),
    small(norm="none", depth=2, stem=4, upsampling="transposed"),
    small(norm="none", depth=4, stem=2, residual=True, decoder_convs=1, squeeze=True),
    small(norm="none", depth=3, residual=True, convs_per_level=1, upsampling="transposed", squeeze=True),
    dataclasses.replace(default_config(2, 1), norm="none", width=1),
    dataclasses.replace(SEED_2017, norm="none", activation="relu", bands=1, width=1, crop=0),
]


@pytest.mark.parametrize("config", REACHES, ids=str)
def test_reach_is_exactly_how_far_one_pixel_acts(config):
    network, step = positive(config), config.stride
    margin = -(-(reach(config) + 2) // step) * step
    size = 2 * margin + step
    farthest = 0
    for place in range(margin, margin + step):
        x = torch.zeros(1, config.bands, step, size, dtype=torch.float64)
        x[:, :, step // 2, place] = 1.0
        with torch.inference_mode():
            cols = network(x)[0, 0].ne(0).any(dim=0).nonzero()
        farthest = max(farthest, place - int(cols.min()), int(cols.max()) - place)
    assert farthest == reach(config)


@pytest.mark.parametrize("norm", ["batch", "channel", "none"])
def test_one_changed_pixel_changes_nothing_beyond_reach(norm):
    network = trained(small(norm=norm, depth=2, stem=2, activation="elu"))
    x = torch.randn(1, 2, 72, 88, generator=generator())
    changed = x.clone()
    changed[0, :, 31, 42] += 50.0
    with torch.inference_mode():
        moved = (network(x) - network(changed)).abs()[0, 0] > 0
    rows, cols = moved.nonzero().unbind(dim=1)
    spread = max((rows - 31).abs().max(), (cols - 42).abs().max())
    assert 0.6 * network.reach <= spread <= network.reach


def trained(config: UNetConfig) -> UNet:
    """A network in evaluation mode whose batch norms hold statistics other than 0 and 1."""
    network = UNet(config, generator=generator(3)).train()
    with torch.no_grad():
        network(torch.randn(2, config.bands, 64, 64, generator=generator(4)) * 3 + 1)
        network.head.weight.normal_(generator=generator(5))
    return network.eval()


@pytest.mark.parametrize("norm", ["batch", "channel", "none"])
@pytest.mark.parametrize("stem", [1, 2])
def test_tile_with_halo_equals_whole_scene(norm, stem):
    config = small(norm=norm, stem=stem, depth=2, upsampling="bilinear", activation="silu")
    network = trained(config).double()
    halo, size = network.halo, 8 * network.stride
    x = torch.randn(1, 2, size + 2 * halo + 16, size + 2 * halo + 32, generator=generator()).double()
    top, left = 2 * network.stride, network.stride
    with torch.inference_mode():
        whole = network(x)
        tile = network(x[:, :, top : top + size + 2 * halo, left : left + size + 2 * halo])
    core = tile[:, :, halo : halo + size, halo : halo + size]
    expected = whole[:, :, top + halo : top + halo + size, left + halo : left + halo + size]
    torch.testing.assert_close(core, expected, atol=1e-11, rtol=0)  # float64 sums in another order


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear", "transposed"])
@pytest.mark.parametrize("stem", [1, 2, 4])
def test_geometry_is_centred_so_flips_and_turns_commute(stem, upsampling):
    network = positive(small(norm="none", stem=stem, upsampling=upsampling), constant=True)
    x = torch.rand(1, 2, 48, 80, dtype=torch.float64, generator=generator())
    with torch.inference_mode():
        y = network(x)
        torch.testing.assert_close(network(x.flip(-1)), y.flip(-1))
        torch.testing.assert_close(network(x.flip(-2)), y.flip(-2))
        torch.testing.assert_close(network(x.mT), y.mT)


@given(
    bands=st.integers(1, 5), classes=st.integers(1, 4), rows=st.integers(1, 3), cols=st.integers(1, 3),
    stem=st.sampled_from([1, 2, 4]), depth=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_any_bands_classes_and_sizes_map_to_full_resolution(bands, classes, rows, cols, stem, depth):
    network = UNet(small(bands=bands, classes=classes, stem=stem, depth=depth)).eval()
    height, width = rows * network.stride, cols * network.stride
    with torch.inference_mode():
        assert network(torch.zeros(1, bands, height, width)).shape == (1, classes, height, width)


def test_one_pixel_is_enough_for_a_network_without_pooling():
    assert UNet(small(depth=1)).eval()(torch.zeros(1, 2, 1, 1)).shape == (1, 1, 1, 1)


def test_size_off_the_stride_is_refused_with_the_size_to_pad_to():
    with pytest.raises(GridError, match=r"30 x 41 .* multiples of 4; pad to 32 x 44"):
        UNet(small())(torch.zeros(1, 2, 30, 41))


def test_input_that_the_crop_would_swallow_is_refused():
    with pytest.raises(GridError, match="more than 32; pad to 36 x 40"):
        UNet(small(crop=16))(torch.zeros(1, 2, 32, 40))


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 16, 16), (1, 2, 16)])
def test_input_of_other_bands_is_refused(shape):
    with pytest.raises(BandError, match="2 bands"):
        UNet(small())(torch.zeros(shape))


@pytest.mark.parametrize("stem", [1, 2, 4])
@pytest.mark.parametrize("norm", ["batch", "channel", "none"])
@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
@pytest.mark.parametrize(("depth", "convs"), [(1, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("squeeze", [False, True])
def test_weights_are_counted_without_building(stem, norm, upsampling, depth, convs, residual, squeeze):
    config = small(
        bands=3, classes=2, stem=stem, norm=norm, upsampling=upsampling, depth=depth, convs_per_level=convs,
        residual=residual, decoder_convs=convs, squeeze=squeeze,
    )  # fmt: skip
    assert parameter_count(config) == sum(weight.numel() for weight in UNet(config).parameters())


@pytest.mark.parametrize("stem", [1, 2])
def test_training_starts_at_the_prior_of_each_class(stem):
    prior = [0.01, 0.3, 0.9]
    network = UNet(small(classes=3, stem=stem), prior=prior, generator=generator()).eval()
    scores = network(torch.randn(1, 2, 32, 48, generator=generator())).sigmoid().mean(dim=(0, 2, 3))
    torch.testing.assert_close(scores, torch.tensor(prior), atol=0.02, rtol=0.1)


@pytest.mark.parametrize("prior", [0.0, 1.0, 1.5, [0.5], [0.2, 0.2, 0.2], 0])
def test_impossible_prior_is_refused(prior):
    with pytest.raises(UsageError, match="prior"):
        UNet(small(classes=2), prior=prior)


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    first = UNet(small(upsampling="transposed"), generator=generator(7)).state_dict()
    torch.manual_seed(2)
    second = UNet(small(upsampling="transposed"), generator=generator(7)).state_dict()
    other = UNet(small(upsampling="transposed"), generator=generator(8)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("norm", ["batch", "channel", "none"])
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear", "transposed"])
def test_every_weight_learns(norm, upsampling):
    config = small(norm=norm, upsampling=upsampling, stem=2, activation="gelu", residual=True, squeeze=True)
    network = UNet(config, generator=generator())
    network(torch.randn(2, 2, 32, 40, generator=generator())).square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []
    dead = [name for name, weight in network.named_parameters() if not weight.grad.isfinite().all()]
    assert dead == []


def test_memory_layout_does_not_change_the_result():
    network = trained(small(norm="channel", stem=2))
    x = torch.randn(1, 2, 40, 56, generator=generator())
    with torch.inference_mode():
        plain = network(x)
        network.to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), plain)


def test_channel_norm_is_layer_norm_of_each_pixel():
    norm = UNet(small(norm="channel")).encoder[0][1]
    x = torch.randn(2, 2, 3, 5, generator=generator())
    expected = torch.stack([norm.weight * 0 + (p - p.mean()) / (p.var(unbiased=False) + norm.eps).sqrt()
                            for p in x.permute(0, 2, 3, 1).reshape(-1, 2)])  # fmt: skip
    torch.testing.assert_close(norm(x).permute(0, 2, 3, 1).reshape(-1, 2), expected)


def test_dropout_acts_in_training_only():
    network = UNet(small(norm="none", dropout=0.5), generator=generator())
    x = torch.randn(1, 2, 16, 16, generator=generator())
    torch.manual_seed(0)
    with torch.inference_mode():
        assert len({float(network(x).sum()) for _ in range(8)}) > 1
        network.eval()
        assert len({float(network(x).sum()) for _ in range(3)}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"bands": 0}, {"classes": 0}, {"width": 10**9}, {"depth": 0}, {"depth": 50}, {"depth": 2.5},
        {"convs_per_level": 0}, {"norm": "group"}, {"activation": "tanh"}, {"upsampling": "cubic"},
        {"crop": -1}, {"dropout": 1.0}, {"width_multiplier": 0.0},
        {"width": 2048, "depth": 8}, {"stem": 3},
    ],
    ids=str,
)  # fmt: skip
def test_config_out_of_range_is_refused_by_name(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        small(**changes)
