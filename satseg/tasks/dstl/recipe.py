"""Recipe: from a contest folder to layers of ten classes, as a document that can be read and changed.

It names the products of a tile, one or several networks with the classes that each learns, options of a run file for
all of them or for one, classes that need no network because an index tells them, and how scores become features. Its
sections are those of a run file, so that nothing has to be learnt twice; `base` takes what is not said from another
recipe, so that a variant is a few lines. What learns and detects by it is `training` and `detecting`.
Rejected: a run file per network and a script over them, which is where the solutions of 2017 kept their secrets.
"""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError, model_validator

from satseg.documents import (
    Document,
    Place,
    Text,
    fault_at,
    parse_toml,
    read_text,
    refuse_twice,
    suggest,
    validation_message,
)
from satseg.errors import SpecError, UsageError
from satseg.run import SECTIONS, RunConfig
from satseg.specs import ClassItem, class_spec
from satseg.tasks.dstl.facts import PRODUCTS, SENSOR, Product, class_names

PathLike: TypeAlias = str | os.PathLike[str]
Section: TypeAlias = dict[str, Any]
SUFFIX = ".toml"


class NetworkPart(Document):
    """A network: the classes it learns, its share of the minutes, and options of its own."""

    name: Annotated[Text, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    classes: tuple[Text, ...] = Field((), description="all ten when left out")
    share: Annotated[float, Field(gt=0)] = 1.0
    data: Section = Field({}, description="as in a run file")
    model: Section = Field({}, description="as in a run file")
    train: Section = Field({}, description="as in a run file")
    augment: Section = Field({}, description="as in a run file")


class IndexPart(Document):
    """Classes that an index tells from everything else, by a threshold fitted to the labelled tiles.

    Of two classes the features are told apart by their area, larger ones being of the first; where the areas part is
    fitted too. Of several indices the best on the labelled tiles is taken.
    """

    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=2)]
    indices: Annotated[tuple[Text, ...], Field(min_length=1)]
    roles: dict[str, str] = Field({}, description='bands by role, such as { nir = "nir2" }')
    scale: Annotated[float, Field(gt=0)] | None = None
    registered: bool = Field(True, description="lay the multispectral file over the three-band image first")


class Recipe(Document):
    """How a contest is learnt and detected; read by `load_recipe`."""

    title: Text
    source: Text
    base: Text | None = None
    notes: str | None = None
    products: tuple[Product, ...] = PRODUCTS
    registered: bool = Field(True, description="lay M, A and P over the three-band image")
    class_spec: Text = "dstl"
    thresholds: Literal["validation", "class_spec"] = "validation"
    data: Section = Field({}, description="as in a run file")
    model: Section = Field({}, description="as in a run file")
    train: Section = Field({}, description="as in a run file")
    augment: Section = Field({}, description="as in a run file")
    networks: Annotated[tuple[NetworkPart, ...], Field(min_length=1)]
    indices: tuple[IndexPart, ...] = ()
    detect: Section = Field({}, description="options of satseg.detect")

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        refuse_twice("networks", [part.name for part in self.networks], key="name")
        known = tuple(class_names().values())
        named = {
            "networks": [part.classes for part in self.networks], "indices": [part.classes for part in self.indices],
        }  # fmt: skip
        for key, groups in named.items():
            for number, names in enumerate(groups):
                _refuse_unknown((key, number, "classes"), names, known)
        return self

    @property
    def class_items(self) -> tuple[ClassItem, ...]:
        """The ten classes as `class_spec` has them: thresholds, least areas."""
        return class_spec(self.class_spec).classes

    def run(self, part: NetworkPart, overrides: Sequence[str] = ()) -> RunConfig:
        """Return the options of a network: those of the recipe, over them its own, over them ``section.key=value``.

        Raises
        ------
        UsageError
            An option is unknown or ill-typed, or an override is no such thing.
        """
        sections = {name: {**getattr(self, name), **getattr(part, name)} for name in SECTIONS}
        content = {name: values for name, values in sections.items() if values}
        data = content.setdefault("data", {})
        data |= {"sensor": SENSOR, "class_spec": self.class_spec, "registered": self.registered}
        return RunConfig.from_overrides(overrides, content)


def list_recipes() -> tuple[str, ...]:
    """Return the names of the recipes that come with satseg."""
    return tuple(sorted(path.name.removesuffix(SUFFIX) for path in _shelf().iterdir() if path.name.endswith(SUFFIX)))


def load_recipe(name_or_path: PathLike) -> Recipe:
    """Return a recipe of satseg's by name, such as ``"dstl"``, or another from its file.

    Raises
    ------
    UsageError
        No such recipe (E-USE-309), or options that a run file does not have.
    SpecError
        The file is no TOML, or no recipe; with the line.
    """
    return recipe_of(recipe_text(name_or_path), name_or_path)


def recipe_text(name_or_path: PathLike) -> str:
    """Return the document of a recipe as it stands; raises as `load_recipe`."""
    name = os.fspath(name_or_path)
    if not name.endswith(SUFFIX):
        if name not in list_recipes():
            raise UsageError(
                f"no recipe {name!r}{suggest(name, list_recipes())}",
                hint=f"or give a file {SUFFIX}", code="E-USE-309",
            )  # fmt: skip
        return _shelf().joinpath(f"{name}{SUFFIX}").read_text(encoding="utf-8")
    return read_text(Path(name))


def recipe_of(text: str, path: PathLike) -> Recipe:
    """Return the recipe that the document `text`, which came from `path`, describes; raises as `load_recipe`."""
    content = _with_base(parse_toml(text, path), path)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise SpecError(validation_message(error, Recipe), code="E-SPEC-020", path=path) from error
    for part in recipe.networks:
        recipe.run(part)
    return recipe


def _with_base(content: Mapping[str, Any], path: PathLike) -> dict[str, Any]:
    """Return `content` with what its base says and it does not; sections are joined key by key."""
    base = content.get("base")
    if not isinstance(base, str):
        return dict(content)
    if base not in list_recipes():
        fault = f"base {base!r} is none of {', '.join(list_recipes())}"
        raise SpecError(fault, code="E-SPEC-020", path=path)
    below = _with_base(parse_toml(recipe_text(base), base), base)
    joined = {name: {**below.get(name, {}), **content.get(name, {})} for name in (*SECTIONS, "detect")}
    return {**below, **content, **{name: values for name, values in joined.items() if values}}


def _refuse_unknown(place: Place, names: Sequence[str], known: Sequence[str]) -> None:
    if odd := [name for name in names if name not in known]:
        raise fault_at(place, f"no class {odd[0]!r}{suggest(odd[0], known)}")


def _shelf() -> Traversable:
    return importlib.resources.files("satseg.tasks.dstl").joinpath("recipes")
