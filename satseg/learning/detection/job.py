"""A detection prepared: options checked, tiles and budget chosen, ready to run. What `pipeline` is made of.

Row bands come from the engine, or from the ledger of a run that was stopped, and go to the products. The
ledger keeps codes (and scores, when their file is wanted), not files: whatever is in them is made anew from
its bands in one fast pass, so that the result of a resumed run has the bytes of one that was never stopped.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from rasterio.windows import Window

import satseg
from satseg.crs import Bounds, CRSLike, describe
from satseg.errors import UsageError
from satseg.imagery.drivers import is_remote
from satseg.imagery.flights import Flight
from satseg.imagery.indices import IndexBand
from satseg.imagery.labels import Geometries
from satseg.imagery.scene import Scene
from satseg.imagery.tiling import TilePlan
from satseg.learning.area import area_of_interest
from satseg.learning.card import checksum
from satseg.learning.detection.budget import (
    Estimate,
    automatic_batch,
    check_room,
    choose_tiles,
    disk_bytes,
    estimate,
    strips_ahead,
)
from satseg.learning.detection.engine import RowBand, Working, scan
from satseg.learning.detection.inference import chosen_halo, gather, toned_scene
from satseg.learning.detection.products import Making, Products, Targets
from satseg.learning.machine import resolve_device
from satseg.learning.networks.ensemble import Predictor, identity
from satseg.learning.networks.ensemble_file import MEANS, Mean
from satseg.learning.networks.forward import ScoreType, Wanted
from satseg.learning.networks.runtimes import ENGINES
from satseg.learning.networks.views import TTA
from satseg.ledger import Ledger, identity_of
from satseg.progress import Progress, silent
from satseg.raster import Raster
from satseg.specs import suggest
from satseg.vector.finish import Cleaning

log = logging.getLogger(__name__)

CORE_LEVEL = 0.5
"""Score from which on a pixel is of a core. Mean F1 of ten networks in Nairobi, Zanzibar and Las Vegas, which they had
not learnt from: 0.55; at 0.3 0.57, for large roofs stay whole; in dense Banepa, learnt from, 0.45 and 0.28, for
neighbours merge. Jaccards differ by about 0.01. Rejected: cores at 0.2 parted only where two of them reach 0.5 and 0.8
(0.56 and 0.43), or 0.7 (0.55 and 0.45)."""


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """How `detect` and `predict` work; every field is a keyword of both.

    Parameters
    ----------
    bounds : (left, bottom, right, top), optional
        Only this part of the scene, in `bounds_crs` (the scene's own when left out).
    aoi : path-like, optional
        Vector file of the area to look at; the rest is not computed, and some blocks read for levels or tone at most.
    tile, batch_size : int, optional
        Kept side of a tile, and tiles per pass; chosen from model, scene, device and memory.
    halo : int or "exact", optional
        Margin of a tile; a third wider with `tta` over scales, so that the coarsest view has as much. The model's own
        was measured: beyond it nothing moves a score by more than the card says. "exact" covers all that the
        network can reach.
    max_memory : int, optional
        Bytes of host memory to stay within.
    engine : "torch", "onnx" or "openvino"
        What computes the network; the other two are extras.
    devices : sequence of str
        Several that share the work, such as ("cuda:0", "cuda:1"); the model's own when left out.
    amp : bool
        Compute in half precision: faster, scores differ in the third digit.
    tta : {"none", "flips", "d4", "scales", "d4+scales"}
        Average the scores over a tile as it is, flipped both ways and transposed, at four times the work; over all
        flips and quarter turns, at eight times; over 0.75, 1 and 1.5 times the working resolution, at four times;
        over the last two, at thirty times.
    mean : {"arithmetic", "geometric"}, optional
        Of the scores, over the views of `tta` and the members of an ensemble; when left out that of the ensemble's
        file, else the arithmetic one.
    threshold : float, optional
        For all classes, in place of the model's own.
    min_area, simplify : float, optional
        In square metres and metres; when left out what the model says of small features, and no simplification but that
        of its rules. Simplifying all classes together needs all features in memory at once.
    rules : bool
        Whether the classes' rules hold beyond threshold and least sizes: growing, erasing and the like.
    score_type : {"float32", "float16", "uint8"}
        Of the file of scores; bytes hold 0..254 and say so by the file's scale.
    register : bool, optional
        Lay the products of the scene over the finest, also of one that is open, unless that has been done; as the
        scenes were that the model learnt from when left out.
    tone : {"own", "near"}, optional
        "near": a scene whose bands lie off all that the model learnt from, as another sensor's or another light's do,
        is moved near them, and told of (`satseg.imagery.levels`); as the model says when left out.
    flight : Flight, optional
        Of which the scene is one file: all are moved alike then (`satseg.imagery.flights`).
    """

    bounds: Bounds | None = None
    bounds_crs: CRSLike | None = None
    aoi: str | os.PathLike[str] | None = None
    tile: int | None = None
    halo: int | Literal["exact"] | None = None
    batch_size: int | None = None
    max_memory: int | None = None
    engine: str = "torch"
    devices: Sequence[str] = ()
    amp: bool = False
    tta: str = "none"
    mean: Mean | None = None
    threshold: float | None = None
    min_area: float | None = None
    simplify: float = 0.0
    rules: bool = True
    score_type: ScoreType = "float32"
    register: bool | None = None
    tone: Literal["own", "near"] | None = None
    flight: Flight | None = None

    def __post_init__(self) -> None:
        choices = {"tta": tuple(TTA), "engine": ENGINES, "score_type": get_args(ScoreType), "mean": (None, *MEANS),
                   "tone": (None, "own", "near")}  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                words = " or ".join(map(repr, allowed))
                raise UsageError(f"{name} {getattr(self, name)!r} is not {words}", code="E-USE-021")
        if self.threshold is not None and not (
            0 < self.threshold < 1 and 0 < np.float32(self.threshold) < 1  # as it is compared
        ):
            raise UsageError(f"threshold {self.threshold} is not between 0 and 1", code="E-USE-021")
        for name, low in (("tile", 1), ("batch_size", 1), ("max_memory", 1), ("halo", 0)):
            value = getattr(self, name)
            if value is not None and value != "exact" and not (isinstance(value, int) and value >= low):
                raise UsageError(f"{name} {value!r} is no whole number from {low} on", code="E-USE-020")
        if self.flight is not None and not isinstance(self.flight, Flight):
            raise UsageError(f"flight is a {type(self.flight).__name__}", hint="take it of `flights`", code="E-USE-021")
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

    def working(self, model: Predictor) -> Working:
        """How the engine works with `model`: devices, batch, threads."""
        devices = tuple(resolve_device(name) for name in self.devices) or (model.device,)
        on_gpu = devices[0].type == "cuda"
        cores = max(1, torch.get_num_threads())
        return Working(
            engine=self.engine,
            amp=self.amp,
            views=replace(TTA[self.tta], mean=self.mean or model.mean),
            halos=tuple(chosen_halo(member, self.halo) for member in model.members),
            devices=devices,
            batch_size=self.batch_size or 1,
            readers=max(1, cores // 2),
            strips_ahead=2 if on_gpu else 1,
            bands_ahead=1 if on_gpu else 0,
        )

    def thresholds(self, model: Predictor) -> NDArray[np.float32]:
        """One threshold per plane: for classes the option or the model's own, for their cores `CORE_LEVEL`."""
        own = [item.threshold for item in model.items]
        levels = own if self.threshold is None else [self.threshold] * len(own)
        return np.asarray([*levels, *(CORE_LEVEL for _ in model.cores)], dtype=np.float32)

    def cleaning(self, model: Predictor) -> Cleaning:
        """What is cleaned away of each class."""
        return Cleaning.of(model.items, min_area_m2=self.min_area, simplify_m=self.simplify, threshold=self.threshold)


@dataclass(frozen=True, slots=True)
class Detection:
    """A detection that is ready to run; made by `prepare`.

    Parameters
    ----------
    model : Predictor
    scene : Scene
        As `working_scene` returns it.
    plan : TilePlan
    wanted : Wanted
    working : Working
    options : DetectOptions
    memory : int
        Bytes of host memory it will take, about.
    aoi : ndarray of Polygon, optional
    """

    model: Predictor
    scene: Scene
    plan: TilePlan
    wanted: Wanted
    working: Working
    options: DetectOptions
    memory: int
    aoi: Geometries | None = None

    @classmethod
    def prepare(cls, model: Predictor, scene: Scene, options: DetectOptions, wanted: Wanted) -> Detection:
        """Choose tiles and check what can be checked before work starts.

        Raises
        ------
        UsageError, GridError, CRSError, InputError
            Options that make no sense for this model and scene; a model alone cannot disagree (E-USE-027); a scene
            without a valid pixel that is to be brought to its own levels.
        """
        if wanted.disagreement and len(model.members) == 1:
            raise UsageError(
                "a single model has nobody to disagree with", hint="give an ensemble, or ask for the entropy",
                code="E-USE-027",
            )  # fmt: skip
        if options.mean is not None and len(model.members) == 1 and options.tta == "none":
            log.warning("one model and one view have no %s mean: scores are as they are", options.mean)
        scene = toned_scene(model, scene, options.tone, options.flight)
        window, working = options.window(scene), options.working(model)
        working = replace(working, strips_ahead=strips_ahead(scene, working))
        plan, memory = choose_tiles(
            model, scene, window, wanted, working, halo=max(working.halos), tile=options.tile,
            max_memory=options.max_memory,
        )  # fmt: skip
        if options.batch_size is None:
            working = replace(working, batch_size=automatic_batch(model, plan, working.devices, working.views))
        aoi = None if options.aoi is None else area_of_interest(options.aoi, scene)
        return cls(model, scene, plan, wanted, working, options, memory, aoi)

    def bands(self, progress: Progress, *, first: int = 0) -> Generator[RowBand]:
        """Row bands from number `first` on."""
        return scan(
            self.model, self.scene, self.plan, self.wanted, self.working, aoi=self.aoi, first=first,
            progress=progress,
        )  # fmt: skip

    def making(self) -> Making:
        """How products are made of its results."""
        options, model = self.options, self.model
        return Making(
            grid=self.scene.grid.crop(self.plan.window),
            classes=model.items,
            thresholds=options.thresholds(model)[: len(model.classes)],
            cleaning=options.cleaning(model),
            score_type=options.score_type,
            threads=min(len(model.classes), max(1, torch.get_num_threads())),
            cores=model.cores,
            pixel_m2=self.scene.grid.pixel_area_m2() if model.cores else 1.0,
            rules=options.rules,
        )

    def estimate(self, targets: Targets, *, timed: bool) -> Estimate:
        """Return what it takes to make `targets`."""
        disk = self._disk(targets)
        return estimate(self.model, self.plan, self.working, memory=self.memory, disk=disk, timed=timed)

    def check_room(self, targets: Targets) -> None:
        """Raise OutputError when the disk has no room for `targets`."""
        check_room(targets.paths, self._disk(targets))

    def _disk(self, targets: Targets) -> int:
        count, mask = len(self.model.classes) + len(self.model.cores), targets.mask is not None
        return disk_bytes(self.plan, count, self.wanted, mask=mask, ledger=bool(targets.paths))

    def run(self, products: Products, progress: Progress) -> None:
        """Feed `products` with all row bands."""
        with closing(self.bands(progress)) as bands:
            for band in bands:
                products.take(band.planes)
        products.finish(self.scene.name)

    def run_with(self, ledger: Ledger, products: Products, progress: Progress) -> None:
        """Feed `products` with the bands that `ledger` has, then with the others, which it keeps."""
        count = len(self.plan.row_range)
        for number in range(min(ledger.finished, count)):
            products.take(ledger.read(number))
            progress("resume", number + 1, ledger.finished, "")
        if ledger.finished < count:
            with closing(self.bands(progress, first=ledger.finished)) as bands:
                for band in bands:
                    if count > 1:  # a single band is computed again sooner than told from a damaged one
                        ledger.append(band.planes)
                    products.take(band.planes)
        products.finish(self.scene.name)

    def header(self, targets: Targets) -> dict[str, JsonValue]:
        """Return all that decides the bytes of the results, for the ledger."""
        options, plan, grid = self.options, self.plan, self.scene.grid
        place = plan.window
        inputs = [os.fspath(path) for path in (*self.scene.paths, *([options.aoi] if options.aoi else []))]
        return {
            "satseg": satseg.__version__,
            "inputs": {name: {} if is_remote(name) else identity_of(name) for name in inputs},
            "model": _digests(self.model),
            "bands": list(self.scene.bands),
            "indices": {band.name: _settled(band) for band in self.scene.indices},
            "grid": {"size": [grid.height, grid.width], "transform": list(grid.transform[:6]),
                     "crs": None if grid.crs is None else describe(grid.crs)},
            "registered": [[*one.paths, one.rows, one.cols, one.turn_deg]
                           for one in self.scene.registrations if one.is_moved],
            "levels": None if self.scene.levels is None else {**self.scene.levels.to_dict()},
            "flight": [one.name for one in options.flight.scenes] if options.flight and self.scene.levels else [],
            "area": [place.row_off, place.col_off, place.height, place.width],
            "tiles": {"height": plan.tile, "width": plan.tile_width, "halo": plan.halo,
                      "halos": list(self.working.halos)},
            "thresholds": {
                name: round(float(level), 6)
                for name, level in zip(self.model.classes, options.thresholds(self.model), strict=False)
            },
            "options": {"engine": options.engine, "device": self.working.devices[0].type, "amp": options.amp,
                        "tta": options.tta, "mean": self.working.views.mean, "min_area": options.min_area,
                        "simplify": options.simplify, "rules": options.rules, "score_type": options.score_type},
            "outputs": {name: None if path is None else path.name for name, path in _named(targets)},
        }  # fmt: skip

    def like(self, header: dict[str, JsonValue] | None) -> Detection:
        """Return this detection with the tiles of an unfinished run's header, where sizes were left to satseg.

        Which tiles are chosen depends on the memory that is free; a run goes on with those it began with.
        """
        tiles = None if header is None else header.get("tiles")
        if self.options.tile is not None or not isinstance(tiles, dict):
            return self
        height, width = tiles.get("height"), tiles.get("width")
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            return self
        sides = (math.ceil(side / self.plan.align) * self.plan.align for side in (height, width))
        return replace(self, plan=replace(self.plan, **dict(zip(("tile", "tile_width"), sides, strict=True))))


def _settled(band: IndexBand) -> dict[str, JsonValue]:
    """All that decides the values of an index: its formula, and band, unit, factor and offset of each role."""
    roles: dict[str, JsonValue] = {
        one.role: [one.band, one.unit.name, one.unit.scale, one.unit.offset] for one in band.inputs
    }
    constants: dict[str, JsonValue] = {constant.name: constant.value for constant in band.item.constants}
    undefined = None if band.undefined is None else repr(band.undefined)  # may be NaN, which JSON has not
    return {"formula": band.item.formula, "constants": constants, "roles": roles, "undefined": undefined}


def _digests(model: Predictor) -> JsonValue:
    """What tells a model, or an ensemble, from all others."""
    if len(model.members) == 1:
        (card,) = (member.card for member in model.members)
        return {"weights": card.weights_sha256, "card": checksum(card.model_dump(mode="json"))}
    members: list[JsonValue] = [list(identity(member)) for member in model.members]
    stackers: dict[str, JsonValue] = {str(plane): [*one.weights, one.bias] for plane, one in model.stackers}
    return {"members": members, "stackers": stackers}


def _named(targets: Targets) -> list[tuple[str, Path | None]]:
    return [(item.name, getattr(targets, item.name)) for item in fields(targets)]


def scores_of(
    model: Predictor, scene: Scene, options: DetectOptions | None = None, *, progress: Progress = silent
) -> Raster:
    """Return scores of the model's classes, (K, H, W) float32 in memory, on `scene` as `working_scene` returns it."""
    ready = Detection.prepare(model, scene, options or DetectOptions(), Wanted(scores="float32"))
    with closing(ready.bands(progress)) as bands:
        return gather(bands, ready.scene.grid, ready.plan.window, model.classes)
