"""What K-fold training leaves in its folder: which model saw which scene, and how they did on those they had not seen.

Scores are pooled before a ratio is taken: one threshold for each class over the out-of-fold scores of all scenes, and
its Jaccard over their pixels together, so that a scene with little of a class weighs little. Everything stands in one
JSON document, written last, so that a folder that has it is whole. Beside it lie, for each scene, the scores and the
truth on the same pixels as GeoTIFFs: what stackers are fitted on, without the scenes and labels at hand. Rejected:
reading the labels anew for that, which may be in memory only, and change.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from satseg.documents import Document, PathLike
from satseg.errors import InputError
from satseg.learning.card import Count, Sha256
from satseg.learning.networks.ensemble_file import IN_FOLDER
from satseg.output import write_text
from satseg.progress import mean_of

REPORT, ENSEMBLE, OUT_OF_FOLD = "folds.json", IN_FOLDER, "out_of_fold"


class FoldModel(Document):
    """The model of a fold: its file in the folder, and the digest of its weights."""

    file: str
    weights_sha256: Sha256


class FoldScene(Document):
    """A scene: its group, the fold (from 1) whose model did not see it, and its files in the folder.

    `scores` has a float16 band per class, 0..1, NaN where the scene is not valid; `truth` a uint8 band per class, 1
    inside, 0 outside, 255 where the scene is not valid or not labelled.
    """

    name: str
    group: str
    fold: int
    scores: str
    truth: str


class PooledScore(Document):
    """A class over all scenes: its threshold, pixels counted there, and Jaccard (None: it is nowhere), by fold too."""

    name: str
    threshold: float
    tp: Count
    fp: Count
    fn: Count
    jaccard: float | None
    jaccard_of_folds: tuple[float | None, ...]


class FoldReport(Document):
    """A family of models, one per fold, and their out-of-fold scores."""

    format_version: int = 1
    models: tuple[FoldModel, ...]
    scenes: tuple[FoldScene, ...]
    classes: tuple[PooledScore, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of the models' output."""
        return tuple(item.name for item in self.classes)

    @property
    def mean_jaccard(self) -> float | None:
        """Mean over the classes that are somewhere."""
        return mean_of([item.jaccard for item in self.classes])

    @property
    def partition(self) -> frozenset[frozenset[str]]:
        """Which scenes are of one fold, whatever its number."""
        folds = {scene.fold for scene in self.scenes}
        return frozenset(frozenset(scene.name for scene in self.scenes if scene.fold == fold) for fold in folds)

    @classmethod
    def read(cls, folder: PathLike) -> FoldReport:
        """Return the report in `folder`.

        Raises
        ------
        InputError
            There is none (E-IN-331), or it is damaged (E-IN-332).
        """
        path = Path(folder) / REPORT
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{path} is missing: no finished training in folds", hint="train --folds, or --resume it",
                code="E-IN-331",
            ) from error  # fmt: skip
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
            raise InputError(f"{path} is damaged: {_first_line(error)}", code="E-IN-332") from error

    def write(self, folder: Path) -> None:
        """Write the report into `folder`."""
        write_text(folder / REPORT, json.dumps(self.model_dump(mode="json"), indent=1) + "\n", overwrite=True)

    def table(self) -> str:
        """Return the scores as text: a row for each class, then their mean."""
        folds = [str(number) for number in range(1, len(self.models) + 1)]
        rows = [("class", "threshold", "Jaccard", *(f"fold {number}" for number in folds))]
        for item in self.classes:
            cells = map(ratio, (item.jaccard, *item.jaccard_of_folds))
            rows.append((item.name, f"{item.threshold:.2f}", *cells))
        columns = zip(*(item.jaccard_of_folds for item in self.classes), strict=True)
        rows.append(("mean", "", ratio(self.mean_jaccard), *(ratio(mean_of(column)) for column in columns)))
        return aligned(rows)


def ratio(value: float | None) -> str:
    """`value` with three digits; a dash for what does not exist."""
    return "-" if value is None else f"{value:.3f}"


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Return rows of cells as text, the first column to the left, the others to the right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for name, *cells in rows:
        placed = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join([name.ljust(first), *placed]).rstrip())
    return "\n".join(lines)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
