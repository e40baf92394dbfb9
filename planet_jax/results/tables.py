"""Format tables for people to read on a terminal."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from planet_jax.model.classifier import Normalization
from planet_jax.model.summary import Layer

MAX_CO_OCCURRENCES = 5  # swaps and pairs printed, at most this many of each
MAX_PAIRS = 3  # near duplicates printed
CLASS_COLUMNS = {
    "precision": "precision",
    "recall": "recall",
    "fbeta": "F2",
    "average_precision": "average precision",
}
RULE_NAMES = {
    "threshold": "one threshold",
    "per_class": "a threshold per class",
    "expected_f2": "highest expected F2",
}
SHOWN = {"gain": "a gain", "loss": "a loss", "none": "no difference shown"}


def layer_lines(layers: Sequence[Layer]) -> str:
    """Format fastai's `learn.summary()`: one line per layer, then the totals."""
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


def normalization_line(normalization: Normalization | None) -> str:
    """Format the mean and standard deviation of each color; None: the weights are not read yet."""
    if normalization is None:
        return "Normalization: that of model.weights, or ImageNet's"
    mean, std = (", ".join(map(str, values)) for values in normalization)
    return f"Normalization: mean {mean}; std {std}"


def evaluation(metrics: dict[str, Any]) -> str:
    """Format the content of metrics.json; [a, b] is a 95% interval."""
    ends = metrics["intervals"]
    scores = "  ".join(
        f"{name} {_with_interval(metrics[name], ends[name])}"
        for name in ("valid_loss", "accuracy_thresh", "fbeta")
    )
    constant = metrics["best_constant"]
    lines = [
        class_table(metrics["per_class"]).to_string(),
        f"decision rule: {rule_name(metrics['decision'])}; [a, b] is a 95% interval over "
        f"{metrics['chips']} chips",
        f"\nat the threshold {metrics['threshold']:g}: {scores}",
        f"F2 of the best constant prediction ({' '.join(constant['labels'])}): "
        f"{constant['fbeta']:.4f}",
    ]
    if metrics["decisions"]:
        table = decision_table(metrics["decisions"]).to_string(index=False, justify="left")
        lines.append(f"\n{table}")
    for kind, values in metrics["reliability"].items():
        lines.append(
            f"{kind} probabilities: calibration error {values['calibration_error']:.4f}, "
            f"Brier score {values['brier']:.4f}"
        )
    return "\n".join(lines + _co_occurrence_lines(metrics["co_occurrence"]))


def _co_occurrence_lines(co_occurrence: dict[str, Any]) -> list[str]:
    swaps = [
        f"{swap['instead']} for {swap['missed']} {swap['chips']}"
        for swap in co_occurrence["swaps"][:MAX_CO_OCCURRENCES]
    ]
    pairs = [
        f"{' + '.join(pair['labels'])} {pair['predicted']} ({pair['true']})"
        for pair in co_occurrence["pairs"][:MAX_CO_OCCURRENCES]
    ]
    lines = []
    if swaps:
        lines.append(f"most often predicted in place of a true label: {'; '.join(swaps)}")
    if pairs:
        lines.append(f"pairs predicted together (true together): {'; '.join(pairs)}")
    return lines


def near_duplicates(found: dict[str, Any]) -> str:
    """Format the near duplicates of metrics.json in one line."""
    count, valid = found["count"], found["valid_chips"]
    if not count:
        return f"near duplicates: none of {valid} validation chips repeats a training chip"
    pairs = [
        f"{pair['valid']} is {pair['train']} ({pair['similarity']:.2f})"
        for pair in found["pairs"][:MAX_PAIRS]
    ]
    more = ", ..." if count > len(pairs) else ""
    line = (
        f"near duplicates: {count} of {valid} validation chips repeat a training chip: "
        f"{', '.join(pairs)}{more}"
    )
    fbeta = found["fbeta_without"]
    return line if fbeta is None else f"{line}; F2 without them {fbeta:.4f}"


def class_table(per_class: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Return one row per class: its chips, and its scores with intervals."""
    rows = {
        label: {
            "chips": int(values["support"]),
            **{
                title: _with_interval(values[name], values["intervals"][name], 2)
                for name, title in CLASS_COLUMNS.items()
            },
        }
        for label, values in per_class.items()
    }
    return pd.DataFrame(rows).T


def decision_table(decisions: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return one row per decision rule: its F2, and its gain over the first rule."""
    rows = [
        [
            rule_name(row),
            _with_interval(row["fbeta"], row["interval"]),
            f"{row['gain']:+.4f} [{row['gain_interval'][0]:+.4f}, {row['gain_interval'][1]:+.4f}]",
            SHOWN[row["shown"]],
        ]
        for row in decisions
    ]
    rows[0][2:] = ["", ""]
    return pd.DataFrame(rows, columns=["decision rule (fitted on other chips)", "F2", "gain", ""])


def rule_name(decision: dict[str, Any]) -> str:
    """Describe a decision rule in a few words."""
    calibrated = ", calibrated" if decision["calibrate"] else ""
    weather = ", weather rule" if decision["weather_rule"] else ""
    return RULE_NAMES[decision["rule"]] + calibrated + weather


def _with_interval(value: float, ends: Sequence[float], digits: int = 4) -> str:
    return f"{value:.{digits}f} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def preflight(cost: dict[str, Any]) -> str:
    """Format what `preflight` computes, in gigabytes, milliseconds and chips per second."""
    memory = cost["device_memory_bytes"] / 1e9
    hosts = f"{cost['hosts']} host{'s' if cost['hosts'] > 1 else ''}"
    head = (
        f"{cost['target']}: {cost['devices']} devices of {memory:.1f} GB on {hosts}, "
        f"{cost['batch_size']} chips per step"
    )
    if not cost["fits"]:
        return f"{head}: does not fit"
    n, epoch = cost["devices"], cost["epoch_seconds_estimate"]
    ceiling = [
        ("compute", cost["compute_seconds"] * 1e3, "ms", "products at the peak rate"),
        ("memory", cost["memory_seconds"] * 1e3, "ms", "what must move at the peak bandwidth"),
        _rate("chips per second", cost["chips_per_second_at_most"], n),
        _rate("predicting", cost["predict_chips_per_second_at_most"], n),
    ]
    estimate = [
        ("kernels", cost["kernel_seconds"] * 1e3, "ms", ""),
        ("all-reduces", cost["all_reduce_seconds"] * 1e3, "ms",
         f"{cost['all_reduces']} per step, {cost['all_reduce_bytes'] / 1e6:.1f} MB in all"),
        _rate("chips per second", cost["chips_per_second_estimate"], n),
        _rate("predicting", cost["predict_chips_per_second_estimate"], n),
        ("each host's loader", cost["loader_chips_per_second_per_host"], "", "chips/s needed"),
        ("an epoch", epoch, "s",
         f"{cost['steps_per_epoch']} steps; the stage {cost['stage_seconds_estimate']:.0f} s"),
    ]  # fmt: skip
    return "\n".join([
        head, *_step_lines(cost, "train", ""), *_step_lines(cost, "predict", "predict_"),
        "at most (from the maker's peak rates)", *map(_limit_line, ceiling),
        "estimate (assumptions: docs/accelerators.md)", *map(_limit_line, estimate),
        f"rates: {cost['source']}",
    ])  # fmt: skip


def _rate(name: str, value: float, devices: int) -> tuple[str, float, str, str]:
    return name, value, "", f"{value / devices:,.0f} per device"


def _limit_line(limit: tuple[str, float, str, str]) -> str:
    name, value, unit, note = limit
    number = f"{value:,.1f}" if unit else f"{value:,.0f}"
    return f"  {name:<18}{number:>12} {unit:<5}{note}".rstrip()


def _step_lines(cost: dict[str, Any], step: str, prefix: str) -> list[str]:
    """Format one step's memory and work on each device, from the keys with this `prefix`."""
    return [
        f"{step} step, each device",
        f"  memory          {cost[prefix + 'peak_bytes'] / 1e9:12.2f} GB   arguments "
        f"{cost[prefix + 'argument_bytes'] / 1e9:.2f}, "
        f"temporaries {cost[prefix + 'temporary_bytes'] / 1e9:.2f}",
        f"  computes        {cost[prefix + 'flops'] / 1e9:12.0f} GFLOP",
        f"  moves           {cost[prefix + 'bytes_moved'] / 1e9:12.2f} GB",
    ]
