"""Junk for everything that a user gives: taken, or refused in one line; never a traceback.

Each input is drawn from one seed and its number, so that any can be made again. What was found
once stands as a case of its own in tests/test_faults.py.
"""

import io
import json
import shutil
import string
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from planet_jax import config as options
from planet_jax.data import dataset, labels
from planet_jax.model import weights as torchvision_weights
from planet_jax.runtime import files
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import seal
from planet_jax.train import checkpoint

Rng = np.random.Generator
JUNK = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b",", b"\n", b"\r", b"\r\n", b"\t", b" ", b"",
    b"../", b"/", b"nan", b"NA", b"None", b"-1", b"1e999", b"\xe2\x80\xae", b"=cmd()", b"{", b"}",
    b"[", b"]", b"image_name", b"tags", b"image_name,tags\n", b"\x1b[0m", b"a" * 5000, b"9" * 400,
]  # fmt: skip


def mutate(content: bytes, rng: Rng) -> bytes:
    """Some bytes flipped, cut out, doubled, or replaced by junk that has hurt others."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(data) + 1))
        match rng.integers(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at : at + int(rng.integers(1, 20))]
            case 2:
                data[at:at] = JUNK[rng.integers(len(JUNK))]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
            case _:
                data[at:at] = rng.bytes(int(rng.integers(1, 8)))
    return bytes(data)


def label_file(rng: Rng, folder: Path) -> None:
    good = b"image_name,tags\n" + b"".join(
        b"chip%d,%s\n" % (i, rng.choice([b"a", b"a b", b"c", b""])) for i in range(5)
    )
    content = mutate(good, rng) if rng.random() < 0.9 else rng.bytes(int(rng.integers(200)))
    (folder / labels.CSV).write_bytes(content)
    found = labels.read_labels(folder)
    assert len(found.names) == len(found.targets) == len(set(found.names))
    assert found.targets.sum(0).all()  # every class is some chip's
    assert not any("/" in name for name in found.names)


def value(rng: Rng) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: None, lambda: bool(rng.integers(2)), lambda: int(rng.integers(-(2**62), 2**62)),
        lambda: int(rng.integers(-3, 300)), lambda: float(rng.standard_normal() * 10),
        lambda: float(rng.choice([np.nan, np.inf, -np.inf, 1e308, -0.0, 5e-324])),
        lambda: JUNK[rng.integers(len(JUNK))].decode(errors="replace"),
        lambda: rng.choice(["imagenet", "global", "latest", "float32", "x" * 300]).item(),
        lambda: tuple(value(rng) for _ in range(rng.integers(4))),
        lambda: [value(rng)], lambda: {"a": 1}, lambda: 10**400,
    ]  # fmt: skip
    return kinds[rng.integers(len(kinds))]()


def config(rng: Rng, folder: Path) -> None:
    """A option of junk, or a flag of it."""
    name = rng.choice(sorted(options.OPTIONS))
    if rng.random() < 0.2:
        name = "".join(rng.permutation(list(name)))
    if rng.random() < 0.5:
        letters = list(string.printable)
        text = "".join(rng.choice(letters, rng.integers(12)))
        flag = f"--{rng.choice(['config.', 'noconfig.', '', 'conf'])}{name}"
        options.check_flags([flag, f"{flag}={text}", text, f"--config={text}.py"])
        return
    made = options.get_config().unlock()
    made.update_from_flattened_dict({}) if name not in options.OPTIONS else None
    flat = options.flatten(made) | {name: value(rng)}
    section, _, last = name.rpartition(".")
    try:
        (made[section] if section else made)[last] = flat[name]
    except (
        TypeError,
        KeyError,
        AttributeError,
        ValueError,
        OverflowError,
    ):  # ml_collections' own refusal
        return
    options.validate(made)


def chip(rng: Rng, folder: Path) -> None:
    encoded = io.BytesIO()
    mode = rng.choice(["RGB", "CMYK", "L", "RGBA", "P", "I", "1", "LA"])
    size = tuple(int(side) for side in rng.integers(1, 24, 2))
    pixels = Image.frombytes("RGB", size, rng.bytes(size[0] * size[1] * 3))
    kind = {"RGB": "JPEG", "CMYK": "JPEG", "L": "PNG", "P": "PNG"}.get(mode, "TIFF")
    pixels.convert(mode).save(encoded, kind)
    try:
        made = dataset.decode_chip(mutate(encoded.getvalue(), rng), (16, 16))
    except ValueError:  # what its callers turn into a line
        return
    assert made.shape == (16, 16, 3)
    assert made.dtype == np.uint8


def weights(rng: Rng, folder: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(8)
    path = folder / "weights.safetensors"
    path.write_bytes(mutate(content, rng))
    torchvision_weights.fill({"params": {"backbone": {}, "head": {}}, "batch_stats": {}}, str(path))


def damaged_checkpoint(rng: Rng, folder: Path) -> None:
    """Damaged after it was sealed: never read."""
    run = _checkpoint(folder)
    path = _any_file(run, rng)
    before = path.read_bytes()
    changed = mutate(before, rng) if rng.random() < 0.8 else None
    path.unlink() if changed is None else path.write_bytes(changed)
    try:
        checkpoint.read_weights(run, "latest")
    except BadInput:
        return
    finally:
        path.write_bytes(before)
    assert changed == before


def forged_checkpoint(rng: Rng, folder: Path) -> None:
    """Its meta was edited and sealed anew, as only a person would."""
    run = _checkpoint(folder)
    step = run / "checkpoints" / "latest" / "1"
    path = step / "meta" / "metadata"
    before = path.read_bytes()
    path.write_bytes(mutate(before, rng))
    seal(step)
    try:
        assert isinstance(checkpoint.read_meta(run, "latest"), dict)
    finally:
        path.write_bytes(before)
        seal(step)


def _any_file(run: Path, rng: Rng) -> Path:
    step = run / "checkpoints" / "latest" / "1"
    found = sorted(path for path in step.rglob("*") if path.is_file())
    return found[rng.integers(len(found))]


def _checkpoint(folder: Path) -> Path:
    run = folder / "run"
    if not run.exists():
        arrays = {"weights": {"params/a": np.arange(9.0)}, "optimizer": {"mu": np.ones(3)}}
        with checkpoint.Checkpoints(run) as checkpoints:
            checkpoints.save(1, {"latest": arrays}, {"config": {"a": 1}, "steps": 2})
    return run


SHARES: dict[Callable[[Rng, Path], None], float] = {
    label_file: 0.3, config: 0.3, chip: 0.25, weights: 0.05, damaged_checkpoint: 0.07,
    forged_checkpoint: 0.03,
}  # fmt: skip


def one(target: Callable[[Rng, Path], None], seed: int, number: int, folder: Path) -> str:
    """Tries one input: '' when it was taken or refused rightly, else what went wrong."""
    rng = np.random.default_rng([seed, number])
    try:
        with warnings.catch_warnings(), mock.patch.object(files, "flush"):  # to be fast
            warnings.simplefilter("ignore")
            target(rng, folder)
    except BadInput as error:
        return "more than one line" if "\n" in str(error) else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run(inputs: int, seed: int, home: Path) -> list[tuple[str, int, int, str]]:
    """A row for each kind of input."""
    rows = []
    for target, share in SHARES.items():
        folder = home / "fuzz" / target.__name__
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        count = round(inputs * share)
        wrong = {}
        for number in range(count):
            if trouble := one(target, seed, number, folder):
                wrong[number] = trouble
                if len(wrong) <= 5:
                    print(f"fuzz {target.__name__} {number}: {trouble[:300]}", flush=True)
        name = target.__name__.replace("_", " ")
        rows.append((f"junk: {name}", count, count - len(wrong), ""))
    return rows
