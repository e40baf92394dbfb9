"""The files that a journey writes to the run folder of its results."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from planet_jax.results.evaluate import scoring_options
from planet_jax.runtime.distributed import on_main

METRICS, PREDICTIONS, SUBMISSION = "metrics.json", "predictions.csv", "submission.csv"


@on_main
def exist(run: Path, *names: str) -> bool:
    """Return whether a run folder has these files."""
    return all((run / name).exists() for name in names)


@on_main
def remove(run: Path) -> None:
    """Remove the results of a run folder."""
    for name in (METRICS, PREDICTIONS, SUBMISSION):
        (run / name).unlink(missing_ok=True)


def remove_others(run: Path, config: ConfigDict) -> bool:
    """Remove results of other runs or scoring options than the config's; return whether any were.

    Results without metrics.json are kept.
    """
    if not exist(run, METRICS) or _are_of(run, config):
        return False
    remove(run)
    return True


@on_main
def _are_of(run: Path, config: ConfigDict) -> bool:
    try:
        return bool(json.loads((run / METRICS).read_text())["options"] == scoring_options(config))
    except (ValueError, KeyError, TypeError):  # not a file of this version
        return False
