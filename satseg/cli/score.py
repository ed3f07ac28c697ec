"""`satseg score`: prediction against truth."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import click

from satseg.cli.common import classes_option, field_option, scene_argument

if TYPE_CHECKING:
    from satseg.scoring.report import EmptyRule


@click.command("score")
@click.argument("prediction", type=click.Path(), metavar="PRED")
@click.argument("truth", type=click.Path())
@field_option
@click.option("--truth-field", metavar="NAME", help="That of TRUTH, where the two differ.")
@classes_option
@click.option("--aoi", type=click.Path(), help="Vector file of the area that counts.")
@click.option("--scene", type=click.Path(), help="Scene whose footprint counts, and whose pixels are counted.")
@click.option("--by", type=click.Choice(["class", "scene"]), default="class", show_default=True)
@click.option("--empty", type=click.Choice(["absent", "zero", "one"]), default="absent", show_default=True,
              help="What a class absent from both is worth in the mean.")  # fmt: skip
@click.option("--json", "json_path", type=click.Path(allow_dash=True), metavar="FILE|-", help="Write JSON.")
@click.option("--html", "html_path", type=click.Path(), metavar="FILE", help="Write a page with overlays.")
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
def command(
    prediction: str, truth: str, field: str | None, truth_field: str | None, classes: tuple[str, ...] | None,
    aoi: str | None, scene: str | None, by: str, empty: str, json_path: str | None, html_path: str | None,
    overwrite: bool,
) -> None:  # fmt: skip
    """Jaccard of PRED against TRUTH on exact polygon areas and on pixels, and object F1.

    Both are vector files or masks, or folders of them paired by name. --field names the attribute that holds
    the class; where a layer lacks it, its class_name serves.
    """
    from satseg.output import check_distinct, check_writable, write_text
    from satseg.scoring.score import score

    outputs = [path for path in (json_path, html_path) if path not in (None, "-")]
    check_distinct(outputs, inputs=[prediction, truth])
    for path in outputs:
        check_writable(str(path), overwrite=overwrite)
    report = score(
        prediction, truth, aoi=aoi, scene=_scene(scene), field=field, truth_field=truth_field, classes=classes,
        empty=cast("EmptyRule", empty),
    )  # fmt: skip
    if html_path:
        report.to_html(html_path, overwrite=overwrite)
    if json_path == "-":
        click.echo(report.to_json())
    else:
        if json_path:
            write_text(json_path, report.to_json() + "\n", overwrite=overwrite)
        click.echo(report.table(by=by))


def _scene(text: str | None) -> Any:
    """The scene as typed: a file, several files of one scene, or a folder of scenes paired by name."""
    if text is None or os.path.isdir(text):
        return text
    from satseg.imagery.scene import open_scene

    return open_scene(scene_argument(text))
