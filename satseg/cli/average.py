"""`satseg average`: models of one network in, the model of their mean weights out."""

from __future__ import annotations

import click

from satseg.cli.common import overwrite_option


@click.command("average")
@click.argument("models", nargs=-1, required=True, type=click.Path(), metavar="MODEL...")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="FILE.safetensors", help="File to write.")
@overwrite_option
def command(models: tuple[str, ...], output: str, overwrite: bool) -> None:
    """Write the model whose weights are the mean of those of MODEL....

    They are model files of trainings from the same start, as several `satseg train --from START` with other seeds or
    data leave them: of the same network, bands, normalisation and classes. The card says of which weights it is the
    mean.
    """
    from satseg.learning.networks.average import average
    from satseg.learning.networks.bundle import check_model_name
    from satseg.output import check_distinct, check_writable

    check_model_name(output)
    check_writable(output, overwrite=overwrite)
    check_distinct([output], inputs=models)
    average(models).save(output, overwrite=overwrite)
    click.echo(f"{output}: mean of {len(models)} models")
