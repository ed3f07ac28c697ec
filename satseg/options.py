"""What a training can be told, a pydantic model per section of the run file, each key with a default.

Key names are unique over the sections, so that the Python API and the command line take them flat (``minutes=10``).
A key that means nothing to the network that was chosen is refused where it is given. Rejected: dataclasses beside each
user (`unet`, `losses`, ...), of which a run file's errors and descriptions would have to be collected again.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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
    normalize: Literal["data", "near", "scene"] | None = Field(
        None, description="data: bands are scaled by statistics of all scenes; near: so, and detect moves those of "
        "another tone near these, the default where all classes are learnt apart; scene: by each scene's own, always"
    )  # fmt: skip


class ModelOptions(BaseModel):
    """`[model]`: the plain UNet, a TernausNet, or a network on an encoder of segmentation-models-pytorch.

    See `satseg.learning.networks.unet`, `ternausnet` and `zoo` there for what each does.
    """

    model_config = STRICT

    encoder: str | None = Field(None, description="such as resnet34; the plain UNet or a TernausNet without")
    arch: Literal[ZooArch, TernausArch] = "unet"
    weights: FileName | None = Field(None, description="of the encoder at first: a file, or a name such as imagenet")
    start: FileName | None = Field(None, description="model file to fine-tune; its options hold where none are given")
    repeat: bool = Field(False, description="learn again what start learnt, from first weights; other data are refused")
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
        if self.repeat and not self.start:
            raise ValueError("repeat is of the training of a model; give that by start too (--from)")
        if self.start and self.weights and not self.repeat:
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
OF_ALL = {"encoder", "start", "repeat", "inflate"}


def idle_options(kind: str) -> list[str]:
    """Names of the options of `[model]` that mean nothing to networks of `kind`, sorted."""
    if kind == "unet":
        return sorted(OF_ENCODERS)
    used = OF_ALL | OF_ENCODERS | ({"upsampling"} if kind == "ternausnet" else set())
    return sorted(ModelOptions.model_fields.keys() - used)


MODEL_SUFFIX = ".safetensors"
"""Of models, as they are written and known."""
WEIGHT_FILES = (MODEL_SUFFIX, ".pt", ".pth")


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
    apart: Share = Field(0.5, description="share of chips whose bands change apart from each other: gain and offset")
    gain: float = Field(0.25, ge=0, lt=1, description="each band of such a chip x (1 +- gain)")
    offset: float = Field(0.25, ge=0, le=10, description="each band of such a chip +- offset")
    brightness: float = Field(0.3, ge=0, lt=1, description="the same for all bands together: gain and offset")
    gamma: float = Field(0.2, ge=0, le=2, description="power of exp(+- gamma)")
    shade: float = Field(0.0, ge=0, le=10, description="strength of slow haze and shadow, on half the chips")
    blur: Share = Field(0.2, description="share of chips blurred or sharpened")
    noise: float = Field(0.1, ge=0, le=10, description="most noise per pixel and band")
    jpeg: float = Field(0.0, ge=0, le=10, description="coarsest steps that 8 x 8 blocks are rounded to, as JPEG does")
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
    loss: str = Field("weighted_bce_log_jaccard", description="see satseg.learning.training.losses")
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
