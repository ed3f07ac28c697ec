"""Strip and StripView: consecutive rows of a scene in memory, and windows put together from them.

A view holds references to its strips, so it stays true while the reader goes on, and strips that two views
share are in memory once. Strips stay apart until a window is asked for: joining them first would copy the
rows that neighbouring views share once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from satseg.errors import GridError
from satseg.grid import overlap, slices

Validity: TypeAlias = NDArray[np.bool_] | bool
"""Of some pixels: (h, w), or True or False for all of them."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Some consecutive rows of a scene.

    Parameters
    ----------
    row : int
        First row on the scene's grid.
    data : ndarray, (C, h, w) of the scene's dtype
        Read-only; 0 where not valid. Takes no memory when `empty`.
    valid : ndarray of bool, (h, w), or None
        True = usable; None where all is.
    empty : bool
        Not one pixel is valid.
    """

    row: int
    data: NDArray[Any]
    valid: NDArray[np.bool_] | None
    empty: bool


@dataclass(frozen=True, slots=True)
class StripView:
    """The strips that hold some rows; stays true while later ones are read. Made by `RowReader.window`.

    Parameters
    ----------
    strips : tuple of Strip
        From top to bottom, without a gap.
    rows, cols : range
        What the reader reads; pixels outside are not valid.
    """

    strips: tuple[Strip, ...]
    rows: range
    cols: range

    def copy_into(self, out: NDArray[Any], valid_out: NDArray[np.bool_], window: Window) -> bool:
        """Write the pixels of `window` into `out` and `valid_out`; return whether all of them are valid.

        Parameters
        ----------
        out : ndarray, (C, H, W)
            Of any dtype that the scene's can be cast to; 0 where not valid.
        valid_out : ndarray of bool, (H, W)
        window : Window
            Whole pixels of the scene's grid; may overhang the reader's rows and columns.

        Raises
        ------
        GridError
            Rows of the window are not in this view.
        """
        inside = self._inside(window)
        complete = inside is not None and (inside.height, inside.width) == (window.height, window.width)
        if not complete:
            out[...], valid_out[...] = 0, False
        for strip, (rows, cols), (to_rows, to_cols) in self._parts(window, inside):
            out[:, to_rows, to_cols] = strip.data[:, rows, cols]
            known = True if strip.valid is None else strip.valid[rows, cols]  # True alone is written faster
            valid_out[to_rows, to_cols] = known
            complete = complete and (known is True or bool(np.all(known)))
        return complete

    def parts(self, window: Window) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_], slice, slice]]:
        """Yield what this view has of `window`: pixels (C, h, w), where they are valid (h, w), rows and columns.

        Rows and columns are places in `window`; they do not overlap, and what they leave out is not valid.
        """
        for strip, (rows, cols), (to_rows, to_cols) in self._parts(window, self._inside(window)):
            data = strip.data[:, rows, cols]
            known = np.broadcast_to(np.True_, data.shape[1:]) if strip.valid is None else strip.valid[rows, cols]
            yield data, known, to_rows, to_cols

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return self.strips[0].data.dtype

    def any_valid(self, window: Window) -> bool:
        """Return whether a pixel of `window` is valid; as for `copy_into`."""
        return any(
            not strip.empty and (strip.valid is None or bool(strip.valid[rows, cols].any()))
            for strip, (rows, cols), _ in self._parts(window, self._inside(window))
        )

    def _inside(self, window: Window) -> Window | None:
        """Return the part of `window` that the reader reads; GridError where this view lacks it."""
        whole = Window(self.cols.start, self.rows.start, len(self.cols), len(self.rows))
        inside = overlap(window, whole)
        if inside is None:
            return None
        top = self.strips[0].row if self.strips else 0
        bottom = self.strips[-1].row + self.strips[-1].data.shape[1] if self.strips else 0
        if inside.row_off < top or inside.row_off + inside.height > bottom:
            raise GridError(
                f"{window} needs rows {inside.row_off} to {inside.row_off + inside.height}, "
                f"the view has {top} to {bottom}",
                hint="ask RowReader.window for all rows of the band",
                code="E-GRID-121",
            )
        return inside

    def _parts(
        self, window: Window, inside: Window | None
    ) -> Iterator[tuple[Strip, tuple[slice, slice], tuple[slice, slice]]]:
        """Yield each strip under `inside`, its part there, and the place of that in `window`."""
        if inside is None:
            return
        for strip in self.strips:
            own = Window(self.cols.start, strip.row, len(self.cols), strip.data.shape[1])
            part = overlap(inside, own)
            if part is not None:
                yield strip, slices(part, own), slices(part, window)


def join_chunks(
    row: int, data: NDArray[Any], validities: Sequence[Validity], spans: Sequence[slice]
) -> Strip:
    """Return the strip whose chunks have been read into `data`.

    Parameters
    ----------
    row : int
        On the scene's grid.
    data : ndarray, (C, h, w)
        Becomes the strip's, read-only.
    validities : sequence of Validity
        One per chunk; data of a chunk that is False may hold anything.
    spans : sequence of slice
        The columns of each chunk.
    """
    shape = data.shape[1:]
    if all(validity is False for validity in validities):
        nothing = np.broadcast_to(np.zeros((), data.dtype), data.shape)
        return Strip(row, nothing, np.broadcast_to(np.False_, shape), empty=True)
    valid: NDArray[np.bool_] | None = None
    if not all(validity is True for validity in validities):
        valid = np.empty(shape, bool)
        for validity, span in zip(validities, spans, strict=True):
            valid[:, span] = validity
            if validity is False:  # perhaps never read
                data[:, :, span] = 0
        valid.flags.writeable = False
    data.flags.writeable = False
    return Strip(row, data, valid, empty=False)
