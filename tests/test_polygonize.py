"""Masks to features and back: exact, valid, in place, from arrays and from files alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from satseg.errors import SatsegError
from satseg.grid import Grid
from satseg.imagery.labels import rasterize
from satseg.imagery.writer import write_raster
from satseg.raster import Raster
from satseg.vector import polygonize as polygonize_module
from satseg.vector.features import read_features, write_features
from satseg.vector.polygonize import polygonize, polygonize_file, polygonize_to_file

TRANSFORMS = {
    "north-up": (Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000), 32633),
    "rotated": (Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000) * Affine.rotation(30), 32633),
    "sheared": (Affine(0.3, 0.1, 500_000, 0.05, -0.4, 5_000_000), 32633),
    "south-up": (Affine(0.3, 0, 500_000, 0, 0.3, 5_000_000), 32633),
    "non-square": (Affine(0.3, 0, 500_000, 0, -1.7, 5_000_000), 32633),
    "degrees": (Affine(2.7e-6, 0, 13.4, 0, -2.7e-6, 52.5), 4326),
    "feet": (Affine(1, 0, 1_000_000, 0, -1, 200_000), 2263),
    "no crs": (Affine(2, 0, 10, 0, -3, 20), None),
    "pixel space": (Affine.identity(), None),
}
masks = npst.arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 11)))


def grid_of(name: str, height: int = 24, width: int = 31) -> Grid:
    transform, crs = TRANSFORMS[name]
    return Grid(height, width, transform, crs)


def noise(grid: Grid, *, bands: int = 2, seed: int = 0, share: float = 0.6) -> np.ndarray:
    return np.random.default_rng(seed).random((bands, *grid.shape)) < share


def code_of(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SatsegError) as caught:
        call(*args, **kwargs)
    return caught.value.code


@settings(max_examples=40, deadline=None)
@given(mask=masks, place=st.sampled_from(list(TRANSFORMS)))
def test_burning_the_polygons_restores_the_mask_exactly(mask: np.ndarray, place: str) -> None:
    grid = grid_of(place, *mask.shape[1:])
    names = [f"class_{k}" for k in range(len(mask))]
    features = polygonize(mask, grid=grid, names=names)
    assert features.is_valid.all()
    np.testing.assert_array_equal(rasterize(features, like=grid, classes=names).data, mask)


@pytest.mark.parametrize("suffix", [".shp", ".gpkg", ".geojson", ".fgb", ".parquet", ".csv"])
@pytest.mark.parametrize("place", list(TRANSFORMS))
def test_the_mask_survives_every_format(tmp_path: Path, place: str, suffix: str) -> None:
    grid = grid_of(place)
    if grid.crs is None and suffix == ".geojson":
        features = polygonize(noise(grid), grid=grid)
        assert code_of(write_features, features, tmp_path / "m.geojson") == "E-CRS-211"
        return
    mask = noise(grid)
    write_features(polygonize(mask, grid=grid), tmp_path / f"m{suffix}")
    back = read_features(tmp_path / f"m{suffix}")
    assert back.attrs == {"repaired": 0, "dropped": 0}
    np.testing.assert_array_equal(rasterize(back, like=grid, classes=["class_1", "class_2"]).data, mask)


@pytest.mark.parametrize("place", list(TRANSFORMS))
def test_areas_are_the_pixels_times_the_area_of_one(place: str) -> None:
    grid = grid_of(place)
    mask = noise(grid, bands=1)
    features = polygonize(mask, grid=grid)
    assert features.area_m2.sum() == pytest.approx(mask.sum() * grid.pixel_area_m2(), rel=1e-7)
    assert (features.area_m2 > 0).all()


@pytest.mark.parametrize(("height", "width"), [(10, 20), (13, 6), (2, 2), (1, 50), (50, 1), (1, 1)])
def test_a_block_of_pixels_has_the_area_of_its_pixels(height: int, width: int) -> None:
    mask = np.zeros((60, 70), np.uint8)
    mask[3 : 3 + height, 5 : 5 + width] = 1
    features = polygonize(mask, grid=Grid(60, 70, Affine.identity()))
    assert features.area_m2.tolist() == [height * width]
    assert shapely.equals(features.geometry[0], shapely.box(5, 3, 5 + width, 3 + height))


def test_pixels_that_touch_at_a_corner_are_two_valid_squares() -> None:
    features = polygonize(np.eye(2), grid=Grid(2, 2, Affine.identity()))
    assert features.area_m2.tolist() == [1, 1]
    assert features.is_valid.all()


def test_a_solid_block_with_a_hole_keeps_the_hole() -> None:
    mask = np.ones((20, 20), bool)
    mask[5:15, 5:15] = False
    features = polygonize(mask, grid=Grid(20, 20, Affine.identity()))
    assert features.area_m2.tolist() == [300]
    assert len(features.geometry[0].interiors) == 1


def test_the_layer_has_the_columns_crs_and_classes_of_its_mask() -> None:
    grid = grid_of("north-up")
    features = polygonize(Raster(noise(grid), grid, ("roof", "tree")), class_ids={"tree": 7, "roof": 3})
    assert list(features.columns) == ["class_id", "class_name", "score", "area_m2", "geometry"]
    assert features.crs.to_epsg() == 32633
    assert dict(zip(features.class_name, features.class_id, strict=True)) == {"roof": 3, "tree": 7}
    assert features.score.isna().all()
    assert (features.geom_type == "Polygon").all()
    assert sorted(set(polygonize(noise(grid), grid=grid).class_name)) == ["class_1", "class_2"]
    assert set(polygonize(noise(grid)[0], grid=grid).class_name) == {"feature"}
    assert polygonize(noise(grid), grid=grid, class_ids=[4, 9]).class_id.unique().tolist() == [4, 9]


@pytest.mark.parametrize("place", ["north-up", "degrees", "no crs"])
def test_an_empty_mask_gives_an_empty_layer_with_all_columns(place: str) -> None:
    grid = grid_of(place)
    full = polygonize(noise(grid), grid=grid)
    empty = polygonize(np.zeros(grid.shape), grid=grid, min_area_m2=1, min_hole_m2=1, simplify_m=1)
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert empty.crs == full.crs


def test_invalid_pixels_belong_to_no_polygon() -> None:
    grid = grid_of("north-up")
    valid = noise(grid, bands=1, seed=5)[0]
    mask = noise(grid, bands=1)
    features = polygonize(Raster(mask, grid, ("a",), valid))
    np.testing.assert_array_equal(rasterize(features, like=grid, classes=["a"]).data[0], mask[0] & valid)
    assert len(polygonize(Raster(mask, grid, ("a",), np.zeros(grid.shape, bool)))) == 0


def test_nan_is_outside_and_any_positive_number_inside() -> None:
    features = polygonize(np.array([[np.nan, 0.2, -1.0], [0, 255, 3]]), grid=Grid(2, 3, Affine.identity()))
    assert features.area_m2.tolist() == [3]


def test_scores_are_means_over_the_pixels_of_each_polygon() -> None:
    grid = grid_of("rotated")
    mask, scores = noise(grid), np.random.default_rng(9).random((2, *grid.shape))
    features = polygonize(Raster(mask, grid, ("a", "b")), scores=Raster(scores[::-1], grid, ("b", "a")))
    for row in features.itertuples():
        one = rasterize(features.loc[[row.Index]], like=grid, classes=[row.class_name]).data[0] == 1
        assert row.score == pytest.approx(scores["ab".index(row.class_name)][one].mean(), abs=1e-6)


def test_scores_by_place_when_their_names_differ() -> None:
    grid = grid_of("north-up")
    scores = Raster(np.full((2, *grid.shape), 0.25), grid, ("x", "y"))
    assert polygonize(noise(grid), grid=grid, scores=scores).score.unique().tolist() == [0.25]


@pytest.mark.parametrize("place", ["north-up", "degrees", "no crs"])
def test_values_become_classes_that_cover_all_valid_pixels_but_zero(place: str) -> None:
    grid = grid_of(place)
    blocks = np.random.default_rng(0).choice([0, 1, 2, 250], (8, 11))
    pixels = np.kron(blocks, np.ones((3, 3))).astype(np.uint8)[:, :31]
    features = polygonize(pixels, grid=grid, values=True)
    assert sorted(features.class_name.unique()) == ["1", "2", "250"]
    assert (features.class_name.astype(int) == features.class_id).all()
    burnt = rasterize(features, like=grid, classes=["1", "2", "250"]).data
    np.testing.assert_array_equal((burnt * np.array([1, 2, 250])[:, None, None]).sum(axis=0), pixels)
    simple = polygonize(pixels, grid=grid, values=True, simplify_m=0.5)
    assert simple.is_valid.all()
    assert simple.area_m2.sum() == pytest.approx(features.area_m2.sum(), rel=0.02)


def test_whole_floats_are_values_and_fractions_are_not() -> None:
    grid = Grid(1, 3, Affine.identity())
    found = polygonize(np.array([[1.0, np.nan, 3.0]]), grid=grid, values=True)
    assert found.class_name.tolist() == ["1", "3"]
    for wrong in (1.5, 1e300):
        assert code_of(polygonize, np.array([[wrong, 0, 0]]), grid=grid, values=True) == "E-USE-202"
    found = polygonize(np.array([[np.inf, -np.inf, 3.0]]), grid=grid, values=True)
    assert found.class_name.tolist() == ["3"]


def test_sizes_are_square_metres_by_class() -> None:
    grid = grid_of("feet")  # a pixel is a square foot
    mask = np.zeros((2, *grid.shape), bool)
    mask[:, 2:5, 2:5] = mask[:, 10:20, 10:20] = True
    mask[:, 14, 14] = False
    foot = 0.3048006**2
    least = {"class_1": 9.1 * foot, "class_2": 8.9 * foot}
    features = polygonize(mask, grid=grid, min_area_m2=least, min_hole_m2=1.1 * foot)
    assert features.class_name.tolist() == ["class_1", "class_2", "class_2"]
    assert features.area_m2.tolist() == pytest.approx([100 * foot, 9 * foot, 100 * foot], rel=1e-3)
    assert [len(polygon.interiors) for polygon in features.geometry] == [0, 0, 0]


def test_simplified_polygons_are_valid_and_close() -> None:
    grid = grid_of("rotated")
    exact, simple = (polygonize(noise(grid), grid=grid, simplify_m=size) for size in (0.0, 0.4))
    assert simple.is_valid.all()
    assert len(simple) == len(exact)
    corners = [shapely.get_num_coordinates(layer.geometry).sum() for layer in (simple, exact)]
    assert corners[0] < corners[1]


@pytest.mark.parametrize("values", [False, True])
def test_a_file_gives_the_layer_of_its_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: bool
) -> None:
    monkeypatch.setattr(polygonize_module, "STRIP_PIXELS", 31 * 16)
    grid = grid_of("rotated", 70)
    data = np.random.default_rng(0).integers(0, 3, (2, *grid.shape)).astype(np.uint8)
    valid = noise(grid, bands=1, share=0.9)[0]
    mask = Raster(data, grid, ("a", "b"), valid)
    marks = np.random.default_rng(1).random((2, *grid.shape)).astype(np.float32)
    scores = Raster(marks, grid, ("b", "a"), valid)
    write_raster(mask, tmp_path / "m.tif")
    write_raster(scores, tmp_path / "s.tif")
    options = {"values": values, "min_area_m2": 0.1, "min_hole_m2": 0.1, "simplify_m": 0.2}
    from_file = polygonize_file(tmp_path / "m.tif", scores_path=tmp_path / "s.tif", **options)
    from_array = polygonize(mask, scores=scores, **options)
    assert len(from_file) > 20
    assert from_file.equals(from_array)


def test_some_bands_of_a_file_and_scaled_scores(tmp_path: Path) -> None:
    grid = grid_of("north-up")
    write_raster(Raster(noise(grid), grid, ("a", "b")), tmp_path / "m.tif")
    write_raster(Raster(np.full((2, *grid.shape), 500, np.uint16), grid, ("a", "b")), tmp_path / "s.tif")
    for bands in ([2], ["b"]):
        found = polygonize_file(
            tmp_path / "m.tif", bands=bands, scores_path=tmp_path / "s.tif", score_scale=1 / 1000
        )
        assert set(found.class_name) == {"b"}
        assert found.score.unique().tolist() == [0.5]
    assert set(polygonize_file(tmp_path / "m.tif", bands=[2]).class_name) == {"b"}
    assert code_of(polygonize_file, tmp_path / "m.tif", bands=[3]) == "E-BAND-204"
    assert code_of(polygonize_file, tmp_path / "none.tif") == "E-IN-101"


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".parquet"])
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"min_area_m2": 0.3, "min_hole_m2": 0.6}, {"simplify_m": 0.4}])
def test_a_file_is_written_with_the_features_of_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, values: bool, sizes: dict[str, float]
) -> None:
    monkeypatch.setattr(polygonize_module, "STRIP_PIXELS", 31 * 16)
    grid = grid_of("rotated", 70)
    data = np.random.default_rng(0).integers(0, 3, (2, *grid.shape)).astype(np.uint8)
    write_raster(Raster(data, grid, ("b", "a"), noise(grid, bands=1, share=0.9)[0]), tmp_path / "m.tif")
    marks = np.random.default_rng(1).random((2, *grid.shape)).astype(np.float32)
    write_raster(Raster(marks, grid, ("a", "b")), tmp_path / "s.tif")
    options = {"values": values, "scores_path": tmp_path / "s.tif", **sizes}
    layer = polygonize_file(tmp_path / "m.tif", **options)
    counts = polygonize_to_file(tmp_path / "m.tif", tmp_path / f"out{suffix}", **options)
    assert list(counts) == (["1", "2"] if values else ["b", "a"])
    assert counts == layer.class_name.value_counts().to_dict()
    back = read_features(tmp_path / f"out{suffix}")
    keys = ["class_name", "wkb", "class_id", "area_m2", "score"]
    one, other = (
        table.assign(wkb=table.normalize().to_wkb()).sort_values(keys[:2], ignore_index=True)[keys]
        for table in (back, layer)
    )
    pandas.testing.assert_frame_equal(one, other, rtol=1e-12)  # a shapefile has 15 decimals


def test_classes_without_a_feature_are_counted_too(tmp_path: Path) -> None:
    grid = grid_of("north-up")
    mask = np.zeros((3, *grid.shape), np.uint8)
    mask[1, 3:6, 4:9] = 1
    write_raster(Raster(mask, grid, ("a", "b", "c")), tmp_path / "m.tif")
    assert polygonize_to_file(tmp_path / "m.tif", tmp_path / "o.fgb") == {"a": 0, "b": 1, "c": 0}
    assert polygonize_to_file(tmp_path / "m.tif", tmp_path / "c.csv", bands=["c"]) == {"c": 0}
    assert polygonize_to_file(tmp_path / "m.tif", tmp_path / "v.csv", bands=[1], values=True) == {}
    assert len(read_features(tmp_path / "v.csv")) == 0
    assert code_of(polygonize_to_file, tmp_path / "m.tif", tmp_path / "o.fgb") == "E-OUT-003"
    assert code_of(polygonize_to_file, tmp_path / "m.tif", tmp_path / "o.foo") == "E-USE-221"


def test_a_damaged_mask_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygonize_module, "STRIP_PIXELS", 31 * 16)
    grid = grid_of("north-up", 2000, 300)
    write_raster(Raster(noise(grid), grid, ("a", "b")), tmp_path / "m.tif")
    raw = (tmp_path / "m.tif").read_bytes()
    (tmp_path / "m.tif").write_bytes(raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2))
    assert code_of(polygonize_to_file, tmp_path / "m.tif", tmp_path / "o.gpkg") == "E-IN-201"
    assert [path.name for path in tmp_path.iterdir()] == ["m.tif"]


def test_a_band_is_valid_where_it_is_itself(tmp_path: Path) -> None:
    grid = grid_of("north-up")
    mask = np.ones((2, *grid.shape), np.uint8)
    mask[0, :10] = 255
    with rasterio.open(
        tmp_path / "m.tif", "w", driver="GTiff", height=grid.height, width=grid.width, count=2, dtype="uint8",
        nodata=255, crs=grid.crs, transform=grid.transform,
    ) as out:  # fmt: skip
        out.write(mask)
    pixels = (polygonize_file(tmp_path / "m.tif").area_m2 / grid.pixel_area_m2()).round().tolist()
    assert pixels == [14 * 31, 24 * 31]


def test_a_flood_of_polygons_is_told(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("satseg.vector.polygonizer.FLOOD", 5)
    polygonize(noise(grid_of("north-up")), grid=grid_of("north-up"))
    assert "noise? A minimum area" in caplog.text


def test_a_mask_without_crs_takes_the_one_it_is_told(tmp_path: Path) -> None:
    grid = grid_of("pixel space")
    write_raster(Raster(noise(grid), grid, ("a", "b")), tmp_path / "m.tif")
    assert polygonize_file(tmp_path / "m.tif", src_crs=32633).crs.to_epsg() == 32633


def test_what_does_not_fit_together_is_refused() -> None:
    grid, other = grid_of("north-up"), grid_of("degrees")
    mask = Raster(noise(grid), grid, ("a", "b"))
    scores = np.zeros((3, *grid.shape))
    assert code_of(polygonize, noise(grid)) == "E-GRID-201"
    assert code_of(polygonize, mask, scores=Raster(scores, other, tuple("abc"))) == "E-GRID-202"
    assert code_of(polygonize, mask, scores=Raster(scores, grid, tuple("xyz"))) == "E-BAND-201"
    assert code_of(polygonize, mask, class_ids=[1]) == "E-BAND-202"
    assert code_of(polygonize, mask, class_ids={"a": 1}) == "E-BAND-202"
    assert code_of(polygonize, mask, min_area_m2=-1) == "E-USE-201"
    assert code_of(polygonize, mask, scores=Raster(scores[:2] + 3, grid, ("a", "b"))) == "E-USE-231"
