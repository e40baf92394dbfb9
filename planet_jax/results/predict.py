"""Tags for every chip of a folder."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jaxtyping import Bool, Float
from ml_collections import ConfigDict
from numpy import ndarray

from planet_jax.results import decisions_file, inference
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import atomic_file
from planet_jax.score import metrics
from planet_jax.train.stage import Stage

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
TEST, ADDITIONAL = "test-jpg", "test-jpg-additional"


def chips(config: ConfigDict) -> list[Path]:
    """The images to predict: of predict.folder, or the competition's test chips.

    Raises:
      BadInput: the folder is not there or has none.
    """
    root, additional = Path(config.data.root), Path(config.data.root) / ADDITIONAL
    files = image_files(Path(config.predict.folder or root / TEST))
    if config.predict.submission and not config.predict.folder and additional.is_dir():
        names = {file.stem for file in files}
        files += [file for file in image_files(additional) if file.stem not in names]
    return files


def image_files(folder: Path) -> list[Path]:
    """The images in `folder`, by name.

    Raises:
      BadInput: the folder is not there or has none.
    """
    if not folder.is_dir():
        raise BadInput(f"config.predict.folder = {folder}: no such folder")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise BadInput(f"config.predict.folder = {folder}: no images there")
    return files


def predict(config: ConfigDict, stages: Sequence[Stage], files: Sequence[Path]) -> pd.DataFrame:
    """Writes predictions.csv: tags and probabilities of `files`, from the average of `stages`.

    Raises:
      BadInput: a file that cannot be decoded; a decision that was not fitted, or to other
        probabilities.
    """
    decide, classes = decisions_file.decision(config, stages), stages[0].data.labels.classes
    logits = inference.logits(stages, inference.files_source(files), len(files), "predicting")
    probabilities = metrics.sigmoid(logits)
    found = table(
        [file.stem for file in files], classes, decide.calibrated(probabilities),
        decide(probabilities),
    )  # fmt: skip
    write(Path(config.workdir) / "predictions.csv", found)
    return found


def table(
    names: Sequence[str],
    classes: Sequence[str],
    probabilities: Float[ndarray, "n classes"],
    predicted: Bool[ndarray, "n classes"],
) -> pd.DataFrame:
    """`image_name,tags`, then a column of probability for each class."""
    head = pd.DataFrame({"image_name": list(names), "tags": joined_tags(predicted, classes)})
    return pd.concat([head, pd.DataFrame(probabilities, columns=list(classes))], axis=1)


def joined_tags(chosen: Bool[ndarray, "n classes"], classes: Sequence[str]) -> list[str]:
    """Each chip's labels, apart by spaces."""
    return [
        " ".join(name for name, is_chosen in zip(classes, row, strict=True) if is_chosen)
        for row in chosen
    ]


def write(path: Path, table: pd.DataFrame) -> None:
    """Writes the table as CSV, eight digits a number."""
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.8g")
