"""What training is fed with: validation sees ground as detection will."""

from __future__ import annotations

import os

import geopandas
import numpy as np
import pytest
import shapely
import torch
from rasterio.windows import Window

import satseg
from satseg.imagery.labels import LabelLayer
from satseg.imagery.tiling import round_up
from satseg.learning.ground.split import Ground
from satseg.learning.networks.forward import Standardize
from satseg.learning.training import feed
from satseg.learning.training.feed import HeldTiles, stack_chips
from tests.factories import noise, north_up, write_tiff
from tests.worlds import BANDS, tiny_model


@pytest.mark.parametrize("crop", [0, 4])
@pytest.mark.parametrize("held", [(), (Window(70, 20, 61, 55),)], ids=["whole scene", "block"])
@torch.inference_mode()
def test_validation_scores_are_those_of_detection_to_the_edge_of_the_scene(tmp_path, crop, held):
    """Tiles that read on into nothing beyond the edge told less of small scenes: 0.96 where detection had 0.99."""
    model = tiny_model(crop=crop, depth=2)
    path = write_tiff(tmp_path / "s.tif", noise(2, 97, 143), transform=north_up(1.0), descriptions=BANDS)
    scene = satseg.open_scene(path)
    labels = geopandas.GeoDataFrame(
        {"class_name": ["a", "b"]}, geometry=[shapely.box(*scene.grid.bounds)] * 2, crs=scene.grid.crs.to_wkt()
    )
    ground = Ground(scene, LabelLayer.build(labels, scene.grid, ("a", "b")), held=held)
    expected = satseg.predict(model, scene, halo="exact").data
    normalize, network = Standardize(model.card.normalization), model.network
    tiles = HeldTiles(
        [ground], tile=64, halo=network.halo, stride=network.stride, beyond=round_up(crop, network.stride),
        cache_bytes=2**20,
    )  # fmt: skip
    window = held[0] if held else scene.grid.window
    found = []
    for number in range(len(tiles)):
        image, valid, _, labelled = stack_chips([tiles[number]])
        scores, kept = network(normalize(image, valid)).sigmoid()[0].numpy(), labelled[0, 0].numpy()
        inner = slice(crop, -crop or None)
        found.append(scores[:, kept[inner, inner]])
    rows = slice(window.row_off, window.row_off + window.height)
    cols = slice(window.col_off, window.col_off + window.width)
    found, expected = np.concatenate(found, axis=1), expected[:, rows, cols].reshape(2, -1)
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(expected, axis=1), atol=1e-5)


def test_validation_reads_no_more_than_it_needs(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(2, 300, 200), transform=north_up(1.0), descriptions=BANDS)
    scene = satseg.open_scene(path)
    labels = geopandas.GeoDataFrame(
        {"class_name": ["a"]}, geometry=[shapely.box(*scene.grid.bounds)], crs=scene.grid.crs.to_wkt()
    )
    ground = Ground(scene, LabelLayer.build(labels, scene.grid, ("a",)), held=(Window(16, 80, 40, 50),))
    tiles = HeldTiles([ground], tile=512, halo=32, stride=8, beyond=0, cache_bytes=2**20)
    assert [tiles[number].labelled.sum() for number in range(len(tiles))] == [40 * 50]
    assert tiles[0].image.shape == (2, 56 + 2 * 32, 56 + 32)  # rows 80 to 136, columns 16 to 56, and the scene's edge


def test_held_blocks_that_lie_close_are_read_together_and_counted_once(tmp_path):
    """Apart, the blocks of a small scene were read with 36 times their own pixels."""
    path = write_tiff(tmp_path / "s.tif", noise(2, 300, 200), transform=north_up(1.0), descriptions=BANDS)
    scene = satseg.open_scene(path)
    labels = geopandas.GeoDataFrame(
        {"class_name": ["a"]}, geometry=[shapely.box(*scene.grid.bounds)], crs=scene.grid.crs.to_wkt()
    )
    held = (*(Window(col, row, 20, 16) for row in range(0, 160, 48) for col in (8, 72, 140)), Window(0, 283, 9, 17))
    ground = Ground(scene, LabelLayer.build(labels, scene.grid, ("a",)), held=held)
    tiles = HeldTiles([ground], tile=64, halo=64, stride=8, beyond=0, cache_bytes=2**20)
    chips = [tiles[number] for number in range(len(tiles))]
    assert max(side for chip in chips for side in chip.image.shape[1:]) <= 64 + 2 * 64
    read = sum(chip.labelled.size for chip in chips)
    assert read < 3 * 300 * 200 < sum((w.height + 128) * (w.width + 128) for w in held) / 1.2
    whole = scene.read().data
    seen = np.concatenate([chip.image[:, chip.labelled] for chip in chips], axis=1)
    parts = [whole[:, w.row_off : w.row_off + w.height, w.col_off : w.col_off + w.width] for w in held]
    truth = np.concatenate([part.reshape(2, -1) for part in parts], axis=1)
    assert seen.shape == truth.shape
    np.testing.assert_array_equal(seen[:, np.lexsort(seen)], truth[:, np.lexsort(truth)])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files by /proc")
def test_validation_of_many_scenes_keeps_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "OPEN_GROUNDS", 2)
    grounds = []
    for number in range(6):
        path = write_tiff(tmp_path / f"{number}.tif", noise(2, 40, 50, seed=number), transform=north_up(1.0))
        scene = satseg.open_scene(path)
        labels = geopandas.GeoDataFrame(
            {"class_name": ["a"]}, geometry=[shapely.box(*scene.grid.bounds)], crs=scene.grid.crs.to_wkt()
        )
        grounds.append(Ground(scene, LabelLayer.build(labels, scene.grid, ("a",))))
    tiles = HeldTiles(grounds, tile=64, halo=8, stride=8, beyond=0, cache_bytes=2**20)
    for number, ground in enumerate(grounds):
        np.testing.assert_array_equal(tiles[number].image[:, :40, :50], ground.scene.read().data)
    held = [os.path.realpath(link.path) for link in os.scandir("/proc/self/fd")]
    assert 0 < sum(str(tmp_path) in path for path in held) <= 2


@pytest.mark.parametrize("ranks", [2, 3, 40])
def test_ranks_share_the_validation_each_pixel_once_and_all_take_as_many_tiles(tmp_path, ranks):
    path = write_tiff(tmp_path / "s.tif", noise(2, 143, 97), transform=north_up(1.0), descriptions=BANDS)
    scene = satseg.open_scene(path)
    labels = geopandas.GeoDataFrame(
        {"class_name": ["a"]}, geometry=[shapely.box(*scene.grid.bounds)], crs=scene.grid.crs.to_wkt()
    )
    ground = Ground(scene, LabelLayer.build(labels, scene.grid, ("a",)))
    how = {"tile": 64, "halo": 8, "stride": 8, "beyond": 0, "cache_bytes": 2**20}
    shares = [HeldTiles([ground], **how, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    chips = [share[number] for share in shares for number in range(len(share))]
    assert sum(chip.labelled.sum() for chip in chips) == 143 * 97
    alone = HeldTiles([ground], **how)
    seen = sorted(chip.image[:, chip.labelled].tobytes() for chip in chips if chip.labelled.any())
    assert seen == sorted(alone[n].image[:, alone[n].labelled].tobytes() for n in range(len(alone)))
