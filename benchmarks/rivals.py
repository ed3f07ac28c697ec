"""A network that costs nothing, a scene for it, and three ways from that scene to polygons that are not satseg's.

The network is a 1 x 1 convolution of 8 bands to 10 classes, so that what is left of a path is the path itself.
The scene is made for it: each class is bright in a band of its own (one of them in all bands, one in none), so
that thresholds of independent classes and the class with the greatest score make the same masks, and every
path can be held to the same polygons. Its noise lets deflate nearly halve it, as it does real imagery.

All three paths end in a mask file and a GeoPackage. The plain script is what tutorials write with rasterio,
torch and geopandas; the TorchGeo path has its dataset and grid sampler in place of the windows; geoai-py is
called by its own two functions. Rejected: an accumulator of blended scores in the first two, which costs more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.windows import Window
from torch import Tensor, nn

from satseg.imagery.normalization import Normalization
from satseg.learning.card import Architecture, BandCard, ModelCard
from satseg.learning.networks.model import Model
from satseg.specs import ClassItem

BANDS = ("coastal", "blue", "green", "yellow", "red", "red_edge", "nir1", "nir2")
CLASSES = ("ground", *(f"bright_{name}" for name in BANDS), "bright_all")
WINDOW, OVERLAP = 512, 64
STRIDE, MARGIN = WINDOW - OVERLAP, OVERLAP // 2
DARK, BRIGHT, NOISE_DN = 400, 1500, 16.0
CELLS = ((48, 1.0), (6, 0.12))
"""Distance in pixels, and size, of the random values that fields are interpolated from: patches, and their edges."""
PLAIN, TORCHGEO, GEOAI = "plain script", "TorchGeo GridGeoSampler, same stitching", "geoai-py"
TOP = 5_700_000.0


class Stranger(nn.Module):
    """A network that satseg knows nothing about, with what `satseg.learning.networks.model.Model` asks of one.

    Parameters
    ----------
    inner : Module
    stride, halo : int
        Sides of tiles are multiples of the one; the other is how far its margin is said to reach.
    """

    def __init__(self, inner: nn.Module, *, stride: int, halo: int) -> None:
        super().__init__()
        self.inner = inner
        self.stride, self.halo, self.reach, self.crop = stride, halo, halo, 0

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of `image` (B, C, H, W)."""
        logits: Tensor = self.inner(image)
        return logits


def null_network(*, ground: bool = True) -> nn.Conv2d:
    """Return the convolution that names a pixel by its bright bands; without `ground` dark ones are of no class."""
    count = len(BANDS)
    weight = np.full((len(CLASSES), count), -1.5, np.float32)
    weight[1 : count + 1][np.eye(count, dtype=bool)] = 10.0
    weight[0], weight[-1] = -10.0, 2.0
    bias = np.array([5.0, *[-5.0] * count, -8.0], np.float32)
    if not ground:
        weight[0], bias[0] = 0.0, -5.0
    network = nn.Conv2d(count, len(CLASSES), 1)
    with torch.no_grad():
        network.weight.copy_(torch.from_numpy(weight)[:, :, None, None])
        network.bias.copy_(torch.from_numpy(bias))  # type: ignore[union-attr]
    return network.eval()


def null_model(*, ground: bool = True) -> Model:
    """Return `null_network` as a model of satseg, with the margin that the rivals' windows have."""
    rows = ((level,) * len(BANDS) for level in (float(DARK), float(BRIGHT - DARK), 0.0, 2047.0))
    card = ModelCard(
        architecture=Architecture(arguments={"bands": len(BANDS), "classes": len(CLASSES)}),
        bands=tuple(BandCard(name=name) for name in BANDS),
        normalization=Normalization(BANDS, *rows),
        classes=tuple(ClassItem(name=name, id=number, color="#336699") for number, name in enumerate(CLASSES)),
        halo=MARGIN,
        stride=1,
    )
    network = Stranger(null_network(ground=ground), stride=1, halo=MARGIN)
    return Model(card, network, torch.device("cpu"))  # type: ignore[arg-type]  # a stranger, on purpose


def side_of(windows: int) -> int:
    """Return the side of a scene that so many windows fit exactly, in either direction."""
    return OVERLAP + windows * STRIDE


def write_patches(path: Path, height: int, width: int, seed: int = 0) -> None:
    """Write a scene of jagged patches of all classes, 8 bands uint16, tiled and deflated."""
    rng = np.random.default_rng(seed)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=len(BANDS), dtype="uint16", crs="EPSG:32633",
        transform=Affine(0.5, 0, 300_000, 0, -0.5, TOP), tiled=True, blockxsize=512, blockysize=512,
        compress="deflate", predictor=2, interleave="pixel", NUM_THREADS="ALL_CPUS",
    ) as out:  # fmt: skip
        out.descriptions = BANDS
        for top in range(0, height, WINDOW):
            window = Window(0, top, width, min(WINDOW, height - top))
            out.write(patches(rng, window.height, width), window=window)


def patches(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint16]:
    """Counts (8, H, W) by which `null_network` knows patches of all classes again."""
    fields = np.zeros((len(CLASSES), height, width), np.float32)
    for field in fields:
        for cell, size in CELLS:
            coarse = rng.normal(0, size, (height // cell + 2, width // cell + 2))
            field += _enlarged(_enlarged(coarse, height, cell).T, width, cell).T
    classes, last = fields.argmax(axis=0), len(CLASSES) - 1
    clean = np.where([(classes == number) | (classes == last) for number in range(1, last)], BRIGHT, DARK)
    return (clean + rng.normal(0, NOISE_DN, clean.shape)).clip(1, 2047).astype(np.uint16)


def _enlarged(coarse: NDArray[np.float64], rows: int, cell: int) -> NDArray[np.float64]:
    """`coarse` (h, w), whose rows lie `cell` pixels apart, interpolated to as many rows."""
    place = np.arange(rows) / cell
    above = place.astype(int)
    share = (place - above)[:, None]
    return coarse[above] * (1 - share) + coarse[above + 1] * share


def installed(path: str) -> bool:
    """Whether the path from scene to polygons called `path` can be run here."""
    needs = {TORCHGEO: ("torchgeo",), GEOAI: ("geoai", "leafmap", "rioxarray", "skimage")}
    return all(find_spec(name) for name in needs.get(path, ()))


@torch.inference_mode()
def plain_path(network: nn.Module, model: Model, scene: Path, mask_file: Path, output: Path) -> int:
    """Detect with rasterio, torch and geopandas alone; return the number of polygons."""
    with rasterio.open(scene) as dataset:
        mask = np.zeros((len(model.classes), *dataset.shape), np.uint8)
        for row in range(0, dataset.height - OVERLAP, STRIDE):
            for col in range(0, dataset.width - OVERLAP, STRIDE):
                image = torch.from_numpy(dataset.read(window=Window(col, row, WINDOW, WINDOW)).astype(np.float32))
                _stitch(mask, network(_normalised(image[None], model)), model, row=row, col=col)
        profile = dataset.profile
    return _saved(mask, model, profile, mask_file, output)


@torch.inference_mode()
def torchgeo_path(network: nn.Module, model: Model, scene: Path, mask_file: Path, output: Path) -> int:
    """Detect with TorchGeo's dataset and sampler, the rest as in `plain_path`."""
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    RasterDataset._cached_load_warp_file.cache_clear()  # it keeps files open, and GDAL their decoded blocks
    dataset = RasterDataset(os.fspath(scene))
    sampler = GridGeoSampler(dataset, size=WINDOW, stride=STRIDE)
    with rasterio.open(scene) as source:
        profile, transform = source.profile, source.transform
    mask = np.zeros((len(model.classes), profile["height"], profile["width"]), np.uint8)
    for sample in torch.utils.data.DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=stack_samples):
        across, down, _ = sample["bounds"][0]
        col, row = map(round, ~transform @ (across.start, down.stop))
        _stitch(mask, network(_normalised(sample["image"], model)), model, row=row, col=col)
    return _saved(mask, model, profile, mask_file, output)


def geoai_path(network: nn.Module, model: Model, scene: Path, mask_file: Path, output: Path) -> int:
    """Detect with the two functions of geoai-py; it normalises by 255 and takes the greatest score."""
    from geoai.train import semantic_inference_on_geotiff
    from geoai.utils import raster_to_vector

    semantic_inference_on_geotiff(
        _Rescaled(network, model), os.fspath(scene), os.fspath(mask_file), window_size=WINDOW, overlap=OVERLAP,
        num_channels=len(model.bands), num_classes=len(model.classes), device=torch.device("cpu"), quiet=True,
    )  # fmt: skip
    classes = list(range(len(model.classes)))
    return len(raster_to_vector(os.fspath(mask_file), os.fspath(output), class_values=classes, min_area=0))


PATHS = {PLAIN: plain_path, TORCHGEO: torchgeo_path, GEOAI: geoai_path}


class _Rescaled(nn.Module):
    """`network` of pixels that were divided by 255."""

    def __init__(self, network: nn.Module, model: Model) -> None:
        super().__init__()
        self.inner, self._model = network, model

    def forward(self, image: Tensor) -> Tensor:
        """Logits of `image`."""
        logits: Tensor = self.inner(_normalised(image.mul_(255.0), self._model))
        return logits


def _normalised(image: Tensor, model: Model) -> Tensor:
    """`image` as the network wants it, changed in place; all bands of the null model are scaled alike."""
    return image.sub_(DARK).div_(BRIGHT - DARK)


def _stitch(mask: NDArray[np.uint8], logits: Tensor, model: Model, *, row: int, col: int) -> None:
    """Put the middle of a window's mask into the mask of the scene, and its margin at the scene's edges."""
    levels = torch.tensor([*model.thresholds.values()])[:, None, None]
    inside = (logits.sigmoid()[0] >= levels).numpy()
    spans = []
    for start, size in zip((row, col), mask.shape[1:], strict=True):
        spans.append((MARGIN if start else 0, WINDOW - (MARGIN if start + WINDOW < size else 0)))
    (top, bottom), (left, right) = spans
    mask[:, row + top : row + bottom, col + left : col + right] = inside[:, top:bottom, left:right]


def _saved(mask: NDArray[np.uint8], model: Model, profile: dict[str, object], mask_file: Path, output: Path) -> int:
    """Write the mask, compressed as satseg does, and its outlines; return how many there are."""
    profile.update(count=len(mask), dtype="uint8", compress="zstd", zstd_level=1, interleave="band")
    with rasterio.open(mask_file, "w", **profile) as out:
        out.write(mask)
    features = [
        {"geometry": outline, "properties": {"class_name": name}}
        for name, plane in zip(model.classes, mask, strict=True)
        for outline, _ in shapes(plane, plane > 0, 4, profile["transform"])
    ]
    geopandas.GeoDataFrame.from_features(features, crs=profile["crs"]).to_file(output)
    return len(features)


def polygons_of(path: Path) -> Iterator[float]:
    """Yield the number of polygons in a vector file, and their area in square metres."""
    layer = geopandas.read_file(path)
    yield float(len(layer))
    yield float(layer.area.sum())
