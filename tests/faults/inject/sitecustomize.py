"""Faults from within: Python imports this first in every process of the harness.

FAULT_CLOCK=SEED   the clock of the wall jumps by days, either way, at every tenth look.
FAULT_AT=N         at the N-th time that Python opens, makes, renames or removes a file of the run
FAULT=kill|full    folders (FAULTS_FOLDER), the process is killed, or the disk is full.
"""

import errno
import os
import random
import signal
import sys
import time

if "FAULT_CLOCK" in os.environ:
    _now, _random, _shift = time.time, random.Random(int(os.environ["FAULT_CLOCK"])), [0.0]

    def _jumping() -> float:
        if _random.random() < 0.1:
            _shift[0] = _random.uniform(-1e6, 1e6)
        return _now() + _shift[0]

    time.time = _jumping
    time.time_ns = lambda: int(_jumping() * 1e9)

if "FAULT_AT" in os.environ:
    _left = [int(os.environ["FAULT_AT"])]
    _folder, _fault = os.environ["FAULTS_FOLDER"], os.environ["FAULT"]
    _events = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}

    def _hook(event: str, args: tuple) -> None:
        if event not in _events or not str(args[0]).startswith(_folder):
            return
        if event == "open" and not (
            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        if _fault == "full" and event in {"os.remove", "os.rmdir", "shutil.rmtree"}:
            return
        _left[0] -= 1
        if _left[0] == 0:
            if _fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    sys.addaudithook(_hook)
