"""A contest folder for tests: files, tables and labels as the contest has them, on a few tiny tiles."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
import shapely
from rasterio.errors import NotGeoreferencedWarning

X_MAX, Y_MIN = 0.0090, -0.0089
SIZES = {"rgb": (96, 97), "P": (96, 97), "M": (24, 24), "A": (4, 4)}
"""Height and width of each file: ratios that are no whole numbers."""
COUNTS = {"rgb": 3, "P": 1, "M": 8, "A": 8}
IDS = ("6010_1_2", "6110_1_2", "6140_1_2", "6070_2_3", "6020_0_0", "6030_4_4")
LABELLED = IDS[:4]
Labels = Mapping[str, Mapping[int, shapely.Geometry]]


def write_tiff(path: Path, data: np.ndarray) -> None:
    """Write (C, H, W) without a place, quietly."""
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        count, height, width = data.shape
        with rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=data.dtype.name
        ) as out:
            out.write(data)


def pixel_box(left: float, top: float, right: float, bottom: float) -> shapely.Polygon:
    """A box of columns and rows of the three-band image, in label units."""
    height, width = SIZES["rgb"]
    x, y = X_MAX / (width * width / (width + 1)), Y_MIN / (height * height / (height + 1))
    return shapely.box(left * x, bottom * y, right * x, top * y)


def usual_labels() -> dict[str, dict[int, shapely.Geometry]]:
    """Buildings and trees in all labelled tiles, a waterway in two that are no twins; an overlap of classes."""
    houses = shapely.MultiPolygon([pixel_box(5, 5, 17, 15), pixel_box(40, 60, 55, 72)])
    trees = shapely.MultiPolygon([pixel_box(50, 10, 80, 40), pixel_box(45, 55, 60, 75)])
    found: dict[str, dict[int, shapely.Geometry]] = {i: {1: houses, 5: trees} for i in LABELLED}
    for image_id in ("6010_1_2", "6070_2_3"):
        found[image_id][7] = shapely.MultiPolygon([pixel_box(0, 80, 97, 90)])
    return found


def wkt_table(labels: Labels, path: Path) -> Path:
    """Write labels as the contest's table: ten rows a tile, absent classes as MULTIPOLYGON EMPTY."""
    lines = ["ImageId,ClassType,MultipolygonWKT"]
    for image_id, classes in labels.items():
        for number in range(1, 11):
            text = shapely.to_wkt(classes[number], rounding_precision=17) if number in classes else "MULTIPOLYGON EMPTY"
            lines.append(f'{image_id},{number},"{text}"')
    path.write_text("\n".join(lines) + "\n")
    return path


def sample_table(path: Path, ids: tuple[str, ...] = ("6020_0_0", "6070_2_3", "6030_4_4")) -> Path:
    """Write a sample submission: whole-image rectangles as POLYGON, tiles in an order of its own."""
    lines = ["ImageId,ClassType,MultipolygonWKT"]
    lines += [f'{i},{number},"{shapely.box(0, Y_MIN, X_MAX, 0).wkt}"' for i in ids for number in range(1, 11)]
    path.write_text("\n".join(lines) + "\n")
    return path


def build_contest(root: Path, ids: tuple[str, ...] = IDS, *, seed: int = 0) -> Path:
    """Write a whole folder; the ground of a label is bright in every band, so that it can be learnt."""
    rng = np.random.default_rng(seed)
    labels = usual_labels()
    for image_id in ids:
        for product, (height, width) in SIZES.items():
            top = 16383 if product == "A" else 2047
            data = rng.integers(100, top // 4, (COUNTS[product], height, width)).astype(np.uint16)
            for number, shape in labels.get(image_id, {}).items():
                for part in shapely.get_parts(shape):
                    left, bottom, right, up = part.bounds
                    rows = slice(int(up / Y_MIN * height), int(bottom / Y_MIN * height) + 1)
                    cols = slice(int(left / X_MAX * width), int(right / X_MAX * width) + 1)
                    data[number % len(data), rows, cols] = top - 100 * number
            name = image_id if product == "rgb" else f"{image_id}_{product}"
            write_tiff(root / ("three_band" if product == "rgb" else "sixteen_band") / f"{name}.tif", data)
    rows = [",Xmax,Ymin", *(f"{i},{X_MAX},{Y_MIN}" for i in ids)]
    (root / "grid_sizes.csv").write_text("\n".join(rows) + "\n")
    wkt_table({i: own for i, own in labels.items() if i in ids}, root / "train_wkt_v4.csv")
    sample_table(root / "sample_submission.csv")
    return root


def write_geojson(path: Path, shapes: list[shapely.Geometry]) -> None:
    """Write geometries as the contest's GeoJSON, CRS claim and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(s)} for s in shapes]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
