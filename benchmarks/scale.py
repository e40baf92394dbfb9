"""Measure time and memory of the commands on many chips and labels.

    python benchmarks/scale.py OUT [--chips 100000] [--labels 60] [--side 64]
    python benchmarks/scale.py OUT --chips 40479 --labels 17 --side 256 --only prepare

Draws 200 chips as `data.source=sample` does, resized to SIDE, and links them under the names of all
CHIPS. Label i is on about 1 / (i + 2) of the chips, at random, so nothing can be learned.
Training takes 100 chips at most; evaluate scores a fifth of all. Prints for each command its time
and the largest resident memory, in which pages of mapped files count.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from planet_jax.data import sample

COMMANDS = ("prepare", "train", "evaluate", "predict", "report")


def draw(root: Path, chips: int, labels: int, side: int) -> None:
    (root / "train-jpg").mkdir(parents=True)
    drawn = []
    for i in range(min(200, chips)):
        rng = np.random.default_rng([0, i])
        chip = sample.draw_chip(rng, sample.draw_tags(rng))
        path = root / f"drawn_{i}.jpg"
        path.write_bytes(sample.encode(np.asarray(Image.fromarray(chip).resize((side, side)))))
        drawn.append(path)
    has = np.random.default_rng(0).random((chips, labels)) < 1 / np.arange(2, labels + 2)
    has[np.arange(chips), np.arange(chips) % labels] = True
    classes = np.array([f"label_{i}" for i in range(labels)], object)
    table = pd.DataFrame({"image_name": [f"chip_{i}" for i in range(chips)]})
    table["tags"] = [" ".join(classes[row]) for row in has]
    for i, name in enumerate(table["image_name"]):
        os.link(drawn[i % len(drawn)], root / "train-jpg" / f"{name}.jpg")
    table.to_csv(root / "train_v2.csv", index=False)
    table[:100].to_csv(root / "subset.csv", index=False)


def measure(command: str, options: list[str]) -> None:
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "planet_jax.main", command, *options])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    print(f"{command}: {seconds:.0f} s, {usage.ru_maxrss / 2**20:.1f} GiB", flush=True)
    if status:
        sys.exit(f"{command} ended with status {os.waitstatus_to_exitcode(status)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--chips", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=60)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--only", choices=COMMANDS)
    arguments = parser.parse_args()
    out = arguments.out
    if not (out / "root" / "train_v2.csv").exists():
        draw(out / "root", arguments.chips, arguments.labels, arguments.side)
    settings = {
        "data.source": "folder", "data.root": out / "root", "data.cache": out / "cache",
        "data.size": 32, "data.batch_size": 32, "data.subset": out / "root" / "subset.csv",
        "model.name": "tiny", "model.weights": "random", "train.epochs": 1, "workdir": out / "run",
        "predict.folder": out / "root" / "train-jpg",
    }  # fmt: skip
    options = ["--config=smoke", *(f"--config.{name}={value}" for name, value in settings.items())]
    for command in [arguments.only] if arguments.only else COMMANDS:
        measure(command, options)


if __name__ == "__main__":
    main()
