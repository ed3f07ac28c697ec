"""Seeded multispectral scenes with exact labels, for the demo, the tests and the notebooks.

`make_scene` invents a town's edge at half a metre a pixel, draws it in the eight bands of
WorldView-3 and returns the polygons it was drawn from. One class, artificial turf, looks exactly
like the lawns beside it and differs in the infrared alone, so that a detector must use more than
three bands. Shipping a real labelled scene was rejected: none is small, free and exact.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from satseg.crs import CRSLike, describe, parse_crs
from satseg.errors import CRSError, UsageError
from satseg.grid import Grid
from satseg.imagery.writer import write_raster
from satseg.output import check_writable
from satseg.raster import Raster
from satseg.synthetic.layout import Layout
from satseg.synthetic.rendering import draw
from satseg.synthetic.spectra import BANDS
from satseg.synthetic.townplan import plan_layout
from satseg.vector.features import write_features

SYNTHETIC_CLASSES = ("building", "road", "track", "tree", "crop", "water", "vehicle", "artificial_turf")
"""Classes of generated scenes; class_id is the place in this tuple, from 1."""
SYNTHETIC_COLORS = dict(
    zip(
        SYNTHETIC_CLASSES,
        ("#f28e2b", "#d9d9d9", "#c9a063", "#2f9e44", "#f2e06b", "#3f97e8", "#ff2e4d", "#c65cff"),
        strict=True,
    )
)
"""As a map would colour them."""
SENSORS = ("worldview2", "worldview3")
"""Sensors whose multispectral bands are those of `satseg.synthetic.spectra`."""
MIN_SIDE_PX = 64
SLIVER_M2 = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticScene:
    """A generated scene.

    Parameters
    ----------
    raster : Raster, (8, H, W) uint16
        Counts 1..2047; 0 and not valid outside the strip that the sensor saw.
    labels : GeoDataFrame in the scene's CRS
        class_id, class_name, geometry: valid polygons inside the valid area, overlapping where the
        things do (crowns over roads, vehicles on roads).
    decoys : GeoDataFrame in the scene's CRS
        The lawns that artificial turf imitates; class_name "lawn". No label covers them.
    classes : tuple of str
        `SYNTHETIC_CLASSES`.
    seed : int
    """

    raster: Raster
    labels: gpd.GeoDataFrame
    decoys: gpd.GeoDataFrame
    classes: tuple[str, ...]
    seed: int


def make_scene(
    seed: int,
    *,
    height: int = 768,
    width: int = 1024,
    gsd_m: float = 0.5,
    sensor: str = "worldview3",
    crs: CRSLike | None = "EPSG:32633",
) -> SyntheticScene:
    """Return the scene that `seed` stands for: the same bytes and polygons wherever it is made.

    Parameters
    ----------
    seed : int
        0 or more. Scenes of different seeds differ in plan, sun, haze and gain, and lie apart.
    height, width : int
        Pixels, at least 64 each. Every class is present from about 160 x 200 m on.
    gsd_m : float
        Pixel size in metres.
    sensor : str
        "worldview3" or "worldview2", which share their eight multispectral bands.
    crs : CRS-like, optional
        Projected, in metres; None for a scene that has no place on Earth.

    Raises
    ------
    UsageError
        The seed, size, pixel size or sensor is not one of these.
    CRSError
        The CRS is not projected in metres.
    """
    _check(seed, (height, width), gsd_m, sensor)
    place = parse_crs(crs)
    if place is not None and not (place.is_projected and place.linear_units_factor[1] == 1.0):
        raise CRSError(
            f"{describe(place)} is not projected in metres", hint="give a UTM zone", code="E-SYN-005"
        )
    planner, painter = (np.random.default_rng([seed, stream]) for stream in (1, 2))
    layout = plan_layout(planner, width_m=width * gsd_m, height_m=height * gsd_m)
    footprint = _footprint(planner, width * gsd_m, height * gsd_m)
    left, top = 300_000.0 + 4_000.0 * (seed % 100), 5_700_000.0 + 4_000.0 * (seed // 100 % 100)
    grid = Grid(height, width, Affine(gsd_m, 0, left, 0, -gsd_m, top), place)
    local = Affine(gsd_m, 0, 0, 0, -gsd_m, height * gsd_m)
    valid = geometry_mask([footprint], out_shape=grid.shape, transform=local, invert=True)
    data = draw(painter, layout, height=height, width=width, gsd_m=gsd_m) * valid.astype(np.uint16)
    things = _labelled(layout)
    origin = np.array([left, top - height * gsd_m])
    return SyntheticScene(
        raster=Raster(data, grid, BANDS, valid),
        labels=_frame(things, SYNTHETIC_CLASSES, footprint, origin=origin, grid=grid),
        decoys=_frame(_lawns(layout), ("lawn",), footprint, origin=origin, grid=grid),
        classes=SYNTHETIC_CLASSES,
        seed=seed,
    )


def write_scene(
    scene: SyntheticScene,
    folder: str | os.PathLike[str],
    stem: str | None = None,
    *,
    label_suffix: str = ".gpkg",
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Write ``{stem}.tif`` and ``{stem}_labels{label_suffix}`` into `folder`; return both paths.

    Parameters
    ----------
    scene : SyntheticScene
    folder : path-like
        Must exist.
    stem : str, optional
        ``synthetic_{seed}`` when left out.
    label_suffix : str
        Any suffix that `write_features` knows.
    overwrite : bool
        Whether existing files may be replaced.

    Raises
    ------
    OutputError
        The folder is missing or a file exists.
    UsageError
        The suffix is unknown.
    """
    name = stem or f"synthetic_{scene.seed}"
    image, labels = Path(folder) / f"{name}.tif", Path(folder) / f"{name}_labels{label_suffix}"
    check_writable(image, overwrite=overwrite)
    write_features(scene.labels, labels, overwrite=overwrite)
    note = f"generated by satseg.make_scene, seed {scene.seed}; not an image of a real place"
    write_raster(scene.raster, image, overwrite=overwrite, nodata=0, description=note)
    return image, labels


def _check(seed: int, shape: tuple[int, int], gsd_m: float, sensor: str) -> None:
    if seed < 0:
        raise UsageError(f"seed {seed} is negative", hint="give 0 or more", code="E-SYN-001")
    if min(shape) < MIN_SIDE_PX:
        raise UsageError(f"a scene of {shape[0]} x {shape[1]} pixels is too small", code="E-SYN-002")
    if not (math.isfinite(gsd_m) and 0.2 <= gsd_m <= 2.0):
        raise UsageError(f"gsd {gsd_m} m is not within 0.2..2 m", code="E-SYN-003")
    if sensor not in SENSORS:
        raise UsageError(f"no spectra for sensor '{sensor}'", hint=f"choose of {SENSORS}", code="E-SYN-004")


def _footprint(rng: np.random.Generator, width_m: float, height_m: float) -> Polygon:
    """Return what the strip covers: the scene less two opposite corners, as where a strip crosses a grid."""
    lean, reach = float(rng.uniform(0.05, 0.10)) * width_m, float(rng.uniform(0.55, 0.85)) * height_m
    if rng.random() < 0.5:
        corners = [(0, reach), (lean, height_m), (width_m, height_m)]
        corners += [(width_m, height_m - reach), (width_m - lean, 0), (0, 0)]
    else:
        corners = [(lean, 0), (0, height_m - reach), (0, height_m)]
        corners += [(width_m - lean, height_m), (width_m, reach), (width_m, 0)]
    return Polygon(corners)


def _labelled(layout: Layout) -> list[tuple[str, BaseGeometry]]:
    """Class and outline of every thing; roads, tracks and water are joined, and end under a road."""
    road, track, water = (
        shapely.union_all([patch.outline for patch in layout.patches if patch.label == name])
        for name in ("road", "track", "water")
    )
    things = [("building", item.outline) for item in layout.buildings]
    things += [("road", road), ("track", track.difference(road))]
    things += [("tree", item.outline) for item in layout.crowns]
    single = ("crop", "artificial_turf")
    things += [(patch.label, patch.outline) for patch in layout.patches if patch.label in single]
    things += [("water", water.difference(road))]
    things += [("vehicle", item.outline) for item in layout.vehicles]
    return things


def _lawns(layout: Layout) -> list[tuple[str, BaseGeometry]]:
    return [("lawn", patch.outline) for patch in layout.layer("lawn") if patch.label is None]


def _frame(
    things: Sequence[tuple[str, BaseGeometry]],
    classes: Sequence[str],
    footprint: Polygon,
    *,
    origin: NDArray[np.float64],
    grid: Grid,
) -> gpd.GeoDataFrame:
    """`things` clipped to the footprint, in pieces, moved to the scene's place and sorted by class."""
    outlines = shapely.intersection(np.array([outline for _, outline in things], object), footprint)
    pieces, owner = shapely.get_parts(outlines, return_index=True)
    polygonal = (shapely.get_type_id(pieces) == shapely.GeometryType.POLYGON) & (
        shapely.area(pieces) > SLIVER_M2
    )
    pieces, owner = pieces[polygonal], owner[polygonal]
    names = np.array([name for name, _ in things], object)[owner]
    ids = np.array([classes.index(name) + 1 for name in names], np.int64)
    order = np.argsort(ids, kind="stable")
    moved = shapely.transform(pieces[order], lambda points: points + origin)
    columns = {"class_id": ids[order], "class_name": names[order]}
    return gpd.GeoDataFrame(columns, geometry=moved, crs=grid.crs)
