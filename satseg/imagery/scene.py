"""Scenes: one file or many, of any resolution and CRS, read window by window onto one grid.

`open_scene` reads metadata only and returns a `Scene`, an immutable value that can be pickled to workers. A
`SceneReader` keeps files open and reads windows. Rasters are opened here and nowhere else.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from satseg.crs import Bounds, CRSLike, describe, same_crs
from satseg.errors import BandError, CRSError, GridError, InputError, UsageError
from satseg.grid import Grid
from satseg.imagery.bands import BandMap, name_bands
from satseg.imagery.drivers import DEFAULT_DRIVERS, choose_drivers, gdal_env
from satseg.imagery.indices import Candidate, IndexBand, Scale, index_bands
from satseg.imagery.mapping import meets
from satseg.imagery.normalization import Normalization
from satseg.imagery.reader import SceneReader
from satseg.imagery.reading import scene_dtype
from satseg.imagery.registration import Registration, registered
from satseg.imagery.resampling import METHODS
from satseg.imagery.sources import BandSource, Dataset, SourceFile, check_places, common_stem, finest_grid, inspect
from satseg.imagery.summary import scene_html, scene_info
from satseg.raster import Raster
from satseg.specs import IndexSpec, SensorSpec, sensor_spec

__all__ = ["DEFAULT_DRIVERS", "PathLike", "Scene", "SceneReader", "open_scene"]

PathLike: TypeAlias = str | os.PathLike[str]

REGISTERING = ("translation", "euclidean")
_QUIET = threading.Lock()


def open_scene(
    paths: PathLike | Sequence[PathLike],
    *,
    sensor: str | SensorSpec | None = None,
    bands: BandMap | None = None,
    gsd: float | None = None,
    src_crs: CRSLike | None = None,
    resampling: str = "auto",
    drivers: Sequence[str] = DEFAULT_DRIVERS,
    register: bool | str = False,
) -> Scene:
    """Return the scene in one file or many, on the grid of the finest file; reads no pixels, but to register.

    Parameters
    ----------
    paths : path-like, or a sequence of them
        Files whose bands make up the scene: one per band, a stack, or PAN and multispectral.
    sensor : str or SensorSpec, optional
        Names the bands (see `satseg.imagery.bands`); recognised by file name when left out.
    bands : optional
        Names in file order; or name -> 1-based band number of one file; or name -> path or (path, number).
    gsd : float, optional
        Ground sampling distance to read at, in metres.
    src_crs : optional
        CRS of files that state none.
    resampling : {"auto", "nearest", "bilinear", "cubic", "average"}
        For bands whose pixels are not the grid's (see `satseg.imagery.resampling`).
    drivers : sequence of str
        GDAL drivers that may open the files.
    register : bool or {"translation", "euclidean"}
        Lay products of several grids over the finest, by a shift each, or by a shift and a turn (see
        `satseg.imagery.registration`); what was found is in `registrations`, and in `warnings` where it failed.

    Raises
    ------
    InputError
        A file is missing, empty, damaged, or of a kind that is not opened.
    CRSError, GridError
        Files without a place, with no common ground, or in part without CRS.
    BandError
        Band names repeat or do not fit the files.
    UsageError
        No paths, or an unknown resampling method or kind of registration.
    """
    names = [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not names:
        raise UsageError("a scene needs at least one file")
    if resampling not in METHODS:
        raise UsageError(f"resampling {resampling!r} is none of {METHODS}")
    if register not in (False, True, *REGISTERING):
        raise UsageError(f"register {register!r} is none of {REGISTERING}, True and False", code="E-USE-079")
    spec = sensor_spec(sensor) if isinstance(sensor, str | os.PathLike) else sensor
    files = [_inspect(name, src_crs, drivers) for name in names]
    check_places(files)
    naming = name_bands(files, bands=bands, sensor=spec, resampling=resampling)
    grid = finest_grid([source.file for source in naming.bands])
    said = (*(text for file in files for text in file.warnings), *naming.warnings)
    scene = Scene(common_stem(names), grid, naming.bands, naming.sensor, naming.how, said)
    scene.check_ground()
    if register:
        scene = registered(scene, turning=register == REGISTERING[1])
    return scene if gsd is None else scene.at_gsd(gsd)


@dataclass(frozen=True, slots=True)
class Scene:
    """Bands on one grid, and where their pixels come from. Made by `open_scene`.

    Parameters
    ----------
    name : str
        The file's stem, or what the stems of several files begin with.
    grid : Grid
        What reads lie on; the finest file's unless changed.
    sources : tuple of BandSource
        What is read, one per band: name, path, index, dtype, nodata, scale, offset, grid, resampling.
    sensor : str or None
        The sensor spec in use.
    naming : str
        How the bands came by their names.
    warnings : tuple of str
        What is odd about the files.
    indices : tuple of IndexBand
        Bands computed from the sources; see `with_indices`.
    shown : tuple of str
        Names of the bands in order, where they are not just the sources.
    registrations : tuple of Registration
        How products other than the finest lay before they were registered.
    levels : Normalization or None
        By which values are clipped, shifted and scaled as they are read; see `satseg.imagery.levels`.
    """

    name: str
    grid: Grid
    sources: tuple[BandSource, ...]
    sensor: str | None = None
    naming: str = ""
    warnings: tuple[str, ...] = ()
    indices: tuple[IndexBand, ...] = ()
    shown: tuple[str, ...] = ()
    registrations: tuple[Registration, ...] = ()
    levels: Normalization | None = None

    @property
    def bands(self) -> tuple[str, ...]:
        """Band names, in order."""
        return self.shown or tuple(source.name for source in self.sources)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that bands come from, in order of first use."""
        return tuple(dict.fromkeys(source.path for source in self.sources))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of reads: the files' when values stay as stored, else float32, or float64 for wide ones without levels."""
        if self.levels is not None:
            return np.dtype(np.float32)
        stored = scene_dtype(self.sources, self.grid)
        return np.result_type(stored, np.float32) if self.indices else stored

    def select(self, bands: Sequence[str]) -> Scene:
        """Return the scene with only `bands`, in that order; its dtype may be narrower.

        Raises
        ------
        BandError
            The scene lacks one, or none is given.
        """
        wanted = (bands,) if isinstance(bands, str) else tuple(bands)
        self.indexes(wanted)
        indices = tuple(band for band in self.indices if band.name in wanted)
        if not indices:
            by_name = {source.name: source for source in self.sources}
            return replace(self, sources=tuple(map(by_name.__getitem__, wanted)), indices=(), shown=())
        needed = {*wanted, *(one.band for band in indices for one in band.inputs)}
        sources = tuple(source for source in self.sources if source.name in needed)
        return replace(self, sources=sources, indices=indices, shown=wanted)

    def with_indices(
        self,
        *names: str,
        spec: IndexSpec | None = None,
        bands: Mapping[str, str] | None = None,
        scale: Scale | None = None,
        undefined: float | None = 0.0,
    ) -> Scene:
        """Return the scene with spectral indices as further bands, such as ``"ndvi"``; reads are of floats then.

        Parameters
        ----------
        names, spec, bands, scale
            As `satseg.imagery.indices.index_bands` takes them.
        undefined : float or None
            Value where an index has none (0/0), so that the other bands of the pixel are not lost for it, as
            validity is one plane for all; None: the pixel is not valid.

        Raises
        ------
        SpecError, BandError
            As `index_bands`; a band of that name is there already (E-BAND-305).
        """
        if not names:
            return self
        among = [Candidate.of(source) for source in self.sources]
        return self.with_index_bands(
            index_bands(names, among, spec=spec, bands=bands, scale=scale, undefined=undefined)
        )

    def with_index_bands(self, indices: Sequence[IndexBand]) -> Scene:
        """Return the scene with `indices`, settled among its own sources, as further bands."""
        shown = (*self.bands, *(band.name for band in indices))
        hidden = {source.name for source in self.sources}.difference(self.bands)
        repeated = sorted({name for name in shown if shown.count(name) > 1 or name in hidden})
        if repeated:
            raise BandError(f"there would be two bands called {repeated[0]!r}", code="E-BAND-305")
        return replace(self, indices=(*self.indices, *indices), shown=shown) if indices else self

    def indexes(self, bands: Sequence[str]) -> tuple[int, ...]:
        """Return where `bands` stand among this scene's; raises BandError as `select`."""
        missing = tuple(name for name in bands if name not in self.bands)
        if missing or not bands or len(set(bands)) < len(bands):
            fault = f", not {missing}" if missing else f"; {tuple(bands)} are none or repeat"
            hint = "name them by sensor= or bands=" if missing else "give one or more different names"
            raise BandError(f"scene has bands {self.bands}{fault}", hint=hint, code="E-BAND-101")
        return tuple(self.bands.index(name) for name in bands)

    def at_gsd(self, gsd_m: float) -> Scene:
        """Return the scene read with pixels `gsd_m` metres long (units of the transform without a CRS)."""
        return replace(self, grid=self.grid.at_gsd(gsd_m))

    def on_grid(self, grid: Grid) -> Scene:
        """Return the scene read on `grid`, which may be in another CRS.

        Raises
        ------
        CRSError, GridError
            One has a CRS and the other has none, or they have no common ground.
        """
        if (grid.crs is None) != (self.grid.crs is None):
            raise CRSError(
                f"scene {self.name} is in {describe(self.grid.crs)}, the grid in {describe(grid.crs)}",
                code="E-CRS-105",
            )
        moved = replace(self, grid=grid)
        moved.check_ground()
        return moved

    def check_ground(self) -> None:
        """Raise CRSError or GridError when a file has no ground in common with the scene's grid."""
        for file in {source.path: source.file for source in self.sources}.values():
            if not meets(file.grid, self.grid):
                raise _apart(file, self.grid)

    def read(
        self,
        *,
        window: Window | None = None,
        bounds: Bounds | None = None,
        bounds_crs: CRSLike | None = None,
        bands: Sequence[str] | None = None,
        gsd: float | None = None,
    ) -> Raster:
        """Return pixels of a window or of bounds; the whole scene when neither is given.

        Parameters
        ----------
        window : Window, optional
            In pixels of the grid that is read (so at `gsd`); may overhang it.
        bounds : (left, bottom, right, top), optional
            Read the smallest window that covers them, clipped to the scene.
        bounds_crs : optional
            CRS of `bounds`; the scene's when left out.
        bands : sequence of str, optional
            All when left out.
        gsd : float, optional
            Ground sampling distance in metres; the scene's when left out.

        Returns
        -------
        Raster, (C, H, W) of the scene's dtype

        Raises
        ------
        UsageError
            Both a window and bounds.
        InputError
            Blocks of a file are damaged.
        BandError, GridError, CRSError
            Unknown bands; an empty window; bounds that do not touch the scene.
        """
        if window is not None and bounds is not None:
            raise UsageError("give a window or bounds, not both")
        scene = self if gsd is None else self.at_gsd(gsd)
        scene = scene if bands is None else scene.select(bands)
        if bounds is not None:
            window = scene.grid.window_of(bounds, bounds_crs)
        with scene.reader() as reader:
            return reader.read(scene.grid.window if window is None else window)

    def reader(self) -> SceneReader:
        """Return a reader that keeps files open between reads."""
        return SceneReader(self, open_source)

    def info(self) -> dict[str, Any]:
        """Return all that is known without reading pixels, as JSON-able values: what ``satseg info`` says."""
        return scene_info(self)

    @property
    def __geo_interface__(self) -> dict[str, Any]:
        """The outline as a GeoJSON geometry: in longitude and latitude, or in pixels without a CRS."""
        crs = None if self.grid.crs is None else "EPSG:4326"
        outline: dict[str, Any] = self.grid.footprint(crs).__geo_interface__
        return outline

    def _repr_html_(self) -> str:
        return scene_html(self)


def open_source(file: SourceFile) -> Dataset:
    """Return the dataset of a file that a scene has been opened from; the caller closes it."""
    with gdal_env(), nullcontext() if file.placed else _quiet():
        return open_dataset(file.path, (file.driver,))


def _inspect(path: str, src_crs: CRSLike | None, drivers: Sequence[str]) -> SourceFile:
    able, said = choose_drivers(path, drivers)
    with gdal_env():
        with _quiet() as bare:
            dataset = open_dataset(path, able)
        with dataset:
            file = inspect(dataset, path, bare=bool(bare), src_crs=src_crs)
    return file if said is None else replace(file, warnings=(said, *file.warnings))


def open_dataset(path: str, drivers: Sequence[str]) -> Dataset:
    """Return `path` opened by the first of `drivers` that can; InputError E-IN-105 if none can."""
    failed: Exception | None = None
    for driver in drivers:
        try:
            return rasterio.open(path, driver=driver)
        except (RasterioError, OSError) as error:
            failed = error
    raise InputError(
        f"it cannot be opened as {' or '.join(drivers)}: {failed}",
        hint="the file is missing, damaged or cut short",
        code="E-IN-105",
        path=path,
    ) from failed


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Take rasterio's warning that a file has no place; yields the list that it goes into.

    Scenes say so themselves. `warnings` keeps its filters in one list for all threads, and one set at
    import would be lost under ``-W error`` and silence the caller's own files too; so filters are
    changed for the opening only, by one thread at a time, and not for files known to be placed.
    """
    taken: list[warnings.WarningMessage] = []
    with _QUIET, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NotGeoreferencedWarning)
        yield taken
        taken += [one for one in caught if issubclass(one.category, NotGeoreferencedWarning)]
    for one in caught:
        if one not in taken:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _apart(file: SourceFile, grid: Grid) -> GridError | CRSError:
    if file.grid == grid:
        place = tuple(grid.transform[:6])
        return GridError(f"transform {place} cannot tell pixels apart", code="E-GRID-104", path=file.path)
    message = (
        f"{file.path} has no ground in common with the scene's grid: bounds {file.grid.bounds} in "
        f"{describe(file.grid.crs)}, the grid's {grid.bounds} in {describe(grid.crs)}"
    )
    if same_crs(file.grid.crs, grid.crs):
        return GridError(message, hint="give files of one place", code="E-GRID-103")
    return CRSError(message, hint="check the files' CRS", code="E-CRS-103")
