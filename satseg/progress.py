"""How long calls tell what they are doing, without a bar in the library.

A `Progress` is any callable ``progress(stage, done, total, note)``: the stage's name, how much of
it is done and in all (any unit), and a short note such as the current Jaccard. The command line
draws bars from it; a notebook may print it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, float, float, str], None]


def silent(stage: str, done: float, total: float, note: str) -> None:
    """Ignore progress: the default of every call that reports it."""
