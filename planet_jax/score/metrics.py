"""Compute the notebook's scores from numpy arrays, in float64, as exact means."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from planet_jax.compiled import compiled

Probabilities = Float[np.ndarray, "n classes"]
Targets = UInt8[np.ndarray, "n classes"]
Predicted = Bool[np.ndarray, "n classes"]
RESAMPLES_AT_ONCE = 128  # their weights fit the CPU's cache
SAME_SCORE = 1e-6  # relative; `fbeta_per_chip` compares scores that are this close


def sigmoid(logits: Float[np.ndarray, "n classes"]) -> Probabilities:
    """Return float64 probabilities; large logits do not overflow."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def binary_cross_entropy(logits: Float[np.ndarray, "n classes"], targets: Targets) -> float:
    """Return the mean binary cross-entropy over all entries (fastai's BCEWithLogitsFlat)."""
    return float(loss_per_chip(logits, targets).mean())


def loss_per_chip(
    logits: Float[np.ndarray, "n classes"], targets: Targets
) -> Float[np.ndarray, " n"]:
    """Return each chip's binary cross-entropy, the mean over its labels."""
    logits = logits.astype(np.float64)
    return np.mean(np.logaddexp(0, logits) - logits * targets, axis=1)


def accuracy_thresh(
    probabilities: Probabilities, targets: Targets, threshold: float = 0.2
) -> float:
    """Return the share of entries where `probability > threshold` equals the target."""
    return float(np.mean((probabilities > threshold) == (targets > 0)))


def fbeta(
    probabilities: Probabilities, targets: Targets, threshold: float = 0.2, beta: float = 2.0
) -> float:
    """Return fastai v1's `fbeta`: the mean of the chips' F-beta.

    A chip with neither predicted nor true labels scores 0.
    """
    return float(fbeta_per_chip(probabilities > threshold, targets > 0, beta).mean())


def fbeta_per_chip(
    predicted: Bool[np.ndarray, "n classes"], true: Bool[np.ndarray, "n classes"], beta: float = 2.0
) -> Float[np.ndarray, " n"]:
    """Return each chip's F-beta; fastai's 1e-9 in each denominator makes 0/0 a 0."""
    hits = (predicted & true).sum(1)
    precision = hits / (predicted.sum(1) + 1e-9)
    recall = hits / (true.sum(1) + 1e-9)
    beta2 = beta**2
    return (1 + beta2) * precision * recall / (beta2 * precision + recall + 1e-9)


def best_constant(
    targets: Targets, beta: float = 2.0
) -> tuple[float, Bool[np.ndarray, " classes"]]:
    """Return the F-beta and the labels of the best constant prediction.

    A chip's F-beta is (1 + b²) hits / (b² true + predicted). For a set of k labels the denominator
    is fixed, so each label adds a fixed sum over chips. The best k labels have the highest sums.
    """
    true = targets > 0
    classes, count = true.shape[1], true.sum(1)
    # Chips with t labels have the same denominator; by_count[t, c] of these chips have label c.
    by_count = np.zeros((classes + 1, classes))
    np.add.at(by_count, count, true)
    t, k = np.arange(classes + 1), np.arange(1, classes + 1)
    gain = (1 / (beta**2 * t + k[:, None])) @ by_count  # [k, c]
    order = np.argsort(-gain, axis=1, kind="stable")
    total = np.take_along_axis(gain, order, axis=1).cumsum(1).diagonal()
    best, best_set = 0.0, np.zeros(classes, bool)
    for i in np.flatnonzero(total > total.max() * (1 - SAME_SCORE)):
        chosen = np.zeros(classes, bool)
        chosen[order[i, : i + 1]] = True
        score = float(fbeta_per_chip(np.broadcast_to(chosen, true.shape), true, beta).mean())
        if score > best:
            best, best_set = score, chosen
    return best, best_set


def per_class(
    predicted: Bool[np.ndarray, "n classes"],
    probabilities: Probabilities,
    targets: Targets,
    weights: Float[np.ndarray, "resamples n"] | None = None,
    beta: float = 2.0,
) -> dict[str, Float[np.ndarray, "resamples classes"]]:
    """Return each class's precision, recall, F-beta and average precision over chips; 0/0 is 0.

    `weights` is how often each chip counts, one row per resample. Without it each chip counts once
    and the scores have shape [classes].
    """
    true = targets > 0
    w = np.ones((1, len(true))) if weights is None else weights
    hits, positives, support = (w @ a.astype(w.dtype) for a in (predicted & true, predicted, true))
    scores = {
        "precision": _ratio(hits, positives),
        "recall": _ratio(hits, support),
        "fbeta": _ratio((1 + beta**2) * hits, beta**2 * support + positives),
        "average_precision": average_precision(probabilities, targets, w),
    }
    return scores if weights is not None else {name: a[0] for name, a in scores.items()}


def average_precision(
    probabilities: Probabilities, targets: Targets, weights: Float[np.ndarray, "resamples n"]
) -> Float[np.ndarray, "resamples classes"]:
    """Return scikit-learn's average precision: the sum of precision × gain in recall.

    Chips of equal probability pass a threshold together. A class without true chips scores 0.
    """
    order = np.argsort(-probabilities.T, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities.T, order, axis=1)
    last = np.diff(ranked, axis=1, append=-1) != 0  # the last chip with its probability
    true = np.take_along_axis(targets.T > 0, order, axis=1)
    out = np.zeros((len(weights), probabilities.shape[1]))
    for i in range(0, len(weights), RESAMPLES_AT_ONCE):
        columns = np.ascontiguousarray(weights[i : i + RESAMPLES_AT_ONCE].T)
        out[i : i + RESAMPLES_AT_ONCE] = _areas(columns, order, last, true).T
    return out


@compiled
def _areas(
    weights: np.ndarray, order: np.ndarray, last: np.ndarray, true: np.ndarray
) -> np.ndarray:
    """Return the average precision [classes, resamples]; `weights` are [n, resamples].

    For each class, `order` ranks the chips, and `last` and `true` are in that order.
    """
    areas = np.zeros((len(order), weights.shape[1]))
    for c in range(len(order)):
        positives, hits, before = np.zeros((3, weights.shape[1]))
        gained = False
        for i in range(len(weights)):
            w = weights[order[c, i]]
            for r in range(len(w)):
                positives[r] += w[r]
            if true[c, i]:
                gained = True
                for r in range(len(w)):
                    hits[r] += w[r]
            if gained and last[c, i]:
                gained = False
                for r in range(len(w)):
                    areas[c, r] += hits[r] * (hits[r] - before[r]) / max(positives[r], 1)
                    before[r] = hits[r]
        for r in range(len(hits)):
            areas[c, r] /= max(hits[r], 1)
    return areas


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
