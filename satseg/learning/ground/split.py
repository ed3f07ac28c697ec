"""The ground kept for validation: whole rectangles of a scene, and a gap around them, not learnt from.

They are blanked out of training chips, so that not a pixel of them is learnt from, however small the scene.
A split of shuffled chips would put neighbours, even overlapping ones, on both sides and flatter the score.
Where another scene shows the same ground, it is barred there too.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.crs import CRS, describe
from satseg.errors import CRSError, LabelError, UsageError
from satseg.grid import Grid, overlap
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import Scene

SMALLEST_BLOCK_PX = 32
MOST_HELD = 0.6
"""Share of a class's features that validation may take before another block is preferred."""
LEAST_SHARED = 1e-6
"""Share of a scene's ground from which on another scene shows it too; less is rounding along an edge."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ground:
    """A labelled scene at its working resolution, with the part of it kept for validation.

    Parameters
    ----------
    scene : Scene
        Bands and grid that the network will see.
    labels : LabelLayer
        Classes and unlabelled areas, in the scene's CRS.
    held : tuple of Window
        Rectangles of the scene's grid that are not learnt from.
    gap : int
        Pixels around those rectangles that are not learnt from either.
    cores : LabelLayer, optional
        Insides of the objects of some classes (`satseg.imagery.cores`), learnt beside the classes.
    barred : tuple of Window
        Where this scene shows ground that another scene holds for validation; not learnt from.
    labels_sha256 : str, optional
        Of the labels as they were given (`satseg.learning.ground.pairs`).
    """

    scene: Scene
    labels: LabelLayer
    held: tuple[Window, ...] = ()
    gap: int = 0
    barred: tuple[Window, ...] = ()
    cores: LabelLayer | None = None
    labels_sha256: str | None = None

    @property
    def planes(self) -> int:
        """How many planes of truth it has: classes, then cores."""
        return len(self.labels.classes) + (0 if self.cores is None else len(self.cores.classes))

    @property
    def blocks(self) -> tuple[Window, ...]:
        """What is validated of it: the rectangles held, all of it where there are none."""
        return self.held or (self.scene.grid.window,)

    def closed(self, window: Window) -> list[Window]:
        """Parts of `window` that are held for validation, or too near to it."""
        parts = (overlap(window, grown(held, self.gap)) for held in (*self.held, *self.barred))
        return [part for part in parts if part is not None]

    def free_share(self, window: Window) -> float:
        """Share of `window` that may be learnt from, 0..1 (overlapping gaps count twice)."""
        closed = float(sum(part.height * part.width for part in self.closed(window)))
        return 1 - closed / float(window.height * window.width)


def grown(window: Window, margin: int) -> Window:
    """`window` with `margin` pixels more on every side."""
    return Window(
        window.col_off - margin, window.row_off - margin, window.width + 2 * margin, window.height + 2 * margin
    )


def hold_out(ground: Ground, *, share: float, chip: int, seed: int) -> Ground:
    """`ground` with about `share` of its area held as whole blocks that carry labels, and a gap.

    The scene is cut into blocks of at most eight chips a side, three of which make up `share`.
    Blocks are held one by one, each time the one that brings every class nearest to `share` of its
    features (ties in a seeded order), so that rare classes are both learnt and scored. The gap is
    an eighth of a chip or block, whichever is smaller: about an object's width, for one that lies across the border.

    Raises
    ------
    UsageError
        The scene is too small to be cut.
    """
    area = _labelled_window(ground)
    block = int(np.clip(math.sqrt(area.height * area.width * share / 3), SMALLEST_BLOCK_PX, 8 * chip))
    rows, cols = max(1, round(area.height / block)), max(1, round(area.width / block))
    if rows * cols < 3:
        grid = ground.scene.grid
        size = "" if grid.crs is None else f" of {grid.gsd_m():.3g} m"
        raise UsageError(
            f"{ground.scene.name}: labels on {area.height} x {area.width} pixels{size} are too few to hold part of "
            "them for validation",
            hint="give --valid-data" + ("" if grid.crs is None else ", or a finer --gsd where it has one"),
            code="E-TRN-003",
        )
    windows = [_cell(area, rows, cols, place) for place in range(rows * cols)]
    features = _features_in(ground, windows)
    chosen = _choose(features, [w.height * w.width for w in windows], share=share, seed=seed)
    if not features[chosen].any():
        log.warning("%s: no label lies on the ground held for validation; give --valid-data", ground.scene.name)
    return replace(ground, held=tuple(windows[i] for i in chosen), gap=min(chip, block) // 8)


def _labelled_window(ground: Ground) -> Window:
    """The part of the scene around its labels: blocks elsewhere would hold nothing to score."""
    grid = ground.scene.grid
    left, bottom, right, top = shapely.total_bounds(np.concatenate(ground.labels.geometries))
    if not (left < right and bottom < top):
        return grid.window
    rows, cols = grid.rowcol(xs=[left, right, right, left], ys=[bottom, bottom, top, top])
    row, col = math.floor(rows.min()), math.floor(cols.min())
    around = Window(col, row, math.ceil(cols.max()) - col, math.ceil(rows.max()) - row)
    return overlap(around, grid.window) or grid.window


def _choose(features: NDArray[np.float64], areas: Sequence[int], *, share: float, seed: int) -> list[int]:
    """Indexes of blocks that together hold about `share` of the area and of each class's features.

    `features` is (blocks, classes) counts.
    """
    shares = features / np.maximum(features.sum(axis=0), 1)
    order = np.random.default_rng((seed, len(areas))).permutation(len(areas))
    chosen: list[int] = []
    while not chosen or sum(areas[i] for i in chosen) < (share - 0.02) * sum(areas):
        held = shares[chosen].sum(axis=0)
        miss = [np.abs(held + shares[i] - share).sum() + _unfit(held + shares[i], shares[i]) for i in order]
        miss = [np.inf if i in chosen else cost for i, cost in zip(order, miss, strict=True)]
        chosen.append(int(order[int(np.argmin(miss))]))
    return chosen


def _unfit(held: NDArray[np.float64], block: NDArray[np.float64]) -> float:
    """Cost of holding a block without any label, or one that leaves a class too little to learn from."""
    return 100.0 * (not block.any()) + 10.0 * float((held > MOST_HELD).sum())


def _cell(area: Window, rows: int, cols: int, place: int) -> Window:
    row, col = divmod(place, cols)
    top, bottom = area.height * row // rows, area.height * (row + 1) // rows
    left, right = area.width * col // cols, area.width * (col + 1) // cols
    return Window(area.col_off + left, area.row_off + top, right - left, bottom - top)


def _features_in(ground: Ground, windows: Sequence[Window]) -> NDArray[np.float64]:
    """(windows, classes): how many features of each class touch each window."""
    outlines = [ground.scene.grid.crop(window).footprint() for window in windows]
    counts = np.zeros((len(windows), len(ground.labels.classes)))
    for k, geometries in enumerate(ground.labels.geometries):
        touched, _ = shapely.STRtree(geometries).query(outlines, predicate="intersects")
        counts[:, k] = np.bincount(touched, minlength=len(windows))
    return counts


def bar_shared_ground(grounds: Sequence[Ground]) -> tuple[Ground, ...]:
    """Return `grounds` with what each shows of the ground that another holds barred from learning."""
    return tuple(replace(ground, barred=tuple(_shown_of_others(ground, grounds))) for ground in grounds)


def _shown_of_others(ground: Ground, grounds: Sequence[Ground]) -> Iterator[Window]:
    grid = ground.scene.grid
    for other in grounds:
        source = other.scene.grid
        if other is ground or grid.crs is None or source.crs is None:
            continue
        for held in other.held:
            outline = shapely.get_coordinates(source.crop(held).footprint(grid.crs))
            rows, cols = grid.rowcol(xs=outline[:, 0], ys=outline[:, 1])
            row, col = math.floor(rows.min()), math.floor(cols.min())
            shown = Window(col, row, math.ceil(cols.max()) - col, math.ceil(rows.max()) - row)
            if overlap(shown, grid.window) is not None:
                yield shown


def shown_in(grid: Grid, crs: CRS | None) -> shapely.Polygon:
    """Return the outline of `grid` in `crs`, empty where its ground has no image there."""
    try:
        return grid.footprint(crs)
    except CRSError:
        return shapely.Polygon()


def refuse_leaks(training: Sequence[Ground], validation: Sequence[Ground]) -> None:
    """Raise when a validation scene lies on the ground of a training scene.

    Raises
    ------
    LabelError
        With the two names and the share of the validation scene that would leak.
    """
    for held in validation:
        outline = held.scene.grid.footprint()
        for ground in training:
            if (held.scene.grid.crs is None) != (ground.scene.grid.crs is None):
                continue
            other = shown_in(ground.scene.grid, held.scene.grid.crs)
            same_files = {*map(os.path.realpath, held.scene.paths)} & {*map(os.path.realpath, ground.scene.paths)}
            placed = held.scene.grid.crs is not None
            share = 1.0 if same_files else outline.intersection(other).area / outline.area if placed else 0.0
            if share > LEAST_SHARED:
                raise LabelError(
                    f"validation scene {held.scene.name} shares {share:.1%} of its ground with training scene "
                    f"{ground.scene.name} ({describe(held.scene.grid.crs)})",
                    hint="validate on other ground, or leave --valid-data out for a blocked split",
                    code="E-TRN-004",
                )
