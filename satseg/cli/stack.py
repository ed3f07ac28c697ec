"""`satseg stack`: folders of training in folds in, one ensemble file out."""

from __future__ import annotations

import click

from satseg.cli.common import json_option, output_option, overwrite_option, print_json, progress_bar


@click.command("stack")
@click.argument("folders", nargs=-1, required=True, type=click.Path(), metavar="FOLDER FOLDER...")
@output_option
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which pixels the fit is made on.")
@json_option
@overwrite_option
@click.pass_context
def command(
    ctx: click.Context, folders: tuple[str, ...], output: str, seed: int, as_json: bool, overwrite: bool
) -> None:
    """Weigh the families in FOLDERs, each of `satseg train --folds`, class by class; write an ensemble (.toml).

    All are of the same scenes, labels, classes and folds. The table tells the Jaccard of each family alone, of their
    mean, and of stackers on folds that they did not see; a class for which those are no better keeps the mean.
    """
    from satseg.stacking import stack

    with progress_bar(ctx) as progress:
        report = stack(folders, output, seed=seed, overwrite=overwrite, progress=progress)
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(f"{output}\n{report.table()}")
