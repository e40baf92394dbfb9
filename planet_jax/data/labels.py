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
    """The label file: names in file order, the sorted vocabulary, a multi-hot row for each name."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    targets: UInt8[np.ndarray, "n classes"]

    def digest(self) -> str:
        """Changes with any name, class or tag."""
        names = "\n".join((*self.names, "", *self.classes))
        return hashlib.sha256(names.encode() + self.targets.tobytes()).hexdigest()


def read_labels(root: Path) -> Labels:
    """Reads `root/train_v2.csv`: a row a chip, tags apart by spaces; repeated tags count once.

    Raises:
      BadInput: no such file, not a CSV, no `image_name` or `tags` column, no rows, no tag at all, a
        name that is twice there or is no plain file name.
    """
    path = root / CSV
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pandas only warns of rows that are too long
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig"
            )
    except FileNotFoundError:
        raise BadInput(f"{path}: no label file; set data.root to a folder that has one") from None
    except (ValueError, Warning, OSError) as error:  # pandas' own errors are ValueErrors
        raise BadInput(f"{path}: not readable as CSV ({error})") from None
    missing = [column for column in ("image_name", "tags") if column not in table]
    if missing:
        raise BadInput(f"{path}: no column {' and '.join(missing)} in its first line")
    if table.empty:
        raise BadInput(f"{path}: has no rows; give it a line for each chip")
    names = [name.strip() for name in table["image_name"]]
    rows = [sorted(set(tags.split())) for tags in table["tags"]]
    _check_names(path, names)
    odd = sum(a != b or " ".join(t.split()) != t for a, b, t in zip(
        table["image_name"], names, table["tags"], strict=True))  # fmt: skip
    if odd:
        notify(f"{path}: {odd} rows have spaces where none belong; they are ignored")
    classes = sorted(set().union(*rows))
    if not classes:
        raise BadInput(f"{path}: no row has a tag; there is nothing to learn")
    column = {name: i for i, name in enumerate(classes)}
    targets = np.zeros((len(names), len(classes)), np.uint8)
    for target, tags in zip(targets, rows, strict=True):
        target[[column[tag] for tag in tags]] = 1
    return Labels(tuple(names), tuple(classes), targets)


def _check_names(path: Path, names: list[str]) -> None:
    bad = [name for name in names if not name or name != os.path.basename(name) or "\0" in name]
    if bad:
        raise BadInput(f"{path}: {len(bad)} names are no file names: {first_few(map(repr, bad))}")
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise BadInput(f"{path}: {len(twice)} names are there twice: {first_few(twice)}")


def split(
    n: int, valid_fraction: float, seed: int
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " valid"]]:
    """Rows to train on (in file order) and to validate on (as drawn): split_by_rand_pct."""
    order = np.random.RandomState(seed).permutation(n)  # the generator that fastai uses
    valid = order[: int(valid_fraction * n)]
    train = np.setdiff1d(np.arange(n), valid)
    return train, valid


def subset(labels: Labels, train: Int[np.ndarray, " train"], file: Path) -> Int[np.ndarray, " n"]:
    """Those of the rows `train` that `file` names; validation chips are left out.

    The file has a name a line, or is a CSV whose first column is `image_name` (as mistakes.csv).

    Raises:
      BadInput: the file cannot be read, names a chip that is not there, or none to train on.
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
    chosen = np.array([row for row in train if labels.names[row] in names], int)
    if len(chosen) == 0:
        raise BadInput(
            f"config.data.subset = {file}: names no chip that is trained on; "
            "evaluate lists mistakes that can be with score.split=train"
        )
    if len(chosen) < len(names):
        notify(f"{file}: {len(names) - len(chosen)} of its chips validate and are not trained on")
    return chosen
