"""Kill builds and downloads at seeded random moments; the next build or download completes."""

import random

import numpy as np
import pytest

from planet_jax.data import dataset
from planet_jax.data import kaggle as downloads
from tests.kaggle_server import SLUG, archive_of, in_folder, table, tree, zip_of
from tests.support import kill_module, write_chips


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_build_leaves_no_partial_data(tmp_path, kills):
    """The next build equals one that was never killed."""
    root = write_chips(tmp_path / "root", ["a", "b"] * 150)
    cache, rng = tmp_path / "cache", np.random.default_rng(0)
    for _ in range(kills):
        kill_module("tests.build_dataset", root, cache, seconds=rng.uniform(0, 0.4))
    data = dataset.load(root, cache)
    untouched = dataset.load(root, tmp_path / "other")
    np.testing.assert_array_equal(data.chips, untouched.chips)
    assert not list(cache.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("seed", "kills"),
    [
        *((seed, 2) for seed in range(2)),
        *(pytest.param(seed, 3, marks=pytest.mark.slow) for seed in range(10, 40)),
    ],
)
def test_killed_download_leaves_no_partial_data(kaggle, tmp_path, seed, kills):
    """Each run takes some 0.5 s to download and 0.5 s to unpack."""
    rng = random.Random(seed)
    chips = {f"train_{i}.jpg": rng.randbytes(1000) for i in range(3000)}
    kaggle.sources[SLUG] = {
        "train-jpg.tar.7z": archive_of("train-jpg", chips),
        "train_v2.csv.zip": zip_of({"train_v2.csv": table(chips)}),
    }
    kaggle.delay = 0.002
    expected = {"train_v2.csv": table(chips)} | in_folder("train-jpg", chips)
    root = tmp_path / "planet"
    for _ in range(kills):
        kill_module("tests.kaggle_fetch", kaggle.url, root, seconds=rng.uniform(0, 1.1))
        files = tree(root)
        if (root / "train-jpg").exists():  # then it is complete
            assert {k: v for k, v in files.items() if k[0] != "."} == expected
    downloads.fetch(root)
    assert tree(root) == expected
    assert not list(root.glob(".*"))
