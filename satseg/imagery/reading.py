"""Reading one file's bands onto the scene's grid: native windows, validity, and the way between grids.

A `FilePlan` is made once per reader and file and holds all that does not depend on the window, so that a
read costs little more than rasterio's own. Pixels are valid where no rule says otherwise: nodata, NaN and
infinity, the alpha band, GDAL mask bands, and the extent of the file. Nodata of unsigned files marks a pixel
where *all* bands read from the file hold it (a dark pixel may be 0 in one band); of signed and float
files where *any* does, since a sentinel is never a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from satseg.errors import InputError
from satseg.grid import Grid, overlap, slices
from satseg.imagery.mapping import Mapping, Shift, Stretch, Warp, relate, with_pixels
from satseg.imagery.resampling import Taps, kernel_of, make_taps, resample_scattered, resample_separable
from satseg.imagery.sources import WIDE_DTYPES, BandSource, Dataset, SourceFile

Pixels: TypeAlias = tuple[NDArray[Any], NDArray[np.bool_] | None]
"""Data (C, H, W), 0 where not valid, and validity (H, W), None where all is valid."""
MAX_SOURCE_PX = 2**24
"""A read of more source values than this is cut in two, so that memory stays bounded (float64: 128 MiB)."""
MAX_OUTPUT_PX = 2**22
"""Likewise for output values of resampled bands."""
MAX_WARPED_PX = 2**20
"""Likewise for the pixels of a warp, each of which has positions and weights of its own."""
PREREDUCE_RATIO = 2.0
"""Warps to pixels this much coarser average whole blocks of source pixels first."""


def scene_dtype(sources: Sequence[BandSource], grid: Grid) -> np.dtype[Any]:
    """Return the dtype of every read of `sources` on `grid`: theirs if values stay as stored, else float."""
    kinds = {source.dtype for source in sources}
    kept = len(kinds) == 1 and not any(source.is_scaled for source in sources)
    if kept:
        mixing = {source.file: source for source in sources if source.resampling != "nearest"}
        kept = all(isinstance(relate(file.grid, grid), Shift) for file in mixing)
    if kept:
        return np.dtype(kinds.pop())
    return np.dtype(np.float64 if kinds & set(WIDE_DTYPES) else np.float32)


def method_in_use(source: BandSource, mapping: Mapping) -> str:
    """Say how the band's pixels come onto the grid, in a word or two for people."""
    if isinstance(mapping, Shift):
        return "none"
    kernels = [kernel_of(source.resampling, ratio) for ratio in mapping.ratios]
    return kernels[0] if kernels[0] == kernels[1] else f"{kernels[0]} rows, {kernels[1]} columns"


@dataclass(frozen=True, slots=True)
class FilePlan:
    """How to read some bands of one file onto a grid.

    Parameters
    ----------
    file : SourceFile
    bands : tuple of BandSource
        Of that file and of one resampling method.
    places : tuple of int
        Which channels of the scene's read they are.
    mapping : Mapping
        From the scene's grid to `grid`.
    grid : Grid
        The file's, or that of its blocks in `inner`.
    dtype : dtype
        Of the result.
    inner : FilePlan, optional
        Averages blocks of the file's pixels, which are then what is warped.
    """

    file: SourceFile
    bands: tuple[BandSource, ...]
    places: tuple[int, ...]
    mapping: Mapping
    grid: Grid
    dtype: np.dtype[Any]
    inner: FilePlan | None = None

    def read(self, dataset: Dataset, window: Window, out: NDArray[Any] | None = None) -> Pixels:
        """Return pixels of `window` of the scene's grid, which may overhang both grids.

        Data are `out` itself, (C, H, W) of `dtype` in any memory layout, where it is given and stored values
        can be read straight into it; else an array of their own.
        """
        if isinstance(self.mapping, Shift):
            return self._read_shifted(dataset, self.mapping, window, out)
        shape = (len(self.bands), round(window.height), round(window.width))
        data, valid = np.zeros(shape, self.dtype), np.zeros(shape[1:], bool)
        self._fill(dataset, window, data, valid)
        return data, valid

    def _read_shifted(
        self, dataset: Dataset, shift: Shift, window: Window, out: NDArray[Any] | None
    ) -> Pixels:
        top, left = round(window.row_off) + shift.rows, round(window.col_off) + shift.cols
        wanted = Window(left, top, window.width, window.height)
        inside = overlap(wanted, self.grid.window)
        if inside is not None and (inside.height, inside.width) == (window.height, window.width):
            return self._native(dataset, inside, out)
        shape = (len(self.bands), round(window.height), round(window.width))
        data, valid = np.zeros(shape, self.dtype), np.zeros(shape[1:], bool)
        if inside is not None:
            rows, cols = slices(inside, wanted)
            data[:, rows, cols], own = self._native(dataset, inside)
            valid[rows, cols] = True if own is None else own
        return data, valid

    def _fill(self, dataset: Dataset, window: Window, data: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Write the resampled pixels of `window` into `data` and `valid`, in pieces of bounded size.

        Cutting changes no value, as positions are absolute.
        """
        large = data.size > MAX_OUTPUT_PX or (isinstance(self.mapping, Warp) and valid.size > MAX_WARPED_PX)
        pieces = _halves(window) if large and valid.size > 1 else None
        if pieces is None:
            rows, cols = self._taps(window)
            row_span, col_span = rows.span(), cols.span()
            if row_span is None or col_span is None:
                return
            needed = len(row_span) * len(col_span) * len(self.bands)
            if needed <= MAX_SOURCE_PX or valid.size == 1:
                self._mix(dataset, (rows, cols), (row_span, col_span), (data, valid))
                return
            pieces = _halves(window)
        for piece in pieces:
            part = slices(piece, window)
            self._fill(dataset, piece, data[:, part[0], part[1]], valid[part])

    def _mix(
        self,
        dataset: Dataset,
        taps: tuple[Taps, Taps],
        spans: tuple[range, range],
        out: tuple[NDArray[Any], NDArray[np.bool_]],
    ) -> None:
        span = Window(spans[1].start, spans[0].start, len(spans[1]), len(spans[0]))
        source = self.inner.read(dataset, span) if self.inner else self._native(dataset, span)
        rows, cols = (own.within(reach) for own, reach in zip(taps, spans, strict=True))
        resample = resample_scattered if isinstance(self.mapping, Warp) else resample_separable
        out[0][:], out[1][:] = resample(*source, rows=rows, cols=cols, dtype=self.dtype)

    def _taps(self, window: Window) -> tuple[Taps, Taps]:
        """Return taps along the source's rows and columns: per row and column, or per pixel of a warp."""
        assert isinstance(self.mapping, Stretch | Warp)  # shifts need none
        method = self.bands[0].resampling
        centres, ratios = self.mapping.centres(window), self.mapping.ratios
        rows, cols = (
            make_taps(at, size=size, ratio=ratio, method=method)
            for at, size, ratio in zip(centres, self.grid.shape, ratios, strict=True)
        )
        if isinstance(self.mapping, Warp):
            inside = rows.inside & cols.inside
            rows, cols = replace(rows, inside=inside), replace(cols, inside=inside)
        return rows, cols

    def _native(self, dataset: Dataset, window: Window, out: NDArray[Any] | None = None) -> Pixels:
        """Return the file's own pixels of `window`, which lies inside it, scaled; in `out` if it can be."""
        if any(band.dtype != self.dtype for band in self.bands):
            out = None  # GDAL would convert by rules of its own
        data, valid = read_native(dataset, self.file, self.bands, window=window, out=out)
        if valid is not None:
            data[:, ~valid] = 0  # before scaling: a sentinel such as -1.8e308 would overflow
        if any(band.is_scaled for band in self.bands):
            shape = (-1, 1, 1)
            data = data * np.reshape([band.scale for band in self.bands], shape)
            data += np.reshape([band.offset for band in self.bands], shape)
            data *= True if valid is None else valid
        # Resampled data keep the stored dtype up to the weighted sum, which reads it faster.
        return (data.astype(self.dtype, copy=False) if isinstance(self.mapping, Shift) else data), valid


def plan_reads(sources: Sequence[BandSource], grid: Grid, dtype: np.dtype[Any]) -> tuple[FilePlan, ...]:
    """Return one plan for each file (and resampling method) that `sources` come from."""
    groups: dict[tuple[str, str], list[int]] = {}
    for place, source in enumerate(sources):
        groups.setdefault((source.path, source.resampling), []).append(place)
    return tuple(_plan(tuple(sources[i] for i in own), tuple(own), grid, dtype) for own in groups.values())


def _plan(
    bands: tuple[BandSource, ...], places: tuple[int, ...], grid: Grid, dtype: np.dtype[Any]
) -> FilePlan:
    file = bands[0].file
    mapping = relate(file.grid, grid)
    plain = FilePlan(file, bands, places, mapping, file.grid, dtype)
    if not isinstance(mapping, Warp) or bands[0].resampling == "nearest":
        return plain
    blocks = [max(1, int(ratio)) if ratio >= PREREDUCE_RATIO else 1 for ratio in mapping.ratios]
    if blocks == [1, 1]:
        return plain
    rows, cols = blocks
    size = {"height": -(-file.grid.height // rows), "width": -(-file.grid.width // cols)}
    coarse = with_pixels(file.grid, rows=rows, cols=cols, **size)
    averaging = tuple(replace(band, resampling="average") for band in bands)
    inner = FilePlan(file, averaging, places, Stretch(rows, 0.0, cols, 0.0), file.grid, dtype)
    return replace(plain, mapping=Warp(coarse, grid), grid=coarse, inner=inner)


def read_native(
    dataset: Dataset,
    file: SourceFile,
    bands: Sequence[BandSource],
    *,
    window: Window,
    out_shape: tuple[int, int] | None = None,
    out: NDArray[Any] | None = None,
) -> Pixels:
    """Return stored values (C, H, W) of `bands` in `window`, and where they are valid (None: everywhere).

    Parameters
    ----------
    out_shape : (height, width), optional
        Decimate to this size, from overviews where there are some: for previews.
    out : ndarray (C, H, W) of the bands' dtype, optional
        What to read into, unless an alpha band has to be read along.

    Raises
    ------
    InputError
        Blocks of the file are damaged or missing.
    """
    indexes = [band.index for band in bands] + ([file.alpha] if file.alpha is not None else [])
    how: dict[str, Any] = {"window": window} | ({} if out_shape is None else {"out_shape": out_shape})
    try:
        data = dataset.read(indexes, **how, out=out if file.alpha is None else None)
        masks = _read_masks(dataset, file, indexes, how)
    except (RasterioError, OSError) as error:
        raise InputError(
            f"rows {window.row_off} to {window.row_off + window.height}, columns {window.col_off} to "
            f"{window.col_off + window.width} cannot be read: {error.__cause__ or error}",
            hint="the file is damaged or cut short", code="E-IN-106", path=file.path,
        ) from error  # fmt: skip
    if file.alpha is not None:
        data, masks = data[:-1], [*masks, data[-1] != 0]
    masks += _value_masks(data, bands)
    if not masks or all(mask.all() for mask in masks):
        return data, None
    return data, np.logical_and.reduce(masks)


def _read_masks(
    dataset: Dataset, file: SourceFile, indexes: Sequence[int], how: dict[str, Any]
) -> list[NDArray[np.bool_]]:
    if file.mask == "none":
        return []
    of = [1] if file.mask == "file" else indexes
    return [dataset.read_masks(index, **how) != 0 for index in of]


def _value_masks(data: NDArray[Any], bands: Sequence[BandSource]) -> list[NDArray[np.bool_]]:
    """Return what the stored values themselves say: NaN, infinity and nodata."""
    masks: list[NDArray[np.bool_]] = []
    if data.dtype.kind == "f":
        masks.append(np.isfinite(data).all(axis=0))
    known = [(plane, band.nodata) for plane, band in zip(data, bands, strict=True) if band.nodata is not None]
    if not known or (data.dtype.kind == "u" and len(known) < len(data)):
        return masks
    missing: NDArray[np.bool_] | None = None
    for plane, value in known:
        with np.errstate(over="ignore"):  # -1.8e308 on a float32 file means its infinity
            hit = plane == np.asarray(value).astype(data.dtype)
        if data.dtype.kind == "u":
            missing = hit if missing is None else missing & hit
            if not missing.any():  # mostly so after one band, which is why bands are taken one by one
                return masks
        else:
            missing = hit if missing is None else missing | hit
    return masks if missing is None else [*masks, ~missing]


def _halves(window: Window) -> tuple[Window, Window]:
    """Return the window cut in two across its longer side."""
    top, left, height, width = map(round, (window.row_off, window.col_off, window.height, window.width))
    if height >= width:
        half = height // 2
        return Window(left, top, width, half), Window(left, top + half, width, height - half)
    half = width // 2
    return Window(left, top, half, height), Window(left + half, top, width - half, height)
