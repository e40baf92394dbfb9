"""The training loop of one stage: evaluate → checkpoint → next batch → step."""

import dataclasses
import threading
import time
from pathlib import Path

import numpy as np

from planet_jax.runtime import distributed, signals
from planet_jax.runtime.distributed import is_main_process
from planet_jax.runtime.files import write_json
from planet_jax.runtime.progress import notify, progress
from planet_jax.train.checkpoint import to_host
from planet_jax.train.checkpoint_writer import CheckpointWriter
from planet_jax.train.log import Follow, TrainLog, divergence_error, ends_early
from planet_jax.train.metadata import Metadata, Provenance
from planet_jax.train.mirror import Mirror
from planet_jax.train.resume import check_resume
from planet_jax.train.stage import Stage
from planet_jax.train.start import Start, initial_state, restored_state
from planet_jax.train.steps import TrainState
from planet_jax.train.validate import validate


def train(
    stage: Stage, run: Path, start: Start, mirror: Mirror | None = None,
    follow: Follow | None = None,
) -> None:  # fmt: skip
    """Train a stage in the run folder `run`, from the checkpoint or the weights of `start`.

    Writes checkpoints/, config.json, steps.csv and history.csv; `mirror` uploads each save, and
    `follow` gets each row. The loss of a step is read after the next step was dispatched, so the
    devices do not wait for Python.

    Raises:
      BadInput: the run cannot be resumed with this config or data, or cannot be saved.
      RunFailed: the loss or a parameter is not finite.
      Stopped: by SIGTERM, after a save.
    """
    step, state, log, provenance = _begin(stage, run, start, follow)
    saver = _Saver(stage, run, provenance, log, step, mirror)
    batches = stage.train_batches(step)
    with (
        saver.writer,
        signals.defer_sigterm(enabled=distributed.process_count() == 1) as sigterm,
        progress(str(run), stage.steps, "steps", done=step) as advance,
    ):
        while True:
            epoch_ended = step // stage.steps_per_epoch > log.epochs  # epoch not yet scored
            is_best = epoch_ended and _evaluate(stage, run, state, log, sigterm)
            stop = sigterm.is_set() or distributed.stop_requested()
            if stop and mirror:
                mirror.start_grace()
            if saver.is_due(step) or (stop and saver.has_unsaved(step)):
                saver.save(step, state, is_best)
            early = ends_early(stage.config.train.patience, log.epochs_since_best)
            if stop or early or step == stage.steps:
                break
            with log.waiting("input"):
                batch = next(batches)
            lr, beta1 = stage.schedule.lr[step], stage.schedule.beta1[step]
            state, loss = stage.train_step(state, batch, lr, beta1)
            log.add_step(step, loss)  # reads the loss of the previous step
            step += 1
            advance(note=f"loss {log.smooth.value:.4f}" if log.smooth.count else "")
            saver.writer.raise_failure()
            if mirror:
                mirror.raise_failure()
        saver.writer.wait()
    if early and step < stage.steps:
        notify(f"{run}: no better F2 in {log.epochs_since_best} epochs: ends after step {step}")
    if stop or sigterm.is_set():
        distributed.require_same({})  # barrier: only the main process writes
        result = "saved" if step else "nothing to save"
        notify(f"{run}: SIGTERM after step {step}: {result}; repeat the command to continue")
        raise signals.Stopped


def _begin(
    stage: Stage, run: Path, start: Start, follow: Follow | None
) -> tuple[int, TrainState, TrainLog, Provenance]:
    """Resume from the run's own checkpoint, or start at step 0."""
    if start.own:
        provenance = check_resume(stage, start.own.metadata, run)
        step, log_state = start.own.metadata.step, start.own.metadata.log
        state = restored_state(stage, start.own)
        notify(f"{run}: resuming after step {step} of {stage.steps}")
    else:
        provenance = Provenance.current(stage.config, stage.normalization)
        step, log_state = 0, None
        state = initial_state(stage, start)
    if is_main_process():
        write_json(run / "config.json", dataclasses.asdict(provenance))
    has_ema = state.ema is not None
    batch_size = stage.config.data.batch_size
    log = TrainLog(run, stage.schedule, batch_size, has_ema, log_state, follow)
    return step, state, log, provenance


def _evaluate(
    stage: Stage, run: Path, state: TrainState, log: TrainLog, sigterm: threading.Event
) -> bool:
    """Score the validation chips and log the epoch; return whether its F2 is the best so far.

    SIGTERM ends the scoring early; the resumed run scores the epoch again.
    """
    log.flush()
    try:
        scores = validate(stage, state.variables, sigterm.is_set)
        ema = validate(stage, state.ema, sigterm.is_set) if state.ema else None
    except signals.Stopped:
        return False
    text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
    notify(f"{run}: epoch {log.epochs}  train_loss {log.smooth.value:.4f}  {text}")
    if ema:
        text = f"valid_loss {ema['valid_loss']:.4f}  fbeta {ema['fbeta']:.4f}"
        notify(f"{run}: epoch {log.epochs}, the moving averages: {text}")
    return log.add_epoch(scores, ema)


class _Saver:
    """Decide when to save, and save what a resumed run needs."""

    def __init__(
        self, stage: Stage, run: Path, provenance: Provenance, log: TrainLog, step: int,
        mirror: Mirror | None,
    ) -> None:  # fmt: skip
        self.stage, self.run, self.provenance, self.log = stage, run, provenance, log
        self.writer = CheckpointWriter(run, step, after_save=mirror.add if mirror else None)
        self._mark_saved(step)

    def _mark_saved(self, step: int) -> None:
        self._saved, self._saved_at = (step, self.log.epochs), time.monotonic()

    def has_unsaved(self, step: int) -> bool:
        """Return whether a step was taken, or an epoch scored, since the last save."""
        return (step, self.log.epochs) != self._saved

    def is_due(self, step: int) -> bool:
        """Return whether to save: at an epoch's end, or by `train.save_every` or `save_minutes`."""
        options, minutes = self.stage.config.train, (time.monotonic() - self._saved_at) / 60
        return self.has_unsaved(step) and (
            step % self.stage.steps_per_epoch == 0
            or (options.save_every > 0 and step % options.save_every == 0)
            or 0 < options.save_minutes <= minutes
        )

    def save(self, step: int, state: TrainState, is_best: bool) -> None:
        """Write `best` if `is_best`, then `latest`, in the writer's thread.

        Raises:
          RunFailed: a parameter is not finite.
        """
        self.log.flush()
        with self.log.waiting("save"):
            self.writer.wait()  # keeps at most one copy of the state in host memory
            weights = to_host(state.variables)
            if not all(np.isfinite(array).all() for array in weights.values()):
                raise divergence_error(self.run, "a parameter", step - 1)
            rest = {"step": state.step, "opt_state": state.opt_state, "ema": state.ema}
            optimizer = to_host(rest)
            # `latest` is written last: a run that resumes from it needs the others of its step.
            kinds = {"best": {"weights": weights}} if is_best else {}
            if state.ema and step % self.stage.steps_per_epoch == 0:
                kinds["ema"] = {"weights": to_host(state.ema)}
            kinds["latest"] = {"weights": weights, "optimizer": optimizer}
            self.writer.save(kinds, self._metadata(step))
        self._mark_saved(step)

    def _metadata(self, step: int) -> Metadata:
        stage, labels = self.stage, self.stage.data.labels
        return Metadata(
            step=step,
            steps=stage.steps,
            steps_per_epoch=stage.steps_per_epoch,
            epoch_offset=stage.epoch_offset,
            classes=stage.classes,
            train_chips=len(stage.train_rows),
            valid_chips=len(stage.valid_rows),
            train_fingerprint=labels.fingerprint(stage.train_rows),
            valid_fingerprint=labels.fingerprint(stage.valid_rows),
            provenance=self.provenance,
            log=self.log.state(),
        )
