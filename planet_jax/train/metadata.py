"""The metadata of a checkpoint and its run, as typed fields with one writer and one reader."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from planet_jax.config import as_json, flatten
from planet_jax.model.classifier import IMAGENET, Normalization
from planet_jax.runtime.errors import BadInput
from planet_jax.train.log import LogState, Mark, Smooth, ends_early

FORMAT = 3  # raise it when older versions of planet_jax cannot read a new checkpoint
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The options, software and devices of a run; also the content of config.json."""

    config: dict[str, Any]  # {"data.size": 128, ...}
    versions: dict[str, str]
    git_commit: str | None
    devices: list[str]  # kinds
    hosts: int
    xla_flags: str = ""  # the environment variable
    # the normalization of the network's input; that of older runs is ImageNet's
    mean: list[float] = dataclasses.field(default_factory=lambda: [*IMAGENET.mean])
    std: list[float] = dataclasses.field(default_factory=lambda: [*IMAGENET.std])
    allowed_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def current(cls, config: ConfigDict, normalization: Normalization) -> "Provenance":
        """Collect options, package versions, the git commit and the devices."""
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        return cls(
            config={name: as_json(value) for name, value in flatten(config).items()},
            versions={name: importlib.metadata.version(name) for name in PACKAGES},
            git_commit=commit or None,
            devices=[device.device_kind for device in jax.devices()],
            hosts=jax.process_count(),
            xla_flags=os.environ.get("XLA_FLAGS", ""),
            mean=[*normalization.mean],
            std=[*normalization.std],
        )

    @property
    def normalization(self) -> Normalization:
        """How the network's input is normalized."""
        return Normalization(tuple(self.mean), tuple(self.std))


def recorded_normalization(run: Path) -> Normalization | None:
    """Return the normalization that config.json of a run records; None without a whole file."""
    try:
        content = json.loads((run / "config.json").read_text())
        return Provenance(**content).normalization
    except (OSError, ValueError, TypeError):
        return None


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The facts needed to understand a checkpoint and to resume from it.

    Attributes:
      step, steps, steps_per_epoch: steps so far, steps of the whole stage, steps per epoch.
      epoch_offset: epochs of the stages before this one.
      classes: the vocabulary, in the order of the logits.
      train_chips, valid_chips: how many chips train and validate.
      train_fingerprint, valid_fingerprint: SHA-256 of the chips' names and labels.
      provenance: options, versions, devices.
      log: the state of steps.csv and history.csv; None if the checkpoint has format 1.
    """

    step: int
    steps: int
    steps_per_epoch: int
    epoch_offset: int
    classes: tuple[str, ...]
    train_chips: int | None
    valid_chips: int | None
    train_fingerprint: str
    valid_fingerprint: str
    provenance: Provenance
    log: LogState | None

    @property
    def is_complete(self) -> bool:
        """Whether the stage is complete: all epochs scored, or ended early by train.patience."""
        scored = self.log is None or self.log.epochs == self.steps // self.steps_per_epoch
        patience = self.provenance.config.get("train.patience", 0)
        early = self.log is not None and ends_early(patience, self.log.epochs_since_best)
        return early or (self.step == self.steps and scored)

    def to_json(self) -> dict[str, Any]:
        """Return JSON content that `from_json` reads."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Metadata":
        """Read the content that `to_json` wrote, or the format 1 of an older planet_jax.

        Raises:
          BadInput: a newer planet_jax wrote the content.
        """
        content = dict(content)
        match content.pop("format", None):
            case 1:
                return cls._from_format_1(content)
            case 2 | 3:
                pass
            case other:
                raise BadInput(
                    f"the checkpoint has format {other}; this planet_jax reads up to {FORMAT}"
                )
        log = content.pop("log")
        return cls(
            **content
            | {
                "classes": tuple(content["classes"]),
                "provenance": Provenance(**content["provenance"]),
                "log": LogState(
                    Mark(**log["steps"]),
                    Mark(**log["history"]),
                    Smooth(**log["smooth"]),
                    log["epochs"],
                    log["best_fbeta"],
                    log.get("epochs_since_best", 0),
                ),
            }
        )

    @classmethod
    def _from_format_1(cls, content: dict[str, Any]) -> "Metadata":
        """Read format 1, which has no log state: a run cannot be resumed from it."""
        names = ("config", "versions", "git_commit", "devices", "hosts")
        return cls(
            step=content["step"],
            steps=content["steps"],
            steps_per_epoch=content["steps_per_epoch"],
            epoch_offset=content["first_epoch"],
            classes=tuple(content["classes"]),
            train_chips=None,
            valid_chips=None,
            train_fingerprint=content["train_rows"],
            valid_fingerprint=content["valid_rows"],
            provenance=Provenance(**{name: content[name] for name in names}),
            log=None,
        )
