"""Fuzz all user input: each input is read, or refused in one line without a traceback.

Each input is drawn from the seed and the input's number, so every input can be repeated. An input
that once failed has its own test in tests/unit/test_faults.py.
"""

import io
import json
import string
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from planet_jax import config as options
from planet_jax import config_file
from planet_jax.data import dataset, labels
from planet_jax.model import weights as torchvision_weights
from planet_jax.runtime import files
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import DIGESTS, find_damage, seal
from planet_jax.train.checkpoint import require_checkpoint
from planet_jax.train.checkpoint_writer import CheckpointWriter
from planet_jax.train.log import LogState, Mark, Smooth
from planet_jax.train.metadata import Metadata, Provenance
from tests.faults.outcome import Row

Rng = np.random.Generator
JUNK = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b",", b"\n", b"\r", b"\r\n", b"\t", b" ", b"",
    b"../", b"/", b"nan", b"NA", b"None", b"-1", b"1e999", b"\xe2\x80\xae", b"=cmd()", b"{", b"}",
    b"[", b"]", b"image_name", b"tags", b"image_name,tags\n", b"\x1b[0m", b"a" * 5000, b"9" * 400,
]  # fmt: skip


def mutate(content: bytes, rng: Rng) -> bytes:
    """Flip, delete, duplicate or replace some bytes."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        i = int(rng.integers(len(data) + 1))
        match rng.integers(6):
            case 0 if data:
                data[i % len(data)] ^= 1 << int(rng.integers(8))
            case 1:
                del data[i : i + int(rng.integers(1, 20))]
            case 2:
                data[i:i] = JUNK[rng.integers(len(JUNK))]
            case 3:
                del data[i:]
            case 4:
                data[i:i] = data[i : i + int(rng.integers(1, 40))]
            case _:
                data[i:i] = rng.bytes(int(rng.integers(1, 8)))
    return bytes(data)


def label_file(rng: Rng, folder: Path) -> None:
    """Read a mutated label file."""
    valid = b"image_name,tags\n" + b"".join(
        b"chip%d,%s\n" % (i, rng.choice([b"a", b"a b", b"c", b""])) for i in range(5)
    )
    content = mutate(valid, rng) if rng.random() < 0.9 else rng.bytes(int(rng.integers(200)))
    (folder / labels.CSV).write_bytes(content)
    table = labels.read_labels(folder)
    assert len(table.names) == len(table.targets) == len(set(table.names))
    assert table.targets.sum(0).all()  # every class has a chip
    for name in table.names:  # relative, and inside the folder of the chips
        assert not {"", ".", ".."} & set(name.split("/"))


def random_value(rng: Rng) -> Any:
    """Draw a value of any type."""
    kinds: list[Callable[[], Any]] = [
        lambda: None, lambda: bool(rng.integers(2)), lambda: int(rng.integers(-(2**62), 2**62)),
        lambda: int(rng.integers(-3, 300)), lambda: float(rng.standard_normal() * 10),
        lambda: float(rng.choice([np.nan, np.inf, -np.inf, 1e308, -0.0, 5e-324])),
        lambda: JUNK[rng.integers(len(JUNK))].decode(errors="replace"),
        lambda: rng.choice(["imagenet", "global", "latest", "float32", "x" * 300]).item(),
        lambda: tuple(random_value(rng) for _ in range(rng.integers(4))),
        lambda: [random_value(rng)], lambda: {"a": 1}, lambda: 10**400,
    ]  # fmt: skip
    return kinds[rng.integers(len(kinds))]()


def config(rng: Rng, folder: Path) -> None:
    """Check a random flag, or validate a config with one random value."""
    name = rng.choice(sorted(options.OPTIONS))
    if rng.random() < 0.2:
        name = "".join(rng.permutation(list(name)))
    if rng.random() < 0.5:
        letters = list(string.printable)
        text = "".join(rng.choice(letters, rng.integers(12)))
        flag = f"--{rng.choice(['config.', 'noconfig.', '', 'conf'])}{name}"
        assert isinstance(config_file.TupleParser().parse(text), tuple)
        config_file.check_flags([flag, f"{flag}={text}", text, f"--config={text}.py"])
        return
    changed = options.get_config().unlock()
    section, _, last = name.rpartition(".")
    try:
        (changed[section] if section else changed)[last] = random_value(rng)
    except (
        TypeError,
        KeyError,
        AttributeError,
        ValueError,
        OverflowError,
    ):  # refused by ml_collections
        return
    options.validate(changed)


def chip(rng: Rng, folder: Path) -> None:
    """Decode a mutated image."""
    encoded = io.BytesIO()
    mode = rng.choice(["RGB", "CMYK", "L", "RGBA", "P", "I", "1", "LA"])
    size = tuple(int(side) for side in rng.integers(1, 24, 2))
    image = Image.frombytes("RGB", size, rng.bytes(size[0] * size[1] * 3))
    kind = {"RGB": "JPEG", "CMYK": "JPEG", "L": "PNG", "P": "PNG"}.get(mode, "TIFF")
    image.convert(mode).save(encoded, kind)
    try:
        pixels = dataset.decode_chip(mutate(encoded.getvalue(), rng), (16, 16))
    except ValueError:  # decode_chip's callers turn it into BadInput
        return
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8


def weights(rng: Rng, folder: Path) -> None:
    """Read a mutated .safetensors file."""
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(8)
    path = folder / "weights.safetensors"
    path.write_bytes(mutate(content, rng))
    torchvision_weights.fill({"params": {"backbone": {}, "head": {}}, "batch_stats": {}}, path)


def damaged_checkpoint(rng: Rng, folder: Path) -> None:
    """Read a checkpoint that was damaged after it was sealed: it must be refused."""
    run, step = _checkpoint(folder)
    paths = sorted(path for path in step.rglob("*") if path.is_file())
    path = paths[rng.integers(len(paths))]
    before = path.read_bytes()
    changed = mutate(before, rng) if rng.random() < 0.8 else None
    path.unlink() if changed is None else path.write_bytes(changed)
    try:
        require_checkpoint(run, "latest").arrays("weights")
    except BadInput:
        return
    finally:
        path.write_bytes(before)
    assert changed == before


def forged_checkpoint(rng: Rng, folder: Path) -> None:
    """Read a checkpoint whose metadata was edited and sealed again."""
    run, step = _checkpoint(folder)
    path = step / "meta" / "metadata"
    before = path.read_bytes()
    path.write_bytes(mutate(before, rng))
    (step / DIGESTS).unlink()
    seal(step)
    assert not find_damage(step)
    try:
        assert isinstance(require_checkpoint(run, "latest").metadata, Metadata)
    finally:
        path.write_bytes(before)
        (step / DIGESTS).unlink()
        seal(step)


def _checkpoint(folder: Path) -> tuple[Path, Path]:
    """Return a run folder and its one checkpoint; write them if they are missing."""
    run = folder / "run"
    if not run.exists():
        mark = Mark(0, "")
        metadata = Metadata(
            step=1, steps=2, steps_per_epoch=1, epoch_offset=0, classes=("a", "b"), train_chips=4,
            valid_chips=1, train_fingerprint="", valid_fingerprint="",
            provenance=Provenance({"a": 1}, {}, None, ["cpu"], 1),
            log=LogState(mark, mark, Smooth(), 1, 0.5),
        )  # fmt: skip
        arrays = {"weights": {"params/a": np.arange(9.0)}, "optimizer": {"mu": np.ones(3)}}
        with CheckpointWriter(run, resumed_step=0) as writer:
            writer.save({"latest": arrays}, metadata)
    return run, run / "checkpoints" / "latest" / "1"


SHARES: dict[Callable[[Rng, Path], None], float] = {
    label_file: 0.3, config: 0.3, chip: 0.25, weights: 0.05, damaged_checkpoint: 0.07,
    forged_checkpoint: 0.03,
}  # fmt: skip


def one(target: Callable[[Rng, Path], None], seed: int, number: int, folder: Path) -> str:
    """Try one input; return '' when it is read or refused correctly, else what went wrong."""
    rng = np.random.default_rng([seed, number])
    try:
        with warnings.catch_warnings(), mock.patch.object(files, "fsync"):  # for speed
            warnings.simplefilter("ignore")
            target(rng, folder)
    except BadInput as error:
        return "more than one line" if "\n" in str(error) else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run(inputs: int, seed: int, home: Path) -> list[Row]:
    """Try `inputs` inputs of all kinds; return a row for each kind."""
    rows = []
    for target, share in SHARES.items():
        folder, start_time = home / "fuzz" / target.__name__, time.monotonic()
        folder.mkdir(parents=True)
        count = round(inputs * share)
        wrong = {number: p for number in range(count) if (p := one(target, seed, number, folder))}
        for number, problem in list(wrong.items())[:5]:
            print(f"fuzz {target.__name__} {number}: {problem[:300]}", flush=True)
        name = f"junk: {target.__name__.replace('_', ' ')}"
        rows.append(Row(name, count, count - len(wrong), "", time.monotonic() - start_time))
        print(rows[-1], flush=True)
    return rows
