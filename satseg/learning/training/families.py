"""Several families of K-fold models over the same scenes: their out-of-fold scores by pixel, and a sample of them.

Read in strips, so that memory follows neither the scenes nor their number. Each class has a sample of its own, about
as many pixels of it as others, for a class may cover a ten-thousandth of the ground; each pixel knows how many it
stands for, so that a fit is to the ground as it is. Drawn by (seed, scene, strip, class), whatever is read beside it.
Rejected: one sample for all classes, which holds nothing of the rare ones, and all pixels, of which neighbours say the
same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satseg.documents import PathLike
from satseg.errors import InputError, UsageError
from satseg.imagery.scene import open_scene
from satseg.learning.training.fold_report import FoldReport, FoldScene
from satseg.learning.training.out_of_fold import strips

PIXELS = 50_000
"""Of a class, and as many of others, in its sample at most, about: the fit has a handful of weights."""
LOWEST, HIGHEST = -15.0, float(np.log(2.0**12 - 1))
"""Logits that scores in float16 tell apart: of 3e-7, and of 1 - 2**-12, from where on they are rounded to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """Some rows of a scene: which fold it is of, labels (K, h, W) bool, usable pixels (h, W), logits (M, K, h, W)."""

    fold: int
    truth: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Pixels for one class: logits (n, M), whether they are of it, how many each stands for, and their fold, (n,)."""

    logits: NDArray[np.float32]
    truth: NDArray[np.bool_]
    weights: NDArray[np.float64]
    folds: NDArray[np.int64]

    def of_folds(self, wanted: NDArray[np.bool_]) -> Sample:
        """Return the pixels where `wanted` (n,) is true."""
        return Sample(self.logits[wanted], self.truth[wanted], self.weights[wanted], self.folds[wanted])


@dataclass(frozen=True, slots=True)
class Families:
    """Folders of training in folds that fit together; made by `open`."""

    folders: tuple[Path, ...]
    reports: tuple[FoldReport, ...]

    @classmethod
    def open(cls, folders: Sequence[PathLike]) -> Families:
        """Read the reports in `folders` and check that they are of the same classes, scenes and folds.

        Raises
        ------
        InputError
            No report in a folder, or a damaged one.
        UsageError
            Fewer than two folders (E-STK-002), or other classes (E-STK-003), scenes (E-STK-004) or folds (E-STK-005)
            in one than in the first.
        """
        places = tuple(map(Path, folders))
        if len({*map(Path.resolve, places)}) < 2 or len({*map(Path.resolve, places)}) < len(places):
            raise UsageError(
                f"{len(places)} folders of training in folds", hint="give two or more, none twice", code="E-STK-002"
            )
        reports = tuple(map(FoldReport.read, places))
        for place, report in zip(places[1:], reports[1:], strict=True):
            _check_alike(places[0], reports[0], place, report)
        return cls(places, reports)

    @property
    def members(self) -> list[tuple[Path, str]]:
        """File and digest of weights of every model, family by family, as its report has them."""
        pairs = zip(self.folders, self.reports, strict=True)
        return [(folder / model.file, model.weights_sha256) for folder, report in pairs for model in report.models]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of all families, in their order."""
        return self.reports[0].class_names

    def strips(self, *, scored: bool = True) -> Iterator[tuple[tuple[int, int], Strip]]:
        """All strips of all scenes, each with the numbers of its scene and of its first row.

        Without scores (M = 0) where they are not wanted, for they are slow to read.

        Raises
        ------
        InputError
            A raster is missing, or families have a scene on other pixels (E-STK-006) or with other labels (E-STK-007).
        """
        for number, scene in enumerate(self.reports[0].scenes):
            yield from self._strips_of(number, scene, scored=scored)

    def _strips_of(self, number: int, scene: FoldScene, *, scored: bool) -> Iterator[tuple[tuple[int, int], Strip]]:
        own = [next(one for one in report.scenes if one.name == scene.name) for report in self.reports]
        files = list(zip(self.folders, own, strict=True))
        scores = [open_scene(folder / one.scores, bands=self.class_names) for folder, one in files]
        truths = [open_scene(folder / one.truth, bands=self.class_names) for folder, one in files]
        for other, folder in zip((*scores, *truths), (*self.folders, *self.folders), strict=True):
            if not other.grid.matches(scores[0].grid):
                raise InputError(
                    f"{scene.name} has other pixels in {folder} than in {self.folders[0]}",
                    hint="train the families with one --gsd", code="E-STK-006",
                )  # fmt: skip
        with ExitStack() as stack:
            said = [stack.enter_context(one.reader()) for one in scores]
            true = [stack.enter_context(one.reader()) for one in truths]
            for window in strips(scores[0].grid):
                known = [reader.read(window) for reader in true]
                usable = np.logical_and.reduce([raster.valid for raster in known])
                if any((raster.data != known[0].data)[:, usable].any() for raster in known[1:]):
                    raise InputError(f"{scene.name} has other labels in some of the families", code="E-STK-007")
                logits = np.empty((0, *known[0].data.shape), np.float32)
                if scored:
                    logits = np.stack([logits_of(reader.read(window).data) for reader in said])
                yield (number, window.row_off), Strip(scene.fold, known[0].data == 1, usable, logits)

    def samples(self, *, seed: int = 0, pixels: int = PIXELS) -> tuple[Sample, ...]:
        """Return a sample for each class: about `pixels` of it, and as many others, or all where there are fewer."""
        shares = np.minimum(1.0, pixels / np.maximum(self._counts(), 1))  # (K, 2): of others, of the class
        parts: list[list[Sample]] = [[] for _ in self.class_names]
        for place, strip in self.strips():
            for k, part in enumerate(parts):
                part.append(_drawn(strip, k, shares[k], seed=(seed, *place, k)))
        return tuple(_joined(part) for part in parts)

    def _counts(self) -> NDArray[np.int64]:
        """(K, 2): usable pixels that are not of a class, and that are."""
        counts = np.zeros((len(self.class_names), 2), np.int64)
        for _, strip in self.strips(scored=False):
            inside = strip.truth[:, strip.usable].sum(axis=1)
            counts += np.column_stack([strip.usable.sum() - inside, inside])
        return counts


def logits_of(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return log(p / (1 - p)) of scores p in 0..1, within `LOWEST` and `HIGHEST`; `LOWEST` where there is no score."""
    exact = np.nan_to_num(scores.astype(np.float64), nan=0.0)
    with np.errstate(divide="ignore"):
        logits = np.log(exact) - np.log1p(-exact)
    clipped: NDArray[np.float32] = logits.clip(LOWEST, HIGHEST).astype(np.float32)
    return clipped


def _drawn(strip: Strip, k: int, shares: NDArray[np.float64], *, seed: tuple[int, ...]) -> Sample:
    rng = np.random.default_rng(seed)
    rows, cols = np.nonzero(strip.usable)
    truth = strip.truth[k, rows, cols]
    chance = shares[truth.astype(np.intp)]
    taken = rng.random(len(truth)) < chance
    rows, cols = rows[taken], cols[taken]
    folds = np.full(len(rows), strip.fold)
    return Sample(strip.logits[:, k, rows, cols].T, truth[taken], 1 / chance[taken], folds)


def _joined(parts: Sequence[Sample]) -> Sample:
    return Sample(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.truth for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.folds for part in parts]),
    )


def _check_alike(first: Path, known: FoldReport, place: Path, report: FoldReport) -> None:
    if report.class_names != known.class_names:
        raise UsageError(
            f"{place} has classes {report.class_names}, {first} has {known.class_names}",
            hint="give --classes when training, in one order", code="E-STK-003",
        )  # fmt: skip
    names, wanted = ({scene.name for scene in one.scenes} for one in (report, known))
    if names != wanted:
        raise UsageError(
            f"{place} has other scenes than {first}: {', '.join(sorted(names ^ wanted)[:5])}", code="E-STK-004"
        )
    if report.partition != known.partition:
        raise UsageError(
            f"{place} has its scenes in other folds than {first}", hint="give both the same --folds and groups",
            code="E-STK-005",
        )  # fmt: skip
