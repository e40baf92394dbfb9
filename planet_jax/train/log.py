"""The tables of a run folder: `steps.csv`, written as the run goes, and `history.csv`.

Their text travels in the checkpoints, so a run that resumes has exactly the rows of its past,
whatever a crash did to the files. All times are of a clock that nobody sets.
"""

import contextlib
import importlib.metadata
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from planet_jax.config import flatten
from planet_jax.runtime import distributed
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import add_path_to_errors, atomic_file

SMOOTHING = 0.98  # fastai's beta for the training loss
STEP_COLUMNS = (
    "step", "loss", "smooth_loss", "lr_group0", "lr_group1", "lr_group2", "beta1",
    "images_per_second", "input_wait", "save_stall",
)  # fmt: skip
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
HISTORY_COLUMNS = ("epoch", "train_loss", "valid_loss", "accuracy_thresh", "fbeta", "time")


class Smooth:
    """fastai's SmoothenValue: a debiased exponential average."""

    def __init__(self, beta: float = SMOOTHING) -> None:
        self.beta, self.average, self.n, self.value = beta, 0.0, 0, float("nan")

    def add(self, value: float) -> float:
        """Takes one more value and returns the average so far."""
        self.n += 1
        self.average = self.beta * self.average + (1 - self.beta) * value
        self.value = self.average / (1 - self.beta**self.n)
        return self.value


class Table:
    """A CSV file that grows by rows of numbers; `text` is all of it. Process 0 keeps the file."""

    def __init__(self, path: Path, columns: tuple[str, ...], text: str = "") -> None:
        self.path, self.columns, head = path, columns, ",".join(columns) + "\n"
        if text and not text.startswith(head):
            raise BadInput(f"{path}: the run was begun by another planet_jax, with other columns")
        self._parts = [text or head]
        with atomic_file(path) as temporary:
            temporary.write_text(self._parts[0])

    @property
    def text(self) -> str:
        """The whole file, as it goes into a checkpoint."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def column(self, name: str) -> list[float]:
        """One column's numbers."""
        i = self.columns.index(name)
        return [float(line.split(",")[i]) for line in self.text.splitlines()[1:]]

    def add(self, *values: float) -> None:
        """Appends a row; floats are written so that they read back the same."""
        row = ",".join(repr(value) for value in values) + "\n"
        self._parts.append(row)
        if distributed.is_main_process():
            with add_path_to_errors(self.path), self.path.open("a") as file:
                file.write(row)


class Records:
    """Both tables of a run, the smoothed loss, and the clocks of the step and the epoch under way.

    `saved` is what `to_save` gave when the run was saved; {} for a run's start.

    Attributes:
      smooth: the training loss, smoothed.
      epochs: rows of history so far.
    """

    def __init__(self, run: Path, saved: Mapping[str, str]) -> None:
        self._steps = Table(run / "steps.csv", STEP_COLUMNS, saved.get("steps_csv", ""))
        self._history = Table(run / "history.csv", HISTORY_COLUMNS, saved.get("history_csv", ""))
        self.smooth = Smooth()
        for loss in self._steps.column("loss"):
            self.smooth.add(loss)
        self._scores = self._history.column("fbeta")
        self.begin_epoch()

    @property
    def epochs(self) -> int:
        return len(self._scores)

    def to_save(self) -> dict[str, str]:
        """The tables, for a checkpoint."""
        return {"steps_csv": self._steps.text, "history_csv": self._history.text}

    def begin_epoch(self) -> None:
        """Sets the clocks: the next step, and the next epoch, begin now."""
        self._epoch_began = self._step_began = time.monotonic()
        self._waits = {"input": 0.0, "save": 0.0}

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """The step under way waits, for its `input` or for a `save`, as long as the block takes."""
        began = time.monotonic()
        yield
        self._waits[what] += time.monotonic() - began

    def add_step(
        self, step: int, loss: float, lr: Sequence[float], beta1: float, chips: int
    ) -> None:
        """A row of steps.csv; what the step took is counted without the save's stall."""
        now, stall = time.monotonic(), self._waits["save"]
        seconds = max(now - self._step_began - stall, 1e-9)
        share = min(self._waits["input"] / seconds, 1.0)
        self._step_began, self._waits = now, {"input": 0.0, "save": 0.0}
        figures = round(chips / seconds, 2), round(share, 4), round(stall, 4)
        self._steps.add(step, loss, self.smooth.add(loss), *lr, beta1, *figures)

    def add_epoch(self, valid_loss: float, accuracy_thresh: float, fbeta: float) -> bool:
        """A row of history.csv; whether its F2 is the best so far."""
        seconds = round(time.monotonic() - self._epoch_began, 2)
        scores = valid_loss, accuracy_thresh, fbeta
        self._history.add(self.epochs, self.smooth.value, *scores, seconds)
        best = fbeta > max(self._scores, default=-1.0)
        self._scores.append(fbeta)
        self.begin_epoch()
        return best


def provenance(config: ConfigDict) -> dict[str, Any]:
    """What config.json and every checkpoint tell: the options, and what ran them."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "config": flatten(config),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_commit": commit or None,
        "devices": [device.device_kind for device in jax.devices()],
        "hosts": jax.process_count(),
    }
