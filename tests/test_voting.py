"""The vote of layers: what a count of pixels says, as exact polygons, whatever the CRS and the order."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from satseg.errors import CRSError, UsageError
from satseg.vector.features import read_features
from satseg.vector.voting import vote
from tests.factories import UTM

SIDE = 24
BOXES = st.lists(
    st.tuples(st.integers(0, SIDE - 1), st.integers(0, SIDE - 1), st.integers(1, 12), st.integers(1, 9)), max_size=5
)


def layer(boxes, *, name="a", crs=UTM, scale=1.0):
    shapes = [shapely.box(x * scale, y * scale, (x + w) * scale, (y + h) * scale) for x, y, w, h in boxes]
    return geopandas.GeoDataFrame({"class_name": [name] * len(shapes)}, geometry=shapes, crs=crs)


def pixels(frame):
    shapes = [shape for shape in frame.geometry if not shape.is_empty]
    if not shapes:
        return np.zeros((3 * SIDE, 3 * SIDE), np.uint8)
    return rasterize(shapes, out_shape=(3 * SIDE, 3 * SIDE), dtype="uint8")  # y downwards in both


@settings(max_examples=40, deadline=None)
@given(st.lists(BOXES, min_size=2, max_size=4), st.data())
def test_the_vote_is_a_count_of_pixels(all_boxes, data):
    """On whole pixels both are exact: area, place, and the share of layers that agree."""
    layers = [layer(boxes) for boxes in all_boxes]
    needed = data.draw(st.integers(1, len(layers)))
    found = vote(layers, at_least=needed)
    counts = sum(pixels(one).astype(int) for one in layers)
    np.testing.assert_array_equal(pixels(found) > 0, counts >= needed)
    assert found.area.sum() == (counts >= needed).sum()
    assert found.geometry.is_valid.all()
    assert set(found.geom_type) <= {"Polygon"}
    votes = (found["score"] * found.area).sum() * len(layers)
    assert votes == pytest.approx(counts[counts >= needed].sum())


@settings(max_examples=25, deadline=None)
@given(st.lists(BOXES, min_size=3, max_size=3), st.floats(0.1, 1.4))
@example([[], [(3, 10, 12, 9)], [(15, 16, 1, 2)]], 1.25)  # edges that lie on each other but for the last digit
@example([[], [(3, 14, 12, 8)], [(15, 17, 1, 7)]], 1.0004864182001003)
def test_slanting_outlines_are_overlaid_exactly(all_boxes, angle):
    """Against a chain of overlays by GEOS: A and B, or A and C, or B and C."""
    turned = [layer(boxes) for boxes in all_boxes]
    for one in turned[1:]:
        one.geometry = one.geometry.rotate(np.degrees(angle), origin=(12, 12))
    a, b, c = (shapely.union_all(one.geometry.to_numpy()) for one in turned)
    expected = shapely.union_all([a & b, a & c, b & c])
    found = shapely.union_all(vote(turned).geometry.to_numpy())
    assert shapely.area(shapely.symmetric_difference(found, expected)) == pytest.approx(0, abs=1e-9)


def test_the_order_of_layers_does_not_matter():
    layers = [layer([(0, 0, 10, 8)]), layer([(5, 2, 10, 8)]), layer([(3, 3, 4, 20)])]
    first, second = (shapely.normalize(vote(given).geometry.to_numpy()) for given in (layers, layers[::-1]))
    assert [shape.wkb for shape in first] == [shape.wkb for shape in second]


def test_a_layer_has_one_vote_however_many_polygons_lie_there():
    crowd = layer([(0, 0, 4, 4), (1, 1, 4, 4), (0, 0, 4, 4)])
    assert not len(vote([crowd, layer([])], at_least=2))
    assert vote([crowd, layer([])], at_least=1).area.sum() == 23


def test_a_file_that_is_named_twice_is_told(tmp_path, caplog):
    path = tmp_path / "a.gpkg"
    layer([(0, 0, 4, 4)]).to_file(path)
    assert vote([path, path, layer([])]).area.sum() == 16
    assert "a.gpkg is named 2 times" in caplog.text


def test_each_class_is_voted_on_alone_and_keeps_its_number():
    first = layer([(0, 0, 4, 4), (8, 8, 4, 4)])
    first["class_name"], first["class_id"] = ["road", "roof"], [7, 3]
    second = layer([(0, 0, 2, 4), (8, 8, 4, 3), (0, 8, 2, 2)])
    second["class_name"], second["class_id"] = ["road", "roof", "tree"], [1, 2, 4]
    found = vote([first, second])
    assert found[["class_id", "class_name"]].to_numpy().tolist() == [[3, "roof"], [7, "road"]]
    assert found.area.tolist() == [12.0, 8.0]
    with pytest.raises(UsageError, match="3 of 2"):
        vote([first, second], at_least=3)


def test_holes_and_corners_come_out_valid():
    ring = geopandas.GeoDataFrame(
        {"class_name": ["a"]}, geometry=[shapely.box(0, 0, 9, 9) - shapely.box(3, 3, 6, 6)], crs=UTM
    )
    corner = layer([(0, 0, 9, 9), (9, 9, 3, 3)])
    found = vote([ring, corner])
    assert shapely.equals(found.geometry.iloc[0], ring.geometry.iloc[0])
    touching = vote([corner, corner])
    assert len(touching) == 2
    assert touching.geometry.is_valid.all()


def test_layers_in_other_crss_vote_on_the_same_ground():
    here = layer([(500_000, 5_000_000, 100, 60)])
    there = here.to_crs("EPSG:4326")
    found = vote([here, there])
    assert found.area.sum() == pytest.approx(6000, rel=1e-5)
    assert found.crs == here.crs
    degrees = vote([there, here])
    assert degrees.crs == there.crs
    assert degrees["area_m2"].sum() == pytest.approx(6000, rel=1e-3)  # the scale of UTM
    with pytest.raises(CRSError, match="both layers"):
        vote([here, layer([(0, 0, 4, 4)], crs=None)])
    assert len(vote([layer([(0, 0, 4, 4)], crs=None)] * 2)) == 1


def test_the_command_writes_what_enough_layers_have(tmp_path, run):
    names = [tmp_path / name for name in ("a.gpkg", "b.geojson", "c.parquet")]
    parts = [layer([(0, 0, 10, 8)]), layer([(5, 2, 10, 8)]), layer([(20, 20, 1, 1), (0, 0, 1, 1)])]
    for name, one in zip(names, parts, strict=True):
        moved = one.set_geometry(one.geometry.translate(500_000, 5_000_000))
        moved.to_parquet(name) if name.suffix == ".parquet" else moved.to_file(name)
    out = tmp_path / "out.gpkg"
    assert run("vote", *names, "-o", out, "--at-least", 2).done().out == f"{out}: 2 features\n"
    found = read_features(out)
    assert sorted(found.area.round(2)) == [1.0, 30.0]
    run("vote", *names, "-o", out, "--min-area", 5, "--overwrite").done()
    assert len(read_features(out)) == 1
    run("vote", *names, "-o", out).refused(4, "E-OUT-003")
    run("vote", *names, "-o", tmp_path / "x.gpkg", "--at-least", 4).refused(2, "E-USE-028")
    run("vote", names[0], "-o", tmp_path / "x.gpkg").refused(2, "E-USE-028")
    run("vote", names[0], tmp_path / "none.gpkg", "-o", tmp_path / "x.gpkg").refused(3, "E-IN-211")
    assert not (tmp_path / "x.gpkg").exists()
