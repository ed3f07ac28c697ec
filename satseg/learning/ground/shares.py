"""How much of the ground, and of the chips, is of each class: by polygons, without reading a scene.

Areas are of polygons cut to the labelled ground and united where they overlap, so that they are exact for classes
far below the size of any sample. Rejected: counting burnt pixels, which takes minutes for a large scene, and
uniting all polygons of a class: few overlap, and a hundred thousand take half a minute.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.imagery.labels import Geometries
from satseg.learning.ground.sampling import ChipSampler
from satseg.learning.ground.split import Ground

SAMPLED_CHIPS = 400
"""Places drawn for the share of chips with a class: 2.5 % of uncertainty at a half."""


def class_areas(ground: Ground, held: bool) -> tuple[float, NDArray[np.float64], NDArray[np.int64]]:
    """Labelled area, area of each class in it, and polygons of each class that touch it.

    Areas are in pixels of the ground; of the part held for validation when `held`, else of all of it.
    Overlapping polygons of a class count once.
    """
    region = _labelled_region(ground)
    if held and ground.held:
        region = region.intersection(shapely.union_all([ground.scene.grid.crop(w).footprint() for w in ground.held]))
    shapely.prepare(region)
    near = [polygons[shapely.intersects(region, polygons)] for polygons in ground.labels.geometries]
    parts = [_cut(_valid(polygons), region) for polygons in near]
    pixel = abs(ground.scene.grid.transform.determinant)
    labelled = _area(np.concatenate(parts)) if ground.labels.unlabelled == "ignore" else region.area
    areas = np.array([_area(polygons) for polygons in parts])
    return labelled / pixel, areas / pixel, np.array([len(polygons) for polygons in near], np.int64)


def _valid(polygons: Geometries) -> Geometries:
    bad = ~shapely.is_valid(polygons)
    if not bad.any():
        return polygons
    mended = polygons.copy()
    mended[bad] = shapely.make_valid(polygons[bad])
    return mended


def _cut(polygons: Geometries, region: shapely.Geometry) -> Geometries:
    cut = polygons.copy()
    over = ~shapely.covers(region, polygons)
    cut[over] = shapely.intersection(polygons[over], region)
    return cut


def _area(polygons: Geometries) -> float:
    """Area of the union of `polygons`; only those that share area are united, which is what takes the time."""
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    pairs = first < second
    first, second = first[pairs], second[pairs]
    shared = shapely.area(shapely.intersection(polygons[first], polygons[second])) > 0
    united = np.zeros(len(polygons), bool)
    united[first[shared]] = united[second[shared]] = True
    return float(shapely.area(polygons[~united]).sum() + shapely.disjoint_subset_union_all(polygons[united]).area)


def chip_shares(grounds: Sequence[Ground], sampler: ChipSampler, count: int = SAMPLED_CHIPS) -> NDArray[np.float64]:
    """Share (0..1) of the first `count` chips of a run that hold some of each class, blanked ground left out."""
    trees = [[shapely.STRtree(polygons) for polygons in ground.labels.geometries] for ground in grounds]
    found = np.zeros(len(grounds[0].labels.classes))
    for number in range(count):
        index, view = sampler.place(number)
        ground = grounds[index]
        window = view.window(sampler.size)
        seen = ground.scene.grid.crop(window).footprint()
        for part in ground.closed(window):
            seen = seen.difference(ground.scene.grid.crop(part).footprint())
        found += [len(tree.query(seen, predicate="intersects")) > 0 for tree in trees[index]]
    return found / count


def _labelled_region(ground: Ground) -> shapely.Geometry:
    """The ground whose classes are known, as far as polygons say: the area of interest, less what is ignored."""
    region: shapely.Geometry = ground.scene.grid.footprint()
    if ground.labels.aoi is not None:
        region = region.intersection(shapely.union_all(_valid(ground.labels.aoi)))
    if len(ground.labels.ignored):
        region = region.difference(shapely.union_all(_valid(ground.labels.ignored)))
    return region
