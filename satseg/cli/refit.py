"""`satseg refit`: a model and labelled scenes in, the same weights with other thresholds and rules out."""

from __future__ import annotations

from typing import Any

import click

from satseg.cli.common import field_option, opening_options, output_option, overwrite_option, progress_bar
from satseg.errors import UsageError


@click.command("refit")
@click.argument("model", type=click.Path())
@click.option("--data", nargs=2, multiple=True, metavar="SCENE LABELS", help="Fit on these; may be repeated.")
@output_option
@field_option
@opening_options
@click.option("--unlabelled", type=click.Choice(["background", "ignore"]), help="What ground without a label is.")
@click.option("--device", default="auto", metavar="auto|cpu|cuda[:i]", show_default=True)
@overwrite_option
@click.pass_context
def command(ctx: click.Context, /, model: str, data: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Fit thresholds and rules of MODEL anew on --data SCENE LABELS pairs; write a model file OUTPUT.

    The weights stay. Give scenes that it was not trained on. A value is changed where that gains 0.002 of Jaccard.
    """
    from satseg.cli.common import scene_argument
    from satseg.fitting import refit
    from satseg.learning.networks.model import load_model
    from satseg.run import RunConfig

    call = {key: options.pop(key) for key in ("output", "overwrite")}
    loaded = load_model(model, device=options.pop("device"))
    options["registered"], options["allow_driver"] = options.pop("register"), options["allow_driver"] or None
    reading = RunConfig.from_options(options).data
    if not data:
        raise UsageError("no data to fit rules on", hint="give --data SCENE LABELS", code="E-TRN-001")
    pairs = [(scene_argument(scene), labels) for scene, labels in data]
    with progress_bar(ctx) as progress:
        fitted = refit(loaded, pairs, options=reading, progress=progress, **call)
    click.echo(f"{call['output']}\n{fitted.summary()}")
