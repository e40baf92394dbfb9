"""Logits of chips from trained runs: by which views of a chip, and which runs, are averaged."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from planet_jax.config import MEMBER_OPTIONS, translate_saved
from planet_jax.data import loader
from planet_jax.data.augment import TTA_PLAIN, Augmentation, fastai_tta
from planet_jax.model.classifier import Variables
from planet_jax.train import checkpoint
from planet_jax.train.stage import Stage, host_share
from planet_jax.train.steps import VIEWS, average_logits, make_predict_step


class Source(Protocol):
    """Padded batches of n chips at a stage's size, plain or as `view` renders them."""

    def __call__(self, stage: Stage, view: Augmentation | None) -> Iterator[loader.Batch]: ...


def member_config(config: ConfigDict, run: str) -> ConfigDict:
    """`config` for the trained run `run`, at the size and in the precision it was trained in.

    Raises:
      BadInput: the run has no checkpoint of the kind that config.checkpoint names.
    """
    checkpoint.require(Path(run), config.checkpoint)
    meta = checkpoint.read_meta(Path(run), config.checkpoint)
    assert meta is not None  # or `require` had refused
    member = config.copy_and_resolve_references()
    saved = translate_saved(meta["config"], run)
    own = {name: saved[name] for name in MEMBER_OPTIONS}
    member.update_from_flattened_dict({**own, "workdir": run, "score.ensemble": ()})
    return member


def rows_source(rows: Int[np.ndarray, " n"]) -> Source:
    """Labelled chips of the data set."""

    def batches(stage: Stage, view: Augmentation | None) -> Iterator[loader.Batch]:
        return loader.score_batches(
            stage.data, rows, size=stage.config.data.size, batch_size=stage.config.data.batch_size,
            augmentation=view, share=host_share(), threads=stage.config.data.threads,
        )  # fmt: skip

    return batches


def files_source(files: Sequence[Path]) -> Source:
    """Image files."""

    def batches(stage: Stage, view: Augmentation | None) -> Iterator[loader.Batch]:
        return loader.folder_batches(
            files, size=stage.config.data.size, batch_size=stage.config.data.batch_size,
            augmentation=view, share=host_share(), threads=stage.config.data.threads,
        )  # fmt: skip

    return batches


def logits(
    stages: Sequence[Stage], source: Source, n: int, what: str, same_validation: bool = False
) -> Float[np.ndarray, "n classes"]:
    """The n chips' logits: each stage's own, by its views, then averaged over the stages.

    Raises:
      BadInput: a stage's checkpoint has another vocabulary; with `same_validation`, other chips
        for validation.
    """
    parts = []
    for stage in stages:
        variables = stage.trained_variables(same_validation)
        told = f"{what} with {stage.config.workdir}" if len(stages) > 1 else what
        parts.append(_of_run(stage, variables, source, n, told))
    return _average(parts, stages[0].config.score.average)


def _of_run(
    stage: Stage, variables: Variables, source: Source, n: int, what: str
) -> Float[np.ndarray, "n classes"]:
    score = stage.config.score
    if score.test_time_augmentation == "dihedral":
        step = make_predict_step(stage.model, average=score.average)
        return stage.logits(variables, source(stage, None), n, f"{what}, 8 views", step)
    plain = stage.logits(variables, source(stage, None), n, what)
    if score.test_time_augmentation == "none":
        return plain
    views = [
        stage.logits(variables, _fastai_view(stage, source, n, i), n, f"{what}, view {i + 1} of 8")
        for i in range(VIEWS)
    ]
    weights = [TTA_PLAIN] + [(1 - TTA_PLAIN) / VIEWS] * VIEWS
    return _average([plain, *views], score.average, weights)


def _fastai_view(stage: Stage, source: Source, n: int, i: int) -> Iterator[loader.Batch]:
    """fastai's view i: its corner, and from 4 on flipped left to right after rendering."""
    limits = dict(stage.config.augment)
    rng = loader.named_rng(stage.config.seed, "tta", i)
    if limits.pop("on"):
        view = fastai_tta(rng, n, i, **limits)
    else:
        view = replace(fastai_tta(rng, n, i, p=0), dihedral=np.zeros(n, int))
    for batch in source(stage, view):
        yield {**batch, "chips": batch["chips"][:, :, ::-1]} if i & 4 else batch


def _average(
    parts: Sequence[np.ndarray], how: str, weights: Sequence[float] = ()
) -> Float[np.ndarray, "n classes"]:
    if len(parts) == 1:
        return parts[0]
    return np.asarray(average_logits(jnp.stack(parts), how, weights))
