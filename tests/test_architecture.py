"""The laws between the rooms, read off the import statements."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "satseg"
FLOORS = [
    {"errors", "progress", "crs", "output", "checked", "bandfile", "ledger", "documents", "formulas", "sensors",
     "classes", "indexes", "specs", "options", "run", "grid", "preview", "raster"},
    {"imagery"},
    {"vector"},
    {"scoring", "synthetic"},
    {"learning"},
    {"pipeline", "fitting", "folds", "stacking"},
    {"tasks", "demo"},
    {"cli", "__main__"},
]
LEARNING = {
    "ground": {"ground"},
    "networks": {"networks"},
    "training": {"ground", "networks", "training"},
    "detection": {"networks", "detection"},
}
"""The rooms of learning, and which of them each may import; what lies beside them is below them all."""
DOORS = {
    "rasterio.open": {"imagery/scene.py", "imagery/writer.py"},
    "safetensors": {"learning/networks/bundle.py", "learning/networks/weights.py"},
    "pyogrio": {
        "vector/features.py", "vector/formats.py", "vector/sinks.py", "vector/written.py", "pipeline.py", "cli/env.py",
    },
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    for height, names in enumerate(FLOORS):
        if name in names:
            return height
    raise AssertionError(f"{name} has no floor: name it in FLOORS")


@cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax, of which every law asks."""
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", [p for p in FILES if p != PACKAGE / "__init__.py"], ids=room)
def test_imports_go_down_only(path):
    for name in imports(path):
        parts = name.split(".")
        inside = len(parts) > 1 and any((PACKAGE / place).exists() for place in (parts[1], f"{parts[1]}.py"))
        if parts[0] == "satseg" and inside:
            assert floor(parts[1]) <= floor(room(path)), f"{path.name} imports {name} from above"


def test_the_rooms_of_learning_are_these():
    assert {path.parent.name for path in (PACKAGE / "learning").glob("*/__init__.py")} == set(LEARNING)


@pytest.mark.parametrize("path", [p for p in FILES if room(p) == "learning"], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_rooms_of_learning_import_what_they_stand_on_and_nothing_else(path):
    for name in imports(path):
        parts = name.split(".")
        if parts[:2] == ["satseg", "learning"] and parts[2] in LEARNING:
            assert parts[2] in LEARNING.get(path.parent.name, ()), f"{path.name} imports {name}"


def test_torch_lives_in_learning_only():
    strangers = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for name in imports(path)
        if name.split(".")[0] in {"torch", "lightning", "safetensors"} and room(path) != "learning"
    }
    assert not strangers - {"cli/env.py"}


def test_each_outside_format_has_one_door():
    for path in FILES:
        inside, text = path.relative_to(PACKAGE).as_posix(), path.read_text()
        if "rasterio.open(" in text:
            assert inside in DOORS["rasterio.open"], f"{inside} opens rasters"
        for library in ("safetensors", "pyogrio"):
            if any(name.split(".")[0] == library for name in imports(path)):
                assert inside in DOORS[library], f"{inside} imports {library}"


def test_package_init_files_are_empty():
    inits = [path for path in PACKAGE.rglob("__init__.py") if path != PACKAGE / "__init__.py"]
    assert inits
    assert all(not path.read_text().strip() for path in inits)


def test_every_room_is_installed():
    told = configparser.ConfigParser()
    told.read(PACKAGE.parent / "setup.cfg")
    rooms = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    listed = set(told["options"]["packages"].split())
    assert {name for name in listed if not name.startswith("satseg.data_specs")} == rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes_hold(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node, clean=False)
            length = node.end_lineno - node.lineno + 1 - (len(doc.splitlines()) if doc else 0)
            assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize(
    "code",
    [
        "import satseg",
        "import satseg; satseg.open_scene, satseg.read_features, satseg.score, satseg.Grid",
        "import satseg.tasks.dstl.prepare, satseg.tasks.dstl.check, satseg.tasks.dstl.score",
        "from satseg.cli.main import main; main(['--help'])",
    ],
)
def test_light_parts_do_not_import_torch(code):
    check = f"{code}\nimport sys; assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_help_loads_no_geospatial_library():
    check = (
        "from satseg.cli.main import main; main(['--help'])\n"
        "import sys; assert not {'rasterio', 'geopandas', 'pandas', 'shapely', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)
