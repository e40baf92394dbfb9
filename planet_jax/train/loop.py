"""One stage, from its start or its last checkpoint to its end.

The order is: evaluate → checkpoint → next batch → step. A step's loss is read after the next step
has been sent off, so the device never waits for the host.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from planet_jax.config import flatten, may_change_on_resume, translate_saved
from planet_jax.data.loader import Batch
from planet_jax.runtime import distributed, signals
from planet_jax.runtime.errors import BadInput, RunFailed
from planet_jax.runtime.files import write_json
from planet_jax.runtime.progress import Advance, notify, progress
from planet_jax.train.checkpoint import Checkpoints, Flat, Meta, from_host, read_meta, to_host
from planet_jax.train.log import Records, provenance
from planet_jax.train.stage import Stage, abstract_variables
from planet_jax.train.steps import TrainState, create_state


def train(stage: Stage, run: Path) -> None:
    """Trains `stage` in the run folder `run`, going on from its latest checkpoint if it has one.

    Writes checkpoints/, config.json, steps.csv and history.csv.

    Raises:
      BadInput: the run was begun with other options, labels or another model; it cannot be saved.
      RunFailed: the loss or a parameter is no longer finite; the last good checkpoint stays.
      Stopped: by SIGTERM, after a save.
    """
    with Checkpoints(run) as checkpoints:
        work = _Run(stage, run, checkpoints)
        with (
            signals.save_first(work.unsaved) as sigterm,
            progress(str(run), stage.steps, "steps", done=work.step) as advance,
        ):
            while True:
                if work.epoch_ended():
                    work.evaluate(sigterm)
                if distributed.stop_requested():
                    sigterm.asked = True
                if work.save_is_due() or (sigterm.asked and work.moved):
                    work.save()
                if sigterm.asked or work.step == stage.steps:
                    checkpoints.wait()
                    break
                work.take_step(advance)
                checkpoints.raise_failure()
    if sigterm.asked:
        notify(f"{run}: SIGTERM after step {work.step}: saved; the same command goes on")
        raise signals.Stopped(signals.SIGTERM_STATUS)


def finished(config: ConfigDict, run: Path) -> bool:
    """Whether the run folder holds the last step of this very config, and its scores.

    Raises:
      BadInput: it was begun with other options, and `train.allow_changes` does not say to go on.
    """
    meta = read_meta(run, "latest")
    if meta is None:
        return False
    scored = meta["history_csv"].count("\n") - 1  # SIGTERM saves without waiting for the last
    whole = meta["steps"], meta["steps"] // meta["steps_per_epoch"]
    return not _changes(meta, config, run) and (meta["step"], scored) == whole


def _changes(meta: Meta, config: ConfigDict, run: Path) -> dict[str, Any]:
    """The options that were others when the run was saved, as they were then.

    Raises:
      BadInput: there are some, and `train.allow_changes` does not say to go on.
    """
    now = {name: _plain(value) for name, value in flatten(config).items()}
    before = translate_saved(meta["config"], run)
    differing = [
        name for name in now if not may_change_on_resume(name) and before[name] != now[name]
    ]
    if differing and not config.train.allow_changes:
        listed = "; ".join(
            f"{name} was {before[name]!r} and is {now[name]!r}" for name in differing
        )
        raise BadInput(
            f"{run} was begun with other options: {listed}; set workdir to a new folder, remove this "
            "one to begin again, or set train.allow_changes=True to go on with the new options"
        )
    return {name: before[name] for name in differing}


class _Run:
    """A stage under way: the state, its records, and the step whose loss is still to be read."""

    def __init__(self, stage: Stage, run: Path, checkpoints: Checkpoints) -> None:
        self.stage, self.run, self.checkpoints = stage, run, checkpoints
        self.provenance = {**provenance(stage.config), "forced": []}
        found = checkpoints.latest()
        meta: Meta = {}
        if found is None:
            self.step, self.state = 0, stage.start_state()
        else:
            self.step, items, meta = found
            self._check(meta)
            self.state = self._restore(items)
            notify(f"{run}: goes on after step {self.step} of {stage.steps}")
        forced_now = self.provenance["forced"] != meta.get("forced", [])
        if forced_now or not (run / "config.json").exists():
            write_json(run / "config.json", self.provenance)
        self.records = Records(run, meta)
        self.is_best = False  # of this step's weights, right after they were scored
        self.batches: Iterator[Batch] = stage.train_batches(self.step)
        self.pending: tuple[int, jax.Array] | None = None  # the step sent off last, and its loss
        self.saved, self.saved_time = (self.step, self.records.epochs), time.monotonic()

    def _check(self, meta: Meta) -> None:
        """Sees to it that the run may go on from this checkpoint, and how exactly it can."""
        stage, force = self.stage, self.stage.config.train.allow_changes
        changes, rows = _changes(meta, stage.config, self.run), stage.rows_digests()
        if force:
            changes |= {kind: meta[kind] for kind in rows if meta[kind] != rows[kind]}
        else:
            stage.check_rows(meta, self.run)
        if meta["steps_per_epoch"] != stage.steps_per_epoch or self.step > stage.steps:
            raise BadInput(
                f"{self.run}: not even train.allow_changes can go on after step {self.step} of "
                f"{meta['steps']}, {meta['steps_per_epoch']} an epoch, with {stage.steps} steps, "
                f"{stage.steps_per_epoch} an epoch; set workdir to a new folder"
            )
        self.provenance["forced"] = meta["forced"] + (
            [{"after_step": self.step, "was": changes}] if changes else []
        )
        if changes:
            notify(
                f"{self.run}: train.allow_changes: goes on although {', '.join(changes)} changed"
            )
        for name in ("versions", "devices"):
            if meta[name] != self.provenance[name]:
                notify(f"{self.run}: was begun with other {name}: equal to the bit it may not end")

    def _restore(self, items: dict[str, Flat]) -> TrainState:
        config = self.stage.config
        shapes = abstract_variables(len(self.stage.data.labels.classes), config.model.name)
        template = jax.eval_shape(lambda v: create_state(v, config.optim.freeze), shapes)
        return from_host(items["weights"] | items["optimizer"], template, str(self.run))

    def epoch_ended(self) -> bool:
        """Whether an epoch has ended that history does not have yet."""
        epochs = self.step // self.stage.steps_per_epoch
        return self.step % self.stage.steps_per_epoch == 0 and epochs > self.records.epochs

    def evaluate(self, sigterm: signals.SaveFirst) -> None:
        """Scores the validation chips: a new row of history. SIGTERM leaves it to a later run."""
        self._settle()
        try:
            scores, _ = self.stage.evaluate(self.state.variables, lambda: sigterm.asked)
        except signals.Stopped:
            return
        epoch, loss = self.records.epochs, self.records.smooth.value
        self.is_best = self.records.add_epoch(**scores)
        figures = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        notify(f"{self.run}: epoch {epoch}  train_loss {loss:.4f}  {figures}")

    @property
    def moved(self) -> bool:
        """Whether a step was taken, or an epoch scored, since the last save."""
        return (self.step, self.records.epochs) != self.saved

    def unsaved(self) -> bool:
        """Whether steps would be lost if the process ended now."""
        return self.moved or self.checkpoints.saving

    def save_is_due(self) -> bool:
        """At the end of an epoch; after `train.save_every` steps or `train.save_minutes`."""
        if not self.moved:
            return False
        options, minutes = self.stage.config.train, (time.monotonic() - self.saved_time) / 60
        return (
            self.step % self.stage.steps_per_epoch == 0
            or (options.save_every > 0 and self.step % options.save_every == 0)
            or 0 < options.save_minutes <= minutes
        )

    def save(self) -> None:
        """Starts to save what a resumed run needs, and apart from it the best weights."""
        self._settle()
        with self.records.waiting("save"):
            self.checkpoints.wait()  # at most one copy is held for the disk
            weights = to_host(self.state.variables)
            if not all(np.isfinite(array).all() for array in weights.values()):
                raise self._diverged(self.step - 1, "a parameter")
            optimizer = to_host({"step": self.state.step, "opt_state": self.state.opt_state})
            kinds = {"best": {"weights": weights}} if self.is_best else {}
            kinds["latest"] = {"weights": weights, "optimizer": optimizer}
            # The best first: a run that goes on from this latest is never without it.
            self.checkpoints.save(self.step, kinds, self._meta())
        self.is_best = False
        self.saved, self.saved_time = (self.step, self.records.epochs), time.monotonic()

    def _meta(self) -> Meta:
        return {
            "steps": self.stage.steps,
            "steps_per_epoch": self.stage.steps_per_epoch,
            "epoch_offset": self.stage.epoch_offset,
            "classes": list(self.stage.data.labels.classes),
            **self.stage.rows_digests(),
            **self.provenance,
            **self.records.to_save(),
        }

    def take_step(self, advance: Advance) -> None:
        """Sends off the next step, then reads the loss of the one before."""
        with self.records.waiting("input"):
            batch = next(self.batches)
        schedule = self.stage.schedule
        self.state, loss = self.stage.take_step(
            self.state, batch, schedule.lr[self.step], schedule.beta1[self.step]
        )
        self._settle()
        self.pending = (self.step, loss)
        self.step += 1
        smooth = self.records.smooth
        advance(note=f"loss {smooth.value:.4f}" if smooth.n else "")

    def _settle(self) -> None:
        """Reads the pending loss, which waits for its step, and writes its row."""
        if self.pending is None:
            return
        (step, loss_on_device), self.pending = self.pending, None
        loss = float(loss_on_device)
        if not math.isfinite(loss):
            raise self._diverged(step, "the loss")
        lr, beta1 = self.stage.schedule.lr[step].tolist(), float(self.stage.schedule.beta1[step])
        self.records.add_step(step, loss, lr, beta1, self.stage.config.data.batch_size)

    def _diverged(self, step: int, what: str) -> RunFailed:
        saved_at, _ = self.saved
        kept = f"the checkpoint of step {saved_at}" if saved_at else "no checkpoint"
        return RunFailed(
            f"{self.run}: {what} is not finite at step {step}; {kept} is kept; "
            "lower config.optim.lr (see the lr_range command) or look at the chips"
        )


def _plain(value: Any) -> Any:
    """As JSON gives it back: a checkpoint's config has lists for tuples."""
    return list(value) if isinstance(value, tuple) else value
