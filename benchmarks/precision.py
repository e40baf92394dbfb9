"""Compare bfloat16 with float32: the same unfrozen stage on the drawn sample, once per seed.

    python benchmarks/precision.py [--out runs/precision] [--seeds 0 1 2] [--epochs 8]

Trains ResNet50 from random weights on 300 chips of 64 px and scores it on 300 others.
Prints each seed's final figures and the mean difference; exits with 1 if the mean F2 differs by
more than 0.01.
Finished runs are kept, so repeating the command only compares them.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from planet_jax import backend, commands
from planet_jax.config import get_config
from planet_jax.runtime import memory

PRECISIONS = ("float32", "bfloat16")
FIGURES = ["train_loss", "valid_loss", "fbeta"]


def stage_config(out: Path, seed: int, precision: str, epochs: int) -> ConfigDict:
    config = get_config()
    config.seed = seed
    config.workdir = str(out / f"{precision}-{seed}")
    config.data.source = "sample"
    config.data.root = str(out / "sample")
    config.data.size, config.data.batch_size = 64, 16
    config.data.valid_fraction = 0.5
    config.sample.chips = 600
    config.model.weights = "random"
    config.optim.freeze, config.optim.lr = False, (1e-3, 2e-3)
    config.train.precision, config.train.epochs = precision, epochs
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    final = {}
    for seed in args.seeds:
        for precision in PRECISIONS:
            config = stage_config(args.out, seed, precision, args.epochs)
            commands.train(config)
            history = pd.read_csv(Path(config.workdir) / "history.csv")
            final[precision, seed] = history[FIGURES].iloc[-1]
    table = pd.DataFrame(final).T
    print(table.to_string(float_format=lambda value: f"{value:.4f}"))
    difference = table.loc["bfloat16"] - table.loc["float32"]
    mean, sd = difference.mean(), difference.std()
    for figure in FIGURES:
        print(f"{figure}: bfloat16 - float32 = {mean[figure]:+.4f} (sd {sd[figure]:.4f} a seed)")
    sys.exit(0 if abs(mean["fbeta"]) <= 0.01 else 1)


if __name__ == "__main__":
    memory.limit_arenas()
    backend.configure()
    main()
