"""`satseg detect`: a model and scenes in, polygons out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from satseg.cli.common import (
    opening,
    opening_options,
    output_option,
    overwrite_option,
    progress_bar,
    scene_argument,
    scene_files_option,
)
from satseg.errors import OutputError, PartialError, SatsegError, UsageError

if TYPE_CHECKING:
    from satseg.imagery.scene import Scene
    from satseg.learning.bundle import Model

log = logging.getLogger(__name__)


@click.command("detect")
@click.argument("model", type=click.Path())
@click.argument("scenes", nargs=-1, type=click.Path(), metavar="SCENE...")
@output_option
@scene_files_option
@click.option("--mask", type=click.Path(), metavar="FILE.tif", help="Also write the masks: 0, 1, 255 where not valid.")
@click.option("--scores", type=click.Path(), metavar="FILE.tif", help="Also write the scores, 0..1.")
@click.option("--suffix", default=".gpkg", show_default=True, help="Format of the files in a folder OUTPUT.")
@opening_options
@click.option("--device", default="auto", metavar="auto|cpu|cuda[:i]", show_default=True)
@click.option("--batch-size", type=int, help="Tiles per pass.")
@click.option("--tile", type=int, help="Side of a tile in pixels.")
@click.option("--halo", type=int, help="Margin of a tile in pixels; the model's own covers the network's reach.")
@click.option("--bounds", type=float, nargs=4, metavar="LEFT BOTTOM RIGHT TOP", help="Only this part of the scene.")
@click.option("--bounds-crs", metavar="CRS", help="CRS of --bounds; the scene's own when left out.")
@click.option("--threshold", type=float, help="For all classes, in place of the model's own.")
@click.option("--min-area", type=float, metavar="M2", help="Drop smaller polygons.")
@click.option("--simplify", type=float, default=0.0, metavar="M", help="Tolerance in metres; shared edges stay shared.")
@click.option("--tta", type=click.Choice(["none", "d4"]), default="none", show_default=True)
@click.option("--amp", is_flag=True, help="Half precision: faster, scores differ in the third digit.")
@click.option("--resume", is_flag=True, help="Keep outputs that are there (they are complete), make the missing ones.")
@overwrite_option
@click.pass_context
def command(ctx: click.Context, /, model: str, scenes: tuple[str, ...], output: str, **options: Any) -> None:
    """Find what MODEL knows in each SCENE and write polygons to OUTPUT.

    The suffix of OUTPUT picks the format (.shp .gpkg .geojson .fgb .parquet .csv). With several scenes
    OUTPUT is a folder, and one that fails does not stop the others.
    """
    files, suffix, target = options.pop("scene_files"), options.pop("suffix"), Path(output)
    if bool(files) == bool(scenes):
        raise click.UsageError("give SCENE..., or one scene with --scene-files")
    sources: list[str | list[str]] = [list(files)] if files else [scene_argument(text) for text in scenes]
    how, device = opening(options), options.pop("device")
    several = len(sources) > 1 or os.path.isdir(target)
    if several:
        _check_folder(target, suffix, options)
    from satseg.learning.bundle import load_model

    loaded = load_model(model, device=device)
    if several:
        _detect_each(ctx, loaded, _all_opened(sources, how), lambda name: target / f"{name}{suffix}", options)
    else:
        click.echo(_detect(ctx, loaded, _opened(sources[0], how), target, options))


def _check_folder(folder: Path, suffix: str, options: dict[str, Any]) -> None:
    from satseg.vector.formats import format_of

    if options["mask"] or options["scores"]:
        raise click.UsageError("--mask and --scores go with one scene and a file as OUTPUT")
    if not os.path.isdir(folder):
        fault = "is a file" if os.path.exists(folder) else "does not exist"
        hint = "with several scenes OUTPUT is a folder; make it first"
        raise OutputError(f"{folder} {fault}", hint=hint, code="E-OUT-002", path=folder)
    format_of(f"x{suffix}")


def _opened(source: str | list[str], how: dict[str, Any]) -> Scene:
    from satseg.imagery.scene import open_scene

    scene = open_scene(source, **how)
    for text in scene.warnings:
        log.warning("%s", text)
    return scene


def _detect(ctx: click.Context, model: Model, scene: Scene, target: Path, options: dict[str, Any]) -> str:
    """Write what `model` finds in `scene` and return how much that is; keep it where --resume says so."""
    from satseg.pipeline import detect

    given = {**options, "bounds": options["bounds"] or None}
    wanted = [target, *(Path(path) for path in (given["mask"], given["scores"]) if path)]
    if given.pop("resume"):
        if all(map(os.path.exists, wanted)):
            return f"{target}: kept"
        given["overwrite"] |= not os.path.exists(target)  # it comes last: rasters without it are of a stopped run
    with progress_bar(ctx) as progress:
        features = detect(model, scene, output=target, progress=progress, **given)
    counts = features.groupby("class_name", observed=True).size()
    return f"{target}: " + (", ".join(f"{count} {name}" for name, count in counts.items()) or "0 features")


def _all_opened(sources: list[str | list[str]], how: dict[str, Any]) -> dict[str, Scene | SatsegError]:
    """Open every scene before the first is worked on; what cannot be opened is there as its error."""
    opened: dict[str, Scene | SatsegError] = {}
    for source in sources:
        name = source if isinstance(source, str) else ",".join(source)
        try:
            opened[name] = _opened(source, how)
        except UsageError:  # an option is wrong, whatever the scene
            raise
        except SatsegError as error:
            opened[name] = error
    count = Counter(scene.name for scene in opened.values() if not isinstance(scene, SatsegError))
    if repeated := [name for name, times in count.items() if times > 1]:
        raise UsageError(f"several scenes are called {repeated}: their outputs would have one name")
    return opened


def _detect_each(
    ctx: click.Context,
    model: Model,
    scenes: dict[str, Scene | SatsegError],
    target_of: Callable[[str], Path],
    options: dict[str, Any],
) -> None:
    """Detect in every scene, print what came of each, and raise PartialError when some failed."""
    results: dict[str, str | SatsegError] = {}
    for name, scene in scenes.items():
        try:
            if isinstance(scene, SatsegError):
                raise scene
            results[name] = _detect(ctx, model, scene, target_of(scene.name), options)
        except UsageError:
            raise
        except SatsegError as error:
            log.warning("%s failed: %s [%s]", name, error, error.code)
            results[name] = error
    width = max(map(len, results))
    for name, result in results.items():
        text = f"failed: {result} [{result.code}]" if isinstance(result, SatsegError) else result
        click.echo(f"{name:<{width}}  {' '.join(text.split())}")
    failed = [name for name, result in results.items() if isinstance(result, SatsegError)]
    if failed:
        raise PartialError(f"{len(failed)} of {len(results)} scenes failed: {', '.join(failed)}")
