"""Compare training options with the notebook's recipe, at equal numbers of steps.

    python benchmarks/recipes.py [--out runs/recipes] [--seeds 0] [--only NAME ...] [--picture FILE]

Each recipe trains the notebook's frozen stage at 64 px on ../shared/data/ucmerced, from the formula
weights of benchmarks/twin.py, once for each of three stratified folds and each seed. A recipe and
the notebook's have the same chips, order, augmentation and first head in each run. UC Merced has no
exclusive labels, so `model.exclusive` is compared on the drawn sample. Prints a table and draws it.
Finished runs are kept, so an interrupted benchmark continues.
"""

import argparse
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import machine
import numpy as np
import pandas as pd
import scipy.stats
import twin
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from planet_jax import backend, commands
from planet_jax.config import get_config
from planet_jax.results import pictures
from planet_jax.runtime import memory
from planet_jax.score.weather import TAGS

FOLDS = 3
CHIPS, SAMPLE = "chips", "sample"


class Recipe(NamedTuple):
    """Options of the training, options of the evaluation alone, and the chips.

    With `averages` the runs of all seeds are one ensemble.
    """

    train: dict[str, Any]
    evaluate: Mapping[str, Any] = MappingProxyType({})
    data: str = CHIPS
    averages: bool = False


NOTEBOOK = {CHIPS: Recipe({}), SAMPLE: Recipe({}, data=SAMPLE)}
RECIPES = {
    "label smoothing, 0.1": Recipe({"loss.label_smoothing": 0.1}),
    "focal loss, gamma 2": Recipe({"loss.gamma": (2.0, 2.0)}),
    "asymmetric loss": Recipe({"loss.gamma": (0.0, 4.0), "loss.margin": 0.05}),
    "soft F2, weight 1": Recipe({"loss.soft_f2": 1.0}),
    "balance, power 0.5": Recipe({"loss.balance": 0.5}),
    "balance, power 1": Recipe({"loss.balance": 1.0}),
    "moving averages, decay 0.9": Recipe({"optim.ema_decay": 0.9}, {"checkpoint": "ema"}),
    "two cycles": Recipe({"optim.cycles": 2}),
    "gradient norm at most 0.1": Recipe({"optim.clip_norm": 0.1}),
    "batches in two parts": Recipe({"optim.accumulate": 2}),
    "8 views": Recipe({}, {"score.test_time_augmentation": "dihedral"}),
    "average of the seeds": Recipe({}, averages=True),
    "exclusive weather (sample)": Recipe({"model.exclusive": TAGS}, data=SAMPLE),
}


def stage_config(out: Path, recipe: Recipe, fold: int, seed: int) -> ConfigDict:
    """Return the notebook's frozen stage at 64 px, with a recipe's options of the training."""
    config = get_config()
    config.seed = seed
    config.data.root = str(twin.SHARED / "data" / "ucmerced")
    config.data.cache = str(out / "cache")
    if recipe.data == SAMPLE:
        config.data.source, config.data.root = "sample", str(out / "sample")
        config.sample.chips = 1050
    config.data.size = 64
    config.data.folds, config.data.fold = FOLDS, fold
    config.model.weights, config.model.head = str(out / "formula.safetensors"), "fresh"
    config.checkpoint = "latest"  # "best" is chosen on the chips that are scored
    config.score.decision_rule, config.score.resamples = "per_class", 20
    config.update_from_flattened_dict(recipe.train)
    options = ",".join(f"{name}={value}" for name, value in recipe.train.items())
    name = f"{recipe.data} {options}".replace(" ", "")
    config.workdir = str(out / name / f"fold{fold}-seed{seed}")
    return config


def score(out: Path, name: str, recipe: Recipe, fold: int, seeds: list[int]) -> np.ndarray:
    """Train and evaluate on one fold; return [F2 at 0.2, F2 with fitted thresholds] per seed."""
    scores = []
    for seed in seeds:
        config = stage_config(out, recipe, fold, seed)
        run = Path(config.workdir)
        saved = run / f"{name}{seeds if recipe.averages else ''}.csv"
        if not saved.exists():
            with contextlib.redirect_stdout(None):
                commands.train(config)
                config.update_from_flattened_dict(dict(recipe.evaluate))
                if recipe.averages:
                    runs = [stage_config(out, recipe, fold, s).workdir for s in seeds]
                    config.score.ensemble = tuple(runs)
                result = commands.evaluate(config)
            both = pd.DataFrame({"raw": [result["fbeta"]], "fitted": [result["decision"]["fbeta"]]})
            both.to_csv(saved, index=False)
        scores.append(pd.read_csv(saved).iloc[0].to_numpy())
        print(f"{name}, fold {fold}, seed {seed}: F2 {scores[-1].round(4)}", file=sys.stderr)
    return np.array(scores)


def gain(differences: np.ndarray) -> tuple[float, float]:
    """Return the mean of paired differences and half of its 95% interval (Student's t)."""
    factor = scipy.stats.t.ppf(0.975, len(differences) - 1)
    return float(differences.mean()), float(factor * scipy.stats.sem(differences))


def draw(gains: dict[str, list[tuple[float, float]]]) -> Figure:
    """Draw the gains of both F2 with their intervals, one line per recipe."""
    figure = Figure(figsize=(9, 0.42 * len(gains) + 1), layout="tight")
    axis = figure.subplots()
    position = np.arange(len(gains))[::-1]
    for i, label in enumerate(("threshold 0.2", "thresholds fitted per class")):
        mean, half = np.array([gain[i] for gain in gains.values()]).T
        axis.errorbar(mean, position + 0.15 - 0.3 * i, xerr=half, fmt="o", capsize=3, label=label)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(position, gains)
    axis.set_xlabel("gain in F2 over the notebook's recipe, with 95% intervals")
    axis.grid(**pictures.GRID)
    axis.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=RECIPES, help="recipes; default: all")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if not (args.out / "formula.safetensors").exists():
        twin.write_weights(args.out / "formula.safetensors")

    def scores(name: str, recipe: Recipe) -> np.ndarray:
        folds = [score(args.out, name, recipe, fold, args.seeds) for fold in range(FOLDS)]
        return np.concatenate(folds)

    chosen = {
        name: RECIPES[name] for name in args.only or RECIPES
        if len(args.seeds) > 1 or not RECIPES[name].averages
    }  # fmt: skip
    used = {recipe.data for recipe in chosen.values()}
    base = {data: scores("notebook", NOTEBOOK[data]) for data in NOTEBOOK if data in used}
    found = {name: scores(name, recipe) for name, recipe in chosen.items()}
    print(machine.describe("jax"))
    print(f"{FOLDS} folds, seeds {args.seeds}; means over runs, gains with 95% intervals.\n")
    print("| recipe | F2 at 0.2 | gain | F2, fitted thresholds | gain |")
    print("| --- | --- | --- | --- | --- |")
    gains = {}
    for data, values in base.items():
        raw, fitted = values.mean(0)
        print(f"| the notebook's ({data}) | {raw:.4f} | | {fitted:.4f} | |")
    for name, values in found.items():
        differences = values - base[RECIPES[name].data]
        gains[name] = [gain(differences[:, i]) for i in (0, 1)]
        raw, fitted = values.mean(0)
        (a, b), (c, d) = gains[name]
        print(f"| {name} | {raw:.4f} | {a:+.4f} ± {b:.4f} | {fitted:.4f} | {c:+.4f} ± {d:.4f} |")
    if args.picture:
        pictures.save(draw(gains), args.picture)


if __name__ == "__main__":
    memory.limit_arenas()
    backend.configure()
    main()
