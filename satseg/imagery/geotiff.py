"""What a GeoTIFF is created with, and how to tell whether one is whole. Opens no files.

The choices: 512-pixel blocks (as a COG), bands stored apart so that one class is read without the
others, fast deflate with a predictor, BigTIFF where 4 GiB could be passed (a classic file fails late,
when the offset overflows). zstd goes without a predictor on bytes: eight masks of 2048 x 2048 take 28 ms
and 264 kB, by deflate 135 ms and 373 kB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from rasterio.dtypes import dtype_rev, in_dtype_range

from satseg.errors import BandError, UsageError
from satseg.grid import Grid

BLOCK = 512
"""Side of a block in pixels."""
SMALLEST_OVERVIEW = 256
LEAST_CACHE, MOST_CACHE = 64 * 2**20, 2**30
_PREDICTED = ("deflate", "zstd", "lzw")
"""Codecs that take a predictor."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Size, type and place of a file to be written.

    Parameters
    ----------
    grid : Grid
    names : tuple of str
        One per band.
    dtype : numpy dtype
    nodata : float or None
    compress : str or None
        GDAL's name of the codec.
    half : bool
        Whether the floats are stored in 16 bits.

    Raises
    ------
    BandError, UsageError
        Names repeat; a GeoTIFF does not hold this dtype; `nodata` does not exist in it.
    """

    grid: Grid
    names: tuple[str, ...]
    dtype: np.dtype[Any]
    nodata: float | None
    compress: str | None
    half: bool = False

    @classmethod
    def of(
        cls, grid: Grid, names: Sequence[str], dtype: DTypeLike, nodata: float | None, compress: str | None
    ) -> Layout:
        """Return the layout with `names` as a tuple, bool stored as uint8, float16 as float32 of 16 bits."""
        wanted = np.dtype(dtype)
        half = wanted.name == "float16"
        stored = np.dtype({"bool": np.uint8, "float16": np.float32}.get(wanted.name, wanted))
        return cls(grid, tuple(names), stored, nodata, compress, half)

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise BandError(f"bands {self.names} need one name each, no two alike", code="E-BAND-203")
        if self.dtype.name not in dtype_rev:
            raise UsageError(f"a GeoTIFF holds no {self.dtype}", code="E-USE-203")
        if self.nodata is not None and not _exists(self.nodata, self.dtype):
            raise UsageError(
                f"nodata {self.nodata} does not exist in {self.dtype}",
                hint=_range(self.dtype),
                code="E-USE-204",
            )

    def profile(self) -> dict[str, Any]:
        """Return GDAL's creation options."""
        block_height, block_width = (min(BLOCK, -(-side // 16) * 16) for side in self.grid.shape)
        profile: dict[str, Any] = {
            "driver": "GTiff", "height": self.grid.height, "width": self.grid.width, "count": len(self.names),
            "dtype": self.dtype.name, "crs": self.grid.crs, "transform": self.grid.transform,
            "nodata": self.nodata, "tiled": True, "blockysize": block_height, "blockxsize": block_width,
            "interleave": "band", "BIGTIFF": "IF_SAFER",
        }  # fmt: skip
        if self.half:
            profile["NBITS"] = 16
        if self.compress:
            profile |= {"compress": self.compress, "NUM_THREADS": "ALL_CPUS"}
            if self.compress.lower() in _PREDICTED and (self.compress.lower(), self.dtype.name) != ("zstd", "uint8"):
                profile["predictor"] = 3 if np.issubdtype(self.dtype, np.floating) else 2
            if self.compress.lower() == "deflate":
                profile["ZLEVEL"] = 1  # level 6 takes three times as long for a tenth fewer bytes
            if self.compress.lower() == "zstd":
                profile["ZSTD_LEVEL"] = 1
        return profile

    def cache_bytes(self) -> int:
        """Return the bytes of two rows of blocks, so that none is compressed before it is full."""
        row = BLOCK * (self.grid.width + BLOCK) * len(self.names) * self.dtype.itemsize
        return min(max(LEAST_CACHE, 2 * row), MOST_CACHE)

    def overview_factors(self) -> list[int]:
        """Return the reductions down to the size of a thumbnail; none for a small raster."""
        return [2**k for k in range(1, 24) if max(self.grid.shape) / 2**k >= SMALLEST_OVERVIEW]


def _exists(value: float, dtype: np.dtype[Any]) -> bool:
    if np.issubdtype(dtype, np.floating):
        return bool(in_dtype_range(value, dtype.name))
    return np.isfinite(value) and value == int(value) and bool(in_dtype_range(value, dtype.name))


def _range(dtype: np.dtype[Any]) -> str:
    if np.issubdtype(dtype, np.floating):
        return "give NaN or a finite number in its range"
    info = np.iinfo(dtype)
    return f"give a whole number from {info.min} to {info.max}"


def blocks_are_there(dataset: Any, size: int) -> bool:
    """Return whether every block of every band of an open GeoTIFF lies within its `size` bytes.

    Writes that fail while a file is closed leave blocks without a place, which then read as zeros.
    """
    block_height, block_width = dataset.block_shapes[0]
    rows, cols = -(-dataset.height // block_height), -(-dataset.width // block_width)
    for band in dataset.indexes:
        for row, col in np.ndindex(rows, cols):
            start = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
            length = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
            if start is None or length is None or int(start) + int(length) > size:
                return False
    return True


def rgba(color: str) -> tuple[int, int, int, int]:
    """Return "#rrggbb" as opaque (red, green, blue, alpha), 0..255.

    Raises
    ------
    UsageError
        It is no such colour.
    """
    try:
        red, green, blue = bytes.fromhex(color.removeprefix("#"))
    except ValueError as error:
        raise UsageError(f"{color!r} is no colour", hint="give #rrggbb", code="E-USE-207") from error
    return red, green, blue, 255


def free_value(data: NDArray[Any], valid: NDArray[np.bool_]) -> float:
    """Return a value of the dtype of `data`, (C, H, W), that no valid pixel has: NaN for floats.

    Raises
    ------
    UsageError
        The largest, the smallest value and 0 are all taken.
    """
    if np.issubdtype(data.dtype, np.floating):
        return float("nan")
    info = np.iinfo(data.dtype)
    for value in (info.max, info.min, 0):
        if not np.any((data == value) & valid):
            return float(value)
    raise UsageError(
        f"no value of {data.dtype} is free to mark invalid pixels",
        hint="give nodata=, or a wider dtype",
        code="E-USE-208",
    )
