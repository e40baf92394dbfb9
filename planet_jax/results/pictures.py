"""The pictures of a run folder, drawn from its tables and chips."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from planet_jax.files import replacing

SUGGESTIONS = ("Min numerical gradient", "Min loss divided by 10")  # as fastai prints them
GRID: dict[str, Any] = {"alpha": 0.3, "linewidth": 0.5}


def save(figure: Figure, path: Path) -> None:
    """Writes `figure` as PNG."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")


def chip_grid(
    chips: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str], columns: int = 4
) -> Figure:
    """Chips in a grid, each under its labels."""
    rows = -(-len(chips) // columns)
    figure = Figure(figsize=(2.9 * columns, 3.2 * rows))
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, chip, caption in zip(axes, chips, captions, strict=False):
        axis.imshow(chip, interpolation="nearest")
        axis.set_title(_wrap(caption), fontsize=9)
    figure.tight_layout()
    return figure


def _wrap(caption: str, width: int = 30) -> str:
    lines = [""]
    for word in caption.split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def training_curves(run: Path) -> Figure:
    """Loss, learning rates and momentum at each step, and the scores of each epoch."""
    steps = pd.read_csv(run / "steps.csv")
    history = pd.read_csv(run / "history.csv")
    ends = (history["epoch"] + 1) * len(steps) / max(len(history), 1)
    figure = Figure(figsize=(13, 3.6))
    loss, rate, score = figure.subplots(1, 3)
    loss.plot(steps["step"], steps["loss"], color="0.8", label="training, each step")
    loss.plot(steps["step"], steps["smooth_loss"], label="training, smoothed")
    loss.plot(ends, history["valid_loss"], "o-", label="validation")
    _label(loss, "step", "binary cross-entropy")
    for group in range(3):
        rate.plot(steps["step"], steps[f"lr_group{group}"], label=f"lr, group {group}")
    rate.set_yscale("log")
    _label(rate, "step", "learning rate")
    momentum = rate.twinx()
    momentum.plot(steps["step"], steps["beta1"], "k:", label="beta1")
    momentum.set_ylabel("beta1 (dotted)")
    score.plot(history["epoch"], history["fbeta"], "o-", label="F2")
    score.plot(history["epoch"], history["accuracy_thresh"], "o-", label="accuracy_thresh")
    score.xaxis.get_major_locator().set_params(integer=True)
    _label(score, "epoch", "score on validation chips")
    figure.tight_layout()
    return figure


def lr_range_curve(
    lrs: Float[np.ndarray, " n"], losses: Float[np.ndarray, " n"], suggestions: Sequence[float]
) -> Figure:
    """The smoothed loss over the learning rate, and where both suggestions stand."""
    figure = Figure(figsize=(6.5, 4))
    axis = figure.subplots()
    axis.plot(lrs, losses)
    for lr, name, color in zip(suggestions, SUGGESTIONS, ("C1", "C2"), strict=False):
        axis.axvline(lr, color=color, linestyle="--", label=f"{name}: {lr:.2e}")
    axis.set_xscale("log")
    axis.set_ylim(top=min(float(np.max(losses)), 3 * float(np.min(losses))) * 1.02)
    _label(axis, "learning rate", "training loss, smoothed")
    return figure


def _label(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(**GRID)
    axis.legend(fontsize=8)
