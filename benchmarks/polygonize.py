"""Outlines of a label raster: satseg's tracer against `rasterio.features.shapes`, like for like.

Dense land cover is the hard case: ten classes, each pixel of the class whose smooth noise is largest,
some 400 000 polygons of 44 vertices on 10 000 x 10 000 pixels. The noise is made on a torus and laid
out side by side without seams, so that any size is quick to make. Sparse buildings are the usual case.
Arrays are compared with the dictionaries that `shapes` yields, both dropped as they come; shapely
polygons with `shapely.geometry.shape` of those, both kept. The largest raster is read from a file, each
way in a process of its own. Run as ``python -m benchmarks.polygonize``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.features import shapes
from rasterio.windows import Window

from benchmarks.memory import ROOT, peak_bytes
from benchmarks.timing import Costs, Goal, Report, Run, interleave, parse, rounded
from satseg.vector.trace import Outlines, OutlineTracer

TORUS, CLASSES, REACH = 2500, 10, 20
SMALL, LARGE, LARGEST = 2000, 10_000, 20_000
QUICK = (500, 1000, 2000)
STRIP = 256
BUILDINGS_PER_PX = 4.5e-4
CACHE_MB = 64
"""For GDAL's decoded blocks, in every process: its default, a share of the machine's memory, would hold the file."""
BARE, SHAPE = "shapes, results dropped", "shapes + shapely.geometry.shape"
ARRAYS, POLYGONS = "satseg, arrays dropped", "satseg + shapely polygons"
Found = tuple[int, float]
"""Number of polygons and their area in pixels, NaN where it was not asked for."""


def smooth_noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return noise on a torus, twice the mean over squares of `REACH` pixels, with variance 1."""
    field = rng.random((side, side))
    for axis in (0, 1, 0, 1):
        start = np.take(field, range(REACH), axis=axis)
        total = np.cumsum(np.concatenate([field, start], axis=axis), axis=axis)
        field = np.take(total, range(REACH, side + REACH), axis=axis) - np.take(total, range(side), axis=axis)
    return ((field - field.mean()) / field.std()).astype(np.float32)


def land_cover(height: int, width: int) -> np.ndarray:
    """Return classes 1 to 10, (height, width) uint8; the same pattern over and over beyond `TORUS`."""
    rng, side = np.random.default_rng(0), min(TORUS, max(height, width))
    best, classes = smooth_noise(rng, side), np.ones((side, side), np.uint8)
    for number in range(2, CLASSES + 1):
        field = smooth_noise(rng, side)
        classes[field > best] = number
        best = np.maximum(best, field)
    return np.tile(classes, (-(-height // side), -(-width // side)))[:height, :width]


def buildings(height: int, width: int) -> np.ndarray:
    """Return 1 where there is a building, (height, width) uint8: rectangles, some with a corner missing."""
    rng, mask = np.random.default_rng(0), np.zeros((height, width), np.uint8)
    for _ in range(int(height * width * BUILDINGS_PER_PX)):
        row, col = rng.integers(0, (height, width))
        tall, wide = rng.integers(8, 25, 2)
        mask[row : row + tall, col : col + wide] = 1
        if rng.random() < 0.5:
            mask[row : row + tall // 2, col : col + wide // 2] = 0
    return mask


def traced(strips: Iterator[np.ndarray], width: int) -> Iterator[Outlines]:
    """Yield the outlines of each strip."""
    tracer = OutlineTracer(width)
    for strip in strips:
        yield tracer.feed(strip)
    yield tracer.finish()


def strips_of(raster: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the raster some rows at a time."""
    return (raster[top : top + STRIP] for top in range(0, len(raster), STRIP))


def strips_read(path: str) -> Iterator[np.ndarray]:
    """Yield the rows of a file some at a time."""
    with rasterio.open(path) as dataset:
        for top in range(0, dataset.height, STRIP):
            yield dataset.read(1, window=Window(0, top, dataset.width, min(STRIP, dataset.height - top)))


def run_bare(raster: np.ndarray) -> Found:
    """Polygonize with `shapes` alone."""
    return sum(1 for _ in shapes(raster, mask=raster > 0)), float("nan")


def run_shape(raster: np.ndarray) -> Found:
    """Polygonize with `shapes` and make shapely polygons."""
    polygons = [shapely.geometry.shape(outline) for outline, _ in shapes(raster, mask=raster > 0)]
    return len(polygons), float(shapely.area(polygons).sum())


def run_arrays(raster: np.ndarray) -> Found:
    """Polygonize with satseg."""
    found = [(len(part.values), int(part.pixels.sum())) for part in traced(strips_of(raster), raster.shape[1])]
    count, area = np.sum(found, axis=0)
    return int(count), float(area)


def run_polygons(raster: np.ndarray) -> Found:
    """Polygonize with satseg and make shapely polygons."""
    parts = [part.geometries() for part in traced(strips_of(raster), raster.shape[1])]
    polygons = np.concatenate(parts)
    return len(polygons), float(shapely.area(polygons).sum())


RUNS = {BARE: run_bare, SHAPE: run_shape, ARRAYS: run_arrays, POLYGONS: run_polygons}


def compared(raster: np.ndarray, rounds: int) -> tuple[Costs, Found]:
    """Return what each way costs on a raster, and what all of them found."""
    found: dict[str, Found] = {}

    def noted(case: str) -> None:
        found[case] = RUNS[case](raster)

    cases: dict[str, Run] = {case: partial(noted, case) for case in RUNS}
    costs = interleave(cases, rounds=rounds)
    if len({count for count, _ in found.values()}) > 1 or found[POLYGONS][1] != found[SHAPE][1]:
        raise RuntimeError(f"the ways disagree: {found}")
    return costs, found[POLYGONS]


def peak() -> int:
    """Return the largest resident size of this program so far, not of the one that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_bytes()
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def child(case: str, path: str, repeats: int) -> None:
    """Outline a file in this process some times; print polygons, CPU-seconds, and bytes at the start and most."""
    OutlineTracer(1).feed(np.ones((1, 1), np.uint8))  # compiled, or read from its cache, before the start
    start, seconds, count = peak(), [], 0
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        for _ in range(repeats):
            begun = time.process_time()
            with rasterio.open(path) as dataset:
                if case == BARE:  # of the band and not of an array, so that GDAL reads it row by row
                    count = sum(1 for _ in shapes(rasterio.band(dataset, 1)))
                else:
                    count = sum(len(part.values) for part in traced(strips_read(path), dataset.width))
            seconds.append(time.process_time() - begun)
    print(json.dumps({"count": count, "cpu": float(np.median(seconds)), "start": start, "peak": peak()}))


def measured(case: str, path: Path, repeats: int = 1) -> dict[str, float]:
    """Return what `child` prints."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.polygonize", "--child", case, str(path), str(repeats)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def write(path: Path, side: int) -> None:
    """Write land cover of a size, strip by strip."""
    period = land_cover(min(side, TORUS), side)
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=1, dtype="uint8", compress="deflate", zlevel=1,
        tiled=False, blockysize=STRIP, transform=Affine.scale(0.5, -0.5),
    ) as out:  # fmt: skip
        for top in range(0, side, STRIP):
            rows = np.arange(top, min(side, top + STRIP)) % len(period)
            out.write(period[rows], 1, window=Window(0, top, side, len(rows)))


def add_ratios(report: Report, name: str, raster: np.ndarray, rounds: int) -> tuple[float, float]:
    """Add the rows of one raster; return the ratios for arrays and for polygons."""
    costs, (count, _) = compared(raster, rounds)
    for case, rival in ((BARE, ARRAYS), (SHAPE, POLYGONS), (ARRAYS, ARRAYS), (POLYGONS, POLYGONS)):
        ratio = "" if case == rival else costs.ratio(case, rival)
        rate = raster.size / 1e6 / costs.median(case)
        report.rows.append((f"{name}, {raster.shape[0]} px", count, case, costs.median(case), rate, ratio))
    return costs.ratio(BARE, ARRAYS).median, costs.ratio(SHAPE, POLYGONS).median


def add_files(report: Report, small: int, largest: int, repeats: int) -> None:
    """Add what outlining files costs, and the goals about size."""
    with tempfile.TemporaryDirectory() as name:
        paths = {side: Path(name) / f"{side}.tif" for side in (small, largest)}
        for side, path in paths.items():
            write(path, side)
        # The rate of the small file is taken before and after, for the machine's speed may change meanwhile.
        before = measured(ARRAYS, paths[small], 20)
        ours = [measured(ARRAYS, paths[largest]) for _ in range(repeats)]
        after = measured(ARRAYS, paths[small], 20)
        rival = measured(BARE, paths[largest])
    if {run["count"] for run in ours} != {rival["count"]}:
        raise RuntimeError(f"satseg and shapes disagree: {ours} and {rival}")
    cpu = float(np.median([run["cpu"] for run in ours]))
    rate, small_rate = (
        side**2 / 1e6 / seconds for side, seconds in ((largest, cpu), (small, (before["cpu"] + after["cpu"]) / 2))
    )
    above = max(run["peak"] - run["start"] for run in ours)
    rival_above = rival["peak"] - rival["start"]
    place = f"land cover from a file, {largest} px"
    for case, seconds, memory in ((BARE, rival["cpu"], rival_above), (ARRAYS, cpu, above)):
        label = f"{case}; {memory / 1e6:.0f} MB above the start"
        ratio = rival["cpu"] / cpu if case == BARE else ""
        report.rows.append((place, int(rival["count"]), label, seconds, largest**2 / 1e6 / seconds, ratio))
    report.goals.append(Goal(f"satseg from a file, rate at {largest} px / {small} px", rate / small_rate, 0.8))
    if largest == LARGEST:  # of a small raster both take little more than buffers
        share = Goal(
            f"memory above the start at {largest} px, satseg / shapes", above / rival_above, 0.25, at_most=True
        )
        report.goals.append(share)


def main() -> None:
    """Measure and print."""
    options = parse(__doc__, child={"nargs": 3, "metavar": ("CASE", "FILE", "REPEATS")})
    if options.child:
        case, path, repeats = options.child
        child(case, path, int(repeats))
        return
    report_all(options)


def report_all(options: argparse.Namespace) -> None:
    """Measure every raster, and print the report."""
    small, large, largest = QUICK if options.quick else (SMALL, LARGE, LARGEST)
    rounds = 1 if options.quick else 3
    report = Report(
        "Outlines of label rasters",
        f"Land cover of {CLASSES} classes and sparse buildings (generated). {rounded(rounds)} Of files one run of "
        "shapes, which reads the band row by row, and the median of as many of satseg, decoding included.",
        ("raster", "polygons", "way", "CPU-s", "MPix per CPU-s", "times satseg's cost"),
        ("shapely", "numba"),
    )
    add_ratios(report, "land cover", land_cover(small, small), rounds)
    arrays, polygons = add_ratios(report, "land cover", land_cover(large, large), rounds)
    report.goals.append(Goal(f"shapes / satseg arrays, land cover {large} px", arrays, 6.0))
    report.goals.append(Goal(f"shapes + shapely / satseg + shapely, land cover {large} px", polygons, 12.0))
    add_ratios(report, "buildings", buildings(large, large), rounds)
    add_files(report, small, largest, rounds)
    report.publish(options, "polygonize")


if __name__ == "__main__":
    main()
