"""The report's galleries: chips with their labels and probabilities, and a choice of one class."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from planet_jax.data.dataset import FOLDER
from planet_jax.results.report import html

SIDE = 128  # pixels of a chip
FIRST = 12  # of a gallery, whatever their class
OF_A_CLASS = 4  # at least, if there are as many
MOST = 80  # in one gallery: the page stays under 5 MB even with chips of noise
TEXT = {"image_name": str, "tags": str, "predicted": str}  # types in chips.csv


def galleries(table: pd.DataFrame, classes: Sequence[str], root: Path) -> str:
    """HTML of two galleries: by loss, the greatest first, and by certainty.

    `table` is chips.csv: its columns from the sixth on are the probabilities of `classes`. Certain
    is a chip of small entropy: all its probabilities are near 0 or 1, be they right or wrong.
    """
    p = table.iloc[:, -len(classes) :].to_numpy(float).clip(1e-12, 1 - 1e-12)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(1)
    options = [f'<option value="{escape(label)}">{escape(label)}</option>' for label in classes]
    choice = (
        '<p><label for="class">Chips whose true or predicted labels have </label>'
        f'<select id="class"><option value="">any label</option>{"".join(options)}</select></p>'
    )
    legend = html.paragraph(
        "✓: true and predicted. Missed: true, not predicted. Wrong: predicted, not true."
    )
    parts = [choice, legend]
    for heading, order in (
        ("The greatest loss", np.argsort(-table["loss"].to_numpy(), kind="stable")),
        ("The most certain", np.argsort(entropy, kind="stable")),
    ):
        rows = chosen(table.iloc[order], classes)
        cards = [card(row, p[i], classes, root) for i, row in rows.iterrows()]
        parts.append(
            f'<h3>{heading}</h3><p aria-live="polite"></p><ul class="chips">{"".join(cards)}</ul>'
        )
    return "".join(parts)


def chosen(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """The first rows, and the first of every class, in the table's order."""
    keep = np.zeros(len(table), bool)
    keep[:FIRST] = True
    sets = [set(row) for row in _labels(table)]
    for label in classes:
        keep[[i for i, labels in enumerate(sets) if label in labels][:OF_A_CLASS]] = True
    return table[keep][:MOST]


def _labels(table: pd.DataFrame) -> list[list[str]]:
    return [f"{a} {b}".split() for a, b in zip(table["tags"], table["predicted"], strict=True)]


def card(row: pd.Series, p: np.ndarray, classes: Sequence[str], root: Path) -> str:
    """One chip: its picture, loss and F2, and each label that is true or predicted."""
    true, predicted = row["tags"].split(), row["predicted"].split()
    labels = []
    for label, probability in zip(classes, p, strict=True):
        if label in true or label in predicted:
            kind = "wrong" if label not in true else "hit" if label in predicted else "missed"
            sign = "✓" if kind == "hit" else kind
            labels.append(f'<li class="{kind}">{sign} {escape(label)} {probability:.2f}</li>')
    either = " ".join(dict.fromkeys(true + predicted))
    return (
        f'<li data-labels="{escape(either)}">{_picture(root / FOLDER, row["image_name"], true)}'
        f"<b>{escape(row['image_name'])}</b> loss {row['loss']:.3f}, F2 {row['fbeta']:.2f}"
        f'<ul class="tags">{"".join(labels) or "<li>no label</li>"}</ul></li>'
    )


def _picture(folder: Path, name: str, true: Sequence[str]) -> str:
    try:
        with Image.open(folder / f"{name}.jpg") as chip:
            chip.draft("RGB", (SIDE, SIDE))
            picture = chip.convert("RGB")
    except OSError:
        return html.paragraph("its file cannot be read", "lacks")
    picture.thumbnail((SIDE, SIDE))
    return html.image(picture, f"chip {name}: {' '.join(true) or 'no label'}")
