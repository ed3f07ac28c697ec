"""What feeds a training run: chips by number for the steps, tiles of held ground for validation.

Chip number i of a run is the same on any worker, rank or resumed run. A round's batches end when its
part of the budget is used up, which only the learner can tell: it gives the sampler its `Moment`.

Sixteen chips of 128 pixels a step: as many pixels in four chips of 256 gave 0.53, 0.53 and 0.43 in Nairobi, Zanzibar
and Las Vegas, each learnt without, after 3 CPU-minutes (`benchmarks.accuracy`, one run); in 28 of 96 0.54, 0.60 and
0.55 (means of two); as here 0.53, 0.63 and 0.53 (of three, on another processor, which took a third more steps). With
scenes brought near and ten minutes, four of 256 gave 0.56 and 0.62 in Nairobi and Zanzibar (one run), as here 0.54 and
0.66 (means of two). After thirty, four of 256 gave Jaccard and F1 of 0.55 and 0.67 in Nairobi, 0.63 and 0.57 in
Zanzibar, 0.72 and 0.33 in Las Vegas (one run), as here 0.52 and 0.60, 0.65 and 0.60 (means of two), 0.77 and 0.41
(one): what is won in one place is lost in others.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from rasterio.windows import Window
from torch.utils.data import DataLoader, Dataset, Sampler

from satseg.grid import hull, slices
from satseg.imagery.tiling import plan_tiles, round_up
from satseg.learning.ground.chips import Blocks, Chip, ChipReader
from satseg.learning.ground.grounds import Prepared
from satseg.learning.ground.sampling import ChipSampler
from satseg.learning.ground.split import Ground
from satseg.learning.networks.network import Network
from satseg.options import AugmentOptions, TrainOptions

ATTEMPTS = 8
"""Draws of a chip before one without a pixel to learn from is taken."""
OPEN_GROUNDS = 64
"""Grounds whose files are open at a time: a process may have about a thousand, and a scene may be many."""
LEAST_STEPS = 600
"""Of a run in minutes, however little ground there is: before that a network has not learnt enough of any."""
VALID_TILE_PX = 512
VALID_HALO_PX = 128
"""Wider margins move scores hardly, and cost several times the tile where a network reaches far."""
NEAR = 64
"""Reads before one that it may be joined with: more would take time as the square of a scene's tiles."""
Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""image (B, C, S, S) float32, valid (B, 1, S, S) bool, target (B, K, S, S) uint8, labelled (B, 1, S, S) bool."""
PlacedBatch: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""`Batch`, and the cell of the ground of each chip (B,) int64."""


@dataclass(slots=True)
class Budget:
    """How much of a run is done, in steps or in minutes of wall time; carried through a resume.

    Minutes end early after `most_steps` steps.
    """

    steps: int | None
    minutes: float | None
    most_steps: float = math.inf
    before_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)
    agreed_s: float | None = None
    """What several ranks take for `elapsed_s`, so that none of them ends a round alone."""

    @property
    def elapsed_s(self) -> float:
        """Seconds spent so far, those of the run this one resumes included."""
        return self.before_s + time.monotonic() - self.started_s

    def resume(self, elapsed_s: float) -> None:
        """Count the `elapsed_s` seconds of the run being resumed, and time from now on."""
        self.before_s, self.started_s = elapsed_s, time.monotonic()

    def share(self, step: int) -> float:
        """Share of the budget used up after `step` steps, 0..1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        elapsed_s = self.elapsed_s if self.agreed_s is None else self.agreed_s
        return min(1.0, max(elapsed_s / (60 * (self.minutes or 1.0)), step / self.most_steps))


class Chips(Dataset[Chip]):
    """Chip number i of the run, for any i; each process reads through handles of its own.

    A chip without a pixel to learn from is drawn again, up to `ATTEMPTS` times: a scene's map of valid ground is
    coarse. What comes back depends on the number and the data alone all the same.
    """

    def __init__(self, sampler: ChipSampler, *, cache_bytes: int) -> None:
        self.sampler = sampler
        self._readers = Readers(sampler.grounds, cache_bytes=cache_bytes, blank=True)

    def __getitem__(self, number: int) -> Chip:
        for attempt in range(ATTEMPTS):
            index, view = self.sampler.place(number, attempt)
            chip = self._readers[index].view(view, size=self.sampler.size)
            if chip.labelled.any():
                break
        return replace(chip, cell=self.sampler.cell(index, view))


class Readers:
    """Readers of `grounds` by number, which share `cache_bytes` of blocks; files of those longest unused are closed."""

    def __init__(self, grounds: Sequence[Ground], *, cache_bytes: int, blank: bool) -> None:
        self._grounds, self._blank = tuple(grounds), blank
        self._blocks = Blocks(cache_bytes)
        self._open: OrderedDict[int, ChipReader] = OrderedDict()

    def __getitem__(self, index: int) -> ChipReader:
        reader = self._open.pop(index, None)
        if reader is None:
            if len(self._open) == OPEN_GROUNDS:
                self._open.popitem(last=False)[1].close()
            reader = ChipReader(self._grounds[index], blank=self._blank, shared=(self._blocks, index))
        self._open[index] = reader
        return reader


class HeldTiles(Dataset[Chip]):
    """Windows that cover the ground held for validation, each pixel counted once on one of `ranks` ranks.

    They are read as detection reads tiles: the ground with a halo, and at most `beyond` the scene. Held blocks that
    lie so close that one read of all takes fewer pixels are read together (`together`): the halo is several
    times a block.
    All ranks get as many, for DDP makes them meet at each; what is missing on some is a read where nothing counts.
    """

    def __init__(
        self, grounds: Sequence[Ground], *, tile: int, halo: int, stride: int, beyond: int, cache_bytes: int,
        rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        self._reads: list[tuple[int, Read]] = []
        for index, ground in enumerate(grounds):
            reads: list[Read] = []
            for held in ground.blocks:
                plan = plan_tiles(ground.scene.grid, tile=tile, halo=halo, window=held, align=stride)
                tight = (plan.tight(piece, beyond=beyond) for piece in plan)
                reads += [Read(piece.read, (piece.keep,)) for piece in tight]
            self._reads += [(index, read) for read in together(reads, most=tile + 2 * halo)]
        self._readers = Readers(grounds, cache_bytes=cache_bytes, blank=False)
        self._mine = range(rank, -(-len(self._reads) // ranks) * ranks, ranks)

    def __len__(self) -> int:
        return len(self._mine)

    def read_of(self, number: int) -> tuple[int, Read]:
        """The number of the ground that chip `number` is of, and where it lies."""
        return self._reads[self._mine[number] % len(self._reads)]

    def __getitem__(self, number: int) -> Chip:
        index, read = self.read_of(number)
        chip = self._readers[index].read(read.window)
        kept = np.zeros(chip.labelled.shape, bool)
        for keep in read.keeps:
            kept[slices(keep, read.window)] = self._mine[number] < len(self._reads)
        return Chip(chip.image, chip.valid, chip.target, chip.labelled & kept)


@dataclass(frozen=True, slots=True)
class Read:
    """A window to read at once, and the parts of it whose pixels count."""

    window: Window
    keeps: tuple[Window, ...]

    @property
    def pixels(self) -> int:
        """How many are read."""
        return int(self.window.height * self.window.width)


def together(reads: Sequence[Read], *, most: int) -> list[Read]:
    """Return `reads` with those joined whose common window, up to `most` pixels a side, is no larger than both are."""
    joined: list[Read] = []
    for read in reads:
        for place, other in enumerate(joined[-NEAR:], max(0, len(joined) - NEAR)):
            window = hull(read.window, other.window)
            apart = read.pixels + other.pixels
            if max(window.height, window.width) <= most and window.height * window.width <= apart:
                read = Read(window, (*other.keeps, *read.keeps))
                del joined[place]
                break
        joined.append(read)
    return joined if len(joined) == len(reads) else together(joined, most=most)


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands as a round begins: steps done, share of the budget at the round's end, and whose batches."""

    step: int
    until: float
    rank: int = 0
    ranks: int = 1


class RoundSampler(Sampler[list[int]]):
    """Batches of chip numbers, `accumulate` for each step, until the current round's part of the budget is used up."""

    def __init__(self, budget: Budget, batch: int, moment: Callable[[], Moment], *, accumulate: int = 1) -> None:
        self._budget, self._batch, self._moment, self._accumulate = budget, batch, moment, accumulate

    def __iter__(self) -> Iterator[list[int]]:
        moment = self._moment()
        step = moment.step
        while True:
            for part in range(step * self._accumulate, (step + 1) * self._accumulate):
                first = (part * moment.ranks + moment.rank) * self._batch
                yield list(range(first, first + self._batch))
            step += 1
            if self._budget.share(step) >= moment.until - 1e-9:
                return


def stack_chips(chips: Sequence[Chip]) -> Batch:
    """Collate chips into one batch of tensors; images become float32."""
    images = np.stack([chip.image for chip in chips]).astype(np.float32, copy=False)
    return (
        torch.from_numpy(images),
        torch.from_numpy(np.stack([chip.valid for chip in chips])[:, None]),
        torch.from_numpy(np.stack([chip.target for chip in chips])),
        torch.from_numpy(np.stack([chip.labelled for chip in chips])[:, None]),
    )


def stack_placed(chips: Sequence[Chip]) -> PlacedBatch:
    """Collate chips as `stack_chips` does, and their cells."""
    return (*stack_chips(chips), torch.tensor([chip.cell for chip in chips]))


def training_sampler(grounds: Sequence[Ground], options: TrainOptions, changes: AugmentOptions) -> ChipSampler:
    """Where the chips of a run lie, as `options` and `changes` say."""
    return ChipSampler(
        grounds, size=options.chip, seed=options.seed, balance=options.balance, changes=changes,
        cache_bytes=options.cache_mb * 2**20, hard=options.hard,
    )  # fmt: skip


def training_batches(
    sampler: ChipSampler, options: TrainOptions, *, budget: Budget, moment: Callable[[], Moment], ranks: int = 1,
    learners: int = 1,
) -> DataLoader[Chip]:
    """Batches of chips, round after round, as `options` say; `budget` gets to know its most steps."""
    budget.most_steps = most_steps(options, sampler.area_px, ranks=ranks, learners=learners)
    return DataLoader(
        Chips(sampler, cache_bytes=options.cache_mb * 2**20),
        batch_sampler=RoundSampler(budget, options.batch, moment, accumulate=options.accumulate),
        collate_fn=stack_placed,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )


def most_steps(options: TrainOptions, area_px: float, *, ranks: int = 1, learners: int = 1) -> float:
    """Steps in which `options.passes` times the pixels of the ground are seen, and at least `LEAST_STEPS`.

    Learning goes on for ever on the ground that is seen again and again, but not for places that never are. With two
    towns learnt, 54 passes (600 steps, 3 CPU-minutes) gave Jaccards of 0.54 in Nairobi and 0.66 in Zanzibar (three
    later runs of 380 to 500 steps 0.51, and 0.56 to 0.63), 170 passes (1870 steps, 10 CPU-minutes) 0.47 and 0.62; Las
    Vegas went from 0.68 to 0.74. The default of 100 lies between; for three networks, one run each, 75 gave 0.52 and
    0.63 where it gave 0.51 and 0.64, and with scenes brought near `LEAST_STEPS` 0.54 and 0.64 where it gave 0.52 and
    0.65. Each of `learners` networks that learn in turn sees as much. Without end for 0 passes.
    """
    steps = options.passes * steps_of_a_pass(options, area_px, ranks=ranks)
    return learners * max(LEAST_STEPS, math.ceil(steps)) if options.passes else math.inf


def steps_of_a_pass(options: TrainOptions, area_px: float, *, ranks: int = 1) -> float:
    """Steps whose chips have as many pixels as the ground that can be learnt from, `area_px`."""
    return area_px / (options.chip**2 * options.batch * options.accumulate * ranks)


def validation_tiles(
    prepared: Prepared, options: TrainOptions, network: Network, *, rank: int = 0, ranks: int = 1
) -> DataLoader[Chip]:
    """The ground held for validation, tile by tile: this rank's share of it."""
    margin = round_up(max(VALID_HALO_PX, network.crop), network.stride)
    held = HeldTiles(
        prepared.validation, tile=VALID_TILE_PX, halo=min(network.halo, margin), stride=network.stride,
        beyond=round_up(network.crop, network.stride), cache_bytes=options.cache_mb * 2**20, rank=rank, ranks=ranks,
    )  # fmt: skip
    return DataLoader(held, batch_size=1, collate_fn=stack_chips)
