"""`satseg detect`: every output it can write, scenes one by one and by the dozen, and going on after a stop."""

from __future__ import annotations

import shutil

import geopandas
import numpy as np
import pytest
import rasterio.warp

import satseg
from tests.commands import files_under, same_features
from tests.factories import north_up, write_tiff

BANDS = ("red", "nir")


# --- one scene


@pytest.mark.parametrize("suffix", [".shp", ".gpkg", ".geojson", ".fgb", ".parquet", ".csv"])
def test_every_suffix_holds_what_the_library_finds(detect, town, tmp_path, expected, suffix):
    target = tmp_path / f"found{suffix}"
    said = detect(town / "a.tif", "-o", target).done()
    counts = expected.groupby("class_name").size()
    assert said.out == f"{target}: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + "\n"
    assert said.err.startswith("a: 0.0 Mpx in 1 tile, ")
    assert "\ndetect 100 %" in said.err
    found = satseg.read_features(target)
    assert list(found.columns) == ["class_id", "class_name", "score", "area_m2", "geometry"]
    assert len(found) == len(expected)
    if suffix == ".geojson":
        assert found.crs == "EPSG:4326"
    elif suffix in (".gpkg", ".parquet"):  # the others round, or sort by place
        assert same_features(found, expected)


def test_mask_and_scores_lie_on_the_scene_and_agree(detect, town, tmp_path):
    mask, scores = tmp_path / "mask.tif", tmp_path / "scores.tif"
    detect(town / "a.tif", "-o", tmp_path / "found.gpkg", "--mask", mask, "--scores", scores).done()
    with rasterio.open(mask) as inside, rasterio.open(scores) as sure, rasterio.open(town / "a.tif") as scene:
        for out, dtype in ((inside, "uint8"), (sure, "float32")):
            assert (out.shape, out.transform, out.crs) == (scene.shape, scene.transform, scene.crs)
            assert (out.descriptions, set(out.dtypes)) == (("a", "b"), {dtype})
        assert np.array_equal(inside.read() == 1, sure.read() >= 0.5)


def test_invalid_pixels_are_255_and_nan_and_in_no_polygon(detect, tmp_path):
    data = np.random.default_rng(0).normal(500, 200, (2, 37, 53)).astype("float32")
    data[0, 5, 7], data[1, 20, 30], data[:, 30:, :] = np.nan, np.inf, np.nan
    path = write_tiff(tmp_path / "holes.tif", data, transform=north_up(1.0), descriptions=BANDS)
    outputs = {name: tmp_path / name for name in ("mask.tif", "scores.tif", "found.gpkg")}
    args = ("--mask", outputs["mask.tif"], "--scores", outputs["scores.tif"], "--min-area", 0)
    detect(path, "-o", outputs["found.gpkg"], *args).done()
    lost = ~np.isfinite(data).all(axis=0)
    with rasterio.open(outputs["mask.tif"]) as mask, rasterio.open(outputs["scores.tif"]) as scores:
        assert np.array_equal(mask.read() == 255, np.stack([lost, lost]))
        assert np.array_equal(np.isnan(scores.read()), np.stack([lost, lost]))
        found, grid = satseg.read_features(outputs["found.gpkg"]), satseg.open_scene(path).grid
        assert np.array_equal(satseg.rasterize(found, like=grid, classes=["a", "b"]).data, mask.read() == 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 57), (33, 1), (3, 5), (31, 17)])
def test_scenes_smaller_than_a_tile_keep_their_size(detect, tmp_path, size):
    data = np.random.default_rng(1).integers(100, 900, (2, *size)).astype("uint16")
    path = write_tiff(tmp_path / "small.tif", data, transform=north_up(1.0), descriptions=BANDS)
    detect(path, "-o", tmp_path / "found.gpkg", "--mask", tmp_path / "mask.tif").done()
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert mask.shape == size
        assert set(np.unique(mask.read())) <= {0, 1}


def test_tile_batch_and_halo_change_nothing(detect, town, tmp_path, expected):
    args = ("--tile", 32, "--batch-size", 3, "--simplify", 0)
    detect(town / "a.tif", "-o", tmp_path / "found.parquet", *args).done()
    assert same_features(geopandas.read_parquet(tmp_path / "found.parquet"), expected)


def test_bounds_limit_the_work_in_any_crs(detect, town, tmp_path, expected):
    bounds = (500_020, 4_999_930, 500_071, 4_999_980)
    detect(town / "a.tif", "-o", tmp_path / "part.gpkg", "--bounds", *bounds).done()
    part = satseg.read_features(tmp_path / "part.gpkg")
    assert 0 < len(part) < len(expected)
    left, bottom, right, top = part.total_bounds
    assert left >= bounds[0]
    assert bottom >= bounds[1]
    assert right <= bounds[2]
    assert top <= bounds[3]
    degrees = rasterio.warp.transform_bounds("EPSG:32633", "EPSG:4326", *bounds)
    args = ("--bounds", *degrees, "--bounds-crs", "EPSG:4326", "--mask", tmp_path / "mask.tif")
    detect(town / "a.tif", "-o", tmp_path / "same.gpkg", *args).done()
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert abs(mask.height - 50) <= 2
        assert abs(mask.width - 51) <= 2


def test_min_area_threshold_and_simplify_leave_less(detect, town, tmp_path, expected):
    detect(town / "a.tif", "-o", tmp_path / "large.gpkg", "--min-area", 20).done()
    large = satseg.read_features(tmp_path / "large.gpkg")
    assert len(large) == (expected["area_m2"] >= 20).sum()
    detect(town / "a.tif", "-o", tmp_path / "sure.gpkg", "--threshold", 0.999).done()
    assert satseg.read_features(tmp_path / "sure.gpkg")["area_m2"].sum() < expected["area_m2"].sum()
    detect(town / "a.tif", "-o", tmp_path / "plain.gpkg", "--min-area", 20, "--simplify", 2).done()
    plain = satseg.read_features(tmp_path / "plain.gpkg")
    assert plain.geometry.count_coordinates().sum() < large.geometry.count_coordinates().sum()


def test_tta_averages_over_the_eight_turns(detect, town, tmp_path):
    detect(town / "a.tif", "-o", tmp_path / "x.gpkg", "--tta", "d4", "--scores", tmp_path / "turned.tif").done()
    scores = satseg.predict(town / "model.safetensors", town / "a.tif", tta="d4")
    with rasterio.open(tmp_path / "turned.tif") as turned:
        assert np.allclose(turned.read(), scores.data, atol=1e-5)


@pytest.mark.parametrize("way", ["--scene-files", "commas"])
def test_a_scene_in_several_files_is_one_scene(detect, town, tmp_path, expected, way):
    both = f"{town / 'a_nir.tif'},{town / 'a_red.tif'}"
    detect(*([way, both] if way != "commas" else [both]), "-o", tmp_path / "found.parquet").done()
    assert same_features(geopandas.read_parquet(tmp_path / "found.parquet"), expected)


def test_scene_without_crs_stays_in_pixels_unless_given_one(detect, town, tmp_path):
    detect(town / "bare.tif", "-o", tmp_path / "bare.gpkg").done()
    assert satseg.read_features(tmp_path / "bare.gpkg").crs is None
    detect(town / "bare.tif", "-o", tmp_path / "placed.geojson", "--src-crs", "EPSG:32633").done()
    placed = satseg.read_features(tmp_path / "placed.geojson")
    assert placed.crs == "EPSG:4326"
    assert placed.total_bounds[:2] == pytest.approx((15, 45.15), abs=0.05)


def test_nothing_found_is_an_empty_layer_with_its_crs(detect, town, tmp_path):
    said = detect(town / "a.tif", "-o", tmp_path / "none.gpkg", "--min-area", 1e9).done()
    assert said.out.endswith(": 0 features\n")
    none = satseg.read_features(tmp_path / "none.gpkg")
    assert (len(none), none.crs) == (0, "EPSG:32633")


def test_overwrite_replaces_and_resume_keeps(detect, town, tmp_path):
    target = tmp_path / "found.shp"
    detect(town / "a.tif", "-o", target).done()
    before = target.read_bytes()
    detect(town / "b.tif", "-o", target).refused(4, "E-OUT-003")
    assert detect(town / "b.tif", "-o", target, "--resume").done().out == f"{target}: kept\n"
    assert target.read_bytes() == before
    detect(town / "b.tif", "-o", target, "--overwrite").done()
    assert target.read_bytes() != before


def test_resume_replaces_only_what_the_stopped_run_made(detect, town, tmp_path):
    target, mask = tmp_path / "found.gpkg", tmp_path / "mask.tif"
    mask.write_bytes(b"of somebody else")
    detect(town / "a.tif", "-o", target, "--mask", mask, "--resume").refused(4, "E-OUT-003")
    mask.unlink()
    detect(town / "a.tif", "-o", target, "--mask", mask, "--resume").done()
    with rasterio.open(mask) as written:
        assert written.count == 2
    mask.unlink()
    detect(town / "a.tif", "-o", target, "--mask", mask, "--resume").refused(4, "E-OUT-003")


# --- several scenes


def test_several_scenes_go_into_a_folder_by_their_names(detect, town, tmp_path, expected):
    said = detect(town / "a.tif", town / "b.tif", "-o", tmp_path, "--suffix", ".parquet").done()
    assert same_features(geopandas.read_parquet(tmp_path / "a.parquet"), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"a.parquet", "b.parquet"}
    assert [line.split()[0] for line in said.out.splitlines()] == [str(town / "a.tif"), str(town / "b.tif")]


def test_one_bad_scene_does_not_stop_the_others(detect, town, tmp_path):
    bad, out = tmp_path / "bad.tif", tmp_path / "out"
    bad.write_text("no image")
    out.mkdir()
    said = detect(town / "a.tif", bad, town / "b.tif", "-o", out)
    assert said.status == 5
    assert {path.name for path in out.iterdir()} == {"a.gpkg", "b.gpkg"}
    rows = said.out.splitlines()
    assert [row.split()[0] for row in rows] == [str(town / "a.tif"), str(bad), str(town / "b.tif")]
    assert ["failed" in row for row in rows] == [False, True, False]
    assert rows[1].endswith("[E-IN-104]")
    last = said.err.splitlines()[-1]
    assert last.startswith("satseg: error: 1 of 3 scenes failed: ")
    assert last.endswith("[E-PART-001]")
    bad.write_bytes((town / "a.tif").read_bytes())
    said = detect(town / "a.tif", bad, town / "b.tif", "-o", out, "--resume").done()
    assert ["kept" in row for row in said.out.splitlines()] == [True, False, True]


def test_a_scene_that_lacks_a_band_fails_alone(detect, town, tmp_path):
    said = detect(town / "a_red.tif", town / "a.tif", "-o", tmp_path)
    assert said.status == 5
    assert "nir missing" in said.out.splitlines()[0]
    assert {path.name for path in tmp_path.iterdir()} == {"a.gpkg"}


@pytest.mark.parametrize(
    ("extra", "status"), [(["--sensor", "nonesuch"], 2), (["--tile", "0"], 2), (["--suffix", ".kml"], 2)]
)
def test_wrong_options_stop_a_batch_at_once(detect, town, tmp_path, extra, status):
    said = detect(town / "a.tif", town / "b.tif", "-o", tmp_path, *extra)
    assert (said.status, said.out, len(said.err.splitlines())) == (status, "", 1)
    assert not list(tmp_path.iterdir())


def test_scenes_of_one_name_would_collide(detect, town, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(town / "a.tif", tmp_path / "other" / "a.tif")
    before = files_under(tmp_path)
    said = detect(town / "a.tif", tmp_path / "other" / "a.tif", "-o", tmp_path)
    assert "one name" in said.refused(2, "E-USE-001")
    assert files_under(tmp_path) == before


def test_masks_of_several_scenes_have_no_name(detect, town, tmp_path):
    args = ("-o", tmp_path, "--mask", tmp_path / "m.tif")
    detect(town / "a.tif", town / "b.tif", *args).refused(2, "E-USE-000")
