"""Draw the sample data set: chips and labels in the competition's own layout."""

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import Image

from planet_jax.data.labels import CSV
from planet_jax.data.painting import paint_chip
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.progress import progress

FOLDERS = "train-jpg", "test-jpg"

# Weather tags and their shares; a chip has exactly one weather tag.
WEATHER = {"clear": 0.70, "partly_cloudy": 0.18, "haze": 0.067, "cloudy": 0.053}
# The other tags, in the order of drawing and painting. Each has a probability, which may be
# higher on chips that already have certain tags. Common tags have about their real share. Tags
# rarer than 1 in 50 (down to 1 in 400) get a higher share, so that a few hundred chips hold several
# of each.
TAGS: dict[str, tuple[float, dict[str, float]]] = {
    "primary": (0.97, {}),
    "blooming": (0.0, {"primary": 0.03}),
    "water": (0.17, {}),
    "blow_down": (0.0, {"primary": 0.03}),
    "selective_logging": (0.0, {"primary": 0.03}),
    "agriculture": (0.31, {}),
    "cultivation": (0.04, {"agriculture": 0.26}),
    "slash_burn": (0.015, {"agriculture": 0.04, "cultivation": 0.12}),
    "bare_ground": (0.025, {"water": 0.04}),
    "road": (0.07, {"agriculture": 0.47, "selective_logging": 0.4, "bare_ground": 0.35}),
    "artisinal_mine": (0.005, {"water": 0.15}),
    "conventional_mine": (0.02, {"road": 0.06}),
    "habitation": (0.01, {"agriculture": 0.05, "road": 0.35}),
}


def draw_tags(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw one chip's sorted tags: one weather tag, and others unless that tag is `cloudy`."""
    weather = str(rng.choice(list(WEATHER), p=list(WEATHER.values())))
    tags = {weather}
    for tag, (probability, beside) in TAGS.items() if weather != "cloudy" else ():
        if rng.random() < max(probability, *(beside.get(other, 0) for other in tags)):
            tags.add(tag)
    return tuple(sorted(tags))


def draw_chip(rng: np.random.Generator, tags: tuple[str, ...]) -> UInt8[np.ndarray, "256 256 3"]:
    """Draw a chip that shows these tags and no other."""
    return paint_chip(rng, [tag for tag in (*TAGS, *WEATHER) if tag in tags])


def encode(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode a chip like the competition's JPEGs: CMYK, with K zero and no Adobe marker."""
    ink = np.concatenate([255 - rgb, np.zeros_like(rgb[..., :1])], axis=-1)
    jpeg = io.BytesIO()
    Image.fromarray(ink, "CMYK").save(jpeg, "JPEG")
    before, _, after = jpeg.getvalue().partition(b"\xff\xee\x00\x0eAdobe")  # Pillow's marker
    return before + after[7:]


def draw_sample(root: Path, chips: int, test_chips: int, seed: int) -> None:
    """Write `train_v2.csv`, `train-jpg/train_0.jpg` ... and `test-jpg/test_0.jpg` ... to `root`.

    Chip i of a split depends only on (seed, split, i), so a larger sample contains the smaller one.
    The label file is written last: where it exists, the sample is complete.

    Raises:
      BadInput: `root` already has a label file or chips; nothing is changed.
    """
    draft = root / ".drawing"
    _clear_draft(root, draft)
    for name in (CSV, *FOLDERS):
        if (root / name).is_file() or any((root / name).glob("*")):
            raise BadInput(
                f"{root / name} exists already; set config.data.root to a new folder for the sample"
            )
    rows = []
    with progress("drawing chips", chips + test_chips, "chips") as advance:
        for split, (folder, count) in enumerate(zip(FOLDERS, (chips, test_chips), strict=True)):
            (draft / folder).mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([seed, split, i])
                tags, name = draw_tags(rng), f"{folder.removesuffix('-jpg')}_{i}"
                (draft / folder / f"{name}.jpg").write_bytes(encode(draw_chip(rng, tags)))
                rows.append((name, " ".join(tags)))
                advance()
    labels = pd.DataFrame(rows[:chips], columns=["image_name", "tags"])
    labels.to_csv(draft / CSV, index=False)
    for name in (*FOLDERS, CSV):
        (draft / name).rename(root / name)
    draft.rmdir()


def _clear_draft(root: Path, draft: Path) -> None:
    """Remove only the files that an interrupted run left."""
    if (draft / CSV).exists():  # stopped between the renames: folders not in the draft were moved
        for folder in FOLDERS:
            if not (draft / folder).exists():
                shutil.rmtree(root / folder, ignore_errors=True)
        (draft / CSV).unlink()
    shutil.rmtree(draft, ignore_errors=True)
