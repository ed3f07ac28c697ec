"""satseg: multispectral scenes in, scored and georeferenced polygons out.

The public names are resolved when first used, so that ``import satseg`` costs milliseconds and
torch is imported only by what needs it. `pipeline` is where the story is told.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from satseg.errors import SatsegError
    from satseg.fitting import refit
    from satseg.folds import train_folds
    from satseg.grid import Grid
    from satseg.imagery.flights import flights
    from satseg.imagery.indexing import index
    from satseg.imagery.labels import rasterize
    from satseg.imagery.scene import Scene, open_scene
    from satseg.learning.networks.average import average
    from satseg.learning.networks.ensemble import Ensemble, write_ensemble
    from satseg.learning.networks.model import Model, load_model
    from satseg.pipeline import detect, detect_to_file, plan, predict, train
    from satseg.raster import Raster
    from satseg.scoring.report import Report
    from satseg.scoring.score import score
    from satseg.stacking import stack
    from satseg.vector.features import read_features, write_features
    from satseg.vector.polygonize import polygonize
    from satseg.vector.voting import vote

__version__ = "0.1.0"

_HOMES = {
    "open_scene": "satseg.imagery.scene",
    "Scene": "satseg.imagery.scene",
    "Raster": "satseg.raster",
    "Grid": "satseg.grid",
    "read_features": "satseg.vector.features",
    "write_features": "satseg.vector.features",
    "train": "satseg.pipeline",
    "plan": "satseg.pipeline",
    "train_folds": "satseg.folds",
    "stack": "satseg.stacking",
    "load_model": "satseg.learning.networks.model",
    "Model": "satseg.learning.networks.model",
    "Ensemble": "satseg.learning.networks.ensemble",
    "write_ensemble": "satseg.learning.networks.ensemble",
    "average": "satseg.learning.networks.average",
    "detect": "satseg.pipeline",
    "detect_to_file": "satseg.pipeline",
    "flights": "satseg.imagery.flights",
    "predict": "satseg.pipeline",
    "refit": "satseg.fitting",
    "polygonize": "satseg.vector.polygonize",
    "vote": "satseg.vector.voting",
    "rasterize": "satseg.imagery.labels",
    "index": "satseg.imagery.indexing",
    "score": "satseg.scoring.score",
    "Report": "satseg.scoring.report",
    "SatsegError": "satseg.errors",
}

__all__ = [
    "open_scene", "Scene", "Raster", "Grid", "read_features", "write_features", "train", "plan", "train_folds",
    "stack", "load_model", "Model", "Ensemble", "write_ensemble", "average", "detect", "detect_to_file", "flights",
    "predict", "refit", "polygonize", "vote", "rasterize", "index", "score", "Report", "SatsegError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'satseg' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
