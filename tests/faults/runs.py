"""The chain of four small stages: run, killed, and compared file by file."""

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

from planet_jax.train import checkpoint

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import write_chips  # noqa: E402

from tests.faults.chain import STAGES  # noqa: E402

CONFIG = Path(__file__).with_name("chain.py")
LABELS = ["a", "b", "a b", "c"] * 6  # 20 chips to train on, 4 to validate: 5 steps an epoch
TIMED = {"history.png", "report.html"}  # they show times
TIMES = {"steps.csv": ["images_per_second", "input_wait", "save_stall"], "history.csv": ["time"]}


@dataclass
class Ended:
    """A process that has ended: its status (negative: the signal), output and seconds."""

    status: int
    output: str
    seconds: float

    @property
    def clean(self) -> bool:
        """It ended without a traceback."""
        return "Traceback" not in self.output


def make_chips(folder: Path, times: int = 1) -> None:
    if not folder.exists():
        write_chips(folder, LABELS * times)


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """The journey, or another command, in a process group of its own."""
    arguments = arguments or ("journey", f"--config={CONFIG}")
    env = os.environ | {
        "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "FAULTS_FOLDER": str(folder),
        "PYTHONPATH": f"{CONFIG.parent / 'inject'}{os.pathsep}{ROOT}", **environment,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "planet_jax.main", *arguments],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def start_hosts(folder: Path, stage: str, count: int) -> list[subprocess.Popen]:
    """So many processes that train one stage together, as on as many hosts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        hosts = {"coordinator": f"127.0.0.1:{free.getsockname()[1]}", "count": count}
    return [
        start(
            folder, "train", f"--config={CONFIG}:{stage}",
            *(f"--config.hosts.{name}={value}" for name, value in {**hosts, "index": i}.items()),
        )
        for i in range(count)
    ]  # fmt: skip


def end(process: subprocess.Popen, after: float | None = None, how: int = 0) -> Ended:
    """Waits; `after` so many seconds it sends the signal `how`. `seconds` count from the signal."""
    began = time.monotonic()
    if after is not None:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            began = time.monotonic()
            process.send_signal(how)
    output, _ = process.communicate(timeout=900)
    return Ended(process.returncode, output, time.monotonic() - began)


def left_running(process: subprocess.Popen) -> bool:
    """Whether a process of its group is still there."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def differences(one: Path, other: Path, stages: Iterable[str] = STAGES) -> list[str]:
    """What of two folders of finished runs is not the same to the bit; times aside."""
    found = []
    for stage in stages:
        a, b = one / stage, other / stage
        names = {p.name for run in (a, b) for p in run.iterdir() if p.name not in (".lock",)}
        for name in sorted(names - {"checkpoints", "config.json"}):
            if not ((a / name).exists() and (b / name).exists()):
                found.append(f"{stage}/{name} is in one alone")
            elif name in TIMES:
                tables = (
                    pd.read_csv(run / name, dtype=str).drop(columns=TIMES[name]) for run in (a, b)
                )
                if not next(tables).equals(next(tables)):
                    found.append(f"{stage}/{name}")
            elif name not in TIMED and (a / name).read_bytes() != (b / name).read_bytes():
                found.append(f"{stage}/{name}")
        for kind, items in (("latest", ("weights", "optimizer")), ("best", ("weights",))):
            found += [f"{stage}/{kind}: {it}" for it in _checkpoints_differ(a, b, kind, items)]
    return found


def _checkpoints_differ(a: Path, b: Path, kind: str, items: tuple[str, ...]) -> list[str]:
    (step, one, _), (step_b, other, _) = (
        checkpoint._newest(run / "checkpoints" / kind, items) for run in (a, b)
    )
    if step != step_b:
        return [f"step {step} and {step_b}"]
    return [
        name
        for item in items
        for name in one[item].keys() | other[item].keys()
        if not np.array_equal(one[item].get(name), other[item].get(name))
    ]


def damage(path: Path, rng: np.random.Generator) -> str:
    """Flips a bit of a file, cuts it short or deletes it; what was done, in words."""
    content = bytearray(path.read_bytes())
    path.unlink()  # it may be a hard link
    kind = rng.choice(["flipped", "cut", "deleted"])
    if kind == "flipped":
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: rng.integers(len(content))])
    return str(kind)


def copy(folder: Path, to: Path) -> None:
    """Hard links where nothing is written in place, which is the checkpoints alone."""

    def link_or_copy(source: str, target: str) -> None:
        (os.link if "/checkpoints/" in source else shutil.copy2)(source, target)

    shutil.copytree(folder, to, copy_function=link_or_copy)
