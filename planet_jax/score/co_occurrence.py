"""Which labels are taken for which, and which pairs come together too often or too seldom."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class Swap(NamedTuple):
    """On `chips` chips label `missed` was true and not predicted, `instead` predicted, not true."""

    missed: int
    instead: int
    chips: int


class Pair(NamedTuple):
    """Labels a < b stand together on `true` chips, and are predicted together on `predicted`."""

    a: int
    b: int
    true: int
    predicted: int


def swaps(
    predicted: Bool[np.ndarray, "n classes"], true: Bool[np.ndarray, "n classes"]
) -> list[Swap]:
    """All that happened, the most frequent first."""
    missed, instead = (true & ~predicted).astype(int), (predicted & ~true).astype(int)
    counts = missed.T @ instead
    found = [Swap(int(a), int(b), int(counts[a, b])) for a, b in np.argwhere(counts)]
    return sorted(found, key=lambda swap: -swap.chips)


def pairs(
    predicted: Bool[np.ndarray, "n classes"], true: Bool[np.ndarray, "n classes"]
) -> list[Pair]:
    """All that are true or predicted anywhere, those whose counts differ most first."""
    together = [a.astype(int).T @ a.astype(int) for a in (true, predicted)]
    found = [
        Pair(int(a), int(b), int(together[0][a, b]), int(together[1][a, b]))
        for a, b in np.argwhere(np.triu(together[0] + together[1], k=1))
    ]
    return sorted(found, key=lambda pair: -abs(pair.true - pair.predicted))
