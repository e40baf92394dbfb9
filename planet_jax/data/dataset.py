"""Labelled chips, built once: the label file and the images of a folder, as a data set.

In goes a folder in the competition's layout (`train_v2.csv`, `train-jpg/`), of any vocabulary. Out
comes a `Dataset` of names, targets and chips, built once into the cache: the JPEG bytes as
ArrayRecord by tensorflow-datasets, then all pixels in one array that is mapped into memory. The
commands call `load`; the loader reads what it returns.
"""

import collections
import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, UInt8
from PIL import Image

from planet_jax.data.labels import CSV, Labels, read_labels
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.files import atomic_folder, lock_folder
from planet_jax.runtime.progress import notify, progress

FOLDER = "train-jpg"
BUILD_VERSION = 2  # part of a build's fingerprint: raise it when what is built changes
DECODERS = {"image": tfds.decode.SkipDecoding()}


class Chips(Protocol):
    """N chips of one size, of which any may be asked for at once."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, indices: Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m h w 3"]: ...


@dataclass(frozen=True)
class Dataset:
    """Labels and their chips (uint8 RGB [N, H, W, 3] when indexed), in file order."""

    labels: Labels
    chips: Chips
    digest: str = ""  # of the encoded chips: two hosts that hold the same have built the same


def load(root: Path, cache: Path, decoded: bool = True) -> Dataset:
    """The data set of `root`, built under `cache` unless an up-to-date build is there.

    With `decoded` all pixels are stored (3 H W bytes a chip), else chips are decoded as read.

    Raises:
      BadInput: what `read_labels` refuses; a row without a chip; a chip that cannot be decoded.
    """
    labels = read_labels(root)
    files = _chip_files(root, labels)
    fingerprint = _fingerprint(root, files, decoded)
    home = cache / f"{root.resolve().name}-{_digest(str(root.resolve()))[:8]}"
    build = home / fingerprint
    try:
        with lock_folder(home):
            if not build.exists():
                with atomic_folder(build) as folder:
                    _build(labels, files, folder, decoded)
                for other in home.iterdir():  # earlier builds of the same folder
                    if other.is_dir() and other != build:
                        shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        raise BadInput(f"data.cache={cache}: cannot build the data set there: {error}") from error
    facts = json.loads((build / "build.json").read_text())
    if decoded:
        return Dataset(labels, np.load(build / "chips.npy", mmap_mode="r"), facts["digest"])
    return Dataset(labels, _Encoded(build, len(files), *facts["size"]), facts["digest"])


def _chip_files(root: Path, labels: Labels) -> list[Path]:
    """One chip a row; images without a row are left aside with a notice."""
    folder = root / FOLDER
    try:
        present = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise BadInput(f"{folder}: cannot list the chips ({error.strerror})") from None
    missing = [name for name in labels.names if f"{name}.jpg" not in present]
    if missing:
        raise BadInput(
            f"{folder}: {len(missing)} rows of {CSV} have no chip there: "
            f"{first_few(f'{name}.jpg' for name in missing)}"
        )
    extra = present - {f"{name}.jpg" for name in labels.names}
    if extra:
        notify(f"{folder}: {len(extra)} files have no row in {CSV} and are left aside")
    return [folder / f"{name}.jpg" for name in labels.names]


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()


def _fingerprint(root: Path, files: list[Path], decoded: bool) -> str:
    """Changes when the label file, or any chip's size or time of writing, changes."""
    stats = (os.stat(file) for file in files)
    chips = (f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)
    return _digest(f"{BUILD_VERSION} {decoded}", (root / CSV).read_bytes(), *chips)[:16]


class Planet(tfds.core.GeneratorBasedBuilder):
    """name, image (the JPEG's own bytes) and labels of every row, in file order."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, labels: Labels, files: list[Path], **kwargs: Any) -> None:
        self.labels, self.files = labels, files
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "name": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "labels": tfds.features.Sequence(
                    tfds.features.ClassLabel(names=self.labels.classes)
                ),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {"chips": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, name in enumerate(self.labels.names):
            labels = np.flatnonzero(self.labels.targets[i]).tolist()
            yield i, {"name": name, "image": str(self.files[i]), "labels": labels}


def _build(labels: Labels, files: list[Path], folder: Path, decoded: bool) -> None:
    """Writes the records, then decodes every one: to keep the pixels, and to find damage."""
    tfds.disable_progress_bar()
    notify(f"building {len(files)} chips into {folder.parent}")
    builder = Planet(labels=labels, files=files, data_dir=folder)
    with contextlib.redirect_stdout(io.StringIO()):  # tfds prints its own banner
        builder.download_and_prepare()
    source = builder.as_data_source(split="chips", decoders=DECODERS)
    workers = os.cpu_count() or 1

    digests = [b""] * len(files)

    def header(i: int) -> tuple[tuple[int, int], str] | None:
        encoded = source[i]["image"]
        digests[i] = hashlib.sha256(encoded).digest()
        try:
            with _as_value_error():
                image = Image.open(io.BytesIO(encoded))
                return image.size, image.mode
        except ValueError:
            return None

    with ThreadPoolExecutor(workers) as pool:
        headers = list(pool.map(header, range(len(files))))
        sizes = collections.Counter(h[0] for h in headers if h)
        if not sizes:
            raise BadInput(f"{files[0].parent}: none of the {len(files)} chips is an image")
        (width, height), most = sizes.most_common(1)[0]
        _tell_modes(files[0].parent, headers, (width, height), len(files) - most)
        shape = (len(files) if decoded else 0, height, width, 3)
        store = _new_store(folder / "chips.npy", shape)

        def decode(i: int) -> bool:
            try:
                chip = decode_chip(source[i]["image"], (width, height))
            except ValueError:
                return False
            if decoded:
                store[i] = chip
            return True

        good = []
        with progress("decoding chips", len(files), "chips") as advance:
            for ok in pool.map(decode, range(len(files))):
                good.append(ok)
                advance()
    bad = [file.name for file, ok in zip(files, good, strict=True) if not ok]
    if bad:
        raise BadInput(
            f"{files[0].parent}: {len(bad)} chips are damaged or no images: {first_few(bad)}; "
            f"fetch them again or take their rows out of {CSV}"
        )
    store.flush()
    facts = {"size": [height, width], "chips": len(files), "digest": _digest(*digests)}
    (folder / "build.json").write_text(json.dumps(facts, indent=2) + "\n")


def _new_store(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """An array on the disk, whose room is taken at once: a full disk raises an error here, while a
    write into the map would kill the process."""
    store = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    with path.open("rb+") as file, contextlib.suppress(AttributeError):  # macOS has no such call
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return store


def _tell_modes(folder: Path, headers: list, size: tuple[int, int], other_size: int) -> None:
    modes = collections.Counter(h[1] for h in headers if h and h[1] != "RGB")
    if modes:
        notify(f"{folder}: {dict(modes)} chips are turned into RGB")
    if other_size:
        notify(f"{folder}: {other_size} chips are resized to {size[0]}x{size[1]} as most are")


def decode_chip(encoded: bytes, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an encoded image of any mode, resized to `size` (width, height) if it differs.

    Raises:
      ValueError: the bytes are no image, a damaged one, or one of an absurd size.
    """
    with _as_value_error():
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        if size is not None and image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image)


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    """Pillow raises many things of damaged bytes, and only warns of an absurd size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (
        OSError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, struct.error,
        Image.DecompressionBombError, Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        raise ValueError(f"{type(error).__name__}: {error}") from error


class _Encoded:
    """Chips decoded when they are asked for: for disks too small to hold the pixels."""

    def __init__(self, build: Path, n: int, height: int, width: int) -> None:
        self.shape = (n, height, width, 3)
        builder = tfds.builder_from_directory(str(build / "planet" / str(Planet.VERSION)))
        self.source = builder.as_data_source(split="chips", decoders=DECODERS)

    def __getitem__(self, indices: Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m h w 3"]:
        _, height, width, _ = self.shape
        records = self.source.__getitems__([int(i) for i in indices])
        return np.stack([decode_chip(record["image"], (width, height)) for record in records])
