"""Divide chips with several labels into folds with nearly equal shares of every label.

Iterative stratification of K. Sechidis, G. Tsoumakas and I. Vlahavas, On the stratification of
multi-label data, ECML PKDD 2011, algorithm 1. Groups of chips are placed whole; by default
each chip is a group. The package iterative-stratification does not support groups, and it needs
scikit-learn.
"""

import numpy as np
from jaxtyping import Int, UInt8


def stratified_folds(
    targets: UInt8[np.ndarray, "n classes"],
    folds: int,
    seed: int,
    groups: Int[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, " n"]:
    """Return each chip's fold, from 0; all chips of a group are in the same fold.

    The rarest remaining label is placed first, because its chips leave the least choice. Each group
    with this label goes to the fold that still needs most chips with the label. Ties go to the
    fold that needs most chips, then to a random fold.

    Args:
      targets: multi-hot labels.
      groups: the number of each chip's group, from 0 without gaps.
    """
    rng, n = np.random.RandomState(seed), len(targets)
    groups = np.arange(n) if groups is None else groups
    sizes = np.bincount(groups)
    counts = np.zeros((len(sizes), targets.shape[1]), np.int64)  # chips of each group and label
    np.add.at(counts, groups, targets.astype(np.int64))
    # The numbers that each fold still needs, times `folds`: integers, so that ties are exact.
    wanted_labels = np.tile(counts.sum(0), (folds, 1))
    wanted_chips = np.full(folds, n)
    fold_of = np.full(len(sizes), -1)

    def place(group: int, wanted: Int[np.ndarray, " folds"]) -> None:
        best = np.flatnonzero(wanted == wanted.max())
        best = best[wanted_chips[best] == wanted_chips[best].max()]
        fold = best[0] if len(best) == 1 else rng.choice(best)
        fold_of[group] = fold
        wanted_labels[fold] -= folds * counts[group]
        wanted_chips[fold] -= folds * sizes[group]

    order = rng.permutation(len(sizes))
    # Large groups first: small groups then balance the folds.
    order = order[np.argsort(-sizes[order], kind="stable")]
    while len(order):
        left = (counts[order] > 0).sum(0)
        if not left.any():
            break
        label = int(np.argmin(np.where(left > 0, left, len(sizes) + 1)))
        chosen = counts[order, label] > 0
        for group in order[chosen]:
            place(group, wanted_labels[:, label])
        order = order[~chosen]
    for group in order:  # chips without a label
        place(group, wanted_chips)
    return fold_of[groups]
