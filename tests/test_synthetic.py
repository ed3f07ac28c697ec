"""Generated scenes: repeatable, correctly labelled, and solvable only with the infrared."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from satseg.errors import CRSError, OutputError, UsageError
from satseg.specs import sensor_spec
from satseg.synthetic.scene import SYNTHETIC_CLASSES, make_scene, write_scene
from satseg.synthetic.spectra import BANDS, CENTRES_NM, VISIBLE
from satseg.synthetic.townplan import plan_layout
from satseg.vector.features import read_features

SMALL = {"height": 200, "width": 260}


@pytest.fixture(scope="module")
def scene():
    return make_scene(3, height=480, width=640)


@pytest.fixture(scope="module")
def masks(scene):
    """Class name -> (H, W) bool by the pixel-centre rule; "lawn" for the decoys."""
    grid = scene.raster.grid
    burnt = {}
    for name in (*scene.classes, "lawn"):
        source = scene.decoys if name == "lawn" else scene.labels
        burnt[name] = burn(source.geometry[source.class_name == name], grid)
    return burnt


def burn(outlines, grid):
    shapes = [(outline, 1) for outline in outlines]
    return rasterize(shapes, out_shape=grid.shape, transform=grid.transform, dtype="uint8").astype(bool)


def band(scene, name):
    return scene.raster.select([name]).data[0].astype(float)


def seen(masks, name, over=("tree", "building", "vehicle")):
    """Pixels of a class that nothing taller hides."""
    hidden = np.zeros_like(masks[name])
    for other in over:
        hidden |= masks[other] & (other != name)
    return masks[name] & ~hidden


def digest(scene):
    total = hashlib.sha256(scene.raster.data.tobytes())
    for table in (scene.labels, scene.decoys):
        total.update(b"".join(table.geometry.to_wkb()))
        total.update(",".join(table.class_name).encode())
    return total.hexdigest()


def test_a_seed_means_the_same_bytes_and_outlines_in_another_process():
    code = (
        "import hashlib, sys\n"
        "from satseg.synthetic.scene import make_scene\n"
        "scene = make_scene(11, height=100, width=130)\n"
        "outlines = b''.join(scene.labels.geometry.to_wkb())\n"
        "sys.stdout.write(hashlib.sha256(scene.raster.data.tobytes() + outlines).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    scene = make_scene(11, height=100, width=130)
    own = hashlib.sha256(scene.raster.data.tobytes() + b"".join(scene.labels.geometry.to_wkb()))
    assert other.stdout == own.hexdigest()


def test_the_global_random_state_neither_matters_nor_changes():
    np.random.seed(0)  # noqa: NPY002 - the legacy state is what is under test
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = digest(make_scene(4, **SMALL))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert digest(make_scene(4, **SMALL)) == first


def test_seeds_differ_in_plan_and_light_and_lie_apart():
    first, second = make_scene(0, **SMALL), make_scene(1, **SMALL)
    assert digest(first) != digest(second)
    assert not first.raster.grid.footprint().intersects(second.raster.grid.footprint())
    assert not np.isclose(first.labels.area.sum(), second.labels.area.sum())
    assert first.raster.data.mean() != second.raster.data.mean()


def test_bands_are_those_of_the_sensor_spec_in_its_order():
    spec = {item.name: item for item in sensor_spec("worldview3").bands}
    assert all(name in spec for name in BANDS)
    assert list(CENTRES_NM) == sorted(CENTRES_NM)
    for name, centre in zip(BANDS, CENTRES_NM, strict=True):
        assert spec[name].low_nm < centre < spec[name].high_nm


def test_pixels_are_eleven_bit_counts_and_zero_where_nothing_was_seen(scene):
    raster = scene.raster
    assert raster.names == BANDS
    assert raster.data.dtype == np.uint16
    assert raster.shape == (8, 480, 640)
    assert not raster.data[:, ~raster.valid].any()
    usable = raster.data[:, raster.valid]
    assert usable.min() >= 1
    assert usable.max() <= 2047
    assert (usable == 2047).mean() < 0.01


def test_two_opposite_corners_were_not_seen(scene):
    valid = scene.raster.valid
    corners = [bool(valid[row, col]) for row in (0, -1) for col in (0, -1)]
    assert corners in ([True, False, False, True], [False, True, True, False])
    assert 0.85 < valid.mean() < 0.99


def test_the_seen_area_is_convex_and_leans(scene):
    valid = scene.raster.valid
    first = np.array([np.flatnonzero(row)[0] for row in valid])
    last = np.array([np.flatnonzero(row)[-1] for row in valid])
    assert all(row[a : b + 1].all() for row, a, b in zip(valid, first, last, strict=True))
    for edge in (first, last):
        moves = np.diff(edge)
        assert (moves >= 0).all() or (moves <= 0).all()
        assert edge.max() - edge.min() > 0.04 * valid.shape[1]


def test_labels_are_valid_polygons_of_the_known_classes(scene):
    labels = scene.labels
    assert list(labels.columns) == ["class_id", "class_name", "geometry"]
    assert labels.crs == scene.raster.grid.crs
    assert labels.is_valid.all()
    assert not labels.is_empty.any()
    assert set(labels.geom_type) == {"Polygon"}
    assert set(labels.class_name) == set(SYNTHETIC_CLASSES)
    assert [SYNTHETIC_CLASSES[number - 1] for number in labels.class_id] == list(labels.class_name)
    assert scene.classes == SYNTHETIC_CLASSES


def test_labels_stay_inside_the_seen_area(scene, masks):
    assert not any((mask & ~scene.raster.valid).any() for mask in masks.values())
    left, bottom, right, top = scene.raster.grid.bounds
    found = scene.labels.total_bounds
    assert found[0] >= left - 1e-6
    assert found[1] >= bottom - 1e-6
    assert found[2] <= right + 1e-6
    assert found[3] <= top + 1e-6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size_m", [(160, 200), (250, 170), (384, 300)])
def test_every_kind_of_thing_is_planned_in_scenes_of_every_shape(seed, size_m):
    height_m, width_m = size_m
    layout = plan_layout(np.random.default_rng([seed, 1]), width_m=width_m, height_m=height_m)
    inside = shapely.box(0.1 * width_m, 0, 0.9 * width_m, height_m)  # clear of any corner that is cut
    named = {patch.label for patch in layout.patches if patch.outline.intersects(inside)} - {None}
    for name, things in (
        ("building", layout.buildings),
        ("tree", layout.crowns),
        ("vehicle", layout.vehicles),
    ):
        if any(item.outline.intersects(inside) for item in things):
            named.add(name)
    assert named == set(SYNTHETIC_CLASSES)


def test_classes_overlap_where_the_things_do(masks):
    assert (masks["tree"] & masks["road"]).any()
    assert (masks["vehicle"] & masks["road"]).sum() > 0.5 * masks["vehicle"].sum()


@pytest.mark.parametrize(
    ("first", "second"),
    [("building", "road"), ("building", "crop"), ("road", "crop"), ("road", "water"), ("road", "track"),
     ("crop", "water"), ("artificial_turf", "building"), ("artificial_turf", "road"),
     ("artificial_turf", "lawn")],
)  # fmt: skip
def test_what_cannot_share_ground_does_not(masks, first, second):
    assert not (masks[first] & masks[second]).any()


def test_buildings_do_not_grow_into_each_other(scene):
    houses = scene.labels.geometry[scene.labels.class_name == "building"].to_numpy()
    pairs = shapely.STRtree(houses).query(houses, predicate="overlaps")
    assert pairs.size == 0


def test_vehicles_are_oriented_rectangles_of_a_cars_size():
    layout = plan_layout(np.random.default_rng(5), width_m=400, height_m=300)
    assert len(layout.vehicles) > 30
    for item in layout.vehicles:
        box = item.outline.minimum_rotated_rectangle
        sides = sorted(np.hypot(*np.diff(np.array(box.exterior.coords)[:3], axis=0).T))
        assert sides == pytest.approx([item.width, item.length], rel=0.02)
        assert 4.0 < item.length < 6.5
        assert 1.7 < item.width < 2.4
    outlines = np.array([item.outline for item in layout.vehicles])
    near = shapely.STRtree(outlines).query(outlines, predicate="dwithin", distance=0.4)
    assert (near[0] == near[1]).all()


def auc(scene, masks, names):
    """Area under the ROC curve of the best linear rule for turf against lawn, fitted on the same pixels."""
    turf, lawn = seen(masks, "artificial_turf"), seen(masks, "lawn")
    pixels = scene.raster.select(names).data
    features = np.concatenate([pixels[:, turf], pixels[:, lawn]], axis=1).T.astype(float)
    truth = np.r_[np.ones(turf.sum()), np.zeros(lawn.sum())]
    features = (features - features.mean(0)) / features.std(0)
    return roc_auc_score(truth, LogisticRegression().fit(features, truth).decision_function(features))


def test_artificial_turf_hides_in_the_visible_bands(scene, masks):
    assert auc(scene, masks, ["red", "green", "blue"]) < 0.6
    assert auc(scene, masks, BANDS[VISIBLE]) < 0.6


@pytest.mark.parametrize("name", ["red_edge", "nir1", "nir2"])
def test_artificial_turf_stands_out_in_the_infrared(scene, masks, name):
    assert auc(scene, masks, [name]) > 0.95


def test_water_is_the_darkest_class_in_the_infrared(scene, masks):
    nir = band(scene, "nir1")
    levels = {name: np.median(nir[seen(masks, name)]) for name in scene.classes}
    assert min(levels, key=levels.get) == "water"
    assert np.percentile(nir[seen(masks, "water")], 90) < min(
        levels[name] for name in levels if name != "water"
    )


def test_trees_crops_and_lawns_are_green_plants_and_roads_are_not(scene, masks):
    red, nir = band(scene, "red"), band(scene, "nir1")
    index = (nir - red) / np.maximum(nir + red, 1)
    assert np.median(index[masks["tree"]]) > 0.5
    assert np.median(index[seen(masks, "lawn")]) > 0.5
    assert np.median(index[seen(masks, "road")]) < 0.25
    assert np.median(index[seen(masks, "artificial_turf")]) < 0.3


def test_tracks_are_browner_than_roads(scene, masks):
    red, blue = band(scene, "red"), band(scene, "blue")
    ratio = {name: np.median((red / np.maximum(blue, 1))[seen(masks, name)]) for name in ("track", "road")}
    assert ratio["track"] > 1.3 * ratio["road"]


def test_labels_lie_on_the_image_to_the_pixel(scene, masks):
    turf = masks["artificial_turf"] & ~masks["tree"]
    around = burn(
        scene.labels.geometry[scene.labels.class_name == "artificial_turf"].buffer(2.5), scene.raster.grid
    )
    around &= ~(masks["tree"] | masks["building"] | masks["road"]) & scene.raster.valid
    nir = band(scene, "nir1")
    level = (np.median(nir[turf]) + np.median(nir[around & ~turf])) / 2
    dark = nir < level

    def agreement(row, col):
        moved = np.roll(turf, (row, col), (0, 1))
        return (moved & dark & around).sum() / ((moved | dark) & around).sum()

    scores = {(row, col): agreement(row, col) for row in (-1, 0, 1) for col in (-1, 0, 1)}
    assert max(scores, key=scores.get) == (0, 0)
    assert scores[0, 0] > 0.85


def test_every_shadow_falls_away_from_one_sun(scene, masks):
    nir, step = band(scene, "nir1"), 4
    walls = masks["building"]
    ground = ~(walls | masks["tree"]) & scene.raster.valid

    def beside(row, col):
        strip = np.roll(walls, (row * step, col * step), (0, 1)) & ground
        return np.median(nir[strip])

    assert beside(-1, -1) < 0.7 * beside(1, 1)  # the sun stands in the south east


def test_odd_sizes_and_other_pixel_lengths_keep_their_axes():
    scene = make_scene(5, height=101, width=157, gsd_m=0.7)
    grid = scene.raster.grid
    assert scene.raster.shape == (8, 101, 157)
    assert grid.resolution == pytest.approx((0.7, 0.7))
    assert grid.bounds[2] - grid.bounds[0] == pytest.approx(157 * 0.7)
    assert grid.bounds[3] - grid.bounds[1] == pytest.approx(101 * 0.7)


def test_the_smallest_scene_is_whole():
    scene = make_scene(2, height=64, width=64)
    assert scene.labels.is_valid.all()
    assert len(scene.labels) > 0


def test_a_scene_may_have_no_place_on_earth():
    scene = make_scene(1, **SMALL, crs=None)
    assert scene.raster.grid.crs is None
    assert scene.labels.crs is None
    assert np.array_equal(scene.raster.data, make_scene(1, **SMALL, sensor="worldview2").raster.data)


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        ({"seed": -1}, UsageError, "E-SYN-001"),
        ({"seed": 0, "height": 63}, UsageError, "E-SYN-002"),
        ({"seed": 0, "gsd_m": 0.0}, UsageError, "E-SYN-003"),
        ({"seed": 0, "gsd_m": float("nan")}, UsageError, "E-SYN-003"),
        ({"seed": 0, "sensor": "sentinel2"}, UsageError, "E-SYN-004"),
        ({"seed": 0, "crs": "EPSG:4326"}, CRSError, "E-SYN-005"),
        ({"seed": 0, "crs": "EPSG:2263"}, CRSError, "E-SYN-005"),
    ],
)
def test_senseless_arguments_are_refused_with_their_own_code(arguments, kind, code):
    with pytest.raises(kind) as caught:
        make_scene(**arguments)
    assert caught.value.code == code


def test_a_written_scene_reads_back_the_same(tmp_path):
    scene = make_scene(6, **SMALL)
    image, labels = write_scene(scene, tmp_path)
    assert (image.name, labels.name) == ("synthetic_6.tif", "synthetic_6_labels.gpkg")
    with rasterio.open(image) as source:
        assert source.descriptions == BANDS
        assert source.nodata == 0
        assert source.dtypes == ("uint16",) * 8
        assert np.array_equal(source.read(), scene.raster.data)
        assert np.array_equal(source.dataset_mask() > 0, scene.raster.valid)
        assert source.transform.almost_equals(scene.raster.grid.transform)
        assert source.crs.to_epsg() == 32633
    back = read_features(labels, field="class_name")
    assert list(back.class_name) == list(scene.labels.class_name)
    assert back.geometry.area.to_numpy() == pytest.approx(scene.labels.geometry.area.to_numpy())


def test_writing_refuses_what_is_there_and_what_is_not(tmp_path):
    scene = make_scene(6, height=64, width=80)
    write_scene(scene, tmp_path, "a", label_suffix=".geojson")
    with pytest.raises(OutputError):
        write_scene(scene, tmp_path, "a", label_suffix=".geojson")
    write_scene(scene, tmp_path, "a", label_suffix=".geojson", overwrite=True)
    with pytest.raises(OutputError):
        write_scene(scene, tmp_path / "missing")
    with pytest.raises(UsageError):
        write_scene(scene, tmp_path, "b", label_suffix=".docx")
    assert not (tmp_path / "b.tif").exists()
