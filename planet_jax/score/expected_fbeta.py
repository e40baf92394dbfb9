"""Choose each chip's labels of highest expected F-beta."""

import functools
import math

import numpy as np
from jaxtyping import Float

from planet_jax.compiled import compiled
from planet_jax.score.metrics import Predicted, Probabilities
from planet_jax.score.weather import Weather

MARGIN = 1e-9  # smaller differences between expectations are rounding errors


def best_expected_fbeta(
    probabilities: Probabilities, beta: float = 2.0, weather: Weather | None = None
) -> Predicted:
    """Return each chip's labels of highest expected F-beta, for independent labels.

    A set of k labels scores (1 + b²) hits / (b² true + k), and an empty set scores 0. For a fixed k
    the k most probable labels are the best (Lewis 1995), so only k is searched.

    With `weather`, the truth and the predicted sets obey the weather rule. Exactly one weather tag
    is true; the tags' probabilities are normalized to a sum of 1. `cloudy` excludes all other
    labels. The other labels are independent given the tag. Each label keeps its own probability as
    far as the rule allows.

    Ye, Chai, Lee, Chieu: Optimizing F-measures: a tale of two approaches (ICML 2012). Waegeman et
    al.: On the Bayes-optimality of F-measure maximizers (JMLR 15, 2014).
    """
    if weather is None:
        return _best_of(probabilities, beta)
    return _best_with_weather(probabilities, beta, weather)


def _best_of(p: Probabilities, beta: float) -> Predicted:
    order = np.argsort(-p, axis=1, kind="stable")
    none, one = np.zeros(len(p)), np.ones(len(p))
    scores = expected_scores(np.take_along_axis(p, order, axis=1), beta, none, one, extra=0)
    return _first_of(order, scores.argmax(1))


def _best_with_weather(p: Probabilities, beta: float, weather: Weather) -> Predicted:
    columns = np.array(weather.columns)
    total = p[:, columns].sum(1, keepdims=True)
    sky = np.where(total > 0, p[:, columns] / np.where(total > 0, total, 1), 1 / len(columns))
    is_cloudy = columns == weather.cloudy
    cloudy = sky[:, is_cloudy][:, 0]
    tag = np.where(is_cloudy, -1, sky).argmax(1)
    others = np.minimum(p / np.where(cloudy < 1, 1 - cloudy, 1)[:, None], 1)
    others[:, columns] = 0  # ranked last
    order = np.argsort(-others, axis=1, kind="stable")
    ranked = np.take_along_axis(others, order, axis=1)
    best_tag = np.take_along_axis(sky, tag[:, None], axis=1)[:, 0]
    scores = expected_scores(ranked, beta, best_tag, 1 - cloudy, extra=1)
    predicted = _first_of(order, scores.argmax(1))
    predicted[np.arange(len(p)), columns[tag]] = True
    only_cloudy = cloudy > scores.max(1) + MARGIN
    predicted[only_cloudy] = np.arange(p.shape[1]) == weather.cloudy
    return predicted


def _first_of(order: np.ndarray, size: np.ndarray) -> Predicted:
    """Return the set of the first `size` columns of each row of `order`."""
    predicted = np.zeros(order.shape, bool)
    np.put_along_axis(predicted, order, np.arange(order.shape[1]) < size[:, None], axis=1)
    return predicted


def expected_scores(
    ranked: Probabilities,
    beta: float,
    tag: Float[np.ndarray, " n"],
    share: Float[np.ndarray, " n"],
    extra: int,
) -> Float[np.ndarray, "n sizes"]:
    """Return the expected F-beta of the k most probable labels, for k = 0 to `classes`.

    With `extra` = 1 each set also holds one weather tag, which is true with probability `tag`. Each
    truth then also holds one tag. The ranked labels are true only if the truth is not cloudy, which
    has probability `share`.

    1 / (b² true + k) is the integral of v^(b² true + k - 1) from 0 to 1. Under the integral the
    labels' factors (1 - p + p v^b²) multiply, because labels are independent. The quadrature of
    `_nodes` takes O(classes^1.5) steps per chip. Every term is positive, so nothing cancels.
    """
    classes = ranked.shape[1]
    v, weights = _nodes(classes + extra, beta)
    q, r = (beta**2).as_integer_ratio()
    hit = v**q
    sizes = np.arange(classes + 1)[:, None] + extra
    kernel = (1 + beta**2) * r * weights * hit * v ** np.maximum(r * sizes - 1, 0)
    scores, product = _sum_over_nodes(ranked.astype(np.float64), hit, kernel * hit**extra)
    return share[:, None] * scores + tag[:, None] * (product @ kernel.T)


@compiled
def _sum_over_nodes(
    ranked: np.ndarray, hit: np.ndarray, kernel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the integrals [n, classes + 1], and the product of all factors [n, nodes]."""
    n, classes = ranked.shape
    miss = 1 - hit
    scores, products = np.zeros((n, classes + 1)), np.ones((n, len(hit)))
    for i in range(n):
        product, sums = products[i], np.zeros(len(hit))
        for c in range(classes):
            p = ranked[i, c]
            for v in range(len(hit)):
                product[v] *= 1 - p * miss[v]
        for c in range(classes):
            p = ranked[i, c]
            if p == 0:  # this label and the rest add nothing
                break
            for v in range(len(hit)):
                sums[v] += p * product[v] / (1 - p * miss[v])
            scores[i, c + 1] = np.dot(sums, kernel[c + 1])
    return scores, products


@functools.lru_cache(8)
def _nodes(labels: int, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Gauss-Legendre nodes and weights on [0, 1] for `expected_scores`.

    The integrand is a sum of positive monomials. degree // 2 + 1 nodes are exact. With
    2.75 sqrt(degree) nodes every monomial, and so the sum, has a relative error below 1e-9.
    """
    degree = sum((beta**2).as_integer_ratio()) * labels
    count = min(degree // 2 + 1, math.ceil(2.75 * math.sqrt(degree)) + 2)
    x, weights = np.polynomial.legendre.leggauss(count)
    return (x + 1) / 2, weights / 2
