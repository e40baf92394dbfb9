"""Make the report's summary: scores, facts, and options that differ from the defaults."""

from typing import Any

import pandas as pd

from planet_jax.config import OPTIONS, as_json
from planet_jax.results.pictures import count
from planet_jax.results.report import html
from planet_jax.results.report.run_folder import MissingPart, RunFolder, differs

SAME_F2 = 0.002  # another device may flip labels whose probability is near the threshold


def summary(run: RunFolder) -> str:
    """Show the scores, facts of the run, and the options that differ from their defaults."""
    options, history = run.options(run.folder), pd.DataFrame({"epoch": [], "fbeta": []})
    if not run.members:
        history = run.history(run.folder)
    try:
        scores, note = _scores(run.metrics("fbeta", "intervals", "best_constant"), history)
    except MissingPart as missing:
        last = f"{history['fbeta'].iloc[-1]:.4f}" if len(history) else "no epoch yet"
        scores, note = {"F2, last epoch": last}, str(missing)
    scores |= {
        "stages": str(len(run.chain)),
        **(
            {"average of": f"{len(run.members)} runs"} if run.members else
            {"epochs of this stage": f"{count(history['epoch'])} of {options['train.epochs']}"}
        ),
        "chip size": f"{options['data.size']} px",
        "batch": options["data.batch_size"],
        "precision": options["train.precision"],
    }  # fmt: skip
    rows = [
        {"option": name, "value": str(value), "default": str(as_json(OPTIONS[name].default)),
         "meaning": OPTIONS[name].help}
        for name, value in options.items() if differs(name, value)
    ]  # fmt: skip
    title = "<h3>Options that differ from their defaults</h3>"
    return html.facts(scores) + html.paragraph(note) + title + html.table(pd.DataFrame(rows))


def _scores(metrics: dict[str, Any], history: pd.DataFrame) -> tuple[dict[str, str], str]:
    """Return the evaluation's scores, and a note on how to read them."""
    low, high = metrics["intervals"]["fbeta"]
    note = f"[a, b]: 95% interval over chips. Labels by a threshold of {metrics['threshold']:g}."
    if _is_outdated(metrics, history):
        note += " history.csv has another F2 for these weights: run `evaluate` again."
    return {
        "F2": f"{metrics['fbeta']:.4f} [{low:.4f}, {high:.4f}]",
        "accuracy_thresh": f"{metrics['accuracy_thresh']:.4f}",
        "loss": f"{metrics['valid_loss']:.4f}",
        "F2 of the best constant": f"{metrics['best_constant']['fbeta']:.4f}",
        "chips scored": metrics["chips"],
        "weights": metrics["checkpoint"],
    }, note


def _is_outdated(metrics: dict[str, Any], history: pd.DataFrame) -> bool:
    """Return whether history.csv shows that the weights changed after the evaluation."""
    best, column = metrics["checkpoint"] == "best", "fbeta"
    if metrics["checkpoint"] == "ema":
        column = "ema_fbeta"
    rows_missing = len(history) != count(history["epoch"])
    if (
        metrics["test_time_augmentation"] != "none"
        or metrics["ensemble"]
        or metrics["split"] != "valid"
        or history.empty
        or column not in history
        or (best and rows_missing)
    ):
        return False
    expected = history[column].max() if best else history[column].iloc[-1]
    return bool(abs(expected - metrics["fbeta"]) > SAME_F2)
