"""Writing features: satseg's FeatureWriter in batches against libraries that write all at once.

All write the same polygons, which are ready in memory as geometries, to the same local disk. FeatureWriter
gets them in batches of 1000 and holds a few megabytes; the rivals get the whole layer. The last rival is
what a plain script does with the output of `rasterio.features.shapes`: a list of GeoJSON-like dictionaries,
`GeoDataFrame.from_features` and `to_file`. Every file is read back once and must hold the same area.
Run as ``python -m benchmarks.features``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import shapely

from benchmarks.timing import Goal, Report, interleave, parse, rounded
from satseg.vector.features import as_features, read_features
from satseg.vector.stream import FeatureWriter

COUNT, QUICK_COUNT, BATCH = 60_000, 4_000, 1000
CORNERS = 12
"""Steps of an outline per quarter: 48 corners and some more, as of dense land cover."""
SUFFIXES = (".gpkg", ".shp", ".parquet")
OURS, PLAIN = "satseg", "from_features and to_file"


def make_layer(count: int, seed: int = 0) -> geopandas.GeoDataFrame:
    """Return `count` staircase outlines around discs of some metres, of ten classes."""
    rng = np.random.default_rng(seed)
    discs = shapely.buffer(shapely.points(rng.uniform(0, 30_000, (count, 2))), rng.uniform(2, 20, count), quad_segs=6)
    coords, owner = shapely.get_coordinates(discs, return_index=True)
    stairs = np.repeat(coords, 2, axis=0)
    stairs[1:-1:2, 0] = stairs[2::2, 0]  # along x first, then along y
    owner = np.repeat(owner, 2)
    ends = np.flatnonzero(np.diff(owner, append=-1))
    stairs[ends] = stairs[ends - 1]
    polygons = shapely.polygons(shapely.linearrings(stairs + np.array([500_000, 5_000_000]), indices=owner))
    kinds = rng.integers(0, 10, count)
    return as_features(
        polygons, class_ids=kinds + 1, class_names=np.array([f"class_{k}" for k in range(10)], object)[kinds],
        scores=rng.random(count), areas_m2=shapely.area(polygons), crs=32633,
    )  # fmt: skip


def ours(layer: geopandas.GeoDataFrame, path: Path) -> None:
    """Write by FeatureWriter, batch after batch."""
    with FeatureWriter(path, crs=layer.crs, overwrite=True) as out:
        for start in range(0, len(layer), BATCH):
            out.write(layer.iloc[start : start + BATCH])


def at_once(layer: geopandas.GeoDataFrame, path: Path) -> None:
    """Write by pyogrio through Arrow, or by geopandas where it is GeoParquet."""
    path.unlink(missing_ok=True)
    if path.suffix == ".parquet":
        options = {"compression": "zstd", "write_covering_bbox": True, "schema_version": "1.1.0"}
        layer.to_parquet(path, index=False, **options)
    else:
        pyogrio.write_dataframe(layer, path, use_arrow=True)


def from_dictionaries(found: list[dict[str, Any]], path: Path) -> None:
    """Write what a plain script has: a dictionary per polygon."""
    path.unlink(missing_ok=True)
    geopandas.GeoDataFrame.from_features(found, crs=32633).to_file(path)


def main() -> None:
    """Measure and print."""
    options = parse(__doc__)
    count, rounds, slow_rounds = (QUICK_COUNT, 3, 2) if options.quick else (COUNT, 15, 3)
    layer = make_layer(count)
    found = list(layer.iterfeatures())
    report = Report(
        "Writing features",
        f"{count} polygons of {shapely.get_num_coordinates(layer.geometry.to_numpy()).mean():.0f} points and four "
        f"attributes; FeatureWriter in batches of {BATCH}, the others all at once, without a check of the file and "
        f"without a style. {rounded(rounds)} `{PLAIN}` took turns with satseg in {slow_rounds} rounds of its own.",
        ("format", "case", "CPU ms", "thousand features per CPU-s", "CPU time / satseg"),
        ("geopandas", "pyogrio", "pyarrow", "shapely"),
    )
    with tempfile.TemporaryDirectory() as name:
        for suffix in SUFFIXES:
            mine, other = Path(name) / f"a{suffix}", Path(name) / f"b{suffix}"
            rival = "geopandas to_parquet" if suffix == ".parquet" else "pyogrio, Arrow"
            cases = {OURS: partial(ours, layer, mine), rival: partial(at_once, layer, other)}
            add(report, cases, (mine, other), count=count, rounds=rounds, goal=0.9)
            if suffix != ".parquet":
                plain = {OURS: cases[OURS], PLAIN: partial(from_dictionaries, found, other)}
                add(report, plain, (mine, other), count=count, rounds=slow_rounds, goal=4)
    report.publish(options, "features")


def add(
    report: Report,
    cases: dict[str, Callable[[], None]],
    files: tuple[Path, Path],
    *,
    count: int,
    rounds: int,
    goal: float,
) -> None:
    """Measure satseg and one rival, and add them to the report."""
    costs = interleave(cases, rounds=rounds)
    areas = [read_features(path).geometry.area.sum() for path in files]
    np.testing.assert_allclose(*areas, rtol=1e-9)
    suffix = files[0].suffix
    for case in cases:
        rate = count / 1000 / costs.median(case)
        report.rows.append((suffix, case, 1000 * costs.median(case), rate, costs.ratio(case, OURS)))
    rival = list(cases)[1]
    report.goals.append(Goal(f"{suffix}: speed / {rival}", costs.ratio(rival, OURS).median, goal))


if __name__ == "__main__":
    main()
