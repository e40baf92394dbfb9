"""Tables for people to read on a terminal."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from planet_jax.model.summary import Layer

MOST = 5  # co-occurrences that are told
NOTEBOOK = """What fastai v1 reports: the notebook at 128 px, fast.ai's course run at 256 px.
stage       valid_loss  fbeta
stage1          0.1049 0.9259
stage2          0.1071 0.9278
stage1_256             0.9301
stage2_256             0.9313"""


def history_table(run: Path) -> str:
    """The notebook's table: a row an epoch."""
    return _history(run).to_string(index=False, float_format=six_digits)


def journey_table(runs: Sequence[Path]) -> str:
    """The notebook's table over a chain of runs, and the best constant prediction to beat."""
    text = journey(runs).to_string(index=False, float_format=six_digits)
    scores = json.loads((runs[-1] / "metrics.json").read_text())
    return (
        f"{text}\n"
        f"F2 on {scores['chips']} chips that no stage was trained on: {scores['fbeta']:.4f}\n"
        f"F2 of the best constant prediction on them: {scores['best_constant']['fbeta']:.4f} "
        f"(always {' '.join(scores['best_constant']['labels'])})"
    )


def journey(runs: Sequence[Path]) -> pd.DataFrame:
    """history.csv of a chain of runs, with the stage's name before each row."""
    table = pd.concat([_history(run).assign(stage=run.name) for run in runs])
    return table[["stage", *table.columns.drop("stage")]]


def six_digits(value: float) -> str:
    """As fastai prints the figures of its table."""
    return f"{value:.6f}"


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


def evaluation(figures: dict[str, Any]) -> str:
    """What metrics.json holds, for people; [a, b] is a 95% interval."""
    ends = figures["intervals"]
    scores = "  ".join(
        f"{name} {_with_interval(figures[name], ends[name])}"
        for name in ("valid_loss", "accuracy_thresh", "fbeta")
    )
    constant = figures["best_constant"]
    lines = [
        class_table(figures["per_class"]).to_string(),
        f"labels by {way(figures['decision'])}; [a, b] is a 95% interval over "
        f"{figures['chips']} chips",
        f"\nat the threshold {figures['threshold']:g}: {scores}",
        f"F2 of the best constant prediction ({' '.join(constant['labels'])}): "
        f"{constant['fbeta']:.4f}",
    ]
    if figures["decisions"]:
        table = decision_table(figures["decisions"]).to_string(index=False, justify="left")
        lines.append(f"\n{table}")
    for kind, values in figures["reliability"].items():
        lines.append(
            f"{kind} probabilities: calibration error {values['calibration_error']:.4f}, "
            f"Brier score {values['brier']:.4f}"
        )
    if swaps := figures["co_occurrence"]["swaps"][:MOST]:
        taken = [f"{s['instead']} for {s['missed']} {s['chips']}" for s in swaps]
        lines.append(f"most often predicted in place of a true label: {'; '.join(taken)}")
    if pairs := figures["co_occurrence"]["pairs"][:MOST]:
        together = [f"{' + '.join(p['labels'])} {p['predicted']} ({p['true']})" for p in pairs]
        lines.append(f"pairs predicted together (true together): {'; '.join(together)}")
    return "\n".join(lines)


def class_table(by_class: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A line a class: support, precision, recall, F2 and average precision with intervals."""
    names = {
        "precision": "precision", "recall": "recall", "fbeta": "F2",
        "average_precision": "average precision",
    }  # fmt: skip
    rows = {
        label: {
            "chips": int(values["support"]),
            **{
                title: _with_interval(values[name], values["intervals"][name], 2)
                for name, title in names.items()
            },
        }
        for label, values in by_class.items()
    }
    return pd.DataFrame(rows).T


def decision_table(decisions: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A line a way of deciding: its F2, and what it gains over the first."""
    told = {"gain": "a gain", "loss": "a loss", "none": "no difference shown"}
    rows = [
        [
            way(row),
            _with_interval(row["fbeta"], row["interval"]),
            f"{row['gain']:+.4f} [{row['gain_interval'][0]:+.4f}, {row['gain_interval'][1]:+.4f}]",
            told[row["shown"]],
        ]
        for row in decisions
    ]
    rows[0][2:] = ["", ""]
    return pd.DataFrame(rows, columns=["labels by (fitted on other chips)", "F2", "gain", ""])


def way(decision: dict[str, Any]) -> str:
    """A way of deciding in words."""
    rules = {
        "threshold": "one threshold",
        "per_class": "a threshold a class",
        "expected_f2": "highest expected F2",
    }
    calibrated = ", calibrated" if decision["calibrate"] else ""
    weather = ", rule of the weather" if decision["weather_rule"] else ""
    return rules[decision["rule"]] + calibrated + weather


def _with_interval(value: float, ends: Sequence[float], digits: int = 4) -> str:
    return f"{value:.{digits}f} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def preflight(found: dict[str, Any]) -> str:
    """What `preflight.examine.examine` found, in gigabytes, milliseconds and chips a second."""
    device = found["device_memory_bytes"] / 1e9
    head = (
        f"{found['target']}: {found['devices']} devices of {device:.1f} GB on {found['hosts']} "
        f"host{'s'[: found['hosts'] > 1]}, {found['batch_size']} chips a step"
    )
    if not found["fits"]:
        return f"{head}: does not fit"
    rows = []
    for step, prefix in (("train", ""), ("predict", "predict_")):
        of = {name.removeprefix(prefix): value for name, value in found.items()}
        rows += [
            f"{step} step, each device",
            f"  memory          {of['peak_bytes'] / 1e9:12.2f} GB   arguments "
            f"{of['argument_bytes'] / 1e9:.2f}, temporaries {of['temporary_bytes'] / 1e9:.2f}",
            f"  computes        {of['flops'] / 1e9:12.0f} GFLOP",
            f"  moves           {of['bytes_moved'] / 1e9:12.2f} GB",
        ]
    rate = found["chips_per_second_at_most"]
    ceilings = [
        ("computing", found["compute_seconds"] * 1e3, "ms", ""),
        ("moving", found["memory_seconds"] * 1e3, "ms", f"so {found['bound_by']} binds"),
        ("all-reduce", found["all_reduce_seconds"] * 1e3, "ms",
         f"{found['all_reduces']} a step, {found['all_reduce_bytes'] / 1e6:.1f} MB in all; "
         "beside the rest or after it"),
        ("chips a second", rate, "", f"{rate / found['devices']:,.0f} a device"),
        ("a host's loader", found["loader_chips_per_second_a_host"], "", "chips a second to give"),
        ("an epoch", found["epoch_seconds"], "s",
         f"{found['steps_per_epoch']} steps; the stage {found['stage_seconds']:.0f} s"),
        ("predicting", found["predict_chips_per_second_at_most"], "", "chips a second"),
    ]  # fmt: skip
    return "\n".join(
        [
            head, *rows, "at best: ceilings by the maker's rates, not promises",
            *(f"  {of:<16}{value:12,.1f} {unit:<5}{note}" for of, value, unit, note in ceilings),
            f"rates: {found['source']}",
        ]
    )  # fmt: skip
