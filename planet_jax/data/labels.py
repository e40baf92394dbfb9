"""The label file: names, vocabulary and targets; which rows train and which validate."""

import collections
import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8

from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.progress import notify

CSV = "train_v2.csv"


@dataclass(frozen=True)
class Labels:
    """Names in file order, the sorted vocabulary, and a multi-hot row for each name."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    targets: UInt8[np.ndarray, "n classes"]

    def digest(self) -> str:
        """Return a SHA-256 that changes with any name, class or tag."""
        names = "\n".join((*self.names, "", *self.classes))
        return hashlib.sha256(names.encode() + self.targets.tobytes()).hexdigest()

    def fingerprint(self, rows: Int[np.ndarray, " m"]) -> str:
        """Return the SHA-256 of the names and targets of `rows`, in this order."""
        names = "\n".join(self.names[row] for row in rows)
        return hashlib.sha256(names.encode() + self.targets[rows].tobytes()).hexdigest()


def read_labels(root: Path) -> Labels:
    """Read `root/train_v2.csv`: a row per chip, tags separated by spaces; repeated tags count once.

    Raises:
      BadInput: no such file, not a CSV, no `image_name` or `tags` column, no rows, no tag at all, a
        name that is repeated or is not a plain file name.
    """
    path = root / CSV
    table = _read_table(path)
    names = [name.strip() for name in table["image_name"]]
    _check_names(path, names)
    tags = [sorted(set(text.split())) for text in table["tags"]]
    clean = [" ".join(text.split()) for text in table["tags"]]
    untidy = (table["image_name"] != names) | (table["tags"] != clean)
    if untidy.any():
        notify(f"{path}: extra spaces in {untidy.sum()} rows are ignored")
    classes = sorted(set().union(*tags))
    if not classes:
        raise BadInput(f"{path}: no row has a tag; add tags to learn from")
    column = {name: i for i, name in enumerate(classes)}
    targets = np.zeros((len(names), len(classes)), np.uint8)
    for target, row in zip(targets, tags, strict=True):
        target[[column[tag] for tag in row]] = 1
    return Labels(tuple(names), tuple(classes), targets)


def _read_table(path: Path) -> pd.DataFrame:
    """Read the CSV as text, with at least one row and both columns."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pandas only warns of rows that are too long
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig"
            )
    except FileNotFoundError:
        raise BadInput(
            f"{path}: no label file; set config.data.root to a folder that has one"
        ) from None
    except (ValueError, Warning, OSError) as error:  # pandas' own errors are ValueErrors
        raise BadInput(f"{path}: not readable as CSV ({error})") from None
    missing = [column for column in ("image_name", "tags") if column not in table]
    if missing:
        raise BadInput(f"{path}: no column {' and '.join(missing)} in its first line")
    if table.empty:
        raise BadInput(f"{path}: has no rows; give it a line for each chip")
    return table


def _check_names(path: Path, names: list[str]) -> None:
    bad = [name for name in names if not name or name != os.path.basename(name) or "\0" in name]
    if bad:
        raise BadInput(f"{path}: {len(bad)} names are not file names: {first_few(map(repr, bad))}")
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise BadInput(f"{path}: {len(repeated)} names are repeated: {first_few(repeated)}")


def count(root: Path) -> tuple[int, int]:
    """Return the numbers of classes and of chips in `root`; the competition's if it has no labels.

    Raises:
      BadInput: as `read_labels`.
    """
    if not (root / CSV).exists():
        return 17, 40_479
    labels = read_labels(root)
    return len(labels.classes), len(labels.names)


def split(
    n: int, valid_fraction: float, seed: int
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " valid"]]:
    """Split n rows at random by fastai's `split_by_rand_pct`.

    Returns the training rows in file order and the validation rows in the order drawn.
    """
    order = np.random.RandomState(seed).permutation(n)  # fastai's generator
    valid = order[: int(valid_fraction * n)]
    train = np.setdiff1d(np.arange(n), valid)
    return train, valid


def subset(labels: Labels, train: Int[np.ndarray, " train"], file: Path) -> Int[np.ndarray, " n"]:
    """Return those of the training rows that `file` names; validation chips are excluded.

    The file has one name per line, or is a CSV whose first column is `image_name` (mistakes.csv).

    Raises:
      BadInput: the file cannot be read, names an unknown chip, or names no chip to train on.
    """
    try:
        text = file.read_text()
        if text.startswith("image_name,"):
            table = pd.read_csv(file, usecols=["image_name"], dtype=str, keep_default_na=False)
            lines = table["image_name"].tolist()
        else:
            lines = text.splitlines()
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise BadInput(f"config.data.subset = {file}: cannot be read ({error})") from None
    names = {line.strip() for line in lines if line.strip()}
    if unknown := sorted(names - set(labels.names)):
        raise BadInput(
            f"config.data.subset = {file}: {len(unknown)} names are not in {CSV}: "
            f"{first_few(unknown)}"
        )
    rows = np.array([row for row in train if labels.names[row] in names], int)
    if len(rows) == 0:
        raise BadInput(
            f"config.data.subset = {file}: names no training chip; "
            "evaluate with score.split=train lists the mistakes on training chips"
        )
    if len(rows) < len(names):
        notify(
            f"{file}: {len(names) - len(rows)} of its chips are validation chips and are skipped"
        )
    return rows
