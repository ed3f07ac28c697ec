"""Formulas: what is let in, what it is worth, where it is undefined, and whether a factor cancels out."""

from __future__ import annotations

import math
import operator
import pickle

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from satseg.errors import SpecError
from satseg.formulas import MAX_DEPTH, MAX_LENGTH, parse_formula

NAMES = ("nir", "red", "blue")


def formula(text, **constants):
    return parse_formula(text, names=NAMES, constants=constants)


def value(text, **bands):
    planes = {name: np.array([[number]], np.float64) for name, number in bands.items()}
    found, undefined = formula(text).values(planes)
    assert undefined is None or undefined[0, 0] == np.isnan(found[0, 0])
    return float(found[0, 0])


HOSTILE = [
    "__import__('os').system('id')", "nir.__class__", "nir[0]", "(lambda: nir)()", "[nir for nir in ()]",
    "nir if red else 1", "f'{nir}'", "'nir'", "nir == red", "nir and red", "not nir", "~nir", "nir // red", "nir % red",
    "nir @ red", "(nir := 1)", "nir, red", "min(*nir)", "min(nir, default=1)", "eval(nir)", "print(nir)", "nir.min()",
    "True + nir", "1j * nir", "...", "None", "await nir", "yield", "nir; red", "nir = red", "import os", "nir\nred",
    "nir\0",
    "9**9**9**9 * nir", "nir**9", "nir**red", "nir**0", "2**nir", "nir**-1000", "1e999 * nir", "1" * 400 + "* nir",
    "1/0 + nir", "sqrt(-1) * nir", "log(0) + nir", "min(nir)", "sqrt(nir, red)", "", " ", "1 + 2", "nir +", "(nir",
    "foo", "(" * 10_000 + "nir" + ")" * 10_000, "-" * 400 + "nir", "nir" + " + nir" * 60,
    "nir" + " " * MAX_LENGTH + "+ red", "nir if", "1if nir else 2", "0x", "'\\d'",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:24])
def test_what_is_not_on_the_list_is_refused_with_one_kind_of_error(text):
    with pytest.raises(SpecError) as caught:
        formula(text)
    assert caught.value.code == "E-SPEC-060"
    assert len(str(caught.value)) < 400


def test_a_refusal_names_the_place_and_the_nearest_name():
    with pytest.raises(SpecError, match=r"character 7: unknown name 'rad'; did you mean 'red'"):
        formula("nir - rad")
    with pytest.raises(SpecError, match=r"character 7: a call of exec is not allowed"):
        formula("nir + exec(1)")


def test_nesting_is_allowed_up_to_its_bound():
    assert value("-" * (MAX_DEPTH - 1) + "nir", nir=2.0) == -2.0
    with pytest.raises(SpecError, match="nested deeper"):
        formula("-" * (MAX_DEPTH + 1) + "nir")


@pytest.mark.parametrize(
    "text",
    ["nir / red", "1 / nir", "1 / (1 / nir)", "blue / (blue / nir)", "min(1, 1 / nir)", "(1 / nir)**-1", "log(nir)",
     "sqrt(nir - 1)", "nir / nir", "abs(red / nir - blue / nir)", "max(0, log(nir))", "1 / (1 + 1 / nir)"],
)  # fmt: skip
def test_what_is_undefined_in_any_step_stays_undefined(text):
    values = {"nir": 0.0, "red": 0.0 if text == "nir / red" else 2.0, "blue": 3.0}
    assert math.isnan(value(text, **values))


def test_one_undefined_pixel_leaves_the_others_as_they_are():
    planes = {"nir": np.array([[0, 3, 1]], np.float32), "red": np.array([[0, 1, 0]], np.float32)}
    found, undefined = formula("(nir - red) / (nir + red)").values(planes)
    np.testing.assert_array_equal(found, np.array([[np.nan, 0.5, 1]], np.float32))
    np.testing.assert_array_equal(undefined, [[True, False, False]])
    assert found.dtype == np.float32


def test_constants_are_put_in_and_values_keep_the_dtype_of_the_planes():
    found, undefined = formula("G * nir", G=2.5).values({"nir": np.full((1, 2), 3, np.float32)})
    assert undefined is None
    assert found.dtype == np.float32
    assert found.tolist() == [[7.5, 7.5]]


def test_a_formula_survives_pickling():
    first = formula("sqrt(nir) / max(red, blue)")
    assert pickle.loads(pickle.dumps(first)) == first
    assert first.names == ("nir", "red", "blue")


@pytest.mark.parametrize(
    ("text", "free"),
    [("(nir - red) / (nir + red)", True), ("nir / red - 1", True), ("sqrt(nir / red)", True), ("log(nir / red)", True),
     ("sqrt(nir**2 + red**2) / blue", True), ("(nir + 0) / red", True), ("min(nir, red) / max(nir, red)", True),
     ("nir - red", False), ("(nir - red) / (nir + red + 1)", False), ("nir - blue / nir + blue * nir", False),
     ("1 / nir", False), ("log(nir) / log(red)", False), ("max(nir, 1) / red", False), ("nir**2 / red", False)],
)  # fmt: skip
def test_it_is_known_whether_a_factor_cancels_out(text, free):
    assert formula(text).is_scale_free is free


# --- against a reference: the same expression built of Python's own floats, step by step ---------------------


def exact(step, *values):
    """`step` of Python floats; NaN where it, or a value, has none."""
    try:
        found = math.nan if any(map(math.isnan, values)) else step(*values)
    except (ArithmeticError, ValueError):
        return math.nan
    return found if math.isfinite(found) else math.nan


BINARY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
POWERS = {"2": lambda x: x * x, "0.5": math.sqrt, "-1": lambda x: 1 / x, "3": lambda x: x * x * x}
LIMITS = {"min": min, "max": max}
CALLS = {"sqrt": math.sqrt, "abs": abs, "log": math.log}
numbers = st.sampled_from([0.0, 0.125, 0.5, 1.0, 1.5, 2.0, 3.75, 8.0])
leaves = st.one_of(
    st.sampled_from(NAMES).map(lambda name: (name, lambda bands: bands[name])),
    numbers.map(lambda number: (repr(number), lambda bands: number)),
)


def wider(inner):
    """Strategy of (text, value of bands) pairs around those of `inner`."""
    return st.one_of(
        st.tuples(st.sampled_from("+-*/"), inner, inner).map(
            lambda p: (f"({p[1][0]} {p[0]} {p[2][0]})", lambda b: exact(BINARY[p[0]], p[1][1](b), p[2][1](b)))
        ),
        st.tuples(st.sampled_from(list(LIMITS)), inner, inner).map(
            lambda p: (f"{p[0]}({p[1][0]}, {p[2][0]})", lambda b: exact(LIMITS[p[0]], p[1][1](b), p[2][1](b)))
        ),
        st.tuples(st.sampled_from(list(POWERS)), inner).map(
            lambda p: (f"({p[1][0]})**{p[0]}", lambda b: exact(POWERS[p[0]], p[1][1](b)))
        ),
        st.tuples(st.sampled_from(list(CALLS)), inner).map(
            lambda p: (f"{p[0]}({p[1][0]})", lambda b: exact(CALLS[p[0]], p[1][1](b)))
        ),
        inner.map(lambda p: (f"-{p[0]}", lambda b: exact(operator.neg, p[1](b)))),
    )


def parsed(text):
    """The formula, or a rejected example: it has no band, or a part of numbers alone has no value."""
    try:
        return formula(text)
    except SpecError as error:
        if any(words in error.message for words in ("no value", "no band", "characters, ")):
            reject()
        raise


@settings(max_examples=300, deadline=None)
@given(made=st.recursive(leaves, wider, max_leaves=10), bands=st.fixed_dictionaries(dict.fromkeys(NAMES, numbers)))
def test_values_are_those_of_plain_arithmetic(made, bands):
    text, wanted = made
    planes = {name: np.full((1, 3), number) for name, number in bands.items()}
    found, undefined = parsed(text).values(planes)
    np.testing.assert_allclose(found, np.full((1, 3), wanted(bands)), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(np.isnan(found), False if undefined is None else undefined)


@settings(max_examples=150, deadline=None)
@given(made=st.recursive(leaves, wider, max_leaves=8), factor=st.sampled_from([0.5, 2.0, 4.0]))
def test_a_formula_said_to_be_free_of_scale_is(made, factor):
    found = parsed(made[0])
    if found.is_scale_free:
        planes = {"nir": np.array([0.5, 1.75]), "red": np.array([0.25, 0.5]), "blue": np.array([0.125, 2.0])}
        scaled = {name: plane * factor for name, plane in planes.items()}
        np.testing.assert_allclose(found.values(scaled)[0], found.values(planes)[0], rtol=1e-6, atol=1e-7)
