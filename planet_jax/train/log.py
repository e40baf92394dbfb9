"""The tables of a run: steps.csv (a row per training step) and history.csv (a row per epoch).

A checkpoint holds the lengths and SHA-256 of the tables. A resumed run uses these to cut off the
rows of steps that it repeats. Times come from a monotonic clock.
"""

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from planet_jax.runtime.distributed import is_main_process
from planet_jax.runtime.errors import RunFailed
from planet_jax.runtime.files import add_path_to_errors, atomic_path, fsync
from planet_jax.runtime.progress import notify
from planet_jax.train.optimizer import Schedule

SMOOTHING = 0.98  # fastai's beta for the training loss
STEP_COLUMNS = (
    "step", "loss", "smooth_loss", "lr_group0", "lr_group1", "lr_group2", "beta1",
    "images_per_second", "input_wait", "save_stall",
)  # fmt: skip
SCORES = ("valid_loss", "accuracy_thresh", "fbeta")
HISTORY_COLUMNS = ("epoch", "train_loss", *SCORES, "time")
EMA_SCORES = ("valid_loss", "fbeta")  # further columns with optim.ema_decay: ema_valid_loss, ...
Follow = Callable[[str, dict[str, float]], None]  # a table's name, and a row that it got


@dataclasses.dataclass
class Smooth:
    """fastai's `SmoothenValue`: a debiased exponential average."""

    average: float = 0.0
    count: int = 0

    def add(self, value: float) -> float:
        """Add one value and return the average."""
        self.count += 1
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * value
        return self.value

    @property
    def value(self) -> float:
        """The average of all values; NaN before the first."""
        return self.average / (1 - SMOOTHING**self.count) if self.count else math.nan


@dataclasses.dataclass(frozen=True)
class Mark:
    """A file's length in bytes and the SHA-256 of its content so far."""

    length: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class LogState:
    """The state of the log in a checkpoint; its size does not grow with the run."""

    steps: Mark
    history: Mark
    smooth: Smooth
    epochs: int  # rows of history.csv
    best_fbeta: float
    epochs_since_best: int = 0


def ends_early(patience: int, epochs_since_best: int) -> bool:
    """Return whether `train.patience` ends a run after this many epochs without a better F2."""
    return 0 < patience <= epochs_since_best


class Table:
    """A CSV file that grows by rows of numbers; only the main process writes the file."""

    def __init__(
        self, path: Path, columns: tuple[str, ...], mark: Mark | None, follow: Follow | None = None
    ) -> None:
        """Start the file, or cut it back to `mark`. Each row is passed to `follow` too.

        A file that does not match `mark` is renamed NAME.damaged, and a new one is started.
        """
        self.path, self._columns, self._follow = path, columns, follow
        header = (",".join(columns) + "\n").encode()
        content = header
        if mark is not None and is_main_process():
            content = path.read_bytes()[: mark.length] if path.exists() else b""
            if hashlib.sha256(content).hexdigest() != mark.sha256:
                notify(f"{path}: damaged or missing; training continues without its old rows")
                if path.exists():
                    path.replace(path.with_name(f"{path.name}.damaged"))
                content = header
        self.length, self.sha256 = len(content), hashlib.sha256(content)
        if is_main_process():
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)

    def add(self, *values: float) -> None:
        """Append a row; each float has enough digits to be read back exactly."""
        row = (",".join(repr(value) for value in values) + "\n").encode()
        self.length += len(row)
        self.sha256.update(row)
        if is_main_process():
            with add_path_to_errors(self.path), self.path.open("ab") as file:
                file.write(row)
        if self._follow:
            self._follow(self.path.stem, dict(zip(self._columns, values, strict=True)))

    def mark(self) -> Mark:
        """Flush the file to the disk and return its mark."""
        if is_main_process():
            fsync(self.path)
        return Mark(self.length, self.sha256.hexdigest())


class TrainLog:
    """Write steps.csv and history.csv; a step's row is written after the next step's dispatch.

    Attributes:
      smooth: the smoothed training loss.
      epochs: number of rows in history.csv.
      epochs_since_best: epochs after the one with the best F2.
    """

    def __init__(
        self, run: Path, schedule: Schedule, batch_size: int, ema: bool, state: LogState | None,
        follow: Follow | None = None,
    ) -> None:  # fmt: skip
        self._run, self._schedule, self._batch_size = run, schedule, batch_size
        steps = state.steps if state else None
        self._steps = Table(run / "steps.csv", STEP_COLUMNS, steps, follow)
        history = state.history if state else None
        columns = HISTORY_COLUMNS + tuple(f"ema_{name}" for name in EMA_SCORES if ema)
        self._history = Table(run / "history.csv", columns, history, follow)
        self.smooth = dataclasses.replace(state.smooth) if state else Smooth()
        self.epochs = state.epochs if state else 0
        self.epochs_since_best = state.epochs_since_best if state else 0
        self._best_fbeta = state.best_fbeta if state else -1.0
        self._pending: tuple[int, jax.Array] | None = None
        self._start_clocks()

    def state(self) -> LogState:
        """Flush both files and return what a checkpoint needs."""
        smooth = dataclasses.replace(self.smooth)
        return LogState(
            self._steps.mark(), self._history.mark(), smooth, self.epochs, self._best_fbeta,
            self.epochs_since_best,
        )  # fmt: skip

    def _start_clocks(self) -> None:
        self._epoch_start = self._step_start = time.monotonic()
        self._waits = {"input": 0.0, "save": 0.0}

    @contextlib.contextmanager
    def waiting(self, cause: str) -> Iterator[None]:
        """Count the time of the block as a wait of this step; `cause` is `input` or `save`."""
        start = time.monotonic()
        yield
        self._waits[cause] += time.monotonic() - start

    def add_step(self, step: int, loss: jax.Array) -> None:
        """Write the row of the previous step, because this step's loss is still being computed.

        Raises:
          RunFailed: the loss of the previous step is not finite.
        """
        self.flush()
        self._pending = step, loss

    def flush(self) -> None:
        """Wait for the last step's loss and write its row.

        Raises:
          RunFailed: the loss is not finite.
        """
        if self._pending is None:
            return
        (step, device_loss), self._pending = self._pending, None
        loss = float(device_loss)
        if not math.isfinite(loss):
            raise divergence_error(self._run, "the loss", step)
        now, stall = time.monotonic(), self._waits["save"]
        seconds = max(now - self._step_start - stall, 1e-9)
        input_wait = min(self._waits["input"] / seconds, 1.0)
        self._step_start, self._waits = now, {"input": 0.0, "save": 0.0}
        self._steps.add(
            step, loss, self.smooth.add(loss), *self._schedule.lr[step].tolist(),
            float(self._schedule.beta1[step]), round(self._batch_size / seconds, 2),
            round(input_wait, 4), round(stall, 4),
        )  # fmt: skip

    def add_epoch(self, scores: dict[str, float], ema: dict[str, float] | None = None) -> bool:
        """Write a row of history.csv; return whether its F2 is the best so far.

        `scores` and `ema`, those of the averaged weights, are by column, as in SCORES.
        """
        seconds = round(time.monotonic() - self._epoch_start, 2)
        values = [scores[name] for name in SCORES]
        more = [ema[name] for name in EMA_SCORES] if ema else []
        self._history.add(self.epochs, self.smooth.value, *values, seconds, *more)
        fbeta = scores["fbeta"]
        self.epochs += 1
        is_best = fbeta > self._best_fbeta
        self._best_fbeta = max(fbeta, self._best_fbeta)
        self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
        self._start_clocks()
        return is_best


def divergence_error(run: Path, what: str, step: int) -> RunFailed:
    """Return the error of a run that diverged."""
    return RunFailed(
        f"{run}: {what} is not finite at step {step}; earlier checkpoints are kept; "
        "lower config.optim.lr (see the lr_range command) or check the chips"
    )
