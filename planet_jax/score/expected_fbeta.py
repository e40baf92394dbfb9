"""Choose each chip's labels of highest expected F-beta."""

import numpy as np
from jaxtyping import Float

from planet_jax.score.metrics import Predicted, Probabilities
from planet_jax.score.weather import Weather

CHIPS_AT_ONCE = 4096  # bounds the memory of `expected_shares`, n × classes² floats


def best_expected_fbeta(
    probabilities: Probabilities, beta: float = 2.0, weather: Weather | None = None
) -> Predicted:
    """Return the labels of highest expected F-beta for each chip, if labels are independent.

    A set of k labels scores (1 + b²) hits / (b² true + k), and 0 without labels. For a fixed k the
    expectation is a sum over the labels, so the best set holds the k labels of highest share; all k
    are tried. O(classes³) per chip. With `weather` the truth obeys its rule (`expected_shares`),
    and only sets that obey it are considered.

    Ye, Chai, Lee, Chieu: Optimizing F-measures: a tale of two approaches (ICML 2012). Waegeman et
    al.: On the Bayes-optimality of F-measure maximizers (JMLR 15, 2014).
    """
    parts = [
        _best_sets(expected_shares(probabilities[i : i + CHIPS_AT_ONCE], beta, weather), weather)
        for i in range(0, len(probabilities), CHIPS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(probabilities.shape, bool)


def expected_shares(
    probabilities: Probabilities, beta: float = 2.0, weather: Weather | None = None
) -> Float[np.ndarray, "n classes k"]:
    """Return [:, c, k - 1]: what label c adds to the expected F-beta of a set of k labels.

    With `weather`, exactly one weather tag is true, with probabilities normalized to a sum of 1,
    and `cloudy` excludes all other labels. The other labels are independent given the tag. Each
    label's own probability is kept as far as the rule allows.
    """
    classes = probabilities.shape[1]
    true, size = np.ogrid[:classes, 1 : classes + 1]

    def score(extra: int) -> Float[np.ndarray, "s k"]:  # of one hit, if s + extra labels are true
        return (1 + beta**2) / (beta**2 * (true + extra) + size)

    if weather is None:
        return probabilities[..., None] * (_count_of_others(probabilities) @ score(1))
    columns = list(weather.columns)
    sky = probabilities[:, columns]
    total = sky.sum(1, keepdims=True)
    sky = np.where(total > 0, sky / np.where(total > 0, total, 1), 1 / len(columns))
    cloudy = sky[:, [columns.index(weather.cloudy)]]
    if_not_cloudy = np.minimum(probabilities / np.where(cloudy < 1, 1 - cloudy, 1), 1)
    if_not_cloudy[:, columns] = 0
    others = _count_of_others(if_not_cloudy)
    shares = ((1 - cloudy) * if_not_cloudy)[..., None] * (others @ score(2))
    shares[:, columns] = sky[..., None] * (others[:, columns] @ score(1))
    shares[:, weather.cloudy] = cloudy * score(1)[0]
    return shares


def _count_of_others(probabilities: Probabilities) -> Float[np.ndarray, "n classes s"]:
    """Return [:, c, s]: the probability that s labels other than c are true (Poisson binomial)."""
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
    """Return the best set of each chip: the k highest shares, for the k of highest sum."""
    rank_by = _rank_with_weather(shares, weather) if weather else shares
    order = np.argsort(-rank_by, axis=1, kind="stable")
    allowed = np.where(rank_by == -np.inf, -np.inf, shares)
    sums = np.take_along_axis(allowed, order, axis=1).cumsum(1)
    scores = np.diagonal(sums, axis1=1, axis2=2)  # [n, k - 1]: of the best k labels
    best = scores.argmax(1)
    chosen = order[np.arange(len(best)), :, best]
    sizes = np.where((scores.max(1) > 0) | (weather is not None), best + 1, 0)
    predicted = np.zeros(chosen.shape, bool)
    np.put_along_axis(predicted, chosen, np.arange(chosen.shape[1]) < sizes[:, None], axis=1)
    return predicted


def _rank_with_weather(
    shares: Float[np.ndarray, "n classes k"], weather: Weather
) -> Float[np.ndarray, "n classes k"]:
    """Return shares to rank by: the best weather tag is first in any set, the others in none."""
    columns = np.array(weather.columns)
    sky = shares[:, columns]
    sky[:, weather.columns.index(weather.cloudy), 1:] = -np.inf  # cloudy is only in sets of one
    best = np.expand_dims(sky.argmax(1), 1)
    rank_by = shares.copy()
    rank_by[:, columns] = -np.inf
    np.put_along_axis(rank_by, columns[best], np.inf, axis=1)
    return rank_by
