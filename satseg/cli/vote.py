"""`satseg vote`: layers of polygons in, the ground on which enough of them agree out."""

from __future__ import annotations

import click

from satseg.cli.common import field_option, output_option, overwrite_option


@click.command("vote")
@click.argument("layers", nargs=-1, required=True, type=click.Path(), metavar="LAYER...")
@output_option
@click.option("--at-least", type=int, metavar="K", help="Layers that must agree; more than half when left out.")
@click.option("--min-area", type=float, default=0.0, metavar="M2", help="Drop smaller polygons.")
@field_option
@overwrite_option
def command(
    layers: tuple[str, ...], output: str, at_least: int | None, min_area: float, field: str | None, overwrite: bool
) -> None:
    """Write where at least K of the vector files LAYER... agree, class by class, as exact polygons."""
    from satseg.vector.voting import vote

    found = vote(layers, at_least=at_least, field=field, min_area_m2=min_area, output=output, overwrite=overwrite)
    click.echo(f"{output}: {len(found)} features")
