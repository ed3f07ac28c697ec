"""Training in folds: whole groups on one side, nothing leaks into the scores, stopped runs go on."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import satseg
from satseg.crs import parse_crs
from satseg.errors import LabelError, OutputError, UsageError
from satseg.folds import plan_folds
from satseg.grid import Grid
from satseg.imagery.labels import LabelLayer
from satseg.learning.ground.folds import deal_scenes, joined_groups, scene_names
from satseg.learning.ground.split import Ground
from satseg.learning.networks.bundle import read_card
from satseg.learning.training.fold_report import FoldReport
from satseg.options import LabelledScene
from satseg.output import hidden_prefix, try_lock
from satseg.run import RunConfig
from tests.commands import TINY
from tests.factories import UTM, north_up
from tests.worlds import squares

FAST = {"chip": 32, "batch": 2, "width": 4, "depth": 2, "stem": 1, "rounds": 1, "precision": "fp32", "device": "cpu"}


def scene(name, *, x=0.0, crs=UTM, side=100, path=None):
    """What dealing looks at of a scene: a square of `side` metres at `x` hectometres."""
    place = north_up(1.0)
    grid = Grid(side, side, place.translation(100 * x, 0) * place, None if crs is None else parse_crs(crs))
    return SimpleNamespace(name=name, grid=grid, paths=(path or f"{name}.tif",))


def ground(one, present):
    """A scene with a polygon of each class that is `present`."""
    polygon = np.array([shapely.box(0, 0, 1, 1)], dtype=object)
    geometries = tuple(polygon[: int(there)] for there in present)
    return Ground(one, LabelLayer(tuple("abc"[: len(present)]), geometries, one.grid.crs))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.sampled_from([None, "p", "q", "r"]), min_size=2, max_size=14), folds=st.integers(2, 5),
    data=st.data(),
)  # fmt: skip
def test_folds_partition_scenes_and_keep_groups_whole(groups, folds, data):
    grounds = [ground(scene(f"s{i}", x=2 * i), (True, True)) for i in range(len(groups))]
    count = len({group or str(i) for i, group in enumerate(groups)})
    if folds > count:
        with pytest.raises(UsageError, match=f"{folds} folds of {count} group"):
            deal_scenes(grounds, groups, folds=folds)
        return
    dealt = deal_scenes(grounds, groups, folds=folds)
    held = [dealt.held(fold) for fold in range(1, folds + 1)]
    assert sorted(place for own in held for place in own) == list(range(len(groups)))
    assert all(held), "no fold is empty"
    for fold in range(1, folds + 1):
        assert sorted((*dealt.learnt(fold), *dealt.held(fold))) == list(range(len(groups)))
        sides = [{dealt.groups[place] for place in places} for places in (dealt.learnt(fold), dealt.held(fold))]
        assert not sides[0] & sides[1]
    order = data.draw(st.permutations(range(len(groups))))
    turned = deal_scenes([grounds[i] for i in order], [groups[i] for i in order], folds=folds)
    assert [turned.fold_of[order.index(i)] for i in range(len(groups))] == [*dealt.fold_of], "order counts for nothing"


def test_scenes_that_show_the_same_ground_stay_together(caplog):
    scenes = [
        scene("west"), scene("east", x=1.0), scene("over", x=0.5), scene("far", x=9.0),
        scene("bare", crs=None), scene("naked", crs=None), scene("again", crs=None, path="bare.tif"),
        scene("abroad", crs="EPSG:32659"),
    ]  # fmt: skip
    names = [one.name for one in scenes]
    west, east, over, far, bare, naked, again, abroad = joined_groups(scenes, [None, "g", *[None] * 6], names)
    assert west == east == over
    assert bare == again
    assert len({west, far, bare, naked, abroad}) == 5
    assert "over show the same ground" in caplog.text
    assert len({*joined_groups(scenes[:2], [None, None], names[:2])}) == 2, "neighbours share an edge and no ground"
    degrees = Grid(50, 50, rasterio.transform.from_bounds(14.9, 45.1, 15.1, 45.2, 50, 50), parse_crs("EPSG:4326"))
    there = SimpleNamespace(name="degrees", grid=degrees, paths=("d.tif",))
    first, second = joined_groups([scene("utm"), there], [None, None], ["utm", "degrees"])
    assert first == second, "over each other in two CRSs"


def test_a_group_may_be_called_as_a_scene_without_one():
    first, second = joined_groups([scene("a"), scene("b", x=5.0)], [None, "a"], ["a", "b"])
    assert first != second


def test_names_of_scenes_can_be_files_and_none_is_twice():
    names = scene_names([scene(name) for name in ("a", "A", "a", "b/c:d", "")])
    assert names == ("a", "A-2", "a-3", "b_c_d", "scene")


def test_a_class_that_one_fold_alone_has_is_refused():
    grounds = [ground(scene(f"s{i}", x=2 * i), (True, i < 1)) for i in range(4)]
    with pytest.raises(LabelError, match="class 'b' lies in fold") as caught:
        deal_scenes(grounds, [None] * 4, folds=2)
    assert caught.value.code == "E-TRN-021"
    nowhere = [ground(scene(f"s{i}", x=2 * i), (True, False)) for i in range(4)]
    assert deal_scenes(nowhere, [None] * 4, folds=4).folds == 4


def towns(folder, count=3):
    """Scenes with labels on ground of their own."""
    return [squares(folder, name=f"t{i}", height=62, width=91, x=5e5 + 1e4 * i, seed=i) for i in range(count)]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Folder of a training in two folds of three scenes, two of them in one group."""
    folder = tmp_path_factory.mktemp("family")
    data = towns(folder)
    report = satseg.train_folds(data, output=folder / "two", groups=["x", None, "x"], folds=2, steps=2, **FAST)
    return folder / "two", data, report


def test_no_model_saw_the_scenes_that_it_scores(family):
    folder, _, report = family
    assert {one.name: one.group for one in report.scenes} == {"t0": "x", "t1": "t1", "t2": "x"}
    for number, model in enumerate(report.models, start=1):
        card = read_card(folder / model.file)
        learnt = {file.name for source in card.training.sources for file in source.files}
        held = {f"{one.name}.tif" for one in report.scenes if one.fold == number}
        assert held
        assert learnt == {"t0.tif", "t1.tif", "t2.tif"} - held
        assert card.weights_sha256 == model.weights_sha256


def test_scores_out_of_fold_are_those_of_that_model(family):
    folder, data, report = family
    for one, (path, _) in zip(report.scenes, data, strict=True):
        alone = satseg.predict(satseg.load_model(folder / f"fold{one.fold}.safetensors", device="cpu"), path)
        with rasterio.open(folder / one.scores) as file:
            assert file.descriptions == ("a", "b")
            assert np.abs(file.read() - alone.data).max() <= 2.0**-11, "float16"


def test_the_table_is_pooled_over_all_scenes(family):
    folder, data, report = family
    assert FoldReport.read(folder) == report
    for k, item in enumerate(report.classes):
        tp = fp = fn = 0
        for one, (path, labels) in zip(report.scenes, data, strict=True):
            with rasterio.open(folder / one.scores) as file, rasterio.open(folder / one.truth) as known:
                said, truth = file.read(k + 1) >= item.threshold, known.read(k + 1)
            burnt = satseg.rasterize(labels, like=satseg.open_scene(path).grid).data[k]
            assert np.array_equal(truth, burnt)
            tp, fp, fn = tp + (said & (truth == 1)).sum(), fp + (said & (truth == 0)).sum(), fn + (~said & truth).sum()
        assert (item.tp, item.fp, item.fn) == (tp, fp, fn)
        assert item.jaccard == pytest.approx(tp / (tp + fp + fn))
        assert len(item.jaccard_of_folds) == 2
    assert [row.split()[0] for row in report.table().splitlines()] == ["class", "a", "b", "mean"]


def test_the_ensemble_is_the_mean_of_all_with_pooled_thresholds(family):
    folder, _, report = family
    content = tomllib.loads((folder / "ensemble.toml").read_text())
    assert content["mean"] == "arithmetic"
    assert [one["path"] for one in content["members"]] == ["fold1.safetensors", "fold2.safetensors"]
    assert content["thresholds"] == {item.name: item.threshold for item in report.classes}


def test_the_folder_finds_what_its_ensemble_does(family):
    folder, data, _ = family
    scores = [satseg.predict(model, data[0][0]).data for model in (folder, folder / "ensemble.toml")]
    assert np.array_equal(*scores)
    members = [satseg.predict(folder / f"fold{n}.safetensors", data[0][0]).data for n in (1, 2)]
    assert scores[0] == pytest.approx(np.mean(members, axis=0), abs=1e-6)


def test_a_stopped_run_goes_on_with_what_is_there(family, tmp_path):
    _, data, report = family
    given = {"output": tmp_path / "part", "groups": ["x", None, "x"], "folds": 2, "steps": 2, **FAST}

    def stop_in_second(stage, done, total, note):
        if (stage, done) == ("folds", 1):
            seen.append(note)
        if stage == "train" and seen:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        satseg.train_folds(data, progress=stop_in_second, **given)
    part = tmp_path / "part"
    assert (part / "fold1.safetensors").exists()
    assert not any((part / name).exists() for name in ("fold2.safetensors", "folds.json", "ensemble.toml"))
    before = (part / "fold1.safetensors").stat().st_mtime_ns
    with pytest.raises(OutputError, match="earlier run"):
        satseg.train_folds(data, **given)
    with pytest.raises(UsageError, match="other options or data"):
        satseg.train_folds(data, resume=True, **given | {"steps": 3})
    lock = try_lock(part / "run.toml")
    with pytest.raises(OutputError, match="another process"):
        satseg.train_folds(data, resume=True, **given)
    os.close(lock)
    resumed = satseg.train_folds(data, resume=True, **given)
    assert (part / "fold1.safetensors").stat().st_mtime_ns == before
    assert resumed == report, "weights and scores are those of the run that was not stopped"
    shutil.copy(part / "fold1.safetensors", part / "fold2.safetensors")
    with pytest.raises(UsageError, match="learnt from other scenes") as caught:
        satseg.train_folds(data, resume=True, **given)
    assert caught.value.code == "E-TRN-026"
    (part / "fold2.safetensors").unlink()
    begun = part / "out_of_fold" / f"{hidden_prefix(part / report.scenes[0].scores)}run"
    begun.mkdir()
    for scene in report.scenes:
        (part / scene.scores).write_bytes((part / report.scenes[0].truth).read_bytes())  # as of another model
    own = [scene.scores for scene in report.scenes if scene.fold == 2]
    satseg.train_folds(data, resume=True, **given)
    assert all((part / name).read_bytes() == (family[0] / name).read_bytes() for name in own)


def test_bad_input_is_refused_and_nothing_is_written(tmp_path):
    data = towns(tmp_path, 2)
    out = tmp_path / "out"
    cases = [
        ({"folds": 3}, UsageError, "E-TRN-020"),
        ({"folds": 1}, UsageError, "E-USE-010"),
        ({}, UsageError, "E-TRN-022"),
        ({"folds": 2, "groups": ["a"]}, UsageError, "E-TRN-025"),
        ({"folds": 2, "fit_rules": True}, UsageError, "E-TRN-028"),
        ({"folds": 2, "groups": ["a", "a"]}, UsageError, "E-TRN-020"),
        ({"folds": 2, "valid_scenes": (LabelledScene(scene="s", labels="l"),)}, UsageError, "E-TRN-023"),
    ]
    for options, kind, code in cases:
        with pytest.raises(kind) as caught:
            satseg.train_folds(data, output=out, **{**FAST, **options})
        assert caught.value.code == code
    with pytest.raises(UsageError) as caught:
        satseg.train_folds(data[:1], output=out, folds=2, **FAST)
    assert "2 folds of 1 group of scenes" in str(caught.value)
    with pytest.raises(UsageError, match="train_folds"):
        satseg.train(data, folds=2, **FAST)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("")
    with pytest.raises(OutputError, match=r"of no run.*-o"):
        satseg.train_folds(data, output=out, folds=2, **FAST)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_each_fold_is_trained_with_the_classes_and_bands_of_all(tmp_path, monkeypatch):
    data = towns(tmp_path, 3)
    monkeypatch.setattr("satseg.learning.training.plan.step_seconds", None)  # whose figure nobody would see
    dealt = plan_folds(data, folds=3, steps=2, **FAST)
    assert sorted(dealt.fold_of) == [1, 2, 3]
    assert dealt.to_text().splitlines()[0].startswith("fold 1 is validated on t")


def run_file(folder, count=2, group=""):
    """A run file of `count` towns, and overrides that keep it short."""
    lines = []
    for path, labels in towns(folder, count):
        labels.to_parquet(folder / f"{path.stem}.parquet")
        lines += ["[[data.scenes]]", f'scene = "{path.name}"', f'labels = "{path.stem}.parquet"', group]
    (folder / "run.toml").write_text("\n".join(lines))
    return folder / "run.toml", TINY


def test_two_scenes_two_folds_from_the_command_line(tmp_path, run):
    file, tiny = run_file(tmp_path)
    told = run("train", file, *tiny, "--folds", 2, "--dry-run").done().out
    assert [line[:6] for line in told.splitlines()] == ["fold 1", "fold 2"]
    plain = json.loads(run("train", file, *tiny, "--folds", 2, "--dry-run", "--json").done().out)
    assert plain["names"] == ["t0", "t1"]
    out = run("train", file, *tiny, "train.folds=2", "-o", tmp_path / "dir", "-q").done().out
    assert out.splitlines()[0] == str(tmp_path / "dir")
    assert out.splitlines()[1].split() == ["class", "threshold", "Jaccard", "fold", "1", "fold", "2"]
    kept = RunConfig.from_file(tmp_path / "dir" / "run.toml")
    assert (kept.train.folds, len(kept.data.scenes)) == (2, 2)
    fold = RunConfig.from_file(tmp_path / "dir" / "fold1.run" / "run.toml")
    assert (fold.train.folds, len(fold.data.scenes), len(fold.data.valid_scenes)) == (None, 1, 1)
    run("train", file, *tiny, "--folds", 2, "-o", tmp_path / "dir").refused(4, "E-OUT-010")


def test_the_command_line_refuses_folds_that_make_no_sense(tmp_path, run):
    file, tiny = run_file(tmp_path, group='group = "one"')
    run("train", file, *tiny, "--folds", 2, "-o", tmp_path / "dir").refused(2, "E-TRN-020")
    assert "greater than or equal to 2" in run("train", file, *tiny, "--folds", 1, "-o", "x").refused(2, "E-USE-010")
    run("train", file, *tiny, "--folds", 2).refused(2, "E-USE-000")
    run("train", file, *tiny, "--folds", 2, "-o", "x", "--run-dir", "y").refused(2, "E-USE-000")
