"""Turn probabilities [n, classes] into labels, bool [n, classes].

The rules are one threshold, a threshold per class, and the labels of highest expected F2. Fitted
values are scored on chips they were not fitted to; see `cross_fit`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from planet_jax.compiled import compiled
from planet_jax.score.calibration import Calibration, fit_calibration
from planet_jax.score.expected_fbeta import best_expected_fbeta
from planet_jax.score.metrics import Predicted, Probabilities, Targets
from planet_jax.score.weather import Weather, obey_weather

MIN_GAIN = 1e-9  # of the summed score: a smaller gain is a rounding error


@dataclass(frozen=True)
class Decision:
    """Map probabilities to labels.

    Attributes:
      rule: threshold, per_class or expected_f2.
      thresholds: one per class; a label is predicted if its probability is above it. expected_f2
        ignores thresholds. per_class fits and compares with uncalibrated probabilities.
      calibration: applied to the probabilities first, or None.
      weather: the columns of the weather rule, or None.
    """

    rule: str
    thresholds: Float[np.ndarray, " classes"]
    calibration: Calibration | None = None
    weather: Weather | None = None

    def __call__(self, probabilities: Probabilities) -> Predicted:
        calibrated = self.calibrated(probabilities)
        if self.rule == "expected_f2":
            return best_expected_fbeta(calibrated, weather=self.weather)
        compared = probabilities if self.rule == "per_class" else calibrated
        predicted = compared > self.thresholds
        return obey_weather(predicted, calibrated, self.weather) if self.weather else predicted

    def calibrated(self, probabilities: Probabilities) -> Probabilities:
        """Return the calibrated probabilities; without a calibration, return them unchanged."""
        return self.calibration(probabilities) if self.calibration else probabilities


def fit(
    rule: str,
    probabilities: Probabilities,
    targets: Targets,
    *,
    threshold: float = 0.2,
    calibrate: bool = False,
    weather: Weather | None = None,
) -> Decision:
    """Fit a decision rule to chips; per-class thresholds start at `threshold`."""
    calibration = fit_calibration(probabilities, targets) if calibrate else None
    thresholds = np.full(probabilities.shape[1], float(threshold))
    if rule == "per_class":
        thresholds = fit_thresholds(probabilities, targets, threshold)
    return Decision(rule, thresholds, calibration, weather)


def folds(rng: np.random.Generator, n: int, k: int) -> Int[np.ndarray, " n"]:
    """Draw each chip's fold, 0 to k - 1; the sizes of folds differ by at most one."""
    return rng.permutation(np.arange(n) % k)


def cross_fit(
    fit: Callable[[Probabilities, Targets], Callable[[Probabilities], np.ndarray]],
    probabilities: Probabilities,
    targets: Targets,
    fold: Int[np.ndarray, " n"],
) -> np.ndarray:
    """For each fold, fit to all other folds and apply the fit; return results [n, classes]."""
    numbers = np.unique(fold)
    parts = [
        fit(probabilities[fold != k], targets[fold != k])(probabilities[fold == k]) for k in numbers
    ]
    out = np.empty(probabilities.shape, parts[0].dtype)
    for k, part in zip(numbers, parts, strict=True):
        out[fold == k] = part
    return out


def fit_thresholds(
    probabilities: Probabilities,
    targets: Targets,
    start: float = 0.2,
    beta: float = 2.0,
    sweeps: int = 20,
) -> Float[np.ndarray, " classes"]:
    """Fit one threshold per class to the mean F-beta over chips, by coordinate ascent.

    One class at a time is set to its best threshold while the others stay fixed. A threshold
    changes only if the score rises. The sweeps over classes end when no threshold changes.
    """
    probabilities = np.asfortranarray(probabilities)  # column after column is read
    true = np.asfortranarray(targets > 0)
    classes = range(probabilities.shape[1])
    thresholds = np.full(len(classes), float(start))
    predicted = probabilities > thresholds
    order = np.argsort(-probabilities.T, axis=1, kind="stable")  # [classes, n]
    ranked = np.take_along_axis(probabilities.T, order, axis=1)
    hits, chosen = (predicted & true).sum(1), predicted.sum(1)  # per chip, of all classes
    base = beta**2 * true.sum(1)
    for _ in range(sweeps):
        changed = False
        for c in classes:
            hits -= predicted[:, c] & true[:, c]
            chosen -= predicted[:, c]
            current = int(predicted[:, c].sum())
            k = _best_count(ranked[c], order[c], hits, base + chosen, true[:, c], current)
            if k >= 0:
                thresholds[c] = _threshold_after(ranked[c], k)
                predicted[:, c] = probabilities[:, c] > thresholds[c]
                changed = True
            hits += predicted[:, c] & true[:, c]
            chosen += predicted[:, c]
        if not changed:
            break
    return thresholds


@compiled
def _best_count(
    ranked: np.ndarray,
    order: np.ndarray,
    hits: np.ndarray,
    base: np.ndarray,
    true: np.ndarray,
    current: int,
) -> int:
    """Return how many of the most probable chips get the class, or -1 to keep `current`.

    The other classes are fixed, so the class changes each chip's F-beta independently. `base` is
    b² true + predicted. `hits` and the predicted labels in `base` exclude the class. `true` is the
    class's own column. `order` ranks the chips by their probabilities, `ranked`, descending.
    """
    total = best = at_current = 0.0  # scores of k = 0: a threshold of 1 predicts no chip
    k = 0
    for i in range(len(order)):
        chip = order[i]
        total += (hits[chip] + true[chip]) / (base[chip] + 1) - hits[chip] / max(base[chip], 1)
        if i + 1 == current:
            at_current = total
        # Equal probabilities cannot be separated.
        if ranked[i] > (ranked[i + 1] if i + 1 < len(ranked) else 0.0) and total > best:
            best, k = total, i + 1
    return k if best > at_current + MIN_GAIN else -1


def _threshold_after(ranked: Float[np.ndarray, " n"], k: int) -> float:
    """Return a threshold that only the first k values exceed.

    It is the middle between two values, or the lower value if floats have no middle.
    """
    above, below = np.concatenate([[1.0], ranked, [0.0]])[k : k + 2]
    middle = (above + below) / 2
    return float(middle if middle < above else below)
