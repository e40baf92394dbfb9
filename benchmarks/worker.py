"""Run a part of a benchmark in a process of its own, once for each line of its input."""

import subprocess
import sys
from collections.abc import Callable


class Worker:
    """A process that prints "ready", then a number for each line of its input (see `serve`)."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        if self._line() != "ready\n":
            sys.exit(f"{' '.join(command)} failed")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def start(self) -> None:
        """Start one measurement."""
        print(file=self.process.stdin, flush=True)

    def result(self) -> float:
        """Wait for the measurement and return its number."""
        return float(self._line())

    def measure(self) -> float:
        """Make one measurement and return its number."""
        self.start()
        return self.result()

    def end(self) -> None:
        """End the process, by closing its input."""
        self.process.communicate()


def serve(measure: Callable[[], float]) -> None:
    """Answer a `Worker`: print the number that `measure` returns for each line of stdin."""
    print("ready", flush=True)
    for _ in sys.stdin:
        print(measure(), flush=True)
