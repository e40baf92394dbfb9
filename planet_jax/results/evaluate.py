"""Compute the metrics and tables of an evaluation, and write its files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from ml_collections import ConfigDict

from planet_jax.config import as_json, flatten
from planet_jax.data.labels import Labels
from planet_jax.results import fitted_decisions
from planet_jax.results.evaluation import Evaluation, compare_decisions, fit_to_all_chips
from planet_jax.results.predict import joined_tags, write_csv
from planet_jax.runtime.files import write_json
from planet_jax.score import calibration, co_occurrence, intervals, metrics

CURVE_THRESHOLDS = np.arange(1, 100) / 100
MAX_CO_OCCURRENCES = 1000


def write_evaluation(
    run: Path,
    evaluation: Evaluation,
    result: dict[str, Any],
    labels: Labels,
    rows: Int[np.ndarray, " n"],
    fitted_to: dict[str, Any],
) -> list[str]:
    """Write the files of an evaluation to `run`, and return their names.

    The files are metrics.json (`result`, from `compute_metrics`), chips.csv (every chip, highest
    loss first), mistakes.csv (mispredicted chips) and decisions.json (the decision fitted to all
    chips, and `fitted_to`). With score.split = train the names of the first three end in _train,
    and decisions.json is not written.
    """
    suffix = "_train" if evaluation.config.score.split == "train" else ""
    names = [f"metrics{suffix}.json", f"chips{suffix}.csv", f"mistakes{suffix}.csv"]
    chips = chip_table(evaluation, labels, rows)
    write_json(run / names[0], result)
    write_csv(run / names[1], chips)
    tags, predicted = chips.iloc[:, 3], chips.iloc[:, 4]  # by position: a label may be named tags
    write_csv(run / names[2], chips[tags != predicted])
    if suffix:
        return names
    decision = fit_to_all_chips(evaluation)
    fitted_decisions.write_decision(run, decision, evaluation.classes, fitted_to)
    return [*names, fitted_decisions.FILE]


def chip_table(evaluation: Evaluation, labels: Labels, rows: Int[np.ndarray, " n"]) -> pd.DataFrame:
    """Return one row per chip, highest loss first: loss, F2, tags, predicted, probabilities."""
    true, predicted, classes = evaluation.targets > 0, evaluation.predicted, evaluation.classes
    table = pd.DataFrame(
        {
            "image_name": [labels.names[row] for row in rows],
            "loss": metrics.loss_per_chip(evaluation.logits, evaluation.targets),
            "fbeta": metrics.fbeta_per_chip(predicted, true),
            "tags": joined_tags(true, classes),
            "predicted": joined_tags(predicted, classes),
        }
    )
    probabilities = pd.DataFrame(evaluation.reported, columns=list(classes))
    order = np.argsort(-table["loss"].to_numpy(), kind="stable")
    return pd.concat([table, probabilities], axis=1).iloc[order]


def compute_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """Compute the content of metrics.json: scores, intervals, decisions, and scores per class."""
    config, p, targets = evaluation.config, evaluation.probabilities, evaluation.targets
    score = config.score
    per_chip = {
        "valid_loss": metrics.loss_per_chip(evaluation.logits, targets),
        "accuracy_thresh": ((p > score.threshold) == (targets > 0)).mean(1),
        "fbeta": metrics.fbeta_per_chip(p > score.threshold, targets > 0),
    }
    constant_fbeta, constant = metrics.best_constant(targets)
    return {
        **{name: float(values.mean()) for name, values in per_chip.items()},
        "chips": len(targets),
        "mistakes": int((evaluation.predicted != (targets > 0)).any(1).sum()),
        "split": score.split,
        "threshold": score.threshold,
        "checkpoint": config.checkpoint,
        "test_time_augmentation": score.test_time_augmentation,
        "ensemble": list(score.ensemble),
        "options": scoring_options(config),
        "intervals": {
            "confidence": intervals.CONFIDENCE,
            "resamples": score.resamples,
            **{name: evaluation.interval(values) for name, values in per_chip.items()},
        },
        "decision": _decision_score(evaluation),
        "per_class": per_class(evaluation),
        "best_constant": {
            "fbeta": constant_fbeta,
            "labels": [evaluation.classes[i] for i in np.flatnonzero(constant).tolist()],
        },
        "decisions": [] if evaluation.stored else compare_decisions(evaluation),
        "reliability": reliability(evaluation),
        "co_occurrence": co_occurrences(evaluation),
        "threshold_curve": {
            "thresholds": CURVE_THRESHOLDS.tolist(),
            "fbeta": [metrics.fbeta(p, targets, t) for t in CURVE_THRESHOLDS],
        },
    }


def scoring_options(config: ConfigDict) -> dict[str, Any]:
    """Return the options that scores and predictions depend on, as JSON reads them back."""
    options = flatten(config)
    chosen = ("checkpoint", *(name for name in options if name.startswith(("score.", "predict."))))
    return {name: as_json(options[name]) for name in chosen}


def _decision_score(evaluation: Evaluation) -> dict[str, Any]:
    """Return the config's decision rule and its F2."""
    score = evaluation.config.score
    fbeta = metrics.fbeta_per_chip(evaluation.predicted, evaluation.targets > 0)
    return {
        "rule": score.decision_rule,
        "calibrate": score.calibrate,
        "weather_rule": score.weather_rule,
        "fbeta": float(fbeta.mean()),
        "interval": evaluation.interval(fbeta),
    }


def per_class(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Compute each class's scores under the config's decision rule, with intervals."""
    inputs = evaluation.predicted, evaluation.probabilities, evaluation.targets
    values = metrics.per_class(*inputs)
    values["support"] = (evaluation.targets > 0).sum(0).astype(float)
    values["brier"] = calibration.brier(evaluation.reported, evaluation.targets)
    ends = {
        name: intervals.interval(resampled)
        for name, resampled in metrics.per_class(*inputs, evaluation.resamples).items()
    }
    return {
        label: {
            **{name: float(value[i]) for name, value in values.items()},
            "intervals": {name: end[:, i].tolist() for name, end in ends.items()},
        }
        for i, label in enumerate(evaluation.classes)
    }


def reliability(evaluation: Evaluation) -> dict[str, Any]:
    """Compute calibration error, Brier score and bins, of raw and calibrated probabilities."""
    kinds = {"raw": evaluation.probabilities}
    if not evaluation.stored or evaluation.stored.calibration:
        kinds["calibrated"] = evaluation.calibrated
    return {
        kind: {
            "calibration_error": calibration.calibration_error(p, evaluation.targets),
            "brier": float(calibration.brier(p, evaluation.targets).mean()),
            "bins": calibration.reliability(p, evaluation.targets),
        }
        for kind, p in kinds.items()
    }


def co_occurrences(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """Count swapped labels, and pairs of labels that are true or predicted together.

    At most MAX_CO_OCCURRENCES of each are returned: 500 labels have 250,000 swaps.
    """
    names, inputs = evaluation.classes, (evaluation.predicted, evaluation.targets > 0)
    return {
        "swaps": [
            {"missed": names[a], "instead": names[b], "chips": chips}
            for a, b, chips in co_occurrence.swaps(*inputs, MAX_CO_OCCURRENCES)
        ],
        "pairs": [
            {"labels": [names[a], names[b]], "true": true, "predicted": predicted}
            for a, b, true, predicted in co_occurrence.pairs(*inputs, MAX_CO_OCCURRENCES)
        ],
    }
