"""The labels of a data set, its random split, and the rows that a list of names selects."""

import collections
import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from planet_jax.config import get_config
from planet_jax.data import label_file, label_folders
from planet_jax.data.chip_files import stem
from planet_jax.runtime.distributed import on_main
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.progress import notify

CSV = "train_v2.csv"
Rows = Int[np.ndarray, " rows"]


@dataclass(frozen=True)
class Labels:
    """Names in file order, the sorted vocabulary, and a multi-hot row for each name.

    Attributes:
      groups: each chip's group, which the split must not divide; () if there are none.
      roles: each chip's part in the split if the labels define the split; otherwise ().
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    targets: UInt8[np.ndarray, "n classes"]
    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return a SHA-256 that changes with any name, class, tag, group or role."""
        names = "\n".join((*self.names, "", *self.classes, *self.groups, *self.roles))
        return hashlib.sha256(names.encode() + self.targets.tobytes()).hexdigest()

    def fingerprint(self, rows: Int[np.ndarray, " m"]) -> str:
        """Return the SHA-256 of the names and targets of `rows`, in this order."""
        names = "\n".join(self.names[row] for row in rows)
        return hashlib.sha256(names.encode() + self.targets[rows].tobytes()).hexdigest()


def read_labels(root: Path, data: ConfigDict | None = None) -> Labels:
    """Read the labels in `root`, laid out as the config's section `data` describes.

    By default `root/train_v2.csv` has a row per chip, with tags separated by spaces. Repeated tags
    count once.

    Raises:
      BadInput: as `label_file.read` and `label_folders.read`; no row has a tag; a name is
        repeated, absolute or outside `data.chip_folder`.
    """
    data = data or get_config().data
    path = root / (data.label_file or data.chip_folder)
    if data.label_file:
        rows = label_file.read(path, data)
        _check_names(path, rows.names)
    else:
        rows = label_folders.read(root, data)
    classes = sorted(set(rows.classes).union(*rows.tags))
    if not any(rows.tags):
        raise BadInput(f"{path}: no row has a tag; add tags to learn from")
    column = {name: i for i, name in enumerate(classes)}
    targets = np.zeros((len(rows.names), len(classes)), np.uint8)
    for target, tags in zip(targets, rows.tags, strict=True):
        target[[column[tag] for tag in tags]] = 1
    return Labels(tuple(rows.names), tuple(classes), targets, tuple(rows.groups), tuple(rows.roles))


def chip_folder(root: Path, data: ConfigDict) -> Path:
    """Return the folder that the chips' names are relative to."""
    return root / data.chip_folder if data.label_file else root


def _check_names(path: Path, names: list[str]) -> None:
    if bad := [name for name in names if {"", ".", ".."} & set(name.split("/")) or "\0" in name]:
        raise BadInput(
            f"{path}: {len(bad)} names are not files in data.chip_folder: "
            f"{first_few(map(repr, bad))}"
        )
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise BadInput(f"{path}: {len(repeated)} names are repeated: {first_few(repeated)}")


def split(n: int, valid_fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split n rows at random by fastai's `split_by_rand_pct`.

    Returns the training rows in file order and the validation rows in the order drawn.
    """
    order = np.random.RandomState(seed).permutation(n)  # fastai's generator
    valid = order[: int(valid_fraction * n)]
    train = np.setdiff1d(np.arange(n), valid)
    return train, valid


def subset(labels: Labels, train: Rows, file: Path, name_column: str = "image_name") -> Rows:
    """Return the training rows that `file` names; skip the validation chips that it names.

    The file has a format of `read_names`, for example mistakes.csv.

    Raises:
      BadInput: the file cannot be read, names an unknown chip, or names no chip to train on.
    """
    named = named_rows(labels, "subset", file, name_column)
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


def named_rows(labels: Labels, option: str, file: Path, name_column: str) -> set[int]:
    """Return the rows of the chips that an option's file names, with or without endings."""
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
        raise BadInput(
            f"config.data.{option} = {file}: cannot be read ({error}); a relative path starts in "
            f"the current folder, {Path.cwd()}"
        ) from None
    lines = (line.strip() for line in text.splitlines())
    return [re.sub(r'^"(.*)"$', r"\1", line).strip() for line in lines if line]
