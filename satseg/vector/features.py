"""Features: polygons with a class, as a GeoDataFrame; the one door to vector files.

Columns are class_id, class_name, score (0..1), area_m2, geometry: at most ten characters, so that
they survive a shapefile. Files are recognised by content when read and chosen by suffix when
written (`satseg.vector.formats`); what is written is read back before it appears under its name.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pyarrow
import pyogrio
import shapely
from numpy.typing import ArrayLike, NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj.exceptions import ProjError

from satseg.crs import CRSLike, describe, parse_crs, same_crs, to_pyproj
from satseg.errors import CRSError, InputError, LabelError, OutputError, UsageError
from satseg.imagery.labels import CLASS_FIELD, SINGLE_CLASS, class_labels
from satseg.output import AtomicOutput
from satseg.specs import suggest
from satseg.vector.finish import repair
from satseg.vector.formats import (
    SHAPEFILE_BYTES,
    SHAPEFILE_TEXT,
    PathLike,
    VectorFormat,
    check_target,
    shapefile_columns,
    source_driver,
)
from satseg.vector.styles import add_style, class_colors

__all__ = ["read_features", "write_features", "check_target", "as_features", "empty_features"]
