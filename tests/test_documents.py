"""Documents that people type: every fault is refused with its file, line, key and the nearest known word."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from satseg import documents, specs
from satseg.errors import SpecError
from satseg.specs import ClassSpec, SensorSpec, load_document

DOCUMENTS = sorted((Path(__file__).parents[1] / "data_specs").glob("*/*.toml"))
PLAIN = """kind = "sensor"
title = "Test camera"
source = "Made for the test"
bit_depth = 12

bands = [
  { name = "red", low_nm = 600, high_nm = 700, gsd_m = 2.0, aliases = ["B1"] },
  { name = "nir", low_nm = 800, high_nm = 900, gsd_m = 4.0, aliases = ["B2"] },
]

[[products]]
name = "stack"
bands = ["red", "nir"]

[[files]]
regex = 'CAM_(?P<band>B\\d)'
"""
CLASSES = """kind = "classes"
title = "Test classes"
source = "Made for the test"

[[classes]]
id = 1
name = "roof"
color = "#ff0000"

[[classes]]
id = 2
name = "road"
color = "#00ff00"
min_area_m2 = 2
"""


def written(folder: Path, text: str | bytes, name: str = "camera.toml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(folder: Path, text: str | bytes) -> SpecError:
    path = written(folder, text)
    with pytest.raises(SpecError) as caught:
        load_document(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return caught.value


def edit(old: str, new: str, text: str = PLAIN) -> str:
    assert old in text
    return text.replace(old, new, 1)


FAULTS = {  # text, line, last digit of the code, words
    "unknown key": (edit("bit_depth", "bit_dept"), 4, 4, "'bit_dept'.*did you mean 'bit_depth'"),
    "unknown key in a band": (edit("high_nm = 9", "hihg_nm = 9"), 8, 4, "'hihg_nm' in bands.1.*'high_nm'"),
    "unknown key in a product": (edit("name = \"stack\"", "names = \"stack\""), 12, 4, "'names'.*'name'"),
    "unknown key in a pattern": (edit("regex", "regexp"), 16, 4, "'regexp' in files.0.*'regex'"),
    "unknown table": (PLAIN + "\n[extra]\na = 1\n", 18, 4, "unknown key 'extra'"),
    "no source": (edit("source =", "# source ="), 1, 5, "'source' is missing"),
    "misspelt source": (edit("source =", "sorce ="), 3, 4, "'sorce'; did you mean 'source'"),
    "bands inside another table": (edit("bands = [\n", "[x]\nbands = [\n"), 6, 4, "unknown key 'x'"),
    "no bands": ('kind = "sensor"\ntitle = "a"\nsource = "b"\n', 1, 5, "'bands' is missing"),
    "band without name": (edit('name = "nir", ', ""), 8, 5, r"'name' is missing in bands.1"),
    "product without bands": (edit('bands = ["red", "nir"]\n', ""), 11, 5, "'bands' is missing"),
    "empty source": (edit('"Made for the test"', '" "'), 3, 6, "source.*one line of text"),
    "two-line title": (edit('"Test camera"', '"""a\nb"""'), 2, 6, "title.*one line"),
    "text for a number": (edit("= 12", '= "12"'), 4, 6, "bit_depth = '12'.*integer"),
    "1e-3 for an integer": (edit("= 12", "= 1e-3"), 4, 6, "bit_depth = 0.001.*integer"),
    "1e-3 as text": (edit("gsd_m = 4.0", 'gsd_m = "1e-3"'), 8, 6, "gsd_m = '1e-3'.*number"),
    "number for text": (edit('"Test camera"', "5"), 2, 6, "title = 5.*string"),
    "true for a number": (edit("gsd_m = 2.0", "gsd_m = true"), 7, 6, "gsd_m = True.*number"),
    "NO": (edit("= 12", "= NO"), 4, 3, "Invalid value in 'bit_depth = NO'"),
    "NO as text": (PLAIN + 'detect = "NO"\n', 17, 6, "detect = 'NO'.*boolean"),
    "0 for false": (PLAIN + "detect = 0\n", 17, 6, "detect = 0.*boolean"),
    "negative pixel": (edit("gsd_m = 4.0", "gsd_m = -4"), 8, 6, "gsd_m = -4.*greater than 0"),
    "infinite pixel": (edit("gsd_m = 4.0", "gsd_m = inf"), 8, 6, "gsd_m = inf.*finite"),
    "bits of 200": (edit("= 12", "= 200"), 4, 6, "bit_depth = 200"),
    "date": (edit("= 12", "= 2020-01-01"), 4, 6, "bit_depth.*integer"),
    "band for bands": (edit('bands = ["red", "nir"]', 'bands = "red"'), 13, 6, "bands = 'red'"),
    "tab in a band name": (edit('"nir", low', '"n\tir", low'), 8, 6, r"'n\\tir'.*lower-case"),
    "tab in a key": (edit("bit_depth", "bit\tdepth"), 4, 3, r"bit\\tdepth"),
    "band name in capitals": (edit('"nir", low', '"NIR", low'), 8, 6, "lower-case"),
    "edges swapped": (edit("low_nm = 800", "low_nm = 980"), 8, 7, "does not hold"),
    "center outside": (edit("high_nm = 900", "center_nm = 950, high_nm = 900"), 8, 7, "does not hold"),
    "key twice": (edit("bit_depth = 12", "bit_depth = 12\nbit_depth = 11"), 5, 3, "bit_depth = 11.*above"),
    "key twice in a band": (edit("gsd_m = 4.0", "gsd_m = 4.0, gsd_m = 3"), 8, 3, "above"),
    "table twice": (edit("[[files]]", "[bands]\n[[files]]"), 15, 3, "bands"),
    "band twice": (edit('"nir", low', '"red", low'), 8, 7, "'red' is given twice"),
    "alias twice": (edit('"B2"', '"b-1"'), 8, 7, "'b-1' is given twice"),
    "alias is a band": (edit('"B2"', '"Red"'), 8, 7, "'Red' is given twice"),
    "product twice": (PLAIN + '[[products]]\nname = "Stack"\nbands = ["red"]\n', 18, 7, "'Stack' is"),
    "band twice in a product": (edit('["red", "nir"]', '["red", "red"]'), 13, 7, "'red' is given twice"),
    "unknown band in a product": (edit('["red", "nir"]', '["red", "nri"]'), 13, 7, "'nri'.*'nir'"),
    "unknown product": (PLAIN + 'product = "stak"\n', 17, 7, "'stak'.*'stack'"),
    "broken regex": (edit("CAM_(", "CAM_(("), 16, 7, "regex.*missing"),
    "regex without group": (edit("(?P<band>B\\d)", "B"), 16, 7, "named groups"),
    "regex with a nameless group": (edit("CAM_", "(CAM)_"), 16, 7, "no other groups"),
    "group that is no band": (edit("<band>", "<rad>"), 16, 7, "'rad' is no band; did you mean 'red'"),
    "unknown kind": ("\n" + edit('"sensor"', '"sensors"'), 2, 8, "did you mean 'sensor'"),
    "no kind": (edit("kind =", "# kind ="), 1, 8, "'kind' is missing"),
    "open quote": (edit('"Made for the test"', '"Made for the test'), 3, 3, "source"),
    "open bracket": (PLAIN + "x = [1,\n", 17, 3, r"Invalid value in 'x = \[1,'"),
    "not TOML": ("title: YAML\n", 1, 3, "title: YAML"),
    "empty file": ("", 1, 5, "empty"),
    "comments only": ("# nothing\n\n", 1, 5, "empty"),
    "class twice": (edit('"road"', '"Roof"', CLASSES), 12, 7, "name 'Roof' is given twice"),
    "class number twice": (edit("id = 2", "id = 1", CLASSES), 11, 7, "id '1' is given twice"),
    "class without colour": (edit('color = "#00ff00"\n', "", CLASSES), 10, 5, "'color' is missing"),
    "colour by name": (edit('"#00ff00"', '"green"', CLASSES), 13, 6, "color = 'green'"),
    "threshold of 1": (CLASSES + "threshold = 1\n", 15, 6, "threshold = 1"),
    "negative area": (edit("min_area_m2 = 2", "min_area_m2 = -2", CLASSES), 14, 6, "min_area_m2 = -2"),
    "ignored class": ('ignore = "road"\n' + CLASSES, 1, 7, "'road' is a class and ignored"),
    "misspelt area": (edit("min_area_m2", "min_area", CLASSES), 14, 4, "'min_area'.*'min_area_m2'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_with_file_line_and_key(tmp_path: Path, fault: str) -> None:
    text, line, number, words = FAULTS[fault]
    error = refusal(tmp_path, text)
    assert f"line {line}:" in str(error)
    assert re.search(words, str(error))
    assert error.code == f"E-SPEC-00{number}"


def test_bytes_that_are_no_plain_utf8_are_refused_with_the_line(tmp_path: Path) -> None:
    latin = PLAIN.replace("Made", "Großbild").encode("latin-1")
    for content, words in (
        (b"\xef\xbb\xbf" + PLAIN.encode(), "line 1: starts with a byte order mark; save it as UTF-8"),
        (PLAIN.encode("utf-16"), "line 1: not UTF-8"),
        (latin, "line 3: not UTF-8"),
        (PLAIN.replace("Test", "Te\x00st").encode(), "line 2: "),
    ):
        error = refusal(tmp_path, content)
        assert words in str(error)
        assert error.code == "E-SPEC-003"


def test_huge_and_deep_documents_are_refused_quickly(tmp_path: Path) -> None:
    assert "larger than" in str(refusal(tmp_path, PLAIN + "#" * 2**20))
    assert "nested too deeply" in str(refusal(tmp_path, PLAIN + "x = " + "[" * 100_000))


def nested(value: Any, place: documents.Place = ()) -> Iterator[documents.Place]:
    """Every key and list position of parsed TOML, by tomllib's own reading."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nested(item, (*place, key))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_key_of_shipped_documents_has_a_line_that_holds_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = documents.key_lines(text)
    assert set(lines) == set(nested(tomllib.loads(text)))
    for place, line in lines.items():
        if place and isinstance(place[-1], str):
            assert place[-1] in text.splitlines()[line - 1]


KEYS = st.sampled_from(["a", "b-1", "C_2", '"quoted key"', "'li.ter=al'", "3", "x.y", 'x."z#"'])
VALUES = st.sampled_from(
    ["1", "-1.5e3", "true", "1979-05-27 07:32:00", '"a # [b] = {c}"', '"\\"]"', "'C:\\x'", '""', "''",
     '"""\nb = 1\n[c]\n"""', "'''d = 2\n'''", '"""x""""', "[]", "[1, [2, 3],\n # no\n [4]]", "{}",
     '[\n  { m = 1 },\n\n  { n = "]", o.p = [1,\n 2] },\n]', "{ q = [ { r = 1 } ], s = 2 }"]
)  # fmt: skip
TABLES = st.sampled_from(["[t]", "[t.u]", "[[v]]", "[v.w]", "[[v.k]]", "[ 'q.r' . s ]", "[[t.l]]", "# [no]"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.lists(st.one_of(st.tuples(KEYS, VALUES), TABLES), max_size=12))
def test_key_lines_finds_the_keys_that_tomllib_finds(pieces: list[str | tuple[str, str]]) -> None:
    text, starts = "", []
    for number, piece in enumerate(pieces):
        line = piece if isinstance(piece, str) else f"{piece[0]} = {piece[1]}  # {number}"
        starts.append(text.count("\n") + 1)
        text += line + "\n"
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = documents.key_lines(text)
    assert set(nested(content)) == set(lines) or not text
    # Whatever stands at the top begins where a piece begins, values of several lines included.
    assert {line for place, line in lines.items() if len(place) == 1} <= {*starts, 1}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_a_misspelt_key_in_a_shipped_document_is_found_on_its_line(path: Path, tmp_path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    spots = [(n, m) for n, line in enumerate(lines) for m in re.finditer(r"(?:^|[{,] )([a-z_]+) = ", line)]
    assert len(spots) > 5
    for number, match in spots[:: max(1, len(spots) // 12)]:
        line = lines[number]
        changed = f"{line[: match.end(1)]}x{line[match.end(1) :]}"
        error = refusal(tmp_path, "\n".join([*lines[:number], changed, *lines[number + 1 :]]))
        if match[1] == "kind":
            assert error.code == "E-SPEC-008"
        else:
            assert f"line {number + 1}: unknown key '{match[1]}x'" in str(error)
            assert f"did you mean '{match[1]}'?" in str(error)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([PLAIN, CLASSES]),
    st.integers(0, 600),
    st.integers(0, 12),
    st.text(alphabet='"\'[]{}=,.#\n\t\r\\ a1_\x00é\ufeff', max_size=6),
)
def test_damaged_documents_are_read_or_refused_never_worse(
    tmp_path: Path, text: str, start: int, length: int, put: str
) -> None:
    path = written(tmp_path, text[:start] + put + text[start + length :])
    try:
        spec = load_document(path)
    except SpecError as error:
        refused = str(error)
    else:
        assert isinstance(spec, SensorSpec | ClassSpec)
        return
    assert "line " in refused


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    batch: int = 1
    norm: str | None = None


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    train: Inner = Inner()
    items: tuple[Inner, ...] = ()
    paths: dict[str, str | tuple[str, ...]] = {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nbacth = 1\n", "line 2: unknown key 'bacth' in train; did you mean 'batch'?"),
        ('\n[train]\nbatch = "x"\n', "line 3: train.batch = 'x': Input should be a valid integer"),
        ("[[items]]\n[[items]]\nnrm = 1\n", "line 3: unknown key 'nrm' in items[1]; did you mean 'norm'?"),
        ("[paths]\na = 'x'\nb = 5\n", "line 3: paths.b"),
        ("tran = 1\nitms = 2\n", "line 1: unknown key 'tran'; did you mean 'train'? (and 1 more)"),
    ],
)
def test_validation_messages_serve_other_documents_too(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text, "run.toml")
    content = specs.read_toml(path)
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(content)
    message = specs.validation_message(caught.value, Outer, path)
    assert message.startswith(f"{path}: {words}")
    assert "line" not in specs.validation_message(caught.value, Outer)


def test_keys_that_are_not_in_the_file_are_given_no_line(tmp_path: Path) -> None:
    path = written(tmp_path, "[train]\nbatch = 1\n", "run.toml")
    content = specs.read_toml(path)
    content["train"]["bacth"] = 2  # as an override on the command line would
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(content)
    assert specs.validation_message(caught.value, Outer, path).startswith(f"{path}: unknown key 'bacth'")


def test_suggestions_name_the_nearest_else_all_else_nothing() -> None:
    assert specs.suggest("Gren", ["red", "green"]) == "; did you mean 'green'?"
    assert specs.suggest("qqq", ["red", "green"]) == "; known: red, green"
    assert specs.suggest("x", []) == ""
    assert specs.suggest("qqq", [f"b{n}" for n in range(99)]).endswith("b39, …")
