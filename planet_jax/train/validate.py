"""Logits of many chips, and the notebook's scores on the validation chips."""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jaxtyping import Array, Float

from planet_jax.data import loader
from planet_jax.model.classifier import Variables
from planet_jax.runtime.progress import progress
from planet_jax.runtime.signals import Stopped
from planet_jax.score import metrics
from planet_jax.train.stage import Stage, process_share
from planet_jax.train.steps import replicate, to_devices


def compute_logits(
    predict_step: Callable[..., Array],
    variables: Variables,
    batches: Iterable[loader.Batch],
    n: int,
    description: str,
) -> Float[np.ndarray, "n classes"]:
    """Return the logits of the n chips in padded `batches`.

    The loader makes the next batch while the devices compute.
    """
    variables = replicate(variables)
    parts: list[Array | np.ndarray] = []
    with progress(description, n, "chips") as advance:
        done = 0
        for batch in batches:
            chips = to_devices(batch["chips"], jax.local_device_count())
            parts.append(predict_step(variables, chips))
            if len(parts) > 1:
                parts[-2] = np.asarray(parts[-2])
                done += len(parts[-2])
                advance(len(parts[-2]))
        advance(n - done)
    return np.concatenate([np.asarray(part) for part in parts])[:n]


def validate(stage: Stage, variables: Variables, stop: Callable[[], bool]) -> dict[str, float]:
    """Return the notebook's three scores on the validation chips.

    Raises:
      Stopped: `stop()` returned True before a batch.
    """
    data = stage.config.data
    batches = loader.score_batches(
        stage.data, stage.valid_rows, size=data.size, batch_size=data.batch_size,
        share=process_share(), threads=data.threads,
    )  # fmt: skip
    batches, n = _until(stop, batches), len(stage.valid_rows)
    logits = compute_logits(stage.predict_step, variables, batches, n, "validating")
    targets = stage.data.labels.targets[stage.valid_rows]
    probabilities, threshold = metrics.sigmoid(logits), stage.config.score.threshold
    return {
        "valid_loss": metrics.binary_cross_entropy(logits, targets),
        "accuracy_thresh": metrics.accuracy_thresh(probabilities, targets, threshold),
        "fbeta": metrics.fbeta(probabilities, targets, threshold),
    }


def _until(stop: Callable[[], bool], batches: Iterable[loader.Batch]) -> Iterator[loader.Batch]:
    for batch in batches:
        if stop():
            raise Stopped
        yield batch
