"""The machine: busy cores are seen, and thread counts come back as they were."""

from __future__ import annotations

import pytest
import torch

from satseg.learning import machine

CPU = torch.device("cpu")


def test_busy_cores_lie_between_none_and_all():
    assert 0 <= machine.busy_cores() <= 1024


def test_busy_share_is_what_the_ticks_say(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 0 100 0 0 0\ncpu0 1\ncpu1 1\nintr 5\n")
    monkeypatch.setattr(machine, "PROC_STAT", stat)
    later = "cpu  150 0 0 200 50 0 0\ncpu0 1\ncpu1 1\nintr 5\n"
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: stat.write_text(later))
    assert machine.busy_cores() == 2 * (1 - 150 / 200)


def test_timed_training_leaves_busy_cores_alone(monkeypatch):
    monkeypatch.setattr(machine, "busy_cores", lambda: 1.2)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with machine.threads_for(CPU, timed=True):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 4
        with machine.threads_for(CPU, timed=False):
            assert torch.get_num_threads() == 4
        monkeypatch.setattr(machine, "busy_cores", lambda: 9.0)
        with machine.threads_for(CPU, timed=True):
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_machines_without_proc_are_taken_as_free(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "PROC_STAT", tmp_path / "absent")
    assert machine.busy_cores() == 0


@pytest.mark.parametrize(
    ("device", "bf16", "capability", "expected"),
    [
        ("cuda", True, (8, 0), "bf16-mixed"), ("cuda", False, (7, 5), "16-mixed"), ("cuda", False, (7, 0), "16-mixed"),
        ("cuda", False, (6, 1), "32-true"), ("cpu", True, None, "bf16-mixed"), ("cpu", False, None, "32-true"),
    ],
)  # fmt: skip
def test_precision_is_the_fastest_in_hardware_unless_asked_for(monkeypatch, device, bf16, capability, expected):
    monkeypatch.setattr(machine, "bf16_is_native", lambda device: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert machine.precision_for(torch.device(device), "auto") == expected
    assert machine.precision_for(torch.device(device), "fp32") == "32-true"
    assert machine.precision_for(torch.device(device), "bf16") == "bf16-mixed"
