"""What GDAL may do: which driver opens a file, chosen by its first bytes from a list the caller can widen.

GDAL left to itself tries every driver it has, whatever the file is called: a VRT named scene.tif then reads
other files of the machine, and other drivers run code or go to the network. Only four plain image formats
are opened unless more are asked for, each with its own driver named.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import rasterio.env

from satseg.errors import InputError

DEFAULT_DRIVERS = ("GTiff", "PNG", "JPEG", "JP2OpenJPEG")
"""Formats whose files hold pixels and nothing else: no references to other files, no code."""
HEAD_BYTES = 64
NEVER_PYTHON = {"GDAL_VRT_ENABLE_PYTHON": "NO"}
"""A VRT's pixel functions are code of whoever wrote the file: off, whatever the environment says."""
GDAL_OPTIONS: dict[str, Any] = {
    # Without these a server that does not answer holds a read for ever.
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_MAX_RETRY": "3",
    # GDAL_DISABLE_READDIR_ON_OPEN keeps its default: side-cars (.msk, .ovr, .aux.xml) carry masks and places.
}
# GDAL's block cache in MiB: holds a row of 512-blocks of a scene 30 000 pixels wide with 8 bands of uint16.
# Its own choice, 5 % of memory, grows with the machine and not with the need. The cache is one for the whole
# process and sized when first used, so it is set here and not in `gdal_env`, which would have every thread
# resize it with every read; whoever sets the variable first is obeyed.
os.environ.setdefault("GDAL_CACHEMAX", "256")
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"II*\x00", "GTiff"),
    (b"MM\x00*", "GTiff"),
    (b"II+\x00", "GTiff"),  # BigTIFF
    (b"MM\x00+", "GTiff"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
)
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jp2": "JP2OpenJPEG", ".j2k": "JP2OpenJPEG"}


def gdal_env() -> rasterio.Env:
    """Return the environment that files are opened and read in; what the caller has set stays as it is."""
    chosen = rasterio.env.getenv() if rasterio.env.hasenv() else {}
    own = {key: value for key, value in GDAL_OPTIONS.items() if key not in chosen and key not in os.environ}
    return rasterio.Env(**own, **NEVER_PYTHON)


def is_remote(path: str) -> bool:
    """Return whether `path` is a URL or in a virtual file system of GDAL, not a name on this disk."""
    return path.startswith("/vsi") or "://" in path


def choose_drivers(path: str, allowed: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Return the drivers that may try to open `path`, and a warning when its suffix says another.

    Raises
    ------
    InputError
        The file is missing (E-IN-101), no regular file (E-IN-102), empty (E-IN-103), of a kind that is not
        allowed (E-IN-104), or not readable (E-IN-109).
    """
    by_suffix = SUFFIXES.get(PurePath(path).suffix.lower(), "GTiff")
    if is_remote(path):
        return (by_suffix,), None
    head = _head(path)
    by_bytes = next((driver for magic, driver in MAGIC if head.startswith(magic)), None)
    extra = tuple(driver for driver in allowed if driver not in DEFAULT_DRIVERS)
    if by_bytes is not None and by_bytes in allowed:
        said = None if by_bytes == by_suffix else f"{path} is a {by_bytes} file by its content"
        return (by_bytes,), said
    if extra and by_bytes is None:
        return extra, None
    kind, way_out = _kind(head, by_bytes), _way_out(head, by_bytes)
    raise InputError(f"it is {kind}", hint=way_out, code="E-IN-104", path=path)


def _head(path: str) -> bytes:
    try:
        path.encode()
    except UnicodeEncodeError as error:  # bytes that GDAL cannot be told of
        raise InputError("its name is not UTF-8", hint="rename it", code="E-IN-110", path=path) from error
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(f"{path} is {kind}", hint="give a raster file", code="E-IN-102", path=path)
        if status.st_size == 0:
            raise InputError(f"{path} is empty (0 bytes)", code="E-IN-103", path=path)
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist", hint="check the name", code="E-IN-101", path=path
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise InputError(f"{path!r} cannot be read: {error}", code="E-IN-109", path=path) from error


def _kind(head: bytes, by_bytes: str | None) -> str:
    if by_bytes is not None:
        return f"a {by_bytes} file, which is not among the drivers allowed"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<VRTDataset"):
        return "a VRT, which can read any other file"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "XML, not a raster"
    text = all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in head)
    return "text, not a raster" if text else "of no raster format that is opened by default"


def _way_out(head: bytes, by_bytes: str | None) -> str:
    if by_bytes is None and b"<VRTDataset" in head:
        return "if you trust it, allow its driver (drivers=[..., 'VRT'], --allow-driver VRT)"
    return "give a GeoTIFF, PNG, JPEG or JPEG 2000, or allow another driver (--allow-driver)"
