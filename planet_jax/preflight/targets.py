"""Find the devices of a TPU slice or GPU machine that is not attached, to compile for them."""

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from planet_jax.preflight.hardware import HARDWARE, Hardware
from planet_jax.runtime.errors import BadInput, did_you_mean

# libtpu must neither ask a metadata server nor lock the TPU for one process.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
}  # fmt: skip
COMPILER_PACKAGES = {"tpu": ("libtpu",), "cuda": ("jax_plugins.xla_cuda12", "nvidia")}
EXAMPLES = {"tpu": "v5e:2x4", "cuda": "h100:8"}


class Target(NamedTuple):
    """The devices of one slice or machine, all of one kind."""

    name: str  # as typed: "v5e:2x4"
    hardware: Hardware
    devices: Sequence[jax.Device]

    @property
    def hosts(self) -> int:
        """Number of machines that the devices belong to."""
        n = len(self.devices)
        return 1 if n <= self.hardware.single_host_devices else -(-n // self.hardware.host_devices)


def find(target: str) -> Target:
    """Find the devices of `KIND:TOPOLOGY` (TPU: v5e:2x4) or `KIND:COUNT` (GPU: h100:8).

    Afterwards JAX uses only the CPU in this process, without its compilation cache.

    Raises:
      BadInput: the kind or topology is unknown, or the compiler's package is not installed.
    """
    kind, _, shape = target.partition(":")
    if kind not in HARDWARE:
        problem = f"{kind} is not a known kind of device" if kind else "--target is missing"
        raise BadInput(
            f"{problem}; write --target=v5e:2x4 or --target=h100:8; {did_you_mean(kind, HARDWARE)}"
        )
    hardware = HARDWARE[kind]
    if not all(map(_is_installed, COMPILER_PACKAGES[hardware.platform])):
        raise BadInput(
            f"--target={target}: its compiler is missing; pip install -e '.[preflight]' installs it"
        )
    jax.config.update("jax_platforms", "cpu")  # otherwise the plugins look for attached devices
    # A cached program for a device that is not attached cannot be read: jax warns on every hit.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        if hardware.platform == "tpu":
            os.environ |= TPU_ENVIRONMENT
            topology = topologies.get_topology_desc(platform="tpu", topology_name=target)
        else:
            topology = _gpu_topology(kind, shape, hardware.xla_description)
    except Exception as error:  # the exception's type depends on the compiler
        problem, example = str(error).strip().splitlines()[0], EXAMPLES[hardware.platform]
        raise BadInput(f"--target={target}: no such topology ({problem}); try {example}") from error
    return Target(target, hardware, topology.devices)


def _gpu_topology(kind: str, count: str, description: str) -> topologies.TopologyDescription:
    if not re.fullmatch(r"[1-9]\d*", count):
        raise ValueError("the number of GPUs is missing")
    if int(count) > 8 and int(count) % 8:
        raise ValueError(f"{count} GPUs do not fill hosts of 8")
    return topologies.get_topology_desc(
        platform="cuda", topology_name=kind, target_config=description,
        topology=f"1x{-(-int(count) // 8)}x{min(int(count), 8)}",
    )  # fmt: skip


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def compiler_options(platform: str) -> dict[str, str]:
    """Return XLA's options to compile for a device that is not attached."""
    if platform != "cuda":
        return {}
    import nvidia  # a namespace package from the preflight extra

    toolkit = next(p for root in nvidia.__path__ for p in Path(root).glob("cuda_nvcc"))
    if str(toolkit / "bin") not in os.environ["PATH"]:  # XLA calls ptxas
        os.environ["PATH"] = f"{toolkit / 'bin'}{os.pathsep}{os.environ['PATH']}"
    # Autotuning times kernels, which needs a GPU.
    return {"xla_gpu_autotune_level": "0", "xla_gpu_cuda_data_dir": str(toolkit)}
