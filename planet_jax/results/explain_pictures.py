"""Draw maps of the last feature map's cells, and a plane of embedded chips."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure

from planet_jax.results.pictures import plain

COLORS = matplotlib.colormaps["RdBu_r"]
CHIPS_PER_ROW = 2
MAX_LABELS = 20  # in the plane: the most frequent; matplotlib's tab20 has as many colors
MAX_NAME = 24  # characters of a name in a title
# A chip, its two maps, and the rest of the two logits
Explained = tuple[UInt8[np.ndarray, "s s 3"], Float[np.ndarray, "2 h w"], Float[np.ndarray, "2"]]


def maps(
    explained: Sequence[Explained],
    labels: Int[np.ndarray, "n 2"],
    classes: Sequence[str],
    probabilities: Float[np.ndarray, "n classes"],
    names: Sequence[str],
) -> Figure:
    """Draw chips, each with the maps of a wrong and of a missed label; a label of -1 is none.

    Red cells raise the label's logit and blue cells lower it. The largest cell of each map has the
    full color, and the title has its value.
    """
    rows = -(-len(explained) // CHIPS_PER_ROW)
    columns = 3 * CHIPS_PER_ROW
    figure = Figure(figsize=(2.2 * columns, 2.65 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for i, (chip, cells, rest) in enumerate(explained):
        own = axes.reshape(-1, 3)[i]
        own[0].imshow(chip, interpolation="nearest")
        own[0].set_title(f"{i + 1}: {plain(_short(names[i]))}\n", fontsize=8)
        for k, kind in enumerate(("wrong", "missed")):
            if (label := labels[i, k]) < 0:
                own[k + 1].text(0.5, 0.5, f"no {kind} label", ha="center", fontsize=8, color="C7")
                continue
            largest = _draw_map(own[k + 1], chip, cells[k])
            own[k + 1].set_title(
                f"{kind}: {plain(_short(classes[label]))} {probabilities[i, label]:.2f}\n"
                f"map {cells[k].sum():+.1f}, rest {rest[k]:+.1f}, largest cell {largest:.2g}",
                fontsize=8,
            )
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), COLORS), ax=axes, location="bottom", shrink=0.3,
        aspect=40, pad=0.01, ticks=[-1, 0, 1],
    )  # fmt: skip
    bar.ax.set_xticklabels(["against the label", "0", "for the label"], fontsize=8)
    return figure


def _draw_map(
    axis: Axes, chip: UInt8[np.ndarray, "s s 3"], cells: Float[np.ndarray, "h w"]
) -> float:
    """Draw a map over the chip in gray; return the largest absolute cell."""
    largest = max(float(np.abs(cells).max()), 1e-12)
    extent = (0, chip.shape[1], chip.shape[0], 0)
    axis.imshow(chip.mean(-1), cmap="gray", vmin=0, vmax=255, extent=extent)
    strength = cells / largest
    axis.imshow(
        strength, cmap=COLORS, vmin=-1, vmax=1, alpha=0.75 * np.abs(strength), extent=extent,
        interpolation="bilinear",
    )  # fmt: skip
    return largest


def embeddings(
    points: Float[np.ndarray, "n 2"],
    share: Float[np.ndarray, "2"],
    targets: UInt8[np.ndarray, "n classes"],
    classes: Sequence[str],
    worst: Int[np.ndarray, " m"],
) -> Figure:
    """Draw chips in the plane of two principal axes, with the names of the frequent labels.

    A chip has the color of its rarest label among the MAX_LABELS most frequent. A line joins each
    name to the median of the label's chips. The chips `worst` are numbered as in maps.png.
    """
    counts = (targets > 0).sum(0)
    shown = [i for i in np.argsort(-counts, kind="stable")[:MAX_LABELS] if counts[i]]
    palette = matplotlib.colormaps["tab20"](np.arange(MAX_LABELS))
    colors = np.full((len(points), 4), to_rgba("0.75"))
    for color, label in zip(palette, shown, strict=False):  # the rarest last
        colors[targets[:, label] > 0] = color
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axis = figure.subplots()
    axis.scatter(points[:, 0], points[:, 1], s=16, c=colors, alpha=0.8, linewidths=0)
    for number, chip in enumerate(worst, 1):
        axis.annotate(
            str(number), points[chip], fontsize=7, ha="center", va="center",
            bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "black", "lw": 0.6},
        )  # fmt: skip
    medians = np.array([np.median(points[targets[:, i] > 0], axis=0) for i in shown])
    _name_medians(axis, medians.reshape(-1, 2), [classes[i] for i in shown], palette)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(
        f"across: principal axis 1, {share[0]:.0%} of the variance; up: axis 2, {share[1]:.0%}"
    )
    return figure


def _name_medians(
    axis: Axes,
    medians: Float[np.ndarray, "n 2"],
    names: Sequence[str],
    palette: Float[np.ndarray, "colors 4"],
) -> None:
    """Mark medians; write their names in a column on the nearer side, where none overlap."""
    x, y = medians.T
    is_left = x < np.mean(axis.get_xlim())
    for on_side, edge, align, end in ((is_left, -0.04, "right", 1), (~is_left, 1.04, "left", 0)):
        order = np.argsort(y, kind="stable")
        side = order[on_side[order]]
        for place, i in enumerate(side):
            line = {"arrowstyle": "-", "color": palette[i], "relpos": (end, 0.5), "shrinkA": 2}
            axis.annotate(
                plain(_short(names[i])), medians[i], xytext=(edge, (place + 0.5) / len(side)),
                textcoords="axes fraction", ha=align, va="center", fontsize=9, arrowprops=line,
            )  # fmt: skip
    axis.scatter(x, y, s=60, marker="D", c=palette[: len(names)], edgecolors="black", zorder=3)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
