"""Options that make no sense (exit 2) and outputs that cannot be written (exit 4), before any long work.

Each row is a command line; {t} is a folder of good files and {o} one for outputs.
"""

from __future__ import annotations

import shutil

import pytest

import satseg
from tests.commands import TINY, command_of, files_under

DETECT = "detect {t}/model.safetensors {t}/a.tif -o {o}/x.gpkg"
TRAIN = "train --data {t}/a.tif {t}/a.gpkg -o {o}/x.safetensors"


@pytest.fixture
def refused(capfd, town, tmp_path):
    """Run a row and assert that it is refused as it should be and leaves every folder as it was."""
    run = command_of(capfd)
    (tmp_path / "folder").mkdir()
    for name in ("old.gpkg", "old.tif", "old.safetensors", "old.json", "old.html"):
        (tmp_path / name).write_text("earlier work")

    def check(row, status, code):
        before = files_under(town, tmp_path)
        words = [word.format(t=town, o=tmp_path) for word in row.split()]
        line = run(*words).refused(status, code)
        assert files_under(town, tmp_path) == before
        assert (tmp_path / "old.gpkg").read_text() == "earlier work"
        return line

    return check


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        ("--device gpu", "E-USE-054", "'gpu'"),
        ("--device cuda:99", "E-USE-055", "CUDA"),
        ("--tile 0", "E-USE-020", "tile 0"),
        ("--tile -64", "E-USE-020", "tile -64"),
        ("--batch-size 0", "E-USE-020", "batch_size 0"),
        ("--halo -1", "E-USE-020", "halo -1"),
        ("--tile many", "E-USE-000", "'many'"),
        ("--min-area -1", "E-USE-201", "-1"),
        ("--min-area nan", "E-USE-201", "nan"),
        ("--simplify -0.5", "E-USE-201", "-0.5"),
        ("--threshold 0", "E-USE-021", "between 0 and 1"),
        ("--threshold nan", "E-USE-021", "between 0 and 1"),
        ("--threshold 0.99999999", "E-USE-021", "between 0 and 1"),  # 1 as a float32
        ("--threshold 1e300", "E-USE-021", "between 0 and 1"),
        ("--threshold 1e-46", "E-USE-021", "between 0 and 1"),
        ("--tta d8", "E-USE-000", "d4"),
        ("--bounds 1 2 3", "E-USE-000", "4 arguments"),
        ("--sensor worldview9", "E-SPEC-001", "worldview3"),
        ("--mask {o}/x.png", "E-USE-209", ".tif"),
        ("--scores {o}/x", "E-USE-209", ".tif"),
        ("--mask {o}/y.tif --scores {o}/y.tif", "E-USE-012", "another output"),
        ("--mask {t}/a.tif --overwrite", "E-USE-012", "an input"),
        ("--scene-files {t}/a.tif", "E-USE-000", "--scene-files"),
    ],
)
def test_detect_refuses_options(refused, extra, code, said):
    assert said in refused(f"{DETECT} {extra}", 2, code)


@pytest.mark.parametrize("bounds", ["1 2 3 4", "500071 4999930 500020 4999980", "nan 4999930 500071 4999980"])
def test_bounds_that_are_nowhere_on_the_scene(refused, bounds):
    refused(f"{DETECT} --bounds {bounds}", 3, "E-GRID-004" if bounds == "1 2 3 4" else "E-GRID-003")


@pytest.mark.parametrize("name", ["x.kml", "x.foo", "x", "x.shp.zip", "x.tif"])
def test_unknown_suffixes_are_refused_with_the_list(refused, name):
    line = refused(f"detect {{t}}/model.safetensors {{t}}/a.tif -o {{o}}/{name}", 2, "E-USE-221")
    assert ".gpkg" in line
    refused(f"polygonize {{t}}/a.tif -o {{o}}/{name}", 2, "E-USE-221")


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("train --data {t}/a.tif {t}/a.gpkg -o {o}/x.pt", "E-USE-022"),
        ("train --data {t}/a.tif {t}/a.gpkg", "E-USE-000"),
        ("detect {t}/model.safetensors {t}/a.tif", "E-USE-000"),
        ("detect {t}/model.safetensors -o {o}/x.gpkg", "E-USE-000"),
        ("detect {t}/model.safetensors {t}/a.tif --aoi {t}/a.gpkg -o {t}/a.gpkg --overwrite", "E-USE-012"),
        ("rasterize {t}/a.gpkg --like {t}/a.tif -o {o}/x.png", "E-USE-209"),
        ("rasterize {t}/a.gpkg --like {t}/a.tif -o {t}/a.tif --overwrite", "E-USE-012"),
        ("rasterize {t}/a.gpkg -o {o}/x.tif", "E-USE-000"),
        ("polygonize {t}/a.tif -o {o}/x.gpkg --min-area -1", "E-USE-201"),
        ("polygonize {t}/a.tif -o {o}/x.gpkg --band one", "E-USE-000"),
        ("score {t}/a.gpkg {t}/a.gpkg --empty never", "E-USE-000"),
        ("score {t}/a.gpkg {t}/a.gpkg --json {o}/x --html {o}/x", "E-USE-012"),
        ("score {t}/a.gpkg {t}/a.gpkg --json {t}/a.gpkg --overwrite", "E-USE-012"),
        ("score {t}/a.gpkg", "E-USE-000"),
        ("demo -o {o}/demo --minutes 0", "E-USE-010"),
        ("demo -o {o}/demo --device tpu", "E-USE-054"),
        ("specs show worldview33", "E-SPEC-001"),
        ("specs validate {t}/a.tif", "E-SPEC-003"),
        ("specs validate {o}/absent.toml", "E-SPEC-002"),
    ],
)
def test_other_commands_refuse_what_makes_no_sense(refused, row, code):
    refused(row, 2, code)


# --- run files


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("[train]\nmintes = 5\n", "E-USE-010", "line 2: unknown key 'mintes' in train; did you mean 'minutes'?"),
        ("[trian]\nminutes = 5\n", "E-USE-010", "did you mean 'train'?"),
        ("[train]\nsteps = 'many'\n", "E-USE-010", "line 2"),
        ("[train]\nchip = -1\n", "E-USE-010", "line 2"),
        ("[train]\nsteps = 3\nminutes = 1\n", "E-USE-010", "minutes or steps, not both"),
        ("[train]\nchip = 32\nchip = 64\n", "E-SPEC-003", "line 3"),
        ("[train\n", "E-SPEC-003", "line 1"),
        ("[data]\nscenes = [{ scene = 'a.tif' }]\n", "E-USE-010", "labels"),
        ("", "E-TRN-001", "--data"),
    ],
)
def test_faults_of_a_run_file_are_named(refused, tmp_path, text, code, said):
    (tmp_path / "run.toml").write_text(text)
    assert said in refused("train {o}/run.toml -o {o}/x.safetensors", 2, code)


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        ("--minutes 1 --steps 2", "E-USE-010", "not both"),
        ("--steps 0", "E-USE-010", "steps = 0"),
        ("--steps -5", "E-USE-010", "steps = -5"),
        ("--minutes -1", "E-USE-010", "minutes = -1"),
        ("--minutes nan", "E-USE-010", "nan"),
        ("--gsd 0", "E-USE-010", "gsd = 0"),
        ("--chip 1", "E-USE-010", "chip = 1"),
        ("--batch 0", "E-USE-010", "batch = 0"),
        ("--seed -1", "E-USE-010", "seed = -1"),
        ("--device tpu", "E-USE-054", "'tpu'"),
        ("--class-spec nonesuch", "E-SPEC-001", "dstl"),
        ("--sensor nonesuch", "E-SPEC-001", "worldview3"),
        ("train.mintes=3", "E-USE-010", "did you mean 'minutes'?"),
        ("trian.minutes=3", "E-USE-010", "did you mean 'train'?"),
        ("model.norm=group", "E-USE-010", "norm"),
        ("absent.toml", "E-SPEC-002", "absent.toml"),
    ],
)
def test_train_refuses_options(refused, extra, code, said):
    assert said in refused(f"{TRAIN} {extra}", 2, code)


# --- outputs

CANNOT_WRITE = [
    ("{o}/absent/x", "E-OUT-002"),
    ("{o}/old", "E-OUT-003"),
    ("{o}/" + "n" * 300, "E-OUT-006"),
]


@pytest.mark.parametrize(("place", "code"), CANNOT_WRITE)
@pytest.mark.parametrize(
    "row",
    [
        "detect {{t}}/model.safetensors {{t}}/a.tif -o {place}.gpkg",
        "detect {{t}}/model.safetensors {{t}}/a.tif -o {{o}}/x.gpkg --mask {place}.tif",
        "detect {{t}}/model.safetensors {{t}}/a.tif -o {{o}}/x.gpkg --scores {place}.tif",
        "train --data {{t}}/a.tif {{t}}/a.gpkg -o {place}.safetensors",
        "polygonize {{t}}/a.tif -o {place}.gpkg",
        "rasterize {{t}}/a.gpkg --like {{t}}/a.tif -o {place}.tif",
        "score {{t}}/a.gpkg {{t}}/a.gpkg --json {place}.json",
        "score {{t}}/a.gpkg {{t}}/a.gpkg --html {place}.html",
    ],
)
def test_outputs_are_checked_first(refused, row, place, code):
    refused(row.format(place=place), 4, code)


@pytest.mark.parametrize("suffix", [".gpkg", ".tif", ".safetensors", ".json"])
def test_a_folder_is_not_replaced_by_a_file(refused, tmp_path, suffix):
    (tmp_path / f"dir{suffix}").mkdir()
    rows = {
        ".gpkg": "polygonize {t}/a.tif -o {o}/dir.gpkg --overwrite",
        ".tif": "rasterize {t}/a.gpkg --like {t}/a.tif -o {o}/dir.tif --overwrite",
        ".safetensors": "train --data {t}/a.tif {t}/a.gpkg -o {o}/dir.safetensors --overwrite",
        ".json": "score {t}/a.gpkg {t}/a.gpkg --json {o}/dir.json --overwrite",
    }
    refused(rows[suffix], 4, "E-OUT-004")


@pytest.mark.parametrize(("place", "code"), [("old.json", "E-OUT-006"), ("", "E-OUT-003")])
def test_a_demonstration_needs_a_folder_of_its_own(refused, place, code):
    refused(f"demo -o {{o}}/{place}", 4, code)


@pytest.mark.parametrize(("place", "fault"), [("absent", "does not exist"), ("old.gpkg", "is a file")])
def test_several_scenes_need_a_folder(refused, place, fault):
    assert fault in refused(f"detect {{t}}/model.safetensors {{t}}/a.tif {{t}}/b.tif -o {{o}}/{place}", 4, "E-OUT-002")


def test_a_run_folder_is_a_folder(refused):
    refused(f"{TRAIN} --run-dir {{o}}/old.json", 4, "E-OUT-011")


def test_an_earlier_run_is_not_mixed_with_another(refused, tmp_path):
    (tmp_path / "x.run").mkdir()
    (tmp_path / "x.run" / "run.toml").write_text("")
    assert "--resume" in refused(f"{TRAIN} {' '.join(TINY)}", 4, "E-OUT-010")
    refused(f"{TRAIN} --resume {' '.join(TINY)}", 2, "E-TRN-006")


def test_a_file_that_cannot_be_replaced_whole_stays(capfd, town, tmp_path, monkeypatch):
    """The disk fills up while the polygons are written over an older file."""
    target = tmp_path / "found.gpkg"
    shutil.copy(town / "a.gpkg", target)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyogrio.raw.write_arrow", full)
    said = command_of(capfd)("detect", town / "model.safetensors", town / "a.tif", "-o", target, "--overwrite")
    assert said.status == 4
    assert "No space left" in said.err.splitlines()[-1]
    assert satseg.read_features(target).equals(satseg.read_features(town / "a.gpkg"))
    assert list(tmp_path.iterdir()) == [target]
