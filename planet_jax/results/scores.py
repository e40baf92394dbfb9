"""What logits and targets say: figures with intervals, ways of deciding compared, mistakes.

All is pure; `evaluation` writes what these functions return.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from planet_jax.data.labels import Labels
from planet_jax.data.loader import named_rng
from planet_jax.results.predict import joined_tags
from planet_jax.score import calibration, co_occurrence, decisions, intervals, metrics
from planet_jax.score.decisions import Decision
from planet_jax.score.metrics import Probabilities, Targets

# Every way to decide that is compared: rule, and whether probabilities are calibrated first.
WAYS = (
    ("threshold", False),
    ("threshold", True),
    ("per_class", False),
    ("expected_f2", False),
    ("expected_f2", True),
)
CURVE = np.arange(1, 100) / 100  # thresholds


class Judged:
    """Scored chips, with all that is fitted to them fitted on folds and judged on the rest.

    Attributes:
      logits, probabilities, targets: [n, classes].
      weights: the bootstrap's [resamples, n].
      predicted, looked_at: labels and probabilities by the way of deciding that the config names.
    """

    def __init__(
        self,
        config: ConfigDict,
        logits: Float[np.ndarray, "n classes"],
        targets: Targets,
        classes: Sequence[str],
        stored: Decision | None = None,
    ) -> None:
        self.config, self.classes, self.stored = config, classes, stored
        self.logits, self.targets = logits, targets
        self.probabilities = metrics.sigmoid(logits)
        n = len(targets)
        self.weights = intervals.resamples(
            named_rng(config.seed, "bootstrap", 0), n, config.score.resamples
        )
        self.fold = decisions.folds(named_rng(config.seed, "folds", 0), n, config.score.folds)
        score = config.score
        self.predicted = self.decide(score.decision_rule, score.calibrate, score.weather_rule)
        self.looked_at = self.calibrated if score.calibrate else self.probabilities

    @functools.cached_property
    def calibrated(self) -> Probabilities:
        """Each chip's probabilities, calibrated by other chips (or by the stored calibration)."""
        if self.stored:
            return self.stored.calibrated(self.probabilities)
        return decisions.cross_fit(
            calibration.fit_calibration, self.probabilities, self.targets, self.fold
        )

    def decide(
        self, rule: str, calibrate: bool, obey_weather: bool
    ) -> Bool[np.ndarray, "n classes"]:
        """Each chip's labels, by what was fitted to other chips (or is stored)."""
        if self.stored:
            return self.stored(self.probabilities)
        weather = decisions.weather_of(self.classes) if obey_weather else None
        fit = functools.partial(
            decisions.fit, rule, threshold=self.config.score.threshold, calibrate=calibrate,
            weather=weather,
        )  # fmt: skip
        return decisions.cross_fit(fit, self.probabilities, self.targets, self.fold)


def fit_to_all(judged: Judged) -> Decision:
    """Per-class thresholds and calibration from all chips, for chips that have no labels."""
    return decisions.fit(
        "per_class", judged.probabilities, judged.targets,
        threshold=judged.config.score.threshold, calibrate=True,
    )  # fmt: skip


def figures(judged: Judged) -> dict[str, Any]:
    """metrics.json: the notebook's scores, the chosen decision's per class, intervals, and more."""
    score, p, targets = judged.config.score, judged.probabilities, judged.targets
    chips = {
        "valid_loss": metrics.loss_per_chip(judged.logits, targets),
        "accuracy_thresh": ((p > score.threshold) == (targets > 0)).mean(1),
        "fbeta": metrics.fbeta_per_chip(p > score.threshold, targets > 0),
    }
    constant, chosen = metrics.best_constant(targets)
    return {
        **{name: float(values.mean()) for name, values in chips.items()},
        "chips": len(targets),
        "split": score.split,
        "threshold": score.threshold,
        "checkpoint": judged.config.checkpoint,
        "test_time_augmentation": score.test_time_augmentation,
        "ensemble": list(score.ensemble),
        "intervals": {
            "confidence": intervals.CONFIDENCE,
            "resamples": score.resamples,
            **{name: _mean_interval(judged, values) for name, values in chips.items()},
        },
        "decision": _decided(judged),
        "per_class": per_class(judged),
        "best_constant": {
            "fbeta": constant,
            "labels": [judged.classes[i] for i in np.flatnonzero(chosen).tolist()],
        },
        "decisions": [] if judged.stored else compare(judged),
        "reliability": reliability(judged),
        "co_occurrence": co_occurrences(judged),
        "threshold_curve": {
            "thresholds": CURVE.tolist(),
            "fbeta": [metrics.fbeta(p, targets, t) for t in CURVE],
        },
    }


def _mean_interval(judged: Judged, values: Float[np.ndarray, " n"]) -> list[float]:
    return list(intervals.mean_interval(values, judged.weights))


def _decided(judged: Judged) -> dict[str, Any]:
    """The score of the way of deciding that the config names."""
    score = judged.config.score
    fbeta = metrics.fbeta_per_chip(judged.predicted, judged.targets > 0)
    return {
        "rule": score.decision_rule,
        "calibrate": score.calibrate,
        "weather_rule": score.weather_rule,
        "fbeta": float(fbeta.mean()),
        "interval": _mean_interval(judged, fbeta),
    }


def per_class(judged: Judged) -> dict[str, dict[str, Any]]:
    """Each class's figures under the chosen decision, its support, and `intervals` of them."""
    arguments = judged.predicted, judged.probabilities, judged.targets
    values = metrics.per_class(*arguments)
    values["support"] = (judged.targets > 0).sum(0).astype(float)
    values["brier"] = calibration.brier(judged.looked_at, judged.targets)
    ends = {
        name: intervals.interval(figure)
        for name, figure in metrics.per_class(*arguments, judged.weights).items()
    }
    return {
        label: {
            **{name: float(figure[i]) for name, figure in values.items()},
            "intervals": {name: end[:, i].tolist() for name, end in ends.items()},
        }
        for i, label in enumerate(judged.classes)
    }


def compare(judged: Judged) -> list[dict[str, Any]]:
    """F2 of every way to decide, and its gain over one threshold on the same chips.

    `shown` says whether the gain's whole interval is above 0: then it is `gain`, when all is below
    `loss`, else `none`. All that is fitted was fitted to other chips.
    """
    rules = (False, True) if decisions.weather_of(judged.classes) else (False,)
    ways = [(rule, calibrate, obey) for obey in rules for rule, calibrate in WAYS]
    true = judged.targets > 0
    scores = [metrics.fbeta_per_chip(judged.decide(*way), true) for way in ways]
    rows = []
    for (rule, calibrate, obey), fbeta in zip(ways, scores, strict=True):
        low, high = _mean_interval(judged, fbeta - scores[0])
        rows.append(
            {
                "rule": rule,
                "calibrate": calibrate,
                "weather_rule": obey,
                "fbeta": float(fbeta.mean()),
                "interval": _mean_interval(judged, fbeta),
                "gain": float((fbeta - scores[0]).mean()),
                "gain_interval": [low, high],
                "shown": "gain" if low > 0 else "loss" if high < 0 else "none",
            }
        )
    return rows


def reliability(judged: Judged) -> dict[str, Any]:
    """Calibration error, Brier score and bins, as the probabilities come and Platt-scaled."""
    kinds = {"raw": judged.probabilities}
    if not judged.stored or judged.stored.calibration:
        kinds["calibrated"] = judged.calibrated
    return {
        name: {
            "calibration_error": calibration.calibration_error(p, judged.targets),
            "brier": float(calibration.brier(p, judged.targets).mean()),
            "bins": calibration.reliability(p, judged.targets),
        }
        for name, p in kinds.items()
    }


def co_occurrences(judged: Judged) -> dict[str, list[dict[str, Any]]]:
    """Labels taken for others, and pairs that are true or predicted together, by their names."""
    names, true = judged.classes, judged.targets > 0
    return {
        "swaps": [
            {"missed": names[a], "instead": names[b], "chips": chips}
            for a, b, chips in co_occurrence.swaps(judged.predicted, true)
        ],
        "pairs": [
            {"labels": [names[a], names[b]], "true": together, "predicted": predicted}
            for a, b, together, predicted in co_occurrence.pairs(judged.predicted, true)
        ],
    }


def chip_table(judged: Judged, labels: Labels, rows: np.ndarray) -> pd.DataFrame:
    """A row a chip, the greatest loss first: loss, F2, true and predicted tags, probabilities."""
    true = judged.targets > 0
    table = pd.DataFrame(
        {
            "image_name": [labels.names[row] for row in rows],
            "loss": metrics.loss_per_chip(judged.logits, judged.targets),
            "fbeta": metrics.fbeta_per_chip(judged.predicted, true),
            "tags": joined_tags(true, judged.classes),
            "predicted": joined_tags(judged.predicted, judged.classes),
        }
    )
    probabilities = pd.DataFrame(judged.looked_at, columns=list(judged.classes))
    table = pd.concat([table, probabilities], axis=1)
    return table.sort_values("loss", ascending=False, kind="stable")
