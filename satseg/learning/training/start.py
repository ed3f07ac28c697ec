"""Fine-tuning: a training that starts from the weights of a model file (`[model] start`, ``--from``).

What the run is not told, the model's card tells: its bands, working resolution, network and every other option
of its training, so that ``--from MODEL --data SCENE LABELS`` goes on as the model was learnt. Budget and learning
rate are repeated too, and are the first that one will want to give. Weights are all taken over; of the last
layer, those of classes known by name, while the others start anew. The model's normalisation stays as well,
for its weights were learnt behind it, unless a band's mean lies beyond what it clips: then the data are in other
units, and are measured.

Fine-tuning is no repetition: it begins where the model ended. To repeat a training, run the ``run.toml`` in its
folder again; on one machine, with a budget in steps, it gives equal weights. Rejected: inflating or dropping
input filters for other bands, for a run with bands that the model never saw is better told so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from satseg.errors import ModelError, UsageError
from satseg.learning.card import FileHash, ModelCard
from satseg.learning.networks.architectures import architecture_of
from satseg.learning.networks.bundle import load_bundle
from satseg.learning.networks.network import Network
from satseg.learning.networks.unet import UNetConfig
from satseg.learning.training.grounds import PathLike, Prepared
from satseg.run import OF_ENCODERS, SECTIONS, RunConfig

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

    def options(self, run: RunConfig) -> RunConfig:
        """`run`, and where it is not told, what the model's training was told; raises as `RunConfig.from_options`."""
        given: dict[str, Any] = {}
        for section in run.model_dump(exclude_unset=True).values():
            given |= section
        known = _options_of(self.card)
        if "loss" in given:
            known["train"].pop("loss_params", None)  # they are of the other loss
        merged = RunConfig.from_options(given, base=RunConfig.from_overrides((), known))
        idle = sorted(name for name in OF_ENCODERS & given.keys() if merged.model.encoder is None)
        if idle:
            raise UsageError(
                f"{', '.join(idle)}: for encoders alone, and {self.file.name} is a plain UNet", code="E-USE-059"
            )
        return merged

    def normalized(self, prepared: Prepared) -> Prepared:
        """`prepared` with the model's normalisation, unless a band's mean lies beyond what that clips.

        Raises
        ------
        ModelError
            The bands are not those of the model (E-MOD-030).
        """
        if prepared.bands != self.card.band_names:
            raise ModelError(
                f"{self.file.name} has bands {self.card.band_names}, the run {prepared.bands}",
                hint="give no bands, to take those of the model, or train without --from",
                code="E-MOD-030",
            )
        own, found = self.card.normalization, prepared.normalization
        beyond = [
            name
            for name, mean, low, high in zip(found.names, found.offset, own.low, own.high, strict=True)
            if not low <= mean <= high
        ]
        if beyond:
            log.warning("bands %s are in other units than %s learnt from: measured anew", beyond, self.file.name)
            return prepared
        return replace(prepared, normalization=own)

    def give_weights(self, network: Network, planes: Sequence[str]) -> None:
        """Put the model's weights into `network`, whose output has `planes`, named as `plane_names` does.

        Raises
        ------
        ModelError
            The network is of another kind or size (E-MOD-031).
        """
        weights = network.state_dict()
        inner = {name for name in weights if not HEAD.match(name)}
        same = {name for name in inner & self.weights.keys() if weights[name].shape == self.weights[name].shape}
        heads = weights.keys() - inner
        if same != inner or heads != {name for name in self.weights if HEAD.match(name)}:
            raise self._misfit(network)
        taken = {name: self.weights[name] for name in inner}
        theirs = plane_names(self.card.class_names, self.card.separated)
        for name in heads:
            taken[name] = _rows_by_name(weights[name], planes, self.weights[name], theirs)
        network.load_state_dict(taken)
        new = [name for name in planes if name not in theirs]
        if new:
            log.warning("%s does not know %s: their part of the last layer starts anew", self.file.name, ", ".join(new))

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


def _options_of(card: ModelCard) -> dict[str, dict[str, Any]]:
    """The options of the training of `card` as a run file's content, network, bands and resolution as they came out."""
    content: dict[str, dict[str, Any]] = {}
    for section, kind in SECTIONS.items():
        told = card.training.options.get(section)
        told = told if isinstance(told, dict) else {}
        unknown = sorted(told.keys() - kind.model_fields.keys())
        if unknown:
            log.warning("options %s of the model's training are not known here, and left out", ", ".join(unknown))
        content[section] = {name: v for name, v in told.items() if name in kind.model_fields and v is not None}
    content["data"].pop("index_spec", None)  # a path of another machine, told by earlier cards
    for name in ("weights", "start", "freeze"):  # of that training's own start
        content["model"].pop(name, None)
    network: dict[str, Any] = {**card.architecture.arguments}
    if card.architecture.name == "unet":  # what an earlier card does not name was as the configuration's default has it
        network = asdict(UNetConfig(**network)) | {"members": 1}
    content["model"] |= {name: v for name, v in network.items() if name in SECTIONS["model"].model_fields}
    content["data"]["bands"] = card.band_names
    content["data"]["indices"] = tuple(index.item.name for index in card.indices)
    if card.gsd_m is not None:
        content["data"]["gsd"] = card.gsd_m
    return content
