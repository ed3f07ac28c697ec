"""The resolution that scenes are brought to: one that suits all of them and the objects in them.

No finer than the coarsest scene, for there is nothing to see in pixels that are made up; one that makes the others far
coarser by that is told of. Rejected: leaving such a scene out unasked, and enlarging it, which is done where the
resolution is given.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from satseg.errors import UsageError
from satseg.imagery.cores import median_widths
from satseg.imagery.labels import LabelLayer
from satseg.imagery.scene import Scene
from satseg.imagery.suspicions import Suspicion

log = logging.getLogger(__name__)

OBJECT_PX = 18
"""Pixels across the median object are enough to find and outline it, and a network that sees more of the ground around
learns less of single towns. Finer pixels also cost more work: a scene of 0.15 m as it is gave Nairobi a Jaccard of 0.53
after 15 minutes, 0.3 m 0.55 after 2. Of 0.3 and 0.45 m after 1000 equal steps, on Nairobi, Zanzibar, and Las Vegas by
either network: 0.48, 0.64, 0.70, 0.59 and 0.48, 0.65, 0.71, 0.69, with the best threshold nearer 0.5; in the dense half
of Banepa, Jaccard 0.57 and 0.53, F1 0.25 and 0.28. Roofs of 7 m lie between at 18 pixels."""
LEAST_COARSER, MOST_COARSER = 1.25, 3.0
"""A working GSD this much coarser than the scenes' is worth resampling; coarser than that it is never made."""
ROUNDED = 1.05
"""More than a GSD of two digits lies above what it is rounded from."""


def working_gsd(scenes: Sequence[Scene], layers: Sequence[LabelLayer], asked: float | None) -> float | None:
    """Working GSD in metres: the one asked for, else one that suits scenes and objects; None off the Earth."""
    placed = [scene.grid.gsd_m() for scene in scenes if scene.grid.crs is not None]
    if asked is not None and len(placed) < len(scenes):
        names = [scene.name for scene in scenes if scene.grid.crs is None]
        raise UsageError(
            f"a working resolution of {asked} m means nothing on {names}, which have no CRS",
            hint="give --src-crs, or leave --gsd out",
            code="E-TRN-002",
        )
    if asked is not None or not placed:
        return asked
    coarsest = max(placed)
    known = [(scene.grid, layer) for scene, layer in zip(scenes, layers, strict=True)]
    widths = [
        width * grid.gsd_m()
        for grid, layer in known
        if grid.crs is not None
        for width in median_widths([(grid, layer)]).values()
    ]
    enough = min(min(widths, default=0.0) / OBJECT_PX, MOST_COARSER * coarsest)
    if enough < LEAST_COARSER * coarsest:
        return coarsest
    chosen = float(f"{enough:.2g}")
    log.info("working at %g m: half the objects are wider than %d pixels there (--gsd)", chosen, OBJECT_PX)
    return chosen


def unlike_resolutions(scenes: Sequence[Scene], gsd: float | None, *, asked: bool) -> Iterator[Suspicion]:
    """Yield what is odd about working at `gsd`: one scene makes it far coarser than another is, or is far coarser."""
    placed = sorted((scene.grid.gsd_m(), scene.name) for scene in scenes if scene.grid.crs is not None)
    if gsd is None or not placed:
        return
    (fine, finest), (coarse, coarsest) = placed[0], placed[-1]
    ratio = coarse / (gsd if asked else fine)
    if ratio <= MOST_COARSER or (not asked and gsd > coarse * ROUNDED):  # then the objects made it so coarse
        return
    told = f"{coarsest} has pixels of {coarse:.3g} m"
    if asked:
        said, hint = f"{told} and is enlarged {ratio:.3g} times", "leave it out, or give a coarser --gsd"
    else:
        said = f"{told}, and all is learnt at {gsd:.3g} m for it: {finest} has {fine:.3g} m"
        hint = "leave it out, or give --gsd"
    yield Suspicion("other-resolutions", said, ratio, hint)
