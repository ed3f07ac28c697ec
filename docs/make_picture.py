"""Draw docs/demo.png from the folder of a finished ``satseg demo``: scene, found polygons, hits and misses.

    python docs/make_picture.py satseg-demo docs/demo.png [--crop COL ROW WIDTH HEIGHT]

The numbers in the titles are counted anew from the files, so that the picture cannot claim what the run
did not reach. Needs the extra [notebook]. Letters are large, for a README is seen at half this width.
The picture is reduced to 256 colours, a third of the size and the same to the eye; JPEG was rejected, its
blocks show around thin outlines.
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
from satseg.synthetic.scene import SYNTHETIC_COLORS

COLORS = SYNTHETIC_COLORS
"""Drawn in this order, so that cars lie on roads and crowns above both."""
CROP = (540, 232, 720, 576)
"""Where town, fields and sports ground of the demonstration's scene meet."""
WIDTH_PX, DPI = 1800, 100
MARGIN_PX, GAP_PX, HEAD_PX, FOOT_PX = 12, 15, 62, 116
TITLE_PT, KEY_PT = 20.0, 15.5
INK, SOFT = "#1b1f23", "#5f6b76"
FILL_ALPHA, ERROR_ALPHA = 0.5, 170
DIMMED = 0.5
"""How much of the scene's own brightness and colour is left below the polygons."""


@dataclass(frozen=True, slots=True, eq=False)
class Demo:
    """What of a demonstration is drawn: the part of the scene, and the layers and scores of the whole."""

    image: satseg.Raster
    found: geopandas.GeoDataFrame
    truth: geopandas.GeoDataFrame
    classes: tuple[str, ...]
    mean_jaccard: float


def read_demo(folder: Path, crop: tuple[int, int, int, int]) -> Demo:
    """Read a demonstration's files and score them; `crop` is (col, row, width, height) in pixels."""
    scene = satseg.open_scene(folder / "search.tif")
    found = satseg.read_features(folder / "found.gpkg")
    truth = satseg.read_features(folder / "search_labels.gpkg")
    report = satseg.score(found, truth, scene=scene, objects=False)
    classes = tuple(name for name in COLORS if name in report.classes)
    return Demo(scene.read(window=Window(*crop)), found, truth, classes, report.mean_jaccard or 0.0)


def draw(demo: Demo) -> Figure:
    """Return the figure: three panels, a title above and a key below each."""
    height, width = demo.image.grid.shape
    panel_w = (WIDTH_PX - 2 * MARGIN_PX - 2 * GAP_PX) / 3
    panel_h = panel_w * height / width
    total = HEAD_PX + panel_h + FOOT_PX
    figure = Figure(figsize=(WIDTH_PX / DPI, total / DPI), dpi=DPI, facecolor="white")
    for number, panel in enumerate((_draw_scene, _draw_found, _draw_errors)):
        left = MARGIN_PX + number * (panel_w + GAP_PX)
        axes = figure.add_axes((left / WIDTH_PX, FOOT_PX / total, panel_w / WIDTH_PX, panel_h / total))
        axes.set_axis_off()
        panel(axes, demo)
    return figure


def _draw_scene(axes: Axes, demo: Demo) -> None:
    _title(axes, "Part of a scene, new to the model")
    _show(axes, demo, blend(_picture(demo), None))
    seen = f"{len(demo.image.names)} bands, of which red, green and blue are shown;"
    note = f"{seen}\nonly the infrared tells artificial turf from lawn"
    axes.annotate(
        note, (0, 0), (0, -8), xycoords="axes fraction", textcoords="offset points", va="top", fontsize=KEY_PT,
        color=SOFT, linespacing=1.45,
    )  # fmt: skip


def _draw_found(axes: Axes, demo: Demo) -> None:
    _title(axes, f"{len(demo.found):,} polygons found in the whole")
    picture = _picture(demo)
    grey = picture[:3].mean(axis=0, keepdims=True)
    dimmed = DIMMED * (DIMMED * picture[:3] + (1 - DIMMED) * grey)
    _show(axes, demo, blend(np.concatenate([dimmed.astype(np.uint8), picture[3:]]), None))
    for name in demo.classes:
        part = demo.found[demo.found["class_name"] == name]
        if len(part):
            part.plot(ax=axes, facecolor=(COLORS[name], FILL_ALPHA), edgecolor=COLORS[name], linewidth=1.2, aspect=None)
    _frame(axes, demo)
    _key(axes, {name.replace("_", " "): COLORS[name] for name in demo.classes}, columns=3)


def _draw_errors(axes: Axes, demo: Demo) -> None:
    _title(axes, f"Hits and misses: mean Jaccard {demo.mean_jaccard:.2f}")
    grid = demo.image.grid
    truth, found = (rasterize(frame, like=grid, classes=demo.classes).data > 0 for frame in (demo.truth, demo.found))
    masks = error_masks(truth, found).items()
    _show(axes, demo, blend(paint(masks, grid, alpha=ERROR_ALPHA), muted(_picture(demo))))
    _key(axes, ERROR_COLORS, columns=2)


def _picture(demo: Demo) -> NDArray[np.uint8]:
    return rgb_preview(demo.image.data, demo.image.valid, demo.image.names, max_side=max(demo.image.grid.shape))


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=TITLE_PT, color=INK, pad=11)


def _show(axes: Axes, demo: Demo, pixels: NDArray[np.uint8]) -> None:
    left, bottom, right, top = demo.image.grid.bounds
    axes.imshow(np.moveaxis(pixels, 0, -1), extent=(left, right, bottom, top), interpolation="antialiased")
    _frame(axes, demo)


def _frame(axes: Axes, demo: Demo) -> None:
    left, bottom, right, top = demo.image.grid.bounds
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _key(axes: Axes, colors: dict[str, str], *, columns: int) -> None:
    marks = [Patch(facecolor=color, edgecolor=SOFT, linewidth=0.5, label=name) for name, color in colors.items()]
    axes.legend(
        handles=marks, loc="upper left", bbox_to_anchor=(-0.006, 0), bbox_transform=axes.transAxes, ncols=columns,
        frameon=False, fontsize=KEY_PT, labelcolor=INK, handlelength=1.0, handleheight=0.9, handletextpad=0.5,
        columnspacing=1.6, labelspacing=0.4, borderaxespad=0.3, borderpad=0.1,
    )  # fmt: skip


def encode(figure: Figure) -> bytes:
    """Return the figure as a PNG of 256 colours."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=DPI)
    reduced = Image.open(full).convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE)
    reduced.save(small, format="png", optimize=True)
    return small.getvalue()


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a finished satseg demo")
    parser.add_argument("picture", type=Path, help="PNG to write, replaced if there")
    parser.add_argument(
        "--crop", type=int, nargs=4, default=CROP, metavar=("COL", "ROW", "WIDTH", "HEIGHT"), help="part, in pixels"
    )
    given = parser.parse_args()
    mpl.rcParams["font.family"] = "DejaVu Sans"  # comes with matplotlib: the same picture everywhere
    figure = draw(read_demo(given.folder, given.crop))
    with AtomicOutput(given.picture, overwrite=True) as out:
        out.temporary.write_bytes(encode(figure))


if __name__ == "__main__":
    main()
