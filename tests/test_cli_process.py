"""The command line as a process: what it imports, signals, closed pipes, locales, other programs' settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import click
import pytest
import rasterio

import satseg
from satseg.cli import common, live
from satseg.cli.main import main
from satseg.cli.surroundings import drop_foreign_proj
from satseg.output import AtomicOutput
from tests.commands import TINY, files_under

HEAVY = ("numpy", "rasterio", "torch", "geopandas", "shapely", "lightning", "pydantic")


def process(*args, env=(), **options):
    """Start `python -m satseg` with pipes on stdout and stderr."""
    command = [sys.executable, "-m", "satseg", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen(command, env={**os.environ, **dict(env)}, **{**pipes, **options})


def modules_after(*args):
    code = "import sys; from satseg.cli.main import main; main(sys.argv[1:]); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=True)
    return set(said.stdout.splitlines()[-1].split())


# --- imports


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["train", "--help"], ["detect", "--help"]])
def test_help_imports_nothing_heavy(args):
    assert modules_after(*args).isdisjoint(HEAVY)


def test_info_imports_neither_torch_nor_geopandas(town):
    found = modules_after("info", town / "a.tif")
    assert "rasterio" in found
    assert found.isdisjoint(("torch", "geopandas", "lightning", "pyogrio"))


def test_score_imports_no_torch(town):
    assert "torch" not in modules_after("score", town / "a.gpkg", town / "a.gpkg")


# --- signals


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def struck(request, monkeypatch):
    """Send this process a signal at the first report of progress; the exit status it has to lead to."""

    def strike(*told):
        os.kill(os.getpid(), request.param)

    monkeypatch.setattr(live.Lines, "__call__", strike)
    monkeypatch.setattr(live.Lines, "training", strike)
    return 128 + request.param


def test_stopped_detection_leaves_nothing(run, town, tmp_path, struck):
    args = ("--mask", tmp_path / "m.tif", "--scores", tmp_path / "s.tif", "--tile", 32)
    said = run("detect", town / "model.safetensors", town / "a.tif", "-o", tmp_path / "x.gpkg", *args)
    assert (said.status, said.out) == (struck, "")
    assert "Traceback" not in said.err
    assert not files_under(tmp_path)


def test_stopped_training_leaves_its_run_folder_only(run, town, tmp_path, struck):
    args = ("train", "--data", town / "a.tif", town / "a.gpkg", "-o", tmp_path / "m.safetensors", *TINY)
    said = run(*args)
    assert (said.status, said.out) == (struck, "")
    assert "Traceback" not in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.run"]


def test_stopped_training_is_resumed(run, town, tmp_path, monkeypatch):
    args = ("train", "--data", town / "a.tif", town / "a.gpkg", "-o", tmp_path / "m.safetensors", *TINY)
    with monkeypatch.context() as patched:
        for told in ("__call__", "training"):
            patched.setattr(live.Lines, told, lambda *a: os.kill(os.getpid(), signal.SIGTERM))
        assert run(*args).status == 143
    run(*args).refused(4, "E-OUT-010")
    run(*args, "--resume").done()
    assert satseg.load_model(tmp_path / "m.safetensors").card.training.steps == 2


def test_a_process_ends_with_the_signals_status(town, tmp_path):
    args = ("--tile", "16", "--tta", "d4", "--device", "cpu")
    with process("detect", town / "model.safetensors", town / "a.tif", "-o", tmp_path / "x.shp", *args) as running:
        assert running.stderr.readline().startswith("a: ")
        assert running.stderr.readline().startswith("detect ")
        running.terminate()
        out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (128 + signal.SIGTERM, "")
    assert "Traceback" not in err
    assert all(".run" in path.as_posix() for path in files_under(tmp_path))  # what --resume goes on with


def test_handlers_are_put_back_and_other_threads_get_none(capsys):
    before = signal.getsignal(signal.SIGTERM)
    statuses = []
    worker = threading.Thread(target=lambda: statuses.append(main(["--version"])))
    worker.start()
    worker.join()
    assert main(["--version"]) == 0
    assert statuses == [0]
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_runs_on_one_output_are_told_apart(run, town, tmp_path):
    """Row 39: the second run is refused while the first one writes."""
    target = tmp_path / "mask.tif"
    with AtomicOutput(target) as first:
        said = run("rasterize", town / "a.gpkg", "-o", target, "--like", town / "a.tif")
        said.refused(4, "E-OUT-007")
        first.temporary.write_text("the first")
    assert target.read_text() == "the first"


# --- pipes and locales


@pytest.mark.parametrize("args", [["specs", "list"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error(args):
    with process(*args) as running:
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 128 + signal.SIGPIPE


def test_output_is_utf8_in_the_c_locale(town, tmp_path):
    path = tmp_path / "Zürich 中.tif"
    path.write_bytes((town / "a.tif").read_bytes())
    with process("info", path, env={"LC_ALL": "C"}) as running:
        out, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (0, "")
    assert out.splitlines()[0] == "Zürich 中"


def test_output_is_utf8_where_python_was_told_ascii(town):
    """The table marks what has no value by a dash that ASCII lacks."""
    with process("score", town / "a.gpkg", town / "a.gpkg", env={"PYTHONIOENCODING": "ascii"}) as running:
        out, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (0, "")
    assert "\N{EN DASH}" in out


def test_names_that_are_no_text_are_refused_and_printable(run, town, tmp_path):
    odd = tmp_path / os.fsdecode(b"a\xff.tif")
    odd.write_bytes((town / "a.tif").read_bytes())
    assert r"a\udcff.tif" in run("info", odd).refused(3, "E-IN-110")
    run("rasterize", town / "a.gpkg", "--like", town / "a.tif", "-o", odd.with_name(odd.name + ".tif")).refused(
        4, "E-OUT-008"
    )


# --- progress


def test_bar_on_a_terminal_takes_any_note(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    context = click.Context(click.Command("x"), obj={"quiet": 0})
    with common.progress_bar(context) as progress:
        for done in (0, 1, 2):
            progress("detect", done, 2, "scene[/b].tif")
    said = capsys.readouterr()
    assert said.out == ""
    assert "100%" in said.err
    assert "scene[/b].tif" in said.err


def test_lines_in_a_log_come_once_per_tenth(capsys):
    context = click.Context(click.Command("x"), obj={"quiet": 0})
    with common.progress_bar(context) as progress:
        for done in range(101):
            progress("detect", done, 100, "")
        progress("score", 0, 0, "nothing to do")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["detect", str(n)] for n in range(0, 101, 10)] + [["score", "100"]]


# --- the settings of other programs


def test_foreign_proj_is_ignored_with_a_warning(town, tmp_path):
    with process("info", town / "a.tif", env={"PROJ_DATA": str(tmp_path)}) as running:
        out, err = running.communicate(timeout=30)
    assert running.returncode == 0
    assert "EPSG:32633" in out
    assert err.splitlines() == [f"satseg: warning: PROJ_DATA={tmp_path} belongs to another PROJ and is ignored"]


def test_a_fitting_proj_is_left_alone(tmp_path):
    own = os.path.join(os.path.dirname(rasterio.__file__), "proj_data")
    old = tmp_path / "old"
    old.mkdir()
    (old / "proj.db").write_bytes(b"no database")
    environ = {"PROJ_DATA": f"{tmp_path}{os.pathsep}{own}", "PROJ_LIB": str(old), "OTHER": "x"}
    drop_foreign_proj(environ)
    assert environ == {"PROJ_DATA": f"{tmp_path}{os.pathsep}{own}", "OTHER": "x"}
