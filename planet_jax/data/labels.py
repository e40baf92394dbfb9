"""The labels of a data set: names, vocabulary and targets."""

import collections
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from planet_jax.config import get_config
from planet_jax.data import label_file, label_folders
from planet_jax.runtime.errors import BadInput, first_few

CSV = "train_v2.csv"


@dataclass(frozen=True)
class Labels:
    """Names in file order, the sorted vocabulary, and a multi-hot row for each name.

    Attributes:
      groups: each chip's group, which the split must not divide; () if there are none.
      roles: each chip's part in the split, where the labels define it; else ().
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

    By default a row per chip in `root/train_v2.csv`, tags separated by spaces. Repeated tags count
    once.

    Raises:
      BadInput: as `label_file.read` and `label_folders.read`; no tag at all; a name that is
        repeated or is not a plain file name.
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
    bad = [name for name in names if not name or name != os.path.basename(name) or "\0" in name]
    if bad:
        raise BadInput(f"{path}: {len(bad)} names are not file names: {first_few(map(repr, bad))}")
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise BadInput(f"{path}: {len(repeated)} names are repeated: {first_few(repeated)}")
