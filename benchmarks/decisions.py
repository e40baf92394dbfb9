"""Measure the gain of every decision rule and every test-time augmentation on one run.

    python benchmarks/decisions.py [--out runs/twin] [--seed 0]

Trains the twin's two stages for that seed if they do not exist (see twin.py). Scores the second
stage on its 210 validation chips and prints a Markdown table. The table has F2 and its gain over
the baseline, each with a 95% bootstrap interval. The baseline is a single threshold without
augmentation. Thresholds and calibration are never scored on the chips they were fitted to.
"""

import argparse
from functools import partial
from pathlib import Path

import twin

from planet_jax import backend
from planet_jax.data import loader
from planet_jax.results import evaluation, inference, tables
from planet_jax.runtime import memory
from planet_jax.score import metrics
from planet_jax.train.stage import make_stage

VIEWS = {"none": "the chip alone", "dihedral": "8 dihedral views", "fastai": "fastai v1's TTA"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/twin"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    twin.train(args.out, [args.seed])
    config = twin.stage_config(args.out, args.seed, "stage2", "float32")
    stage = make_stage(config)
    rows, labels = stage.valid_rows, stage.data.labels
    source = partial(loader.score_batches, stage.data, rows)
    checkpoints = inference.open_runs(config)
    first = None
    print((args.out / "machine.txt").read_text())
    print(f"The twin's unfrozen stage, seed {args.seed}, {len(rows)} chips.\n")
    print("| views | decision rule | F2 | gain |\n| --- | --- | --- | --- |")
    for views, description in VIEWS.items():
        config.score.test_time_augmentation = views
        models = inference.load_models(config, checkpoints)
        logits = inference.ensemble_logits(models, source, len(rows), views)
        scored = evaluation.Evaluation(config, logits, labels.targets[rows], labels.classes)
        for rule, calibrate in evaluation.COMPARED_RULES:
            predicted = scored.decide(rule, calibrate, weather_rule=False)
            fbeta = metrics.fbeta_per_chip(predicted, scored.targets > 0)
            first = fbeta if first is None else first
            low, high = scored.interval(fbeta)
            gain_low, gain_high = scored.interval(fbeta - first)
            gain = f"{(fbeta - first).mean():+.4f} [{gain_low:+.4f}, {gain_high:+.4f}]"
            name = tables.rule_name({"rule": rule, "calibrate": calibrate, "weather_rule": False})
            print(
                f"| {description} | {name} | {fbeta.mean():.4f} [{low:.4f}, {high:.4f}] "
                f"| {gain if fbeta is not first else ''} |"
            )


if __name__ == "__main__":
    memory.limit_arenas()
    backend.configure()
    main()
