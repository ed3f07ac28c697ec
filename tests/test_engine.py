"""The engine: the answer does not depend on how the scene is cut, and errors in any stage end all of them."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from rasterio.windows import Window

from satseg.errors import BandError, DeviceError, GridError, InputError, UsageError
from satseg.imagery.scene import open_scene
from satseg.imagery.tiling import plan_tiles
from satseg.learning.detection import engine
from satseg.learning.detection.engine import Working, scan
from satseg.learning.detection.inference import chosen_halo, gather, working_scene
from satseg.learning.detection.job import DetectOptions
from satseg.learning.networks.forward import Wanted
from satseg.learning.networks.views import TTA
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


SCORES = Wanted(scores="float32")


def scores(model, scene, *, tile=256, window=None, halo=None, tile_width=None, **how):
    place = window or scene.grid.window
    margin = model.halo if halo is None else halo
    plan = plan_tiles(
        scene.grid, tile=tile, tile_width=tile_width, halo=margin, window=window, align=model.stride
    )
    return gather(scan(model, scene, plan, SCORES, Working(**how)), scene.grid, place, model.classes)


def logits(model, scene, **how):
    found = scores(model, scene, **how).data.astype(np.float64)
    found = found.clip(0.02, 0.98)  # beyond logits of 4 a float32 score no longer tells 1e-4 apart
    return np.log(found / (1 - found))


@pytest.fixture(scope="module")
def whole(scene):
    """Logits of the whole scene in one tile by the plain model."""
    return logits(tiny_model(), scene, tile=1000)


@pytest.mark.parametrize("network", NETWORKS)
def test_tiled_equals_whole_scene(scene, network):
    model = tiny_model(**network)
    whole = logits(model, scene, tile=1000)
    assert whole.std() > 0.1
    for tile, width, batch in ((16, None, 3), (40, 16, 1), (64, 100, 2)):
        found = logits(model, scene, tile=tile, tile_width=width, batch_size=batch)
        assert np.abs(found - whole).max() <= 1e-4


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 70), st.integers(0, 120), st.integers(1, 60), st.integers(1, 60), st.integers(8, 90))
def test_any_window_equals_the_crop_of_the_whole(scene, whole, row, col, height, width, tile):
    window = Window(col, row, min(width, 131 - col), min(height, 83 - row))
    part = logits(tiny_model(), scene, tile=tile, window=window)
    expected = whole[:, row : row + window.height, col : col + window.width]
    assert np.abs(part - expected).max() <= 1e-4


def test_too_small_a_halo_is_seen(scene, whole):
    """The property above can fail: without a halo, seams appear."""
    assert np.abs(logits(tiny_model(), scene, tile=16, halo=0) - whole).max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 37), (41, 1), (16, 16), (17, 33)])
def test_any_size_keeps_its_size(tmp_path, height, width):
    path = write_tiff(tmp_path / "s.tif", noise(2, height, width), descriptions=BANDS)
    scene = open_scene(path)
    result = scores(tiny_model(), scene)
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
    tiles = scores(model, dirty)
    assert not tiles.valid[60, 70]
    assert tiles.valid.sum() == 120 * 150 - 1


def test_rotated_and_unplaced_scenes_are_predicted(tmp_path):
    for name, transform, crs in (("r", rotated(30, 1.0), "EPSG:32633"), ("n", north_up(1.0), None)):
        pixels = noise(2, 33, 47)
        path = write_tiff(tmp_path / f"{name}.tif", pixels, transform=transform, crs=crs, descriptions=BANDS)
        scene = open_scene(path)
        result = scores(tiny_model(gsd_m=1.0), scene)
        assert result.grid.matches(scene.grid)


def test_eight_turns_of_a_turned_scene_agree(tmp_path):
    model, data = tiny_model(), noise(2, 64, 64)
    results = []
    for name, pixels in (("s", data), ("t", np.rot90(data, axes=(1, 2)).copy())):
        scene = open_scene(write_tiff(tmp_path / f"{name}.tif", pixels, descriptions=BANDS))
        results.append(scores(model, scene, tile=64, views=TTA["d4"]).data)
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
    for wrong in ({"tile": 0}, {"halo": -1}, {"halo": "wide"}, {"batch_size": 0}, {"max_memory": 0}):
        with pytest.raises(UsageError):
            DetectOptions(**wrong)
    with pytest.raises(GridError):
        chosen_halo(tiny_model(crop=4), 3)


def test_halo_is_the_models_own_the_given_one_or_all_of_the_reach():
    model = tiny_model()
    narrow = dataclasses.replace(model, card=model.card.model_copy(update={"halo": 8}))
    assert (chosen_halo(narrow, None), chosen_halo(narrow, 4)) == (8, 4)
    assert chosen_halo(narrow, "exact") == model.network.halo >= model.network.reach


def test_inference_leaves_torch_state_alone(scene):
    before = torch.is_grad_enabled(), torch.get_num_threads()
    scores(tiny_model(), scene)
    assert (torch.is_grad_enabled(), torch.get_num_threads()) == before


@pytest.mark.parametrize("how", [
    {"readers": 3, "strips_ahead": 2}, {"strips_ahead": 0}, {"bands_ahead": 2}, {"batch_size": 5},
    {"devices": (torch.device("cpu"),) * 3, "bands_ahead": 1},
])  # fmt: skip
def test_threads_batches_and_devices_change_nothing(scene, how):
    model = tiny_model()
    plain = scores(model, scene, tile=24, tile_width=40)
    np.testing.assert_allclose(scores(model, scene, tile=24, tile_width=40, **how).data, plain.data, atol=1e-6)


def test_a_scan_that_begins_later_gives_the_same_bands(scene):
    model = tiny_model()
    plan = plan_tiles(scene.grid, tile=16, halo=model.halo, align=model.stride)
    wanted = Wanted(np.full(2, 0.5, np.float32), scores="uint8", entropy=True)
    whole = list(scan(model, scene, plan, wanted, Working()))
    assert [band.number for band in whole] == list(range(len(plan.row_range)))
    for first in (1, 3, len(whole) - 1, len(whole)):
        later = list(scan(model, scene, plan, wanted, Working(), first=first))
        assert [band.number for band in later] == [band.number for band in whole[first:]]
        for a, b in zip(later, whole[first:], strict=True):
            assert a.window == b.window
            for name in ("codes", "scores", "entropy"):
                np.testing.assert_array_equal(a.planes[name], b.planes[name])


def test_tiles_without_a_valid_pixel_are_not_computed(tmp_path, monkeypatch):
    data = noise(2, 64, 96).astype("uint16") + 1
    data[:, :, 32:] = 0
    data[:, 40, 90] = 7  # in the last tile of the second row
    scene = open_scene(write_tiff(tmp_path / "s.tif", data, nodata=0, descriptions=BANDS))
    computed = []
    original = engine.Forward.__call__
    monkeypatch.setattr(
        engine.Forward, "__call__",
        lambda self, batch: computed.extend((p.tiles[0].row, p.tiles[0].col) for p in batch) or original(self, batch),
    )  # fmt: skip
    result = scores(tiny_model(), scene, tile=32)
    assert sorted(computed) == [(0, 0), (1, 0), (1, 2)]
    np.testing.assert_array_equal(result.valid, (data != 0).all(axis=0))


def test_only_the_area_of_interest_is_valid(scene):
    model = tiny_model()
    left, bottom, right, top = scene.grid.bounds
    area = shapely.Polygon([(left, top), (right, top), (left, bottom)])
    plan = plan_tiles(scene.grid, tile=32, halo=model.halo, align=model.stride)
    bands = scan(model, scene, plan, SCORES, Working(), aoi=np.array([area]))
    result = gather(bands, scene.grid, scene.grid.window, model.classes)
    inside = rasterize([area], out_shape=scene.grid.shape, transform=scene.grid.transform).astype(bool)
    whole = scores(model, scene)
    np.testing.assert_array_equal(result.valid, inside & whole.valid)
    np.testing.assert_allclose(result.data, np.where(inside, whole.data, 0), atol=1e-5)  # its edge changes nothing


class _Full(torch.nn.Module):
    """A network on a device that holds `room` tiles."""

    def __init__(self, network, room):
        super().__init__()
        self.network, self.room, self.tried = network, room, []
        for name in ("stride", "crop", "halo", "reach"):
            setattr(self, name, getattr(network, name))

    def forward(self, x):
        self.tried.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return self.network(x)


def _on_small_device(monkeypatch, model, room):
    full = _Full(model.network, room)

    class Runtime:
        device, name = torch.device("cpu"), "small"

        def __call__(self, image):
            return full(image)

    monkeypatch.setattr(engine, "make_runtime", lambda *a, **k: Runtime())
    return full


@pytest.mark.parametrize("room", [1, 2, 3, 4, 8])
def test_out_of_memory_halves_the_batch_and_goes_on(scene, monkeypatch, caplog, room):
    model = tiny_model()
    expected = scores(model, scene, tile=8)
    full = _on_small_device(monkeypatch, model, room)
    found = scores(model, scene, tile=8, batch_size=8)
    np.testing.assert_allclose(found.data, expected.data, atol=1e-5)  # the network is not folded here
    refused = [(place, size) for place, size in enumerate(full.tried) if size > room]
    assert bool(refused) == (room < 8)
    for place, size in refused:  # what was refused once is not tried again
        assert max(full.tried[place + 1 :]) <= size // 2
    assert len([text for text in caplog.messages if "out of memory" in text]) == len(refused)


def test_a_tile_too_large_for_the_device_is_refused_with_the_way_out(scene, monkeypatch):
    model = tiny_model()
    _on_small_device(monkeypatch, model, 0)
    with pytest.raises(DeviceError, match=r"cpu.*--tile"):
        scores(model, scene, tile=16, batch_size=2)


def _threads():
    return [one.name for one in threading.enumerate() if one.name.startswith("satseg-")]


def test_an_error_of_the_network_ends_all_threads(scene, monkeypatch):
    model = tiny_model()
    full = _on_small_device(monkeypatch, model, 8)
    full.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        scores(model, scene, tile=16, readers=2)
    assert not _threads()


def test_an_error_of_the_consumer_ends_all_threads(scene):
    model = tiny_model()
    plan = plan_tiles(scene.grid, tile=16, halo=model.halo, align=model.stride)
    bands = scan(model, scene, plan, SCORES, Working(readers=2, bands_ahead=1))
    next(bands)
    assert _threads()
    bands.close()
    assert not _threads()


def test_a_damaged_block_ends_all_threads(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(2, 200, 200), descriptions=BANDS, compress="deflate")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError):
        scores(tiny_model(), open_scene(path), tile=64)
    assert not _threads()
