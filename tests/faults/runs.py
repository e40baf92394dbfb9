"""Start the program in a home folder, stop it, and compare the folders of finished runs.

A home holds `chips`, and the run folders of one chain in `run`. The program runs in the home and
gets relative paths, so the runs in all homes are equal.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from planet_jax.train.checkpoint import require_checkpoint
from tests.faults.chain import STAGES
from tests.support import ROOT, TIMES

CONFIG = Path(__file__).with_name("chain.py")
COMPILED = "compiled"  # the cache of compiled programs, beside the homes
TIMED = {"history.png", "report.html"}  # these files show times
UNCOMPARED = {".bucket.json", ".lock", ".upload", "checkpoints", "config.json"}
TABLES = {"steps.csv", "history.csv"}


@dataclass(frozen=True)
class Home:
    """A folder in which one process of the harness works at a time.

    Attributes:
      folder: holds `chips`, and `run` while a fault is tried.
      untouched: the `run` folder of a chain that ran without a fault.
      seconds: how long that chain took.
    """

    folder: Path
    untouched: Path
    seconds: float

    @property
    def run(self) -> Path:
        """The folder of the chain."""
        return self.folder / "run"

    def clear(self) -> None:
        """Remove the chain."""
        shutil.rmtree(self.run, ignore_errors=True)

    def copy(self, *names: str) -> None:
        """Copy parts of the untouched chain; checkpoints, never written in place, are linked."""

        def link_or_copy(source: str, target: str) -> None:
            (os.link if "/checkpoints/" in source else shutil.copy2)(source, target)

        for name in names:
            shutil.copytree(self.untouched / name, self.run / name, copy_function=link_or_copy)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """Start the journey, or another command, in a process group of its own."""
        return start(self.folder, *arguments, **environment)

    def problem(self, ended: "Ended") -> str:
        """Return how the journey failed, or how its chain differs from the untouched one; or ''."""
        if ended.status or not ended.is_clean:
            return f"status {ended.status}: {ended.output[-2000:]}"
        left = [str(p) for p in self.run.rglob("*") if p.name.startswith((".tmp", ".old"))]
        return ", ".join(differences(self.untouched, self.run) + left)


@dataclass(frozen=True)
class Ended:
    """The status (negative: the signal), output and seconds of a process that has ended."""

    status: int
    output: str
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether the output has no traceback."""
        return "Traceback" not in self.output

    @property
    def last_line(self) -> str:
        """The last line of the output, shortened."""
        return (self.output.strip().splitlines() or [""])[-1][:150]


def start(home: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """Start the journey, or another command, in a home."""
    env = os.environ | {
        "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home.parent / COMPILED),
        "PYTHONPATH": f"{CONFIG.parent / 'inject'}{os.pathsep}{ROOT}", **environment,
    }  # fmt: skip
    command = arguments or ("journey", f"--config={CONFIG}")
    return subprocess.Popen(
        [sys.executable, "-m", "planet_jax.main", *command],
        cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def start_hosts(home: Path, stage: str, count: int = 2) -> list[subprocess.Popen]:
    """Start processes that train one stage together, as on `count` hosts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options = {"coordinator": f"127.0.0.1:{free.getsockname()[1]}", "count": count}
    flags = [f"--config.hosts.{name}={value}" for name, value in options.items()]
    return [
        start(home, "train", f"--config={CONFIG}:{stage}", *flags, f"--config.hosts.index={i}")
        for i in range(count)
    ]


def end(process: subprocess.Popen, after: float | None = None, how: int = 0) -> Ended:
    """Wait for a process; signal it if it runs for `after` seconds, and then time it from there."""
    start_time = time.monotonic()
    if after is not None:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            start_time = time.monotonic()
            process.send_signal(how)
    output, _ = process.communicate(timeout=900)
    return Ended(process.returncode, output, time.monotonic() - start_time)


def left_running(process: subprocess.Popen) -> bool:
    """Return whether any process of the process's group still runs."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def differences(one: Path, other: Path, stages: Iterable[str] = STAGES) -> list[str]:
    """Return the names of files and arrays of finished runs that differ, except for times."""
    different = []
    for stage in stages:
        a, b = one / stage, other / stage
        names = {path.name for run in (a, b) for path in run.iterdir()} - UNCOMPARED - TABLES
        for name in sorted(names):
            if not ((a / name).exists() and (b / name).exists()):
                different.append(f"{stage}/{name} is in one alone")
            elif name not in TIMED and (a / name).read_bytes() != (b / name).read_bytes():
                different.append(f"{stage}/{name}")
        different += [f"{stage}/{name}" for name in differences_of_training(a, b)]
    return different


def differences_of_training(one: Path, other: Path, first_step: int = 0) -> list[str]:
    """Return the names of tables and arrays that differ between two run folders.

    Only rows of steps.csv from `first_step` on are compared.
    """
    different = []
    for name in sorted(TABLES):
        a, b = (_rows(run / name, first_step) for run in (one, other))
        different += [] if a.equals(b) else [name]
    return different + _different_arrays(one, other)


def _rows(path: Path, first: int) -> pd.DataFrame:
    """Return the table's text without times, and without steps before `first`."""
    table = pd.read_csv(path, dtype=str)
    if "step" in table:
        table = table[table["step"].astype(int) >= first].reset_index(drop=True)
    return table.drop(columns=TIMES & set(table.columns))


def _different_arrays(one: Path, other: Path) -> list[str]:
    different = []
    for kind, items in (("latest", ("weights", "optimizer")), ("best", ("weights",))):
        a, b = require_checkpoint(one, kind), require_checkpoint(other, kind)
        if a.metadata.step != b.metadata.step:
            different.append(f"{kind}: step {a.metadata.step} and {b.metadata.step}")
            continue
        first, second = a.arrays(*items), b.arrays(*items)
        different += [
            f"{kind}: {name}"
            for name in first.keys() | second.keys()
            if not np.array_equal(first.get(name), second.get(name))
        ]
    return different


def damage(path: Path, rng: np.random.Generator, length: int | None = None) -> str:
    """Flip a bit of a file, or cut or delete the file; return the kind of damage.

    With `length`, the bit or the cut is within the first `length` bytes.
    """
    content = bytearray(path.read_bytes())
    path.unlink()  # the file may be a hard link
    position = int(rng.integers(length or len(content)))
    kind = str(rng.choice(["flipped", "cut", "deleted"]))
    if kind == "flipped":
        content[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[:position])
    return kind
