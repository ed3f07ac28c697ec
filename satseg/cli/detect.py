"""`satseg detect`: a model and scenes in, polygons out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from satseg.cli.common import (
    bounds_option,
    output_option,
    overwrite_option,
    progress_bar,
    scene_files_option,
    sensor_option,
    src_crs_option,
)
from satseg.errors import PartialError, SatsegError, UsageError

DEFAULT_SUFFIX = ".gpkg"


@click.command("detect")
@click.argument("model", type=click.Path())
@click.argument("scenes", nargs=-1, type=click.Path(), metavar="SCENE...")
@output_option
@scene_files_option
@click.option("--mask", type=click.Path(), help="Also write the masks: 0, 1, 255 where not valid.")
@click.option("--scores", type=click.Path(), help="Also write the scores, 0..1.")
@sensor_option
@src_crs_option
@click.option("--device", default="auto", metavar="auto|cpu|cuda[:i]", show_default=True)
@click.option("--batch-size", type=int, help="Tiles per pass.")
@click.option("--tile", type=int, help="Side of a tile in pixels.")
@click.option("--halo", type=int, help="Margin of a tile in pixels; the model's own covers the network's reach.")
@bounds_option
@click.option("--threshold", type=float, help="For all classes, in place of the model's own.")
@click.option("--min-area", type=float, metavar="M2", help="Drop smaller polygons.")
@click.option("--simplify", type=float, default=0.0, metavar="M", help="Tolerance in metres; shared edges stay shared.")
@click.option("--tta", type=click.Choice(["none", "d4"]), default="none", show_default=True)
@click.option("--amp", is_flag=True, help="Half precision: faster, scores differ in the third digit.")
@click.option("--resume", is_flag=True, help="Keep outputs that are there (they are complete) and make the missing ones.")
@overwrite_option
@click.pass_context
def command(ctx: click.Context, /, model: str, scenes: tuple[str, ...], output: str, **options: Any) -> None:
    """Find what MODEL knows in each SCENE and write polygons to OUTPUT.

    The suffix of OUTPUT picks the format (.shp .gpkg .geojson .fgb .parquet .csv). With several scenes
    OUTPUT is a folder, and one that fails does not stop the others.
    """
    files = options.pop("scene_files")
    if bool(files) == bool(scenes):
        raise click.UsageError("give SCENE..., or one scene with --scene-files")
    options["bounds"] = options["bounds"] or None
    opening = {"sensor": options.pop("sensor"), "src_crs": options.pop("src_crs")}
    device, resume = options.pop("device"), options.pop("resume")
    from satseg.learning.bundle import load_model

    jobs = _jobs(scenes, files, output, options)
    if resume:
        jobs = [(scene, target) for scene, target in jobs if not target.exists()]
    loaded = load_model(model, device=device)
    failed = []
    for scene, target in jobs:
        try:
            _one(ctx, loaded, scene, target, opening, options)
        except SatsegError as error:
            if len(jobs) == 1:
                raise
            failed.append(scene)
            click.echo(f"satseg: error: {error} [{error.code}]", err=True)
    if failed:
        raise PartialError(f"{len(failed)} of {len(jobs)} scenes failed: " + ", ".join(map(str, failed)))


def _jobs(
    scenes: tuple[str, ...], files: tuple[str, ...] | None, output: str, options: dict[str, Any]
) -> list[tuple[Any, Path]]:
    """Pairs of a scene (one path or several) and the vector file for it."""
    target = Path(output)
    if files or (len(scenes) == 1 and not target.is_dir()):
        return [(list(files) if files else scenes[0], target)]
    if options["mask"] or options["scores"]:
        raise click.UsageError("--mask and --scores go with one scene")
    if not target.is_dir():
        raise UsageError(f"{output} is no folder", hint="with several scenes OUTPUT is an existing folder")
    names = [Path(scene).stem for scene in scenes]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UsageError(f"several scenes are called {sorted(repeated)}; their outputs would collide")
    return [(scene, target / f"{name}{DEFAULT_SUFFIX}") for scene, name in zip(scenes, names, strict=True)]


def _one(
    ctx: click.Context, model: Any, scene: Any, target: Path, opening: dict[str, Any], options: dict[str, Any]
) -> None:
    from satseg.imagery.scene import open_scene
    from satseg.pipeline import detect

    with progress_bar(ctx) as progress:
        features = detect(model, open_scene(scene, **opening), output=target, progress=progress, **options)
    counts = features.groupby("class_name", observed=True).size()
    click.echo(f"{target}: " + (", ".join(f"{n} {name}" for name, n in counts.items()) or "0 features"))
