"""Killed at any moment, resumed, and the same at the end; full disks and other runs refused cleanly."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

import satseg
from satseg.errors import OutputError, UsageError
from satseg.ledger import Ledger
from tests.factories import noise, north_up, write_tiff
from tests.worlds import BANDS, tiny_model

DISK_SIZE = "48k"

SUFFIXES = (".gpkg", ".shp", ".geojson", ".fgb", ".parquet", ".csv")
MOMENTS = 20
HOW = {"tile": 16, "min_area": 0.0, "halo": "exact"}
"""Thirteen row bands, and thousands of features."""
NURSERY = """
import json, os, sys, time, torch
torch.set_num_threads(1)  # no threads before a fork
import pyarrow.parquet
import satseg
from satseg import detect_to_file
model, scene, warm_output = sys.argv[1:]
model = satseg.load_model(model, "cpu")
warm = satseg.open_scene(scene)
detect_to_file(model, warm, warm_output, tile=64, bounds=warm.grid.bounds)
print("ready", flush=True)
for line in sys.stdin:
    output, mask, how, seconds = json.loads(line)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        try:
            detect_to_file(model, scene, output, mask=mask, resume=True, tile=16, min_area=0.0, halo="exact")
        except BaseException as error:
            print("failed", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
    os.kill(child, how)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, a scene of 13 row bands, and what an undisturbed run finds."""
    folder = tmp_path_factory.mktemp("world")
    model = tiny_model()
    model.save(folder / "m.safetensors")
    data = (noise(2, 203, 131) * 9).astype("uint16")
    data[:, 60:75, 20:90] = 0
    write_tiff(folder / "s.tif", data, nodata=0, transform=north_up(0.5), descriptions=BANDS)
    satseg.detect_to_file(model, folder / "s.tif", folder / "whole.gpkg", mask=folder / "whole.tif", **HOW)
    return folder


@pytest.fixture(scope="module")
def nursery(world, tmp_path_factory):
    """Detect into two files in a process forked for it, and strike that after a time; return how it ended.

    The process that forks is one for all tests, so that imports and compiling are done once.
    """
    arguments = [world / "m.safetensors", world / "s.tif", tmp_path_factory.mktemp("warm") / "w.gpkg"]
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NURSERY, *map(str, arguments)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def run(output: Path, mask: Path, seconds: float, how: signal.Signals = signal.SIGKILL) -> str:
        child.stdin.write(json.dumps([str(output), str(mask), int(how), seconds]) + "\n")
        child.stdin.flush()
        return child.stdout.readline().strip()

    try:
        assert child.stdout.readline() == "ready\n"
        yield run
    finally:
        child.stdin.close()
        child.stdout.close()
        child.wait(timeout=60)


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def same_features(path: Path, world: Path) -> None:
    """Assert that a file holds the features of the undisturbed run, to the pixel; in its order, but for FlatGeobuf."""
    found, whole = satseg.read_features(path), satseg.read_features(world / "whole.gpkg")
    if path.suffix == ".fgb":  # its spatial index sorts
        found, whole = (layer.sort_values(["class_name", "area_m2", "score"]) for layer in (found, whole))
    assert found.class_name.tolist() == whole.class_name.tolist()
    np.testing.assert_allclose(found.score, whole.score)
    np.testing.assert_allclose(found.area_m2, whole.area_m2)
    grid = satseg.open_scene(world / "s.tif").grid
    burnt = satseg.rasterize(found, like=grid, classes=["a", "b"]).data
    np.testing.assert_array_equal(burnt == 1, pixels(world / "whole.tif") == 1)


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(world, nursery, tmp_path, suffix):
    output, mask = tmp_path / f"found{suffix}", tmp_path / "mask.tif"
    draws = random.Random(suffix)
    kept = 0
    for _ in range(MOMENTS):
        said = nursery(output, mask, draws.uniform(0.0, 0.35))
        assert said in ("killed", "ended 0")
        if output.exists():  # complete under their names, or not there
            same_features(output, world)
        if mask.exists():
            np.testing.assert_array_equal(pixels(mask), pixels(world / "whole.tif"))
        under_way = any(name.endswith(".run") for name in hidden(tmp_path))
        if said == "ended 0" or (output.exists() and not under_way):  # struck after all was done
            assert mask.exists()
            for path in tmp_path.glob("[!.]*"):
                path.unlink()
        kept += any(name.endswith(".run") and os.listdir(tmp_path / name) for name in hidden(tmp_path))
    assert nursery(output, mask, 60.0) == "ended 0"
    assert kept  # some of the moments fell into a run
    same_features(output, world)
    np.testing.assert_array_equal(pixels(mask), pixels(world / "whole.tif"))
    assert not hidden(tmp_path)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_goes_on_too(world, nursery, tmp_path, how):
    output, mask = tmp_path / "found.gpkg", tmp_path / "mask.tif"
    for seconds in (0.05, 0.15, 0.25):
        nursery(output, mask, seconds, how)
    assert nursery(output, mask, 60.0, how) == "ended 0"
    same_features(output, world)
    assert not hidden(tmp_path)


def stopped_after(world, output, bands, monkeypatch, **options):
    """Run a detection that fails when so many bands are in its ledger."""

    def append(self, arrays, original=Ledger.append):
        if self.finished == bands:
            raise RuntimeError("stopped")
        original(self, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", append)
        with pytest.raises(RuntimeError, match="stopped"):
            satseg.detect_to_file(world / "m.safetensors", world / "s.tif", output, **{**HOW, **options})


def computed_bands(world, output, monkeypatch, **options):
    """Return how many bands a run stores anew."""
    stored = []
    original = Ledger.append
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", lambda self, arrays: stored.append(1) or original(self, arrays))
        satseg.detect_to_file(world / "m.safetensors", world / "s.tif", output, **{**HOW, **options})
    return len(stored)


def test_only_unfinished_bands_are_computed_again(world, tmp_path, monkeypatch):
    output = tmp_path / "found.gpkg"
    stopped_after(world, output, 8, monkeypatch)
    assert not output.exists()
    assert computed_bands(world, output, monkeypatch, resume=True) == 13 - 8
    same_features(output, world)
    assert not hidden(tmp_path)


def test_without_resume_it_starts_anew_and_says_what_is_lost(world, tmp_path, monkeypatch, caplog):
    output = tmp_path / "found.gpkg"
    stopped_after(world, output, 5, monkeypatch)
    assert computed_bands(world, output, monkeypatch) == 13
    assert "unfinished run with 5 bands is started anew; --resume" in caplog.text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"threshold": 0.7}, "thresholds"), ({"halo": 32}, "halo"), ({"tile": 32}, "tiles"), ({"tta": "d4"}, "tta"),
        ({"bounds": (500_000, 4_999_900, 500_060, 5_000_000)}, "area"), ({"min_area": 5.0}, "min_area"),
    ],
)  # fmt: skip
def test_changed_options_are_refused_by_name(world, tmp_path, monkeypatch, change, word):
    output = tmp_path / "found.gpkg"
    stopped_after(world, output, 3, monkeypatch)
    with pytest.raises(UsageError, match=word) as caught:
        satseg.detect_to_file(world / "m.safetensors", world / "s.tif", output, resume=True, **{**HOW, **change})
    assert caught.value.code == "E-USE-030"
    assert computed_bands(world, output, monkeypatch, resume=True) == 10  # the run itself is untouched


def test_a_changed_scene_and_a_changed_model_are_refused(world, tmp_path, monkeypatch):
    scene, model = tmp_path / "s.tif", tmp_path / "m.safetensors"
    scene.write_bytes((world / "s.tif").read_bytes())
    stopped_after(world, tmp_path / "a.gpkg", 3, monkeypatch)
    tiny_model(seed=5).save(model)
    with pytest.raises(UsageError, match=r"model.weights"):
        satseg.detect_to_file(model, world / "s.tif", tmp_path / "a.gpkg", resume=True, **HOW)
    with pytest.raises(UsageError, match=r"inputs"):
        satseg.detect_to_file(world / "m.safetensors", scene, tmp_path / "a.gpkg", resume=True, **HOW)


def test_sizes_left_to_satseg_are_those_of_the_stopped_run(world, tmp_path, monkeypatch):
    """The choice of tiles may follow free memory; a resumed run does not choose again."""
    output = tmp_path / "found.gpkg"
    stopped_after(world, output, 4, monkeypatch)
    options = {"resume": True, "tile": None}
    assert computed_bands(world, output, monkeypatch, **options) == 13 - 4
    same_features(output, world)


def test_a_second_run_on_one_output_is_refused(world, tmp_path):
    output = tmp_path / "found.gpkg"
    with Ledger.open(output, {}, resume=False), pytest.raises(OutputError) as caught:
        satseg.detect_to_file(world / "m.safetensors", world / "s.tif", output, **HOW)
    assert caught.value.code == "E-OUT-007"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("suffix", "raster"),
    [*((suffix, None) for suffix in SUFFIXES), (".gpkg", "mask"), (".parquet", "scores"), (".shp", "entropy")],
)
def test_a_full_disk_is_told_and_leaves_nothing_half_done(world, small_disk, suffix, raster):
    output = small_disk / f"found{suffix}"
    rasters = {} if raster is None else {raster: small_disk / "r.tif"}
    with pytest.raises(OutputError) as caught:
        satseg.detect_to_file(world / "m.safetensors", world / "s.tif", output, **rasters, **HOW)
    assert caught.value.exit_code == 4
    assert [name for name in os.listdir(small_disk) if not name.startswith(".")] in ([], ["r.tif"])
    if raster == "mask" and rasters["mask"].exists():
        np.testing.assert_array_equal(pixels(rasters["mask"]), pixels(world / "whole.tif"))


@pytest.mark.parametrize("outputs", [{}, {"mask": "m.tif", "scores": "s.tif", "entropy": "e.tif"}])
def test_an_error_in_the_middle_leaves_only_the_ledger(world, tmp_path, monkeypatch, outputs):
    rasters = {name: tmp_path / file for name, file in outputs.items()}
    stopped_after(world, tmp_path / "found.shp", 6, monkeypatch, **rasters)
    (left,) = os.listdir(tmp_path)
    assert left.endswith(".run")
    satseg.detect_to_file(
        world / "m.safetensors", world / "s.tif", tmp_path / "found.shp", resume=True, **rasters, **HOW
    )
    same_features(tmp_path / "found.shp", world)
