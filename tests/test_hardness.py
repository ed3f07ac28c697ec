"""Chips go to hard ground: as often as errors say, within bounds, and the same on workers and in resumed runs."""

from __future__ import annotations

import copy

import geopandas
import numpy as np
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import satseg
from satseg.errors import UsageError
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import open_scene
from satseg.learning.ground.hardness import MOST, NOWHERE, Hardness, bounded, wrong_pixels
from satseg.learning.ground.occupancy import Occupancy
from satseg.learning.ground.sampling import ChipSampler
from satseg.learning.ground.split import Ground
from satseg.learning.training import checkpoints
from satseg.learning.training.checkpoints import LAST
from satseg.learning.training.feed import Chips, stack_placed
from satseg.options import NO_AUGMENTATION, AugmentOptions
from satseg.run import RunConfig
from tests.factories import UTM, noise, north_up, write_tiff
from tests.worlds import squares

FAST = {"chip": 32, "batch": 4, "width": 4, "depth": 2, "stem": 1, "rounds": 2, "precision": "fp32", "device": "cpu"}
SMALL_CACHE = 1500 * 1800 * 28 // 24
"""Of which a stretch takes a tenth of `wide`."""


def made(folder, data, *, name="scene", features=((10, 10, 9, 9),), nodata=0, **options):
    """A ground of `data` (C, H, W) with features (row, col, height, width) of one class."""
    path = write_tiff(folder / f"{name}.tif", data, transform=north_up(1.0), nodata=nodata, tiled=True, blockxsize=64,
                      blockysize=64)  # fmt: skip
    scene = open_scene(path)
    shapes = [shapely.box(5e5 + c, 5e6 - r - h, 5e5 + c + w, 5e6 - r) for r, c, h, w in features]
    labels = geopandas.GeoDataFrame({"class_name": ["a"] * len(shapes)}, geometry=shapes, crs=UTM)
    return Ground(scene, LabelLayer.build(labels, scene.grid, ("a",), **options))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    rng = np.random.default_rng(0)
    places = [(int(r), int(c), 6, 6) for r, c in zip(*rng.integers(0, (1480, 1780), (400, 2)).T, strict=True)]
    return made(tmp_path_factory.mktemp("wide"), noise(2, 1500, 1800), features=places, nodata=None)


def sampler_of(*grounds, size=32, balance=0.0, hard=1.0, changes=NO_AUGMENTATION, **more):
    return ChipSampler(grounds, size=size, seed=0, balance=balance, hard=hard, changes=changes, **more)


def centres(sampler, numbers):
    """(n, 3) ground, row, col of chips."""
    found = [sampler.place(number) for number in numbers]
    return np.array([(index, view.row, view.col) for index, view in found])


def teach(sampler, error, *, times=30, number=1):
    """Have all cells be seen `times`, with the wrong share that `error` (ground, row, col) gives; begin a round."""
    hardness, found = sampler.hardness, []
    for index, ground in enumerate(sampler.grounds):
        rows, cols = (np.arange(8, length, 16) for length in ground.scene.grid.shape)
        found += [(hardness.cells(np.array(index), r, c), error(index, r, c)) for r in rows for c in cols]
    cells, errors = (np.array(values) for values in zip(*found, strict=True))
    chips = np.column_stack([cells, np.rint(1e6 * errors), np.full(len(cells), 1e6)]).astype(np.int64)
    for _ in range(times):
        hardness.note(chips, whole=10**6)
    hardness.begin(number)


def in_corner(places, height, width):
    return (places[:, 0] == 0) & (places[:, 1] < height / 2) & (places[:, 2] < width / 2)


# --- how often


@pytest.mark.parametrize("hard", [1.0, 0.4])
def test_a_hard_quarter_gets_its_share_of_chips(tmp_path, hard):
    ground = made(tmp_path, noise(2, 512, 768))
    sampler = sampler_of(ground, hard=hard)
    teach(sampler, lambda _, row, col: 0.5 if row < 256 and col < 384 else 0.1)
    found = in_corner(centres(sampler, range(1500)), 512, 768).mean()
    assert found == pytest.approx(hard * 5 / 8 + (1 - hard) / 4, abs=0.04)


def test_equal_errors_leave_chips_uniform(tmp_path):
    sampler = sampler_of(made(tmp_path, noise(2, 300, 470)), hard=1.0)
    for error in (0.25, 0.0):
        teach(sampler, lambda *_, error=error: error, number=sampler.hardness.round + 1)
        np.testing.assert_allclose(sampler.hardness.weights, 1, rtol=1e-12)
    even = centres(sampler_of(sampler.grounds[0], hard=0.0), range(1500))
    counts = [np.histogram2d(p[:, 1], p[:, 2], bins=(3, 4))[0] for p in (even, centres(sampler, range(1500)))]
    np.testing.assert_allclose(counts[1], counts[0], atol=60)


def test_the_first_round_and_no_share_are_the_chips_without(wide):
    for cache_bytes in (None, SMALL_CACHE):
        options = {"size": 64, "balance": 0.5, "changes": AugmentOptions(), "cache_bytes": cache_bytes}
        plain, asked = (sampler_of(wide, hard=hard, **options) for hard in (0.0, 0.7))
        assert plain.hardness is None
        assert [plain.place(n) for n in range(60)] == [asked.place(n) for n in range(60)]
    assert Chips(plain, cache_bytes=2**24)[3].cell == NOWHERE


def test_grounds_share_the_chips_by_their_errors_too(tmp_path):
    grounds = [made(tmp_path, noise(2, 320, 320), name=name) for name in ("easy", "hard")]
    sampler = sampler_of(*grounds)
    teach(sampler, lambda index, *_: 0.3 if index else 0.1)
    assert centres(sampler, range(1200))[:, 0].mean() == pytest.approx(0.75, abs=0.04)


def test_ground_of_no_use_is_not_drawn_however_hard(tmp_path):
    data = np.zeros((2, 600, 700), "uint16")
    data[:, 200:400, 300:500] = noise(2, 200, 200)
    sampler = sampler_of(made(tmp_path, data, features=((210, 310, 9, 9),)))
    teach(sampler, lambda _, row, col: 0.1 if 200 <= row < 400 and 300 <= col < 500 else 0.9)
    chips = Chips(sampler, cache_bytes=2**24)
    assert min(chips[number].labelled.mean() for number in range(60)) > 0


def test_in_a_stretch_weights_choose_within_it(wide):
    options = {"size": 64, "cache_bytes": SMALL_CACHE}
    plain, sampler = sampler_of(wide, hard=0.0, **options), sampler_of(wide, **options)
    teach(sampler, lambda _, row, col: 0.4 if row % 512 < 256 else 0.1)  # half of every region
    hits = []
    for start in range(0, 4000, 800):
        even, hard = (centres(one, range(start, start + 150)) for one in (plain, sampler))
        blocks = [{(int(r), int(c)) for r, c in found[:, 1:] // 512} for found in (even, hard)]
        assert len(blocks[1] - blocks[0]) <= 1  # of a dozen, one that neither is on for long
        hits += [(found[:, 1] % 512 < 256).mean() for found in (even, hard)]
    even, hard = np.mean(hits[::2]), np.mean(hits[1::2])
    assert hard == pytest.approx(4 * even / (4 * even + 1 - even), abs=0.08)


def test_over_a_pass_no_place_of_equal_errors_is_left_out_in_stretches(wide):
    sampler = sampler_of(wide, size=64, cache_bytes=SMALL_CACHE)
    teach(sampler, lambda *_: 0.2)
    plain = sampler_of(wide, size=64, cache_bytes=SMALL_CACHE, hard=0.0)
    numbers = range(0, round(2 / plain._passes_per_chip), 7)
    counts = [np.histogram2d(*centres(one, numbers)[:, 1:].T, bins=(3, 3))[0] for one in (plain, sampler)]
    np.testing.assert_allclose(counts[1] / len(numbers), counts[0] / len(numbers), atol=0.03)


# --- what counts as hard


def test_wrong_pixels_are_counted_on_labelled_ground_of_each_chip():
    rng = np.random.default_rng(1)
    logits, target = rng.normal(size=(3, 2, 5, 7)), rng.random((3, 2, 5, 7)) < 0.4
    labelled = rng.random((3, 1, 5, 7)) < 0.6
    labelled[2] = False
    logits[:, :, 0, 0] = np.nan
    found = wrong_pixels(*map(torch.from_numpy, (logits, target, labelled)))
    known = np.broadcast_to(labelled, target.shape)
    wrong = ((logits > 0) != target) & known
    np.testing.assert_array_equal(found, np.stack([wrong.sum((1, 2, 3)), known.sum((1, 2, 3))], axis=1))


def map_of(height, width, *, free=None, side=16):
    shape = -(-height // side), -(-width // side)
    return Occupancy(None, np.ones(shape, bool) if free is None else free, height / shape[0], width / shape[1])


def test_ground_never_seen_takes_the_mean_and_chips_without_truth_say_nothing():
    hardness = Hardness([map_of(64, 128)], 32)
    hardness.note(np.array([[0, 40, 100], [1, 20, 100], [2, 0, 0], [3, 0, 0]]), whole=100)
    hardness.begin(1)
    weights = hardness.weights
    assert weights[0] > weights[2] > weights[1]
    assert len(np.unique(weights[2:])) == 1
    assert weights.mean() == pytest.approx(1)


def test_errors_are_seen_against_those_of_their_time():
    """What was looked at early, when everything was wrong, is not harder than what was looked at late."""
    hardness = Hardness([map_of(64, 64)], 32)
    for step in range(100):
        error = 1000 // (step + 1)
        hardness.note(np.array([[step // 50, error, 2000], [2, error, 2000], [3, error, 2000]]), whole=2000)
    hardness.begin(1)
    np.testing.assert_allclose(hardness.weights, 1, atol=0.25)


def test_older_rounds_fade():
    hardness = Hardness([map_of(64, 64)], 32)
    for number in range(1, 5):
        chips = np.array([[cell, 50 if cell == (0 if number == 1 else 3) else 10, 100] for cell in range(4)])
        for _ in range(20):
            hardness.note(chips, whole=100)
        hardness.begin(number)
        assert hardness.weights.argmax() == (0 if number == 1 else 3)
    assert 1 < hardness.weights[0] / hardness.weights[1] < 1.5  # at first five times


def test_a_round_begins_once():
    hardness = Hardness([map_of(64, 64)], 32)
    for number in (1, 1):
        hardness.note(np.array([[0, 50, 100], [1, 10, 100]]), whole=100)
        hardness.begin(number)
    first = hardness.weights
    hardness.begin(2)
    assert not np.array_equal(first, hardness.weights)


@given(st.lists(st.tuples(st.floats(1e-6, 1e6), st.floats(0.1, 10)), min_size=1, max_size=40))
def test_weights_have_a_mean_of_one_and_keep_their_bounds_and_order(cells):
    hardness, area = np.array(cells).T
    weights = bounded(hardness, area)
    assert np.average(weights, weights=area) == pytest.approx(1, rel=1e-9)
    assert weights.min() >= 1 / MOST
    assert weights.max() <= MOST
    order = np.argsort(hardness)
    assert (np.diff(weights[order]) >= 0).all()


def test_one_cell_of_wrong_labels_is_drawn_eight_times_as_often_and_no_more(tmp_path):
    sampler = sampler_of(made(tmp_path, noise(2, 640, 640)))
    teach(sampler, lambda _, row, col: 1.0 if row < 32 and col < 32 else 0.001)
    weights = sampler.hardness.weights
    assert weights.max() == pytest.approx(MOST, rel=1e-6)
    assert weights.argmax() == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (37, 2), (515, 33)])
def test_cells_are_about_a_chip_and_cover_any_scene(height, width):
    hardness = Hardness([map_of(9, 9), map_of(height, width)], 48)
    rows, cols = (axis.ravel() for axis in np.mgrid[:height, :width])
    cells, counts = np.unique(hardness.cells(np.ones(len(rows)), rows, cols), return_counts=True)
    np.testing.assert_array_equal(cells, np.arange(1, len(hardness.weights)))
    assert counts.max() <= 72**2
    beyond = hardness.cells(np.ones(2), np.array([-5, height + 9]), np.array([-5, width + 9]))
    assert beyond.tolist() == [cells[0], cells[-1]]


# --- the same everywhere


def test_worker_processes_take_up_the_weights_of_each_round(tmp_path):
    sampler = sampler_of(made(tmp_path, noise(2, 256, 320)), hard=0.8)
    options = {"batch_size": 4, "collate_fn": stack_placed}
    chips = Chips(sampler, cache_bytes=2**22)
    loader = DataLoader(chips, num_workers=1, persistent_workers=True, sampler=range(16), **options)
    seen = []
    for number in range(3):
        if number:
            teach(sampler, lambda _, row, col, n=number: 0.5 if (row < 128) == (n == 1) else 0.05, number=number)
        alone = DataLoader(chips, sampler=range(16), **options)
        for there, here in zip(loader, alone, strict=True):
            assert all(map(torch.equal, there, here))
        seen.append(torch.cat([batch[4] for batch in alone]).tolist())
    assert seen[0] != seen[1] != seen[2]


def test_a_state_taken_over_goes_on_alike(wide):
    first, other = (sampler_of(wide, size=64, hard=0.6) for _ in range(2))
    teach(first, lambda _, row, col: (row + col) / 4000)
    state = copy.deepcopy(first.hardness.state())
    other.hardness.restore(state)
    assert centres(first, range(50)).tolist() == centres(other, range(50)).tolist()
    for sampler in (first, other):
        sampler.hardness.note(np.array([[2, 7, 10], [5, 1, 10]]), whole=20)
        sampler.hardness.begin(2)
    np.testing.assert_array_equal(first.hardness.weights, other.hardness.weights)


@pytest.mark.parametrize("seconds", [60.0, 1e-6], ids=["between rounds", "within a round"])
def test_a_killed_run_resumes_to_the_same_map_and_weights(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", seconds)
    data = [squares(tmp_path, height=131, width=150)]
    options = {**FAST, "steps": 8, "seed": 1, "hard": 0.7, "balance": 0.2}

    def stop(stage, done, total, note):
        if stage == "train" and done >= 0.85:
            raise KeyboardInterrupt

    whole = satseg.train(data, output=tmp_path / "whole.safetensors", **options)
    with pytest.raises(KeyboardInterrupt):
        satseg.train(data, output=tmp_path / "parts.safetensors", progress=stop, **options)
    kept = torch.load(tmp_path / "parts.run" / LAST, weights_only=True)
    assert (kept["global_step"], kept["hardness"]["round"]) == ((4, 0) if seconds > 1 else (6, 1))
    parts = satseg.train(data, output=tmp_path / "parts.safetensors", resume=True, **options)
    state, again = (model.network.state_dict() for model in (whole, parts))
    assert all(torch.equal(state[name], again[name]) for name in state)
    maps = [torch.load(tmp_path / f"{name}.run" / LAST, weights_only=True)["hardness"] for name in ("whole", "parts")]
    assert (maps[0]["weights"] != 1).any()
    assert maps[0]["batches"] == maps[1]["batches"] == 8  # one killed between rounds ended a step after
    assert all(torch.equal(maps[0][name], maps[1][name]) for name in ("weights", "errors", "seen"))


def test_the_share_is_between_none_and_all():
    with pytest.raises(UsageError, match="hard"):
        RunConfig.from_options({"hard": 1.5})
