"""Ctrl-C and SIGTERM: the system's own actions, but a training loop saves before SIGTERM ends it.

Every file is written whole or not at all (`files`), so a process may end at any other moment.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stopped(SystemExit):
    """SIGTERM ended the training loop after a save; the status is what a shell reports of it."""

    def __init__(self) -> None:
        super().__init__(143)


@contextlib.contextmanager
def defer_sigterm(enabled: bool = True) -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets within the block, in place of ending the process.

    Python sets handlers in the main thread alone; elsewhere, or if not `enabled`, nothing changes.
    """
    received = threading.Event()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
