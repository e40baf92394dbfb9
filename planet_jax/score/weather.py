"""Apply the competition's weather rule: one weather tag per chip; `cloudy` excludes all others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planet_jax.score.metrics import Predicted, Probabilities

CLOUDY = "cloudy"
TAGS = ("clear", CLOUDY, "haze", "partly_cloudy")


@dataclass(frozen=True)
class Weather:
    """The columns of the four weather tags, and which of them is `cloudy`."""

    columns: tuple[int, ...]
    cloudy: int


def weather_of(classes: Sequence[str]) -> Weather | None:
    """Return the weather columns of a vocabulary, or None if a tag is missing."""
    if not set(TAGS) <= set(classes):
        return None
    return Weather(tuple(classes.index(tag) for tag in TAGS), classes.index(CLOUDY))


def obey_weather(predicted: Predicted, probabilities: Probabilities, weather: Weather) -> Predicted:
    """Predict only the most probable weather tag of each chip; `cloudy` removes all other tags."""
    columns = np.array(weather.columns)
    chosen = columns[probabilities[:, columns].argmax(1)]
    obeying = predicted.copy()
    obeying[:, columns] = False
    obeying[chosen == weather.cloudy] = False
    obeying[np.arange(len(chosen)), chosen] = True
    return obeying
