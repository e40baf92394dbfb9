"""Format the tables of a run's epochs and of a journey, for people to read on a terminal."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from planet_jax.results.tables import rule_name

REFERENCES = {  # F2 of a stage in fastai v1, by (data.size, optim.freeze)
    (128, True): (0.9259, "the notebook"),
    (128, False): (0.9278, "the notebook"),
    (256, True): (0.9301, "fast.ai's course"),
    (256, False): (0.9313, "fast.ai's course"),
}
WINNER = 0.9332  # the competition's best submission, on the private leaderboard


def history_table(run: Path) -> str:
    """Format the notebook's table: one row per epoch."""
    return _history(run).to_string(index=False, float_format=six_digits)


Chains = Mapping[str, Sequence[Path]]  # run folders of the stages, by fold and seed


def journey_table(chains: Chains, results: Path) -> str:
    """Format the epochs of one chain or the F2 of several, then the scores of the evaluation.

    `results` is the run folder of the evaluation.
    """
    if len(chains) == 1:
        table = journey(*chains.values())
    else:
        table = fbeta_by_chain(chains).rename_axis("F2").reset_index()
    scores = json.loads((results / "metrics.json").read_text())
    text = table.to_string(index=False, float_format=six_digits)
    decided = scores["decision"]
    lines = [
        f"F2 on {scores['chips']} chips that no stage was trained on: {scores['fbeta']:.4f}",
        f"F2 of the best constant prediction on them: {scores['best_constant']['fbeta']:.4f} "
        f"(always {' '.join(scores['best_constant']['labels'])})",
    ]
    if len(chains) > 1:
        lines[0] = (
            f"F2 on {scores['chips']} chips, each scored by the runs that were not trained on it: "
            f"{scores['fbeta']:.4f}"
        )
    if decided["rule"] != "threshold" or decided["calibrate"] or decided["weather_rule"]:
        lines.insert(1, f"F2 with {rule_name(decided)}: {decided['fbeta']:.4f}")
    return "\n".join([text, *lines])


def fbeta_by_chain(chains: Chains) -> pd.DataFrame:
    """Return F2 after the last epoch: a row per stage, a column per fold and seed, the mean."""
    columns = {label: [last_fbeta(run) for run in runs] for label, runs in chains.items()}
    label, runs = next(iter(chains.items()))
    table = pd.DataFrame(columns, index=[run.name.removesuffix(f"-{label}") for run in runs])
    return table.assign(mean=table.mean(axis=1))


def headline(chains: Chains, shapes: Sequence[tuple[int, bool]], results: Path) -> str:
    """Format each stage's F2, and the result's, beside fastai's and the competition's best.

    `shapes` has each stage's (data.size, optim.freeze).
    """
    means = fbeta_by_chain(chains)["mean"].items()
    rows = [
        (name, fbeta, *REFERENCES.get(shape, (math.nan, "")))
        for (name, fbeta), shape in zip(means, shapes, strict=True)
    ]
    scores = json.loads((results / "metrics.json").read_text())
    rows.append(("result", scores["decision"]["fbeta"], WINNER, "the winner, private leaderboard"))
    table = pd.DataFrame(rows, columns=["stage", "fbeta", "reference", "by"])
    reached = table["fbeta"] >= table["reference"]
    table["reached"] = reached.map({True: "yes", False: "no"}).where(table["reference"].notna(), "")
    return (
        f"{table.to_string(index=False, float_format=four_digits, na_rep='')}\n"
        "F2 of validation chips here and in fastai's runs; the leaderboard scored other chips."
    )


def last_fbeta(run: Path) -> float:
    """Return F2 after a run's last epoch; NaN before the first has ended."""
    column = pd.read_csv(run / "history.csv")["fbeta"]
    return float(column.iloc[-1]) if len(column) else math.nan


def journey(runs: Sequence[Path]) -> pd.DataFrame:
    """Join history.csv of a chain of runs, with the stage's name in the first column."""
    table = pd.concat([_history(run).assign(stage=run.name) for run in runs])
    return table[["stage", *table.columns.drop("stage")]]


def six_digits(value: float) -> str:
    """Format a number with the six decimals of fastai's table."""
    return f"{value:.6f}"


def four_digits(value: float) -> str:
    """Format a score with four decimals."""
    return f"{value:.4f}"


def _history(run: Path) -> pd.DataFrame:
    table = pd.read_csv(run / "history.csv")
    table["time"] = [f"{int(t) // 60:02}:{int(t) % 60:02}" for t in table["time"]]
    return table
