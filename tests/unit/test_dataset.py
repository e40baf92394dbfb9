import io

import numpy as np
import pytest
from PIL import Image

from planet_jax.data import dataset
from planet_jax.data.decode import decode_chip
from planet_jax.runtime.errors import BadInput
from tests.support import SHARED, needs_shared, write_chips


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


def test_records_of_many_parts_are_in_file_order(tmp_path, monkeypatch):
    root = write_chips(tmp_path / "root", ["a", "b"] * 6)
    whole = dataset.load(root, tmp_path / "whole", decoded=False)
    monkeypatch.setattr(dataset.build, "PART_BYTES", 2000)
    parts = dataset.load(root, tmp_path / "parts", decoded=False)
    assert len(list((tmp_path / "parts").rglob("*part*array_record*"))) > 2
    names = [parts.chips.records[i]["name"].decode() for i in range(12)]
    assert names == list(parts.labels.names)
    rows = np.arange(12)
    np.testing.assert_array_equal(parts.chips[rows], whole.chips[rows])


def test_ready_build_is_used_where_nothing_can_be_written(tmp_path, monkeypatch):
    root, cache = write_chips(tmp_path / "root", ["a", "b"]), tmp_path / "cache"
    first = dataset.load(root, cache)

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(dataset, "lock_folder", refuse)
    assert dataset.load(root, cache).digest == first.digest
    with pytest.raises(BadInput, match=r"data\.cache.*Permission denied.*can be written"):
        dataset.load(root, tmp_path / "other")


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
