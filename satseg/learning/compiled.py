"""How loops over pixels are compiled in learning: for stated types, once, and kept.

numba keeps what it compiled beside the file or in the user's cache folder; where there is no such folder, each
process compiles anew, with a warning. Rejected: open signatures, which compile again for every layout of memory that
is met, in the middle of a run; and the tracer's way (`vector/runs.py`), which compiles at the first call for the
types of that call, of which it has few.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba

log = logging.getLogger(__name__)


def readonly(number: Any, dimensions: int) -> Any:
    """Return numba's type of an array in any order of memory that is not written to."""
    return numba.types.Array(number, dimensions, "A", readonly=True)


def compiled(function: Callable[..., None], *types: Any) -> Callable[..., None]:
    """Return `function` for arguments of `types` alone: an open signature would compile for every layout."""
    try:
        made = numba.njit(numba.void(*types), nogil=True, cache=True)(function)
    except RuntimeError as error:  # no folder to keep it in
        log.warning("%s: compiled anew in every process", error)
        made = numba.njit(numba.void(*types), nogil=True)(function)
    result: Callable[..., None] = made
    return result
