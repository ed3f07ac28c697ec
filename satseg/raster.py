"""Raster: pixels with their grid, channel names and validity as one immutable value.

Bands of a scene, scores of classes and masks are all rasters: (channel, row, col) arrays whose
place and names never part from them. `valid` is one boolean plane for all channels: True where the
pixel may be used; pixels that are not valid hold 0.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rasterio.windows import Window

from satseg.errors import BandError, GridError, UsageError
from satseg.grid import Grid, overlap, slices
from satseg.preview import picture_tag, rgb_preview


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """Channels on a grid.

    Parameters
    ----------
    data : ndarray, (C, H, W)
        Any real dtype or bool; seen read-only. Masked pixels of a masked array are not valid.
    grid : Grid
        Of H x W pixels.
    names : tuple of str
        One per channel, no two alike.
    valid : ndarray of bool, (H, W), optional
        True = usable; everywhere when left out. Seen read-only.

    Raises
    ------
    GridError
        Shapes do not agree.
    BandError
        Names are not one per channel, or repeat.
    """

    data: NDArray[Any]
    grid: Grid
    names: tuple[str, ...]
    valid: NDArray[np.bool_] = None  # type: ignore[assignment]  # set in __post_init__, never None after

    def __post_init__(self) -> None:
        data = np.asarray(self.data)
        if data.ndim != 3 or data.shape[1:] != self.grid.shape:
            shape = f"(channels, {self.grid.height}, {self.grid.width})"
            raise GridError(f"data of shape {data.shape} is not {shape}", code="E-GRID-007")
        names = tuple(self.names)
        if len(names) != len(data) or len(set(names)) != len(names):
            raise BandError(f"{len(data)} channels need as many different names, not {names}")
        valid = np.ones(self.grid.shape, bool) if self.valid is None else np.asarray(self.valid, bool)
        if valid.shape != self.grid.shape:
            raise GridError(f"valid of shape {valid.shape} is not {self.grid.shape}", code="E-GRID-008")
        if isinstance(self.data, np.ma.MaskedArray):
            valid = valid & ~np.ma.getmaskarray(self.data).any(axis=0)
        for array in (data := data.view(), valid := valid.view()):
            array.flags.writeable = False
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "valid", valid)
        object.__setattr__(self, "names", names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return len(self.names), self.grid.height, self.grid.width

    def select(self, names: Sequence[str]) -> Raster:
        """Return the channels called `names`, in that order.

        Raises
        ------
        BandError
            A name is not among the channels.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise BandError(f"raster has channels {self.names}, not {tuple(missing)}", code="E-BAND-002")
        order = [self.names.index(name) for name in names]
        return replace(self, data=self.data[order], names=tuple(names))

    def crop(self, window: Window) -> Raster:
        """Return the part of this raster inside `window` (in pixels of its grid).

        Raises
        ------
        GridError
            The window reaches outside.
        """
        inside = overlap(window, self.grid.window)
        if inside is None or (inside.height, inside.width) != (window.height, window.width):
            raise GridError(
                f"window {window} is not inside {self.grid.height} x {self.grid.width} pixels",
                code="E-GRID-009",
            )
        rows, cols = slices(window, self.grid.window)
        return replace(
            self, data=self.data[:, rows, cols], grid=self.grid.crop(window), valid=self.valid[rows, cols]
        )

    def threshold(self, threshold: float | Sequence[float] | Mapping[str, float] = 0.5) -> Raster:
        """Return boolean masks, True where a channel reaches its threshold on valid pixels.

        Parameters
        ----------
        threshold : float, or one per channel (a sequence in channel order, or a mapping by name)
            Compared at the precision of the data: a float32 score of 0.7 reaches 0.7.

        Raises
        ------
        UsageError
            There is not one threshold per channel.
        """
        levels = self._levels(threshold)
        if self.data.dtype.kind == "f":
            levels = levels.astype(self.data.dtype)
        reached = (self.data >= levels[:, None, None]) & self.valid
        return replace(self, data=reached)

    def _levels(self, threshold: float | Sequence[float] | Mapping[str, float]) -> NDArray[np.float64]:
        if isinstance(threshold, Mapping):
            missing = [name for name in self.names if name not in threshold]
            if missing:
                raise UsageError(f"no threshold for channels {tuple(missing)}", code="E-USE-002")
            return np.array([threshold[name] for name in self.names], dtype=np.float64)
        levels = np.asarray(threshold, dtype=np.float64)
        if levels.shape not in ((), (len(self.names),)):
            raise UsageError(f"{levels.size} thresholds for {len(self.names)} channels", code="E-USE-003")
        return np.broadcast_to(levels, (len(self.names),))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the (C, H, W) data, so that numpy functions take a raster as it is."""
        return np.array(self.data, dtype=dtype, copy=copy)

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild through the constructor: numpy forgets "read-only" when an array is pickled."""
        return Raster, (self.data, self.grid, self.names, self.valid)

    @property
    def __geo_interface__(self) -> dict[str, Any]:
        """The grid's outline as a GeoJSON geometry, in the grid's own CRS."""
        outline: dict[str, Any] = self.grid.footprint().__geo_interface__
        return outline

    def _repr_html_(self) -> str:
        names = ", ".join(html.escape(name[:64]) for name in self.names)
        share = f"{self.valid.mean():.1%} of pixels valid"
        title = f"<b>Raster</b> {len(self.names)} x {self.data.dtype} ({names}), {share}"
        picture = picture_tag(rgb_preview(self.data, self.valid, self.names))
        return f"<div>{title}{self.grid._repr_html_()}{picture}</div>"


def as_planes(mask: ArrayLike) -> NDArray[Any]:
    """Return `mask` as (K, H, W): an (H, W) array becomes one plane.

    Raises
    ------
    GridError
        It has neither two nor three dimensions.
    """
    planes = np.asarray(mask)
    if planes.ndim == 2:
        return planes[None]
    if planes.ndim != 3:
        raise GridError(f"a mask of shape {planes.shape} is neither (H, W) nor (K, H, W)", code="E-GRID-011")
    return planes
