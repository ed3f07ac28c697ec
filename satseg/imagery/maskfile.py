"""MaskFile: masks and scores read back from disk, window by window, with their class names.

Apart from `Scene` because it is another thing: one file, one grid, bands that are classes and not
spectral channels, and values kept as they are. `satseg.imagery.writer.open_mask` opens one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from satseg.errors import BandError, InputError
from satseg.grid import Grid
from satseg.imagery.drivers import gdal_env
from satseg.raster import Raster


@dataclass(frozen=True, slots=True)
class MaskFile:
    """An open raster of masks or scores; bands are classes. One thread at a time.

    Parameters
    ----------
    path : str
    grid : Grid
    names : tuple of str
        Class names: the descriptions of the bands, ``band_1``... where there are none.
    nodata : float or None
        The value of invalid pixels.
    block_rows : int
        Height of a block: windows whose rows are multiples of it are read without repetition.
    """

    path: str
    grid: Grid
    names: tuple[str, ...]
    nodata: float | None
    block_rows: int
    _dataset: Any

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.names)

    def indexes(self, bands: Sequence[int | str] | None = None) -> list[int]:
        """Return the places, from 0, of bands given by number from 1 or by name; all by default.

        Raises
        ------
        BandError
            There is no such band.
        """
        if bands is None:
            return list(range(self.count))
        known: dict[int | str, int] = {number: number - 1 for number in range(1, self.count + 1)}
        known |= {name: place for place, name in enumerate(self.names)}
        unknown = [band for band in bands if band not in known]
        if unknown:
            raise BandError(
                f"no band {unknown[0]!r} among {self.names}",
                hint=f"give numbers from 1 to {self.count}, or names",
                code="E-BAND-204",
                path=self.path,
            )
        return [known[band] for band in bands]

    def read(self, window: Window | None = None, bands: Sequence[int | str] | None = None) -> Raster:
        """Return the pixels of `window` (all when left out), valid where all `bands` are.

        Raises
        ------
        InputError
            Blocks of the file are damaged.
        """
        window = self.grid.window if window is None else window
        data, masks = self.read_planes(window, bands)
        valid = np.all(masks, axis=0)
        names = tuple(self.names[place] for place in self.indexes(bands))
        return Raster(np.where(valid, data, data.dtype.type(0)), self.grid.crop(window), names, valid)

    def read_planes(
        self, window: Window, bands: Sequence[int | str] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the pixels of `window` and where each band is valid, (K, h, W) each, read in one go.

        Raises
        ------
        InputError
            Blocks of the file are damaged.
        """
        numbers = [place + 1 for place in self.indexes(bands)]
        try:
            with gdal_env():
                data = self._dataset.read(numbers, window=window)
                masks = [self._valid(number, data[i], window) for i, number in enumerate(numbers)]
        except (RasterioError, OSError) as error:
            raise InputError(
                f"{window} cannot be read: {error}",
                hint="the file is damaged",
                code="E-IN-201",
                path=self.path,
            ) from error
        return data, np.array(masks, bool).reshape(data.shape)

    def _valid(self, number: int, band: NDArray[Any], window: Window) -> NDArray[np.bool_]:
        flags = self._dataset.mask_flag_enums[number - 1]
        if MaskFlags.all_valid in flags:
            return np.ones(band.shape, bool)
        if flags == [MaskFlags.nodata] and not np.issubdtype(band.dtype, np.floating):
            return np.asarray(band != self.nodata)  # saves the second decoding of read_masks
        return np.asarray(self._dataset.read_masks(number, window=window) != 0)


def band_names(dataset: Any, path: str) -> tuple[str, ...]:
    """Return the name of each band: its description, or its number where that is missing or taken.

    Raises
    ------
    InputError
        A description is not in UTF-8.
    """
    try:
        descriptions = dataset.descriptions
    except UnicodeDecodeError as error:
        raise InputError("a band's description is not in UTF-8", code="E-IN-202", path=path) from error
    names: list[str] = []
    for number, text in enumerate(descriptions, start=1):
        name = (text or "").strip()
        names.append(f"band_{number}" if not name or name in names else name)
    return tuple(names)
