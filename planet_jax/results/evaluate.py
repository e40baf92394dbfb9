"""The files of an evaluation: metrics.json, decisions.json, chips.csv and mistakes.csv."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from planet_jax.results import decisions_file, inference, predict
from planet_jax.results.scores import Judged, chip_table, figures, fit_to_all
from planet_jax.runtime.files import write_json
from planet_jax.train.stage import Stage


def evaluate(config: ConfigDict, stages: Sequence[Stage]) -> dict[str, Any]:
    """Scores the average of `stages` on the chips of config.score.split; returns metrics.json.

    chips.csv has every chip, the greatest loss first, and mistakes.csv those with a wrong label.
    What is fitted to the validation chips goes to decisions.json. With score.split = train that is
    what labels are decided by, and the files are metrics_train.json, chips_train.csv and
    mistakes_train.csv.

    Raises:
      BadInput: another vocabulary or other validation chips than a run was trained with; a rule
        of the weather without weather; nothing fitted, or to other probabilities.
    """
    run, labels, training = Path(config.workdir), stages[0].data.labels, score_training(config)
    decisions_file.weather(config, labels.classes)
    stored = decisions_file.decision(config, stages) if training else None
    rows = stages[0].train_rows if training else stages[0].valid_rows
    logits = inference.logits(stages, inference.rows_source(rows), len(rows), "scoring", True)
    judged = Judged(config, logits, labels.targets[rows], labels.classes, stored)
    chips = chip_table(judged, labels, rows)
    mistakes = chips[chips["tags"] != chips["predicted"]]
    found = {**figures(judged), "mistakes": len(mistakes)}
    suffix = "_train" if training else ""
    write_json(run / f"metrics{suffix}.json", found)
    predict.write(run / f"chips{suffix}.csv", chips)
    predict.write(run / f"mistakes{suffix}.csv", mistakes)
    if not training:
        whose = decisions_file.provenance(config, stages)
        decisions_file.write(run, fit_to_all(judged), labels.classes, whose)
    return found


def score_training(config: ConfigDict) -> bool:
    """Whether the chips that train are scored, not those that validate."""
    return bool(config.score.split == "train")
