"""First layers for other bands: filters in turn, of the same name, of the nearest wavelength, and where they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from satseg.errors import BandError
from satseg.learning.card import BandCard
from satseg.learning.networks.inflation import RGB, by_name, by_wavelength, input_weights, mixed, repeated
from satseg.learning.networks.unet import UNet, UNetConfig

torch.set_num_threads(1)


def cards(**centres: float | None) -> list[BandCard]:
    return [BandCard(name=name, center_nm=nm) for name, nm in centres.items()]


@given(st.integers(1, 20), st.integers(1, 6))
@settings(deadline=None)
def test_filters_in_turn_keep_the_size_of_the_answer(bands, known):
    shares = repeated(bands, known)
    assert shares.shape == (bands, known)
    assert float(shares.sum()) == pytest.approx(known)
    assert bands == 1 or (shares > 0).sum(dim=1).eq(1).all()
    if bands == known and bands > 1:
        assert torch.equal(shares, torch.eye(known))


@given(st.lists(st.floats(380, 2500), min_size=1, max_size=12), st.lists(st.floats(380, 2500), min_size=1, max_size=5))
@settings(deadline=None)
def test_each_band_takes_the_nearest_filter_and_those_that_share_it_sum_to_one(new, old):
    bands, known = ([BandCard(name=f"b{i}", center_nm=nm) for i, nm in enumerate(some)] for some in (new, old))
    shares = by_wavelength(bands, known)
    for row, nm in zip(shares, new, strict=True):
        (place,) = row.nonzero().flatten().tolist()
        assert abs(old[place] - nm) == min(abs(other - nm) for other in old)
    taken = (shares > 0).any(dim=0)
    torch.testing.assert_close(shares.sum(dim=0)[taken], torch.full((int(taken.sum()),), len(old) / int(taken.sum())))


def test_bands_of_the_same_name_keep_their_filters_in_any_order():
    other = by_name(cards(blue=None, red=None, green=None), RGB, "repeat")
    filters = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed(filters, other), filters[:, [2, 0, 1]])


def test_new_bands_share_a_filter_so_that_equal_bands_give_the_old_answer():
    shares = by_name(cards(red=660.0, edge=725.0, green=None, nir=830.0, blue=480.0), RGB, "wavelength")
    assert torch.allclose(shares[:, 0], torch.tensor([1, 1, 0, 1, 0]) / 3)
    generator = torch.Generator().manual_seed(1)
    filters, image = torch.randn(4, 3, 3, 3, generator=generator), torch.randn(1, 3, 9, 7, generator=generator)
    old, new = F.conv2d(image, filters), F.conv2d(image[:, [0, 0, 1, 0, 2]], mixed(filters, shares))
    torch.testing.assert_close(new, old)


def test_bands_without_a_wavelength_begin_without_influence_and_are_named(caplog):
    shares = by_wavelength(cards(ndvi=None, nir=830.0), RGB)
    assert torch.equal(shares, torch.tensor([[0.0, 0, 0], [3, 0, 0]]))
    assert "ndvi" in caplog.text
    with pytest.raises(BandError, match="ndvi") as caught:
        by_wavelength(cards(ndvi=None), RGB)
    assert caught.value.code == "E-BAND-053"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"stem": 2}, ("stem.0.weight",)),
        ({"stem": 1}, ("encoder.0.0.weight",)),
        ({"stem": 1, "residual": True}, ("encoder.0.body.0.weight", "encoder.0.around.0.weight")),
        ({"stem": 1, "crop": 4, "width": 3}, ("encoder.0.0.weight",)),
    ],
)
def test_weights_that_take_the_bands_are_found_by_trying(options, names):
    network = UNet(UNetConfig(**{"bands": 3, "classes": 1, "width": 4, "depth": 2, **options})).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert set(input_weights(network, bands=3, side=16)) == set(names)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in network.modules())


@pytest.mark.parametrize(
    "encoder", ["mobilenet_v2", "efficientnet-b0", "mit_b0", pytest.param("mobileone_s0", marks=pytest.mark.slow)]
)
def test_the_first_layers_of_a_librarys_encoders_are_those_it_changes_itself(encoder):
    smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the extra zoo")
    three, five = (smp.encoders.get_encoder(encoder, in_channels=bands, weights=None) for bands in (3, 5))
    wanted = {name for name, value in five.state_dict().items() if value.shape != three.state_dict()[name].shape}
    assert wanted
    assert set(input_weights(five, bands=5, side=64)) == wanted
