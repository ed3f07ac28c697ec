"""Inference: the answer does not depend on how the scene is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from satseg.errors import BandError, GridError, UsageError
from satseg.imagery.scene import open_scene
from satseg.learning.inference import Tiling, check_halo, gather, predict_tiles, working_scene
from tests.factories import noise, north_up, rotated, write_tiff
from tests.worlds import BANDS, tiny_model

NETWORKS = [
    {},
    {"stem": 2},
    {"upsampling": "bilinear", "norm": "channel", "activation": "gelu"},
    {"upsampling": "transposed", "norm": "none", "activation": "elu", "crop": 4},
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "s.tif"
    data = noise(2, 83, 131).astype("uint16") * 9
    data[:, 20:30, 50:75] = 0
    return open_scene(write_tiff(path, data, transform=north_up(1.0), nodata=0, descriptions=BANDS))


def logits(model, scene, *, tile, batch=1, window=None, halo=None):
    place = window or scene.grid.window
    tiles = predict_tiles(model, scene, window=place, tiling=Tiling(tile, halo, batch))
    scores = gather(tiles, scene.grid, place, model.classes).data.astype(np.float64)
    scores = scores.clip(0.02, 0.98)  # beyond logits of 4 a float32 score no longer tells 1e-4 apart
    return np.log(scores / (1 - scores))


@pytest.mark.parametrize("network", NETWORKS)
def test_tiled_equals_whole_scene(scene, network):
    model = tiny_model(**network)
    whole = logits(model, scene, tile=1000)
    assert whole.std() > 0.1
    for tile, batch in ((16, 3), (40, 1), (64, 2)):
        assert np.abs(logits(model, scene, tile=tile, batch=batch) - whole).max() <= 1e-4


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 70), st.integers(0, 120), st.integers(1, 60), st.integers(1, 60), st.integers(8, 90))
def test_any_window_equals_the_crop_of_the_whole(scene, row, col, height, width, tile):
    model = tiny_model()
    whole = logits(model, scene, tile=1000)
    window = Window(col, row, min(width, 131 - col), min(height, 83 - row))
    part = logits(model, scene, tile=tile, window=window)
    expected = whole[:, row : row + window.height, col : col + window.width]
    assert np.abs(part - expected).max() <= 1e-4


def test_too_small_a_halo_is_seen(scene):
    """The property above can fail: without a halo, seams appear."""
    model = tiny_model()
    assert np.abs(logits(model, scene, tile=16, halo=0) - logits(model, scene, tile=1000)).max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 37), (41, 1), (16, 16), (17, 33)])
def test_any_size_keeps_its_size(tmp_path, height, width):
    path = write_tiff(tmp_path / "s.tif", noise(2, height, width), descriptions=BANDS)
    scene = open_scene(path)
    result = gather(predict_tiles(tiny_model(), scene), scene.grid, scene.grid.window, ("a", "b"))
    assert result.shape == (2, height, width)
    assert result.valid.all()
    assert np.isfinite(result.data).all()


def test_one_nan_changes_nothing_beyond_the_reach(tmp_path):
    model = tiny_model()
    data = noise(2, 120, 150).astype("float32")
    clean = open_scene(write_tiff(tmp_path / "clean.tif", data, descriptions=BANDS))
    data[0, 60, 70] = np.nan
    dirty = open_scene(write_tiff(tmp_path / "dirty.tif", data, descriptions=BANDS))
    before, after = logits(model, clean, tile=64), logits(model, dirty, tile=64)
    rows, cols = np.nonzero(np.abs(before - after).max(axis=0) > 0)
    assert len(rows)
    assert max(np.abs(rows - 60).max(), np.abs(cols - 70).max()) <= model.network.reach
    tiles = gather(predict_tiles(model, dirty), dirty.grid, dirty.grid.window, ("a", "b"))
    assert not tiles.valid[60, 70]
    assert tiles.valid.sum() == 120 * 150 - 1


def test_rotated_and_unplaced_scenes_are_predicted(tmp_path):
    for name, transform, crs in (("r", rotated(30, 1.0), "EPSG:32633"), ("n", north_up(1.0), None)):
        pixels = noise(2, 33, 47)
        path = write_tiff(tmp_path / f"{name}.tif", pixels, transform=transform, crs=crs, descriptions=BANDS)
        scene = open_scene(path)
        result = gather(predict_tiles(tiny_model(gsd_m=1.0), scene), scene.grid, scene.grid.window, ("a", "b"))
        assert result.grid.matches(scene.grid)


def test_eight_turns_of_a_turned_scene_agree(tmp_path):
    model, data = tiny_model(), noise(2, 64, 64)
    results = []
    for name, pixels in (("s", data), ("t", np.rot90(data, axes=(1, 2)).copy())):
        scene = open_scene(write_tiff(tmp_path / f"{name}.tif", pixels, descriptions=BANDS))
        tiles = predict_tiles(model, scene, tiling=Tiling(tile=64), flips=True)
        results.append(gather(tiles, scene.grid, scene.grid.window, ("a", "b")).data)
    np.testing.assert_allclose(np.rot90(results[0], axes=(1, 2)), results[1], atol=1e-5)


def test_working_scene_takes_the_models_bands_in_its_order(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(3, 20, 30), descriptions=("nir", "blue", "red"))
    assert working_scene(tiny_model(), open_scene(path)).bands == BANDS


def test_missing_band_is_refused_with_both_lists(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(2, 20, 30), descriptions=("red", "green"))
    with pytest.raises(BandError, match=r"'red', 'green'.*'red', 'nir'"):
        working_scene(tiny_model(), open_scene(path))


def test_scene_is_brought_to_the_models_resolution(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(2, 60, 90), transform=north_up(0.5), descriptions=BANDS)
    assert working_scene(tiny_model(gsd_m=1.0), open_scene(path)).grid.shape == (30, 45)
    assert working_scene(tiny_model(gsd_m=0.51), open_scene(path)).grid.shape == (60, 90)


def test_sizes_below_their_least_are_refused():
    for wrong in ({"tile": 0}, {"halo": -1}, {"batch_size": 0}):
        with pytest.raises(UsageError):
            Tiling(**wrong)
    with pytest.raises(GridError):
        check_halo(tiny_model(crop=4), 3)


def test_inference_leaves_torch_state_alone(scene):
    before = torch.is_grad_enabled(), torch.get_num_threads()
    list(predict_tiles(tiny_model(), scene))
    assert (torch.is_grad_enabled(), torch.get_num_threads()) == before
