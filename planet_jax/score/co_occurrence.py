"""Count which labels are confused, and which pairs of labels occur together."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


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
    predicted: Bool[np.ndarray, "n classes"], true: Bool[np.ndarray, "n classes"], most: int
) -> list[Swap]:
    """Return at most `most` swaps, the most frequent first."""
    counts = _together(true & ~predicted, predicted & ~true)
    a, b = np.nonzero(counts)
    order = np.argsort(-counts[a, b], kind="stable")[:most]
    return [
        Swap(int(i), int(j), int(counts[i, j])) for i, j in zip(a[order], b[order], strict=True)
    ]


def pairs(
    predicted: Bool[np.ndarray, "n classes"], true: Bool[np.ndarray, "n classes"], most: int
) -> list[Pair]:
    """Return at most `most` pairs that occur, the largest |true - predicted| first."""
    counts_true, counts_predicted = _together(true, true), _together(predicted, predicted)
    a, b = np.nonzero(np.triu(counts_true + counts_predicted, k=1))
    order = np.argsort(-np.abs(counts_true - counts_predicted)[a, b], kind="stable")[:most]
    return [
        Pair(i, j, int(counts_true[i, j]), int(counts_predicted[i, j]))
        for i, j in zip(a[order].tolist(), b[order].tolist(), strict=True)
    ]


def _together(
    a: Bool[np.ndarray, "n classes"], b: Bool[np.ndarray, "n classes"]
) -> Int[np.ndarray, "classes classes"]:
    """Return [i, j]: the number of chips with label i in `a` and label j in `b`.

    The product is in floats, which is faster.
    """
    return np.rint(a.T.astype(np.float64) @ b.astype(np.float64)).astype(int)
