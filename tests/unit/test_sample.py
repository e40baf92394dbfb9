import io
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from planet_jax.data import sample
from planet_jax.runtime.errors import BadInput


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_seed_fixes_the_bytes_and_a_larger_sample_contains_the_smaller(tmp_path):
    sample.draw_sample(tmp_path / "small", 3, 1, seed=7)
    sample.draw_sample(tmp_path / "large", 5, 2, seed=7)
    sample.draw_sample(tmp_path / "other", 3, 1, seed=8)
    small, large, other = (contents(tmp_path / name) for name in ("small", "large", "other"))

    chips = [name for name in small if name.endswith(".jpg")]
    assert len(chips) == 4
    assert all(small[name] == large[name] for name in chips)
    assert large["train_v2.csv"].startswith(small["train_v2.csv"])
    assert not any(small[name] == other[name] for name in chips)
    assert small["train-jpg/train_0.jpg"] != small["test-jpg/test_0.jpg"]


def test_layout_matches_the_competition(tmp_path, capsys):
    sample.draw_sample(tmp_path, 3, 2, seed=0)

    jpegs = [f"train-jpg/train_{i}.jpg" for i in range(3)] + [
        f"test-jpg/test_{i}.jpg" for i in (0, 1)
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["test-jpg", "train-jpg", "train_v2.csv"]
    assert set(contents(tmp_path)) == {"train_v2.csv", *jpegs}
    table = pd.read_csv(tmp_path / "train_v2.csv")
    assert list(table.columns) == ["image_name", "tags"]
    assert list(table.image_name) == ["train_0", "train_1", "train_2"]
    assert "drawing chips: 5/5 chips" in capsys.readouterr().err
    for name in jpegs:
        with Image.open(tmp_path / name) as chip:
            assert (chip.mode, chip.size) == ("CMYK", (256, 256))
            assert "adobe" not in chip.info
            assert not np.asarray(chip)[..., 3].any()


@pytest.mark.parametrize(
    "tags", [("clear", "primary"), ("agriculture", "clear", "road"), ("cloudy",)]
)
def test_encoding_keeps_the_colors(tags):
    drawn = sample.draw_chip(np.random.default_rng(0), tags)
    opened = np.asarray(Image.open(io.BytesIO(sample.encode(drawn))).convert("RGB"))

    assert drawn.shape == (256, 256, 3)
    assert drawn.dtype == np.uint8
    assert np.abs(opened.astype(int) - drawn).mean() < 6
    np.testing.assert_allclose(opened.mean((0, 1)), drawn.mean((0, 1)), atol=1)


def test_tags_follow_the_rules_and_about_the_real_shares():
    drawn = [sample.draw_tags(np.random.default_rng([0, 0, i])) for i in range(4000)]
    weather = {"clear", "partly_cloudy", "haze", "cloudy"}
    for tags in drawn:
        assert list(tags) == sorted(set(tags))
        assert len(weather & set(tags)) == 1
        assert "cloudy" not in tags or tags == ("cloudy",)

    share = {tag: n / len(drawn) for tag, n in Counter(t for tags in drawn for t in tags).items()}
    real = {
        "primary": 0.927, "clear": 0.702, "agriculture": 0.304, "road": 0.199, "water": 0.183,
        "partly_cloudy": 0.179, "cultivation": 0.111, "habitation": 0.090, "haze": 0.067,
        "cloudy": 0.052,
    }  # fmt: skip
    rare = "bare_ground selective_logging artisinal_mine blooming slash_burn conventional_mine"
    assert set(share) == {*real, *rare.split(), "blow_down"}
    for tag, expected in real.items():
        assert share[tag] == pytest.approx(expected, rel=0.25), tag
    assert all(0.02 <= share[tag] <= 0.05 for tag in (*rare.split(), "blow_down"))
    assert 2.7 < sum(share.values()) < 3.1  # 2.87 in the real labels


@pytest.mark.parametrize("tag", [tag for tag in (*sample.TAGS, *sample.WEATHER) if tag != "clear"])
def test_every_tag_is_visible_at_64_pixels(tag):
    beside = {"primary": (), "cloudy": ()}.get(tag, ("primary",))
    for seed in range(8):
        shown, absent = (
            Image.fromarray(sample.draw_chip(np.random.default_rng(seed), tags)).reduce(4)
            for tags in ((*beside, tag), ("primary",) if tag != "primary" else ())
        )
        # The brightness of the two chips differs by less than a sixth, far below this threshold.
        change = np.log(np.maximum(shown, 1) / np.maximum(absent, 1))
        assert (np.abs(change).max(axis=-1) > 0.35).sum() > 40, (tag, seed)


def test_existing_files_are_never_overwritten(tmp_path):
    for kept in ("train_v2.csv", "train-jpg/mine.jpg", "test-jpg/mine.jpg"):
        root = tmp_path / kept.replace("/", "_")
        (root / kept).parent.mkdir(parents=True)
        (root / kept).write_bytes(b"mine")
        with pytest.raises(BadInput, match="exists already"):
            sample.draw_sample(root, 1, 1, seed=0)
        assert contents(root) == {kept: b"mine"}


class Killed(BaseException):
    pass


def test_kill_while_drawing_leaves_no_sample(tmp_path, monkeypatch):
    encode, encoded = sample.encode, []

    def encode_until_killed(rgb):
        if len(encoded) == 3:
            raise Killed
        encoded.append(rgb)
        return encode(rgb)

    monkeypatch.setattr(sample, "encode", encode_until_killed)
    with pytest.raises(Killed):
        sample.draw_sample(tmp_path, 2, 2, seed=1)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [".drawing"]

    sample.draw_sample(tmp_path, 1, 1, seed=1)
    assert set(contents(tmp_path)) == {
        "train_v2.csv",
        "train-jpg/train_0.jpg",
        "test-jpg/test_0.jpg",
    }


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_kill_between_the_renames_is_repaired_by_the_next_run(tmp_path, monkeypatch, moves):
    rename, done = sample.Path.rename, []

    def rename_until_killed(source, target):
        if len(done) == moves:
            raise Killed
        done.append(target)
        return rename(source, target)

    monkeypatch.setattr(sample.Path, "rename", rename_until_killed)
    with pytest.raises(Killed):
        sample.draw_sample(tmp_path, 2, 1, seed=1)
    monkeypatch.undo()
    assert not (tmp_path / "train_v2.csv").exists()

    sample.draw_sample(tmp_path, 1, 1, seed=1)
    assert set(contents(tmp_path)) == {
        "train_v2.csv",
        "train-jpg/train_0.jpg",
        "test-jpg/test_0.jpg",
    }
