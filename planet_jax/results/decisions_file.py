"""decisions.json: what `evaluate` fitted to the validation chips, for `predict` to decide by."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import write_json
from planet_jax.score.calibration import Calibration
from planet_jax.score.decisions import Decision, Weather, weather_of
from planet_jax.train import checkpoint
from planet_jax.train.stage import Stage

FILE = "decisions.json"


def weather(config: ConfigDict, classes: Sequence[str]) -> Weather | None:
    """The weather whose rule the config asks for, or None.

    Raises:
      BadInput: it asks, and the vocabulary has not all four tags.
    """
    found = weather_of(classes)
    if config.score.weather_rule and not found:
        raise BadInput(
            "config.score.weather_rule: the labels have no clear, partly_cloudy, haze and cloudy"
        )
    return found if config.score.weather_rule else None


def provenance(config: ConfigDict, stages: Sequence[Stage]) -> dict[str, Any]:
    """Whose probabilities these are: other ones need other thresholds."""
    metas = [checkpoint.read_meta(Path(s.config.workdir), config.checkpoint) for s in stages]
    return {
        "checkpoint": config.checkpoint,
        "steps": [meta["step"] for meta in metas if meta],
        "sizes": [stage.config.data.size for stage in stages],
        "test_time_augmentation": config.score.test_time_augmentation,
        "average": config.score.average,
        "ensemble": list(config.score.ensemble),
        "threshold": config.score.threshold,
    }


def write(run: Path, fitted: Decision, classes: Sequence[str], of: dict[str, Any]) -> None:
    """Writes the thresholds and the calibration of `fitted`, and what they were fitted to."""
    assert fitted.calibration is not None
    lines = fitted.thresholds, fitted.calibration.slope, fitted.calibration.intercept
    thresholds, slopes, intercepts = (
        dict(zip(classes, line.tolist(), strict=True)) for line in lines
    )
    calibration = {name: {"slope": slopes[name], "intercept": intercepts[name]} for name in classes}
    write_json(run / FILE, {"fitted_to": of, "thresholds": thresholds, "calibration": calibration})


def decision(config: ConfigDict, stages: Sequence[Stage]) -> Decision:
    """The decision that the config asks for, with what `evaluate` left for it.

    Raises:
      BadInput: something fitted is asked for, and is not there or was fitted to other
        probabilities.
    """
    classes, score = stages[0].data.labels.classes, config.score
    rule_of = weather(config, classes)
    thresholds = np.full(len(classes), float(score.threshold))
    if score.decision_rule != "per_class" and not score.calibrate:
        return Decision(score.decision_rule, thresholds, None, rule_of)
    path = Path(config.workdir) / FILE
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadInput(f"{path}: not there; evaluate this run first, which fits it") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); evaluate this run again") from None
    now, before = provenance(config, stages), stored["fitted_to"]
    if differing := [f"{k} was {before.get(k)!r} and is {now[k]!r}" for k in now
                     if before.get(k) != now[k]]:  # fmt: skip
        raise BadInput(
            f"{path}: fitted to other probabilities: {'; '.join(differing)}; "
            "evaluate with these options first"
        )
    calibration = Calibration(
        np.array([stored["calibration"][name]["slope"] for name in classes]),
        np.array([stored["calibration"][name]["intercept"] for name in classes]),
    )
    if score.decision_rule == "per_class":
        thresholds = np.array([stored["thresholds"][name] for name in classes])
    return Decision(
        score.decision_rule, thresholds, calibration if score.calibrate else None, rule_of
    )
