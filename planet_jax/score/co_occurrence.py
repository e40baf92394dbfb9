"""Count which labels are confused, and which pairs of labels occur together."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class Swap(NamedTuple):
    """The number of chips where `missed` is a false negative and `instead` a false positive."""

    missed: int
    instead: int
    chips: int


class Pair(NamedTuple):
    """The numbers of chips where labels a < b are both true, and both predicted."""

    a: int
    b: int
    true: int
    predicted: int


def swaps(
    predicted: Bool[np.ndarray, "n classes"], true: Bool[np.ndarray, "n classes"]
) -> list[Swap]:
    """Return all swaps that occur, the most frequent first."""
    missed, instead = (true & ~predicted).astype(int), (predicted & ~true).astype(int)
    counts = missed.T @ instead
    nonzero = [Swap(int(a), int(b), int(counts[a, b])) for a, b in np.argwhere(counts)]
    return sorted(nonzero, key=lambda swap: -swap.chips)


def pairs(
    predicted: Bool[np.ndarray, "n classes"], true: Bool[np.ndarray, "n classes"]
) -> list[Pair]:
    """Return all pairs that are true or predicted, the largest difference first."""
    counts_true, counts_predicted = (a.astype(int).T @ a.astype(int) for a in (true, predicted))
    nonzero = [
        Pair(int(a), int(b), int(counts_true[a, b]), int(counts_predicted[a, b]))
        for a, b in np.argwhere(np.triu(counts_true + counts_predicted, k=1))
    ]
    return sorted(nonzero, key=lambda pair: -abs(pair.true - pair.predicted))
