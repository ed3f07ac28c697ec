"""What a training step costs: satseg's default network as it trains, against float32, plain layout and other networks.

A step is a batch of 16 chips of 128 pixels of noise forward, cross-entropy, backward and AdamW, on one thread; reading
and augmentation are `benchmarks.chips`. Operations are those of the forward pass as torch counts them, two for a
multiplication with an addition. What steps are worth is `benchmarks.accuracy`. Run as ``python -m benchmarks.steps``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Goal, Report, interleave, parse, rounded
from benchmarks.trainings import size_of
from satseg.learning.machine import precision_for
from satseg.learning.networks.architectures import new_network
from satseg.learning.networks.network import Network
from satseg.run import RunConfig

ROUNDS, QUICK_ROUNDS = 7, 1
BATCH, SIDE, BANDS = 16, 128, 3
MPIX = BATCH * SIDE**2 / 1e6
OURS = "satseg's default"
NETWORKS: dict[str, dict[str, Any]] = {
    OURS: {}, "the same at full resolution (stem 1)": {"stem": 1}, "UNet on ResNet-18": {"encoder": "resnet18"},
}  # fmt: skip
PLAIN, LAST, HALF, BOTH = "float32", "float32, channels last", "bfloat16", "bfloat16, channels last"
WAYS = {PLAIN: (False, False), LAST: (False, True), HALF: (True, False), BOTH: (True, True)}


def network_of(options: dict[str, Any]) -> Network:
    """Return a new network of satseg with changed options of ``[model]``."""
    model = RunConfig.from_options(options).model
    return new_network(model, bands=BANDS, classes=1, prior=0.1, generator=torch.Generator().manual_seed(0), cards=())


def operations(network: Network) -> float:
    """Return the thousand operations per pixel of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, BANDS, SIDE, SIDE))
    return float(counter.get_total_flops()) / SIDE**2 / 1000


def step_of(options: dict[str, Any], *, half: bool, last: bool) -> Callable[[], None]:
    """Return a function that makes one training step."""
    layout = torch.channels_last if last else torch.contiguous_format
    network = network_of(options).train().to(memory_format=layout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    noise = torch.Generator().manual_seed(0)
    chips = torch.rand(BATCH, BANDS, SIDE, SIDE, generator=noise).contiguous(memory_format=layout)
    truth = (chips[:, :1] > 0.5).float()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(chips)
        binary_cross_entropy_with_logits(logits.float(), truth).backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    torch.set_num_threads(1)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    report = Report(
        "What a training step costs",
        f"Batches of {BATCH} chips of {SIDE} pixels and {BANDS} bands, one thread; one network a step, where several "
        f"learn in turn. {rounded(rounds)}",
        ("network", "parameters", "kFLOP per pixel", "numbers and layout", "CPU-s per MPix", f"CPU time / {PLAIN}",
         f"CPU time / {OURS}"),
        ("torch", "segmentation_models_pytorch"),
    )  # fmt: skip
    cases = {
        (name, way): step_of(changed, half=half, last=last)
        for name, changed in NETWORKS.items()
        for way, (half, last) in WAYS.items()
    }
    costs = interleave({", ".join(case): run for case, run in cases.items()}, rounds=rounds)
    for name, changed in NETWORKS.items():
        network = network_of(changed)
        for way in WAYS:
            case = f"{name}, {way}"
            figures = (costs.ratio(case, f"{name}, {PLAIN}"), costs.ratio(case, f"{OURS}, {BOTH}"))
            size = (size_of(network), f"{operations(network):.0f}")
            report.rows.append((name, *size, way, costs.median(case) / MPIX, *figures))
    for name, limit in ((OURS, 2), ("UNet on ResNet-18", 4)):
        gain = costs.ratio(f"{name}, {PLAIN}", f"{OURS}, {BOTH}").median
        report.goals.append(Goal(f"CPU time of a pixel: {name} in {PLAIN} / {OURS} as it trains", gain, limit))
    if precision_for(torch.device("cpu"), "auto") == "32-true":
        report.notes.append("This processor has no bfloat16: satseg trains in float32 here.")
    report.publish(options, "steps")


if __name__ == "__main__":
    main()
