"""Choose the training rows and the validation rows."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from planet_jax.data.label_file import TRAIN, VALID
from planet_jax.data.labels import Labels, named_rows, read_labels, split, subset
from planet_jax.data.stratify import stratified_folds
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.progress import notify
from planet_jax.storage.bucket import local_path

Rows = Int[np.ndarray, " rows"]
OPTIONS = (  # of the config's section `data`, which choose the validation rows
    "valid_fraction", "split_seed", "valid_file", "folds", "fold", "group_column", "group_pattern",
)  # fmt: skip


def split_rows(labels: Labels, data: ConfigDict) -> tuple[Rows, Rows]:
    """Return the training rows, in file order, and the validation rows.

    The config's section `data` selects a list of names, a column, a folder, a fold, or the
    notebook's random split (the default). `data.subset` then reduces the training rows.

    Raises:
      BadInput: a list cannot be read or names no chip; the split divides a group; there are fewer
        chips or groups than folds.
    """
    train, valid = _divide(labels, data)
    if data.subset:
        train = subset(labels, train, Path(data.subset), data.name_column)
    return train, valid


def count(data: ConfigDict) -> tuple[int, int]:
    """Return the numbers of classes and training chips.

    Without a label file, these are the competition's numbers.

    Raises:
      BadInput: as `read_labels` and `split_rows`.
    """
    root = local_path(data.root)
    if data.label_file and not (root / data.label_file).exists():
        train, _ = split(40_479, data.valid_fraction, data.split_seed)
        return 17, len(train)
    labels = read_labels(root, data)
    return len(labels.classes), len(split_rows(labels, data)[0])


def _divide(labels: Labels, data: ConfigDict) -> tuple[Rows, Rows]:
    n, groups = len(labels.names), group_numbers(labels, data)
    rows = np.arange(n)
    if data.valid_file:
        named = named_rows(labels, "valid_file", Path(data.valid_file), data.name_column)
        valid = np.isin(rows, list(named))
        train = ~valid
    elif labels.roles:
        train, valid = (np.array(labels.roles) == role for role in (TRAIN, VALID))
        if left_out := n - train.sum() - valid.sum():
            notify(f"{data.root}: {left_out} chips of test neither train nor validate")
    elif data.folds:
        units, what = (n, "chips") if groups is None else (groups.max() + 1, "groups")
        if units < data.folds:
            raise BadInput(f"config.data.folds = {data.folds}: there are only {units} {what}")
        valid = stratified_folds(labels.targets, data.folds, data.split_seed, groups) == data.fold
        train = ~valid
    elif groups is not None:
        valid = np.isin(groups, _draw_groups(groups, data.valid_fraction, data.split_seed))
        train = ~valid
    else:
        return split(n, data.valid_fraction, data.split_seed)
    if groups is not None:
        _check_groups(labels, groups, train, valid)
    return rows[train], rows[valid]


def _draw_groups(groups: Rows, valid_fraction: float, seed: int) -> Rows:
    """Draw random groups with at most this fraction of the chips; the smallest if none fits."""
    sizes = np.bincount(groups)
    left, drawn = int(valid_fraction * len(groups)), []
    for group in np.random.RandomState(seed).permutation(len(sizes)):
        if sizes[group] <= left:
            left -= sizes[group]
            drawn.append(group)
    return np.array(drawn or [sizes.argmin()])


def group_numbers(labels: Labels, data: ConfigDict) -> Rows | None:
    """Return the number of each chip's group, from 0; None if there are no groups.

    Raises:
      BadInput: a name does not match `data.group_pattern`.
    """
    groups: Iterable[str] = labels.groups
    if data.group_pattern:
        found = [re.search(data.group_pattern, name) for name in labels.names]
        if other := [name for name, m in zip(labels.names, found, strict=True) if not m]:
            raise BadInput(
                f"config.data.group_pattern = {data.group_pattern!r}: {len(other)} names do not "
                f"match it: {first_few(other)}"
            )
        groups = [(m[1] or "") if m.re.groups else m[0] for m in found if m]
    elif not labels.groups:
        return None
    return np.unique(list(groups), return_inverse=True)[1]


def _check_groups(labels: Labels, groups: Rows, train: np.ndarray, valid: np.ndarray) -> None:
    if len(divided := np.intersect1d(groups[train], groups[valid])):
        examples = [labels.names[np.flatnonzero(groups == group)[0]] for group in divided[:3]]
        raise BadInput(
            f"config.data: {len(divided)} groups have chips that train and chips that validate: "
            f"those of {', '.join(examples)}; change the split or the groups"
        )
