"""Lose one of two processes that train one stage together."""

import re
import signal
import time

from planet_jax.runtime.distributed import HEARTBEAT_TIMEOUT
from tests.faults.chain import STAGES
from tests.faults.outcome import Outcome, Rng
from tests.faults.runs import Home, differences, end, start_hosts

STAGE = STAGES[0]
STEP_SECONDS = 30  # for one step and a save
LOST_TASK = ("leader task was preempted", r"stopped sending heartbeats\):\s+1\b")


def lost_host(home: Home, rng: Rng, number: int) -> Outcome:
    """Kill one process, in turn the first or the second, at a random moment of the training.

    JAX aborts the other process, whose log names the lost task. The same commands, repeated, then
    give the same files as two processes that were never stopped.
    """
    together = home.untouched.parent / "together"
    if not together.exists():
        _finish(home)
        home.run.rename(together)
    processes, lost = start_hosts(home.folder, STAGE), number % 2
    while not (home.run / STAGE / "steps.csv").exists() and processes[0].poll() is None:
        time.sleep(0.05)
    end(processes[lost], rng.uniform(0, home.seconds / 8), signal.SIGKILL)
    other = end(processes[1 - lost], 0, 0)
    is_named = re.search(LOST_TASK[lost], other.output) is not None
    right = other.status == 0 or (other.status == -signal.SIGABRT and is_named)
    right &= other.is_clean and other.seconds < HEARTBEAT_TIMEOUT + STEP_SECONDS
    problem = "" if right else f"status {other.status}: {other.output[-3000:]}"
    _finish(home)
    problem += ", ".join(differences(together, home.run, [STAGE]))
    print(f"  process {lost} lost: the other ended with {other.status}", flush=True)
    notes = [f"ended with {other.status}"]
    return Outcome(problem, notes=notes, seconds=other.seconds)


def _finish(home: Home) -> None:
    """Run the stage in two processes until it is finished."""
    for ended in [end(process) for process in start_hosts(home.folder, STAGE)]:
        assert ended.status == 0, ended.output
        assert ended.is_clean, ended.output
