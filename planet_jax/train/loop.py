"""One stage, from its start or its last checkpoint to its end.

The order is: evaluate → checkpoint → next batch → step. A step's loss is read after the next step
has been sent off, so the device never waits for the host.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from planet_jax.config import flatten
from planet_jax.data.loader import Batch
from planet_jax.errors import BadInput, RunFailed
from planet_jax.progress import Advance, progress, say
from planet_jax.train.checkpoint import Checkpoints, Flat, from_host, read_meta, to_host
from planet_jax.train.records import HISTORY_COLUMNS, STEP_COLUMNS, Smooth, Table
from planet_jax.train.stage import Stage, abstract_variables
from planet_jax.train.steps import TrainState, create_state

SIGTERM_STATUS = 143
# A run may go on although these differ: they do not change its numbers.
FREE_KNOBS = {
    "workdir", "checkpoint", "stages", "data.source", "data.root", "data.cache", "data.decoded",
    "data.threads", "data.kaggle_competition", "data.kaggle_mirror", "data.test_chips",
    "train.save_every", "lr_range.in_journey", "lr_range.steps", "lr_range.low", "lr_range.high",
    "predict.folder",
}  # fmt: skip


def train(stage: Stage, run: Path) -> None:
    """Trains `stage` in the run folder `run`, going on from its latest checkpoint if it has one.

    Writes checkpoints/, steps.csv and history.csv.

    Raises:
      BadInput: the run was begun with other knobs, labels or another model.
      RunFailed: the loss or a parameter is no longer finite; the last good checkpoint stays.
      SystemExit: 143, after SIGTERM and a save.
    """
    with Checkpoints(run) as checkpoints, _termination() as terminated:
        work = _Run(stage, run, checkpoints)
        with progress(str(run), stage.steps, "steps", done=work.step) as advance:
            while True:
                if work.epoch_ended():
                    work.evaluate()
                if work.save_is_due() or terminated.is_set():
                    work.save()
                if terminated.is_set():
                    say(f"{run}: SIGTERM after step {work.step}: saved; the same command goes on")
                    raise SystemExit(SIGTERM_STATUS)
                if work.step == stage.steps:
                    return
                work.take_step(advance)


def finished(config: ConfigDict, run: Path) -> bool:
    """Whether the run folder holds the last step of this very config.

    Raises:
      BadInput: it was begun with other knobs.
    """
    meta = read_meta(run, "latest")
    if meta is None:
        return False
    _check_same(meta, config, run)
    return meta["step"] == meta["steps"]


def _check_same(meta: dict[str, Any], config: ConfigDict, run: Path) -> None:
    before = meta["config"]
    differing = [
        f"{name} was {before.get(name)!r} and is {_plain(value)!r}"
        for name, value in flatten(config).items()
        if name not in FREE_KNOBS and before.get(name) != _plain(value)
    ]
    if differing:
        raise BadInput(
            f"{run} was begun with other knobs: {'; '.join(differing)}; "
            "set workdir to a new folder, or remove this one to begin again"
        )


@contextlib.contextmanager
def _termination() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM sets (signals reach the main thread alone)."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        event.set()

    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class _Run:
    """A stage under way: the state, the tables, and the step whose loss is still to be read."""

    def __init__(self, stage: Stage, run: Path, checkpoints: Checkpoints) -> None:
        self.stage, self.run, self.checkpoints = stage, run, checkpoints
        found = checkpoints.latest()
        meta: dict[str, Any] = {}
        if found is None:
            self.step, self.state = 0, stage.start_state()
        else:
            self.step, items, meta = found
            _check_same(meta, stage.config, run)
            stage.check_rows(meta, run)
            self.state = self._restore(items)
            say(f"{run}: goes on after step {self.step} of {stage.steps}")
        self.saved_at = self.step
        self.steps = Table(run / "steps.csv", STEP_COLUMNS, meta.get("steps_csv", ""))
        self.history = Table(run / "history.csv", HISTORY_COLUMNS, meta.get("history_csv", ""))
        self.smooth = Smooth()
        for loss in self.steps.column("loss"):
            self.smooth.add(loss)
        self.batches: Iterator[Batch] = stage.train_batches(self.step)
        self.pending: tuple[int, jax.Array] | None = None  # the step sent off last, and its loss
        self.waited = 0.0  # seconds for input since the clock was set
        self.clock = self.epoch_began = time.monotonic()

    def _restore(self, items: dict[str, Flat]) -> TrainState:
        freeze = self.stage.config.optim.freeze
        classes = len(self.stage.data.labels.classes)
        template = jax.eval_shape(lambda v: create_state(v, freeze), abstract_variables(classes))
        return from_host(items["weights"] | items["optimizer"], template, str(self.run))

    def epoch_ended(self) -> bool:
        """Whether an epoch has ended that history does not have yet."""
        epochs = self.step // self.stage.steps_per_epoch
        return self.step % self.stage.steps_per_epoch == 0 and epochs > self.epochs_done

    @property
    def epochs_done(self) -> int:
        """Rows of history."""
        return len(self.history.column("epoch"))

    def evaluate(self) -> None:
        """Scores the validation chips; a new row of history, and perhaps a new best."""
        self._settle()
        scores, _ = self.stage.evaluate(self.state.variables)
        better = scores["fbeta"] > max(self.history.column("fbeta"), default=-1.0)
        seconds = time.monotonic() - self.epoch_began
        epoch = self.epochs_done
        self.history.add(epoch, self.smooth.value, *scores.values(), round(seconds, 2))
        figures = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        say(f"{self.run}: epoch {epoch}  train_loss {self.smooth.value:.4f}  {figures}")
        if better:
            self._save("best", {"weights": self._host_weights()})
        self.clock = self.epoch_began = time.monotonic()

    def save_is_due(self) -> bool:
        """At the end of every epoch, and every `train.save_every` steps since."""
        every = self.stage.config.train.save_every
        at_epoch = self.step % self.stage.steps_per_epoch == 0
        due = at_epoch or (every > 0 and self.step % every == 0)
        return due and self.step > self.saved_at

    def save(self) -> None:
        """Starts to save what a resumed run needs."""
        self._settle()
        optimizer = to_host({"step": self.state.step, "opt_state": self.state.opt_state})
        self._save("latest", {"weights": self._host_weights(), "optimizer": optimizer})
        self.saved_at = self.step
        self.clock = time.monotonic()

    def _host_weights(self) -> Flat:
        weights = to_host(self.state.variables)
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise self._diverged(self.step - 1, "a parameter")
        return weights

    def _save(self, kind: str, items: dict[str, Flat]) -> None:
        meta = {
            "step": self.step,
            "steps": self.stage.steps,
            "first_epoch": self.stage.first_epoch,
            "config": flatten(self.stage.config),
            "classes": list(self.stage.data.labels.classes),
            **self.stage.rows_digests(),
            "steps_csv": self.steps.text,
            "history_csv": self.history.text,
        }
        self.checkpoints.save(kind, self.step, items, meta)

    def take_step(self, advance: Advance) -> None:
        """Sends off the next step, then reads the loss of the one before."""
        began = time.monotonic()
        batch = next(self.batches)
        self.waited += time.monotonic() - began
        schedule = self.stage.schedule
        self.state, loss = self.stage.take_step(
            self.state, batch, schedule.lr[self.step], schedule.beta1[self.step]
        )
        self._settle()
        self.pending = (self.step, loss)
        self.step += 1
        advance(note=f"loss {self.smooth.value:.4f}" if self.smooth.n else "")

    def _settle(self) -> None:
        """Reads the pending loss, which waits for its step, and writes its row."""
        if self.pending is None:
            return
        step, loss_on_device = self.pending
        self.pending = None
        loss = float(loss_on_device)
        if not math.isfinite(loss):
            raise self._diverged(step, "the loss")
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        waited, self.waited = self.waited, 0.0
        schedule = self.stage.schedule
        self.steps.add(
            step,
            loss,
            self.smooth.add(loss),
            *schedule.lr[step].tolist(),
            float(schedule.beta1[step]),
            round(self.stage.config.data.batch_size / seconds, 2),
            round(min(waited / seconds, 1.0), 4),
        )

    def _diverged(self, step: int, what: str) -> RunFailed:
        kept = f"the checkpoint of step {self.saved_at}" if self.saved_at else "no checkpoint"
        return RunFailed(
            f"{self.run}: {what} is not finite at step {step}; {kept} is kept; "
            "lower config.optim.lr (see the lr_range command) or look at the chips"
        )


def _plain(value: Any) -> Any:
    """As JSON gives it back: a checkpoint's config has lists for tuples."""
    return list(value) if isinstance(value, tuple) else value
