"""Bad input of every kind: one line with a code, the documented exit status, nothing written, no long work.

Each row is a command line; {t} is a folder of good files, {bad} one of bad files, {o} an empty folder
for outputs.
"""

from __future__ import annotations

import os
import pickle
import socket

import geopandas
import numpy as np
import pytest
import rasterio
import safetensors.numpy
from affine import Affine
from rasterio.control import GroundControlPoint

import satseg
from tests.commands import TINY, command_of, files_under, write_mask
from tests.factories import noise, north_up, write_tiff

BANDS = ("red", "nir")


@pytest.fixture(scope="module")
def bad(tmp_path_factory, town):
    """A folder of files that are not what their names say, or lack what is needed."""
    folder = tmp_path_factory.mktemp("bad")
    _bad_rasters(folder, town)
    _bad_labels(folder, town)
    _bad_models(folder, town)
    (folder / "typo.toml").write_text("[train]\nmintes = 5\n")
    (folder / "twice.toml").write_text("[train]\nchip = 32\nchip = 64\n")
    (folder / "open.toml").write_text("[train\n")
    (folder / "word.toml").write_text("[train]\nsteps = 'many'\n")
    return folder


def _bad_rasters(folder, town):
    for name in ("empty.tif", "empty.gpkg", "empty.safetensors", "empty.toml"):
        (folder / name).touch()
    (folder / "text.tif").write_text("no image")
    (folder / "folder.tif").mkdir()
    os.mkfifo(folder / "fifo.tif")
    (folder / "loop.tif").symlink_to("loop.tif")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # a socket's path has 108 bytes at most
    listener.bind("socket.tif")
    os.chdir(here)
    listener.close()
    (folder / "canary.txt").write_text("secret")
    (folder / "vrt.tif").write_text(
        f'<VRTDataset rasterXSize="2" rasterYSize="2"><VRTRasterBand dataType="Byte" band="1" '
        f'subClass="VRTRawRasterBand"><SourceFilename>{folder}/canary.txt</SourceFilename></VRTRasterBand></VRTDataset>'
    )
    (folder / "wms.tif").write_text("<GDAL_WMS><Service name='WMS'/></GDAL_WMS>")
    whole = (town / "a.tif").read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "head.tif").write_bytes(whole[:60])
    (folder / "bandless.tif").write_bytes(b"II*\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00")
    one_metre = {"transform": north_up(1.0), "descriptions": BANDS}
    write_tiff(folder / "nodata.tif", np.zeros((2, 90, 131), "uint16"), nodata=0, **one_metre)
    write_tiff(folder / "nan.tif", np.full((2, 90, 131), np.nan, "float32"), **one_metre)
    write_tiff(folder / "red.tif", noise(1, 90, 131), transform=north_up(1.0), descriptions=["red"])
    write_tiff(folder / "unnamed.tif", noise(2, 90, 131), transform=north_up(1.0))
    write_tiff(folder / "complex.tif", np.ones((1, 5, 6), "complex64"))
    write_tiff(folder / "small.tif", noise(2, 20, 21), **one_metre)
    corners = [GroundControlPoint(*corner) for corner in ((0, 0, 15, 45), (0, 131, 15.1, 45), (90, 0, 15, 44))]
    write_tiff(folder / "gcp.tif", noise(2, 90, 131), transform=Affine.identity(), crs="EPSG:4326", gcps=corners)


def _bad_labels(folder, town):
    labels = satseg.read_features(town / "a.gpkg")
    labels.iloc[:0].to_file(folder / "none.gpkg")
    labels.set_geometry(labels.translate(1e6, 0)).to_file(folder / "far.gpkg")
    labels.set_geometry(labels.centroid).to_file(folder / "points.gpkg")
    (folder / "text.gpkg").write_text("no labels")
    (folder / "folder.gpkg").mkdir()
    (folder / "cut.gpkg").write_bytes((town / "a.gpkg").read_bytes()[:9000])
    (folder / "cut.geojson").write_text(labels.to_json()[:700])
    (folder / "vrt.geojson").write_text("<OGRVRTDataSource></OGRVRTDataSource>")
    geopandas.GeoDataFrame(labels.drop(columns="geometry")).to_csv(folder / "table.csv", index=False)


def _bad_models(folder, town):
    whole = bytearray((town / "model.safetensors").read_bytes())
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    whole[-9] ^= 1
    (folder / "flipped.safetensors").write_bytes(whole)
    safetensors.numpy.save_file({"weight": np.zeros(3)}, folder / "foreign.safetensors")
    (folder / "pickle.safetensors").write_bytes(pickle.dumps(_Canary(str(folder / "executed"))))
    (folder / "folder.safetensors").mkdir()


class _Canary:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def refused(capfd, town, bad, tmp_path):
    """Run a row and assert that it is refused as it should be and leaves every folder as it was."""
    run = command_of(capfd)

    def check(row, status, code):
        before = files_under(town, bad, tmp_path)
        words = [word.format(t=town, bad=bad, o=tmp_path) for word in row.split()]
        line = run(*words).refused(status, code)
        assert files_under(town, bad, tmp_path) == before
        return line

    return check


# --- scenes

SCENES = [
    ("{bad}/absent.tif", "E-IN-101"),
    ("{bad}/folder.tif", "E-IN-102"),
    ("{bad}/fifo.tif", "E-IN-102"),
    ("{bad}/socket.tif", "E-IN-102"),
    ("/dev/null", "E-IN-102"),
    ("{bad}/loop.tif", "E-IN-109"),
    ("{bad}/empty.tif", "E-IN-103"),
    ("{bad}/text.tif", "E-IN-104"),
    ("{bad}/vrt.tif", "E-IN-104"),
    ("{bad}/wms.tif", "E-IN-104"),
    ("{t}/a.gpkg", "E-IN-104"),
    ("{bad}/head.tif", "E-IN-105"),
    ("{bad}/bandless.tif", "E-IN-105"),
    ("{bad}/complex.tif", "E-IN-108"),
    ("{bad}/gcp.tif", "E-CRS-101"),
    ("{t}/a.tif,{t}/bare.tif", "E-CRS-102"),
    ("{t}/a_red.tif,{bad}/absent.tif", "E-IN-101"),
]


@pytest.mark.parametrize(("scene", "code"), SCENES)
def test_what_is_no_scene_is_refused_by_info(refused, scene, code):
    refused(f"info {scene}", 3, code)


@pytest.mark.parametrize(("scene", "code"), SCENES[::4])
@pytest.mark.parametrize(
    "command",
    [
        "detect {{t}}/model.safetensors {scene} -o {{o}}/x.gpkg",
        "train --data {scene} {{t}}/a.gpkg -o {{o}}/x.safetensors",
        "rasterize {{t}}/a.gpkg --like {scene} -o {{o}}/x.tif",
        "score {{t}}/a.gpkg {{t}}/a.gpkg --scene {scene}",
    ],
)
def test_every_command_refuses_a_bad_scene_alike(refused, command, scene, code):
    refused(command.format(scene=scene), 3, code)


@pytest.mark.parametrize(
    ("scene", "code", "said"),
    [
        ("{bad}/red.tif", "E-BAND-052", "nir"),
        ("{bad}/unnamed.tif", "E-BAND-052", "--sensor"),
    ],
)
def test_scenes_that_a_model_cannot_use(refused, scene, code, said):
    assert said in refused(f"detect {{t}}/model.safetensors {scene} -o {{o}}/x.gpkg --device cpu", 3, code)


@pytest.mark.parametrize("name", ["nodata", "nan"])
def test_scene_without_a_valid_pixel_is_said_to_be_one(capfd, town, bad, tmp_path, name):
    outputs = ("-o", tmp_path / "x.gpkg", "--mask", tmp_path / "m.tif", "--scores", tmp_path / "s.tif")
    said = command_of(capfd)("detect", town / "model.safetensors", bad / f"{name}.tif", *outputs)
    assert said.status == 3
    assert said.err.splitlines()[-1].endswith("[E-IN-020]")
    assert not files_under(tmp_path)


def test_damage_that_shows_up_in_mid_detection_leaves_nothing(capfd, town, tmp_path):
    data = np.random.default_rng(0).integers(1, 900, (2, 512, 64)).astype("uint16")
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    whole = write_tiff(tmp_path / "whole.tif", data, transform=north_up(1.0), descriptions=BANDS, **tiles)
    (tmp_path / "cut.tif").write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    before = files_under(tmp_path)
    outputs = ("-o", tmp_path / "x.shp", "--mask", tmp_path / "m.tif", "--scores", tmp_path / "s.tif")
    said = command_of(capfd)("detect", town / "model.safetensors", tmp_path / "cut.tif", *outputs, "--tile", 64)
    assert said.status == 3
    *progress, last = said.err.splitlines()
    assert "damaged" in last
    assert progress[-1].startswith("detect ")
    assert last.startswith("satseg: error: ")
    assert last.endswith("[E-IN-106]")
    assert files_under(tmp_path) == before


def test_bands_in_another_order_are_found_by_name(capfd, town, tmp_path):
    with rasterio.open(town / "a.tif") as scene:
        write_tiff(tmp_path / "turned.tif", scene.read()[::-1], transform=scene.transform, descriptions=BANDS[::-1])
    run = command_of(capfd)
    for name, path in (("a", town / "a.tif"), ("turned", tmp_path / "turned.tif")):
        run("detect", town / "model.safetensors", path, "-o", tmp_path / f"{name}.csv").done()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "turned.csv").read_bytes()


# --- models


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("{bad}/absent.safetensors", "E-MOD-010"),
        ("{bad}/folder.safetensors", "E-MOD-010"),
        ("{bad}/pickle.safetensors", "E-MOD-011"),
        ("{bad}/empty.safetensors", "E-MOD-012"),
        ("{t}/a.tif", "E-MOD-012"),
        ("{bad}/foreign.safetensors", "E-MOD-013"),
        ("{bad}/cut.safetensors", "E-MOD-014"),
        ("{bad}/flipped.safetensors", "E-MOD-018"),
    ],
)
def test_what_is_no_model_is_refused_and_not_run(refused, bad, model, code):
    refused(f"detect {model} {{t}}/a.tif -o {{o}}/x.gpkg", 3, code)
    refused(f"detect {model} {{t}}/a.tif {{t}}/b.tif -o {{o}}", 3, code)
    assert not (bad / "executed").exists()


# --- labels


@pytest.mark.parametrize(
    ("labels", "code", "said"),
    [
        ("{bad}/absent.gpkg", "E-IN-211", "does not exist"),
        ("{bad}/folder.gpkg", "E-IN-212", "folder"),
        ("{bad}/empty.gpkg", "E-IN-213", "0 bytes"),
        ("{bad}/text.gpkg", "E-IN-214", "GeoPackage"),
        ("{bad}/vrt.geojson", "E-IN-214", "XML"),
        ("{bad}/cut.gpkg", "E-IN-216", "damaged"),
        ("{bad}/cut.geojson", "E-IN-216", "damaged"),
        ("{bad}/none.gpkg", "E-LAB-201", "no labels"),
        ("{bad}/far.gpkg", "E-LAB-202", "check the CRS"),
        ("{bad}/points.gpkg", "E-LAB-212", "buffer"),
        ("{t}/a.parquet --field knid", "E-LAB-211", "did you mean 'kind'"),
        ("{t}/a.gpkg --classes a,c", "E-LAB-010", "'c'"),
        ("{t}/bare.parquet", "E-CRS-201", "EPSG:32633"),
    ],
)
def test_labels_that_nothing_can_be_learnt_from(refused, labels, code, said):
    assert said in refused(f"train --data {{t}}/a.tif {labels} -o {{o}}/x.safetensors {' '.join(TINY)}", 3, code)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("rasterize {bad}/points.gpkg --like {t}/a.tif -o {o}/x.tif", "E-LAB-212"),
        ("rasterize {t}/a.gpkg --like {t}/a.tif -o {o}/x.tif --field kin", "E-LAB-211"),
        ("rasterize {t}/a.gpkg --like {t}/a.tif -o {o}/x.tif --classes c", "E-LAB-213"),
        ("rasterize {t}/a.gpkg --like {t}/bare.tif -o {o}/x.tif", "E-CRS-201"),
        ("score {t}/a.gpkg {bad}/absent.gpkg", "E-IN-211"),
        ("score {bad}/text.gpkg {t}/a.gpkg", "E-IN-214"),
        ("score {t}/a.gpkg {t}/bare.parquet", "E-CRS-010"),
        ("score {t}/a.gpkg {t}/b.gpkg --scene {t}/a.tif", "E-LAB-032"),
        ("score {t}/a.gpkg {t}/a.gpkg --aoi {bad}/absent.gpkg", "E-IN-211"),
        ("polygonize {bad}/absent.tif -o {o}/x.gpkg", "E-IN-101"),
        ("polygonize {bad}/text.tif -o {o}/x.gpkg", "E-IN-104"),
        ("polygonize {bad}/cut.tif -o {o}/x.gpkg", "E-IN-201"),
        ("polygonize {t}/a.tif -o {o}/x.gpkg --band 3", "E-BAND-204"),
        ("polygonize {t}/a.tif -o {o}/x.gpkg --band 0", "E-BAND-204"),
        ("polygonize {t}/bare.tif -o {o}/x.geojson", "E-CRS-211"),
        ("detect {t}/model.safetensors {t}/bare.tif -o {o}/x.geojson", "E-CRS-211"),
    ],
)
def test_other_commands_refuse_what_they_cannot_use(refused, row, code):
    refused(row, 3, code)


def test_the_hint_on_a_missing_crs_works(capfd, town, tmp_path):
    run = command_of(capfd)
    mask = write_mask(tmp_path / "mask.tif", np.ones((1, 3, 4)), crs=None)
    for args in (("polygonize", mask), ("detect", town / "model.safetensors", town / "bare.tif")):
        target = tmp_path / f"{args[0]}.geojson"
        assert "--src-crs" in run(*args, "-o", target).refused(3, "E-CRS-211")
        run(*args, "-o", target, "--src-crs", "EPSG:32633").done()
        assert satseg.read_features(target).total_bounds[0] == pytest.approx(15, abs=0.01)
    args = ("rasterize", town / "a.gpkg", "--like", town / "bare.tif", "-o", tmp_path / "burnt.tif")
    assert "--src-crs" in run(*args).refused(3, "E-CRS-201")
    run(*args, "--src-crs", "EPSG:32633").done()
    run(*args, "--src-crs", "EPSG:nonsense", "--overwrite").refused(3, "E-CRS-002")


# --- training data


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        ("", 2, "E-TRN-001"),
        ("--data {bad}/cut.tif {t}/a.gpkg", 3, "E-IN-106"),
        ("--data {bad}/nodata.tif {t}/a.gpkg", 3, "E-IN-020"),
        ("--data {bad}/small.tif {t}/a.gpkg", 2, "E-TRN-003"),
        ("--data {t}/a.tif {t}/a.gpkg --data {bad}/red.tif {t}/a.gpkg", 3, "E-BAND-010"),
        ("--data {t}/a.tif {t}/a.gpkg --valid-data {t}/a.tif {t}/a.gpkg", 3, "E-TRN-004"),
        ("--data {t}/a.tif {t}/a.gpkg --bands red,swir", 3, "E-BAND-010"),
        ("--data {t}/a.tif {t}/a.gpkg --bands 3", 3, "E-BAND-010"),
        ("--data {t}/a.tif {t}/a.gpkg train.loss=none", 2, "E-SPEC-050"),
    ],
)
def test_training_data_is_checked_before_training(refused, data, status, code):
    refused(f"train {' '.join(TINY)} {data} -o {{o}}/x.safetensors", status, code)
