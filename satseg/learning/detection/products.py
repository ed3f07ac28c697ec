"""What becomes of finished row bands: rasters and features on disk, or a layer in memory.

Everything takes rows from top to bottom and keeps as little of them as it can: rasters are written when a
row of blocks is full, features when they are finished. All files of a detection are published together,
at its end, features last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import geopandas
import numpy as np
import pandas
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import InputError
from satseg.grid import Grid
from satseg.imagery.geotiff import BLOCK
from satseg.imagery.writer import RasterWriter
from satseg.learning.networks.forward import BYTE_STEPS, ScoreType
from satseg.specs import ClassItem
from satseg.vector.features import empty_features
from satseg.vector.finish import Cleaning
from satseg.vector.layers import INVALID, OUTSIDE, PlaneCode
from satseg.vector.polygonizer import Polygonizer
from satseg.vector.rules import RuledPolygonizer
from satseg.vector.separate import Separator
from satseg.vector.stream import FeatureWriter

UNSURE = ("entropy", "disagreement")
"""Rasters of one byte: bits x 254."""
PLAIN_PX = 4096
"""Masks up to this side are drawn fast without reduced copies, which take as long to make as the mask itself."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The files that a detection makes; None: not made.

    Parameters
    ----------
    features : Path, optional
        Vector file.
    mask : Path, optional
        GeoTIFF, one uint8 band per class: 1 inside, 0 outside, 255 not valid.
    scores : Path, optional
        GeoTIFF, one band per class.
    entropy : Path, optional
        GeoTIFF of one uint8 band: the greatest entropy of a class in bits x 254; 255 not valid.
    disagreement : Path, optional
        The same of what an ensemble's members disagree about.
    """

    features: Path | None = None
    mask: Path | None = None
    scores: Path | None = None
    entropy: Path | None = None
    disagreement: Path | None = None

    @property
    def rasters(self) -> dict[str, Path]:
        """Those that are made and are rasters, by name."""
        named = {name: getattr(self, name) for name in ("mask", "scores", *UNSURE)}
        return {name: path for name, path in named.items() if path is not None}

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those that are made, the features first."""
        return (*((self.features,) if self.features is not None else ()), *self.rasters.values())


@dataclass(frozen=True, slots=True)
class Making:
    """How products are made of codes and scores.

    Parameters
    ----------
    grid : Grid
        Of the area.
    classes : sequence of ClassItem
    thresholds : ndarray of float32, (K,)
        That the codes are of.
    cleaning : Cleaning
    score_type : ScoreType
        Of the file of scores.
    cores : tuple of (int, int)
        Planes of codes: of a class whose objects are cut apart, and of its cores.
    pixel_m2 : float
        Size of a pixel, by which small cores are told.
    threads : int
        That outline classes at the same time.
    rules : bool
        Whether the rules of the classes hold beyond `cleaning`.
    """

    grid: Grid
    classes: Sequence[ClassItem]
    thresholds: NDArray[np.float32]
    cleaning: Cleaning
    score_type: ScoreType = "float32"
    threads: int = 1
    cores: tuple[tuple[int, int], ...] = ()
    pixel_m2: float = 1.0
    rules: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return tuple(item.name for item in self.classes)

    def separator(self) -> Separator:
        """Return what cuts objects apart in codes."""
        sizes = [self.classes[plane].min_core_m2 / self.pixel_m2 for plane, _ in self.cores]
        return Separator(self.cores, planes=len(self.classes), least_px=sizes)

    def polygonizer(self) -> Polygonizer | RuledPolygonizer:
        """Return what makes features of codes."""
        score_of = [PlaneCode(float(level)).score_of for level in self.thresholds]
        if self.rules and any(item.has_rules for item in self.classes):
            return RuledPolygonizer(
                self.grid, self.classes, cleaning=self.cleaning, score_of=score_of, threads=self.threads
            )
        named = [(item.id, item.name) for item in self.classes]
        return Polygonizer(self.grid, named, cleaning=self.cleaning, score_of=score_of, threads=self.threads)


class Products:
    """Takes row bands and makes the files of `Targets`; a context manager that publishes them at its end.

    Parameters
    ----------
    making : Making
    targets : Targets
    collect : bool
        Keep the features, for `features`.
    overwrite : bool
        Whether existing files may be replaced.

    Raises
    ------
    UsageError, CRSError, OutputError
        At construction and in the block: as `RasterWriter` and `FeatureWriter`.
    """

    def __init__(self, making: Making, targets: Targets, *, collect: bool, overwrite: bool = False) -> None:
        self._making, self._collect = making, collect
        self._stack = ExitStack()
        self._rasters: dict[str, _Rows] = {}
        self._writer: FeatureWriter | None = None
        self._targets, self._overwrite = targets, overwrite
        self._polygonizer = making.polygonizer() if collect or targets.features else None
        self._batches: list[geopandas.GeoDataFrame] = []
        self._any_valid = False
        self._separator = making.separator()
        self.counts: Counter[str] = Counter()
        """Features of each class so far."""

    def __enter__(self) -> Products:
        making, targets = self._making, self._targets
        with ExitStack() as stack:
            if targets.features is not None:
                self._writer = stack.enter_context(
                    FeatureWriter(
                        targets.features, crs=making.grid.crs, overwrite=self._overwrite, classes=making.names,
                        colors={item.name: item.color for item in making.classes},
                    )
                )  # fmt: skip
            for name, path in targets.rasters.items():
                writer = stack.enter_context(_writer(name, path, making, overwrite=self._overwrite))
                self._rasters[name] = _Rows(writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def take(self, planes: Mapping[str, NDArray[Any]]) -> None:
        """Take the results of the next rows; see `forward.Planes`."""
        codes = planes["codes"]
        self._any_valid = self._any_valid or bool((codes[0] != INVALID).any())
        for name in ("scores", *UNSURE):
            if name in self._rasters:
                self._rasters[name].take(planes[name])
        self._take_codes(self._separator.feed(codes))

    def _take_codes(self, codes: NDArray[np.uint8]) -> None:
        """Take the next rows of the classes, objects cut apart."""
        if "mask" in self._rasters:
            for top in range(0, codes.shape[1], BLOCK):  # a copy of a row of blocks, not of the whole band
                self._rasters["mask"].take(mask_of(codes[:, top : top + BLOCK]))
        if self._polygonizer is not None and codes.shape[1]:
            self._keep(self._polygonizer.feed(codes))

    def finish(self, scene: str) -> None:
        """Take note that there are no more rows.

        Raises
        ------
        InputError
            Not one pixel of the scene called `scene` was valid (E-IN-020).
        """
        if not self._any_valid:
            raise InputError(f"{scene} has no valid pixel here", hint="check nodata and masks", code="E-IN-020")
        rest = self._separator.finish()
        if rest is not None:
            self._take_codes(rest)
        for rows in self._rasters.values():
            rows.finish()
        if self._polygonizer is not None:
            self._keep(self._polygonizer.finish())

    def features(self) -> geopandas.GeoDataFrame:
        """Return all features as one layer."""
        if not self._batches:
            return empty_features(self._making.grid.crs)
        whole: geopandas.GeoDataFrame = pandas.concat(self._batches, ignore_index=True)
        return whole

    def _keep(self, batch: geopandas.GeoDataFrame) -> None:
        if not len(batch):
            return
        self.counts.update(batch["class_name"].value_counts().to_dict())
        if self._writer is not None:
            self._writer.write(batch)
        if self._collect:
            self._batches.append(batch)


class _Rows:
    """Rows on their way to a raster, held until they fill a row of its blocks."""

    def __init__(self, writer: RasterWriter) -> None:
        self._writer, self._row = writer, 0
        self._held: list[NDArray[Any]] = []

    def take(self, planes: NDArray[Any]) -> None:
        self._held.append(planes)
        count = sum(part.shape[1] for part in self._held)
        whole = count // BLOCK * BLOCK
        if whole:
            rows = self._held[0] if len(self._held) == 1 else np.concatenate(self._held, axis=1)
            self._write(rows[:, :whole])
            self._held = [rows[:, whole:].copy()] if count > whole else []

    def finish(self) -> None:
        if self._held:
            self._write(np.concatenate(self._held, axis=1))
            self._held = []

    def _write(self, rows: NDArray[Any]) -> None:
        for top in range(0, rows.shape[1], BLOCK):
            part = rows[:, top : top + BLOCK]
            self._writer.write(part, Window(0, self._row, part.shape[2], part.shape[1]))
            self._row += part.shape[1]


def _writer(name: str, path: Path, making: Making, *, overwrite: bool) -> RasterWriter:
    if name == "mask":
        return RasterWriter(
            path, grid=making.grid, names=making.names, dtype="uint8", nodata=INVALID, overwrite=overwrite,
            overviews=max(making.grid.shape) > PLAIN_PX, compress="zstd", in_rows=True,
        )  # fmt: skip
    kind = "uint8" if name in UNSURE else making.score_type
    names = (name,) if name in UNSURE else making.names
    return RasterWriter(
        path, grid=making.grid, names=names, dtype=kind, nodata=INVALID if kind == "uint8" else np.nan,
        overwrite=overwrite, resampling="average", scale=1 / BYTE_STEPS if kind == "uint8" else 1.0,
        in_rows=True,
    )  # fmt: skip


def mask_of(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what codes (K, h, W) say of being inside: 1, 0, or 255 where not valid."""
    mask: NDArray[np.uint8] = (codes != OUTSIDE).view(np.uint8)
    invalid = codes[0] == INVALID  # what is not valid is so for all classes
    if invalid.any():
        mask[:, invalid] = INVALID
    return mask
