"""Inject faults into the process; Python imports this module at startup.

FAULT_CLOCK=SEED   make the wall clock jump by days, forward or back, at one reading in ten.
FAULT=kill|full    kill the process, or raise ENOSPC (the disk is full), at the event FAULT_AT.
FAULT_AT=N         the N-th time that Python opens for writing, makes, renames or removes a file or
                   folder of `run`; for a full disk, removals do not count.
"""

import errno
import os
import random
import signal
import sys
import time

REMOVALS = {"os.remove", "os.rmdir", "shutil.rmtree"}
EVENTS = {"open", "os.mkdir", "os.rename"} | REMOVALS  # of Python's audit hooks


def jump(seed: int) -> None:
    """Replace the wall clock."""
    now, rng, shift = time.time, random.Random(seed), 0.0

    def jumping() -> float:
        nonlocal shift
        if rng.random() < 0.1:
            shift = rng.uniform(-1e6, 1e6)
        return now() + shift

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)


def fail(left: int, fault: str) -> None:
    """Kill the process, or raise ENOSPC, at the `left`-th event."""
    folder = os.path.join(os.getcwd(), "run")

    def hook(event: str, args: tuple) -> None:
        nonlocal left
        if event not in EVENTS or (fault == "full" and event in REMOVALS):
            return
        if event == "open" and not (
            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        if not os.path.abspath(str(args[0])).startswith(folder):
            return
        left -= 1
        if left == 0:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    sys.addaudithook(hook)


if "FAULT_CLOCK" in os.environ:
    jump(int(os.environ["FAULT_CLOCK"]))
if "FAULT_AT" in os.environ:
    fail(int(os.environ["FAULT_AT"]), os.environ["FAULT"])
