"""Load labeled chips: build the data set in the cache once, then map it into memory.

The folder has the competition's layout (`train_v2.csv`, `train-jpg/`) and any vocabulary.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int, UInt8

from planet_jax.data import build
from planet_jax.data.decode import decode_chip
from planet_jax.data.labels import CSV, Labels, read_labels
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.files import atomic_path, lock_folder, remove_folder
from planet_jax.runtime.progress import notify

FOLDER = "train-jpg"


class Chips(Protocol):
    """N chips of one size, indexed by an array of rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, indices: Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m h w 3"]: ...


@dataclass(frozen=True)
class Dataset:
    """Labels and their chips, in file order.

    Attributes:
      chips: uint8 RGB [N, H, W, 3].
      digest: SHA-256 of the encoded chips; equal on hosts that built the same data set.
    """

    labels: Labels
    chips: Chips
    digest: str = ""


def load(root: Path, cache: Path, decoded: bool = True) -> Dataset:
    """Load the data set of `root`; build it under `cache` if no build is up to date.

    With `decoded` all pixels are stored (3 H W bytes per chip); else each read decodes its chips.

    Raises:
      BadInput: as `read_labels`; a row without a chip; a chip that cannot be decoded.
    """
    labels = read_labels(root)
    files = _chip_files(root, labels)
    builds = cache / f"{root.resolve().name}-{build.sha256(str(root.resolve()))[:8]}"
    folder = builds / _fingerprint(root, files, decoded)
    try:
        with lock_folder(builds):
            if not folder.exists():
                with atomic_path(folder) as temporary:
                    temporary.mkdir()
                    build.build(labels, files, temporary, decoded)
                _remove_other_folders(builds, folder)
            return _open(folder, labels, decoded)
    except OSError as error:
        raise BadInput(
            f"config.data.cache = {cache}: cannot build the data set there ({error})"
        ) from error


def _open(folder: Path, labels: Labels, decoded: bool) -> Dataset:
    facts = json.loads((folder / build.FACTS).read_text())
    if decoded:
        return Dataset(labels, np.load(folder / build.PIXELS, mmap_mode="r"), facts["digest"])
    chips = _EncodedChips(folder, len(labels.names), *facts["size"])
    return Dataset(labels, chips, facts["digest"])


def _chip_files(root: Path, labels: Labels) -> list[Path]:
    """Return the chip's path for each row; images without a row are ignored with a notice."""
    folder = root / FOLDER
    try:
        present = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise BadInput(f"{folder}: cannot list the chips ({error.strerror})") from None
    names = [f"{name}.jpg" for name in labels.names]
    if missing := [name for name in names if name not in present]:
        raise BadInput(
            f"{folder}: {len(missing)} rows of {CSV} have no chip there: {first_few(missing)}"
        )
    if extra := present - set(names):
        notify(f"{folder}: {len(extra)} files have no row in {CSV} and are ignored")
    return [folder / name for name in names]


def _fingerprint(root: Path, files: list[Path], decoded: bool) -> str:
    """Return a name that changes with the label file and with any chip's size or time of change."""
    stats = (os.stat(file) for file in files)
    chips = (f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)
    return build.sha256(f"{build.VERSION} {decoded}", (root / CSV).read_bytes(), *chips)[:16]


def _remove_other_folders(parent: Path, kept: Path) -> None:
    for folder in parent.iterdir():
        if folder.is_dir() and folder != kept:
            remove_folder(folder)


class _EncodedChips:
    """Chips decoded at each read, for disks too small to hold the pixels."""

    def __init__(self, folder: Path, n: int, height: int, width: int) -> None:
        self.shape = (n, height, width, 3)
        self.records = build.open_records(folder)

    def __getitem__(self, indices: Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m h w 3"]:
        _, height, width, _ = self.shape
        records = self.records.__getitems__([int(i) for i in indices])
        return np.stack([decode_chip(record["image"], (width, height)) for record in records])
