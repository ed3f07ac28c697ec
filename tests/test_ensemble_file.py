"""The ensemble file: what is written is read again, what makes no sense is refused with its line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from satseg.errors import SpecError, UsageError
from satseg.learning.networks.ensemble_file import (
    LOGIT_LIMIT,
    ClassStacker,
    EnsembleFile,
    combined,
    is_ensemble_file,
)

A, B = "a" * 64, "b" * 64
NAMES = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1, max_size=9)
NUMBERS = st.floats(-1e30, 1e30, allow_nan=False)


def team(tmp_path, **parts):
    place = tmp_path / "team.toml"
    return EnsembleFile.of([(tmp_path / "a.safetensors", A), (tmp_path / "b.safetensors", B)], beside=place, **parts)


def test_members_are_named_from_the_files_own_folder(tmp_path):
    inner = tmp_path / "teams"
    inner.mkdir()
    made = EnsembleFile.of([(tmp_path / "a.safetensors", A), (inner / "b.safetensors", B)], beside=inner / "t.toml")
    assert [member.path for member in made.members] == ["../a.safetensors", "b.safetensors"]
    assert [path.resolve() for path in made.places(inner / "t.toml")] == [
        tmp_path / "a.safetensors", inner / "b.safetensors",
    ]  # fmt: skip


@given(
    st.sampled_from(["arithmetic", "geometric"]),
    st.dictionaries(NAMES, st.floats(1e-9, 1 - 1e-9), max_size=3),
    st.dictionaries(NAMES, st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=3),
)
def test_what_is_written_is_read_again(tmp_path_factory, mean, thresholds, numbers):
    place = tmp_path_factory.getbasetemp() / "team.toml"
    stacker = {name: ClassStacker(weights=(one, two), bias=bias) for name, (one, two, bias) in numbers.items()}
    made = team(place.parent, mean=mean, thresholds=thresholds, stacker=stacker)
    made.save(place, overwrite=True)
    assert EnsembleFile.read(place) == made


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (("mean =", "means ="), "E-SPEC-004", "line 2: unknown key 'means'"),
        (('"arithmetic"', '"harmonic"'), "E-SPEC-006", "line 2"),
        (("bbbb", "zz"), "E-SPEC-006", "weights_sha256"),
        (("1.5, 2.5", "1.5"), "E-SPEC-007", "1 weights for 2 members"),
        (("[stacker", "[stackers"), "E-SPEC-004", "did you mean 'stacker'"),
        (("= 0.25", "= 1.0"), "E-SPEC-006", "less than 1"),
        (("bias = 0.5", "bias = nan"), "E-SPEC-006", "finite"),
        (("mean", "[["), "E-SPEC-003", "line 2"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_its_line(tmp_path, change, code, says):
    stacker = {"a": ClassStacker(weights=(1.5, 2.5), bias=0.5)}
    text = team(tmp_path, thresholds={"a": 0.25}, stacker=stacker).to_toml()
    place = tmp_path / "team.toml"
    place.write_text(text.replace(*change))
    with pytest.raises(SpecError, match="line ") as refused:
        EnsembleFile.read(place)
    assert refused.value.code == code
    assert says in str(refused.value)


def test_one_model_is_no_ensemble(tmp_path):
    with pytest.raises(UsageError, match="members"):
        EnsembleFile.of([(tmp_path / "a.safetensors", A)], beside=tmp_path / "team.toml")


def test_its_name_ends_in_toml(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.toml"):
        team(tmp_path).save(tmp_path / "team.safetensors")
    assert is_ensemble_file("A/Team.TOML")
    assert not is_ensemble_file("a.safetensors")


def test_means_are_those_of_the_2017_recipes_worked_value():
    """M13: views of 0.9, 0.8, 0.5 and 0.4."""
    scores = np.array([0.9, 0.8, 0.5, 0.4])[:, None]
    logits = np.log(scores / (1 - scores))
    assert combined(logits)[0] == pytest.approx(0.65, abs=1e-12)
    assert combined(logits, "geometric")[0] == pytest.approx(0.616014058, abs=1e-9)


@given(hnp.arrays(np.float64, (3, 2, 4, 5), elements=st.floats(-300, 300)))
def test_a_stacker_of_one_member_alone_is_that_member(logits):
    alone = ClassStacker(weights=(0.0, 1.0, 0.0))
    found = combined(logits, "geometric", (alone, None))
    limited = logits[1, 0].clip(-LOGIT_LIMIT, LOGIT_LIMIT)
    np.testing.assert_allclose(found[0], 1 / (1 + np.exp(-limited)), rtol=1e-12)
    np.testing.assert_array_equal(found[1], combined(logits, "geometric")[1])
