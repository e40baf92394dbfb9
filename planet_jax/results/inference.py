"""Logits of chips from trained runs, averaged over views of a chip and over runs.

Members of an ensemble may be trained on different folds. A chip that validates in some of them is
then scored by these alone, so no score comes from a run that was trained on the chip.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float
from ml_collections import ConfigDict

from planet_jax.config import MEMBER_OPTIONS, translate_saved
from planet_jax.data import loader
from planet_jax.data.augment import TTA_PLAIN, Augmentation, fastai_tta
from planet_jax.data.dataset import Dataset
from planet_jax.data.split import OPTIONS as SPLIT_OPTIONS
from planet_jax.data.split import Rows, split_rows
from planet_jax.model import classifier
from planet_jax.runtime.errors import BadInput
from planet_jax.storage.bucket import local_path
from planet_jax.train.checkpoint import Checkpoint, from_host, require_checkpoint
from planet_jax.train.metadata import Metadata
from planet_jax.train.resume import check_chips
from planet_jax.train.stage import Stage, all_devices, process_share
from planet_jax.train.steps import VIEWS, average_logits, make_predict_step
from planet_jax.train.validate import compute_logits


@dataclass(frozen=True)
class TrainedModel:
    """A network with the weights of one checkpoint.

    Attributes:
      config: the command's config; in an ensemble, with the MEMBER_OPTIONS of the run.
      network: the flax module.
      variables: {"params", "batch_stats"}.
      metadata: the checkpoint's metadata.
    """

    config: ConfigDict
    network: classifier.Classifier
    variables: classifier.Variables
    metadata: Metadata

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.config.workdir)


# A `loader` function with its data bound, for example partial(score_batches, data, rows).
Source = Callable[..., Iterator[loader.Batch]]


def open_runs(config: ConfigDict) -> list[Checkpoint]:
    """Open the checkpoint of the run in `workdir`, or of each run in `score.ensemble`.

    Raises:
      BadInput: a run has no undamaged checkpoint of the kind `config.checkpoint`, or the runs have
        different labels.
    """
    runs = config.score.ensemble or (config.workdir,)
    checkpoints = [require_checkpoint(local_path(run), config.checkpoint) for run in runs]
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.metadata.classes != first.metadata.classes:
            raise BadInput(
                f"config.score.ensemble: {other.run} was trained on other labels than {first.run}"
            )
    return checkpoints


def load_models(config: ConfigDict, checkpoints: Sequence[Checkpoint]) -> list[TrainedModel]:
    """Read the weights of opened checkpoints.

    Raises:
      BadInput: the weights do not fit the network that the config names.
    """
    return [_load_model(config, checkpoint) for checkpoint in checkpoints]


def _load_model(config: ConfigDict, checkpoint: Checkpoint) -> TrainedModel:
    metadata, run = checkpoint.metadata, checkpoint.run
    if config.score.ensemble:
        config = config.copy_and_resolve_references()
        saved = translate_saved(metadata.provenance.config, run)
        member = {name: saved[name] for name in MEMBER_OPTIONS}
        config.update_from_flattened_dict({**member, "workdir": str(run), "score.ensemble": ()})
    classes, name = len(metadata.classes), config.model.name
    exclusive = translate_saved(metadata.provenance.config, run)["model.exclusive"]
    network = classifier.build(
        classes, name, config.model.batch_norm, config.train.precision,
        metadata.provenance.normalization,
        classifier.exclusive_columns(metadata.classes, exclusive),
    )  # fmt: skip
    template = classifier.abstract_variables(classes, name)
    variables = from_host(checkpoint.arrays("weights"), template, str(run))
    return TrainedModel(config, network, variables, metadata)


def probability_source(config: ConfigDict, models: Sequence[TrainedModel]) -> dict[str, Any]:
    """Return what the probabilities depend on; a decision fitted with other values is refused."""
    return {
        "checkpoint": config.checkpoint,
        "steps": [model.metadata.step for model in models],
        "sizes": [model.config.data.size for model in models],
        "test_time_augmentation": config.score.test_time_augmentation,
        "average": config.score.average,
        "ensemble": list(config.score.ensemble),
        "threshold": config.score.threshold,
    }


def held_out_rows(stage: Stage, checkpoints: Sequence[Checkpoint]) -> list[Rows]:
    """Return the validation rows of each run, by the split that it was trained with.

    Raises:
      BadInput: the data give a run other validation chips than it was trained with; with
        score.split = train, the runs have different validation chips.
    """
    rows = []
    for checkpoint in checkpoints:
        own = stage
        if stage.config.score.ensemble:
            saved = translate_saved(checkpoint.metadata.provenance.config, checkpoint.run)
            data = stage.config.data.copy_and_resolve_references()
            data.update({name: saved[f"data.{name}"] for name in SPLIT_OPTIONS})
            own = replace(stage, valid_rows=split_rows(stage.data.labels, data)[1])
        check_chips(own, checkpoint.metadata, checkpoint.run, ("valid",))
        rows.append(own.valid_rows)
    fingerprints = {stage.data.labels.fingerprint(own) for own in (stage.valid_rows, *rows)}
    if stage.config.score.split == "train" and len(fingerprints) > 1:
        raise BadInput(
            "config.score.split = train: some members have other validation chips than "
            "config.data selects; score them one by one"
        )
    return rows


def held_out_logits(
    models: Sequence[TrainedModel], rows: Sequence[Rows], data: Dataset
) -> tuple[Rows, Float[np.ndarray, "n classes"]]:
    """Return all rows that validate in a model, and their logits averaged over these models.

    `rows` are those of each model, from `held_out_rows`.
    """
    parts = []
    for model, own in zip(models, rows, strict=True):
        source = partial(loader.score_batches, data, own)
        parts.append(_model_logits(model, source, len(own), _named("scoring", model, models)))
    scored = pd.unique(np.concatenate(rows))
    position = np.full((len(models), len(data.labels.names)), -1)  # of each row in each model
    for i, own in enumerate(rows):
        position[i, own] = np.arange(len(own))
    position = position[:, scored]
    logits = np.empty((len(scored), parts[0].shape[1]), parts[0].dtype)
    for holders in np.unique(position >= 0, axis=1).T:  # chips with the same models together
        chips = ((position >= 0) == holders[:, None]).all(0)
        held = [parts[i][position[i, chips]] for i in np.flatnonzero(holders)]
        logits[chips] = _average(held, models[0].config.score.average)
    return scored, logits


def ensemble_logits(
    models: Sequence[TrainedModel], source: Source, n: int, description: str
) -> Float[np.ndarray, "n classes"]:
    """Return the logits of n chips, averaged over each model's views and then over models."""
    parts = [
        _model_logits(model, source, n, _named(description, model, models)) for model in models
    ]
    return _average(parts, models[0].config.score.average)


def _named(description: str, model: TrainedModel, models: Sequence[TrainedModel]) -> str:
    return f"{description} with {model.run}" if len(models) > 1 else description


def _model_logits(
    model: TrainedModel, source: Source, n: int, description: str
) -> Float[np.ndarray, "n classes"]:
    score, devices = model.config.score, all_devices()

    def logits(step: Callable[..., Any], batches: Iterator[loader.Batch], name: str) -> np.ndarray:
        return compute_logits(step, model.variables, batches, n, name)

    if score.test_time_augmentation == "dihedral":
        step = make_predict_step(model.network, devices, average=score.average)
        return logits(step, _batches(model, source), f"{description}, 8 views")
    step = make_predict_step(model.network, devices)
    plain = logits(step, _batches(model, source), description)
    if score.test_time_augmentation == "none":
        return plain
    views = [
        logits(step, _fastai_view(model, source, n, i), f"{description}, view {i + 1} of 8")
        for i in range(VIEWS)
    ]
    weights = [TTA_PLAIN] + [(1 - TTA_PLAIN) / VIEWS] * VIEWS
    return _average([plain, *views], score.average, weights)


def _batches(
    model: TrainedModel, source: Source, augmentation: Augmentation | None = None
) -> Iterator[loader.Batch]:
    """Return padded batches at the model's size, augmented if `augmentation` is given."""
    options = model.config.data
    return source(
        size=options.size, batch_size=options.batch_size, augmentation=augmentation,
        share=process_share(), threads=options.threads,
    )  # fmt: skip


def _fastai_view(model: TrainedModel, source: Source, n: int, i: int) -> Iterator[loader.Batch]:
    """Yield fastai's view i, zoomed into one corner; views 4 to 7 are also flipped."""
    limits = dict(model.config.augment)
    rng = loader.named_rng(model.config.seed, "tta", i)
    if limits.pop("on"):
        view = fastai_tta(rng, n, i, **limits)
    else:
        view = replace(fastai_tta(rng, n, i, p=0), dihedral=np.zeros(n, int))
    for batch in _batches(model, source, view):
        yield {**batch, "chips": batch["chips"][:, :, ::-1]} if i & 4 else batch


def _average(
    parts: Sequence[np.ndarray], how: str, weights: Sequence[float] = ()
) -> Float[np.ndarray, "n classes"]:
    if len(parts) == 1:
        return parts[0]
    return np.asarray(average_logits(jnp.stack(parts), how, weights))
