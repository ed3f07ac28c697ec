"""Scene to class scores, tile by tile: constant memory, and one answer per pixel.

Each tile is read with a halo as wide as the network's reach and only its core is kept, so the
scores do not depend on how the scene was cut. Blending overlapping tiles was rejected: it hides
seams instead of removing them, and needs accumulators as large as the scene. The tile lattice is
anchored at the scene's origin and aligned to the network's stride, so that a detection inside
`bounds` equals the same pixels of a detection of everything.

Tiles are read by a thread while the network works on the batch before; tiles without a valid pixel
are not computed.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import GridError, UsageError
from satseg.grid import Grid, slices
from satseg.imagery.normalization import Normalization
from satseg.imagery.scene import Scene, SceneReader
from satseg.imagery.tiling import Tile, plan_tiles
from satseg.learning.bundle import Model
from satseg.progress import Progress, silent
from satseg.raster import Raster

DEFAULT_TILE_PX = 1536
"""Kept side of a tile: the default network's halo of 112 then adds 31 % to its pixels, in about 1 GB."""
M_MMAP_THRESHOLD = -3
LARGE_BLOCK_BYTES = 4 * 2**20
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class TileScores:
    """Scores of one tile's core.

    Attributes
    ----------
    window : Window
        On the scene's grid.
    scores : ndarray of float32 (K, h, w), 0..1; 0 where invalid
    valid : ndarray of bool (h, w)
    """

    window: Window
    scores: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a scene is cut.

    Parameters
    ----------
    tile : int or None
        Kept side in pixels; `DEFAULT_TILE_PX` when left out.
    halo : int or None
        Margin in pixels; the model card's, which covers the network's reach.
    batch_size : int or None
        Tiles per forward pass; one on a CPU, four on a GPU.
    """

    tile: int | None = None
    halo: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, low in (("tile", 1), ("halo", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} {value} is below {low}", code="E-USE-020")


def working_scene(model: Model, scene: Scene) -> Scene:
    """`scene` with the model's bands, at its working resolution.

    A scene whose GSD is within 5 % of the model's keeps its own grid, as does one without a CRS,
    whose pixel size is in unknown units.

    Raises
    ------
    BandError
        The scene lacks a band that the model needs.
    """
    model.check_bands(scene.bands)
    chosen = scene.select(model.bands)
    wanted = model.card.gsd_m
    if wanted is None or scene.grid.crs is None or abs(scene.grid.gsd_m() / wanted - 1) <= 0.05:
        return chosen
    return chosen.at_gsd(wanted)


def predict_tiles(
    model: Model,
    scene: Scene,
    *,
    window: Window | None = None,
    tiling: Tiling | None = None,
    amp: bool = False,
    flips: bool = False,
    progress: Progress = silent,
) -> Iterator[TileScores]:
    """Yield the scores of every tile of `window` (all when left out), row by row.

    Parameters
    ----------
    scene : Scene
        As `working_scene` returns it.
    amp : bool
        Compute in bfloat16, whose range is that of float32.
    flips : bool
        Average over the eight flips and quarter turns (D4): eight times the work.
    """
    cut = tiling or Tiling()
    stride = model.network.stride
    halo = model.halo if cut.halo is None else cut.halo
    plan = plan_tiles(scene.grid, tile=cut.tile or DEFAULT_TILE_PX, halo=halo, window=window, align=stride)
    batch_size = cut.batch_size or (4 if model.device.type == "cuda" else 1)
    forward = _Forward(model, amp=amp, flips=flips)
    total, done = float(plan.window.height * plan.window.width), 0.0
    tiles = (_tight(tile, halo=plan.halo, stride=stride) for tile in plan)
    _keep_heap_flat()
    with scene.reader() as reader:
        batches = _ahead(lambda group: _read(reader, group), _grouped(tiles, batch_size))
        with closing(batches):  # the reading thread ends before its reader is closed
            for result in chain.from_iterable(map(forward, batches)):
                done += result.window.height * result.window.width
                progress("detect", done, total, "")
                yield result


def gather(tiles: Iterable[TileScores], grid: Grid, window: Window, names: Sequence[str]) -> Raster:
    """Return the scores of `tiles` as one raster in memory.

    Returns
    -------
    Raster, (K, H, W) float32 in 0..1
        On the part `window` of `grid`; invalid pixels hold 0.
    """
    shape = (round(window.height), round(window.width))
    scores = np.zeros((len(names), *shape), np.float32)
    valid = np.zeros(shape, bool)
    for tile in tiles:
        rows, cols = slices(tile.window, window)
        scores[:, rows, cols] = tile.scores
        valid[rows, cols] = tile.valid
    return Raster(scores, grid.crop(window), tuple(names), valid)


class Standardize(torch.nn.Module):
    """`Normalization` on the network's device: clip, shift, scale, and 0 where invalid."""

    low: torch.Tensor
    high: torch.Tensor
    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        for name, values in normalization.arrays().items():
            tensor = torch.as_tensor(values, dtype=torch.float32)[:, None, None]
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, image: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return (B, C, H, W) float32, finite; `valid` is (B, 1, H, W) bool."""
        scaled = torch.clamp(image, self.low, self.high).sub_(self.offset).div_(self.scale)
        return scaled if bool(valid.all()) else scaled.masked_fill_(~valid, 0.0)


class _Forward:
    """Runs the network on a batch of read tiles."""

    def __init__(self, model: Model, *, amp: bool, flips: bool) -> None:
        self._model, self._amp, self._flips = model, amp, flips
        self._normalize = Standardize(model.card.normalization).to(model.device)
        self._network = model.network.eval().to(model.device).to(memory_format=torch.channels_last)

    def __call__(self, batch: Sequence[tuple[Tile, Raster]]) -> list[TileScores]:
        live = [(tile, raster) for tile, raster in batch if raster.valid.any()]
        scores = iter(self._scores(live) if live else ())
        results = []
        for tile, raster in batch:
            rows, cols = slices(tile.keep, tile.read)
            valid = raster.valid[rows, cols]
            if raster.valid.any():
                kept = next(scores)
                if not valid.all():
                    kept[:, ~valid] = 0
            else:
                kept = np.zeros((len(self._model.classes), *valid.shape), np.float32)
            results.append(TileScores(tile.keep, kept, valid))
        return results

    @torch.inference_mode()
    def _scores(self, batch: Sequence[tuple[Tile, Raster]]) -> list[NDArray[np.float32]]:
        """Scores (K, h, w) of what each tile keeps; only those pixels are turned into scores."""
        normal = self._normalize(*self._on_device([raster for _, raster in batch]))
        with torch.autocast(self._model.device.type, dtype=torch.bfloat16, enabled=self._amp):
            planes = self._symmetric(normal) if self._flips else self._logits(normal)
        results = []
        for (tile, _), plane in zip(batch, planes, strict=True):
            rows, cols = (self._inside(part) for part in slices(tile.keep, tile.read))
            kept = plane[:, rows, cols].float()
            results.append((kept if self._flips else kept.sigmoid()).cpu().numpy())
        return results

    def _on_device(self, rasters: Sequence[Raster]) -> tuple[torch.Tensor, torch.Tensor]:
        image = np.empty((len(rasters), *rasters[0].shape), np.float32)
        for place, raster in zip(image, rasters, strict=True):
            place[...] = raster.data
        valid = np.stack([raster.valid for raster in rasters])[:, None]
        return torch.from_numpy(image).to(self._model.device), torch.from_numpy(valid).to(self._model.device)

    def _inside(self, part: slice) -> slice:
        """`part` of a read, in the output of a network that cuts a margin off."""
        return slice(part.start - self._network.crop, part.stop - self._network.crop)

    def _logits(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._network(image.contiguous(memory_format=torch.channels_last))
        return logits

    def _symmetric(self, image: torch.Tensor) -> torch.Tensor:
        """Arithmetic mean of the scores over D4, each turned back."""
        total = torch.zeros((), device=image.device)
        for turns in range(4):
            for mirrored in (False, True):
                turned = torch.rot90(image.flip(-1) if mirrored else image, turns, (-2, -1))
                scores = torch.rot90(self._logits(turned).float().sigmoid(), -turns, (-2, -1))
                total = total + (scores.flip(-1) if mirrored else scores)
        return total / 8


def _read(reader: SceneReader, tiles: Sequence[Tile]) -> list[tuple[Tile, Raster]]:
    return [(tile, reader.read(tile.read)) for tile in tiles]


def _tight(tile: Tile, *, halo: int, stride: int) -> Tile:
    """`tile` without the read that serves nothing: what it keeps, and the halo, aligned to the stride.

    Tiles at the scene's edge keep less than a full cell. The network's stride still divides the place
    of every read, so the kept scores are those of the full tile.
    """
    top, left = tile.keep.row_off // stride * stride, tile.keep.col_off // stride * stride
    bottom = -(-(tile.keep.row_off + tile.keep.height) // stride) * stride
    right = -(-(tile.keep.col_off + tile.keep.width) // stride) * stride
    read = Window(left - halo, top - halo, right - left + 2 * halo, bottom - top + 2 * halo)
    return replace(tile, read=read)


def _grouped(tiles: Iterator[Tile], size: int) -> Iterator[list[Tile]]:
    """Runs of at most `size` tiles whose reads have one shape, so that they stack."""
    group: list[Tile] = []
    for tile in tiles:
        if group and (len(group) == size or _shape(tile) != _shape(group[0])):
            yield group
            group = []
        group.append(tile)
    if group:
        yield group


def _shape(tile: Tile) -> tuple[int, int]:
    return tile.read.height, tile.read.width


def _ahead(work: Callable[[list[Tile]], Item], groups: Iterator[list[Tile]]) -> Generator[Item]:
    """Yield ``work(group)`` in order, the next one always under way in a thread of its own."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: Future[Item] | None = None
        for group in groups:
            upcoming = pool.submit(work, group)
            if pending is not None:
                yield pending.result()
            pending = upcoming
        if pending is not None:
            yield pending.result()


@cache
def _keep_heap_flat() -> None:
    """Have glibc return every large block to the system when it is freed.

    By default it raises its limit for such blocks to 32 MiB as they come and go; tiles of changing size
    then leave holes in the heap, and memory grows by a fifth over a tall scene (mallopt(3),
    M_MMAP_THRESHOLD). Other C libraries have no such call and need none.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def check_halo(model: Model, halo: int) -> None:
    """Raise when `halo` does not even cover the network's own valid-centre crop."""
    if halo < model.network.crop:
        raise GridError(
            f"halo {halo} is smaller than the network's crop of {model.network.crop} pixels", code="E-GRID-010"
        )
