"""`satseg polygonize`: a mask in, polygons out, without holding either."""

from __future__ import annotations

import click

from satseg.cli.common import output_option, overwrite_option, src_crs_option


@click.command("polygonize")
@click.argument("mask", type=click.Path())
@output_option
@click.option("--band", type=int, help="Only this band, counted from 1.")
@click.option("--values", is_flag=True, help="One class per pixel value, in place of pixels > 0 of each band.")
@click.option("--min-area", type=float, default=0.0, metavar="M2", help="Drop smaller polygons.")
@click.option("--simplify", type=float, default=0.0, metavar="M", help="Tolerance in metres; shared edges stay shared.")
@src_crs_option
@overwrite_option
def command(
    mask: str, output: str, band: int | None, values: bool, min_area: float, simplify: float, src_crs: str | None,
    overwrite: bool,
) -> None:  # fmt: skip
    """Turn the pixels > 0 of each band of MASK into polygons of that band's class.

    A band's description is its class name. Edges run exactly along pixels; holes are kept. Masks of any
    size take little memory; --simplify needs all polygons at a time.
    """
    from satseg.vector.polygonize import polygonize_to_file

    counts = polygonize_to_file(
        mask, output, bands=None if band is None else [band], values=values, min_area_m2=min_area,
        simplify_m=simplify, src_crs=src_crs, overwrite=overwrite,
    )  # fmt: skip
    click.echo(f"{output}: {sum(counts.values())} features")
