"""How well satseg and its rivals find buildings in a place none has seen, after the same CPU time.

One place of three is left out in turn: trained on two towns, scored on the third; and trained on all three, scored
in Las Vegas, which a satellite saw and not a drone. satseg is its default recipe, through `satseg.train` and
`satseg.detect`, with nothing tuned; rivals are in `benchmarks.recipes`. Every training has a process of its own with
one thread and so many CPU-minutes, reading inside, imports and prediction outside (`benchmarks.trainings`). Pooled
scores are ratios of counts summed over Nairobi and Zanzibar, left out in turn. The mean of places is of these two and
Las Vegas, each of one weight. Banepa has lines of its own alone, for the other two towns do not teach its dense flat
roofs.

Hours of training come in several runs: rows are kept by (system, minutes, seed, place) in results/accuracy.json
as they are made, a later row replaces an earlier one, and the table is made of all. Rejected: a split within one
scene, whose roofs and light a network knows from training. Run as ``python -m benchmarks.accuracy``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.grounds import data_folder, has_vegas, las_vegas
from benchmarks.recipes import NEEDS, RECIPES
from benchmarks.timing import RESULTS, Goal, Report, parse
from benchmarks.trainings import OURS, PACKAGES, VIEWS, Job, Row
from satseg.errors import UsageError
from satseg.run import RunConfig

ROOT = Path(__file__).parents[1]
ROWS = RESULTS / "accuracy.json"
LEARNT = {"banepa": "banepa_1", "zanzibar": "zanzibar_1", "nairobi": "nairobi_1"}
VEGAS = "las_vegas"
PLACES = LEARNT | {VEGAS: VEGAS}
ALONE = (VEGAS, LEARNT["banepa"])
"""Places whose scores are not pooled."""
SYSTEMS = (OURS, *RECIPES)
MINUTES, QUICK_MINUTES = (3.0, 10.0, 30.0), (0.4,)
POOLED, MEAN = "{} pooled", "mean of {}"
UNSEEN = {stem for name, stem in PLACES.items() if name != "banepa"}
"""Places that a mean is of."""
PICTURE = RESULTS / "accuracy.png"
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GDAL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
HEADER = (
    "CPU-min", "scored on", "system", "seeds", "polygon J", "pixel J", "F1", "scores' J: own threshold",
    "best (at)", "steps", "MPix", "CPU-s/MPix", "CPU-min / wall", "detection, CPU-s", "parameters",
)  # fmt: skip


def jobs(options: argparse.Namespace, systems: dict[str, dict[str, Any]], scratch: Path) -> Iterator[Job]:
    """Yield every training; systems take turns, so that a slow hour hits all."""
    data = data_folder()
    folder = data / "buildings_oam"
    scenes = {name: folder / stem for name, stem in LEARNT.items()}
    if VEGAS in options.places:
        scenes[VEGAS] = las_vegas(data, scratch).scene.with_suffix("")
    keep = options.keep and os.path.abspath(options.keep)
    for minutes, seed, place in product(options.minutes, options.seeds, options.places):
        learnt = [stem for name, stem in LEARNT.items() if name != place]
        where = os.fspath(scenes[place]), os.fspath(folder), learnt
        for system, changes in systems.items():
            yield Job(system, minutes, seed, *where, changes, options.views if system == OURS else [], keep)


def in_own_process(job: Any, module: str, *, threads: int | None = 1) -> Any:
    """Return what `module` makes of `job`, a dataclass, in a process of its own, on one thread or as many as it takes.

    Raises
    ------
    subprocess.CalledProcessError
        It failed; its last words are in `stderr`.
    """
    with tempfile.TemporaryDirectory() as name:
        told, result = Path(name) / "job.json", Path(name) / "result.json"
        told.write_text(json.dumps(asdict(job)), encoding="utf-8")
        command = [sys.executable, "-W", "ignore", "-m", module, told, result]
        alone = {**os.environ, **(ONE_THREAD if threads == 1 else {}), "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, cwd=ROOT, env=alone, check=True, capture_output=True, text=True)
        return json.loads(result.read_text(encoding="utf-8"))


def why_not(system: str) -> str | None:
    """Return why `system` cannot run here; None when it can."""
    if system not in NEEDS:
        return None
    command = [sys.executable, "-W", "ignore", "-c", f"import {NEEDS[system]}"]
    done = subprocess.run(command, capture_output=True, text=True)
    return last_words(done.stderr) if done.returncode else None


def last_words(stderr: str) -> str:
    """Return the last line of a traceback."""
    return ([line for line in stderr.splitlines() if line.strip()] or ["no word why"])[-1]


def run_all(options: argparse.Namespace, rows: dict[tuple[Any, ...], Row], scratch: Path) -> list[str]:
    """Train everything asked for into `rows`, which a saving run keeps as it goes; return what went wrong."""
    systems: dict[str, dict[str, Any]] = {}
    notes = []
    for system in options.systems:
        reason = why_not(system)
        if reason is None:
            systems[system] = {}
        else:
            notes.append(f"{system} cannot run here: {reason}")
            print(notes[-1], flush=True)
    systems |= {f"{OURS} {name}": changes for name, changes in options.ablate}
    for job in jobs(options, systems, scratch):
        what = f"{job.system}, {job.minutes:g} CPU-min, seed {job.seed}, {job.place}"
        try:
            made = [Row(**row) for row in in_own_process(job, "benchmarks.trainings")]
        except subprocess.CalledProcessError as error:
            notes.append(f"{what} failed: {last_words(error.stderr)}")
            print(error.stderr, notes[-1], sep="\n", flush=True)
            continue
        rows |= {(row.system, row.minutes, row.seed, row.place): row for row in made}
        told = ", ".join(f"{row.system} {jaccard(row.areas):.3f}" for row in made)
        spent = f"{made[0].cpu_min:.2f} CPU-min, {made[0].wall_min:.2f} wall, {made[0].steps} steps"
        print(f"{what}: polygon J {told} ({spent})", flush=True)
        if options.save:
            save(rows.values())
    return notes


def jaccard(counts: Sequence[float]) -> float:
    """Jaccard index of (tp, fp, fn)."""
    return counts[0] / max(sum(counts), 1e-9)


def f1(counts: Sequence[float]) -> float:
    """F1 of (tp, fp, fn)."""
    return 2 * counts[0] / max(2 * counts[0] + counts[1] + counts[2], 1e-9)


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of one training or of those of one system, budget and seed on several places, pooled or their mean.

    Parameters
    ----------
    rows : list of Row
        One for each place.
    pooled : bool
        Of counts summed over places, for which large ones weigh more; else the mean of the places' scores.
    """

    rows: list[Row]
    pooled: bool = True

    def score(self, measure: Callable[[Sequence[float]], float], counts: Callable[[Row], Sequence[float]]) -> float:
        """Return `measure` of the counts of all places."""
        each = [counts(row) for row in self.rows]
        return measure([*map(sum, zip(*each, strict=True))]) if self.pooled else mean(map(measure, each))

    @property
    def best(self) -> tuple[float, float]:
        """Greatest pixel Jaccard over thresholds that all places share, and where it is."""
        levels = self.rows[0].curve
        return max((self.score(jaccard, lambda row, at=level: row.curve[at]), float(level)) for level in levels)

    @property
    def figures(self) -> tuple[float, ...]:
        """Polygon and pixel Jaccard, F1, Jaccard of the scores at their own threshold and at the best."""
        parts = ((jaccard, "areas"), (jaccard, "pixels"), (f1, "objects"), (jaccard, "own"))
        return (*(self.score(measure, attrgetter(name)) for measure, name in parts), self.best[0])

    def cost(self, name: str) -> float:
        """Return the mean over places of a cost."""
        return mean(getattr(row, name) for row in self.rows)


def line(minutes: float, place: str, system: str, seeds: list[Scored]) -> tuple[object, ...]:
    """Return a line of the table: means over seeds, for scores with the least and the greatest."""
    *scores, best = (spread(values) for values in zip(*(scored.figures for scored in seeds), strict=True))
    levels = sorted({scored.best[1] for scored in seeds})
    at = "-".join(f"{level:g}" for level in dict.fromkeys((levels[0], levels[-1])))
    cpu, wall, steps, mpix, detection, weights = (
        mean(scored.cost(name) for scored in seeds)
        for name in ("cpu_min", "wall_min", "steps", "mpix", "predict_cpu_s", "parameters")
    )
    work = f"{steps:.0f}", f"{mpix:.0f}", 60 * cpu / mpix, f"{cpu:.2f} / {wall:.2f}"
    head = f"{minutes:g}", place, system, len(seeds)
    return (*head, *scores, f"{best} ({at})", *work, detection, f"{weights / 1e6:.1f} M")


def spread(values: Sequence[float]) -> str:
    """Return the mean and, of several, the least and the greatest."""
    around = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{around}"


def by_seed(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows of one system and budget, those of each seed together."""
    ordered = sorted(rows, key=lambda row: (row.seed, row.place))
    return [[*group] for _, group in groupby(ordered, key=lambda row: row.seed)]


def compared(rows: Sequence[Row]) -> set[str]:
    """Return the places that scores are pooled over: the left-out ones where satseg was scored, of all that any was."""
    left_out = [row for row in rows if row.place not in ALONE]
    return {row.place for row in left_out if row.system == OURS} or {row.place for row in left_out}


def together(
    rows: Sequence[Row], minutes: float, places: set[str] | None = None, *, pooled: bool = True
) -> dict[str, list[Scored]]:
    """Return by system, for a budget, the scores of each seed that has all `places` (those `compared`), on these."""
    these = [row for row in rows if row.minutes == minutes]
    shared = compared(these) if places is None else places
    found: dict[str, list[Scored]] = {}
    for system in sorted({row.system for row in these if row.place in shared}, key=order):
        seeds = by_seed(row for row in these if row.place in shared and row.system == system)
        found[system] = [Scored(one, pooled) for one in seeds if len(one) == len(shared)]
    return {system: seeds for system, seeds in found.items() if seeds}


def order(system: str) -> tuple[int, str]:
    """Satseg first, then its ablations, then the rivals."""
    ours = {OURS, *(OURS + view for view in VIEWS.values())}
    return (0 if system in ours else 1 if system.startswith(OURS) else 2, system)


def budgets(rows: Iterable[Row]) -> list[float]:
    """Return the budgets of `rows` in order."""
    return sorted({row.minutes for row in rows})


def lines(rows: Sequence[Row]) -> Iterator[tuple[object, ...]]:
    """Yield the table, budget by budget: pooled, the mean of places, then place by place."""
    for minutes in budgets(rows):
        for system, seeds in together(rows, minutes).items():
            yield line(minutes, POOLED.format(len(seeds[0].rows)), system, seeds)
        for system, seeds in together(rows, minutes, UNSEEN, pooled=False).items():
            yield line(minutes, MEAN.format(len(UNSEEN)), system, seeds)
        for name, stem in PLACES.items():
            for system, seeds in together(rows, minutes, {stem}).items():
                yield line(minutes, name, system, seeds)


def goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """Yield, for each budget, satseg's polygon Jaccard over that of the best rival, pooled and as a mean of places."""
    for minutes in budgets(rows):
        for what, scores in (
            ("pooled", together(rows, minutes)),
            (MEAN.format(len(UNSEEN)), together(rows, minutes, UNSEEN, pooled=False)),
        ):
            found = {name: mean(one.figures[0] for one in seeds) for name, seeds in scores.items() if name in SYSTEMS}
            ours = found.pop(OURS, None)
            if ours is not None and found:
                best = max(found, key=lambda name: found[name])
                told = f"polygon Jaccard, {what}, at {minutes:g} CPU-min, {OURS} / {best}"
                yield Goal(told, ours / max(found[best], 1e-9), 1.0)


def report(rows: Sequence[Row], notes: list[str]) -> Report:
    """Return the table of `rows`."""
    return Report(
        "Buildings in an unseen place, at equal CPU time",
        "Trained on two of Banepa, Zanzibar and Nairobi, scored on the third; for Las Vegas on all three. One process "
        "and one thread each, random first weights. Polygon J: Jaccard of areas; pixel J: of polygons burnt at 0.30 m; "
        "F1: buildings paired at an IoU of 0.5; scores' J: of pixels before any clean-up, at the threshold shipped and "
        f"at the best of 0.05 to 0.95.{VIEWS['d4']} and the like is the same training, detected with that tta. Pooled: "
        "counts summed over Nairobi and Zanzibar; mean of 3: of these and Las Vegas, each of one weight. Over several "
        "seeds: mean (least to greatest).",
        HEADER,
        PACKAGES,
        rows=[*lines(rows)],
        goals=[*goals(rows)],
        notes=[*notes, *(f"trained {made}" for made in sorted({row.made for row in rows}))],
    )  # fmt: skip


def draw(rows: Sequence[Row]) -> None:
    """Draw pooled polygon Jaccard and F1 of satseg and its rivals over CPU-minutes into `PICTURE`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, sides = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained", sharex=True)
    told = budgets(rows)
    shared = set.intersection(*filter(None, (compared([row for row in rows if row.minutes == m]) for m in told)))
    by_budget = {minutes: together(rows, minutes, shared) for minutes in told}
    for system in (OURS, OURS + VIEWS["d4"], *RECIPES):
        points = []
        for minutes, found in by_budget.items():
            if system in found:
                figures = np.mean([scored.figures for scored in found[system]], axis=0)
                points.append((minutes, figures[0], figures[2]))
        for axes, values in zip(sides, [*zip(*points, strict=True)][1:], strict=True) if points else ():
            style: dict[str, Any] = {"color": "black", "linewidth": 2.0} if system.startswith(OURS) else {}
            marks = "o--" if VIEWS["d4"] in system else "o-"
            axes.plot([point[0] for point in points], values, marks, label=system, **style)
    for axes, name in zip(sides, ("polygon Jaccard", "F1 at an IoU of 0.5"), strict=True):
        axes.set(xscale="log", xlabel="CPU-minutes", ylabel=name, ylim=(0, None), xticks=told)
        axes.set_xticklabels([f"{minutes:g}" for minutes in told])
        axes.minorticks_off()
    sides[0].legend(fontsize="small", loc="lower left")
    figure.savefig(PICTURE, dpi=90)


def load() -> dict[tuple[Any, ...], Row]:
    """Return the rows of earlier runs."""
    kept = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    return {(row["system"], row["minutes"], row["seed"], row["place"]): Row(**row) for row in kept}


def save(rows: Iterable[Row]) -> None:
    """Keep `rows`, one in a line."""
    write_rows(ROWS, sorted(rows, key=lambda row: (row.minutes, row.place, order(row.system), row.seed)))


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Keep `rows`, dataclasses, at `path`, one in a line."""
    text = ",\n".join(json.dumps(asdict(row)) for row in rows)
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8")


def ablation(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and options of NAME=key=value,key=value; values are TOML, or text."""
    name, _, changes = text.partition("=")
    options: dict[str, Any] = {}
    for change in re.split(r",(?=\w+=)", changes):
        key, equals, value = change.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=key=value,key=value")
        try:
            options[key] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            options[key] = value
    try:
        RunConfig.from_options(options)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    return name, options


def listed(kind: Any, known: Iterable[str] = ()) -> Any:
    """Return what reads a list with commas of `kind`, whose members are `known` when there are such."""

    def read(text: str) -> list[Any]:
        strange = {*text.split(",")} - {*known} if known else None
        if strange:
            raise argparse.ArgumentTypeError(f"{', '.join(strange)} is none of {', '.join(known)}")
        return [kind(part) for part in text.split(",")]

    return read


def main() -> None:
    """Train and score what was asked for; print the table and, when asked to, keep it."""
    options = parse(
        __doc__,
        minutes={"type": listed(float), "help": "CPU-minutes of each training: 3,10,30"},
        seeds={"type": listed(int), "default": [0], "help": "0,1,2: as many trainings of everything"},
        places={"type": listed(str, PLACES), "help": f"those left out: {','.join(PLACES)}"},
        systems={"type": listed(str, ["none", *SYSTEMS]), "default": [*SYSTEMS], "help": f"some of {SYSTEMS}, or none"},
        ablate={
            "type": ablation, "action": "append", "default": [], "metavar": "NAME=KEY=VALUE,...",
            "help": "also train satseg with changed keys of its run file; may be given again",
        },
        views={
            "type": listed(str, ["none", *VIEWS]), "default": ["d4"],
            "help": f"how satseg also detects: some of {','.join(VIEWS)}, or none",
        },
        keep={"metavar": "DIR", "help": "keep what was found there, with pictures"},
    )  # fmt: skip
    options.minutes = options.minutes or (QUICK_MINUTES if options.quick else MINUTES)
    options.places = options.places or (["nairobi"] if options.quick else [*PLACES])
    if VEGAS in options.places and not has_vegas(data_folder()):
        sys.exit(f"there is no wv_spacenet in {data_folder()}: give other --places")
    options.systems = [system for system in options.systems if system != "none"]
    options.views = [view for view in options.views if view != "none"]
    options.save = options.save and not options.quick  # a try is not kept among results
    if options.keep:
        Path(options.keep).mkdir(parents=True, exist_ok=True)
    rows = load() if options.save else {}
    with tempfile.TemporaryDirectory(prefix="accuracy-") as scratch:
        notes = run_all(options, rows, Path(scratch))
    report([*rows.values()], notes).publish(options, "accuracy")
    if options.save:
        draw([*rows.values()])


if __name__ == "__main__":
    main()
