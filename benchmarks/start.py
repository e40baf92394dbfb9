"""Measure the time from a command to its first training step, by part.

    python benchmarks/start.py [--rounds 5]

Each round starts two processes on the drawn sample with ResNet50 at 128 px: one with an empty cache
of compiled programs and one with a filled cache. The chips are built before. The table has the
median over rounds, with the least and the most.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import machine

PARTS = {
    "imports": "Python and all imports",
    "data": "open the data set, split it, first batch",
    "weights": "draw the weights",
    "first step": "compile and take the first step",
    "second step": "take the second step",
}


def start(folder: str) -> None:
    """Start as `train` does; print the seconds of each part."""
    began = float(os.environ["BEGAN"])
    seconds = {}

    def mark(part: str) -> None:
        nonlocal began
        seconds[part], began = time.time() - began, time.time()

    from planet_jax import backend

    backend.configure()
    from planet_jax import commands  # noqa: F401
    from planet_jax.config_file import load
    from planet_jax.train.stage import make_stage
    from planet_jax.train.start import Start, initial_state

    mark("imports")
    config = load("smoke")
    config.data.root, config.data.cache = f"{folder}/sample", f"{folder}/chips"
    config.data.size, config.data.batch_size, config.optim.freeze = 128, 16, False
    stage = make_stage(config)
    batches = stage.train_batches()
    batch = next(batches)
    mark("data")
    state = initial_state(stage, Start())
    mark("weights")
    for part in ("first step", "second step"):
        state, loss = stage.train_step(state, batch, stage.schedule.lr[0], 0.9)
        float(loss)
        mark(part)
    print(json.dumps(seconds))


def measure(folder: str, cache: str) -> dict[str, float]:
    env = os.environ | {"XDG_CACHE_HOME": cache, "BEGAN": str(time.time())}
    command = [sys.executable, __file__, "--folder", folder]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # in the processes that are measured
    args = parser.parse_args()
    if args.folder:
        return start(args.folder)
    print(machine.describe("jax", "jaxlib", "flax"))
    print(f"Seconds, median (least to most) of {args.rounds} rounds.\n")
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        measure(folder, f"{folder}/first")  # builds the chips
        for number in range(args.rounds):
            for kind in found:
                found[kind].append(measure(folder, f"{folder}/cache{number}"))
    print("| part | empty cache | filled cache |\n| --- | --- | --- |")
    for part, description in PARTS.items():
        cells = [summary([seconds[part] for seconds in found[kind]]) for kind in found]
        print(f"| {description} | {' | '.join(cells)} |")
    cells = [summary([sum(seconds.values()) for seconds in found[kind]]) for kind in found]
    print(f"| all | {' | '.join(cells)} |")


def summary(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


if __name__ == "__main__":
    main()
