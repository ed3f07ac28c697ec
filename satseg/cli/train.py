"""`satseg train`: scenes and labels in, one model file out."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from satseg.cli.common import (
    classes_option,
    field_option,
    json_option,
    opening_options,
    overwrite_option,
    print_json,
    progress_bar,
    scene_argument,
    split,
)

if TYPE_CHECKING:
    from satseg.run import RunConfig


@click.command("train")
@click.argument("run_file", required=False, type=click.Path(), metavar="[RUN.toml]")
@click.argument("overrides", nargs=-1, metavar="[section.key=value]...")
@click.option("-o", "--output", type=click.Path(), help="Model file to write (.safetensors); with --folds, a folder.")
@click.option("--data", nargs=2, multiple=True, metavar="SCENE LABELS", help="Learn from these; may be repeated.")
@click.option("--valid-data", nargs=2, multiple=True, metavar="SCENE LABELS", help="Validate on these.")
@field_option
@classes_option
@click.option("--class-spec", metavar="NAME", help="Class list of data_specs, or a TOML file.")
@opening_options
@click.option(
    "-b", "--bands", callback=lambda *a: split(a[2]), metavar="A,B",
    help="Bands to use, by name or by number from 1 in the first scene.",
)
@click.option(
    "--indices", callback=lambda *a: split(a[2]), metavar="A,B", help="Spectral indices as further bands, such as ndvi."
)
@click.option(
    "--from", "start", metavar="MODEL",
    help="Fine-tune this model: its weights, and its options where none are given.",
)
@click.option(
    "--repeat", is_flag=True, default=None,
    help="Repeat the training of the model --from instead: on the same data, by its options, from first weights.",
)
@click.option("--minutes", type=float, help="Budget in minutes (10 when neither this nor --steps is given).")
@click.option("--steps", type=int, help="Budget in optimiser steps.")
@click.option("--gsd", type=float, metavar="M", help="Working resolution in metres.")
@click.option(
    "--unlabelled", type=click.Choice(["background", "ignore"]), help="What ground without a label is."
)
@click.option(
    "--fit-rules", is_flag=True, default=None, help="Fit least sizes, buffer and simplification on validation too."
)
@click.option("--seed", type=int)
@click.option("--device", metavar="auto|cpu|cuda[:i]")
@click.option(
    "--devices", type=int, metavar="N",
    help="Processes to train in, each on a GPU of its own or a part of the CPU; torchrun and srun say it themselves.",
)
@click.option("--chip", type=int, help="Side of a training chip in pixels.")
@click.option("--batch", type=int, help="Chips per step.")
@click.option(
    "--folds", type=int, metavar="K",
    help="Train K models, each on the scenes of the other folds and for the whole budget, into the folder -o; then "
    "score each on the fold it did not see.",
)
@click.option("--run-dir", type=click.Path(), help="Folder for checkpoints and logs; beside the model if not given.")
@click.option("--resume", is_flag=True, help="Go on with a killed run.")
@click.option("--print-config", is_flag=True, help="Print the whole run file and stop.")
@click.option(
    "--dry-run", is_flag=True,
    help="Check everything, print the plan with a map of the split, and stop; with --run-dir, draw split.png there.",
)
@json_option
@overwrite_option
@click.pass_context
def command(ctx: click.Context, /, run_file: str | None, overrides: tuple[str, ...], **given: Any) -> None:
    """Learn from --data SCENE LABELS pairs, or from RUN.toml; write a model file.

    Every option can stand in the run file; `--print-config` shows them all. `--dry-run` tells what a run would
    learn from and what it would take. The run's folder ends with a page, report.html; its run.toml, given as RUN.toml,
    repeats the training, as --from MODEL --repeat does with the same data. With --folds, scenes of one `group` in
    RUN.toml, or of one ground, stay together.
    """
    from satseg.run import RunConfig, placed

    if run_file is not None and "=" in run_file:
        overrides, run_file = (run_file, *overrides), None
    as_json, dry_run = given.pop("as_json"), given.pop("dry_run")
    if as_json and not dry_run:
        raise click.UsageError("--json goes with --dry-run")
    keys = ("output", "run_dir", "resume", "overwrite", "print_config")
    call: dict[str, Any] = {key: given.pop(key) for key in keys}
    given["scenes"] = _labelled(given.pop("data")) or None
    given["valid_scenes"] = _labelled(given.pop("valid_data")) or None
    given["registered"] = given.pop("register")
    given["allow_driver"] = given["allow_driver"] or None
    start, repeat = given.pop("start"), given.pop("repeat")
    if start is not None:  # before the overrides, some of which mean nothing without
        overrides = (f"model.start={json.dumps(placed(start))}", *overrides)
    if repeat:
        overrides = ("model.repeat=true", *overrides)
    base = RunConfig.from_file(run_file, overrides) if run_file else RunConfig.from_overrides(overrides)
    config = RunConfig.from_options(given, base=base)
    if call.pop("print_config"):
        click.echo(_with_start(config).to_toml())
        return
    if config.train.folds is not None:
        _train_folds(ctx, config, call, dry_run=dry_run, as_json=as_json)
        return
    if dry_run:
        from satseg.pipeline import plan

        made = plan(config=config, **call)
        print_json(made.to_dict()) if as_json else click.echo(made.to_text())
        return
    if call["output"] is None:
        raise click.UsageError("give -o/--output MODEL.safetensors")
    from satseg.pipeline import train

    leads = _leads(ctx)
    with progress_bar(ctx) as progress:
        model = train(config=config, progress=progress, **call)
    if leads:
        click.echo(f"{call['output']}\n{model.summary()}")


def _train_folds(
    ctx: click.Context, config: RunConfig, call: dict[str, Any], *, dry_run: bool, as_json: bool
) -> None:
    """Train in folds, or tell which scenes are in which."""
    if call.pop("run_dir") is not None:
        raise click.UsageError("--run-dir is of one training; with --folds all is in the folder -o")
    if dry_run:
        from satseg.folds import plan_folds

        dealt = plan_folds(config=config)
        print_json(asdict(dealt)) if as_json else click.echo(dealt.to_text())
        return
    if call["output"] is None:
        raise click.UsageError("give -o/--output FOLDER")
    from satseg.folds import train_folds

    with progress_bar(ctx) as progress:
        report = train_folds(config=config, progress=progress, **call)
    click.echo(f"{call['output']}\n{report.table()}")


def _leads(ctx: click.Context) -> bool:
    """Whether this process is the one that speaks; one of the others of a training is made to keep silent."""
    from satseg.learning.training.ranks import given_ranks

    leads = given_ranks().leads
    if not leads:
        ctx.obj["quiet"] = 1
        logging.getLogger("satseg").setLevel(logging.ERROR)
    return leads


def _with_start(config: RunConfig) -> RunConfig:
    """`config` with the options of the model that it starts from, if any."""
    if config.model.start is None:
        return config
    from satseg.learning.training.start import Start

    return Start.load(config.model.start).options(config)


def _labelled(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Pairs of scene and labels as a run file holds them."""
    from satseg.run import placed

    found = []
    for scene, labels in pairs:
        files = scene_argument(scene)
        where = placed(files) if isinstance(files, str) else [placed(file) for file in files]
        found.append({"scene": where, "labels": placed(labels)})
    return found
