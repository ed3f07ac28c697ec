"""score(): a prediction held against the truth. The front door of this room.

    read both -> agree on names and a CRS -> count areas, pixels and objects per scene -> Report

Every scene is counted by itself and in square metres of a CRS chosen for its place; the counts add up
in the report, whichever CRSs the scenes are in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pyproj
import shapely

from satseg.crs import CRSLike, describe, metric_crs
from satseg.errors import CRSError, LabelError, UsageError
from satseg.grid import Grid
from satseg.progress import Progress, silent
from satseg.scoring.cells import Geometries, pooled_areas
from satseg.scoring.jaccard import AreaCounts
from satseg.scoring.layers import UNNAMED, Layer
from satseg.scoring.objects import paired_counts
from satseg.scoring.overlay import MAX_SIDE_PX, Drawing
from satseg.scoring.pairs import AoiSource, LayerSource, Pair, SceneSource, read_pairs
from satseg.scoring.pixels import layer_pixel_counts
from satseg.scoring.places import Place
from satseg.scoring.report import EMPTY_VALUES, ClassScore, EmptyRule, Report, SceneScore

log = logging.getLogger(__name__)

IGNORE = "ignore"
"""The label value whose ground counts for nobody, as in training."""


def score(  # noqa: PLR0913  # the front door: each keyword is one choice of the user
    pred: LayerSource,
    truth: LayerSource,
    *,
    aoi: AoiSource = None,
    scene: SceneSource = None,
    field: str | None = None,
    truth_field: str | None = None,
    classes: Sequence[str] | None = None,
    ignore: str = IGNORE,
    empty: EmptyRule = "absent",
    objects: bool = True,
    progress: Progress = silent,
) -> Report:
    """Return the scores of a prediction: Jaccard of exact areas and of pixels, and F1 of objects.

    Parameters
    ----------
    pred, truth : GeoDataFrame, Raster, path, or several of them
        Polygons, or masks whose pixels above 0 are of their band's class. Several scenes come as
        folders (paired by file stem), mappings (paired by key) or sequences (paired by position).
        Outside a truth mask, and where it is not valid, nothing is known and nothing counts; where
        a predicted mask is not valid, nothing was predicted.
    aoi : vector file, GeoDataFrame, shapely geometry, Scene, Raster or Grid, optional
        Only what lies inside counts. Of a scene or raster these are the footprint without the
        invalid pixels, for areas and pixels alike. A bare geometry is in the CRS of the truth.
        Several scenes may have one each, given as `pred` is.
    scene : Scene, Raster, Grid or image path, optional
        The image that was predicted on. It bounds what counts as `aoi` does, its grid is that of the
        pixel scores, and reports show it. Not needed when `aoi` is a scene.
    field, truth_field : str, optional
        Attribute with the class, of both layers or of the truth alone. ``class_name`` serves where
        it is missing, and a layer without either has one unnamed class, which is taken for the one
        class of the other layer.
    classes : sequence of str, optional
        Only these, in this order; all that occur when left out.
    ignore : str
        Class of the truth whose ground does not count.
    empty : {"absent", "zero", "one"}
        What a class absent from both sides is worth: left out of the mean, 0, or 1.
    objects : bool
        Whether to pair features too, at an IoU of 0.5.
    progress : Progress
        Told after each scene.

    Returns
    -------
    Report

    Raises
    ------
    CRSError
        Some layers have a CRS and others none.
    LabelError
        The truth lies wholly off the scene, has no such field or no polygons.
    InputError
        A file is missing or damaged, or scenes cannot be paired.
    UsageError
        `empty` is unknown, or sequences differ in length.
    """
    if empty not in EMPTY_VALUES:
        raise UsageError(f"empty={empty!r} is none of {tuple(EMPTY_VALUES)}", code="E-USE-062")
    pairs, notes = read_pairs(pred, truth, aoi=aoi, scene=scene, fields=(field, truth_field or field))
    pairs = _with_shared_names(pairs, classes, ignore)
    names = _class_names(pairs, classes, ignore)
    scenes = {}
    for done, pair in enumerate(pairs, start=1):
        scenes[pair.name], said = _score_pair(pair, names, ignore=ignore, empty=empty, objects=objects)
        notes.extend(f"{pair.name}: {note}" for note in said)
        progress("score", done, len(pairs), pair.name)
    for note in notes:
        log.warning(note)
    repaired = {
        "prediction": sum(pair.pred.repaired for pair in pairs),
        "truth": sum(pair.truth.repaired for pair in pairs),
    }
    placed = any(crs is not None for pair in pairs for crs in _systems(pair))
    return Report(scenes, empty, repaired, tuple(notes), "m2" if placed else "units2")


def _with_shared_names(pairs: list[Pair], classes: Sequence[str] | None, ignore: str) -> list[Pair]:
    """`pairs` in which a layer's one unnamed class bears the name of the other layer's one class."""
    predicted = {name for pair in pairs for name in pair.pred.classes}
    actual = {name for pair in pairs for name in pair.truth.classes} - {ignore}
    wanted = set(classes or ())
    known = (actual | predicted) - {UNNAMED} or wanted
    if len(known) != 1 or len(wanted) > 1:
        return pairs
    (name,) = known
    if predicted == {UNNAMED}:
        pairs = [pair.with_pred(pair.pred.renamed(UNNAMED, name)) for pair in pairs]
    if actual == {UNNAMED}:
        pairs = [pair.with_truth(pair.truth.renamed(UNNAMED, name)) for pair in pairs]
    return pairs


def _class_names(pairs: Sequence[Pair], classes: Sequence[str] | None, ignore: str) -> tuple[str, ...]:
    if classes is not None:
        return tuple(dict.fromkeys(classes))
    layers = [layer for pair in pairs for layer in (pair.truth, pair.pred)]
    return tuple(sorted({name for layer in layers for name in layer.classes} - {ignore}))


def _score_pair(
    pair: Pair, classes: tuple[str, ...], *, ignore: str, empty: EmptyRule, objects: bool
) -> tuple[SceneScore, list[str]]:
    """Return the counts of one scene, and what looked odd about it."""
    place = pair.place.beside(pair.truth, pair.pred)
    crs = _metric_crs(pair, place)
    pred, truth = pair.pred.in_crs(crs), pair.truth.in_crs(crs)
    own = pair.truth.crs
    aoi = place.counted(crs, own)
    _check_on_place(truth, aoi, crs)
    unseen = np.concatenate([place.uncounted(crs), truth.of(ignore)])
    pixels = _pixels(pair, place, classes, ignore)
    scores = {}
    for name in classes:
        found, real = _touching(pred.of(name), aoi), _touching(truth.of(name), aoi)
        scores[name] = ClassScore(
            AreaCounts(*pooled_areas(found, real, aoi=aoi, ignore=unseen)),
            None if pixels is None else pixels[name],
            paired_counts(found, real, aoi=aoi, ignore=unseen) if objects else None,
            truth_features=len(real),
            predicted_features=len(found),
            empty=empty,
        )
    notes = [*pair.pred.warnings, *pair.truth.warnings, *_oddities(pred, truth, classes)]
    if pixels is None and pred.grid is not None:
        notes.append("the truth reaches too far beyond the predicted mask for a pixel score; give the scene")
    return SceneScore(pair.name, scores, _drawing(pair, place, classes)), notes


def _systems(pair: Pair) -> list[CRSLike | None]:
    """Return the CRSs of everything with coordinates in the pair; a bare geometry has the truth's."""
    layers = [layer.crs for layer in (pair.truth, pair.pred) if len(layer.polygons) or layer.grid is not None]
    regions = [region.crs for region in (pair.place.aoi,) if region is not None and not region.bare]
    return [*layers, *regions, *(grid.crs for grid in pair.place.footprints)]


def _metric_crs(pair: Pair, place: Place) -> pyproj.CRS | None:
    """One CRS with areas in square metres for the pair; None where nothing has a CRS.

    Raises
    ------
    CRSError
        Some have one and others have none.
    """
    systems = _systems(pair)
    placed = [crs for crs in systems if crs is not None]
    if not placed:
        return None
    if len(placed) < len(systems):
        sides = {"prediction": pair.pred.crs, "truth": pair.truth.crs}
        if place.grid is not None:
            sides["scene"] = place.grid.crs
        raise CRSError(
            f"{pair.name}: CRS of " + ", ".join(f"{side}: {describe(crs)}" for side, crs in sides.items()),
            hint="give all a CRS, or none",
            code="E-CRS-010",
        )
    for layer in (pair.truth, pair.pred):
        if len(layer.polygons) and layer.crs is not None:
            left, bottom, right, top = shapely.total_bounds(layer.polygons).tolist()
            return metric_crs(layer.crs, (left, bottom, right, top))
    grids = [*place.footprints, *(grid for grid in (place.grid,) if grid is not None)]
    if grids and grids[0].crs is not None:
        return metric_crs(grids[0].crs, grids[0].bounds)
    return pyproj.CRS.from_user_input(placed[0])  # nothing to measure


def _check_on_place(truth: Layer, aoi: Geometries | None, crs: pyproj.CRS | None) -> None:
    """Raise LabelError when there is truth and none of it touches the area of interest."""
    if aoi is None or not len(truth.polygons) or len(_touching(truth.polygons, aoi)):
        return
    there, here = (tuple(shapely.total_bounds(part).round(3).tolist()) for part in (truth.polygons, aoi))
    raise LabelError(
        f"no true polygon touches the scene or area of interest: truth within {there}, that within {here} in "
        f"{describe(crs)}", hint="check the CRS of both and the order of x and y", code="E-LAB-032",
    )  # fmt: skip


def _touching(polygons: Geometries, aoi: Geometries | None) -> Geometries:
    """Those of `polygons` that have a point in common with `aoi`."""
    if aoi is None or not len(polygons):
        return polygons
    found: Geometries = polygons[np.unique(shapely.STRtree(polygons).query(aoi, predicate="intersects")[1])]
    return found


def _pixels(pair: Pair, place: Place, classes: tuple[str, ...], ignore: str) -> Mapping[str, AreaCounts] | None:
    if place.grid is None:
        return None
    crs = None if place.grid.crs is None else pyproj.CRS(place.grid.crs.to_wkt())
    unseen = np.concatenate([place.uncounted(crs), pair.truth.only([ignore]).in_crs(crs).polygons])
    aoi = place.counted(crs, pair.truth.crs)
    return layer_pixel_counts(pair.pred, pair.truth, place.grid, classes, aoi=aoi, ignore=unseen)


def _oddities(pred: Layer, truth: Layer, classes: tuple[str, ...]) -> list[str]:
    notes = []
    left_out = sorted(set(pred.classes) - set(classes))
    if left_out:
        notes.append(f"predicted classes {left_out} are not scored")
    if len(pred.polygons) and len(truth.polygons):
        first, second = shapely.total_bounds(pred.polygons), shapely.total_bounds(truth.polygons)
        if (first[:2] > second[2:]).any() or (second[:2] > first[2:]).any():
            notes.append("prediction and truth lie in different places; check their CRSs")
    return notes


def _drawing(pair: Pair, place: Place, classes: tuple[str, ...]) -> Drawing | None:
    """Return what a picture of the pair needs; on a lattice of its own where there is no grid."""
    grid = place.grid or _lattice(pair)
    if grid is None or not classes:
        return None
    truth, pred = (layer.only(classes).frame() for layer in (pair.truth, pair.pred))
    return Drawing(truth, pred, grid, classes, place.image)


def _lattice(pair: Pair) -> Grid | None:
    """Square pixels over both layers, in the CRS of the truth."""
    lead = pair.truth if len(pair.truth.polygons) else pair.pred
    both = np.concatenate([layer.in_crs(lead.crs).polygons for layer in (pair.truth, pair.pred)])
    if not len(both):
        return None
    left, bottom, right, top = shapely.total_bounds(both).tolist()
    side = 1.04 * max(right - left, top - bottom) / MAX_SIDE_PX  # a margin of 2 % all around
    height, width = (max(1, round(1.04 * length / side)) for length in (top - bottom, right - left))
    middle_x, middle_y = (left + right) / 2, (bottom + top) / 2
    half_x, half_y = width * side / 2, height * side / 2
    bounds = middle_x - half_x, middle_y - half_y, middle_x + half_x, middle_y + half_y
    return Grid.from_bounds(bounds, height=height, width=width, crs=lead.crs)
