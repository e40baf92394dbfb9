"""Measure the loader's chips per second beside Pillow, OpenCV's bare warp and fastai v1.

    python benchmarks/loader.py [--root ../shared/data/ucmerced] [--fastai PYTHON] [--rounds 5]

All take turns; a figure is the best of the rounds, a ratio the median over rounds. Pillow in one
thread is the unit ("yardstick"), because only ratios are comparable between machines. The bare warp
rotates and zooms decoded pixels, without lighting, batches or labels; it needs OpenCV. PYTHON is an
interpreter that has fastai 1.0.61. The last rows load in one process, and in two at a time, each
with a core of its own.
"""

import argparse
import functools
import importlib.util
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import machine
import numpy as np
from PIL import Image
from worker import Worker, serve

from planet_jax.data import dataset, loader
from planet_jax.data.augment import draw, matrices

BATCH = 64


def rate(work: Callable[[], int]) -> float:
    """Return the chips per second of `work`, which returns its number of chips."""
    began = time.perf_counter()
    return work() / (time.perf_counter() - began)


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


def load_pinned(args: argparse.Namespace) -> None:
    """Load epochs on one core for a `Worker`, which gets the chips/s."""
    os.sched_setaffinity(0, {args.core})
    data = dataset.load(args.root, args.cache)
    ours(data, 128, 0, epochs=1)
    serve(lambda: rate(lambda: ours(data, 128, 0)))


def together(processes: list[Worker]) -> float:
    for process in processes:
        process.start()
    return sum(process.result() for process in processes)


def contestants(args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Return functions that each load some chips and return the chips/s."""
    data = dataset.load(args.root, args.cache)
    files = sorted((args.root / "train-jpg").iterdir())[:300]
    chips = data.chips[np.arange(512)]
    drawn = matrices(draw(np.random.default_rng(0), len(chips)))
    ours(data, 128, 0, epochs=1)  # compile, and read the pixels into memory
    found: dict[str, Callable[[], float]] = {
        "Pillow, one thread: decode + resize to 128 px": lambda: rate(lambda: yardstick(files))
    }
    for size in (128, 256):
        for threads in (0, 1, 2):
            work = functools.partial(ours, data, size, threads)
            found[f"ours, {size} px, {threads} threads"] = functools.partial(rate, work)
        if args.fastai:
            command = [args.fastai, str(Path(__file__).with_name("fastai_loader.py"))]
            process = Worker([*command, str(args.root), str(size), "2"])
            found[f"fastai v1, {size} px, 2 workers"] = process.measure
        if importlib.util.find_spec("cv2"):
            work = functools.partial(warp, chips, drawn, size, 2)
            found[f"OpenCV's bare warp, {size} px, 2 threads"] = functools.partial(rate, work)
    command = [sys.executable, __file__, "--root", str(args.root), "--cache", str(args.cache)]
    cores = sorted(os.sched_getaffinity(0))[:2]
    pinned = [Worker([*command, "--core", str(core)]) for core in cores]
    found["ours, 128 px, one process on one core"] = pinned[0].measure
    if len(pinned) == 2:
        found["ours, 128 px, two processes on a core each"] = lambda: together(pinned)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("../shared/data/ucmerced"))
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    parser.add_argument("--fastai", metavar="PYTHON", default=os.environ.get("FASTAI_PYTHON"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)  # in a pinned process
    args = parser.parse_args()
    if args.core is not None:
        return load_pinned(args)
    print(machine.describe("numpy", "numba", "grain", "pillow", "opencv-python-headless"))
    print(f"Chips of {args.root}, all augmentations, {args.rounds} alternating rounds.\n")
    found = contestants(args)
    rates: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(args.rounds):
        for name, load in found.items():
            rates[name].append(load())
    unit = rates[next(iter(rates))]
    print("| what | chips/s | yardsticks: median (least to most) |\n| --- | --- | --- |")
    for name, speeds in rates.items():
        ratios = [speed / one for speed, one in zip(speeds, unit, strict=True)]
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"| {name} | {max(speeds):,.0f} | {spread} |")
    data = dataset.load(args.root, args.cache)
    print(f"\nA model of one linear layer waits for this loader {waiting(data, 128, 2):.0%} of its "
          "time (128 px, 2 threads).")  # fmt: skip


if __name__ == "__main__":
    main()
