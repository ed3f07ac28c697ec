"""Polygons do not depend on how the work was cut: tiles, bands, batches, threads, engines, extents."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import satseg
from satseg.learning.detection import job
from tests.worlds import scene_with_gaps, tiny_model

EXACT = {"min_area": 0.0, "halo": "exact"}


@pytest.fixture(scope="module", params=[(), ("b",)], ids=["plain", "objects cut apart"])
def model(request):
    return tiny_model(seed=3, separated=request.param)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return satseg.open_scene(scene_with_gaps(tmp_path_factory.mktemp("scene")))


@pytest.fixture(scope="module")
def threshold(model, scene):
    """A threshold that no score is near, so that the last digit of a sum decides no pixel."""
    scores = satseg.predict(model, scene, halo="exact")
    values = np.sort(scores.data[:, scores.valid].ravel().astype(np.float64))
    middle = values[(values > 0.45) & (values < 0.55)]
    gap = int(np.argmax(np.diff(middle)))
    assert middle[gap + 1] - middle[gap] > 2e-5
    return float(middle[gap] + middle[gap + 1]) / 2


@pytest.fixture(scope="module")
def whole(model, scene, threshold):
    found = satseg.detect(model, scene, tile=400, threshold=threshold, **EXACT)
    assert len(found) > 200
    return found


def assert_same(found, expected):
    assert found.class_name.tolist() == expected.class_name.tolist()
    assert found.geometry.to_wkb().tolist() == expected.geometry.to_wkb().tolist()
    np.testing.assert_allclose(found.score, expected.score, atol=2 / 253)  # a code may round either way
    np.testing.assert_array_equal(found.area_m2, expected.area_m2)


@settings(max_examples=12, deadline=None)
@given(
    tile=st.integers(12, 160), batch_size=st.integers(1, 6), devices=st.integers(1, 3), readers=st.integers(1, 3),
    strips_ahead=st.integers(0, 2), bands_ahead=st.integers(0, 2),
)  # fmt: skip
def test_tiles_batches_devices_and_threads_change_no_polygon(
    model, scene, threshold, whole, tile, batch_size, devices, readers, strips_ahead, bands_ahead
):
    options = job.DetectOptions(tile=tile, batch_size=batch_size, threshold=threshold, devices=("cpu",) * devices)
    how = options.working(model)
    working = job.Working(
        devices=how.devices, batch_size=batch_size, readers=readers, strips_ahead=strips_ahead, bands_ahead=bands_ahead,
        halos=how.halos,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job.DetectOptions, "working", lambda self, model: working)
        assert_same(satseg.detect(model, scene, tile=tile, threshold=threshold, **EXACT), whole)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 96), st.integers(0, 142), st.integers(20, 97), st.integers(20, 143), st.integers(8, 90))
def test_what_lies_within_an_extent_is_found_as_in_the_whole(
    model, scene, threshold, whole, row, col, height, width, tile
):
    bottom, right = min(97, row + height), min(143, col + width)
    xs, ys = scene.grid.xy(rows=[row, bottom], cols=[col, right])
    bounds = (xs[0], ys[1], xs[1], ys[0])
    found = satseg.detect(model, scene, bounds=bounds, tile=tile, threshold=threshold, **EXACT)
    inner = shapely.box(bounds[0] + 0.01, bounds[1] + 0.01, bounds[2] - 0.01, bounds[3] - 0.01)
    edges = (row == 0, col == 0, bottom == 97, right == 143)
    if all(edges):
        inner = shapely.box(*bounds)
    within = [layer[layer.geometry.within(inner)] for layer in (found, whole)]
    assert_same(*within)


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_a_file_holds_what_detect_returns(model, scene, threshold, whole, tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    counts = satseg.detect_to_file(model, scene, path, tile=32, threshold=threshold, **EXACT)
    assert counts == whole.class_name.value_counts().to_dict()
    assert_same(satseg.read_features(path), whole)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_engines_change_no_polygon(model, scene, threshold, whole, engine):
    pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    pytest.importorskip("onnx")
    assert_same(satseg.detect(model, scene, tile=64, engine=engine, threshold=threshold, **EXACT), whole)


@pytest.mark.parametrize("kind", ["float16", "uint8"])
def test_scores_on_disk_are_those_of_predict(model, scene, tmp_path, kind):
    exact = satseg.predict(model, scene, halo="exact")
    outputs = {"scores": tmp_path / "s.tif", "entropy": tmp_path / "e.tif", "mask": tmp_path / "m.tif"}
    satseg.detect(model, scene, tile=40, score_type=kind, halo="exact", **outputs)
    stored = satseg.open_scene(outputs["scores"]).read()  # the scale in the file is applied
    np.testing.assert_array_equal(stored.valid, exact.valid)
    assert stored.names == exact.names
    error = {"float16": 5e-4, "uint8": 0.5 / 254}[kind]
    assert np.abs(stored.data - exact.data)[:, exact.valid].max() <= error + 1e-5
    bits = satseg.open_scene(outputs["entropy"]).read()
    p = np.clip(exact.data.astype(np.float64), 1e-12, 1 - 1e-12)
    entropy = (-p * np.log2(p) - (1 - p) * np.log2(1 - p)).max(axis=0)
    np.testing.assert_array_equal(bits.valid, exact.valid)
    assert np.abs(bits.data[0] - entropy)[exact.valid].max() <= 0.5 / 254 + 1e-4
