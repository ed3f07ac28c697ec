"""Draw docs/demo.png from the folder of a finished ``satseg demo``: scene, found polygons, hits and misses.

    python docs/make_picture.py satseg-demo docs/demo.png [--crop COL ROW WIDTH HEIGHT]

The numbers of the caption are counted anew from the files, so that the picture cannot claim what the
run did not reach. Needs the extra [notebook]. The picture is reduced to 256 colours, half the size and
the same to the eye; JPEG was rejected, its blocks show around thin outlines.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import geopandas
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image
from rasterio.windows import Window

import satseg
from satseg.imagery.labels import rasterize
from satseg.output import AtomicOutput
from satseg.preview import rgb_preview
from satseg.scoring.overlay import ERROR_COLORS, blend, error_masks, muted, paint

COLORS = {
    "building": "#f28e2b",
    "road": "#e3e3e3",
    "track": "#c9a063",
    "tree": "#2f9e44",
    "crop": "#f2e06b",
    "water": "#3f97e8",
    "vehicle": "#ff2e4d",
    "artificial_turf": "#c65cff",
}
"""As a map would colour them; drawn in this order, so that cars lie on roads and crowns above both."""
TITLES = ("A scene the model has not seen", "Polygons found", "Hits and misses")
WIDTH_PX, DPI = 1800, 100
MARGIN_PX, GAP_PX, HEAD_PX, FOOT_PX = 14, 12, 42, 84
INK, SOFT = "#1b1f23", "#5f6b76"
FILL_ALPHA = 0.55
DIMMED = 0.45
"""How much of the scene's own brightness and colour is left below the polygons."""


@dataclass(frozen=True, slots=True, eq=False)
class Demo:
    """What of a demonstration is drawn: everything on the grid of the picture's part of the scene."""

    image: satseg.Raster
    found: geopandas.GeoDataFrame
    truth: geopandas.GeoDataFrame
    classes: tuple[str, ...]
    caption: str


def read_demo(folder: Path, crop: tuple[int, int, int, int] | None) -> Demo:
    """Read a demonstration's files and score them; `crop` is (col, row, width, height) in pixels."""
    scene = satseg.open_scene(folder / "search.tif")
    found = satseg.read_features(folder / "found.gpkg")
    truth = satseg.read_features(folder / "search_labels.gpkg")
    report = satseg.score(found, truth, scene=scene)
    window = scene.grid.window if crop is None else Window(*crop)
    classes = tuple(name for name in COLORS if name in report.classes)
    caption = (
        f"{len(found):,} polygons of {len(report.classes)} classes from {len(scene.bands)} bands   ·   "
        f"mean Jaccard of the whole scene {report.mean_jaccard or 0:.2f}"
    )
    return Demo(scene.read(window=window), found, truth, classes, caption)


def draw(demo: Demo) -> Figure:
    """Return the figure of three panels, their keys below them and the caption at the foot."""
    height, width = demo.image.grid.shape
    panel_w = (WIDTH_PX - 2 * MARGIN_PX - 2 * GAP_PX) / 3
    panel_h = panel_w * height / width
    total = HEAD_PX + panel_h + FOOT_PX
    figure = Figure(figsize=(WIDTH_PX / DPI, total / DPI), dpi=DPI, facecolor="white")
    panels = []
    for number, title in enumerate(TITLES):
        left = MARGIN_PX + number * (panel_w + GAP_PX)
        axes = figure.add_axes((left / WIDTH_PX, FOOT_PX / total, panel_w / WIDTH_PX, panel_h / total))
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontsize=17, color=INK, pad=9)
        panels.append(axes)
    _draw_scene(panels[0], demo)
    _draw_found(panels[1], demo)
    _draw_errors(panels[2], demo)
    figure.text(MARGIN_PX / WIDTH_PX, (FOOT_PX - 34) / total, demo.caption, fontsize=14, color=SOFT, va="center")
    return figure


def _draw_scene(axes: Axes, demo: Demo) -> None:
    _show(axes, demo, blend(_picture(demo), None))


def _draw_found(axes: Axes, demo: Demo) -> None:
    picture = _picture(demo)
    grey = picture[:3].mean(axis=0, keepdims=True)
    dimmed = DIMMED * (DIMMED * picture[:3] + (1 - DIMMED) * grey)
    _show(axes, demo, blend(np.concatenate([dimmed.astype(np.uint8), picture[3:]]), None))
    for name in demo.classes:
        part = demo.found[demo.found["class_name"] == name]
        if len(part):
            part.plot(ax=axes, facecolor=(COLORS[name], FILL_ALPHA), edgecolor=COLORS[name], linewidth=0.9, aspect=None)
    _frame(axes, demo)
    _key(axes, {name.replace("_", " "): COLORS[name] for name in demo.classes})


def _draw_errors(axes: Axes, demo: Demo) -> None:
    grid = demo.image.grid
    truth, found = (rasterize(frame, like=grid, classes=demo.classes).data > 0 for frame in (demo.truth, demo.found))
    _show(axes, demo, blend(paint(error_masks(truth, found).items(), grid, alpha=170), muted(_picture(demo))))
    _key(axes, ERROR_COLORS)


def _picture(demo: Demo) -> NDArray[np.uint8]:
    return rgb_preview(demo.image.data, demo.image.valid, demo.image.names, max_side=max(demo.image.grid.shape))


def _show(axes: Axes, demo: Demo, pixels: NDArray[np.uint8]) -> None:
    left, bottom, right, top = demo.image.grid.bounds
    axes.imshow(np.moveaxis(pixels, 0, -1), extent=(left, right, bottom, top), interpolation="antialiased")
    _frame(axes, demo)


def _frame(axes: Axes, demo: Demo) -> None:
    left, bottom, right, top = demo.image.grid.bounds
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _key(axes: Axes, colors: dict[str, str]) -> None:
    marks = [Patch(facecolor=color, edgecolor=SOFT, linewidth=0.5, label=name) for name, color in colors.items()]
    axes.legend(
        handles=marks, loc="upper left", bbox_to_anchor=(-0.012, -0.008), ncols=4, frameon=False, fontsize=12.5,
        labelcolor=INK, handlelength=1.0, handleheight=0.9, handletextpad=0.5, columnspacing=1.4, labelspacing=0.35,
        borderaxespad=0.2,
    )  # fmt: skip


def encode(figure: Figure) -> bytes:
    """Return the figure as a PNG of 256 colours."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=DPI)
    picture = Image.open(full).convert("RGB")
    reduced = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.FLOYDSTEINBERG)
    reduced.save(small, format="png", optimize=True)
    return small.getvalue()


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a finished satseg demo")
    parser.add_argument("picture", type=Path, help="PNG to write, replaced if there")
    parser.add_argument("--crop", type=int, nargs=4, metavar=("COL", "ROW", "WIDTH", "HEIGHT"), help="part, in pixels")
    given = parser.parse_args()
    mpl.rcParams["font.family"] = "DejaVu Sans"  # comes with matplotlib: the same picture everywhere
    figure = draw(read_demo(given.folder, given.crop))
    with AtomicOutput(given.picture, overwrite=True) as out:
        out.temporary.write_bytes(encode(figure))


if __name__ == "__main__":
    main()
