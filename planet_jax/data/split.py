"""Choose the rows that train and the rows that validate."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from ml_collections import ConfigDict

from planet_jax.data.chip_files import stem
from planet_jax.data.label_file import TRAIN, VALID
from planet_jax.data.labels import Labels, read_labels
from planet_jax.data.stratify import stratified_folds
from planet_jax.runtime.distributed import on_main
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.progress import notify

Rows = Int[np.ndarray, " rows"]


def split_rows(labels: Labels, data: ConfigDict) -> tuple[Rows, Rows]:
    """Return the rows that train, in file order, and the rows that validate.

    `data` is the config's section: a list of names, a column, a folder, a fold, or the notebook's
    random split, which is the default. `data.subset` then reduces the rows that train.

    Raises:
      BadInput: a list cannot be read or names no chip; the split divides a group; there are fewer
        chips or groups than folds.
    """
    train, valid = _divide(labels, data)
    if data.subset:
        train = subset(labels, train, Path(data.subset), data.name_column)
    return train, valid


def split(n: int, valid_fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split n rows at random by fastai's `split_by_rand_pct`.

    Returns the training rows in file order and the validation rows in the order drawn.
    """
    order = np.random.RandomState(seed).permutation(n)  # fastai's generator
    valid = order[: int(valid_fraction * n)]
    train = np.setdiff1d(np.arange(n), valid)
    return train, valid


def count(data: ConfigDict) -> tuple[int, int]:
    """Return the numbers of classes and of training chips; the competition's without labels.

    Raises:
      BadInput: as `read_labels` and `split_rows`.
    """
    root = Path(data.root)
    if data.label_file and not (root / data.label_file).exists():
        train, _ = split(40_479, data.valid_fraction, data.split_seed)
        return 17, len(train)
    labels = read_labels(root, data)
    return len(labels.classes), len(split_rows(labels, data)[0])


def subset(labels: Labels, train: Rows, file: Path, name_column: str = "image_name") -> Rows:
    """Return those of the training rows that `file` names; validation chips are excluded.

    The file is as for `read_names`, for example mistakes.csv.

    Raises:
      BadInput: the file cannot be read, names an unknown chip, or names no chip to train on.
    """
    named = _named_rows(labels, "subset", file, name_column)
    rows = np.array([row for row in train if row in named], int)
    if len(rows) == 0:
        raise BadInput(
            f"config.data.subset = {file}: names no training chip; "
            "evaluate with score.split=train lists the mistakes on training chips"
        )
    if len(rows) < len(named):
        notify(
            f"{file}: {len(named) - len(rows)} of its chips are validation chips and are skipped"
        )
    return rows


def _named_rows(labels: Labels, option: str, file: Path, name_column: str) -> set[int]:
    """Return the rows that the file of an option names, with or without endings."""
    row_of = {stem(name): row for row, name in enumerate(labels.names)}
    row_of |= {name: row for row, name in enumerate(labels.names)}
    names = on_main(read_names)(file, option, name_column)  # the file may be in the run folder
    rows = {name: row_of.get(name, row_of.get(stem(name))) for name in names}
    if unknown := sorted(name for name, row in rows.items() if row is None):
        raise BadInput(
            f"config.data.{option} = {file}: {len(unknown)} names are not in the labels of "
            f"data.root: {first_few(unknown)}"
        )
    return {row for row in rows.values() if row is not None}


def read_names(file: Path, option: str, name_column: str = "image_name") -> list[str]:
    """Read chip names: one per line, or the column `image_name` (or `name_column`) of a CSV.

    Raises:
      BadInput: the file cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0].strip()
        for delimiter in (",", ";", "\t"):
            header = [c.strip() for c in next(csv.reader([first], delimiter=delimiter), [])]
            for column in ("image_name", name_column):
                if column in header:
                    table = pd.read_csv(
                        file, sep=delimiter, dtype=str, keep_default_na=False, header=None,
                        skiprows=1, usecols=[header.index(column)], encoding="utf-8-sig",
                        skipinitialspace=True,
                    )  # fmt: skip
                    return [name.strip() for name in table.iloc[:, 0] if name.strip()]
    except (OSError, ValueError, csv.Error) as error:  # pandas' own errors are ValueErrors
        raise BadInput(f"config.data.{option} = {file}: cannot be read ({error})") from None
    lines = (line.strip() for line in text.splitlines())
    return [re.sub(r'^"(.*)"$', r"\1", line).strip() for line in lines if line]


def _divide(labels: Labels, data: ConfigDict) -> tuple[Rows, Rows]:
    n, groups = len(labels.names), _group_numbers(labels, data)
    rows = np.arange(n)
    if data.valid_file:
        named = _named_rows(labels, "valid_file", Path(data.valid_file), data.name_column)
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
    """Draw groups at random that hold at most the fraction of the chips; at least one group."""
    sizes = np.bincount(groups)
    left, drawn = int(valid_fraction * len(groups)), []
    for group in np.random.RandomState(seed).permutation(len(sizes)):
        if sizes[group] <= left:
            left -= sizes[group]
            drawn.append(group)
    return np.array(drawn or [sizes.argmin()])


def _group_numbers(labels: Labels, data: ConfigDict) -> Rows | None:
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
