"""Measure memory, threads and open files of a long stage."""

import contextlib
import math
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.faults.outcome import Outcome
from tests.faults.runs import CONFIG, Home
from tests.support import LABELS, write_chips

CHIPS = "many chips"
EPOCH = 77  # steps
START = 100  # first steps, in which memory may still grow
Sample = tuple[int, float, int, int]  # step, resident MB, threads, open files


def long_run(home: Home, steps: int) -> Outcome:
    """Train `steps` steps: memory, threads and open files do not grow after the first 100.

    Two halves are compared: the mean memory, which varies by some percent because saves run beside
    the steps, and the least number of threads and of open files, between saves. Each save leaks
    some 220 bytes per array: tensorstore does not free the result of KvStore.Spec.to_json, which
    Orbax calls.
    """
    write_chips(home.folder / CHIPS, LABELS * 16)
    options = {
        "data.root": CHIPS, "train.epochs": math.ceil(steps / EPOCH), "train.save_every": 0,
        "workdir": "run/long",
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in options.items()]
    process = home.start("train", f"--config={CONFIG}:stage1", *flags)
    with ThreadPoolExecutor(1) as reader:  # otherwise the pipe would fill
        output = reader.submit(process.communicate)
        samples = _watch(process, home.run / "long" / "steps.csv")
    halves = [
        np.array([sample[1:] for sample in samples if low <= sample[0] < high])
        for low, high in ((START, steps // 2), (steps // 2, steps))
    ]
    if process.returncode or not all(map(len, halves)):
        return Outcome(f"status {process.returncode}: {output.result()[0][-2000:]}")
    return _judge(*halves)


def _judge(first: np.ndarray, second: np.ndarray) -> Outcome:
    """Compare [samples, 3] of the two halves: resident MB, threads and open files."""
    memory = first[:, 0].mean(), second[:, 0].mean()
    counts = first[:, 1:].min(axis=0), second[:, 1:].min(axis=0)
    figures = (
        f"mean memory {memory[0]:.0f} → {memory[1]:.0f} MB, least threads and open files "
        f"{counts[0].astype(int)} → {counts[1].astype(int)}"
    )
    grows = memory[1] > memory[0] * 1.02 or (counts[1] > counts[0] + 1).any()
    return Outcome(
        "it grows" if grows else "", notes=[f"from the first half to the second: {figures}"]
    )


def _watch(process: subprocess.Popen, table: Path) -> list[Sample]:
    """Measure a process twice a second until it ends."""
    samples: list[Sample] = []
    while process.poll() is None:
        time.sleep(0.5)
        with contextlib.suppress(OSError, ValueError, LookupError):  # the process begins or ends
            step = int(table.read_text().splitlines()[-1].split(",")[0])
            samples.append((step, *_measure(process.pid)))
    return samples


def _measure(pid: int) -> tuple[float, int, int]:
    """Return resident MB, threads and open files of a process, from /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return int(fields["VmRSS"].split()[0]) / 1000, int(fields["Threads"]), files
