"""The folder of a run: where it is, whether it is this run's, and what an earlier run left in it.

A run notes its options and data in ``run.toml``. A folder with another note, or with files that are of no run,
is refused before anything is written; resuming asks for the very same note. Data are noted by content (`ledger`'s
sample of a file's bytes, all of the labels), not by name alone: labels that were mended in between are other data.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

from satseg.errors import OutputError, UsageError
from satseg.learning.ground.pairs import Pair, PathLike
from satseg.ledger import identity_of
from satseg.output import os_errors_as_output_errors, write_text

PAGE = "report.html"
"""Of a finished run."""
SPLIT_PICTURE = "split.png"
"""Of a plan; the only file that a folder without a run may hold."""


def run_place(run_dir: PathLike | None, output: PathLike | None) -> Path | None:
    """The folder for checkpoints and logs; None, for a temporary one, when the caller names neither."""
    if run_dir is not None:
        return Path(run_dir)
    return None if output is None else Path(output).with_suffix(".run")


def told(pairs: Sequence[Pair], valid_pairs: Sequence[Pair]) -> str:
    """The data of a run as comments for its note: what a resumed run must share with it."""
    lines = []
    for role, group in (("data", pairs), ("valid-data", valid_pairs)):
        for pair in group:
            files = ", ".join(map(os.path.realpath, pair.scene.paths))
            moved = [one for one in pair.scene.registrations if one.is_moved]
            files += "".join(f", moved {-one.rows} rows {-one.cols} columns {-one.turn_deg} degrees" for one in moved)
            counts = pair.labels["class_name"].value_counts().sort_index()
            labels = ", ".join(f"{n} {name}" for name, n in counts.items())
            digests = [str(identity_of(path)["sha256"]) for path in pair.scene.paths if os.path.isfile(path)]
            sampled = f" {', '.join(digests)} of a sample of the files," if digests else ""
            lines.append(f"# {role}: {files}; {labels}; sha256{sampled} {pair.labels_sha256} of the labels")
    return "\n".join([*lines, ""])


def check_run(folder: Path, run: str, *, resume: bool, overwrite: bool, option: str = "--run-dir") -> None:
    """Raise when `folder`, given by `option`, holds another run than that noted in `run`, or cannot be this one's."""
    note = folder / "run.toml"
    with os_errors_as_output_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is no folder", hint=f"give another {option}", code="E-OUT-011")
        earlier = note.read_text(encoding="utf-8") if note.exists() else None
        strange = earlier is None and folder.is_dir() and any(path.name != SPLIT_PICTURE for path in folder.iterdir())
    if strange:
        raise OutputError(f"{folder} holds files that are of no run", hint=f"give another {option}", code="E-OUT-012")
    if earlier is not None and resume and earlier != run:
        lines = zip_longest(earlier.splitlines(), run.splitlines(), fillvalue="nothing")
        there, here = next((pair for pair in lines if pair[0] != pair[1]), (earlier, run))
        raise UsageError(
            f"{note} was written by a run with other options or data: {there!r} there, {here!r} here",
            hint="resume with the same ones, or give --overwrite to start anew",
            code="E-TRN-006",
        )
    if earlier is not None and not (resume or overwrite):
        raise OutputError(
            f"{folder} holds an earlier run", hint="give --resume to go on with it or --overwrite", code="E-OUT-010"
        )


@contextmanager
def run_folder(place: Path | None, run: str, *, resume: bool, leads: bool = True) -> Iterator[Path]:
    """Make `place` this run's folder, or a temporary one, and clear what an earlier run left there.

    A process of a training that does not lead leaves that to the one that does.
    """
    if place is None:
        with tempfile.TemporaryDirectory(prefix="satseg-run-") as scratch:
            yield Path(scratch)
        return
    if leads and not (resume and (place / "run.toml").exists()):
        with os_errors_as_output_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            for old in (*place.glob("*.ckpt"), *place.glob("events.out.*"), *place.glob("metrics*.csv"), place / PAGE):
                old.unlink(missing_ok=True)
        write_text(place / "run.toml", run, overwrite=True)
    yield place
