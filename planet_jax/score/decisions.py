"""From probabilities to labels: one threshold, one a class, or the labels of highest expected F2.

All take probabilities [n, classes] and give bools of that shape. What is fitted to chips is judged
on others: see `cross_fit`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from planet_jax.score.calibration import Calibration, fit_calibration
from planet_jax.score.metrics import Probabilities, Targets

Predicted = Bool[np.ndarray, "n classes"]
RULES = ("threshold", "per_class", "expected_f2")
CLOUDY = "cloudy"
WEATHER = ("clear", CLOUDY, "haze", "partly_cloudy")  # the competition: each chip has one of these
CHIPS_AT_ONCE = 4096


@dataclass(frozen=True)
class Weather:
    """Which columns are the weather's; `cloudy`, one of them, stands alone."""

    columns: tuple[int, ...]
    cloudy: int


def weather_of(classes: Sequence[str]) -> Weather | None:
    """The weather's columns of a vocabulary that has all four tags."""
    if not set(WEATHER) <= set(classes):
        return None
    return Weather(tuple(classes.index(tag) for tag in WEATHER), classes.index(CLOUDY))


def obey_weather(predicted: Predicted, probabilities: Probabilities, weather: Weather) -> Predicted:
    """Exactly one weather tag a chip, the most probable; with `cloudy` nothing else."""
    columns = np.array(weather.columns)
    chosen = columns[probabilities[:, columns].argmax(1)]
    obeying = predicted.copy()
    obeying[:, columns] = False
    obeying[chosen == weather.cloudy] = False
    obeying[np.arange(len(chosen)), chosen] = True
    return obeying


@dataclass(frozen=True)
class Decision:
    """How probabilities become labels.

    Attributes:
      rule: one of RULES.
      thresholds: one a class, above which it is predicted (expected_f2 has no use for them); those
        of per_class are fitted to, and meet, probabilities as they come.
      calibration: of the probabilities that the other rules look at, or None.
      weather: whose rule the labels obey, or None.
    """

    rule: str
    thresholds: Float[np.ndarray, " classes"]
    calibration: Calibration | None = None
    weather: Weather | None = None

    def __call__(self, probabilities: Probabilities) -> Predicted:
        calibrated = self.calibrated(probabilities)
        if self.rule == "expected_f2":
            return best_expected_fbeta(calibrated, weather=self.weather)
        looked_at = probabilities if self.rule == "per_class" else calibrated
        predicted = looked_at > self.thresholds
        return obey_weather(predicted, calibrated, self.weather) if self.weather else predicted

    def calibrated(self, probabilities: Probabilities) -> Probabilities:
        """The probabilities, calibrated where this decision does that."""
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
    """The rule, with what it needs fitted to these chips; each class starts at `threshold`."""
    calibration = fit_calibration(probabilities, targets) if calibrate else None
    thresholds = np.full(probabilities.shape[1], float(threshold))
    if rule == "per_class":
        thresholds = fit_thresholds(probabilities, targets, threshold)
    return Decision(rule, thresholds, calibration, weather)


def folds(rng: np.random.Generator, n: int, k: int) -> Int[np.ndarray, " n"]:
    """The fold, 0 to k - 1, of each of n chips: sizes differ by one at most."""
    return rng.permutation(np.arange(n) % k)


def cross_fit(
    fit: Callable[[Probabilities, Targets], Callable[[Probabilities], np.ndarray]],
    probabilities: Probabilities,
    targets: Targets,
    fold: Int[np.ndarray, " n"],
) -> np.ndarray:
    """What is fitted to all other folds says of each fold: no chip is judged by its own label."""
    numbers = np.unique(fold)
    parts = [fit(probabilities[fold != k], targets[fold != k])(probabilities[fold == k])
             for k in numbers]  # fmt: skip
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
    """A threshold for each class that raises the mean F-beta over chips, by coordinate ascent.

    With the other classes as they are, giving a class to a chip changes that chip's score alone. So
    the changes, summed from the most probable chip down, give the score of every threshold at once,
    and the best is exact. A class keeps its threshold unless another is better; the score never
    falls. Sweeps end when none changes.
    """
    true = targets > 0
    classes = probabilities.shape[1]
    thresholds = np.full(classes, float(start))
    predicted = probabilities > thresholds
    order = np.argsort(-probabilities, axis=0, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=0)
    for _ in range(sweeps):
        changed = False
        for c in range(classes):
            others = np.delete(np.arange(classes), c)
            hits = (predicted[:, others] & true[:, others]).sum(1)
            base = beta**2 * true.sum(1) + predicted[:, others].sum(1)
            gain = (hits + true[:, c]) / (base + 1) - hits / np.maximum(base, 1)
            total = np.append(0.0, gain[order[:, c]].cumsum())  # of the k most probable chips
            fall = np.concatenate([[1.0], ranked[:, c]]) > np.append(ranked[:, c], 0.0)
            fall[0] = True  # no chip at all can always be had: no probability is above 1
            k = int(np.where(fall, total, -np.inf).argmax())
            if total[k] > total[predicted[:, c].sum()] + 1e-9:
                thresholds[c] = _between(ranked[:, c], k)
                predicted[:, c] = probabilities[:, c] > thresholds[c]
                changed = True
        if not changed:
            break
    return thresholds


def _between(ranked: Float[np.ndarray, " n"], k: int) -> float:
    """A threshold that the first k pass and the others do not: halfway, where floats allow it."""
    above, below = np.concatenate([[1.0], ranked, [0.0]])[k : k + 2]
    middle = (above + below) / 2
    return float(middle if middle < above else below)


def best_expected_fbeta(
    probabilities: Probabilities, beta: float = 2.0, weather: Weather | None = None
) -> Predicted:
    """The labels whose expected F-beta is highest, for each chip, if labels are independent.

    A set of k labels scores (1 + b²) hits / (b² true + k), and no labels score 0, whatever is true.
    For fixed k that is a sum over the set, so its expectation is too: the best k labels are the k
    of highest expected share, and the best k is found by trying all. Nothing else is assumed, so
    no other rule, thresholds among them, has a higher expected score where the probabilities are
    right. O(classes³) a chip. With `weather` the truth is known to obey its rule too (see
    `expected_shares`), and the labels are the best of the sets that do.

    Ye, Chai, Lee, Chieu: Optimizing F-measures: a tale of two approaches (ICML 2012); Waegeman et
    al.: On the Bayes-optimality of F-measure maximizers (JMLR 15, 2014), whose general maximiser
    this is with the independent model put in.
    """
    parts = [
        _best_sets(expected_shares(probabilities[i : i + CHIPS_AT_ONCE], beta, weather), weather)
        for i in range(0, len(probabilities), CHIPS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(probabilities.shape, bool)


def expected_shares(
    probabilities: Probabilities, beta: float = 2.0, weather: Weather | None = None
) -> Float[np.ndarray, "n classes k"]:
    """What label c adds to the expected F-beta of a set of k + 1 labels that has it.

    With `weather`, exactly one of its tags is true, by shares of their probabilities, and with
    `cloudy` nothing else; the other labels are independent under the other tags. The probability
    of each label by itself stays what it is, as far as the rule lets it.
    """
    classes = probabilities.shape[1]
    true, size = np.ogrid[:classes, 1 : classes + 1]

    def worth(more: int) -> Float[np.ndarray, "s k"]:
        return (1 + beta**2) / (beta**2 * (true + more) + size)

    if weather is None:
        return probabilities[..., None] * (_others(probabilities) @ worth(1))
    columns = list(weather.columns)
    sky = probabilities[:, columns]
    total = sky.sum(1, keepdims=True)
    sky = np.where(total > 0, sky / np.where(total > 0, total, 1), 1 / len(columns))
    cloudy = sky[:, [columns.index(weather.cloudy)]]
    given = np.minimum(probabilities / np.where(cloudy < 1, 1 - cloudy, 1), 1)
    given[:, columns] = 0  # of the labels that are no weather, if it is not cloudy
    others = _others(given)
    shares = ((1 - cloudy) * given)[..., None] * (others @ worth(2))
    shares[:, columns] = sky[..., None] * (others[:, columns] @ worth(1))
    shares[:, weather.cloudy] = cloudy * worth(1)[0]
    return shares


def _others(probabilities: Probabilities) -> Float[np.ndarray, "n classes s"]:
    """[:, c, s]: the chance that s of the labels apart from c are true (Poisson's binomial)."""
    n, classes = probabilities.shape
    others = np.zeros((n, classes, classes))
    others[..., 0] = 1
    for j in range(classes):
        p = np.where(np.arange(classes) == j, 0, probabilities[:, j, None])[..., None]
        one_more = others[..., :-1] * p
        others *= 1 - p
        others[..., 1:] += one_more
    return others


def _best_sets(shares: Float[np.ndarray, "n classes k"], weather: Weather | None) -> Predicted:
    rank_by = shares
    if weather:  # the best weather tag comes first in any set, the others in none
        columns = np.array(weather.columns)
        of_weather = shares[:, columns]
        of_weather[:, weather.columns.index(weather.cloudy), 1:] = -np.inf  # for it stands alone
        best = np.expand_dims(of_weather.argmax(1), 1)
        rank_by = shares.copy()
        rank_by[:, columns] = -np.inf
        np.put_along_axis(rank_by, columns[best], np.inf, axis=1)
    order = np.argsort(-rank_by, axis=1, kind="stable")
    allowed = np.where(rank_by == -np.inf, -np.inf, shares)
    scores = np.take_along_axis(allowed, order, axis=1).cumsum(1)
    scores = np.diagonal(scores, axis1=1, axis2=2)  # [n, k]: of the best k + 1 labels
    k = scores.argmax(1)
    chosen = order[np.arange(len(k)), :, k]
    sizes = np.where((scores.max(1) > 0) | (weather is not None), k + 1, 0)
    predicted = np.zeros(chosen.shape, bool)
    np.put_along_axis(predicted, chosen, np.arange(chosen.shape[1]) < sizes[:, None], axis=1)
    return predicted
