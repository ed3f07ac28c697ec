"""Outlines of equal pixels, exactly along pixel edges, from rows that are fed one strip at a time.

Each polygon is handed out in the row where it ends, so that memory follows what is open between two
rows and never the raster. The result is the one of `rasterio.features.shapes` with 4-connectivity, to
the bit; a ring that touches itself at a corner is split there, which keeps every polygon valid.

The ground around all buildings is one polygon with all their outlines for holes, and open to the last
row. What bounds it is `max_vertices`: above rows that are multiples of 256, a polygon that holds more
is cut along the row. Its pieces are valid and their union is the polygon; a warning says so once.

Rejected: `shapes` itself (a dictionary of tuples per polygon, several times slower, and no way to
feed it), contours through pixel centres (a 13 x 6 pixel car loses a quarter of its area), and
merging polygons of strips by a union (moves vertices).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from satseg.errors import GridError, UsageError
from satseg.vector.outlines import Holes, Outlines, joined

__all__ = ["MAX_VERTICES", "Holes", "Outlines", "OutlineTracer", "joined"]

MAX_VERTICES = 2**24
"""Vertices of one open polygon, 20 bytes each, beyond which it is cut."""
MAX_WIDTH = 2**30 - 1
"""Columns of vertices have 30 bits."""
MAX_ROWS = 2**31 - 2
"""Rows of vertices have 31 bits."""
WHOLE = np.iinfo(np.int64)
IDENTITY = Affine.identity()
CODES = np.stack([np.arange(256, dtype=np.int64), np.zeros(256, np.int64)])
"""Labels and weights of bytes that are their own labels."""


class OutlineTracer:
    """Fed the rows of a label raster from top to bottom, returns outlines as they end.

    Parameters
    ----------
    width : int
        Columns of the raster.
    transform : Affine
        From column and row to x and y.
    hole_px : int
        Holes of at most this many pixels are reported as they close.
    max_vertices : int
        Open polygons of more vertices than this are cut.

    Raises
    ------
    GridError
        `width` is negative or beyond 2**30 - 1 (E-GRID-206).
    UsageError
        `hole_px` is negative, or `max_vertices` below 1 (E-USE-250).
    """

    def __init__(
        self,
        width: int,
        *,
        transform: Affine = IDENTITY,
        hole_px: int = 0,
        max_vertices: int = MAX_VERTICES,
    ) -> None:
        if not 0 <= width <= MAX_WIDTH:
            raise GridError(f"cannot trace {width} columns", hint="0 to 2**30 - 1 can be", code="E-GRID-206")
        if hole_px < 0 or max_vertices < 1:
            raise UsageError(f"hole_px={hole_px}, max_vertices={max_vertices}: too small", code="E-USE-250")
        from satseg.vector.sweep import Sweep  # numba takes half a second to import

        self._sweep = Sweep(width, transform, hole_px=hole_px, max_vertices=max_vertices)
        self._width = width
        self._weighted: bool | None = None
        self._used_up = False

    @property
    def rows(self) -> int:
        """Rows fed so far."""
        return self._sweep.row

    @property
    def open_vertices(self) -> int:
        """Vertices held for polygons that have not ended."""
        return self._sweep.live

    def feed(self, labels: NDArray[Any], weights: NDArray[Any] | None = None) -> Outlines:
        """Take the next rows and return what ended in them.

        Parameters
        ----------
        labels : ndarray of bool or whole numbers, (h, width)
            0 is outside of everything; equal labels that share an edge belong together.
        weights : ndarray of whole numbers, (h, width), optional
            What to sum over the pixels of each polygon; given with every strip or with none.

        Raises
        ------
        GridError
            Arrays of another shape (E-GRID-207), too many rows (E-GRID-208) or open vertices (E-GRID-209).
        UsageError
            Labels or weights that are no whole numbers or beyond int64 (E-USE-251), weights with some
            strips only (E-USE-252), or rows after the end (E-USE-253).
        """
        self._admit(labels, weighted=weights is not None)
        if weights is not None and weights.shape != labels.shape:
            raise GridError(f"weights of shape {weights.shape} are not {labels.shape}", code="E-GRID-207")
        if weights is None and labels.dtype in (np.uint8, np.bool_):
            return self._sweep.feed_codes(labels.view(np.uint8), CODES, weighted=False)
        return self._sweep.feed_labels(_whole(labels), None if weights is None else _whole(weights))

    def feed_coded(self, codes: NDArray[np.uint8], labels: NDArray[np.int64], weights: NDArray[np.int64]) -> Outlines:
        """Take the next rows as codes of label and weight: the fast way.

        Parameters
        ----------
        codes : ndarray of uint8, (h, width)
        labels, weights : ndarray of int64, (256,)
            Label and weight of each code.

        Raises
        ------
        GridError, UsageError
            As `feed`.
        """
        self._admit(codes, weighted=True)
        if codes.dtype != np.uint8:
            raise UsageError(f"codes of {codes.dtype} are not uint8", code="E-USE-251")
        for table in (labels, weights):
            if table.shape != (256,):
                raise GridError(f"a table of shape {table.shape} is not (256,)", code="E-GRID-207")
        tables = np.stack([_whole(labels), _whole(weights)]).astype(np.int64)
        return self._sweep.feed_codes(codes, tables, weighted=bool(tables[1].any()))

    def finish(self) -> Outlines:
        """Return what is still open at the bottom; the tracer is used up."""
        if self._used_up:
            raise UsageError("the tracer was finished before", hint="make another", code="E-USE-253")
        self._used_up = True
        return self._sweep.finish()

    def _admit(self, rows: NDArray[Any], *, weighted: bool) -> None:
        if rows.ndim != 2 or rows.shape[1] != self._width:
            raise GridError(f"rows of shape {rows.shape} are not {self._width} columns wide", code="E-GRID-207")
        if self._used_up:
            raise UsageError("rows fed after the last ones", hint="make another tracer", code="E-USE-253")
        if self._weighted not in (None, weighted):
            raise UsageError("weights are given with some strips only", code="E-USE-252")
        if self.rows + len(rows) > MAX_ROWS:
            raise GridError(f"more than {MAX_ROWS} rows", code="E-GRID-208")
        self._weighted = weighted


def _whole(numbers: NDArray[Any]) -> NDArray[Any]:
    """Return `numbers`, which int64 can hold."""
    if numbers.dtype.kind not in "biu":
        raise UsageError(f"labels or weights of {numbers.dtype} are no whole numbers", code="E-USE-251")
    if numbers.dtype == np.uint64 and numbers.size and numbers.max() > WHOLE.max:
        raise UsageError(f"{numbers.max()} is beyond {WHOLE.max}", hint="number labels anew", code="E-USE-251")
    return numbers
