"""A class by an index and a threshold: what needs no network, such as water by NDWI.

The threshold is the one that maximises Jaccard over all training scenes together, found exactly in memory that follows
the values of a few bins: a first pass counts pixels in 65536 bins of the float's own bits, and a second looks into
those bins alone in which Jaccard could be higher than at any of their edges. Rejected: the thresholds of DSTL's third
place, which were fitted scene by scene and in part to the test tiles, and a grid of thresholds, which misses narrow
best ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import geopandas
import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import LabelError, UsageError
from satseg.imagery.indexing import index_scene, strips
from satseg.imagery.indices import Scale
from satseg.imagery.labels import CLASS_FIELD, LabelLayer
from satseg.imagery.scene import Scene
from satseg.imagery.writer import RasterWriter, check_raster_target
from satseg.output import check_distinct
from satseg.progress import Progress, silent
from satseg.raster import Raster
from satseg.specs import IndexSpec

Side: TypeAlias = Literal["above", "below"]
Values: TypeAlias = NDArray[np.float32]
OUTSIDE, INSIDE, NO_DATA = 0, 1, 255
BINS = 2**16
IGNORED = "ignore"
"""Class of features whose ground does not count."""


@dataclass(frozen=True, slots=True)
class IndexClassifier:
    """Pixels are of a class where an index reaches a threshold. Made by `fit`, or by hand.

    Parameters
    ----------
    index : str
        Name of the index.
    threshold : float
        Compared in float32; reached by equal values.
    side : {"above", "below"}
        Where the class is.
    class_name : str
    jaccard : float or None
        On the ground that the threshold was fitted to.
    spec, bands, scale
        As `satseg.imagery.indices.index_bands`.
    """

    index: str
    threshold: float
    side: Side = "above"
    class_name: str = "feature"
    jaccard: float | None = None
    spec: IndexSpec | None = None
    bands: Mapping[str, str] = field(default_factory=dict)
    scale: Scale | None = None

    def __post_init__(self) -> None:
        if self.side not in ("above", "below") or not np.isfinite(np.float32(self.threshold)):
            raise UsageError(f"side {self.side!r}, threshold {self.threshold} are no rule", code="E-USE-081")

    @classmethod
    def fit(
        cls,
        index: str,
        data: Sequence[tuple[Scene, geopandas.GeoDataFrame]],
        *,
        class_name: str = "feature",
        side: Side | None = None,
        spec: IndexSpec | None = None,
        bands: Mapping[str, str] | None = None,
        scale: Scale | None = None,
    ) -> IndexClassifier:
        """Return the rule with the highest Jaccard over all pixels of `data` together; each scene is read twice.

        Parameters
        ----------
        data : sequence of (scene, labels)
            Features of `class_name` in the column ``class_name`` (all of them without one); those called
            "ignore" cover ground that does not count, nor does what is not valid.
        side : optional
            The better one when left out.

        Raises
        ------
        LabelError
            Labels off their scene, or no valid pixel of the class (E-LAB-040).
        SpecError, BandError
            As `satseg.imagery.indexing.index`.
        """
        chosen = [index_scene(scene, index, spec=spec, bands=bands, scale=scale) for scene, _ in data]
        layers = [
            LabelLayer.build(labels, scene.grid, _names(labels, class_name))
            for scene, (_, labels) in zip(chosen, data, strict=True)
        ]
        sides: tuple[Side, ...] = ("above", "below") if side is None else (side,)
        found = [(*_best(chosen, layers, below=one == "below"), one) for one in sides]
        if all(jaccard is None for _, jaccard, _ in found):
            raise LabelError(f"no valid pixel is of class {class_name!r}", code="E-LAB-040")
        threshold, jaccard, best = max(found, key=lambda one: one[1] or 0.0)
        return cls(index, threshold, best, class_name, jaccard, spec, dict(bands or {}), scale)

    def apply(self, scene: Scene, window: Window | None = None) -> Raster:
        """Return the mask of the class, one bool channel, False where not valid."""
        raster = self._scene(scene).read(window=window)
        return Raster(self._reached(raster.data) & raster.valid, raster.grid, (self.class_name,), raster.valid)

    def write(
        self,
        scene: Scene,
        path: str | os.PathLike[str],
        *,
        window: Window | None = None,
        overwrite: bool = False,
        progress: Progress = silent,
    ) -> int:
        """Write the mask as a GeoTIFF (1 inside, 0 outside, 255 not valid) and return how many pixels are inside.

        Memory follows the scene's width; `satseg.vector.polygonize.polygonize_to_file` makes polygons of the file.

        Raises
        ------
        OutputError, UsageError
            The file cannot be written.
        """
        check_raster_target(path, overwrite=overwrite)
        check_distinct([path], inputs=scene.paths)
        chosen, place, count = self._scene(scene), scene.grid.window if window is None else window, 0
        with RasterWriter(
            path, grid=scene.grid.crop(place), names=(self.class_name,), dtype=np.uint8, nodata=NO_DATA,
            overwrite=overwrite, description=str(self), in_rows=True,
        ) as out:  # fmt: skip
            for data, valid, part in strips(chosen, place, progress):
                mask = np.where(self._reached(data), np.uint8(INSIDE), np.uint8(OUTSIDE))
                if valid is not None:
                    mask[:, ~valid] = NO_DATA
                count += int((mask == INSIDE).sum())
                out.write(mask, part)
        return count

    def __str__(self) -> str:
        sign = ">=" if self.side == "above" else "<="
        jaccard = "" if self.jaccard is None else f" (Jaccard {self.jaccard:.4f})"
        return f"{self.class_name}: {self.index} {sign} {self.threshold:.9g}{jaccard}"

    def _scene(self, scene: Scene) -> Scene:
        return index_scene(scene, self.index, spec=self.spec, bands=self.bands, scale=self.scale)

    def _reached(self, data: NDArray[np.floating]) -> NDArray[np.bool_]:
        values, level = data.astype(np.float32, copy=False), np.float32(self.threshold)
        return np.asarray(values >= level if self.side == "above" else values <= level)


def _names(labels: geopandas.GeoDataFrame, first: str) -> tuple[str, ...]:
    """Return `first` and the other classes of `labels`: a scene that has only these tells where the class is not."""
    found = labels[CLASS_FIELD].dropna() if CLASS_FIELD in labels else ()
    return tuple(dict.fromkeys((first, *sorted({str(name) for name in found} - {IGNORED}))))


def _pixels(
    scenes: Sequence[Scene], layers: Sequence[LabelLayer], *, below: bool
) -> Iterator[tuple[Values, NDArray[np.bool_]]]:
    """Yield values, negative for `below`, and truth of the pixels that count, strip by strip."""
    for scene, layer in zip(scenes, layers, strict=True):
        for data, valid, part in strips(scene, scene.grid.window):
            targets, known = layer.burn(scene.grid.crop(part))
            known = known if valid is None else known & valid
            values = data[0][known].astype(np.float32)
            yield (-values if below else values) + np.float32(0), targets[0][known] != 0  # no -0.0


def _ranks(values: Values) -> NDArray[np.int64]:
    """Whole numbers in the order of float32 values (IEEE 754): the upper half of them are bins."""
    bits = values.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + 2**31


def _best(scenes: Sequence[Scene], layers: Sequence[LabelLayer], *, below: bool) -> tuple[float, float | None]:
    """Return the threshold with the highest Jaccard, the highest of several, and that; None without truth."""
    counts = np.zeros((2, BINS), np.int64)  # of pixels outside and inside the class
    for values, truth in _pixels(scenes, layers, below=below):
        bins = _ranks(values) >> 16
        counts[0] += np.bincount(bins[~truth], minlength=BINS)
        counts[1] += np.bincount(bins[truth], minlength=BINS)
    total = int(counts[1].sum())
    if not total:
        return 0.0, None
    reached = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # pixels in a bin or above it
    entered = reached - counts
    at_edge = reached[1] / (total + reached[0])
    at_most = reached[1] / (total + entered[0])  # if a bin's true pixels came before all others
    open_bins = (counts.sum(axis=0) > 0) & (at_most >= at_edge.max())
    held: list[tuple[Values, NDArray[np.bool_]]] = []
    for values, truth in _pixels(scenes, layers, below=below):
        inside = open_bins[_ranks(values) >> 16]
        held.append((values[inside], truth[inside]))
    kept, within = (np.concatenate([pair[i] for pair in held]) for i in (0, 1))
    threshold, jaccard = _search(kept, within, entered, total)
    return (-threshold if below else threshold), jaccard


def _search(
    values: Values, truth: NDArray[np.bool_], entered: NDArray[np.int64], total: int
) -> tuple[float, float]:
    """Return the best threshold among `values`, the pixels of some whole bins, and its Jaccard."""
    levels, places = np.unique(values, return_inverse=True)
    inside = np.bincount(places[truth], minlength=len(levels))
    outside = np.bincount(places[~truth], minlength=len(levels))
    bins = _ranks(levels) >> 16
    above = [_from_top_of_bin(one, bins) for one in (outside, inside)]
    false, true = (entered[row][bins] + above[row] for row in (0, 1))
    jaccard = true / (total + false)
    best = len(levels) - 1 - int(np.argmax(jaccard[::-1]))
    return float(levels[best]), float(jaccard[best])


def _from_top_of_bin(counts: NDArray[np.int64], bins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Running sums of `counts` from the largest value of each bin down."""
    down = counts[::-1].cumsum()
    starts = np.flatnonzero(np.diff(bins[::-1], prepend=-1))
    before = np.repeat(np.concatenate([[0], down[starts[1:] - 1]]), np.diff([*starts, len(counts)]))
    return np.asarray((down - before)[::-1])
