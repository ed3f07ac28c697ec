"""Line charts as SVG text that stands in a page: axes, lines, marks, in the page's own ink.

A run's page needs one kind of chart; written out it is shorter than the settings that would bring a plotting
library to the same look, and loads in no time. Colours of axes are the page's variables, so that charts follow
a dark page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34
"""Margins of the plot within the picture, for the labels of its axes."""
TICKS = 5
FEW_POINTS = 30
"""Lines of at most so many points show each of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: its (x, y) points in order of x, "#rrggbb" or a CSS colour, and whether it is heavy."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    heavy: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A point to be seen, with a line down to the axis."""

    x: float
    y: float
    color: str


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    marks: Sequence[Mark] = (),
    y_top: float | None = None,
    x_range: tuple[float, float] | None = None,
) -> str:
    """Return a chart of `lines` as an SVG element; an empty plot says so.

    Parameters
    ----------
    title : str
        What the picture is, for those who cannot see it.
    y_top : float, optional
        Upper end of the axis; the highest value when left out. The lower end is 0, or the lowest value below.
    x_range : (float, float), optional
        Ends of the axis; those of the points when left out.
    """
    points = [point for line in lines for point in line.points]
    head = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"<title>{html.escape(title)}</title>"
    )
    if not points:
        empty = f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">nothing was logged</text>'
        return f"{head}{empty}</svg>"
    frame = _Frame.around(points, y_top=y_top, x_range=x_range)
    drawn = "".join(map(frame.line, lines)) + "".join(map(frame.mark, marks))
    return f"{head}{frame.axes(x_name)}{drawn}</svg>"


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About `count` round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span * 0.999)
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where values lie in the picture."""

    x0: float
    x1: float
    y0: float
    y1: float

    @classmethod
    def around(
        cls, points: Sequence[tuple[float, float]], *, y_top: float | None, x_range: tuple[float, float] | None
    ) -> _Frame:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        x0, x1 = x_range or (min(xs), max(xs))
        y0, y1 = min(0.0, *ys, 0.0), max(ys) if y_top is None else y_top
        return cls(x0, x1 if x1 > x0 else x0 + 1, y0, y1 if y1 > y0 else y0 + 1)

    def place(self, x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)
        return round(right, 1), round(min(max(down, TOP), HEIGHT - BOTTOM), 1)

    def axes(self, x_name: str) -> str:
        base, parts = HEIGHT - BOTTOM, []
        for y in ticks(self.y0, self.y1):
            _, down = self.place(self.x0, y)
            parts.append(f'<path class="grid" d="M{LEFT} {down}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{down + 4}" text-anchor="end">{_number(y)}</text>')
        for x in ticks(self.x0, self.x1):
            right, _ = self.place(x, self.y0)
            parts.append(f'<path class="axis" d="M{right} {base}v4"/>')
            parts.append(f'<text x="{right}" y="{base + 16}" text-anchor="middle">{_number(x)}</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>')
        name = html.escape(x_name)
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{name}</text>')
        return "".join(parts)

    def line(self, line: Line) -> str:
        places = [self.place(x, y) for x, y in line.points]
        path = " ".join(f"{x},{y}" for x, y in places)
        width = 2.4 if line.heavy else 1.6
        name = f"<title>{html.escape(line.name)}</title>"
        drawn = f'<polyline points="{path}" style="stroke:{line.color};stroke-width:{width}">{name}</polyline>'
        return drawn + (_dots(places, line.color) if len(places) <= FEW_POINTS else "")

    def mark(self, mark: Mark) -> str:
        right, down = self.place(mark.x, mark.y)
        stem = f'<path class="stem" d="M{right} {down}V{HEIGHT - BOTTOM}" style="stroke:{mark.color}"/>'
        return f'{stem}<circle cx="{right}" cy="{down}" r="4.5" style="fill:{mark.color}"/>'


def _dots(places: Iterable[tuple[float, float]], color: str) -> str:
    return "".join(f'<circle cx="{x}" cy="{y}" r="2.6" style="fill:{color}"/>' for x, y in places)


def _number(value: float) -> str:
    """`value` as on an axis: 1200 as 1.2k, and no trailing zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:.6g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}"
