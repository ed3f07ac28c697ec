"""`satseg specs`: the documents of sensors, classes and indices."""

from __future__ import annotations

import click


@click.group("specs")
def command() -> None:
    """List, show and check documents of sensors, classes and indices (TOML)."""


@command.command("list")
def list_documents() -> None:
    """Print the names of all shipped documents."""
    from satseg.specs import class_spec, index_spec, list_classes, list_index_specs, list_sensors, sensor_spec

    for name in list_sensors():
        spec = sensor_spec(name)
        click.echo(f"sensor   {name:<20} {len(spec.bands):2d} bands   {spec.title}")
    for name in list_classes():
        classes = class_spec(name)
        click.echo(f"classes  {name:<20} {len(classes.classes):2d} classes {classes.title}")
    for name in list_index_specs():
        indices = index_spec(name)
        click.echo(f"indices  {name:<20} {len(indices.indices):2d} indices {indices.title}")


@command.command("show")
@click.argument("name")
def show(name: str) -> None:
    """Print one document: bands with wavelengths and GSD, classes, or indices with formulas, and their source."""
    from satseg.specs import find_document

    spec = find_document(name)
    click.echo(f"{spec.title}\nsource: {spec.source}\n")
    rows = [[str(cell) for cell in row] for row in spec.rows()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command("validate")
@click.argument("files", nargs=-1, required=True, type=click.Path())
def validate(files: tuple[str, ...]) -> None:
    """Check each of FILES against its schema; the first fault is named with its line."""
    from satseg.specs import load_document

    for path in files:
        spec = load_document(path)
        click.echo(f"{path}: {type(spec).__name__} {spec.name}: ok")
