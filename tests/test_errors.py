"""Errors: a code and an exit status each, a built-in parent, and fields that survive the way home."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest

from satseg import errors
from satseg.errors import (
    BandError,
    CRSError,
    DependencyError,
    DeviceError,
    GridError,
    InputError,
    LabelError,
    ModelError,
    OutputError,
    PartialError,
    RankError,
    SatsegError,
    SpecError,
    UsageError,
)

CONTRACT = {
    SatsegError: (1, Exception),
    UsageError: (2, ValueError),
    SpecError: (2, ValueError),
    InputError: (3, ValueError),
    CRSError: (3, ValueError),
    BandError: (3, ValueError),
    GridError: (3, ValueError),
    LabelError: (3, ValueError),
    ModelError: (3, ValueError),
    OutputError: (4, OSError),
    PartialError: (5, RuntimeError),
    RankError: (1, ChildProcessError),
    DependencyError: (6, ImportError),
    DeviceError: (1, MemoryError),
}
KINDS = pytest.mark.parametrize("kind", CONTRACT, ids=lambda kind: kind.__name__)


def test_the_contract_names_every_error():
    defined = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, SatsegError)}
    assert defined == set(CONTRACT)


@KINDS
def test_exit_status_and_built_in_parent(kind):
    status, parent = CONTRACT[kind]
    assert kind.exit_code == status
    assert issubclass(kind, parent)
    assert issubclass(kind, SatsegError)
    with pytest.raises(parent):
        raise kind("gone wrong")


def test_each_kind_has_a_code_of_its_own():
    codes = [kind.default_code for kind in CONTRACT]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"E-[A-Z]+-\d{3}", code) for code in codes)


@KINDS
def test_the_text_is_path_message_and_hint(kind):
    assert str(kind("it broke")) == "it broke"
    assert str(kind("it broke", hint="mend it")) == "it broke; mend it"
    assert str(kind("it broke", hint="mend it", path="a/b.tif")) == "a/b.tif: it broke; mend it"
    assert str(kind("a/b.tif is broken", path=Path("a/b.tif"))) == "a/b.tif is broken"


@KINDS
def test_fields_are_kept(kind):
    error = kind("it broke", hint="mend it", code="E-TST-042", path=Path("a/b.tif"))
    assert (error.message, error.hint, error.code, error.path) == (
        "it broke",
        "mend it",
        "E-TST-042",
        "a/b.tif",
    )
    plain = kind("it broke")
    assert (plain.hint, plain.code, plain.path) == (None, kind.default_code, None)
    assert plain.args == ("it broke",)


@KINDS
@pytest.mark.parametrize("travel", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_fields_survive_the_way_home_from_a_worker(kind, travel):
    error = kind("it broke", hint="mend it", code="E-TST-042", path="a/b.tif")
    back = travel(error)
    assert type(back) is kind
    assert (back.message, back.hint, back.code, back.path) == ("it broke", "mend it", "E-TST-042", "a/b.tif")
    assert str(back) == str(error)


def test_all_but_the_message_is_given_by_name():
    with pytest.raises(TypeError):
        SatsegError("it broke", "mend it")
