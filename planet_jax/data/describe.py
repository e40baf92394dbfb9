"""Describe the labels and the split of a data set, and warn of likely mistakes in them."""

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from planet_jax.data.labels import Labels
from planet_jax.runtime.errors import first_few
from planet_jax.runtime.progress import notify

MARKS = ",;|[]\"'"  # in a label, probably the remains of a delimiter or a list
JOINTS = (" ", ",", ";", "|", "/", "+", "&", "-", "_")
Rows = Int[np.ndarray, " rows"]


def lines(labels: Labels, train: Rows, valid: Rows, groups: Rows | None = None) -> list[str]:
    """Return lines that count rows, labels per chip, chips per label, and chips in the split.

    `groups` is the number of each chip's group, if there are groups.
    """
    per_chip, counts = labels.targets.sum(1, dtype=int), labels.targets.sum(0, dtype=int)
    order = np.argsort(-counts, kind="stable")
    # textwrap breaks lines at spaces: \0 keeps a label and its count on one line.
    shares = ", ".join(f"{labels.classes[i]} {counts[i]:,}".replace(" ", "\0") for i in order)
    wrapped = textwrap.fill(
        f"chips per label: {shares}", 100, subsequent_indent="  ", break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
    of_groups = [
        "" if groups is None else f" of {len(np.unique(groups[rows])):,} groups"
        for rows in (train, valid)
    ]
    return [
        f"rows: {len(labels.names):,}",
        f"labels per chip: {per_chip.min()} to {per_chip.max()}, mean {per_chip.mean():.2f}; "
        f"{(per_chip == 0).sum():,} chips have none",
        wrapped.replace("\0", " "),
        f"split: {len(train):,} chips{of_groups[0]} train, {len(valid):,}{of_groups[1]} validate",
    ]


def warn(labels: Labels, train: Rows, valid: Rows, data: ConfigDict) -> None:
    """Print the `doubts` as warnings."""
    for line in doubts(labels, train, valid, data):
        notify(f"warning: {line}")


def doubts(labels: Labels, train: Rows, valid: Rows, data: ConfigDict) -> list[str]:
    """Return a line for each sign that the labels or the split are wrong."""
    counts, found = labels.targets.sum(0, dtype=int), []
    advice = "are data.label_delimiter and data.label_format right?"
    marked = [label for label in labels.classes if set(MARKS) & set(label)]
    if marked and data.label_file and data.label_format == "text":
        found.append(
            f"{len(marked)} labels hold commas, bars, brackets or quotes: "
            f"{first_few(map(repr, marked))}; {advice}"
        )
    elif data.label_file and labels.targets.sum(1).max() == 1 and (joint := _joint(labels.classes)):
        found.append(
            f"every chip has one label, and labels look joined by {joint!r}: "
            f"{first_few(repr(label) for label in labels.classes if joint in label)}; {advice}"
        )
    if 2 * (once := (counts == 1).sum()) >= len(counts):
        found.append(f"{once} of {len(counts)} labels are seen once; {advice}")
    if not len(train) or not len(valid):
        found.append(f"{len(train):,} chips train and {len(valid):,} validate")
    trained, validated = (labels.targets[rows].any(0) for rows in (train, valid))
    if never := [labels.classes[i] for i in np.flatnonzero(validated & ~trained)]:
        found.append(
            f"labels that validate and never train: {first_few(never)}; "
            "another data.split_seed, or data.folds, may divide them better"
        )
    return found


def _joint(classes: Sequence[str]) -> str:
    """Return a character at which labels look joined, or ''.

    Either n labels split into at most n distinct parts, or all their parts are labels too.
    """
    for joint in JOINTS:
        joined = [label for label in classes if joint in label]
        parts = {part.strip() for label in joined for part in label.split(joint)}
        if joined and (len(parts) <= len(joined) or parts <= set(classes)):
            return joint
    return ""
