"""Fixtures shared by all tests: the folder of real imagery, a disk that is soon full, a town for commands.

The parts of the town import satseg when they are asked for: tests of imports must find it not imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
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


@pytest.fixture(scope="session", autouse=True)
def heard_interrupts() -> None:
    """Ctrl-C means what it means on a terminal: a shell hands an ignored SIGINT down to what it starts with &."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of the size that the test's module states as DISK_SIZE."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={request.module.DISK_SIZE}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """Folder of small scenes with labels, and of a model, for tests of the command line."""
    from tests.commands import build_town

    return build_town(tmp_path_factory.mktemp("town"))


@pytest.fixture
def run(capfd):
    """Run the command line on some arguments; see `tests.commands.Outcome`."""
    from tests.commands import command_of

    return command_of(capfd)


@pytest.fixture
def detect(run, town):
    """Run `satseg detect` with the town's model."""
    return lambda *args: run("detect", town / "model.safetensors", *args, "--device", "cpu")


@pytest.fixture(scope="module")
def expected(town):
    """What the library finds in the town's scene a."""
    import satseg

    return satseg.detect(town / "model.safetensors", town / "a.tif")
