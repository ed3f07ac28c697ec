"""Sensor, class and index specs: what is known about bands, classes and indices, as documents with a source.

A spec is a TOML file of `data_specs/`, or a user's own anywhere, checked by the models below. Names
are file stems; case, hyphens and underscores do not count. Rejected: sensors as Python tables (a
user cannot add one, and nobody can tell where a number comes from) and specs that are code.
"""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Sequence
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import ValidationError

from satseg.classes import ClassItem, ClassSpec, ShapeRule
from satseg.documents import (
    PathLike,
    decode,
    faults,
    folded,
    key_lines,
    parse_toml,
    read_text,
    read_toml,
    suggest,
    validation_message,
)
from satseg.errors import SpecError
from satseg.indexes import IndexItem, IndexSpec
from satseg.sensors import BandSpec, FilePattern, ProductSpec, SensorSpec

__all__ = [
    "BandSpec",
    "ProductSpec",
    "FilePattern",
    "SensorSpec",
    "ClassItem",
    "ClassSpec",
    "ShapeRule",
    "IndexItem",
    "IndexSpec",
    "sensor_spec",
    "class_spec",
    "index_spec",
    "list_sensors",
    "list_classes",
    "list_index_specs",
    "find_document",
    "load_document",
    "detect_sensor",
    "json_schema",
    "suggest",
    "read_toml",
    "validation_message",
]

Kind: TypeAlias = Literal["sensor", "classes", "indices"]
FOLDERS: dict[Kind, str] = {"sensor": "sensors", "classes": "classes", "indices": "indices"}
CALLED: dict[Kind, str] = {"sensor": "sensor", "classes": "class list", "indices": "document of indices"}
INDICES = "spectral"
"""The shipped document of indices."""


AnySpec: TypeAlias = SensorSpec | ClassSpec | IndexSpec
MODELS: dict[Kind, type[SensorSpec] | type[ClassSpec] | type[IndexSpec]] = {
    "sensor": SensorSpec, "classes": ClassSpec, "indices": IndexSpec,
}  # fmt: skip
S = TypeVar("S", SensorSpec, ClassSpec, IndexSpec)


def sensor_spec(name_or_path: PathLike) -> SensorSpec:
    """Return a shipped sensor by name or alias (``"worldview3"``, ``"WV-3"``), or a user's by path.

    Raises
    ------
    SpecError
        No such name (E-SPEC-001), a document of another kind (E-SPEC-008), or as `load_document`.
    """
    return _find("sensor", SensorSpec, name_or_path)


def class_spec(name_or_path: PathLike) -> ClassSpec:
    """Return a shipped class list by name or alias, or a user's by path; raises as `sensor_spec`."""
    return _find("classes", ClassSpec, name_or_path)


def index_spec(name_or_path: PathLike = INDICES) -> IndexSpec:
    """Return a shipped document of indices, or a user's by path; raises as `sensor_spec`."""
    return _find("indices", IndexSpec, name_or_path)


def list_sensors() -> tuple[str, ...]:
    """Return the names of the shipped sensors."""
    return tuple(_shipped_files("sensor"))


def list_classes() -> tuple[str, ...]:
    """Return the names of the shipped class lists."""
    return tuple(_shipped_files("classes"))


def list_index_specs() -> tuple[str, ...]:
    """Return the names of the shipped documents of indices."""
    return tuple(_shipped_files("indices"))


def load_document(path: PathLike) -> AnySpec:
    """Return the spec in the TOML file at `path`, a sensor, a class list or indices by its `kind`.

    Raises
    ------
    SpecError
        With the line: E-SPEC-002 missing or unreadable, 003 not TOML or a key twice, 004 unknown
        key, 005 missing key, 006 wrong type or value, 007 names that clash or do not exist, 008
        no or unknown kind.
    """
    try:
        text = read_text(path)
    except SpecError as error:
        if not Path(path).exists():
            names = _all_names()
            error.hint = f"shipped specs need no path{suggest(Path(path).stem, names)}"
        raise
    return _checked(text, path)


def detect_sensor(filenames: Sequence[str]) -> SensorSpec | None:
    """Return the sensor that every one of `filenames` is of by its name; None if none or several."""
    specs = map(sensor_spec, list_sensors()) if filenames else ()
    found = [spec for spec in specs if all(map(spec.recognizes, filenames))]
    return found[0] if len(found) == 1 else None


def json_schema(kind: Kind) -> dict[str, Any]:
    """Return the JSON Schema of documents of `kind`, for editors that complete and check TOML."""
    return MODELS[kind].model_json_schema()


def find_document(name_or_path: PathLike) -> AnySpec:
    """Return a shipped spec of any kind by name or alias, or a user's by path.

    Raises
    ------
    SpecError
        No such name (E-SPEC-001), or as `load_document`.
    """
    if is_path(name_or_path):
        return load_document(name_or_path)
    name = str(name_or_path)
    for kind in FOLDERS:
        if (stem := _stem_of(kind, name)) is not None:
            return _shipped(kind, stem)
    raise SpecError(f"unknown sensor or class list {name!r}{suggest(name, _all_names())}", code="E-SPEC-001")


def _all_names() -> tuple[str, ...]:
    return tuple(stem for kind in FOLDERS for stem in _shipped_files(kind))


def _find(kind: Kind, model: type[S], name_or_path: PathLike) -> S:
    if is_path(name_or_path):
        spec = load_document(name_or_path)
    elif (stem := _stem_of(kind, str(name_or_path))) is not None:
        spec = _shipped(kind, stem)
    else:
        known = suggest(str(name_or_path), _shipped_files(kind))
        raise SpecError(f"unknown {CALLED[kind]} {str(name_or_path)!r}{known}", code="E-SPEC-001")
    if not isinstance(spec, model):
        raise SpecError(f"kind is {spec.kind!r}, not {kind!r}", code="E-SPEC-008", path=name_or_path)
    return spec


def is_path(value: PathLike) -> bool:
    """Whether `value` is the path of a user's document, not the name of a shipped one."""
    return not isinstance(value, str) or value.endswith(".toml") or "/" in value or os.sep in value


@cache
def _stem_of(kind: Kind, name: str) -> str | None:
    """Return the shipped document of that name, None without one; aliases come after all names."""
    key = folded(name)
    stems = list(_shipped_files(kind))
    by_alias = (stem for stem in stems if key in map(folded, _shipped(kind, stem).aliases))
    return next((stem for stem in stems if key == folded(stem)), None) or next(by_alias, None)


@cache
def _shipped_files(kind: Kind) -> dict[str, Traversable]:
    """Return the shipped documents by stem: inside the package (wheel), else beside it (checkout)."""
    folder: Traversable = importlib.resources.files("satseg").joinpath("data_specs", FOLDERS[kind])
    if not folder.is_dir():
        folder = Path(__file__).parents[1] / "data_specs" / FOLDERS[kind]
    if not folder.is_dir():
        return {}
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".toml"): file for file in files if file.name.endswith(".toml")}


@cache
def _shipped(kind: Kind, stem: str) -> AnySpec:
    file = _shipped_files(kind)[stem]
    return _checked(decode(file.read_bytes(), str(file)), str(file))


def _checked(text: str, path: PathLike) -> AnySpec:
    content = parse_toml(text, path)
    if not content:
        raise SpecError("line 1: the document is empty", code="E-SPEC-005", path=path)
    kind = content.get("kind")
    if kind not in MODELS:
        tail = suggest(str(kind), MODELS) if "kind" in content else ""
        problem = f"unknown kind {kind!r}{tail}" if "kind" in content else "key 'kind' is missing"
        line = key_lines(text).get(("kind",), 1)
        raise SpecError(f"line {line}: {problem}", hint="sensor, classes or indices", code="E-SPEC-008", path=path)
    model = MODELS[kind]
    try:
        return model.model_validate({"name": Path(path).stem, **content})
    except ValidationError as error:
        first, *more = faults(error, model, text)
        tail = f" (and {len(more)} more)" if more else ""
        raise SpecError(f"line {first.line}: {first.message}{tail}", code=first.code, path=path) from error
