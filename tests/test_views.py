"""Test-time augmentation over scales: the mean of what each view says, and no seam of it at any tiling."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import satseg
from satseg.errors import UsageError
from satseg.learning.detection import budget, job
from satseg.learning.networks.forward import Wanted
from satseg.learning.networks.views import SCALES, TTA, Views, resampled
from tests.worlds import scene_with_gaps, tiny_model

RATIOS = st.sampled_from([Fraction(3, 4), Fraction(3, 2), Fraction(4, 3), Fraction(2, 3), Fraction(1, 2), Fraction(2)])


def image(*, height, width, seed=0):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return satseg.open_scene(scene_with_gaps(tmp_path_factory.mktemp("scene")))


@settings(deadline=None)
@given(RATIOS, st.integers(1, 5), st.integers(1, 7))
def test_resampling_is_torchs_own_antialiased_one_away_from_the_edges(scale, rows, cols):
    """At the edges torch leaves weights out and ours repeat the last pixel; its weights are rounded to float32."""
    given = image(height=12 * rows, width=12 * cols)
    size = [int(length * scale) for length in given.shape[-2:]]
    ours, theirs = resampled(given, scale), F.interpolate(given, size=size, mode="bilinear", antialias=True)
    assert ours.shape == theirs.shape
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(ours[inside], theirs[inside], atol=1e-4, rtol=0)


@settings(deadline=None)
@given(RATIOS)
def test_resampling_keeps_constants_and_ramps(scale):
    ramp = torch.arange(48.0)[None, None, :, None].expand(1, 1, 48, 24)
    there = resampled(ramp, scale)
    flat = resampled(torch.ones(1, 1, 24, 12), scale)
    torch.testing.assert_close(flat, torch.ones_like(flat))
    expected = (torch.arange(there.shape[-2]) + 0.5) / float(scale) - 0.5
    error = 1e-4 if scale > 1 else 0.05  # a wide tent over few pixels is not quite balanced
    torch.testing.assert_close(there[0, 0, 4:-4, 3], expected[4:-4], atol=error, rtol=0)


@settings(deadline=None)
@given(RATIOS, st.integers(0, 5), st.integers(0, 5))
def test_a_part_of_an_image_is_resampled_as_in_the_whole(scale, row, col):
    """To the last bit: the fractions of a pixel do not depend on where a part begins."""
    whole = image(height=108, width=96)
    part = whole[..., 12 * row : 12 * row + 48, 12 * col : 12 * col + 36]
    top, left = (int(12 * start * scale) for start in (row, col))
    found = resampled(part.contiguous(), scale)
    height, width = found.shape[-2:]
    expected = resampled(whole, scale)[..., top : top + height, left : left + width]
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-6, rtol=0)


def test_the_mean_is_of_scores_over_all_scales():
    """By hand: a network of one pixel's reach, whose scores at each scale are put back by `resampled`."""
    given = image(height=32, width=48)[:, :1]

    def network(seen):
        return 3 * seen - 1

    expected = sum(resampled(network(resampled(given, scale)).sigmoid(), 1 / scale) for scale in SCALES) / len(SCALES)
    found = TTA["scales"].logits(network, given, crop=0)
    torch.testing.assert_close(found.sigmoid(), expected, atol=1e-6, rtol=0)
    turned = TTA["d4+scales"].logits(network, given, crop=0)  # it sees no neighbours: turns change nothing
    torch.testing.assert_close(turned, found, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=3, depth=2)


@pytest.fixture(scope="module")
def whole(model, scene):
    return satseg.predict(model, scene, tta="scales", tile=400, halo="exact")


@pytest.mark.parametrize("crop", [0, 4])
@pytest.mark.parametrize("stem", [1, 2])
def test_tiles_of_any_size_give_the_scores_of_the_whole_scene(scene, crop, stem):
    model = tiny_model(seed=3, crop=crop, stem=stem, depth=2)
    whole = satseg.predict(model, scene, tta="scales", tile=400, halo="exact")
    for tile in (32, 70):
        found = satseg.predict(model, scene, tta="scales", tile=tile, halo="exact")
        np.testing.assert_array_equal(found.valid, whole.valid)
        np.testing.assert_allclose(found.data, whole.data, atol=1e-4)
    plain = satseg.predict(model, scene, tile=400, halo="exact")
    assert np.abs(plain.data - whole.data).max() > 0.05


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 60), st.integers(0, 90), st.integers(20, 97), st.integers(20, 143), st.integers(8, 90))
def test_an_extent_has_the_scores_of_the_whole(model, scene, whole, row, col, height, width, tile):
    bottom, right = min(97, row + height), min(143, col + width)
    xs, ys = scene.grid.xy(rows=[row, bottom], cols=[col, right])
    how = {"tta": "scales", "halo": "exact", "tile": tile}
    found = satseg.predict(model, scene, bounds=(xs[0], ys[1], xs[1], ys[0]), **how)
    np.testing.assert_allclose(found.data, whole.data[:, row:bottom, col:right], atol=1e-4)


def test_margins_grow_as_the_coarsest_view_looks_further():
    assert TTA["d4"].margin(40) == 40
    assert TTA["scales"].margin(0) == 0
    assert TTA["scales"].margin(40) == 56  # 42 pixels of three quarters
    assert Views(scales=(Fraction(1), Fraction(3, 2))).margin(40) == 42
    assert TTA["scales"].step == 4


def test_four_views_are_those_of_the_2017_recipe():
    """M13: what is said of four views, 0.9, 0.8, 0.5 and 0.4, is averaged; each is turned back where it was."""
    given, seen = image(height=8, width=12)[:1, :1], []
    scores = torch.tensor([0.9, 0.8, 0.5, 0.4])

    def network(turned):
        seen.append(turned)
        return torch.full_like(turned, scores[len(seen) - 1].logit())

    for mean, expected in (("arithmetic", 0.65), ("geometric", 0.616014058)):
        seen.clear()
        found = replace(TTA["flips"], mean=mean).logits(network, given, crop=0).sigmoid()
        torch.testing.assert_close(found, torch.full_like(found, expected), atol=1e-7, rtol=0)
        ways = given, given.flip(-2), given.flip(-1), given.transpose(-2, -1)
        assert all(torch.equal(one, other) for one, other in zip(seen, ways, strict=True))


@pytest.mark.parametrize("tta", TTA)
@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_each_view_is_turned_back(tta, mean):
    """A network that says where its pixel lies gives it back from every view, by either mean."""
    place = torch.arange(24.0 * 36).reshape(1, 1, 24, 36) / 100 - 4
    if "scales" in tta:
        place = torch.full_like(place, 1.5)
    found = replace(TTA[tta], mean=mean).logits(lambda seen: seen, place, crop=0)
    torch.testing.assert_close(found, place, atol=1e-3, rtol=1e-4)


def test_the_geometric_mean_is_below_the_arithmetic_one(model, scene):
    flips = satseg.predict(model, scene, tta="flips", mean="geometric")
    plain = satseg.predict(model, scene, tta="flips")
    assert (flips.data <= plain.data + 1e-6).all()
    assert (flips.data < plain.data - 0.01).any()


def test_without_the_wider_margin_seams_would_show(model, scene, whole, monkeypatch):
    monkeypatch.setattr(Views, "margin", lambda self, pixels: pixels // 2)
    seams = satseg.predict(model, scene, tta="scales", tile=32, halo="exact")
    assert np.abs(seams.data - whole.data).max() > 1e-3


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_engines_agree_over_scales(model, scene, whole, engine):
    pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    pytest.importorskip("onnx")
    found = satseg.predict(model, scene, engine=engine, tta="scales", tile=64, halo="exact")
    np.testing.assert_allclose(found.data, whole.data, atol=1e-4)


def test_half_precision_goes_with_scales(model, scene, whole):
    half = satseg.predict(model, scene, tta="scales", amp=True)
    assert 0 < np.abs(half.data - whole.data).mean() < 0.02


def test_objects_are_cut_apart_alike_at_any_tiling(scene):
    cut = tiny_model(seed=3, separated=("b",))
    scores = satseg.predict(cut, scene, tta="scales", tile=400, halo="exact")
    values = np.sort(scores.data[:, scores.valid].ravel().astype(np.float64))
    middle = values[len(values) * 4 // 10 : len(values) * 6 // 10]
    gap = int(np.argmax(np.diff(middle)))  # no score is near the threshold, whatever its last digit
    how = {"tta": "scales", "halo": "exact", "min_area": 0.0, "threshold": float(middle[gap] + middle[gap + 1]) / 2}
    large, small = (satseg.detect(cut, scene, tile=tile, **how) for tile in (400, 48))
    assert len(large) > 20
    assert small.geometry.to_wkb().tolist() == large.geometry.to_wkb().tolist()


@pytest.mark.parametrize(
    ("tta", "work"), [("none", 1), ("flips", 4), ("d4", 8), ("scales", 3.8125), ("d4+scales", 30.5)]
)
def test_the_estimate_tells_what_views_cost(scene, tta, work):
    model, wanted = tiny_model(seed=3), Wanted(scores="float32")
    ready = job.Detection.prepare(model, scene, job.DetectOptions(tta=tta, tile=512), wanted)
    told = budget.estimate(model, ready.plan, ready.working, memory=0, disk=0)
    assert told.work == pytest.approx(ready.plan.work() * work)


def test_larger_views_take_more_memory(scene):
    model, wanted = tiny_model(seed=3), Wanted(scores="float32")
    plain, scaled = (
        job.Detection.prepare(model, scene, job.DetectOptions(tta=tta, tile=128), wanted).memory
        for tta in ("none", "scales")
    )
    assert scaled > plain


def test_a_tta_of_another_name_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"'none' or 'flips' or 'd4' or 'scales' or 'd4\+scales'"):
        job.DetectOptions(tta="d8")
