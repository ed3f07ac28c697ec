"""Bends: the corners where an outline along pixel edges turns.

What an outline does where four pixels meet depends on those four alone. Around such a corner the
pixels are a b over c d. A bend is named after the one pixel that differs from its two neighbours:
`convex` when that pixel is the region's, `reflex` when it is the one missing. Its two arms are the
edges that meet there. Regions lie on the right hand of their outline.

This is a numeric file: r, c are row and column of a corner, ab whether pixels a and b are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The eight kinds of bend, in the order in which bends at one corner are listed: those with a left
# arm first, and up before down among those of one side, so that neighbours in the list pair up.
#                  convex a  convex c  reflex a  reflex c  convex b  convex d  reflex b  reflex d
BELOW = np.array([False,    True,     True,     False,    False,    True,     True,     False])  # fmt: skip
"""Whether the region lies below the horizontal arm."""
RIGHT_ARM = np.array([False] * 4 + [True] * 4)
"""Whether the horizontal arm goes right; the vertical arm of the kinds with c and d goes down."""
LEFT_SIDE = np.array([True, True, False, False, False, False, True, True])
"""Whether the region lies left of the vertical arm."""
LEAVES_SIDEWAYS = RIGHT_ARM == BELOW
"""Whether the outline leaves the bend along the row; it came along the column then."""
SIGN = np.array([1, -1, -1, 1, -1, 1, 1, -1], dtype=np.int64)
"""Weight of the bend when a summed-area table is summed over a region: that of a less b less c plus d."""
_OWNER = np.array([0, 2, 3, 0, 1, 3, 0, 0])
"""Which of a, b, c, d belongs to the region."""


@dataclass(frozen=True, slots=True)
class Bends:
    """Bends in reading order: row by row, column by column, kind by kind.

    Parameters
    ----------
    row, col : ndarray of int32, (V,)
        The corner where the bend is.
    kind : ndarray of uint8, (V,)
        0..7, as the tables above.
    value : ndarray, (V,)
        The label of the region.
    table : ndarray of int64, (V,), or None
        A summed-area table there.
    saddles : ndarray of int64, (S, 2)
        Pairs of bends at one corner whose regions have one label.
    """

    row: NDArray[np.int32]
    col: NDArray[np.int32]
    kind: NDArray[np.uint8]
    value: NDArray[np.generic]
    table: NDArray[np.int64] | None
    saddles: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: list[Bends]) -> Bends:
        """Return the bends of strips that follow each other."""
        starts = np.cumsum([0] + [len(part.row) for part in parts])
        tables = [part.table for part in parts if part.table is not None]
        return cls(
            row=np.concatenate([part.row for part in parts]),
            col=np.concatenate([part.col for part in parts]),
            kind=np.concatenate([part.kind for part in parts]),
            value=np.concatenate([part.value for part in parts]),
            table=np.concatenate(tables) if len(tables) == len(parts) else None,
            saddles=np.concatenate([part.saddles + s for part, s in zip(parts, starts, strict=False)]),
        )


def find_bends(strip: NDArray[np.generic], first_row: int, table: NDArray[np.int64] | None) -> Bends:
    """Return the bends at the corners between the rows of `strip`.

    Parameters
    ----------
    strip : ndarray, (h + 1, W + 2)
        Labels, 0 outside; the row above them and a column of 0 on either side come with them.
    first_row : int
        Row of the corners above the strip's second row.
    table : ndarray of int64, (h, W + 1), optional
        What to note of each corner.
    """
    beside, over = strip[:, 1:] == strip[:, :-1], strip[1:] == strip[:-1]
    straight = (beside[:-1] & beside[1:]) | (over[:, :-1] & over[:, 1:])
    r, c = np.divmod(np.flatnonzero(~straight), straight.shape[1])  # 5 times faster than a 2-D nonzero
    pixels = np.stack([strip[r, c], strip[r, c + 1], strip[r + 1, c], strip[r + 1, c + 1]])
    kinds = _kinds_at(*pixels)
    at, kind = np.divmod(np.flatnonzero(kinds), 8)
    starts = np.cumsum(kinds.sum(axis=1)) - kinds.sum(axis=1)
    pairs = []
    for first, second, touching in ((0, 5, pixels[0] == pixels[3]), (1, 4, pixels[1] == pixels[2])):
        where = np.flatnonzero(kinds[:, first] & kinds[:, second] & touching)
        pairs.append(
            np.stack([starts[where] + kinds[where, :kind_].sum(axis=1) for kind_ in (first, second)], axis=1)
        )
    return Bends(
        row=(r[at] + first_row).astype(np.int32),
        col=c[at].astype(np.int32),
        kind=kind.astype(np.uint8),
        value=pixels[_OWNER[kind], at],
        table=None if table is None else table[r[at], c[at]],
        saddles=np.concatenate(pairs).astype(np.int64),
    )


def _kinds_at(
    a: NDArray[np.generic], b: NDArray[np.generic], c: NDArray[np.generic], d: NDArray[np.generic]
) -> NDArray[np.bool_]:
    """Return which of the eight kinds of bend stand at corners between pixels a b over c d, (N, 8)."""
    ab, ac, cd, bd = a == b, a == c, c == d, b == d
    in_a, in_b, in_c, in_d = a != 0, b != 0, c != 0, d != 0
    return np.stack(
        [
            ~ab & ~ac & in_a,
            ~ac & ~cd & in_c,
            cd & bd & ~ab & in_d,
            ab & bd & ~cd & in_a,
            ~ab & ~bd & in_b,
            ~cd & ~bd & in_d,
            ac & cd & ~ab & in_a,
            ab & ac & ~cd & in_a,
        ],
        axis=1,
    )
