"""Test which chips train and which validate."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planet_jax.data import describe
from planet_jax.data.labels import Labels, read_labels, read_names, split
from planet_jax.data.split import split_rows
from planet_jax.data.stratify import stratified_folds
from planet_jax.runtime.errors import BadInput
from tests.support import SHARED, needs_shared, write_chips
from tests.unit.test_layouts import data_config, write_folders


def make_labels(targets, **fields):
    """Return labels of chips named 0, 1, ..."""
    targets = np.asarray(targets, np.uint8)
    classes = tuple("abcdefghij"[: targets.shape[1]])
    return Labels(tuple(f"s{i // 4}_{i}" for i in range(len(targets))), classes, targets, **fields)


def spread(folds, targets, k):
    """Return the mean difference between each label's share in a fold and in all chips.

    This is the label distribution of Sechidis et al. 2011, with shares instead of odds.
    """
    shares = [targets[folds == fold].mean(0) for fold in range(k)]
    return np.abs(np.array(shares) - targets.mean(0)).mean()


@st.composite
def divided(draw):
    """Draw targets, a number of folds, and the group of each chip."""
    n, classes, k = draw(st.integers(12, 60)), draw(st.integers(1, 6)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    targets = (rng.random((n, classes)) < rng.random(classes)).astype(np.uint8)
    groups = np.unique(rng.integers(0, draw(st.integers(k, n)), n), return_inverse=True)[1]
    return targets, k, groups if groups.max() + 1 >= k else np.arange(n)


@settings(deadline=None)
@given(divided(), st.integers(0, 99))
def test_folds_are_a_partition_that_keeps_groups(case, seed):
    targets, k, groups = case
    data = {"folds": k, "split_seed": seed, "group_column": "g"}
    labels = make_labels(targets, groups=tuple(map(str, groups)))
    parts = [split_rows(labels, data_config(fold=fold, **data)) for fold in range(k)]
    everyone = np.concatenate([valid for _, valid in parts])
    assert sorted(everyone) == list(range(len(targets)))
    for train, valid in parts:
        assert sorted([*train, *valid]) == list(range(len(targets)))
        assert not set(groups[train]) & set(groups[valid])
    again = [split_rows(labels, data_config(fold=fold, **data))[1].tolist() for fold in range(k)]
    assert again == [valid.tolist() for _, valid in parts]


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 99))
def test_folds_of_single_labels_differ_by_one_chip(k, seed):
    """With one label per chip, the algorithm is plain stratification."""
    rng = np.random.default_rng(seed)
    targets = np.eye(4, dtype=np.uint8)[rng.integers(0, 4, 100)]
    folds = stratified_folds(targets, k, seed)
    for label in targets.T:
        counts = np.bincount(folds[label > 0], minlength=k)
        assert counts.max() - counts.min() <= 1
    assert np.ptp(np.bincount(folds, minlength=k)) <= 4


def test_folds_are_closer_than_random_ones(tmp_path):
    rng = np.random.default_rng(0)
    targets = (rng.random((600, 9)) < [0.9, 0.5, 0.3, 0.1, 0.05, 0.02, 0.02, 0.01, 0.01]).astype(
        np.uint8
    )
    groups = np.sort(rng.integers(0, 150, 600))
    groups = np.unique(groups, return_inverse=True)[1]
    for given_groups, factor in ((None, 3), (groups, 1.5)):
        unit = np.arange(600) if given_groups is None else groups
        ours = spread(stratified_folds(targets, 5, 1, given_groups), targets, 5)
        random = [
            spread(rng.permutation(np.arange(unit.max() + 1) % 5)[unit], targets, 5)
            for _ in range(20)
        ]
        assert factor * ours < np.mean(random)
        assert ours < min(random)


@needs_shared
def test_folds_of_the_competition_have_equal_shares():
    targets = read_labels(SHARED / "data" / "planet").targets
    folds = stratified_folds(targets, 5, 42)
    counts = np.array([targets[folds == fold].sum(0) for fold in range(5)])
    assert np.ptp(np.bincount(folds)) <= 20  # of 8,096 chips
    assert (np.ptp(counts, 0) <= np.maximum(2, 0.01 * counts.mean(0))).all()


def test_more_folds_than_chips_are_refused():
    with pytest.raises(BadInput, match="there are only 3 chips"):
        split_rows(make_labels(np.ones((3, 1))), data_config(folds=4))


@given(st.integers(1, 40), st.floats(0.05, 0.9), st.integers(0, 99))
def test_random_groups_are_whole_and_within_the_fraction(n, fraction, seed):
    labels = make_labels(np.ones((n, 1)))
    options = data_config(group_pattern=r"^(s\d+)_", valid_fraction=fraction, split_seed=seed)
    train, valid = split_rows(labels, options)
    assert sorted([*train, *valid]) == list(range(n))
    assert not set(train // 4) & set(valid // 4)
    assert 0 < len(valid) <= max(4, fraction * n)


@given(st.integers(1, 300), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_the_default_is_fastais_split(n, fraction, seed):
    labels = make_labels(np.ones((n, 1)))
    ours = split_rows(labels, data_config(valid_fraction=fraction, split_seed=seed))
    for rows, expected in zip(ours, split(n, fraction, seed), strict=True):
        np.testing.assert_array_equal(rows, expected)


CONTENTS = {
    "names": "s0_1\ns0_3\n",
    "CRLF and BOM": "\ufeffs0_1\r\ns0_3\r\n",
    "header alone": "image_name\ns0_1\ns0_3\n",
    "quoted header": '"image_name"\r\n"s0_1"\r\n"s0_3"\r\n',
    "quoted names": '"s0_1"\n"s0_3"\n',
    "BOM and quoted columns": '\ufeff"image_name","tags"\r\n"s0_1","a"\r\n"s0_3","b, c"\r\n',
    "spaces": "image_name , tags\ns0_1 , a\n s0_3, b\n",
    "semicolons": "tags;image_name\na;s0_1\nb;s0_3\n",
    "endings": "s0_1.jpg\ns0_3.PNG\n",
    "own column": "chip,tags\ns0_1,a\ns0_3,b\n",
}


@pytest.mark.parametrize("case", CONTENTS)
def test_lists_of_names_are_read(tmp_path, case):
    file = tmp_path / "list"
    file.write_bytes(CONTENTS[case].encode())
    labels = make_labels(np.ones((6, 2)))
    options = data_config(valid_file=str(file), name_column="chip")
    train, valid = split_rows(labels, options)
    assert (train.tolist(), valid.tolist()) == ([0, 2, 4, 5], [1, 3])
    options = data_config(subset=str(file), name_column="chip", valid_fraction=0.1)
    train, valid = split_rows(labels, options)
    assert (train.tolist(), valid.tolist()) == ([1, 3], [])


def test_a_list_that_names_no_chip_is_refused(tmp_path):
    (tmp_path / "list").write_text("s0_1\nx\ny\n")
    with pytest.raises(BadInput, match=r"data\.valid_file = .*: 2 names are not in the labels"):
        split_rows(make_labels(np.ones((6, 2))), data_config(valid_file=str(tmp_path / "list")))
    with pytest.raises(BadInput, match=r"data\.subset = .*cannot be read"):
        read_names(tmp_path / "absent", "subset")


def test_columns_and_folders_choose_who_validates(tmp_path, capsys):
    root = write_chips(tmp_path / "root", ["a", "b", "a b", "a", "b"])
    table = pd.read_csv(root / "train_v2.csv")
    table["use"], table["scene"] = ["train", "Valid", "val", "test", ""], ["x", "y", "y", "x", ""]
    table.to_csv(root / "train_v2.csv", index=False)
    options = data_config(valid_column="use", group_column="scene")
    train, valid = split_rows(read_labels(root, options), options)
    assert (train.tolist(), valid.tolist()) == ([0, 4], [1, 2])
    assert "1 chips of test neither train nor validate" in capsys.readouterr().err
    table["scene"] = "same"
    table.to_csv(root / "train_v2.csv", index=False)
    with pytest.raises(BadInput, match="1 groups have chips that train and chips that validate"):
        split_rows(read_labels(root, options), options)

    write_folders(tmp_path / "folders" / "train", ["a", "b"], "01")
    write_folders(tmp_path / "folders" / "valid", ["a"], "23")
    options = data_config(label_file="", chip_folder="train", valid_folder="valid")
    labels = read_labels(tmp_path / "folders", options)
    _, valid = split_rows(labels, options)
    assert [labels.names[row] for row in valid] == ["valid/a/2", "valid/a/3"]
    assert labels.classes == ("a", "b")


def test_a_pattern_that_does_not_match_is_refused():
    with pytest.raises(BadInput, match="8 names do not match it: s0_0"):
        split_rows(make_labels(np.ones((8, 1))), data_config(group_pattern="tile(.)"))


WRONG = {
    "bars": (["a|b", "a", "b", "b"], {}, "hold commas, bars"),
    "Python lists": (["['a',", "'b']", "b"], {}, "hold commas, bars"),
    "joined": (["a_b", "a_c", "b_c", "a_b_c"], {}, "labels look joined by '_'"),
    "joined in pairs": (["a/b", "b/c", "c/a", "a/b"], {}, "labels look joined by '/'"),
    "joined and alone": (["a b", "a", "b", "b"], {"label_delimiter": ","}, "look joined by ' '"),
    "no validation": (["a", "a"], {}, "2 chips train and 0 validate"),
    "seen once": (["a", "b", "c", "a"], {}, "2 of 3 labels are seen once"),
    "never trains": (["a", "a", "b", "b"], {}, "labels that validate and never train: b"),
}


@pytest.mark.parametrize("case", WRONG)
def test_labels_that_look_wrong_are_named(case):
    words, options, message = WRONG[case]
    classes = tuple(sorted(set(words)))
    labels = Labels(tuple(words), classes, np.array([[c == w for c in classes] for w in words]))
    lines = describe.doubts(labels, np.array([0, 1]), np.array([2, 3][: len(words) - 2], int),
                            data_config(**options))  # fmt: skip
    assert any(message in line for line in lines), lines


@needs_shared
@pytest.mark.parametrize("name", ["planet", "ucmerced"])
def test_real_labels_raise_no_doubt(name):
    options = data_config()
    labels = read_labels(SHARED / "data" / name)
    rows = split_rows(labels, options)
    assert describe.doubts(labels, *rows, options) == []
    if name == "planet":
        lines = "\n".join(describe.lines(labels, *rows))
        assert "rows: 40,479" in lines
        assert "primary 37,513" in lines
        assert "32,384 chips train, 8,095 validate" in lines
