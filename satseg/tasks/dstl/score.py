"""The contest's score: areas of agreement summed over tiles for each class, then the mean of ten Jaccard indices.

Pooled by class (three public re-implementations agree on it): a false hit on a tile without the class costs its area,
not a whole tile. Unions come before areas, invalid polygons are repaired, and a class absent from both sides is worth
0 by default, as those implementations have it. Counts are `satseg.scoring.jaccard.AreaCounts`, areas those of
`satseg.scoring.cells`, in squared label units, in which tiles differ by a percent at most.
Rejected: `satseg.scoring.score`, which pairs layers of scenes and measures objects: all a submission needs is areas,
row by row.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import geopandas
import numpy as np
import shapely

from satseg.errors import InputError, UsageError
from satseg.scoring.jaccard import AreaCounts, polygon_counts
from satseg.scoring.report import EMPTY_VALUES, EmptyRule
from satseg.tasks.dstl.facts import CLASS_NUMBERS, class_names
from satseg.tasks.dstl.submission import SubmissionRow, read_submission
from satseg.tasks.dstl.tables import PathLike

SHOWN = 5
Truth = Mapping[tuple[str, int], Any]


@dataclass(frozen=True, slots=True)
class DstlScore:
    """Counts of each class over all scored tiles.

    Parameters
    ----------
    classes : mapping of class number to AreaCounts
        All ten, in squared label units.
    image_ids : tuple of str
        The tiles that were scored.
    empty : "zero", "one" or "absent"
        What a class is worth that neither side has; "absent" leaves it out of the mean.
    invalid_lines : tuple of int
        Lines of the submission whose geometry was repaired.
    """

    classes: Mapping[int, AreaCounts]
    image_ids: tuple[str, ...]
    empty: EmptyRule = "zero"
    invalid_lines: tuple[int, ...] = ()

    def jaccard(self, class_id: int) -> float | None:
        """Return the Jaccard index of a class, 0..1; by the empty rule where neither side has any."""
        found = self.classes[class_id].jaccard
        return EMPTY_VALUES[self.empty] if found is None else found

    @property
    def mean(self) -> float | None:
        """The score: the mean over the ten classes; None when all are left out."""
        found = [value for number in self.classes if (value := self.jaccard(number)) is not None]
        return float(np.mean(found)) if found else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values; areas in squared label units."""
        names = class_names()
        return {
            "score": self.mean,
            "empty": self.empty,
            "tiles": list(self.image_ids),
            "invalid_lines": list(self.invalid_lines),
            "classes": [
                {"id": n, "name": names[n], "jaccard": self.jaccard(n), "tp": c.tp, "fp": c.fp, "fn": c.fn}
                for n, c in self.classes.items()
            ],
        }

    def to_json(self) -> str:
        """Return `to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def table(self) -> str:
        """Return the classes and the mean as lines of text; areas in square label units x 1e6."""
        head = f"{'class':<29}{'Jaccard':>9}{'TP':>13}{'FP':>13}{'FN':>13}"
        lines = [head]
        for number, counts in self.classes.items():
            areas = "".join(f"{1e6 * area:>13.6f}" for area in (counts.tp, counts.fp, counts.fn))
            lines.append(f"{number:>2} {class_names()[number]:<26}{_shown(self.jaccard(number)):>9}{areas}")
        lines.append(f"{'mean of ' + str(len(self.classes)):<29}{_shown(self.mean):>9}")
        return "\n".join(lines)


def score_submission(
    submission: PathLike,
    truth: PathLike | Mapping[str, geopandas.GeoDataFrame],
    *,
    image_ids: Collection[str] | None = None,
    empty: EmptyRule = "zero",
    strict: bool = False,
) -> DstlScore:
    """Return the score of a submission against the truth.

    Parameters
    ----------
    submission : path-like
        A table of ``ImageId,ClassType,MultipolygonWKT``; read row by row.
    truth : path-like, or mapping of tile to GeoDataFrame in label units
        A table of the same form, or what `ContestFolder.labels` gives.
    image_ids : collection of str, optional
        Score these tiles only, such as those of a fold; all that the truth has when left out.
    empty : "zero", "one" or "absent"
        See `DstlScore`.
    strict : bool
        Refuse geometries that are not valid, by line, as the contest's server did.

    Raises
    ------
    InputError, LabelError
        The truth lacks a tile asked for (E-IN-321), either lacks a row of a scored tile (E-IN-322), or as
        `read_submission`.
    UsageError
        `empty` is no such rule (E-USE-308).
    """
    if empty not in EMPTY_VALUES:
        raise UsageError(f"no rule {empty!r} for absent classes; there are {', '.join(EMPTY_VALUES)}", code="E-USE-308")
    real = _by_row(truth) if isinstance(truth, Mapping) else _read_truth(truth)
    there = sorted({image_id for image_id, _ in real})
    scored = set(there if image_ids is None else image_ids)
    if scored - set(there):
        raise InputError(
            f"the truth has no tile {', '.join(sorted(scored - set(there))[:SHOWN])}", hint=f"it has {len(there)}",
            code="E-IN-321",
        )  # fmt: skip
    _check_rows(set(real), scored, "the truth", None if isinstance(truth, Mapping) else truth)
    rows = (row for row in read_submission(submission, strict=strict) if row.image_id in scored)
    classes, seen, invalid = _pooled(rows, real)
    _check_rows(seen, scored, "the submission", submission)
    return DstlScore(classes, tuple(sorted(scored)), empty, invalid)


def _check_rows(there: Collection[tuple[str, int]], scored: Iterable[str], whose: str, path: PathLike | None) -> None:
    """Raise InputError (E-IN-322) when a table lacks a class of a scored tile: no row is not an empty row."""
    missing = sorted({(image_id, number) for image_id in scored for number in CLASS_NUMBERS} - set(there))
    if missing:
        named = ", ".join(f"{image_id} class {number}" for image_id, number in missing[:SHOWN])
        raise InputError(
            f"{whose} lacks {len(missing)} rows of scored tiles: {named}",
            hint="give MULTIPOLYGON EMPTY where there is nothing, or name the tiles to score",
            code="E-IN-322",
            path=path,
        )


def _pooled(
    rows: Iterable[SubmissionRow], truth: Truth
) -> tuple[dict[int, AreaCounts], set[tuple[str, int]], tuple[int, ...]]:
    """Return the counts of each class, the rows that came, and the lines that were not valid."""
    totals = dict.fromkeys(CLASS_NUMBERS, AreaCounts())
    seen, invalid = set(), []
    for row in rows:
        key = (row.image_id, row.class_id)
        seen.add(key)
        if not shapely.is_valid(row.geometry):
            invalid.append(row.line)
        totals[row.class_id] += polygon_counts(row.geometry, truth.get(key, []))
    return totals, seen, tuple(invalid)


def _by_row(layers: Mapping[str, geopandas.GeoDataFrame]) -> Truth:
    found: dict[tuple[str, int], Any] = {}
    for image_id, layer in layers.items():
        shapes, numbers = layer.geometry.to_numpy(), layer["class_id"].to_numpy()
        found |= {(image_id, number): shapes[numbers == number] for number in CLASS_NUMBERS}
    return found


def _read_truth(path: PathLike) -> Truth:
    return {(row.image_id, row.class_id): row.geometry for row in read_submission(path)}


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
