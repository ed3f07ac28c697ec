"""The one door for weights: a safetensors file that explains itself.

The file holds the weights and, as metadata, the `ModelCard`. Reading one executes nothing, and
whatever is not exactly what was saved is refused: cut, changed or foreign files, each with its own
code. Rejected: ``torch.load``, for pickled files are programs, and one changed byte in them loads
silently; an option to load such a file anyway, for it would be used.

Codes: E-MOD-010 not a file, 011 a program or archive, 012 no safetensors, 013 without our card,
014 cut or torn, 015 card changed, 016 card not valid, 017 newer format, 018 weights changed,
019 weights do not fit the card.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

import satseg
from satseg.classes import ClassItem
from satseg.errors import BandError, ModelError, OutputError, UsageError
from satseg.learning.card import CHECKSUM, FORMAT_VERSION, IndexCard, ModelCard, canonical, checksum
from satseg.learning.machine import resolve_device
from satseg.learning.networks.architectures import architecture_of, saved_network
from satseg.learning.networks.ensemble_file import ClassStacker, Mean
from satseg.learning.networks.network import Network
from satseg.output import AtomicOutput, os_errors_as_output_errors

__all__ = [
    "Model", "ModelCard", "load_model", "save_bundle", "load_bundle", "read_card", "architecture_of",
    "current_versions", "digest_of", "resolve_device",
]  # fmt: skip

METADATA_KEY = "satseg"
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit (safetensors, `MAX_HEADER_SIZE`)."""
LENGTH_BYTES = 8
"""A safetensors file begins with the length of its JSON header, little-endian."""
FOREIGN_KINDS = (
    (b"PK", "a zip archive, as torch.save writes"),
    (b"\x80", "a Python pickle"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF", "an HDF5 file"),
)
ONLY_OURS = "satseg reads only model files that it wrote itself: other formats can run code when opened"
OTHERS_OF_OURS = {
    ".ckpt": "a checkpoint serves --resume alone and can run code when opened; give the .safetensors of its training",
    ".toml": "what is asked for is one model, a .safetensors, and no ensemble or run file",
}
"""What to do with files that satseg writes and that are no models, by suffix."""


def save_bundle(
    path: str | os.PathLike[str], network: Network, card: ModelCard, *, overwrite: bool = False
) -> None:
    """Write `network` and `card` under `path`, read the file back, and only then give it its name.

    Raises
    ------
    ModelError
        The card is not of this network (E-MOD-019).
    OutputError
        The file cannot be written, or does not read back as written (E-OUT-050).
    """
    if card.architecture != architecture_of(network) or card.stride != network.stride:
        raise ModelError("the card is of another network than the one to save", code="E-MOD-019", path=path)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    card = card.model_copy(update={"weights_sha256": digest_of(weights)})
    with AtomicOutput(path, overwrite=overwrite) as out:
        content = safetensors.torch.save(weights, metadata={METADATA_KEY: card.to_json()})
        with os_errors_as_output_errors(path):
            out.temporary.write_bytes(content)
        try:
            load_bundle(out.temporary)
        except ModelError as error:
            raise OutputError(
                f"{os.fspath(path)} did not read back as written", code="E-OUT-050", path=path
            ) from error


def load_bundle(path: str | os.PathLike[str]) -> tuple[Network, ModelCard]:
    """Return the network (on the CPU, in evaluation mode) and the card stored at `path`.

    Raises
    ------
    ModelError
        Anything but a whole, unchanged model file; the codes stand at the top of this module.
    DependencyError
        The package that its network is from is not installed (E-DEP-010).
    """
    path = Path(path)
    card, weights = _card_and_weights(path)
    try:
        network = saved_network(card.architecture, weights)
    except (TypeError, UsageError, RuntimeError) as error:
        raise ModelError(
            f"{path}: the weights do not fit the card: {error}", code="E-MOD-019", path=path
        ) from error
    if card.stride != network.stride:
        raise ModelError(f"{path}: stride {card.stride} is not {network.stride}", code="E-MOD-019", path=path)
    return network.eval(), card


def read_card(path: str | os.PathLike[str]) -> ModelCard:
    """Return the card stored at `path`, without reading the weights.

    Raises
    ------
    ModelError
        As `load_bundle`, save that changed or misfitting weights go unnoticed.
    """
    path = Path(path)
    return _card(_header(path), path)


def current_versions() -> dict[str, str]:
    """Return the versions that a card records."""
    return {"satseg": satseg.__version__, "torch": torch.__version__, "python": platform.python_version()}


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of `weights`, in order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _card_and_weights(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    card = _card(_header(path), path)
    try:
        weights = safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from error
    except (safetensors.SafetensorError, LookupError, ValueError, RuntimeError) as error:
        raise _torn(path, str(error)) from error
    if digest_of(weights) != card.weights_sha256:
        raise ModelError(
            f"{path}: the weights are not those that were saved",
            hint="copy or download the file again",
            code="E-MOD-018",
            path=path,
        )
    return card, weights


def _header(path: Path) -> dict[str, Any]:
    """Return the JSON header of the safetensors file at `path`, whose tensors fill the file exactly."""
    try:
        if not path.is_file():
            what = "is no regular file" if path.exists() else "does not exist"
            raise ModelError(f"{path} {what}", hint="give a model file", code="E-MOD-010", path=path)
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(LENGTH_BYTES + 1)
            length = int.from_bytes(start[:LENGTH_BYTES], "little")
            _refuse_other_kinds(start, length, path)
            text = start[LENGTH_BYTES:] + stream.read(length - 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(text) != length or not text.rstrip(b" ").endswith(b"}"):
        raise _torn(path, f"its header should have {length} bytes, the file has {size}")
    try:
        header: dict[str, Any] = json.loads(text.decode())
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise _torn(path, "its header is not valid") from error
    if size != LENGTH_BYTES + length + max(ends, default=0):
        raise _torn(path, f"{size} bytes are not what its header announces")
    return header


def _refuse_other_kinds(start: bytes, length: int, path: Path) -> None:
    if 2 <= length <= MAX_HEADER_BYTES and start[LENGTH_BYTES:] == b"{":
        return
    hint = OTHERS_OF_OURS.get(path.suffix.lower(), ONLY_OURS)
    for magic, kind in FOREIGN_KINDS:
        if start.startswith(magic):
            raise ModelError(f"{path} is {kind}", hint=hint, code="E-MOD-011", path=path)
    raise ModelError(f"{path} is no model file", hint=hint, code="E-MOD-012", path=path)


def _card(header: Mapping[str, Any], path: Path) -> ModelCard:
    metadata = header.get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ModelError(f"{path} holds no satseg card", hint=ONLY_OURS, code="E-MOD-013", path=path)
    document = _intact(text, path)
    try:
        return ModelCard.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise ModelError(f"{path}: card {place}: {first['msg']}", code="E-MOD-016", path=path) from error


def _intact(text: str, path: Path) -> dict[str, Any]:
    """Return the card's document, its checksum verified and taken off."""
    document: dict[str, Any] = {}
    version, same = None, False
    with suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
        document = json.loads(text)
        version = document.get("format_version")
        same = canonical(document) == text and document.pop(CHECKSUM) == checksum(document)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ModelError(
            f"{path} has format {version}, this satseg reads up to {FORMAT_VERSION}",
            hint="update satseg", code="E-MOD-017", path=path,
        )  # fmt: skip
    if not same:
        raise ModelError(
            f"{path}: the card is not the one that was saved",
            hint="copy the file again; to change a card, load, change and save the model", code="E-MOD-015", path=path,
        )  # fmt: skip
    return document


def _torn(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} is damaged: {why}", hint="copy or download the file again", code="E-MOD-014", path=path
    )


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path} cannot be read: {error.strerror or error}", code="E-MOD-010", path=path)


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
