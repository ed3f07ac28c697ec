"""Scores kept by validation: those of detection on the same ground, block by block, in any reads."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
import torch
from rasterio.windows import Window

import satseg
from satseg import fitting
from satseg.imagery.labels import LabelLayer
from satseg.imagery.tiling import round_up
from satseg.learning.ground.split import Ground
from satseg.learning.networks.forward import Standardize
from satseg.learning.training.feed import HeldTiles, stack_chips
from satseg.learning.training.held import HeldScores
from satseg.learning.training.judged import Judged
from satseg.learning.training.learner import cut
from tests.factories import noise, north_up, write_tiff
from tests.worlds import BANDS, squares, tiny_model


@pytest.mark.parametrize("crop", [0, 4])
@pytest.mark.parametrize(
    "held", [(), (Window(70, 20, 61, 55), Window(3, 1, 40, 30), Window(45, 1, 17, 9))], ids=["whole scene", "blocks"]
)
@torch.inference_mode()
def test_kept_scores_are_those_of_detection(tmp_path, crop, held):
    model, data = tiny_model(crop=crop, depth=2), (noise(2, 97, 143) * 9).astype("uint16")
    data[:, 30:41, 60:90] = 0
    scene = satseg.open_scene(
        write_tiff(tmp_path / "s.tif", data, nodata=0, transform=north_up(1.0), descriptions=BANDS)
    )
    left, bottom, _, top = scene.grid.bounds
    shapes = [shapely.box(left, bottom, left + 77.7, top), shapely.box(left + 20, bottom, left + 130, top - 33)]
    labels = geopandas.GeoDataFrame({"class_name": ["a", "b"]}, geometry=shapes, crs=scene.grid.crs.to_wkt())
    ground = Ground(scene, LabelLayer.build(labels, scene.grid, ("a", "b")), held=held)
    tiles = HeldTiles(
        [ground], tile=32, halo=model.network.halo, stride=model.network.stride,
        beyond=round_up(crop, model.network.stride), cache_bytes=2**20,
    )  # fmt: skip
    kept = HeldScores([ground], tiles, names=("a", "b"), crop=crop)
    normalize = Standardize(model.card.normalization)
    for number in range(len(tiles)):
        image, valid, truth, known = stack_chips([tiles[number]])
        scores = model.network(normalize(image, valid)).sigmoid()[0]
        planes = (cut(plane, crop)[0] for plane in (truth, valid[:, 0], known[:, 0]))
        kept.take(number, scores=scores, **dict(zip(("truth", "valid", "known"), planes, strict=True)))
    found = kept.judged()
    assert [one.scores.grid for one in found] == [scene.grid.crop(window) for window in ground.blocks]
    whole = satseg.predict(model, scene, halo="exact")
    for one, window in zip(found, ground.blocks, strict=True):
        expected = Judged.of(whole.crop(window), ground.labels)
        np.testing.assert_array_equal(one.scores.valid, expected.scores.valid)
        np.testing.assert_array_equal(one.known, expected.known)
        np.testing.assert_array_equal(one.truth[:, one.known], expected.truth[:, one.known])
        usable = one.scores.valid
        np.testing.assert_allclose(one.scores.data[:, usable], expected.scores.data[:, usable], atol=1e-5)


def test_training_predicts_no_held_ground_a_second_time(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "scores_of", lambda *args, **options: pytest.fail("predicted again"))
    model = satseg.train(
        [squares(tmp_path, height=150, width=200)], steps=2, rounds=1, chip=32, batch=2, width=4, fit_rules=True,
        device="cpu",
    )  # fmt: skip
    assert set(model.card.scores["rules_jaccard"]) == {"a", "b"}
