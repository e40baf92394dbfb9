"""Load labeled chips: build the data set in the cache once, then map it into memory.

By default the data folder has the competition's layout (`train_v2.csv`, `train-jpg/`).
"""

import contextlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from planet_jax.config import get_config
from planet_jax.data import build
from planet_jax.data.chip_files import ChipFinder, stem
from planet_jax.data.decode import decode_chip
from planet_jax.data.labels import Labels, chip_folder, read_labels
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.files import atomic_path, lock_folder, remove_folder
from planet_jax.runtime.progress import notify


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


def load(root: Path, cache: Path, decoded: bool = True, data: ConfigDict | None = None) -> Dataset:
    """Load the data set of `root`; build it under `cache` if no build is up to date.

    With `decoded` all pixels are stored (3 H W bytes per chip). Otherwise chips are decoded at each
    read. `data` is the config's section that describes the layout; None: the competition's layout.

    Raises:
      BadInput: as `read_labels`; a row has no chip, or two; a chip cannot be decoded.
    """
    data = data or get_config().data
    labels = read_labels(root, data)
    files = _chip_files(root, labels, data)
    builds = cache / f"{root.resolve().name}-{build.sha256(str(root.resolve()))[:8]}"
    folder = builds / _fingerprint(labels, files, decoded)
    try:
        with contextlib.suppress(FileNotFoundError):
            return _open(folder, labels, decoded)  # needs no lock: the cache may be read-only
        with lock_folder(builds):
            if not folder.exists():
                with atomic_path(folder) as temporary:
                    temporary.mkdir()
                    build.build(labels, files, temporary, decoded)
                _remove_other_folders(builds, folder)
            return _open(folder, labels, decoded)
    except OSError as error:
        raise BadInput(
            f"config.data.cache = {cache}: cannot build the data set there ({error}); "
            "set it to a folder that can be written"
        ) from error


def _open(folder: Path, labels: Labels, decoded: bool) -> Dataset:
    facts = json.loads((folder / build.FACTS).read_text())
    if decoded:
        return Dataset(labels, np.load(folder / build.PIXELS, mmap_mode="r"), facts["digest"])
    chips = _EncodedChips(folder, len(labels.names), *facts["size"])
    return Dataset(labels, chips, facts["digest"])


def _chip_files(root: Path, labels: Labels, data: ConfigDict) -> list[Path]:
    """Return the chip's path for each row; images without a row are ignored with a notice."""
    folder, source = chip_folder(root, data), data.label_file or "the labels"
    finder = ChipFinder(folder)
    found = [finder.find(name) for name in labels.names]
    if several := [[file.name for file in files] for files in found if len(files) > 1]:
        raise BadInput(
            f"{folder}: {len(several)} chips have several files: "
            f"{first_few(map(' and '.join, several))}; move all but one away"
        )
    missing = [
        f"{files[0].name} (a link to nothing)" if files else _expected_file(name, finder)
        for name, files in zip(labels.names, found, strict=True)
        if not (files and files[0].is_file())
    ]
    if missing:
        raise BadInput(
            f"{folder}: {len(missing)} rows of {source} have no chip there: {first_few(missing)}; "
            "restore them or remove their rows"
        )
    files = [file for (file,) in found]
    if repeated := [file.name for file, n in Counter(files).items() if n > 1]:
        raise BadInput(
            f"{root / source}: {len(repeated)} chips are repeated: {first_few(repeated)}"
        )
    extra = finder.entries.total() - len(files)
    if extra and data.label_file:
        notify(f"{folder}: {extra} files have no row in {source} and are ignored")
    return files


def _expected_file(name: str, finder: ChipFinder) -> str:
    return name if stem(name) != name else name + finder.ending()


def _fingerprint(labels: Labels, files: list[Path], decoded: bool) -> str:
    """Return a hash of the labels and of each chip's file name, size and modification time."""
    stats = (os.stat(file) for file in files)
    chips = (
        f"{file.parent.name}/{file.name} {stat.st_size} {stat.st_mtime_ns}"
        for file, stat in zip(files, stats, strict=True)
    )
    return build.sha256(f"{build.VERSION} {decoded}", labels.digest(), *chips)[:16]


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
