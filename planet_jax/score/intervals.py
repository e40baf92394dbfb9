"""How far a figure would move with other chips: the percentile bootstrap (Efron 1979).

A resample draws as many chips as there are, with replacement; the middle 95% of a figure over the
resamples is its interval. It speaks of the draw of chips alone, not of the seed that trained.
"""

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95


def resamples(rng: np.random.Generator, n: int, count: int) -> Float[np.ndarray, "count n"]:
    """How often each of n chips is in each of `count` resamples (float32, which is exact here)."""
    drawn = rng.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float32)


def mean_interval(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "count n"]
) -> tuple[float, float]:
    """The interval of the mean of a figure that every chip has."""
    low, high = interval(weights.astype(np.float64) @ values / len(values))
    return float(low), float(high)


def interval(figures: Float[np.ndarray, "count ..."]) -> Float[np.ndarray, "2 ..."]:
    """The ends of the middle 95% of `figures`, one of each resample."""
    tail = 100 * (1 - CONFIDENCE) / 2
    return np.percentile(figures, [tail, 100 - tail], axis=0)
