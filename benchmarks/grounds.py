"""What a training of `benchmarks.accuracy` gets: labelled scenes at 0.30 m, chips of them, and a clock of CPU time.

Each pixel is the mean of 2 x 2 of the scene's, labels are burnt by pixel centre. Chips are drawn anywhere alike,
as tutorials do. The clock counts what this process computes, on all its threads: with one thread that is the time
the training would take on a machine of its own. Rejected: wall time, which other work on the machine changes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import geopandas
import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from torch import Tensor

Image: TypeAlias = NDArray[np.uint8]
"""(3, H, W)"""
Mask: TypeAlias = NDArray[np.uint8]
"""(H, W), 1 inside a building"""
Change: TypeAlias = Callable[[np.random.Generator, Image, Mask], tuple[Image, Mask]]
Chips: TypeAlias = Callable[[], tuple[Tensor, Tensor]]
"""One batch: image (B, 3, S, S) float32, target (B, 1, S, S) float32."""

COARSER = 2
"""Scenes are at 0.15 m."""
BYTE = 255.0
VEGAS_IMAGE, VEGAS_RGB = "vegas_wv3_8band_u8.tif", (5, 3, 2)
"""Of WorldView-3's eight bands."""
WEB_MERCATOR = "EPSG:3857"


@dataclass(frozen=True, slots=True)
class Place:
    """A labelled scene: image and building footprints."""

    name: str
    scene: Path
    labels: Path

    def coarse(self) -> tuple[Image, dict[str, Any]]:
        """Return the image at 0.30 m and its rasterio profile."""
        with rasterio.open(self.scene) as source:
            height, width = source.height // COARSER, source.width // COARSER
            image = source.read(out_shape=(source.count, height, width), resampling=Resampling.average)
            place = source.transform @ Affine.scale(COARSER)
            profile = {"driver": "GTiff", "height": height, "width": width, "crs": source.crs, "transform": place}
        return image, profile

    def truth(self) -> geopandas.GeoDataFrame:
        """Return the footprints in the scene's CRS."""
        with rasterio.open(self.scene) as source:
            return geopandas.read_file(self.labels).to_crs(source.crs)

    def mask(self, height: int, width: int, transform: Affine) -> Mask:
        """Return 1 in the pixels (H, W) of a grid whose centre is in a building."""
        burnt: Mask = rasterize(self.truth().geometry, (height, width), transform=transform, dtype="uint8")
        return burnt


def data_folder() -> Path:
    """Return the folder of real imagery."""
    return Path(os.environ.get("SATSEG_DATA", Path(__file__).parents[2] / "shared" / "data")).resolve()


def has_vegas(data: Path) -> bool:
    """Whether the folder `data` has what `las_vegas` needs."""
    return (data / "wv_spacenet" / VEGAS_IMAGE).is_file()


def las_vegas(data: Path, folder: Path) -> Place:
    """Write the WorldView-3 chip of Las Vegas into `folder` as the other scenes are: RGB at 0.15 m, buildings only."""
    source, place = data / "wv_spacenet", Place("las_vegas", folder / "las_vegas.tif", folder / "las_vegas.geojson")
    with rasterio.open(source / VEGAS_IMAGE) as scene:
        west, south, east, north = transform_bounds(scene.crs, WEB_MERCATOR, *scene.bounds)
        height = scene.height * COARSER  # its rows are 0.30 m apart, its columns 0.24
        size = (north - south) / height
        width = int((east - west) / size)
        corner = Affine(size, 0, west, 0, -size, north)
        grid = {"crs": WEB_MERCATOR, "transform": corner, "height": height, "width": width}
        with WarpedVRT(scene, resampling=Resampling.bilinear, **grid) as view:
            image = view.read(VEGAS_RGB)
    with rasterio.open(place.scene, "w", driver="GTiff", count=len(image), dtype=image.dtype, **grid) as out:
        out.write(image)
    labels = geopandas.read_file(source / "vegas_wv3_labels_1building_2road_3tree.geojson")
    labels[labels["label"] == 1].assign(**{"class": "building"}).to_file(place.labels)
    return place


@dataclass(slots=True)
class Clock:
    """A budget of this process's CPU time, and what was done with it.

    Parameters
    ----------
    minutes : float
    """

    minutes: float
    steps: int = 0
    pixels: int = 0
    begun: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        """Count from now."""
        self.begun = time.process_time(), time.perf_counter()

    def spent(self) -> tuple[float, float]:
        """CPU-minutes of all threads, and minutes, since `begin`."""
        cpu, wall = time.process_time() - self.begun[0], time.perf_counter() - self.begun[1]
        return cpu / 60, wall / 60

    @property
    def share(self) -> float:
        """Share of the budget used up, 0..1."""
        return min(1.0, self.spent()[0] / self.minutes)

    @property
    def over(self) -> bool:
        """Whether the budget is used up."""
        return self.share >= 1

    def step(self, image: Tensor) -> None:
        """Note a step on a batch (B, C, H, W)."""
        self.steps += 1
        self.pixels += image.shape[0] * image.shape[-2] * image.shape[-1]


@dataclass(slots=True)
class Ground:
    """What a recipe learns from.

    Parameters
    ----------
    places : list of Place
    folder : Path
        Scratch.
    clock : Clock
        `begin` is the recipe's to call.
    seed : int
    """

    places: list[Place]
    folder: Path
    clock: Clock
    seed: int
    images: list[Image] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)

    def read(self) -> None:
        """Read all places at 0.30 m into memory."""
        for place in self.places:
            image, profile = place.coarse()
            self.images.append(image)
            self.masks.append(place.mask(*image.shape[1:], profile["transform"]))

    def write(self) -> None:
        """Write image_NAME.tif and mask_NAME.tif at 0.30 m for every place."""
        for place in self.places:
            image, profile = place.coarse()
            mask = place.mask(*image.shape[1:], profile["transform"])[None]
            for kind, bands in (("image", image), ("mask", mask)):
                path = self.folder / f"{kind}_{place.name}.tif"
                with rasterio.open(path, "w", count=len(bands), dtype="uint8", tiled=True, **profile) as out:
                    out.write(bands)

    def chips(self, size: int, batch: int, change: Change, prepare: Callable[[Image], Tensor]) -> Chips:
        """Return what draws batches of chips; `change` augments a chip, `prepare` turns images into input."""
        rng = np.random.default_rng(self.seed)
        areas = np.array([mask.size for mask in self.masks], float)

        def draw() -> tuple[Tensor, Tensor]:
            chosen = [change(rng, *self._chip(rng, areas, size)) for _ in range(batch)]
            images, masks = (np.stack(side) for side in zip(*chosen, strict=True))
            return prepare(images), torch.from_numpy(masks).float()[:, None]

        return draw

    def _chip(self, rng: np.random.Generator, areas: NDArray[np.float64], size: int) -> tuple[Image, Mask]:
        index = rng.choice(len(areas), p=areas / areas.sum())
        mask = self.masks[index]
        row, col = (int(rng.integers(side - size + 1)) for side in mask.shape)
        inside = slice(row, row + size), slice(col, col + size)
        return self.images[index][:, *inside], mask[inside]


def flipped(rng: np.random.Generator, image: Image, mask: Mask) -> tuple[Image, Mask]:
    """Return the chip, each axis reversed with probability a half."""
    rows, cols = (slice(None, None, int(rng.choice((-1, 1)))) for _ in range(2))
    return image[:, rows, cols], mask[rows, cols]


def turned(rng: np.random.Generator, image: Image, mask: Mask) -> tuple[Image, Mask]:
    """Return the chip in one of eight positions (the group D4)."""
    image, mask = flipped(rng, image, mask)
    return (image.swapaxes(1, 2), mask.T) if rng.random() < 0.5 else (image, mask)


def recoloured(rng: np.random.Generator, image: Image, mask: Mask) -> tuple[Image, Mask]:
    """Return the chip turned, with other brightness, contrast and balance of colours."""
    image, mask = turned(rng, image, mask)
    light, contrast, balance = rng.uniform(-25, 25), rng.uniform(0.8, 1.2), rng.uniform(0.95, 1.05, (3, 1, 1))
    changed = (image.astype(np.float32) - 128) * (contrast * balance) + (128 + light)
    return changed.clip(0, BYTE).astype(np.uint8), mask
