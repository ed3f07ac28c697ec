"""Windows of 512 pixels: a satseg reader against a plain rasterio loop and TorchGeo's grid sampler.

The plain loop is the floor: open once, read aligned windows, nothing else. TorchGeo yields float32 tensors
one chip at a time, so it is compared with satseg turning its reads into float32 tensors as well, both with
torch's threads as they come and with one. The scene is generated; its noise is set so that deflate with
predictor 2 nearly halves it, as it does real imagery.
Run as ``python -m benchmarks.reading``.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from benchmarks.timing import Costs, Goal, Report, Run, interleave, parse, rounded
from satseg import open_scene

SIDE, QUICK_SIDE, BANDS, WINDOW = 4096, 1024, 8, 512
NOISE_DN = 16.0
"""Standard deviation of the noise: deflate then compresses 1.8 times, as it does real scenes."""
PLAIN, PLAIN_FLOAT = "plain rasterio loop", "plain rasterio to float32 tensor"
OURS, OURS_FLOAT = "satseg reader", "satseg reader to float32 tensor"
LOADER = "rasterio in a torch DataLoader, 0 workers"
TORCHGEO, TORCHGEO_ONE = "TorchGeo GridGeoSampler, as it comes", "TorchGeo GridGeoSampler, one torch thread"


def write_scene(path: Path, side: int, seed: int = 0) -> None:
    """Write a tiled, deflated GeoTIFF of `BANDS` correlated uint16 bands: smooth ground, edges and noise."""
    rng = np.random.default_rng(seed)
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=BANDS, dtype="uint16", crs="EPSG:32633",
        transform=Affine(0.5, 0, 300_000, 0, -0.5, 5_700_000), tiled=True, blockxsize=WINDOW,
        blockysize=WINDOW, compress="deflate", predictor=2, interleave="pixel", NUM_THREADS="ALL_CPUS",
    ) as out:  # fmt: skip
        for window in windows(side):
            fields = rng.uniform(300, 900, (1, WINDOW // 64, WINDOW // 64))
            ground = np.kron(fields, np.ones((BANDS, 64, 64))) * rng.uniform(0.7, 1.3, (BANDS, 1, 1))
            noisy = ground + rng.normal(0, NOISE_DN, ground.shape)
            out.write(noisy.clip(1, 2047).astype(np.uint16), window=window)


def windows(side: int) -> Iterator[Window]:
    """Yield the aligned windows of a square scene, row by row."""
    for row in range(0, side, WINDOW):
        for col in range(0, side, WINDOW):
            yield Window(col, row, WINDOW, WINDOW)


def read_plain(path: Path, places: Sequence[Window]) -> int:
    """Return the sum of the first pixels, so that both loops can be seen to read the same."""
    with rasterio.open(path) as dataset:
        return sum(int(dataset.read(window=place)[:, 0, 0].sum()) for place in places)


def read_ours(path: Path, places: Sequence[Window]) -> int:
    """Return the same sum, through satseg."""
    with open_scene(path).reader() as reader:
        return sum(int(reader.read(place).data[:, 0, 0].sum()) for place in places)


def tensor_cases(path: Path, places: Sequence[Window]) -> dict[str, Run]:
    """Return the cases that end in float32 tensors; TorchGeo only where it is installed."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def plain() -> None:
        with rasterio.open(path) as dataset:
            for place in places:
                torch.from_numpy(dataset.read(window=place).astype(np.float32))

    def ours() -> None:
        with open_scene(path).reader() as reader:
            for place in places:
                torch.from_numpy(reader.read(place).data.astype(np.float32))

    class Chips(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.dataset = rasterio.open(path)

        def __len__(self) -> int:
            return len(places)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.from_numpy(self.dataset.read(window=places[index]).astype(np.float32))

    def loader() -> None:
        for _ in torch.utils.data.DataLoader(Chips(), batch_size=1):
            pass

    cases: dict[str, Run] = {PLAIN_FLOAT: plain, OURS_FLOAT: ours, LOADER: loader}
    if importlib.util.find_spec("torchgeo"):
        cases[TORCHGEO] = torchgeo_case(path, len(places), threads)
        cases[TORCHGEO_ONE] = torchgeo_case(path, len(places), 1)
    return cases


def torchgeo_case(path: Path, count: int, threads: int) -> Run:
    """Return a pass over the scene with TorchGeo's dataset, grid sampler and collation, no workers."""
    import torch
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    def run() -> None:
        # Made anew: it keeps files open and GDAL their decoded blocks, so a second pass decodes nothing.
        torch.set_num_threads(threads)
        RasterDataset._cached_load_warp_file.cache_clear()
        dataset = RasterDataset(os.fspath(path))
        sampler = GridGeoSampler(dataset, size=WINDOW, stride=WINDOW)
        loader = torch.utils.data.DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=stack_samples)
        seen = sum(tuple(sample["image"].shape) == (1, BANDS, WINDOW, WINDOW) for sample in loader)
        if seen != count:
            raise RuntimeError(f"TorchGeo gave {seen} chips of the size asked for, not {count}")
        torch.set_num_threads(1)

    return run


def measured(side: int, rounds: int) -> tuple[Costs, str]:
    """Return the costs of every case on a fresh scene, and what was read, in words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        write_scene(path, side)
        places = list(windows(side))
        shrink = side * side * BANDS * 2 / path.stat().st_size
        if read_plain(path, places) != read_ours(path, places):
            raise RuntimeError("satseg and rasterio read different pixels")
        cases: dict[str, Run] = {
            PLAIN: lambda: read_plain(path, places),
            OURS: lambda: read_ours(path, places),
            **tensor_cases(path, places),
        }
        costs = interleave(cases, rounds=rounds)
    return costs, (
        f"{side} x {side} pixels, {BANDS} bands uint16, tiled {WINDOW}, deflate with predictor 2 (compresses "
        f"{shrink:.2f} times), warm; every case opens the scene and reads its {len(places)} aligned windows, "
        f"one thread. {rounded(rounds)}"
    )


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    side, rounds = (QUICK_SIDE, 3) if options.quick else (SIDE, 9)
    warnings.filterwarnings("ignore", module="torchgeo|kornia|lightning|lightly|google")
    costs, method = measured(side, rounds)
    header = ("case", "CPU ms per window", "CPU time / plain loop", "CPU time / satseg, same result")
    report = Report("Reading aligned windows", method, header, ("torch", "torchgeo"))
    for name in (PLAIN, OURS, PLAIN_FLOAT, OURS_FLOAT, LOADER, TORCHGEO, TORCHGEO_ONE):
        if name not in costs.runs:
            report.rows.append((name, "torchgeo not installed (pip install satseg[bench])", "", ""))
            continue
        same = OURS if name in (PLAIN, OURS) else OURS_FLOAT
        milliseconds = 1000 * costs.median(name) / (side // WINDOW) ** 2
        report.rows.append((name, milliseconds, costs.ratio(name, PLAIN), costs.ratio(name, same)))
    report.goals.append(Goal("speed of satseg / plain loop", costs.ratio(PLAIN, OURS).median, 0.9))
    if TORCHGEO in costs.runs:
        value = costs.ratio(TORCHGEO, OURS_FLOAT).median
        report.goals.append(Goal(f"speed of satseg / {TORCHGEO}, both to float32 tensors", value, 3))
        report.notes.append(
            "As it comes, TorchGeo lets torch spread cast and collation over all cores, whose waiting counts "
            f"as CPU time. With one torch thread satseg is {costs.ratio(TORCHGEO_ONE, OURS_FLOAT)} times as "
            f"fast, and the plain loop is {costs.ratio(TORCHGEO_ONE, PLAIN_FLOAT)} times: no reader of "
            "deflated blocks can be much faster than that loop."
        )
    report.publish(options, "reading")


if __name__ == "__main__":
    main()
