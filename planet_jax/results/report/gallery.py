"""Make the report's galleries: chips with labels and probabilities, filtered by class."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from PIL import Image

from planet_jax.data.chip_files import ChipFinder
from planet_jax.results.predict import tag_delimiter
from planet_jax.results.report import html
from planet_jax.runtime.errors import BadInput

SIDE = 128  # pixels of a chip
FIRST_CHIPS = 12  # shown in a gallery while no class is chosen; script.js has the same number
CHIPS_PER_CLASS = 4  # of each class in a gallery, up to MAX_CHIPS in all
MAX_CHIPS = 80  # in a gallery: the page stays under 5 MB even if the chips are noise
TEXT_COLUMNS = {"image_name": str, "tags": str, "predicted": str}  # of chips.csv


def galleries(table: pd.DataFrame, classes: Sequence[str], folder: Path) -> str:
    """Return the HTML of two galleries: highest loss first, and lowest entropy first.

    `table` is chips.csv: its last columns are the probabilities of `classes`. The chips are in
    `folder`. Entropy is low if all probabilities of a chip are near 0 or 1, right or wrong.
    """
    finder = ChipFinder(folder)
    p = table.iloc[:, -len(classes) :].to_numpy(float).clip(1e-12, 1 - 1e-12)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(1)
    options = [f'<option value="{escape(label)}">{escape(label)}</option>' for label in classes]
    choice = (
        '<p><label for="class">Chips with this true or predicted label: </label>'
        f'<select id="class"><option value="">any label</option>{"".join(options)}</select></p>'
    )
    legend = html.paragraph(
        "✓: true and predicted. Missed: true, not predicted. Wrong: predicted, not true."
    )
    parts = [choice, legend]
    for heading, order in (
        ("Highest loss", np.argsort(-table["loss"].to_numpy(), kind="stable")),
        ("Most certain", np.argsort(entropy, kind="stable")),
    ):
        rows = select_chips(table.iloc[order], classes)
        cards = [card(row, p[i], classes, finder) for i, row in rows.iterrows()]
        parts.append(
            f'<h3>{heading}</h3><p aria-live="polite"></p><ul class="chips">{"".join(cards)}</ul>'
        )
    return "".join(parts)


def select_chips(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return the first rows, and the first rows of every class, in the table's order."""
    keep = np.zeros(len(table), bool)
    keep[:FIRST_CHIPS] = True
    delimiter = tag_delimiter(classes)
    tags = [
        {*true.split(delimiter), *predicted.split(delimiter)}
        for true, predicted in zip(table["tags"], table["predicted"], strict=True)
    ]
    for label in classes:
        rows = [i for i, labels in enumerate(tags) if label in labels]
        keep[rows[:CHIPS_PER_CLASS]] = True
    return table[keep][:MAX_CHIPS]


def card(
    row: pd.Series, p: Float[np.ndarray, " classes"], classes: Sequence[str], finder: ChipFinder
) -> str:
    """Return the HTML of one chip: picture, loss, F2, and its true and predicted labels."""
    delimiter = tag_delimiter(classes)
    true, predicted = (
        [label for label in row[column].split(delimiter) if label]
        for column in ("tags", "predicted")
    )
    labels = []
    for label, probability in zip(classes, p, strict=True):
        if label in true or label in predicted:
            kind = "wrong" if label not in true else "hit" if label in predicted else "missed"
            sign = "✓" if kind == "hit" else kind
            labels.append(f'<li class="{kind}">{sign} {escape(label)} {probability:.2f}</li>')
    alternative = f"chip {row['image_name']}: {', '.join(true) or 'no label'}"
    either = "\n".join(dict.fromkeys(true + predicted))  # script.js splits at the newline
    return (
        f'<li data-labels="{escape(either)}">'
        f"{picture(finder, row['image_name'], alternative)}"
        f"<b>{escape(row['image_name'])}</b> loss {row['loss']:.3f}, F2 {row['fbeta']:.2f}"
        f'<ul class="tags">{"".join(labels) or "<li>no label</li>"}</ul></li>'
    )


def picture(finder: ChipFinder, name: str, alternative: str) -> str:
    """Return the HTML of a chip's picture, or a note that its file cannot be read."""
    try:
        with Image.open(finder.find(name)[0]) as chip:
            chip.draft("RGB", (SIDE, SIDE))
            small = chip.convert("RGB")
    except (OSError, IndexError, BadInput):  # IndexError: there is no such file
        return html.note("This file cannot be read.")
    small.thumbnail((SIDE, SIDE))
    return html.image(small, alternative)
