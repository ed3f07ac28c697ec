"""The page of a finished run: what it was told, what it learnt from, how it went, and what it saw.

One HTML file that needs nothing else, in the frame and look of the score's report (`satseg.scoring.page`). It
is written when the model is there, from what the run has at hand: its folder's logs, the last validation's
counts, a dozen chips. No scene is read beyond those chips, so that a page takes a second or two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

from satseg.learning.ground.grounds import Prepared
from satseg.learning.ground.split_map import GAP_COLOR, HELD_COLOR, MOST_SCENES, split_picture
from satseg.learning.training.charts import Line, Mark, line_chart
from satseg.learning.training.curves import BINS, ThresholdCurve
from satseg.learning.training.examples import Example, examples, shown_side
from satseg.learning.training.history import History, read_history
from satseg.learning.training.learner import Learner, Outcome
from satseg.learning.training.plan import (
    Plan,
    class_rows,
    hard_text,
    network_text,
    percent,
    plan_of,
    run_sampler,
)
from satseg.learning.training.run_folder import PAGE
from satseg.output import write_text
from satseg.progress import mean_of
from satseg.run import RunConfig
from satseg.scoring.overlay import Pixels
from satseg.scoring.page import data_uri, ratio, shown, whole_page

MAP_SIDE_PX = 512
INK = "var(--ink)"
CURVE_STEP = 4
"""Of the bins of a threshold curve, every fourth is drawn."""

STYLE = """
.satseg.run table tbody tr:last-child, .satseg table.plain tbody tr:last-child { font-weight: inherit; }
.satseg .chart { display: block; width: 100%; height: auto; fill: none; }
.satseg .chart text { fill: var(--soft); font-size: 12px; stroke: none; font-variant-numeric: tabular-nums; }
.satseg .chart .grid { stroke: var(--line); } .satseg .chart .axis { stroke: var(--soft); }
.satseg .chart .stem { stroke-dasharray: 3 3; } .satseg .chart polyline { stroke-linejoin: round; }
.satseg .panels { grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); }
.satseg .panels.wide { grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 1.4rem; }
.satseg .chips { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1.1rem; }
.satseg .chips div { display: grid; grid-template-columns: repeat(3, 1fr); gap: 3px; }
.satseg .chips img, .satseg .map img { display: block; width: 100%; height: auto; image-rendering: pixelated;
  border-radius: 2px; }
.satseg .maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1.4rem; }
.satseg .maps.one { grid-template-columns: minmax(0, 720px); }
.satseg dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.4rem; margin: .6rem 0; }
.satseg dt { color: var(--soft); } .satseg dd { margin: 0; overflow-wrap: anywhere; }
.satseg pre { background: var(--band); padding: .9rem 1.1rem; overflow-x: auto; font-size: .82em; line-height: 1.45;
  border-radius: 3px; } .satseg summary { cursor: pointer; color: var(--soft); }
.satseg td i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .45rem; }
"""

BODY = Template("""<h1>Training: mean Jaccard of the validation</h1><div class="score">$score</div>
<p>$summary</p>
<dl class="facts">$facts</dl>$warnings
<h2>Classes</h2>$classes
<h2>Curves</h2><div class="panels wide">$curves</div>$key
<h2>Thresholds</h2>
<p>Jaccard of the validation by the score from which a pixel is taken; the mark is the threshold chosen.</p>
<div class="panels">$thresholds</div>
<h2>Chips</h2>
<p>As the network sees them after augmentation; the truth, grey where it is not known or held; the score of the
likeliest class after training.</p>
<div class="chips">$chips</div>$key
<h2>Split</h2>$scenes
<p class="key"><span><i style="background:$held"></i>held for validation</span>
<span><i style="background:$gap"></i>gap, not learnt from</span></p>
<div class="$maps_look">$maps</div>
<h2>Configuration</h2><details><summary>run.toml</summary><pre>$config</pre></details>
""")


def write_run_page(folder: Path, learner: Learner, prepared: Prepared, run: RunConfig, outcome: Outcome) -> Path:
    """Write ``report.html`` into the run's `folder`, at once or not at all, and return its path.

    Parameters
    ----------
    folder : Path
        With the run's logs.
    learner : Learner
        As `fit` leaves it: the best weights in its network, the counts of their validation in its curve, the
        network in evaluation mode.

    Raises
    ------
    OutputError
        The page cannot be written.
    """
    path = folder / PAGE
    write_text(path, run_page(folder, learner, prepared, run, outcome), overwrite=True)
    return path


def run_page(folder: Path, learner: Learner, prepared: Prepared, run: RunConfig, outcome: Outcome) -> str:
    """Return the page of a finished run; see `write_run_page`."""
    plan = plan_of(prepared, learner, run)
    colors = {item.name: item.color for item in plan.classes}
    network = learner.network
    side = shown_side(run.train.chip, stride=network.stride, crop=network.crop)
    seen = examples(learner, run_sampler(prepared.grounds, learner, size=side), prepared.bands, colors)
    maps = _maps(prepared, colors)
    mean = mean_of(outcome.jaccard)
    body = BODY.substitute(
        score=ratio(mean),
        summary=_summary(outcome, plan),
        facts=_facts(plan),
        warnings=_warnings(plan),
        classes=_class_table(plan, outcome),
        curves=_curves(read_history(folder, learner.classes, steps=outcome.steps), colors),
        key=_key(colors),
        thresholds="".join(_threshold_charts(learner.curve, outcome, colors)),
        chips="".join(map(_chip, seen)),
        scenes=_scene_table(plan),
        held=HELD_COLOR,
        gap=GAP_COLOR,
        maps="".join(maps),
        maps_look="maps one" if len(maps) == 1 else "maps",
        config=shown(run.to_toml(), limit=100_000),
    )
    return whole_page(f"Training, Jaccard {ratio(mean)}", body, style=STYLE)


def _summary(outcome: Outcome, plan: Plan) -> str:
    seconds = f"{outcome.seconds / 60:.1f} minutes" if outcome.seconds >= 120 else f"{outcome.seconds:.0f} seconds"
    seen = outcome.steps * plan.pixels_per_step / 1e6
    skipped = f"{outcome.skipped} batches were skipped: loss or gradient not finite." if outcome.skipped else ""
    return (
        f"{outcome.steps:,} steps in {seconds} on {shown(plan.device)}: {seen:,.4g} million pixels seen, "
        f"{seen / max(outcome.seconds, 1e-9):.3g} a second. {skipped}"
    )


def _facts(plan: Plan) -> str:
    facts = {
        "bands": f"{len(plan.bands)}: {', '.join(plan.bands)}",
        "resolution": "pixels as they are" if plan.gsd_m is None else f"{plan.gsd_m:.4g} m",
        "chips": f"{plan.chip} x {plan.chip} pixels, {plan.batch * plan.accumulate} a step",
        **({"hard ground": hard_text(plan)} if plan.hard else {}),
        "network": f"{network_text(plan)}, stride {plan.stride}, halo {plan.halo} pixels",
        "loss": plan.loss,
    }
    return "".join(f"<dt>{name}</dt><dd>{shown(text, limit=600)}</dd>" for name, text in facts.items())


def _warnings(plan: Plan) -> str:
    """What looks wrong in the data, in a list; nothing where nothing does."""
    lines = "".join(f"<li>{shown(text, limit=600)}</li>" for text in plan.warnings)
    return f"<h2>Warnings</h2><ul>{lines}</ul>" if lines else ""


def _class_table(plan: Plan, outcome: Outcome) -> str:
    head, *rows = class_rows(plan.classes)
    results = zip(outcome.jaccard, outcome.thresholds, strict=True)
    marks = [f'<i style="background:{item.color}"></i>' for item in plan.classes]
    wide = [(*row, ratio(jaccard), ratio(threshold)) for row, (jaccard, threshold) in zip(rows, results, strict=True)]
    return _table((*head, "Jaccard", "threshold"), wide, marks)


def _scene_table(plan: Plan) -> str:
    rows = []
    for scene in plan.scenes:
        gsd = "no CRS" if scene.gsd_m is None else f"{scene.gsd_m:.4g} m"
        size = f"{scene.height} x {scene.width}"
        held = (str(scene.held_blocks), percent(scene.held_share), f"{scene.gap} px")
        rows.append((scene.name, scene.role, size, gsd, scene.crs or "none", *held))
    return _table(("scene", "role", "pixels", "resolution", "CRS", "blocks held", "area held", "gap"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[str] | None = None) -> str:
    top = "".join(f"<th>{shown(cell)}</th>" for cell in head)
    lines = []
    for mark, (name, *cells) in zip(marks or [""] * len(rows), rows, strict=True):
        lines.append(f"<tr><td>{mark}{shown(name)}</td>" + "".join(f"<td>{shown(cell)}</td>" for cell in cells))
    return (
        f'<div class="scroll"><table class="plain"><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _curves(history: History, colors: Mapping[str, str]) -> str:
    by_class = [Line(name, points, colors[name]) for name, points in history.jaccard]
    mean = [Line("mean", history.mean, INK, heavy=True)] if len(by_class) > 1 else []
    charts = {
        "Jaccard of each class, and their mean (heavy), at each validation": line_chart(
            [*by_class, *mean], title="Jaccard by step", x_name="step", y_top=1.0
        ),
        "Loss": line_chart([Line("loss", history.loss, INK)], title="Loss by step", x_name="step"),
        "Learning rate": line_chart([Line("rate", history.rate, INK)], title="Learning rate by step", x_name="step"),
    }
    return "".join(map(_figure, charts.values(), charts))


def _threshold_charts(curve: ThresholdCurve, outcome: Outcome, colors: Mapping[str, str]) -> Iterable[str]:
    rows = curve.jaccard().cpu().tolist()
    for (name, color), row, threshold, jaccard in zip(
        colors.items(), rows, outcome.thresholds, outcome.jaccard, strict=True
    ):
        if jaccard is None:
            yield _figure("<p>No truth to validate on.</p>", f"{name}: {threshold:.3f} for want of truth")
            continue
        points = [(place / BINS, row[place]) for place in range(0, BINS, CURVE_STEP)]
        chart = line_chart(
            [Line(name, points, color, heavy=True)], title=f"Jaccard of {name} by threshold", x_name="threshold",
            marks=[Mark(threshold, jaccard, color)], y_top=1.0, x_range=(0.0, 1.0),
        )  # fmt: skip
        yield _figure(chart, f"{name}: {jaccard:.3f} at {threshold:.3f}")


def _chip(example: Example) -> str:
    return f"<div>{_img('chip', example.image)}{_img('truth', example.truth)}{_img('score', example.score)}</div>"


def _maps(prepared: Prepared, colors: Mapping[str, str]) -> list[str]:
    drawn = [(ground, False) for ground in prepared.grounds] + [(ground, True) for ground in prepared.apart]
    return [
        _figure(
            f'<div class="map">{_img("split", split_picture(g, colors, side=MAP_SIDE_PX, validation=v))}</div>',
            g.scene.name,
        )
        for g, v in drawn[:MOST_SCENES]
    ]


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{shown(caption)}</figcaption></figure>"


def _img(alt: str, pixels: Pixels) -> str:
    return f'<img alt="{alt}" src="{data_uri(pixels)}">'


def _key(colors: Mapping[str, str]) -> str:
    marks = "".join(f'<span><i style="background:{color}"></i>{shown(name)}</span>' for name, color in colors.items())
    return f'<p class="key">{marks}</p>'
