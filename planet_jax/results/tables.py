"""Tables for people to read on a terminal."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from planet_jax.model.summary import Layer

NOTEBOOK = """What fastai v1 reports: the notebook at 128 px, fast.ai's course run at 256 px.
stage       valid_loss  fbeta
stage1          0.1049 0.9259
stage2          0.1071 0.9278
stage1_256             0.9301
stage2_256             0.9313"""


def history_table(run: Path) -> str:
    """The notebook's table: a row an epoch."""
    return _history(run).to_string(index=False, float_format=lambda value: f"{value:.6f}")


def journey_table(runs: Sequence[Path]) -> str:
    """The notebook's table over a chain of runs, and the best constant prediction to beat."""
    table = pd.concat([_history(run).assign(stage=run.name) for run in runs])
    columns = ["stage", *table.columns.drop("stage")]
    text = table[columns].to_string(index=False, float_format=lambda value: f"{value:.6f}")
    scores = json.loads((runs[-1] / "metrics.json").read_text())
    return (
        f"{text}\n"
        f"F2 on {scores['chips']} chips that no stage was trained on: {scores['fbeta']:.4f}\n"
        f"F2 of the best constant prediction on them: {scores['best_constant']['fbeta']:.4f} "
        f"(always {' '.join(scores['best_constant']['labels'])})"
    )


def _history(run: Path) -> pd.DataFrame:
    table = pd.read_csv(run / "history.csv")
    table["time"] = [f"{int(t) // 60:02}:{int(t) % 60:02}" for t in table["time"]]
    return table


def layer_lines(layers: Sequence[Layer]) -> str:
    """fastai's `learn.summary()`: a line a layer, then the totals."""
    head = f"{'Layer (type)':<22}{'Output shape':<20}{'Parameters':>12}  Trainable"
    lines = [
        f"{row.type:<22}{list(row.output)!s:<20}{row.parameters:>12,}  {row.trainable}"
        for row in layers
    ]
    total = sum(row.parameters for row in layers)
    trainable = sum(row.parameters for row in layers if row.trainable)
    totals = [
        f"Total parameters: {total:,}",
        f"Total trainable parameters: {trainable:,}",
        f"Total non-trainable parameters: {total - trainable:,}",
    ]
    rule = "=" * len(head)
    return "\n".join([head, rule, *lines, rule, *totals])


def class_table(by_class: dict[str, dict[str, float]]) -> str:
    """A line a class: precision, recall, F2 and support."""
    table = pd.DataFrame(by_class).T
    table["support"] = table["support"].astype(int)
    return table.to_string(float_format=lambda value: f"{value:.4f}")
