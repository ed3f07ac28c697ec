"""Chips: reproducible by number, faithful to scene and labels, and never on validation ground."""

from __future__ import annotations

from dataclasses import replace

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.windows import Window

from satseg.errors import LabelError, UsageError
from satseg.grid import slices
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import open_scene
from satseg.learning.ground.chips import ChipReader
from satseg.learning.ground.sampling import LEAST_FREE, ChipSampler
from satseg.learning.ground.split import Ground, bar_shared_ground, hold_out, refuse_leaks
from satseg.learning.ground.warping import View
from satseg.options import NO_AUGMENTATION, AugmentOptions
from tests.factories import UTM, noise, north_up, write_tiff
from tests.worlds import BANDS, squares

ANY_TURN = AugmentOptions(rotate=0.5, zoom=(0.6, 2.0))
MARKER = 60_000
"""A value that no pixel of `squares` has."""


def marked(ground, folder):
    """`ground` with MARKER in all pixels that are not to be learnt from, and a mask of those (H, W)."""
    grid = ground.scene.grid
    closed = np.zeros((grid.height, grid.width), bool)
    for w in (*ground.held, *ground.barred):
        top, left = max(0, w.row_off - ground.gap), max(0, w.col_off - ground.gap)
        closed[top : w.row_off + w.height + ground.gap, left : w.col_off + w.width + ground.gap] = True
    with ground.scene.reader() as reader:
        data = reader.read(grid.window).data
    path = write_tiff(
        folder / "marked.tif", np.where(closed, MARKER, data).astype("uint16"), transform=grid.transform,
        descriptions=BANDS,
    )  # fmt: skip
    return replace(ground, scene=open_scene(path)), closed


def pixels(view, size):
    """Rows and columns (S, S) of the scene's pixels in which the centres of a chip's lie."""
    u, v = np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 2, indexing="ij")
    rows, cols = (at + d * u + r * v for at, d, r in zip((view.row, view.col), view.down, view.right, strict=True))
    return np.floor(rows).astype(int), np.floor(cols).astype(int)


def sampler_of(*grounds, size=48, seed=0, balance=0.5, changes=NO_AUGMENTATION):
    return ChipSampler(grounds, size=size, seed=seed, balance=balance, changes=changes)


@pytest.fixture
def ground(tmp_path):
    path, labels = squares(tmp_path, height=210, width=333)
    scene = open_scene(path)
    return Ground(scene, LabelLayer.build(labels, scene.grid, ("a", "b")))


@pytest.mark.parametrize("window", [Window(0, 0, 64, 64), Window(300, 190, 50, 40), Window(-20, -30, 90, 70)])
def test_chip_equals_direct_read_and_burn(ground, window):
    chip = ChipReader(ground, cache_bytes=2**24).read(window)
    with ground.scene.reader() as reader:
        raster = reader.read(window)
    target, labelled = ground.labels.burn(raster.grid)
    np.testing.assert_array_equal(chip.image, raster.data)
    np.testing.assert_array_equal(chip.valid, raster.valid)
    np.testing.assert_array_equal(chip.labelled, labelled & raster.valid)
    np.testing.assert_array_equal(chip.target * chip.labelled, target * chip.labelled)


def test_small_cache_gives_the_same_chips(ground):
    roomy, tight = ChipReader(ground, cache_bytes=2**26), ChipReader(ground, cache_bytes=1)
    for col in (0, 200, 37, 250, 0):
        window = Window(col, 100, 80, 80)
        np.testing.assert_array_equal(roomy.read(window).image, tight.read(window).image)


@pytest.mark.parametrize("window", [Window(0, 0, 64, 64), Window(240, 140, 70, 70), Window(101, 33, 1, 1)])
def test_view_of_a_window_equals_the_window_as_read(ground, window):
    reader = ChipReader(ground, cache_bytes=2**24)
    seen, read = reader.view(View.of(window), size=window.height), reader.read(window)
    np.testing.assert_array_equal(seen.image, read.image)
    np.testing.assert_array_equal(seen.valid, read.valid)
    np.testing.assert_array_equal(seen.labelled, read.labelled)
    np.testing.assert_array_equal(seen.target, read.target * read.labelled)
    assert seen.image.dtype == np.float32
    assert seen.target.any() or window.height < 64


def test_turned_view_is_the_turned_chip(ground):
    reader = ChipReader(ground, cache_bytes=2**24)
    view = View.turned(100.0, 150.0, angle=90.0, zoom=1.0, mirrored=True)
    seen, read = reader.view(view, size=40), reader.read(Window(130, 80, 40, 40))
    np.testing.assert_array_equal(seen.image, np.rot90(read.image, -1, (1, 2))[..., ::-1])
    np.testing.assert_array_equal(seen.target, np.rot90(read.target, -1, (1, 2))[..., ::-1])


def test_image_and_truth_stay_on_top_of_each_other_in_any_view(ground):
    reader, sampler = ChipReader(ground, cache_bytes=2**26), sampler_of(ground, changes=ANY_TURN)
    for number in range(20):
        chip = reader.view(sampler.place(number)[1], size=48)
        brightest = chip.image.max(axis=0)  # squares are of 1200 in one band, the ground of 400
        truth = chip.target.any(axis=0)
        assert ((brightest > 1000) & ~truth).sum() <= 0.01 * chip.valid.sum()
        assert ((brightest < 600) & truth).sum() <= 0.01 * chip.valid.sum()
        assert truth.any()


@pytest.mark.parametrize(("height", "width"), [(30, 333), (210, 20), (9, 11), (1, 1)])
def test_scene_smaller_than_the_chip_fills_it(tmp_path, height, width):
    path, labels = squares(tmp_path, height=210, width=333)
    data = np.random.default_rng(0).integers(1, 999, (2, height, width)).astype("uint16")
    small = write_tiff(tmp_path / "small.tif", data, transform=Affine(1, 0, 5e5, 0, -1, 5e6), descriptions=BANDS)
    ground = Ground(open_scene(small), LabelLayer.build(labels, open_scene(path).grid, ("a", "b")))
    reader, sampler = ChipReader(ground, cache_bytes=2**24), sampler_of(ground, changes=ANY_TURN)
    for number in range(10):
        chip = reader.view(sampler.place(number)[1], size=48)
        assert chip.image.shape == (2, 48, 48)
        assert chip.valid.all()
        assert chip.labelled.all()
        assert chip.image.min() >= data.min() - 1e-3
        assert chip.image.max() <= data.max() + 1e-3


@pytest.mark.parametrize(("height", "width"), [(30, 333), (11, 20), (9, 12), (1, 1)])
def test_a_scene_smaller_than_the_chip_is_seen_as_it_is_not_between_its_pixels(tmp_path, height, width):
    _, labels = squares(tmp_path, height=210, width=333)
    data = np.random.default_rng(0).integers(1, 999, (2, height, width)).astype("uint16")
    small = write_tiff(tmp_path / "small.tif", data, transform=Affine(1, 0, 5e5, 0, -1, 5e6), descriptions=BANDS)
    scene = open_scene(small)
    ground = Ground(scene, LabelLayer.of(labels, scene.grid, ("a", "b")))
    reader, sampler = ChipReader(ground, cache_bytes=2**24), sampler_of(ground)
    for number in range(4):
        seen = reader.view(sampler.place(number)[1], size=48).image
        assert np.isin(seen, data).all()
        assert len(np.unique(seen)) > len(np.unique(data)) // 4


def test_places_depend_on_seed_and_number_only(ground):
    first, again, other = (sampler_of(ground, seed=seed, changes=ANY_TURN) for seed in (5, 5, 6))
    numbers = [9, 3, 700, 3]
    assert [first.place(n) for n in numbers] == [again.place(n) for n in reversed(numbers)][::-1]
    assert [first.place(n) for n in range(20)] != [other.place(n) for n in range(20)]
    assert len({first.place(n)[1] for n in range(50)}) == 50


@pytest.mark.parametrize("balance", [0.0, 1.0])
@pytest.mark.parametrize("changes", [NO_AUGMENTATION, AugmentOptions(), ANY_TURN], ids=["none", "default", "any"])
def test_views_lie_inside_scenes_large_enough_for_them(ground, balance, changes):
    sampler = sampler_of(ground, size=64, balance=balance, changes=changes)
    for number in range(200):
        _, view = sampler.place(number)
        height, width = view.extent(64)
        assert height / 2 - 1e-9 <= view.row <= 210 - height / 2 + 1e-9
        assert width / 2 - 1e-9 <= view.col <= 333 - width / 2 + 1e-9


def test_views_reach_every_corner_of_a_scene(ground):
    sampler = sampler_of(ground, size=32, balance=0.0)
    seen = np.zeros((210, 333), bool)
    for number in range(1500):
        seen[slices(sampler.place(number)[1].window(32), ground.scene.grid.window)] = True
    assert seen.mean() > 0.999
    assert seen[[0, 0, -1, -1], [0, -1, 0, -1]].all()


def test_chips_without_a_change_are_windows_of_whole_pixels(ground):
    sampler = sampler_of(ground, size=33)
    for number in range(50):
        _, view = sampler.place(number)
        assert view == View.of(view.window(33))


@pytest.mark.parametrize("balance", [0.25, 0.8])
def test_a_class_of_a_hundred_thousandth_of_the_area_is_in_its_share_of_the_chips(tmp_path, balance):
    scene = open_scene(write_tiff(tmp_path / "wide.tif", noise(2, 1500, 1700), transform=north_up(1.0)))
    common = [("common", row, col, 20) for row in range(9, 1400, 90) for col in (50, 800, 1500)]
    places = [("rare", 900, 400, 5), *common]
    shapes = [shapely.box(5e5 + c, 5e6 - r - side, 5e5 + c + side, 5e6 - r) for _, r, c, side in places]
    labels = geopandas.GeoDataFrame({"class_name": [name for name, *_ in places]}, geometry=shapes, crs=UTM)
    ground = Ground(scene, LabelLayer.build(labels, scene.grid, ("common", "rare")))
    assert 5**2 / (1500 * 1700) < 1e-5
    sampler, seen = sampler_of(ground, size=64, balance=balance, changes=ANY_TURN), []
    for number in range(1000):
        rows, cols = pixels(sampler.place(number)[1], 64)
        seen.append(((rows >= 900) & (rows < 905) & (cols >= 400) & (cols < 405)).any())
    share = balance / 2
    assert abs(np.mean(seen) - share) < 4 * np.sqrt(share * (1 - share) / 1000) + 0.01  # and uniform chips that hit it


def test_balanced_chips_see_a_rare_class(tmp_path):
    path, labels = squares(tmp_path, height=400, width=600)
    rare = labels[labels.class_name == "a"].iloc[:1]
    scene = open_scene(path)
    ground = Ground(scene, LabelLayer.build(rare, scene.grid, ("a",)))
    reader = ChipReader(ground, cache_bytes=2**26)
    shares = {}
    for balance in (0.0, 0.5):
        sampler = sampler_of(ground, balance=balance, changes=AugmentOptions())
        shares[balance] = np.mean([reader.view(sampler.place(n)[1], size=48).target.any() for n in range(200)])
    assert shares[0.0] < 0.1
    assert shares[0.5] > 0.4


@pytest.mark.parametrize("changes", [NO_AUGMENTATION, AugmentOptions(), ANY_TURN], ids=["none", "default", "any"])
@pytest.mark.parametrize("chip", [32, 128])
def test_nothing_is_learnt_from_held_blocks_and_their_gap(ground, tmp_path, chip, changes):
    held = hold_out(ground, share=0.2, chip=chip, seed=1)
    assert held.held
    assert held.gap >= 4
    held, closed = marked(held, tmp_path)
    reader = ChipReader(held, cache_bytes=2**24, blank=True)
    sampler = sampler_of(held, size=chip, changes=changes)
    seen, shares = np.zeros((210, 333), bool), []
    for number in range(200):
        _, view = sampler.place(number)
        chipped = reader.view(view, size=chip)
        assert chipped.image.max() < MARKER / 20  # a blend with a hundredth of a marker would show
        assert not chipped.image[:, ~chipped.valid].any()
        assert not (chipped.labelled & ~chipped.valid).any()
        rows, cols = pixels(view, chip)
        inside = (rows >= 0) & (rows < 210) & (cols >= 0) & (cols < 333)
        on_held = closed[rows[inside], cols[inside]]
        assert not chipped.valid[inside][on_held].any()
        assert not chipped.labelled[inside][on_held].any()
        seen[rows[inside], cols[inside]] |= chipped.valid[inside]
        shares.append(chipped.valid.mean())
    assert not seen[closed].any()
    assert seen.mean() > 0.3
    assert np.mean(shares) > 0.5


def test_nothing_is_learnt_from_ground_that_another_scene_holds(tmp_path):
    grounds = []
    for name, x in (("one", 500_000.0), ("two", 500_100.0)):
        path, labels = squares(tmp_path, name=name, x=x, width=330)
        scene = open_scene(path)
        grounds.append(Ground(scene, LabelLayer.build(labels, scene.grid, ("a", "b"))))
    held = replace(grounds[0], held=(Window(150, 40, 80, 60),), gap=10)
    _, barred = bar_shared_ground([held, replace(grounds[1], gap=10)])
    barred, closed = marked(barred, tmp_path)
    assert closed[40:100, 50:130].all()  # a hundred columns further to the left
    reader, sampler = ChipReader(barred, cache_bytes=2**24, blank=True), sampler_of(barred, changes=ANY_TURN)
    for number in range(60):
        chip = reader.view(sampler.place(number)[1], size=48)
        assert chip.image.max() < MARKER / 20


def test_marker_would_be_seen_without_blanking(ground, tmp_path):
    held, _ = marked(hold_out(ground, share=0.2, chip=32, seed=1), tmp_path)
    reader, sampler = ChipReader(held, cache_bytes=2**24), sampler_of(held, changes=ANY_TURN)
    assert max(reader.view(sampler.place(n)[1], size=48).image.max() for n in range(40)) > MARKER / 2


def test_chips_are_mostly_free_of_held_ground(ground):
    held = hold_out(ground, share=0.2, chip=48, seed=1)
    sampler = sampler_of(held, changes=ANY_TURN)
    free = [held.free_share(sampler.place(number)[1].window(48)) for number in range(200)]
    assert np.mean(np.array(free) >= LEAST_FREE) > 0.98


def test_held_share_is_near_what_was_asked_and_carries_labels(ground):
    held = hold_out(ground, share=0.2, chip=32, seed=1)
    area = sum(w.height * w.width for w in held.held) / (210 * 333)
    assert 0.1 <= area <= 0.45
    reader = ChipReader(held, cache_bytes=2**24)
    assert all(reader.read(window).target.any() for window in held.held)


def test_scene_too_small_to_split_says_so(tmp_path):
    path, labels = squares(tmp_path, height=40, width=40)
    scene = open_scene(path)
    with pytest.raises(UsageError, match="too few"):
        hold_out(Ground(scene, LabelLayer.build(labels, scene.grid, ("a", "b"))), share=0.15, chip=64, seed=0)


def test_validation_on_training_ground_is_refused(tmp_path):
    grounds = []
    for name, x in (("one", 500_000.0), ("two", 500_100.0), ("far", 510_000.0)):
        path, labels = squares(tmp_path, name=name, x=x)
        scene = open_scene(path)
        grounds.append(Ground(scene, LabelLayer.build(labels, scene.grid, ("a", "b"))))
    refuse_leaks([grounds[0]], [grounds[2]])
    with pytest.raises(LabelError, match="shares"):
        refuse_leaks([grounds[0]], [grounds[1]])
    with pytest.raises(LabelError, match="shares"):
        refuse_leaks([grounds[0]], [grounds[0]])


def test_touching_scenes_are_no_leak(tmp_path):
    grounds = []
    for name, x in (("left", 500_000.0), ("right", 500_330.0)):
        path, labels = squares(tmp_path, name=name, x=x, width=330)
        scene = open_scene(path)
        grounds.append(Ground(scene, LabelLayer.build(labels, scene.grid, ("a", "b"))))
    refuse_leaks([grounds[0]], [grounds[1]])
