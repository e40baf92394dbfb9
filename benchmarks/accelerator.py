"""Compute what steps cost on TPUs and GPUs that are not attached.

    python benchmarks/accelerator.py steps [--target v5e:2x2] [--target h100:4]
    python benchmarks/accelerator.py batches [--target v5e:2x2] [--chips 16 256] [--size 256]
    python benchmarks/accelerator.py published
    python benchmarks/accelerator.py stages [--target v5e:2x4] [--target h100:8]
    python benchmarks/accelerator.py slices
    python benchmarks/accelerator.py networks [--target v5e:2x2] [--target h100:4]

Everything follows from the programs that the compilers of TPUs and GPUs make, so the numbers are
the same in every run and on every machine. Each step takes minutes to compile. All steps are in
bfloat16.

`steps` compares our step with a plain Flax step at 128 px; "ours, global" has BatchNorm over all
devices, the others have it per device. `batches` compares them with other numbers and sizes of
chips, and BatchNorm per device. `published` compiles the full plain Flax step in the size of each
published measurement of ResNet50. `stages` and `slices` run `preflight` for the four stages with
512 chips a step, and for slices of v5p with 128 chips per device. `networks` has our steps of
ResNet18 and ResNet101 at 128 px, with global BatchNorm. Needs the `preflight` extra.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import machine
import plain
from ml_collections import ConfigDict

from planet_jax.config import get_config
from planet_jax.config_file import load
from planet_jax.preflight import cost, examine, targets

ROOT = Path(__file__).parents[1]
CLASSES, TRAINING_CHIPS = 17, 32_384  # of the competition
CHIPS = 128  # per device in steps, slices and networks
PRECISION = "bfloat16"


class Published(NamedTuple):
    """A published speed of training ResNet50 at 224 px in 16-bit precision."""

    target: str
    batch: int  # images per device
    rate: int  # images/s of all devices
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


def ours(
    target: targets.Target, freeze: bool, norm: str, chips: int, size: int, network: str
) -> cost.Cost:
    config: ConfigDict = get_config()
    config.model.name = network
    config.optim.freeze, config.model.batch_norm = freeze, norm
    config.data.size, config.train.precision = size, PRECISION
    train, _ = cost.steps(config, CLASSES)
    return cost.measure(train, target, chips, PRECISION)


def plain_flax(target: targets.Target, freeze: bool, chips: int, size: int) -> cost.Cost:
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


def rate_at_most(found: cost.Cost, target: targets.Target, chips: int) -> float:
    """Return the ceiling of the chips/s for a step of `chips`."""
    return chips / max(examine.least_seconds(found, target.hardware, PRECISION))


def estimated_rate(found: cost.Cost, target: targets.Target, chips: int) -> float:
    """Return the estimate of the chips/s for a step of `chips`."""
    return chips / examine.estimated_seconds(found, target)


def print_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def print_head(*cells: str) -> None:
    print_row(*cells)
    print_row(*["---"] * len(cells))


def steps(names: list[str]) -> None:
    print_head("target", "step", "whose", "GFLOP", "GB moved", "computing, moving", "at most",
               "× plain", "estimate", "× plain", "temporaries", "all-reduces")  # fmt: skip
    for name in names:
        target = targets.find(name)
        for freeze in (True, False):
            rows = {"plain Flax": plain_flax(target, freeze, CHIPS, 128)} | {
                f"ours, {norm}": ours(target, freeze, norm, CHIPS, 128, "resnet50")
                for norm in ("device", "global")
            }
            first = None
            for whose, found in rows.items():
                compute, memory = examine.least_seconds(found, target.hardware, PRECISION)
                most = rate_at_most(found, target, CHIPS)
                estimate = estimated_rate(found, target, CHIPS)
                first = first or (most, estimate)
                print_row(
                    name, "frozen" if freeze else "full", whose, f"{found.flops / 1e9:,.0f}",
                    f"{found.bytes_moved / 1e9:.2f}", f"{compute * 1e3:.2f}, {memory * 1e3:.2f} ms",
                    f"{most:,.0f}", f"{most / first[0]:.2f}", f"{estimate:,.0f}",
                    f"{estimate / first[1]:.2f}", f"{found.temporary_bytes / 1e9:.2f} GB",
                    f"{found.all_reduces} of {found.all_reduce_bytes / 1e6:.1f} MB",
                )  # fmt: skip


def batches(names: list[str], batch_sizes: list[int], size: int) -> None:
    print_head("target", "step", "chips", "plain Flax: at most", "ours", "× plain",
               "plain Flax: estimate", "ours", "× plain")  # fmt: skip
    for name in names:
        target = targets.find(name)
        for freeze in (True, False):
            for chips in batch_sizes:
                theirs = plain_flax(target, freeze, chips, size)
                mine = ours(target, freeze, "device", chips, size, "resnet50")
                cells: list[object] = [name, "frozen" if freeze else "full", chips]
                for rate in (rate_at_most, estimated_rate):
                    rates = rate(theirs, target, chips), rate(mine, target, chips)
                    cells += [f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[1] / rates[0]:.2f}"]
                print_row(*cells)


def published() -> None:
    print_head("target", "images per device", "published", "at most", "estimate",
               "estimate / published", "program", "source")  # fmt: skip
    for row in PUBLISHED:
        target = targets.find(row.target)
        found = plain_flax(target, False, row.batch, 224)
        batch = row.batch * len(target.devices)
        most = rate_at_most(found, target, batch)
        estimate = estimated_rate(found, target, batch)
        print_row(
            row.target, row.batch, f"{row.rate:,} images/s", f"{most:,.0f}", f"{estimate:,.0f}",
            f"{estimate / row.rate:.2f}", row.program, row.source,
        )  # fmt: skip


def stages(names: list[str]) -> None:
    print_head("stage", "target", "memory per device", "GFLOP, GB moved per device",
               "computing, moving", "at most", "kernels, all-reduces", "estimate",
               "an epoch, estimated")  # fmt: skip
    for stage in ("stage1", "stage2", "stage1_256", "stage2_256"):
        for name in names:
            config: ConfigDict = load(str(ROOT / "configs" / f"{stage}.py"))
            config.train.precision, config.data.batch_size = PRECISION, 512
            found = examine.examine(config, targets.find(name), CLASSES, TRAINING_CHIPS)
            print_row(stage, name, *cells_of(found))


def slices() -> None:
    print_head("devices", "batch", "memory per device", "GFLOP, GB moved per device",
               "computing, moving", "at most", "kernels, all-reduces", "estimate",
               "an epoch, estimated", "steps an epoch", "each host's loader")  # fmt: skip
    for shape in ("2x2x2", "2x4x4", "4x4x8", "8x8x8"):
        config: ConfigDict = load(str(ROOT / "configs" / "stage2.py"))
        devices = math.prod(map(int, shape.split("x")))
        config.train.precision, config.data.batch_size = PRECISION, CHIPS * devices
        found = examine.examine(config, targets.find(f"v5p:{shape}"), CLASSES, TRAINING_CHIPS)
        print_row(
            f"{devices}, {shape}", f"{CHIPS * devices:,}", *cells_of(found),
            found["steps_per_epoch"], f"{found['loader_chips_per_second_per_host']:,.0f}",
        )  # fmt: skip


def networks(names: list[str]) -> None:
    print_head("target", "network", "step", "GFLOP", "GB moved", "computing, moving", "at most",
               "estimate", "temporaries")  # fmt: skip
    for name in names:
        target = targets.find(name)
        for network in ("resnet18", "resnet101"):
            for freeze in (True, False):
                found = ours(target, freeze, "global", CHIPS, 128, network)
                compute, memory = examine.least_seconds(found, target.hardware, PRECISION)
                print_row(
                    name, network, "frozen" if freeze else "full", f"{found.flops / 1e9:,.0f}",
                    f"{found.bytes_moved / 1e9:.2f}", f"{compute * 1e3:.2f}, {memory * 1e3:.2f} ms",
                    f"{rate_at_most(found, target, CHIPS):,.0f}",
                    f"{estimated_rate(found, target, CHIPS):,.0f}",
                    f"{found.temporary_bytes / 1e9:.2f} GB",
                )  # fmt: skip


def cells_of(found: dict[str, Any]) -> list[str]:
    milliseconds = {name: found[f"{name}_seconds"] * 1e3
                    for name in ("compute", "memory", "kernel", "all_reduce")}  # fmt: skip
    return [
        f"{found['peak_bytes'] / 1e9:.2f} of {found['device_memory_bytes'] / 1e9:.1f} GB",
        f"{found['flops'] / 1e9:,.0f}, {found['bytes_moved'] / 1e9:.2f}",
        f"{milliseconds['compute']:.1f}, {milliseconds['memory']:.1f} ms",
        f"{found['chips_per_second_at_most']:,.0f} chips/s",
        f"{milliseconds['kernel']:.1f}, {milliseconds['all_reduce']:.1f} ms",
        f"{found['chips_per_second_estimate']:,.0f} chips/s",
        f"{found['epoch_seconds_estimate']:.2f} s",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tables = ["steps", "batches", "published", "stages", "slices", "networks"]
    parser.add_argument("table", choices=tables)
    parser.add_argument("--target", action="append")
    parser.add_argument("--chips", type=int, nargs="+", help="per device, for batches")
    parser.add_argument("--size", type=int, help="of chips in pixels, for batches")
    args = parser.parse_args()
    if (args.chips or args.size) and args.table != "batches":
        parser.error("--chips and --size are options of batches alone")
    if args.target and args.table in ("published", "slices"):
        parser.error(f"{args.table} has its own targets")
    print(machine.versions("jax", "libtpu", "jax-cuda12-pjrt"), end="\n\n")
    match args.table:
        case "steps":
            steps(args.target or ["v5e:2x2", "h100:4"])
        case "batches":
            names = args.target or ["v5e:2x2", "v5p:2x2x1", "h100:4"]
            batches(names, args.chips or [16, 64, 128, 256], args.size or 128)
        case "published":
            published()
        case "stages":
            stages(args.target or ["v5e:2x4", "v5p:2x2x2", "h100:8"])
        case "slices":
            slices()
        case "networks":
            networks(args.target or ["v5e:2x2", "h100:4"])


if __name__ == "__main__":
    main()
