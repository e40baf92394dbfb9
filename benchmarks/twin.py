"""Compare the notebook's two 128 px stages with fastai v1, from the same weights and chips.

    python benchmarks/twin.py [--out runs/twin] [--seeds 0 1 2] [--precision float32]
        [--picture FILE]

Trains on ../shared/data/ucmerced (840/210 chips, 5 + 5 epochs, batch 64) from the reference's
formula weights, once per seed. Prints the final figures beside ../shared/reference/twin.json, and
draws the loss curves. Exits with 1 if the programs disagree (see `compare`). Finished runs are
kept, so repeating the command only compares them. Three seeds take about 35 minutes on 2 cores.
"""

import argparse
import contextlib
import json
import sys
import zlib
from pathlib import Path

import machine
import numpy as np
import pandas as pd
from flax import traverse_util
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from planet_jax import backend, commands
from planet_jax.config import get_config
from planet_jax.model import weights
from planet_jax.model.classifier import abstract_variables
from planet_jax.results import pictures
from planet_jax.runtime import memory

SHARED = Path(__file__).parents[2] / "shared"
STAGES = {"stage1": (True, (1e-2, 2e-2)), "stage2": (False, (1e-4, 2e-3))}
STAGE_NAMES = {"stage1": "frozen", "stage2": "unfrozen"}
FIGURES = ("valid_loss", "accuracy_thresh", "fbeta")


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the reference's weights for a name in torch's state dict.

    The formula is in ../shared/reference/README.md.
    """
    r = np.random.default_rng(zlib.crc32(name.encode()))
    norm = "bn" in name or "downsample.1" in name
    if name.startswith("head"):
        if len(shape) == 2:
            return (r.standard_normal(shape) * np.sqrt(2 / shape[1])).astype(np.float32)
        ones = name in ("head.2.weight", "head.6.weight") or name.endswith("running_var")
        return np.full(shape, 1.0 if ones else 0.0, np.float32)
    if name.endswith("running_var"):
        array = r.uniform(0.5, 1.5, shape)
    elif norm and name.endswith("weight"):
        array = r.uniform(0.2, 0.6, shape)
    elif len(shape) == 4:
        array = r.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:  # running means and biases of BatchNorms
        array = 0.1 * r.standard_normal(shape)
    return array.astype(np.float32)


def write_weights(path: Path) -> None:
    """Write the formula's backbone and head to a `.safetensors` file with torchvision's names."""
    shapes = weights.torch_shapes(traverse_util.flatten_dict(abstract_variables(17)))
    state = {name: formula(name, shape) for name, shape in shapes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


def stage_config(out: Path, seed: int, name: str, precision: str) -> ConfigDict:
    """Return the config of one of the notebook's stages on the reference's chips."""
    config = get_config()
    config.seed = seed
    config.workdir = str(out / f"{name}-{seed}")
    config.data.root = str(SHARED / "data" / "ucmerced")
    config.data.cache = str(out / "cache")
    config.model.weights = str(out / "formula.safetensors")
    config.train.precision = precision
    config.optim.freeze, config.optim.lr = STAGES[name]
    if name == "stage2":
        config.init_from = str(out / f"stage1-{seed}")
    return config


def train(out: Path, seeds: list[int], precision: str = "float32") -> None:
    """Train both stages for each seed, if they are not finished; write nothing to stdout.

    OUT/machine.txt describes the machine and the versions with which OUT was begun.
    """
    if not (out / "machine.txt").exists():
        write_weights(out / "formula.safetensors")
        (out / "machine.txt").write_text(machine.describe("jax", "jaxlib"))
    with contextlib.redirect_stdout(sys.stderr):
        for seed in seeds:
            for name in STAGES:
                commands.train(stage_config(out, seed, name, precision))


def compare(out: Path, seeds: list[int]) -> tuple[dict[str, np.ndarray], bool]:
    """Print the final figures of both programs over their seeds, and how far their losses differ.

    Returns:
      Our smoothed losses [seed, step] by stage, and whether the programs agree. Validation loss and
      F2 may differ by the larger of 0.02 and twice fastai's standard deviation over its
      seeds. The frozen stage's smoothed loss may differ by 3%. Accuracy does not count.
    """
    theirs = json.loads((SHARED / "reference" / "twin.json").read_text())["runs"]
    columns = ["stage", "figure", "fastai v1", "planet_jax", "difference", "allowed"]
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    curves, distance, agree = {}, {}, True
    for stage, name in STAGE_NAMES.items():
        runs = [out / f"{stage}-{seed}" for seed in seeds]
        histories = [pd.read_csv(run / "history.csv") for run in runs]
        for figure in FIGURES:
            a = np.array([run[stage][figure][-1] for run in theirs])
            b = np.array([history[figure].iloc[-1] for history in histories])
            allowed = max(2 * a.std(ddof=1), 0.02)
            difference = b.mean() - a.mean()
            counts = figure != "accuracy_thresh"
            agree &= not counts or abs(difference) <= allowed
            print(
                f"| {name} | {figure} | {spread(a)} | {spread(b)} | {difference:+.4f} "
                f"| {f'{allowed:.4f}' if counts else ''} |"
            )
        curves[stage] = np.array([pd.read_csv(run / "steps.csv")["smooth_loss"] for run in runs])
        their_curve = np.array([run[stage]["smooth_loss"] for run in theirs]).mean(0)
        distance[stage] = float(np.abs(curves[stage].mean(0) / their_curve - 1)[9::10].max())
    print(
        "\nAt every tenth step the mean smoothed training loss is within "
        f"{distance['stage1']:.1%} of fastai's frozen, and {distance['stage2']:.1%} unfrozen."
    )
    return curves, bool(agree and distance["stage1"] <= 0.03)


def spread(values: np.ndarray) -> str:
    """Return the mean and the standard deviation of the seeds."""
    return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else "")


def draw(curves: dict[str, np.ndarray]) -> Figure:
    """Draw the smoothed training loss of both programs, one line per seed."""
    theirs = json.loads((SHARED / "reference" / "twin.json").read_text())["runs"]
    figure = Figure(figsize=(11, 3.8))
    for axis, (stage, ours) in zip(figure.subplots(1, 2), curves.items(), strict=True):
        for i, run in enumerate(theirs):
            axis.plot(
                run[stage]["smooth_loss"], "C0", alpha=0.7, label="fastai v1" if not i else None
            )
        for i, curve in enumerate(ours):
            axis.plot(curve, "C1--", alpha=0.8, label="planet_jax" if not i else None)
        axis.set_title(STAGE_NAMES[stage])
        axis.set_xlabel("step")
        axis.set_ylabel("training loss, smoothed")
        axis.grid(**pictures.GRID)
        axis.legend()
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/twin"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    train(args.out, args.seeds, args.precision)
    print((args.out / "machine.txt").read_text())
    print(f"{args.precision}; the last epoch: mean ± standard deviation over seeds {args.seeds}.\n")
    curves, agree = compare(args.out, args.seeds)
    if args.picture:
        pictures.save(draw(curves), args.picture)
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    memory.limit_arenas()
    backend.configure()
    main()
