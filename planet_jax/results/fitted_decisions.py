"""Read and write decisions.json: the thresholds and calibration that `evaluate` fits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from planet_jax.runtime.distributed import on_main
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import write_json
from planet_jax.score.calibration import Calibration
from planet_jax.score.decisions import Decision
from planet_jax.score.weather import Weather, weather_of
from planet_jax.storage.bucket import local_path

FILE = "decisions.json"


def write_decision(
    run: Path, decision: Decision, classes: Sequence[str], fitted_to: dict[str, Any]
) -> None:
    """Write a fitted decision, and `fitted_to`, which identifies the probabilities of the fit."""
    assert decision.calibration is not None
    slope, intercept = decision.calibration.slope.tolist(), decision.calibration.intercept.tolist()
    content = {
        "fitted_to": fitted_to,
        "thresholds": dict(zip(classes, decision.thresholds.tolist(), strict=True)),
        "calibration": {
            label: {"slope": slope[i], "intercept": intercept[i]} for i, label in enumerate(classes)
        },
    }
    write_json(run / FILE, content)


def load_decision(
    config: ConfigDict, classes: Sequence[str], fitted_to: dict[str, Any]
) -> Decision:
    """Return the decision that the config names; read decisions.json if it needs fitted values.

    `fitted_to` identifies the probabilities to decide on, in the form that `write_decision` saved.

    Raises:
      BadInput: decisions.json is missing, unreadable, or was fitted to other probabilities; the
        weather rule is on but the vocabulary has no weather.
    """
    score, weather = config.score, check_weather(config, classes)
    thresholds = np.full(len(classes), float(score.threshold))
    if score.decision_rule != "per_class" and not score.calibrate:
        return Decision(score.decision_rule, thresholds, None, weather)
    saved = _read(local_path(config.workdir) / FILE, fitted_to)
    if score.decision_rule == "per_class":
        thresholds = np.array([saved["thresholds"][label] for label in classes])
    calibration = None
    if score.calibrate:
        entries = [saved["calibration"][label] for label in classes]
        slope, intercept = (
            np.array([entry[key] for entry in entries]) for key in ("slope", "intercept")
        )
        calibration = Calibration(slope, intercept)
    return Decision(score.decision_rule, thresholds, calibration, weather)


@on_main
def _read(path: Path, fitted_to: dict[str, Any]) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadInput(f"{path}: does not exist; run evaluate first, which writes it") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); run evaluate again") from None
    before = saved["fitted_to"]
    changes = [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in fitted_to.items()
        if before.get(name) != value
    ]
    if changes:
        raise BadInput(
            f"{path}: was fitted to other probabilities: {'; '.join(changes)}; "
            "run evaluate with these options first"
        )
    return saved


def check_weather(config: ConfigDict, classes: Sequence[str]) -> Weather | None:
    """Return the weather columns if score.weather_rule is on, else None.

    Raises:
      BadInput: the rule is on and one of the four weather tags is not in the vocabulary.
    """
    if not config.score.weather_rule:
        return None
    weather = weather_of(classes)
    if weather is None:
        raise BadInput(
            "config.score.weather_rule needs the labels clear, partly_cloudy, haze and cloudy"
        )
    return weather
