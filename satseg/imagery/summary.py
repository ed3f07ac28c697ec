"""What is known of a scene without reading its pixels: a JSON-able dictionary, and a page for notebooks.

The page's picture comes from overviews, or from a whole read of small files only: showing a scene never
costs more than a moment.
"""

from __future__ import annotations

import html
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from satseg.crs import describe
from satseg.errors import SatsegError
from satseg.grid import Grid
from satseg.imagery.indices import IndexBand
from satseg.imagery.mapping import relate
from satseg.imagery.reading import method_in_use
from satseg.imagery.sources import BandSource
from satseg.preview import MAX_SIDE_PX, RGB_NAMES, picture_tag, rgb_preview

if TYPE_CHECKING:
    from satseg.imagery.scene import Scene

MAX_PREVIEW_PX = 2**24
"""Values that a picture may cost to decode."""


def scene_info(scene: Scene) -> dict[str, Any]:
    """Return grid, bands, files, sensor, naming, registrations and warnings of `scene`, as JSON-able values."""
    return {
        "name": scene.name,
        "grid": _grid_info(scene.grid),
        "dtype": str(scene.dtype),
        "sensor": scene.sensor,
        "naming": scene.naming,
        "bands": _bands(scene),
        "registrations": [found.to_dict() for found in scene.registrations],
        "warnings": list(scene.warnings),
    }


def _grid_info(grid: Grid) -> dict[str, Any]:
    return {
        "height": grid.height,
        "width": grid.width,
        "transform": list(grid.transform[:6]),
        "crs": None if grid.crs is None else describe(grid.crs),
        "bounds": list(grid.bounds),
        "resolution": list(grid.resolution),
        "gsd_m": _gsd(grid),
    }


def _bands(scene: Scene) -> list[dict[str, Any]]:
    known = {source.name: _band_info(source, scene.grid) for source in scene.sources}
    known |= {band.name: _index_info(band, scene) for band in scene.indices}
    return [known[name] for name in scene.bands]


def _index_info(band: IndexBand, scene: Scene) -> dict[str, Any]:
    return {
        "name": band.name,
        "path": "",
        "index": None,
        "dtype": str(scene.dtype),
        "nodata": None,
        "formula": band.formula.text,
        "inputs": {one.role: one.band for one in band.inputs},
        "unit": band.unit,
        "gsd_m": _gsd(scene.grid),
        "resampling": "none",
    }


def _band_info(source: BandSource, grid: Grid) -> dict[str, Any]:
    file = source.file
    return {
        "name": source.name,
        "path": source.path,
        "index": source.index,
        "driver": file.driver,
        "dtype": source.dtype,
        "nodata": _plain(source.nodata),
        "mask": "alpha" if file.alpha is not None else file.mask,
        "scale": _plain(source.scale),
        "offset": _plain(source.offset),
        "height": source.grid.height,
        "width": source.grid.width,
        "crs": None if source.grid.crs is None else describe(source.grid.crs),
        "gsd_m": _gsd(source.grid),
        "resampling": method_in_use(source, relate(source.grid, grid)),
        "block": list(file.blocks),
        "overviews": list(file.overviews),
    }


def _gsd(grid: Grid) -> float | None:
    """Return it in metres; None without a CRS, or with one whose metres cannot be told."""
    if grid.crs is None:
        return None
    try:
        return grid.gsd_m()
    except SatsegError:
        return None


def _plain(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity."""
    return value if value is None or math.isfinite(value) else str(value)


def scene_html(scene: Scene) -> str:
    """Return the scene as a table of its grid and bands, with a small picture where that is cheap."""
    heads = ("name", "file", "index", "dtype", "nodata", "gsd_m", "resampling")
    bands = [{**band, "file": os.path.basename(band["path"])} for band in scene_info(scene)["bands"]]
    rows = [[band[head] for head in heads] for band in bands]
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    known = [*scene.warnings, *(str(found) for found in scene.registrations if found.accepted)]
    said = "".join(f"<li>{html.escape(text)}</li>" for text in known)
    title = f"<b>Scene</b> {html.escape(scene.name)}, {len(scene.bands)} x {scene.dtype}"
    return (
        f"<div>{title}{scene.grid._repr_html_()}<table><tr>{head}</tr>{body}</table>"
        f"<ul>{said}</ul>{_picture(scene)}</div>"
    )


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else html.escape(str(value))


def _picture(scene: Scene) -> str:
    """Return an img element of up to three bands of one file, or a word on why there is none."""
    first = scene.sources[0].file
    mixed = [source for source in scene.sources if source.name in RGB_NAMES]
    whole = len(mixed) == 3 and all(source.grid.matches(mixed[0].grid) for source in mixed)
    chosen = mixed if whole else [source for source in scene.sources if source.file == first][:3]
    file = chosen[0].file
    height, width = file.grid.shape
    decoded = height * width * len(chosen) / max((1, *file.overviews)) ** 2
    if decoded > MAX_PREVIEW_PX:
        return f"<p>no picture: {height} x {width} pixels and no overviews; read a window</p>"
    factor = max(1.0, max(height, width) / MAX_SIDE_PX)
    size = {"height": max(1, round(height / factor)), "width": max(1, round(width / factor))}
    try:
        with scene.reader() as reader:
            planes = [reader.overview([source.name], **size) for source in chosen]
    except SatsegError as error:
        return f"<p>no picture: {html.escape(str(error))}</p>"
    data = np.concatenate([plane.data for plane in planes])
    valid = np.logical_and.reduce([plane.valid for plane in planes])
    return picture_tag(rgb_preview(data, valid, [source.name for source in chosen]))
