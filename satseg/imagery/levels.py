"""A scene's bands brought to its own mean and spread, so that scenes of other light and other sensors look alike.

What a network learns of colours then holds where a town is darker or hazier than those learnt from, and what
brightness itself says of a class is lost: a field of one crop and a city come out with the same mean. It is an option
of training (`[data] normalize = "scene"`) and off by default, for it costs more than it brings in towns seen by
drones: after 3 CPU-minutes on two of them the Jaccard of buildings in a third was 0.47 against 0.51 in Nairobi and
0.37 against 0.63 in Zanzibar (one run each, `benchmarks.accuracy`).

The statistics are robust as those of a data set are (of values clipped to percentiles), measured on blocks spread over
the whole scene at its working resolution, so that a detection inside an area of interest equals the same pixels of a
detection of everything. Rejected: statistics of a tile, which show its borders; and shifting values in the network
instead of in the reader, where a batch holds chips of several scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

from rasterio.windows import Window

from satseg.errors import InputError
from satseg.grid import slices
from satseg.imagery.normalization import Normalization, Normalizer
from satseg.imagery.scene import Scene
from satseg.imagery.tiling import scattered_blocks

BLOCK_PX, SEED = 256, 0
MEASURED_BLOCKS = 64
"""With a valid pixel, per scene: 4 million pixels settle a percentile."""
Hidden: TypeAlias = Callable[[Window], Iterable[Window]]
"""hidden(block) -> windows whose pixels in the block do not count."""


def levelled(scene: Scene) -> Scene:
    """Return `scene` with bands of mean 0 and standard deviation 1, float32; itself where it is so already.

    Raises
    ------
    InputError
        Not one valid pixel was found (E-IN-020), or values pass the range of float32 (E-IN-051).
    """
    if scene.levels is not None:
        return scene
    return replace(scene, levels=measured([(scene, lambda block: ())], seed=SEED))


def measured(looks: Sequence[tuple[Scene, Hidden]], *, seed: int) -> Normalization:
    """Return the normalization of the pixels of up to `MEASURED_BLOCKS` blocks of each scene that have any which count.

    Raises
    ------
    InputError
        As `levelled`.
    """
    meter = Normalizer(looks[0][0].bands)
    for scene, hidden in looks:
        seen = 0
        with scene.reader() as reader:
            for block in scattered_blocks(*scene.grid.shape, side=BLOCK_PX, seed=seed):
                raster = reader.read(block)
                usable = raster.valid.copy()
                for part in hidden(block):
                    usable[slices(part, block)] = False
                if usable.any():
                    meter.update(replace(raster, valid=usable))
                    seen += 1
                if seen == MEASURED_BLOCKS:
                    break
    if meter.count == 0:
        names = ", ".join(scene.name for scene, _ in looks)
        raise InputError(f"not one valid pixel in {names}", hint="check nodata and masks", code="E-IN-020")
    return meter.result()
