"""Measure how well probabilities are calibrated, and calibrate them by Platt scaling."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.special
from jaxtyping import Bool, Float

from planet_jax.compiled import compiled
from planet_jax.score.metrics import Probabilities, Targets, sigmoid

BINS = 10
MIN_PROBABILITY = 1e-12  # the logit of 0 or 1 is infinite
MIN_FALL, MAX_STEPS = 1e-14, 50  # Newton's method ends when the loss would fall by MIN_FALL / 2
RIDGE = 1e-12  # the Hessian is singular if all logits of a class are equal


@dataclass(frozen=True)
class Calibration:
    """Platt scaling: map a class's probability to sigmoid(slope · logit + intercept)."""

    slope: Float[np.ndarray, " classes"]
    intercept: Float[np.ndarray, " classes"]

    def __call__(self, probabilities: Probabilities) -> Probabilities:
        return sigmoid(self.slope * _logit(probabilities) + self.intercept)


def _logit(probabilities: Probabilities) -> Probabilities:
    return scipy.special.logit(probabilities.clip(MIN_PROBABILITY, 1 - MIN_PROBABILITY))


def fit_calibration(probabilities: Probabilities, targets: Targets) -> Calibration:
    """Fit slope and intercept of each class by maximum likelihood, with Platt's prior.

    Targets 1 and 0 become (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2), so that few chips do not give
    probabilities near 0 or 1 (Platt 1999). Slopes are at least 0, so the order of chips is never
    reversed. Without chips the calibration is the identity.
    """
    if len(targets) == 0:
        return Calibration(np.ones(targets.shape[1]), np.zeros(targets.shape[1]))
    logits = np.ascontiguousarray(_logit(probabilities).T)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fitted = list(pool.map(_fit_class, logits, targets.T > 0))
    return Calibration(*np.array(fitted).T.reshape(2, -1))


def _fit_class(z: Float[np.ndarray, " n"], true: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "2"]:
    positives = true.sum()
    target = np.where(true, (positives + 1) / (positives + 2), 1 / (len(true) - positives + 2))
    slope, offset = _minimize(z, target)
    # The loss is convex: if its minimum has a negative slope, the best allowed slope is 0.
    return np.array([slope, offset] if slope >= 0 else [0.0, scipy.special.logit(target.mean())])


@compiled
def _loss(x: np.ndarray, z: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the mean cross-entropy of sigmoid(x0 z + x1), its gradient and its Hessian."""
    loss, gradient, hessian = 0.0, np.zeros(2), np.zeros((2, 2))
    for i in range(len(z)):
        logit = x[0] * z[i] + x[1]
        e = np.exp(-abs(logit))
        p = (1.0 if logit > 0 else e) / (1 + e)
        loss += max(logit, 0.0) + np.log(1 + e) - logit * target[i]
        error, curvature = p - target[i], p * (1 - p)
        gradient[0] += error * z[i]
        gradient[1] += error
        hessian[0, 0] += curvature * z[i] ** 2
        hessian[0, 1] += curvature * z[i]
        hessian[1, 1] += curvature
    hessian[1, 0] = hessian[0, 1]
    return loss / len(z), gradient / len(z), hessian / len(z)


@compiled
def _minimize(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the slope and offset that minimize `_loss`, by Newton's method from (1, 0)."""
    best = np.array([1.0, 0.0])
    value, gradient, hessian = _loss(best, z, target)
    for _ in range(MAX_STEPS):
        a, b, c = hessian[0, 0] + RIDGE, hessian[0, 1], hessian[1, 1] + RIDGE
        step = np.array([c * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]])
        step /= a * c - b * b
        if gradient @ step < MIN_FALL:
            return best - step
        for _ in range(MAX_STEPS):  # halve the step until the loss falls
            trial = best - step
            new_value, new_gradient, new_hessian = _loss(trial, z, target)
            if new_value < value:
                break
            step *= 0.5
        else:
            return best  # rounding: no step lowers the loss
        best, value, gradient, hessian = trial, new_value, new_gradient, new_hessian
    return best


def reliability(
    probabilities: Probabilities, targets: Targets, bins: int = BINS
) -> list[dict[str, float]]:
    """Group all entries by probability into bins of equal width; empty bins are left out.

    A bin is (`low`, `high`]; the first bin includes 0. Each bin has the number of `entries`, their
    mean `probability`, and the `share` of true entries. For calibrated probabilities, `probability`
    equals `share`.
    """
    p, true = probabilities.ravel(), targets.ravel() > 0
    index = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    entries = np.bincount(index, minlength=bins)
    p_sum, true_sum = np.bincount(index, p, bins), np.bincount(index, true, bins)
    return [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "entries": int(entries[b]),
            "probability": float(p_sum[b] / entries[b]),
            "share": float(true_sum[b] / entries[b]),
        }
        for b in np.flatnonzero(entries)
    ]


def calibration_error(probabilities: Probabilities, targets: Targets, bins: int = BINS) -> float:
    """Return the ECE: the mean of |probability - share| over bins, weighted by entries."""
    table = reliability(probabilities, targets, bins)
    total = sum(row["entries"] * abs(row["probability"] - row["share"]) for row in table)
    return float(total / probabilities.size)


def brier(probabilities: Probabilities, targets: Targets) -> Float[np.ndarray, " classes"]:
    """Return each class's Brier score: the mean of (probability - target)²."""
    return ((probabilities - (targets > 0)) ** 2).mean(0)
