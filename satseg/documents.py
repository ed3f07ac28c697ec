"""TOML documents that people type: reading them, and saying where they are wrong.

An error names the file, the line and the nearest known key. `tomllib` keeps no positions, so
`key_lines` walks a text that `tomllib` has accepted and notes the line of every key. Rejected: a
parser that keeps positions (a dependency for one number), and YAML (``NO`` is false, ``1e-3`` text).
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from satseg.errors import SpecError

PathLike: TypeAlias = str | os.PathLike[str]
Place: TypeAlias = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the top, such as ``("bands", 2, "low_nm")``."""


def _one_line(text: str) -> str:
    if not text.strip() or any(ord(character) < ord(" ") for character in text):
        raise ValueError("one line of text is wanted")
    return text


Text: TypeAlias = Annotated[str, AfterValidator(_one_line)]
"""One line of text, not blank."""
Rows: TypeAlias = tuple[tuple[str, ...], ...]
"""A table of text, its header first."""

MAX_BYTES = 2**20
"""The largest shipped document has 6 KB; a megabyte of TOML is a mistake or an attack."""
MAX_LISTED = 40
MAX_SHOWN = 60

_TOKEN = re.compile(
    r'''(?P<space>[ \t\r]+|\#[^\n]*)
      | (?P<newline>\n)
      | (?P<text>"""(?:\\.|[^\\])*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|"(?:\\.|[^"\\\n])*"|'[^'\n]*')
      | (?P<mark>[\[\]{}=,.])
      | (?P<bare>[^\s\[\]{}=,.\#"']+)''',
    re.VERBOSE | re.DOTALL,
)
_TOML_LINE = re.compile(r"\s*\(at (?:line (\d+), column \d+|end of document)\)")


class Document(BaseModel):
    """Base of documents: unknown keys and look-alike types (``"NO"``, ``1.0`` for 1) are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, data: Any) -> Any:
        """TOML and JSON know lists only; strict, immutable fields are tuples."""
        if not isinstance(data, dict):
            return data
        return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a document: its line (1-based; None if not in the file), code and sentence."""

    line: int | None
    code: str
    message: str


class Spec(Document):
    """What documents with knowledge have: a name, and a source for what they say."""

    name: str = Field("", description="the file's stem unless given")
    title: Text
    source: Text = Field(description="where the figures come from: document, edition, page or address")
    aliases: tuple[Text, ...] = Field((), description="other names for the look-up")
    notes: str | None = None

    def rows(self) -> Rows:
        """Return the spec as a table of text, its header first."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        header, *body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self.rows())
        lines = "".join(f"<tr>{row}</tr>" for row in (header.replace("td>", "th>"), *body))
        title = f"<caption>{escape(self.title)} ({escape(self.name)})</caption>"
        return f"<table>{title}{lines}</table><p>Source: {escape(self.source)}</p>"


def suggest(name: str, options: Iterable[str]) -> str:
    """Return a tail for a message about the unknown `name`: the nearest option, else all of them.

    ``"; did you mean 'red'?"``, ``"; known: blue, green"``, or ``""`` when there is no option.
    """
    known = list(options)
    by_key = {option.casefold(): option for option in known}
    near = difflib.get_close_matches(name.casefold(), by_key, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {by_key[near[0]]!r}?"
    more = ", …" if len(known) > MAX_LISTED else ""
    return f"; known: {', '.join(known[:MAX_LISTED])}{more}" if known else ""


def fault_at(place: Place, message: str) -> PydanticCustomError:
    """Return an error for validators to raise, about the value at `place` below the model validated."""
    return PydanticCustomError("document", "{message}", {"message": message, "at": place})


def read_text(path: PathLike) -> str:
    """Return the text of the document at `path`.

    Raises
    ------
    SpecError
        Not a file, unreadable or above `MAX_BYTES` (E-SPEC-002); not UTF-8, or with a byte order
        mark (E-SPEC-003).
    """
    place = Path(path)
    if not place.is_file():
        state = "is not a regular file" if place.exists() else "does not exist"
        raise SpecError(f"{place}: {state}", code="E-SPEC-002", path=path)
    try:
        with place.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{place}: {error.strerror}", code="E-SPEC-002", path=path) from error
    if len(content) > MAX_BYTES:
        raise SpecError(f"{place}: larger than {MAX_BYTES} bytes", code="E-SPEC-002", path=path)
    return decode(content, path)


def decode(content: bytes, path: PathLike) -> str:
    """Return `content` as text; see `read_text` for what is refused."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"line {content.count(bytes([10]), 0, error.start) + 1}: not UTF-8"
        raise SpecError(problem, hint="save it as UTF-8", code="E-SPEC-003", path=path) from error
    if text.startswith("\ufeff"):
        problem = "line 1: starts with a byte order mark"
        raise SpecError(problem, hint="save it as UTF-8 without BOM", code="E-SPEC-003", path=path)
    return text


def parse_toml(text: str, path: PathLike) -> dict[str, Any]:
    """Return the content of the TOML `text` that came from `path`.

    Raises
    ------
    SpecError
        Not TOML, with the line; a duplicate key is such a case (E-SPEC-003).
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_LINE.search(str(error))
        rows = text.splitlines() or [""]
        line = int(found[1]) if found and found[1] else len(rows)
        source = rows[min(line, len(rows)) - 1].strip()
        problem = _TOML_LINE.sub("", str(error))
        twice = any(word in problem for word in ("overwrite", "twice", "Duplicate"))
        hint = "it stands above already" if twice else "text needs quotes, true and false are in lower case"
        message = f"line {line}: {problem} in {_shown(source)}"
        raise SpecError(message, hint=hint, code="E-SPEC-003", path=path) from error
    except RecursionError as error:
        raise SpecError("nested too deeply", code="E-SPEC-003", path=path) from error


def read_toml(path: PathLike) -> dict[str, Any]:
    """Return the content of the TOML file at `path`; raises as `read_text` and `parse_toml` do."""
    return parse_toml(read_text(path), path)


def validation_message(error: ValidationError, model: type[BaseModel], path: PathLike | None = None) -> str:
    """Return one line about the first fault in `error`, which validating `model` raised.

    With `path`, the file that the values came from, it starts with the path and the line.
    """
    found = faults(error, model, "" if path is None else read_text(path))
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    line = f"line {found[0].line}: " if path is not None and found[0].line else ""
    prefix = "" if path is None else f"{os.fspath(path)}: "
    return f"{prefix}{line}{found[0].message}{more}"


def faults(error: ValidationError, model: type[BaseModel], text: str = "") -> tuple[Fault, ...]:
    """Return what is wrong by `error`, at most one fault for each line of `text`.

    Unknown keys come first: a misspelt key is the cause of the missing one.
    """
    lines = key_lines(text)
    found = [_fault(details, model, lines) for details in error.errors(include_url=False)]
    found.sort(key=lambda fault: (fault.code, fault.line or 0))
    by_line = {fault.line or fault.message: fault for fault in reversed(found)}
    return tuple(reversed(by_line.values()))


def _fault(details: ErrorDetails, model: type[BaseModel], lines: dict[Place, int]) -> Fault:
    context = details.get("ctx", {})
    place: Place = (*details["loc"], *context.get("at", ()))
    if details["type"] == "extra_forbidden":
        known = suggest(str(place[-1]), _keys_at(model, place[:-1]))
        return Fault(lines.get(place), "E-SPEC-004", f"unknown key {place[-1]!r}{_inside(place[:-1])}{known}")
    if details["type"] == "missing":
        line = _nearest_line(place[:-1], lines)
        return Fault(line, "E-SPEC-005", f"key {place[-1]!r} is missing{_inside(place[:-1])}")
    line = _nearest_line(place, lines)
    if details["type"] == "document":
        return Fault(line, "E-SPEC-007", f"{details['msg']}{_inside(place)}")
    choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
    value = details["input"]
    tail = suggest(value, choices) if isinstance(value, str) and choices else ""
    problem = details["msg"].removeprefix("Value error, ")
    return Fault(line, "E-SPEC-006", f"{_written(place)} = {_shown(value)}: {problem}{tail}")


def _nearest_line(place: Place, lines: dict[Place, int]) -> int | None:
    """Return the line of `place`, else of what holds it."""
    return next((lines[place[:end]] for end in range(len(place), -1, -1) if place[:end] in lines), None)


def _written(place: Place) -> str:
    """Return ``("bands", 2, "low_nm")`` as ``bands[2].low_nm``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".") or "document"


def _inside(place: Place) -> str:
    return f" in {_written(place)}" if place else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _keys_at(model: type[BaseModel], place: Place) -> tuple[str, ...]:
    """Return the keys that the table at `place` of a `model` document may have; none when free."""
    for part in place:
        if isinstance(part, str):
            field = model.model_fields.get(part)
            inner = _model_in(field.annotation) if field else None
            if inner is None:
                return ()
            model = inner
    return tuple(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, typing.get_args(annotation))), None)


def key_lines(text: str) -> dict[Place, int]:
    """Return the 1-based line of every key, table and list element of `text`, which is valid TOML."""
    return _Walk(text).lines if text else {}


class _Walk:
    """One pass over the tokens of a valid TOML text; `lines` is what it finds."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {(): 1}
        self._tokens = list(_tokens(text))
        self._next = 0
        self._lengths: dict[Place, int] = {}  # of arrays of tables, [[name]], so far
        table: Place = ()
        while self._next < len(self._tokens) - 1:
            if self._mark == "\n":
                self._next += 1
            elif self._mark == "[":
                table = self._header()
            else:
                self._value(self._key(table))

    @property
    def _mark(self) -> str:
        return self._tokens[self._next][0]

    def _header(self) -> Place:
        """Pass ``[a.b]`` or ``[[a.b]]``; the place of the table that it opens."""
        line = self._tokens[self._next][1]
        self._next += 1
        many = self._mark == "["
        self._next += many
        path = self._parts("]")
        self._next += 1 + many
        place: Place = ()
        for part in path[:-1]:
            place = self._current((*place, part))
            self.lines.setdefault(place, line)
        place = (*place, path[-1])
        if many:
            self.lines.setdefault(place, line)
            self._lengths[place] = self._lengths.get(place, 0) + 1
            place = self._current(place)
        self.lines[place] = line
        return place

    def _current(self, place: Place) -> Place:
        """`place`, or its last element when it is an array of tables."""
        return (*place, self._lengths[place] - 1) if place in self._lengths else place

    def _key(self, table: Place) -> Place:
        """Pass ``a.b =``; its place below `table`."""
        line = self._tokens[self._next][1]
        place = table
        for part in self._parts("="):
            place = (*place, part)
            self.lines.setdefault(place, line)
        self._next += 1
        return place

    def _parts(self, end: str) -> list[str]:
        """Pass a dotted key up to the mark `end`, which stays."""
        parts = []
        while self._mark != end:
            word = self._mark
            if word != ".":
                parts.append(tomllib.loads(f"key = {word}")["key"] if word[0] in "\"'" else word)
            self._next += 1
        return parts

    def _value(self, place: Place) -> None:
        if self._mark == "[":
            self._list(place)
        elif self._mark == "{":
            self._next += 1
            while self._mark != "}":
                if self._mark in ",\n":
                    self._next += 1
                else:
                    self._value(self._key(place))
            self._next += 1
        else:
            while self._mark not in {"\n", ",", "]", "}"}:
                self._next += 1

    def _list(self, place: Place) -> None:
        self._next += 1
        index = 0
        while self._mark != "]":
            if self._mark in ",\n":
                self._next += 1
                continue
            self.lines[(*place, index)] = self._tokens[self._next][1]
            self._value((*place, index))
            index += 1
        self._next += 1


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Each token of `text` with its line, without blanks and comments; a line end closes the list."""
    line = 1
    for token in _TOKEN.finditer(text):
        if token.lastgroup != "space":
            yield token[0], line
        line += token[0].count("\n")
    yield "\n", line


def folded(name: str) -> str:
    """Return `name` as names are compared: its letters and digits, case folded."""
    return re.sub(r"[^0-9a-z]", "", name.casefold())


def refuse_twice(table: str, names: Sequence[str], *, key: str = "name", place: Place | None = None) -> None:
    """Raise the error for validators when two of `names` differ in case at most.

    The `key` of the later element of `table` is said to be at fault, or `place`.
    """
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name.casefold() in seen:
            raise fault_at(place or (table, index, key), f"{key} {name!r} is given twice")
        seen.add(name.casefold())


def number_text(value: float | None) -> str:
    """Return `value` as in tables: shortest form, empty for None."""
    return "" if value is None else f"{value:g}"
