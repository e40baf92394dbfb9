"""Ctrl-C and SIGTERM: one line, the exit status that shells expect, and at once.

Python runs a signal's handler in the main thread between two of its own instructions, which can be
minutes away while XLA compiles, and an exception raised there may land anywhere. So a thread ends
the process, as a kill would: all that is written is whole or not there (`files`). Only a training
loop with something to save is waited for.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")

SIGTERM_STATUS = 143
STATUS = {signal.SIGINT: 130, signal.SIGTERM: SIGTERM_STATUS}


class Stopped(SystemExit):
    """The program is to end with this status, as it was told to."""


class SaveFirst:
    """SIGTERM's handler while there may be something to save: the block ends itself when `asked`.

    Attributes:
      asked: SIGTERM has come.
    """

    def __init__(self, unsaved: Callable[[], bool]) -> None:
        self.unsaved, self.asked = unsaved, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@contextlib.contextmanager
def save_first(unsaved: Callable[[], bool]) -> Iterator[SaveFirst]:
    """SIGTERM waits for the block as long as it has `unsaved` work.

    Handlers can be set by the main thread alone; in another nothing is asked. In several processes
    jax has set one, for `distributed.stop_requested`.
    """
    from planet_jax.runtime import (
        distributed,  # and with it jax, while `install` is to come before it
    )

    handler = SaveFirst(unsaved)
    if distributed.is_multi_process() or threading.current_thread() is not threading.main_thread():
        yield handler
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield handler
    finally:
        signal.signal(signal.SIGTERM, before)


def until(stop: Callable[[], bool], items: Iterable[Item]) -> Iterator[Item]:
    """The items; raises `Stopped` between two of them once `stop()`."""
    for item in items:
        if stop():
            raise Stopped(SIGTERM_STATUS)
        yield item


def hold() -> None:
    """Signals wait for `install`, even where this process begins anew in between."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)


def install() -> None:
    """From here on Ctrl-C and SIGTERM end this program."""
    for number in STATUS:
        signal.signal(number, _leave_to_the_thread)
    out, into = os.pipe()
    os.set_blocking(into, False)
    signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(out,), name="signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STATUS)


def ignore() -> None:
    """The work is done: a signal that comes now changes nothing."""
    signal.set_wakeup_fd(-1)
    for number in STATUS:
        signal.signal(number, signal.SIG_IGN)


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None:
    pass


def _watch(signals: int) -> None:
    while True:
        number = signal.Signals(os.read(signals, 1)[0])
        handler = signal.getsignal(number)
        if number not in STATUS or (isinstance(handler, SaveFirst) and handler.unsaved()):
            continue
        threading.Timer(1.0, os._exit, [STATUS[number]]).start()  # should a flush hang
        sys.stdout.flush()
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        line = f"planet_jax: stopped by {name}; the same command goes on\n"
        os.write(2, ("\n" * os.isatty(2) + line).encode())
        os._exit(STATUS[number])
