"""What one stage of training is made of: its rows, model, start weights, batches and steps.

In go a checked config and the data set; the loop, the LR-range test, `evaluate` and `predict` draw
from what comes out.
"""

import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from planet_jax.data import dataset, loader
from planet_jax.data import labels as label_file
from planet_jax.model import classifier, weights
from planet_jax.runtime import distributed, signals
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.progress import notify, progress
from planet_jax.score import metrics
from planet_jax.train import checkpoint
from planet_jax.train.optimizer import group_rates, one_cycle
from planet_jax.train.steps import (
    TrainState,
    create_state,
    make_predict_step,
    make_train_step,
    to_devices,
)

ROWS = ("train_rows", "valid_rows")


class Stage:
    """A config with its data set, ready to be trained or scored.

    Attributes:
      config, data: as given.
      train_rows, valid_rows: rows of the data set, by the notebook's split.
      steps_per_epoch, steps: of training.
      schedule: the rates of every step.

    Raises:
      BadInput: no chip to validate, or a batch that the devices cannot share.
    """

    def __init__(self, config: ConfigDict, data: dataset.Dataset) -> None:
        self.config, self.data = config, data
        n = len(data.labels.names)
        self.train_rows, self.valid_rows = label_file.split(
            n, config.data.valid_fraction, config.data.split_seed
        )
        if config.data.subset:
            self.train_rows = label_file.subset(
                data.labels, self.train_rows, Path(config.data.subset)
            )
        self._check_sizes(n)
        self.model = classifier.build(
            len(data.labels.classes),
            config.model.name,
            config.model.batch_norm,
            config.train.precision,
        )
        self.steps_per_epoch = len(self.train_rows) // config.data.batch_size
        self.steps = self.steps_per_epoch * config.train.epochs
        optim = config.optim
        self.schedule = one_cycle(
            self.steps, group_rates(optim.lr), optim.pct_start, optim.div_factor, optim.final_div,
            optim.momentum,
        )  # fmt: skip

    def _check_sizes(self, n: int) -> None:
        batch = self.config.data.batch_size
        if len(self.valid_rows) == 0:
            raise BadInput(
                f"config.data.valid_fraction: none of the {n} chips of {self.config.data.root} "
                "would validate; raise it or give more chips"
            )
        check_batch(batch)

    @functools.cached_property
    def train_step(self) -> Callable[..., tuple[TrainState, Array]]:
        """The pmapped step; see `steps.make_train_step`."""
        optim = self.config.optim
        return make_train_step(self.model, optim.freeze, optim.weight_decay, distributed.devices())

    @functools.cached_property
    def predict_step(self) -> Callable[..., Array]:
        """The pmapped logits; see `steps.make_predict_step`."""
        return make_predict_step(self.model, distributed.devices())

    @functools.cached_property
    def epoch_offset(self) -> int:
        """Epochs are numbered along the chain of stages: each draws order, augmentation and dropout
        of its own, where a count from 0 would give every stage the same again."""
        own = checkpoint.read_meta(Path(self.config.workdir), "latest")
        if own:
            return own["epoch_offset"]
        if not self.config.init_from:
            return 0
        before = checkpoint.read_meta(Path(self.config.init_from), "latest")
        return before["epoch_offset"] + before["config"]["train.epochs"] if before else 0

    @functools.cached_property
    def dropout_key(self) -> Key[Array, ""]:
        """The stage's key, into which the step folds its number."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(b"dropout"))
        return jax.random.fold_in(key, self.epoch_offset)

    def start_state(self) -> TrainState:
        """The state before the first step: weights of `init_from`, or of `model.weights`."""
        config = self.config
        variables = classifier.init(len(self.data.labels.classes), config.seed, config.model.name)
        if config.init_from:
            flat, meta = checkpoint.read_weights(Path(config.init_from), "latest", newest=True)
            self._check_vocabulary(meta, config.init_from)
            if meta["valid_rows"] != self.rows_digests()["valid_rows"]:
                notify(
                    f"{config.init_from} kept other chips for validation: it may know some of these"
                )
            variables = checkpoint.from_host(flat, variables, config.init_from)
        else:
            fresh = variables
            variables = distributed.run_on_main(lambda: weights.fill(fresh, config.model.weights))
        return create_state(variables, config.optim.freeze)

    def trained_variables(self, same_validation: bool = False) -> classifier.Variables:
        """The weights of the run folder's checkpoint that `config.checkpoint` names.

        Raises:
          BadInput: it has another vocabulary; with `same_validation`, it kept other chips for
            validation than this stage has, so that it may have been trained on these.
        """
        config = self.config
        flat, meta = checkpoint.read_weights(Path(config.workdir), config.checkpoint)
        self._check_vocabulary(meta, config.workdir)
        if same_validation:
            self.check_rows(meta, Path(config.workdir), ("valid_rows",))
        return checkpoint.from_host(
            flat,
            abstract_variables(len(self.data.labels.classes), config.model.name),
            config.workdir,
        )

    def _check_vocabulary(self, meta: dict[str, Any], run: str) -> None:
        classes = list(self.data.labels.classes)
        if meta["classes"] != classes:
            differing = sorted(set(meta["classes"]) ^ set(classes))
            raise BadInput(
                f"{run} was trained on another vocabulary than {self.config.data.root} has; "
                f"they differ in: {', '.join(differing)}"
            )

    def take_step(
        self, state: TrainState, batch: loader.Batch, lr: Float[np.ndarray, "3"], beta1: float
    ) -> tuple[TrainState, Array]:
        """Sends off one step with these rates; `state` is spent, the loss is still to come."""
        devices = jax.local_device_count()
        on_devices = {name: to_devices(array, devices) for name, array in batch.items()}
        rates = {"lr": lr.astype(np.float32), "beta1": np.asarray(beta1, np.float32)}
        return self.train_step(state, on_devices, rates, self.dropout_key)

    def train_batches(self, first_step: int = 0, steps: int = 0) -> Iterator[loader.Batch]:
        """This host's shares of the training batches from `first_step` on, of the whole stage, or
        of the epochs that `steps` steps take.

        Raises:
          BadInput: fewer chips to train on than one batch takes.
        """
        if self.steps_per_epoch == 0:
            raise BadInput(
                f"config.data.batch_size = {self.config.data.batch_size}: there are "
                f"{len(self.train_rows)} chips to train on; lower it or give more chips"
            )
        data, augment = self.config.data, dict(self.config.augment)
        return loader.train_batches(
            self.data,
            self.train_rows,
            size=data.size,
            batch_size=data.batch_size,
            epochs=-(-steps // self.steps_per_epoch) or self.config.train.epochs,
            seed=self.config.seed,
            augment=augment if augment.pop("on") else None,
            epoch_offset=self.epoch_offset,
            first_step=first_step,
            share=host_share(),
            threads=data.threads,
        )

    def evaluate(
        self, variables: classifier.Variables, stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], np.ndarray]:
        """The notebook's three figures over the validation chips, and their logits [n, classes].

        Raises:
          Stopped: `stop()` became true between two batches.
        """
        data = self.config.data
        batches = loader.score_batches(
            self.data, self.valid_rows, size=data.size, batch_size=data.batch_size,
            share=host_share(), threads=data.threads,
        )  # fmt: skip
        batches = signals.until(stop, batches)
        logits = self.logits(variables, batches, len(self.valid_rows), "validating")
        targets = self.data.labels.targets[self.valid_rows]
        probabilities = metrics.sigmoid(logits)
        threshold = self.config.score.threshold
        scores = {
            "valid_loss": metrics.binary_cross_entropy(logits, targets),
            "accuracy_thresh": metrics.accuracy_thresh(probabilities, targets, threshold),
            "fbeta": metrics.fbeta(probabilities, targets, threshold),
        }
        return scores, logits

    def logits(
        self,
        variables: classifier.Variables,
        batches: Iterator[loader.Batch],
        n: int,
        what: str,
        step: Callable[..., Array] | None = None,
    ) -> Float[np.ndarray, "n classes"]:
        """Logits of the n chips in padded `batches`; the device works while the next is made.

        `step` is another predict step than the plain one.
        """
        step = step or self.predict_step
        parts: list[Array | np.ndarray] = []
        batch_size = self.config.data.batch_size
        with progress(what, n, "chips") as advance:
            for batch in batches:
                chips = to_devices(batch["chips"], jax.local_device_count())
                parts.append(step(variables, chips))
                if len(parts) > 1:
                    parts[-2] = np.asarray(parts[-2])
                    advance(batch_size)
            advance(n - batch_size * (len(parts) - 1))
        return np.concatenate([np.asarray(part) for part in parts])[:n]

    def rows_digests(self) -> dict[str, str]:
        """What changes with a name or label of the chips that train, and of those that validate."""
        return {
            "train_rows": self._digest(self.train_rows),
            "valid_rows": self._digest(self.valid_rows),
        }

    def _digest(self, rows: np.ndarray) -> str:
        labels = self.data.labels
        names = "\n".join(labels.names[row] for row in rows)
        return hashlib.sha256(names.encode() + labels.targets[rows].tobytes()).hexdigest()

    def check_rows(self, meta: dict[str, Any], run: Path, kinds: Sequence[str] = ROWS) -> None:
        """Refuses a checkpoint of a run that had other chips or labels to train on or to validate.

        Raises:
          BadInput: naming the run and the data.
        """
        now = self.rows_digests()
        if any(meta[kind] != now[kind] for kind in kinds):
            raise BadInput(
                f"{run} was trained with other chips, labels, split or subset than "
                f"{self.config.data.root} has now; restore the data or set workdir to a new folder"
            )


def abstract_variables(classes: int, network: str = "resnet50") -> classifier.Variables:
    """Return the shapes and dtypes of the classifier's variables, without computing them."""
    return jax.eval_shape(lambda: classifier.init(classes, 0, network))


def host_share() -> loader.Share:
    """This process's part of every global batch."""
    return loader.Share(jax.process_index(), jax.process_count())


def check_batch(batch_size: int, devices: int = 0) -> None:
    """A batch must be shared evenly by all devices; those of this run, where no number is given.

    Raises:
      BadInput: naming the nearest sizes that can be.
    """
    devices = devices or jax.device_count()
    if batch_size % devices:
        below = batch_size // devices * devices
        near = " or ".join(str(size) for size in (below, below + devices) if size)
        raise BadInput(
            f"config.data.batch_size = {batch_size} does not divide over {devices} devices; "
            f"the nearest that does: {near}"
        )
