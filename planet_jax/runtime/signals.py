"""Defer SIGTERM until a training loop has saved; otherwise SIGTERM and Ctrl-C end the process.

Every file is written whole or not at all (`files`), so a process may end at any other moment.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stopped(SystemExit):
    """SIGTERM ended the training loop after a save; a shell reports SIGTERM as this status."""

    def __init__(self) -> None:
        super().__init__(143)


@contextlib.contextmanager
def defer_sigterm(enabled: bool = True) -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets within the block, instead of ending the process.

    Python sets handlers only in the main thread. Elsewhere, or if not `enabled`, nothing changes.
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
