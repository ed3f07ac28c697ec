"""Fixtures shared by all tests: the folder of real imagery, and small scenes made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Several torch threads on shared cores spin and slow small tests down many times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of openly licensed imagery: $SATSEG_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("SATSEG_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real imagery not found at {folder}; set SATSEG_DATA to its folder")
    return folder
