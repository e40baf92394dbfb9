"""Kill the chain, repeat its command, and compare with the untouched chain; press Ctrl-C."""

import signal
import time

from tests.faults.chain import STAGES
from tests.faults.outcome import Outcome, Rng
from tests.faults.runs import Ended, Home, end, left_running

PER_CHAIN = 6
FILE_EVENTS = 120  # more than the file events of one stage
SIGTERM_STATUSES = {0, 143, -signal.SIGTERM}  # finished; saved in the loop; ended by the signal
STARTED = 1.0  # seconds; at an earlier Ctrl-C, Python itself prints a traceback
CTRL_C_SECONDS = 5


def kill_chain(home: Home, rng: Rng, number: int) -> Outcome:
    """Kill a chain six times, then let it finish.

    SIGKILL and SIGTERM alternate at random moments. The last kill is at a file operation, which
    random moments miss. Chains start in turn with 0, 1, 2 and 3 of the four stages finished.
    """
    done = number % len(STAGES)
    home.copy(*(("cache", *STAGES[:done]) if done else ()))
    notes, problems, slowest = [], [], 0.0
    for i in range(PER_CHAIN):
        if i == PER_CHAIN - 1:
            kind, allowed = "a file operation", {0, -signal.SIGKILL}
            at = str(rng.integers(1, FILE_EVENTS))
            ended = end(home.start(FAULT="kill", FAULT_AT=at))
        elif i % 2:
            kind, allowed = "SIGTERM", SIGTERM_STATUSES
            ended = _kill(home, rng, signal.SIGTERM)
            slowest = max(slowest, ended.seconds * (ended.status == 143))
        else:
            kind, allowed = "SIGKILL", {0, -signal.SIGKILL}
            ended = _kill(home, rng, signal.SIGKILL)
        if ended.status not in allowed or not ended.is_clean:
            problems.append(f"{kind}: status {ended.status}: {ended.output[-2000:]}")
        where = f"in {first_unfinished(home)}"
        notes += [where] + ["saved by SIGTERM"] * (ended.status == 143)
        print(f"  {kind}: status {ended.status}, {where}", flush=True)
    if problem := home.problem(end(home.start())):
        problems.append(problem)
    return Outcome("; ".join(problems), PER_CHAIN, notes, slowest)


def _kill(home: Home, rng: Rng, how: signal.Signals) -> Ended:
    return end(home.start(), rng.uniform(0, home.seconds / 2), how)


def first_unfinished(home: Home) -> str:
    """Return the name of the first unfinished stage, or "the scores"."""
    stages = [stage for stage in STAGES if not (home.run / stage / "history.png").exists()]
    return [*stages, "the scores"][0]


def ctrl_c(home: Home, rng: Rng, number: int) -> Outcome:
    """Press Ctrl-C at a random moment: the process ends soon and leaves no child process."""
    process = home.start()
    ended = end(process, rng.uniform(STARTED, home.seconds / 2), signal.SIGINT)
    time.sleep(0.1)
    right = ended.status == -signal.SIGINT and ended.is_clean and not left_running(process)
    right &= ended.seconds < CTRL_C_SECONDS
    problem = "" if right else f"status {ended.status}: {ended.output[-1000:]}"
    return Outcome(problem, seconds=ended.seconds)
