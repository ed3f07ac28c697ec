"""`satseg info`: what scenes and models are, read from their headers alone, but for what --register looks at."""

from __future__ import annotations

import os
from typing import Any

import click

from satseg.cli.common import json_option, opening, opening_options, print_json, scene_argument, scene_files_option
from satseg.errors import PartialError, SatsegError

LISTS = {"name", "bands", "classes", "registrations", "warnings"}
"""Facts that do not stand in a line of their own."""


@click.command("info")
@click.argument("scenes", nargs=-1, type=click.Path(), metavar="SCENE...")
@scene_files_option
@opening_options
@json_option
def command(
    scenes: tuple[str, ...], scene_files: tuple[str, ...] | None, as_json: bool, **options: Any
) -> None:
    """Grid, CRS, bands, dtypes, nodata, matched sensor and warnings of each SCENE.

    A model, an ensemble file or the folder of a training in folds in its place is told by what it needs and finds:
    bands, classes with thresholds and rules. Of several scenes, one that cannot be opened is named with the reason
    and does not stop the others.
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
    from satseg.learning.networks.ensemble_file import EnsembleFile, team_file
    from satseg.options import MODEL_SUFFIX

    try:
        if isinstance(source, str) and source.lower().endswith(MODEL_SUFFIX):
            from satseg.learning.networks.bundle import read_card

            return {"name": os.path.basename(source), **read_card(source).info()}
        if isinstance(source, str) and (team := team_file(source)) is not None:
            from satseg.learning.networks.ensemble import Ensemble

            files = [member.path for member in EnsembleFile.read(team).members]
            return {"name": os.path.basename(source), **Ensemble.load(team, device="cpu").info(), "files": files}
        return open_scene(source, **how).info()
    except SatsegError as error:
        if alone:
            raise
        name = source if isinstance(source, str) else ",".join(source)
        return {"name": name, "error": str(error), "code": error.code}


def _page(facts: dict[str, Any]) -> str:
    plain = {key: value for key, value in facts.items() if key not in LISTS}
    lines = [facts["name"], *(f"  {key:<10} {_shown(value)}" for key, value in plain.items())]
    for key in ("bands", "classes"):
        lines += [f"  {key}"] if key in facts else []
        for item in facts.get(key, ()):
            parts = [f"{name} {_shown(value)}" for name, value in item.items() if name != "name" and value is not None]
            lines.append(f"    {item['name']:<10} {', '.join(parts)}".rstrip())
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
