"""The measured halo: as small as the tolerance allows, and never smaller than what the network shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from satseg.imagery.scene import open_scene
from satseg.learning.networks.halo import TOLERANCE, measure_halo
from satseg.pipeline import predict
from tests.factories import noise, write_tiff
from tests.worlds import BANDS, tiny_model


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "s.tif"
    return open_scene(write_tiff(path, noise(2, 260, 300).astype("uint16") * 9, descriptions=BANDS))


def near_sighted():
    """A network whose deeper levels count for little: the convolutions that read them are nearly nothing."""
    model = tiny_model(width=4, depth=3)
    with torch.no_grad():
        for block in model.network.decoder:
            block[0].weight[:, : -model.network.config.widths[0]] *= 1e-4
    return model


def test_influence_that_fades_needs_a_smaller_halo(scene):
    near, far = near_sighted(), tiny_model(width=4, depth=3)
    halos = [measure_halo(model.network, model.card.normalization, [scene]) for model in (near, far)]
    assert 0 < halos[0] < halos[1] <= far.network.halo
    assert halos[0] % near.network.stride == 0


def test_tiles_with_the_measured_halo_keep_the_tolerance(scene):
    model = near_sighted()
    halo = measure_halo(model.network, model.card.normalization, [scene])
    whole = predict(model, scene, tile=1000, halo="exact").data
    assert np.abs(predict(model, scene, tile=64, halo=halo).data - whole).max() <= 2 * TOLERANCE
    assert np.abs(predict(model, scene, tile=64, halo=0).data - whole).max() > 2 * TOLERANCE


def test_a_tighter_tolerance_never_needs_less(scene):
    model = tiny_model(width=4, depth=3)
    halos = [
        measure_halo(model.network, model.card.normalization, [scene], tolerance=tolerance)
        for tolerance in (0.5, 1e-2, 1e-4, 1e-9)
    ]
    assert halos == sorted(halos)
    assert halos[-1] == model.network.halo


def test_the_crop_of_a_network_is_covered(scene):
    model = tiny_model(crop=4, width=4, depth=3)
    assert measure_halo(model.network, model.card.normalization, [scene], tolerance=0.99) >= 4


def test_scenes_smaller_than_a_piece_and_without_valid_pixels_are_measured(tmp_path):
    model = tiny_model()
    small = open_scene(write_tiff(tmp_path / "a.tif", noise(2, 5, 7), descriptions=BANDS))
    empty = open_scene(write_tiff(tmp_path / "b.tif", np.zeros((2, 90, 80), "uint8"), nodata=0, descriptions=BANDS))
    for scenes in ([small], [empty, small]):
        assert 0 <= measure_halo(model.network, model.card.normalization, scenes) <= model.network.halo
    model.network.train()
    measure_halo(model.network, model.card.normalization, [small])
    assert model.network.training


def test_a_network_that_cuts_off_more_than_it_reaches_needs_what_it_cuts_off(scene):
    model = tiny_model(width=4, depth=1, crop=16)
    assert model.network.halo < 16
    assert measure_halo(model.network, model.card.normalization, [scene]) == 16
