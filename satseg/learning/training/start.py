"""Fine-tuning: a training that starts from the weights of a model file (`[model] start`, ``--from``).

What the run is not told, the model's card tells: its bands, working resolution, network and every other option
of its training, so that ``--from MODEL --data SCENE LABELS`` goes on as the model was learnt. Budget and learning
rate are repeated too, and are the first that one will want to give. Weights are all taken over; of the last
layer, those of classes known by name, while the others start anew. The model's normalisation stays as well,
for its weights were learnt behind it, unless a band's mean lies beyond what it clips: then the data are in other
units, and are measured.

Other bands are refused unless the run is told how the model's first layer serves them (`[model] inflate`): a band of
the same name keeps its filter, others take those of the nearest wavelength or the model's in turn (`inflation`). The
bands are those of the scene then, and what is new among them is measured. Rejected: doing so unasked, for a run with
bands that the model never saw is better told so.

Fine-tuning is no repetition, which `repetition` makes of the same card: it begins where the model ended.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from satseg.classes import ClassItem
from satseg.errors import ModelError, UsageError
from satseg.imagery.normalization import Normalization
from satseg.imagery.tiling import round_up
from satseg.learning.card import BandCard, FileHash, ModelCard, TrainingSource
from satseg.learning.ground.grounds import Prepared
from satseg.learning.ground.pairs import PathLike
from satseg.learning.networks.architectures import architecture_of
from satseg.learning.networks.bundle import load_bundle
from satseg.learning.networks.inflation import by_name, input_weights, mixed
from satseg.learning.networks.network import Network
from satseg.learning.networks.unet import UNetConfig
from satseg.options import OF_ENCODERS, idle_options, names_file
from satseg.run import SECTIONS, RunConfig
from satseg.specs import is_path

log = logging.getLogger(__name__)

HEAD = re.compile(r"(members\.\d+\.)?(head|segmentation_head)\.")
"""How the names of the last layer's weights begin, in the UNet, in each of several and in networks of the zoo."""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The model that a training starts from."""

    file: FileHash
    card: ModelCard
    weights: dict[str, Tensor]

    @classmethod
    def load(cls, path: PathLike) -> Start:
        """The model file at `path`; raises as `bundle.load_bundle`."""
        network, card = load_bundle(path)
        return cls(FileHash.of(path), card, network.state_dict())

    def options(self, run: RunConfig, known: RunConfig | None = None) -> RunConfig:
        """`run`, and where it is not told, what is `known` of the training; raises as `RunConfig.from_options`."""
        given = _given(run)
        merged = RunConfig.from_options(given, base=known or self.known(run))
        fields = type(run.model).model_fields
        idle = [name for name in sorted(OF_ENCODERS & given.keys()) if given[name] != fields[name].default]
        if idle and merged.model.kind == "unet":
            raise UsageError(
                f"{', '.join(idle)}: for encoders alone, and {self.file.name} is a plain UNet", code="E-USE-059"
            )
        return merged

    def known(self, run: RunConfig) -> RunConfig:
        """What the model's training was told, but for what has no meaning beside the options of `run`."""
        given, known = _given(run), _options_of(self.card, repeat=run.model.repeat)
        if "loss" in given:
            known["train"].pop("loss_params", None)  # they are of the other loss
        if "inflate" in given:
            known["data"].pop("bands", None)
        if run.model.repeat:
            known["model"] |= {"start": run.model.start, "repeat": True}
        return RunConfig.from_overrides((), known)

    @property
    def own_list(self) -> str | None:
        """Name of the class list of the model's training, where that was a user's file."""
        spec = self.card.told("class_spec")
        return Path(spec).name if isinstance(spec, str) and is_path(spec) else None

    @property
    def known_classes(self) -> tuple[ClassItem, ...]:
        """Classes of the model whose list was a user's file: their numbers, colours and rules are known from here."""
        return () if self.own_list is None else self.card.classes

    def sources(self, prepared: Prepared) -> tuple[TrainingSource, ...]:
        """What the model learnt from; without tones where `prepared` has other bands or normalisation."""
        known = self.card.normalization
        alike = {*prepared.bands} <= {*known.names} and known.select(prepared.bands) == prepared.normalization
        order = [known.names.index(name) for name in prepared.bands] if alike else []
        return tuple(
            source.model_copy(update={"tone": tuple(source.tone[place] for place in order) if source.tone else ()})
            for source in self.card.learnt_from
        )

    def normalized(self, prepared: Prepared, inflate: str | None = None) -> Prepared:
        """`prepared` with the model's normalisation of bands it knows, unless a mean lies beyond what that clips.

        Raises
        ------
        ModelError
            The bands are not those of the model, and the run is not told how it serves them (E-MOD-030).
        """
        if prepared.bands != self.card.band_names and inflate is None:
            raise ModelError(
                f"{self.file.name} has bands {self.card.band_names}, the run {prepared.bands}",
                hint="give no bands, to take those of the model, or inflate='wavelength' or 'repeat'",
                code="E-MOD-030",
            )
        found = prepared.normalization
        if (self.card.normalize == "scene") != prepared.levelled:
            log.warning("%s saw scenes by other levels than this run: normalisation is measured anew", self.file.name)
            return prepared
        own = _with_those_of(self.card.normalization, found)
        beyond = [
            name
            for name, mean, low, high in zip(found.names, found.offset, own.low, own.high, strict=True)
            if not low <= mean <= high
        ]
        if beyond:
            log.warning("bands %s are in other units than %s learnt from: measured anew", beyond, self.file.name)
            return prepared
        return replace(prepared, normalization=own)

    def give_weights(
        self, network: Network, planes: Sequence[str], *, bands: Sequence[BandCard] = (), inflate: str | None = None
    ) -> None:
        """Put the model's weights into `network`, whose output has `planes`, named as `plane_names` does.

        Parameters
        ----------
        bands : sequence of BandCard
            Of the network's input; where they are not the model's, `inflate` says how its first layer serves them.

        Raises
        ------
        ModelError
            The network is of another kind or size (E-MOD-031).
        BandError
            As `inflation.by_name`.
        """
        weights, there = network.state_dict(), self.weights
        if inflate is not None and tuple(band.name for band in bands) != self.card.band_names:
            there = self._for_bands(network, bands, inflate)
        inner = {name for name in weights if not HEAD.match(name)}
        same = {name for name in inner & there.keys() if weights[name].shape == there[name].shape}
        if same != inner or weights.keys() != there.keys():
            raise self._misfit(network)
        taken = {name: there[name] for name in inner}
        theirs = plane_names(self.card.class_names, self.card.separated)
        for name in weights.keys() - inner:
            taken[name] = _rows_by_name(weights[name], planes, there[name], theirs)
        network.load_state_dict(taken)
        new = [name for name in planes if name not in theirs]
        if new:
            log.warning("%s does not know %s: their part of the last layer starts anew", self.file.name, ", ".join(new))

    def _for_bands(self, network: Network, bands: Sequence[BandCard], inflate: str) -> dict[str, Tensor]:
        """The model's weights, those that take its bands made for `bands`, as `network` has them."""
        shares = by_name(bands, self.card.bands, inflate)
        first = input_weights(network, bands=len(bands), side=round_up(2 * network.crop + 1, network.stride))
        fit = [name for name in first if name in self.weights and self.weights[name].ndim == 4]
        return {**self.weights, **{name: mixed(self.weights[name], shares) for name in fit}}

    def _misfit(self, network: Network) -> ModelError:
        here, there = architecture_of(network), self.card.architecture
        names = [name for name in here.arguments if name not in ("bands", "classes")]
        differ = [
            f"{name}={there.arguments.get(name)!r} there, {here.arguments[name]!r} here"
            for name in names
            if there.arguments.get(name) != here.arguments[name]
        ]
        return ModelError(
            f"the network of {self.file.name} is another: {', '.join(differ) or there.name}",
            hint="leave options of the network out, to take those of the model",
            code="E-MOD-031",
        )


def weights_file(run: RunConfig) -> FileHash | None:
    """The file that an encoder's first weights come from; None without one, or where there is none by its name."""
    weights = run.model.weights
    return FileHash.of(weights) if weights is not None and names_file(weights) and Path(weights).is_file() else None


def _with_those_of(known: Normalization, found: Normalization) -> Normalization:
    """`found`, but for the bands that are in `known` too, which are as there."""
    places = {name: place for place, name in enumerate(known.names)}
    sides = [(known, places[name]) if name in places else (found, i) for i, name in enumerate(found.names)]
    values = {
        key: tuple(getattr(side, key)[place] for side, place in sides) for key in ("offset", "scale", "low", "high")
    }
    return Normalization(found.names, **values)


def plane_names(classes: Sequence[str], separated: Sequence[str]) -> tuple[str, ...]:
    """Names of a network's output planes: the classes, then cores of some."""
    return (*classes, *(f"the cores of {name}" for name in separated))


def _rows_by_name(new: Tensor, planes: Sequence[str], old: Tensor, known: Sequence[str]) -> Tensor:
    """`new` (planes x n, ...) with the rows of `old` (known x n, ...) for the planes that both have."""
    ours = new.clone().reshape(len(planes), -1, *new.shape[1:])  # a plane may come from several rows, to be shuffled
    theirs = old.reshape(len(known), -1, *old.shape[1:])
    for place, name in enumerate(planes):
        if name in known:
            ours[place] = theirs[known.index(name)]
    return ours.reshape(new.shape)


def _given(run: RunConfig) -> dict[str, Any]:
    """The options that `run` was told, by name."""
    return {name: value for options in run.model_dump(exclude_unset=True).values() for name, value in options.items()}


def _options_of(card: ModelCard, *, repeat: bool) -> dict[str, dict[str, Any]]:
    """The options of the training of `card` as a run file's content, network, bands and resolution as they came out.

    To `repeat` it, bands and resolution are as they were asked for, and what was done with first weights is among them.
    """
    content: dict[str, dict[str, Any]] = {}
    for section, kind in SECTIONS.items():
        told = card.training.options.get(section)
        told = told if isinstance(told, dict) else {}
        unknown = sorted(told.keys() - kind.model_fields.keys())
        if unknown:
            log.warning("options %s of the model's training are not known here, and left out", ", ".join(unknown))
        content[section] = {name: v for name, v in told.items() if name in kind.model_fields and v is not None}
    content["data"].pop("index_spec", None)  # a path of another machine, told by earlier cards
    for name in ("class_spec", "sensor"):
        if is_path(content["data"].get(name, "")):  # of another machine too: `known_classes` are of that list
            content["data"].pop(name)
    for name in ("start", *(() if repeat else ("weights", "freeze", "inflate"))):  # of that training's own start
        content["model"].pop(name, None)
    if card.architecture.name in ("smp", "ternausnet"):  # what an earlier version told of others
        for name in idle_options(card.architecture.name):
            content["model"].pop(name, None)
    network: dict[str, Any] = {**card.architecture.arguments}
    if card.architecture.name == "unet":  # what an earlier card does not name was as the configuration's default has it
        network = asdict(UNetConfig(**network)) | {"members": 1}
    content["model"] |= {name: v for name, v in network.items() if name in SECTIONS["model"].model_fields}
    if repeat:
        return content
    content["data"]["bands"] = card.band_names
    content["data"]["indices"] = tuple(index.item.name for index in card.indices)
    if card.gsd_m is not None:
        content["data"]["gsd"] = card.gsd_m
    return content
