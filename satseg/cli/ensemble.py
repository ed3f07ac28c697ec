"""`satseg ensemble`: models in, the small file that names them as one out."""

from __future__ import annotations

import click

from satseg.cli.common import overwrite_option


@click.command("ensemble")
@click.argument("models", nargs=-1, required=True, type=click.Path(), metavar="MODEL...")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="FILE.toml", help="File to write.")
@click.option(
    "--mean", type=click.Choice(["arithmetic", "geometric"]), default="arithmetic", show_default=True,
    help="Of the members' scores.",
)  # fmt: skip
@overwrite_option
def command(models: tuple[str, ...], output: str, mean: str, overwrite: bool) -> None:
    """Write an ensemble file of MODEL..., which `satseg detect` takes in place of a model.

    The models know the same classes at the same resolution; networks and bands may differ.
    """
    from typing import cast

    from satseg.learning.networks.ensemble import write_ensemble
    from satseg.learning.networks.ensemble_file import Mean

    made = write_ensemble(models, output, mean=cast("Mean", mean), overwrite=overwrite)
    click.echo(f"{output}: {made.mean} mean of {len(made.members)} models")
