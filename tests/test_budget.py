"""Tiles and their cost: chosen within limits, told before work starts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window

from satseg.errors import OutputError, UsageError
from satseg.imagery.scene import open_scene
from satseg.learning.detection import budget
from satseg.learning.detection.budget import (
    MIB,
    MOST_WORK,
    activation_bytes,
    check_room,
    choose_tiles,
    disk_bytes,
    estimate,
    strip_rows,
)
from satseg.learning.detection.engine import Working
from satseg.learning.networks.forward import Wanted
from tests.factories import north_up, write_tiff
from tests.worlds import BANDS, tiny_model

WANTED = Wanted(np.full(2, 0.5, np.float32))


def sparse_scene(path, *, height, width, block=512):
    """A scene of any size in a few kilobytes: blocks that were never written take none."""
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=2, dtype="uint16", crs="EPSG:32633",
        transform=north_up(0.5), tiled=True, blockxsize=block, blockysize=block, SPARSE_OK="TRUE", BIGTIFF="YES",
    ) as out:  # fmt: skip
        out.descriptions = BANDS
    return open_scene(path)


@pytest.mark.parametrize("halo", [16, 48, 80, 112])
def test_tiles_of_a_large_scene_cost_at_most_what_is_promised(tmp_path, halo):
    scene = sparse_scene(tmp_path / "s.tif", height=30_000, width=20_000)
    plan, memory = choose_tiles(tiny_model(), scene, scene.grid.window, WANTED, Working(), halo=halo)
    assert plan.work() <= MOST_WORK
    assert memory < 4096 * MIB


def test_a_limit_on_memory_lowers_row_bands(tmp_path):
    model, scene = tiny_model(), sparse_scene(tmp_path / "s.tif", height=200_000, width=100_000, block=256)
    free, needed = choose_tiles(model, scene, scene.grid.window, WANTED, Working(), halo=80)
    limit = int(needed * 0.75)
    tight, less = choose_tiles(model, scene, scene.grid.window, WANTED, Working(), halo=80, max_memory=limit)
    assert less <= limit < needed
    assert tight.tile < free.tile
    assert tight.work() > free.work()


def test_a_limit_that_no_tile_keeps_is_refused_with_what_is_needed(tmp_path):
    scene = sparse_scene(tmp_path / "s.tif", height=2000, width=2000)
    with pytest.raises(UsageError, match=r"--max-memory 1 MiB is too little.*take"):
        choose_tiles(tiny_model(), scene, scene.grid.window, WANTED, Working(), halo=16, max_memory=MIB)


def test_a_given_tile_is_taken_as_it_is(tmp_path):
    scene = sparse_scene(tmp_path / "s.tif", height=500, width=700)
    plan, _ = choose_tiles(tiny_model(), scene, scene.grid.window, WANTED, Working(), halo=16, tile=96)
    assert (plan.tile, plan.tile_width) == (96, 96)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 4000), (4000, 3), (63, 65)])
def test_scenes_of_any_shape_have_tiles(tmp_path, height, width):
    scene = open_scene(write_tiff(tmp_path / "s.tif", np.ones((2, height, width), np.uint8), descriptions=BANDS))
    plan, _ = choose_tiles(tiny_model(), scene, scene.grid.window, WANTED, Working(), halo=16)
    assert len(plan) >= 1


def test_strips_are_rows_of_blocks(tmp_path):
    tall = sparse_scene(tmp_path / "a.tif", height=900, width=900)
    assert strip_rows(tall) == 512
    striped = open_scene(write_tiff(tmp_path / "b.tif", np.ones((2, 90, 40), np.uint8), descriptions=BANDS))
    assert strip_rows(striped) == 256
    assert strip_rows(tall.at_gsd(0.7)) == 256


def test_more_filters_take_more_activations_and_the_network_is_left_alone():
    small, large = tiny_model(width=4), tiny_model(width=16)
    assert 0 < activation_bytes(small) < activation_bytes(large)
    assert not any(module._forward_hooks for module in small.network.modules())


def test_batches_follow_the_free_memory_of_the_smallest_gpu(tmp_path, monkeypatch):
    model, scene = tiny_model(), sparse_scene(tmp_path / "s.tif", height=700, width=900)
    plan, _ = choose_tiles(model, scene, scene.grid.window, WANTED, Working(), halo=16, tile=128)
    gpus = [torch.device("cuda", number) for number in (0, 1)]
    tile = 160 * 160 * (activation_bytes(model) + 4 * 2)
    for free, batch in ((tile, 1), (7 * tile, 3), (10**12, 16)):
        monkeypatch.setattr(budget, "free_bytes", lambda gpu, free=free: free if gpu.index else 10**12)
        assert budget.automatic_batch(model, plan, gpus) == batch
    assert budget.automatic_batch(model, plan, [torch.device("cpu")]) == 1


def test_the_estimate_tells_work_time_and_room(tmp_path):
    model, scene = tiny_model(), sparse_scene(tmp_path / "s.tif", height=700, width=900)
    area = Window(100, 50, 640, 512)
    plan, memory = choose_tiles(model, scene, area, WANTED, Working(), halo=16, tile=128)
    disk = disk_bytes(plan, 2, dataclasses.replace(WANTED, scores="float32"), mask=True, ledger=True)
    told = estimate(model, plan, Working(), memory=memory, disk=disk, timed=True)
    assert (told.pixels, told.tiles) == (640 * 512, len(plan))
    assert told.work == pytest.approx(plan.work())
    assert told.seconds > 0
    for word in ("0.3 Mpx", "tiles", "x through the network", "memory", "disk", "about"):
        assert word in str(told)


def test_a_full_disk_is_refused_before_work_with_both_sizes(tmp_path):
    with pytest.raises(OutputError, match=r"need about .* are free") as caught:
        check_room([tmp_path / "x.gpkg"], 2**60)
    assert caught.value.exit_code == 4
    check_room([tmp_path / "x.gpkg"], 1)
    check_room([], 2**60)
