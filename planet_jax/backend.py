"""Choose JAX's platform and its cache of compiled programs, before JAX is first used."""

import os
import sys
from glob import glob
from pathlib import Path

import jax
import jaxlib

from planet_jax.runtime.errors import BadInput

GPU_FILES = ("/dev/nvidia*", "/dev/dxg", "/dev/kfd")  # CUDA, CUDA in WSL, ROCm
TPU_FILES = ("/dev/accel*", "/dev/vfio/*")
FILES = {"cuda": GPU_FILES, "gpu": GPU_FILES, "rocm": GPU_FILES, "tpu": TPU_FILES}
# XLA then computes convolutions on a CPU with Eigen, which is faster here than YNNPACK
# (docs/benchmarks.md), and keeps YNNPACK for matrix products. An unknown flag ends the process, so
# only versions of jaxlib on which it was tried get it.
EIGEN_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
EIGEN_TRIED = ("0.10.2",)


def configure() -> None:
    """Set the compilation cache; set the CPU as platform if no accelerator is present.

    A plugin without its device prints tracebacks (CUDA) or retries for minutes (libtpu).
    """
    if cache := compilation_cache():
        jax.config.update("jax_compilation_cache_dir", str(cache))
    platforms = os.environ.get("JAX_PLATFORMS")
    if not platforms and not has_device(*GPU_FILES, *TPU_FILES):
        platforms = "cpu"
        jax.config.update("jax_platforms", platforms)
    if platforms == "cpu":  # the flag was not tried with the runtimes of other platforms
        use_eigen_convolutions()


def use_eigen_convolutions() -> None:
    """Add the flag for Eigen's convolutions to XLA_FLAGS, unless the user set that flag.

    XLA reads XLA_FLAGS when JAX is first used.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__ in EIGEN_TRIED and EIGEN_CONVOLUTIONS.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {EIGEN_CONVOLUTIONS}".strip()


def require_devices(initialize: bool) -> None:
    """Check the platforms that JAX_PLATFORMS names, if it is set.

    Args:
      initialize: also initialize the platforms; False before the processes of a run are joined.

    Raises:
      BadInput: the first platform has no device in this machine, or a platform is not available.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    first = platforms.split(",")[0]
    if first in FILES and not has_device(*FILES[first]):
        raise refusal(f"no {first} device in this machine")
    if not platforms or not initialize:
        return
    try:
        jax.devices()
    except Exception as error:  # plugins raise AssertionError and others
        raise refusal(str(error) or type(error).__name__) from error


def has_device(*patterns: str) -> bool:
    """Return whether a device file matches a pattern; return True on systems other than Linux."""
    return sys.platform != "linux" or any(map(glob, patterns))


def compilation_cache() -> Path | None:
    """Return the folder for compiled programs, or None if it cannot be written."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "planet_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def refusal(reason: str) -> BadInput:
    """Return the error of a platform that is not available here."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return BadInput(f"JAX_PLATFORMS={platforms}: {reason[:200]}; unset it, or set it to cpu")
