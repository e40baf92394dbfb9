"""Draw the pictures of a run folder from its tables and chips."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from planet_jax.runtime.files import atomic_path

SUGGESTIONS = ("Min numerical gradient", "Min loss divided by 10")  # as fastai prints them
GRID: dict[str, Any] = {"alpha": 0.3, "linewidth": 0.5}
STEPS, HISTORY = "steps.csv", "history.csv"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")


def chip_grid(
    chips: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str], columns: int = 4
) -> Figure:
    """Draw chips in a grid, each with its labels above it."""
    rows = -(-len(chips) // columns)
    figure = Figure(figsize=(2.9 * columns, 3.2 * rows))
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, chip, caption in zip(axes, chips, captions, strict=False):
        axis.imshow(chip, interpolation="nearest")
        axis.set_title(plain(_wrap(caption)), fontsize=9)
    figure.tight_layout()
    return figure


def plain(text: str) -> str:
    """Escape `$`, so that matplotlib does not parse the text as mathematics."""
    return text.replace("$", r"\$")


def _wrap(caption: str, width: int = 30) -> str:
    lines = [""]
    for word in caption.split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def training_curves(*runs: Path) -> Figure:
    """Draw loss, rates and momentum per step, and scores per epoch, of chained runs."""
    figure, table = Figure(figsize=(13, 3.6)), along(runs)
    for draw, axis in zip((loss, rates, scores), figure.subplots(1, 3), strict=True):
        draw(axis, *table)
    figure.tight_layout()
    return figure


def along(runs: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Join steps.csv and history.csv of chained runs; `step` and `epoch` continue across runs.

    The steps get `stage`, the run's index in the chain, and `stage_start`, its first step. The
    history gets `end`, the step at which an epoch ended. Rows are not counted, because a resumed
    run may have no rows for its first steps and epochs.
    """
    tables: tuple[list[pd.DataFrame], list[pd.DataFrame]] = [], []
    start = epoch_offset = 0
    for stage, run in enumerate(runs):
        # Without a dtype, a table with no rows has object columns.
        steps, history = (pd.read_csv(run / name, dtype=float) for name in (STEPS, HISTORY))
        step_count, epoch_count = count(steps["step"]), count(history["epoch"])
        end = start + (history["epoch"] + 1) * step_count / max(epoch_count, 1)
        tables[0].append(steps.assign(step=steps["step"] + start, stage=stage, stage_start=start))
        tables[1].append(history.assign(epoch=history["epoch"] + epoch_offset, end=end))
        start, epoch_offset = start + step_count, epoch_offset + epoch_count
    return pd.concat(tables[0], ignore_index=True), pd.concat(tables[1], ignore_index=True)


def count(column: pd.Series) -> int:
    """Return how many steps or epochs a run has done, from a column that counts them from 0."""
    return int(column.max()) + 1 if len(column) else 0


def loss(axis: Axes, steps: pd.DataFrame, history: pd.DataFrame) -> None:
    """Draw the training loss of each step and the validation loss of each epoch."""
    axis.plot(steps["step"], steps["loss"], color="C0", alpha=0.25, label="training, each step")
    label = "training, smoothed"
    for _, stage in steps.groupby("stage"):
        axis.plot(stage["step"], stage["smooth_loss"], color="C0", label=label)
        label = ""
    label = "validation, cross-entropy"  # the training loss may have more (config section loss)
    axis.plot(history["end"], history["valid_loss"], "o-", color="C1", label=label)
    _label(axis, "step", "loss", steps)


def rates(axis: Axes, steps: pd.DataFrame, history: pd.DataFrame) -> None:
    """Draw the learning rate of each group, and Adam's beta1, at each step."""
    for group in range(3):
        axis.plot(steps["step"], steps[f"lr_group{group}"], label=f"lr, group {group}")
    axis.set_yscale("log")
    _label(axis, "step", "learning rate", steps)
    momentum = axis.twinx()
    momentum.plot(steps["step"], steps["beta1"], "k:", label="beta1")
    momentum.set_ylabel("beta1 (dotted)")


def scores(axis: Axes, steps: pd.DataFrame, history: pd.DataFrame) -> None:
    """Draw F2 and accuracy_thresh of each epoch."""
    axis.plot(history["epoch"], history["fbeta"], "o-", label="F2")
    if "ema_fbeta" in history:
        axis.plot(history["epoch"], history["ema_fbeta"], "o-", label="F2, moving averages")
    axis.plot(history["epoch"], history["accuracy_thresh"], "o-", label="accuracy_thresh")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label(axis, "epoch", "score on validation chips")


def speed(axis: Axes, steps: pd.DataFrame, history: pd.DataFrame) -> None:
    """Draw the chips per second of each step."""
    axis.plot(steps["step"], steps["images_per_second"], ".", markersize=3, label="each step")
    axis.set_ylim(bottom=0)
    _label(axis, "step", "chips per second", steps)


def input_wait(axis: Axes, steps: pd.DataFrame, history: pd.DataFrame) -> None:
    """Draw the share of each step that waits for data."""
    axis.plot(steps["step"], 100 * steps["input_wait"], ".", markersize=3, label="each step")
    axis.set_ylim(-2, 102)
    _label(axis, "step", "% of the step waiting for chips", steps)


def lr_range_curve(
    lrs: Float[np.ndarray, " n"], losses: Float[np.ndarray, " n"], suggestions: Sequence[float]
) -> Figure:
    """Draw the smoothed loss over the learning rate, and the suggested rates."""
    figure = Figure(figsize=(6.5, 4))
    axis = figure.subplots()
    axis.plot(lrs, losses)
    for lr, name, color in zip(suggestions, SUGGESTIONS, ("C1", "C2"), strict=False):
        axis.axvline(lr, color=color, linestyle="--", label=f"{name}: {lr:.2e}")
    axis.set_xscale("log")
    axis.set_ylim(top=min(float(np.max(losses)), 3 * float(np.min(losses))) * 1.02)
    _label(axis, "learning rate", "training loss, smoothed")
    return figure


def _label(axis: Axes, x: str, y: str, steps: pd.DataFrame | None = None) -> None:
    """Set labels, grid and legend; with `steps`, draw a line at the start of each later stage."""
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(**GRID)
    if steps is not None:
        for start in steps["stage_start"].unique()[1:]:
            axis.axvline(start, color="C7", linewidth=1)
    axis.legend(fontsize=8)
