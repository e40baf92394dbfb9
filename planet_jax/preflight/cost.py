"""Compile a stage's own steps for a target and read their cost from the compiler."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from planet_jax.model import classifier
from planet_jax.preflight.targets import Target, compiler_options
from planet_jax.train.steps import create_state, make_predict_step, make_train_step

Lower = Callable[[Sequence[Any], int], Any]  # (devices, chips per device) -> the lowered step
ITEM_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
}  # fmt: skip
NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


class Cost(NamedTuple):
    """Cost of one compiled step on each device."""

    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    flops: float
    bytes_moved: float
    all_reduces: int
    all_reduce_bytes: int


class TooLarge(Exception):
    """The step does not fit the device; `needed` is in bytes, nan where it is unknown."""

    def __init__(self, needed: float) -> None:
        self.needed = needed


def steps(config: ConfigDict, classes: int) -> tuple[Lower, Lower]:
    """Return functions that lower the train step and the predict step of a config."""
    network = config.model.name
    model = classifier.build(classes, network, config.model.batch_norm, config.train.precision)
    variables = classifier.abstract_variables(classes, network)
    state = jax.eval_shape(lambda v: create_state(v, config.optim.freeze), variables)
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
        freeze, weight_decay = config.optim.freeze, config.optim.weight_decay
        step: Any = make_train_step(model, freeze, weight_decay, tuple(devices))
        return step.lower(state, batch(devices, chips), rates, key)

    def lower_predict(devices: Sequence[Any], chips: int) -> Any:
        step: Any = make_predict_step(model, tuple(devices))
        return step.lower(variables, batch(devices, chips)["chips"])

    return lower_train, lower_predict


def measure(lower: Lower, target: Target, chips: int) -> Cost:
    """Compile a step for `chips` per device and return its cost.

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
    memory, analysis, hlo = (
        compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
    )  # fmt: skip
    peak = (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip
    if peak > target.hardware.memory:
        raise TooLarge(peak)
    all_reduces = re.findall(r"= (.*?) all-reduce(?:-start)?\(", hlo)
    # The GPU compiler counts neither FLOPs nor bytes, so the step lowered for a CPU gives FLOPs.
    flops = analysis.get("flops") or lower(jax.devices("cpu")[:1], chips).cost_analysis()["flops"]
    return Cost(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=peak,
        flops=flops,
        bytes_moved=analysis.get("bytes accessed") or _bytes_moved(hlo),
        all_reduces=len(all_reduces),
        all_reduce_bytes=sum(map(_array_bytes, all_reduces)),
    )


def _needed_bytes(error: str) -> float:
    """Return the bytes in the TPU compiler's message "Used 17.25G of 15.75G hbm", or nan."""
    used = re.search(r"Used ([\d.]+)([KMGT])", error)
    return float(used[1]) * 1024 ** (1 + "KMGT".index(used[2])) if used else math.nan


def _array_bytes(shapes: str) -> int:
    """Return the bytes of all arrays in HLO text: `(f32[64]{0}, bf16[2,3])` → 268."""
    return sum(
        ITEM_BYTES[dtype] * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in re.findall(r"\b(\w+)\[([\d,]*)\]", shapes)
        if dtype in ITEM_BYTES
    )


def _bytes_moved(hlo: str) -> int:
    """Return the bytes of operands and results of all instructions in the entry computation.

    On a GPU each instruction is a kernel, which reads and writes main memory.
    """
    sizes: dict[str, int] = {}
    total = 0
    for line in hlo[hlo.index("\nENTRY") :].splitlines():
        parts = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
        if parts is None:
            continue
        name, shape, operation, rest = parts.groups()
        sizes[name] = _array_bytes(shape)
        if operation not in NO_TRAFFIC:
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
    return total
