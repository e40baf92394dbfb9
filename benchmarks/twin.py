"""Compare the notebook's two 128 px stages with fastai v1, from the same weights and chips.

    python benchmarks/twin.py [--out runs/twin] [--seeds 0 1 2] [--precision float32]

Trains on ../shared/data/ucmerced (840/210 chips, 5 + 5 epochs, batch 64) from the reference's
formula weights, once per seed. Prints the final figures beside ../shared/reference/twin.json and
writes the loss curves to OUT/twin.png. Exits with 1 if the programs disagree (see `compare`).
Finished runs are kept, so repeating the command only compares them. Three seeds take about 35
minutes on 2 cores.
"""

import argparse
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from flax import traverse_util
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from planet_jax import commands
from planet_jax.config import get_config
from planet_jax.model import weights
from planet_jax.model.classifier import abstract_variables
from planet_jax.results import pictures

SHARED = Path(__file__).parents[2] / "shared"
STAGES = {"stage1": (True, (1e-2, 2e-2)), "stage2": (False, (1e-4, 2e-3))}
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


def compare(out: Path, seeds: list[int]) -> tuple[pd.DataFrame, dict[str, np.ndarray], bool]:
    """Compare the final figures of both programs over their seeds.

    Returns:
      A table of final figures, our smoothed losses [seed, step] by stage, and whether they agree.
      Validation loss and F2 may differ by twice fastai's standard deviation over its seeds, or by
      0.02. The frozen stage's smoothed loss may differ by 3%. Accuracy does not count.
    """
    theirs = json.loads((SHARED / "reference" / "twin.json").read_text())["runs"]
    rows, curves = [], {}
    agree = True
    for stage in STAGES:
        histories = [pd.read_csv(out / f"{stage}-{seed}" / "history.csv") for seed in seeds]
        for figure in FIGURES:
            a = np.array([run[stage][figure][-1] for run in theirs])
            b = np.array([history[figure].iloc[-1] for history in histories])
            allowed = max(2 * a.std(ddof=1), 0.02)
            difference = b.mean() - a.mean()
            agree &= figure == "accuracy_thresh" or abs(difference) <= allowed
            sd_a, sd_b = a.std(ddof=1), b.std(ddof=1)
            rows.append([stage, figure, a.mean(), sd_a, b.mean(), sd_b, difference, allowed])
        steps = [pd.read_csv(out / f"{stage}-{seed}" / "steps.csv") for seed in seeds]
        curves[stage] = np.array([table["smooth_loss"] for table in steps])
        their_curve = np.array([run[stage]["smooth_loss"] for run in theirs]).mean(0)
        ratio = (curves[stage].mean(0) / their_curve)[9::10] - 1
        print(f"{stage}: smoothed loss at every tenth step, ours / theirs - 1:", np.round(ratio, 4))
        agree &= stage == "stage2" or bool((np.abs(ratio) <= 0.03).all())
    columns = ["stage", "figure", "fastai", "sd", "ours", "our sd", "difference", "allowed"]
    return pd.DataFrame(rows, columns=columns), curves, agree


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
        axis.set_title({"stage1": "frozen", "stage2": "unfrozen"}[stage])
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
    args = parser.parse_args()
    if not (args.out / "formula.safetensors").exists():
        write_weights(args.out / "formula.safetensors")
    for seed in args.seeds:
        for name in STAGES:
            commands.train(stage_config(args.out, seed, name, args.precision))
    table, curves, agree = compare(args.out, args.seeds)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    pictures.save(draw(curves), args.out / "twin.png")
    print(f"{args.out / 'twin.png'}: the loss curves")
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
