"""SceneReader: windows of a scene from files that stay open.

Every thread and process opens files of its own, since a GDAL handle shared between threads returns wrong
pixels without saying so; they stay open, since opening costs more than reading a window. Files are opened by
the function that `scene` hands in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import GridError
from satseg.grid import SNAP_PX
from satseg.imagery.drivers import DEFAULT_DRIVERS, gdal_env, is_remote
from satseg.imagery.indices import add_indices
from satseg.imagery.mapping import with_pixels
from satseg.imagery.reading import FilePlan, Pixels, plan_reads, read_native
from satseg.imagery.sources import Dataset, SourceFile
from satseg.raster import Raster

if TYPE_CHECKING:
    from satseg.imagery.scene import Scene

Handles: TypeAlias = dict[str, Dataset]
_INHERITED: list[Handles] = []
"""Files that a parent process had open: closing them after a fork could wait for ever on GDAL's locks."""


class SceneReader:
    """Reads windows of a scene, keeping its files open; a context manager.

    Safe to use from many threads and after a fork, and picklable.

    Parameters
    ----------
    scene : Scene
    opener : callable
        Opens the dataset of a source file; picklable.
    """

    def __init__(self, scene: Scene, opener: Callable[[SourceFile], Dataset]) -> None:
        self.scene = scene
        self._opener = opener
        self._dtype = scene.dtype
        # Options of the environment concern other drivers and networks; entering it costs like a small read.
        plain = all(
            source.file.driver in DEFAULT_DRIVERS and not is_remote(source.path) for source in scene.sources
        )
        self._env: Callable[[], AbstractContextManager[object]] = nullcontext if plain else gdal_env
        self._plans: dict[tuple[str, ...], tuple[Scene, tuple[FilePlan, ...]]] = {}
        self._handles: dict[tuple[int, int], Handles] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (SceneReader, (self.scene, self._opener))

    def __enter__(self) -> SceneReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files of all threads of this process, whose reads are over; a later read reopens them."""
        for key in list(self._handles):
            if key[0] == os.getpid():
                for dataset in self._handles.pop(key, {}).values():
                    dataset.close()

    def read(self, window: Window, bands: Sequence[str] | None = None) -> Raster:
        """Return the pixels of `window` of the scene's grid.

        Parameters
        ----------
        window : Window
            Whole pixels; may overhang the grid: pixels outside are not valid and hold 0.
        bands : sequence of str, optional
            All when left out.

        Returns
        -------
        Raster, (C, H, W) of the scene's dtype

        Raises
        ------
        GridError
            The window is empty or cuts pixels.
        BandError
            Unknown bands.
        InputError
            Blocks of a file are damaged, or the file is gone.
        """
        window = whole_window(window)
        names = self.scene.bands if bands is None else tuple(bands)
        part, plans = self._plans.get(names) or self._plan(names)
        with self._env():
            pieces = [plan.read(self._dataset(plan.file), window) for plan in plans]
        if part.indices:
            data = np.empty((len(names), window.height, window.width), self._dtype)
            valid = _with_indices(part, plans, pieces, data)
        elif len(plans) == 1 and plans[0].places == tuple(range(len(names))):
            data, valid = pieces[0]
        else:
            data = np.empty((len(names), window.height, window.width), self._dtype)
            valid = _assemble(plans, pieces, data)
        if self.scene.levels is not None:
            data = self._levelled(data, valid, names)
        if valid is None:  # one True seen everywhere: writing a plane of them costs a tenth of a fast read
            valid = np.broadcast_to(np.True_, data.shape[1:])
        return Raster(data, self.scene.grid.crop(window), names, valid)

    def read_into(self, out: NDArray[Any], window: Window) -> NDArray[np.bool_] | None:
        """Read all bands of `window` into `out`; return what is valid, (H, W), None where all is.

        Stored values go straight to their place, without the copy that putting windows together costs.

        Parameters
        ----------
        out : ndarray, (C, H, W) of the scene's dtype
            May be a part of a larger array. 0 afterwards where not valid; anything after an error.
        window : Window
            As for `read`.

        Raises
        ------
        GridError, InputError
            As `read`.
        """
        window = whole_window(window)
        part, plans = self._plans.get(self.scene.bands) or self._plan(self.scene.bands)
        with self._env():
            if part.indices:
                pieces = [plan.read(self._dataset(plan.file), window) for plan in plans]
                valid = _with_indices(part, plans, pieces, out)
            else:
                pieces = [plan.read(self._dataset(plan.file), window, _channels(out, plan.places)) for plan in plans]
                valid = _assemble(plans, pieces, out)
        if self.scene.levels is not None:
            out[...] = self._levelled(out, valid, part.bands)
        return valid

    def overview(self, bands: Sequence[str], *, height: int, width: int) -> Raster:
        """Return `bands`, all stored in one file, decimated to `height` x `width` from overviews: for pictures."""
        sources = [next(source for source in self.scene.sources if source.name == name) for name in bands]
        file = sources[0].file
        own = file.grid
        with self._env():
            data, valid = read_native(
                self._dataset(file), file, sources, window=own.window, out_shape=(height, width)
            )
        grid = with_pixels(own, rows=own.height / height, cols=own.width / width, height=height, width=width)
        return Raster(data, grid, tuple(bands), valid)  # type: ignore[arg-type]

    def _levelled(
        self, data: NDArray[Any], valid: NDArray[np.bool_] | None, names: tuple[str, ...]
    ) -> NDArray[np.float32]:
        """`data`, the bands `names`, by the levels of the scene; 0 where not valid."""
        assert self.scene.levels is not None
        known = np.broadcast_to(np.True_, data.shape[1:]) if valid is None else valid
        return self.scene.levels.select(names).apply(data, known)

    def _plan(self, names: tuple[str, ...]) -> tuple[Scene, tuple[FilePlan, ...]]:
        part = self.scene.select(names)
        self._plans[names] = part, plan_reads(part.sources, part.grid, self._dtype)
        return self._plans[names]

    def _dataset(self, file: SourceFile) -> Dataset:
        """Return the file as this thread of this process has it open."""
        # Thread numbers are used again once a thread has ended, and so are its files then.
        key = (os.getpid(), threading.get_ident())
        own = self._handles.get(key)
        if own is None:
            _INHERITED.extend(handles for (process, _), handles in self._handles.items() if process != key[0])
            own = self._handles[key] = {}
        if file.path not in own:
            own[file.path] = self._opener(file)
        return own[file.path]


def whole_window(window: Window) -> Window:
    """Return `window` with whole numbers.

    Raises
    ------
    GridError
        It is empty or its edges lie inside pixels.
    """
    edges = (window.col_off, window.row_off, window.width, window.height)
    whole = tuple(map(round, edges))
    if max(abs(a - b) for a, b in zip(edges, whole, strict=True)) > SNAP_PX or min(whole[2:]) < 1:
        raise GridError(
            f"window {window} is empty or cuts pixels", hint="give whole, positive sizes", code="E-GRID-101"
        )
    return Window(*whole)


def _channels(out: NDArray[Any], places: Sequence[int]) -> NDArray[Any] | None:
    """Return the channels `places` of `out` as a view, None where they do not follow each other."""
    first = places[0]
    return (
        out[first : first + len(places)]
        if tuple(places) == tuple(range(first, first + len(places)))
        else None
    )


def _assemble(
    plans: Sequence[FilePlan], pieces: Sequence[Pixels], out: NDArray[Any]
) -> NDArray[np.bool_] | None:
    """Put the pieces into `out` in the order of the scene's bands; return where all of them are valid."""
    for plan, (own, _) in zip(plans, pieces, strict=True):
        if not np.may_share_memory(own, out):
            out[list(plan.places)] = own
    masks = [valid for _, valid in pieces if valid is not None]
    if not masks:
        return None
    valid = masks[0] if len(masks) == 1 else np.logical_and.reduce(masks)
    if len(plans) > 1:  # a lone piece is 0 there already
        out[:, ~valid] = 0
    return valid


def _with_indices(
    scene: Scene, plans: Sequence[FilePlan], pieces: Sequence[Pixels], out: NDArray[Any]
) -> NDArray[np.bool_] | None:
    """Put stored bands and indices of them into `out` in the order of the scene's bands; return what is valid."""
    stored = np.empty((len(scene.sources), *out.shape[1:]), out.dtype)
    valid = _assemble(plans, pieces, stored)
    planes = {source.name: plane for source, plane in zip(scene.sources, stored, strict=True)}
    computed = dict(zip(scene.bands, out, strict=True))
    lost = add_indices(scene.indices, planes, computed)
    for name, plane in computed.items():
        if name in planes:
            plane[...] = planes[name]
    if lost is not None:
        valid = ~lost if valid is None else valid & ~lost
    if valid is not None:
        out[:, ~valid] = 0
    return valid
