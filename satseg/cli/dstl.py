"""`satseg dstl`: the contest's folder checked and prepared, submissions written and scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from satseg.cli.common import json_option, output_option, overwrite_option, print_json, progress_bar, split
from satseg.cli.dstl_generate import command as generate
from satseg.cli.dstl_train import detect, recipes, train

if TYPE_CHECKING:
    from satseg.scoring.report import EmptyRule
    from satseg.tasks.dstl.facts import Product
    from satseg.tasks.dstl.folds import By
    from satseg.tasks.dstl.frame import Units

folder_argument = click.argument("folder", type=click.Path())


@click.group("dstl")
def command() -> None:
    """The DSTL contest (Kaggle, 2016): its folder, labels, folds, submission and score."""


for part in (generate, recipes, train, detect):
    command.add_command(part)


@command.command("check")
@folder_argument
@json_option
@click.pass_context
def check(ctx: click.Context, folder: str, as_json: bool) -> None:
    """Say what FOLDER holds: tiles, files, labels, repaired polygons, faults and warnings.

    Tiles that cannot be used are named and end the command with exit status 5.
    """
    from satseg.errors import PartialError
    from satseg.tasks.dstl.check import check_folder
    from satseg.tasks.dstl.folder import ContestFolder

    with progress_bar(ctx) as progress:
        report = check_folder(ContestFolder.open(folder), progress=progress)
    print_json(report.to_dict()) if as_json else click.echo(report.to_text())
    if report.faults:
        raise PartialError(f"{folder}: some tiles cannot be used; the first: {report.faults[0]}")


@command.command("prepare")
@folder_argument
@click.option("-o", "--output", required=True, type=click.Path(), help="New folder to write.")
@click.option("--folds", type=int, default=5, show_default=True, help="Folds, each of whole grounds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides between equally good folds.")
@click.option("--by", type=click.Choice(["region", "tile"]), default="region", show_default=True,
              help="Keep whole regions together, or only tiles of one place.")  # fmt: skip
@click.option("--products", default="rgb,P,M,A", show_default=True, metavar="A,B", help="Files that make up a scene.")
@click.pass_context
def prepare(ctx: click.Context, folder: str, output: str, folds: int, seed: int, by: str, products: str) -> None:
    """Make FOLDER ready for `satseg train`: scenes with a place, labels, folds and run files.

    No pixel is copied: scenes are links to FOLDER with a small side-car each.
    """
    from satseg.tasks.dstl.facts import PRODUCTS
    from satseg.tasks.dstl.folder import ContestFolder
    from satseg.tasks.dstl.prepare import prepare as make_ready

    wanted = split(products) or ()
    if unknown := sorted(set(wanted) - set(PRODUCTS)):
        raise click.UsageError(f"no product {', '.join(unknown)}; there are {', '.join(PRODUCTS)}")
    with progress_bar(ctx) as progress:
        ready = make_ready(
            ContestFolder.open(folder), output, folds=folds, seed=seed, by=cast("By", by),
            products=cast("tuple[Product, ...]", wanted), progress=progress,
        )  # fmt: skip
    click.echo(f"{output}: {len(ready.tiles)} scenes, {len(ready.labelled)} with labels")
    for number, one in enumerate(ready.splits, start=1):
        lacking = f"; not learnt: {', '.join(ready.missing[number])}" if number in ready.missing else ""
        click.echo(f"fold{number}.toml validates on {', '.join(one.valid)}{lacking}")


@command.command("submit")
@folder_argument
@click.argument("predictions", type=click.Path())
@output_option
@click.option("--units", type=click.Choice(["metres", "label", "pixels"]), default="metres", show_default=True,
              help="Of the predictions: metres on prepared scenes, pixels on bare files.")  # fmt: skip
@click.option("--decimals", type=int, default=9, show_default=True, help="8 or more keep small objects.")
@click.option("--sample", type=click.Path(), help="Sample submission; that of FOLDER if not given.")
@click.option("--layer", type=click.Path(), metavar="FILE", help="Write the polygons as a shapefile or GeoPackage too.")
@overwrite_option
def submit(
    folder: str, predictions: str, output: str, units: str, decimals: int, sample: str | None, layer: str | None,
    overwrite: bool,
) -> None:  # fmt: skip
    """Write PREDICTIONS, a folder with a vector file per tile, as a submission in the order of the sample."""
    from satseg.output import check_distinct
    from satseg.tasks.dstl.folder import SAMPLE, ContestFolder
    from satseg.tasks.dstl.predictions import read_predictions
    from satseg.tasks.dstl.submission import write_submission, write_submission_layer
    from satseg.vector.formats import check_target

    contest = ContestFolder.open(folder)
    order = contest.path / SAMPLE if sample is None else sample
    check_distinct([output, layer], inputs=[predictions, str(order)])
    if layer is not None:
        check_target(layer, crs=None, overwrite=overwrite)
    found = read_predictions(contest, predictions, units=cast("Units", units))
    done = write_submission(output, found, sample=order, decimals=decimals, overwrite=overwrite)
    click.echo(f"{output}: {done.rows} rows, {done.filled} with polygons, of {len(found)} predicted tiles")
    if done.moved:
        click.echo(f"left empty, as they moved to train: {', '.join(done.moved)}")
    if layer is not None:
        write_submission_layer(output, layer, overwrite=overwrite)
        click.echo(layer)


@command.command("score")
@click.argument("submission", type=click.Path())
@click.argument("truth", type=click.Path(), metavar="TRUTH|FOLDER")
@click.option("--ids", metavar="A,B", callback=lambda *a: split(a[2]), help="Tiles to score; all of the truth's else.")
@click.option("--empty", type=click.Choice(["zero", "one", "absent"]), default="zero", show_default=True,
              help="What a class absent from both sides is worth in the mean.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Refuse invalid geometries, by line, as the contest's server did.")
@json_option
def score(
    submission: str, truth: str, ids: tuple[str, ...] | None, empty: str, strict: bool, as_json: bool
) -> None:
    """Score SUBMISSION against a table of the same form, or the labels of a contest folder."""
    import logging
    import os

    from satseg.tasks.dstl.folder import ContestFolder
    from satseg.tasks.dstl.score import score_submission

    real: Any = ContestFolder.open(truth).labels() if os.path.isdir(truth) else truth
    found = score_submission(submission, real, image_ids=ids, empty=cast("EmptyRule", empty), strict=strict)
    if found.invalid_lines:
        first = ", ".join(map(str, found.invalid_lines[:5]))
        logging.getLogger("satseg").warning(
            "%s: %d rows are not valid and were repaired, the first in line %s; the contest's server refuses them",
            submission, len(found.invalid_lines), first,
        )  # fmt: skip
    click.echo(found.to_json() if as_json else found.table())
