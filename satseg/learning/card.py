"""The model card: what a model file says about itself, so that nobody has to remember it.

One JSON document with everything needed to run the weights (architecture, bands, normalisation,
classes, margins) and to judge them (training ground and files, scores, versions, licence). It is
written in one canonical form with a checksum of itself inside, so that a changed byte is noticed.
Rejected: a side-car file, which is lost with the first copy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, JsonValue, model_validator

from satseg.classes import ClassItem, rule_fault
from satseg.crs import Bounds
from satseg.errors import BandError
from satseg.imagery.indices import Candidate, IndexBand, settled
from satseg.imagery.levels import ENOUGH_PX, Span, Tone, room_around
from satseg.imagery.normalization import Normalization
from satseg.imagery.scene import Scene
from satseg.indexes import IndexItem

FORMAT_VERSION = 1
CHECKSUM = "card_sha256"
STATED_NOWHERE = "not stated; ask the author before passing the model on"
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _as_json(value: object) -> object:
    """`value` as JSON would give it back: tuples become lists, NaN and other objects are refused."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except TypeError as error:
        raise ValueError(str(error)) from error


Plain: TypeAlias = Annotated[dict[str, JsonValue], BeforeValidator(_as_json)]
"""A free-form part of the card; an absent score is null."""


class _Part(BaseModel):
    """Base of the card's parts: immutable, unknown keys and infinite numbers refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Architecture(_Part):
    """A network by name, and the arguments that build it; "smp": of segmentation-models-pytorch."""

    name: Literal["unet", "committee", "smp", "ternausnet"] = "unet"
    arguments: dict[str, bool | int | float | str]


class BandCard(_Part):
    """A band by name; its wavelengths in nanometres where known."""

    name: str
    center_nm: float | None = None
    low_nm: float | None = None
    high_nm: float | None = None


class IndexCard(_Part):
    """A spectral index among the bands: what it is computed from, so that it can be computed on other scenes.

    `bands` are by role; `unit` is what their values were in, and `scale` the factors that the training was told;
    `undefined` stands for 0/0, null: such a pixel is not valid.
    """

    item: IndexItem
    bands: Annotated[dict[str, str], Field(min_length=1)]
    unit: str
    scale: dict[str, float] = {}
    undefined: float | None = None

    @model_validator(mode="after")
    def _computable(self) -> IndexCard:
        self.item.over(self.bands)
        return self

    @classmethod
    def of(cls, band: IndexBand) -> IndexCard:
        """What a scene's index is."""
        said = {one.band: one.unit.scale for one in band.inputs if one.said}
        bands = {one.role: one.band for one in band.inputs}
        return cls(item=band.item, bands=bands, unit=band.unit, scale=said, undefined=band.undefined)

    def on(self, scene: Scene) -> IndexBand:
        """Return the index of the same bands of `scene`.

        Raises
        ------
        BandError
            As `satseg.imagery.indices.settled`; its values need reflectance, and are in another unit (E-BAND-306).
        """
        among = [Candidate.of(source) for source in scene.sources]
        formula = self.item.over(self.bands)
        found = settled(self.item, formula, self.bands, among, scale=self.scale, undefined=self.undefined)
        if found.unit != self.unit and not formula.is_scale_free:
            raise BandError(
                f"the model learnt {found.name} of {self.unit}, and in {scene.name} it is of {found.unit}",
                hint="bring the scene to that unit, or open it with the sensor that says its scale",
                code="E-BAND-306",
            )
        return found


class FileHash(_Part):
    """A file by name and content."""

    name: str
    sha256: Sha256

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileHash:
        """Read the file at `path` once and return its name, without folders, and its SHA-256."""
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(name=Path(path).name, sha256=digest)


class TrainingSource(_Part):
    """One pair of scene and labels: the scene's files, the labels' content, and the ground that it covers.

    `labels_sha256` is of classes and outlines as they were given, not of their file (`satseg.learning.ground.pairs`).
    `bounds` (left, bottom, right, top) and `footprint` (a GeoJSON geometry) are in `crs`. `tone` is the mean of each
    band, in the order of the network's input, of `tone_px` pixels; empty where it is not known, or there are none.
    """

    files: tuple[FileHash, ...] = ()
    labels_sha256: Sha256 | None = None
    crs: str | None = None
    bounds: Bounds | None = None
    footprint: Plain | None = None
    tone: tuple[FiniteFloat, ...] = ()
    tone_px: Annotated[int, Field(ge=0)] = ENOUGH_PX


class Training(_Part):
    """How the weights came about.

    `validation` are scenes that were scored on and not learnt from; none where parts of `sources` were held. `weights`
    is the file of an encoder's first weights. `start` is the model file that they were fine-tuned from, `start_sources`
    are what that learnt from; `mean_of` tells the weights whose mean they are. `warnings` are what looked wrong in the
    data.
    """

    sources: tuple[TrainingSource, ...] = ()
    validation: tuple[TrainingSource, ...] = ()
    warnings: tuple[str, ...] = ()
    weights: FileHash | None = None
    steps: Count | None = None
    seconds: Seconds | None = None
    seed: int | None = None
    options: Plain = {}
    start: FileHash | None = None
    start_sources: tuple[TrainingSource, ...] = ()
    mean_of: tuple[Sha256, ...] = ()


class ModelCard(_Part):
    """Everything about a model save its weights.

    Parameters
    ----------
    architecture : Architecture
    bands : tuple of BandCard
        In the order of the network's input.
    indices : tuple of IndexCard
        Those of the bands that are computed from others.
    gsd_m : float or None
        Working resolution in metres; None: pixels as they come.
    normalization : Normalization
        Of exactly these bands, as they are after each scene was brought to its own levels where `levels` says so.
    classes : tuple of ClassItem
        In the order of the network's output, each with its threshold, clean-up values and rules.
    separated : tuple of str
        Classes whose cores the network gives too, in planes after those of the classes.
    overlapping : bool
        Whether one pixel may be of several classes.
    halo, stride : int
        Margin, and alignment of tiles, in pixels of the working resolution.
    halo_tolerance : float or None
        The most that a score moves by what lies beyond the halo, as measured; None: the halo is exact.
    sensor : str or None
        The sensor spec that named the bands.
    weights_sha256 : str
        Of names, types, shapes and values of the weights; filled in on saving.

    Raises
    ------
    pydantic.ValidationError
        Parts that do not fit together.
    """

    format_version: Literal[1] = 1
    architecture: Architecture
    bands: Annotated[tuple[BandCard, ...], Field(min_length=1)]
    indices: tuple[IndexCard, ...] = ()
    gsd_m: Annotated[float, Field(gt=0)] | None = None
    normalization: Normalization
    classes: Annotated[tuple[ClassItem, ...], Field(min_length=1)]
    separated: tuple[str, ...] = ()
    overlapping: bool = True
    halo: Count
    halo_tolerance: Annotated[float, Field(gt=0, lt=1)] | None = None
    stride: Annotated[int, Field(ge=1)]
    sensor: str | None = None
    training: Training = Training()
    scores: Plain = {}
    versions: dict[str, str] = {}
    licence: str = STATED_NOWHERE
    weights_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> ModelCard:
        if self.normalization.names != self.band_names:
            raise ValueError(f"normalization is of {self.normalization.names}, bands are {self.band_names}")
        computed = [index.item.name for index in self.indices]
        if not {*computed} <= {*self.band_names} or len({*computed}) != len(computed):
            raise ValueError(f"indices {tuple(computed)} are not some of {self.band_names}")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"classes repeat: {self.class_names}")
        if not {*self.separated} <= {*self.class_names} or len({*self.separated}) != len(self.separated):
            raise ValueError(f"separated {self.separated} are not some of {self.class_names}")
        if fault := rule_fault(self.classes):
            raise ValueError(fault[2])
        if odd := {len(source.tone) for source in self.learnt_from} - {0, len(self.bands)}:
            raise ValueError(f"tones of {sorted(odd)} bands, but there are {len(self.bands)}")
        planes = len(self.classes) + len(self.separated)
        for key, count in (("bands", len(self.bands)), ("classes", planes)):
            if self.architecture.arguments.get(key) != count:
                raise ValueError(f"{count} {key}, but the network has {self.architecture.arguments.get(key)}")
        return self

    @property
    def band_names(self) -> tuple[str, ...]:
        """Bands in the order of the network's input."""
        return tuple(band.name for band in self.bands)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of the network's output."""
        return tuple(item.name for item in self.classes)

    @property
    def registers(self) -> bool:
        """Whether the products of the scenes learnt from were laid over each other, as those to detect in should be."""
        return self.told("registered") is True

    @property
    def normalize(self) -> str:
        """How a scene is read: as it is ("data"), "near" the tones learnt from, or by the levels of the "scene"."""
        told = self.told("normalize")
        found = normalize_of(told if isinstance(told, str) else None, self.class_names, self.separated)
        return "data" if found == "near" and not self.room else found

    @property
    def learnt_from(self) -> tuple[TrainingSource, ...]:
        """Scenes that the weights have seen, those of a start among them."""
        return (*self.training.sources, *self.training.start_sources)

    @property
    def room(self) -> dict[str, Span]:
        """Into which the bands of a scene are brought to be near those learnt from; none where one is not known."""
        return room_around(tones_of(self.learnt_from) or (), self.normalization)

    def told(self, name: str) -> object:
        """Return the option `name` of ``[data]`` as the training had it; None where the card says nothing of it."""
        data = self.training.options.get("data")
        return data.get(name) if isinstance(data, dict) else None

    def info(self) -> dict[str, Any]:
        """Return what the model needs and finds, in plain data: bands, and classes with their rules."""
        return {
            "network": self.architecture.name,
            "gsd_m": self.gsd_m,
            "halo": self.halo,
            "sensor": self.sensor,
            "normalize": self.normalize,
            "bands": [band.model_dump() for band in self.bands],
            "classes": class_facts(self.classes),
        }

    def to_json(self) -> str:
        """Return the card in its one canonical form, its own checksum inside."""
        document: dict[str, Any] = self.model_dump(mode="json")
        document[CHECKSUM] = checksum(document)
        return canonical(document)


def tones_of(sources: Sequence[TrainingSource]) -> list[Tone] | None:
    """Return the tones of `sources` that have one; None where one is not known."""
    if any(source.tone_px and not source.tone for source in sources):
        return None
    return [Tone(source.tone, source.tone_px) for source in sources if source.tone]


def normalize_of(given: str | None, classes: Sequence[str], separated: Sequence[str]) -> str:
    """Return the option ``[data] normalize`` as it holds: "near" when left out and all of `classes` are `separated`.

    What is compact covers little of the ground and so does not make a scene's tone, as water or forest would.
    """
    return given or ("near" if {*classes} == {*separated} else "data")


def class_facts(classes: Sequence[ClassItem]) -> list[dict[str, Any]]:
    """Return what is told of classes and their rules, in plain data."""
    told = {"id", "threshold", "min_area_m2", "min_sure_m2", "min_core_m2", "min_hole_m2"}
    return [{"name": item.name, **item.model_dump(include=told), "rules": list(item.rules)} for item in classes]


def canonical(document: dict[str, Any]) -> str:
    """Return `document` as JSON with sorted keys and no spaces: one text per content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(document: dict[str, Any]) -> str:
    """Return the SHA-256 of `document` in canonical form, its own checksum left out."""
    bare = {key: value for key, value in document.items() if key != CHECKSUM}
    return hashlib.sha256(canonical(bare).encode()).hexdigest()
