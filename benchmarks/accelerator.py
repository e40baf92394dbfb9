"""Compare our step with a plain Flax step, and preflight's limits with published speeds.

    python benchmarks/accelerator.py [--target v5e:2x2] [--target h100:4] [--chips 128] [--size 128]
    python benchmarks/accelerator.py --published

Everything follows from the programs that the compilers of TPUs and GPUs make, so the numbers are
the same in every run and on every machine. Each step takes minutes to compile. The steps are in
bfloat16, with 128 chips of 128 px per device by default; "ours, global" has BatchNorm over all
devices, the others have it per device. `--published` compiles the full plain Flax step in the size
of each published measurement of ResNet50. Needs the `preflight` extra.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import plain
from ml_collections import ConfigDict

from planet_jax.config import get_config
from planet_jax.preflight import cost, examine, targets

CLASSES = 17
PRECISION = "bfloat16"


class Published(NamedTuple):
    """A published speed of training ResNet50 at 224 px in 16-bit precision."""

    target: str
    batch: int  # images per device
    rate: float  # images/s of all devices
    program: str
    source: str


PUBLISHED = (
    Published(
        "v3:2x2", 128, 8087, "Flax's example, 100 epochs in 4.4 h",
        "github.com/google/flax examples/imagenet/README.md",
    ),
    Published(
        "v4:2x2x2", 128, 27823, "TensorFlow, MLPerf 0.7, with evaluations; at least",
        "github.com/mlcommons/training_results_v0.7 Google/results/tpu-v4-16-TF",
    ),
    Published(
        "a100:1", 256, 2470, "PyTorch, NVIDIA",
        "github.com/NVIDIA/DeepLearningExamples PyTorch/.../resnet50v1.5/README.md",
    ),
    Published(
        "a100:1", 256, 2180, "MXNet, NVIDIA",
        "github.com/NVIDIA/DeepLearningExamples MxNet/.../RN50v1.5/README.md",
    ),
    Published(
        "h100:8", 400, 56088, "MXNet with fused kernels, MLPerf 3.0",
        "github.com/mlcommons/training_results_v3.0 Dell/results/XE9680x8H100-SXM-80GB/resnet",
    ),
)  # fmt: skip


def ours(target: targets.Target, freeze: bool, norm: str, chips: int, size: int) -> cost.Cost:
    config: ConfigDict = get_config()
    config.optim.freeze, config.model.batch_norm = freeze, norm
    config.data.size, config.train.precision = size, PRECISION
    train, _ = cost.steps(config, CLASSES)
    return cost.measure(train, target, chips, PRECISION)


def flaxs(target: targets.Target, freeze: bool, chips: int, size: int) -> cost.Cost:
    def lower(devices: Sequence[Any], chips: int) -> Any:
        init, step = plain.make(CLASSES, freeze, PRECISION, list(devices))
        n = len(devices)
        batch = (
            jax.ShapeDtypeStruct((n, chips, size, size, 3), jnp.uint8),
            jax.ShapeDtypeStruct((n, chips, CLASSES), jnp.uint8),
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        return step.lower(jax.eval_shape(init), *batch, key)

    return cost.measure(lower, target, chips, PRECISION)


def compare_steps(names: list[str], chips: int, size: int) -> None:
    print(
        "| target | step | whose | GFLOP | GB moved | computing, moving | at most | × plain "
        "| estimate | × plain | temporaries | all-reduces |"
    )
    print("| --- " * 12 + "|")
    for name in names:
        target = targets.find(name)
        for freeze in (True, False):
            rows = {"plain Flax": flaxs(target, freeze, chips, size)} | {
                f"ours, {norm}": ours(target, freeze, norm, chips, size)
                for norm in ("device", "global")
            }
            first = None
            for whose, found in rows.items():
                compute, memory = examine.least_seconds(found, target.hardware, PRECISION)
                rates = (
                    chips / max(compute, memory),
                    chips / examine.estimated_seconds(found, target),
                )
                first = first or rates
                print(
                    f"| {name} | {'frozen' if freeze else 'full'} | {whose} "
                    f"| {found.flops / 1e9:,.0f} | {found.bytes_moved / 1e9:.2f} "
                    f"| {compute * 1e3:.2f}, {memory * 1e3:.2f} ms "
                    f"| {rates[0]:,.0f} | {rates[0] / first[0]:.2f} "
                    f"| {rates[1]:,.0f} | {rates[1] / first[1]:.2f} "
                    f"| {found.temporary_bytes / 1e9:.2f} GB "
                    f"| {found.all_reduces} of {found.all_reduce_bytes / 1e6:.1f} MB |",
                    flush=True,
                )


def compare_published() -> None:
    print("| target | images per device | published | at most | estimate | estimate / published |"
          " program | source |")  # fmt: skip
    print("| --- " * 8 + "|")
    for row in PUBLISHED:
        target = targets.find(row.target)
        found = flaxs(target, False, row.batch, 224)
        batch = row.batch * len(target.devices)
        most = batch / max(examine.least_seconds(found, target.hardware, PRECISION))
        estimate = batch / examine.estimated_seconds(found, target)
        print(
            f"| {row.target} | {row.batch} | {row.rate:,.0f} images/s | {most:,.0f} "
            f"| {estimate:,.0f} | {estimate / row.rate:.2f} | {row.program} | {row.source} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append")
    parser.add_argument("--chips", type=int, default=128)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--published", action="store_true")
    args = parser.parse_args()
    if args.published:
        compare_published()
    else:
        compare_steps(args.target or ["v5e:2x2", "h100:4"], args.chips, args.size)


if __name__ == "__main__":
    main()
