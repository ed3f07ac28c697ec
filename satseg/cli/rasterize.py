"""`satseg rasterize`: labels in, a mask on a scene's grid out."""

from __future__ import annotations

import click

from satseg.cli.common import (
    classes_option,
    field_option,
    output_option,
    overwrite_option,
    scene_argument,
    src_crs_option,
)


@click.command("rasterize")
@click.argument("labels", type=click.Path())
@output_option
@click.option("--like", required=True, type=click.Path(), metavar="SCENE", help="Scene whose grid the mask gets.")
@field_option
@classes_option
@click.option("--all-touched", is_flag=True, help="Burn every pixel touched, not those whose centre is inside.")
@src_crs_option
@overwrite_option
def command(
    labels: str, output: str, like: str, field: str | None, classes: tuple[str, ...] | None, all_touched: bool,
    src_crs: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Burn LABELS into a mask with one band per class, on the grid of --like."""
    from satseg.imagery.labels import rasterize_file
    from satseg.imagery.scene import open_scene
    from satseg.imagery.writer import check_raster_target
    from satseg.output import check_distinct
    from satseg.vector.features import read_features

    check_raster_target(output, overwrite=overwrite)
    scene = open_scene(scene_argument(like), src_crs=src_crs)
    check_distinct([output], inputs=[labels, *scene.paths])
    layer = read_features(labels, field=field, classes=classes)
    rasterize_file(layer, output, like=scene.grid, classes=classes, all_touched=all_touched, overwrite=overwrite)
    click.echo(f"{output}: {scene.grid.height} x {scene.grid.width} pixels")
