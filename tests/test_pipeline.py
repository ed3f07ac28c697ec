"""Detection end to end: what is written agrees with what is returned, and bad requests fail early."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import rasterio

import satseg
from satseg.errors import CRSError, InputError, OutputError, UsageError
from tests.factories import noise, north_up, rotated, write_tiff
from tests.worlds import BANDS, tiny_model

EXACT = {"min_area": 0.0, "tile": 48}


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def scene(tmp_path):
    pixels = noise(2, 70, 111).astype("uint16") * 8
    pixels[:, 10:20, 30:50] = 0
    return write_tiff(tmp_path / "scene.tif", pixels, transform=north_up(0.5), nodata=0, descriptions=BANDS)


def test_mask_scores_and_polygons_agree(model, scene, tmp_path):
    found = satseg.detect(model, scene, mask=tmp_path / "m.tif", scores=tmp_path / "s.tif", **EXACT)
    with rasterio.open(tmp_path / "m.tif") as mask, rasterio.open(tmp_path / "s.tif") as scores:
        pixels, values = mask.read(), scores.read()
        assert mask.descriptions == scores.descriptions == ("a", "b")
        assert mask.dtypes[0] == "uint8"
        assert np.isnan(scores.nodata)
    invalid = np.zeros((70, 111), bool)
    invalid[10:20, 30:50] = True
    np.testing.assert_array_equal(pixels == 255, np.stack([invalid] * 2))
    np.testing.assert_array_equal(np.isnan(values), np.stack([invalid] * 2))
    np.testing.assert_array_equal(pixels[:, ~invalid], values[:, ~invalid] >= 0.5)
    burnt = satseg.rasterize(found, like=satseg.open_scene(scene).grid, classes=["a", "b"])
    np.testing.assert_array_equal(burnt.data, pixels == 1)
    assert found.area_m2.sum() == pytest.approx((pixels == 1).sum() * 0.25, rel=1e-9)
    assert found.is_valid.all()


HALF_STEP = 0.5 / 253 / 2
"""Scores on their way to means are in 253 steps from the threshold to 1."""


def test_polygon_scores_are_means_of_their_pixels(model, scene, tmp_path):
    found = satseg.detect(model, scene, **EXACT)
    scores = satseg.predict(model, scene, tile=48)
    for row in found.sort_values("area_m2").tail(5).itertuples():
        one = geopandas.GeoDataFrame({"class_name": [row.class_name]}, geometry=[row.geometry], crs=found.crs)
        inside = satseg.rasterize(one, like=scores.grid, classes=[row.class_name]).data[0] == 1
        assert row.score == pytest.approx(scores.select([row.class_name]).data[0][inside].mean(), abs=HALF_STEP)


@pytest.mark.parametrize("suffix", [".shp", ".gpkg", ".geojson", ".fgb", ".parquet", ".csv"])
def test_every_format_holds_what_detect_returns(model, scene, tmp_path, suffix):
    found = satseg.detect(model, scene, output=tmp_path / f"f{suffix}", **EXACT)
    back = satseg.read_features(tmp_path / f"f{suffix}")
    assert len(back) == len(found)
    grid = satseg.open_scene(scene).grid
    burnt = [satseg.rasterize(layer, like=grid, classes=["a", "b"]).data for layer in (found, back)]
    np.testing.assert_array_equal(*burnt)


def test_bounds_give_the_part_of_the_whole(model, scene):
    bounds = (500_005.0, 4_999_975.0, 500_030.0, 4_999_993.0)
    whole, part = satseg.predict(model, scene, tile=1000), satseg.predict(model, scene, bounds=bounds, tile=16)
    assert part.grid.bounds == bounds
    window = whole.grid.window_of(bounds)
    np.testing.assert_allclose(part.data, whole.crop(window).data, atol=1e-5)
    found = satseg.detect(model, scene, bounds=bounds, **EXACT)
    left, bottom, right, top = found.total_bounds
    assert (left >= bounds[0], bottom >= bounds[1], right <= bounds[2], top <= bounds[3]) == (True,) * 4


@pytest.mark.parametrize(("transform", "crs"), [(rotated(30, 0.5), "EPSG:32633"), (north_up(1.0), None)])
def test_rotated_and_unplaced_scenes_keep_their_space(model, tmp_path, transform, crs):
    path = write_tiff(tmp_path / "s.tif", noise(2, 33, 47) * 8, transform=transform, crs=crs, descriptions=BANDS)
    found = satseg.detect(model, path, output=tmp_path / "f.gpkg", mask=tmp_path / "m.tif", **EXACT)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert mask.transform.almost_equals(transform)
        burnt = satseg.rasterize(found, like=satseg.open_scene(path).grid, classes=["a", "b"])
        np.testing.assert_array_equal(burnt.data, mask.read())


def test_nothing_found_is_an_empty_layer_with_its_columns(model, scene, tmp_path):
    found = satseg.detect(model, scene, output=tmp_path / "f.gpkg", min_area=1e9)
    assert len(found) == 0
    assert [*satseg.read_features(tmp_path / "f.gpkg").columns][:2] == ["class_id", "class_name"]
    assert found.crs == "EPSG:32633"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"output": "f.kml"}, UsageError),
        ({"output": "absent/f.gpkg"}, OutputError),
        ({"mask": "absent/m.tif"}, OutputError),
        ({"tta": "d8"}, UsageError),
        ({"threshold": 1.5}, UsageError),
        ({"min_aera": 3}, UsageError),
        ({"tile": 0}, UsageError),
        ({"simplify": -1.0}, UsageError),
        ({"bounds": (0.0, 0.0, 1.0, 1.0)}, InputError),
    ],
)
def test_bad_requests_are_refused_and_leave_nothing(model, scene, tmp_path, options, kind):
    places = {key: tmp_path / value if key in ("output", "mask") else value for key, value in options.items()}
    with pytest.raises(kind):
        satseg.detect(model, scene, **places)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_scene_without_a_valid_pixel_is_refused(model, tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(2, 30, 40) * 0, nodata=0, descriptions=BANDS)
    with pytest.raises(InputError, match="no valid pixel"):
        satseg.detect(model, path, output=tmp_path / "f.shp")
    assert [path.name for path in tmp_path.iterdir()] == ["s.tif"]


def test_geojson_needs_a_place_on_earth(model, tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(2, 30, 40), crs=None, descriptions=BANDS)
    with pytest.raises(CRSError):
        satseg.detect(model, path, output=tmp_path / "f.geojson")


def test_failed_detection_leaves_an_existing_output_alone(model, scene, tmp_path):
    target = tmp_path / "f.gpkg"
    satseg.detect(model, scene, output=target)
    before = target.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        satseg.detect(model, scene, output=target)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(scene.read_bytes()[:-4000])
    with pytest.raises(InputError):
        satseg.detect(model, cut, output=target, overwrite=True)
    assert target.read_bytes() == before
