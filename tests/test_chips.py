"""Chips: reproducible by number, faithful to scene and labels, and never on validation ground."""

from __future__ import annotations

import numpy as np
import pytest
from rasterio.windows import Window

from satseg.errors import LabelError, UsageError
from satseg.grid import overlap, slices
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import open_scene
from satseg.learning.chips import ChipReader, ChipSampler, Ground, grown, hold_out, refuse_leaks
from tests.worlds import squares


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


def test_places_depend_on_seed_and_number_only(ground):
    first = ChipSampler([ground], size=48, seed=5, balance=0.5)
    again = ChipSampler([ground], size=48, seed=5, balance=0.5)
    other = ChipSampler([ground], size=48, seed=6, balance=0.5)
    numbers = [9, 3, 700, 3]
    assert [first.place(n) for n in numbers] == [again.place(n) for n in reversed(numbers)][::-1]
    assert [first.place(n) for n in range(20)] != [other.place(n) for n in range(20)]


def test_balanced_chips_see_a_rare_class(tmp_path):
    path, labels = squares(tmp_path, height=400, width=600)
    rare = labels[labels.class_name == "a"].iloc[:1]
    scene = open_scene(path)
    ground = Ground(scene, LabelLayer.build(rare, scene.grid, ("a",)))
    reader = ChipReader(ground, cache_bytes=2**26)
    shares = {}
    for balance in (0.0, 0.5):
        sampler = ChipSampler([ground], size=48, seed=0, balance=balance)
        shares[balance] = np.mean([reader.read(sampler.place(n)[1]).target.any() for n in range(200)])
    assert shares[0.0] < 0.1
    assert shares[0.5] > 0.4


@pytest.mark.parametrize("chip", [32, 128])
def test_nothing_is_learnt_from_held_blocks_and_their_gap(ground, chip):
    held = hold_out(ground, share=0.2, chip=chip, seed=1)
    assert held.held
    assert held.gap >= 8
    reader = ChipReader(held, cache_bytes=2**24, blank=True)
    sampler = ChipSampler([held], size=chip, seed=0, balance=0.5)
    seen = np.zeros((210, 333), bool)
    for number in range(200):
        _, window = sampler.place(number)
        chipped = reader.read(window)
        assert not chipped.image[:, ~chipped.valid].any()
        assert not (chipped.labelled & ~chipped.valid).any()
        inside = overlap(window, held.scene.grid.window)
        rows, cols = slices(inside, held.scene.grid.window)
        seen[rows, cols] |= chipped.valid[slices(inside, window)]
    for block in held.held:
        near = overlap(grown(block, held.gap), held.scene.grid.window)
        assert not seen[slices(near, held.scene.grid.window)].any()
    assert seen.mean() > 0.3


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
        path, labels = squares(tmp_path, name=name, x=x)
        scene = open_scene(path)
        grounds.append(Ground(scene, LabelLayer.build(labels, scene.grid, ("a", "b"))))
    refuse_leaks([grounds[0]], [grounds[1]])
