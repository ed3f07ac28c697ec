"""One batch of tiles through one network or several: stored integers in, one byte per class and pixel out.

What crosses the border to the device is as small as it can be: pixels go over as they are stored and are
normalised there, thresholds are applied there, and of a float per class and pixel only a byte comes back
(`kernels` says what it means). Whole scores come back only when they are asked for. Results
are written straight into the arrays of their row band. On a CPU compiled loops do what torch does on a GPU.
The networks of an ensemble take turns, each with a tile, bands and normalisation of its own, in one memory.

A device that runs out of memory is no failure: the batch is halved, and stays so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from satseg.errors import DeviceError
from satseg.grid import slices
from satseg.imagery.normalization import Normalization
from satseg.imagery.rows import StripView
from satseg.imagery.tiling import Tile
from satseg.learning.networks.blending import Blending
from satseg.learning.networks.ensemble import Predictor
from satseg.learning.networks.kernels import encode, pack
from satseg.learning.networks.means import entropies
from satseg.learning.networks.model import Model
from satseg.learning.networks.runtimes import Runtime
from satseg.learning.networks.views import Views
from satseg.vector.layers import FIRST, INVALID, LAST

ScoreType: TypeAlias = Literal["float32", "float16", "uint8"]
Planes: TypeAlias = dict[str, NDArray[Any]]
"""Results of a row band by name: "codes" (P, h, w), "scores" (K, h, w), "entropy" and "disagreement" (1, h, w)."""
ONE_VIEW = Views()
BYTE_STEPS = 254
"""A score or an entropy of 1 as a byte; 255 is left for pixels that are not valid."""
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""What torch's message names when the host's memory is at an end: there is no class of its own for that."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be known of each pixel.

    Parameters
    ----------
    thresholds : ndarray of float32, (P,), or None
        Codes at these scores of each plane of the network, classes and then cores: (P, h, w) uint8; None: no codes.
    scores : "float32", "float16", "uint8" or None
        The scores themselves: 0..1 and NaN where not valid, or 0..254 and 255.
    entropy : bool
        How unsure the model is: the greatest entropy of a class, of 0..1 bits, as 0..254 and 255 (1, h, w) uint8.
    disagreement : bool
        How far the members of an ensemble contradict each other: see `blending.Blend.disagreement`, stored alike.
    """

    thresholds: NDArray[np.float32] | None = None
    scores: ScoreType | None = None
    entropy: bool = False
    disagreement: bool = False

    @property
    def unsure(self) -> tuple[str, ...]:
        """Names of the planes of one byte that are wanted."""
        return tuple(name for name in ("entropy", "disagreement") if getattr(self, name))

    def empty(self, classes: int, *, height: int, width: int) -> Planes:
        """Return planes of which no pixel is valid."""
        planes: Planes = {}
        if self.thresholds is not None:
            planes["codes"] = np.full((len(self.thresholds), height, width), INVALID, np.uint8)
        if self.scores is not None:
            nothing = INVALID if self.scores == "uint8" else np.nan
            planes["scores"] = np.full((classes, height, width), nothing, self.scores)
        for name in self.unsure:
            planes[name] = np.full((1, height, width), INVALID, np.uint8)
        return planes

    def bytes_per_pixel(self, classes: int) -> int:
        """Return how many bytes the planes take for each pixel."""
        scores = np.dtype(self.scores).itemsize if self.scores is not None else 0
        return (0 if self.thresholds is None else len(self.thresholds)) + classes * scores + len(self.unsure)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One tile to compute: where its pixels are, and the planes of its row band that take the results.

    `tiles` has it as each network reads it, `rows` and `cols` are where its keep lies in those planes.
    """

    tiles: tuple[Tile, ...]
    view: StripView
    planes: Planes
    rows: slice
    cols: slice


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


class Scratch:
    """Memory that holds one network's input after the other's: new memory costs more than filling it."""

    def __init__(self) -> None:
        self._pixels, self._valid = np.empty(0, np.float32), np.empty(0, bool)

    def arrays(self, shape: tuple[int, int, int], bands: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return arrays (*shape, bands) and (*shape,), until the next call."""
        size = math.prod(shape)
        if self._pixels.size < size * bands:
            self._pixels = np.empty(size * bands, np.float32)
        if self._valid.size < size:
            self._valid = np.empty(size, bool)
        return self._pixels[: size * bands].reshape(*shape, bands), self._valid[:size].reshape(shape)


class Look:
    """One network's look at pieces: its own tile of each, its own bands of what is read, normalised as it learnt.

    Parameters
    ----------
    model : Model
    runtime : Runtime
        Its network, ready on its device.
    views : Views
    bands : sequence of str
        That are read.
    number : int
        Of its tile among those of a piece.
    """

    def __init__(
        self, model: Model, runtime: Runtime, views: Views, *, bands: Sequence[str], number: int = 0
    ) -> None:
        self._runtime, self._views, self._number = runtime, views, number
        self._bands = model.card.normalization.arrays()
        self._normalize = Standardize(model.card.normalization).to(runtime.device)
        self._crop = model.crop
        places = [bands.index(name) for name in model.bands]
        self._picked = None if places == list(range(len(bands))) else places
        self.compiled = runtime.device.type == "cpu"

    def __call__(self, batch: Sequence[Piece], scratch: Scratch) -> Iterator[tuple[torch.Tensor, Any]]:
        """Yield logits (P, h, w) and validity (h, w) of the keep of each piece, the tiles of one size."""
        tiles = [piece.tiles[self._number] for piece in batch]
        image, valid = self._packed(batch, tiles, scratch) if self.compiled else self._sent(batch, tiles)
        logits = self._views.logits(self._runtime, image, crop=self._crop)
        for number, tile in enumerate(tiles):
            rows, cols = _inside(tile)
            down, across = (slice(s.start - self._crop, s.stop - self._crop) for s in (rows, cols))
            yield logits[number, :, down, across], valid[number, rows, cols]

    def _packed(
        self, batch: Sequence[Piece], tiles: Sequence[Tile], scratch: Scratch
    ) -> tuple[torch.Tensor, NDArray[np.bool_]]:
        """Normalised pixels (B, C, H, W), channels last, and where they are valid (B, H, W), on the CPU."""
        image, valid = scratch.arrays(_shape(tiles), len(self._bands["low"]))
        for number, (piece, tile) in enumerate(zip(batch, tiles, strict=True)):
            parts = list(piece.view.parts(tile.read))
            if sum(known.size for _, known, _, _ in parts) < valid[number].size:
                image[number], valid[number] = 0.0, False
            for data, usable, rows, cols in parts:
                pack(self._own(data), usable, self._bands, image[number, rows, cols])
                valid[number, rows, cols] = usable
        return torch.from_numpy(image).permute(0, 3, 1, 2), valid

    def _sent(self, batch: Sequence[Piece], tiles: Sequence[Tile]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the same on the device, normalised there from the pixels as they are stored."""
        shape, dtype = _shape(tiles), batch[0].view.dtype
        bands = len(self._bands["low"])
        stored, valid = np.zeros((shape[0], bands, *shape[1:]), dtype), np.zeros(shape, bool)
        for number, (piece, tile) in enumerate(zip(batch, tiles, strict=True)):
            for data, usable, rows, cols in piece.view.parts(tile.read):
                stored[number, :, rows, cols], valid[number, rows, cols] = self._own(data), usable
        device = self._runtime.device
        there = torch.from_numpy(valid).to(device, non_blocking=True)
        pixels = torch.from_numpy(stored).to(device, non_blocking=True).float()
        normal = self._normalize(pixels, there[:, None])
        return normal.contiguous(memory_format=torch.channels_last), there

    def _own(self, data: NDArray[Any]) -> NDArray[Any]:
        return data if self._picked is None else data[self._picked]


class Forward:
    """Runs the network of a model, or those of an ensemble, on batches of tiles, and writes what is wanted of it.

    Parameters
    ----------
    model : Predictor
    runtimes : sequence of Runtime
        The members' networks, in their order, ready on one device.
    wanted : Wanted
    views : Views
        Over which scores are averaged, and by which mean those of members are.
    """

    def __init__(
        self, model: Predictor, runtimes: Sequence[Runtime], wanted: Wanted, *, views: Views = ONE_VIEW
    ) -> None:
        self._looks = [
            Look(member, runtime, views, bands=model.bands, number=number)
            for number, (member, runtime) in enumerate(zip(model.members, runtimes, strict=True))
        ]
        self._wanted, self._classes = wanted, len(model.classes)
        self._blending = Blending.of(model, views.mean, apart=wanted.disagreement)
        self._device = runtimes[0].device
        self._largest: int | None = None
        self._scratch = Scratch()

    @torch.inference_mode()
    def __call__(self, batch: Sequence[Piece]) -> None:
        """Compute the pieces, whose tiles are of one size, into the planes of their row bands.

        Raises
        ------
        DeviceError
            A single tile is too large for the device's memory.
        """
        done = 0
        while done < len(batch):
            part = batch[done : done + (self._largest or len(batch))]
            if self._fits(part):
                done += len(part)

    def _fits(self, batch: Sequence[Piece]) -> bool:
        """Compute the pieces and return True; False when the device has no room for so many."""
        failed: Exception | None = None
        try:
            self._compute(batch)
        except torch.OutOfMemoryError as error:
            failed = error
        except RuntimeError as error:
            if CPU_ALLOCATOR not in str(error):
                raise
            failed = error
        if failed is None:
            return True
        device = self._device
        if len(batch) == 1:
            read = batch[0].tiles[0].read
            raise DeviceError(
                f"a tile of {read.height} x {read.width} pixels is more than the memory of {device} holds",
                hint="give a smaller --tile", code="E-DEV-001",
            ) from failed  # fmt: skip
        self._largest = len(batch) // 2
        log.warning("%s is out of memory: %d tiles at a time from now on", device, self._largest)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def _compute(self, batch: Sequence[Piece]) -> None:
        if len(self._looks) == 1:
            for piece, (logits, valid) in zip(batch, self._looks[0](batch, self._scratch), strict=True):
                self._deliver(logits, valid, piece)
            return
        blends = [self._blending.begin() for _ in batch]
        usable: list[Any] = []
        for look in self._looks:
            usable = []
            for blend, (logits, valid) in zip(blends, look(batch, self._scratch), strict=True):
                blend.add(logits)
                usable.append(valid)
        for piece, blend, valid in zip(batch, blends, usable, strict=True):
            self._deliver(blend.logits(), valid, piece)
            if self._wanted.disagreement:
                there = torch.as_tensor(valid, device=self._device)
                _to_host(_as_bytes(blend.disagreement(), there), _part(piece, "disagreement"))

    def _deliver(self, logits: torch.Tensor, valid: Any, piece: Piece) -> None:
        """Write what is wanted of logits (K, h, w) where `valid` (h, w) into the piece's planes."""
        levels = self._wanted.thresholds
        if levels is not None and self._looks[0].compiled:
            encode(logits.numpy(), valid, levels, _part(piece, "codes"))
        elif levels is not None:
            _to_host(codes_of(logits, valid, levels), _part(piece, "codes"))
        if self._wanted.scores is not None or self._wanted.entropy:
            usable = torch.as_tensor(valid, device=logits.device)
            scores = logits[: self._classes].sigmoid()
            if self._wanted.scores is not None:
                _to_host(_stored(scores, usable, self._wanted.scores), _part(piece, "scores"))
            if self._wanted.entropy:
                unsure = entropies(scores).amax(dim=0, keepdim=True)
                _to_host(_as_bytes(unsure, usable), _part(piece, "entropy"))


def codes_of(logits: torch.Tensor, valid: torch.Tensor, thresholds: NDArray[np.float32]) -> torch.Tensor:
    """Return what `kernels.encode` makes of logits (K, h, w), computed by torch on their device."""
    levels = torch.as_tensor(thresholds, device=logits.device)[:, None, None]
    scores = logits.sigmoid()
    steps = ((scores - levels) * ((LAST - FIRST) / (1 - levels)) + 0.5).floor() + FIRST
    codes = torch.where(scores >= levels, steps, 0.0).to(torch.uint8)
    return torch.where(valid, codes, INVALID)


def _stored(scores: torch.Tensor, valid: torch.Tensor, kind: ScoreType) -> torch.Tensor:
    if kind == "uint8":
        return _as_bytes(scores, valid)
    return scores.masked_fill(~valid, float("nan")).to(getattr(torch, kind))


def _as_bytes(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Values 0..1 as 0..254, and 255 where not valid."""
    return torch.where(valid, (values * BYTE_STEPS + 0.5).floor().to(torch.uint8), INVALID)


def _to_host(values: torch.Tensor, out: NDArray[Any]) -> None:
    out[...] = values.cpu().numpy()


def _inside(tile: Tile) -> tuple[slice, slice]:
    """Where the keep of a tile lies in its read."""
    return slices(tile.keep, tile.read)


def _part(piece: Piece, name: str) -> NDArray[Any]:
    """Where the results of a piece go in the plane called `name`."""
    return piece.planes[name][:, piece.rows, piece.cols]


def _shape(tiles: Sequence[Tile]) -> tuple[int, int, int]:
    read = tiles[0].read
    return len(tiles), round(read.height), round(read.width)
