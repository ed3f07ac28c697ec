"""A tiny learnable world for tests of the learning chain: bright squares on dark ground.

Import as ``from tests.worlds import ...``. Scenes are written by rasterio, labels are GeoDataFrames.
"""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import shapely
import torch
from affine import Affine

from satseg.imagery.normalization import Normalization
from satseg.learning.card import BandCard, ModelCard
from satseg.learning.networks.architectures import architecture_of
from satseg.learning.networks.model import Model
from satseg.learning.networks.unet import UNet, UNetConfig
from satseg.specs import ClassItem
from tests.factories import UTM, noise, north_up, write_tiff

BANDS = ("red", "nir")


def squares(
    folder: Path, *, name: str = "scene", height: int = 140, width: int = 210, x: float = 500_000.0, seed: int = 0,
    crs: str | None = UTM, gsd: float = 1.0,
) -> tuple[Path, geopandas.GeoDataFrame]:  # fmt: skip
    """Write a two-band scene with 12-pixel squares, bright in red (class a) or in nir (class b)."""
    rng = np.random.default_rng(seed)
    data = rng.normal(400, 30, (2, height, width))
    transform = Affine(gsd, 0, x, 0, -gsd, 5_000_000.0)
    rows, names = [], []
    for number, (row, col) in enumerate((r, c) for r in range(8, height - 14, 28) for c in range(8, width - 14, 28)):
        band = number % 2
        data[band, row : row + 12, col : col + 12] += 800
        rows.append(shapely.box(x + col * gsd, 5e6 - (row + 12) * gsd, x + (col + 12) * gsd, 5e6 - row * gsd))
        names.append("ab"[band])
    path = folder / f"{name}.tif"
    write_tiff(path, data.clip(1, 2047).astype("uint16"), transform=transform, crs=crs, descriptions=BANDS)
    return path, geopandas.GeoDataFrame({"class_name": names}, geometry=rows, crs=crs)


def scene_with_gaps(folder: Path, *, height: int = 97, width: int = 143) -> Path:
    """Write a two-band scene of odd size without any order, with nodata inside and at a corner."""
    data = (noise(2, height, width) * 9).astype("uint16")
    data[:, 30:41, 60:90], data[:, -27:, :17] = 0, 0
    return write_tiff(folder / "s.tif", data, nodata=0, transform=north_up(0.5), descriptions=BANDS)


def tiny_model(
    *, classes: tuple[str, ...] = ("a", "b"), separated: tuple[str, ...] = (), seed: int = 0,
    gsd_m: float | None = None, **network: object,
) -> Model:  # fmt: skip
    """An untrained model of `BANDS` whose scores vary from pixel to pixel."""
    arguments = {"width": 4, "depth": 3, "stem": 1, **network}
    config = UNetConfig(bands=len(BANDS), classes=len(classes) + len(separated), **arguments)  # type: ignore[arg-type]  # of mixed types
    net = UNet(config, generator=torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        net.head.weight.mul_(100)  # the head starts near 0; spread the scores so that equality means something
    count = len(BANDS)
    card = ModelCard(
        architecture=architecture_of(net),
        bands=tuple(BandCard(name=name) for name in BANDS),
        gsd_m=gsd_m,
        normalization=Normalization(BANDS, (500.0,) * count, (200.0,) * count, (0.0,) * count, (2047.0,) * count),
        classes=tuple(ClassItem(name=name, id=i + 1, color="#336699") for i, name in enumerate(classes)),
        separated=separated,
        halo=net.halo,
        stride=net.stride,
    )
    return Model(card, net, torch.device("cpu"))
