"""Compare the costs of our step and a plain Flax step, as TPU and GPU compilers report them.

    python benchmarks/accelerator.py [--target v5e:2x2] [--target h100:4] [--chips 128] [--size 128]

The default is 128 chips of 128 px per device, in bfloat16. The numbers are the same in every run
and on every machine. Each step takes minutes to compile. "Ours, global" has BatchNorm over all
devices; the other steps have it per device. Needs the `preflight` extra.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import plain
from ml_collections import ConfigDict

from planet_jax.config import get_config
from planet_jax.preflight import cost, targets

CLASSES = 17


def ours(target: targets.Target, freeze: bool, norm: str, chips: int, size: int) -> cost.Cost:
    config: ConfigDict = get_config()
    config.optim.freeze, config.model.batch_norm = freeze, norm
    config.data.size, config.train.precision = size, "bfloat16"
    train, _ = cost.steps(config, CLASSES)
    return cost.measure(train, target, chips)


def flaxs(target: targets.Target, freeze: bool, chips: int, size: int) -> cost.Cost:
    def lower(devices: Sequence[Any], chips: int) -> Any:
        init, step = plain.make(CLASSES, freeze, "bfloat16", list(devices))
        n = len(devices)
        batch = (
            jax.ShapeDtypeStruct((n, chips, size, size, 3), jnp.uint8),
            jax.ShapeDtypeStruct((n, chips, CLASSES), jnp.uint8),
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        return step.lower(jax.eval_shape(init), *batch, key)

    return cost.measure(lower, target, chips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append")
    parser.add_argument("--chips", type=int, default=128)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    print("| target | step | whose | GFLOP | GB moved | ratio | temporaries GB | all-reduces |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in args.target or ["v5e:2x2", "h100:4"]:
        target = targets.find(name)
        for freeze in (True, False):
            yardstick = flaxs(target, freeze, args.chips, args.size)
            rows = {"plain Flax": yardstick} | {
                f"ours, {norm}": ours(target, freeze, norm, args.chips, args.size)
                for norm in ("device", "global")
            }
            for whose, found in rows.items():
                print(
                    f"| {name} | {'frozen' if freeze else 'full'} | {whose} "
                    f"| {found.flops / 1e9:.0f} | {found.bytes_moved / 1e9:.2f} "
                    f"| {found.bytes_moved / yardstick.bytes_moved:.2f} "
                    f"| {found.temporary_bytes / 1e9:.2f} "
                    f"| {found.all_reduces} of {found.all_reduce_bytes / 1e6:.1f} MB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
