"""What a detection will take, told before it starts, and tiles chosen so that it takes little.

Overlap costs work, tall row bands and wide tiles cost memory: `choose_tiles` looks through the sizes for
the least of both. Tiles need not be square; a wide scene is cut into low, long ones. At most `MOST_WORK`
times the area's pixels go through the network, whatever the halo, unless a limit on memory leaves no choice.

Memory is reckoned, not measured: rows held and read ahead, results of the row bands under way, activations
of one batch, what writers keep, and what the process has already. `benchmarks/memory.py` compares. Of an ensemble
all weights are there twice, as loaded and as they are run, and the activations of the member that takes most.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window

from satseg.errors import OutputError, UsageError
from satseg.imagery.geotiff import BLOCK
from satseg.imagery.mapping import Shift, relate
from satseg.imagery.scene import Scene
from satseg.imagery.tiling import TilePlan, plan_tiles, round_up
from satseg.learning.detection.engine import Working, member_looks
from satseg.learning.machine import free_bytes, resident_bytes
from satseg.learning.networks.ensemble import Predictor
from satseg.learning.networks.forward import ONE_VIEW, Wanted
from satseg.learning.networks.model import Model
from satseg.learning.networks.runtimes import make_runtime
from satseg.learning.networks.views import Views
from satseg.vector.separate import MARGIN, SLAB, WORK_BYTES

MIB = 2**20
MOST_WORK = 1.35
"""Pixels through the network for each pixel of a large scene, at most, at tiles of satseg's own choice."""
READ_PX = {"cpu": 1_300_000, "cuda": 4_200_000}
"""Pixels of a tile's read beyond which a CPU's caches, or a GPU's memory, make each pixel dearer."""
LARGE_READ_COST = 0.25
"""Twice as many pixels in a read make each dearer by this share: 1.06 to 1.36 CPU-s per Mpx from 0.6 to 3.1 Mpx."""
AIM_BYTES, MEMORY_COST = 400 * MIB, 0.3
"""Memory beside what the process has that tiles are chosen for, and the work done rather than take twice as much."""
LEAST_SIDE, SIDE_STEP, MOST_SIDE = 64, 128, 2048
"""Sides of tiles that are looked at, rounded to the stride."""
STRIP_ROWS, ALIGN_LIMIT = 256, 1024
LARGE_STRIP = 100 * MIB
FIXED_BYTES = 160 * MIB
"""Compiled loops, GDAL's block cache, open outlines, and features waiting to be written."""
MASK_SHARE, SCORE_SHARE = 0.1, 0.8
"""Bytes on disk per byte of mask and of score, compressed: what dense scenes came to."""
PROBE_PX, PROBES = 256, 4
SUMS = 6
"""Planes of float32 for each class of a batch while members are blended: sums, terms of them, logits, scores."""
GPU_SHARE, MOST_BATCH = 0.5, 16
"""Of a GPU's free memory that a batch is reckoned to take, and tiles beyond which no GPU gets faster."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a detection will take.

    Parameters
    ----------
    pixels : int
        Of the area.
    tiles : int
    work : float
        Pixels through the networks for each pixel of the area, in all views of `tta`.
    memory_bytes, disk_bytes : int
        Of the host at most, and on disk at most at one time.
    seconds : float or None
        On this machine as it is now; None where it was not tried.
    """

    pixels: int
    tiles: int
    work: float
    memory_bytes: int
    disk_bytes: int
    seconds: float | None = None

    def __str__(self) -> str:
        parts = [
            f"{self.pixels / 1e6:,.1f} Mpx in {self.tiles} tile{'s' * (self.tiles != 1)}",
            f"{self.work:.2f} x through the network",
            f"memory {_size(self.memory_bytes)}",
            f"disk {_size(self.disk_bytes)}",
        ]
        if self.seconds is not None:
            parts.append(f"about {_duration(self.seconds)}")
        return ", ".join(parts)


def choose_tiles(
    model: Predictor,
    scene: Scene,
    window: Window,
    wanted: Wanted,
    working: Working,
    *,
    halo: int,
    tile: int | None = None,
    max_memory: int | None = None,
) -> tuple[TilePlan, int]:
    """Return the tiles that cover `window`, and the host memory in bytes that working on them takes.

    Parameters
    ----------
    halo : int
        Margin that the network is to have; wider where it looks at smaller views.
    tile : int, optional
        Side of a tile, in place of the chosen one.
    max_memory : int, optional
        Bytes of host memory that the process may come to.

    Raises
    ------
    UsageError
        `max_memory` is less than the smallest tiles take (E-USE-060).
    """
    memory = _Memory(model, scene, wanted, working)
    views, most_read = working.views, READ_PX.get(model.device.type, READ_PX["cuda"])
    halo, align = views.margin(halo), model.stride * views.step
    cells = _sides(window) if tile is None else [(tile, tile)]
    best: tuple[tuple[float, ...], TilePlan, int] | None = None
    for height, width in cells:
        plan = plan_tiles(scene.grid, tile=height, tile_width=width, halo=halo, window=window, align=align)
        needed = memory.of(plan)
        rank = _rank(plan, needed, memory.start, most_read / views.largest, max_memory)
        if best is None or rank < best[0]:
            best = rank, plan, needed
    assert best is not None, "there is always a tile to look at"
    _, plan, needed = best
    if max_memory is not None and needed > max_memory:
        raise UsageError(
            f"--max-memory {_size(max_memory)} is too little: tiles of {plan.tile} x {plan.tile_width} pixels "
            f"take {_size(needed)}",
            hint="give more" + ("" if tile is None else ", or a smaller --tile"),
            code="E-USE-060",
        )
    return plan, needed


def _sides(window: Window) -> Iterable[tuple[int, int]]:
    """Heights and widths of tiles worth a look, for an area of this size."""
    heights, widths = (
        [side for side in (LEAST_SIDE, *range(SIDE_STEP, MOST_SIDE + 1, SIDE_STEP)) if side < length + SIDE_STEP]
        for length in (window.height, window.width)
    )
    return product(heights, widths)


def _rank(plan: TilePlan, needed: int, start: int, most_read: float, limit: int | None) -> tuple[float, ...]:
    """The smaller, the better: a limit comes first, then `MOST_WORK`, then what work and memory cost together."""
    height, width = plan.read_size
    inner = (height / plan.tile) * (width / plan.tile_width)
    large = plan.window.height > plan.tile and plan.window.width > plan.tile_width
    excess = 0.0 if limit is None else max(0.0, needed - limit)
    dearer = 1 + LARGE_READ_COST * max(0.0, math.log2(height * width / most_read))
    cost = plan.work() * dearer + MEMORY_COST * max(0.0, (needed - start) / AIM_BYTES - 1)
    return excess, float(large and inner > MOST_WORK), cost


class _Memory:
    """Reckons the host memory of a detection by its tiles."""

    def __init__(self, model: Predictor, scene: Scene, wanted: Wanted, working: Working) -> None:
        self._pixel = len(scene.bands) * scene.dtype.itemsize + 1
        pixel = wanted.bytes_per_pixel(len(model.classes))
        self._planes = pixel * (2 + working.bands_ahead)
        self._written = 2 * BLOCK * pixel  # of each column: rows of blocks that fill up, and their copy
        if model.cores:  # rows held until objects can be cut apart, their copy, and the work on them
            self._written += (SLAB + 2 * MARGIN) * (2 * pixel + WORK_BYTES)
        self._strip = strip_rows(scene)
        self._ahead = working.strips_ahead * self._strip
        on_host = model.device.type == "cpu"
        per_input = len(scene.bands) * (4 if on_host else scene.dtype.itemsize)
        devices = max(1, len(working.devices)) if on_host else 1
        blended = blend_bytes(model) + most_activation_bytes(model) if on_host else 0
        self._input = int((per_input + blended) * working.views.largest * working.batch_size * devices)
        self.start = resident_bytes() + FIXED_BYTES + sum(map(weight_bytes, model.members[1:])) * devices

    def of(self, plan: TilePlan) -> int:
        height, width = plan.read_size
        bands_held = min(height + self._strip + self._ahead, plan.height)
        rows = bands_held * min(plan.window.width + 2 * plan.halo, plan.width) * self._pixel
        planes = self._planes * min(plan.tile, plan.window.height) * plan.window.width
        tile = min(height, plan.height + plan.align) * min(width, plan.width + plan.align)
        return int(self.start + rows + planes + self._written * plan.window.width + self._input * tile)


def strips_ahead(scene: Scene, working: Working) -> int:
    """Return how many strips to read ahead: none on a CPU where one alone is large, as reading is no delay there."""
    strip = strip_rows(scene) * scene.grid.width * len(scene.bands) * scene.dtype.itemsize
    waits = all(device.type == "cpu" for device in working.devices)
    return 0 if waits and strip > LARGE_STRIP else working.strips_ahead


def strip_rows(scene: Scene) -> int:
    """Return how many rows of `scene` are read at once: those of its blocks, if they lie on its grid."""
    file = max((source.file for source in scene.sources), key=lambda file: file.blocks[0])
    rows = file.blocks[0] if isinstance(relate(file.grid, scene.grid), Shift) else 1
    return rows if STRIP_ROWS <= rows <= ALIGN_LIMIT else STRIP_ROWS


def automatic_batch(model: Predictor, plan: TilePlan, devices: Sequence[torch.device], views: Views = ONE_VIEW) -> int:
    """Return how many tiles go through the network at a time: as many as the free memory of every GPU allows.

    On a CPU one: a second tile brings no speed there, and takes memory.
    """
    if any(device.type != "cuda" for device in devices):
        return 1
    height, width = plan.read_size
    each = most_activation_bytes(model) + blend_bytes(model) + 4 * len(model.bands)
    tile = height * width * views.largest * each
    room = min(free_bytes(device) for device in devices) * GPU_SHARE
    return int(min(max(1, room // tile), MOST_BATCH))


@torch.inference_mode()
def activation_bytes(model: Model) -> int:
    """Return about how many bytes of activations the network has at one time, for each pixel it reads.

    Twice what the layer with the largest input and output handles, which leaves room for what skip
    connections hold and for copies that layers make; the input as float32 is not in it.
    """
    largest, network = 0, model.network
    side = max(64, 4 * model.stride, 2 * network.crop + model.stride)
    side = round_up(side, model.stride)

    def note(_: torch.nn.Module, given: Sequence[torch.Tensor], result: torch.Tensor) -> None:
        nonlocal largest
        tensors = [tensor for tensor in (*given, result) if isinstance(tensor, torch.Tensor)]
        largest = max(largest, sum(tensor.nbytes for tensor in tensors))

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        network(torch.zeros(1, len(model.bands), side, side, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return 2 * largest // side**2


def most_activation_bytes(model: Predictor) -> int:
    """Return `activation_bytes` of the member that has most: they take turns."""
    return max(map(activation_bytes, model.members))


def blend_bytes(model: Predictor) -> int:
    """Return how many bytes for each pixel hold what an ensemble's members have said so far; 0 of a model alone."""
    planes = len(model.classes) + len(model.separated)
    return 4 * SUMS * planes if len(model.members) > 1 else 0


def weight_bytes(model: Model) -> int:
    """Return how many bytes the weights of a model take."""
    return sum(weight.nbytes for weight in model.network.state_dict().values())


def disk_bytes(plan: TilePlan, classes: int, wanted: Wanted, *, mask: bool, ledger: bool) -> int:
    """Return about how many bytes on disk a detection needs at one time, features left out."""
    pixels = plan.window.height * plan.window.width
    planes = classes * (mask + ledger) * MASK_SHARE + len(wanted.unsure) * (1 + ledger) * SCORE_SHARE
    if wanted.scores is not None:
        planes += classes * np.dtype(wanted.scores).itemsize * (1 + ledger) * SCORE_SHARE
    return int(pixels * planes)


def check_room(outputs: Iterable[Path], needed: int) -> None:
    """Raise OutputError (E-OUT-006) when the disk of the first of `outputs` has less than `needed` bytes free."""
    for path in outputs:
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise OutputError(
                f"{path} and what goes with it need about {_size(needed)}, {_size(free)} are free",
                hint="make room, or leave out --scores", code="E-OUT-006", path=path,
            )  # fmt: skip
        return


def estimate(
    model: Predictor, plan: TilePlan, working: Working, *, memory: int, disk: int, timed: bool = False
) -> Estimate:
    """Return what working on `plan` takes; `timed` tries the networks on a small tile to tell how long."""
    works = [look.work * working.views.work for look in member_looks(model, plan, working)]
    pixels = plan.window.height * plan.window.width
    made = Estimate(pixels=pixels, tiles=len(plan), work=sum(works), memory_bytes=memory, disk_bytes=disk)
    if not timed:
        return made
    gpus = sum(device.type == "cuda" for device in working.devices)  # several times the CPU is no more of it
    seconds = sum(work * _probe(member, working) for member, work in zip(model.members, works, strict=True))
    return replace(made, seconds=pixels * seconds / max(1, gpus))


def _probe(model: Model, working: Working) -> float:
    """Seconds for each pixel through the network, by one small tile."""
    device = working.devices[0] if working.devices else model.device
    runtime = make_runtime(model, engine=working.engine, amp=working.amp, device=device)
    side = round_up(max(PROBE_PX, 2 * model.network.crop + model.stride), model.stride)
    image = torch.zeros(1, len(model.bands), side, side, device=device)
    seconds = []
    for _ in range(PROBES + 1):
        started = time.perf_counter()
        runtime(image).cpu()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:]) / side**2  # the first call prepares, and another program may disturb one


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
