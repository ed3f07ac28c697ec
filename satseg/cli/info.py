"""`satseg info`: what scenes are, read from their headers alone, but for what --register looks at."""

from __future__ import annotations

from typing import Any

import click

from satseg.cli.common import json_option, opening, opening_options, print_json, scene_argument, scene_files_option
from satseg.errors import PartialError, SatsegError


@click.command("info")
@click.argument("scenes", nargs=-1, type=click.Path(), metavar="SCENE...")
@scene_files_option
@opening_options
@json_option
def command(
    scenes: tuple[str, ...], scene_files: tuple[str, ...] | None, as_json: bool, **options: Any
) -> None:
    """Grid, CRS, bands, dtypes, nodata, matched sensor and warnings of each SCENE.

    Of several scenes, one that cannot be opened is named with the reason and does not stop the others.
    """
    sources = [scene_argument(text) for text in scenes] + ([list(scene_files)] if scene_files else [])
    if not sources:
        raise click.UsageError("give SCENE..., or one scene with --scene-files")
    how = opening(options)
    found = [_facts(source, how, alone=len(sources) == 1) for source in sources]
    if as_json:
        print_json(found[0] if len(found) == 1 else found)
    else:
        click.echo("\n\n".join(map(_page, found)))
    failed = [facts["name"] for facts in found if "error" in facts]
    if failed:
        raise PartialError(f"{len(failed)} of {len(found)} scenes cannot be opened: {', '.join(failed)}")


def _facts(source: str | list[str], how: dict[str, Any], *, alone: bool) -> dict[str, Any]:
    from satseg.imagery.scene import open_scene

    try:
        return open_scene(source, **how).info()
    except SatsegError as error:
        if alone:
            raise
        name = source if isinstance(source, str) else ",".join(source)
        return {"name": name, "error": str(error), "code": error.code}


def _page(facts: dict[str, Any]) -> str:
    plain = {key: value for key, value in facts.items() if key not in {"name", "bands", "registrations", "warnings"}}
    lines = [facts["name"], *(f"  {key:<10} {_shown(value)}" for key, value in plain.items())]
    lines += ["  bands"] if "bands" in facts else []
    for band in facts.get("bands", ()):
        parts = [f"{key} {_shown(value)}" for key, value in band.items() if key != "name" and value is not None]
        lines.append(f"    {band['name']:<10} " + ", ".join(parts))
    lines += [
        f"  registered: {', '.join(found['paths'])}: {found['reason']}"
        for found in facts.get("registrations", ())
        if found["accepted"]
    ]
    lines += [f"  warning: {text}" for text in facts.get("warnings", ())]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    return "none" if value is None else str(value)
