"""What a document of spectral indices says: roles with wavelengths, formulas over them, and their unit.

A formula is over roles (`nir`, `red_edge`), not over bands of a sensor, so that one document serves all sensors; a
role's range of wavelengths finds its band in a scene. The unit of an index is stated and checked against the formula:
"any" where a factor on all bands cancels out, "reflectance" where it does not, so that an index that needs reflectance
cannot be said to take raw counts. Rejected: a formula for each sensor (the same error made twelve times), and roles by
name alone (``swir1`` of WorldView-3 is at 1210 nm, that of Landsat at 1610).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from satseg.documents import Document, Rows, Spec, Text, fault_at, folded, number_text, refuse_twice, suggest
from satseg.errors import SpecError
from satseg.formulas import FUNCTIONS, Formula, parse_formula
from satseg.sensors import BandName, BandSpec, Nanometres

IndexUnit: TypeAlias = Literal["any", "reflectance"]
LEAST_SHARE = 0.5
"""Of a band's width that lies in a role's range; a panchromatic band is centred in the red and is not red."""


class Role(Document):
    """A part of the spectrum: a band is of it whose centre and half of whose width lie within.

    Of several, the one is taken whose centre is nearest to `center_nm`. Where no wavelengths are known, the first of
    `names` that the scene has.
    """

    name: BandName
    low_nm: Nanometres
    center_nm: Nanometres
    high_nm: Nanometres
    names: tuple[BandName, ...] = Field((), description="bands to take where no wavelengths are known, after `name`")

    @model_validator(mode="after")
    def _ordered(self) -> Role:
        if not self.low_nm < self.center_nm < self.high_nm:
            raise fault_at(("high_nm",), f"low_nm < center_nm < high_nm does not hold for role {self.name!r}")
        return self

    def distance_nm(self, band: BandSpec) -> float:
        """Return how far the centre of `band` is from the role's; infinity where it is not of the role."""
        if band.center_nm is None or not self.low_nm <= band.center_nm <= self.high_nm:
            return math.inf
        if band.low_nm is not None and band.high_nm is not None:
            inside = min(band.high_nm, self.high_nm) - max(band.low_nm, self.low_nm)
            if inside < LEAST_SHARE * (band.high_nm - band.low_nm):
                return math.inf
        return abs(band.center_nm - self.center_nm)


class Constant(Document):
    """A number of a formula that has a name."""

    name: Text
    value: float


class IndexItem(Document):
    """An index: its formula over roles, constants with their values, what it needs, where it comes from."""

    name: BandName
    title: Text
    formula: Text
    constants: tuple[Constant, ...] = Field((), description="names in the formula that stand for these numbers")
    unit: IndexUnit = Field(description='"any" where a factor on all bands cancels out, else "reflectance"')
    source: Text = Field(description="paper, standard or code that defines it")

    def over(self, roles: Collection[str]) -> Formula:
        """Return the formula over `roles`, constants put in; raises SpecError as `parse_formula`."""
        constants = {constant.name: constant.value for constant in self.constants}
        return parse_formula(self.formula, names=roles, constants=constants)


class IndexSpec(Spec):
    """Indices by name, and the roles that their formulas are over."""

    kind: Literal["indices"] = "indices"
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    indices: Annotated[tuple[IndexItem, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> IndexSpec:
        refuse_twice("roles", [role.name for role in self.roles])
        refuse_twice("indices", [item.name for item in self.indices])
        for place, item in enumerate(self.indices):
            self._check(item, place)
        return self

    def _check(self, item: IndexItem, place: int) -> None:
        names = [constant.name for constant in item.constants]
        refuse_twice("constants", names, place=("indices", place, "constants"))
        for name in names:
            if name in self.role_names or name in FUNCTIONS or not name.isidentifier():
                raise fault_at(("indices", place, "constants"), f"{name!r} is no name that a constant can have")
        try:
            formula = self.formula_of(item)
        except SpecError as error:
            raise fault_at(("indices", place, "formula"), error.message) from error
        right = "any" if formula.is_scale_free else "reflectance"
        if item.unit != right:
            why = "cancels out" if formula.is_scale_free else "does not cancel out"
            raise fault_at(("indices", place, "unit"), f"{item.name}: a factor on all bands {why}: unit is {right!r}")

    def formula_of(self, item: IndexItem) -> Formula:
        """Return the formula of `item`, one of this document's, its constants put in."""
        return item.over(self.role_names)

    @property
    def role_names(self) -> tuple[str, ...]:
        """The roles, in order."""
        return tuple(role.name for role in self.roles)

    @property
    def index_names(self) -> tuple[str, ...]:
        """The indices, in order."""
        return tuple(item.name for item in self.indices)

    def item(self, name: str) -> IndexItem:
        """Return the index called `name`; case, hyphens and underscores do not count.

        Raises
        ------
        SpecError
            There is none (E-SPEC-061).
        """
        found = next((item for item in self.indices if folded(item.name) == folded(name)), None)
        if found is None:
            raise SpecError(f"unknown index {name!r}{suggest(name, self.index_names)}", code="E-SPEC-061")
        return found

    def role(self, name: str) -> Role:
        """Return the role called `name`, which is one."""
        return next(role for role in self.roles if role.name == name)

    def rows(self) -> Rows:
        """Return one row for each index, after the header."""
        header = ("index", "title", "formula", "constants", "unit")
        return header, *(
            (item.name, item.title, item.formula, _told(item.constants), item.unit) for item in self.indices
        )


def _told(constants: tuple[Constant, ...]) -> str:
    return ", ".join(f"{constant.name} = {number_text(constant.value)}" for constant in constants)
