"""What a training would do, before it does: data, classes, split, network, memory.

Nothing of it is measured on pixels: shares come from the polygons (`shares`), what a step keeps for its gradients
from a pass of the network over tensors that have a shape and no memory, and its time from noise (`step_time`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from satseg.crs import describe
from satseg.learning.ground.grounds import Prepared
from satseg.learning.ground.sampling import ChipSampler
from satseg.learning.ground.shares import chip_shares, class_areas
from satseg.learning.ground.split import Ground
from satseg.learning.ground.split_map import LEGEND, split_sheet, split_text
from satseg.learning.machine import resident_bytes
from satseg.learning.networks.network import Network
from satseg.learning.training.feed import VALID_TILE_PX, most_steps, steps_of_a_pass
from satseg.learning.training.learner import Learner
from satseg.learning.training.ranks import given_ranks
from satseg.learning.training.step_time import step_seconds
from satseg.preview import encode_png
from satseg.run import RunConfig
from satseg.vector.styles import class_colors

BYTES_PER_WEIGHT = 16
"""Weight, gradient and the two moments of AdamW or Nadam, float32 each."""
MOST_TO_READ_PX = 64 * 2**20
"""Scenes of more pixels are mapped without their image."""


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """One scene: its size at the working resolution, and how it is split."""

    name: str
    role: str
    height: int
    width: int
    gsd_m: float | None
    crs: str | None
    held_blocks: int
    held_share: float
    gap: int


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """One class: polygons on the ground, and shares (0..1) of area and of chips.

    `area_share` is of all labelled ground; `chip_share` of chips that hold some of the class; `held_share` is
    how much of the class's area is kept for validation, None for a class without area.
    """

    name: str
    color: str
    features: int
    held_features: int
    area_share: float
    chip_share: float
    held_share: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a training with these data and options would start with."""

    scenes: tuple[ScenePlan, ...]
    classes: tuple[ClassPlan, ...]
    bands: tuple[str, ...]
    gsd_m: float | None
    chip: int
    batch: int
    accumulate: int
    parameters: int
    stride: int
    halo: int
    loss: str
    hard: float
    device: str
    steps: int | None
    minutes: float | None
    pass_steps: float
    """Steps that see as much as there is to learn from."""
    most_steps: int | None
    host_bytes: int
    device_bytes: int
    networks: int
    """That are learnt in turn, and answer as one."""
    seconds: float | None
    """About what the network's steps take, where those are the budget."""
    warnings: tuple[str, ...]
    prepared: Prepared = field(repr=False, compare=False)

    @property
    def pixels_per_step(self) -> int:
        """Pixels of the batches of one step."""
        return self.batch * self.accumulate * self.chip**2

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        names = [name for name in self.__slots__ if name not in ("prepared", "scenes", "classes")]
        return {
            "scenes": [asdict(scene) for scene in self.scenes],
            "classes": [asdict(item) for item in self.classes],
            **{name: getattr(self, name) for name in names},
            "pixels_per_step": self.pixels_per_step,
        }

    def to_text(self) -> str:
        """Return the plan as lines for a terminal, with a map of each scene."""
        return "\n".join([*_facts(self), "", *_class_table(self.classes), "", *_maps(self)])

    def picture(self) -> bytes:
        """Return a PNG of the split: every scene with its classes, what is held, and the gap."""
        colors = {item.name: item.color for item in self.classes}
        grounds, validation = self.prepared.grounds, self.prepared.validation
        size = sum(scene.height * scene.width for scene in self.scenes)
        return encode_png(split_sheet(grounds, validation, colors, image=size <= MOST_TO_READ_PX))


def plan_of(prepared: Prepared, learner: Learner, run: RunConfig, *, timed: bool = False) -> Plan:
    """Return the plan of a run that is ready to start; when `timed`, a step is tried, to know what all will take."""
    network, train, sampler = learner.network, run.train, run_sampler(prepared.grounds, learner)
    kept = memory_bytes(
        network, batch=train.batch, bands=len(prepared.bands), classes=len(prepared.classes), chip=train.chip
    )
    cached = _cache_bytes(prepared, train.cache_mb * 2**20) * (1 + train.workers)
    on_cpu = learner.target.type == "cpu"
    return Plan(
        scenes=_scene_plans(prepared),
        classes=_class_plans(prepared, sampler),
        bands=prepared.bands,
        gsd_m=prepared.gsd_m,
        chip=train.chip,
        batch=train.batch,
        accumulate=train.accumulate,
        parameters=_parameters(network),
        stride=network.stride,
        halo=network.halo,
        loss=train.loss,
        hard=train.hard,
        device=str(learner.target),
        steps=train.steps,
        minutes=train.minutes,
        pass_steps=steps_of_a_pass(train, sampler.area_px, ranks=_ranks(learner)),
        most_steps=_most_steps(sampler, learner),
        host_bytes=resident_bytes() + cached + (kept if on_cpu else 0),
        device_bytes=kept,
        networks=network.learners,
        seconds=_seconds(learner, bands=len(prepared.bands), kept=kept) if timed else None,
        warnings=prepared.warnings,
        prepared=prepared,
    )


def run_sampler(grounds: Sequence[Ground], learner: Learner, *, size: int | None = None) -> ChipSampler:
    """Return what says where the chips of a run lie; of `size` pixels a side when that is given."""
    train = learner.options
    return ChipSampler(
        grounds, size=size or train.chip, seed=train.seed, balance=train.balance, changes=learner.changes
    )


def _seconds(learner: Learner, *, bands: int, kept: int) -> float | None:
    """What all steps take, where there are so many and memory for one; see `step_seconds`."""
    steps = learner.options.steps
    one = None if steps is None else step_seconds(learner, bands=bands, memory=kept)
    return None if one is None or steps is None else steps * one


def memory_bytes(network: Network, *, batch: int, bands: int, classes: int, chip: int) -> int:
    """Bytes that training takes where it computes, in float32: the larger of a step and of a tile of validation.

    A step keeps what its gradients need, and for a moment twice more the largest of it; a tile takes a few of
    the largest layer, its scores and the bins that they are counted in. Weights come on top of either.
    """
    kept = [size / 2 for size in _kept_sizes(network, (2, bands, chip, chip))]
    largest = max(kept, default=0)
    step = batch * (sum(kept) + 2 * largest + 2 * 4 * bands * chip**2)
    tile = (VALID_TILE_PX + 2 * network.halo) ** 2
    validation = tile * (4 * largest / chip**2 + 8 * bands + 20 * classes)
    return BYTES_PER_WEIGHT * _parameters(network) + round(max(step, validation))


def _parameters(network: Network) -> int:
    return sum(weight.numel() for weight in network.parameters())


def _kept_sizes(network: Network, shape: tuple[int, int, int, int]) -> list[int]:
    """Bytes of each piece of memory that a training pass over `shape` keeps for its gradients, weights left out."""
    ghost = copy.deepcopy(network).to("meta").train()
    weights = set(map(_storage, ghost.state_dict().values()))
    kept: dict[int, int] = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        kept[_storage(saved)] = saved.untyped_storage().nbytes()
        return saved

    with saved_tensors_hooks(note, lambda saved: saved):
        logits: torch.Tensor = ghost(torch.empty(shape, device="meta"))
    # While the answer lives, so does what is kept for it: no two pieces have had one number.
    kept[_storage(logits)] = logits.untyped_storage().nbytes()
    return [size for storage, size in kept.items() if storage not in weights]


def _storage(tensor: torch.Tensor) -> int:
    """Number of the memory that `tensor` lies in: what views share, even where there are no addresses."""
    number: int = tensor.untyped_storage()._cdata
    return number


def percent(share: float) -> str:
    """`share` (0..1) in percent with three significant digits, however small: 0.00412 %."""
    if share == 0:
        return "0 %"
    digits = min(12, max(0, 2 - math.floor(math.log10(abs(100 * share)))))
    return f"{100 * share:.{digits}f} %"


def _scene_plans(prepared: Prepared) -> tuple[ScenePlan, ...]:
    plans = [_scene_plan(ground, "training") for ground in prepared.grounds]
    return (*plans, *(_scene_plan(ground, "validation") for ground in prepared.apart))


def _scene_plan(ground: Ground, role: str) -> ScenePlan:
    grid = ground.scene.grid
    held = 1.0 if role == "validation" else sum(w.height * w.width for w in ground.held) / (grid.height * grid.width)
    placed = grid.crs is not None
    return ScenePlan(
        name=ground.scene.name,
        role=role,
        height=grid.height,
        width=grid.width,
        gsd_m=grid.gsd_m() if placed else None,
        crs=describe(grid.crs) if placed else None,
        held_blocks=len(ground.held),
        held_share=held,
        gap=ground.gap,
    )


def _class_plans(prepared: Prepared, sampler: ChipSampler) -> tuple[ClassPlan, ...]:
    names = [item.name for item in prepared.classes]
    whole = [class_areas(ground, held=False) for ground in prepared.grounds]
    other = [class_areas(ground, held=True) for ground in prepared.validation]
    labelled = sum(area for area, _, _ in whole) or 1.0
    areas, held = (np.sum([of_class for _, of_class, _ in part], axis=0) for part in (whole, other))
    features, held_features = (np.sum([counts for _, _, counts in part], axis=0) for part in (whole, other))
    total = areas + held if prepared.apart else areas
    chips = chip_shares(prepared.grounds, sampler)
    colors = class_colors(names, {item.name: item.color for item in prepared.classes if item.color})
    return tuple(
        ClassPlan(
            name=name,
            color=colors[name],
            features=int(features[k]),
            held_features=int(held_features[k]),
            area_share=float(areas[k] / labelled),
            chip_share=float(chips[k]),
            held_share=float(held[k] / total[k]) if total[k] else None,
        )
        for k, name in enumerate(names)
    )


def _most_steps(sampler: ChipSampler, learner: Learner) -> int | None:
    """Steps that end a run of minutes before its time, if any do."""
    if learner.options.steps is not None or not learner.options.passes:
        return None
    learners = learner.network.learners
    return int(most_steps(learner.options, sampler.area_px, ranks=_ranks(learner), learners=learners))


def _ranks(learner: Learner) -> int:
    return learner.options.devices or given_ranks().count


def _cache_bytes(prepared: Prepared, room: int) -> int:
    """Decoded blocks that are kept: at most `room` for chips, and again for validation."""
    grounds = {id(ground): ground for ground in (*prepared.grounds, *prepared.validation)}.values()
    sizes = []
    for ground in grounds:
        pixel = len(ground.scene.bands) * ground.scene.dtype.itemsize + len(ground.labels.classes) + 2
        sizes.append(ground.scene.grid.height * ground.scene.grid.width * pixel)
    return min(room, sum(sizes)) + min(room, sum(sizes))


def _facts(plan: Plan) -> list[str]:
    budget = f"{plan.steps:,} steps" if plan.steps is not None else f"{plan.minutes:g} minutes"
    budget += f", {plan.most_steps:,} steps at most," if plan.most_steps is not None else ""
    budget += f", about {_time(plan.seconds)} for the network," if plan.seconds is not None else ""
    chips = plan.batch * plan.accumulate
    passes = max(1, round(plan.pass_steps))
    memory = f"about {_size(plan.host_bytes)}"
    if plan.device != "cpu":
        memory += f", and {_size(plan.device_bytes)} on {plan.device}"
    beside = f"opening the data, {'the last validation' if plan.steps is None else 'its chips, validations'}"
    resolution = "pixels as they are" if plan.gsd_m is None else f"{plan.gsd_m:.4g} m"
    rows = [
        ("bands", f"{len(plan.bands)}: {', '.join(plan.bands)}"),
        ("resolution", resolution),
        ("chips", f"{plan.chip} x {plan.chip} pixels, {chips} a step: {plan.pixels_per_step:,} pixels a step"),
        *([("hard ground", hard_text(plan))] if plan.hard else []),
        ("network", f"{network_text(plan)}, stride {plan.stride}, reach {plan.halo} pixels"),
        ("loss", plan.loss),
        ("memory", memory),
        ("budget", f"{budget} on {plan.device}; {passes:,} step{'s' * (passes != 1)} see as much as the ground has"),
        ("beside", f"{beside} and measuring the halo take their time too"),
    ]
    return [*map(_scene_line, plan.scenes), *(f"{name:<11} {text}" for name, text in rows)]


def network_text(plan: Plan) -> str:
    """Say how large the network is, and of how many it is made."""
    several = f" in {plan.networks} networks that learn in turn and answer as one" if plan.networks > 1 else ""
    return f"{plan.parameters:,} parameters{several}"


def hard_text(plan: Plan) -> str:
    """Say in a line which chips go to hard ground."""
    return f"{percent(plan.hard)} of the chips around no feature lie where errors were, from the second round on"


def _scene_line(scene: ScenePlan) -> str:
    place = f"{scene.gsd_m:.4g} m, {scene.crs}" if scene.gsd_m is not None else "no CRS"
    split = (
        "all of it held"
        if scene.role == "validation"
        else f"{scene.held_blocks} blocks held ({percent(scene.held_share)}), gap {scene.gap} pixels"
        if scene.held_blocks
        else "nothing held"
    )
    return f"{scene.role:<11} {scene.name}: {scene.height} x {scene.width} pixels, {place}; {split}"


def class_rows(classes: Sequence[ClassPlan]) -> list[tuple[str, ...]]:
    """Return a table of the classes as text: its head and a row for each."""
    rows: list[tuple[str, ...]] = [("class", "features", "of them held", "of the ground", "in chips", "area held")]
    for item in classes:
        held = "none" if item.held_share is None else percent(item.held_share)
        counts = (f"{item.features:,}", f"{item.held_features:,}")
        rows.append((item.name, *counts, percent(item.area_share), percent(item.chip_share), held))
    return rows


def _class_table(classes: Sequence[ClassPlan]) -> list[str]:
    rows = class_rows(classes)
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([name.ljust(first), *(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))])
        for name, *cells in rows
    ]


def _maps(plan: Plan) -> list[str]:
    lines = [LEGEND]
    drawn = [(ground, False) for ground in plan.prepared.grounds]
    drawn += [(ground, True) for ground in plan.prepared.apart]
    for ground, validation in drawn:
        lines += ["", ground.scene.name, split_text(ground, validation=validation)]
    return lines


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{max(1, math.ceil(seconds))} seconds"
