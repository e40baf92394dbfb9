"""List the images to predict, and make the table of their tags and probabilities."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jaxtyping import Bool, Float
from ml_collections import ConfigDict
from numpy import ndarray

from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import atomic_path

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
TEST, ADDITIONAL = "test-jpg", "test-jpg-additional"


def image_files(config: ConfigDict) -> list[Path]:
    """List the images of predict.folder, or the competition's test chips, sorted by name.

    A submission without predict.folder also takes the chips of test-jpg-additional.

    Raises:
      BadInput: the folder does not exist or has no images.
    """
    root, additional = Path(config.data.root), Path(config.data.root) / ADDITIONAL
    files = _images_in(Path(config.predict.folder or root / TEST))
    if config.predict.submission and not config.predict.folder and additional.is_dir():
        names = {file.stem for file in files}
        files += [file for file in _images_in(additional) if file.stem not in names]
    return files


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadInput(f"config.predict.folder = {folder}: no such folder")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise BadInput(f"config.predict.folder = {folder}: no images in it")
    return files


def table(
    names: Sequence[str],
    classes: Sequence[str],
    probabilities: Float[ndarray, "n classes"],
    predicted: Bool[ndarray, "n classes"],
) -> pd.DataFrame:
    """Return the table of predictions.csv: `image_name,tags`, and a column for each class."""
    tags = pd.DataFrame({"image_name": list(names), "tags": joined_tags(predicted, classes)})
    return pd.concat([tags, pd.DataFrame(probabilities, columns=list(classes))], axis=1)


def joined_tags(predicted: Bool[ndarray, "n classes"], classes: Sequence[str]) -> list[str]:
    """Join each chip's labels with spaces."""
    return [
        " ".join(label for label, chosen in zip(classes, row, strict=True) if chosen)
        for row in predicted
    ]


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, with eight significant digits."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.8g")
