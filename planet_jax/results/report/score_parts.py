"""The parts of the report that an evaluation gives."""

import pandas as pd

from planet_jax.results import tables
from planet_jax.results.report import gallery, html, score_pictures
from planet_jax.results.report.run_folder import Lacks, RunFolder

MOST_ROWS = 10  # of the tables of co-occurrence


def classes(run: RunFolder) -> str:
    """Per-class scores with intervals, as bars and as a table."""
    metrics = run.metrics("per_class", "decision")
    by_class = {label: figures["fbeta"] for label, figures in metrics["per_class"].items()}
    worst, best = min(by_class, key=by_class.__getitem__), max(by_class, key=by_class.__getitem__)
    caption = (
        f"F2 of each class, labels by {tables.way(metrics['decision'])}; lines: 95% intervals."
    )
    extremes = f" Best: {best}, {by_class[best]:.2f}. Worst: {worst}, {by_class[worst]:.2f}."
    bars = html.figure(score_pictures.class_bars(metrics), caption, caption + extremes)
    precise = html.figure(
        score_pictures.class_bars(metrics, "average_precision"),
        "Average precision of each class, whatever the threshold; lines: 95% intervals.",
    )
    figures = tables.class_table(metrics["per_class"])
    return html.side_by_side(bars, precise) + html.table(figures, index=True)


def deciding(run: RunFolder) -> str:
    """F2 by threshold, and what every rule of deciding gains."""
    metrics = run.metrics("decisions", "threshold_curve")
    figures = [
        html.figure(
            score_pictures.threshold_curve(metrics),
            "F2 by threshold. The best was chosen on these very chips, so it flatters.",
        )
    ]
    table = ""
    if metrics["decisions"]:
        gains = [row for row in metrics["decisions"] if row["shown"] == "gain"]
        caption = (
            "What each rule gains over one threshold, fitted on other chips; lines: 95% intervals. "
            f"{len(gains) or 'None'} of them shown to gain."
        )
        figures.append(html.figure(score_pictures.decision_bars(metrics), caption))
        table = html.table(tables.decision_table(metrics["decisions"]))
    return html.side_by_side(*figures) + table


def calibration(run: RunFolder) -> str:
    """Whether a probability means what it says."""
    metrics = run.metrics("reliability")
    told = [
        f"{kind}: calibration error {values['calibration_error']:.4f}, Brier {values['brier']:.4f}"
        for kind, values in metrics["reliability"].items()
    ]
    caption = f"How often an entry is true, by its probability. {'; '.join(told)}."
    return html.side_by_side(html.figure(score_pictures.reliability(metrics), caption))


def co_occurrence(run: RunFolder) -> str:
    """Labels taken for others, and pairs that come together too often or too seldom."""
    found = run.metrics("co_occurrence")
    swaps, pairs = (found["co_occurrence"][name] for name in ("swaps", "pairs"))
    parts = []
    if swaps:
        most = (
            f"Most often {swaps[0]['instead']} for {swaps[0]['missed']}: {swaps[0]['chips']} chips."
        )
        caption = f"Labels predicted in place of true ones. {most}"
        parts.append(html.figure(score_pictures.swap_map(found), caption))
        parts.append(html.table(pd.DataFrame(swaps[:MOST_ROWS])[["missed", "instead", "chips"]]))
    else:
        parts.append(html.paragraph("No label was predicted in place of another."))
    if pairs:
        rows = [
            {"pair": " + ".join(pair["labels"]), "true together": pair["true"],
             "predicted together": pair["predicted"]}
            for pair in pairs[:MOST_ROWS]
        ]  # fmt: skip
        parts.append(html.table(pd.DataFrame(rows)))
    return html.side_by_side(*parts)


def chips(run: RunFolder) -> str:
    """The chips of the greatest loss, and those the network is most certain of."""
    labels = list(run.metrics("per_class")["per_class"])
    path = run.folder / "chips.csv"
    if not path.exists():
        raise Lacks(f"No {path} yet: `evaluate` writes it.")
    if not (run.root / gallery.FOLDER).is_dir():
        raise Lacks(f"No chips in {run.root / gallery.FOLDER}: set config.data.root to them.")
    return gallery.galleries(
        pd.read_csv(path, keep_default_na=False, dtype=gallery.TEXT), labels, run.root
    )
