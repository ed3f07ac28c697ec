"""From tiles of scores to masks on disk to polygons: what `pipeline.detect` is made of.

Masks are durable and polygons derived: the mask file is finished first, tile by tile, and the
polygons come from it in one pass. Memory follows the tile, not the scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.crs import Bounds, CRSLike
from satseg.errors import InputError, UsageError
from satseg.grid import Grid
from satseg.imagery.scene import Scene
from satseg.imagery.writer import RasterWriter
from satseg.learning.bundle import Model
from satseg.learning.inference import TileScores, Tiling, check_halo, predict_tiles
from satseg.progress import Progress
from satseg.specs import suggest
from satseg.vector.finish import Cleaning
from satseg.vector.polygonize import polygonize_file

INVALID = 255
"""Value of an unusable pixel in a written mask."""
SCORE_STEPS = 65534
"""Scores on their way to the polygons' means are held in 16 bits; a mean errs by less than 1e-5."""


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """How `detect` and `predict` work; every field is a keyword of both.

    Parameters
    ----------
    bounds : (left, bottom, right, top), optional
        Only this part of the scene, in `bounds_crs` (the scene's own when left out).
    tile, halo, batch_size : int, optional
        Kept side of a tile, its margin, and tiles per pass; chosen from model and device.
    amp : bool
        Compute in half precision: faster, scores differ in the third digit.
    tta : {"none", "d4"}
        Average over flips and quarter turns, at eight times the work.
    threshold : float, optional
        For all classes, in place of the model's own.
    min_area, simplify : float, optional
        In square metres and metres; the model's minimum area when left out, no simplification.
    """

    bounds: Bounds | None = None
    bounds_crs: CRSLike | None = None
    tile: int | None = None
    halo: int | None = None
    batch_size: int | None = None
    amp: bool = False
    tta: str = "none"
    threshold: float | None = None
    min_area: float | None = None
    simplify: float = 0.0

    def __post_init__(self) -> None:
        if self.tta not in ("none", "d4"):
            raise UsageError(f"tta {self.tta!r} is neither 'none' nor 'd4'", code="E-USE-021")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UsageError(f"threshold {self.threshold} is not between 0 and 1", code="E-USE-021")
        Cleaning(self.min_area or 0.0, 0.0, self.simplify)  # refuses sizes that make no sense

    @classmethod
    def of(cls, options: dict[str, Any]) -> DetectOptions:
        """Options by name; an unknown one is refused with the nearest known."""
        known = [item.name for item in fields(cls)]
        for name in options:
            if name not in known:
                raise UsageError(f"unknown option {name!r}{suggest(name, known)}", code="E-USE-011")
        return cls(**options)

    def window(self, scene: Scene) -> Window:
        """The part of `scene` to work on."""
        if self.bounds is None:
            return scene.grid.window
        return scene.grid.window_of(self.bounds, self.bounds_crs)

    def tiles(self, model: Model, scene: Scene, window: Window, progress: Progress) -> Iterator[TileScores]:
        """Scores of `window`, tile by tile."""
        tiling = Tiling(self.tile, self.halo, self.batch_size)
        check_halo(model, model.halo if self.halo is None else self.halo)
        return predict_tiles(
            model, scene, window=window, tiling=tiling, amp=self.amp, flips=self.tta == "d4", progress=progress
        )


@dataclass(frozen=True, slots=True)
class Products:
    """The rasters of one detection: where they are written and which of them the user keeps."""

    grid: Grid
    mask: Path
    scores: Path
    keeps_mask: bool
    keeps_scores: bool

    @classmethod
    def plan(cls, grid: Grid, mask: Path | None, scores: Path | None, scratch: Path) -> Products:
        """Rasters on `grid`; those without a path of the user's go to the folder `scratch`."""
        return cls(
            grid, mask or scratch / "mask.tif", scores or scratch / "scores.tif", mask is not None, scores is not None
        )

    def write(
        self, model: Model, tiles: Iterable[TileScores], *, scene: str, origin: Window,
        thresholds: NDArray[np.float32], overwrite: bool,
    ) -> None:  # fmt: skip
        """Write mask and scores of the scene called `scene`, tile by tile.

        Raises
        ------
        InputError
            Not one pixel was valid; then nothing is left of either file.
        """
        found = False
        with ExitStack() as stack:
            mask = stack.enter_context(self._mask_writer(model, overwrite))
            scores = stack.enter_context(self._score_writer(model, overwrite))
            for tile in tiles:
                row, col = tile.window.row_off - origin.row_off, tile.window.col_off - origin.col_off
                place = Window(col, row, tile.window.width, tile.window.height)
                reached = (tile.scores >= thresholds[:, None, None]).view(np.uint8)
                mask.write(_blanked(reached, tile.valid, INVALID), place)
                scores.write(self._encoded(tile), place)
                found |= bool(tile.valid.any())
            if not found:
                raise InputError(f"{scene} has no valid pixel here", hint="check nodata and masks", code="E-IN-020")

    def _mask_writer(self, model: Model, overwrite: bool) -> RasterWriter:
        return RasterWriter(
            self.mask, grid=self.grid, names=model.classes, dtype="uint8", nodata=INVALID, overwrite=overwrite,
            overviews=self.keeps_mask,
        )  # fmt: skip

    def _score_writer(self, model: Model, overwrite: bool) -> RasterWriter:
        if self.keeps_scores:
            return RasterWriter(
                self.scores, grid=self.grid, names=model.classes, dtype="float32", nodata=np.nan,
                overwrite=overwrite, resampling="average",
            )  # fmt: skip
        return RasterWriter(
            self.scores, grid=self.grid, names=model.classes, dtype="uint16", compress=None, overviews=False
        )

    def _encoded(self, tile: TileScores) -> NDArray[Any]:
        if self.keeps_scores:
            return _blanked(tile.scores, tile.valid, np.nan)
        return (tile.scores * np.float32(SCORE_STEPS) + np.float32(0.5)).astype(np.uint16)


def _blanked(planes: NDArray[Any], valid: NDArray[np.bool_], value: float) -> NDArray[Any]:
    """`planes` (K, h, w) with `value` where not valid; as they are when all is valid."""
    return planes if valid.all() else np.where(valid, planes, planes.dtype.type(value))


def thresholds_of(model: Model, override: float | None) -> NDArray[np.float32]:
    """One threshold per class: `override` for all, or the model's own."""
    own = [item.threshold for item in model.card.classes]
    return np.asarray(own if override is None else [override] * len(own), dtype=np.float32)


def outlines(model: Model, products: Products, options: DetectOptions) -> geopandas.GeoDataFrame:
    """Features of every class from the written mask, cleaned up as the card or the options say."""
    classes = model.card.classes
    least = {c.name: c.min_area_m2 if options.min_area is None else options.min_area for c in classes}
    return polygonize_file(
        products.mask,
        scores_path=products.scores,
        score_scale=1.0 if products.keeps_scores else 1.0 / SCORE_STEPS,
        min_area_m2=least,
        min_hole_m2={c.name: c.min_hole_m2 for c in classes},
        simplify_m=options.simplify,
        class_ids={c.name: c.id for c in classes},
    )
