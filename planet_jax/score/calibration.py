"""Whether a probability of 0.3 is right three times in ten; and how to mend it when it is not."""

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float

from planet_jax.score.metrics import Probabilities, Targets, sigmoid

BINS = 10
TINY = 1e-12  # a probability of 0 or 1 has no logit


@dataclass(frozen=True)
class Calibration:
    """Platt scaling: a class's probability becomes sigmoid(slope · logit + intercept)."""

    slope: Float[np.ndarray, " classes"]
    intercept: Float[np.ndarray, " classes"]

    def __call__(self, probabilities: Probabilities) -> Probabilities:
        return sigmoid(self.slope * _logit(probabilities) + self.intercept)


def _logit(probabilities: Probabilities) -> Probabilities:
    return scipy.special.logit(probabilities.clip(TINY, 1 - TINY))


def fit_calibration(probabilities: Probabilities, targets: Targets) -> Calibration:
    """Slope and intercept of each class by maximum likelihood, with Platt's prior.

    A class's targets are (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2) in place of 1 and 0, which keeps a
    class with few chips, or none, from certainty (Platt 1999). A slope is never negative: no class
    is turned round. Without chips nothing is changed.
    """
    if len(targets) == 0:
        return Calibration(np.ones(targets.shape[1]), np.zeros(targets.shape[1]))
    fitted = [_fit_class(z, t) for z, t in zip(_logit(probabilities).T, targets.T > 0, strict=True)]
    return Calibration(*np.array(fitted).T.reshape(2, -1))


def _fit_class(z: Float[np.ndarray, " n"], true: np.ndarray) -> Float[np.ndarray, "2"]:
    positives = true.sum()
    goal = np.where(true, (positives + 1) / (positives + 2), 1 / (len(true) - positives + 2))

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        logit = x[0] * z + x[1]
        off = (scipy.special.expit(logit) - goal) / len(z)
        return float(np.mean(np.logaddexp(0, logit) - logit * goal)), np.array([off @ z, off.sum()])

    found = scipy.optimize.minimize(loss, [1.0, 0.0], jac=True, method="BFGS", tol=1e-7).x
    # The loss is convex: if a negative slope is best, then of those allowed none at all is.
    return found if found[0] >= 0 else np.array([0.0, scipy.special.logit(goal.mean())])


def reliability(
    probabilities: Probabilities, targets: Targets, bins: int = BINS
) -> list[dict[str, float]]:
    """All entries by their probability, in bins of equal width; those with entries, in order.

    Each has `low` and `high` (low is outside, but for 0), `entries`, their mean `probability`, and
    the `share` of them that is true. In a calibrated model the two are equal.
    """
    p, true = probabilities.ravel(), targets.ravel() > 0
    place = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    entries = np.bincount(place, minlength=bins)
    sums = np.bincount(place, p, bins), np.bincount(place, true, bins)
    return [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "entries": int(entries[b]),
            "probability": float(sums[0][b] / entries[b]),
            "share": float(sums[1][b] / entries[b]),
        }
        for b in np.flatnonzero(entries)
    ]


def calibration_error(probabilities: Probabilities, targets: Targets, bins: int = BINS) -> float:
    """ECE: the mean distance between a bin's probability and its share of true, over entries."""
    table = reliability(probabilities, targets, bins)
    off = sum(row["entries"] * abs(row["probability"] - row["share"]) for row in table)
    return float(off / probabilities.size)


def brier(probabilities: Probabilities, targets: Targets) -> Float[np.ndarray, " classes"]:
    """Each class's mean squared distance between probability and target."""
    return ((probabilities - (targets > 0)) ** 2).mean(0)
