"""Reporting: the figures told are those of the trainer, the best outlives a resume, and displays show them."""

from __future__ import annotations

import csv
import math
import warnings
from types import SimpleNamespace

import click
import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from satseg.cli.common import progress_bar
from satseg.cli.live import Lines, clock, training_tables
from satseg.learning.training.charts import LEFT, WIDTH, Line, Mark, line_chart, ticks
from satseg.learning.training.feed import Budget
from satseg.learning.training.history import read_history, thinned
from satseg.learning.training.reporting import Reporter
from satseg.progress import TrainingStatus, mean_of, training_teller

STATUS = TrainingStatus(
    share=0.25, step=1200, elapsed_s=150.0, loss=0.5123, rate=3e-3, mpix_per_s=1.234, skipped=2, validations=1,
    classes=("a", "[b]"), last=(0.5, None), best=(0.6, None),
)  # fmt: skip


class Toy(lightning.LightningModule):
    """Learns nothing; logs the Jaccards it is given, one row a validation, and skips one batch."""

    def __init__(self, scores, *, steps, skip=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.network = SimpleNamespace(crop=2)
        self.options = SimpleNamespace(chip=36, batch=5)
        self.classes, self.budget, self.skipped, self.void = ("a", "b"), Budget(steps, None), 0, False
        self._scores, self._skip = iter(scores), skip

    def training_step(self, batch, number):
        if number == self._skip:
            self.skipped += 1
            return None
        return (self.weight * batch).sum()

    def validation_step(self, batch, number):
        pass

    def on_validation_epoch_end(self):
        for name, score in zip(self.classes, next(self._scores), strict=True):
            self.log(f"jaccard/{name}", score)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0625)


class Told(list):
    """A progress that keeps every status."""

    def __call__(self, stage, done, total, note):
        raise AssertionError("the plain form was used")

    def training(self, status):
        self.append(status)


def fit(toy, progress, folder, *, epochs, resume=None, loss=2.0):
    keeper = ModelCheckpoint(folder, filename="last", every_n_epochs=1, enable_version_counter=False)
    reporter = Reporter(progress)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, callbacks=[keeper, reporter], num_sanity_val_steps=0,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        data = DataLoader(torch.full((3,), loss), batch_size=1)
        trainer.fit(toy, data, DataLoader(torch.zeros(1), batch_size=1), ckpt_path=resume)
        trainer.validate(toy, DataLoader(torch.zeros(1), batch_size=1), verbose=False)
    return reporter


def test_every_step_and_validation_is_told_with_its_figures(tmp_path):
    told = Told()
    rows = [(0.25, math.nan), (0.75, math.nan), (0.5, math.nan), (0.0, math.nan)]
    fit(Toy(rows, steps=9, skip=1), told, tmp_path, epochs=3)
    assert [status.step for status in told] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]
    assert [status.skipped for status in told][::4] == [0, 1, 2]
    assert {status.rate for status in told} == {0.0625}
    assert told[0].loss == pytest.approx(2.0)
    assert [s.validations for s in told] == [0] * 3 + [1] * 4 + [2] * 4 + [3]
    assert (told[0].last, told[0].best) == ((), ())
    assert (told[-1].last, told[-1].best) == ((0.5, None), (0.75, None))
    assert told[0].mpix_per_s is None
    assert told[1].mpix_per_s > 0
    assert told[-1].share == 1.0


def test_the_best_outlives_a_resume_and_the_last_validation_is_no_part_of_it(tmp_path):
    fit(Toy([(0.5, 0.5), (1.0, 1.0)], steps=6), Told(), tmp_path, epochs=1)
    told = Told()
    fit(Toy([(0.25, 0.25), (1.0, 1.0)], steps=6), told, tmp_path, epochs=2, resume=tmp_path / "last.ckpt")
    assert (told[0].validations, told[0].best) == (1, (0.5, 0.5))
    assert (told[-1].validations, told[-1].last, told[-1].best) == (2, (0.25, 0.25), (0.5, 0.5))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Reporter"]
    assert state == {"validations": 2, "last": [0.25, 0.25], "best": [0.5, 0.5]}


def test_a_plain_progress_gets_the_same_as_a_note():
    notes = []
    training_teller(lambda *told: notes.append(told))(STATUS)
    ((stage, done, total, note),) = notes
    assert (stage, done, total) == ("train", 0.25, 1.0)
    assert note == "step 1200  loss 0.512  J 0.500  best 0.600  1.23 MPix/s  skipped 2"


def test_time_left_follows_the_pace():
    assert STATUS.left_s == pytest.approx(450)
    assert TrainingStatus(0.0, 0).left_s is None
    assert TrainingStatus(1.0, 9, 60.0).left_s == 0
    assert (clock(0), clock(59.6), clock(3661)) == ("0:00:00", "0:01:00", "1:01:01")


@given(st.lists(st.none() | st.floats(0, 1), max_size=5))
def test_a_mean_is_of_what_is_there(scores):
    present = [score for score in scores if score is not None]
    assert mean_of(scores) == (pytest.approx(sum(present) / len(present)) if present else None)


# --- displays


def test_a_log_has_one_line_per_validation(capsys):
    lines = Lines()
    for step in range(40):
        lines.training(TrainingStatus(step / 40, step, validations=step // 10, classes=("a",), last=(step / 40,)))
    said = capsys.readouterr().err.splitlines()
    assert [line[:12] for line in said] == ["train  25 % ", "train  50 % ", "train  75 % "]
    assert said[0].endswith("(a 0.250)")


@pytest.mark.parametrize("status", [STATUS, TrainingStatus(0.0, 0)], ids=["running", "just begun"])
def test_a_terminal_shows_every_figure(capsys, monkeypatch, status):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bar(click.Context(click.Command("x"), obj={"quiet": 0})) as progress:
        training_teller(progress)(status)
    said = capsys.readouterr()
    assert said.out == ""
    figures = ["0.5123", "1.23", "1,200", "2", "3.00e-03", "0:07:30", "[b]", "0.500", "0.600", "mean"]
    wanted = figures if status is STATUS else ["loss", "time left"]
    assert all(figure in said.err for figure in wanted), said.err
    assert len(training_tables(status)) == (2 if status.last else 1)


def test_quiet_says_nothing(capfd):
    with progress_bar(click.Context(click.Command("x"), obj={"quiet": 1})) as progress:
        training_teller(progress)(STATUS)
    assert capfd.readouterr() == ("", "")


# --- what was logged, and curves of it


def write_log(path, rows):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["step", "loss", "learning_rate", "jaccard", "jaccard/a, b"])
        writer.writeheader()
        writer.writerows(rows)


def test_a_resumed_log_counts_from_where_it_was_resumed(tmp_path):
    write_log(tmp_path / "metrics.1.csv", [{"step": n, "loss": 10 + n} for n in range(8)])
    write_log(tmp_path / "metrics.2.csv", [{"step": n, "loss": 20 + n} for n in range(5, 7)])
    write_log(
        tmp_path / "metrics.csv",
        [
            {"step": 6, "loss": 36, "learning_rate": 0.5},
            {"step": 6, "jaccard": 0.25, "jaccard/a, b": 0.25},
            {"step": 7, "jaccard": 0.5, "jaccard/a, b": "nan"},
            {"step": 8, "jaccard": 0.75, "jaccard/a, b": 0.75},
        ],
    )
    history = read_history(tmp_path, ("a, b", "c"), steps=8)
    assert history.loss == (*((n, 10 + n) for n in range(5)), (5, 25), (6, 36))
    assert history.rate == ((6, 0.5),)
    assert history.mean == ((6, 0.25), (7, 0.5))
    assert history.jaccard == (("a, b", ((6, 0.25),)), ("c", ()))
    assert read_history(tmp_path / "absent", ("a",), steps=1).jaccard == (("a", ()),)


@given(st.integers(1, 2000), st.integers(1, 300))
def test_thinning_keeps_the_mean_of_whole_groups(count, most):
    points = tuple((float(n), float(n * n)) for n in range(count))
    thin = thinned(points, most)
    assert len(thin) <= most
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)
    if count <= most:
        assert thin == points


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_few_and_inside(low, span):
    found = ticks(low, low + span)
    assert len(found) <= 7
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert all(low - slack <= tick <= low + span + slack for tick in found)


def test_a_chart_draws_within_its_frame_and_escapes_names():
    lines = [Line("<b>", [(0, 0.5), (10, 2.0), (20, -1.0)], "#ff0000")]
    text = line_chart(lines, title="a & b", x_name="step", marks=[Mark(20, -1.0, "#00ff00")])
    assert "&lt;b&gt;" in text
    assert "a &amp; b" in text
    (path,) = [part.split('"')[0] for part in text.split('points="')[1:]]
    xs = [float(place.split(",")[0]) for place in path.split()]
    assert LEFT == xs[0] < xs[1] < xs[2] <= WIDTH


@pytest.mark.parametrize("points", [[], [(3, 0.0)], [(3, 7.0)]], ids=["none", "one zero", "one"])
def test_a_chart_of_next_to_nothing_is_a_chart(points):
    text = line_chart([Line("loss", points, "#000000")], title="loss", x_name="step")
    assert text.startswith("<svg")
    assert ("nothing was logged" in text) == (not points)
    assert "nan" not in text
