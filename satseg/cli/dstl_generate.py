"""`satseg dstl generate`: a contest in the files of DSTL's, made from a seed."""

from __future__ import annotations

import click

from satseg.cli.common import overwrite_option, progress_bar, split


@click.command("generate")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="FOLDER", help="Folder to fill.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--full-size", is_flag=True, help="Tiles of 3349 x 3396 pixels instead of 335 x 340.")
@click.option(
    "--tiles", metavar="ID,ID", callback=lambda *a: split(a[2]),
    help="Tiles to make, such as 6110_1_2; the 25 labelled and 32 scored ones by default.",
)  # fmt: skip
@click.option("--decoys", type=int, default=0, show_default=True, help="Unlabelled tiles that get images too.")
@overwrite_option
@click.pass_context
def command(
    ctx: click.Context, output: str, seed: int, full_size: bool, tiles: tuple[str, ...] | None, decoys: int,
    overwrite: bool,
) -> None:  # fmt: skip
    """Make a contest of the DSTL kind: 25 labelled and 32 scored tiles, the truth of these in hidden/."""
    from satseg.tasks.dstl.generated.contest import SMALL_SIZE, generate_contest
    from satseg.tasks.dstl.generated.roster import FULL_SIZE

    size = FULL_SIZE if full_size else SMALL_SIZE
    with progress_bar(ctx) as progress:
        contest = generate_contest(
            output, seed=seed, size=size, tiles=tiles, decoys=decoys, overwrite=overwrite, progress=progress
        )
    click.echo(contest.table())
