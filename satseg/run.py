"""The run file: everything a training run can be told, read, overridden and written.

Its sections (`[data] [model] [train] [augment]`) are the models of `options`. An unknown name is refused with the
nearest known one, whether it comes from a file, an override (``section.key=value``) or a flat option. Paths in a file
are relative to it. Rejected: overrides that reach into lists, for which one edits the file.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

from satseg.errors import UsageError
from satseg.options import (
    NO_AUGMENTATION,
    STRICT,
    AugmentOptions,
    DataOptions,
    LabelledScene,
    ModelOptions,
    TrainOptions,
    names_file,
)
from satseg.specs import read_toml, suggest, validation_message

PathLike: TypeAlias = str | os.PathLike[str]


class RunConfig(BaseModel):
    """A whole run file."""

    model_config = STRICT

    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    train: TrainOptions = TrainOptions()
    augment: AugmentOptions = AugmentOptions()

    @property
    def changes(self) -> AugmentOptions:
        """How chips are changed: `augment`, or not at all when the run is told so."""
        return self.augment if self.train.augmented else NO_AUGMENTATION

    @classmethod
    def from_file(cls, path: PathLike, overrides: Sequence[str] = ()) -> RunConfig:
        """The run file at `path` with ``section.key=value`` overrides, values written as in TOML.

        Paths of scenes, labels and weights are relative to the run file.

        Raises
        ------
        SpecError
            The file is missing, no TOML, or has an unknown or ill-typed key (with its line).
        UsageError
            An override is not of the form ``section.key=value``.
        """
        config = cls.from_overrides(overrides, read_toml(path), path)
        folder = Path(path).parent
        return config.model_copy(
            update={"data": _anchored(config.data, folder), "model": _with_weights_of(config.model, folder)}
        )

    @classmethod
    def from_overrides(
        cls, overrides: Sequence[str], content: dict[str, Any] | None = None, path: PathLike | None = None
    ) -> RunConfig:
        """`content` (the defaults) with ``section.key=value`` overrides."""
        changed = content or {}
        for override in overrides:
            _set(changed, override)
        return cls._validated(changed, path)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], base: RunConfig | None = None) -> RunConfig:
        """`base` (the defaults) with flat options such as ``minutes=10``; None values are left out.

        Raises
        ------
        UsageError
            An option is unknown or has the wrong type.
        """
        content = (base or cls()).model_dump(exclude_unset=True)
        for name, value in options.items():
            if value is not None:
                content.setdefault(_section_of(name), {})[name] = value
        if "minutes" in options or "steps" in options:
            _drop_other_budget(content.setdefault("train", {}), options)
        return cls._validated(content, None)

    @classmethod
    def _validated(cls, content: Mapping[str, Any], path: PathLike | None) -> RunConfig:
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UsageError(validation_message(error, cls, path), code="E-USE-010") from error

    def to_toml(self) -> str:
        """The whole configuration as a run file, defaults included, descriptions as comments."""
        lines: list[str] = []
        for section, options in ((name, getattr(self, name)) for name in SECTIONS):
            lines.append(f"[{section}]")
            for name, field in type(options).model_fields.items():
                note = f"  # {field.description}" if field.description else ""
                value = _toml(getattr(options, name))
                lines.append(f"{name} = {value}{note}" if value is not None else f"# {name} ={note}")
            lines.append("")
        return "\n".join(lines)


SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataOptions, "model": ModelOptions, "train": TrainOptions, "augment": AugmentOptions,
}  # fmt: skip


def _section_of(name: str) -> str:
    for section, options in SECTIONS.items():
        if name in options.model_fields:
            return section
    known = [name for options in SECTIONS.values() for name in options.model_fields]
    raise UsageError(f"unknown option {name!r}{suggest(name, known)}", code="E-USE-011")


def _drop_other_budget(train: dict[str, Any], options: Mapping[str, Any]) -> None:
    """A budget given by name replaces the other kind from the run file."""
    if options.get("minutes") is not None and options.get("steps") is None:
        train.pop("steps", None)
    if options.get("steps") is not None and options.get("minutes") is None:
        train.pop("minutes", None)


def _set(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise UsageError(f"override {override!r} is not section.key=value", hint="such as train.minutes=5")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    content.setdefault(section, {})[name] = value
    if (section, name) in {("train", "minutes"), ("train", "steps")}:
        _drop_other_budget(content["train"], {name: value})


def placed(path: str, folder: PathLike = "") -> str:
    """`path` as it stands in `folder`, absolute, so that a run file can move; a URL as it is."""
    remote = "://" in path or path.startswith("/vsi")
    return path if remote else os.path.abspath(os.path.join(folder, path))


def _anchored(data: DataOptions, folder: Path) -> DataOptions:
    def place(path: str) -> str:
        return placed(path, folder)

    def anchor(item: LabelledScene) -> LabelledScene:
        scene = place(item.scene) if isinstance(item.scene, str) else tuple(place(path) for path in item.scene)
        aoi = place(item.aoi) if item.aoi else None
        return LabelledScene(scene=scene, labels=place(item.labels), aoi=aoi, group=item.group)

    return data.model_copy(
        update={"scenes": tuple(map(anchor, data.scenes)), "valid_scenes": tuple(map(anchor, data.valid_scenes))}
    )


def _with_weights_of(model: ModelOptions, folder: Path) -> ModelOptions:
    named = {"start": model.start, "weights": model.weights}
    files = {key: placed(name, folder) for key, name in named.items() if name and (key == "start" or names_file(name))}
    return model.model_copy(update=files) if files else model


def _toml(value: Any) -> str | None:
    """`value` in TOML, None for what TOML cannot say (an absent value)."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(filter(None, map(_toml, value))) + "]"
    if isinstance(value, BaseModel | dict):
        pairs = ((name, _toml(item)) for name, item in (value.items() if isinstance(value, dict) else value))
        inner = ", ".join(f"{name} = {item}" for name, item in pairs if item is not None)
        return f"{{ {inner} }}" if inner else "{}"
    return repr(value)
