"""Test labels in many layouts: write the same small labels in each and read them back."""

import csv
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from planet_jax.config import get_config, validate
from planet_jax.data import dataset
from planet_jax.data.chip_files import stem
from planet_jax.data.labels import read_labels
from planet_jax.runtime.errors import BadInput

TRUTH = {"chip0": {"clear"}, "chip1": {"clear", "dry land"}, "chip2": {"dry land"}, "chip3": set()}
WORDS = {"clear": "clear", "dry land": "dry_land"}


def data_config(**options):
    """Return the config's validated section `data` with these options."""
    config = get_config()
    config.update_from_flattened_dict({f"data.{name}": value for name, value in options.items()})
    validate(config)
    return config.data


def write(root, rows, chips=TRUTH, ending=".png", delimiter=",", encoding="utf-8", folder=None):
    """Write rows as the label file, and each chip in a different gray."""
    folder = folder or root / "train-jpg"
    folder.mkdir(parents=True, exist_ok=True)
    with (root / "train_v2.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    for i, name in enumerate(chips):
        Image.new("RGB", (8, 8), (50 * i,) * 3).save(folder / f"{name}{ending}")
    return root


def cells(join, header=("image_name", "tags"), name=str):
    """Return the rows of a table with two columns."""
    return [list(header), *([name(n), join(sorted(tags))] for n, tags in TRUTH.items())]


HOT = [["image_name", "dry land", "clear"]]
HOT += [[n, int("dry land" in tags), int("clear" in tags)] for n, tags in TRUTH.items()]
FORMATS = {
    "bars": (cells("|".join), {"label_delimiter": "|"}),
    "commas": (cells(", ".join), {"label_delimiter": ","}),
    "semicolons": (cells(";".join), {"label_delimiter": ";"}),
    "Python list": (cells(repr), {"label_format": "list"}),
    "JSON list": (cells(json.dumps), {"label_format": "list"}),
    "numpy list": (cells(lambda tags: repr(tags).replace(",", "")), {"label_format": "list"}),
    "bare list": (cells(lambda tags: f"[{', '.join(tags)}]"), {"label_format": "list"}),
    "one-hot": (HOT, {"label_format": "one_hot"}),
    "named one-hot": (
        [[*row, "x"] for row in HOT],
        {"label_format": "one_hot", "label_columns": ("clear", "dry land")},
    ),
    "true and false": (
        [[str(bool(c)) if isinstance(c, int) else c for c in row] for row in HOT],
        {"label_format": "one_hot"},
    ),
    "index column": ([["", *HOT[0]], *([7, *row] for row in HOT[1:])], {"label_format": "one_hot"}),
    "other names": (
        cells("|".join, ("file", "land")),
        {"name_column": "file", "label_columns": ("land",), "label_delimiter": "|"},
    ),
    "spaces in the header": (cells("|".join, (" image_name", " tags ")), {"label_delimiter": "|"}),
    "Windows paths": (cells("|".join, name=lambda n: f".\\{n}.png"), {"label_delimiter": "|"}),
    "endings": (cells("|".join, name=lambda n: f"{n}.jpg"), {"label_delimiter": "|"}),
    "two columns": (
        [["image_name", "sky", "land"]]
        + [
            [n, *(label if label in tags else "" for label in ("clear", "dry land"))]
            for n, tags in TRUTH.items()
        ],
        {"label_columns": ("sky", "land"), "label_delimiter": ""},
    ),
}


def found(labels):
    """Return {name without ending: set of labels}."""
    sets = [{labels.classes[i] for i in np.flatnonzero(row)} for row in labels.targets]
    return dict(zip(map(stem, labels.names), sets, strict=True))


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(",", "utf-8-sig"), (";", "utf-8"), ("\t", "utf-8")]
)
@pytest.mark.parametrize("case", FORMATS)
def test_every_format_gives_the_same_labels(tmp_path, case, delimiter, encoding):
    rows, options = FORMATS[case]
    write(tmp_path, rows, (), delimiter=delimiter, encoding=encoding)
    name = "tab" if delimiter == "\t" else delimiter
    assert found(read_labels(tmp_path, data_config(delimiter=name, **options))) == TRUTH


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sets(st.text("ab éü'x", min_size=1).map(str.split).map(" ".join)), min_size=1),
    st.sampled_from(["|", ";", "list", "one_hot"]),
)
def test_any_labels_are_read_back(tmp_path, rows, kind):
    rows = [{unicodedata.normalize("NFC", label) for label in row if label} for row in rows]
    names, classes = [f"c{i}" for i in range(len(rows))], sorted(set().union(*rows))
    if not classes:
        return
    options = {"label_format": kind} if kind in ("list", "one_hot") else {"label_delimiter": kind}
    if kind == "one_hot":
        table = [["image_name", *classes]]
        table += [[n, *(int(c in r) for c in classes)] for n, r in zip(names, rows, strict=True)]
    else:
        join = json.dumps if kind == "list" else kind.join
        table = [["image_name", "tags"]]
        table += [[n, join(sorted(r))] for n, r in zip(names, rows, strict=True)]
    write(tmp_path, table, ())
    assert found(read_labels(tmp_path, data_config(**options))) == dict(
        zip(names, rows, strict=True)
    )


@pytest.mark.parametrize("written", ["", ".jpg", ".PNG"])
@pytest.mark.parametrize(
    "ending", [".jpg", ".JPG", ".jpeg", ".png", ".TIF", ".tiff", ".webp", ".bmp", ".gif"]
)
def test_chips_are_found_whatever_their_ending(tmp_path, ending, written):
    rows = cells("|".join, name=lambda n: n + written)
    root = write(tmp_path / "root", rows, ending=ending)
    data = dataset.load(root, tmp_path / "cache", data=data_config(label_delimiter="|"))
    assert found(data.labels) == TRUTH
    means = data.chips[np.arange(4)].mean((1, 2, 3))
    assert means == pytest.approx([0, 50, 100, 150], abs=3)


def test_names_can_hold_folders(tmp_path):
    chips = {f"tiles/{n}": tags for n, tags in TRUTH.items()}
    rows = [["image_name", "tags"], *([f"{n}.png", "|".join(sorted(t))] for n, t in chips.items())]
    (tmp_path / "train-jpg" / "tiles").mkdir(parents=True)
    root = write(tmp_path, rows, chips=chips)
    data = dataset.load(root, tmp_path / "cache", data=data_config(label_delimiter="|"))
    assert found(data.labels) == chips
    assert data.chips[np.arange(4)].mean((1, 2, 3)).tolist() == [0, 50, 100, 150]


def test_composed_and_decomposed_names_match(tmp_path):
    forms = [unicodedata.normalize(form, "é0") for form in ("NFC", "NFD")]
    for written, on_disk in (forms, forms[::-1]):
        root = write(tmp_path / str(len(written)), [["image_name", "tags"], [written, "a"]], ())
        Image.new("RGB", (8, 8)).save(root / "train-jpg" / f"{on_disk}.png")
        assert dataset.load(root, tmp_path / "cache").chips.shape == (1, 8, 8, 3)


def test_chips_that_are_missing_or_double_are_refused_by_name(tmp_path):
    root = write(tmp_path / "root", cells(" ".join))
    folder = root / "train-jpg"
    (folder / "chip1.png").unlink()
    (folder / "chip1.png").symlink_to("nowhere.png")
    (folder / "chip2.png").unlink()
    with pytest.raises(BadInput, match=r"2 rows .*: chip1\.png \(a link to nothing\), chip2"):
        dataset.load(root, tmp_path / "cache")
    write(root, cells(" ".join), ending=".PNG")
    (folder / "chip1.png").unlink()
    with pytest.raises(BadInput, match=r"2 chips have several files: chip0\.PNG and chip0\.png"):
        dataset.load(root, tmp_path / "cache")


def test_two_names_of_one_chip_are_refused(tmp_path):
    root = write(tmp_path / "root", [*cells(" ".join), ["chip0.png", "clear"]])
    with pytest.raises(BadInput, match=r"1 chips are repeated: chip0\.png"):
        dataset.load(root, tmp_path / "cache")


def write_folders(root, labels, names, gray=0):
    """Write root/LABEL/NAME.png."""
    for label in labels:
        (root / label).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (8, 8), (gray,) * 3).save(root / label / f"{name}.png")


@pytest.mark.parametrize("chip_folder", [".", "train-jpg", "deep/chips"])
def test_a_folder_per_label(tmp_path, chip_folder):
    write_folders(tmp_path / "root" / chip_folder, ["dry land"], "01", 0)
    write_folders(tmp_path / "root" / chip_folder, ["sea"], "01", 200)
    (tmp_path / "root" / chip_folder / "sea" / "._0.png").write_bytes(b"macOS")
    options = data_config(label_file="", chip_folder=chip_folder)
    data = dataset.load(tmp_path / "root", tmp_path / "cache", data=options)
    prefix = "" if chip_folder == "." else f"{chip_folder}/"
    assert found(data.labels) == {
        f"{prefix}{label}/{name}": {label} for label in ("dry land", "sea") for name in "01"
    }
    assert data.chips[np.arange(4)].mean((1, 2, 3)).tolist() == [0, 0, 200, 200]


REFUSED = {
    "no such column": (cells(" ".join, ("a", "b")), {}, "no column image_name and tags"),
    "other delimiter": (
        [["image_name;tags"], ["chip0;a"]], {}, "set config.data.delimiter=';'",
    ),
    "not one-hot": ([["image_name", "a"], ["c", "2"]], {"label_format": "one_hot"}, "'2', not 0"),
    "not a list": (cells(" ".join), {"label_format": "list"}, "'clear' is not a list"),
    "column twice": ([["image_name", "tags", "tags"], ["c", "a", "b"]], {}, "column tags twice"),
    "role": (
        [["image_name", "tags", "s"], ["c", "a", "maybe"]], {"valid_column": "s"}, "holds 'maybe'",
    ),
    "no folders": (cells(" ".join), {"label_file": ""}, "no folder of images in it"),
    "no folder": (cells(" ".join), {"label_file": "", "chip_folder": "x"}, "x: cannot list it"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path, case):
    rows, options, message = REFUSED[case]
    write(tmp_path, rows)
    with pytest.raises(BadInput) as caught:
        read_labels(tmp_path, data_config(**options))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"delimiter": ""}, {"delimiter": ";;"}, {"folds": 1}, {"folds": 3, "fold": 3}, {"fold": 1},
        {"folds": 3, "valid_file": "x"}, {"group_column": "a", "group_pattern": "b"},
        {"label_file": "", "group_column": "a"}, {"valid_folder": "valid"}, {"group_pattern": "("},
    ],
)  # fmt: skip
def test_options_in_conflict_are_refused(options):
    with pytest.raises(BadInput, match=r"config\.data\."):
        data_config(**options)


def test_a_build_changes_with_what_was_read(tmp_path, capsys):
    root = write(tmp_path / "root", cells("|".join))
    for options in ({}, {"label_delimiter": "|"}, {"label_delimiter": "|"}):
        dataset.load(root, tmp_path / "cache", data=data_config(**options))
    assert capsys.readouterr().err.count("building") == 2
