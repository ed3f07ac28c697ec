"""Weights to start an encoder from: a file at hand, or a name that the library's hub knows.

A file is read without running anything in it (safetensors, or torch's unpickler for plain tensors alone).
A name is looked up in the hub's cache first, then on the network if that answers within two seconds:
without it the error comes at once. Rejected: the hub's own order, which asks the network first and
tries again for minutes before it says that there is none. The first layer becomes one for other bands (`inflation`).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from satseg.errors import DependencyError, ModelError, UsageError
from satseg.learning.machine import optional_package
from satseg.learning.networks.inflation import RGB, input_weights, mixed, repeated
from satseg.options import MODEL_SUFFIX, names_file
from satseg.specs import suggest

__all__ = ["find_weights", "fit_encoder", "read_weights", "EXTRA"]

EXTRA = "zoo"
"""The extra of the package that installs the library and its hub."""
PREFIX = "encoder."
"""Before the names of an encoder's weights in a whole model, ours or the library's."""
CLASSIFIERS = ("fc.", "_fc.", "classifier.", "last_linear.", "head.", "linear.")
"""Last layers of the classifiers that encoders were trained as: not used here, so not missed."""
COUNTER = ".num_batches_tracked"
"""A count that older files lack; nothing but an average without momentum reads it."""
ANSWER_SECONDS = 2.0
HUB_FILE = "model.safetensors"
READ_ERRORS = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError)
"""What torch raises for a file that is damaged, or holds more than plain tensors."""
SHOWN = 3
ADVICE = "give weights=FILE (.safetensors or .pt), or leave weights out"


def find_weights(weights: str, encoder: str, published: Mapping[str, Mapping[str, Any]]) -> Path:
    """Return the file of the weights called `weights`: one at hand, or one of those `published` for `encoder`.

    Parameters
    ----------
    weights : str
        A name that ends as files do (`satseg.options.names_file`) is a file.
    encoder : str
        For messages.
    published : mapping of name to {"repo_id": str, "revision": str}
        What the hub has.

    Raises
    ------
    UsageError
        No weights of that name are published (E-USE-057).
    DependencyError
        There is no such file (E-DEP-014); they are not in the cache, and the network does not answer (E-DEP-012) or
        fails (E-DEP-013).
    """
    if names_file(weights):
        path = Path(weights)
        if not path.is_file():
            raise DependencyError(f"weights {path} are no file", hint="give another path", code="E-DEP-014", path=path)
        return path
    source = published.get(weights, {})
    if not {"repo_id", "revision"} <= set(source):
        raise UsageError(
            f"encoder {encoder!r} has no weights {weights!r}{suggest(weights, published)}",
            hint=ADVICE,
            code="E-USE-057",
        )
    return _fetched(f"{encoder} {weights}", source["repo_id"], source["revision"])


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors by name in the file at `path`; nothing in it is run.

    Raises
    ------
    ModelError
        It cannot be read, is damaged, or is no plain collection of tensors (E-MOD-020).
    """
    path = Path(path)
    try:
        content = path.read_bytes() if path.suffix == MODEL_SUFFIX else None
        found = (
            torch.load(path, map_location="cpu", weights_only=True)
            if content is None
            else safetensors.torch.load(content)
        )
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}", code="E-MOD-020", path=path) from error
    except (safetensors.SafetensorError, *READ_ERRORS) as error:
        raise ModelError(
            f"{path} is damaged or no file of plain weights", hint=ADVICE, code="E-MOD-020", path=path
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(
            f"{path} is no plain collection of tensors", hint="save its state dict alone", code="E-MOD-020", path=path
        )
    return dict(found)


def fit_encoder(
    encoder: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    bands: int,
    side: int,
    source: str,
    shares: Tensor | None = None,
) -> None:
    """Load `weights` into `encoder`, which takes `bands`; of three bands, their first layer becomes one for these.

    Parameters
    ----------
    encoder : Module
        Changed.
    weights : mapping of str to Tensor
        Of the encoder, or of a model with the encoder's behind ``encoder.``; for three bands, or as many as here.
    side : int
        Height and width of an image that the encoder takes.
    source : str
        What the weights are called in messages.
    shares : Tensor (bands, 3), optional
        What each band takes of the filters of three; `inflation.repeated` when left out.

    Raises
    ------
    ModelError
        Weights are missing, unknown or of another shape (E-MOD-021).
    """
    inner = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    given = inner or dict(weights)
    shares = repeated(bands, len(RGB)) if shares is None else shares
    for name in input_weights(encoder, bands=bands, side=side):
        if name in given and given[name].ndim == 4 and given[name].shape[1] == len(RGB):
            given[name] = mixed(given[name], shares)
    faults = _faults(given, encoder)
    if faults:
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ModelError(
            f"weights {source} do not fit the encoder: {', '.join(faults[:SHOWN])}{more}",
            hint="give weights of the same encoder, for 3 bands or as many as here",
            code="E-MOD-021",
        )
    own = encoder.state_dict()
    nn.Module.load_state_dict(encoder, {name: given.get(name, value) for name, value in own.items()})


def _faults(given: Mapping[str, Tensor], encoder: nn.Module) -> list[str]:
    wanted = encoder.state_dict()
    faults = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(value.shape)}" if name in given else f"{name} is missing"
        for name, value in wanted.items()
        if (name in given or not name.endswith(COUNTER)) and (name not in given or given[name].shape != value.shape)
    ]
    extra = [name for name in given if name not in wanted and not name.startswith(CLASSIFIERS)]
    return faults + [f"{name} is unknown" for name in extra]


def _fetched(what: str, repo_id: str, revision: str) -> Path:
    """Return the file of published weights from the hub's cache, or through the network."""
    hub = optional_package("huggingface_hub", extra=EXTRA)
    errors, constants = (optional_package(f"huggingface_hub.{part}", extra=EXTRA) for part in ("errors", "constants"))
    fetch = partial(hub.hf_hub_download, repo_id, HUB_FILE, revision=revision, token=False)
    with suppress(errors.LocalEntryNotFoundError):
        return Path(fetch(local_files_only=True))
    if constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise DependencyError(f"weights {what} are not in the cache, and {why}", hint=ADVICE, code="E-DEP-012")
    try:
        return Path(fetch())
    except (OSError, RuntimeError, errors.HTTPError) as error:
        first = str(error).strip().partition("\n")[0]
        raise DependencyError(f"weights {what} did not arrive: {first}", hint=ADVICE, code="E-DEP-013") from error


def _answers(url: str) -> bool:
    """Whether the server at `url` answers soon; looking up its name can take longer than any timeout."""
    answers = []

    def ask() -> None:
        with suppress(OSError, HTTPException, ValueError):
            with suppress(HTTPError):  # an answer too
                urlopen(Request(url, method="HEAD"), timeout=ANSWER_SECONDS).close()
            answers.append(url)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return bool(answers)
