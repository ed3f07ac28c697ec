"""Checkpoints: what is left of a run on a full disk or with damaged files, and that it can go on from there."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import pytest
import torch

import satseg
from satseg.errors import InputError, OutputError
from satseg.learning.training import checkpoints
from satseg.learning.training.checkpoints import BEST, LAST, CheckpointFiles, checkpoint_to_resume, is_whole
from tests.worlds import squares

DISK_SIZE = "3m"
FAST = {"chip": 32, "batch": 4, "width": 4, "depth": 2, "stem": 1, "rounds": 3, "precision": "fp32", "device": "cpu"}
CALL = {**FAST, "steps": 9, "seed": 1}


def equal(one, other):
    state, same = (model.network.state_dict() for model in (one, other))
    return all(torch.equal(state[name], same[name]) for name in state)


def full_for(monkeypatch, name, *, after):
    """Have the disk be full for files called `name`, when `after` of them are written."""
    plain, written = Path.write_bytes, []

    def write_bytes(path, data):
        if path.name == name:
            written.append(path)
            if len(written) > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The model of an undisturbed run."""
    return satseg.train([squares(tmp_path_factory.mktemp("whole"))], **CALL)


def test_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on(tmp_path, monkeypatch, caplog, whole):
    full_for(monkeypatch, LAST, after=1)
    model = satseg.train([squares(tmp_path)], output=tmp_path / "m.safetensors", **CALL)
    assert equal(model, whole)
    assert "the run goes on" in caplog.text
    kept = torch.load(tmp_path / "m.run" / LAST, weights_only=True)
    assert kept["global_step"] == 3  # of the first of three rounds
    assert sorted(path.name for path in (tmp_path / "m.run").glob("*.ckpt")) == [BEST, LAST]


def test_full_disk_for_the_best_weights_stops_a_run_that_can_go_on(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        full_for(patch, BEST, after=0)
        with pytest.raises(OutputError, match="--resume") as caught:
            satseg.train([squares(tmp_path)], output=tmp_path / "m.safetensors", **CALL)
    assert caught.value.exit_code == 4
    assert caught.value.code == "E-TRN-019"
    assert not (tmp_path / "m.safetensors").exists()
    assert equal(satseg.train([squares(tmp_path)], output=tmp_path / "m.safetensors", resume=True, **CALL), whole)


def test_failed_write_leaves_the_earlier_file_as_it_was(tmp_path, monkeypatch):
    files, path = CheckpointFiles(), tmp_path / BEST
    files.save_checkpoint({"state_dict": {"a": torch.ones(2)}}, path)
    before = path.read_bytes()
    full_for(monkeypatch, BEST, after=0)
    with pytest.raises(OutputError):
        files.save_checkpoint({"state_dict": {"a": torch.zeros(2)}}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [BEST]


def test_run_on_a_disk_too_small_for_it_ends_with_an_output_error(small_disk, tmp_path):
    folder = small_disk / "run"
    wide = {**CALL, "width": 64}  # checkpoints of 1.6 MB
    with pytest.raises(OutputError) as caught:
        satseg.train([squares(tmp_path)], run_dir=folder, **wide)
    assert caught.value.exit_code == 4
    assert all(is_whole(path) for path in folder.glob("*.ckpt"))


@pytest.fixture
def stopped(tmp_path):
    """The folder of a run killed after two of three rounds."""

    def stop(stage, done, total, note):
        if stage == "train" and done >= 0.75:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        satseg.train([squares(tmp_path)], output=tmp_path / "m.safetensors", progress=stop, **CALL)
    return tmp_path / "m.run"


def spoil(path, how):
    content = bytearray(path.read_bytes())
    if how == "torn":
        content = content[: len(content) // 2]
    elif how == "changed":
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        content[largest.header_offset + 64 + largest.file_size // 2] ^= 255
    else:
        content = bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["torn", "changed", "empty"])
def test_damaged_last_checkpoint_falls_back_to_the_best(tmp_path, stopped, caplog, whole, how):
    spoil(stopped / LAST, how)
    model = satseg.train([squares(tmp_path)], output=tmp_path / "m.safetensors", resume=True, **CALL)
    assert equal(model, whole)
    assert f"{LAST} is damaged: the run goes on from {BEST}" in caplog.text


def test_damaged_best_weights_are_refused_before_the_run_goes_on(tmp_path, stopped):
    spoil(stopped / BEST, "torn")
    with pytest.raises(InputError, match=BEST) as caught:
        satseg.train([squares(tmp_path)], output=tmp_path / "m.safetensors", resume=True, **CALL)
    assert caught.value.code == "E-TRN-018"


def test_which_checkpoint_a_run_goes_on_from(tmp_path):
    assert checkpoint_to_resume(tmp_path) is None
    torch.save({"state_dict": {}}, tmp_path / BEST)
    assert checkpoint_to_resume(tmp_path) == tmp_path / BEST
    torch.save({"state_dict": {}}, tmp_path / LAST)
    assert checkpoint_to_resume(tmp_path) == tmp_path / LAST
    (tmp_path / BEST).unlink()
    spoil(tmp_path / LAST, "torn")
    with pytest.raises(InputError, match=LAST):
        checkpoint_to_resume(tmp_path)


def test_checkpoint_that_is_a_program_is_not_run(tmp_path):
    torch.save({"state_dict": checkpoints.Timely}, tmp_path / LAST)
    assert not is_whole(tmp_path / LAST)
