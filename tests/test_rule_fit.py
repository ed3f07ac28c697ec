"""Rules fitted on labelled ground: what helps is found, what does not is not, and the weights stay."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine

import satseg
from satseg.classes import ClassItem, ShapeRule
from satseg.errors import LabelError, UsageError
from satseg.grid import Grid
from satseg.imagery.labels import LabelLayer
from satseg.learning.networks.model import load_model
from satseg.learning.training.curves import USUAL
from satseg.learning.training.judged import Judged
from satseg.learning.training.rule_fit import fit_rules, jaccards
from satseg.options import DataOptions
from satseg.raster import Raster
from tests.worlds import squares, tiny_model

GRID = Grid(90, 120, Affine(2, 0, 500_000, 0, -2, 5_000_000), 32633)


def item(name: str = "a", number: int = 1, **rules: object) -> ClassItem:
    return ClassItem(name=name, id=number, color="#336699", **rules)


def blocks(side: int) -> np.ndarray:
    """Squares of `side` pixels with their centres 20 pixels apart."""
    mask, half = np.zeros(GRID.shape, bool), side // 2
    for row in range(15, 80, 20):
        for col in range(15, 110, 20):
            mask[row - half : row - half + side, col - half : col - half + side] = True
    return mask


def judged(found: np.ndarray, truth: np.ndarray, known: np.ndarray | None = None) -> Judged:
    """Scores of 0.9 inside `found` (K, H, W) and 0.1 outside."""
    names = tuple("abc"[: len(found)])
    scores = Raster(np.where(found, 0.9, 0.1).astype(np.float32), GRID, names)
    return Judged(scores, truth.astype(np.uint8), np.ones(GRID.shape, bool) if known is None else known)


def test_what_is_found_too_small_grows_by_as_much():
    one = judged(blocks(8)[None], blocks(12)[None])
    (fitted,) = fit_rules([item()], [one])
    assert fitted.buffer_m == 4.0  # two pixels of 2 m
    assert jaccards([fitted], [one])[0] > jaccards([item()], [one])[0] + 0.3


def test_what_is_found_too_large_shrinks():
    (fitted,) = fit_rules([item(buffer_m=3.0)], [judged(blocks(12)[None], blocks(10)[None])])
    assert fitted.buffer_m == -2.0


def test_specks_and_pores_ask_for_least_sizes():
    truth = blocks(12)
    found = truth.copy()
    found[2:90:6, 2:120:6] ^= True  # specks outside, pores inside
    (fitted,) = fit_rules([item()], [judged(found[None], truth[None])])
    pixel = GRID.pixel_area_m2()
    assert fitted.min_area_m2 == 4 * pixel
    assert fitted.min_hole_m2 == 4 * pixel
    assert fitted.buffer_m == 0


def test_what_is_right_already_gets_no_rules():
    one = item(min_area_m2=3.0, min_sure_m2=2.0, simplify_m=1.0)
    (fitted,) = fit_rules([one], [judged(blocks(10)[None], blocks(10)[None])])
    assert fitted == one.model_copy(update={"simplify_m": 0.0, "threshold": round(256 * USUAL) / 256})


def test_a_class_that_is_not_there_stays_as_it_was():
    one = item(threshold=0.3, buffer_m=1.5)
    assert fit_rules([one], [judged(blocks(6)[None], np.zeros((1, *GRID.shape)))]) == (one,)


def test_unknown_ground_does_not_count():
    known = np.zeros(GRID.shape, bool)
    known[:, :60] = True
    found, truth = blocks(10), blocks(10)
    found[:, 60:] = ~found[:, 60:]
    assert jaccards([item()], [judged(found[None], truth[None], known)])[0] == 1


def test_thresholds_are_fitted_over_all_scenes_together():
    truth = blocks(10)[None]
    scores = np.where(truth, 0.35, 0.1).astype(np.float32)
    ground = [Judged(Raster(scores, GRID, ("a",)), truth.astype(np.uint8), np.ones(GRID.shape, bool))] * 2
    (fitted,) = fit_rules([item()], ground)
    assert 0.1 < fitted.threshold <= 0.35
    assert jaccards([fitted], ground)[0] == 1


def test_erasing_is_kept_where_it_helps_and_left_out_where_it_costs():
    roofs, ground = blocks(8), blocks(16)
    apart = judged(np.stack([roofs, ground]), np.stack([roofs, ground & ~roofs]))
    over = judged(np.stack([roofs, ground]), np.stack([roofs, ground]))
    classes = [item("a", 1, erases="all"), item("b", 2)]
    assert fit_rules(classes, [apart])[0].erases == "all"
    assert fit_rules(classes, [over])[0].erases == ()


def test_what_wrongly_becomes_another_class_no_longer_does():
    squares_, none = blocks(8), np.zeros(GRID.shape, bool)
    classes = [item("a", 1, becomes=(ShapeRule(to="b", rounder_than=0.3),)), item("b", 2)]
    wrong = judged(np.stack([squares_, none]), np.stack([squares_, none]))
    right = judged(np.stack([squares_, none]), np.stack([none, squares_]))
    assert fit_rules(classes, [wrong])[0].becomes == ()
    assert fit_rules(classes, [right])[0].becomes == classes[0].becomes


def test_labels_and_scores_are_laid_together():
    labels = geopandas.GeoDataFrame(
        {"class_name": ["a"]}, geometry=[shapely.box(500_000, 4_999_900, 500_010, 5_000_000)], crs=32633
    )
    layer = LabelLayer.build(labels, GRID, ("a",))
    one = Judged.of(Raster(np.zeros((1, *GRID.shape), np.float32), GRID, ("a",)), layer)
    assert one.truth.sum() == 50 * 5
    assert one.known.all()


def test_refit_changes_rules_and_not_weights(tmp_path):
    model, (scene, labels) = tiny_model(), squares(tmp_path, height=62, width=91)
    fitted = satseg.refit(model, [(scene, labels)], output=tmp_path / "new.safetensors")
    assert load_model(tmp_path / "new.safetensors", device="cpu").card.classes == fitted.card.classes
    told = fitted.card.scores["rules_jaccard"]
    assert all(told[name]["after"] >= told[name]["before"] - 0.002 for name in "ab")
    assert fitted.network is model.network
    before = satseg.predict(model, scene).data
    np.testing.assert_array_equal(satseg.predict(fitted, scene).data, before)


def test_refit_refuses_what_cannot_be_fitted(tmp_path):
    model, (scene, labels) = tiny_model(), squares(tmp_path, height=60, width=70)
    with pytest.raises(UsageError, match="no data"):
        satseg.refit(model, [])
    with pytest.raises(UsageError, match=r"\.safetensors only"):
        satseg.refit(model, [(scene, labels)], output=tmp_path / "new.pt")
    with pytest.raises(LabelError, match="the model finds"):
        satseg.refit(model, [(scene, labels.assign(class_name="moon"))], options=DataOptions(field="class_name"))


def test_the_command_writes_a_new_model(tmp_path, run):
    tiny_model().save(tmp_path / "m.safetensors")
    scene, labels = squares(tmp_path, height=60, width=70)
    labels.to_file(tmp_path / "l.gpkg")
    out = tmp_path / "new.safetensors"
    said = run("refit", tmp_path / "m.safetensors", "--data", scene, tmp_path / "l.gpkg", "-o", out).done()
    assert "class   a" in said.out
    assert load_model(out, device="cpu").classes == ("a", "b")
    run("refit", tmp_path / "m.safetensors", "-o", out, "--overwrite").refused(2, "E-TRN-001")


def test_training_fits_rules_where_asked(tmp_path):
    scene, labels = squares(tmp_path, height=120, width=150)
    model = satseg.train([(scene, labels)], steps=2, rounds=1, chip=32, batch=2, width=4, fit_rules=True, device="cpu")
    assert set(model.card.scores["rules_jaccard"]) == {"a", "b"}
