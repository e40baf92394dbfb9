"""The faults that a run meets in its life, tried: `python -m tests.faults`.

Four small stages are run once, untouched. Then they are killed, damaged, given a full disk and a
clock that jumps; each time the same command is given again, and the folders that come of it are
compared with the untouched ones, file by file and bit by bit. See docs/break_it.md.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from planet_jax.runtime.files import find_damage
from planet_jax.runtime.watch import LOST_AFTER
from tests.faults import fuzz
from tests.faults.runs import (
    CONFIG,
    STAGES,
    Ended,
    copy,
    damage,
    differences,
    end,
    left_running,
    make_chips,
    start,
    start_hosts,
)  # fmt: skip

Row = tuple[str, int, int, str]  # what, how many, how many ended as they must, figures
OK = {0, 143, -signal.SIGKILL}
START = 0.2  # seconds: before that it is Python that starts, and no line is promised


class Faults:
    """One untouched chain in `home`, and the faults that others suffer."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home, self.rng = home, np.random.default_rng(seed)
        make_chips(home / "chips")
        self.whole = home / "untouched"
        begun = end(start(self.new()))  # which also fills the cache of compiled programs
        assert begun.status == 0, begun.output
        (home / "run").rename(self.whole)
        again = self.new()
        self.seconds = end(start(again)).seconds
        self.check(again)
        tell(f"untouched: {begun.seconds:.0f} s, {self.seconds:.0f} s with a warm cache")

    def new(self) -> Path:
        """A folder, always of the same name: a run remembers where it started from."""
        folder = self.home / "run"
        if folder.exists():  # there was trouble
            folder.rename(tempfile.mkdtemp(prefix="trouble", dir=self.home) + "/run")
        return folder

    def check(self, folder: Path) -> bool:
        """Whether a finished chain equals the untouched one; then it is removed."""
        found = differences(self.whole, folder)
        left = [str(p) for p in folder.rglob("*") if p.name.startswith((".tmp", ".old"))]
        if found or left:
            tell(f"NOT EQUAL: {folder}: {found + left}")
            return False
        shutil.rmtree(folder)
        return True

    def finish(self, folder: Path, **environment: str) -> Ended:
        ended = end(start(folder, **environment))
        if ended.status or not ended.clean:
            tell(f"FAILED: {folder}: {ended.status}: {ended.output[-2000:]}")
        return ended

    def kills(self, count: int, by_file: int) -> Row:
        """Kills at uniform moments, SIGKILL and SIGTERM in turn, five to a chain; and some at the
        moment at which a file is opened, renamed or removed, which no clock hits by chance. Each
        chain begins with one more of the four stages done, so that all meet as many."""
        equal, moments, slowest = 0, [], 0.0
        kinds = ["moment"] * count + ["file"] * by_file
        groups = [kinds[i : i + 5] for i in range(0, len(kinds), 5)]
        for n, group in enumerate(groups):
            folder, good = self.new(), True
            for done in ("cache", *STAGES)[: n % 4 + 1] if n % 4 else ():
                copy(self.whole / done, folder / done)
            for i, kind in enumerate(group):
                if kind == "moment":
                    how, first = ((signal.SIGKILL, 0.0), (signal.SIGTERM, START))[i % 2]
                    ended = end(start(folder), self.rng.uniform(first, self.seconds / 2), how)
                else:
                    how, at = signal.SIGKILL, str(self.rng.integers(1, 120))
                    ended = end(start(folder, FAULT="kill", FAULT_AT=at))
                if how == signal.SIGTERM:
                    slowest = max(slowest, ended.seconds * (ended.status == 143))
                moments.append(where(folder))
                if ended.status not in OK or not ended.clean:
                    tell(f"ENDED BADLY: {how.name}: {ended.status}: {ended.output[-2000:]}")
                    good = False
                tell(f"  {how.name} by {kind}, status {ended.status}, in {moments[-1]}")
            ended = self.finish(folder)
            good &= ended.status == 0 and ended.clean and self.check(folder)
            equal += good * len(group)
        spread = ", ".join(f"{moments.count(name)} in {name}" for name in sorted(set(moments)))
        return "kills", len(kinds), equal, f"{spread}; SIGTERM answered within {slowest:.1f} s"

    def damages(self, count: int) -> Row:
        """A file of a checkpoint is damaged. Of `latest` the newest is made anew from the one
        before; of `best`, which `evaluate` reads, the one before is used."""
        good, told = 0, 0
        for _ in range(count):
            folder = self.new()
            copy(self.whole, folder)
            files = sorted(p for p in folder.rglob("*") if p.is_file() and "checkpoints" in p.parts)
            path = files[self.rng.integers(len(files))]
            stage, _, kind, step = path.relative_to(folder).parts[:4]
            checkpoint = folder / stage / "checkpoints" / kind / step
            newest = step == max((p.name for p in checkpoint.parent.iterdir()), key=int)
            what = damage(path, self.rng)
            found = find_damage(checkpoint)
            if kind == "best":
                command = "evaluate", f"--config={CONFIG}:{stage}", "--config.checkpoint=best"
                ended = end(start(folder, *command))
                fine = ended.status in (0, 2) and ended.clean
            else:
                ended = self.finish(folder)
                fine = ended.status == 0 and ended.clean and self.check(folder)
            said = "is damaged" in ended.output
            told += said
            fine &= bool(found) and said == newest
            good += fine
            tell(f"  {what} {path.relative_to(self.home)}: {found[:90]}{'' if fine else ' BAD'}")
            shutil.rmtree(folder, ignore_errors=True)
        figures = f"all found; {told} of them in the newest of their kind, and told by the next run"
        return "damaged checkpoints", count, good, figures

    def full(self, count: int) -> Row:
        """No room when a file is opened, made or renamed; where it may be mounted, a real small
        disk for the checkpoints, which fills in the middle of one."""
        good, lines = 0, 0
        for i in range(count):
            folder = self.new()
            real = i % 2 == 0 and os.geteuid() == 0 and shutil.which("mount") is not None
            folder.mkdir()
            if real:
                size = int(self.rng.uniform(0.1, 0.9) * size_of(self.whole))
                mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
                real = subprocess.run(mount, capture_output=True, check=False).returncode == 0
            fault = {} if real else {"FAULT": "full", "FAULT_AT": str(self.rng.integers(1, 120))}
            ended = end(start(folder, **fault))
            one_line = ended.output.count("planet_jax: ") == 1 and "No space left" in ended.output
            fine = ended.clean and (ended.status == 0 or (ended.status == 2 and one_line))
            lines += ended.status == 2
            if real:
                subprocess.run(["mount", "-o", "remount,size=90%", str(folder)], check=True)
            last = (ended.output.strip().splitlines() or [""])[-1]
            tell(f"  {'small disk' if real else 'no room'}: status {ended.status}: {last[:150]}")
            fine &= self.finish(folder).status == 0 and not differences(self.whole, folder)
            if real:
                subprocess.run(["umount", str(folder)], check=True)
            shutil.rmtree(folder, ignore_errors=True)
            good += fine
            if not fine:
                tell(f"BAD: {ended.output[-2000:]}")
        return "full disks", count, good, f"{lines} ended with status 2 and one line"

    def lost_hosts(self, count: int) -> Row:
        """One of two processes of a run is lost at a uniform moment from the first step on, each in
        turn: the other ends and says which it was, and the same commands go on to the same end."""
        stages, whole = STAGES[:1], self.home / "together"
        begun = time.monotonic()
        assert [end(p).status for p in start_hosts(self.new(), *stages, 2)] == [0, 0]
        seconds = time.monotonic() - begun
        (self.home / "run").rename(whole)
        good, slowest = 0, 0.0
        for i in range(count):
            folder = self.new()
            processes = start_hosts(folder, *stages, 2)
            while not (folder / stages[0] / "steps.csv").exists():
                time.sleep(0.05)
            end(processes[i % 2], self.rng.uniform(0, seconds / 4), signal.SIGKILL)
            other = end(processes[1 - i % 2], 0, 0)
            slowest = max(slowest, other.seconds)
            last = (other.output.strip().splitlines() or [""])[-1]
            named = other.status == 1 and f"process {i % 2} (" in last
            again = [end(p) for p in start_hosts(folder, *stages, 2)]
            found = differences(whole, folder, stages)
            fine = (named or other.status == 0) and not found and other.seconds < LOST_AFTER
            fine &= all(ended.status == 0 and ended.clean for ended in again)
            good += fine
            tell(f"  process {i % 2} lost: {other.status}: {last[:110]}{'' if fine else ' BAD'}")
            if not fine:
                tell(f"BAD: {found} {[ended.output[-1000:] for ended in again]}")
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(whole)
        return "lost hosts", count, good, f"the other ended within {slowest:.1f} s"

    def clock(self, count: int) -> Row:
        """The clock of the wall jumps by days, either way, all the time."""
        good = 0
        for seed in range(count):
            folder = self.new()
            good += self.finish(folder, FAULT_CLOCK=str(seed)).status == 0 and self.check(folder)
        return "clocks that jump", count, good, ""

    def ctrl_c(self, count: int) -> Row:
        good, slowest = 0, 0.0
        for _ in range(count):
            folder = self.new()
            process = start(folder)
            ended = end(process, self.rng.uniform(START, self.seconds / 2), signal.SIGINT)
            time.sleep(0.1)
            fine = ended.status == 130 and ended.clean and not left_running(process)
            slowest = max(slowest, ended.seconds)
            good += fine and ended.seconds < 5
            if not fine:
                tell(f"BAD: {ended.status} {ended.output[-1000:]}")
            shutil.rmtree(folder, ignore_errors=True)
        return "Ctrl-C", count, good, f"ended within {slowest:.1f} s, no process left"

    def long_run(self, steps: int) -> Row:
        """Memory, threads and open files of one stage, after 100 steps and at the end: the least of
        200 steps, for a save that is under way has its own.

        An epoch has 77 steps, and ends with a save. Each save costs some 220 bytes for every array
        for good: tensorstore does not free what KvStore.Spec.to_json returns, which Orbax asks.
        """
        folder, chips = self.new(), self.home / "many chips"
        make_chips(chips, 16)
        options = {
            "data.root": chips, "train.epochs": -(-steps // 77), "train.save_every": 0,
            "workdir": folder / "long",
        }  # fmt: skip
        flags = [f"--config.{name}={value}" for name, value in options.items()]
        process = start(folder, "train", f"--config={CONFIG}:stage1", *flags)
        reader = ThreadPoolExecutor(1).submit(process.communicate)  # or its pipe would fill
        seen: list[tuple[int, float, int, int]] = []
        while process.poll() is None:
            time.sleep(0.5)
            with contextlib.suppress(OSError, ValueError, LookupError):  # it begins or ends
                row = (folder / "long" / "steps.csv").read_text().splitlines()[-1]
                seen.append((int(row.split(",")[0]), *measured(process.pid)))
        windows = [
            [row[1:] for row in seen if low <= row[0] < low + steps / 10]
            for low in np.linspace(100, steps * 0.9, 5)
        ]
        if process.returncode or not all(windows):
            tell(f"BAD: {process.returncode} {reader.result()[0][-2000:]}")
            return f"a run of {steps} steps", 1, 0, "failed"
        typical = [np.min(window, axis=0) for window in windows]
        for row in typical:
            tell("  memory {:.0f} MB, {:.0f} threads, {:.0f} open files".format(*row))
        (mb, threads, handles), (mb_end, threads_end, handles_end) = typical[0], typical[-1]
        shutil.rmtree(folder)
        late = np.array([row[:2] for row in seen if row[0] > steps / 2])
        slope = 1000 * np.polyfit(late[:, 0], late[:, 1], 1)[0]
        flat = mb_end < mb * 1.03 and slope < mb * 0.01
        flat &= threads_end <= threads and handles_end <= handles
        figures = (
            f"memory {mb:.0f} → {mb_end:.0f} MB ({slope:+.1f} MB per 1,000 steps of the second "
            f"half, scatter {late[:, 1].std():.1f} MB), threads {threads:.0f} → {threads_end:.0f}, "
            f"open files {handles:.0f} → {handles_end:.0f} "
            "(the least of 200 steps, after 100 → at the end)"
        )
        return f"a run of {steps} steps", 1, int(flat), figures


def where(folder: Path) -> str:
    """The first stage that is not finished."""
    done = [stage for stage in STAGES if (folder / stage / "history.png").exists()]
    return STAGES[len(done)] if len(done) < len(STAGES) else "the scores"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measured(pid: int) -> tuple[float, int, int]:
    """(resident MB, threads, open files) of a process, by /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    handles = len(os.listdir(f"/proc/{pid}/fd"))
    return int(fields["VmRSS"].split()[0]) / 1000, int(fields["Threads"]), handles


def tell(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    for name, default in (
        ("kills", 50), ("file-kills", 10), ("damages", 20), ("full", 10), ("lost-hosts", 6),
        ("clocks", 2), ("ctrl-c", 5), ("inputs", 100_000), ("steps", 2000), ("seed", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--home", type=Path, help="a folder to work in; kept when there is trouble")
    asked = parser.parse_args()
    home = asked.home or Path(tempfile.mkdtemp(prefix="faults-"))
    home.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    if any((asked.kills, asked.file_kills, asked.damages, asked.full, asked.lost_hosts,
            asked.clocks, asked.ctrl_c, asked.steps)):  # fmt: skip
        faults = Faults(home, asked.seed)
        tries: list[tuple[int, Callable[[], Row]]] = [
            (asked.kills + asked.file_kills, lambda: faults.kills(asked.kills, asked.file_kills)),
            (asked.damages, lambda: faults.damages(asked.damages)),
            (asked.full, lambda: faults.full(asked.full)),
            (asked.lost_hosts, lambda: faults.lost_hosts(asked.lost_hosts)),
            (asked.clocks, lambda: faults.clock(asked.clocks)),
            (asked.ctrl_c, lambda: faults.ctrl_c(asked.ctrl_c)),
            (asked.steps, lambda: faults.long_run(asked.steps)),
        ]
        for count, run in tries:
            if count:
                rows.append(run())
                tell(str(rows[-1]))
    if asked.inputs:
        rows += fuzz.run(asked.inputs, asked.seed, home)
    tell(f"\n{'what':<28}{'tried':>8}{'right':>8}  figures")
    for what, count, good, figures in rows:
        tell(f"{what:<28}{count:>8}{good:>8}  {figures}")
    right = all(count == good for _, count, good, _ in rows)
    if right and not asked.home:
        shutil.rmtree(home)
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
