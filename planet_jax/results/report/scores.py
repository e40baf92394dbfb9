"""Make the report's parts on an evaluation, from metrics.json and chips.csv."""

import pandas as pd

from planet_jax.results import score_pictures, tables
from planet_jax.results.report import gallery, html
from planet_jax.results.report.run_folder import MissingPart, RunFolder

MAX_ROWS = 10  # of the tables of co-occurrence


def classes(run: RunFolder) -> str:
    """Show each class's scores with intervals, as bars and as a table."""
    metrics = run.metrics("per_class", "decision")
    fbeta = {label: values["fbeta"] for label, values in metrics["per_class"].items()}
    worst, best = min(fbeta, key=fbeta.__getitem__), max(fbeta, key=fbeta.__getitem__)
    rule = tables.rule_name(metrics["decision"])
    caption = f"F2 of each class, decision rule: {rule}; lines: 95% intervals."
    extremes = f" Best: {best}, {fbeta[best]:.2f}. Worst: {worst}, {fbeta[worst]:.2f}."
    f2_bars = html.figure(score_pictures.class_bars(metrics), caption, caption + extremes)
    precision_bars = html.figure(
        score_pictures.class_bars(metrics, "average_precision"),
        "Average precision of each class, which needs no threshold; lines: 95% intervals.",
    )
    table = html.table(tables.class_table(metrics["per_class"]), index=True)
    return html.side_by_side(f2_bars, precision_bars) + table


def decisions(run: RunFolder) -> str:
    """Show F2 by threshold, and the gain of every decision rule."""
    metrics = run.metrics("decisions", "threshold_curve")
    figures = [
        html.figure(
            score_pictures.threshold_curve(metrics),
            "F2 by threshold. The best one is chosen on these chips, so its score is too high.",
        )
    ]
    table = ""
    if metrics["decisions"]:
        gains = [row for row in metrics["decisions"] if row["shown"] == "gain"]
        caption = (
            "Gain of each decision rule over one threshold, fitted on other chips; lines: 95% "
            f"intervals. Rules with a gain whose interval is above 0: {len(gains) or 'none'}."
        )
        figures.append(html.figure(score_pictures.decision_bars(metrics), caption))
        table = html.table(tables.decision_table(metrics["decisions"]))
    return html.side_by_side(*figures) + table


def calibration(run: RunFolder) -> str:
    """Show how well probabilities match the share of true entries."""
    metrics = run.metrics("reliability")
    errors = [
        f"{kind}: calibration error {values['calibration_error']:.4f}, Brier {values['brier']:.4f}"
        for kind, values in metrics["reliability"].items()
    ]
    caption = f"Share of true entries by probability. {'; '.join(errors)}."
    return html.side_by_side(html.figure(score_pictures.reliability(metrics), caption))


def co_occurrence(run: RunFolder) -> str:
    """Show labels that are confused, and pairs that are predicted too often or too rarely."""
    metrics = run.metrics("co_occurrence")
    swaps, pairs = (metrics["co_occurrence"][name] for name in ("swaps", "pairs"))
    if swaps:
        first = swaps[0]
        caption = (
            "Labels predicted in place of true ones. "
            f"Most often {first['instead']} for {first['missed']}: {first['chips']} chips."
        )
        table = pd.DataFrame(swaps[:MAX_ROWS])[["missed", "instead", "chips"]]
        parts = [html.figure(score_pictures.swap_map(metrics), caption), html.table(table)]
    else:
        parts = [html.paragraph("No label was predicted in place of another.")]
    if pairs:
        rows = [
            {"pair": " + ".join(pair["labels"]), "true together": pair["true"],
             "predicted together": pair["predicted"]}
            for pair in pairs[:MAX_ROWS]
        ]  # fmt: skip
        parts.append(html.table(pd.DataFrame(rows)))
    return html.side_by_side(*parts)


def chips(run: RunFolder) -> str:
    """Show the chips with the highest loss, and those with the most certain predictions."""
    labels = list(run.metrics("per_class")["per_class"])
    path = run.folder / "chips.csv"
    if not path.exists():
        raise MissingPart(f"No {path} yet: `evaluate` writes it.")
    if not run.chip_folder.is_dir():
        raise MissingPart(f"No chips in {run.chip_folder}: set config.data.root to them.")
    table = pd.read_csv(path, keep_default_na=False, dtype=gallery.TEXT_COLUMNS)
    return gallery.galleries(table, labels, run.chip_folder)
