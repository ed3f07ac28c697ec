"""`satseg index`: spectral indices of a scene as a raster, or a mask of what lies beyond a threshold."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from satseg.cli.common import opening, opening_options, overwrite_option, progress_bar, scene_argument

if TYPE_CHECKING:
    from satseg.imagery.scene import Scene


def _pairs(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        role, equals, band = (part.strip() for part in text.partition("="))
        if not (role and equals and band):
            raise click.BadParameter(f"{text!r} is not ROLE=BAND, such as nir=nir2")
        if role in found:
            raise click.BadParameter(f"{role} is given twice: {found[role]} and {band}")
        found[role] = band
    return found


def _number(text: str) -> float:
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is no number such as 0.0001 or 1/2047") from error


def _scale(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> float | dict[str, float] | None:
    """``1/2047`` for all bands, or ``red=1/2047`` for one."""
    if len(texts) == 1 and "=" not in texts[0]:
        return _number(texts[0])
    found: dict[str, float] = {}
    for text in texts:
        band, equals, factor = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not BAND=FACTOR, as the others are")
        if band.strip() in found:
            raise click.BadParameter(f"the scale of {band.strip()} is given twice")
        found[band.strip()] = _number(factor)
    return found or None


@click.command("index")
@click.argument("scene", required=False, type=click.Path())
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("-o", "--output", type=click.Path(), metavar="FILE.tif", help="GeoTIFF to write, a band for each.")
@opening_options
@click.option("--index-spec", metavar="FILE", help="Document of indices of your own (TOML).")
@click.option("--band-role", "bands", multiple=True, callback=_pairs, metavar="ROLE=BAND", help="Such as nir=nir2.")
@click.option(
    "--scale", multiple=True, callback=_scale, metavar="[BAND=]FACTOR",
    help="Factor from counts to reflectance, such as 1/10000; a file's own scale goes before it.",
)
@click.option("--undefined", type=float, metavar="VALUE", help="Value of 0/0, in place of NaN.")
@click.option("--bounds", type=float, nargs=4, metavar="LEFT BOTTOM RIGHT TOP", help="Only this part of the scene.")
@click.option("--bounds-crs", metavar="CRS", help="CRS of --bounds; the scene's own when left out.")
@click.option("--above", type=float, metavar="T", help="Write a mask in place of values: 1 where the index is >= T.")
@click.option("--below", type=float, metavar="T", help="The same where it is <= T.")
@click.option("--class", "class_name", default="feature", show_default=True, help="Name of the mask's band.")
@click.option("--list", "listed", is_flag=True, help="Print all indices and stop.")
@overwrite_option
@click.pass_context
def command(
    ctx: click.Context, /, scene: str | None, names: tuple[str, ...], output: str | None, listed: bool, **options: Any
) -> None:
    """Compute the spectral indices NAME... of SCENE, such as ndvi, and write them to OUTPUT.

    Bands are found by wavelength. An index whose bands are in different units is refused, and so is one that
    needs reflectance where values are bare counts. SCENE is a file, or several as red.tif,nir.tif.
    With --above or --below a mask is written, for `satseg polygonize`.
    """
    from satseg.specs import index_spec

    own = options.pop("index_spec")
    spec = index_spec(own) if own else index_spec()
    if listed:
        _list(spec.rows())
        return
    if scene is None or not names:
        raise click.UsageError("give SCENE and NAME..., or --list")
    if output is None:
        raise click.UsageError("give -o/--output FILE.tif")
    how = opening(options)
    bounds, bounds_crs = options.pop("bounds"), options.pop("bounds_crs")
    opened = _opened(scene, how)
    window = opened.grid.window_of(bounds, bounds_crs) if bounds else None
    options |= {"spec": spec, "window": window}
    click.echo(f"{output}: {_written(ctx, opened, output, names, options)}")


def _written(
    ctx: click.Context, scene: Scene, output: str, names: tuple[str, ...], options: dict[str, Any]
) -> str:
    """Write values or a mask, and return what."""
    from satseg.imagery.index_rule import IndexClassifier
    from satseg.imagery.indexing import write_index

    levels = {side: options.pop(side) for side in ("above", "below")}
    class_name = options.pop("class_name")
    given = [side for side, level in levels.items() if level is not None]
    if not given:
        with progress_bar(ctx) as progress:
            write_index(scene, output, *names, progress=progress, **options)
        return ", ".join(names)
    if len(given) > 1 or len(names) > 1 or options.pop("undefined") is not None:
        raise click.UsageError("a mask is of one NAME, by --above or --below, and without --undefined")
    rule = IndexClassifier(
        names[0], levels[given[0]], "above" if given == ["above"] else "below", class_name, None, options.pop("spec"),
        options.pop("bands"), options.pop("scale"),
    )  # fmt: skip
    with progress_bar(ctx) as progress:
        count = rule.write(scene, output, progress=progress, **options)
    return f"{count} pixels of {rule}"


def _opened(text: str, how: dict[str, Any]) -> Scene:
    import logging

    from satseg.imagery.scene import open_scene

    scene = open_scene(scene_argument(text), **how)
    for said in scene.warnings:
        logging.getLogger(__name__).warning("%s", said)
    return scene


def _list(rows: tuple[tuple[str, ...], ...]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
