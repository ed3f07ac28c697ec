"""Reading a scene: windows of 512 pixels against rasterio and TorchGeo, and tiles that overlap.

The plain loop is the floor: open once, read aligned windows, nothing else. TorchGeo yields float32 tensors
one chip at a time, so it is compared with satseg turning its reads into float32 tensors as well, both with
torch's threads as they come and with one. The scene is generated; its noise is set so that deflate with
predictor 2 nearly halves it, as it does real imagery.

Tiles whose halos overlap and which lie across blocks are put together by `RowReader`, and compared with one
plain pass over the aligned blocks, the least that anybody must decode, and with the tiles read as windows by
rasterio: on a scene whose rows of blocks GDAL's cache holds, and on a wide one whose rows it does not.
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
from satseg.imagery.rows import RowReader

SIDE, QUICK_SIDE, BANDS, WINDOW = 4096, 1024, 8, 512
NOISE_DN = 16.0
"""Standard deviation of the noise: deflate then compresses 1.8 times, as it does real scenes."""
PLAIN, PLAIN_FLOAT = "plain rasterio loop", "plain rasterio to float32 tensor"
OURS, OURS_FLOAT = "satseg reader", "satseg reader to float32 tensor"
LOADER = "rasterio in a torch DataLoader, 0 workers"
KEPT, HALO = 500, 100
"""Tiles that lie across blocks: the side that is kept, and what is read around it."""
WIDE, WIDE_ROWS = 66 * WINDOW, 3 * WINDOW
"""A row of blocks of 277 MB; the cache is 256 MiB, as satseg sets it."""
STRIPS, TILES = "satseg RowReader, strips only", "satseg RowReader, tiles put together"
PLAIN_ROWS = "plain rasterio loop, rows of blocks kept"
PLAIN_TILES = "rasterio, every tile a window"
TORCHGEO, TORCHGEO_ONE = "TorchGeo GridGeoSampler, as it comes", "TorchGeo GridGeoSampler, one torch thread"


def write_scene(path: Path, side: int, seed: int = 0, *, width: int | None = None) -> None:
    """Write a tiled, deflated GeoTIFF of `BANDS` correlated uint16 bands: smooth ground, edges and noise.

    It is `side` pixels high, and as wide when `width` is left out.
    """
    rng = np.random.default_rng(seed)
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=width or side, count=BANDS, dtype="uint16", crs="EPSG:32633",
        transform=Affine(0.5, 0, 300_000, 0, -0.5, 5_700_000), tiled=True, blockxsize=WINDOW,
        blockysize=WINDOW, compress="deflate", predictor=2, interleave="pixel", NUM_THREADS="ALL_CPUS",
    ) as out:  # fmt: skip
        for window in windows(side, width):
            fields = rng.uniform(300, 900, (1, WINDOW // 64, WINDOW // 64))
            ground = np.kron(fields, np.ones((BANDS, 64, 64))) * rng.uniform(0.7, 1.3, (BANDS, 1, 1))
            noisy = ground + rng.normal(0, NOISE_DN, ground.shape)
            out.write(noisy.clip(1, 2047).astype(np.uint16), window=window)


def windows(side: int, width: int | None = None) -> Iterator[Window]:
    """Yield the aligned windows of a scene, row by row; square when `width` is left out."""
    for row in range(0, side, WINDOW):
        for col in range(0, width or side, WINDOW):
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


def tile_windows(height: int, width: int) -> Iterator[list[Window]]:
    """Yield the tiles' windows, halos included, row by row; they overhang the scene."""
    side = KEPT + 2 * HALO
    for row in range(0, height, KEPT):
        yield [Window(col - HALO, row - HALO, side, side) for col in range(0, width, KEPT)]


def read_plain_rows(path: Path) -> None:
    """Read the aligned windows into arrays of a row of blocks: what must be written to have rows at all."""
    with rasterio.open(path) as dataset:
        for row in range(0, dataset.height, WINDOW):
            rows = np.empty((BANDS, WINDOW, dataset.width), np.uint16)
            for col in range(0, dataset.width, WINDOW):
                dataset.read(window=Window(col, row, WINDOW, WINDOW), out=rows[:, :, col : col + WINDOW])


def read_plain_tiles(path: Path) -> int:
    """Return the sum of the first pixels that tiles keep; each read as a window, clipped to the scene."""
    total = 0
    with rasterio.open(path) as dataset:
        whole = Window(0, 0, dataset.width, dataset.height)
        for tiles in tile_windows(dataset.height, dataset.width):
            for tile in tiles:
                inside = tile.intersection(whole)
                row, col = tile.row_off + HALO - inside.row_off, tile.col_off + HALO - inside.col_off
                total += int(dataset.read(window=inside)[:, row, col].sum())
    return total


def read_rows(path: Path, *, tiles: bool) -> int:
    """Return the same sum through a RowReader with one thread; without putting `tiles` together it is 0."""
    scene = open_scene(path)
    rows, cols = range(scene.grid.height), range(scene.grid.width)
    out = np.empty((BANDS, KEPT + 2 * HALO, KEPT + 2 * HALO), np.uint16)
    valid, total = np.empty(out.shape[1:], bool), 0
    with RowReader(scene, cols=cols, rows=rows) as reader:
        for row in tile_windows(len(rows), len(cols)):
            view = reader.window(row[0].row_off, row[0].row_off + row[0].height)
            for tile in row if tiles else ():
                view.copy_into(out, valid, tile)
                total += int(out[:, HALO, HALO].sum())
    return total


def overlapping(height: int, width: int, rounds: int) -> Costs:
    """Return the costs of overlapping tiles of a fresh scene, and of one pass over its aligned windows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        write_scene(path, height, width=width)
        places = list(windows(height, width))
        if read_plain_tiles(path) != read_rows(path, tiles=True):
            raise RuntimeError("satseg and rasterio read different tiles")
        cases: dict[str, Run] = {
            PLAIN: lambda: read_plain(path, places),
            PLAIN_ROWS: lambda: read_plain_rows(path),
            STRIPS: lambda: read_rows(path, tiles=False),
            TILES: lambda: read_rows(path, tiles=True),
            PLAIN_TILES: lambda: read_plain_tiles(path),
        }
        return interleave(cases, rounds=rounds)


def report_tiles(side: int, wide: tuple[int, int], rounds: int) -> Report:
    """Measure overlapping tiles on a square scene and on one of `wide` (height, width) pixels."""
    height, width = wide
    copied = ((KEPT + 2 * HALO) / KEPT) ** 2
    report = Report(
        "Reading overlapping tiles",
        f"Tiles of {KEPT} pixels with a halo of {HALO} on {BANDS} bands uint16, tiled {WINDOW}, deflate with "
        f"predictor 2, warm, one reading thread. The square scene has {side} x {side} pixels, and GDAL's cache "
        f"({os.environ['GDAL_CACHEMAX']} MiB) holds its rows of blocks; the wide one has {height} x {width}, a "
        f"row of blocks of {width * WINDOW * BANDS * 2 / 2**20:.0f} MiB. The plain loop reads each aligned "
        f"block once into memory that is dropped at once; tiles put together are {copied:.2f} times its pixels, "
        f"copied from the strips with their validity. {rounded(rounds)} {max(3, rounds // 3)} rounds on the "
        "wide scene.",
        ("scene", "case", "CPU s", "CPU time / plain loop", "CPU time / plain loop, rows kept"),
    )
    for name, size, count in (("square", (side, side), rounds), ("wide", wide, max(3, rounds // 3))):
        costs = overlapping(*size, rounds=count)
        for case in (PLAIN, PLAIN_ROWS, STRIPS, TILES, PLAIN_TILES):
            ratios = costs.ratio(case, PLAIN), costs.ratio(case, PLAIN_ROWS)
            report.rows.append((name, case, costs.median(case), *ratios))
        for case in (STRIPS, TILES):
            what = f"{name} scene: CPU time of {case} / {PLAIN}"
            report.goals.append(Goal(what, costs.ratio(case, PLAIN).median, 1.1, at_most=True))
        report.notes.append(
            f"{name} scene: every tile a window of rasterio's costs {costs.ratio(PLAIN_TILES, TILES)} times "
            "the CPU time of RowReader's tiles."
        )
    return report


def report_windows(quick: bool) -> Report:
    """Measure aligned windows; small and few when `quick`."""
    side, rounds = (QUICK_SIDE, 3) if quick else (SIDE, 9)
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
    return report


def main() -> None:
    """Measure and print."""
    part = {"choices": ("windows", "tiles"), "help": "measure only one of the two reports"}
    options = parse(__doc__, only=part)
    if options.only != "tiles":
        report_windows(options.quick).publish(options, "reading")
    if options.only != "windows":
        size = (QUICK_SIDE, (WINDOW, 2 * QUICK_SIDE), 3) if options.quick else (SIDE, (WIDE_ROWS, WIDE), 9)
        report_tiles(*size).publish(options, "tiles")


if __name__ == "__main__":
    main()
