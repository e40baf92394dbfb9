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

    All three vary by some percent, because saves run beside the steps. They grow if the least in
    the last tenth of the steps is more than the most in the first, or if the memory of the second
    half rises. Each save leaks some 220 bytes per array: tensorstore does not free the result of
    KvStore.Spec.to_json, which Orbax calls.
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
    windows = [
        [sample[1:] for sample in samples if low <= sample[0] < low + steps / 10]
        for low in np.linspace(START, steps * 0.9, 5)
    ]
    if process.returncode or not all(windows):
        return Outcome(f"status {process.returncode}: {output.result()[0][-2000:]}")
    for window in windows:
        megabytes, threads, files = np.min(window, axis=0)
        print(f"  {megabytes:.0f} MB, {threads:.0f} threads, {files:.0f} open files", flush=True)
    most, least = np.max(windows[0], axis=0), np.min(windows[-1], axis=0)
    return _judge(most, least, [s for s in samples if s[0] > steps / 2])


def _judge(most: np.ndarray, least: np.ndarray, late: list[Sample]) -> Outcome:
    """Compare the most at first with the least at last; fit a line to the later memory."""
    steps, megabytes = np.array([sample[0] for sample in late]), [sample[1] for sample in late]
    slope = 1000 * np.polyfit(steps, megabytes, 1)[0]
    figures = (
        f"first at most {most[0]:.0f} MB, {most[1]:.0f} threads, {most[2]:.0f} open files; last at "
        f"least {least[0]:.0f} MB, {least[1]:.0f} threads, {least[2]:.0f} open files; memory of "
        f"the second half {slope:+.1f} MB per 1,000 steps, scatter {np.std(megabytes):.1f} MB"
    )
    is_flat = slope < least[0] * 0.01 and (least <= most).all()
    return Outcome(
        "" if is_flat else "it grows", notes=[f"run of {late[-1][0] + 1} steps: {figures}"]
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
