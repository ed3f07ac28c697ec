"""`satseg dstl`: check, prepare, submit, score; and what `prepare` writes is a run file that training takes."""

from __future__ import annotations

import csv
import json
import tomllib

import numpy as np
import pytest

from satseg.errors import GridError, InputError, OutputError, UsageError
from satseg.imagery.scene import open_scene
from satseg.run import RunConfig
from satseg.tasks.dstl.check import check_folder
from satseg.tasks.dstl.folder import ContestFolder
from satseg.tasks.dstl.folds import check_split, kfold
from satseg.tasks.dstl.labels import class_areas
from satseg.tasks.dstl.predictions import read_predictions
from satseg.tasks.dstl.prepare import prepare
from satseg.tasks.dstl.score import score_submission
from satseg.vector.features import read_features
from tests.contests import IDS, LABELLED, X_MAX, Y_MIN, build_contest, write_tiff


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    return build_contest(tmp_path_factory.mktemp("contest"))


@pytest.fixture(scope="module")
def ready(contest, tmp_path_factory):
    return prepare(ContestFolder.open(contest), tmp_path_factory.mktemp("ready") / "out", folds=3)


def scene_files(folder, image_id):
    return [folder / "scenes" / f"{image_id}{part}.tif" for part in ("", "_P", "_M", "_A")]


def test_check_counts_what_is_there(run, contest):
    told = json.loads(run("dstl", "check", contest, "--json").done().out)
    assert told["tiles"] == told["complete"] == 6
    assert told["files"] == {"rgb": 6, "P": 6, "M": 6, "A": 6}
    assert told["labelled"] == sorted(LABELLED)
    assert told["polygons"]["Buildings"] == 8
    assert told["twins"] == [["6110_1_2", "6140_1_2"]]
    assert told["sample_rows"] == 30
    assert not told["faults"]
    text = run("dstl", "check", contest).done().out
    assert "6110_1_2 and 6140_1_2" in text
    assert "moved to train" in text


def test_check_names_each_tile_that_cannot_be_used(run, tmp_path):
    root = build_contest(tmp_path, IDS[:3])
    write_tiff(root / "sixteen_band" / f"{IDS[0]}_M.tif", np.ones((7, 24, 24), np.uint16))
    (root / "sixteen_band" / f"{IDS[1]}_A.tif").unlink()
    write_tiff(root / "three_band" / "6180_0_0.tif", np.ones((3, 9, 9), np.uint16))
    outcome = run("dstl", "check", root)
    assert outcome.status == 5
    assert f"{IDS[0]}_M.tif" in outcome.out
    assert f"tile {IDS[1]} lacks A" in outcome.out
    assert "6180_0_0.tif is of no tile" in outcome.out


def test_hundreds_of_faults_of_one_kind_are_a_few_lines(tmp_path):
    ids = tuple(f"60{region}_{row}_{col}" for region in (20, 30) for row in range(5) for col in range(5))
    root = build_contest(tmp_path, IDS[:1])
    for image_id in ids[:12]:
        write_tiff(root / "three_band" / f"{image_id}.tif", np.ones((3, 96, 97), np.uint16))
        write_tiff(root / "sixteen_band" / f"{image_id}_M.tif", np.ones((7, 24, 24), np.uint16))
    rows = [f"{i},{X_MAX},{Y_MIN}" for i in (IDS[0], *ids)]
    (root / "grid_sizes.csv").write_text("\n".join([",Xmax,Ymin", *rows]) + "\n")
    report = check_folder(ContestFolder.open(root))
    assert len(report.faults) == 6, "five, and how many more"
    assert "and 7 more" in report.faults[-1]
    assert len(report.to_text().splitlines()) < 40


def test_a_folder_without_labels_and_sample_is_checked_all_the_same(tmp_path):
    root = build_contest(tmp_path, IDS[:1])
    (root / "train_wkt_v4.csv").unlink()
    (root / "sample_submission.csv").unlink()
    report = check_folder(ContestFolder.open(root))
    assert report.sample_rows is None
    assert report.labelled == ()
    assert len(report.warnings) == 2


def test_prepared_files_are_the_tiles_scene_without_a_pixel_copied(contest, ready):
    assert ready.tiles == IDS
    assert ready.labelled == tuple(sorted(LABELLED))
    tile = ContestFolder.open(contest).tile(IDS[0])
    for options in ({"sensor": "dstl_worldview3"}, {}):
        scene = open_scene(scene_files(ready.path, IDS[0]), **options)
        truth = tile.scene(units="metres")
        assert (scene.bands, scene.grid) == (truth.bands, truth.grid)
        assert np.array_equal(scene.read().data, truth.read().data)
    assert all(path.is_symlink() for path in (ready.path / "scenes").glob("*.tif"))
    assert sum(p.stat().st_size for p in (ready.path / "scenes").glob("*.xml")) < 600 * 24


def test_prepared_labels_lie_on_prepared_scenes(contest, ready):
    from satseg.imagery.labels import rasterize

    scene = open_scene(scene_files(ready.path, IDS[0]))
    labels = read_features(ready.path / "labels" / f"{IDS[0]}.gpkg")
    buildings = rasterize(labels, like=scene.grid, classes=["Buildings"]).data[0]
    assert buildings.sum() == 12 * 10 + 15 * 12
    assert buildings[5:15, 5:17].all()
    own = labels[labels["class_name"] == "Buildings"].geometry.area.sum()
    assert own == pytest.approx((120 + 180) * 0.31**2), "areas are square metres"


def test_run_files_name_what_is_there_and_keep_ground_together(ready):
    folds = json.loads((ready.path / "folds.json").read_text())
    assert sorted(i for held in folds["folds"] for i in held) == sorted(LABELLED)
    for number, split in enumerate(ready.splits, start=1):
        config = RunConfig.from_file(ready.path / f"fold{number}.toml")
        data = config.data
        assert (data.sensor, data.class_spec) == ("dstl_worldview3", "dstl")
        assert data.classes == ("Buildings", "Trees", "Waterway")
        sides = [[item.labels.rpartition("/")[2][:8] for item in side] for side in (data.scenes, data.valid_scenes)]
        assert sides == [list(split.train), list(split.valid)]
        assert list(split.valid) == folds["folds"][number - 1]
        check_split(*sides)
        assert all(open_scene(item.scene).grid.shape == (96, 97) for item in data.scenes)
    assert len(RunConfig.from_file(ready.path / "all.toml").data.scenes) == 4


def test_training_takes_a_prepared_run_file(ready):
    from satseg.pipeline import plan

    small = ["train.steps=2", "train.chip=32", "train.batch=2", "model.width=4", "model.depth=1", "train.device=cpu"]
    told = plan(config=RunConfig.from_file(ready.path / "fold1.toml", small)).to_text()
    assert "6110_1_2: 96 x 97 pixels, no CRS; all of it held" in told
    assert "Waterway" in told


def test_classes_that_a_folds_training_tiles_lack_are_left_out_and_told(tmp_path):
    root = build_contest(tmp_path / "c" if not (tmp_path / "c").mkdir() else tmp_path, ("6010_1_2", "6110_1_2"))
    made = prepare(ContestFolder.open(root), tmp_path / "out", folds=2)
    number = next(n for n, split in enumerate(made.splits, start=1) if split.valid == ("6010_1_2",))
    assert "Waterway" in made.missing[number], "only the tile held has one"
    text = (tmp_path / "out" / f"fold{number}.toml").read_text()
    assert tomllib.loads(text)["data"]["classes"] == ["Buildings", "Trees"]
    assert "# Not in the training tiles" in text


def test_prepare_leaves_what_is_there_and_nothing_half_done(contest, ready, tmp_path):
    folder = ContestFolder.open(contest)
    with pytest.raises(OutputError) as caught:
        prepare(folder, ready.path)
    assert caught.value.code == "E-OUT-311"
    with pytest.raises(OutputError):
        prepare(folder, tmp_path / "nowhere" / "out", folds=2)
    empty = build_contest(tmp_path / "e" if not (tmp_path / "e").mkdir() else tmp_path, IDS[:2])
    for path in (empty / "sixteen_band").glob("*_M.tif"):
        path.unlink()
    with pytest.raises(InputError) as caught:
        prepare(ContestFolder.open(empty), tmp_path / "out", folds=2)
    assert caught.value.code == "E-IN-315"
    made = prepare(ContestFolder.open(empty), tmp_path / "out", folds=2, products=("rgb", "P"))
    assert open_scene(scene_files(made.path, IDS[0])[:2]).bands == ("rgb_red", "rgb_green", "rgb_blue", "pan")
    assert tomllib.loads((tmp_path / "out" / "fold1.toml").read_text())["data"]["registered"] is True
    prepare(ContestFolder.open(empty), tmp_path / "rgb", folds=2, products=("rgb",))
    assert "registered" not in (tmp_path / "rgb" / "all.toml").read_text(), "there is nothing to lay over"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


def test_a_generated_contest_is_read_whole(tmp_path):
    from satseg.tasks.dstl.generated.contest import generate_contest

    ids = ["6010_1_2", "6110_1_2", "6140_1_2"]
    generate_contest(tmp_path / "c", seed=4, size=(170, 180), tiles=ids)
    folder = ContestFolder.open(tmp_path / "c")
    report = check_folder(folder)
    assert (report.tiles, report.complete, report.sample_rows, report.faults) == (450, 3, 4290, ())
    assert report.twins == (("6110_1_2", "6140_1_2"),)
    assert report.repaired == len(report.invalid_rows) == 1, "one row is invalid, as in the original"
    first, second = (folder.labels(form=form) for form in ("wkt", "geojson"))
    for image_id in ids:
        areas = class_areas(first[image_id])
        assert class_areas(second[image_id]) == pytest.approx(areas, abs=1e-3 * areas.max()), "but for the bow-tie"
    read = folder.tile(ids[0]).scene().read(bands=["rgb_red", "red"]).data.reshape(2, -1)
    assert np.corrcoef(read)[0, 1] > 0.9, "the fifth band of M is red, whatever its tag says"
    made = prepare(folder, tmp_path / "out", folds=2)
    assert sorted(made.labelled) == ids
    assert len(open_scene(scene_files(made.path, ids[0])).bands) == 20


def test_a_tiles_products_are_laid_over_its_three_band_image(tmp_path):
    from satseg.tasks.dstl.generated.contest import generate_contest

    generate_contest(tmp_path / "c", seed=3, size=(300, 310), tiles=["6140_3_1"])
    tile = ContestFolder.open(tmp_path / "c").tile("6140_3_1")
    with open(tmp_path / "c/hidden/shifts.csv", newline="") as file:
        planted = {row["Product"]: (float(row["dy_px"]), float(row["dx_px"])) for row in csv.DictReader(file)}
    assert np.hypot(*planted["M"]) > 4
    plain, moved = (tile.scene(units="pixels", register=register) for register in (False, True))
    multi = next(one for one in moved.registrations if str(tile.files["M"]) in one.paths)
    assert (multi.scene_rows, multi.scene_cols) == pytest.approx(planted["M"], abs=0.2)
    assert moved.grid == plain.grid
    assert moved.bands == plain.bands
    assert any(str(tile.files["A"]) in text and "too few" in text for text in moved.warnings), "12 x 12 pixels"
    some = tile.scene(units="pixels", register=True, products=("M",))
    assert (some.bands, some.grid) == (moved.bands[4:12], moved.grid)
    assert (some.registrations[0].rows, some.registrations[0].cols) == pytest.approx((multi.rows, multi.cols), abs=0.05)
    like = [np.corrcoef(scene.read(bands=["rgb_red", "red"]).data.reshape(2, -1))[0, 1] for scene in (plain, moved)]
    assert like[1] > like[0]


@pytest.mark.parametrize("size", [(99, 94), (93, 100)])
def test_a_panchromatic_file_may_be_some_pixels_off_on_each_side(tmp_path, size):
    root = build_contest(tmp_path, IDS[:1])
    tile = ContestFolder.open(root).tile(IDS[0])
    write_tiff(tile.files["P"], np.full((1, *size), 300, np.uint16))
    assert tile.scene(products=("P",)).sources[0].grid.shape == size
    write_tiff(tile.files["P"], np.full((1, 101, 97), 300, np.uint16))
    with pytest.raises(GridError) as caught:
        tile.scene(products=("P",))
    assert caught.value.code == "E-GRID-303"


def test_a_finer_panchromatic_file_leads_neither_a_tiles_scene_nor_a_prepared_one(tmp_path):
    (tmp_path / "c").mkdir()
    root = build_contest(tmp_path / "c", IDS[:2])
    folder = ContestFolder.open(root)
    for image_id in IDS[:2]:
        write_tiff(folder.tile(image_id).files["P"], np.full((1, 97, 97), 300, np.uint16))
    made = prepare(folder, tmp_path / "out", folds=2)
    scene = open_scene(scene_files(made.path, IDS[0]))
    assert scene.grid == folder.tile(IDS[0]).scene(units="metres").grid
    assert scene.grid.shape == (96, 97)


def test_unknown_words_are_refused_by_name(contest, tmp_path):
    folder = ContestFolder.open(contest)
    tile = folder.tile(IDS[0])
    areas = {image_id: [1.0] for image_id in IDS}
    for code, call in {
        "E-USE-305": lambda: ContestFolder.open(contest, scaling="offical"),
        "E-USE-306": lambda: tile.scene(units="feet"),
        "E-USE-301": lambda: tile.scene(products=("rgb", "Q")),
        "E-USE-307": lambda: kfold(areas, folds=2, by="country"),
        "E-USE-308": lambda: score_submission(contest / "train_wkt_v4.csv", contest / "train_wkt_v4.csv", empty="half"),
    }.items():
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == code
    for call in (
        lambda: list(folder.tiles(("P", "Q"))),
        lambda: prepare(folder, tmp_path / "out", products=("Q",)),
        lambda: check_split(IDS[:1], IDS[1:], by="country"),
        lambda: read_predictions(folder, contest, units="feet"),
        lambda: tile.frame().moved(np.empty(0, object), source="feet", target="feet"),
    ):
        with pytest.raises(UsageError):
            call()
    assert not (tmp_path / "out").exists()


def test_the_truth_given_back_as_a_prediction_scores_one(run, contest, tmp_path):
    out = run("dstl", "prepare", contest, "-o", tmp_path / "ready", "--folds", "2").done().out
    assert "6 scenes, 4 with labels" in out
    assert "fold2.toml validates on" in out
    sample = tmp_path / "sample.csv"
    sample.write_text(
        "ImageId,ClassType,MultipolygonWKT\n"
        + "".join(f"{i},{n},MULTIPOLYGON EMPTY\n" for i in ("6110_1_2", "6140_1_2") for n in range(1, 11))
    )
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    for image_id in ("6110_1_2", "6140_1_2"):
        (predicted / f"{image_id}.gpkg").write_bytes((tmp_path / "ready" / "labels" / f"{image_id}.gpkg").read_bytes())
    submission = tmp_path / "submission.csv"
    told = run(
        "dstl", "submit", contest, predicted, "-o", submission, "--sample", sample, "--layer", tmp_path / "s.shp"
    ).done()
    assert "20 rows, 4 with polygons, of 2 predicted tiles" in told.out
    assert len(read_features(tmp_path / "s.shp")) == 8
    score = json.loads(
        run("dstl", "score", submission, contest, "--ids", "6110_1_2,6140_1_2", "--json", "--strict").done().out
    )
    assert score["score"] == pytest.approx(0.2, abs=1e-4), "two classes of ten"
    assert score["classes"][0]["jaccard"] > 0.9999
    kind = run("dstl", "score", submission, contest, "--ids", "6110_1_2,6140_1_2", "--empty", "one").done().out
    assert kind.splitlines()[-1].split()[-1] in ("1.0000", "0.9999")


def test_the_samples_moved_tile_is_told_to_stay_empty(run, contest, tmp_path):
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    made = prepare(ContestFolder.open(contest), tmp_path / "ready", folds=2)
    (predicted / "6070_2_3.gpkg").write_bytes((made.path / "labels" / "6070_2_3.gpkg").read_bytes())
    out = run("dstl", "submit", contest, predicted, "-o", tmp_path / "s.csv").done().out
    assert "left empty, as they moved to train: 6070_2_3" in out
    assert "30 rows, 0 with polygons" in out


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ("dstl check nowhere", 3, "E-IN-312"),
        ("dstl score s.csv t.csv", 3, "E-IN-301"),
        ("dstl prepare {contest} -o out --products rgb,X", 2, "E-USE-000"),
        ("dstl prepare {contest} -o out --folds 99", 2, "E-USE-303"),
        ("dstl train {contest} -o out --minutes 1 --device gpu", 2, "E-USE-054"),
        ("dstl submit {contest} nowhere -o s.csv", 3, "E-IN-316"),
        ("dstl submit {contest} {contest} -o s.csv --layer s.geojson", 3, "E-CRS-211"),
    ],
)
def test_faults_end_with_their_status(run, contest, tmp_path, monkeypatch, line, status, code):
    monkeypatch.chdir(tmp_path)
    outcome = run(*line.format(contest=contest).split())
    assert outcome.status == status
    assert code in outcome.err
    assert not list(tmp_path.iterdir())


def test_score_warns_of_rows_that_the_server_refuses(run, tmp_path):
    head, tie = "ImageId,ClassType,MultipolygonWKT\n", '"POLYGON ((0 0, 2 2, 2 0, 0 2, 0 0))"'
    rest = "".join(f"a,{n},MULTIPOLYGON EMPTY\n" for n in range(2, 11))
    (tmp_path / "s.csv").write_text(f"{head}a,1,{tie}\n{rest}")
    outcome = run("dstl", "score", tmp_path / "s.csv", tmp_path / "s.csv").done()
    assert "1 rows are not valid" in outcome.err
    assert "line 2" in outcome.err
    strict = run("dstl", "score", tmp_path / "s.csv", tmp_path / "s.csv", "--strict")
    assert strict.status == 3
    assert "Self-intersection" in strict.err
