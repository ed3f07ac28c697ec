"""Ledger: what was finished is found whole after a crash at any moment, and nothing else is."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from satseg import bandfile
from satseg.errors import InputError, OutputError, UsageError
from satseg.ledger import Ledger, identity_of
from satseg.output import AtomicOutput, write_text

DISK_SIZE = "256k"

HEADER = {"threshold": 0.5, "grid": {"height": 7, "width": 5}, "bands": ["red", "nir1"], "nodata": float("nan")}
DTYPES = st.sampled_from(["uint8", "uint16", "float32", "float16", "bool", ">i4"])
ARRAYS = st.dictionaries(
    st.text(max_size=5),
    DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=7))),
    max_size=3,
)

NURSERY = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_ledger import HEADER, band_of
from satseg.ledger import Ledger
for line in sys.stdin:
    child = os.fork()
    if not child:
        with Ledger.open(sys.argv[1], HEADER, resume=True) as ledger:
            while True:
                ledger.append(band_of(ledger.finished))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""

HOLDER = """
import sys, time
from satseg.ledger import Ledger
with Ledger.open(sys.argv[1], {}, resume=False):
    print("open", flush=True)
    time.sleep(60)
"""


def band_of(number: int, height: int = 7, width: int = 5) -> dict[str, np.ndarray]:
    codes = np.zeros((2, height, width), np.uint8)
    codes[number % 2, : number % height] = number % 251
    return {"codes": codes, "entropy": np.full((height, width), number, np.float16)}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return list(found) == list(wanted) and all(
        found[name].dtype == wanted[name].dtype
        and found[name].shape == wanted[name].shape
        and found[name].tobytes() == wanted[name].tobytes()
        for name in wanted
    )


def store(target: Path, count: int, header: dict[str, Any] = HEADER) -> Path:
    """An unfinished run of `count` bands; its folder."""
    with Ledger.open(target, header, resume=False) as ledger:
        for number in range(count):
            ledger.append(band_of(number))
        return ledger.folder


def check_bands(ledger: Ledger) -> None:
    assert all(same(ledger.read(number), band_of(number)) for number in range(ledger.finished))
    sizes = [path.stat().st_size for path in ledger.folder.glob("*.band")]
    assert (len(sizes), sum(sizes)) == (ledger.finished, ledger.bytes_stored)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "mask.tif"


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that open hundreds of ledgers and cut no power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


# Bands


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(bands=st.lists(ARRAYS, min_size=1, max_size=3))
def test_arrays_come_back_as_they_were_appended(
    tmp_path: Path, no_fsync: None, bands: Sequence[dict[str, np.ndarray]]
) -> None:
    with Ledger.open(tmp_path / "a.tif", {}, resume=False) as ledger:
        for band in bands:
            ledger.append(band)
        assert all(same(ledger.read(number), band) for number, band in enumerate(bands))
    with Ledger.open(tmp_path / "a.tif", {}, resume=True) as ledger:
        assert ledger.finished == len(bands)
        assert all(same(ledger.read(number), band) for number, band in enumerate(bands))
        ledger.discard()


def test_arrays_longer_than_what_is_packed_at_a_time_come_back(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandfile, "PACKED_BYTES", 64)
    monkeypatch.setattr(bandfile, "READ_BYTES", 10)
    noise = np.random.default_rng(0).integers(0, 255, (3, 13, 11)).astype(np.uint16)
    with Ledger.open(target, {}, resume=False) as ledger:
        ledger.append({"noise": noise})
        assert same(ledger.read(0), {"noise": noise})


@pytest.mark.parametrize(
    "view", [lambda a: a[:, ::2, 1:], lambda a: a.transpose(2, 0, 1), lambda a: np.broadcast_to(a[:1], a.shape)]
)
def test_views_in_any_memory_layout_come_back(target: Path, view: Any) -> None:
    array = view(np.arange(2 * 7 * 5, dtype=np.float32).reshape(2, 7, 5))
    with Ledger.open(target, {}, resume=False) as ledger:
        ledger.append({"scores": array})
        assert same(ledger.read(0), {"scores": array})


def test_arrays_that_come_back_are_the_readers_own(target: Path) -> None:
    with Ledger.open(target, {}, resume=False) as ledger:
        ledger.append(band_of(1))
        ledger.read(0)["codes"][:] = 9
        assert same(ledger.read(0), band_of(1))


@pytest.mark.parametrize("dtype", [object, "U3", "M8[s]", [("a", "u1")]])
def test_arrays_of_other_than_numbers_are_refused_and_leave_nothing(target: Path, dtype: Any) -> None:
    with Ledger.open(target, {}, resume=False) as ledger:
        with pytest.raises(UsageError, match="'odd' of dtype") as caught:
            ledger.append({"odd": np.zeros(3, dtype)})
        assert caught.value.code == "E-USE-031"
        assert ledger.finished == 0
        assert not list(ledger.folder.glob("0*"))


@pytest.mark.parametrize("number", [-1, 2])
def test_a_band_that_is_not_finished_cannot_be_read(target: Path, number: int) -> None:
    with Ledger.open(target, {}, resume=False) as ledger:
        ledger.append({})
        ledger.append({})
        with pytest.raises(UsageError, match=f"band {number} is not among the 2") as caught:
            ledger.read(number)
    assert caught.value.code == "E-USE-032"


def test_masks_are_stored_in_less_than_a_twentieth_of_their_bytes(target: Path) -> None:
    codes = np.zeros((3, 200, 1001), np.uint8)
    codes[1, 50:90, 100:180] = 1
    with Ledger.open(target, {}, resume=False) as ledger:
        ledger.append({"codes": codes})
        assert ledger.bytes_stored < codes.nbytes / 20


def test_bands_may_be_appended_and_noted_from_other_threads(target: Path) -> None:
    with Ledger.open(target, HEADER, resume=False) as ledger:
        noting = threading.Thread(target=lambda: [ledger.note(str(n), n) for n in range(20)])
        appending = threading.Thread(target=lambda: [ledger.append(band_of(n)) for n in range(20)])
        for thread in (noting, appending):
            thread.start()
        for thread in (noting, appending):
            thread.join()
        assert ledger.finished == 20
        check_bands(ledger)
        assert ledger.notes == {str(n): n for n in range(20)}


# Folder


@pytest.mark.parametrize(
    "name",
    ["with space.tif", "-dash.tif", "ünïcødé.tif", "a#b%20.tif", "[x]*.tif", "\U0001f6f0" * 60, "n" * 240, ".hidden"],
)
def test_ledgers_of_oddly_named_targets_are_found_again_and_go(tmp_path: Path, name: str) -> None:
    folder = store(tmp_path / name, 2)
    assert folder.parent == tmp_path
    assert folder.name.startswith(".")
    assert folder.name.endswith(".run")
    with Ledger.open(tmp_path / name, HEADER, resume=True) as ledger:
        assert ledger.finished == 2
        ledger.discard()
    assert os.listdir(tmp_path) == []


def test_targets_with_like_names_have_ledgers_of_their_own(tmp_path: Path) -> None:
    names = ["a.tif", "a.tif.tif", "x" * 120 + "1", "x" * 120 + "2"]
    ledgers = [Ledger.open(tmp_path / name, {"name": name}, resume=True) for name in names]
    assert len({ledger.folder for ledger in ledgers}) == len(names)
    for ledger in ledgers:
        ledger.discard()


def test_the_target_can_be_written_while_its_ledger_lives(target: Path) -> None:
    with Ledger.open(target, HEADER, resume=False) as ledger:
        ledger.append(band_of(0))
        write_text(target, "whole")
        check_bands(ledger)
        ledger.discard()
    assert os.listdir(target.parent) == ["mask.tif"]


def test_a_ledger_can_be_opened_while_its_target_is_written(target: Path) -> None:
    with AtomicOutput(target) as out, Ledger.open(target, HEADER, resume=True) as ledger:
        ledger.append(band_of(0))
        out.temporary.write_text("whole")
        ledger.discard()
    assert os.listdir(target.parent) == ["mask.tif"]


def test_a_run_that_ends_before_its_first_band_leaves_nothing(target: Path) -> None:
    with Ledger.open(target, HEADER, resume=False) as ledger:
        ledger.note("begun", 1)
    assert os.listdir(target.parent) == []


def test_a_discarded_or_closed_ledger_takes_no_more(target: Path) -> None:
    with Ledger.open(target, HEADER, resume=False) as ledger:
        ledger.append(band_of(0))
        ledger.discard()
        ledger.discard()
        for act in (lambda: ledger.append(band_of(1)), lambda: ledger.read(0), lambda: ledger.note("a", 1)):
            with pytest.raises(OutputError, match=r"mask\.tif: the ledger of its run is closed") as caught:
                act()
            assert caught.value.code == "E-OUT-020"
    ledger.close()
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize(
    ("place", "code"), [("missing/a.tif", "E-OUT-002"), ("old.tif/a.tif", "E-OUT-002"), ("folder", "E-OUT-004")]
)
def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path, place: str, code: str) -> None:
    (tmp_path / "old.tif").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError) as caught:
        Ledger.open(tmp_path / place, {}, resume=True)
    assert caught.value.code == code


def test_a_read_only_folder_is_refused(small_disk: Path) -> None:
    store(small_disk / "a.tif", 1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for resume in (False, True):
        with pytest.raises(OutputError) as caught:
            Ledger.open(small_disk / "a.tif", HEADER, resume=resume)
        assert caught.value.code == "E-OUT-005"


# Headers


def test_the_same_header_in_other_words_is_the_same_run(target: Path) -> None:
    store(target, 2, {"a": 1, "b": (1, 2), "c": 0.5})
    with Ledger.open(target, {"c": 0.5, "b": [1, 2.0], "a": 1.0}, resume=True) as ledger:
        assert ledger.finished == 2
        ledger.append(band_of(2))
    with Ledger.open(target, {"a": 1, "b": (1, 2), "c": 0.5}, resume=True) as ledger:
        check_bands(ledger)
        assert ledger.finished == 3


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"threshold": 0.5}, {"threshold": 0.4}, "threshold was 0.5, is 0.4"),
        ({"grid": {"size": {"h": 1}}}, {"grid": {"size": {"h": 2}}}, "grid.size.h was 1, is 2"),
        ({"a": None}, {}, "a was null, is not given"),
        ({}, {"a": {"b": 1}}, 'a was not given, is {"b":1}'),
        ({"a": 1, "b": "x", "c": 0}, {"a": 2, "b": "y", "c": 0}, 'a was 1, is 2; b was "x", is "y"'),
        ({"a": True}, {"a": 1}, "a was true, is 1"),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "a.1.b was 2, is 3"),
        ({"a": [1, 2]}, {"a": [1]}, "a was [1,2], is [1]"),
        ({"a": "x" * 500 + "1"}, {"a": "x" * 500 + "2"}, '...xxxxxxxxxxxxxxxxxxxx1", is ...xxxxxxxxxxxxxxxxxxxx2"'),
        ({"a": float("nan")}, {"a": 0.0}, "a was NaN, is 0.0"),
    ],
)  # fmt: skip
def test_each_difference_of_the_header_is_named(target: Path, old: Any, new: Any, words: str) -> None:
    folder = store(target, 2, old)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UsageError, match="is another: ") as caught:
        Ledger.open(target, new, resume=True)
    assert words in caught.value.message
    assert (caught.value.code, caught.value.hint) == ("E-USE-030", "leave out --resume to start anew")
    assert sorted(path.name for path in folder.iterdir()) == before
    with Ledger.open(target, old, resume=True) as ledger:  # the refused one has let go of the lock
        assert ledger.finished == 2


def test_a_changed_input_is_named_with_what_changed(tmp_path: Path) -> None:
    scene, target = tmp_path / "scene.tif", tmp_path / "mask.tif"

    def header(listed: bool) -> dict[str, Any]:
        return {"inputs": [identity_of(scene)] if listed else {"scene.tif": identity_of(scene)}}

    for content, words in (
        (b"x" * 456, "scene.tif has changed (size 123 -> 456)"),
        (b"y" * 123, "scene.tif has changed (content)"),
        (b"x" * 123, "scene.tif has changed (mtime_ns 1 -> 2)"),
    ):
        for listed in (False, True):
            scene.write_bytes(b"x" * 123)
            os.utime(scene, ns=(1, 1))
            store(target, 1, header(listed))
            scene.write_bytes(content)
            os.utime(scene, ns=(2, 2))
            with pytest.raises(UsageError) as caught:
                Ledger.open(target, header(listed), resume=True)
            assert (words.replace("scene.tif", "inputs.0") if listed else words) in caught.value.message


@pytest.mark.usefixtures("no_fsync")
def test_a_header_with_any_byte_flipped_costs_no_band_of_the_same_run(target: Path) -> None:
    header = store(target, 2) / "header.json"
    whole = header.read_bytes()
    for place in range(len(whole)):
        header.write_bytes(flipped(whole, place, 1 << place % 8))
        with Ledger.open(target, HEADER, resume=True) as ledger:
            assert ledger.finished == 2
        assert json.loads(header.read_bytes())["sha256"] == json.loads(whole)["sha256"]


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\xfe", b'{"format":1}'])
def test_bands_of_another_run_are_not_taken_when_the_header_is_damaged(
    target: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    folder = store(target, 2)
    if content is None:
        (folder / "header.json").unlink()
    else:
        (folder / "header.json").write_bytes(content)
    with Ledger.open(target, {"threshold": 0.4}, resume=True) as ledger:
        assert ledger.finished == ledger.bytes_stored == 0
        ledger.append(band_of(0))
    assert "band 0 of the unfinished run is missing or damaged" in caplog.text
    with Ledger.open(target, {"threshold": 0.4}, resume=True) as ledger:
        assert ledger.finished == 1


def test_without_resume_an_unfinished_run_is_removed_with_a_warning(
    target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(target, 3)
    with Ledger.open(target, {"threshold": 0.4}, resume=False) as ledger:
        assert ledger.finished == 0
        assert ledger.notes == {}
        ledger.append(band_of(0))
    assert "an unfinished run with 3 bands is started anew; --resume would go on with it" in caplog.text
    with Ledger.open(target, {"threshold": 0.4}, resume=True) as ledger:
        assert ledger.finished == 1
        ledger.discard()
    assert os.listdir(target.parent) == []


def test_resume_without_an_unfinished_run_starts_one_in_silence(target: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Ledger.open(target, HEADER, resume=True) as ledger:
        assert ledger.finished == 0
    assert caplog.text == ""


def test_notes_outlive_the_run_and_are_not_compared(target: Path) -> None:
    with Ledger.open(target, HEADER, resume=False) as ledger:
        ledger.append(band_of(0))
        ledger.note("seconds", 1.5)
        ledger.note("seconds", 2.5)
        ledger.note("tiles", {"done": 3})
    with Ledger.open(target, HEADER, resume=True) as ledger:
        assert ledger.notes == {"seconds": 2.5, "tiles": {"done": 3}}
        assert ledger.finished == 1


def test_damaged_notes_are_told_and_cost_no_band(target: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = store(target, 1)
    (folder / "notes.json").write_text('{"half":')
    with Ledger.open(target, HEADER, resume=True) as ledger:
        assert ledger.notes == {}
        assert ledger.finished == 1
    assert "notes.json is damaged" in caplog.text


# Damage


def flipped(whole: bytes, place: int, bits: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :]


@pytest.mark.usefixtures("no_fsync")
def test_any_flipped_byte_ends_the_run_at_the_band_before(target: Path) -> None:
    folder = store(target, 3)
    kept = {path: path.read_bytes() for path in sorted(folder.glob("*.band"))}
    middle = list(kept)[1]
    for place in range(len(kept[middle])):
        for path, whole in kept.items():
            path.write_bytes(flipped(whole, place, 1 << place % 8) if path == middle else whole)
        with Ledger.open(target, HEADER, resume=True) as ledger:
            assert ledger.finished == 1
            check_bands(ledger)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(data=st.data())
def test_a_torn_or_overwritten_band_is_never_taken(tmp_path: Path, data: st.DataObject) -> None:
    path, run = tmp_path / "0.band", "a" * 64
    whole = b"".join(bandfile.band_bytes(band_of(5), run=run, number=5))
    start = data.draw(st.integers(0, len(whole) - 1))
    torn = whole[:start] + data.draw(st.binary(max_size=len(whole) - start + 40))
    path.write_bytes(torn)
    assert bandfile.is_band(path, run=run, number=5) == (torn == whole)


@pytest.mark.usefixtures("no_fsync")
def test_a_band_cut_anywhere_ends_the_run_before_it(target: Path) -> None:
    folder = store(target, 2)
    last = folder / "000001.band"
    whole = last.read_bytes()
    for length in range(len(whole)):
        last.write_bytes(whole[:length])
        with Ledger.open(target, HEADER, resume=True) as ledger:
            assert ledger.finished == 1


def test_the_run_goes_on_from_the_damage_and_says_so(target: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = store(target, 6)
    (folder / "000002.band").write_bytes(b"")
    with Ledger.open(target, HEADER, resume=True) as ledger:
        assert ledger.finished == 2
        assert "band 2 of the unfinished run is missing or damaged" in caplog.text
        assert "without 4 of 6 bands" in caplog.text
        for number in range(2, 6):
            ledger.append(band_of(number))
        check_bands(ledger)


def test_a_whole_band_in_anothers_place_or_of_another_run_is_not_taken(tmp_path: Path) -> None:
    folder = store(tmp_path / "a.tif", 3)
    shutil.copy(folder / "000002.band", folder / "000001.band")
    with Ledger.open(tmp_path / "a.tif", HEADER, resume=True) as ledger:
        assert ledger.finished == 1
    other = store(tmp_path / "b.tif", 2, {"threshold": 0.4})
    shutil.copy(other / "000001.band", folder / "000001.band")
    with Ledger.open(tmp_path / "a.tif", HEADER, resume=True) as ledger:
        assert ledger.finished == 1


def test_a_band_damaged_while_the_run_lives_is_noticed_when_read(target: Path) -> None:
    with Ledger.open(target, HEADER, resume=False) as ledger:
        for number in range(2):
            ledger.append(band_of(number))
        path = ledger.folder / "000001.band"
        path.write_bytes(flipped(path.read_bytes(), 200, 4))
        with pytest.raises(OutputError, match=r"000001\.band: .*damaged") as caught:
            ledger.read(1)
        assert caught.value.code == "E-OUT-021"
        assert same(ledger.read(0), band_of(0))
        path.unlink()
        with pytest.raises(OutputError, match="No such file"):
            ledger.read(1)


def test_a_band_on_a_bad_sector_is_damage_but_a_missing_permission_is_not(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(target, 2)
    for number in (errno.EACCES, errno.EIO):

        def refuse(path: Path, *, run: str, number: int, kind: int = number) -> bool:
            raise OSError(kind, os.strerror(kind))

        monkeypatch.setattr("satseg.ledger.is_band", refuse)
        if number == errno.EIO:
            with Ledger.open(target, HEADER, resume=True) as ledger:
                assert ledger.finished == 0
        else:
            with pytest.raises(OutputError, match="Permission denied"):
                Ledger.open(target, HEADER, resume=True)


# Locks


def test_a_second_run_is_refused_while_the_first_lives_in_another_process(target: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, target], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        for resume in (False, True):
            with pytest.raises(OutputError, match=f"written by process {child.pid}") as caught:
                Ledger.open(target, {}, resume=resume)
            assert caught.value.code == "E-OUT-007"
    finally:
        child.kill()
        child.communicate()
    with Ledger.open(target, {}, resume=True) as ledger:  # the kernel has let go
        ledger.append(band_of(0))


def test_a_second_run_is_refused_while_the_first_lives_in_this_process(target: Path) -> None:
    with Ledger.open(target, HEADER, resume=False) as ledger:
        ledger.append(band_of(0))
        for resume in (False, True):
            with pytest.raises(OutputError, match=f"written by process {os.getpid()}") as caught:
                Ledger.open(target, HEADER, resume=resume)
            assert caught.value.code == "E-OUT-007"
        check_bands(ledger)
    with Ledger.open(target, HEADER, resume=True) as ledger:
        assert ledger.finished == 1


def test_of_many_threads_that_open_one_ledger_one_gets_it(target: Path) -> None:
    start, got, codes = threading.Barrier(8), [], []

    def run() -> None:
        start.wait()
        try:
            got.append(Ledger.open(target, HEADER, resume=False))
        except OutputError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), codes) == (1, ["E-OUT-007"] * 7)
    got[0].close()
    assert os.listdir(target.parent) == []


def test_opening_and_closing_leaks_no_handle(target: Path) -> None:
    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    store(target, 1)
    before = handles()
    for _ in range(3):
        store(target, 1)
        with pytest.raises(UsageError):
            Ledger.open(target, {}, resume=True)
    assert handles() == before


# Full disks


def test_a_full_disk_is_an_output_error_and_what_was_finished_stays(small_disk: Path) -> None:
    dice = np.random.default_rng(0)
    noise = {"scores": dice.integers(0, 256, (1, 300, 201), np.uint8)}
    target = small_disk / "a.tif"
    with Ledger.open(target, HEADER, resume=False) as ledger:
        for _ in range(3):
            ledger.append(noise)
        with pytest.raises(OutputError, match=r"No space left on device \(\d+ MiB free\)") as caught:
            ledger.append({"scores": dice.integers(0, 256, (3, 300, 201), np.uint8)})
        assert caught.value.code == "E-OUT-006"
        assert not list(ledger.folder.glob("*.writing"))
        assert ledger.finished == 3
        ledger.append(band_of(3))  # there is room for a small one
    with Ledger.open(target, HEADER, resume=True) as ledger:
        assert ledger.finished == 4
        assert same(ledger.read(2), noise)
        assert same(ledger.read(3), band_of(3))
        ledger.discard()
    assert os.listdir(small_disk) == []


def test_a_disk_too_full_for_a_header_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(OutputError, match="No space left on device"):
        Ledger.open(small_disk / "a.tif", {"plan": "x" * 300_000}, resume=False)
    assert os.listdir(small_disk) == []


# Crashes


def test_kills_at_random_moments_cost_no_finished_band(target: Path) -> None:
    dice = random.Random(0)
    nursery = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NURSERY, target, Path(__file__).parent],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    finished = 0
    for _ in range(20):
        nursery.stdin.write("go\n")
        nursery.stdin.flush()
        child = int(nursery.stdout.readline())
        time.sleep(dice.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert nursery.stdout.readline() == "dead\n"
        with Ledger.open(target, HEADER, resume=True) as ledger:
            assert ledger.finished >= finished
            finished = ledger.finished
            check_bands(ledger)
            assert not list(ledger.folder.glob("*.writing"))
    nursery.communicate()
    assert finished > 0


def test_a_run_that_stops_before_any_step_is_found_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder as it is before each call that changes names or flushes: what a kill there leaves."""
    place, known, copies = tmp_path / "live", 0, []
    place.mkdir()

    def watched(name: str) -> Any:
        call = getattr(os, name)

        def watch(*arguments: Any, **options: Any) -> Any:
            copy = tmp_path / "copies" / str(len(copies))
            monkeypatch.undo()
            shutil.copytree(place, copy)
            watch_all()
            copies.append((copy, known))
            return call(*arguments, **options)

        return watch

    def watch_all() -> None:
        for name, watch in watchers.items():
            monkeypatch.setattr(os, name, watch)

    watchers = {name: watched(name) for name in ("fsync", "replace", "rename", "unlink", "rmdir")}
    watch_all()
    for resume in (False, True):
        with Ledger.open(place / "a.tif", HEADER, resume=resume) as ledger:
            for _ in range(2):
                ledger.append(band_of(ledger.finished))
                known = ledger.finished
    known = 0  # from here on they are being removed
    ledger = Ledger.open(place / "a.tif", HEADER, resume=False)
    ledger.append(band_of(0))
    ledger.discard()
    monkeypatch.undo()
    assert len(copies) > 20
    for copy, least in copies:
        with Ledger.open(copy / "a.tif", HEADER, resume=True) as ledger:
            assert ledger.finished >= least
            check_bands(ledger)
            ledger.append(band_of(ledger.finished))
            check_bands(ledger)
            ledger.discard()
        assert os.listdir(copy) == []


@pytest.mark.parametrize("anew", [False, True])
def test_a_ledger_goes_in_one_step(target: Path, monkeypatch: pytest.MonkeyPatch, anew: bool) -> None:
    def stop(folder: Path, **options: Any) -> None:
        raise KeyboardInterrupt

    store(target, 3)
    with monkeypatch.context() as patch:
        if anew:
            patch.setattr(shutil, "rmtree", stop)
            with pytest.raises(KeyboardInterrupt):
                Ledger.open(target, HEADER, resume=False)
        else:
            with Ledger.open(target, HEADER, resume=True) as ledger:
                patch.setattr(shutil, "rmtree", stop)
                with pytest.raises(KeyboardInterrupt):
                    ledger.discard()
                patch.undo()
    with Ledger.open(target, HEADER, resume=True) as ledger:
        assert ledger.finished == 0
        assert len(os.listdir(target.parent)) == 1  # what was left of the other is removed


def test_a_band_is_flushed_before_it_has_its_name_and_its_name_before_append_returns(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flush(handle: int) -> None:
        steps.append(f"flush {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def rename(source: Path, to: Path) -> None:
        steps.append(f"name {Path(to).name}")
        replace(source, to)

    with Ledger.open(target, HEADER, resume=False) as ledger:
        monkeypatch.setattr(os, "fsync", flush)
        monkeypatch.setattr(os, "replace", rename)
        ledger.append(band_of(0))
        assert steps == ["flush 000000.band.writing", "name 000000.band", f"flush {ledger.folder.name}"]


# Identity


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**22 - 1, 2**22, 2**22 + 1])
def test_identity_of_a_file_up_to_its_sample_sees_every_byte(tmp_path: Path, size: int) -> None:
    path = tmp_path / "scene.tif"
    content = bytearray(np.random.default_rng(0).bytes(size))
    path.write_bytes(content)
    first = identity_of(path)
    assert first == identity_of(str(path))
    assert first["size"] == size
    for place in {0, size // 3, size - 1} if size else ():
        content[place] ^= 1
        path.write_bytes(content)
        assert identity_of(path)["sha256"] != first["sha256"]
        content[place] ^= 1


def test_identity_of_a_huge_file_reads_its_head_and_tail_and_little_else(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    size = 100 * 2**30
    with path.open("wb") as file:
        file.truncate(size)  # sparse: takes no room
    start = time.process_time()
    first = identity_of(path)
    assert time.process_time() - start < 0.5
    for place in (0, size - 1, size // 63 * 10):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        changed = identity_of(path)
        assert changed["sha256"] != first["sha256"]
        first = changed


@pytest.mark.parametrize("name", ["missing.tif", "folder"])
def test_identity_of_what_cannot_be_read_is_an_input_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=name) as caught:
        identity_of(tmp_path / name)
    assert caught.value.code == "E-IN-030"
