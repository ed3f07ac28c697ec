"""AtomicOutput: a final name is absent or complete, whatever happens to the run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from satseg.errors import OutputError
from satseg.output import PARTIAL, SHAPEFILE_PARTS, SIDE_CARS, AtomicOutput, check_writable, write_text

DISK_SIZE = "64k"

WAITING_WRITER = """
import sys, time
from satseg.output import AtomicOutput
with AtomicOutput(sys.argv[1]) as out:
    out.temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", WAITING_WRITER, path], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    return child


def write_half(output: AtomicOutput) -> None:
    with output as out:
        out.temporary.write_text("half")
        raise ZeroDivisionError


def write_parts(path: Path, *suffixes: str) -> None:
    with AtomicOutput(path, overwrite=True) as out:
        for suffix in suffixes:
            out.temporary.with_suffix(suffix).write_text("new")


def hidden(folder: Path) -> list[Path]:
    return list(folder.glob(f".*{PARTIAL}"))


def test_file_appears_complete_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with AtomicOutput(path) as out:
        out.temporary.write_text("whole")
        assert out.temporary.name == "a.txt"
        assert not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_half(AtomicOutput(tmp_path / "a.txt"))
    assert os.listdir(tmp_path) == []


def test_error_in_the_block_keeps_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_half(AtomicOutput(path, overwrite=True))
    assert path.read_text() == "old"


def test_killed_run_leaves_no_final_file_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    child = start_writer(path)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not path.exists()
    assert len(hidden(tmp_path)) == 1
    write_text(path, "whole")
    assert path.read_text() == "whole"
    assert hidden(tmp_path) == []


def test_second_run_on_one_target_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    child = start_writer(path)
    try:
        with pytest.raises(OutputError, match=f"written by process {child.pid}") as caught:
            write_text(path, "mine", overwrite=True)
        assert caught.value.code == "E-OUT-007"
        assert caught.value.exit_code == 4
        assert len(hidden(tmp_path)) == 1
    finally:
        child.kill()
        child.communicate()


def test_of_many_threads_on_one_target_one_wins_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    start, codes = threading.Barrier(8), []

    def run(number: int) -> None:
        start.wait()
        try:
            write_text(path, str(number) * 1000)
            codes.append("")
        except OutputError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count("") == 1
    assert set(codes) <= {"", "E-OUT-003", "E-OUT-007"}
    assert len(set(path.read_text())) == 1
    assert hidden(tmp_path) == []


def test_neighbours_with_like_names_do_not_disturb_each_other(tmp_path: Path) -> None:
    names = ["a.txt", "a.txt.txt", "x" * 120 + "1", "x" * 120 + "2"]
    outputs = [AtomicOutput(tmp_path / name) for name in names]
    for out in outputs:
        out.__enter__()
        out.temporary.write_text("x")
    for out in outputs:
        out.__exit__(None, None, None)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    out = AtomicOutput(path)
    path.write_text("someone else's")
    with pytest.raises(OutputError) as caught, out:
        pass
    assert caught.value.code == "E-OUT-003"
    assert path.read_text() == "someone else's"


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("missing/a.txt", "E-OUT-002"),
        ("old.txt/a.txt", "E-OUT-002"),
        ("old.txt", "E-OUT-003"),
        ("folder", "E-OUT-004"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path, place: str, code: str) -> None:
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError) as caught:
        AtomicOutput(tmp_path / place)
    assert caught.value.code == code
    assert caught.value.exit_code == 4


def test_read_only_folder_is_refused_before_any_work(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OutputError) as caught:
        check_writable(small_disk / "a.txt")
    assert caught.value.code == "E-OUT-005"


def test_full_disk_is_an_output_error_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(OutputError, match="MiB free") as caught:
        write_text(small_disk / "a.txt", "x" * 200_000)
    assert caught.value.exit_code == 4
    assert os.listdir(small_disk) == []


def test_disk_that_fills_up_on_the_last_flush_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_text(tmp_path / "a.txt", "whole")
    assert os.listdir(tmp_path) == []


def test_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nothing was written"), AtomicOutput(tmp_path / "a.txt"):
        pass


def test_new_shapefile_replaces_every_part_of_the_old_one(tmp_path: Path) -> None:
    for suffix in SHAPEFILE_PARTS:
        (tmp_path / f"a{suffix}").write_text("old")
    (tmp_path / "a.txt").write_text("not a part")
    write_parts(tmp_path / "a.shp", ".shp", ".shx", ".dbf")
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {"a.shp": "new", "a.shx": "new", "a.dbf": "new", "a.txt": "not a part"}


@pytest.mark.parametrize("name", ["a.tif", "a.gpkg"])
def test_side_cars_of_the_old_file_do_not_outlive_it(tmp_path: Path, name: str) -> None:
    for ending in ("", *SIDE_CARS):
        (tmp_path / (name + ending)).write_text("old")
    write_text(tmp_path / name, "new", overwrite=True)
    assert os.listdir(tmp_path) == [name]


def test_old_prj_goes_with_its_csv_but_not_when_a_shapefile_owns_it(tmp_path: Path) -> None:
    for name in ("a.csv", "a.prj", "b.csv", "b.prj", "b.shp"):
        (tmp_path / name).write_text("old")
    write_text(tmp_path / "a.csv", "new", overwrite=True)
    write_text(tmp_path / "b.csv", "new", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "b.csv", "b.prj", "b.shp"]


@pytest.mark.parametrize("crash_at", range(4))
def test_crash_while_parts_are_moved_never_shows_an_incomplete_shapefile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    move, moved = os.replace, []

    def crash(source: Path, target: Path) -> None:
        if len(moved) == crash_at:
            raise KeyboardInterrupt
        moved.append(target)
        move(source, target)

    (tmp_path / "a.shp").write_text("old")
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_parts(tmp_path / "a.shp", ".shp", ".shx", ".dbf", ".prj")
    assert not (tmp_path / "a.shp").exists()


@pytest.mark.parametrize(
    "name",
    ["with space.txt", "-dash.txt", "ünïcødé.txt", "a#b%20.txt", "[x]*.txt", "\U0001f6f0" * 60, "n" * 240],
)
def test_odd_names_are_written_like_any_other(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "whole")
    assert os.listdir(tmp_path) == [name]
