"""Compiles a stage's own steps for a TPU or GPU that is not here, and says what they would cost.

In go a config, a target such as `v5e:2x4` or `h100:8`, and how many chips and labels there are; out
comes one flat dict of figures (`examine`), for `results.tables` and for tools. Nothing runs: the
real compilers work on any machine. Times are ceilings from the maker's rates, not promises.
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from ml_collections import ConfigDict

from planet_jax.model import classifier
from planet_jax.preflight.hardware import HARDWARE, Hardware
from planet_jax.runtime.errors import BadInput, did_you_mean
from planet_jax.train.stage import check_batch
from planet_jax.train.steps import create_state, make_predict_step, make_train_step

# No machine to ask about itself; and nothing is held that two processes could not share.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
}  # fmt: skip
Step = Callable[[Sequence[Any], int], Any]  # (devices, chips a device) -> the lowered step
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}


class Target(NamedTuple):
    """A kind of device, and those of one slice or machine."""

    name: str
    hardware: Hardware
    devices: Sequence[Any]

    @property
    def hosts(self) -> int:
        """Machines that hold the devices."""
        n = len(self.devices)
        return 1 if n <= self.hardware.alone else -(-n // self.hardware.host_devices)


class Cost(NamedTuple):
    """What a compiled step takes of each device; `flops` and bytes a step."""

    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    flops: float
    bytes_moved: float
    all_reduces: int
    all_reduce_bytes: int


class TooLarge(Exception):
    """The compiler found no room; `needed` bytes, where it said so."""

    def __init__(self, needed: float) -> None:
        self.needed = needed


def find(target: str) -> Target:
    """The devices of `KIND:TOPOLOGY` (TPU: v5e:2x4) or `KIND:COUNT` (GPU: h100:8).

    Raises:
      BadInput: an unknown kind or topology, or the compiler's wheel is missing.
    """
    kind, _, shape = target.partition(":")
    if kind not in HARDWARE:
        wrong = f"{kind} is no known kind of device" if kind else "--target is missing"
        raise BadInput(f"{wrong}, as in --target=v5e:2x4 or --target=h100:8; "
                       f"{did_you_mean(kind, HARDWARE)}")  # fmt: skip
    hardware = HARDWARE[kind]
    jax.config.update("jax_platforms", "cpu")  # or plugins look for their devices
    wheels = ("libtpu",) if hardware.platform == "tpu" else ("jax_plugins.xla_cuda12", "nvidia")
    for wheel in wheels:
        if not _installed(wheel):
            raise BadInput(
                f"--target={target}: its compiler is missing; pip install -e '.[preflight]' has it"
            )
    try:
        if hardware.platform == "tpu":
            os.environ |= TPU_ENVIRONMENT
            found = topologies.get_topology_desc(platform="tpu", topology_name=target)
        else:
            if not re.fullmatch(r"[1-9]\d*", shape):
                raise ValueError("a number of GPUs is missing")
            found = topologies.get_topology_desc(
                platform="cuda", topology_name=kind, target_config=hardware.spec,
                topology=f"1x{-(-int(shape) // 8)}x{min(int(shape), 8)}",
            )  # fmt: skip
    except Exception as error:  # each compiler has its own
        said = str(error).strip().splitlines()[0]
        example = "v5e:2x4" if hardware.platform == "tpu" else "h100:8"
        raise BadInput(f"--target={target}: no such topology ({said}); try {example}") from error
    return Target(target, hardware, found.devices)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def steps(config: ConfigDict, classes: int) -> tuple[Step, Step]:
    """The train and the predict step of a config, to be lowered."""
    network = config.model.name
    model = classifier.build(classes, network, config.model.batch_norm, config.train.precision)
    variables = jax.eval_shape(lambda: classifier.init(classes, 0, network))
    state = jax.eval_shape(lambda v: create_state(v, config.optim.freeze), variables)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    rates = {"lr": jax.ShapeDtypeStruct((3,), jnp.float32), "beta1": number}
    key = jax.eval_shape(lambda: jax.random.key(0))
    size = config.data.size

    def batch(devices: Sequence[Any], chips: int) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (len(devices), chips)
        return {
            "chips": jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.uint8),
            "targets": jax.ShapeDtypeStruct((*shape, classes), jnp.uint8),
        }

    def train(devices: Sequence[Any], chips: int) -> Any:
        freeze, weight_decay = config.optim.freeze, config.optim.weight_decay
        step: Any = make_train_step(model, freeze, weight_decay, list(devices))
        return step.lower(state, batch(devices, chips), rates, key)

    def predict(devices: Sequence[Any], chips: int) -> Any:
        step: Any = make_predict_step(model, list(devices))
        return step.lower(variables, batch(devices, chips)["chips"])

    return train, predict


def cost(step: Step, target: Target, chips: int) -> Cost:
    """Compiles a step for so many chips a device and asks the compiler.

    Raises:
      TooLarge: it does not fit the device.
    """
    options, hardware = {}, target.hardware
    if hardware.platform == "cuda":
        import nvidia  # a namespace package, of the preflight extra

        toolkit = next(p for root in nvidia.__path__ for p in Path(root).glob("cuda_nvcc"))
        if str(toolkit / "bin") not in os.environ["PATH"]:
            os.environ["PATH"] = f"{toolkit / 'bin'}{os.pathsep}{os.environ['PATH']}"  # ptxas
        options = {"xla_gpu_autotune_level": "0", "xla_gpu_cuda_data_dir": str(toolkit)}
    try:
        compiled = step(target.devices, chips).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(_needed(str(error))) from None
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = compiled.as_text()
    reduces = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    peak = (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip
    if peak > hardware.memory:
        raise TooLarge(peak)
    return Cost(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        peak,
        # The GPU's compiler counts none: those of the program as it is lowered here.
        analysis.get("flops") or step(jax.devices("cpu")[:1], chips).cost_analysis()["flops"],
        analysis.get("bytes accessed") or _bytes_of_instructions(text),
        len(reduces),
        sum(_bytes(shape) for shape in reduces),
    )


def _needed(error: str) -> float:
    """Bytes that the TPU compiler says the program uses: "Used 17.25G of 15.75G hbm"."""
    found = re.search(r"Used ([\d.]+)([KMGT])", error)
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) if found else math.nan


def _bytes(shapes: str) -> int:
    """Of all arrays in a piece of HLO: `(f32[64]{0}, bf16[2,3])` → 268."""
    return sum(
        BYTES[kind] * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in re.findall(r"\b(\w+)\[([\d,]*)\]", shapes)
        if kind in BYTES
    )


def _bytes_of_instructions(hlo: str) -> int:
    """Operands and results of every instruction that the GPU's compiler left unfused: its kernels
    read and write them in memory. (It reports no figure of its own.)"""
    sizes: dict[str, int] = {}
    total = 0
    for line in hlo[hlo.index("\nENTRY") :].splitlines():
        found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
        if found is None:
            continue
        name, shape, operation, rest = found.groups()
        sizes[name] = _bytes(shape)
        if operation not in {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}:
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
    return total


def largest(step: Step, target: Target, too_large: int, needed: float) -> int:
    """Most chips a device that fit, to a sixteenth: by compiling, on the line of the memory needed.

    `needed` are the bytes at `too_large`, or nan.
    """
    fits, used = 0, 0.0
    while too_large - fits > (least := max(1, fits // 16)):
        guess = middle = (fits + too_large) // 2
        if needed > used:
            room = (target.hardware.memory * 0.97 - used) / (needed - used)
            guess = fits + int(room * (too_large - fits))
        # A compiler that saves memory just until a batch fits would make the line creep.
        if not fits + least <= guess <= too_large - least:
            guess = min(middle, 2 * fits) if fits else middle
        try:
            found = cost(step, target, guess)
        except TooLarge as error:
            too_large, needed = guess, error.needed
        else:
            fits, used = guess, found.peak_bytes
    return fits


def examine(config: ConfigDict, target: Target, classes: int, chips: int) -> dict[str, Any]:
    """All figures of a config's stage on `target`: of a device and of the train step, unless said.

    `chips` are those that train. Without `fits` the rest is left out, but for `largest_batch`.

    Raises:
      BadInput: the batch cannot be shared by the devices.
    """
    n, hardware, batch = len(target.devices), target.hardware, config.data.batch_size
    check_batch(batch, n)
    train, predict = steps(config, classes)
    known = {
        "target": target.name, "devices": n, "hosts": target.hosts, "batch_size": batch,
        "device_memory_bytes": int(hardware.memory), "source": hardware.source,
    }  # fmt: skip
    try:
        of_train, of_predict = (cost(step, target, batch // n) for step in (train, predict))
    except TooLarge as error:
        fits = largest(train, target, batch // n, error.needed)
        return {**known, "fits": False, "largest_batch": fits * n}
    full = config.train.precision == "float32"
    peak = hardware.float32_flops if full else hardware.flops
    # A ring sends each byte twice, but for the share that stays.
    link = 2 * (n - 1) / n * of_train.all_reduce_bytes / hardware.link
    compute, memory = of_train.flops / peak, of_train.bytes_moved / hardware.bandwidth
    bound = max(compute, memory)
    rate = batch / bound
    epoch_steps = chips // batch
    return {
        **known, "fits": True, **of_train._asdict(),
        "compute_seconds": compute, "memory_seconds": memory, "all_reduce_seconds": link,
        "bound_by": "compute" if compute > memory else "memory", "step_seconds": bound,
        "chips_per_second_at_most": rate,
        "loader_chips_per_second_a_host": rate / target.hosts,
        "steps_per_epoch": epoch_steps, "epoch_seconds": epoch_steps * bound,
        "stage_seconds": epoch_steps * bound * config.train.epochs,
        **{f"predict_{name}": value for name, value in of_predict._asdict().items()},
        "predict_chips_per_second_at_most": batch / max(
            of_predict.flops / peak, of_predict.bytes_moved / hardware.bandwidth
        ),
    }  # fmt: skip
