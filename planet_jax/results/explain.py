"""Draw what a classifier bases its labels on, and find validation chips that it has trained on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from scipy.linalg import eigh

from planet_jax.data import loader
from planet_jax.data.dataset import Dataset
from planet_jax.data.duplicates import near_duplicates
from planet_jax.model.attribution import features, label_maps
from planet_jax.model.classifier import Variables
from planet_jax.results import explain_pictures, tables
from planet_jax.results.evaluation import Evaluation
from planet_jax.results.inference import TrainedModel
from planet_jax.results.pictures import save
from planet_jax.runtime.distributed import on_main
from planet_jax.runtime.files import write_json
from planet_jax.runtime.progress import progress
from planet_jax.score import metrics
from planet_jax.train.stage import Stage

MAX_PAIRS = 100  # of near duplicates in metrics.json
Rows = Int[np.ndarray, " n"]


@on_main
def explain(
    run: Path,
    model: TrainedModel,
    evaluation: Evaluation,
    result: dict[str, Any],
    stage: Stage,
    rows: Rows,
) -> dict[str, Any]:
    """Draw maps.png and embeddings.png of the scored chips `rows`, and find near duplicates.

    Adds to metrics.json, whose content is `result`, and returns the additions:
      explained: the number of chips in maps.png.
      near_duplicates: see `count_near_duplicates`.
    With score.split = train the files' names end in _train. No near duplicates are then searched,
    and none for members with different folds, where no chip is a validation chip to all.
    """
    suffix = "_train" if evaluation.config.score.split == "train" else ""
    losses = metrics.loss_per_chip(evaluation.logits, evaluation.targets)
    worst = np.argsort(-losses, kind="stable")[: evaluation.config.score.explain]
    save(draw_maps(model, evaluation, stage.data, rows, worst), run / f"maps{suffix}.png")
    points, share = principal_axes(embed(model, stage.data, rows))
    picture = explain_pictures.embeddings(
        points, share, evaluation.targets, evaluation.classes, worst
    )
    save(picture, run / f"embeddings{suffix}.png")
    added: dict[str, Any] = {"explained": len(worst)}
    if not suffix and np.array_equal(rows, stage.valid_rows):
        added["near_duplicates"] = count_near_duplicates(evaluation, stage)
        print(tables.near_duplicates(added["near_duplicates"]))
    write_json(run / f"metrics{suffix}.json", result | added)
    print(f"{run}: wrote maps{suffix}.png and embeddings{suffix}.png")
    return added


def draw_maps(
    model: TrainedModel, evaluation: Evaluation, data: Dataset, rows: Rows, worst: Rows
) -> Figure:
    """Draw, for the chips `rows[worst]`, the maps of a wrong and of a missed label.

    The maps are those of the plain chip by this one model, whatever views and runs are averaged.
    """
    labels = clearest_mistakes(evaluation, worst)  # the map of -1, the last label, is not drawn

    def maps(variables: Variables, chips: Array, labels: Array) -> tuple[Array, Array]:
        x = features(model.network, variables, chips)
        return label_maps(model.network, variables, x, labels)

    compute, parts = jax.jit(maps), []
    for start, chips in _batches(model, data, rows[worst]):
        padded = np.resize(labels[start : start + len(chips)], (len(chips), 2))
        found = compute(model.variables, chips, padded)
        parts += list(zip(chips, *map(np.asarray, found), strict=True))
    return explain_pictures.maps(
        parts[: len(worst)], labels, evaluation.classes, evaluation.reported[worst],
        [data.labels.names[row] for row in rows[worst]],
    )  # fmt: skip


def clearest_mistakes(evaluation: Evaluation, worst: Rows) -> Int[np.ndarray, "n 2"]:
    """Return the wrong label of highest and the missed label of lowest probability; -1: none."""
    p, predicted = evaluation.reported[worst], evaluation.predicted[worst]
    true = evaluation.targets[worst] > 0
    kinds = (predicted & ~true, p), (true & ~predicted, -p)
    return np.stack(
        [
            np.where(mistaken.any(1), np.where(mistaken, order, -np.inf).argmax(1), -1)
            for mistaken, order in kinds
        ],
        axis=1,
    )


def embed(model: TrainedModel, data: Dataset, rows: Rows) -> Float[np.ndarray, "n c"]:
    """Return the average of each plain chip's last feature map, scaled to norm 1.

    Without the scale, a few chips with large features can have 99% of the variance.
    """

    def direction(variables: Variables, chips: Array) -> Float[Array, "b c"]:
        x = features(model.network, variables, chips).mean((1, 2))
        return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    compute = jax.jit(direction)
    parts: list[np.ndarray] = []
    with progress("embedding", len(rows), "chips") as advance:
        for start, chips in _batches(model, data, rows):
            parts.append(np.asarray(compute(model.variables, chips)))
            advance(min(len(chips), len(rows) - start))
    return np.concatenate(parts)[: len(rows)]


def _batches(model: TrainedModel, data: Dataset, rows: Rows) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the position of each padded batch, and its chips; a batch fits one device."""
    options = model.config.data
    size = options.batch_size // jax.device_count()
    batches = loader.score_batches(
        data, rows, size=options.size, batch_size=size, threads=options.threads
    )
    for i, batch in enumerate(batches):
        yield i * size, batch["chips"]


def principal_axes(
    x: Float[np.ndarray, "n c"],
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "2"]]:
    """Project x on its first two principal axes; return the points, and each axis's variance share.

    The largest weight of an axis is positive, so that the picture does not flip between machines.
    """
    x = x - x.mean(0)
    products = (x.T @ x).astype(float)
    c = len(products)
    variance, axes = eigh(products, subset_by_index=[c - 2, c - 1])
    axes = axes[:, ::-1] * np.sign(axes[np.abs(axes).argmax(0), [0, 1]])[::-1]
    return x @ axes, variance[::-1] / max(np.trace(products), 1e-30)


def count_near_duplicates(evaluation: Evaluation, stage: Stage) -> dict[str, Any]:
    """Find the validation chips that nearly repeat a training chip.

    Returns their count, the chips searched, F2 at the threshold without them (None: no chip is
    left), and pairs of names with their similarity, at most MAX_PAIRS.
    """
    valid, names = stage.valid_rows, stage.data.labels.names
    threads = stage.config.data.threads
    pairs = near_duplicates(stage.data.chips, valid, stage.train_rows, threads)
    others = ~np.isin(valid, [pair.valid for pair in pairs])
    predicted = evaluation.probabilities > evaluation.config.score.threshold
    fbeta = metrics.fbeta_per_chip(predicted, evaluation.targets > 0)[others]
    return {
        "count": len(pairs),
        "valid_chips": len(valid),
        "train_chips": len(stage.train_rows),
        "fbeta_without": float(fbeta.mean()) if len(fbeta) else None,
        "pairs": [
            {"valid": names[pair.valid], "train": names[pair.train], "similarity": pair.similarity}
            for pair in pairs[:MAX_PAIRS]
        ],
    }
