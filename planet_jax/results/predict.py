"""List the images to predict, and make the table of their tags and probabilities."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from ml_collections import ConfigDict
from numpy import ndarray

from planet_jax.data.chip_files import IMAGE_ENDINGS, is_image
from planet_jax.results import submission
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.files import atomic_path
from planet_jax.runtime.progress import notify
from planet_jax.storage.bucket import local_path
from planet_jax.storage.files import fetch_files

TEST, ADDITIONAL = "test-jpg", "test-jpg-additional"
SKIPPED = "skipped.csv"


def image_files(config: ConfigDict) -> dict[str, Path]:
    """List the images of predict.folder, or the competition's test chips, by unique name.

    A submission without predict.folder also takes the chips of test-jpg-additional.

    Raises:
      BadInput: the folder does not exist or has no images.
    """
    fetch_files(config.predict.folder, again=True)
    root, additional = local_path(config.data.root), local_path(config.data.root) / ADDITIONAL
    subfolders = config.predict.subfolders
    images = _images_in(local_path(config.predict.folder or str(root / TEST)), subfolders)
    if config.predict.submission and not config.predict.folder and additional.is_dir():
        images = _images_in(additional, subfolders) | images
    return dict(sorted(images.items(), key=lambda item: item[1]))


def has_images(config: ConfigDict) -> bool:
    """Return whether there is something to predict."""
    try:
        return bool(image_files(config))
    except BadInput:
        return False


def _images_in(folder: Path, subfolders: bool) -> dict[str, Path]:
    if folder.is_file():
        return {folder.stem: folder}
    if not folder.is_dir():
        raise BadInput(f"config.predict.folder = {folder}: no such file or folder")
    found = folder.rglob("*") if subfolders else folder.iterdir()
    visible = sorted(f for f in found if not f.name.startswith("."))  # macOS adds ._a.jpg to a.jpg
    # A link to nothing is named in skipped.csv; reading a pipe would not end.
    files = [f for f in visible if f.is_file() or (f.is_symlink() and not f.is_dir())]
    images = [file for file in files if is_image(file.name)]
    if others := [file.name for file in files if not is_image(file.name)]:
        notify(f"{folder}: {len(others)} files are not {_endings()}: {first_few(others)}")
    if not subfolders and (inner := [file.name for file in visible if file.is_dir()]):
        notify(f"{folder}: left out {first_few(inner)}; predict.subfolders=True reads sub-folders")
    if not images:
        raise BadInput(f"config.predict.folder = {folder}: no images in it ({_endings()})")
    return _by_name(folder, images)


def _endings() -> str:
    return ", ".join(sorted(IMAGE_ENDINGS))


def _by_name(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Map paths in `folder` to files; drop a path's ending if the rest is unique."""
    paths = [file.relative_to(folder) for file in files]
    stems = [path.with_suffix("").as_posix() for path in paths]
    counts = collections.Counter(stems)
    names = [
        stem if counts[stem] == 1 else path.as_posix()
        for stem, path in zip(stems, paths, strict=True)
    ]
    if len(set(names)) < len(names):  # a.jpg, a.png and a.jpg.png
        names = [path.as_posix() for path in paths]
    return dict(zip(names, files, strict=True))


def table(
    names: Sequence[str],
    classes: Sequence[str],
    probabilities: Float[ndarray, "n classes"],
    predicted: Bool[ndarray, "n classes"],
) -> pd.DataFrame:
    """Return the table of predictions.csv: `image_name,tags`, and a column for each class."""
    tags = pd.DataFrame({"image_name": list(names), "tags": joined_tags(predicted, classes)})
    return pd.concat([tags, pd.DataFrame(probabilities, columns=list(classes))], axis=1)


def tag_delimiter(classes: Sequence[str]) -> str:
    """Return the separator of tags in a table: a space, or | if a label has several words."""
    return "|" if any(" " in label for label in classes) else " "


def joined_tags(predicted: Bool[ndarray, "n classes"], classes: Sequence[str]) -> list[str]:
    """Join each chip's labels with the `tag_delimiter`."""
    names, delimiter = np.array(classes, object), tag_delimiter(classes)
    return [delimiter.join(names[row]) for row in predicted]


def write(
    run: Path,
    table: pd.DataFrame,
    skipped: Mapping[str, str],
    order: Sequence[str],
    folder: Path,
) -> list[str]:
    """Write predictions.csv, skipped.csv and submission.csv; return a line for each.

    Args:
      table: as `table` returns it.
      skipped: the reason for each image of `folder` that has no prediction.
      order: the names of a submission, which is not written if one of its chips was skipped.
    """
    write_csv(run / "predictions.csv", table)
    lines = [f"{run / 'predictions.csv'}: {len(table)} chips of {folder}"]
    if order and not skipped.keys() & set(order):
        write_csv(run / "submission.csv", submission.rows(table, order))
        lines.append(f"{run / 'submission.csv'}: tags of {len(order)} chips, in submission order")
    (run / SKIPPED).unlink(missing_ok=True)
    if skipped:
        rows = pd.DataFrame(skipped.items(), columns=["image_name", "reason"])
        write_csv(run / SKIPPED, rows)
        lines.append(f"{run / SKIPPED}: {len(rows)} images cannot be read and are skipped")
    return lines


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, with eight significant digits.

    Float columns at the end are formatted row by row, because pandas takes ten times as long.
    """
    is_text = [kind.kind != "f" for kind in table.dtypes]
    first = max((i + 1 for i, text in enumerate(is_text) if text), default=1)  # first float column
    as_text = {"index": False, "float_format": "%.8g"}
    starts = table.iloc[:, :first].to_csv(header=False, lineterminator="\0", **as_text)
    ends, numbers = ",%.8g" * (table.shape[1] - first), table.iloc[:, first:].to_numpy(float)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(table.iloc[:0].to_csv(**as_text))
        for start, row in zip(starts.split("\0")[:-1], numbers.tolist(), strict=True):
            file.write(f"{start}{ends % tuple(row)}\n")
