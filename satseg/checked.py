"""JSON documents that carry a checksum of themselves, and in words what differs between two of them.

One canonical text per value, so that equal headers have equal checksums and a flipped byte is noticed.
A damaged document is as good as a missing one, with a warning: what to do then is for the reader of it
to say. Rejected: a side file for the checksum, which a crash between the two writes tears from its document.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FORMAT = 1
SHOWN = 80
"""Characters of a value that a message shows."""
BEFORE = 20
"""Of them, those before the first that differs, in values longer than that."""
IDENTITY = {"size", "mtime_ns", "sha256"}
"""Keys of a file's identity (see `satseg.ledger.identity_of`): such a file has changed, not a setting."""


def canonical(value: object) -> bytes:
    """Return the one JSON text of `value`: keys sorted, no blanks; NaN is allowed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest_of(content: object) -> str:
    """Return the SHA-256 of the canonical text of `content`."""
    return hashlib.sha256(canonical(content)).hexdigest()


def checked(content: object) -> bytes:
    """Return `content` as a document with its checksum inside."""
    return canonical({"format": FORMAT, "content": content, "sha256": digest_of(content)})


def content_of(path: str | os.PathLike[str]) -> Any:
    """Return the content of the checked document at `path`; None when it is missing or, with a warning, damaged.

    Raises
    ------
    OSError
        It is there and cannot be read.
    """
    try:
        document = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        document = None
    whole = isinstance(document, dict) and document.keys() == {"format", "content", "sha256"}
    if whole and document["format"] == FORMAT and document["sha256"] == digest_of(document["content"]):
        return document["content"]
    log.warning("%s is damaged", path)
    return None


def differences(old: object, new: object) -> list[str]:
    """Return in words where two JSON values differ: "a.b was 1, is 2", "scene.tif has changed (size 1 -> 2)".

    Nested keys and places in lists of one length are joined with dots; 1 and 1.0 are the same, 1 and true
    are not. A value with the keys of a file's identity is told of as a file.
    """
    return list(_differences(old, new, ()))


def _differences(old: object, new: object, place: tuple[str, ...]) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        if place and IDENTITY == set(old) == set(new):
            yield from _changed(old, new, place)
            return
        for key in old | new:
            if key in old and key in new:
                yield from _differences(old[key], new[key], (*place, key))
            else:
                before, now = (_said(side[key]) if key in side else "not given" for side in (old, new))
                yield f"{'.'.join((*place, key))} was {before}, is {now}"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, now, (*place, str(number)))
    elif not _alike(old, new):
        start = _first_difference(canonical(old).decode(), canonical(new).decode())
        yield f"{'.'.join(place)} was {_said(old, start)}, is {_said(new, start)}"


def _changed(old: dict[str, object], new: dict[str, object], place: tuple[str, ...]) -> Iterator[str]:
    """Say what tells most of a file's change; times change along with everything."""
    key = next((key for key in ("size", "sha256", "mtime_ns") if old[key] != new[key]), None)
    if key is not None:
        name = ".".join(place) if place[-1].isdecimal() else place[-1]
        yield f"{name} has changed ({'content' if key == 'sha256' else f'{key} {old[key]} -> {new[key]}'})"


def _alike(old: object, new: object) -> bool:
    truth = isinstance(old, bool) or isinstance(new, bool)
    return canonical(old) == canonical(new) or (not truth and old == new)


def _first_difference(old: str, new: str) -> int:
    """Return how many characters two texts share at their beginnings."""
    return next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


def _said(value: object, start: int = 0) -> str:
    """Return the text of `value`, of a long one the part around its character number `start`."""
    text = canonical(value).decode()
    first = max(0, start - BEFORE) if len(text) > SHOWN else 0
    part = text[first : first + SHOWN]
    return f"{'...' if first else ''}{part}{'...' if first + SHOWN < len(text) else ''}"
