"""The run file: everything a training run can be told, each key with a default.

One pydantic model per section of the TOML (`[data] [model] [train]`). Key names are unique over the
sections, so that the Python API and the command line take them flat (``minutes=10``), and an
unknown name is refused with the nearest known one.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from satseg.errors import UsageError
from satseg.specs import read_toml, suggest, validation_message

PathLike: TypeAlias = str | os.PathLike[str]
FileName: TypeAlias = Annotated[str, BeforeValidator(lambda n: os.fspath(n) if isinstance(n, os.PathLike) else n)]
STRICT = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)
DEFAULT_MINUTES = 10.0
ZooArch: TypeAlias = Literal["unet", "unetplusplus", "fpn", "deeplabv3plus", "manet", "linknet"]
TernausArch: TypeAlias = Literal["ternausnet11", "ternausnet16"]
Upsampling: TypeAlias = Literal["nearest", "bilinear", "transposed"]


class LabelledScene(BaseModel):
    """A scene in one or several files, the labels that lie on it, and where those are complete.

    Scenes of one `group` never part when folds are made (`[train] folds`); one without is a group of its own.
    """

    model_config = STRICT

    scene: str | tuple[str, ...]
    labels: str
    aoi: str | None = None
    group: str | None = None


class DataOptions(BaseModel):
    """`[data]`: what is learnt from."""

    model_config = STRICT

    scenes: tuple[LabelledScene, ...] = ()
    valid_scenes: tuple[LabelledScene, ...] = ()
    field: str | None = Field(None, description="label attribute holding the class; without it all are one class")
    classes: tuple[str, ...] | None = Field(None, description="names in order; all values of the field when left out")
    class_spec: str | None = Field(None, description="a class list of data_specs or a file: names, colours, clean-up")
    sensor: str | None = Field(None, description="sensor spec that names the bands")
    allow_driver: tuple[str, ...] = Field((), description="GDAL drivers that may open scenes too, such as VRT")
    bands: tuple[str, ...] | None = Field(None, description="bands to use; all of the first scene when left out")
    indices: tuple[str, ...] = Field((), description="spectral indices as further bands, such as ndvi")
    index_spec: str | None = Field(None, description="document of indices of your own")
    index_roles: dict[str, str] = Field({}, description='bands of indices by role, such as { nir = "nir2" }')
    index_scale: float | None = Field(None, gt=0, description="factor from counts to reflectance, for indices alone")
    gsd: float | None = Field(None, gt=0, description="working resolution in metres; chosen by scenes and objects")
    unlabelled: Literal["background", "ignore"] = "background"
    separate: bool = Field(True, description="learn compact objects apart, so that those that touch are found apart")
    src_crs: str | None = Field(None, description="CRS of scenes that state none")
    registered: bool = Field(False, description="lay products of a scene over the finest; detect does so too")


class ModelOptions(BaseModel):
    """`[model]`: the plain UNet, a TernausNet, or a network on an encoder of segmentation-models-pytorch.

    See `satseg.learning.networks.unet`, `ternausnet` and `zoo` there for what each does.
    """

    model_config = STRICT

    encoder: str | None = Field(None, description="such as resnet34; the plain UNet or a TernausNet without")
    arch: Literal[ZooArch, TernausArch] = "unet"
    weights: FileName | None = Field(None, description="of the encoder at first: a file, or a name such as imagenet")
    start: FileName | None = Field(None, description="model file to fine-tune; its options hold where none are given")
    inflate: Literal["repeat", "wavelength"] | None = Field(
        None, description="how weights of other bands serve: in turn (weights without it), or of the nearest wavelength"
    )
    freeze: float = Field(0.0, ge=0, le=1, description="share of the budget in which the encoder stays as it is")
    encoder_rate: float = Field(1.0, gt=0, le=100, description="factor on the encoder's learning rate")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor from one quarter of the encoder to the one before")
    members: int | None = Field(None, ge=1, le=32, description="networks learnt in turn that answer as one")
    width: int = Field(32, ge=1, description="filters of the finest level")
    width_multiplier: float = 2.0
    depth: int = Field(4, ge=1, le=8, description="levels")
    convs_per_level: int = Field(2, ge=1, le=8, description="convolutions of a block")
    residual: bool = Field(True, description="blocks of the encoder add what goes in")
    decoder_convs: int = Field(1, ge=1, le=8, description="convolutions of each level on the way back")
    squeeze: bool = Field(True, description="fewer filters before the coarse picture is enlarged")
    stem: Literal[1, 2, 4] = 2
    norm: Literal["batch", "channel", "none"] = "batch"
    activation: Literal["relu", "elu", "silu", "gelu"] = "relu"
    upsampling: Upsampling | None = Field(None, description="nearest when left out, transposed in a TernausNet")
    crop: int = Field(0, ge=0, description="pixels cut from each side of the output")
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _of_one_network(self) -> ModelOptions:
        if self.start and self.weights:
            raise ValueError("weights are of an encoder at the start, and start has all weights; give one of them")
        if self.encoder and self.arch in TERNAUS_ARCHS:
            raise ValueError(f"arch {self.arch!r} has an encoder of its own; leave encoder={self.encoder!r} out")
        if self.start and not self.encoder:
            return self  # which network it is, the model file will tell
        fields = type(self).model_fields
        moved = [name for name in idle_options(self.kind) if getattr(self, name) != fields[name].default]
        if moved and self.kind == "unet":
            raise ValueError(f"{', '.join(moved)}: for encoders alone; give one, such as encoder='resnet34'")
        if moved:
            given = f"encoder {self.encoder!r}" if self.encoder else f"arch {self.arch!r}"
            raise ValueError(f"{', '.join(moved)}: for the plain UNet alone, not for {given}")
        if self.freeze and self.weights is None and self.start is None:
            raise ValueError("freeze keeps an encoder that has learnt nothing; give weights too")
        if self.inflate and self.weights is None and self.start is None:
            raise ValueError("inflate says how learnt weights serve other bands; give weights too")
        return self

    @property
    def kind(self) -> Kind:
        """Which kind of network it is, as a card names it."""
        return "smp" if self.encoder else "ternausnet" if self.arch in TERNAUS_ARCHS else "unet"


Kind: TypeAlias = Literal["unet", "smp", "ternausnet"]
TERNAUS_ARCHS: tuple[str, ...] = get_args(TernausArch)
OF_ENCODERS = {"arch", "weights", "freeze", "encoder_rate", "layer_decay"}
"""Options of `[model]` that mean nothing to the plain UNet."""
OF_ALL = {"encoder", "start", "inflate"}


def idle_options(kind: str) -> list[str]:
    """Names of the options of `[model]` that mean nothing to networks of `kind`, sorted."""
    if kind == "unet":
        return sorted(OF_ENCODERS)
    used = OF_ALL | OF_ENCODERS | ({"upsampling"} if kind == "ternausnet" else set())
    return sorted(ModelOptions.model_fields.keys() - used)


WEIGHT_FILES = (".safetensors", ".pt", ".pth")


def names_file(weights: str) -> bool:
    """Whether `weights` is the name of a file, not one of published weights."""
    return weights.endswith(WEIGHT_FILES)


Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class AugmentOptions(BaseModel):
    """`[augment]`: how far chips are changed while training; colours in standard deviations of a band.

    See `satseg.learning.training.augment` for what each does.
    """

    model_config = STRICT

    d4: bool = Field(True, description="flips and quarter turns, all eight equally likely")
    rotate: Share = Field(0.0, description="share of chips turned by any angle")
    zoom: tuple[float, float] = Field((0.6, 1.6), description="range of magnification, even in its logarithm")
    gain: float = Field(0.25, ge=0, lt=1, description="each band x (1 +- gain)")
    offset: float = Field(0.25, ge=0, le=10, description="each band +- offset")
    brightness: float = Field(0.3, ge=0, lt=1, description="the same for all bands together: gain and offset")
    gamma: float = Field(0.2, ge=0, le=2, description="power of exp(+- gamma)")
    shade: float = Field(0.0, ge=0, le=10, description="strength of slow haze and shadow, on half the chips")
    blur: Share = Field(0.2, description="share of chips blurred or sharpened")
    noise: float = Field(0.1, ge=0, le=10, description="most noise per pixel and band")
    band_drop: Share = Field(0.0, description="share of chips of which one band is set to its mean")
    cutmix: Share = Field(0.0, description="share of chips with a rectangle of another one")
    mixup: Share = Field(0.0, description="share of chips blended with another one")

    @model_validator(mode="after")
    def _zoom_in_range(self) -> AugmentOptions:
        low, high = self.zoom
        if not 0.1 <= low <= high <= 10:
            raise ValueError(f"zoom {self.zoom} is not (low, high) between 0.1 and 10")
        return self


NO_AUGMENTATION = AugmentOptions(
    d4=False, zoom=(1.0, 1.0),
    **{name: 0.0 for name, field in AugmentOptions.model_fields.items() if field.annotation is float},
)  # fmt: skip


class TrainOptions(BaseModel):
    """`[train]`: how long, on what, and how."""

    model_config = STRICT

    minutes: Annotated[float | None, Field(gt=0, description="budget in minutes of wall time")] = None
    steps: Annotated[int | None, Field(gt=0, description="budget in optimiser steps")] = None
    passes: float = Field(100.0, ge=0, description="times the ground is seen that end a run of minutes; 0: never")
    seed: int = Field(0, ge=0)
    device: str = "auto"
    devices: Annotated[
        int | None, Field(ge=1, description="processes on this machine, each on a GPU of its own or a part of the CPU")
    ] = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    chip: int = Field(128, ge=16, description="side of a training chip in pixels")
    batch: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1, description="batches to a step: memory of one, and the mean of their losses")
    rounds: int = Field(5, ge=1, description="validations over the budget")
    optimizer: Literal["adamw", "nadam"] = "adamw"
    learning_rate: float = Field(5e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the budget in which the rate rises")
    schedule: Literal["cosine", "step"] = Field("cosine", description="of the rate: step is a tenth from half on")
    clip_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.0, ge=0, lt=1, description="kept of the averaged weights at a step, such as 0.99; 0: none")
    patience: int = Field(0, ge=0, description="rounds without a better validation that end the run; 0: never")
    loss: str = "bce_minus_log_jaccard"
    loss_params: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(
        {}, description="of the loss, by name, such as { weight = 0.3 }"
    )
    boundary: float = Field(0.0, ge=0, le=100, description="pixels near a class's border count 1 + this many times")
    smoothing: float = Field(0.0, ge=0, lt=1, description="labels moved towards 1/2, in the cross-entropy alone")
    balance: float = Field(0.5, ge=0, le=1, description="share of chips placed around a feature of a random class")
    hard: float = Field(0.0, ge=0, le=1, description="share of the other chips placed by where errors were")
    folds: int | None = Field(
        None, ge=2, description="models to train, each validated on a part of the scenes that the others learn from"
    )
    valid_share: float = Field(0.1, gt=0, lt=0.6, description="area held for validation in a blocked split")
    fit_rules: bool = Field(False, description="fit least sizes, buffer and simplification on validation too")
    augmented: bool = Field(True, description="false: chips as they are, whatever [augment] says")
    workers: int = Field(0, ge=0, description="loader processes; on few cores they cost more than they bring")
    cache_mb: int = Field(1024, ge=16, description="decoded blocks kept per process")

    @model_validator(mode="after")
    def _one_budget(self) -> TrainOptions:
        if self.minutes is None and self.steps is None:
            object.__setattr__(self, "minutes", DEFAULT_MINUTES)
        elif self.minutes is not None and self.steps is not None:
            raise ValueError("give minutes or steps, not both")
        return self


class RunConfig(BaseModel):
    """A whole run file."""

    model_config = STRICT

    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    train: TrainOptions = TrainOptions()
    augment: AugmentOptions = AugmentOptions()

    @property
    def changes(self) -> AugmentOptions:
        """How chips are changed: `augment`, or not at all when the run is told so."""
        return self.augment if self.train.augmented else NO_AUGMENTATION

    @classmethod
    def from_file(cls, path: PathLike, overrides: Sequence[str] = ()) -> RunConfig:
        """The run file at `path` with ``section.key=value`` overrides, values written as in TOML.

        Paths of scenes, labels and weights are relative to the run file.

        Raises
        ------
        SpecError
            The file is missing, no TOML, or has an unknown or ill-typed key (with its line).
        UsageError
            An override is not of the form ``section.key=value``.
        """
        config = cls.from_overrides(overrides, read_toml(path), path)
        folder = Path(path).parent
        return config.model_copy(
            update={"data": _anchored(config.data, folder), "model": _with_weights_of(config.model, folder)}
        )

    @classmethod
    def from_overrides(
        cls, overrides: Sequence[str], content: dict[str, Any] | None = None, path: PathLike | None = None
    ) -> RunConfig:
        """`content` (the defaults) with ``section.key=value`` overrides."""
        changed = content or {}
        for override in overrides:
            _set(changed, override)
        return cls._validated(changed, path)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], base: RunConfig | None = None) -> RunConfig:
        """`base` (the defaults) with flat options such as ``minutes=10``; None values are left out.

        Raises
        ------
        UsageError
            An option is unknown or has the wrong type.
        """
        content = (base or cls()).model_dump(exclude_unset=True)
        for name, value in options.items():
            if value is not None:
                content.setdefault(_section_of(name), {})[name] = value
        if "minutes" in options or "steps" in options:
            _drop_other_budget(content.setdefault("train", {}), options)
        return cls._validated(content, None)

    @classmethod
    def _validated(cls, content: Mapping[str, Any], path: PathLike | None) -> RunConfig:
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UsageError(validation_message(error, cls, path), code="E-USE-010") from error

    def to_toml(self) -> str:
        """The whole configuration as a run file, defaults included, descriptions as comments."""
        lines: list[str] = []
        for section, options in ((name, getattr(self, name)) for name in SECTIONS):
            lines.append(f"[{section}]")
            for name, field in type(options).model_fields.items():
                note = f"  # {field.description}" if field.description else ""
                value = _toml(getattr(options, name))
                lines.append(f"{name} = {value}{note}" if value is not None else f"# {name} ={note}")
            lines.append("")
        return "\n".join(lines)


SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataOptions, "model": ModelOptions, "train": TrainOptions, "augment": AugmentOptions,
}  # fmt: skip


def _section_of(name: str) -> str:
    for section, options in SECTIONS.items():
        if name in options.model_fields:
            return section
    known = [name for options in SECTIONS.values() for name in options.model_fields]
    raise UsageError(f"unknown option {name!r}{suggest(name, known)}", code="E-USE-011")


def _drop_other_budget(train: dict[str, Any], options: Mapping[str, Any]) -> None:
    """A budget given by name replaces the other kind from the run file."""
    if options.get("minutes") is not None and options.get("steps") is None:
        train.pop("steps", None)
    if options.get("steps") is not None and options.get("minutes") is None:
        train.pop("minutes", None)


def _set(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise UsageError(f"override {override!r} is not section.key=value", hint="such as train.minutes=5")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    content.setdefault(section, {})[name] = value
    if (section, name) in {("train", "minutes"), ("train", "steps")}:
        _drop_other_budget(content["train"], {name: value})


def placed(path: str, folder: PathLike = "") -> str:
    """`path` as it stands in `folder`, absolute, so that a run file can move; a URL as it is."""
    remote = "://" in path or path.startswith("/vsi")
    return path if remote else os.path.abspath(os.path.join(folder, path))


def _anchored(data: DataOptions, folder: Path) -> DataOptions:
    def place(path: str) -> str:
        return placed(path, folder)

    def anchor(item: LabelledScene) -> LabelledScene:
        scene = place(item.scene) if isinstance(item.scene, str) else tuple(place(path) for path in item.scene)
        aoi = place(item.aoi) if item.aoi else None
        return LabelledScene(scene=scene, labels=place(item.labels), aoi=aoi, group=item.group)

    return data.model_copy(
        update={"scenes": tuple(map(anchor, data.scenes)), "valid_scenes": tuple(map(anchor, data.valid_scenes))}
    )


def _with_weights_of(model: ModelOptions, folder: Path) -> ModelOptions:
    named = {"start": model.start, "weights": model.weights}
    files = {key: placed(name, folder) for key, name in named.items() if name and (key == "start" or names_file(name))}
    return model.model_copy(update=files) if files else model


def _toml(value: Any) -> str | None:
    """`value` in TOML, None for what TOML cannot say (an absent value)."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(filter(None, map(_toml, value))) + "]"
    if isinstance(value, BaseModel | dict):
        pairs = ((name, _toml(item)) for name, item in (value.items() if isinstance(value, dict) else value))
        inner = ", ".join(f"{name} = {item}" for name, item in pairs if item is not None)
        return f"{{ {inner} }}" if inner else "{}"
    return repr(value)
