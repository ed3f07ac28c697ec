"""Settings of other programs that would break ours, and are put aside before anything is imported.

QGIS, PostgreSQL and conda point PROJ_DATA (PROJ_LIB in older ones) at their own database. The PROJ inside
rasterio's wheel then finds no CRS, while pyproj and pyogrio keep to theirs, so that failures look random.
Rejected: dropping the variable always, which would take away a user's own grids.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sqlite3
from collections.abc import MutableMapping
from contextlib import closing
from pathlib import Path

log = logging.getLogger(__name__)

LAYOUT = "SELECT value FROM metadata WHERE key = 'DATABASE.LAYOUT.VERSION.{}'"


def drop_foreign_proj(environ: MutableMapping[str, str] = os.environ) -> None:
    """Take PROJ_DATA and PROJ_LIB out of `environ`, with a warning, where rasterio's PROJ could not use them."""
    spec = importlib.util.find_spec("rasterio")
    bundled = None if spec is None or spec.origin is None else Path(spec.origin).parent / "proj_data"
    for name in ("PROJ_DATA", "PROJ_LIB"):
        if name not in environ or bundled is None or not bundled.is_dir():
            continue
        needed = _layout(bundled)
        found = [layout for folder in environ[name].split(os.pathsep) if (layout := _layout(Path(folder)))]
        # PROJ takes its own major version and any minor one from its own on (PROJ, DatabaseContext).
        if needed and not any(own[0] == needed[0] and own[1] >= needed[1] for own in found[:1]):
            log.warning("%s=%s belongs to another PROJ and is ignored", name, environ.pop(name))


def _layout(folder: Path) -> tuple[int, int] | None:
    """Return the version of the database in `folder`, None when there is none to read."""
    try:
        with closing(sqlite3.connect(f"{(folder / 'proj.db').absolute().as_uri()}?mode=ro", uri=True)) as database:
            major, minor = (int(database.execute(LAYOUT.format(part)).fetchone()[0]) for part in ("MAJOR", "MINOR"))
    except (sqlite3.Error, TypeError, ValueError, OSError):
        return None
    return major, minor
