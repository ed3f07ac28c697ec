"""A model: a network with its card on a device, as it is trained, saved, loaded and asked for scores.

What a scene must have, at which resolution and by which levels it is read, and what comes out, its card says; the file
is `bundle`'s. Rejected: a subclass of `torch.nn.Module`, whose hundred methods would hide these.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from satseg.classes import ClassItem
from satseg.errors import BandError
from satseg.imagery.levels import Room
from satseg.learning.card import IndexCard, ModelCard
from satseg.learning.machine import resolve_device
from satseg.learning.networks.bundle import load_bundle, save_bundle
from satseg.learning.networks.ensemble_file import ClassStacker, Mean
from satseg.learning.networks.network import Network

TONES = {"near": "scenes of another are moved near those learnt from", "scene": "each scene's own levels"}
"""What is told of how a scene is read, where not as it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A network with its card, on a device.

    Parameters
    ----------
    card : ModelCard
    network : Network
        On `device`, in evaluation mode.
    device : torch.device
    """

    card: ModelCard
    network: Network
    device: torch.device

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands it needs, in the order of its input."""
        return self.card.band_names

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes it finds, in the order of its output."""
        return self.card.class_names

    @property
    def members(self) -> tuple[Model, ...]:
        """Itself alone: a model answers as an ensemble of one (`satseg.learning.networks.ensemble.Predictor`)."""
        return (self,)

    @property
    def mean(self) -> Mean:
        """Of scores over views, where no other is asked for."""
        return "arithmetic"

    @property
    def stackers(self) -> tuple[tuple[int, ClassStacker], ...]:
        """None: its scores are as they are."""
        return ()

    @property
    def items(self) -> tuple[ClassItem, ...]:
        """The classes, each with its threshold and clean-up values."""
        return self.card.classes

    @property
    def separated(self) -> tuple[str, ...]:
        """Classes whose cores it finds too, in planes after those of the classes."""
        return self.card.separated

    @property
    def cores(self) -> tuple[tuple[int, int], ...]:
        """Plane of each class whose objects are told apart, and plane of its cores, in the network's output."""
        return tuple((self.classes.index(name), len(self.classes) + i) for i, name in enumerate(self.separated))

    @property
    def indices(self) -> tuple[IndexCard, ...]:
        """Those of the bands that are computed from others."""
        return self.card.indices

    @property
    def gsd_m(self) -> float | None:
        """Working resolution in metres; None: pixels as they come."""
        return self.card.gsd_m

    @property
    def registers(self) -> bool:
        """Whether the products of a scene are to be laid over each other."""
        return self.card.registers

    @property
    def normalize(self) -> str:
        """How a scene is to be read: as it is ("data"), "near" the tones known, or by the levels of the "scene"."""
        return self.card.normalize

    @property
    def room(self) -> Room:
        """Into which the bands of a scene are brought to be near; none where it is not known."""
        return self.card.room

    @property
    def crop(self) -> int:
        """Pixels that its network cuts off each side."""
        return self.network.crop

    @property
    def thresholds(self) -> dict[str, float]:
        """Score, 0..1, from which on a pixel is of a class."""
        return {item.name: item.threshold for item in self.card.classes}

    @property
    def halo(self) -> int:
        """Margin of a tile in pixels of the working resolution."""
        return self.card.halo

    @property
    def stride(self) -> int:
        """Alignment of tiles, in pixels of the working resolution."""
        return self.card.stride

    def check_bands(self, bands: Sequence[str]) -> None:
        """Raise when a scene with `bands` lacks one that the model needs, or computes an index from.

        Raises
        ------
        BandError
            With both lists.
        """
        computed = {index.item.name: index for index in self.card.indices if index.item.name not in bands}
        inputs = [name for index in computed.values() for name in index.bands.values()]
        needed = tuple(dict.fromkeys([name for name in self.bands if name not in computed] + inputs))
        missing = tuple(name for name in needed if name not in bands)
        if missing:
            hint = f"sensor={self.card.sensor!r} (--sensor)" if self.card.sensor else "sensor= (--sensor) or bands="
            raise BandError(
                f"scene has bands {tuple(bands)}, the model needs {needed}: {', '.join(missing)} missing",
                hint=f"open it with {hint} so that its bands are named as the model's",
                code="E-BAND-052",
            )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model under `path`; raises as `save_bundle`."""
        save_bundle(path, self.network, self.card, overwrite=overwrite)

    def summary(self) -> str:
        """Return the model in a few lines of plain text: classes with thresholds and validation Jaccard."""
        found = self.card.scores.get("validation_jaccard")
        scores = found if isinstance(found, dict) else {}
        gsd = "as the scene" if self.card.gsd_m is None else f"{self.card.gsd_m:.3g} m"
        reach = "a reach without end" if self.network.reach is None else self.network.halo
        lines = [f"bands   {', '.join(self.bands)}", f"pixel   {gsd}", f"halo    {self.halo} px of {reach}"]
        lines += [f"tone    {TONES[self.normalize]}"] if self.normalize in TONES else []
        for name, level in self.thresholds.items():
            score = scores.get(name)
            told = f"{score:.3f}" if isinstance(score, float) else "-"
            lines.append(f"class   {name:<20} threshold {level:.2f}   validation Jaccard {told}")
        lines += [f"rules   {item.name}: {'; '.join(item.rules)}" for item in self.card.classes if item.has_rules]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        gsd = "as the scene" if self.card.gsd_m is None else f"{self.card.gsd_m:g} m"
        classes = [f"{name} (from {level:.2f})" for name, level in self.thresholds.items()]
        count = sum(weight.numel() for weight in self.network.parameters())
        rows = {
            "bands": _short(self.bands),
            "classes": _short(classes),
            "pixel": gsd,
            "network": f"{self.card.architecture.name}, {count:,} weights",
            "device": str(self.device),
            "scores": _short(f"{name}: {value}" for name, value in self.card.scores.items()),
            "licence": self.card.licence[:200],
        }
        cells = (f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
        return f"<div><b>Model</b><table>{''.join(cells)}</table></div>"


def _short(items: Iterable[str]) -> str:
    shown = [item[:80] for item in items]
    return ", ".join(shown[:16]) + (", …" if len(shown) > 16 else "")


def load_model(path: str | os.PathLike[str], device: str | torch.device = "auto") -> Model:
    """Return the model stored at `path`, ready to run on `device`; raises as its two parts do."""
    place = resolve_device(device)
    network, card = load_bundle(path)
    return Model(card, network.to(place).to(memory_format=torch.channels_last), place)
