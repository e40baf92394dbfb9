"""Fill the disk while the chain runs, then make room and repeat the command."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.faults.kills import FILE_EVENTS
from tests.faults.outcome import Outcome, Rng
from tests.faults.runs import Home, end


def full_disk(home: Home, rng: Rng, number: int) -> Outcome:
    """Run on a full disk, then finish the chain with the repeated command.

    The full disk ends the program with status 2 and one line. Every second try mounts a small disk,
    if this user may; it fills in the middle of a checkpoint. In the other tries, the disk is full
    when a file is opened, made or renamed.
    """
    home.run.mkdir()
    is_real = number % 2 == 0 and _mount(home.run, rng.uniform(0.1, 0.9) * _size(home.untouched))
    at = str(rng.integers(1, FILE_EVENTS))
    ended = end(home.start(**({} if is_real else {"FAULT": "full", "FAULT_AT": at})))
    is_one_line = ended.output.count("planet_jax: ") == 1 and "No space left" in ended.output
    problem = ""
    if not ended.is_clean or not (ended.status == 0 or (ended.status == 2 and is_one_line)):
        problem = f"status {ended.status}: {ended.output[-2000:]}"
    print(f"  status {ended.status}: {ended.last_line}", flush=True)
    try:
        if is_real:
            subprocess.run(["mount", "-o", "remount,size=90%", str(home.run)], check=True)
        problem += home.problem(end(home.start()))
    finally:
        if is_real:
            subprocess.run(["umount", str(home.run)], check=True)
    notes = ["small" if is_real else "injected"]
    return Outcome(problem, notes=notes + ["ended with status 2"] * (ended.status == 2))


def _mount(folder: Path, size: float) -> bool:
    """Mount a small disk; return whether that succeeded."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={int(size)}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
