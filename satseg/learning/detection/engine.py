"""The streaming engine: a scene in, finished row bands of results out, in memory that does not grow.

Three stages overlap. Reader threads decode the rows ahead, each block once, and keep those that two bands
share (`satseg.imagery.rows`). One thread per device takes batches of tiles and fills the row band that they
belong to (`satseg.learning.networks.forward`). The caller's thread writes and outlines the band before. Nothing waits
in between but one row band and the strips read ahead, whatever the height of the scene.

The same for one CPU, one GPU and several: a thread takes whichever device is free. Tiles without a valid
pixel are never computed. A pixel's answer depends on its place in the scene alone, not on the tile, the band,
the batch, the device or the part of the scene asked for, as long as the halo covers the network's reach.
The members of an ensemble each read a tile of their own around the same kept pixels, so that this holds for them too.

An error in any stage ends all of them: threads finish the tile at hand, files are closed, the error is raised.
"""

from __future__ import annotations

import ctypes
import platform
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from queue import SimpleQueue
from types import TracebackType

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.grid import Grid, slices
from satseg.imagery.labels import Geometries, LabelLayer
from satseg.imagery.rows import RowReader, area_layer, inside_area
from satseg.imagery.scene import Scene
from satseg.imagery.tiling import Tile, TilePlan, TileRow, round_up
from satseg.learning.networks.ensemble import Predictor
from satseg.learning.networks.forward import ONE_VIEW, Forward, Piece, Planes, Wanted
from satseg.learning.networks.runtimes import make_runtime
from satseg.learning.networks.views import Views
from satseg.progress import Progress, silent
from satseg.vector.layers import INVALID

M_MMAP_THRESHOLD = -3
LARGE_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Working:
    """How the engine works; what comes out is the same to the last digits.

    Parameters
    ----------
    engine : "torch", "onnx" or "openvino"
    amp : bool
        Compute in bfloat16.
    views : Views
        Over which scores are averaged, and by which mean those of members are.
    devices : tuple of torch.device
        One thread each; the model's own when empty.
    batch_size : int
        Tiles per pass.
    readers : int
        Threads that read; 0: half as many as there are torch threads, at least one.
    halos : tuple of int
        Margin that each member of an ensemble has at full size; the plan's when empty.
    strips_ahead : int
        Strips of rows read before they are needed.
    bands_ahead : int
        Row bands handed to the devices beyond the one that is waited for.
    """

    engine: str = "torch"
    amp: bool = False
    views: Views = ONE_VIEW
    devices: tuple[torch.device, ...] = ()
    batch_size: int = 1
    halos: tuple[int, ...] = ()
    readers: int = 1
    strips_ahead: int = 1
    bands_ahead: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class RowBand:
    """Results of a row band.

    Parameters
    ----------
    number : int
        From 0 at the top of the area.
    window : Window
        On the scene's grid; the full width of the area.
    planes : mapping of str to ndarray
        See `satseg.learning.networks.forward.Planes`.
    """

    number: int
    window: Window
    planes: Planes


def scan(
    model: Predictor,
    scene: Scene,
    plan: TilePlan,
    wanted: Wanted,
    working: Working,
    *,
    aoi: Geometries | None = None,
    first: int = 0,
    progress: Progress = silent,
) -> Generator[RowBand]:
    """Yield the row bands of `plan` from top to bottom.

    Parameters
    ----------
    scene : Scene
        As `working_scene` returns it.
    plan : TilePlan
        Of the scene's grid, aligned to the network's stride times the step of the views.
    wanted : Wanted
    aoi : ndarray of Polygon, optional
        In the scene's CRS; results outside are not valid. What lies near it is looked at, so that the
        results inside are those of the whole scene.
    first : int
        The row band to begin with; those above are not read.

    Raises
    ------
    InputError
        Blocks of the scene are damaged.
    DeviceError
        A tile does not fit into the device's memory.
    """
    _keep_heap_flat()
    rows = range(plan.window.row_off, plan.window.row_off + plan.window.height)
    total, done = float(len(rows) * plan.window.width), 0.0
    near = None if aoi is None else _widened(aoi, scene.grid, plan.halo + plan.align)
    area = None if aoi is None else _Area(area_layer(aoi, scene.grid), scene.grid)
    looks = member_looks(model, plan, working)
    with _Devices(model, wanted, working, area) as devices, _reader(scene, plan, working, near, first) as reader:
        for band in _pipelined(devices, reader, plan, looks, working.bands_ahead, first):
            done = float((band.window.row_off + band.window.height - rows.start) * plan.window.width)
            progress("detect", done, total, "")
            yield band


@dataclass(frozen=True, slots=True)
class MemberLook:
    """How a member reads tiles: `plan` has its alignment and margin, reads go `beyond` the grid by so many pixels."""

    plan: TilePlan
    beyond: int

    def at(self, tile: Tile) -> Tile:
        """Return `tile`, which may be of another member's plan, as this one reads it."""
        return self.plan.tight(tile, beyond=self.beyond)

    @property
    def work(self) -> float:
        """Pixels read for each pixel of the area."""
        return self.plan.work(beyond=self.beyond)


def member_looks(model: Predictor, plan: TilePlan, working: Working) -> tuple[MemberLook, ...]:
    """Return how each member of `model` reads the tiles of `plan`, whose halo and alignment suit them all."""
    views, members = working.views, model.members
    plans = [plan]
    if len(members) > 1:
        aligns = [member.stride * views.step for member in members]
        halos = [views.margin(halo) for halo in working.halos or (plan.halo,) * len(members)]
        plans = [
            replace(plan, align=align, halo=min(plan.halo, round_up(halo, align)))
            for align, halo in zip(aligns, halos, strict=True)
        ]
    return tuple(
        MemberLook(own, round_up(views.margin(member.crop), own.align))
        for member, own in zip(members, plans, strict=True)
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Area:
    """The area of interest on the scene's grid."""

    layer: LabelLayer
    grid: Grid

    def inside(self, window: Window) -> NDArray[np.bool_]:
        return inside_area(self.layer, self.grid.crop(window))


def _widened(aoi: Geometries, grid: Grid, margin: int) -> Geometries:
    """Return `aoi` with all ground within `margin` pixels of it along rows and columns."""
    wider: Geometries = shapely.buffer(aoi, margin * sum(grid.resolution))
    return wider


def _reader(scene: Scene, plan: TilePlan, working: Working, aoi: Geometries | None, first: int) -> RowReader:
    """Return a reader of all rows and columns that tiles from row band `first` on look at."""
    bands = plan.row_range[first:] or plan.row_range[-1:]
    corners = [plan.tight(plan.tile_at(row, col)).read for row in (bands[0], bands[-1]) for col in _ends(plan)]
    rows = range(max(0, corners[0].row_off), min(scene.grid.height, corners[-1].row_off + corners[-1].height))
    cols = range(max(0, corners[0].col_off), min(scene.grid.width, corners[-1].col_off + corners[-1].width))
    return RowReader(
        scene, rows=rows, cols=cols, threads=working.readers, ahead=working.strips_ahead, aoi=aoi
    )


def _ends(plan: TilePlan) -> tuple[int, int]:
    return plan.col_range[0], plan.col_range[-1]


def _pipelined(
    devices: _Devices, reader: RowReader, plan: TilePlan, looks: Sequence[MemberLook], ahead: int, first: int
) -> Iterator[RowBand]:
    """Yield finished bands while the devices work on the next ones."""
    under_way: deque[_Started] = deque()
    finished: RowBand | None = None
    for number in range(first, len(plan.row_range)):
        under_way.append(devices.start(number, plan.row(plan.row_range[number]), looks, reader))
        if finished is not None:
            yield finished
            finished = None
        if len(under_way) > ahead:
            finished = under_way.popleft().result()
    if finished is not None:
        yield finished
    while under_way:
        yield under_way.popleft().result()


@dataclass(slots=True, eq=False)
class _Started:
    """A row band that devices are filling."""

    band: RowBand
    outside: NDArray[np.bool_] | None
    batches: list[Future[None]] = field(default_factory=list)

    def result(self) -> RowBand:
        """Return the band once it is full, not valid where it is `outside` (h, w); raises what went wrong."""
        for batch in self.batches:
            batch.result()
        if self.outside is not None:
            for plane in self.band.planes.values():
                plane[:, self.outside] = np.nan if plane.dtype.kind == "f" else INVALID
        return self.band


class _Devices:
    """A thread for each device, and the networks on them."""

    def __init__(self, model: Predictor, wanted: Wanted, working: Working, area: _Area | None) -> None:
        places = working.devices or (model.device,)
        self._free: SimpleQueue[Forward] = SimpleQueue()
        for place in places:
            runtimes = [
                make_runtime(member, engine=working.engine, amp=working.amp, device=place) for member in model.members
            ]
            self._free.put(Forward(model, runtimes, wanted, views=working.views))
        self._pool = ThreadPoolExecutor(len(places), "satseg-network")
        self._wanted, self._classes, self._batch, self._area = wanted, len(model.classes), working.batch_size, area

    def __enter__(self) -> _Devices:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, number: int, row: TileRow, looks: Sequence[MemberLook], reader: RowReader) -> _Started:
        """Hand the tiles of a row band to the devices, once its rows are read."""
        tiles = [tuple(look.at(tile) for look in looks) for tile in row.tiles]
        reads = [tile.read for tile in tiles[0]]
        view = reader.window(
            min(read.row_off for read in reads), max(read.row_off + read.height for read in reads)
        )
        planes = self._wanted.empty(self._classes, height=row.keep.height, width=row.keep.width)
        outside = None if self._area is None else ~self._area.inside(row.keep)
        started = _Started(RowBand(number, row.keep, planes), outside)
        live = (each for each in tiles if view.any_valid(each[0].keep))
        if outside is not None:
            live = (each for each in live if not outside[slices(each[0].keep, row.keep)].all())
        pieces = (Piece(each, view, planes, *slices(each[0].keep, row.keep)) for each in live)
        for batch in _grouped(pieces, self._batch):
            started.batches.append(self._pool.submit(self._run, batch))
        return started

    def _run(self, batch: Sequence[Piece]) -> None:
        forward = self._free.get()
        try:
            forward(batch)
        finally:
            self._free.put(forward)


def _grouped(pieces: Iterator[Piece], size: int) -> Iterator[list[Piece]]:
    """Runs of at most `size` pieces whose reads have one shape for each member, so that they stack."""
    group: list[Piece] = []
    for piece in pieces:
        if group and (len(group) == size or _shape(piece) != _shape(group[0])):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _shape(piece: Piece) -> tuple[tuple[int, int], ...]:
    return tuple((tile.read.height, tile.read.width) for tile in piece.tiles)


@cache
def _keep_heap_flat() -> None:
    """Have glibc return every large block to the system when it is freed.

    By default it raises its limit for such blocks to 32 MiB as they come and go; tiles of changing size
    then leave holes in the heap, and memory grows by a fifth over a tall scene (mallopt(3),
    M_MMAP_THRESHOLD). Other C libraries have no such call and need none.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
