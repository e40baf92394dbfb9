import hashlib

import numpy as np
import pandas as pd
import pytest

from planet_jax.data import dataset
from planet_jax.data.labels import Labels, read_labels, split, subset
from planet_jax.runtime.errors import BadInput
from tests.support import SHARED, needs_shared, write_chips


@needs_shared
def test_split_matches_fastai(reference):
    expected = reference["split"]
    names = np.array(read_labels(SHARED / "data" / "planet").names)
    train, valid = split(len(names), 0.2, 42)
    assert (len(train), len(valid)) == (32_384, 8_095)
    for rows, digest in ((train, "sha256_train_names"), (valid, "sha256_valid_names")):
        text = "\n".join(names[rows]).encode()
        assert hashlib.sha256(text).hexdigest() == expected[digest]


@needs_shared
def test_labels_match_the_competition():
    labels = read_labels(SHARED / "data" / "planet")
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


BAD = {
    "no file": (None, "no label file"),
    "empty": ("", "not readable as CSV"),
    "binary": (b"\x89PNG\xff\xfe\x00", "not readable as CSV"),
    "no columns": ("name,labels\na,b\n", "no column image_name and tags"),
    "no tags": ("image_name\nchip0\n", "no column tags"),
    "no rows": ("image_name,tags\n", "has no rows"),
    "repeated": ("image_name,tags\nchip0,a\nchip1,a\nchip0,b\n", "1 names are repeated: chip0"),
    "no tag": ("image_name,tags\nchip0,\nchip1, \n", "no row has a tag"),
    "path": ("image_name,tags\n../chip0,a\n", "1 names are not files in data.chip_folder"),
    "long row": ("image_name,tags\nchip0,a,b,c\n", "not readable as CSV"),
    "no chip": (
        "image_name,tags\nchip0,a\nx1,a\nx2,a\nx3,a\nx4,b\n",
        "4 rows of train_v2.csv have no chip there: x1.jpg, x2.jpg, x3.jpg and 1 more",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_label_file_raises_one_line(tmp_path, case):
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


def test_subset_selects_named_training_chips(tmp_path, capsys):
    labels = Labels(tuple("abcdef"), ("x",), np.ones((6, 1), np.uint8))
    file = tmp_path / "mistakes.txt"
    file.write_text("e\n\n b \na\n")
    rows = subset(labels, np.array([1, 2, 4]), file)
    assert rows.tolist() == [1, 4]
    assert "1 of its chips are validation chips" in capsys.readouterr().err
    for content, message in (
        ("b\nx\ny\n", "2 names are not in"),
        ("a\n", "names no training chip"),
    ):
        file.write_text(content)
        with pytest.raises(BadInput, match=message):
            subset(labels, np.array([1, 2, 4]), file)
    with pytest.raises(BadInput, match="cannot be read"):
        subset(labels, np.array([1]), tmp_path / "absent")


def test_fingerprint_changes_with_names_targets_and_order():
    targets = np.array([[1, 0], [0, 1], [1, 1]], np.uint8)
    labels = Labels(("a", "b", "c"), ("x", "y"), targets)
    fingerprint = labels.fingerprint(np.array([0, 2]))
    other_name = Labels(("a", "b", "d"), ("x", "y"), targets)
    other_target = Labels(("a", "b", "c"), ("x", "y"), targets[[0, 1, 1]])
    assert fingerprint == labels.fingerprint(np.array([0, 2]))
    assert fingerprint != labels.fingerprint(np.array([2, 0]))
    assert fingerprint != other_name.fingerprint(np.array([0, 2]))
    assert fingerprint != other_target.fingerprint(np.array([0, 2]))
    # A row outside the fingerprint does not count.
    unused = Labels(("a", "z", "c"), ("x", "y"), targets[[0, 0, 2]])
    assert fingerprint == unused.fingerprint(np.array([0, 2]))
