"""`satseg polygonize`: a mask in, polygons out."""

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

    A band's description is its class name. Edges run exactly along pixels; holes are kept.
    """
    from satseg.imagery.writer import open_mask
    from satseg.vector.features import check_target, write_features
    from satseg.vector.polygonize import polygonize_file

    with open_mask(mask, src_crs=src_crs) as opened:
        check_target(output, crs=opened.grid.crs, overwrite=overwrite)
    bands = None if band is None else [band]
    features = polygonize_file(
        mask, bands=bands, values=values, min_area_m2=min_area, simplify_m=simplify, src_crs=src_crs
    )
    write_features(features, output, overwrite=overwrite)
    click.echo(f"{output}: {len(features)} features")
