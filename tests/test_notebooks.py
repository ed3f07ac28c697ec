"""What no run of a notebook shows: that it is kept without outputs; and the script of the README's picture."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest

from satseg.synthetic.scene import make_scene, write_scene
from satseg.vector.features import write_features

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a demonstration whose model found all but the vehicles."""
    folder = tmp_path_factory.mktemp("demo")
    made = make_scene(3, height=96, width=160)
    write_scene(made, folder, stem="search")
    write_features(made.labels[made.labels["class_name"] != "vehicle"], folder / "found.gpkg")
    return folder


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_picture", ROOT / "docs" / "make_picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def test_picture_takes_its_jaccard_from_the_files(script: ModuleType, demo_folder: Path) -> None:
    demo = script.read_demo(demo_folder, (10, 20, 100, 60))
    classes = len(demo.classes)
    assert "vehicle" in demo.classes
    assert demo.mean_jaccard == pytest.approx((classes - 1) / classes, abs=1e-6)
    assert demo.image.shape == (8, 60, 100)


def test_picture_has_its_width_and_both_numbers(script: ModuleType, demo_folder: Path) -> None:
    demo = script.read_demo(demo_folder, (10, 20, 100, 60))
    figure = script.draw(demo)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert f"{len(demo.found)} polygons" in titles[1]
    assert titles[2].endswith(f"{demo.mean_jaccard:.2f}")
    width, height = struct.unpack(">II", script.encode(figure)[16:24])
    assert width == script.WIDTH_PX
    assert height < width
