"""`satseg demo`: the whole chain on generated scenes, in under three minutes."""

from __future__ import annotations

import click

from satseg.cli.common import overwrite_option, progress_bar, split


@click.command("demo")
@click.option("-o", "--output", default="satseg-demo", type=click.Path(), show_default=True, help="Folder to fill.")
@click.option("-b", "--bands", callback=lambda *a: split(a[2]), metavar="A,B", help="Bands to use; all 8 by default.")
@click.option("--minutes", type=float, default=None, help="Training budget.")
@click.option("--device", default="auto", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@overwrite_option
@click.pass_context
def command(
    ctx: click.Context, output: str, bands: tuple[str, ...] | None, minutes: float | None, device: str, seed: int,
    overwrite: bool,
) -> None:  # fmt: skip
    """Make a multispectral scene, train, detect on another, export a shapefile, score, report."""
    from satseg.demo import MINUTES, run_demo

    with progress_bar(ctx) as progress:
        result = run_demo(
            output, bands=bands, minutes=MINUTES if minutes is None else minutes, device=device, seed=seed,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    click.echo(result.report.table())
    click.echo("")
    for role, path in result.files.items():
        click.echo(f"{role:<11} {path}")
