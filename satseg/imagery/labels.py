"""Labels to masks: polygons burnt onto a grid by the pixel-centre rule, one plane per class.

Classes may overlap, so K classes give K planes. Ground is `labelled` unless an ignore feature
covers it, it lies outside the area of interest, or the user says that only labelled polygons
count. The rule is rasterio's own (GDAL: a pixel is inside when its centre is); contour filling
thickens every outline by half a pixel and was rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize as burn_shapes

from satseg.crs import describe, same_crs
from satseg.errors import CRSError, LabelError
from satseg.grid import Grid
from satseg.raster import Raster

if TYPE_CHECKING:
    import geopandas

Unlabelled = Literal["background", "ignore"]


@dataclass(frozen=True, slots=True, eq=False)
class LabelLayer:
    """Labels of one scene in the scene's CRS, ready to be burnt window by window.

    Parameters
    ----------
    classes : tuple of str
        In the order of the planes.
    geometries : tuple of ndarray of shapely polygons, one per class
    ignored : ndarray of shapely polygons
        Where the truth is not known.
    aoi : shapely geometry or None
        Outside it nothing is known.
    unlabelled : "background" or "ignore"
        What ground without any polygon is.
    """

    classes: tuple[str, ...]
    geometries: tuple[NDArray[Any], ...]
    ignored: NDArray[Any]
    aoi: shapely.Geometry | None = None
    unlabelled: Unlabelled = "background"

    @classmethod
    def build(
        cls,
        labels: geopandas.GeoDataFrame,
        grid: Grid,
        classes: Sequence[str],
        *,
        aoi: shapely.Geometry | None = None,
        unlabelled: Unlabelled = "background",
        ignore: str = "ignore",
    ) -> LabelLayer:
        """Labels by their ``class_name``, moved to the grid's CRS.

        Raises
        ------
        CRSError
            One of labels and grid has a CRS and the other has none.
        LabelError
            There is no polygon, or none touches the grid.
        """
        moved = _on(labels, grid)
        names = moved["class_name"].astype(str).to_numpy()
        shapes = moved.geometry.to_numpy()
        polygonal = np.isin(shapely.get_type_id(shapes), (3, 6)) & ~shapely.is_empty(shapes)
        if not polygonal.any():
            raise LabelError("the labels hold no polygon", hint="buffer points and lines first", code="E-LAB-002")
        names, shapes = names[polygonal], shapes[polygonal]
        if not shapely.intersects(shapely.union_all(shapely.box(*shapely.bounds(shapes).T)), grid.footprint()):
            raise LabelError(
                f"no label touches the scene: labels at {tuple(shapely.total_bounds(shapes).round(6))}, scene at "
                f"{tuple(np.round(grid.bounds, 6))} in {describe(grid.crs)}",
                hint="check the CRS of both",
                code="E-LAB-003",
            )
        return cls(
            tuple(classes), tuple(shapes[names == name] for name in classes), shapes[names == ignore], aoi, unlabelled
        )

    def burn(self, grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return targets (K, H, W) of 0 and 1, and where they are known (H, W) bool, on `grid`."""
        box = shapely.box(*grid.bounds)
        targets = np.stack([_burnt(shapes, grid, box) for shapes in self.geometries])
        labelled = _burnt(self.ignored, grid, box) == 0
        if self.aoi is not None:
            labelled &= _burnt(np.array([self.aoi], dtype=object), grid, box) == 1
        if self.unlabelled == "ignore":
            labelled &= targets.any(axis=0)
        return targets, labelled


def rasterize(
    labels: geopandas.GeoDataFrame,
    *,
    like: Grid | Any,
    classes: Sequence[str] | None = None,
    all_touched: bool = False,
) -> Raster:
    """Masks of `labels`: (K, H, W) uint8, 1 where a pixel's centre is inside a polygon of the class."""
    grid: Grid = getattr(like, "grid", like)
    moved = _on(labels, grid)
    names = moved["class_name"].astype(str).to_numpy()
    wanted = tuple(classes or sorted(set(names)))
    box, shapes = shapely.box(*grid.bounds), moved.geometry.to_numpy()
    planes = [_burnt(shapes[names == name], grid, box, all_touched=all_touched) for name in wanted]
    return Raster(np.stack(planes), grid, wanted)


def _on(labels: geopandas.GeoDataFrame, grid: Grid) -> geopandas.GeoDataFrame:
    if (labels.crs is None) != (grid.crs is None):
        raise CRSError(
            f"labels are in {describe(labels.crs)}, the scene in {describe(grid.crs)}", hint="give both a CRS",
            code="E-CRS-020",
        )  # fmt: skip
    return labels if same_crs(labels.crs, grid.crs) else labels.to_crs(grid.crs.to_wkt() if grid.crs else None)


def _burnt(shapes: NDArray[Any], grid: Grid, box: shapely.Geometry, *, all_touched: bool = False) -> NDArray[np.uint8]:
    near = shapes[shapely.intersects(shapes, box)] if len(shapes) else shapes
    if not len(near):
        return np.zeros(grid.shape, np.uint8)
    plane: NDArray[np.uint8] = burn_shapes(
        near, out_shape=grid.shape, transform=grid.transform, dtype="uint8", all_touched=all_touched
    )
    return plane
