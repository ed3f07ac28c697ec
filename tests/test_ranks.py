"""Training in several processes: what each learns from, that they agree, and how they end.

Each launch costs the import of torch and Lightning twice, so that the claims share few of them.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

import satseg
from satseg.errors import RankError, UsageError
from satseg.learning import machine
from satseg.learning.training import launching, recipe
from satseg.learning.training.feed import Budget, Moment, RoundSampler
from satseg.learning.training.ranks import Ranks, check_devices, company, given_ranks, mean_over_ranks, trainer_options
from satseg.options import TrainOptions
from tests.commands import TINY, build_town
from tests.ranked import KILL, NOTES, POISON, Endless, Watched, notes, same_weights
from tests.worlds import squares

OPTIONS = {
    "steps": 6, "rounds": 2, "chip": 32, "width": 4, "depth": 2, "stem": 1, "precision": "fp32", "device": "cpu",
}  # fmt: skip
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_JOB_NAME",
             "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")  # fmt: skip


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    """Whatever started the tests."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def watched():
    """Set, in place of the learner, one that notes; return how to train with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "Learner", Watched)
        for name in LAUNCHERS:
            patch.delenv(name, raising=False)

        def train(folder, data, env=(), **options):
            with pytest.MonkeyPatch.context() as inner:
                for name, value in {NOTES: str(folder), **dict(env)}.items():
                    inner.setenv(name, value)
                return satseg.train([data], **{**OPTIONS, **options})

        yield train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("data"), height=131, width=200)


@pytest.fixture(scope="module")
def pair(watched, data, tmp_path_factory):
    """What two ranks noted, the model they made, what they told, and where; rank 1 had a loss of NaN at step 4.

    They train two networks in turn. In their second round, from step 3 on, chips go to hard ground.
    """
    folder, told = tmp_path_factory.mktemp("pair"), []
    model = watched(
        folder, data, {POISON: "1:4"}, devices=2, batch=4, hard=0.6, members=2, fit_rules=True,
        output=folder / "m.safetensors",
        progress=lambda stage, done, total, note: told.append((stage, done, note)),
    )  # fmt: skip
    return folder, model, told


# --- what they learn


def test_ranks_end_with_the_same_weights_and_the_same_map_of_hard_ground(pair):
    """Also of each of two networks in turn: they let the same one learn."""
    folder, _, _ = pair
    ends = notes(folder, "ends")
    assert list(ends) == ["0", "1"]
    assert ends["0"] == ends["1"]
    assert ends["0"]["uneven"]


def test_a_batch_without_a_loss_on_one_rank_is_skipped_by_all(pair):
    folder, model, _ = pair
    assert model.card.scores["skipped_batches"] == 1
    steps = notes(folder, "steps")
    assert len(steps) == 2 * 6
    assert [place for place, said in steps.items() if said["loss"] == 0] == ["0:4", "1:4"]


def test_two_ranks_see_the_chips_of_one_with_twice_the_batch(pair, watched, data, tmp_path):
    folder, _, _ = pair
    watched(tmp_path, data, batch=8, steps=3, members=2)
    alone, both = notes(tmp_path, "steps"), notes(folder, "steps")
    for step in range(3):
        ranks = [both[f"{rank}:{step}"] for rank in (0, 1)]
        assert list(chain.from_iterable(said["chips"] for said in ranks)) == alone[f"0:{step}"]["chips"]
    # Equal weights, but chips turned otherwise, and means of means of few pixels.
    first = [both[f"{rank}:0"]["loss"] for rank in (0, 1)]
    assert sum(first) / 2 == pytest.approx(alone["0:0"]["loss"], rel=0.1)


# --- what they write and say


def test_one_rank_writes_and_one_process_tells(pair):
    folder, model, told = pair
    assert same_weights(satseg.load_model(folder / "m.safetensors", device="cpu").network, model.network)
    names = sorted(path.name for path in (folder / "m.run").iterdir() if "tfevents" not in path.name)
    assert names == ["best.ckpt", "hparams.yaml", "last.ckpt", "metrics.csv", "report.html", "run.toml"]
    shares = [done for stage, done, _ in told if stage == "train"]
    assert sorted({*shares}) == pytest.approx([step / 6 for step in range(1, 7)])
    assert len(shares) == 6 + 2  # steps and validations
    assert model.card.training.steps == 6


def test_rules_are_fitted_on_what_all_ranks_together_hold_for_validation(pair, data):
    folder, model, _ = pair
    scores = model.card.scores
    assert set(scores["rules_jaccard"]) == {"a", "b"}
    found = satseg.refit(model, [data]).card  # on all of the ground
    assert set(found.scores["rules_jaccard"]) == {"a", "b"}
    assert satseg.load_model(folder / "m.safetensors", device="cpu").card.classes == model.card.classes


# --- how they end


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_run_resumes_into_what_it_would_have_been(pair, watched, data, tmp_path):
    _, whole, _ = pair
    call = {"devices": 2, "batch": 4, "hard": 0.6, "members": 2, "output": tmp_path / "m.safetensors"}
    with pytest.raises(RankError, match=r"rank 1 of 2 was ended by SIGKILL; --resume") as caught:
        watched(tmp_path, data, {KILL: "1:4"}, **call)
    assert (caught.value.code, caught.value.exit_code) == ("E-RNK-011", 1)
    for process in notes(tmp_path, "processes").values():
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert not (tmp_path / "m.safetensors").exists()
    last = torch.load(tmp_path / "m.run" / "last.ckpt", map_location="cpu", weights_only=True)
    assert last["global_step"] == 3
    resumed = watched(tmp_path, data, {POISON: "1:4"}, resume=True, **call)
    assert same_weights(resumed.network, whole.network)


@pytest.mark.slow
def test_a_rank_ends_when_the_process_that_started_it_is_gone(tmp_path):
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps(Endless()))
    item = launching._start(0, job, dict(os.environ))
    try:
        item.line.close()
        assert item.process.wait(timeout=120) == 1
    finally:
        item.process.kill()
        item.process.wait()


def test_an_error_of_one_rank_is_told_before_that_others_lost_it():
    class Ended:
        def __init__(self, status):
            self.status = status

        def poll(self):
            return self.status

        wait = poll

    def failing(*ends):
        ranks = [launching._Process(n, Ended(status), n, error) for n, (status, error) in enumerate(ends)]
        watch = launching._Watch(ranks, lambda *told: None)
        watch._lines.clear()
        watch.result()

    lost, own = RankError("lost", code="E-RNK-010"), UsageError("mine", code="E-USE-999")
    fault = launching._Fault("OutOfMemoryError: no memory")
    with pytest.raises(UsageError, match="mine"):
        failing((1, lost), (1, own))
    with pytest.raises(RankError, match="rank 1 of 2 failed: OutOfMemoryError: no memory"):
        failing((1, lost), (1, fault))
    with pytest.raises(RankError, match="rank 1 of 2 was ended by SIGSEGV"):
        failing((1, lost), (-11, None))
    with pytest.raises(RankError, match="rank 0 of 2 ended with status 7"):
        failing((7, None), (0, None))


def test_a_lost_connection_is_one_error_and_other_errors_stay(monkeypatch):
    def fails():
        with company():
            raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    with pytest.raises(RuntimeError, match="gloo"):
        fails()
    launched_by_torchrun(monkeypatch)
    with pytest.raises(RankError, match="rank 1 of 4") as caught:
        fails()
    assert caught.value.code == "E-RNK-010"
    with pytest.raises(RuntimeError, match="shapes"), company():
        raise RuntimeError("shapes do not fit")


# --- torchrun


@pytest.mark.slow
def test_torchrun_trains_for_minutes_that_all_ranks_agree_on(tmp_path):
    town = build_town(tmp_path)
    env = {**os.environ, "OMP_NUM_THREADS": "1", NOTES: str(tmp_path / "notes")}
    if launching.LOOPBACK.exists():
        env["GLOO_SOCKET_IFNAME"] = "lo"
    options = [item for item in TINY if "steps" not in item]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.ranked",
        "train", "--data", town / "a.tif", town / "a.gpkg", "--minutes", "0.02", "-o", tmp_path / "m.safetensors",
        *options,
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, cwd=Path(__file__).parents[1], **pipes) as running:
        try:
            out, err = running.communicate(timeout=280)
        except BaseException:
            running.terminate()  # killed, torchrun would leave its ranks
            raise
    assert running.returncode == 0, err
    model = satseg.load_model(tmp_path / "m.safetensors", device="cpu")
    assert out == f"{tmp_path / 'm.safetensors'}\n{model.summary()}\n"
    ends = notes(tmp_path / "notes", "ends")
    assert list(ends) == ["0", "1"]
    assert ends["0"] == ends["1"]
    assert sum(line.startswith("train 100 %") for line in err.splitlines()) == 1, err


def launched_by_torchrun(patch, rank=1, count=4, here=2):
    for name, value in (("RANK", rank), ("WORLD_SIZE", count), ("LOCAL_WORLD_SIZE", here), ("LOCAL_RANK", rank)):
        patch.setenv(name, str(value))
    patch.setenv("TORCHELASTIC_RUN_ID", "x")


def test_ranks_are_those_of_the_launcher(monkeypatch):
    assert given_ranks() == Ranks()
    assert given_ranks().leads
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert given_ranks() == Ranks()  # a job script that starts one process
    monkeypatch.setenv("SLURM_NTASKS", "6")
    with pytest.raises(UsageError, match="--ntasks-per-node") as caught:
        given_ranks()
    assert caught.value.code == "E-RNK-005"
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert given_ranks() == Ranks(3, 6, 2, "slurm")
    assert not given_ranks().leads
    made = trainer_options(torch.device("cpu"), unused=False)
    assert (made["devices"], made["num_nodes"]) == (2, 3)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert given_ranks() == Ranks()
    launched_by_torchrun(monkeypatch)  # goes before SLURM, inside which it may run
    assert given_ranks() == Ranks(1, 4, 2, "torchrun")


# --- what is refused


def test_devices_are_refused_that_are_not_here(monkeypatch):
    with pytest.raises(UsageError, match="devices"):
        satseg.train([], devices=0)
    check_devices(TrainOptions(device="cpu", devices=64))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cases = [("auto", 3, "E-RNK-004", "3 GPUs are asked for, torch sees 2"), ("cuda:1", 2, "E-RNK-003", "one GPU")]
    for device, devices, code, said in cases:
        with pytest.raises(UsageError, match=said) as caught:
            check_devices(TrainOptions(device=device, devices=devices))
        assert caught.value.code == code
    check_devices(TrainOptions(devices=2))
    launched_by_torchrun(monkeypatch, here=4)
    with pytest.raises(UsageError, match="4 GPUs are asked for, torch sees 2"):
        check_devices(TrainOptions())
    with pytest.raises(UsageError, match="2 devices are asked for, torchrun started 4 processes here") as caught:
        check_devices(TrainOptions(device="cpu", devices=2))
    assert caught.value.code == "E-RNK-002"


def test_what_cannot_be_handed_to_other_processes_is_refused():
    with pytest.raises(UsageError, match=r"handed to other processes.*paths") as caught:
        launching._pickled(lambda: 0)
    assert caught.value.code == "E-RNK-006"


# --- what they agree on


def test_one_process_agrees_with_itself():
    assert mean_over_ranks([0.25, 7.0]) == [0.25, 7.0]


def test_rounds_end_by_the_agreed_time_whatever_the_clock_says():
    budget = Budget(None, 1.0, before_s=59.0, agreed_s=0.0)
    batches = iter(RoundSampler(budget, 2, lambda: Moment(0, 0.5, rank=1, ranks=2)))
    assert [next(batches) for _ in range(3)] == [[2, 3], [6, 7], [10, 11]]
    budget.agreed_s = 30.0
    assert list(batches) == []


def test_threads_are_divided_between_processes(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "busy_cores", lambda: 1.9)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    cpu, before = torch.device("cpu"), torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        assert machine.threads_each(cpu, 2, timed=False) == 4
        assert machine.threads_each(cpu, 2, timed=True) == 3
        assert machine.threads_each(cpu, 99, timed=True) == 1
        with machine.threads_for(cpu, timed=True, processes=2):  # those beside it are not others' work
            assert torch.get_num_threads() == 4
        monkeypatch.setenv("OMP_NUM_THREADS", "8")
        with machine.threads_for(cpu, timed=True, processes=2):
            assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(before)
