"""Plans: shares and splits are those of the run, nothing is written, and a run's page needs nothing else."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import rasterio
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

import satseg
from satseg.errors import LabelError, OutputError, UsageError
from satseg.imagery.labels import LabelLayer
from satseg.learning.ground.chips import ChipReader
from satseg.learning.ground.shares import chip_shares, class_areas
from satseg.learning.ground.split import Ground
from satseg.learning.ground.split_map import GAP, HELD, LEARNT, cells, class_cells, split_sheet, split_text
from satseg.learning.networks.network import Network
from satseg.learning.networks.unet import UNet, UNetConfig
from satseg.learning.training.examples import shown_side
from satseg.learning.training.plan import memory_bytes, percent, run_sampler
from satseg.learning.training.recipe import build_learner
from satseg.learning.training.step_time import step_seconds
from satseg.pipeline import plan
from satseg.run import RunConfig
from tests.commands import files_under
from tests.factories import noise, north_up, write_tiff
from tests.worlds import squares

FAST = {"chip": 32, "batch": 4, "width": 4, "depth": 2, "stem": 1, "rounds": 2, "precision": "fp32", "device": "cpu"}


@pytest.fixture
def ground(tmp_path):
    """An odd scene of 61 x 83 pixels with a held block, and polygons of two classes, two of them overlapping."""
    path = write_tiff(tmp_path / "s.tif", noise(1, 61, 83), transform=north_up(2.0))
    scene = satseg.open_scene(path)

    def box(row, col, height, width):
        return scene.grid.crop(Window(col, row, width, height)).footprint()

    a = np.array([box(2, 3, 10, 20), box(7, 3, 10, 20), box(50, 70, 40, 40)], object)
    layer = LabelLayer(("a", "b"), (a, np.array([box(30, 30, 1, 1)], object)), scene.grid.crs)
    return Ground(scene, layer, held=(Window(40, 20, 20, 30),), gap=4)


# --- shares


def test_areas_are_those_of_burnt_pixels(ground):
    labelled, areas, counts = class_areas(ground, held=False)
    planes, known = ground.labels.burn(ground.scene.grid)
    assert labelled == pytest.approx(known.sum())
    assert areas == pytest.approx(planes.sum(axis=(1, 2)))
    assert counts.tolist() == [3, 1]
    labelled, areas, counts = class_areas(ground, held=True)
    assert (labelled, *areas, *counts) == (pytest.approx(600), 0, 0, 0, 0)


@pytest.mark.parametrize("unlabelled", ["background", "ignore"])
def test_only_labelled_ground_counts(ground, unlabelled):
    grid, labels = ground.scene.grid, ground.labels
    aoi = np.array([grid.crop(Window(0, 0, 40, 61)).footprint()], object)
    ignored = np.array([grid.crop(Window(0, 0, 13, 61)).footprint()], object)
    layer = LabelLayer(labels.classes, labels.geometries, labels.crs, ignored, aoi, unlabelled)
    part = Ground(ground.scene, layer)
    planes, known = layer.burn(grid)
    labelled, areas, _ = class_areas(part, held=False)
    assert labelled == pytest.approx(known.sum())
    assert areas == pytest.approx((planes & known).sum(axis=(1, 2)))


def test_bow_ties_do_not_stop_a_plan(ground):
    grid = ground.scene.grid
    xs, ys = grid.xy(rows=[10, 20, 20, 10], cols=[10, 30, 10, 30])
    bow = np.array([shapely.Polygon(np.column_stack([xs, ys]))], object)
    assert not bow[0].is_valid
    _, areas, _ = class_areas(Ground(ground.scene, LabelLayer(("a",), (bow,), grid.crs)), held=False)
    assert areas[0] == pytest.approx(100)


def test_shares_of_chips_are_those_of_the_chips_drawn(tmp_path):
    run = RunConfig.from_options({**FAST, "zoom": (1.0, 1.0)})
    made = plan([squares(tmp_path)], config=run)
    learner, (ground,) = build_learner(made.prepared, run), made.prepared.grounds
    sampler, reader = run_sampler((ground,), learner), ChipReader(ground, cache_bytes=2**24, blank=True)
    drawn = [reader.view(sampler.place(number)[1], size=32) for number in range(60)]
    count = len(ground.labels.classes)
    seen = np.mean([(chip.target[:count] * chip.labelled).any(axis=(1, 2)) for chip in drawn], axis=0)
    assert chip_shares((ground,), sampler, 60) == pytest.approx(seen, abs=0.1)  # outlines that touch are no pixels
    reader.close()


@given(st.floats(1e-11, 1.0))
def test_percentages_have_three_digits_however_small(share):
    text = percent(share)
    assert float(text.removesuffix(" %")) == pytest.approx(100 * share, rel=0.0051)
    assert re.fullmatch(r"\d+(\.\d+)? %", text)


def test_percentages_of_a_tiny_class_are_seen():
    assert [percent(x) for x in (0, 4.123e-5, 0.00777, 0.1549, 1)] == ["0 %", "0.00412 %", "0.777 %", "15.5 %", "100 %"]


# --- maps


def test_cells_at_full_size_are_the_ground_as_training_sees_it(ground):
    states = cells(ground, *ground.scene.grid.shape)
    expected = np.full((61, 83), LEARNT)
    expected[16:54, 36:64] = GAP
    expected[20:50, 40:60] = HELD
    np.testing.assert_array_equal(states, expected)
    assert (cells(Ground(ground.scene, ground.labels), 5, 7, validation=True) == HELD).all()


@pytest.mark.parametrize("size", [1, 5, 61, 200])
def test_every_class_shows_on_a_map_of_any_size(ground, size):
    grid = ground.scene.grid.zoom(61 / size)
    shown, touched = class_cells(ground.labels, grid), ground.labels.planes(grid, all_touched=True) > 0
    assert shown.any(axis=(1, 2)).all()
    assert not (shown & ~touched).any()
    assert size < 61 or (shown == touched).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (700, 2), (61, 83)])
def test_text_maps_fit_a_terminal(tmp_path, height, width):
    scene = satseg.open_scene(write_tiff(tmp_path / "s.tif", noise(1, height, width), crs=None))
    layer = LabelLayer(("a",), (np.array([scene.grid.footprint()], object),), None)
    lines = split_text(Ground(scene, layer, held=(Window(0, 0, 1, 1),))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert 1 <= len(lines) <= 24
    assert 1 <= len(lines[0]) <= 64


def test_pictures_of_several_scenes_stand_below_each_other(ground):
    whole = Ground(ground.scene, ground.labels)
    one = split_sheet([ground], [ground], {"a": "#ff0000", "b": "#00ff00"}, image=True)
    two = split_sheet([ground], [whole], {"a": "#ff0000", "b": "#00ff00"})
    assert one.shape == (3, 61, 83)
    assert two.shape == (3, 61 + 8 + 61, 83)
    assert (two[:, 30, 50] != two[:, 30, 20]).any()


# --- memory


@pytest.mark.parametrize("chip", [4, 64])
def test_memory_follows_the_batch_once_steps_are_what_takes_it(chip):
    network = UNet(UNetConfig(bands=3, classes=2, width=8, depth=3, stem=1))
    few, many, more = (memory_bytes(network, batch=n * 2**16, bands=3, classes=2, chip=chip) for n in (1, 2, 3))
    assert more - many == pytest.approx(many - few, rel=1e-6)
    assert many - few > 2**16 * chip**2 * 4 * (3 + 4 * 8)  # image, and two convolutions with norms at full size
    assert memory_bytes(network, batch=1, bands=3, classes=2, chip=chip) > 512**2 * 4 * (3 + 8)  # a tile to validate
    assert network.training
    assert next(network.parameters()).device.type == "cpu"


# --- plans


def test_a_plan_tells_of_the_run_and_writes_nothing(tmp_path):
    data = [squares(tmp_path, height=200, width=330)]
    before = files_under(tmp_path)
    made = plan(data, output=tmp_path / "m.safetensors", steps=5, **FAST)
    assert files_under(tmp_path) == before
    (scene,), (a, b) = made.scenes, made.classes
    assert (scene.name, scene.height, scene.width, scene.crs) == ("scene", 200, 330, "EPSG:32633")
    assert (made.bands, made.steps, made.minutes, made.pixels_per_step) == (("red", "nir"), 5, None, 4 * 32**2)
    assert a.features + b.features == len(data[0][1])
    assert a.area_share == pytest.approx(a.features * 144 / (200 * 330))
    assert 0 < a.held_share < 0.6
    assert 0 < a.chip_share <= 1
    model = satseg.train(data, steps=2, **FAST)
    assert made.parameters == sum(p.numel() for p in model.network.parameters())
    assert json.loads(json.dumps(made.to_dict()))["classes"][0]["name"] == "a"


def test_a_pass_is_one_figure_in_what_a_plan_tells_and_in_when_a_run_ends(tmp_path):
    path, labels = squares(tmp_path, height=200, width=330)
    with rasterio.open(path, "r+") as file:
        data = file.read()
        data[:, :, 120:] = 0
        file.write(data)
        file.nodata = 0
    made = plan([(path, labels)], minutes=5, passes=1000, **FAST)
    assert made.most_steps == math.ceil(1000 * made.pass_steps)
    assert made.pass_steps * made.pixels_per_step < 0.45 * 200 * 330  # what is not valid is not learnt from
    assert f"{round(made.pass_steps):,} steps see as much as the ground has" in made.to_text()


def test_a_plan_draws_the_split_where_it_is_told_to_and_training_goes_on_there(tmp_path):
    data, folder = [squares(tmp_path, height=200, width=330)], tmp_path / "runs" / "one"
    plan(data, run_dir=folder, steps=2, **FAST)
    assert [path.name for path in folder.iterdir()] == ["split.png"]
    header = (folder / "split.png").read_bytes()[16:24]
    assert (int.from_bytes(header[:4]), int.from_bytes(header[4:])) == (330, 200)
    plan(data, run_dir=folder, steps=2, **FAST)
    satseg.train(data, run_dir=folder, steps=2, **FAST)
    assert (folder / "report.html").exists()
    with pytest.raises(OutputError, match="earlier run"):
        plan(data, run_dir=folder, steps=2, **FAST)


def test_plan_is_public_as_train_is_and_every_public_name_is_there():
    assert satseg.plan is plan
    assert set(satseg.__all__) == set(satseg._HOMES)
    assert all(getattr(satseg, name).__name__ == name for name in satseg.__all__)


def test_the_time_of_steps_is_that_of_one_times_their_number(tmp_path, monkeypatch):
    data = [squares(tmp_path)]
    monkeypatch.setattr("satseg.learning.training.plan.step_seconds", lambda *_, **__: 0.25)
    assert plan(data, steps=480, **FAST).seconds == 120
    assert "480 steps, about 2 minutes for the network, on cpu" in plan(data, steps=480, **FAST).to_text()
    assert plan(data, minutes=1, **FAST).seconds is None


def test_a_step_is_tried_as_often_as_batches_make_it_and_where_memory_allows(tmp_path, monkeypatch):
    run = RunConfig.from_options({**FAST, "steps": 2, "accumulate": 3})
    learner = build_learner(plan([squares(tmp_path)], config=run).prepared, run)
    weights = [value.clone() for value in learner.network.state_dict().values()]
    passes = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: passes.append(given[0].shape) if isinstance(module, Network) else None
    )
    assert step_seconds(learner, bands=2, memory=0) > 0
    hook.remove()
    assert passes == 6 * [(run.train.batch, 2, run.train.chip, run.train.chip)]
    after = learner.network.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    assert step_seconds(learner, bands=2, memory=2**60) is None
    monkeypatch.setattr("torch.rand", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    assert step_seconds(learner, bands=2, memory=0) is None


def test_a_plan_refuses_what_training_refuses(tmp_path):
    path, labels = squares(tmp_path)
    cases = [
        ([], {}, UsageError), ([(path, labels)], {"classes": ("a", "c")}, LabelError),
        ([(path, labels)], {"chip": 33}, UsageError), ([(path, labels)], {"output": tmp_path / "m.pth"}, UsageError),
        ([(path, labels)], {"output": tmp_path / "absent" / "m.safetensors"}, OutputError),
    ]  # fmt: skip
    for data, options, kind in cases:
        with pytest.raises(kind):
            plan(data, **{**FAST, "steps": 2, **options})


def test_a_scene_without_crs_and_one_to_validate_on(tmp_path):
    data, other = squares(tmp_path, crs=None), squares(tmp_path, name="other", height=70, width=111, crs=None)
    made = plan([data], valid_data=[other], steps=2, **FAST)
    assert [(scene.role, scene.held_share, scene.gsd_m) for scene in made.scenes] == [
        ("training", 0.0, None), ("validation", 1.0, None),
    ]  # fmt: skip
    features = [item.features + item.held_features for item in made.classes]
    assert sum(features) == len(data[1]) + len(other[1])
    assert "no CRS; all of it held" in made.to_text()
    assert made.picture().startswith(b"\x89PNG")


# --- the page of a run


@pytest.mark.parametrize("case", ["two bands", "one band", "no CRS", "no truth to validate on", "mixed"])
def test_the_page_needs_nothing_from_outside(tmp_path, case):
    path, labels = squares(tmp_path, crs=None if case == "no CRS" else "EPSG:32633")
    options = {**FAST, "steps": 4, "run_dir": tmp_path / "run"}
    options |= {"bands": ("nir",)} if case == "one band" else {}
    options |= {"mixup": 1.0, "cutmix": 1.0} if case == "mixed" else {}
    if case == "no truth to validate on":
        other, theirs = squares(tmp_path, name="other", height=70, width=111, x=600_000.0)
        options["valid_data"] = [(other, theirs[theirs["class_name"] == "a"])]
    labels["class_name"] = labels["class_name"].replace({"a": "<a&>"} if case == "two bands" else {})
    satseg.train([(path, labels)], **options)
    text = (tmp_path / "run" / "report.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert set(re.findall(r'src="(\w+:[\w/]+);', text)) == {"data:image/png"}
    assert len(re.findall("<img", text)) == 12 * 3 + (2 if "valid_data" in options else 1)
    assert len(re.findall("<svg", text)) == 3 + (1 if "valid_data" in options else 2)
    assert ("&lt;a&amp;&gt;" in text, "<a&>" in text) == (case == "two bands", False)
    assert ("for want of truth" in text) == (case == "no truth to validate on")
    assert "[train]" in text


@given(st.integers(1, 80), st.sampled_from([1, 4, 16, 64]), st.integers(0, 150))
def test_shown_chips_fit_the_network(count, stride, crop):
    chip = (2 * crop // stride + count) * stride
    side = shown_side(chip, stride=stride, crop=crop)
    assert side % stride == 0
    assert 2 * crop < side <= chip
    assert side <= max(256, 2 * crop + stride)
