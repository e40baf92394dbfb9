"""Measure what a step loses if glibc does not keep its memory (Linux with glibc, on a CPU).

    python benchmarks/kept_memory.py [--rounds 14]

Two processes take the same step of 16 chips of 128 px in turn, one with the GLIBC_TUNABLES of
docs/getting-started.md and one without.
"""

import argparse
import os

import machine
import step
from worker import Worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=14)
    args = parser.parse_args()
    print(machine.describe("jax", "jaxlib", "flax"))
    print(f"{args.rounds} alternating rounds; median (least to most).\n")
    print("| step | time without kept memory / with |\n| --- | --- |")
    without = {name: value for name, value in os.environ.items() if name not in step.KEPT}
    for kind in step.KINDS:
        workers = {
            "with": Worker(step.command("ours", kind), without | step.KEPT),
            "without": Worker(step.command("ours", kind), without),
        }
        seconds = step.alternate(workers, args.rounds)
        print(f"| {kind} | {step.ratio(seconds['without'], seconds['with'])} |", flush=True)


if __name__ == "__main__":
    main()
