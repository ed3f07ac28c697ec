"""`satseg info`: what scenes are, read from their headers alone."""

from __future__ import annotations

from typing import Any

import click

from satseg.cli.common import json_option, print_json, scene_files_option, sensor_option, src_crs_option


@click.command("info")
@click.argument("scenes", nargs=-1, type=click.Path(), metavar="SCENE...")
@scene_files_option
@sensor_option
@src_crs_option
@json_option
def command(
    scenes: tuple[str, ...], scene_files: tuple[str, ...] | None, sensor: str | None, src_crs: str | None, as_json: bool
) -> None:
    """Grid, CRS, bands, dtypes, nodata, matched sensor and warnings of each SCENE."""
    from satseg.imagery.scene import open_scene

    groups = [[path] for path in scenes] + ([list(scene_files)] if scene_files else [])
    if not groups:
        raise click.UsageError("give SCENE..., or one scene with --scene-files")
    found = [open_scene(group, sensor=sensor, src_crs=src_crs).info() for group in groups]
    if as_json:
        print_json(found[0] if len(found) == 1 else found)
        return
    for number, facts in enumerate(found):
        click.echo(("\n" if number else "") + _page(facts))


def _page(facts: dict[str, Any]) -> str:
    lines = [f"{facts['name']}"]
    lines += [f"  {key:<10} {_shown(value)}" for key, value in facts.items() if key not in {"name", "bands", "warnings"}]
    lines.append("  bands")
    for band in facts["bands"]:
        parts = [f"{key} {_shown(value)}" for key, value in band.items() if key != "name" and value is not None]
        lines.append(f"    {band['name']:<10} " + ", ".join(parts))
    lines += [f"  warning: {text}" for text in facts["warnings"]]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value)
    return "none" if value is None else str(value)
