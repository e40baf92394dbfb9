"""Try the faults that a run can meet: `python -m tests.faults`.

A chain of four small stages first runs untouched, without a fault. Later runs are killed or
damaged, or get a full disk or a jumping clock. The same command is then repeated. The folders are
compared with the untouched ones, file by file and bit by bit. The exit status is 1 if a file
differs. See docs/reliability.md.
"""

import argparse
import shutil
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from tests.faults import bucket, clock, damage, disk, fuzz, hosts, kills
from tests.faults.long_run import long_run
from tests.faults.outcome import HEADER, Fault, Outcome, Row, row
from tests.faults.runs import Home, differences, end, start
from tests.support import LABELS, write_chips

WORKERS = 2  # chains at a time
FAULTS = (
    Fault("kills", 60, kills.kill_chain, per_try=kills.PER_CHAIN),
    Fault("damages", 20, damage.damaged_checkpoint),
    Fault("steps-damages", 6, damage.damaged_steps),
    Fault("buckets", 50, bucket.lose_machines, per_try=bucket.PER_CHAIN),
    Fault("full", 10, disk.full_disk),
    Fault("clocks", 2, clock.jumping_clock),
    Fault("lost-hosts", 6, hosts.lost_host, is_alone=True),
    Fault("ctrl-c", 5, kills.ctrl_c, is_alone=True),
)
TITLES = {
    "damages": "damaged checkpoints", "steps-damages": "damaged steps.csv", "full": "full disks",
    "buckets": "lost machines, bucket",
    "clocks": "clocks that jump", "lost-hosts": "lost hosts", "ctrl-c": "Ctrl-C",
}  # fmt: skip


def prepare(folder: Path) -> list[Home]:
    """Run the chain twice without a fault, compare the runs, and return a home for every worker.

    The first run fills the cache of compiled programs; the second is timed.
    """
    places = [folder / f"home{i}" for i in range(WORKERS)]
    for place in places:
        write_chips(place / "chips", LABELS)
    untouched = folder / "untouched"
    for target in (untouched, folder / "again"):
        ended = end(start(places[0]))
        assert ended.status == 0, ended.output
        (places[0] / "run").rename(target)
        print(f"untouched: {ended.seconds:.0f} s", flush=True)
    assert not differences(untouched, target)
    shutil.rmtree(target)
    return [Home(place, untouched, ended.seconds) for place in places]


def try_fault(fault: Fault, count: int, homes: list[Home], seed: int) -> Row:
    """Try a fault at least `count` times; keep the folder of each try that went wrong."""
    free: SimpleQueue[Home] = SimpleQueue()
    for home in homes[:1] if fault.is_alone else homes:
        free.put(home)

    def attempt(number: int) -> Outcome:
        home = free.get()
        rng = np.random.default_rng([seed, zlib.crc32(fault.name.encode()), number])
        try:
            outcome = fault.attempt(home, rng, number)
        except Exception as error:
            outcome = Outcome(f"{type(error).__name__}: {error}", fault.per_try)
        if outcome.problem:
            print(f"WRONG: {fault.name} {number}: {outcome.problem}", flush=True)
            if home.run.exists():
                home.run.rename(home.folder / f"trouble-{fault.name}-{number}")
        home.clear()
        free.put(home)
        return outcome

    start_time = time.monotonic()
    with ThreadPoolExecutor(free.qsize()) as pool:
        outcomes = list(pool.map(attempt, range(-(-count // fault.per_try))))
    seconds = time.monotonic() - start_time
    return row(TITLES.get(fault.name, fault.name), outcomes, seconds)


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    for fault in FAULTS:
        parser.add_argument(f"--{fault.name}", type=int, default=fault.count, dest=fault.name)
    for name, default in (("inputs", 100_000), ("steps", 4000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--home", type=Path, help="an empty folder to work in; it is kept")
    return parser.parse_args()


def main() -> None:
    """Try every fault and print the table."""
    asked, start_time = options(), time.monotonic()
    folder = asked.home or Path(tempfile.mkdtemp(prefix="faults-"))
    counts = {fault: getattr(asked, fault.name) for fault in FAULTS}
    rows: list[Row] = []
    if asked.steps or any(counts.values()):
        homes = prepare(folder.absolute())
        for fault, count in counts.items():
            if count:
                rows.append(try_fault(fault, count, homes, asked.seed))
                print(rows[-1], flush=True)
        if asked.steps:
            run = Fault("long run", 1, lambda home, rng, number: long_run(home, asked.steps))
            rows.append(try_fault(run, 1, homes, asked.seed))
    if asked.inputs:
        rows += fuzz.run(asked.inputs, asked.seed, folder)
    print(f"\n{HEADER}", *rows, sep="\n")
    print(f"together {(time.monotonic() - start_time) / 60:.0f} minutes")
    is_right = all(row.tried == row.right for row in rows)
    if is_right and not asked.home:
        shutil.rmtree(folder)
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
