"""Pixel scores of polygon layers: both burnt onto one grid by the pixel-centre rule, strip by strip.

The rule is rasterio's own, for both sides the same, so a mask that was outlined comes back as the
very mask it was. Memory follows the width of the grid, not its height.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely

from satseg.crs import to_pyproj
from satseg.grid import Grid
from satseg.imagery.labels import LabelLayer
from satseg.scoring.cells import Geometries
from satseg.scoring.jaccard import AreaCounts, pixel_counts
from satseg.scoring.layers import Layer, strip_windows

STRIP_VALUES = 2**25
"""Pixels times planes burnt at a time: 32 MiB of masks."""


def layer_pixel_counts(
    pred: Layer,
    truth: Layer,
    grid: Grid,
    classes: Sequence[str],
    *,
    aoi: Geometries | None = None,
    ignore: Geometries | None = None,
) -> dict[str, AreaCounts]:
    """Return the counts of each class in pixels of `grid`.

    Parameters
    ----------
    pred, truth : Layer
        In any CRS that moves to the grid's.
    aoi, ignore : arrays of polygons in the grid's CRS, optional
        Pixels count whose centre is in `aoi` and not in `ignore`.
    """
    if not classes:
        return {}
    found = _burnable(pred, grid, classes)
    real = _burnable(truth, grid, classes, aoi=aoi, ignore=ignore)
    totals = np.zeros((3, len(classes)), dtype=np.int64)
    for window in strip_windows(grid, rows=STRIP_VALUES // (grid.width * 2 * len(classes))):
        strip = grid.crop(window)
        targets, valid = real.burn(strip)
        totals += pixel_counts(found.planes(strip), targets, valid)
    return {name: AreaCounts(*map(int, column)) for name, column in zip(classes, totals.T, strict=True)}


def _burnable(
    layer: Layer,
    grid: Grid,
    classes: Sequence[str],
    *,
    aoi: Geometries | None = None,
    ignore: Geometries | None = None,
) -> LabelLayer:
    moved = layer.only(classes).in_crs(None if grid.crs is None else to_pyproj(grid.crs))
    return LabelLayer(
        tuple(classes),
        tuple(shapely.get_parts(moved.of(name)) for name in classes),
        grid.crs,
        np.empty(0, dtype=object) if ignore is None else shapely.get_parts(ignore),
        None if aoi is None else shapely.get_parts(aoi),
    )
