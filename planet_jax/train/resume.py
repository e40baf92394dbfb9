"""Check what changed between the start of a run and its resume."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from planet_jax.config import as_json, flatten, may_change_on_resume, translate_saved
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.progress import notify
from planet_jax.train.metadata import Metadata, Provenance
from planet_jax.train.stage import Stage
from planet_jax.train.start import Start


def is_finished(start: Start, config: ConfigDict) -> bool:
    """Return whether a stage's own checkpoint completes the run that `config` describes.

    Raises:
      BadInput: options differ, and `train.allow_changes` is False.
    """
    if start.own is None:
        return False
    changed = changed_options(start.own.metadata, config, start.own.run)
    return not changed and start.own.metadata.is_complete


def changed_options(metadata: Metadata, config: ConfigDict, run: Path) -> dict[str, Any]:
    """Return the saved values of changed options, except those that may change on resume.

    Raises:
      BadInput: such an option changed, and `train.allow_changes` is False.
    """
    saved = translate_saved(metadata.provenance.config, run)
    now = {name: as_json(value) for name, value in flatten(config).items()}
    changed = [n for n in now if not may_change_on_resume(n) and saved[n] != now[n]]
    if changed and not config.train.allow_changes:
        listed = "; ".join(f"{name} was {saved[name]!r} and is {now[name]!r}" for name in changed)
        raise BadInput(
            f"{run} was started with other options: {listed}; set workdir to a new folder, remove "
            "this one to start again, or set train.allow_changes=True to continue with the new ones"
        )
    return {name: saved[name] for name in changed}


def check_resume(stage: Stage, metadata: Metadata, run: Path) -> Provenance:
    """Check that training can continue after this checkpoint; return the provenance from here on.

    Raises:
      BadInput: options or chips differ and `train.allow_changes` is False, the number of steps does
        not fit, or an older planet_jax wrote the checkpoint.
    """
    if metadata.log is None:
        raise BadInput(
            f"{run} was started by an older planet_jax: it can be evaluated, exported or named in "
            "init_from, but not resumed; set workdir to a new folder"
        )
    changes = changed_options(metadata, stage.config, run)
    if stage.config.train.allow_changes:
        changes |= _changed_chips(stage, metadata)
    else:
        check_chips(stage, metadata, run, ("train", "valid"))
    before = changes.get("optim.ema_decay")
    if before is not None and (before > 0) != (stage.config.optim.ema_decay > 0):
        raise BadInput(
            f"{run}: optim.ema_decay cannot be switched on or off within a run; set workdir to a "
            "new folder"
        )
    if metadata.steps_per_epoch != stage.steps_per_epoch or metadata.step > stage.steps:
        raise BadInput(
            f"{run}: cannot continue after step {metadata.step} of {metadata.steps} "
            f"({metadata.steps_per_epoch} per epoch): config and data now give {stage.steps} steps "
            f"({stage.steps_per_epoch} per epoch); set workdir to a new folder"
        )
    if changes:
        notify(f"{run}: train.allow_changes: {', '.join(changes)} changed")
    started, now = metadata.provenance, Provenance.current(stage.config, stage.normalization)
    for name in ("versions", "devices", "xla_flags"):
        if getattr(started, name) != getattr(now, name):
            notify(f"{run}: started with other {name}: the result may differ in the last bits")
    allowed = [{"after_step": metadata.step, "before": changes}] if changes else []
    return dataclasses.replace(now, allowed_changes=started.allowed_changes + allowed)


def check_chips(stage: Stage, metadata: Metadata, run: Path, kinds: tuple[str, ...]) -> None:
    """Refuse a run that trained or validated on other chips or labels.

    Raises:
      BadInput: the chips or labels differ; the message names the run and the data.
    """
    if _changed_chips(stage, metadata).keys() & {f"{kind}_fingerprint" for kind in kinds}:
        raise BadInput(
            f"{run} was trained with other chips, labels, split or subset than "
            f"{stage.config.data.root} has now; restore the data or set workdir to a new folder"
        )


def _changed_chips(stage: Stage, metadata: Metadata) -> dict[str, str]:
    """Return the saved fingerprints that differ from those of the stage's chips."""
    labels = stage.data.labels
    pairs = {
        "train_fingerprint": (metadata.train_fingerprint, stage.train_rows),
        "valid_fingerprint": (metadata.valid_fingerprint, stage.valid_rows),
    }
    return {name: old for name, (old, rows) in pairs.items() if old != labels.fingerprint(rows)}
