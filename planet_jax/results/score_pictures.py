"""Draw the pictures of an evaluation from the content of metrics.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

from planet_jax.results.pictures import GRID, plain
from planet_jax.results.tables import rule_name

WIDTH = 4.6  # inches; text of 9 points stays readable on a phone
MAX_SWAP_LABELS = 25  # rows and columns of the map of swaps
Metrics = dict[str, Any]  # the content of metrics.json


def class_bars(metrics: Metrics, score: str = "fbeta") -> Figure:
    """Draw `score` and its 95% interval as one bar per class, the best class at the top."""
    classes = sorted(metrics["per_class"].items(), key=lambda item: item[1][score])
    values = [scores[score] for _, scores in classes]
    ends = [scores["intervals"][score] for _, scores in classes]
    figure = Figure(figsize=(WIDTH, 0.9 + 0.22 * len(classes)), layout="tight")
    axis = figure.subplots()
    axis.barh(range(len(classes)), values, xerr=_error_bars(values, ends), alpha=0.75, ecolor="C7")
    axis.set_yticks(range(len(classes)), [plain(label) for label, _ in classes], fontsize=9)
    axis.set_xlim(0, 1)
    axis.set_xlabel({"fbeta": "F2"}.get(score, score.replace("_", " ")))
    axis.grid(axis="x", **GRID)
    return figure


def decision_bars(metrics: Metrics) -> Figure:
    """Draw each decision rule's gain in F2 over one threshold, with its 95% interval."""
    rows = metrics["decisions"][:0:-1]
    gains = [row["gain"] for row in rows]
    errors = _error_bars(gains, [row["gain_interval"] for row in rows])
    figure = Figure(figsize=(WIDTH, 0.9 + 0.45 * len(rows)), layout="tight")
    axis = figure.subplots()
    axis.errorbar(gains, range(len(rows)), xerr=errors, fmt="o", capsize=3)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(
        range(len(rows)), [rule_name(row).replace(", ", ",\n") for row in rows], fontsize=8
    )
    axis.set_xlabel("gain in F2 over one threshold")
    axis.grid(axis="x", **GRID)
    return figure


def threshold_curve(metrics: Metrics) -> Figure:
    """Draw F2 over the threshold; mark the threshold in use and the best one on these chips."""
    curve = metrics["threshold_curve"]
    best = int(np.argmax(curve["fbeta"]))
    figure, axis = _axes("threshold", "F2")
    axis.plot(curve["thresholds"], curve["fbeta"])
    for name, marker, threshold, fbeta in (
        ("in use", "oC1", metrics["threshold"], metrics["fbeta"]),
        ("best here", "^C2", curve["thresholds"][best], curve["fbeta"][best]),
    ):
        axis.plot(threshold, fbeta, marker, label=f"{name}: {threshold:g}, F2 {fbeta:.4f}")
    axis.legend(fontsize=8)
    return figure


def reliability(metrics: Metrics) -> Figure:
    """Draw the share of true entries over the probability: the diagonal is perfect calibration."""
    figure, axis = _axes("probability", "share that is true")
    axis.plot([0, 1], [0, 1], "k:", linewidth=1)
    for (kind, values), marker in zip(metrics["reliability"].items(), "os", strict=False):
        x, y = ([bin[name] for bin in values["bins"]] for name in ("probability", "share"))
        error = values["calibration_error"]
        axis.plot(x, y, f"{marker}-", markersize=4, label=f"{kind}, calibration error {error:.4f}")
    axis.legend(fontsize=8)
    return figure


def swap_map(metrics: Metrics) -> Figure:
    """Draw how many chips have a false negative (row) and a false positive (column).

    Only the MAX_SWAP_LABELS labels with the most swaps are drawn.
    """
    swaps = metrics["co_occurrence"]["swaps"]
    counts: dict[str, int] = {}
    for swap in swaps:
        for label in (swap["missed"], swap["instead"]):
            counts[label] = counts.get(label, 0) + swap["chips"]
    labels = sorted(sorted(counts, key=lambda label: -counts[label])[:MAX_SWAP_LABELS])
    chips = np.zeros((len(labels), len(labels)))
    for swap in swaps:
        if swap["missed"] in labels and swap["instead"] in labels:
            chips[labels.index(swap["missed"]), labels.index(swap["instead"])] = swap["chips"]
    side = 1.4 + 0.2 * len(labels)
    figure = Figure(figsize=(max(side, WIDTH), max(side, WIDTH) * 0.9), layout="tight")
    axis = figure.subplots()
    # Colors start at transparent, so that the map is readable on a dark page too.
    colors = LinearSegmentedColormap.from_list("clear", [to_rgba("C3", 0), to_rgba("C3", 1)])
    grid = axis.pcolormesh(chips, cmap=colors, vmin=0)
    figure.colorbar(grid, ax=axis, label="chips", shrink=0.7)
    names = [plain(label) for label in labels]
    axis.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90, fontsize=8)
    axis.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("predicted, not true")
    axis.set_ylabel("true, not predicted")
    return figure


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    """Return empty axes with these labels."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="tight")
    axis = figure.subplots()
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(**GRID)
    return figure, axis


def _error_bars(values: Sequence[float], ends: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the distances of an interval's ends from its value, in matplotlib's form [2, n]."""
    low, high = np.array(ends, float).reshape(-1, 2).T
    return np.maximum([np.array(values) - low, high - np.array(values)], 0)
