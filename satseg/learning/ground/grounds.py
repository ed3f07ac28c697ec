"""From pairs of scene and labels to grounds ready to learn from: one set of bands, one resolution.

Everything that can be wrong with training data is found here, before the first step: bands that a
scene lacks, labels off the scene or without the field, classes without a pixel, validation on
training ground.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from satseg.classes import rules_among
from satseg.crs import describe
from satseg.errors import BandError, LabelError, UsageError
from satseg.imagery.cores import core_layer, median_widths, object_classes
from satseg.imagery.labels import LabelLayer
from satseg.imagery.levels import Tone, all_near, all_room, levelled, measured, room_around, tones
from satseg.imagery.normalization import Normalization
from satseg.imagery.scene import Scene
from satseg.imagery.suspicions import Suspicion, refuse_hopeless, suspicions
from satseg.learning.card import FileHash, TrainingSource, normalize_of, tones_of
from satseg.learning.ground.pairs import Pair
from satseg.learning.ground.resolution import unlike_resolutions, working_gsd
from satseg.learning.ground.split import Ground, bar_shared_ground, hold_out, refuse_leaks
from satseg.options import DataOptions
from satseg.run import RunConfig
from satseg.specs import ClassItem, class_spec
from satseg.vector.finish import Measure
from satseg.vector.styles import class_colors

log = logging.getLogger(__name__)

IGNORE = "ignore"
GSD_SPREAD = 0.05
"""Scenes whose GSDs differ by less are taken as they are: resampling would cost more than it mends."""
SMALL_LABEL = 5
"""Percentile of a class's label areas that stands for its small objects."""
SURE_SHARE = 0.8
"""Of the least area of a compact object that is to be sure (`satseg.vector.finish.Sure`). What is no object and as
large as one is mostly unsure, and a larger thing of a low score may be one. Of 17 networks of 4.5 CPU-minutes, at a
threshold of 0.4 and with seeds of 40 pixels, F1 rose from 0.52 to 0.60 in Nairobi, by less than 0.02 in Zanzibar and
Las Vegas and by nothing in Banepa; Jaccard changed by 0.01, 0.00, -0.01 and -0.01. With the whole of it F1 is 0.63, and
0.01 of Jaccard is lost where another sensor saw."""
CORE_SHARE = 0.3
"""Of the least area of a compact object, how much of an inside parts it from another: cores of objects of 120 pixels
have 0.25 to 0.3 of these (`satseg.imagery.cores`). What grows from a smaller one would be cut from its neighbour, and
then dropped. Of the same networks, seeds of 40 pixels instead of 8 brought 0.01 of Jaccard in Las Vegas and Banepa, in
Zanzibar 0.002, in Nairobi -0.005; F1 rose by 0.01 to 0.05, and stayed in Banepa."""
LARGEST_SPECK_PX = 64
"""Clean-up drops no hole, nor a polygon of a class that is not made of compact objects, of more pixels."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Training data in order: what `learner.fit` and the model card need."""

    grounds: tuple[Ground, ...]
    validation: tuple[Ground, ...]
    classes: tuple[ClassItem, ...]
    bands: tuple[str, ...]
    gsd_m: float | None
    normalization: Normalization
    separated: tuple[str, ...] = ()
    """Classes whose objects are learnt apart, by cores."""
    warnings: tuple[str, ...] = ()
    """What looks wrong in the data."""

    @property
    def apart(self) -> tuple[Ground, ...]:
        """Scenes that are only validated on; none where parts of the others are held."""
        return () if self.validation is self.grounds else self.validation

    @property
    def levelled(self) -> bool:
        """Whether each scene is read by its own levels."""
        return self.grounds[0].scene.levels is not None


@dataclass(frozen=True, slots=True)
class Agreed:
    """What scenes have in common once it is settled, and the scenes so; `grounds` are in the order of the pairs."""

    classes: tuple[ClassItem, ...]
    bands: tuple[str, ...]
    gsd_m: float | None
    grounds: tuple[Ground, ...]


def agree(
    pairs: Sequence[Pair], valid_pairs: Sequence[Pair], config: RunConfig, learnt: Sequence[ClassItem] = ()
) -> Agreed:
    """Bring `pairs`, then `valid_pairs`, to one set of classes, bands and resolution; raises as `prepare`."""
    if not pairs:
        raise UsageError(
            "no training data", hint="give --data SCENE LABELS, or a run.toml: that of a run's folder repeats it",
            code="E-TRN-001",
        )  # fmt: skip
    everything = (*pairs, *valid_pairs)
    classes = _classes(pairs, config.data, learnt)
    bands = _common_bands(everything, config.data)
    _one_unit(everything)
    names = tuple(item.name for item in classes)
    layers = [label_layer(pair, names, config.data) for pair in everything]
    gsd = working_gsd([pair.scene for pair in everything], layers, config.data.gsd)
    found = tuple(_ground(pair, layer, bands, gsd, config.data) for pair, layer in zip(everything, layers, strict=True))
    return Agreed(classes, bands, gsd, found)


def prepare(
    pairs: Sequence[Pair], valid_pairs: Sequence[Pair], config: RunConfig, learnt: Sequence[ClassItem] = ()
) -> Prepared:
    """Bring `pairs` to one set of classes, bands and resolution, split them, measure normalization.

    Classes that no class list tells of are as `learnt`, where these have one of that name.

    Raises
    ------
    UsageError
        No pair at all, or a scene too small to split.
    BandError
        A scene lacks a band that the others have.
    LabelError
        A class without a feature, labels off their scene, validation on training ground.
    """
    agreed = agree(pairs, valid_pairs, config, learnt)
    classes, bands, gsd = agreed.classes, agreed.bands, agreed.gsd_m
    opened = [pair.scene for pair in (*pairs, *valid_pairs)]
    odd = _told(unlike_resolutions(opened, gsd, asked=config.data.gsd is not None))
    grounds, validation = agreed.grounds[: len(pairs)], agreed.grounds[len(pairs) :]
    if validation:
        refuse_leaks(grounds, validation)
    else:
        train = config.train
        grounds = tuple(hold_out(g, share=train.valid_share, chip=train.chip, seed=train.seed) for g in grounds)
        validation = grounds = bar_shared_ground(grounds)
    # Of all scenes, as the working resolution is: models of folds then have the same planes, and can be an ensemble.
    widths = median_widths([(ground.scene.grid, ground.labels) for ground in agreed.grounds])
    classes = with_clean_up(classes, grounds, compact=widths)
    stored = grounds
    if config.data.normalize == "scene":
        grounds, validation = _changed(grounds, validation, _levelled)
    normalization = measured([(ground.scene, ground.closed) for ground in grounds], seed=config.train.seed)
    odd += _told(_suspicions(stored, seed=config.train.seed))
    separated = object_classes(widths) if config.data.separate else ()
    if separated:
        grounds, validation = _changed(grounds, validation, partial(_with_cores, names=separated))
    warnings = (*(text for scene in opened for text in _without_folders(scene)), *odd)
    return Prepared(grounds, validation, classes, bands, gsd, normalization, separated, warnings)


def as_detected(prepared: Prepared, normalize: str | None, before: Sequence[TrainingSource] = ()) -> Prepared:
    """Return `prepared`, its validation as detection will see it: near all learnt from, where `normalize` is so.

    Parameters
    ----------
    normalize : str or None
        As ``[data]`` has it.
    before : sequence of TrainingSource
        What the weights at the start have learnt from.
    """
    named, earlier = [item.name for item in prepared.classes], tones_of(before)
    near = normalize_of(normalize, named, prepared.separated) == "near"
    if prepared.validation is prepared.grounds or not near or earlier is None:
        return prepared
    found = tones([ground.scene for ground in prepared.grounds], all_room(prepared.normalization))
    room = room_around([*(one for one in found if one is not None), *earlier], prepared.normalization)
    held = all_near([ground.scene for ground in prepared.validation], room)
    validation = tuple(
        dataclasses.replace(one, scene=scene) for one, scene in zip(prepared.validation, held, strict=True)
    )
    return dataclasses.replace(prepared, validation=validation)


def source_of(ground: Ground, found: Tone | None = None) -> TrainingSource:
    """Return what a card tells of `ground`, and of its tone where that was `found`."""
    grid = ground.scene.grid
    return TrainingSource(
        files=tuple(FileHash.of(path) for path in ground.scene.paths if Path(path).is_file()),
        labels_sha256=ground.labels_sha256,
        crs=None if grid.crs is None else describe(grid.crs),
        bounds=grid.bounds,
        footprint=json.loads(shapely.to_geojson(grid.footprint())),
        tone=() if found is None else found.means,
        tone_px=0 if found is None else found.pixels,
    )


def _suspicions(grounds: Sequence[Ground], *, seed: int) -> tuple[Suspicion, ...]:
    """Return what looks wrong in the data; raise when nothing can be learnt from it."""
    data = [(ground.scene, ground.labels) for ground in grounds]
    found = suspicions(data, seed=seed)
    refuse_hopeless(found, data)
    return found


def _without_folders(scene: Scene) -> list[str]:
    """What `scene` warns of, its files by their names alone: a card tells nothing of this machine."""
    texts = [*scene.warnings]
    for path in sorted(map(os.fspath, scene.paths), key=len, reverse=True):
        texts = [text.replace(path, os.path.basename(path)) for text in texts]
    return texts


def _told(found: Iterable[Suspicion]) -> list[str]:
    """Warn of what was `found`, and return it as text."""
    texts = list(map(str, found))
    for text in texts:
        log.warning("%s", text)
    return texts


def _changed(
    grounds: tuple[Ground, ...], validation: tuple[Ground, ...], change: Callable[[Ground], Ground]
) -> tuple[tuple[Ground, ...], tuple[Ground, ...]]:
    """Both after `change`; the same tuple again where they are one."""
    changed = tuple(map(change, grounds))
    return changed, changed if validation is grounds else tuple(map(change, validation))


def _levelled(ground: Ground) -> Ground:
    return dataclasses.replace(ground, scene=levelled(ground.scene))


def _with_cores(ground: Ground, names: Sequence[str]) -> Ground:
    return dataclasses.replace(ground, cores=core_layer(ground.labels, ground.scene.grid, names))


def _classes(pairs: Sequence[Pair], options: DataOptions, learnt: Sequence[ClassItem]) -> tuple[ClassItem, ...]:
    found = sorted({str(name) for pair in pairs for name in pair.labels["class_name"]} - {IGNORE})
    spec = class_spec(options.class_spec).classes if options.class_spec else ()
    known = {item.name: item for item in (*learnt, *spec)}
    names = options.classes or tuple(item.name for item in spec) or tuple(found)
    missing = [name for name in names if name not in found]
    if missing:
        raise LabelError(
            f"no feature of class {missing} in the labels, which have {found}",
            hint="check --field and --classes",
            code="E-LAB-010",
        )
    colors = class_colors(names)
    free = (number for number in count(1) if number not in {item.id for item in known.values()})
    items = [known.get(name) or ClassItem(name=name, id=next(free), color=colors[name]) for name in names]
    return rules_among(items)


def with_clean_up(
    classes: Sequence[ClassItem], grounds: Sequence[Ground], *, compact: Container[str]
) -> tuple[ClassItem, ...]:
    """Return `classes` with a least polygon and hole size, for those whose spec gives none.

    A speck has half the area of a small label (the `SMALL_LABEL` percentile of the class), but never more than
    `LARGEST_SPECK_PX` pixels. Holes are dropped up to a speck, polygons too; of `compact` classes, such as roofs, all
    polygons smaller than the small label itself (or than half the median, where all are alike): on towns not learnt
    from, cars and yards come out as pieces of that size. Of 6 trainings tried on Nairobi and Zanzibar, F1 at IoU 0.5
    rose by 0.01 to 0.07 from 64 to 150 pixels, and Jaccard moved by less than 0.01. Rejected: choosing the size on
    ground held in the training scenes, which has few of those pieces.

    Pieces of that size and above are kept where the network is sure of them: see `SURE_SHARE`.
    """
    pixel_m2 = max(ground.scene.grid.pixel_area_m2() for ground in grounds)
    result = []
    for k, item in enumerate(classes):
        areas = np.concatenate([_areas_m2(ground, k) for ground in grounds])
        if item.min_area_m2 == 0 and len(areas):
            small = float(np.percentile(areas, SMALL_LABEL))
            speck = min(small / 2, LARGEST_SPECK_PX * pixel_m2)
            sizes = {"min_area_m2": speck, "min_hole_m2": item.min_hole_m2 or speck}
            if item.name in compact:
                least = min(small, float(np.median(areas)) / 2)
                shares = {"min_sure_m2": SURE_SHARE, "min_core_m2": CORE_SHARE}
                own = {key: share * least for key, share in shares.items() if key not in item.model_fields_set}
                sizes |= {"min_area_m2": least, **own}
            item = item.model_copy(update=sizes)
        result.append(item)
    return tuple(result)


def _areas_m2(ground: Ground, k: int) -> NDArray[np.float64]:
    polygons = ground.labels.geometries[k]
    if not len(polygons):
        return np.empty(0)
    return Measure(ground.scene.grid.crs, ground.scene.grid.bounds).areas(polygons)


def _common_bands(pairs: Sequence[Pair], options: DataOptions) -> tuple[str, ...]:
    first = pairs[0].scene
    wanted = tuple(_by_number(name, first) for name in options.bands or first.bands)
    wanted = tuple(dict.fromkeys((*wanted, *options.indices)))
    for pair in pairs:
        missing = [name for name in wanted if name not in pair.scene.bands]
        if missing:
            raise BandError(
                f"{pair.scene.name} has bands {pair.scene.bands}, training needs {wanted}",
                hint="name them alike with --sensor, or choose some with --bands",
                code="E-BAND-010",
            )
    return wanted


def _one_unit(pairs: Sequence[Pair]) -> None:
    """Raise BandError where an index that needs reflectance is in another unit in another scene."""
    seen: dict[str, tuple[str, str]] = {}
    for pair in pairs:
        for band in pair.scene.indices:
            unit, name = seen.setdefault(band.name, (band.unit, pair.scene.name))
            if unit != band.unit and not band.formula.is_scale_free:
                raise BandError(
                    f"{band.name} is of {unit} in {name}, and of {band.unit} in {pair.scene.name}",
                    hint="bring the scenes to one unit, or leave the index out",
                    code="E-BAND-306",
                )


def _by_number(band: str, scene: Scene) -> str:
    """`band`, or what the band of that number (from 1) is called in `scene`."""
    numbered = band not in scene.bands and band.isdecimal() and 1 <= int(band) <= len(scene.bands)
    return scene.bands[int(band) - 1] if numbered else band


def label_layer(pair: Pair, classes: tuple[str, ...], options: DataOptions) -> LabelLayer:
    """Return the labels of `pair` in the CRS of its scene, which all its resolutions have."""
    grid = pair.scene.grid
    return LabelLayer.build(pair.labels, grid, classes, aoi=pair.aoi, unlabelled=options.unlabelled, ignore=IGNORE)


def _ground(
    pair: Pair, layer: LabelLayer, bands: tuple[str, ...], gsd: float | None, options: DataOptions
) -> Ground:
    scene = pair.scene.select(bands)
    spread = GSD_SPREAD if options.gsd is None else 1e-3
    if gsd is not None and scene.grid.crs is not None and abs(scene.grid.gsd_m() / gsd - 1) > spread:
        scene = scene.at_gsd(gsd)
    return Ground(scene, layer, labels_sha256=pair.labels_sha256)
