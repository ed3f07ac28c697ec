"""The demonstration leaves every file it names, readable and in one place."""

from __future__ import annotations

import pytest

import satseg
from satseg import demo
from satseg.errors import OutputError


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "HEIGHT_PX", 320)
    monkeypatch.setattr(demo, "WIDTH_PX", 416)


@pytest.mark.slow
def test_demo_leaves_what_it_promises(small, tmp_path):
    stages = []
    result = demo.run_demo(
        tmp_path / "demo", minutes=0.05, progress=lambda stage, done, total, note: stages.append(stage)
    )
    assert list(dict.fromkeys(stages)) == ["scenes", "train", "detect"]
    assert all(path.stat().st_size > 0 for path in result.files.values())
    scene = satseg.open_scene(result.files["scene"])
    assert len(scene.bands) == 8
    for role in ("shapefile", "geopackage"):
        assert satseg.read_features(result.files[role]).crs == "EPSG:32633"
    assert "<html" in result.files["report"].read_text()
    assert set(result.report.classes) <= set(result.model.classes)
    with pytest.raises(OutputError, match="not empty"):
        demo.run_demo(tmp_path / "demo", minutes=0.05)
    assert not [path for path in (tmp_path / "demo").iterdir() if path.name.startswith(".")]
