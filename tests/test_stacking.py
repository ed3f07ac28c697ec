"""Families of folds made one ensemble: what is read, drawn, weighed and written."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest

import satseg
from satseg.crs import parse_crs
from satseg.errors import InputError, ModelError, OutputError, UsageError
from satseg.grid import Grid
from satseg.imagery.writer import RasterWriter
from satseg.learning.networks.ensemble_file import EnsembleFile, combined
from satseg.learning.training.families import HIGHEST, LOWEST, Families, logits_of
from satseg.learning.training.fold_report import FoldModel, FoldReport, FoldScene
from satseg.learning.training.out_of_fold import pooled
from tests.factories import UTM, north_up
from tests.worlds import tiny_model

NAMES = ("a", "b")


def family(folder, scenes, *, names=NAMES, folds=None, file="fold{}.safetensors", gsd=1.0, levels=False):
    """Write the folder of a training in folds: `scenes` is {name: (scores, truth)}, both (K, H, W)."""
    (folder / "out_of_fold").mkdir(parents=True)
    told = []
    for number, (name, (scores, truth)) in enumerate(scenes.items()):
        grid = Grid(height=scores.shape[1], width=scores.shape[2], transform=north_up(gsd), crs=parse_crs(UTM))
        for ending, data, nodata in (("", scores.astype("float16"), np.nan), (".truth", truth.astype("uint8"), 255)):
            path = folder / "out_of_fold" / f"{name}{ending}.tif"
            with RasterWriter(path, grid=grid, names=names, dtype=data.dtype, nodata=nodata) as out:
                out.write(data, grid.window)
        fold = (folds or {}).get(name, number % 2 + 1)
        told.append(FoldScene(name=name, group=name, fold=fold, scores=f"out_of_fold/{name}.tif",
                              truth=f"out_of_fold/{name}.truth.tif"))  # fmt: skip
    models = tuple(FoldModel(file=file.format(n), weights_sha256=f"{n}" * 64) for n in (1, 2))
    model = tiny_model(classes=names)
    if levels:
        training = model.card.training.model_copy(update={"options": {"data": {"normalize": "scene"}}})
        model = replace(model, card=model.card.model_copy(update={"training": training}))
    for one in models:
        model.save(folder / one.file, overwrite=True)
    FoldReport(models=models, scenes=tuple(told), classes=pooled(names, [])).write(folder)
    return folder


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def world(seed=0, count=4, height=140, width=97):
    """Truth of two classes, one rare, and logits of two members with noise of their own: one good at each class."""
    rng = np.random.default_rng(seed)
    members = ({}, {})
    for number in range(count):
        truth = np.stack([rng.random((height, width)) < share for share in (0.3, 0.02)]).astype(int)
        signal = np.where(truth == 1, 3.0, -3.0)
        for place, member in enumerate(members):
            noise = np.array([[0.6, 3.0], [3.0, 0.6]][place])[:, None, None]
            told = truth.copy()
            told[:, :3] = 255  # ground that nobody labelled
            member[f"s{number}"] = (sigmoid(signal + rng.normal(0, 1, truth.shape) * noise), told)
    return members


@pytest.fixture
def two(tmp_path):
    first, second = world()
    return family(tmp_path / "first", first), family(tmp_path / "second", second)


def test_each_class_follows_the_member_that_knows_it(two, tmp_path):
    report = satseg.stack(two, tmp_path / "team.toml")
    a, b = report.classes
    assert a.weights[0] > 3 * a.weights[1]
    assert b.weights[1] > 3 * b.weights[0]
    for item in report.classes:
        assert item.is_stacked
        assert item.stacked > max(*item.alone, item.mean) - 0.01
    content = tomllib.loads((tmp_path / "team.toml").read_text())
    assert [member["path"] for member in content["members"]] == [
        "first/fold1.safetensors", "first/fold2.safetensors", "second/fold1.safetensors", "second/fold2.safetensors"
    ]  # fmt: skip
    spread = content["stacker"]["a"]["weights"]
    assert spread == pytest.approx([a.weights[0] / 2] * 2 + [a.weights[1] / 2] * 2)
    assert content["thresholds"]["b"] == b.threshold
    rows = report.table().splitlines()
    assert rows[0].split()[:3] == ["class", "first", "second"]
    assert [row.split()[0] for row in rows[1:]] == ["a", "b", "mean"]
    assert json.loads(json.dumps(report.to_dict()))["classes"][0]["name"] == "a"


def test_the_sample_stands_for_the_ground(tmp_path):
    first, second = world(count=2, width=61)
    group = Families.open([family(tmp_path / "x", first), family(tmp_path / "y", second)])
    for pixels in (40, 10**9):
        for k, sample in enumerate(group.samples(pixels=pixels)):
            counts = np.zeros(2)
            for _, strip in group.strips(scored=False):
                inside = strip.truth[k][strip.usable].sum()
                counts += (strip.usable.sum() - inside, inside)
            for kind in (0, 1):
                own = sample.truth == kind
                assert sample.weights[own].sum() == pytest.approx(counts[kind], rel=0.7 if pixels == 40 else 1e-9)
                if pixels == 40:
                    assert 10 < own.sum() < 90, "forty at a chance each"
            assert sample.logits.shape == (len(sample.truth), 2)
    first, again, other = (group.samples(pixels=40, seed=seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first.logits, again.logits)
    assert len(again.truth) != len(other.truth) or not np.array_equal(again.logits, other.logits)


def test_unlabelled_ground_counts_for_nothing(two):
    for (_, top), strip in Families.open(two).strips():
        assert strip.usable[3 if top == 0 else 0 :].all()
        if top == 0:
            assert not strip.usable[:3].any()


def test_logits_are_of_scores_and_have_ends():
    scores = np.array([0.0, 1e-9, 0.25, 0.5, 1.0, np.nan], np.float32)
    logits = logits_of(scores)
    assert logits[[0, 1, 5]] == pytest.approx([LOWEST] * 3)
    assert logits[2:5] == pytest.approx([np.log(1 / 3), 0.0, HIGHEST], abs=1e-6)
    exact = np.linspace(LOWEST, HIGHEST - 0.5, 60)
    halves = sigmoid(exact).astype(np.float16)
    assert logits_of(halves) == pytest.approx(exact, abs=0.3), "what float16 keeps of them"


def test_a_class_that_is_nowhere_keeps_the_mean(tmp_path):
    first, second = world(count=2)
    for scenes in (first, second):
        for _, truth in scenes.values():
            truth[1][truth[1] == 1] = 0
    folders = family(tmp_path / "x", first), family(tmp_path / "y", second)
    report = satseg.stack(folders, tmp_path / "t.toml")
    assert [item.is_stacked for item in report.classes] == [True, False]
    assert (report.classes[1].mean, report.classes[1].threshold) == (None, 0.5)
    assert "b" not in tomllib.loads((tmp_path / "t.toml").read_text())["stacker"]


def test_a_class_that_is_never_found_keeps_the_mean(tmp_path):
    first, second = world(count=2)
    for scenes in (first, second):
        for scores, _ in scenes.values():
            scores[1] = 0.0
    folders = family(tmp_path / "x", first), family(tmp_path / "y", second)
    report = satseg.stack(folders, tmp_path / "t.toml")
    assert report.classes[1].mean == report.classes[1].stacked
    assert not report.classes[1].is_stacked, "no better than the mean"


def test_the_name_of_the_output_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.toml"):
        satseg.stack([tmp_path / "none", tmp_path / "nor"], tmp_path / "t.gpkg")


def test_families_that_do_not_fit_are_refused(two, tmp_path):
    second = world()[1]
    scenes = {f"other{name}": pair for name, pair in second.items()}
    moved = {name: (s, 1 - t.clip(0, 1)) for name, (s, t) in second.items()}
    folds = dict.fromkeys(("s0", "s1"), 1) | dict.fromkeys(("s2", "s3"), 2)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "folds.json").write_text('{"models": 3}')
    cases = [
        ([two[0]], UsageError, "E-STK-002"),
        ([two[0], two[0]], UsageError, "E-STK-002"),
        ([two[0], family(tmp_path / "c", second, names=("a", "c"))], UsageError, "E-STK-003"),
        ([two[0], family(tmp_path / "s", scenes)], UsageError, "E-STK-004"),
        ([two[0], family(tmp_path / "f", second, folds=folds)], UsageError, "E-STK-005"),
        ([two[0], family(tmp_path / "g", second, gsd=2.0)], InputError, "E-STK-006"),
        ([two[0], family(tmp_path / "l", moved)], InputError, "E-STK-007"),
        ([two[0], family(tmp_path / "o", second, levels=True)], ModelError, "E-MOD-046"),
        ([two[0], tmp_path / "absent"], InputError, "E-IN-331"),
        ([two[0], tmp_path / "broken"], InputError, "E-IN-332"),
    ]
    for folders, kind, code in cases:
        with pytest.raises(kind) as caught:
            satseg.stack(folders, tmp_path / "t.toml")
        assert caught.value.code == code, str(caught.value)
        assert not (tmp_path / "t.toml").exists()


def test_an_ensemble_file_that_is_there_stays(two, tmp_path, run):
    (tmp_path / "t.toml").write_text("mine")
    with pytest.raises(OutputError):
        satseg.stack(two, tmp_path / "t.toml")
    line = run("stack", *two, "-o", tmp_path / "t.toml").refused(4, "E-OUT-003")
    assert "--overwrite" in line
    assert (tmp_path / "t.toml").read_text() == "mine"
    told = json.loads(run("stack", *two, "-o", tmp_path / "t.toml", "--overwrite", "--json", "-q").done().out)
    assert told["families"] == ["first", "second"]
    assert "stacked" in run("stack", *two, "-o", tmp_path / "u.toml").done().out


def test_the_file_answers_as_the_stacker_does_on_means_of_folds(two, tmp_path):
    report = satseg.stack(two, tmp_path / "team.toml")
    file = EnsembleFile.read(tmp_path / "team.toml")
    logits = np.random.default_rng(0).normal(0, 3, (4, len(NAMES), 50))
    said = combined(logits, file.mean, [file.stacker[name] for name in NAMES])
    families = logits.reshape(2, 2, len(NAMES), 50).mean(axis=1)
    for k, item in enumerate(report.classes):
        assert said[k] == pytest.approx(sigmoid(np.tensordot(item.weights, families[:, k], axes=1) + item.bias))
