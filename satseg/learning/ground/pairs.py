"""One scene with its labels as they are given: opened, their classes named, and told from all others by content.

What several of them have in common is `grounds`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import geopandas
import numpy as np
import shapely

from satseg.crs import describe, to_pyproj
from satseg.imagery.drivers import DEFAULT_DRIVERS
from satseg.imagery.indexing import check_scene
from satseg.imagery.labels import SINGLE_CLASS
from satseg.imagery.registration import registered
from satseg.imagery.scene import Scene, open_scene
from satseg.learning.area import area_of_interest
from satseg.learning.card import IndexCard
from satseg.options import DataOptions
from satseg.specs import index_spec
from satseg.vector.classes import classes_of
from satseg.vector.features import read_features

log = logging.getLogger(__name__)

PathLike: TypeAlias = str | os.PathLike[str]
SceneLike: TypeAlias = Scene | PathLike | Sequence[PathLike]
LabelsLike: TypeAlias = "geopandas.GeoDataFrame | PathLike"


@dataclass(frozen=True)
class Pair:
    """A scene, its labels, and the outline inside which they are complete."""

    scene: Scene
    labels: geopandas.GeoDataFrame
    aoi: shapely.Geometry | None = None

    @cached_property
    def labels_sha256(self) -> str:
        """What tells these labels from others: `content_sha256` of them."""
        return content_sha256(self.labels, self.aoi)


def content_sha256(labels: geopandas.GeoDataFrame, aoi: shapely.Geometry | None) -> str:
    """Return the SHA-256 of CRS, classes and outlines in their order, and of `aoi`.

    It is the same from formats that turn rings another way, begin them elsewhere, or make all of them multipolygons;
    not from one that keeps another order, as FlatGeobuf does, or another CRS, as GeoJSON mostly does.
    """
    crs = None if labels.crs is None else to_pyproj(labels.crs)
    name = describe(crs) if crs is None or crs.to_authority() else crs.to_wkt()
    digest = hashlib.sha256(json.dumps([name, *map(str, labels["class_name"])]).encode())
    outlines = np.array([*labels.geometry, aoi], dtype=object)
    single = shapely.get_type_id(outlines) == shapely.GeometryType.POLYGON
    outlines[single] = shapely.multipolygons(outlines[single][:, None])
    for outline in shapely.to_wkb(shapely.normalize(outlines), byte_order=1):
        digest.update(outline or b"-")
    return digest.hexdigest()


def as_scene(scene: SceneLike, options: DataOptions) -> Scene:
    """`scene`, opened with the sensor and CRS of `options` when it is not open yet, and registered if they say so."""
    if isinstance(scene, Scene):
        return registered(scene) if options.registered else scene
    drivers = (*DEFAULT_DRIVERS, *options.allow_driver)
    opened = open_scene(
        scene, sensor=options.sensor, src_crs=options.src_crs, drivers=drivers, register=options.registered
    )
    for text in opened.warnings:
        log.warning("%s", text)
    return opened


def open_pair(
    scene: SceneLike, labels: LabelsLike, aoi: PathLike | None, options: DataOptions, *,
    learnt: Sequence[IndexCard] = (),
) -> Pair:  # fmt: skip
    """Open one scene with its labels, read by the class field of `options`.

    Indices that no document of `options` tells of are those of the model that is fine-tuned, `learnt` from its card.
    """
    opened = _with_indices(as_scene(scene, options), options, learnt)
    layer = labels if isinstance(labels, geopandas.GeoDataFrame) else read_features(labels, field=options.field)
    names = classes_of(layer, options.field if layer is labels else None, None, "labels")
    if options.classes and len(options.classes) == 1 and options.field is None and {*names} == {SINGLE_CLASS}:
        names[:] = options.classes[0]
    known = np.array([name is not None for name in names], dtype=bool)
    layer = layer.assign(class_name=names)[known]
    return Pair(opened, layer, None if aoi is None else shapely.union_all(area_of_interest(aoi, opened)))


def _with_indices(scene: Scene, options: DataOptions, learnt: Sequence[IndexCard]) -> Scene:
    """`scene` with the indices of `options` that it has not got yet, their values looked at."""
    there = {band.name for band in scene.indices}
    names = [name for name in options.indices if name not in there]
    spec = index_spec() if options.index_spec is None else index_spec(options.index_spec)
    own = {card.item.name: card for card in learnt if options.index_spec is None and card.item not in spec.indices}
    told = [name for name in names if name not in own]
    found = scene.with_indices(*told, spec=spec, bands=options.index_roles, scale=options.index_scale)
    found = found.with_index_bands([own[name].on(scene) for name in names if name in own])
    check_scene(scene, found.indices)
    for band in found.indices:
        log.info("%s: %s", scene.name, band.told())
    return found
