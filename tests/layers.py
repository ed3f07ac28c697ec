"""Small layers of rectangles for tests of scoring.  Import as ``from tests.layers import ...``."""

from __future__ import annotations

import geopandas
import numpy as np
import shapely

from satseg.grid import Grid
from tests.factories import ORIGIN, UTM, north_up

X, Y = ORIGIN


def box(left, bottom, width, height):
    """A rectangle in metres from the origin of the tests' ground, which is in UTM."""
    return shapely.box(X + left, Y + bottom, X + left + width, Y + bottom + height)


def layer(*features, crs=UTM, **columns):
    """GeoDataFrame of (class, geometry) pairs."""
    names, shapes = zip(*features, strict=True) if features else ((), ())
    return geopandas.GeoDataFrame(
        {"class_name": np.array(names, dtype=object), **columns}, geometry=list(shapes), crs=crs
    )


def grid(height=30, width=50, gsd=1.0, crs=UTM):
    """Pixels whose lower left corner is the origin."""
    return Grid(height, width, north_up(gsd, y=Y + height * gsd), crs)


def two_classes():
    truth = layer(("a", box(0, 0, 10, 10)), ("b", box(20, 0, 10, 10)))
    pred = layer(("a", box(5, 0, 10, 10)), ("b", box(20, 0, 10, 10)), ("b", box(20, 5, 10, 10)))
    return pred, truth
