"""Compute the notebook's scores from numpy arrays, in float64, as exact means."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

Probabilities = Float[np.ndarray, "n classes"]
Targets = UInt8[np.ndarray, "n classes"]
Predicted = Bool[np.ndarray, "n classes"]
RESAMPLES_AT_ONCE = 50  # their weights fit the CPU's cache


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
    """Return the best F-beta of predicting one set of labels for every chip, and that set.

    A chip's F-beta is (1 + b²) hits / (b² true + predicted). For a set of k labels the denominator
    is fixed, so each label contributes a fixed sum over chips. The best k labels have the highest.
    """
    true = targets > 0
    best, best_set = 0.0, np.zeros(true.shape[1], bool)
    for k in range(1, true.shape[1] + 1):
        gain = (true / (beta**2 * true.sum(1, keepdims=True) + k)).sum(0)
        chosen = np.zeros(true.shape[1], bool)
        chosen[np.argsort(-gain, kind="stable")[:k]] = True
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
    """Return average precision (scikit-learn's): the sum of precision × recall gained.

    Chips of equal probability pass a threshold together. A class without true chips scores 0.
    """
    out = np.zeros((len(weights), probabilities.shape[1]))
    for c, (p, true) in enumerate(zip(probabilities.T, targets.T > 0, strict=True)):
        order = np.argsort(-p, kind="stable")
        last = np.flatnonzero(np.append(np.diff(p[order]) != 0, True))  # with each probability
        # Recall is gained only at thresholds where a true chip passes.
        gains = np.diff(np.append(0, true[order].cumsum()[last])) > 0
        for i in range(0, len(weights), RESAMPLES_AT_ONCE):
            w = weights[i : i + RESAMPLES_AT_ONCE, order]
            positives = w.cumsum(1)[:, last[gains]]
            hits = (w * true[order]).cumsum(1)[:, last[gains]]
            gained = np.diff(hits, axis=1, prepend=0)
            area = (_ratio(hits, positives) * gained).sum(1)
            out[i : i + RESAMPLES_AT_ONCE, c] = _ratio(area, hits[:, -1:].sum(1))
    return out


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
