"""Decide on the labels of scored chips by rules that were fitted to other chips."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from planet_jax.data.loader import named_rng
from planet_jax.score import calibration, decisions, intervals, metrics
from planet_jax.score.decisions import Decision
from planet_jax.score.metrics import Probabilities, Targets
from planet_jax.score.weather import weather_of

# Each pair: a decision rule, and whether probabilities are calibrated first.
COMPARED_RULES = (
    ("threshold", False),
    ("threshold", True),
    ("per_class", False),
    ("expected_f2", False),
    ("expected_f2", True),
)


class Evaluation:
    """Logits and targets of scored chips, with their decisions.

    Thresholds and calibration are cross-fitted: each fold uses values fitted to the other folds.
    With a `stored` decision nothing is fitted.

    Attributes:
      logits, probabilities, targets: [n, classes].
      resamples: how often the bootstrap draws each chip, [resamples, n].
      predicted: the labels by the config's decision rule, bool [n, classes].
      reported: the probabilities, calibrated if the config says so, [n, classes].
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
        score, n = config.score, len(targets)
        self.resamples = intervals.resamples(
            named_rng(config.seed, "bootstrap", 0), n, score.resamples
        )
        self.fold = decisions.folds(named_rng(config.seed, "folds", 0), n, score.folds)
        self.predicted = self.decide(score.decision_rule, score.calibrate, score.weather_rule)
        self.reported = self.calibrated if score.calibrate else self.probabilities

    @functools.cached_property
    def calibrated(self) -> Probabilities:
        """Return the probabilities, calibrated by a fit to the other folds or by `stored`."""
        if self.stored:
            return self.stored.calibrated(self.probabilities)
        return decisions.cross_fit(
            calibration.fit_calibration, self.probabilities, self.targets, self.fold
        )

    def decide(
        self, rule: str, calibrate: bool, weather_rule: bool
    ) -> Bool[np.ndarray, "n classes"]:
        """Return the labels by a rule fitted to the other folds, or by the stored decision."""
        if self.stored:
            return self.stored(self.probabilities)
        weather = weather_of(self.classes) if weather_rule else None
        if rule != "per_class":  # only the calibration is fitted
            thresholds = np.full(len(self.classes), float(self.config.score.threshold))
            probabilities = self.calibrated if calibrate else self.probabilities
            return Decision(rule, thresholds, None, weather)(probabilities)
        fit = functools.partial(
            decisions.fit, rule, threshold=self.config.score.threshold, calibrate=calibrate,
            weather=weather,
        )  # fmt: skip
        return decisions.cross_fit(fit, self.probabilities, self.targets, self.fold)

    def interval(self, values: Float[np.ndarray, " n"]) -> list[float]:
        """Return the 95% interval of a mean over chips."""
        return list(intervals.mean_interval(values, self.resamples))


def fit_to_all_chips(evaluation: Evaluation) -> Decision:
    """Fit per-class thresholds and calibration to all chips, to decide on other chips."""
    return decisions.fit(
        "per_class", evaluation.probabilities, evaluation.targets,
        threshold=evaluation.config.score.threshold, calibrate=True,
    )  # fmt: skip


def compare_decisions(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Compute the F2 of every decision rule, and its gain over one threshold for all classes.

    `shown` is `gain` if the gain's whole interval is above 0, `loss` if it is below 0, else `none`.
    """
    weather_rules = (False, True) if weather_of(evaluation.classes) else (False,)
    compared = [(*rule, weather) for weather in weather_rules for rule in COMPARED_RULES]
    true = evaluation.targets > 0
    scores = [metrics.fbeta_per_chip(evaluation.decide(*rule), true) for rule in compared]
    rows = []
    for (rule, calibrate, weather_rule), fbeta in zip(compared, scores, strict=True):
        gain = fbeta - scores[0]
        low, high = evaluation.interval(gain)
        rows.append(
            {
                "rule": rule,
                "calibrate": calibrate,
                "weather_rule": weather_rule,
                "fbeta": float(fbeta.mean()),
                "interval": evaluation.interval(fbeta),
                "gain": float(gain.mean()),
                "gain_interval": [low, high],
                "shown": "gain" if low > 0 else "loss" if high < 0 else "none",
            }
        )
    return rows
