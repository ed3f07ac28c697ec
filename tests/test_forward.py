"""What goes to a network and what comes back of it: one meaning, whoever computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from satseg.imagery.rows import RowReader
from satseg.imagery.scene import open_scene
from satseg.imagery.tiling import plan_tiles
from satseg.learning.networks.forward import Forward, Piece, Wanted, codes_of
from satseg.learning.networks.kernels import encode, pack
from satseg.learning.networks.means import entropies
from satseg.learning.networks.runtimes import make_runtime
from satseg.learning.networks.views import TTA
from satseg.vector.layers import PlaneCode
from tests.factories import noise, write_tiff
from tests.worlds import BANDS, tiny_model


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["uint8", "uint16", "int16", "int32", "float32", "float64"]), st.integers(1, 9), st.integers(1, 7),
    st.integers(0, 2**31), st.booleans(),
)  # fmt: skip
def test_packed_pixels_are_those_of_the_normalization(dtype, height, width, seed, part):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 200, (3, height + 2, width + 2)).astype(dtype)
    if part:
        data = data[:, 1:-1, 1:-1]
    data.flags.writeable = False
    valid = rng.random(data.shape[1:]) < 0.8
    bands = {
        name: np.asarray(row, np.float32)
        for name, row in (("low", (5, 0, 20)), ("high", (150, 90, 199)), ("offset", (60, 1, 2)), ("scale", (7, 3, 0.5)))
    }
    out = np.full((*data.shape[1:], 3), np.nan, np.float32)
    pack(data, valid, bands, out)
    low, high, offset, scale = (bands[name][:, None, None] for name in ("low", "high", "offset", "scale"))
    expected = np.where(valid, (np.clip(data.astype(np.float32), low, high) - offset) / scale, 0)
    np.testing.assert_allclose(out.transpose(2, 0, 1), expected, rtol=1e-6)


def coded(logits, valid, thresholds):
    out = np.zeros(logits.shape, np.uint8)
    encode(logits, valid, thresholds, out)
    return out


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_codes_mean_what_plane_codes_say(order):
    """`PlaneCode`, which reads codes, is the oracle: within half a step of the score, inside from the threshold on."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(1, 4, 61, 83, generator=generator) * 4).contiguous(memory_format=order)[0]
    valid = np.random.default_rng(0).random((61, 83)) < 0.9
    thresholds = np.array([0.1, 0.5, 0.7, 0.95], np.float32)
    codes = coded(logits.numpy(), valid, thresholds)
    scores = logits.sigmoid().numpy()
    assert ((codes == 255) == ~valid).all()
    for plane, score, level in zip(codes, scores, thresholds, strict=True):
        clear = valid & (np.abs(score - level) > 1e-6)
        assert ((plane > 0) == (score >= level))[clear].all()
        offset, scale = PlaneCode(float(level)).score_of
        inside = clear & (plane > 0)
        assert np.abs(offset + scale * plane - score)[inside].max() <= scale / 2 + 1e-6
        assert plane[inside].min() >= 1


def test_torch_makes_the_same_codes_as_the_compiled_loop():
    logits = torch.randn(3, 90, 70, generator=torch.Generator().manual_seed(1)) * 5
    valid = torch.rand(90, 70, generator=torch.Generator().manual_seed(2)) < 0.9
    thresholds = np.array([0.3, 0.5, 0.8], np.float32)
    ours, theirs = coded(logits.numpy(), valid.numpy(), thresholds), codes_of(logits, valid, thresholds).numpy()
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # a score between two codes may round either way
    np.testing.assert_array_equal(ours == 0, theirs == 0)
    np.testing.assert_array_equal(ours == 255, theirs == 255)


def test_scores_at_the_threshold_are_inside_and_extremes_stay_in_range():
    logits = np.array([0.0, -1e-9, -1e-3, 1e-3, 80.0, -80.0, np.inf, -np.inf], np.float32)[None, None]
    codes = coded(logits, np.ones((1, 8), bool), np.array([0.5], np.float32))[0, 0]
    assert codes.tolist()[:4] == [1, 1, 0, 1]
    assert codes.tolist()[4:] == [254, 0, 254, 0]


@pytest.mark.parametrize("level", [1e-6, 0.999999])
def test_thresholds_near_the_ends_keep_codes_in_range(level):
    logits = np.linspace(-30, 30, 601, dtype=np.float32)[None, None]
    codes = coded(logits, np.ones((1, 601), bool), np.array([level], np.float32))[0, 0]
    assert (np.diff(codes.astype(int)) >= 0).all()
    assert codes[0] == 0
    assert codes[-1] == 254


def test_entropy_is_that_of_the_least_certain_class():
    scores = torch.tensor([[0.5, 0.9, 0.0, 1.0], [0.9, 0.9, 1.0, 1e-7]])[:, None]
    bits = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    np.testing.assert_allclose(entropies(scores).amax(dim=0)[0], [1.0, bits, 0.0, 0.0], atol=1e-5)


def run(path, wanted, *, compiled, tta="none"):
    model = tiny_model()
    scene = open_scene(path)
    views = TTA[tta]
    plan = plan_tiles(scene.grid, tile=64, halo=views.margin(model.halo), align=model.stride * views.step)
    tile = plan.tight(next(iter(plan)))
    planes = wanted.empty(2, height=tile.keep.height, width=tile.keep.width)
    with RowReader(scene, rows=range(scene.grid.height), cols=range(scene.grid.width)) as rows:
        view = rows.window(0, scene.grid.height)
        forward = Forward(model, [make_runtime(model)], wanted, views=views)
        forward._looks[0].compiled = compiled
        keep = tile.keep
        forward([Piece((tile,), view, planes, slice(0, keep.height), slice(0, keep.width))])
    return planes


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("tta", TTA)
def test_the_way_by_torch_gives_what_the_compiled_way_gives(tmp_path, dtype, tta):
    """On a GPU pixels are normalised and codes made by torch; the same code runs here on the CPU."""
    data = (noise(2, 37, 51) * 3).astype(dtype)
    data[:, 5:9, 7:20] = 0
    path = write_tiff(tmp_path / "s.tif", data, nodata=0, descriptions=BANDS)
    wanted = Wanted(np.array([0.4, 0.6], np.float32), scores="float32", entropy=True)
    ours, theirs = (run(path, wanted, compiled=compiled, tta=tta) for compiled in (True, False))
    np.testing.assert_array_equal(ours["codes"] == 255, theirs["codes"] == 255)
    near = np.abs(ours["scores"] - wanted.thresholds[:, None, None]) < 1e-5
    same = np.abs(ours["codes"].astype(int) - theirs["codes"]) <= 1
    assert (same | near).all()
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=2e-6)
    assert np.abs(ours["entropy"].astype(int) - theirs["entropy"]).max() <= 1


@pytest.mark.parametrize(("kind", "error"), [("float32", 0), ("float16", 5e-4), ("uint8", 0.5 / 254)])
def test_scores_are_stored_as_wanted(tmp_path, kind, error):
    data = noise(2, 20, 30).astype("float32")
    data[0, 3, 4] = np.nan
    path = write_tiff(tmp_path / "s.tif", data, descriptions=BANDS)
    exact = run(path, Wanted(scores="float32"), compiled=True)["scores"]
    stored = run(path, Wanted(scores=kind), compiled=True)["scores"]
    assert stored.dtype == kind
    missing = stored == 255 if kind == "uint8" else np.isnan(stored)
    assert missing.sum() == 2
    assert missing[:, 3, 4].all()
    values = stored.astype(np.float64) / (254 if kind == "uint8" else 1)
    np.testing.assert_allclose(values[~missing], exact[~missing], atol=error + 1e-7)


def test_bytes_per_pixel_are_those_of_the_planes():
    for wanted in (Wanted(np.zeros(3, np.float32)), Wanted(scores="float16"), Wanted(np.zeros(3), "float32", True)):
        planes = wanted.empty(3, height=10, width=7)
        assert sum(plane.nbytes for plane in planes.values()) == 70 * wanted.bytes_per_pixel(3)


def test_a_window_of_the_scene_is_not_needed_whole(tmp_path):
    """Pieces see only what their view has: rows outside it are refused, not invented."""
    scene = open_scene(write_tiff(tmp_path / "s.tif", noise(2, 40, 30), descriptions=BANDS))
    with RowReader(scene, rows=range(10, 30), cols=range(30)) as rows:
        view = rows.window(10, 30)
        assert [part[0].shape for part in view.parts(Window(0, 0, 30, 40))] == [(2, 20, 30)]
