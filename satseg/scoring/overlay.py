"""Pictures of a comparison: truth, prediction, and hits and misses, over the scene they are of.

Colours are of the Okabe-Ito set, which people with any common colour blindness tell apart: hits
bluish green, false alarms vermilion, misses sky blue, a place given to the wrong class purple. Masks
are half transparent with a solid edge, so that roofs stay visible and single pixels do too; hits and
misses lie over a grey and dimmed scene, whose own colours would pass for theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import geopandas
import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.grid import Grid
from satseg.imagery.labels import rasterize
from satseg.imagery.scene import Scene
from satseg.preview import encode_png, rgb_preview
from satseg.raster import Raster
from satseg.vector.styles import class_colors

Pixels: TypeAlias = NDArray[np.uint8]

MAX_SIDE_PX = 1024
CLASS_ALPHA, ERROR_ALPHA = 110, 170
"""Of 255: how much masks cover the scene below them."""
DIMMED = 0.7
"""Brightness of the grey scene below hits and misses."""
BACKGROUND = (232, 232, 228)
"""Where there is no image, or it is not valid."""
HIT, FALSE_ALARM, MISS, WRONG_CLASS = "#009e73", "#d55e00", "#56b4e9", "#cc79a7"
"""Okabe and Ito, "Color Universal Design", 2008."""
ERROR_COLORS = {"hit": HIT, "false alarm": FALSE_ALARM, "miss": MISS, "wrong class": WRONG_CLASS}


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """Drawn masks of one scene, each (4, H, W) uint8 RGBA, clear where there is nothing to show."""

    image: Pixels | None
    truth: Pixels
    prediction: Pixels
    errors: Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What it takes to draw one scene, kept until somebody asks for the picture.

    Parameters
    ----------
    truth, pred : GeoDataFrame
        With a column class_name; in any CRS that moves to the grid's.
    grid : Grid
        The frame of the picture; drawn with at most `MAX_SIDE_PX` pixels a side.
    classes : tuple of str
        Those to draw, in the order of their colours.
    image : Scene or Raster, optional
        The background, on `grid`.
    """

    truth: geopandas.GeoDataFrame
    pred: geopandas.GeoDataFrame
    grid: Grid
    classes: tuple[str, ...]
    image: Scene | Raster | None = None

    def panels(self, colors: Mapping[str, str] | None = None) -> Panels:
        """Draw the scene, classes in `colors` ("#rrggbb" by name) or those of the palette."""
        picture, grid = self._background()
        truth = rasterize(self.truth, like=grid, classes=self.classes).data > 0
        pred = rasterize(self.pred, like=grid, classes=self.classes).data > 0
        shades = class_colors(self.classes, colors).values()
        return Panels(
            picture,
            paint(zip(shades, truth, strict=True), grid, alpha=CLASS_ALPHA),
            paint(zip(shades, pred, strict=True), grid, alpha=CLASS_ALPHA),
            paint(error_masks(truth, pred).items(), grid, alpha=ERROR_ALPHA),
        )

    def _background(self) -> tuple[Pixels | None, Grid]:
        """Return the image as RGBA, at most `MAX_SIDE_PX` a side, and the grid that it lies on."""
        factor = max(1.0, max(self.grid.shape) / MAX_SIDE_PX)
        if self.image is None:
            return None, self.grid.zoom(factor)
        if isinstance(self.image, Raster):
            raster, step = self.image, math.ceil(factor)
        else:
            scene = self.image.at_gsd(self.grid.gsd_m() * factor) if factor > 1 else self.image
            raster, step = scene.read(), 1
        data, valid = raster.data[:, ::step, ::step], raster.valid[::step, ::step]
        picture = rgb_preview(data, valid, raster.names, max_side=max(valid.shape))
        height, width = valid.shape
        return picture, raster.grid.crop(Window(0, 0, width * step, height * step)).zoom(step)


def overlay_png(
    image: Raster | Scene | None,
    truth: geopandas.GeoDataFrame,
    pred: geopandas.GeoDataFrame,
    grid: Grid,
    *,
    classes: Sequence[str] | None = None,
) -> bytes:
    """Return a PNG of hits, false alarms and misses over `image`, or over a plain ground.

    Parameters
    ----------
    image : Raster, Scene or None
        On `grid`.
    truth, pred : GeoDataFrame
        With a column class_name.
    grid : Grid
        The frame of the picture, which gets at most `MAX_SIDE_PX` pixels a side.
    classes : sequence of str, optional
        Those to draw; all that occur when left out.
    """
    occurring = sorted({*truth["class_name"], *pred["class_name"]})
    drawing = Drawing(truth, pred, grid, tuple(occurring if classes is None else classes), image)
    panels = drawing.panels()
    return encode_png(blend(panels.errors, None if panels.image is None else muted(panels.image)))


def error_masks(truth: NDArray[np.bool_], pred: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Return (H, W) masks by colour from (K, H, W) ones: hits below, then what is wrong.

    A pixel that is a miss of one class and a false alarm of another has the wrong class.
    """
    hit, missed, invented = (np.any(part, axis=0) for part in (truth & pred, truth & ~pred, pred & ~truth))
    return {
        HIT: hit & ~missed & ~invented,
        MISS: missed & ~invented,
        FALSE_ALARM: invented & ~missed,
        WRONG_CLASS: missed & invented,
    }


def paint(masks: Iterable[tuple[str, NDArray[np.bool_]]], grid: Grid, *, alpha: int) -> Pixels:
    """Return (4, H, W) RGBA: each (H, W) mask in its colour "#rrggbb", later ones above earlier ones.

    Fills have `alpha` of 255, edges are solid.
    """
    picture = np.zeros((4, *grid.shape), np.uint8)
    for color, mask in masks:
        picture[:3, mask] = np.array(_channels(color), np.uint8)[:, None]
        picture[3, mask] = np.maximum(picture[3, mask], alpha)
        picture[3, mask & ~_inner(mask)] = 255
    return picture


def muted(image: Pixels) -> Pixels:
    """Return `image` (RGBA) in dimmed grey."""
    grey = np.rint(image[:3].mean(axis=0) * DIMMED).astype(np.uint8)
    return np.stack([grey, grey, grey, image[3]])


def blend(above: Pixels, below: Pixels | None) -> Pixels:
    """Return opaque (3, H, W) RGB of `above` (RGBA) over `below` (RGBA or nothing)."""
    ground = np.empty((3, *above.shape[1:]), np.float64)
    ground[:] = np.array(BACKGROUND, np.float64)[:, None, None]
    for layer in (below, above):
        if layer is not None:
            share = layer[3] / 255.0
            ground += (layer[:3] - ground) * share
    return np.rint(ground).astype(np.uint8)


def _inner(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of `mask` whose four neighbours are in it too; the frame counts as inside."""
    wide = np.pad(mask, 1, constant_values=True)
    inner: NDArray[np.bool_] = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return inner


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
