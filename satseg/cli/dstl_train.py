"""`satseg dstl recipes`, `train` and `detect`: from the contest's folder to a layer for each scored tile."""

from __future__ import annotations

import click

from satseg.cli.common import progress_bar, split


@click.command("recipes")
@click.argument("name", required=False, metavar="[NAME|FILE]")
def recipes(name: str | None) -> None:
    """List the recipes that come with satseg, or print the recipe NAME: a start for one of your own."""
    from satseg.tasks.dstl.recipe import list_recipes, load_recipe, recipe_text

    if name is not None:
        click.echo(recipe_text(name), nl=False)
        return
    for one in list_recipes():
        click.echo(f"{one:<20}{load_recipe(one).title}")


@click.command("train")
@click.argument("folder", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[section.key=value]...")
@click.option(
    "--recipe", default="dstl", show_default=True, metavar="NAME|FILE", help="See `satseg dstl recipes`.",
)
@click.option("-o", "--output", required=True, type=click.Path(), metavar="FOLDER", help="Gets the models.")
@click.option("--minutes", type=float, help="Budget for all networks of the recipe together; 10 if not given.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", metavar="auto|cpu|cuda[:i]", help="As train.device; auto if not given.")
@click.option("--resume", is_flag=True, help="Go on with a stopped run.")
@click.pass_context
def train(
    ctx: click.Context, folder: str, overrides: tuple[str, ...], recipe: str, output: str, minutes: float | None,
    seed: int, device: str | None, resume: bool,
) -> None:  # fmt: skip
    """Learn a recipe from the labelled tiles of FOLDER: its networks and fitted indices.

    Options of the recipe can be overridden as in `satseg train`: train.batch=8 model.width=16.
    """
    from satseg.tasks.dstl.folder import ContestFolder
    from satseg.tasks.dstl.training import train_recipe

    if device is not None:
        overrides = (*overrides, f"train.device={device}")
    with progress_bar(ctx) as progress:
        made = train_recipe(
            ContestFolder.open(folder), recipe, output, minutes=minutes, seed=seed, overrides=overrides,
            resume=resume, progress=progress,
        )  # fmt: skip
    for rule in made.rules:
        click.echo(rule)
    for network, scores in made.scores.items():
        for name, jaccard in scores.items():
            click.echo(f"{network}: {name:<26}{'-' if jaccard is None else f'{jaccard:.3f}'} on held ground")
    if made.missing:
        click.echo(f"not learnt, as no labelled tile has it: {', '.join(made.missing)}")
    click.echo(output)


@click.command("detect")
@click.argument("models", type=click.Path())
@click.argument("folder", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), metavar="FOLDER", help="Gets ID.gpkg for each tile.")
@click.option(
    "--tiles", metavar="ID,ID", callback=lambda *a: split(a[2]),
    help="Tiles to look at; the 32 scored ones, as far as they are there, by default.",
)
@click.option("--tta", metavar="NAME", help="As in `satseg detect`; what the recipe says if not given.")
@click.option("--amp", is_flag=True, help="Half precision: faster, scores differ in the third digit.")
@click.option("--device", default="auto", metavar="auto|cpu|cuda[:i]", show_default=True)
@click.option("--resume", is_flag=True, help="Keep the files that are there, and make the others.")
@click.pass_context
def detect(
    ctx: click.Context, models: str, folder: str, output: str, tiles: tuple[str, ...] | None, tta: str | None,
    amp: bool, device: str, resume: bool,
) -> None:  # fmt: skip
    """Find the ten classes in tiles of FOLDER with MODELS, a folder that `satseg dstl train` wrote."""
    from satseg.tasks.dstl.detecting import detect_recipe
    from satseg.tasks.dstl.folder import ContestFolder

    given = ({"tta": tta} if tta else {}) | ({"amp": True} if amp else {})
    with progress_bar(ctx) as progress:
        counts = detect_recipe(
            models, ContestFolder.open(folder), output, tiles=tiles, device=device, resume=resume, progress=progress,
            **given,
        )  # fmt: skip
    total = sum(sum(found.values()) for found in counts.values())
    click.echo(f"{output}: {total} polygons in {len(counts)} tiles")
