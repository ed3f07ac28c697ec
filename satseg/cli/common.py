"""Options and printing that several sub-commands share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from satseg.cli.live import Lines, terminal
from satseg.progress import Progress, silent

Command = TypeVar("Command", bound=Callable[..., Any])

output_option = click.option("-o", "--output", required=True, type=click.Path(), help="File to write.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
src_crs_option = click.option(
    "--src-crs", metavar="CRS", help="CRS of files that state none, such as EPSG:32633."
)
field_option = click.option("--field", metavar="NAME", help="Label attribute that holds the class.")
classes_option = click.option(
    "--classes", metavar="A,B", callback=lambda *a: split(a[2]), help="Class names in order."
)
scene_files_option = click.option(
    "--scene-files", metavar="A,B", callback=lambda *a: split(a[2]), help="One scene in several files."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def opening_options(command: Command) -> Command:
    """Add the options that say how scenes are opened: --sensor, --src-crs, --allow-driver, --register."""
    command = click.option(
        "--allow-driver", multiple=True, metavar="NAME",
        help="GDAL driver that may open scenes too, such as VRT; what it reads is then up to the file.",
    )(command)  # fmt: skip
    command = click.option(
        "--register/--no-register", default=None,
        help="Lay the products of a scene in several files over the finest one; a warning says where that fails.",
    )(command)  # fmt: skip
    command = src_crs_option(command)
    return click.option(
        "--sensor", metavar="NAME", help="Sensor spec that names the bands; a name or a TOML file."
    )(command)


def opening(options: dict[str, Any]) -> dict[str, Any]:
    """Take what `opening_options` added out of `options`, as keywords of `open_scene`."""
    from satseg.imagery.drivers import DEFAULT_DRIVERS

    drivers = (*DEFAULT_DRIVERS, *options.pop("allow_driver"))
    named = {name: options.pop(name) for name in ("sensor", "src_crs", "register")}
    return {**named, "register": bool(named["register"]), "drivers": drivers}


def split(text: str | None) -> tuple[str, ...] | None:
    """``a,b`` as ("a", "b"); None stays None."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else None


def scene_argument(text: str) -> str | list[str]:
    """One scene as typed: a path, or several files of one scene as ``red.tif,nir.tif``."""
    return text if "," not in text or os.path.exists(text) else list(split(text) or ())


def print_json(value: Any) -> None:
    """Print `value` as JSON on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def progress_bar(ctx: click.Context) -> Iterator[Progress]:
    """A bar on stderr when that is a terminal, a line every tenth otherwise, nothing with ``-q``.

    A training is told as a table in the terminal, else as a line for each validation.
    """
    if ctx.obj["quiet"]:
        yield silent
    elif sys.stderr.isatty():
        with terminal() as progress:
            yield progress
    else:
        yield Lines()
