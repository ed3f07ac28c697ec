"""Classes as data: their names and codes, and the rules by which scores become features.

Rules stand beside the class they are of, in a class list and in a model's card alike, in metres and square metres
(in the scene's own units where it has no CRS, as sizes are). What they do is in `satseg.vector.rules`. A class
names the classes that it erases. Rejected: a number of priority, which makes every class erase all below it, so that
standing water could not erase roads and leave trees; and an order in which to erase, for "what erases is settled
before what it erases" says it already, and a circle is a mistake that can be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from satseg.documents import Document, Rows, Spec, Text, fault_at, number_text, refuse_twice

EVERY = "all"
"""Stands for all other classes in `erases`."""
Size = Annotated[float, Field(ge=0)]


class ShapeRule(Document):
    """When a feature is of another class after all: where all the conditions hold that are given.

    Roundness is the share of its smallest enclosing circle that a feature fills, holes included: 1 for a disc, 0.64 for
    a square, about 0.13 for a strip ten times as long as wide, whichever way that bends.
    """

    to: Text
    below_m2: Annotated[float, Field(gt=0)] | None = None
    above_m2: Annotated[float, Field(gt=0)] | None = None
    rounder_than: Annotated[float, Field(ge=0, lt=1)] | None = None
    slimmer_than: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _says_when(self) -> ShapeRule:
        if not self.conditions:
            raise fault_at(("to",), "no condition: give below_m2, above_m2, rounder_than or slimmer_than")
        return self

    @property
    def conditions(self) -> dict[str, float]:
        """Those that are given, by name."""
        return {name: value for name, value in self.model_dump(exclude={"to"}).items() if value is not None}

    def __str__(self) -> str:
        """Return the rule in words: ``Standing water if below_m2 700``."""
        return f"{self.to} if " + " and ".join(f"{name} {value:g}" for name, value in self.conditions.items())


class ClassItem(Document):
    """A class: its name and code in labels, its colour, and how its scores become features."""

    name: Text
    id: Annotated[int, Field(ge=0, le=65535)]
    color: Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    min_area_m2: Size = 0.0
    min_sure_m2: Size = Field(0.0, description="least of area times (score - threshold) / (1 - threshold) of a feature")
    min_core_m2: Size = Field(0.0, description="least inside that parts a feature from others, if insides are learnt")
    min_hole_m2: Size = 0.0
    buffer_m: float = Field(0.0, description="how far features grow; they shrink below 0")
    simplify_m: Size = 0.0
    erases: Literal["all"] | tuple[Text, ...] = Field((), description="classes that lose what it covers; all others")
    becomes: tuple[ShapeRule, ...] = Field((), description="the first that holds makes a feature one of another class")

    @property
    def reshapes(self) -> bool:
        """Whether its outlines are other than those of its pixels."""
        return self.buffer_m != 0 or self.simplify_m > 0

    @property
    def has_rules(self) -> bool:
        """Whether more becomes of it than outlines of a least size."""
        return self.reshapes or bool(self.erases) or bool(self.becomes)

    @property
    def rules(self) -> tuple[str, ...]:
        """Its rules beyond threshold and least sizes, in words."""
        lengths = {"buffer": self.buffer_m, "simplify": self.simplify_m}
        told = [f"{name} {value:g} m" for name, value in lengths.items() if value]
        if self.erases:
            told.append(f"erases {self.erases if isinstance(self.erases, str) else ', '.join(self.erases)}")
        return (*told, *(f"becomes {rule}" for rule in self.becomes))


class ClassSpec(Spec):
    """A list of classes, their order that of the planes of a mask."""

    kind: Literal["classes"] = "classes"
    overlapping: bool = Field(True, description="whether one place may be of several classes")
    ignore: Text | None = Field(None, description="label value whose area is neither learnt nor scored")
    classes: Annotated[tuple[ClassItem, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> ClassSpec:
        refuse_twice("classes", [item.name for item in self.classes], key="name")
        refuse_twice("classes", [str(item.id) for item in self.classes], key="id")
        if self.ignore in self.class_names:
            raise fault_at(("ignore",), f"{self.ignore!r} is a class and ignored at once")
        if fault := rule_fault(self.classes):
            place, key, message = fault
            raise fault_at(("classes", place, key), message)
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes, in order."""
        return tuple(item.name for item in self.classes)

    def rows(self) -> Rows:
        """Return one row for each class, after the header."""
        header = ("id", "class", "color", "threshold", "min area m2", "min sure m2", "min hole m2", "rules")
        return header, *(
            (str(item.id), item.name, item.color, *map(number_text, figures), "; ".join(item.rules))
            for item in self.classes
            for figures in [(item.threshold, item.min_area_m2, item.min_sure_m2, item.min_hole_m2)]
        )


def erased_by(classes: Sequence[ClassItem]) -> tuple[tuple[int, ...], ...]:
    """Return for each of `classes` the places of those that erase it, which are some of `classes`."""
    return tuple(
        tuple(j for j, other in enumerate(classes) if other is not item and _erases(other, item.name))
        for item in classes
    )


def erasing_order(classes: Sequence[ClassItem]) -> tuple[int, ...]:
    """Return the places of `classes`, each after those of the classes that erase it.

    Raises
    ------
    graphlib.CycleError
        They erase each other in a circle.
    """
    graph: TopologicalSorter[int] = TopologicalSorter(dict(enumerate(erased_by(classes))))
    return tuple(graph.static_order())


def rule_fault(classes: Sequence[ClassItem]) -> tuple[int, str, str] | None:
    """Return place, key and fault of the first class whose rules do not fit the others; None: all fit."""
    names = [item.name for item in classes]
    for place, item in enumerate(classes):
        named = () if item.erases == EVERY else item.erases
        for key, others in (("erases", named), ("becomes", [rule.to for rule in item.becomes])):
            wrong = [name for name in others if name not in names or name == item.name]
            if wrong:
                return place, key, f"{item.name!r} {key} {wrong[0]!r}, which is none of the other classes"
    try:
        erasing_order(classes)
    except CycleError as error:
        circle = [names[place] for place in error.args[1]]
        return names.index(circle[0]), "erases", f"classes erase each other in a circle: {' < '.join(circle)}"
    return None


def rules_among(classes: Sequence[ClassItem]) -> tuple[ClassItem, ...]:
    """Return `classes` without what their rules say of classes that are not among them."""
    names = {item.name for item in classes}
    return tuple(
        item.model_copy(
            update={
                "erases": item.erases if item.erases == EVERY else tuple(n for n in item.erases if n in names),
                "becomes": tuple(rule for rule in item.becomes if rule.to in names),
            }
        )
        for item in classes
    )


def _erases(item: ClassItem, name: str) -> bool:
    return item.erases == EVERY or name in item.erases
