"""One stage of training: its data, model and schedule."""

import functools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from planet_jax.data import loader
from planet_jax.data.dataset import Dataset
from planet_jax.data.prepare import prepare
from planet_jax.data.split import split_rows
from planet_jax.model import classifier
from planet_jax.runtime.errors import BadInput
from planet_jax.train.losses import Loss
from planet_jax.train.optimizer import Schedule, group_rates, one_cycles
from planet_jax.train.steps import (
    Recipe,
    TrainState,
    make_predict_step,
    make_train_step,
    to_devices,
)


@dataclass(frozen=True)
class Stage:
    """What is trained, how, and on which chips.

    Attributes:
      config, data: the checked config and the data set.
      train_rows, valid_rows: rows of the training and validation chips.
      epoch_offset: epochs of the stages before this one. A chain of stages numbers its epochs
        continuously, and an epoch's number selects its order, augmentation and dropout.
      normalization: of the network's input.
    """

    config: ConfigDict
    data: Dataset
    train_rows: Int[np.ndarray, " train"]
    valid_rows: Int[np.ndarray, " valid"]
    epoch_offset: int
    normalization: classifier.Normalization

    @property
    def classes(self) -> tuple[str, ...]:
        """The vocabulary, in the order of the logits."""
        return tuple(self.data.labels.classes)

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps per epoch; the short last batch is dropped, as in the notebook."""
        return len(self.train_rows) // self.config.data.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole stage."""
        return self.steps_per_epoch * self.config.train.epochs

    @functools.cached_property
    def model(self) -> classifier.Classifier:
        """The network that the config names."""
        model, precision = self.config.model, self.config.train.precision
        return classifier.build(
            len(self.classes), model.name, model.batch_norm, precision, self.normalization,
            self.exclusive,
        )  # fmt: skip

    @property
    def exclusive(self) -> tuple[int, ...]:
        """The columns of the labels that exclude each other."""
        return classifier.exclusive_columns(self.classes, self.config.model.exclusive)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """What a training step does."""
        present = self.data.labels.targets[self.train_rows].sum(0, dtype=np.int64)
        return make_recipe(self.config, present, len(self.train_rows), self.exclusive)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The learning rates and momentum of every step."""
        optim = self.config.optim
        return one_cycles(
            optim.cycles, self.steps, group_rates(optim.lr), optim.pct_start, optim.div_factor,
            optim.final_div, optim.momentum,
        )  # fmt: skip

    @functools.cached_property
    def predict_step(self) -> Callable[..., Array]:
        """The pmapped function that computes a batch's logits."""
        return make_predict_step(self.model, all_devices())

    @functools.cached_property
    def _pmapped_train_step(self) -> Callable[..., tuple[TrainState, Array]]:
        return make_train_step(self.model, self.recipe, all_devices())

    @functools.cached_property
    def _dropout_key(self) -> Key[Array, ""]:
        key = jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(b"dropout"))
        return jax.random.fold_in(key, self.epoch_offset)

    def train_step(
        self, state: TrainState, batch: loader.Batch, lr: Float[np.ndarray, "3"], beta1: float
    ) -> tuple[TrainState, Array]:
        """Dispatch one step at these rates; return the state and the loss before they are computed.

        `state` is donated: its memory is used for the new state.
        """
        devices = jax.local_device_count()
        sharded = {name: to_devices(array, devices) for name, array in batch.items()}
        rates = {"lr": lr.astype(np.float32), "beta1": np.asarray(beta1, np.float32)}
        return self._pmapped_train_step(state, sharded, rates, self._dropout_key)

    def train_batches(self, first_step: int = 0, epochs: int = 0) -> Iterator[loader.Batch]:
        """Return this process's share of every batch, from step `first_step` on.

        `epochs` is the number of epochs; 0: `train.epochs`.

        Raises:
          BadInput: there are fewer chips than one batch takes.
        """
        data, augment = self.config.data, dict(self.config.augment)
        if self.steps_per_epoch == 0:
            raise BadInput(
                f"config.data.batch_size = {data.batch_size}: there are only "
                f"{len(self.train_rows)} chips to train on; lower it or give more chips"
            )
        return loader.train_batches(
            self.data,
            self.train_rows,
            size=data.size,
            batch_size=data.batch_size,
            epochs=epochs or self.config.train.epochs,
            seed=self.config.seed,
            augment=augment if augment.pop("on") else None,
            epoch_offset=self.epoch_offset,
            first_step=first_step,
            share=process_share(),
            threads=data.threads,
        )


def make_recipe(
    config: ConfigDict,
    present: Int[np.ndarray, " classes"] | None = None,
    chips: int = 0,
    exclusive: tuple[int, ...] = (),
) -> Recipe:
    """Return what the training step of a config does.

    Args:
      config: the config of a stage.
      present: training chips of each label, by which `loss.balance` weights the labels.
      chips: all training chips.
      exclusive: columns of the labels in `model.exclusive`.
    """
    loss, optim, weights = config.loss, config.optim, ()
    if loss.balance and present is not None:
        weights = tuple((((chips - present) / np.maximum(present, 1)) ** loss.balance).tolist())
    return Recipe(
        optim.freeze, optim.weight_decay,
        Loss(loss.label_smoothing, loss.gamma, loss.margin, loss.soft_f2, weights, exclusive),
        optim.accumulate, optim.clip_norm, optim.ema_decay,
    )  # fmt: skip


def make_stage(
    config: ConfigDict,
    epoch_offset: int = 0,
    normalization: classifier.Normalization = classifier.IMAGENET,
) -> Stage:
    """Prepare the chips and split them into training and validation chips.

    Raises:
      BadInput: as `prepare` and `split_rows`; there is no validation chip; the devices cannot
        share a batch.
    """
    options, data = config.data, prepare(config.data, config.sample)
    n = len(data.labels.names)
    train_rows, valid_rows = split_rows(data.labels, options)
    if len(valid_rows) == 0:
        given = ("valid_file", "valid_column", "valid_folder", "folds")
        option = next((name for name in given if options[name]), "valid_fraction")
        raise BadInput(
            f"config.data.{option}: selects none of the {n} chips of {options.root} for "
            "validation; raise it or give more chips"
        )
    check_batch(options.batch_size, config.optim.accumulate)
    classifier.exclusive_columns(data.labels.classes, config.model.exclusive)
    return Stage(config, data, train_rows, valid_rows, epoch_offset, normalization)


def all_devices() -> tuple[jax.Device, ...]:
    """Return all devices, process by process: the order in which loaders share a batch."""
    return tuple(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))


def process_share() -> loader.Share:
    """Return this process's part of every global batch."""
    return loader.Share(jax.process_index(), jax.process_count())


def check_batch(batch_size: int, accumulate: int = 1, devices: int = 0) -> None:
    """Refuse a batch size that is not a multiple of devices times parts (optim.accumulate).

    `devices` = 0: the devices of this run.

    Raises:
      BadInput: the size is not a multiple; the message names the nearest multiples.
    """
    devices = devices or jax.device_count()
    unit = devices * accumulate
    if batch_size % unit:
        below = batch_size // unit * unit
        near = " or ".join(str(size) for size in (below, below + unit) if size)
        parts = f" times {accumulate} parts (optim.accumulate)" if accumulate > 1 else ""
        raise BadInput(
            f"config.data.batch_size = {batch_size} is not a multiple of {devices} devices{parts}; "
            f"the nearest: {near}"
        )
