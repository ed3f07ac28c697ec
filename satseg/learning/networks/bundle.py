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
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

import satseg
from satseg.errors import ModelError, OutputError, UsageError
from satseg.learning.card import CHECKSUM, FORMAT_VERSION, ModelCard, canonical, checksum
from satseg.learning.networks.architectures import architecture_of, saved_network
from satseg.learning.networks.network import Network
from satseg.options import MODEL_SUFFIX
from satseg.output import AtomicOutput, os_errors_as_output_errors

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


def check_model_name(path: str | os.PathLike[str]) -> None:
    """Raise UsageError unless `path` is a name for a model file."""
    if Path(path).suffix.lower() != MODEL_SUFFIX:
        raise UsageError(
            f"{os.fspath(path)}: models are written as {MODEL_SUFFIX} only", hint="end the name so", code="E-USE-022"
        )


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
    return {
        "satseg": satseg.__version__, "torch": torch.__version__, "python": platform.python_version(),
        "numpy": np.__version__, "rasterio": rasterio.__version__, "gdal": rasterio.__gdal_version__,
    }  # fmt: skip


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
        if start.startswith(magic) and len(start) > LENGTH_BYTES:  # shorter, it may be ours, cut within its length
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
