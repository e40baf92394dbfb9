"""Describe in one line the machine and the versions with which a benchmark ran."""

import importlib.metadata
import os
import platform
from datetime import date
from pathlib import Path

SIMD = ("amx_tile", "avx512f", "avx2", "asimd")  # the best first
NAMES = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}


def describe(*packages: str) -> str:
    """Return the processor, cores, SIMD, the versions of Python and `packages`, and the date."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    simd = next((NAMES[name] for name in SIMD if name in flags), "unknown SIMD")
    model = facts.get("model name", platform.machine()).strip()
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {simd}; {versions(*packages)}"


def versions(*packages: str) -> str:
    """Return the versions of Python and `packages`, and the date."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return f"{', '.join(found)}; {date.today():%-d %B %Y}."
