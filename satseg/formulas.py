"""Formulas over bands: text read by an allow-list, kept as a small tree, computed on whole planes.

A formula stands in a document or on a command line, so it never becomes code: Python's `ast` parses it, whatever is
not a number, a known name, + - * / ** or one of five functions is refused with its place, and the tree that is left is
walked over arrays. Length, depth and powers are bounded. The tree also tells by itself whether a common factor on all
bands cancels out, which is what units are checked by. Rejected: `eval` without builtins (attributes lead out of it)
and numexpr (a dependency, and rules of its own on what text may do).

A value is undefined where any step of it is: 0/0, x/0, the root or logarithm of what has none, or a number too large.
It is NaN then, even where later steps would make a number of it again, such as 1/(1/0).
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from satseg.documents import suggest
from satseg.errors import SpecError

MAX_LENGTH = 500
MAX_DEPTH = 32
MAX_POWER = 8.0
SHOWN = 60
Plane: TypeAlias = "NDArray[np.floating[Any]]"
Value: TypeAlias = "Plane | float"

OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**",
}  # fmt: skip
UFUNCS: dict[str, Callable[..., Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "**": operator.pow, "negative": np.negative,
    "min": np.minimum, "max": np.maximum, "sqrt": np.sqrt, "log": np.log, "abs": np.abs,
}  # fmt: skip
FUNCTIONS = ("min", "max", "sqrt", "log", "abs")


@dataclass(frozen=True, slots=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True, slots=True)
class Name:
    """A band."""

    name: str


@dataclass(frozen=True, slots=True)
class Step:
    """One of `UFUNCS` on the values of its parts; of two numbers never."""

    kind: str
    parts: tuple[Node, ...]


Node: TypeAlias = Number | Name | Step


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula that has passed the allow-list. Made by `parse_formula`; picklable.

    Parameters
    ----------
    text : str
        As it was typed.
    tree : Node
        Constants are in it as numbers.
    """

    text: str
    tree: Node

    @property
    def names(self) -> tuple[str, ...]:
        """The bands that it needs, in order of first use."""
        return tuple(dict.fromkeys(_names(self.tree)))

    @property
    def is_scale_free(self) -> bool:
        """Whether a factor on all bands cancels out, by the rules of dimensions (``log(a) - log(b)`` passes for no)."""
        try:
            return math.isclose(_degree(self.tree) or 0.0, 0.0, abs_tol=1e-9)
        except _Mixed:
            return False

    def values(self, planes: Mapping[str, Plane]) -> tuple[Plane, NDArray[np.bool_] | None]:
        """Return the value at each pixel, NaN where it is undefined, and where that is (None: nowhere).

        Parameters
        ----------
        planes : mapping of name to ndarray
            Of one shape and one float dtype, in which everything is computed; finite. Not changed, but the
            result of a formula that is a lone name is its plane.
        """
        try:
            # The processor's flags tell whether any pixel is undefined; mostly none is, and no plane is looked through.
            with np.errstate(divide="raise", over="raise", invalid="raise", under="ignore"):
                return np.asarray(_value(self.tree, planes, careful=False)), None
        except FloatingPointError:
            with np.errstate(all="ignore"):
                found = np.asarray(_value(self.tree, planes, careful=True))
            return found, np.isnan(found)


def parse_formula(text: str, *, names: Collection[str], constants: Mapping[str, float] | None = None) -> Formula:
    """Return the formula in `text` over `names`, with `constants` put in.

    Raises
    ------
    SpecError
        Not a formula, or one with anything that is not allowed (E-SPEC-060): the place is said, from 1.
    """
    if len(text) > MAX_LENGTH:
        raise _refused(text, None, f"{len(text)} characters, {MAX_LENGTH} are allowed")
    try:
        parsed = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        place = error.offset if isinstance(error, SyntaxError) else None
        raise _refused(text, place, "it is no formula") from error
    tree = _Reader(text.strip(), frozenset(names), dict(constants or {})).read(parsed.body, 0)
    if not any(_names(tree)):
        raise _refused(text, None, "it has no band")
    return Formula(text.strip(), tree)


def _refused(text: str, place: int | None, problem: str) -> SpecError:
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    where = "" if place is None else f", character {place}"
    hint = "bands, numbers, + - * / **, parentheses, and min max sqrt log abs are all there is"
    return SpecError(f"formula {shown!r}{where}: {problem}", hint=hint, code="E-SPEC-060")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns Python's tree into ours, node by node; everything not named here is refused."""

    text: str
    names: frozenset[str]
    constants: dict[str, float]

    def read(self, node: ast.expr, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._fault(node, f"nested deeper than {MAX_DEPTH}")
        match node:
            case ast.Constant():
                return Number(self._number(node))
            case ast.Name():
                return self._name(node)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                inner = self.read(node.operand, depth + 1)
                return inner if isinstance(node.op, ast.UAdd) else self._folded(node, "negative", (inner,))
            case ast.BinOp() if type(node.op) in OPERATORS:
                sides = (self.read(node.left, depth + 1), self.read(node.right, depth + 1))
                return self._folded(node, OPERATORS[type(node.op)], sides)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
                return self._call(node, name, tuple(self.read(part, depth + 1) for part in node.args))
            case _:
                raise self._fault(node, f"{_said(node)} is not allowed")

    def _number(self, node: ast.Constant) -> float:
        if type(node.value) not in (int, float):
            raise self._fault(node, f"{node.value!r} is no number")
        try:
            value = float(node.value)  # type: ignore[arg-type]  # one of the two types above
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self._fault(node, "the number is too large")
        return value

    def _name(self, node: ast.Name) -> Node:
        if node.id in self.constants:
            return Number(float(self.constants[node.id]))
        if node.id not in self.names:
            known = suggest(node.id, (*sorted(self.names), *self.constants))
            raise self._fault(node, f"unknown name {node.id!r}{known}")
        return Name(node.id)

    def _call(self, node: ast.Call, name: str, parts: tuple[Node, ...]) -> Node:
        wanted = "two or more" if name in ("min", "max") else "one"
        if (len(parts) < 2) if wanted != "one" else (len(parts) != 1):
            raise self._fault(node, f"{name} takes {wanted}, not {len(parts)}")
        if wanted == "one":
            return self._folded(node, name, parts)
        return reduce(lambda left, right: self._folded(node, name, (left, right)), parts)

    def _folded(self, node: ast.expr, kind: str, parts: tuple[Node, ...]) -> Node:
        """The step, or its value where all parts are numbers."""
        if kind == "**":
            power = parts[1].value if isinstance(parts[1], Number) else None
            if power is None or not 0 < abs(power) <= MAX_POWER:
                raise self._fault(node, f"a power is a number up to {MAX_POWER:g} and not 0")
        numbers = [np.float64(part.value) for part in parts if isinstance(part, Number)]
        if len(numbers) < len(parts):
            return Step(kind, parts)
        with np.errstate(all="ignore"):
            value = float(UFUNCS[kind](*numbers))
        if not math.isfinite(value):
            raise self._fault(node, "it has no value")
        return Number(value)

    def _fault(self, node: ast.expr, problem: str) -> SpecError:
        # Columns of `ast` count bytes.
        column = len(self.text.encode()[: node.col_offset].decode(errors="ignore")) + 1
        return _refused(self.text, column, problem)


def _said(node: ast.expr) -> str:
    """What people call a node that is refused."""
    if isinstance(node, ast.Call):
        called = node.func.id if isinstance(node.func, ast.Name) else "an expression"
        return f"a call of {called}"
    if isinstance(node, ast.BinOp | ast.UnaryOp):
        return f"the operator {type(node.op).__name__}"
    return f"an expression of kind {type(node).__name__}"


def _names(node: Node) -> Iterator[str]:
    if isinstance(node, Name):
        yield node.name
    elif isinstance(node, Step):
        for part in node.parts:
            yield from _names(part)


def _value(node: Node, planes: Mapping[str, Plane], *, careful: bool) -> Value:
    """The value of `node`; `careful`: infinity becomes NaN at once, before a step makes a number of it."""
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Name):
        return planes[node.name]
    parts = [_value(part, planes, careful=careful) for part in node.parts]
    found: Plane = UFUNCS[node.kind](*parts)
    return np.where(np.isfinite(found), found, found.dtype.type(np.nan)) if careful else found


class _Mixed(Exception):
    """A sum of things that scale differently."""


def _degree(node: Node) -> float | None:
    """By which power of a common factor on all bands the value grows; None: it is 0, whatever the factor.

    Raises
    ------
    _Mixed
        By none.
    """
    if isinstance(node, Number):
        return 0.0 if node.value else None
    if isinstance(node, Name):
        return 1.0
    degrees = [_degree(part) for part in node.parts]
    match node.kind:
        case "+" | "-" | "min" | "max":
            return _common(degrees)
        case "*":
            return None if None in degrees else sum(d for d in degrees if d is not None)
        case "/":
            return None if degrees[0] is None else degrees[0] - (degrees[1] or 0.0)
        case "**" | "sqrt":
            power = 0.5 if node.kind == "sqrt" else _power(node)
            return None if degrees[0] is None else degrees[0] * power
        case "log":
            return _common([*degrees, 0.0])
        case _:
            return degrees[0]


def _power(node: Step) -> float:
    power = node.parts[1]
    assert isinstance(power, Number)  # the reader lets no other through
    return power.value


def _common(degrees: Sequence[float | None]) -> float | None:
    known = [degree for degree in degrees if degree is not None]
    if any(not math.isclose(degree, known[0], abs_tol=1e-9) for degree in known):
        raise _Mixed
    return known[0] if known else None
