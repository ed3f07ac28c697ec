"""A learner whose ranks note what they see and do, and fail where a test wants one to.

Import as ``from tests.ranked import ...``: other processes must find it by that name. A test names the folder of
the notes in `NOTES`, and in `KILL` and `POISON` a rank and step such as "1:3". ``python -m tests.ranked`` is the
command line of satseg with that learner, for launchers that start commands.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path

import torch

from satseg.learning.training.learner import Learner

NOTES, KILL, POISON = "RANKED_NOTES", "RANKED_KILL", "RANKED_POISON"


def digest(tensors) -> str:
    """Digest of the bytes of `tensors`, in order."""
    return sha256(b"".join(tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


class Watched(Learner):
    """Notes chips and loss of each step, its process, and its weights at the end."""

    def training_step(self, batch, number):
        place = f"{self.global_rank}:{self.global_step}"
        if os.environ.get(KILL) == place:
            os.kill(os.getpid(), signal.SIGKILL)
        loss, plain = None, self.loss
        self.loss = lambda *args: plain(*args) * (float("nan") if os.environ.get(POISON) == place else 1.0)
        try:
            loss = super().training_step(batch, number)
        finally:
            self.loss = plain
        chips = [digest([image]) for image in batch[0]]
        self.note("steps", place, {"chips": chips, "loss": None if loss is None else float(loss.detach())})
        return loss

    def on_train_start(self):
        super().on_train_start()
        self.note("processes", str(self.global_rank), os.getpid())

    def on_train_end(self):
        said = {"weights": digest(self.network.state_dict().values()), "skipped": self.skipped}
        if self.hardness is not None:
            state = self.hardness.state()
            said |= {"hard": digest(state[name] for name in ("weights", "errors", "seen"))}
            said |= {"uneven": bool((state["weights"] != 1).any())}
        self.note("ends", str(self.global_rank), said)

    def note(self, kind: str, key: str, said: object) -> None:
        folder = Path(os.environ[NOTES], kind)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / key).write_text(json.dumps(said))


def notes(folder: Path, kind: str) -> dict:
    """What was noted of a kind, by key."""
    return {path.name: json.loads(path.read_text()) for path in sorted((folder / kind).iterdir())}


class Endless:
    """A pickle that takes ten minutes to read."""

    def __reduce__(self):
        return time.sleep, (600,)


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether two networks have the same bits."""
    return digest(first.state_dict().values()) == digest(second.state_dict().values())


if __name__ == "__main__":
    from satseg.cli.main import main
    from satseg.learning.training import recipe

    recipe.Learner = Watched
    sys.exit(main(sys.argv[1:]))
