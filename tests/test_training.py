"""Training: the same steps and seed give the same weights, resumed or not, and something is learnt."""

from __future__ import annotations

import math

import geopandas
import pytest
import rasterio
import shapely
import torch

import satseg
from satseg.errors import BandError, InputError, LabelError, OutputError, UsageError
from satseg.learning.card import FileHash
from satseg.learning.ground.pairs import content_sha256
from satseg.learning.training import feed
from satseg.learning.training.curves import ThresholdCurve
from satseg.learning.training.feed import Budget
from satseg.options import LabelledScene, TrainOptions
from tests.factories import noise, north_up, write_tiff
from tests.worlds import BANDS, squares, tiny_model

FAST = {"chip": 32, "batch": 4, "width": 4, "depth": 2, "stem": 1, "rounds": 2, "precision": "fp32", "device": "cpu"}


def weights(model):
    return {name: value.clone() for name, value in model.network.state_dict().items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A scene with labels, of few pixels: nearly all of the time of two steps goes by them."""
    return squares(tmp_path_factory.mktemp("data"), height=120, width=150)


@pytest.fixture(scope="module")
def finished(pair, tmp_path_factory):
    """The file of a run of two steps, and its model."""
    path = tmp_path_factory.mktemp("finished") / "m.safetensors"
    return path, satseg.train([pair], output=path, steps=2, seed=7, **FAST)


def test_equal_steps_and_seed_give_equal_weights(pair):
    first, again, other = (weights(satseg.train([pair], steps=6, seed=seed, **FAST)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_killed_run_resumes_into_the_run_it_would_have_been(pair, tmp_path):
    data = [pair]

    def stop_halfway(stage, done, total, note):
        if stage == "train" and done >= 0.6:
            raise KeyboardInterrupt

    options = {"steps": 10, "seed": 1, **FAST}
    whole = weights(satseg.train(data, output=tmp_path / "whole.safetensors", **options))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        satseg.train(data, output=tmp_path / "parts.safetensors", progress=stop_halfway, **options)
    assert not (tmp_path / "parts.safetensors").exists()
    parts = weights(satseg.train(data, output=tmp_path / "parts.safetensors", resume=True, **options))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_resume_with_other_options_is_refused(pair, finished):
    with pytest.raises(UsageError, match="other options or data"):
        satseg.train([pair], output=finished[0], steps=4, seed=7, resume=True, **FAST)


def test_existing_model_needs_overwrite(pair, finished, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(finished[0].read_bytes())
    with pytest.raises(OutputError, match="exists"):
        satseg.train([pair], output=path, steps=2, **FAST)
    assert path.read_bytes() == finished[0].read_bytes()
    satseg.train([pair], output=path, steps=2, overwrite=True, **FAST)
    assert path.read_bytes() != finished[0].read_bytes()


@pytest.mark.slow
def test_two_classes_are_learnt_and_found_on_another_scene(tmp_path):
    model = satseg.train([squares(tmp_path, height=150, width=240, seed=1)], steps=160, learning_rate=2e-2, **FAST)
    path, truth = squares(tmp_path, name="other", height=120, width=150, x=510_000.0, seed=2)
    report = satseg.score(satseg.detect(model, path), truth)
    assert {name: score.jaccard > 0.8 for name, score in report.classes.items()} == {"a": True, "b": True}


def test_card_says_what_was_learnt_from(finished):
    card = finished[1].card
    assert card.band_names == BANDS
    assert card.class_names == ("a", "b")
    assert card.training.seed == 7
    assert card.training.steps == 2
    assert card.training.sources[0].crs == "EPSG:32633"
    assert card.gsd_m == pytest.approx(1.0, rel=1e-3)
    assert all(0 < item.threshold < 1 for item in card.classes)


def test_a_card_tells_its_data_from_all_others_by_content(tmp_path):
    learnt, held = squares(tmp_path), squares(tmp_path, name="held", height=70, width=111, x=600_000.0)

    def sources(labels, aoi=None):
        scene = LabelledScene(scene=str(learnt[0]), labels=str(labels), aoi=aoi and str(aoi))
        told = satseg.train([scene], valid_data=[held], steps=2, **FAST).card.training
        assert [one.files for one in told.validation] == [(FileHash.of(held[0]),)]
        return told.sources

    paths = {suffix: tmp_path / f"labels.{suffix}" for suffix in ("gpkg", "shp", "parquet")}
    first, *others = learnt[1].geometry
    parts = shapely.union(first, shapely.box(500_090, 4_999_870, 500_094, 4_999_876))
    learnt = learnt[0], learnt[1].set_geometry([parts, *others], crs=learnt[1].crs)
    assert {*learnt[1].geom_type} == {"Polygon", "MultiPolygon"}  # which a GeoPackage makes one of
    for suffix, path in paths.items():
        learnt[1].to_parquet(path) if suffix == "parquet" else learnt[1].to_file(path)
    found = [sources(path) for path in paths.values()]
    assert found[0] == found[1] == found[2]
    assert found[0][0].files == (FileHash.of(learnt[0]),)
    assert found[0][0].labels_sha256 == content_sha256(learnt[1], None)
    aoi = tmp_path / "aoi.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.box(*learnt[1].total_bounds)], crs=learnt[1].crs).to_file(aoi)
    assert sources(paths["gpkg"], aoi)[0].labels_sha256 != found[0][0].labels_sha256


def test_labels_differ_by_class_outline_order_and_crs(tmp_path):
    _, labels = squares(tmp_path)
    plain, nameless = ("+proj=tmerc +lon_0=10 +type=crs", "+proj=tmerc +lon_0=11 +type=crs")
    others = [
        labels, labels.iloc[::-1], labels.assign(class_name="a"), labels.iloc[1:],
        labels.set_geometry(labels.translate(1e-3, 0)), labels.set_crs("EPSG:32634", allow_override=True),
        labels.set_crs(plain, allow_override=True), labels.set_crs(nameless, allow_override=True),
        labels.set_crs(None, allow_override=True),
    ]  # fmt: skip
    found = [content_sha256(one, None) for one in others]
    assert len({*found}) == len(others)
    turned = labels.set_geometry(shapely.reverse(labels.geometry.array))
    assert content_sha256(turned, None) == content_sha256(labels.reset_index(drop=True), None) == found[0]
    several = labels.set_geometry([shapely.MultiPolygon([one]) for one in labels.geometry], crs=labels.crs)
    assert content_sha256(several, None) == found[0]
    empty = labels.assign(geometry=[None, shapely.Polygon(), *labels.geometry[2:]])
    assert content_sha256(empty, None) not in found


def test_a_card_names_the_versions_that_made_it(finished):
    versions = finished[1].card.versions
    assert {"satseg", "python", "torch", "lightning", "numpy", "rasterio", "gdal"} <= versions.keys()
    assert versions["gdal"] == rasterio.__gdal_version__
    assert (finished[1].card.training.validation, finished[1].card.training.weights) == ((), None)


def test_scenes_of_different_gsd_are_brought_to_the_coarsest(tmp_path):
    fine = squares(tmp_path, name="fine", height=200, width=240, gsd=0.5)
    coarse = squares(tmp_path, name="coarse", height=120, width=150, gsd=1.0, x=600_000.0)
    assert satseg.train([fine, coarse], steps=2, **FAST).card.gsd_m == pytest.approx(1.0, rel=1e-2)


def test_unplaced_scenes_can_be_learnt_from(tmp_path):
    model = satseg.train([squares(tmp_path, height=120, width=150, crs=None)], steps=2, **FAST)
    assert model.card.gsd_m is None


def test_bad_data_is_refused_before_training(tmp_path):
    path, labels = squares(tmp_path)
    off = labels.set_geometry(labels.translate(1e6, 0))
    pixels, place = noise(2, 200, 330), north_up(1.0)
    nodata = write_tiff(tmp_path / "nodata.tif", pixels * 0, transform=place, nodata=0, descriptions=BANDS)
    other = write_tiff(tmp_path / "other.tif", pixels, transform=place, descriptions=("blue", "pan"))
    cases = [
        ([], {}, UsageError, "no training data"),
        ([(path, off)], {}, LabelError, "no label|overlap|touch"),
        ([(path, labels.iloc[:0])], {}, LabelError, "label"),
        ([(path, labels)], {"classes": ("a", "c")}, LabelError, "'c'"),
        ([(nodata, labels)], {}, InputError, "valid pixel"),
        ([(path, labels), (other, labels)], {}, BandError, "nir"),
        ([(path, labels)], {"loss": "jacard"}, UsageError, "jaccard"),
        ([(path, labels)], {"device": "tpu"}, UsageError, "tpu"),
    ]
    for data, options, kind, said in cases:
        with pytest.raises(kind, match=said):
            satseg.train(data, **{**FAST, "steps": 2, **options})


def test_validation_on_training_ground_is_refused(pair):
    with pytest.raises(LabelError, match="shares"):
        satseg.train([pair], valid_data=[pair], steps=2, **FAST)


def test_nan_batch_is_skipped_and_counted(pair, monkeypatch):
    from satseg.learning.training import learner

    def poisoned(options):
        calls = iter(range(1000))
        return lambda logits, target, labelled: logits.mean() * (math.nan if next(calls) == 2 else 1.0)

    monkeypatch.setattr(learner, "loss_of", poisoned)
    model = satseg.train([pair], steps=5, **FAST)
    assert model.card.scores["skipped_batches"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in weights(model).values() if value.is_floating_point())


def test_budget_counts_steps_or_minutes():
    assert Budget(10, None).share(4) == pytest.approx(0.4)
    assert Budget(None, 1.0, before_s=45).share(0) == pytest.approx(0.75, abs=0.01)
    assert Budget(10, None).share(99) == 1.0
    assert Budget(None, 600.0, most_steps=20).share(5) == pytest.approx(0.25, abs=0.01)
    assert Budget(10, None, most_steps=5).share(5) == 0.5  # steps asked for are steps made


def test_minutes_end_when_the_ground_has_been_seen_often_enough(pair, monkeypatch):
    monkeypatch.setattr(feed, "LEAST_STEPS", 3)
    data = [pair]
    made = satseg.train(data, minutes=5, passes=1e-3, **FAST)
    assert made.card.training.steps == 3
    assert satseg.plan(data, minutes=5, passes=1e-3, **FAST).most_steps == 3
    long = satseg.plan(data, minutes=5, passes=50, **FAST)
    assert f"5 minutes, {long.most_steps:,} steps at most, on cpu" in long.to_text()
    assert satseg.plan(data, minutes=5, passes=0, **FAST).most_steps is None
    assert satseg.plan(data, steps=5, **FAST).most_steps is None


def test_rounds_that_are_more_than_the_steps_do_not_make_more_of_them(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "LEAST_STEPS", 3)
    data, options = [pair], {**FAST, "rounds": 8, "minutes": 5, "passes": 1e-3}
    made = satseg.train(data, output=tmp_path / "m.safetensors", **options)
    assert made.card.training.steps == 3
    again = satseg.train(data, output=tmp_path / "m.safetensors", resume=True, **options)
    assert again.card.training.steps == 3  # nor does a run that had ended go on


def test_rounds_that_are_left_when_time_is_up_take_no_steps(pair):
    made = satseg.train([pair], **{**FAST, "rounds": 50, "minutes": 1e-6})
    assert made.card.training.steps == 1


def test_most_steps_see_all_of_the_ground_as_often_as_asked_on_all_ranks_together():
    options = TrainOptions(passes=60, chip=100, batch=10, accumulate=2)
    assert feed.most_steps(options, 4e6) == 60 * 4e6 / (100 * 100 * 10 * 2)
    assert feed.most_steps(options, 4e6, ranks=2) == feed.LEAST_STEPS
    assert feed.most_steps(options, 4e7, ranks=2) == 6000


def test_threshold_curve_equals_direct_counts():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 2, 17, 23, generator=generator)
    target = (torch.rand(3, 2, 17, 23, generator=generator) + scores > 1.1).to(torch.uint8)
    labelled = torch.rand(3, 1, 17, 23, generator=generator) > 0.2
    curve = ThresholdCurve(2)
    for start in range(3):
        curve.update(scores[start : start + 1], target[start : start + 1], labelled[start : start + 1])
    for k in range(2):
        for step in (10, 64, 128, 200):
            usable = labelled[:, 0]
            said, true = (scores[:, k] >= step / 256)[usable], (target[:, k] > 0)[usable]
            expected = (said & true).sum().double() / (said | true).sum()
            assert curve.jaccard()[k, step] == pytest.approx(float(expected), abs=1e-9)
    told = curve.told()
    assert [len(row) for row in told] == [19, 19]
    assert told[1][9] == pytest.approx(float(curve.jaccard()[1, 128]), abs=5e-5)


def test_absent_class_has_no_score_and_a_neutral_threshold():
    curve = ThresholdCurve(1)
    curve.update(torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool))
    thresholds, scores = curve.best()
    assert thresholds == [0.5]
    assert math.isnan(scores[0])
    assert curve.told() == [[None] * 19]


def test_untrained_model_survives_its_file(tmp_path):
    model = tiny_model()
    model.save(tmp_path / "m.safetensors")
    loaded = satseg.load_model(tmp_path / "m.safetensors", device="cpu")
    assert loaded.card.class_names == model.card.class_names
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(loaded).items())


def test_loss_is_refused_before_data_are_read(tmp_path):
    for options in ({"loss": "jacard"}, {"loss_params": {"alpha": 0.3}}, {"loss": "lovasz", "smoothing": 0.1}):
        with pytest.raises(UsageError, match="loss"):
            satseg.train([(tmp_path / "absent.tif", tmp_path / "absent.gpkg")], steps=2, **FAST, **options)


def test_options_of_the_loss_reach_it(pair):
    data, seen = [pair], []
    call = {**FAST, "steps": 3, "rounds": 1}
    for options in ({}, {"boundary": 3.0}, {"smoothing": 0.2}, {"loss": "bce_plus_dice", "loss_params": {"weight": 2}}):
        seen.append(weights(satseg.train(data, **call, **options))["head.weight"])
    assert all(not torch.equal(seen[i], seen[j]) for i in range(4) for j in range(i))
