"""Rasters on disk: streamed GeoTIFFs, complete or absent, and masks read back from them.

A `RasterWriter` takes windows in any order, keeps a bounded cache, and publishes the file only
after it was opened again and compared with what went in: GDAL reports a full disk late, and
rasterio says nothing about writes that fail while it closes.

Rejected: the COG driver, which needs a finished copy of the whole raster first; a tiled GeoTIFF
with overviews serves the same readers.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import ArrayLike, DTypeLike, NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from satseg.crs import CRSLike, describe, parse_crs, same_crs, to_pyproj
from satseg.errors import GridError, OutputError, UsageError
from satseg.grid import Grid, overlap, slices
from satseg.imagery.drivers import choose_drivers
from satseg.imagery.geotiff import BLOCK, LEAST_CACHE, Layout, blocks_are_there, free_value, rgba
from satseg.imagery.maskfile import MaskFile, band_names
from satseg.imagery.scene import open_dataset
from satseg.output import AtomicOutput, check_writable
from satseg.raster import Raster

PathLike = str | os.PathLike[str]
GEOTIFF_SUFFIXES = (".tif", ".tiff")

SAMPLES, SAMPLE_SIDE = 64, 128
"""How many written windows are compared after closing, and how many of their rows and columns."""
# rasterio lets some of GDAL's own errors through without wrapping them.
_FAILURES = (RasterioError, OSError, CPLE_BaseError)
_QUIET = threading.Lock()
log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class RasterWriter:
    """A GeoTIFF that is written window by window and appears under its name when it is complete.

    Used as ``with RasterWriter(path, grid=..., names=..., dtype=...) as out: out.write(data, window)``.
    An error inside the block leaves nothing behind. What is never written holds `nodata`, or 0.
    One thread at a time.

    Parameters
    ----------
    path : path-like
        The final name.
    grid : Grid
        Any: without CRS, rotated, south-up.
    names : sequence of str
        One per band, stored as descriptions.
    dtype : numpy dtype
        bool is stored as uint8; float16 takes half the room of float32 and is read as that.
    nodata : float, optional
        A value of `dtype` that marks invalid pixels.
    overwrite : bool
        Whether an existing file may be replaced.
    compress : str or None
        GDAL's name of the codec; None for none.
    overviews : bool
        Whether to add reduced copies, by `resampling`, for quick display.
    resampling : {"nearest", "average"}
        "nearest" for masks, "average" for scores.
    tags : mapping, optional
        Metadata by name.
    description : str, optional
        What the file shows, in a sentence.
    colors : mapping of int to "#rrggbb", optional
        Colour table of a single uint8 band.
    scale : float
        Value = stored x scale, noted in the file for its readers.
    in_rows : bool
        Windows come as whole rows of blocks, top down: no cache needs to hold unfinished ones.

    Raises
    ------
    UsageError, BandError
        At construction: a nodata outside the dtype, an unknown dtype, names that repeat.
    OutputError
        At construction: see `AtomicOutput`. While writing or at the end: the disk is full
        (E-OUT-202), the file does not hold what was written (E-OUT-201) or cannot hold the CRS
        (E-OUT-203).
    """

    path: PathLike
    _: KW_ONLY
    grid: Grid
    names: Sequence[str]
    dtype: DTypeLike
    nodata: float | None = None
    overwrite: bool = False
    compress: str | None = "deflate"
    overviews: bool = True
    resampling: Literal["nearest", "average"] = "nearest"
    tags: Mapping[str, str] | None = None
    description: str | None = None
    colors: Mapping[int, str] | None = None
    scale: float = 1.0
    in_rows: bool = False
    _state: _State = None  # type: ignore[assignment]  # set in __post_init__, never None after

    def __post_init__(self) -> None:
        layout = Layout.of(self.grid, self.names, self.dtype, self.nodata, self.compress)
        if self.colors and (len(layout.names) != 1 or layout.dtype != np.uint8):
            raise UsageError("only a single band of uint8 can have a colour table", code="E-USE-205")
        self._state = _State(layout, AtomicOutput(self.path, overwrite=self.overwrite))

    def __enter__(self) -> RasterWriter:
        state = self._state
        with ExitStack() as stack:
            out = stack.enter_context(state.output)
            cache = LEAST_CACHE if self.in_rows else state.layout.cache_bytes()
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=cache))
            with self._guard(), _quiet(self.grid):
                state.dataset = rasterio.open(out.temporary, "w", **state.layout.profile())
            stack.callback(self._abandon)
            with self._guard():
                self._describe()
            state.stack = stack.pop_all()
        return self

    def write(self, data: ArrayLike, window: Window) -> None:
        """Write `data` where `window` says.

        Parameters
        ----------
        data : ndarray, (C, h, w)
            Of the file's dtype, or one that fits into it without loss.
        window : Window
            Whole pixels inside the grid; windows made of whole blocks are fastest.

        Raises
        ------
        GridError
            Shapes disagree, or the window leaves the grid.
        UsageError
            The dtype does not fit.
        OutputError
            The disk is full.
        """
        state = self._state
        pixels = np.asarray(data)
        inside = overlap(window, self.grid.window)
        if inside is None or (inside.height, inside.width) != (window.height, window.width):
            raise GridError(
                f"{window} is not inside {self.grid.height} x {self.grid.width} pixels", code="E-GRID-203"
            )
        if pixels.shape != (len(state.layout.names), window.height, window.width):
            raise GridError(f"data of shape {pixels.shape} do not fill {window}", code="E-GRID-203")
        held = np.dtype(np.float16) if state.layout.half else state.layout.dtype
        if not np.can_cast(pixels.dtype, held, casting="safe"):
            raise UsageError(f"{pixels.dtype} does not fit into {held}", code="E-USE-206")
        pixels = pixels.astype(state.layout.dtype, copy=False)
        with self._guard():
            state.dataset.write(pixels, window=window)
        state.remember(pixels, window)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._state.stack.__exit__(kind, error, trace)
            return
        with self._state.stack, self._guard(), _quiet(self.grid):
            self._state.dataset.close()
            self._finish(self._state)

    def _describe(self) -> None:
        dataset = self._state.dataset
        for number, name in enumerate(self._state.layout.names, start=1):
            dataset.set_band_description(number, name)
        tags = dict(self.tags or {})
        if self.description:
            tags["TIFFTAG_IMAGEDESCRIPTION"] = self.description
        dataset.update_tags(**tags)
        if self.scale != 1.0:
            dataset.scales = (self.scale,) * dataset.count
        if self.colors:
            dataset.write_colormap(1, {value: rgba(color) for value, color in self.colors.items()})

    def _finish(self, state: _State) -> None:
        """Add overviews to the closed file, then open it again and compare it with what went in."""
        factors = state.layout.overview_factors()
        if self.overviews and factors:
            with rasterio.open(state.output.temporary, "r+", driver="GTiff") as dataset:
                dataset.build_overviews(factors, Resampling[self.resampling])
        with rasterio.open(state.output.temporary, driver="GTiff") as dataset:
            if not _same_ground(dataset.crs, self.grid.crs):
                raise OutputError(
                    f"a GeoTIFF does not hold the CRS {describe(self.grid.crs)}",
                    code="E-OUT-203",
                    path=self.path,
                )
            if not state.agrees_with(dataset):
                raise OutputError(
                    "the file does not hold what was written", hint=_FULL, code="E-OUT-201", path=self.path
                )

    def _abandon(self) -> None:
        """Close the file if it still is open: it will be thrown away, so errors are of no interest."""
        try:
            self._state.dataset.close()
        except _FAILURES as error:
            log.debug("closing the unfinished %s: %s", self.path, error)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn errors of GDAL into an OutputError."""
        try:
            yield
        except OutputError:
            raise
        except _FAILURES as error:
            raise OutputError(
                f"cannot write {os.fspath(self.path)}: {error}", hint=_FULL, code="E-OUT-202", path=self.path
            ) from error


_FULL = "is the disk full?"


class _State:
    """What a RasterWriter has open, and checksums of what it wrote."""

    def __init__(self, layout: Layout, output: AtomicOutput) -> None:
        self.layout = layout
        self.output = output
        self.stack = ExitStack()
        self.dataset: Any = None
        self._samples: list[tuple[Window, list[int]]] = []
        self._seen = 0
        self._draws = np.random.default_rng(0)

    def remember(self, pixels: NDArray[Any], window: Window) -> None:
        """Keep the checksums of a corner of this window, of a random choice of them (reservoir)."""
        self._samples = [sample for sample in self._samples if overlap(sample[0], window) is None]
        self._seen += 1
        corner = pixels[:, :SAMPLE_SIDE, :SAMPLE_SIDE]
        place = Window(window.col_off, window.row_off, corner.shape[2], corner.shape[1])
        sample = (place, _checksums(corner))
        if len(self._samples) < SAMPLES:
            self._samples.append(sample)
        elif (slot := int(self._draws.integers(self._seen))) < SAMPLES:
            self._samples[slot] = sample

    def agrees_with(self, dataset: Any) -> bool:
        """Return whether the open file has this layout, all its blocks, and the sampled pixels."""
        layout = self.layout
        return (
            Grid(dataset.height, dataset.width, dataset.transform, layout.grid.crs).matches(layout.grid)
            and dataset.descriptions == layout.names
            and set(dataset.dtypes) == {layout.dtype.name}
            and blocks_are_there(dataset, os.path.getsize(self.output.temporary))
            and all(_checksums(dataset.read(window=place)) == sums for place, sums in self._samples)
        )


def _same_ground(first: CRSLike | None, second: CRSLike | None) -> bool:
    """Return whether both are absent or agree on x and y; GDAL leaves heights out when it reads."""
    if first is None or second is None:
        return first is None and second is None
    systems = (to_pyproj(first), to_pyproj(second))
    return same_crs(*(crs.sub_crs_list[0] if crs.is_compound else crs for crs in systems))


def _checksums(bands: NDArray[Any]) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(band).data) for band in bands]


@contextmanager
def _quiet(grid: Grid) -> Iterator[None]:
    """Keep rasterio from warning that a raster has no place when that is what was asked for.

    Filters of `warnings` are shared by all threads, so they are left alone for placed rasters.
    """
    if not grid.transform.is_identity:
        yield
        return
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def check_raster_target(path: PathLike, *, overwrite: bool = False) -> None:
    """Raise what writing a GeoTIFF at `path` would raise; run before long work.

    Raises
    ------
    UsageError
        The suffix is that of another format (E-USE-209).
    OutputError
        As `check_writable`.
    """
    if os.path.splitext(path)[1].lower() not in GEOTIFF_SUFFIXES:
        raise UsageError(
            f"{os.fspath(path)}: rasters are written as GeoTIFF only",
            hint=f"end the name with {' or '.join(GEOTIFF_SUFFIXES)}",
            code="E-USE-209",
        )
    check_writable(path, overwrite=overwrite)


def write_raster(
    raster: Raster, path: PathLike, *, overwrite: bool = False, nodata: float | None = None, **options: Any
) -> None:
    """Write `raster` as a GeoTIFF.

    Parameters
    ----------
    raster : Raster
        Invalid pixels are written as `nodata`.
    path : path-like
    overwrite : bool
    nodata : float, optional
        When left out and some pixels are invalid: NaN for floats, else the dtype's largest value,
        its smallest, or 0, the first that no valid pixel has.
    **options
        `compress`, `overviews`, `resampling`, `tags`, `description`, `colors` of `RasterWriter`.

    Raises
    ------
    UsageError
        No value is free to mark invalid pixels, or `nodata` does not exist in the dtype.
    OutputError
        The file cannot be written.
    """
    data = raster.data.astype(np.uint8) if raster.data.dtype == bool else raster.data
    if nodata is None and not raster.valid.all():
        nodata = free_value(data, raster.valid)
    options |= {"dtype": data.dtype, "nodata": nodata, "overwrite": overwrite}
    with RasterWriter(path, grid=raster.grid, names=raster.names, **options) as out:
        for top in range(0, raster.grid.height, BLOCK):
            window = Window(0, top, raster.grid.width, min(BLOCK, raster.grid.height - top))
            rows, cols = slices(window, raster.grid.window)
            part = data[:, rows, cols]
            if nodata is not None:
                part = np.where(raster.valid[rows, cols], part, data.dtype.type(nodata))
            out.write(part, window)


@contextmanager
def open_mask(path: PathLike, *, src_crs: CRSLike | None = None) -> Iterator[MaskFile]:
    """Open a GeoTIFF of masks or scores for reading in windows, whatever its size.

    `src_crs` is the CRS of a file that states none.

    Raises
    ------
    InputError
        The file is missing, damaged or no GeoTIFF.
    """
    name = os.fspath(path)
    drivers, _ = choose_drivers(name, ("GTiff",))
    with open_dataset(name, drivers) as dataset:
        yield MaskFile(
            path=name,
            grid=Grid(dataset.height, dataset.width, dataset.transform, dataset.crs or parse_crs(src_crs)),
            names=band_names(dataset, name),
            nodata=dataset.nodata,
            block_rows=dataset.block_shapes[0][0],
            _dataset=dataset,
        )
