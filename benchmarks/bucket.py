"""Measure how long a save delays a step, in a folder and in a bucket, and count the requests.

    python benchmarks/bucket.py [--rounds 3]

Each round trains ResNet50 for 40 steps of 16 chips of 64 px in a folder, in an S3 server and in a
GCS emulator on the loopback, which use the same cores. It saves every 10 steps.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import machine
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.bucket_server import serve

SAVES = 4  # two of them at the end of an epoch


def train(folder: Path, workdir: str, environment: dict[str, str]) -> list[float]:
    """Train a new run; return the seconds that each save delayed its step."""
    flags = {
        "workdir": workdir, "data.root": folder / "sample", "data.cache": folder / "cache",
        "train.save_every": 10, "train.save_minutes": 0,
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "planet_jax.main", "train", "--config=configs/smoke.py",
         *[f"--config.{name}={value}" for name, value in flags.items()]],
        env=os.environ | environment, check=True, capture_output=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    run = Path(workdir)
    if "://" in workdir:  # the local copy
        protocol, _, name = workdir.partition("://bucket/")
        run = next((folder / "xdg" / "planet_jax" / protocol).glob(f"*/{name}"))
    table = pd.read_csv(run / "steps.csv")
    return [float(seconds) for seconds in table["save_stall"] if seconds > 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(machine.describe("jax", "gcsfs", "s3fs"))
    print(f"ResNet50, {SAVES} saves of a run, {rounds} rounds.\n")
    stalls: dict[str, list[float]] = {"folder": [], "s3": [], "gs": []}
    counts: dict[str, list[str]] = {"folder": ["none"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = {"XDG_CACHE_HOME": str(folder / "xdg")}
        train(folder, str(folder / "first"), common)  # draws the chips and compiles
        for number in range(rounds):
            stalls["folder"] += train(folder, str(folder / f"run{number}"), common)
            for kind in ("s3", "gs"):
                with serve(kind) as (proxy, environment):
                    stalls[kind] += train(
                        folder, f"{kind}://bucket/run{number}", common | environment
                    )
                    counts[kind] = [f"{n} {method}" for method, n in sorted(proxy.counts.items())]
    print("| run folder | delay of a step by a save, median (largest) | requests of a whole run |")
    print("| --- | --- | --- |")
    for kind, seconds in stalls.items():
        middle = f"{statistics.median(seconds):.2f} ({max(seconds):.2f}) s"
        print(f"| {kind} | {middle} | {', '.join(counts[kind])} |")


if __name__ == "__main__":
    main()
