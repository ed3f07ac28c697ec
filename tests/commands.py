"""How tests of the command line run it, and the small files they run it on.

Import as ``from tests.commands import ...``. Commands run in this process; what they and the libraries
below them write is taken from the file descriptors, so that nothing said by GDAL itself goes unseen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio

from satseg.cli.main import main
from tests.factories import write_tiff
from tests.worlds import squares, tiny_model

TINY = (
    "train.steps=2", "train.chip=32", "train.batch=2", "train.rounds=1", "train.device=cpu",
    "model.width=4", "model.depth=2", "model.stem=1",
)  # fmt: skip
"""Overrides under which a training takes a second."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str

    def done(self) -> Outcome:
        """This outcome, of a command that must have ended well."""
        assert self.status == 0, self.err
        return self

    def refused(self, status: int, code: str) -> str:
        """Assert that one line on stderr told the reason, and nothing else was said; return that line."""
        assert (self.status, self.out) == (status, ""), (self.out, self.err)
        (line,) = self.err.splitlines()
        assert line.startswith("satseg: error: "), line
        assert line.endswith(f"[{code}]"), line
        return line


Command = Callable[..., Outcome]


def command_of(capture: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command line on its arguments; `capture` is ``capfd``."""

    def run(*args: object) -> Outcome:
        capture.readouterr()
        hook = sys.excepthook
        try:
            status = main([str(arg) for arg in args])
        finally:
            sys.excepthook = hook
        return Outcome(status, *capture.readouterr())

    return run


def build_town(folder: Path) -> Path:
    """Fill `folder` with two labelled scenes, one of them without CRS and in several files too, and a model."""
    for name, x, crs in (("a", 500_000.0, "EPSG:32633"), ("b", 520_000.0, "EPSG:32633"), ("bare", 500_000.0, None)):
        _, labels = squares(folder, name=name, height=90, width=131, x=x, crs=crs, seed=len(name))
        labels.assign(kind=labels["class_name"].str.upper()).to_parquet(folder / f"{name}.parquet")
        if crs is not None:
            labels.to_file(folder / f"{name}.gpkg")
    with rasterio.open(folder / "a.tif") as scene:
        for number, band in enumerate(scene.descriptions, start=1):
            write_tiff(folder / f"a_{band}.tif", scene.read(number), transform=scene.transform, descriptions=[band])
    tiny_model(gsd_m=1.0).save(folder / "model.safetensors")
    return folder


def write_mask(path: Path, data: np.ndarray, **options: object) -> Path:
    """Write (K, H, W) uint8 as a mask of classes a, b, ... with 255 as nodata, on one-metre pixels."""
    place = rasterio.transform.from_origin(500_000, 5_000_000, 1, 1)
    names = [chr(ord("a") + k) for k in range(len(data))]
    return write_tiff(path, data.astype("uint8"), transform=place, nodata=255, descriptions=names, **options)


def files_under(*folders: Path) -> set[Path]:
    """Everything below `folders`, hidden files too."""
    return {path for folder in folders for path in folder.rglob("*")}


def same_features(first: geopandas.GeoDataFrame, second: geopandas.GeoDataFrame) -> bool:
    """Whether two layers agree in every column, in order."""
    columns = ["class_id", "class_name"]
    return bool(
        first[columns].equals(second[columns])
        and np.allclose(first["area_m2"], second["area_m2"])
        and np.allclose(first["score"], second["score"], atol=1e-4, equal_nan=True)
        and first.geometry.geom_equals(second.geometry).all()
    )
