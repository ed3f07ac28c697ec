"""The report as one HTML page that needs nothing else: tables, and pictures of the weakest scenes.

No script, no font, no request: the page says so itself in its content security policy, which also
disarms anything a hostile class or scene name might carry past the escaping. Pictures are embedded;
the scene once, the masks as clear layers above it.
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import TYPE_CHECKING

from satseg.preview import encode_png
from satseg.scoring.jaccard import AreaCounts
from satseg.scoring.overlay import ERROR_COLORS, FALSE_ALARM, HIT, MISS, Drawing, Pixels
from satseg.vector.styles import class_colors

if TYPE_CHECKING:
    from satseg.scoring.report import Report, SceneScore

MAX_PICTURES = 12
"""Scenes drawn, the ones with the lowest Jaccard first; each adds one to four megabytes."""
MAX_NAME = 120
"""Characters of a name that are shown; files may carry any."""

NONE = "\N{EN DASH}"
"""What stands for a figure that does not exist."""

STYLE = """
.satseg { --ink: #1b1f23; --soft: #5f6b76; --line: #d8dde2; --paper: #ffffff; --band: #f6f7f8;
  color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
@media (prefers-color-scheme: dark) { .satseg.page { --ink: #e6e8ea; --soft: #9aa5b0; --line: #363d44;
  --paper: #16191c; --band: #1e2226; } }
.satseg.page { max-width: 1240px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
.satseg h1 { font-size: 1.05rem; font-weight: 600; margin: 0; color: var(--soft); }
.satseg h2 { font-size: 1.05rem; font-weight: 600; margin: 2.5rem 0 .6rem; }
.satseg .score { font-size: 3.2rem; line-height: 1.15; font-weight: 300; font-variant-numeric: tabular-nums; }
.satseg p { margin: .2rem 0 .8rem; max-width: 70ch; color: var(--soft); }
.satseg .scroll { overflow-x: auto; }
.satseg table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.satseg th, .satseg td { padding: .38rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
.satseg th { font-weight: 600; color: var(--soft); font-size: .86em; }
.satseg tr > :first-child { text-align: left; padding-left: 0; color: var(--ink); white-space: normal;
  overflow-wrap: anywhere; min-width: 8rem; }
.satseg tbody tr:last-child { font-weight: 600; }
.satseg .bar { display: flex; width: 9rem; height: .62rem; border-radius: 2px; overflow: hidden;
  background: var(--line); }
.satseg .panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); gap: 1rem; }
.satseg figure { margin: 0; }
.satseg figcaption { font-size: .86em; color: var(--soft); padding: .3rem 0; }
.satseg .ground { position: relative; background: #e8e8e4 center / 100% 100%; border-radius: 3px;
  overflow: hidden; }
.satseg .muted::before { content: ""; position: absolute; inset: 0; background: inherit;
  filter: grayscale(1) brightness(.7); }
.satseg .ground img { position: relative; display: block; width: 100%; height: auto; }
.satseg .ground.coarse, .satseg .ground.coarse img { image-rendering: pixelated; }
.satseg .key { display: inline-flex; flex-wrap: wrap; gap: .2rem .9rem; }
.satseg .key i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px;
  margin-right: .35rem; }
@media print { .satseg { print-color-adjust: exact; } }
"""

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title><style>body { margin: 0; } @media (prefers-color-scheme: dark) {
body { background: #16191c; } } $style</style></head>
<body><main class="satseg page">
$body</main></body></html>
""")

BODY = Template("""<h1>Mean Jaccard</h1><div class="score">$score</div>
<p>$summary</p>$warnings
<h2>Classes</h2>$classes
<h2>Scenes</h2>$scenes
$pictures""")


def whole_page(title: str, body: str, *, style: str = "") -> str:
    """Return a page of `body`, HTML, that asks for nothing from outside, in the house's look and `style` (CSS)."""
    return PAGE.substitute(title=shown(title), style=STYLE + style, body=body)


def report_page(report: Report, colors: Mapping[str, str] | None = None) -> str:
    """Return the whole page of `report`, with pictures of its weakest scenes, classes in `colors`."""
    drawn = [scene for scene in report.scenes.values() if scene.drawing is not None]
    drawn.sort(key=lambda scene: 2.0 if scene.mean_jaccard is None else scene.mean_jaccard)
    body = BODY.substitute(
        score=ratio(report.mean_jaccard),
        summary=_summary(report),
        warnings="".join(f"<p>Note: {shown(note, limit=500)}</p>" for note in report.warnings),
        classes=_table(report, "class"),
        scenes=_table(report, "scene"),
        pictures="".join(_scene_figure(number, scene, colors) for number, scene in enumerate(drawn[:MAX_PICTURES])),
    )
    return whole_page(f"Jaccard {ratio(report.mean_jaccard)}", body)


def report_fragment(report: Report) -> str:
    """Return the report for a notebook cell: the mean and the table of classes, no pictures."""
    tables = _table(report, "class") + (_table(report, "scene") if len(report.scenes) > 1 else "")
    return (
        f'<div class="satseg"><style>{STYLE}</style><h1>Mean Jaccard {ratio(report.mean_jaccard)}</h1>'
        f"<p>{_summary(report)}</p>{tables}</div>"
    )


def _summary(report: Report) -> str:
    classes, scenes = len(report.classes), len(report.scenes)
    mended = sum(report.repaired.values())
    sentences = [
        f"Mean over {classes} class{'es' if classes != 1 else ''} of exact polygon areas, summed over "
        f"{scenes} scene{'s' if scenes != 1 else ''} before the ratio.",
        f"On pixels: {ratio(report.mean_pixel_jaccard)}." if report.mean_pixel_jaccard is not None else "",
        f"{mended} invalid polygon{'s were' if mended != 1 else ' was'} repaired." if mended else "",
    ]
    return " ".join(filter(None, sentences))


def _table(report: Report, by: str) -> str:
    head, *rows = report.rows(by)
    totals = [score.areas for score in report.classes.values()]
    areas: list[AreaCounts] = totals if by == "class" else [scene.total.areas for scene in report.scenes.values()]
    bars = [_bar(counts) for counts in (*areas, sum(totals, AreaCounts()))]
    top = _row(head, "th", '<th>TP <span title="false positives">FP</span> FN</th>')
    lines = "".join(_row(row, "td", f"<td>{bar}</td>") for row, bar in zip(rows, bars, strict=True))
    return f'<div class="scroll"><table><thead>{top}</thead><tbody>{lines}</tbody></table></div>'


def _row(cells: Sequence[str], tag: str, bar: str) -> str:
    name, *figures = (f"<{tag}>{shown(cell)}</{tag}>" for cell in cells)
    return f"<tr>{name}{bar}{''.join(figures)}</tr>"


def _bar(counts: AreaCounts) -> str:
    """Hits, false alarms and misses as shares of the union."""
    whole = counts.union or 1.0
    parts = ((counts.tp, HIT), (counts.fp, FALSE_ALARM), (counts.fn, MISS))
    spans = "".join(
        f'<span style="width:{100 * part / whole:.2f}%;background:{color}"></span>' for part, color in parts
    )
    return f'<div class="bar">{spans}</div>'


def _scene_figure(number: int, scene: SceneScore, colors: Mapping[str, str] | None) -> str:
    drawing: Drawing | None = scene.drawing
    if drawing is None:
        return ""
    panels = drawing.panels(colors)
    height, width = panels.errors.shape[1:]
    ground = f"ground g{number}" + (" coarse" if max(height, width) < 400 else "")
    image = "" if panels.image is None else f"background-image:url({data_uri(panels.image)})"
    errors = list(ERROR_COLORS.items())[: 4 if len(drawing.classes) > 1 else 3]
    classes = class_colors(drawing.classes, colors).items()
    over = ground if panels.image is None else f"{ground} muted"
    figures = (
        _panel(ground, "Truth", panels.truth, classes),
        _panel(ground, "Prediction", panels.prediction, classes),
        _panel(over, "Hits and misses", panels.errors, errors),
    )
    title = f"<h2>{shown(scene.name)} <small>{ratio(scene.mean_jaccard)}</small></h2>"
    style = f"<style>.satseg .g{number}{{{image}}}</style>"
    return f'{style}{title}<div class="panels">{"".join(figures)}</div>'


def _panel(ground: str, title: str, pixels: Pixels, key: Iterable[tuple[str, str]]) -> str:
    marks = "".join(f'<span><i style="background:{color}"></i>{shown(name)}</span>' for name, color in key)
    return (
        f'<figure><div class="{ground}"><img alt="{title}" src="{data_uri(pixels)}"></div>'
        f'<figcaption>{title} <span class="key">{marks}</span></figcaption></figure>'
    )


def data_uri(pixels: Pixels) -> str:
    """Return `pixels`, (1..4, H, W), as the address of a picture that is its own content."""
    return f"data:image/png;base64,{b64encode(encode_png(pixels)).decode()}"


def shown(value: str, *, limit: int = MAX_NAME) -> str:
    """Return `value` fit to stand in HTML, cut where it is long."""
    return html.escape(value if len(value) <= limit else f"{value[:limit]}…")


def ratio(value: float | None) -> str:
    """Return a figure between 0 and 1 as text."""
    return NONE if value is None else f"{value:.3f}"
