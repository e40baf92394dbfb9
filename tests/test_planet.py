import hashlib
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SHARED, needs_shared, write_chips
from PIL import Image

from planet_jax.data import dataset
from planet_jax.data import labels as label_file
from planet_jax.runtime.errors import BadInput


@needs_shared
def test_split_is_fastais(reference):
    expected = reference["split"]
    names = np.array(label_file.read_labels(SHARED / "data" / "planet").names)
    train, valid = label_file.split(len(names), 0.2, 42)
    assert (len(train), len(valid)) == (32_384, 8_095)
    for rows, digest in ((train, "sha256_train_names"), (valid, "sha256_valid_names")):
        text = "\n".join(names[rows]).encode()
        assert hashlib.sha256(text).hexdigest() == expected[digest]


@needs_shared
def test_labels_are_the_competitions():
    labels = label_file.read_labels(SHARED / "data" / "planet")
    counts = dict(zip(labels.classes, labels.targets.sum(0), strict=True))
    assert list(labels.classes) == sorted(labels.classes)
    assert len(labels.classes) == 17
    assert counts["primary"] == 37_513
    assert counts["blow_down"] == 98
    assert labels.targets.sum(1).mean() == pytest.approx(2.8707, abs=5e-5)
    table = pd.read_csv(SHARED / "data" / "planet" / "train_v2.csv")
    repeats = [
        i for i, tags in enumerate(table["tags"]) if len(set(tags.split())) < len(tags.split())
    ]
    assert len(repeats) == 73
    for i in repeats:
        named = {c for c, t in zip(labels.classes, labels.targets[i], strict=True) if t}
        assert named == set(table["tags"][i].split())
        assert set(labels.targets[i]) <= {0, 1}


@needs_shared
@pytest.mark.parametrize("decoded", [True, False])
def test_real_chips_are_built_as_pillow_reads_them(tmp_path, decoded):
    root = SHARED / "data" / "ucmerced"
    data = dataset.load(root, tmp_path, decoded)
    assert data.chips.shape == (1050, 256, 256, 3)
    rows = np.array([0, 3, 700, 1049])
    for row, chip in zip(rows, data.chips[rows], strict=True):
        image = Image.open(root / "train-jpg" / f"{data.labels.names[row]}.jpg").convert("RGB")
        np.testing.assert_array_equal(chip, np.asarray(image))


@needs_shared
def test_real_cmyk_chips_are_read_as_pillow_converts_them():
    for path in sorted((SHARED / "data" / "planet" / "test-jpg").iterdir()):
        image = Image.open(path)
        assert image.mode == "CMYK"
        chip = dataset.decode_chip(path.read_bytes())
        np.testing.assert_array_equal(chip, np.asarray(image.convert("RGB")))


BAD = {
    "nothing": (None, "no label file"),
    "empty": ("", "not readable as CSV"),
    "binary": (b"\x89PNG\xff\xfe\x00", "not readable as CSV"),
    "no columns": ("name,labels\na,b\n", "no column image_name and tags"),
    "no tags": ("image_name\nchip0\n", "no column tags"),
    "no rows": ("image_name,tags\n", "has no rows"),
    "twice": ("image_name,tags\nchip0,a\nchip1,a\nchip0,b\n", "1 names are there twice: chip0"),
    "no labels": ("image_name,tags\nchip0,\nchip1, \n", "no row has a tag"),
    "climbs out": ("image_name,tags\n../chip0,a\n", "1 names are no file names: '../chip0'"),
    "long row": ("image_name,tags\nchip0,a,b,c\n", "not readable as CSV"),
    "no chip": (
        "image_name,tags\nchip0,a\nx1,a\nx2,a\nx3,a\nx4,b\n",
        "4 rows of train_v2.csv have no chip there: x1.jpg, x2.jpg, x3.jpg and 1 more",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_label_files_are_refused_in_one_line(tmp_path, case):
    content, message = BAD[case]
    root = write_chips(tmp_path / "root", ["a", "b", "a b"])
    (root / "train_v2.csv").unlink()
    if content is not None:
        (root / "train_v2.csv").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    with pytest.raises(BadInput) as caught:
        dataset.load(root, tmp_path / "cache")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("chips.npy"))


def encode(image, kind="jpeg"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_damaged_chips_are_counted_and_named(tmp_path):
    root = write_chips(tmp_path / "root", ["a", "b", "a b", "a"])
    chip = root / "train-jpg" / "chip1.jpg"
    chip.write_bytes(chip.read_bytes()[:-300])
    (root / "train-jpg" / "chip3.jpg").write_bytes(b"no image")
    huge = bytearray((root / "train-jpg" / "chip2.jpg").read_bytes())
    frame = huge.index(b"\xff\xc0")
    huge[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"  # a header that claims 65,535 x 65,535 pixels
    (root / "train-jpg" / "chip2.jpg").write_bytes(huge)
    named = "3 chips are damaged or no images: chip1.jpg, chip2.jpg, chip3.jpg"
    with pytest.raises(BadInput, match=named):
        dataset.load(root, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("chips.npy"))


def test_odd_chips_and_labels_are_handled_with_a_notice(tmp_path, capsys):
    root = write_chips(tmp_path / "root", ["a", " b  a ", "a", "b", "a", ""])
    folder = root / "train-jpg"
    colour = Image.new("RGB", (64, 64), (200, 100, 50))
    (folder / "chip1.jpg").write_bytes(encode(colour.convert("L")))
    (folder / "chip2.jpg").write_bytes(encode(colour.convert("RGBA"), "png"))
    (folder / "chip3.jpg").write_bytes(encode(colour.resize((100, 90))))
    (folder / "extra.jpg").write_bytes(encode(colour))
    data = dataset.load(root, tmp_path / "cache")
    assert data.chips.shape == (6, 64, 64, 3)
    assert data.labels.targets.tolist() == [[1, 0], [1, 1], [1, 0], [0, 1], [1, 0], [0, 0]]
    assert data.chips[2].mean((0, 1)) == pytest.approx([200, 100, 50], abs=2)
    assert data.chips[3].mean((0, 1)) == pytest.approx([200, 100, 50], abs=2)
    notices = capsys.readouterr().err
    for notice in ("1 rows have spaces", "1 files have no row", "'L': 1", "1 chips are resized"):
        assert notice in notices


def test_a_subset_trains_on_named_chips_and_never_on_validation(tmp_path, capsys):
    labels = label_file.Labels(tuple("abcdef"), ("x",), np.ones((6, 1), np.uint8))
    file = tmp_path / "mistakes.txt"
    file.write_text("e\n\n b \na\n")
    rows = label_file.subset(labels, np.array([1, 2, 4]), file)
    assert rows.tolist() == [1, 4]
    assert "1 of its chips validate" in capsys.readouterr().err
    for content, message in (("b\nx\ny\n", "2 names are not in"), ("a\n", "names no chip")):
        file.write_text(content)
        with pytest.raises(BadInput, match=message):
            label_file.subset(labels, np.array([1, 2, 4]), file)
    with pytest.raises(BadInput, match="cannot be read"):
        label_file.subset(labels, np.array([1]), tmp_path / "absent")


def test_built_once_and_again_when_a_chip_or_label_changes(tmp_path, capsys):
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
    assert len(list(cache.rglob("chips.npy"))) == 1  # the builds before are gone


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_build_that_is_killed_leaves_nothing_that_counts(tmp_path, kills):
    """SIGKILL at seeded moments of a build; then the build of one that was never killed."""
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
