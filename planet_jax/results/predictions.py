"""Tags for every chip of a folder."""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from planet_jax.errors import BadInput
from planet_jax.files import replacing

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}


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


def write(
    path: Path,
    names: list[str],
    classes: tuple[str, ...],
    probabilities: Float[np.ndarray, "n classes"],
    threshold: float,
) -> None:
    """Writes `image_name,tags`, then a column of probability for each class."""
    tags = [
        " ".join(name for name, p in zip(classes, row, strict=True) if p > threshold)
        for row in probabilities
    ]
    table = pd.DataFrame({"image_name": names, "tags": tags})
    table[list(classes)] = probabilities
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.8g")
