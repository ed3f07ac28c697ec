"""Several models as one: what an ensemble needs of a scene, and who of its members says what.

`Predictor` is what a detection asks a model for, and a model alone answers as an ensemble of one. Members may be
different networks, with bands, normalisation, margin and alignment of their own: each looks at a tile as if it were
alone, so that its part of the scores is what it says alone. They know the same classes in the same order, at the same
working resolution, for one raster of scores is made of theirs (`means`, `together`). Members are put in order of their
weights' digests, so that the order in which they are given changes no bit of the result.

Rejected: averaging rasters of scores on disk, which costs a file for each member and rounds each of them; and a network
module that holds the members, which would read all bands for all and could not be run by other engines.

Code: E-MOD-040 other weights than the file names.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from satseg.classes import ClassItem
from satseg.documents import suggest
from satseg.errors import ModelError, UsageError
from satseg.imagery.levels import Room, Span
from satseg.learning.card import IndexCard, ModelCard, checksum, class_facts
from satseg.learning.networks.bundle import digest_of, read_card
from satseg.learning.networks.ensemble_file import ClassStacker, EnsembleFile, Mean, team_file
from satseg.learning.networks.model import Model, load_model
from satseg.learning.networks.together import check_together, common_items

__all__ = ["Ensemble", "ModelLike", "Predictor", "as_predictor", "load_predictor", "write_ensemble"]

PathLike: TypeAlias = str | os.PathLike[str]
STACKED_THRESHOLD = 0.5
"""Of a class with a stacker and without a threshold: its score is a fitted probability."""


class Predictor(Protocol):
    """What is asked of a model, or of several as one."""

    @property
    def members(self) -> tuple[Model, ...]:
        """The models that are asked; of a model itself alone."""

    @property
    def mean(self) -> Mean:
        """Of scores, over members and views, where no other is asked for."""

    @property
    def stackers(self) -> tuple[tuple[int, ClassStacker], ...]:
        """Class planes whose score is stacked, and how."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that are needed."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in order."""

    @property
    def items(self) -> tuple[ClassItem, ...]:
        """The classes, each with its threshold and clean-up values."""

    @property
    def separated(self) -> tuple[str, ...]:
        """Classes whose cores are found too, in planes after those of the classes."""

    @property
    def cores(self) -> tuple[tuple[int, int], ...]:
        """Plane of each class that is separated, and plane of its cores."""

    @property
    def indices(self) -> tuple[IndexCard, ...]:
        """Those of the bands that are computed from others."""

    @property
    def gsd_m(self) -> float | None:
        """Working resolution in metres; None: pixels as they come."""

    @property
    def registers(self) -> bool:
        """Whether the products of a scene are to be laid over each other."""

    @property
    def normalize(self) -> str:
        """How a scene is to be read: as it is ("data"), "near" the tones known, or by the levels of the "scene"."""

    @property
    def room(self) -> Room:
        """Into which the bands of a scene are brought to be near; none where it is not known."""

    @property
    def stride(self) -> int:
        """Alignment of tiles, in pixels of the working resolution."""

    @property
    def crop(self) -> int:
        """Most pixels that a member's network cuts off each side."""

    def check_bands(self, bands: Sequence[str]) -> None:
        """Raise BandError when a scene with `bands` lacks one that is needed."""


ModelLike: TypeAlias = Predictor | PathLike | Sequence[Model | PathLike]
"""A model or ensemble, the file of one, or several models that answer together."""


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """Models that answer together; made by `of`.

    Parameters
    ----------
    members : tuple of Model
        In order of their digests.
    mean : "arithmetic" or "geometric"
    items : tuple of ClassItem
        Thresholds of the ensemble; the least clean-up of any member, so that nothing is lost that one would keep;
        lengths by which features grow and are simplified are the mean, other rules those that all have.
    stackers : tuple of (plane, ClassStacker)
        Weights in order of `members`.
    """

    members: tuple[Model, ...]
    mean: Mean
    items: tuple[ClassItem, ...]
    stackers: tuple[tuple[int, ClassStacker], ...] = ()

    @classmethod
    def of(
        cls, models: Sequence[Model], file: EnsembleFile | None = None, *, names: Sequence[str] = ()
    ) -> Ensemble:
        """Return the arithmetic mean of `models`, or the ensemble of `file`, whose members they are in its order.

        Errors call the models by `names`, or by number.

        Raises
        ------
        ModelError
            They do not fit together; what differs is named.
        UsageError
            Fewer than two (E-USE-025), or a threshold or stacker of a class that is not there (E-USE-026).
        """
        called = names or [f"model {number}" for number in range(1, len(models) + 1)]
        check_together([model.card for model in models], called)
        order = sorted(range(len(models)), key=lambda number: identity(models[number]))
        members = tuple(models[number] for number in order)
        cards = [model.card for model in members]
        if file is None:
            return cls(members, "arithmetic", common_items(cards))
        classes = members[0].classes
        for name in (*file.thresholds, *file.stacker):
            if name not in classes:
                raise UsageError(f"the ensemble knows no class {name!r}{suggest(name, classes)}", code="E-USE-026")
        stacked = {name: STACKED_THRESHOLD for name in file.stacker}
        stackers = tuple(
            (classes.index(name), one.model_copy(update={"weights": tuple(one.weights[number] for number in order)}))
            for name, one in file.stacker.items()
        )
        return cls(members, file.mean, common_items(cards, file.mean, {**stacked, **file.thresholds}), stackers)

    @classmethod
    def load(cls, path: PathLike, device: str | torch.device = "auto") -> Ensemble:
        """Return the ensemble of the file at `path`, ready to run on `device`.

        Raises
        ------
        SpecError, ModelError, UsageError
            As `EnsembleFile.read`, `load_model` and `of`; a member's weights are others than the file says (E-MOD-040).
        """
        file = EnsembleFile.read(path)
        models = [load_model(place, device) for place in file.places(path)]
        for member, model in zip(file.members, models, strict=True):
            if model.card.weights_sha256 != member.weights_sha256:
                raise ModelError(
                    f"{os.fspath(path)}: {member.path} has other weights than those that were meant",
                    hint="make the ensemble anew with `satseg ensemble`", code="E-MOD-040", path=path,
                )  # fmt: skip
        return cls.of(models, file, names=[member.path for member in file.members])

    @property
    def device(self) -> torch.device:
        """Where the members are."""
        return self.members[0].device

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of all bands that a member needs."""
        return tuple(dict.fromkeys(name for model in self.members for name in model.bands))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes they find, in order."""
        return self.members[0].classes

    @property
    def thresholds(self) -> dict[str, float]:
        """Score, 0..1, from which on a pixel is of a class."""
        return {item.name: item.threshold for item in self.items}

    @property
    def separated(self) -> tuple[str, ...]:
        """Classes of which a member finds the cores; they are the mean of those that do."""
        known = {name for model in self.members for name in model.separated}
        return tuple(name for name in self.classes if name in known)

    @property
    def cores(self) -> tuple[tuple[int, int], ...]:
        """Plane of each class that is separated, and plane of its cores."""
        return tuple((self.classes.index(name), len(self.classes) + i) for i, name in enumerate(self.separated))

    @property
    def indices(self) -> tuple[IndexCard, ...]:
        """Those of the bands that are computed from others."""
        return tuple({index.item.name: index for model in self.members for index in model.indices}.values())

    @property
    def gsd_m(self) -> float | None:
        """Working resolution in metres; None: pixels as they come."""
        return self.members[0].gsd_m

    @property
    def registers(self) -> bool:
        """Whether a member learnt from products that were laid over each other."""
        return any(model.registers for model in self.members)

    @property
    def normalize(self) -> str:
        """How a scene is to be read: as all members say; as it is where they do not agree."""
        said = {model.normalize for model in self.members}
        return said.pop() if len(said) == 1 else "data"

    @property
    def room(self) -> Room:
        """Into which the bands of a scene are brought to be near: that of all members; none where one has none."""
        rooms = [model.room for model in self.members]
        if not all(rooms):
            return {}
        return {name: Span.over([one[name] for one in rooms if name in one]) for name in self.bands}

    @property
    def stride(self) -> int:
        """Alignment of tiles that suits all members."""
        return math.lcm(*(model.stride for model in self.members))

    @property
    def crop(self) -> int:
        """Most pixels that a member's network cuts off each side."""
        return max(model.crop for model in self.members)

    def check_bands(self, bands: Sequence[str]) -> None:
        """Raise BandError when a scene with `bands` lacks one that a member needs."""
        for model in self.members:
            model.check_bands(bands)

    def summary(self) -> str:
        """Return the ensemble in a few lines of plain text: its mean, classes with thresholds, and members."""
        stacked = {plane for plane, _ in self.stackers}
        lines = [f"mean    {self.mean} of {len(self.members)} models", f"bands   {', '.join(self.bands)}"]
        lines += [f"pixel   {'as the scene' if self.gsd_m is None else f'{self.gsd_m:.3g} m'}"]
        for plane, item in enumerate(self.items):
            how = "   stacked" if plane in stacked else ""
            lines.append(f"class   {item.name:<20} threshold {item.threshold:.2f}{how}")
        for model in self.members:
            digest, _ = identity(model)
            lines.append(f"member  {digest[:12]} {model.card.architecture.name}, {', '.join(model.bands)}")
        return "\n".join(lines)

    def info(self) -> dict[str, Any]:
        """Return what the ensemble needs and finds, in plain data, as `ModelCard.info` does."""
        return {
            "ensemble": f"{self.mean} mean of {len(self.members)} models",
            "members": [identity(model)[0] for model in self.members],
            "stacked": [self.classes[plane] for plane, _ in self.stackers],
            "gsd_m": self.gsd_m,
            "halo": max(model.halo for model in self.members),
            "normalize": self.normalize,
            "bands": [{"name": name} for name in self.bands],
            "classes": class_facts(self.items),
        }

    def _repr_html_(self) -> str:
        parts = "".join(model._repr_html_() for model in self.members)
        return f"<div><b>Ensemble, {self.mean} mean</b>{parts}</div>"


_model: type[Predictor] = Model
_ensemble: type[Predictor] = Ensemble


def identity(model: Model) -> tuple[str, str]:
    """Return the digests of a model's weights and of its card, by which members are put in order."""
    weights = model.card.weights_sha256 or digest_of({k: v.cpu() for k, v in model.network.state_dict().items()})
    return weights, checksum(model.card.model_dump(mode="json"))


def load_predictor(paths: PathLike | Sequence[PathLike], device: str | torch.device = "auto") -> Predictor:
    """Return what `paths` name, ready to run on `device`: a model, an ensemble file, or an ensemble of models.

    A folder that has an ``ensemble.toml``, as training in folds leaves it, stands for that file.

    Raises
    ------
    ModelError, SpecError, UsageError
        As `load_model`, `Ensemble.load` and `Ensemble.of`.
    """
    if not isinstance(paths, (str, os.PathLike)):
        return Ensemble.of([load_model(path, device) for path in paths], names=[os.fspath(path) for path in paths])
    team = team_file(paths)
    return load_model(paths, device) if team is None else Ensemble.load(team, device)


def as_predictor(model: ModelLike) -> Predictor:
    """Return `model`, loaded when it is a file or files; raises as `load_predictor`."""
    if isinstance(model, (str, os.PathLike)):
        return load_predictor(model)
    if isinstance(model, Sequence):
        names = [f"model {n}" if isinstance(one, Model) else os.fspath(one) for n, one in enumerate(model, start=1)]
        return Ensemble.of([one if isinstance(one, Model) else load_model(one) for one in model], names=names)
    return model


def cards_together(models: Sequence[PathLike]) -> list[ModelCard]:
    """Return the cards of model files that can answer as one; raises as `read_card` and `together.check_together`."""
    cards = [read_card(path) for path in models]
    check_together(cards, [os.fspath(path) for path in models])
    return cards


def write_ensemble(
    models: Sequence[PathLike], output: PathLike, *, mean: Mean = "arithmetic", overwrite: bool = False
) -> EnsembleFile:
    """Write the ensemble file `output` of model files, from whose cards alone it is made, and return it.

    Raises
    ------
    ModelError, UsageError
        They do not fit together, or are no models.
    OutputError
        The file cannot be written.
    """
    cards = cards_together(models)
    digests = [(path, str(card.weights_sha256)) for path, card in zip(models, cards, strict=True)]
    made = EnsembleFile.of(digests, beside=output, mean=mean)
    made.save(output, overwrite=overwrite)
    return made
