"""Test that damaged and hostile archives and tables are refused in one line and leave nothing."""

import random
import re
import tarfile

import py7zr
import pytest

from planet_jax.data import kaggle as downloads
from planet_jax.runtime.errors import BadInput
from tests.kaggle_server import (
    SLUG,
    TEST,
    TRAIN,
    WHOLE,
    archive_of,
    in_folder,
    refused,
    seven_of,
    table,
    tar_of,
    tree,
    zip_of,
)


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


GOOD = archive_of("train-jpg", TRAIN)


def hostile(path, kind=tarfile.REGTYPE, link=""):
    """Return an archive whose last entry is hostile."""
    chips = tar_of(in_folder("train-jpg", TRAIN))
    end = 1024 * len(TRAIN)  # per chip: a header and the content, 512 bytes each
    return seven_of({"train-jpg.tar": chips[:end] + tar_of({path: b"x"}, kind, link)})


BAD_ARCHIVES = {
    "empty": (b"", "chips are missing|damaged"),
    "text": (b"<html>sign in</html>" * 100, "damaged"),
    "cut": (GOOD[:-200], "damaged"),
    "damaged": (flipped(GOOD, len(GOOD) // 2), "damaged"),
    "damaged header": (flipped(GOOD, 20), "damaged"),
    "no tar": (seven_of({"readme.txt": b"x"}), "one .tar was expected"),
    "two tars": (seven_of({"a.tar": tar_of({}), "b.tar": tar_of({})}), "one .tar was expected"),
    "no real tar": (seven_of({"train-jpg.tar": b"x" * 2000}), "damaged"),
    "cut tar": (
        seven_of({"train-jpg.tar": tar_of(in_folder("train-jpg", TRAIN))[:2100]}),
        "missing|damaged",
    ),
    "other archive": (archive_of("test-jpg", TEST), "only train-jpg"),
    "too few": (
        archive_of("train-jpg", dict(list(TRAIN.items())[:6])),
        r"2 of the CSV's 8 chips are missing \(train_6.jpg, train_7.jpg\)",
    ),
    "up": (hostile("train-jpg/../../evil.jpg"), "only train-jpg"),
    "up at once": (hostile("../evil.jpg"), "only train-jpg"),
    "dots": (hostile("train-jpg/.."), "only train-jpg"),
    "absolute": (hostile("/tmp/evil.jpg"), "only train-jpg"),
    "deeper": (hostile("train-jpg/deep/evil.jpg"), "only train-jpg"),
    "symlink": (hostile("train-jpg/evil.jpg", tarfile.SYMTYPE, "/etc/passwd"), "only train-jpg"),
    "folder link": (hostile("train-jpg", tarfile.SYMTYPE, "/tmp"), "only train-jpg"),
    "hard link": (hostile("train-jpg/evil.jpg", tarfile.LNKTYPE, "/etc/passwd"), "only train-jpg"),
    "device": (hostile("train-jpg/evil.jpg", tarfile.CHRTYPE), "only train-jpg"),
    "pipe": (hostile("train-jpg/evil.jpg", tarfile.FIFOTYPE), "only train-jpg"),
    "zip up": (zip_of({"train-jpg/../evil.jpg": b"x"}), "leave the folder"),
    "zip absolute": (zip_of({"/train-jpg/evil.jpg": b"x"}), "leave the folder"),
    "other zip": (zip_of({"readme.txt": b"x"}), "8 of the CSV's 8"),
}


@pytest.mark.parametrize("which", BAD_ARCHIVES)
@pytest.mark.parametrize("by_hand", [False, True])
def test_bad_archives(kaggle, tmp_path, which, by_hand):
    content, expected = BAD_ARCHIVES[which]
    root = tmp_path / "planet"
    root.mkdir()
    (root / "train_v2.csv").write_bytes(table(TRAIN))
    left = {"train_v2.csv": table(TRAIN)}
    if by_hand:
        (root / "train-jpg.tar.7z").write_bytes(content)
        left["train-jpg.tar.7z"] = content
    else:
        kaggle.sources[SLUG]["train-jpg.tar.7z"] = content
        if not content:
            kaggle.served["train-jpg.tar.7z"] = b" "
    line = refused(root)
    assert re.search(expected, line)
    assert ("replace it" if by_hand else "run again") in line
    assert tree(root) == left
    assert not list(tmp_path.rglob("evil*"))
    assert {path.name for path in root.iterdir()} - {".downloads"} == set(left)


def test_symlinked_tar_in_the_7z(kaggle, tmp_path):
    (tmp_path / "outside.tar").write_bytes(tar_of(in_folder("train-jpg", TRAIN)))
    (tmp_path / "train-jpg.tar").symlink_to("outside.tar")
    root = tmp_path / "planet"
    root.mkdir()
    (root / "train_v2.csv").write_bytes(table(TRAIN))
    with py7zr.SevenZipFile(root / "train-jpg.tar.7z", "w") as seven:
        seven.write(tmp_path / "train-jpg.tar", "train-jpg.tar")
    assert "one .tar was expected" in refused(root)


def test_macos_files_are_ignored(kaggle, tmp_path):
    extra = {"._train-jpg": b"x", "train-jpg/._train_0.jpg": b"x", "train-jpg/.DS_Store": b"x"}
    content = seven_of({"train-jpg.tar": tar_of(extra | in_folder("train-jpg", TRAIN))})
    kaggle.sources[SLUG]["train-jpg.tar.7z"] = content
    downloads.fetch(tmp_path / "planet")
    assert tree(tmp_path / "planet") == WHOLE


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes(tmp_path, seed):
    """Whichever bytes are wrong, fetch raises BadInput or the chips are right."""
    rng = random.Random(seed)
    content = GOOD
    for _ in range(rng.choice([1, 1, 5, 50])):
        near_header = rng.randrange(40) if seed % 3 == 0 else -1 - rng.randrange(120)
        content = flipped(content, near_header if seed % 3 else rng.randrange(len(content)))
    (tmp_path / "train_v2.csv").write_bytes(table(TRAIN))
    (tmp_path / "train-jpg.tar.7z").write_bytes(content)
    try:
        downloads.fetch(tmp_path)
    except BadInput:
        assert not (tmp_path / "train-jpg").exists()
    else:
        assert tree(tmp_path) == WHOLE | {"train-jpg.tar.7z": content}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a table"),
        (b"image_name,tags\n", "not a table"),
        (b"<html>sign in</html>", "not a table"),
        (b"a,b\n1,2\n", "not a table"),
        (b"image_name,tags\ntrain_0\n", "not a table"),
        (b"image_name,tags\n\xff\xfe,clear\n", "damaged"),
        (zip_of({"other.csv": b"x"}), "train_v2.csv was expected"),
        (zip_of({"train_v2.csv": b"x,y"}), "not a table"),
        (flipped(zip_of({"train_v2.csv": table(TRAIN)}), 60), "damaged"),
    ],
)
@pytest.mark.parametrize("by_hand", [False, True])
def test_bad_tables(kaggle, tmp_path, content, expected, by_hand):
    root = tmp_path / "planet"
    root.mkdir()
    if by_hand:
        (root / "train_v2.csv.zip").write_bytes(content)
    else:
        kaggle.sources[SLUG]["train_v2.csv.zip"] = content
        if not content:
            kaggle.served["train_v2.csv.zip"] = b" "
    assert expected in refused(root)
    assert not (root / "train_v2.csv").exists()


def test_bad_table_by_hand(kaggle, tmp_path):
    (tmp_path / "train_v2.csv").write_bytes(b"a,b\n1,2\n")
    line = refused(tmp_path)
    assert "train_v2.csv" in line
    assert "replace it" in line
