"""Measure what a training step loses without large pages (Linux with glibc, on a CPU).

    python benchmarks/large_pages.py [--rounds 14]

Two processes take the same step of 16 chips of 128 px in turn, one with
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 and one without.
"""

import argparse
import os

import machine
import step
from worker import Worker

WITH = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=14)
    args = parser.parse_args()
    print(machine.describe("jax", "jaxlib", "flax"))
    print(f"{args.rounds} alternating rounds; median (least to most).\n")
    print("| step | time without large pages / with |\n| --- | --- |")
    without = {name: value for name, value in os.environ.items() if name not in WITH}
    for kind in ("frozen", "full"):
        workers = {
            "with": Worker(step.command("ours", kind), without | WITH),
            "without": Worker(step.command("ours", kind), without),
        }
        seconds = step.alternate(workers, args.rounds)
        print(f"| {kind} | {step.ratio(seconds['without'], seconds['with'])} |", flush=True)


if __name__ == "__main__":
    main()
