"""What a file says about its pixels, read once when a scene is opened and picklable from then on.

A `SourceFile` holds the metadata of one file; a `BandSource` is one band of it under the name that the
scene gives it. Files are opened in `scene`; here opened datasets are only questioned. Everything a file may
state that would make its pixels mean something else than it seems (complex values, ground control points in
place of a transform, a nodata value that its dtype cannot hold) is refused or said in a warning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePath
from typing import Any, Literal, TypeAlias

import numpy as np
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError as RasterioCRSError

from satseg.crs import CRS, CRSLike, describe, parse_crs, same_crs
from satseg.errors import CRSError, GridError, InputError
from satseg.grid import Grid
from satseg.sensors import BandSpec

Dataset: TypeAlias = Any
"""An open rasterio dataset; rasterio carries no types."""
MAX_NAME = 64
"""Longer band descriptions are cut: they are file content, and end in tables and column names."""
SAME_GSD = 0.01
"""Files whose pixel sizes differ by less than this share are equally fine: the first of them leads."""
WIDE_DTYPES = ("int32", "uint32", "int64", "uint64", "float64")
"""Dtypes whose values float32 cannot hold."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Metadata of one raster file. Per-band tuples are in file order, from band 1.

    Parameters
    ----------
    path, driver : str
    grid : Grid
        The file's own pixels.
    placed : bool
        Whether the file states a transform; without one it has pixel coordinates only.
    dtypes : tuple of str
    nodatas : tuple of float or None
        None also where the dtype cannot hold what the file states.
    scales, offsets : tuple of float
        value = stored x scale + offset.
    descriptions, colours : tuple of str
        Band descriptions, cleaned, "" where absent; colour interpretations such as "red", "alpha".
    coded : tuple of bool
        Whether the band's values index a table of colours: classes, not measurements.
    alpha : int or None
        1-based band whose zeros mark invalid pixels.
    mask : "none", "file" or "band"
        Where GDAL mask bands (internal or in a .msk side-car) mark invalid pixels.
    blocks : (height, width) of the blocks of band 1.
    overviews : tuple of int
        Reduction factors of band 1.
    warnings : tuple of str
    """

    path: str
    driver: str
    grid: Grid
    placed: bool
    dtypes: tuple[str, ...]
    nodatas: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    descriptions: tuple[str, ...]
    colours: tuple[str, ...]
    coded: tuple[bool, ...]
    alpha: int | None
    mask: Literal["none", "file", "band"]
    blocks: tuple[int, int]
    overviews: tuple[int, ...]
    warnings: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of bands, the alpha band included."""
        return len(self.dtypes)

    @property
    def imagery(self) -> tuple[int, ...]:
        """1-based numbers of the bands that are imagery: all but the alpha band."""
        return tuple(index for index in range(1, self.count + 1) if index != self.alpha)


@dataclass(frozen=True, slots=True)
class BandSource:
    """One band of a scene: where it comes from and how it is brought onto the scene's grid.

    Parameters
    ----------
    name : str
        In the scene.
    file : SourceFile
    index : int
        1-based number in the file.
    resampling : str
        The method used where the file's pixels are not the scene's; "auto" as in `resampling`.
    spec : BandSpec or None
        What the sensor's document says of it.
    """

    name: str
    file: SourceFile
    index: int
    resampling: str
    spec: BandSpec | None = None

    @property
    def path(self) -> str:
        """The file."""
        return self.file.path

    @property
    def grid(self) -> Grid:
        """The file's own grid."""
        return self.file.grid

    @property
    def dtype(self) -> str:
        """As stored."""
        return self.file.dtypes[self.index - 1]

    @property
    def nodata(self) -> float | None:
        """The stored value that means no measurement."""
        return self.file.nodatas[self.index - 1]

    @property
    def scale(self) -> float:
        """Factor from stored to read values."""
        return self.file.scales[self.index - 1]

    @property
    def offset(self) -> float:
        """Added after `scale`."""
        return self.file.offsets[self.index - 1]

    @property
    def is_scaled(self) -> bool:
        """Whether read values differ from stored ones."""
        return (self.scale, self.offset) != (1.0, 0.0)


def inspect(dataset: Dataset, path: str, *, bare: bool = False, src_crs: CRSLike | None = None) -> SourceFile:
    """Return what the open `dataset` of `path` says about itself; reads no pixels.

    Parameters
    ----------
    bare : bool
        GDAL found no transform; what the dataset gives for one is not to be believed.
    src_crs : optional
        CRS for a file that states none.

    Raises
    ------
    InputError
        No bands, or complex values.
    CRSError
        Its place is given by ground control points or RPCs only, or its CRS is damaged.
    GridError
        Its transform maps pixels to no area.
    """
    dtypes = tuple(str(dtype) for dtype in dataset.dtypes)
    if not dtypes:
        raise InputError("the file holds no bands", code="E-IN-107", path=path)
    if odd := sorted({dtype for dtype in dtypes if "complex" in dtype}):
        raise InputError(
            f"pixels are {odd[0]}, which is no measurement satseg can use",
            code="E-IN-108",
            path=path,
            hint="convert to amplitude or intensity first",
        )
    grid, placed, warnings = _place(dataset, path, bare=bare, src_crs=src_crs)
    stated: list[tuple[float | None, str]] = list(zip(dataset.nodatavals, dtypes, strict=True))
    nodatas = tuple(_usable_nodata(value, dtype) for value, dtype in stated)
    for (value, dtype), usable in zip(stated[:1], nodatas, strict=False):
        if value is not None and usable is None:
            warnings.append(f"nodata {value:g} is no value of {dtype}; ignored")
    descriptions = _descriptions(dataset, warnings)
    colours = tuple(colour.name for colour in dataset.colorinterp)
    coded = tuple(_is_coded(dataset, index, colour) for index, colour in enumerate(colours, start=1))
    if any(coded):
        warnings.append(f"band {coded.index(True) + 1} has a colour table: its values are taken as classes")
    alpha = colours.index(ColorInterp.alpha.name) + 1 if ColorInterp.alpha.name in colours else None
    return SourceFile(
        path=path, driver=str(dataset.driver), grid=grid, placed=placed, dtypes=dtypes, nodatas=nodatas,
        scales=tuple(map(float, dataset.scales)), offsets=tuple(map(float, dataset.offsets)),
        descriptions=descriptions, colours=colours, coded=coded,
        alpha=alpha, mask=_mask_kind(dataset.mask_flag_enums),
        blocks=tuple(dataset.block_shapes[0]), overviews=tuple(dataset.overviews(1)),
        warnings=tuple(f"{path}: {text}" for text in warnings),
    )  # fmt: skip


def clean_name(text: str | None) -> str:
    """Return `text` as a band name: lower case, underscores for space, printable, `MAX_NAME` characters."""
    printable = "".join(char if char.isprintable() else " " for char in text or "")
    return re.sub(r"\s+", "_", printable.strip().lower())[:MAX_NAME]


def check_places(files: Sequence[SourceFile]) -> None:
    """Raise when `files` cannot lie on one grid for want of a common kind of place.

    Raises
    ------
    CRSError
        Some have a CRS and others have none.
    GridError
        None has a place, and their sizes differ.
    """
    bare = [file for file in files if file.grid.crs is None]
    if bare and len(bare) < len(files):
        raise CRSError(
            f"{bare[0].path} has no CRS and other files of the scene have one",
            code="E-CRS-102",
            hint="give src_crs (--src-crs), the CRS of the files without",
        )
    if any(not file.placed for file in bare):
        odd = next((file for file in bare if not file.grid.matches(bare[0].grid)), None)
        if odd is not None:
            raise GridError(
                f"{bare[0].path} ({bare[0].grid.height} x {bare[0].grid.width}) and {odd.path} "
                f"({odd.grid.height} x {odd.grid.width}) have no georeferencing and are not of one size",
                hint="georeference them, or give files of one size",
                code="E-GRID-102",
            )


def finest_grid(files: Sequence[SourceFile]) -> Grid:
    """Return the grid of the file with the smallest pixels on the ground; of the first among equals."""
    grids = list(dict.fromkeys(file.grid for file in files))
    if all(same_crs(grid.crs, grids[0].crs) for grid in grids):
        lengths = [math.sqrt(abs(grid.transform.determinant)) for grid in grids]  # no need to ask PROJ
    else:
        lengths = [grid.gsd_m() for grid in grids]
    limit = min(lengths) * (1 + SAME_GSD)
    return next(grid for grid, length in zip(grids, lengths, strict=True) if length <= limit)


def common_stem(paths: Sequence[str]) -> str:
    """Return the stem of one file; of several the words their stems begin with, if there are some."""
    stems = [PurePath(path).stem for path in paths]
    if len(stems) == 1:
        return stems[0]
    words = zip(*(re.split(r"([_\-., ]+)", stem) for stem in stems), strict=False)
    common = "".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, words))
    return common.rstrip("_-., ") or stems[0]


def _descriptions(dataset: Dataset, warnings: list[str]) -> tuple[str, ...]:
    """Return the cleaned band descriptions; none, and a word in `warnings`, when they are not UTF-8."""
    try:
        found: tuple[str | None, ...] = dataset.descriptions
    except UnicodeDecodeError:
        warnings.append("its band descriptions are not UTF-8; ignored")
        found = (None,) * len(dataset.dtypes)
    return tuple(clean_name(text) for text in found)


def _place(
    dataset: Dataset, path: str, *, bare: bool, src_crs: CRSLike | None
) -> tuple[Grid, bool, list[str]]:
    """Return the file's grid, whether it states a transform, and what is odd about its place."""
    try:
        crs: CRS | None = dataset.crs or None
    except RasterioCRSError as error:
        raise CRSError(f"its CRS cannot be read: {error}", code="E-CRS-104", path=path) from error
    transform: Affine = Affine.identity() if bare else dataset.transform
    placed = transform != Affine.identity()
    if not placed and crs is None and (dataset.gcps[0] or dataset.rpcs):
        kind = "ground control points" if dataset.gcps[0] else "RPCs"
        raise CRSError(
            f"its place is given by {kind} only",
            code="E-CRS-101",
            path=path,
            hint="warp it first: gdalwarp -tps in.tif out.tif (or -rpc)",
        )
    warnings = []
    given = parse_crs(src_crs)
    if crs is not None and given is not None and not same_crs(crs, given):
        warnings.append(f"it states {describe(crs)}, which is used in place of src_crs {describe(given)}")
    crs = crs or given
    if crs is not None and not placed:
        warnings.append(f"it has a CRS ({describe(crs)}) and no transform: coordinates are pixel numbers")
    try:
        return Grid(dataset.height, dataset.width, transform, crs), placed, warnings
    except GridError as error:
        raise GridError(error.message, code=error.code, path=path) from error


def _usable_nodata(value: float | None, dtype: str) -> float | None:
    """Return `value` when pixels of `dtype` can equal it, else None."""
    if value is None:
        return None
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return float(value)
    whole = math.isfinite(value) and float(value).is_integer()
    bounds = np.iinfo(kind)
    return float(value) if whole and bounds.min <= value <= bounds.max else None


def _is_coded(dataset: Dataset, index: int, colour: str) -> bool:
    """Return whether the band has a table of colours that are not just greys (those are display ramps)."""
    if colour != ColorInterp.palette.name:
        return False
    try:
        table = dataset.colormap(index)
    except ValueError:  # declared and absent
        return False
    return any(not red == green == blue for red, green, blue, _ in table.values())


def _mask_kind(flags: Sequence[Sequence[MaskFlags]]) -> Literal["none", "file", "band"]:
    """Return where GDAL keeps masks other than nodata and alpha, which are read as bands and values here."""
    if any(not own for own in flags):
        return "band"
    shared = any(MaskFlags.per_dataset in own and MaskFlags.alpha not in own for own in flags)
    return "file" if shared else "none"
