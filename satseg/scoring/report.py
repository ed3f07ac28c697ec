"""Report: the scores of one comparison, as numbers, table, JSON and page.

It keeps counts, of each class in each scene; every ratio is taken from their sums when asked for.
A class that neither side has is worth nothing, 0 or 1, as the contest at hand has it; the default
leaves it out, so that listing classes which do not occur moves no score.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any, Literal, TypeAlias

from satseg.errors import UsageError
from satseg.output import write_text
from satseg.scoring.jaccard import AreaCounts
from satseg.scoring.objects import ObjectCounts
from satseg.scoring.overlay import Drawing
from satseg.scoring.page import NONE, report_fragment, report_page

EmptyRule: TypeAlias = Literal["absent", "zero", "one"]
EMPTY_VALUES: dict[str, float | None] = {"absent": None, "zero": 0.0, "one": 1.0}
"""What a class absent from both sides is worth; the DSTL contest counted it as zero."""

COLUMNS = (
    "Jaccard", "pixel J", "F1 at 0.5", "precision", "recall", "TP {}", "FP {}", "FN {}", "true", "predicted",
)  # fmt: skip
"""Heads of a table row; {} is the unit of area."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Counts of one class, in one scene or summed over several with ``+``.

    Parameters
    ----------
    areas : AreaCounts
        Square metres; squared units of the coordinates where nothing has a CRS.
    pixels : AreaCounts or None
        Pixels of the scene; None where no grid was known.
    objects : ObjectCounts or None
        Features paired at an IoU of 0.5; None when not asked for.
    truth_features, predicted_features : int
        Features that touch the area of interest.
    empty : "absent", "zero" or "one"
        What the class is worth where neither side has it.
    """

    areas: AreaCounts = field(default_factory=AreaCounts)
    pixels: AreaCounts | None = None
    objects: ObjectCounts | None = None
    truth_features: int = 0
    predicted_features: int = 0
    empty: EmptyRule = "absent"

    def __add__(self, other: ClassScore) -> ClassScore:
        return ClassScore(
            self.areas + other.areas,
            None if self.pixels is None or other.pixels is None else self.pixels + other.pixels,
            None if self.objects is None or other.objects is None else self.objects + other.objects,
            self.truth_features + other.truth_features,
            self.predicted_features + other.predicted_features,
            self.empty,
        )

    @property
    def jaccard(self) -> float | None:
        """Jaccard of areas, 0..1; by the empty rule where neither side has any."""
        return EMPTY_VALUES[self.empty] if self.areas.jaccard is None else self.areas.jaccard

    @property
    def pixel_jaccard(self) -> float | None:
        """Jaccard of pixels, 0..1; None without a grid, else by the empty rule where there are none."""
        if self.pixels is None:
            return None
        return EMPTY_VALUES[self.empty] if self.pixels.jaccard is None else self.pixels.jaccard

    @property
    def tp_m2(self) -> float:
        """Area in both unions."""
        return self.areas.tp

    @property
    def fp_m2(self) -> float:
        """Area predicted and not true."""
        return self.areas.fp

    @property
    def fn_m2(self) -> float:
        """Area true and not predicted."""
        return self.areas.fn

    @property
    def f1(self) -> float | None:
        """F1 of objects at an IoU of 0.5."""
        return None if self.objects is None else self.objects.f1

    @property
    def precision(self) -> float | None:
        """Share of predicted objects that are true at an IoU of 0.5."""
        return None if self.objects is None else self.objects.precision

    @property
    def recall(self) -> float | None:
        """Share of true objects that were found at an IoU of 0.5."""
        return None if self.objects is None else self.objects.recall

    def to_dict(self) -> dict[str, Any]:
        """Return the class's entry in the JSON."""
        return {
            "jaccard": self.jaccard,
            "tp_m2": self.tp_m2,
            "fp_m2": self.fp_m2,
            "fn_m2": self.fn_m2,
            "pixel_jaccard": self.pixel_jaccard,
            "truth_features": self.truth_features,
            "predicted_features": self.predicted_features,
            "f1_50": self.f1,
            "precision_50": self.precision,
            "recall_50": self.recall,
        }

    def figures(self) -> tuple[float | int | None, ...]:
        """Return the values under `COLUMNS`."""
        ratios = (self.jaccard, self.pixel_jaccard, self.f1, self.precision, self.recall)
        return (*ratios, self.tp_m2, self.fp_m2, self.fn_m2, self.truth_features, self.predicted_features)


@dataclass(frozen=True, slots=True)
class SceneScore:
    """Counts of every class in one scene, and what it takes to draw them."""

    name: str
    classes: Mapping[str, ClassScore]
    drawing: Drawing | None = field(default=None, repr=False, compare=False)

    @property
    def mean_jaccard(self) -> float | None:
        """Mean over classes, 0..1; None when no class occurs."""
        return mean(score.jaccard for score in self.classes.values())

    @property
    def mean_pixel_jaccard(self) -> float | None:
        """Mean over classes on pixels, 0..1; None when no class occurs or no grid was known."""
        return mean(score.pixel_jaccard for score in self.classes.values())

    @property
    def total(self) -> ClassScore:
        """Sum over classes, for the columns that are no means."""
        return reduce(add, self.classes.values()) if self.classes else ClassScore()

    def to_dict(self) -> dict[str, Any]:
        """Return the scene's entry in the JSON."""
        return {
            "mean_jaccard": self.mean_jaccard,
            "mean_pixel_jaccard": self.mean_pixel_jaccard,
            "classes": {name: score.to_dict() for name, score in self.classes.items()},
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Scores of predictions against truth.

    Parameters
    ----------
    scenes : mapping of name to SceneScore
        At least one; all with the same classes in the same order.
    empty_rule : "absent", "zero" or "one"
    repaired : mapping
        How many invalid polygons of ``"prediction"`` and ``"truth"`` were mended before counting.
    warnings : tuple of str
        What looked wrong but was no error.
    area_unit : str
        ``"m2"``; ``"units2"`` where nothing has a CRS.
    """

    scenes: Mapping[str, SceneScore]
    empty_rule: EmptyRule = "absent"
    repaired: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    area_unit: str = "m2"

    @property
    def classes(self) -> dict[str, ClassScore]:
        """Counts of each class summed over the scenes."""
        names = next(iter(self.scenes.values())).classes if self.scenes else ()
        return {name: reduce(add, (scene.classes[name] for scene in self.scenes.values())) for name in names}

    @property
    def mean_jaccard(self) -> float | None:
        """Plain mean over classes of the Jaccard of summed areas, 0..1; None when no class occurs."""
        return mean(score.jaccard for score in self.classes.values())

    @property
    def mean_pixel_jaccard(self) -> float | None:
        """The same on pixels; None also when no grid was known."""
        return mean(score.pixel_jaccard for score in self.classes.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as plain values; no NaN, absent figures are None."""
        return {
            "mean_jaccard": self.mean_jaccard,
            "mean_pixel_jaccard": self.mean_pixel_jaccard,
            "classes": {name: score.to_dict() for name, score in self.classes.items()},
            "scenes": {name: scene.to_dict() for name, scene in self.scenes.items()},
            "empty_rule": self.empty_rule,
            "repaired": dict(self.repaired),
            "area_unit": self.area_unit,
            "warnings": list(self.warnings),
        }

    def to_json(self, path: str | os.PathLike[str] | None = None, *, overwrite: bool = False) -> str:
        """Return the report as JSON, written to `path` too when given.

        Raises
        ------
        OutputError
            `path` cannot be written, or exists and `overwrite` is off.
        """
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        if path is not None:
            write_text(path, text + "\n", overwrite=overwrite)
        return text

    def rows(self, by: str = "class") -> list[tuple[str, ...]]:
        """Return the table as text: a head, one row per class or scene, and their mean.

        Raises
        ------
        UsageError
            `by` is neither ``"class"`` nor ``"scene"``.
        """
        head = (by, *(column.format(self.area_unit) for column in COLUMNS))
        if by == "class":
            lines = [(name, score.figures()) for name, score in self.classes.items()]
        elif by == "scene":
            lines = [
                (name, (scene.mean_jaccard, scene.mean_pixel_jaccard, *scene.total.figures()[2:]))
                for name, scene in self.scenes.items()
            ]
        else:
            raise UsageError(f"a table by {by!r} is unknown", hint="give by='class' or by='scene'")
        whole = SceneScore("all", self.classes)
        label = "mean, total" if by == "class" else "all scenes"
        lines.append((label, (whole.mean_jaccard, whole.mean_pixel_jaccard, *whole.total.figures()[2:])))
        return [head, *((name, *_figure_texts(figures)) for name, figures in lines)]

    def table(self, by: str = "class") -> str:
        """Return the scores as a plain-text table, ``by="class"`` or ``by="scene"``."""
        rows = self.rows(by)
        first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = []
        for name, *cells in rows:
            aligned = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            lines.append("  ".join([name.ljust(first), *aligned]))
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
        colors: Mapping[str, str] | None = None,
    ) -> str:
        """Return a page with tables and overlays that needs no other file, written to `path` when given.

        Classes are drawn in `colors` ("#rrggbb" by name), such as those of a model's card.

        Raises
        ------
        OutputError
            `path` cannot be written, or exists and `overwrite` is off.
        """
        text = report_page(self, colors)
        if path is not None:
            write_text(path, text, overwrite=overwrite)
        return text

    def _repr_html_(self) -> str:
        return report_fragment(self)


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None when none is."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _figure_texts(figures: tuple[float | int | None, ...]) -> list[str]:
    """Texts of the values under `COLUMNS`: five ratios, three areas, two counts."""
    ratios = [NONE if value is None else f"{value:.3f}" for value in figures[:5]]
    areas = [f"{value:,.0f}" if value and value >= 1000 else f"{value:.4g}" for value in figures[5:8]]
    return [*ratios, *areas, *(f"{value:,}" for value in figures[8:])]
