"""`satseg detect`: a model and scenes in, polygons out."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
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
    split,
)
from satseg.errors import InputError, OutputError, PartialError, SatsegError, UsageError
from satseg.progress import Progress

if TYPE_CHECKING:
    from satseg.imagery.scene import Scene
    from satseg.learning.detection.budget import Estimate
    from satseg.learning.networks.ensemble import Predictor

SCENE_SUFFIXES = (".tif", ".tiff", ".jp2", ".j2k", ".png", ".jpg", ".jpeg")
"""Files of a folder that are taken for scenes."""
OF_ONE_SCENE = ("E-USE-030", "E-USE-060")
"""Refusals that say nothing of other scenes: an unfinished run of another kind, too little memory for this one."""
RASTERS = ("mask", "scores", "entropy", "disagreement")
"""Options that name a raster to write."""
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}

log = logging.getLogger(__name__)


def _bytes(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """``4G`` or ``500M`` as bytes."""
    if text is None:
        return None
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    digits = number.rstrip("kmgt")
    try:
        size = float(digits) * UNITS[number[len(digits) :]]
    except (KeyError, ValueError) as error:
        raise click.BadParameter(f"{text!r} is no size such as 4G or 500M") from error
    if not 1 <= size < 2**63:
        raise click.BadParameter(f"{text!r} is no size such as 4G or 500M")
    return int(size)


def _halo(_: click.Context, __: click.Parameter, text: str | None) -> int | str | None:
    if text is None or text == "exact":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is neither a number of pixels nor 'exact'") from error


@click.command("detect")
@click.argument("model", type=click.Path())
@click.argument("scenes", nargs=-1, type=click.Path(), metavar="SCENE...")
@click.option("--ensemble", is_flag=True, help="All .safetensors that are named answer together.")
@click.option(
    "--mean", type=click.Choice(["arithmetic", "geometric"]),
    help="Of scores, over members and views; arithmetic unless an ensemble file says otherwise.",
)
@output_option
@scene_files_option
@click.option("--mask", type=click.Path(), metavar="FILE.tif", help="Also write the masks: 0, 1, 255 where not valid.")
@click.option("--scores", type=click.Path(), metavar="FILE.tif", help="Also write the scores, 0..1.")
@click.option("--score-type", type=click.Choice(["float32", "float16", "uint8"]), default="float32", show_default=True)
@click.option("--entropy", type=click.Path(), metavar="FILE.tif", help="Also write how unsure the model is, in bits.")
@click.option(
    "--disagreement", type=click.Path(), metavar="FILE.tif", help="Also write what members disagree about, in bits.",
)
@click.option("--suffix", default=".gpkg", show_default=True, help="Format of the files in a folder OUTPUT.")
@opening_options
@click.option("--device", default="auto", metavar="auto|cpu|cuda[:i][,cuda:j...]", show_default=True)
@click.option("--engine", type=click.Choice(["torch", "onnx", "openvino"]), default="torch", show_default=True)
@click.option("--batch-size", type=int, help="Tiles per pass.")
@click.option("--tile", type=int, help="Side of a tile in pixels.")
@click.option("--halo", callback=_halo, metavar="PX|exact", help="Margin of a tile; 'exact': all the network reaches.")
@click.option("--max-memory", callback=_bytes, metavar="SIZE", help="Host memory to stay within, such as 4G.")
@click.option("--aoi", type=click.Path(), metavar="FILE", help="Vector file of the area to look at.")
@click.option("--bounds", type=float, nargs=4, metavar="LEFT BOTTOM RIGHT TOP", help="Only this part of the scene.")
@click.option("--bounds-crs", metavar="CRS", help="CRS of --bounds; the scene's own when left out.")
@click.option("--threshold", type=float, help="For all classes, in place of the model's own.")
@click.option("--min-area", type=float, metavar="M2", help="Drop smaller polygons; the model's own sizes if left out.")
@click.option("--simplify", type=float, default=0.0, metavar="M", help="Tolerance in metres; shared edges stay shared.")
@click.option(
    "--rules/--no-rules", default=True, help="The rules of the classes: growing, erasing and the like (info MODEL)."
)
@click.option(
    "--tta", type=click.Choice(["none", "flips", "d4", "scales", "d4+scales"]), default="none", show_default=True,
    help="Average scores over 4 or 8 turns, over 3 scales (4 x the work), or over 8 turns and scales.",
)
@click.option(
    "--tone", type=click.Choice(["own", "near"]),
    help="'near': a scene of another light or sensor, of which some blocks are read for it, is moved near those learnt "
    "from, as by default where all classes are compact objects; 'own': it stays as it is. Scenes that touch are moved "
    "alike.",
)
@click.option("--amp", is_flag=True, help="Half precision: faster, scores differ in the third digit.")
@click.option(
    "--resume", is_flag=True, help="Go on with a stopped run of the same scenes; keep outputs that are complete."
)
@overwrite_option
@click.pass_context
def command(ctx: click.Context, /, model: str, scenes: tuple[str, ...], output: str, **options: Any) -> None:
    """Find what MODEL knows in each SCENE and write polygons to OUTPUT.

    MODEL is a model file, an ensemble file (.toml) or the folder of a training in folds; with --ensemble several
    model files may be given.
    The suffix of OUTPUT picks the format (.shp .gpkg .geojson .fgb .parquet .csv). SCENE may be a folder or
    a quoted pattern such as "scenes/*.tif". With several scenes OUTPUT is a folder, and one that fails does
    not stop the others.
    """
    files, suffix, target = options.pop("scene_files"), options.pop("suffix"), Path(output)
    models, scenes = _models(model, scenes, together=options.pop("ensemble"))
    if bool(files) == bool(scenes):
        raise click.UsageError("give SCENE..., or one scene with --scene-files")
    sources: list[str | list[str]] = [list(files)] if files else _sources(scenes)
    register = options["register"]
    how, devices = opening(options), split(options.pop("device")) or ("auto",)
    several = len(sources) > 1 or os.path.isdir(target) or any(map(os.path.isdir, scenes))
    if several:
        _check_folder(target, suffix, options)
    options["devices"] = devices if len(devices) > 1 else ()
    from satseg.learning.networks.ensemble import load_predictor

    loaded = load_predictor(models, device=devices[0])
    how["register"] = options["register"] = loaded.registers if register is None else register
    if several:
        _detect_each(ctx, loaded, _all_opened(sources, how), lambda name: target / f"{name}{suffix}", options)
    else:
        with progress_bar(ctx) as progress:
            said = _detect(ctx, loaded, _opened(sources[0], how), target, options, progress)
        click.echo(said)


def _models(first: str, others: tuple[str, ...], *, together: bool) -> tuple[str | list[str], tuple[str, ...]]:
    """Return the model as typed, or the models that answer `together`, and the scenes."""
    from satseg.options import MODEL_SUFFIX

    more = [name for name in others if name.lower().endswith(MODEL_SUFFIX)]
    if more and not together:
        raise click.UsageError(f"{more[0]} is a model; give --ensemble for several")
    if together and not more:
        raise click.UsageError("--ensemble is of two model files or more; an ensemble file goes without it")
    return ([first, *more] if together else first), tuple(name for name in others if name not in more)


def _sources(scenes: Sequence[str]) -> list[str | list[str]]:
    """Scenes as typed: files, folders of them, and patterns."""
    sources: list[str | list[str]] = []
    for text in scenes:
        if os.path.isdir(text):
            found = sorted(os.path.join(text, name) for name in os.listdir(text) if _is_scene(name))
        elif not os.path.exists(text) and glob.has_magic(text):
            found = sorted(name for name in glob.glob(text, recursive=True) if os.path.isfile(name))
        else:
            sources.append(scene_argument(text))
            continue
        if not found:
            kinds = " ".join(SCENE_SUFFIXES)
            raise InputError(f"{text} holds no scene", hint=f"scenes end in {kinds}", code="E-IN-021", path=text)
        sources += found
    return sources


def _is_scene(name: str) -> bool:
    return name.lower().endswith(SCENE_SUFFIXES) and not name.startswith(".")


def _check_folder(folder: Path, suffix: str, options: dict[str, Any]) -> None:
    from satseg.vector.formats import format_of

    if any(options[name] for name in RASTERS):
        named = ", ".join(f"--{name}" for name in RASTERS)
        raise click.UsageError(f"{named} go with one scene and a file as OUTPUT")
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


def _detect(
    ctx: click.Context, model: Predictor, scene: Scene, target: Path, options: dict[str, Any], progress: Progress
) -> str:
    """Write what `model` finds in `scene` and return how much that is; keep it where --resume says so."""
    from satseg.ledger import Ledger
    from satseg.pipeline import detect_to_file

    given = {**options, "bounds": options["bounds"] or None}
    wanted = [target, *(Path(given[name]) for name in RASTERS if given[name])]
    if given["resume"] and Ledger.header_of(target) is None and all(map(os.path.exists, wanted)):
        return f"{target}: kept"

    def announce(estimate: Estimate) -> None:
        click.echo(f"{scene.name}: {estimate}", err=True)

    told = None if ctx.obj["quiet"] else announce
    counts = detect_to_file(model, scene, target, progress=progress, announce=told, **given)
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
    model: Predictor,
    scenes: dict[str, Scene | SatsegError],
    target_of: Callable[[str], Path],
    options: dict[str, Any],
) -> None:
    """Detect in every scene, print what came of each, and raise PartialError when some failed."""
    from satseg.imagery.flights import flights

    results: dict[str, str | SatsegError] = {}
    usable = [scene for scene in scenes.values() if not isinstance(scene, SatsegError)]
    flight_of = {scene.name: flight for scene, flight in zip(usable, flights(usable), strict=True)}
    if beside := sum(len(flight.scenes) > 1 for flight in flight_of.values()):
        log.warning(
            "%d scenes touch others, and features end where a file does: "
            "a VRT of them (gdalbuildvrt), detected with --allow-driver VRT, has no seams",
            beside,
        )
    with progress_bar(ctx) as progress:
        for number, (name, scene) in enumerate(scenes.items()):
            try:
                if isinstance(scene, SatsegError):
                    raise scene
                share = partial(_batch_progress, progress, number, len(scenes), scene.name)
                given = {**options, "flight": flight_of[scene.name]}
                results[name] = _detect(ctx, model, scene, target_of(scene.name), given, share)
            except SatsegError as error:
                if isinstance(error, UsageError) and error.code not in OF_ONE_SCENE:
                    raise
                log.warning("%s failed: %s [%s]", name, error, error.code)
                results[name] = error
        progress("scenes", len(scenes), len(scenes), "")
    width = max(map(len, results))
    for name, result in results.items():
        text = f"failed: {result} [{result.code}]" if isinstance(result, SatsegError) else result
        click.echo(f"{name:<{width}}  {' '.join(text.split())}")
    failed = [name for name, result in results.items() if isinstance(result, SatsegError)]
    if failed:
        raise PartialError(f"{len(failed)} of {len(results)} scenes failed: {', '.join(failed)}")


def _batch_progress(
    progress: Progress, number: int, count: int, name: str, stage: str, done: float, total: float, note: str
) -> None:
    """Tell the progress of one scene as a part of that of all."""
    if stage == "detect":
        progress("scenes", number + (done / total if total else 1.0), count, " ".join((name, note)).strip())
