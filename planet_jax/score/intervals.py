"""Compute confidence intervals by the percentile bootstrap (Efron 1979).

A resample draws n of the n chips with replacement. The interval of a score is the middle 95% of its
values over the resamples. The interval covers the choice of chips, not the seed of the training.
"""

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95


def resamples(rng: np.random.Generator, n: int, count: int) -> Float[np.ndarray, "count n"]:
    """Draw resamples; return how often each one holds each chip (float32, exact integers)."""
    drawn = rng.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float32)


def mean_interval(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "count n"]
) -> tuple[float, float]:
    """Return the interval of the mean of `values`, one value per chip."""
    low, high = interval(weights.astype(np.float64) @ values / len(values))
    return float(low), float(high)


def interval(values: Float[np.ndarray, "count ..."]) -> Float[np.ndarray, "2 ..."]:
    """Return the ends of the middle 95% of `values` over their first axis, the resamples."""
    tail = 100 * (1 - CONFIDENCE) / 2
    return np.percentile(values, [tail, 100 - tail], axis=0)
