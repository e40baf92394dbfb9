import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SHARED, needs_shared, write_chips
from PIL import Image

from planet_jax.data import dataset
from planet_jax.data.decode import decode_chip
from planet_jax.runtime.errors import BadInput


@needs_shared
@pytest.mark.parametrize("decoded", [True, False])
def test_built_chips_match_pillow(tmp_path, decoded):
    root = SHARED / "data" / "ucmerced"
    data = dataset.load(root, tmp_path, decoded)
    assert data.chips.shape == (1050, 256, 256, 3)
    rows = np.array([0, 3, 700, 1049])
    for row, chip in zip(rows, data.chips[rows], strict=True):
        image = Image.open(root / "train-jpg" / f"{data.labels.names[row]}.jpg").convert("RGB")
        np.testing.assert_array_equal(chip, np.asarray(image))


@needs_shared
def test_cmyk_chips_match_pillow():
    for path in sorted((SHARED / "data" / "planet" / "test-jpg").iterdir()):
        image = Image.open(path)
        assert image.mode == "CMYK"
        chip = decode_chip(path.read_bytes())
        np.testing.assert_array_equal(chip, np.asarray(image.convert("RGB")))


def encode(image, kind="jpeg"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_damaged_chips_are_named(tmp_path):
    root = write_chips(tmp_path / "root", ["a", "b", "a b", "a"])
    chip = root / "train-jpg" / "chip1.jpg"
    chip.write_bytes(chip.read_bytes()[:-300])
    (root / "train-jpg" / "chip3.jpg").write_bytes(b"no image")
    huge = bytearray((root / "train-jpg" / "chip2.jpg").read_bytes())
    frame = huge.index(b"\xff\xc0")
    huge[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"  # a header that claims 65,535 x 65,535 pixels
    (root / "train-jpg" / "chip2.jpg").write_bytes(huge)
    named = "3 chips are damaged or not images: chip1.jpg, chip2.jpg, chip3.jpg"
    with pytest.raises(BadInput, match=named):
        dataset.load(root, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("chips.npy"))


def test_unusual_chips_and_labels_are_converted_with_a_notice(tmp_path, capsys):
    root = write_chips(tmp_path / "root", ["a", " b  a ", "a", "b", "a", ""])
    folder = root / "train-jpg"
    color = Image.new("RGB", (64, 64), (200, 100, 50))
    (folder / "chip1.jpg").write_bytes(encode(color.convert("L")))
    (folder / "chip2.jpg").write_bytes(encode(color.convert("RGBA"), "png"))
    (folder / "chip3.jpg").write_bytes(encode(color.resize((100, 90))))
    (folder / "extra.jpg").write_bytes(encode(color))
    data = dataset.load(root, tmp_path / "cache")
    assert data.chips.shape == (6, 64, 64, 3)
    assert data.labels.targets.tolist() == [[1, 0], [1, 1], [1, 0], [0, 1], [1, 0], [0, 0]]
    assert data.chips[2].mean((0, 1)) == pytest.approx([200, 100, 50], abs=2)
    assert data.chips[3].mean((0, 1)) == pytest.approx([200, 100, 50], abs=2)
    notices = capsys.readouterr().err
    for notice in (
        "extra spaces in 1 rows",
        "1 files have no row",
        "'L': 1",
        "1 chips are resized",
    ):
        assert notice in notices


def test_rebuilds_only_when_a_chip_or_label_changes(tmp_path, capsys):
    root = write_chips(tmp_path / "root", ["a", "b"])
    cache = tmp_path / "cache"
    dataset.load(root, cache)
    assert "building" in capsys.readouterr().err
    dataset.load(root, cache)
    assert "building" not in capsys.readouterr().err
    chip = root / "train-jpg" / "chip1.jpg"
    chip.write_bytes(encode(Image.new("RGB", (64, 64), "white")))
    data = dataset.load(root, cache)
    assert "building" in capsys.readouterr().err
    assert data.chips[1].min() > 250
    csv = root / "train_v2.csv"
    csv.write_text(csv.read_text().replace("chip1,b", "chip1,a b"))
    assert dataset.load(root, cache).labels.targets.tolist() == [[1, 0], [1, 1]]
    assert len(list(cache.rglob("chips.npy"))) == 1  # earlier builds are removed


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_build_leaves_no_partial_data(tmp_path, kills):
    """Kill builds at seeded moments; the next build equals one that was never killed."""
    root = write_chips(tmp_path / "root", ["a", "b"] * 150)
    program = (
        "import sys; from pathlib import Path; from planet_jax.data import dataset;"
        "print('ready', flush=True); dataset.load(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    cache, rng = tmp_path / "cache", np.random.default_rng(0)
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(root), str(cache)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    data = dataset.load(root, cache)
    untouched = dataset.load(root, tmp_path / "other")
    np.testing.assert_array_equal(data.chips, untouched.chips)
    assert not list(cache.rglob(".tmp-*"))
