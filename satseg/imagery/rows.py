"""RowReader: the rows of a scene from top to bottom, each block of its files decoded once.

Row bands of tiles overlap by their halos, and bands seldom end where blocks do; reading each band by itself
decodes blocks two to four times unless GDAL's cache holds a whole row of them, which a wide scene does not
allow. So rows are read in strips that end where blocks end, held as long as a band needs them and shared by
neighbouring bands, and threads read the next strips while the caller works. A strip is read in chunks of
columns that end where blocks end too, so that even a small cache holds what GDAL walks over line by line.

Rejected: a larger GDAL cache (it holds decoded blocks of every band and file, not what is needed next), and
recycling the memory of strips (a view must stay true while later ones are read).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import GridError, UsageError
from satseg.grid import Grid
from satseg.imagery.labels import Geometries, LabelLayer
from satseg.imagery.mapping import Shift, relate
from satseg.imagery.scene import _QUIET, Scene
from satseg.imagery.strips import Strip, StripView, Validity, join_chunks

__all__ = ["RowReader", "Strip", "StripView", "area_layer", "inside_area"]

STRIP_ROWS = 256
"""Small blocks are grouped to strips of about so many rows; blocks too tall to align to are cut to them."""
CHUNK_COLS = 2048
CHUNK_BYTES = 8 * 2**20
"""Columns are read in chunks of at most so many pixels and bytes, but never less than a block."""
SEQUENTIAL = ("PNG", "JPEG")
"""Formats decoded from the top: a second thread would decode all rows a second time."""
_POLYGON = 3  # GEOS type number


class RowReader:
    """Reads a scene's rows from top to bottom, each block of its files once; a context manager.

    Every block of a file that shares the scene's pixels is decoded once whatever rows are asked for, if
    blocks are at most `align_limit` rows tall. Files that are resampled have blocks at the edges of strips
    in common, which GDAL's cache keeps: there, columns stay with the thread that read them before.

    Parameters
    ----------
    scene : Scene
        All of its bands are read.
    cols, rows : range
        Of the scene's grid, clipped to it.
    threads : int
        How many read at once, in the background; each has files of its own open.
    ahead : int
        Strips read before they are asked for, beyond the current view.
    align_limit : int
        Taller blocks are not held whole.
    max_bytes : int, optional
        Pixels read ahead take at most so many bytes.
    aoi : ndarray of Polygon or MultiPolygon, optional
        In the scene's CRS. Pixels whose centre lies outside are not valid; chunks without one inside are
        not read.

    Raises
    ------
    UsageError
        A number that makes no sense.
    GridError
        Rows or columns lie outside the grid.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        cols: range,
        rows: range,
        threads: int = 1,
        ahead: int = 1,
        align_limit: int = 1024,
        max_bytes: int | None = None,
        aoi: Geometries | None = None,
    ) -> None:
        if threads < 1 or ahead < 0 or align_limit < 1:
            raise UsageError(
                f"threads {threads}, ahead {ahead}, align_limit {align_limit}: need >= 1, >= 0, >= 1",
                code="E-USE-241",
            )
        self.rows = _clipped(rows, scene.grid.height, "rows")
        self.cols = _clipped(cols, scene.grid.width, "columns")
        self._scene, self._reader = scene, scene.reader()
        self._ahead, self._max_bytes = ahead, max_bytes
        self._area = None if aoi is None else area_layer(aoi, scene.grid)
        self._cuts = _cuts(scene, align_limit)
        self._edges, self._chunks = _edges(scene, self._cuts, self.rows, self.cols)
        # Blocks that chunks have in common are decoded once as long as one thread reads those chunks.
        threads = _useful_threads(scene, self._cuts, threads)
        shape = (1, threads) if self._cuts.aligned else (threads, 1)
        self._pools = [ThreadPoolExecutor(shape[1], "satseg-rows") for _ in range(shape[0])]
        self._pending: dict[int, _Pending] = {}
        self._ready: dict[int, Strip] = {}
        self._top: int | None = None

    @property
    def strip_rows(self) -> int:
        """Rows of the tallest strip."""
        return max(stop - start for start, stop in pairwise(self._edges))

    def __enter__(self) -> RowReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what is not read yet, wait for what is being read, and close the files."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in self._pools:
            pool.shutdown(wait=True)
        self._pending.clear()
        self._ready.clear()
        self._reader.close()

    def window(self, top: int, bottom: int) -> StripView:
        """Return rows `top` to `bottom` (exclusive), once they are read; rows above are forgotten.

        Parameters
        ----------
        top, bottom : int
            On the scene's grid; rows outside the reader's are left out.

        Raises
        ------
        UsageError
            `top` lies above that of the call before.
        InputError
            Blocks of a file are damaged, or the file is gone.
        """
        if self._top is not None and top < self._top:
            raise UsageError(
                f"rows from {top} are gone: the last call began at {self._top}",
                hint="ask for rows from top to bottom",
                code="E-USE-242",
            )
        self._top = top
        top, bottom = max(top, self.rows.start), min(bottom, self.rows.stop)
        first = min(bisect_right(self._edges, top) - 1, len(self._edges) - 1)
        last = bisect_left(self._edges, bottom) if top < bottom else first
        self._forget(first)
        self._request(first, last)
        return StripView(tuple(self._finish(number) for number in range(first, last)), self.rows, self.cols)

    def _forget(self, first: int) -> None:
        """Let go of the strips before number `first`."""
        for number in [number for number in self._ready if number < first]:
            del self._ready[number]
        for number in [number for number in self._pending if number < first]:
            for chunk in self._pending.pop(number).chunks:
                if chunk is not None:
                    chunk.cancel()

    def _request(self, first: int, last: int) -> None:
        """Have strips `first` to `last` read, and those ahead that there is room for."""
        room = self._max_bytes
        for number in range(first, min(last + self._ahead, len(self._edges) - 1)):
            if number >= last and room is not None:
                room -= self._strip_bytes(number)
                if room < 0:
                    return
            if number not in self._ready and number not in self._pending:
                self._pending[number] = self._submit(number)

    def _strip_bytes(self, number: int) -> int:
        height = self._edges[number + 1] - self._edges[number]
        return height * len(self.cols) * len(self._scene.bands) * self._scene.dtype.itemsize

    def _submit(self, number: int) -> _Pending:
        top, bottom = self._edges[number : number + 2]
        data = np.empty((len(self._scene.bands), bottom - top, len(self.cols)), self._scene.dtype)
        chunks: list[Future[Validity] | None] = []
        count = len(self._chunks) - 1
        for place, (left, right) in enumerate(pairwise(self._chunks)):
            part = data[:, :, left - self.cols.start : right - self.cols.start]
            window = Window(left, top, right - left, bottom - top)
            wanted = self._wanted(window)
            pool = self._pools[place * len(self._pools) // count]
            chunks.append(pool.submit(self._read, part, window, wanted) if np.any(wanted) else None)
        return _Pending(data, tuple(chunks))

    def _wanted(self, window: Window) -> Validity:
        """Return which pixels of `window` lie in the area of interest; in the caller's thread."""
        if self._area is None:
            return True
        inside = inside_area(self._area, self._scene.grid.crop(window))
        return True if inside.all() else inside

    def _read(self, out: NDArray[Any], window: Window, wanted: Validity) -> Validity:
        """Read `window` into `out`, of which pixels not `wanted` are not valid; in a reading thread."""
        valid = self._reader.read_into(out, window)
        if not isinstance(wanted, bool):
            out[:, ~wanted] = 0
            valid = wanted if valid is None else valid & wanted
        if valid is None or valid.all():
            return True
        return valid if valid.any() else False

    def _finish(self, number: int) -> Strip:
        """Return strip `number`, waiting for its chunks; their errors are raised here."""
        if number in self._ready:
            return self._ready[number]
        pending = self._pending[number]
        validities = [chunk is not None and chunk.result() for chunk in pending.chunks]
        spans = [slice(a - self.cols.start, b - self.cols.start) for a, b in pairwise(self._chunks)]
        strip = join_chunks(self._edges[number], pending.data, validities, spans)
        self._ready[number] = strip
        del self._pending[number]
        return strip


@dataclass(frozen=True, slots=True)
class _Pending:
    """A strip being read: its memory, and the chunks that fill it from left to right; None: nothing to read."""

    data: NDArray[Any]
    chunks: tuple[Future[Validity] | None, ...]


@dataclass(frozen=True, slots=True)
class _Lattice:
    """Where blocks end along an axis of the scene's grid: at origin + any multiple of step."""

    step: int = 1
    origin: int = 0

    def fits(self, other: _Lattice) -> bool:
        """Return whether every place of this lattice is one of `other`."""
        return self.step % other.step == 0 and (self.origin - other.origin) % other.step == 0

    def edges(self, span: range, target: int, *, cut: bool) -> tuple[int, ...]:
        """Return the places that cut `span` into parts of about `target`, its ends included.

        Parts are whole cells, several if those are small; cells larger than `target` are parted evenly when
        `cut`. Places do not depend on the span.
        """
        group = max(1, target // self.step) * self.step
        size = -(-group // -(-group // target)) if cut else group
        first = (span.start - self.origin) // group * group + self.origin
        places = {start + part for start in range(first, span.stop, group) for part in range(0, group, size)}
        return (span.start, *sorted(place for place in places if span.start < place < span.stop), span.stop)


@dataclass(frozen=True, slots=True)
class _Cuts:
    """How the blocks of a scene's files lie on its grid.

    Parameters
    ----------
    rows, cols : _Lattice
        Where blocks end that strips and chunks can be aligned to.
    tall : bool
        Blocks are too tall to be held.
    aligned : bool
        No block of any file is in two strips or chunks.
    """

    rows: _Lattice
    cols: _Lattice
    tall: bool
    aligned: bool


def _cuts(scene: Scene, limit: int) -> _Cuts:
    """Return the cuts that suit the files whose pixels are the grid's, the first of them before others."""
    files = list(dict.fromkeys(source.file for source in scene.sources))
    lattices = []
    for file in files:
        shift = relate(file.grid, scene.grid)
        if isinstance(shift, Shift):
            height, width = file.blocks
            lattices.append((_Lattice(height, -shift.rows), _Lattice(width, -shift.cols)))
    low = [pair for pair in lattices if pair[0].step <= limit]
    if not lattices:
        return _Cuts(_Lattice(), _Lattice(), tall=False, aligned=False)
    rows, cols = (low or lattices)[0]
    for other_rows, other_cols in low[1:]:
        rows = other_rows if other_rows.fits(rows) else rows
        cols = other_cols if other_cols.fits(cols) else cols
    known = len(low) == len(files)
    aligned = known and all(rows.fits(down) and cols.fits(along) for down, along in low)
    return _Cuts(rows, cols, tall=not low, aligned=aligned)


def _edges(scene: Scene, cuts: _Cuts, rows: range, cols: range) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the rows at which strips end, and the columns at which chunks do."""
    down = cuts.rows.edges(rows, STRIP_ROWS, cut=cuts.tall)
    height = max(stop - start for start, stop in pairwise(down))
    files = {source.file for source in scene.sources}
    pixel_bytes = max(sum(np.dtype(dtype).itemsize for dtype in file.dtypes) for file in files)
    target = max(1, min(CHUNK_COLS, CHUNK_BYTES // (height * pixel_bytes)))
    return down, cuts.cols.edges(cols, target, cut=False)


def _useful_threads(scene: Scene, cuts: _Cuts, threads: int) -> int:
    """Return `threads`, or 1 where each of them would decode the same blocks."""
    files = {source.file for source in scene.sources}
    if any(file.driver in SEQUENTIAL for file in files):
        return 1
    whole_rows = any(file.blocks[1] >= file.grid.width > CHUNK_COLS for file in files)
    return 1 if whole_rows and not cuts.aligned else threads


def _clipped(span: range, size: int, what: str) -> range:
    """Return `span` without what lies outside of 0 to `size`."""
    if span.step != 1:
        raise UsageError(f"{what} {span} are not consecutive", code="E-USE-243")
    inside = range(max(span.start, 0), min(span.stop, size))
    if not inside:
        raise GridError(
            f"{what} {span.start} to {span.stop} are none of the {size} {what} of the grid", code="E-GRID-122"
        )
    return inside


def inside_area(area: LabelLayer, grid: Grid) -> NDArray[np.bool_]:
    """Return which pixels of `grid` have their centre in `area`, (H, W).

    While it burns, rasterio changes the warning filters, which all threads share, and two threads that
    do so at once leave them wrong for good: reading threads do not burn, nor do they open files meanwhile.
    """
    with _QUIET:
        return np.asarray(area.planes(grid)[0] != 0)


def area_layer(aoi: Geometries, grid: Grid) -> LabelLayer:
    """Return the polygons of `aoi` as a layer that can be burnt window by window; lines cover no ground."""
    parts = shapely.get_parts(np.asarray(aoi, dtype=object).ravel())
    return LabelLayer(("aoi",), (parts[shapely.get_type_id(parts) == _POLYGON],), grid.crs)
