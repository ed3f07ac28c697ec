"""How well a recipe finds the ten classes of DSTL on tiles nobody has seen, after the same CPU time.

A contest is generated (`satseg dstl generate`): its 25 labelled tiles are learnt from, its 32 hidden ones scored as the
contest was, areas pooled by class and the mean of ten Jaccard indices. Each recipe is trained, detected, submitted and
scored as its user would do it, in a process of its own with one thread (`benchmarks.dstl_runs`). Several trainings come
in several runs: rows are kept by (system, minutes, seed, size of tiles) in results/dstl.json, the table is made of all.
``--full-size`` measures one tile of the original's size from its four files to its layer instead.
Rejected: scores on labelled tiles, four of whose neighbours and twins a network knows.
Run as ``python -m benchmarks.dstl``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy import in_own_process, last_words, listed, spread, write_rows
from benchmarks.dstl_runs import PACKAGES, Job, Row
from benchmarks.timing import RESULTS, Goal, Report, parse, table
from satseg.tasks.dstl.facts import class_names
from satseg.tasks.dstl.generated.contest import SMALL_SIZE, generate_contest
from satseg.tasks.dstl.generated.roster import FULL_SIZE
from satseg.tasks.dstl.recipe import list_recipes

ROWS = RESULTS / "dstl.json"
RUNS = "benchmarks.dstl_runs"
OURS, RIVALS = "dstl", ("dstl-2017", "dstl-2017-joint")
MINUTES, QUICK_MINUTES = (30.0,), (0.5,)
BETTER_IN = 8
"""Classes of ten in which ours should be better."""
TILE = "6100_2_2"
"""The tile of the original's size: a river, houses, fields and vehicles."""
SECONDS_2017 = 42.0
"""Of one class on such a tile in 2017, four views on a Titan X."""
MOST_GIB = 3.0


def contest_of(options: argparse.Namespace) -> Path:
    """Return the folder of the contest, which is generated where it is missing."""
    height, width = options.size
    place = Path(options.folder) / f"contest_{options.contest_seed}_{height}x{width}"
    if not place.exists():
        print(f"generating {place}", flush=True)
        tiles = [TILE] if (height, width) == FULL_SIZE else None
        generate_contest(place, seed=options.contest_seed, size=(height, width), tiles=tiles)
    return place


def jobs(options: argparse.Namespace, contest: Path) -> Iterator[Job]:
    """Yield every training; systems take turns, so that a slow hour hits all."""
    systems = {name: (name, []) for name in options.recipes} | dict(options.variant)
    for minutes, seed, (system, (recipe, overrides)) in product(options.minutes, options.seeds, systems.items()):
        models = Path(options.folder) / f"{contest.name} {system} {minutes:g} {seed}"
        if models.exists():
            print(f"{models} is there already: passed over", flush=True)
            continue
        yield Job(system, recipe, minutes, seed, os.fspath(contest), os.fspath(models), overrides)


def run_all(options: argparse.Namespace, rows: dict[tuple[Any, ...], Row]) -> list[str]:
    """Train and score everything asked for into `rows`, kept as they come; return what went wrong."""
    notes = []
    for job in jobs(options, contest_of(options)):
        what = f"{job.system}, {job.minutes:g} CPU-min, seed {job.seed}"
        try:
            row = Row(**in_own_process(job, RUNS))
        except subprocess.CalledProcessError as error:
            notes.append(f"{what} failed: {last_words(error.stderr)}")
            print(error.stderr, notes[-1], sep="\n", flush=True)
            continue
        rows[row.system, row.minutes, row.seed, row.size] = row
        told = " ".join(f"{row.classes[str(number)][0]:.3f}" for number in class_names())
        print(f"{what}: mean {row.mean:.4f} ({told}) {row.cpu_min:.1f} CPU-min, {row.steps} steps", flush=True)
        if options.save:
            save(rows.values())
    return notes


def order(system: str) -> tuple[int, str]:
    """Ours first, then its variants, then the rivals."""
    return (0 if system == OURS else 2 if system in RIVALS else 1, system)


def groups(rows: Iterable[Row]) -> Iterator[tuple[tuple[float, str], dict[str, list[Row]]]]:
    """Yield budget and size of tiles, and the rows of each system with them."""
    everything = list(rows)
    for key in sorted({(row.minutes, row.size) for row in everything}):
        own = [row for row in everything if (row.minutes, row.size) == key]
        systems = sorted({row.system for row in own}, key=order)
        yield key, {system: [row for row in own if row.system == system] for system in systems}


def jaccards(rows: Sequence[Row], number: int) -> list[float]:
    """Return the Jaccard index of a class in each of `rows`."""
    return [row.classes[str(number)][0] for row in rows]


def tables(rows: Iterable[Row]) -> Iterator[str]:
    """Yield, for each budget, a table of the classes and one of the areas."""
    for (minutes, size), systems in groups(rows):
        yield f"## {minutes:g} CPU-minutes, tiles of {size}"
        lines: list[Sequence[object]] = [
            (f"{number} {name}", *(spread(jaccards(own, number)) for own in systems.values()))
            for number, name in class_names().items()
        ]
        lines.append(("mean", *(spread([row.mean for row in own]) for own in systems.values())))
        for title, key in (
            ("seeds", len), ("CPU-min", lambda own: f"{mean(row.cpu_min for row in own):.1f}"),
            ("steps", lambda own: f"{mean(row.steps for row in own):.0f}"),
            ("weights", lambda own: f"{own[0].parameters / 1e6:.1f} M"),
            ("detection, CPU-s", lambda own: f"{mean(row.detect_cpu_s for row in own):.0f}"),
        ):  # fmt: skip
            lines.append((title, *(key(own) for own in systems.values())))
        yield table(("class", *systems), lines)
        areas = [
            (f"{number} {name}", *(_areas(own, number) for own in systems.values()))
            for number, name in class_names().items()
        ]
        yield "TP / FP / FN in square metres, mean over seeds:"
        yield table(("class", *systems), areas)


def _areas(rows: Sequence[Row], number: int) -> str:
    return " / ".join(f"{mean(row.classes[str(number)][place] for row in rows):.0f}" for place in (1, 2, 3))


def goals(rows: Iterable[Row]) -> Iterator[Goal]:
    """Yield, for each budget, ours against the better of the two forms of 2017."""
    for (minutes, size), systems in groups(rows):
        rivals = {name: own for name, own in systems.items() if name in RIVALS}
        if OURS not in systems or not rivals:
            continue
        best = max(rivals, key=lambda name: mean(row.mean for row in rivals[name]))
        ours, theirs = systems[OURS], rivals[best]
        what = f"{minutes:g} CPU-min, {size}, {OURS} / {best}"
        yield Goal(
            f"mean of ten Jaccards, {what}", mean(r.mean for r in ours) / max(mean(r.mean for r in theirs), 1e-9), 1.0
        )
        better = sum(mean(jaccards(ours, n)) > mean(jaccards(theirs, n)) for n in class_names())
        yield Goal(f"classes in which it is better, {what}", float(better), BETTER_IN)


def report(rows: Sequence[Row], notes: list[str]) -> Report:
    """Return the tables of `rows`."""
    made = Report(
        "The ten classes of DSTL on a generated contest, at equal CPU time",
        "25 labelled tiles learnt from, 32 hidden ones scored: areas pooled by class. One process and one thread each, "
        "random first weights; registration, reading and everything else that a training needs is in the budget. "
        "dstl-2017 is the third place of 2017, a network for each of six classes and water by an index; "
        "dstl-2017-joint the same as one network for eight classes, vehicles among them. Not evaluated on the DSTL "
        "imagery, which may not be passed on. Over several seeds: mean (least to greatest).\n\n"
        + "\n\n".join(tables(rows)),
        ("what", "rows"), PACKAGES, goals=[*goals(rows)],
        notes=[*notes, *(f"made {one}" for one in sorted({row.made for row in rows}))],
    )  # fmt: skip
    made.rows.append(("trainings", len(rows)))
    return made


def measure_full_size(options: argparse.Namespace) -> Report:
    """Return what one tile of the original's size costs with the models in `options.models`."""
    options.size = FULL_SIZE
    contest, lines, found = contest_of(options), [], {}
    for name, place in options.models:
        amp = not name.endswith("fp32")
        for tta in options.tta:
            key = f"{name}, tta {tta}" + (", bf16" if amp else "")
            job = Job(key, "", 0.0, 0, os.fspath(contest), os.path.abspath(place), [], TILE, {"amp": amp, "tta": tta})
            found[key] = in_own_process(job, RUNS, threads=None)
            lines.append((key, *(round(found[key][one], 2) for one in ("wall_s", "cpu_s", "peak_gib", "polygons"))))
            print(*lines[-1], flush=True)
    first = next(iter(found.values()))
    bar = SECONDS_2017 * first["classes"]
    return Report(
        "A DSTL tile of full size, from four files to a layer of ten classes",
        f"{FULL_SIZE[0]} x {FULL_SIZE[1]} pixels, RGB, P, M and A: opened, registered, predicted, outlined, written, "
        "in a process of its own with all cores; models as trained on a small contest.",
        ("models", "wall, s", "CPU, s", "peak, GiB", "polygons"), PACKAGES, rows=lines,
        goals=[
            Goal(f"wall seconds, {next(iter(found))}, 42 s a class in 2017", first["wall_s"], bar, at_most=True),
            Goal(f"peak memory in GiB, {next(iter(found))}", first["peak_gib"], MOST_GIB, at_most=True),
            *(Goal(f"CPU time of {name} / {next(iter(found))}", other["cpu_s"] / first["cpu_s"], 1.0)
              for name, other in list(found.items())[1:]),
        ],
    )  # fmt: skip


def load() -> dict[tuple[Any, ...], Row]:
    """Return the rows of earlier runs."""
    kept = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    return {(row["system"], row["minutes"], row["seed"], row["size"]): Row(**row) for row in kept}


def save(rows: Iterable[Row]) -> None:
    """Keep `rows`, one in a line."""
    write_rows(ROWS, sorted(rows, key=lambda row: (row.minutes, row.size, order(row.system), row.seed)))


def variant(text: str) -> tuple[str, tuple[str, list[str]]]:
    """Return name, recipe and overrides of ``NAME=RECIPE section.key=value ...``."""
    name, equals, rest = text.partition("=")
    recipe, *overrides = rest.split()
    if not equals or not recipe:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RECIPE section.key=value ...")
    return name, (recipe, overrides)


def pair(text: str) -> tuple[str, str]:
    """Return name and folder of ``NAME=FOLDER``."""
    name, equals, place = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, place


def main() -> None:
    """Train and score what was asked for; print the tables and, when asked to, keep them."""
    options = parse(
        __doc__,
        minutes={"type": listed(float), "help": "CPU-minutes of each training: 10,30"},
        seeds={"type": listed(int), "default": [0], "help": "0,1,2: as many trainings of everything"},
        recipes={"type": listed(str, [*list_recipes(), "none"]), "default": [OURS, *RIVALS], "help": "some, or none"},
        variant={
            "type": variant, "action": "append", "default": [], "metavar": "'NAME=RECIPE section.key=value ...'",
            "help": "also a recipe (or a file) with changed options; may be given again",
        },
        size={"type": listed(int), "default": SMALL_SIZE, "help": "height,width of the tiles"},
        contest_seed={"type": int, "default": 0},
        folder={"default": os.path.join(tempfile.gettempdir(), "satseg-dstl"), "help": "for contests and models"},
        full_size={"action": "store_true", "help": "one tile of the original's size, with --models"},
        models={
            "type": pair, "action": "append", "default": [], "metavar": "NAME=FOLDER",
            "help": "of satseg dstl train; a name that ends in fp32 is not run in bf16",
        },
        tta={"type": listed(str), "default": ["none"], "help": "with --full-size: none,flips,d4"},
    )  # fmt: skip
    Path(options.folder).mkdir(parents=True, exist_ok=True)
    if options.full_size:
        measure_full_size(options).publish(options, "dstl_full_size")
        return
    options.size = tuple(options.size)
    options.minutes = options.minutes or (QUICK_MINUTES if options.quick else MINUTES)
    options.recipes = [name for name in options.recipes if name != "none"]
    options.save = options.save and not options.quick
    rows = load() if options.save else {}
    notes = run_all(options, rows)
    report([*rows.values()], notes).publish(options, "dstl")


if __name__ == "__main__":
    main()
