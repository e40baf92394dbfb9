"""Build a data set: JPEG bytes as ArrayRecord, and all pixels in one array on the disk."""

import collections
import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from planet_jax.data.decode import decode_chip, read_header
from planet_jax.data.labels import Labels
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.progress import notify, progress

VERSION = 3  # part of a build's fingerprint: raise it when the content of a build changes
PART_BYTES = 2**28  # of the images in one split of the records
PIXELS, FACTS = "chips.npy", "build.json"
DECODERS = {"image": tfds.decode.SkipDecoding()}


class Planet(tfds.core.GeneratorBasedBuilder):
    """A record for each row, in file order: name, image (the file's own bytes), labels."""

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
        # tfds holds a split in memory, and needs TensorFlow to write one of more than 1 GB.
        part = np.cumsum([file.stat().st_size for file in self.files]) // PART_BYTES
        parts = np.split(np.arange(len(part)), np.flatnonzero(np.diff(part)) + 1)
        return {f"part{i:05}": self._generate_examples(rows) for i, rows in enumerate(parts)}

    def _generate_examples(self, rows: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in rows.tolist():
            labels = np.flatnonzero(self.labels.targets[i]).tolist()
            yield i, {"name": self.labels.names[i], "image": str(self.files[i]), "labels": labels}


def build(labels: Labels, files: list[Path], folder: Path, decoded: bool) -> None:
    """Write the records of all chips to `folder`; with `decoded`, also write their pixels.

    Every chip is decoded in either case, to find damaged chips.

    Raises:
      BadInput: a chip is damaged or not an image.
    """
    notify(f"building {len(files)} chips into {folder.parent}")
    source = Path(os.path.commonpath([file.parent for file in files]))
    _write_records(labels, files, folder)
    records, rows = open_records(folder), range(len(files))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = list(pool.map(_read_header, files))
        width, height = _most_common_size(headers, source)
        shape = (len(files) if decoded else 0, height, width, 3)
        pixels = _allocate(folder / PIXELS, shape)

        def decode(i: int) -> tuple[bytes, str]:  # the second is the reason of a failure
            encoded = records[i]["image"]
            digest = hashlib.sha256(encoded).digest()
            try:
                chip = decode_chip(encoded, (width, height))
            except ValueError as error:
                return digest, str(error) or type(error).__name__
            if decoded:
                pixels[i] = chip
            return digest, ""

        digests, damaged = [], {}
        with progress("decoding chips", len(files), "chips") as advance:
            for file, (digest, reason) in zip(files, pool.map(decode, rows), strict=True):
                advance()
                digests.append(digest)
                if reason:
                    damaged[str(file.relative_to(source))] = reason
    if damaged:
        raise BadInput(
            f"{source}: {len(damaged)} chips are damaged or not images: "
            f"{first_few(damaged)}; the first: {next(iter(damaged.values()))}; fetch them again or "
            "remove them from the labels"
        )
    pixels.flush()
    facts = {"size": [height, width], "digest": sha256(*digests)}
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def open_records(folder: Path) -> Any:
    """Return the records of a build, indexed by row, with encoded images."""
    builder = tfds.builder_from_directory(str(folder / "planet" / str(Planet.VERSION)))
    return builder.as_data_source(split="+".join(sorted(builder.info.splits)), decoders=DECODERS)


def sha256(*parts: str | bytes) -> str:
    """Return the SHA-256 of the parts, with a zero byte after each part."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()


def _write_records(labels: Labels, files: list[Path], folder: Path) -> None:
    tfds.disable_progress_bar()
    builder = Planet(labels=labels, files=files, data_dir=folder)
    with contextlib.redirect_stdout(io.StringIO()):  # tfds prints a banner
        builder.download_and_prepare()


class _Header(NamedTuple):
    size: tuple[int, int] | None = None  # None: not an image
    mode: str = "RGB"


def _read_header(file: Path) -> _Header:
    try:
        return _Header(*read_header(file.read_bytes()))
    except ValueError:
        return _Header()


def _most_common_size(headers: list[_Header], folder: Path) -> tuple[int, int]:
    """Return the most common width and height; print how many chips will be converted.

    Raises:
      BadInput: no chip is an image.
    """
    sizes = collections.Counter(header.size for header in headers if header.size)
    if not sizes:
        raise BadInput(f"{folder}: none of the {len(headers)} chips is an image")
    (width, height), count = sizes.most_common(1)[0]
    modes = collections.Counter(header.mode for header in headers if header.mode != "RGB")
    if modes:
        notify(f"{folder}: chips of other modes are converted to RGB: {dict(modes)}")
    if others := len(headers) - count:
        notify(f"{folder}: {others} chips are resized to {width}x{height}, the size of most")
    return width, height


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Return a new array on the disk, with its blocks allocated.

    A full disk raises OSError here; a write into a sparse map would end the process with SIGBUS.
    """
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    with path.open("rb+") as file, contextlib.suppress(AttributeError):  # not on macOS
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
