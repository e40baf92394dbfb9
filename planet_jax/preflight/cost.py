"""Compile a stage's own steps for a target and read their cost from the compiler."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from planet_jax.model import classifier
from planet_jax.preflight.hardware import Hardware
from planet_jax.preflight.program import Kernel, Program
from planet_jax.preflight.targets import Target, compiler_options
from planet_jax.train.stage import make_recipe
from planet_jax.train.steps import create_state, make_predict_step, make_train_step

Lower = Callable[[Sequence[Any], int], Any]  # (devices, chips per device) -> the lowered step
# Assumptions of the estimates for GPUs: the share of the peak rate that a convolution reaches, and
# the time from the start of one kernel to the next, at least.
GPU_SHARE = 0.6
GPU_KERNEL_SECONDS = 3e-6


class Cost(NamedTuple):
    """Cost of one compiled step on each device.

    Attributes:
      argument_bytes: memory of the state and the batch.
      temporary_bytes: memory of everything else.
      peak_bytes: memory of both.
      fast_memory_bytes: the most that arrays occupy of a TPU's fast memory; 0 for a GPU.
      flops: of convolutions and matrix products.
      bytes_moved: what must move to and from main memory, at least.
      bytes_named: what all kernels read and write. A GPU's cache serves a part of it.
      all_reduces: number of all-reduces.
      all_reduce_bytes: bytes of all of them.
      kernel_seconds: an estimate of the step's time without the all-reduces.
    """

    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    fast_memory_bytes: int
    flops: int
    bytes_moved: int
    bytes_named: int
    all_reduces: int
    all_reduce_bytes: int
    kernel_seconds: float


class TooLarge(Exception):
    """The step does not fit the device; `needed` is in bytes, nan where it is unknown."""

    def __init__(self, needed: float) -> None:
        self.needed = needed


def steps(config: ConfigDict, classes: int) -> tuple[Lower, Lower]:
    """Return functions that lower the train step and the predict step of a config."""
    network = config.model.name
    model = classifier.build(classes, network, config.model.batch_norm, config.train.precision)
    variables = classifier.abstract_variables(classes, network)
    recipe = make_recipe(config)  # without the labels' weights, which cost nothing
    state = create_state(variables, recipe)
    beta1 = jax.ShapeDtypeStruct((), jnp.float32)
    rates = {"lr": jax.ShapeDtypeStruct((3,), jnp.float32), "beta1": beta1}
    key = jax.eval_shape(lambda: jax.random.key(0))
    size = config.data.size

    def batch(devices: Sequence[Any], chips: int) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (len(devices), chips)
        return {
            "chips": jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.uint8),
            "targets": jax.ShapeDtypeStruct((*shape, classes), jnp.uint8),
        }

    def lower_train(devices: Sequence[Any], chips: int) -> Any:
        step: Any = make_train_step(model, recipe, tuple(devices))
        return step.lower(state, batch(devices, chips), rates, key)

    def lower_predict(devices: Sequence[Any], chips: int) -> Any:
        step: Any = make_predict_step(model, tuple(devices))
        return step.lower(variables, batch(devices, chips)["chips"])

    return lower_train, lower_predict


def measure(lower: Lower, target: Target, chips: int, precision: str) -> Cost:
    """Compile a step for `chips` per device and return its cost.

    `precision` is the option train.precision of the step.

    Raises:
      TooLarge: the step does not fit the device.
    """
    options = compiler_options(target.hardware.platform)
    try:
        compiled = lower(target.devices, chips).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(_needed_bytes(str(error))) from None
    memory, text = compiled.memory_analysis(), compiled.as_text()
    peak = (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip
    if peak > target.hardware.memory:
        raise TooLarge(peak)
    program = Program(text)
    kernels = list(program.kernels())
    all_reduces = list(program.all_reduces())
    named = sum(kernel.read + kernel.written for kernel in kernels)
    is_tpu = target.hardware.platform == "tpu"
    count = tpu_seconds if is_tpu else gpu_seconds
    return Cost(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=peak,
        fast_memory_bytes=program.fast_memory_peak(),
        flops=sum(kernel.flops for kernel in kernels),
        bytes_moved=named if is_tpu else uncached_bytes(kernels, target.hardware.fast_memory),
        bytes_named=named,
        all_reduces=len(all_reduces),
        all_reduce_bytes=sum(all_reduces),
        kernel_seconds=count(kernels, target.hardware, precision),
    )


def uncached_bytes(kernels: Sequence[Kernel], cache: int) -> int:
    """Return the bytes that a GPU must move, at least.

    When a kernel starts, the cache holds at most its size of what the kernel reads; when it ends,
    at most its size of what it wrote. The rest of both has moved.
    """
    return sum(max(0, k.read - cache) + max(0, k.written - cache) for k in kernels)


def tpu_seconds(kernels: Sequence[Kernel], hardware: Hardware, precision: str) -> float:
    """Estimate a step's time from the compiler's own cycles of each kernel.

    Transfers run beside the kernels, so the longer of both counts.
    """
    cycles = sum(kernel.cycles for kernel in kernels)
    moved = sum(kernel.read + kernel.written for kernel in kernels)
    return max(cycles / hardware.clock, moved / hardware.bandwidth)


def gpu_seconds(kernels: Sequence[Kernel], hardware: Hardware, precision: str) -> float:
    """Estimate a step's time as the sum over kernels, without a cache.

    A kernel takes the longest of its products at `GPU_SHARE` of the peak, its bytes at the memory's
    bandwidth, and `GPU_KERNEL_SECONDS`.
    """
    return sum(
        max(
            kernel.flops / (GPU_SHARE * hardware.peak_flops(precision)),
            (kernel.read + kernel.written) / hardware.bandwidth,
            GPU_KERNEL_SECONDS,
        )
        for kernel in kernels
    )


def _needed_bytes(error: str) -> float:
    """Return the bytes in the TPU compiler's message "Used 17.25G of 15.75G hbm", or nan."""
    used = re.search(r"Used ([\d.]+)([KMGT])", error)
    return float(used[1]) * 1024 ** (1 + "KMGT".index(used[2])) if used else math.nan
