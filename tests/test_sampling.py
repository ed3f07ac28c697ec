"""Where chips lie: on ground that can be learnt from, by its area, and in stretches that a cache holds."""

from __future__ import annotations

from dataclasses import replace

import geopandas
import numpy as np
import pandas
import pytest
import shapely
from rasterio.windows import Window

from satseg.errors import LabelError
from satseg.grid import overlap
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import open_scene
from satseg.learning.ground import occupancy as looking
from satseg.learning.ground import sampling
from satseg.learning.ground.chips import READ_PX
from satseg.learning.ground.occupancy import occupancy
from satseg.learning.ground.sampling import ChipSampler
from satseg.learning.ground.split import Ground
from satseg.learning.training.feed import Chips
from satseg.options import NO_AUGMENTATION, AugmentOptions
from tests.factories import UTM, noise, north_up, write_tiff

GSD = 1.0


def boxes(*places, name="a"):
    """Features of one class from (row, col, height, width) at the origin of `north_up`."""
    shapes = [shapely.box(5e5 + c, 5e6 - r - h, 5e5 + c + w, 5e6 - r) for r, c, h, w in places]
    return geopandas.GeoDataFrame({"class_name": [name] * len(shapes)}, geometry=shapes, crs=UTM)


def made(folder, data, labels, *, name="scene", nodata=0, x=5e5, **options):
    """A ground of `data` (C, H, W)."""
    overviews = options.pop("overviews", ())
    path = write_tiff(
        folder / f"{name}.tif", data, transform=north_up(GSD, x=x), nodata=nodata, overviews=overviews, tiled=True,
        blockxsize=64, blockysize=64,
    )  # fmt: skip
    scene = open_scene(path)
    return Ground(scene, LabelLayer.build(labels, scene.grid, ("a",), **options))


def island(height, width, *, row, col, side):
    """Noise on a square island in a sea of nodata."""
    data = np.zeros((2, height, width), "uint16")
    data[:, row : row + side, col : col + side] = noise(2, side, side)
    return data


def sampler_of(*grounds, size=32, balance=0.0, seed=0, **more):
    return ChipSampler(grounds, size=size, seed=seed, balance=balance, changes=NO_AUGMENTATION, **more)


def centres(sampler, count):
    """(n, 3) ground, row, col of the first chips."""
    found = [sampler.place(number) for number in range(count)]
    return np.array([(index, view.row, view.col) for index, view in found])


@pytest.mark.parametrize("overviews", [(), (2, 4, 8)])
def test_uniform_chips_of_a_scene_that_is_one_percent_valid_are_on_it(tmp_path, overviews):
    ground = made(
        tmp_path, island(900, 1100, row=400, col=700, side=100), boxes((420, 710, 9, 9)), overviews=overviews
    )
    chips = Chips(sampler_of(ground), cache_bytes=2**24)
    shares = [chips[number].labelled.mean() for number in range(100)]
    assert min(shares) > 0
    assert np.mean(shares) > 0.6


def test_large_files_without_overviews_are_looked_at_pixel_by_pixel(tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "DECODED_IN_ALL", 1)
    ground = made(tmp_path, island(900, 1100, row=400, col=700, side=100), boxes((420, 710, 9, 9)))
    found = occupancy(ground)
    assert 100**2 <= found.area_px < 0.03 * 900 * 1100
    lost = made(tmp_path, island(900, 1100, row=400, col=700, side=4), boxes((10, 10, 9, 9)), name="lost")
    assert 0 < occupancy(lost).area_px < 900 * 1100  # its feature is all that is known of it
    assert occupancy(ground, among=1000).area_px == 900 * 1100


def test_an_area_of_interest_ignored_ground_and_unlabelled_ground_shape_the_map(tmp_path):
    full = noise(2, 330, 470)
    inside = shapely.box(5e5 + 50, 5e6 - 200, 5e5 + 250, 5e6 - 100)
    labels = boxes((110, 60, 40, 40))
    alone = made(tmp_path, full, labels, name="aoi", aoi=inside)
    assert 200 * 100 <= occupancy(alone).area_px <= 240 * 140
    sparse = made(tmp_path, full, labels, name="sparse", unlabelled="ignore")
    assert 40 * 40 <= occupancy(sparse).area_px <= 80 * 80
    ignored = pandas.concat([labels, boxes((0, 0, 330, 235), name="ignore")])
    half = occupancy(made(tmp_path, full, ignored, name="half"))
    assert half.area_px == pytest.approx(330 * 235, rel=0.1)


def test_held_ground_is_off_the_map(tmp_path):
    ground = made(tmp_path, noise(2, 320, 480), boxes((10, 10, 9, 9)))
    held = replace(ground, held=(Window(160, 0, 320, 320),), gap=16)
    found = occupancy(held)
    assert found.free[:, :8].all()
    assert not found.free[:, 9:].any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (37, 2), (515, 33)])
def test_any_size_of_scene_is_all_free_when_all_of_it_is_valid(tmp_path, height, width):
    found = occupancy(made(tmp_path, noise(2, height, width), boxes((0, 0, height, width))))
    assert found.free.all()
    assert found.area_px == pytest.approx(height * width)


def test_grounds_without_a_pixel_to_learn_from_are_left_out_and_refused_when_there_is_no_other(tmp_path, caplog):
    labels = boxes((10, 10, 9, 9))
    empty = made(tmp_path, np.zeros((2, 100, 130), "uint16"), labels, name="empty")
    good = made(tmp_path, noise(2, 100, 130), labels, name="good")
    assert set(centres(sampler_of(empty, good, balance=0.5), 60)[:, 0]) == {1}
    assert "empty: no pixel" in caplog.text
    with pytest.raises(LabelError, match="no pixel of empty"):
        sampler_of(empty)


def test_scenes_count_by_what_can_be_learnt_from_them(tmp_path):
    labels = boxes((410, 710, 9, 9))
    small = made(tmp_path, island(900, 1100, row=400, col=700, side=160), labels, name="small")
    large = made(tmp_path, island(900, 1100, row=300, col=600, side=480), labels, name="large")
    share = centres(sampler_of(small, large), 800)[:, 0].mean()
    assert share == pytest.approx(0.9, abs=0.04)


def test_scenes_count_by_label_area_in_chips_around_features(tmp_path):
    small = made(tmp_path, noise(2, 400, 600), boxes(*[(r, 20, 9, 9) for r in range(10, 110, 10)]), name="small")
    large = made(tmp_path, noise(2, 400, 600), boxes((50, 50, 320, 320)), name="large")  # a hundred chips
    places = centres(sampler_of(small, large, balance=1.0), 700)
    on_large = places[places[:, 0] == 1]
    assert len(on_large) / 700 == pytest.approx(100 / 110, abs=0.04)
    spots = np.unique(on_large[:, 1:] // 32, axis=0)
    assert len(spots) > 80


def test_a_polygon_larger_than_its_scene_is_a_feature(tmp_path):
    ground = made(tmp_path, noise(2, 40, 50), boxes((-3000, -3000, 9000, 9000)))
    assert len(sampler_of(ground, size=48, balance=1.0)._features) == 1


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    rng = np.random.default_rng(0)
    places = [(int(r), int(c), 6, 6) for r, c in zip(*rng.integers(0, (1480, 1780), (400, 2)).T, strict=True)]
    return made(tmp_path_factory.mktemp("wide"), noise(2, 1500, 1800), boxes(*places), nodata=None)


@pytest.fixture(scope="module")
def passes(wide):
    """Two passes over the scene with a cache of a tenth of it, and the sampler."""
    sampler = sampler_of(wide, size=64, balance=0.5, cache_bytes=1500 * 1800 * 28 // 24)
    assert sampler._share == pytest.approx(0.1)
    return sampler, centres(sampler, round(2 / sampler._passes_per_chip))


def test_chips_near_in_number_are_near_in_place(passes):
    sampler, places = passes
    for start in range(0, len(places) - 400, 1000):
        blocks = np.unique(places[start : start + 400, 1:] // 256, axis=0)
        assert len(blocks) < 0.45 * 6 * 8
    everywhere = centres(sampler_of(sampler.grounds[0], size=64, balance=0.5), 400)
    assert len(np.unique(everywhere[:, 1:] // 256, axis=0)) > 0.8 * 6 * 8


def test_every_place_is_as_likely_over_a_pass(passes):
    _, places = passes
    counts = np.histogram2d(places[:, 1], places[:, 2], bins=(5, 6), range=((0, 1500), (0, 1800)))[0]
    assert counts.min() > 0.6 * counts.mean()
    assert counts.max() < 1.5 * counts.mean()


def test_passes_take_regions_in_other_orders(passes):
    deck = passes[0]._cells
    orders = [np.unique(deck._places[:, :3][deck._regions.ranks(deck._places, n) < 3], axis=0) for n in range(8)]
    assert len({order.tobytes() for order in orders}) > 4


def test_chips_depend_on_their_number_alone(passes):
    sampler, places = passes
    again = sampler_of(sampler.grounds[0], size=64, balance=0.5, cache_bytes=1500 * 1800 * 28 // 24)
    for number in (len(places) - 1, 7, len(places) // 2):
        _, view = again.place(number)
        assert (view.row, view.col) == tuple(places[number, 1:])


def test_a_class_keeps_its_share_of_chips_all_the_time(wide):
    sampler = sampler_of(wide, size=64, balance=0.5, cache_bytes=1500 * 1800 * 28 // 24)
    trees = shapely.STRtree(wide.labels.geometries[0])
    for start in (0, 3000):
        views = [sampler.place(n)[1].window(64) for n in range(start, start + 150)]
        seen = [len(trees.query(wide.scene.grid.crop(w).footprint(), predicate="intersects")) > 0 for w in views]
        assert np.mean(seen) > 0.45


def test_turned_chips_ask_for_no_pixel_of_the_next_region_but_for_all_of_the_scene(wide):
    sampler = ChipSampler(
        [wide], size=64, seed=0, balance=0.5, changes=AugmentOptions(), cache_bytes=1500 * 1800 * 28 // 24
    )
    ends = set()
    for number in range(3000):
        seen = overlap(sampler.place(number)[1].window(64), wide.scene.grid.window)
        bottom, right = seen.row_off + seen.height, seen.col_off + seen.width
        assert seen.row_off // READ_PX == (bottom - 1) // READ_PX
        assert seen.col_off // READ_PX == (right - 1) // READ_PX
        ends |= {("top", seen.row_off), ("left", seen.col_off), ("bottom", bottom), ("right", right)}
    assert ends >= {("top", 0), ("left", 0), ("bottom", 1500), ("right", 1800)}


def test_uniform_chips_and_those_of_a_lopsided_class_are_on_the_same_ground_all_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "READ_PX", 64)
    monkeypatch.setattr(sampling, "LARGEST_REGION_PX", 128)
    crowd = [(row, col, 6, 6) for row in range(5, 1490, 24) for col in range(5, 400, 24)]
    few = [(row, col, 6, 6) for row in range(20, 1490, 150) for col in range(500, 1780, 150)]
    ground = made(tmp_path, noise(2, 1500, 1800), boxes(*crowd, *few), nodata=None)
    sampler = sampler_of(ground, size=32, balance=0.5, cache_bytes=1500 * 1800 * 28 // 24)
    for number in range(3):
        shares = []
        for deck in (sampler._cells, sampler._features[0]):
            ranks, weights = deck._regions.ranks(deck._places, number), deck._places[:, 5]
            shares.append(np.cumsum(np.bincount(ranks, weights, 210)) / weights.sum())
        assert np.abs(shares[0] - shares[1]).max() < 0.04


def test_a_scene_that_the_cache_holds_is_drawn_from_whole(wide):
    roomy = sampler_of(wide, balance=0.5, cache_bytes=2**30)
    plain = sampler_of(wide, balance=0.5)
    assert [roomy.place(n) for n in range(40)] == [plain.place(n) for n in range(40)]
