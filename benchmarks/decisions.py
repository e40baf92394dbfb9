"""What deciding well is worth: every rule and every kind of test-time augmentation on one run.

    python benchmarks/decisions.py [--out runs/twin] [--seed 0]

Trains the twin's two stages of that seed where they are not there (see twin.py), scores the last on
its 210 validation chips, and prints a Markdown table: F2 and its gain over one threshold without
augmentation, each with a 95% bootstrap interval; all that is fitted is fitted to other chips.
"""

import argparse
from pathlib import Path

import twin

from planet_jax import commands
from planet_jax.results import inference, scores, tables
from planet_jax.score import intervals, metrics
from planet_jax.train.stage import Stage

VIEWS = {"none": "the chip alone", "dihedral": "8 dihedral views", "fastai": "fastai v1's TTA"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/twin"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.out / "formula.safetensors").exists():
        twin.write_weights(args.out / "formula.safetensors")
    for name in twin.STAGES:
        config = twin.stage_config(args.out, args.seed, name, "float32")
        commands.train(config)
    stage = Stage(config, commands.prepare(config))
    rows, labels = stage.valid_rows, stage.data.labels
    base = None
    print("\n| seen | labels by | F2 | gain |\n| --- | --- | --- | --- |")
    for tta, seen in VIEWS.items():
        config.score.test_time_augmentation = tta
        logits = inference.logits([stage], inference.rows_source(rows), len(rows), tta, True)
        found = scores.Judged(config, logits, labels.targets[rows], labels.classes)
        for rule, calibrate in scores.WAYS:
            predicted = found.decide(rule, calibrate, obey_weather=False)
            fbeta = metrics.fbeta_per_chip(predicted, found.targets > 0)
            base = fbeta if base is None else base
            low, high = intervals.mean_interval(fbeta, found.weights)
            lower, upper = intervals.mean_interval(fbeta - base, found.weights)
            gain = f"{(fbeta - base).mean():+.4f} [{lower:+.4f}, {upper:+.4f}]"
            way = tables.way({"rule": rule, "calibrate": calibrate, "weather_rule": False})
            print(
                f"| {seen} | {way} | {fbeta.mean():.4f} [{low:.4f}, {high:.4f}] "
                f"| {gain if fbeta is not base else ''} |"
            )


if __name__ == "__main__":
    main()
