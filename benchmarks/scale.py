"""Measure time and memory of the commands on many chips and labels.

    python benchmarks/scale.py [--chips 100000] [--labels 60] [--side 64] [--only COMMAND]

Draws 200 chips as `data.source=sample` does, resized to SIDE, and links them under the names of all
CHIPS. Label i is on about 1 / (i + 2) of the chips, at random, so nothing can be learned.
Training takes 100 chips at most; evaluate scores a fifth of all. The table has each command's time
and largest resident memory, in which pages of mapped files count. TMPDIR chooses the disk; chips of
256 px need some 10 GB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
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
    arguments = [sys.executable, "-m", "planet_jax.main", command, *options]
    began = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(f"{command} ended with status {os.waitstatus_to_exitcode(status)}")
    print(f"| `{command}` | {seconds:.0f} s | {usage.ru_maxrss / 2**20:.1f} GiB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=60)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--only", choices=COMMANDS)
    arguments = parser.parse_args()
    print(machine.describe("jax", "jaxlib"))
    print(f"{arguments.chips:,} chips of {arguments.side} px with {arguments.labels} labels.\n")
    print("| command | time | memory |\n| --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        draw(root, arguments.chips, arguments.labels, arguments.side)
        settings = {
            "data.source": "folder", "data.root": root, "data.cache": Path(folder) / "cache",
            "data.size": 32, "data.batch_size": 32, "data.subset": root / "subset.csv",
            "model.name": "tiny", "model.weights": "random", "train.epochs": 1,
            "workdir": Path(folder) / "run", "predict.folder": root / "train-jpg",
        }  # fmt: skip
        options = ["--config=smoke", *(f"--config.{name}={settings[name]}" for name in settings)]
        for command in [arguments.only] if arguments.only else COMMANDS:
            measure(command, options)


if __name__ == "__main__":
    main()
