"""Measure the loader's chips per second; compare one Pillow thread and OpenCV's bare warp.

    python benchmarks/loader.py [--root ../shared/data/ucmerced] [--cache data/cache]

Each figure is the best of three. Pillow's speed is the unit ("yardstick"), because only ratios are
comparable between machines. fastai v1's loader reaches 0.71 yardsticks with 2 workers on 2 cores
(728 chips/s, and Pillow 1,029), so ten times fastai is 7.1 yardsticks. The bare warp rotates and
zooms decoded pixels, without lighting, batches or labels; it needs OpenCV.
"""

import argparse
import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from planet_jax.data import dataset, loader
from planet_jax.data.augment import draw, matrices

BATCH = 64


def best(work: Callable[[], int], times: int = 3) -> float:
    """Return the best chips per second of `work`, which returns its number of chips."""
    speeds = []
    for _ in range(times):
        began = time.perf_counter()
        speeds.append(work() / (time.perf_counter() - began))
    return max(speeds)


def yardstick(files: list[Path]) -> int:
    for file in files:
        image = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        np.asarray(image.resize((128, 128), Image.Resampling.BILINEAR))
    return len(files)


def ours(data: dataset.Dataset, size: int, threads: int, epochs: int = 4) -> int:
    rows = np.arange(len(data.labels.names))
    batches = loader.train_batches(
        data, rows, size=size, batch_size=BATCH, epochs=epochs, seed=0, augment={}, threads=threads
    )
    return sum(len(batch["chips"]) for batch in batches)


def warp(chips: np.ndarray, drawn: np.ndarray, size: int, threads: int) -> int:
    import cv2

    cv2.setNumThreads(1)
    side = chips.shape[1] - 1
    scale = np.array([[side / 2, 0], [0, side / 2]])
    to_grid = np.array([[2 / (size - 1), 0, -1], [0, 2 / (size - 1), -1], [0, 0, 1]])

    def one(i: int) -> None:
        matrix = scale @ (drawn[i] @ to_grid + [[0, 0, 1], [0, 0, 1]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cv2.warpAffine(
            chips[i], matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101
        )

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(len(chips)), chunksize=64))
    return len(chips)


def waiting(data: dataset.Dataset, size: int, threads: int) -> float:
    """Return the share of time in which a training loop of one linear layer waits for batches."""
    step = jax.jit(lambda w, x: w + 1e-9 * (x.reshape(len(x), -1) @ w).mean())
    weights, waited = np.zeros((3 * size**2, 17), np.float32), 0.0
    rows = np.arange(len(data.labels.names))
    batches = loader.train_batches(
        data, rows, size=size, batch_size=BATCH, epochs=4, seed=0, augment={}, threads=threads
    )
    weights = step(weights, next(batches)["chips"])
    began = time.perf_counter()
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - start
        if batch is None:
            break
        weights = step(weights, batch["chips"])
    weights.block_until_ready()
    return waited / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("../shared/data/ucmerced"))
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    args = parser.parse_args()
    data = dataset.load(args.root, args.cache)
    files = sorted((args.root / "train-jpg").iterdir())[:300]
    chips = data.chips[np.arange(512)]
    drawn = matrices(draw(np.random.default_rng(0), len(chips)))
    ours(data, 128, 0, epochs=1)  # compile, and read the pixels into memory
    unit = best(lambda: yardstick(files))
    print(f"{len(os.sched_getaffinity(0))} cores; {len(data.labels.names)} chips of {args.root}")
    print("| what | chips/s | yardsticks |\n| --- | --- | --- |")
    print(f"| Pillow, one thread: decode + resize to 128 px | {unit:,.0f} | 1.0 |")
    for size in (128, 256):
        for threads in (0, 1, 2):
            speed = best(lambda size=size, threads=threads: ours(data, size, threads))
            print(f"| ours, {size} px, {threads} threads | {speed:,.0f} | {speed / unit:.1f} |")
        try:
            speed = best(lambda size=size: warp(chips, drawn, size, 2))
            print(
                f"| OpenCV's bare warp, {size} px, 2 threads | {speed:,.0f} | {speed / unit:.1f} |"
            )
        except ImportError:
            print("| bare warp: OpenCV is not installed | | |")
    print(f"input_wait of one linear layer, 128 px, 2 threads: {waiting(data, 128, 2):.2f}")


if __name__ == "__main__":
    main()
