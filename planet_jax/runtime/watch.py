"""Processes that end together: when one is lost the others end too, and say which it was.

Each process of a run on several hosts is two. The one that was started runs `supervise`: it never
touches jax, whose runtime may abort its process at any moment. Its child does the work. The
watchers hold a star of TCP connections with process 0 in the middle, over which they ping each
other, tell of their child's end, and hear the verdict. A broken connection is a loss at once,
silence is one after LOST_AFTER.
"""

import contextlib
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

PING, LOST_AFTER = 2.0, 30.0  # seconds
STOPPED, INTERRUPTED = 143, 130  # ended by SIGTERM, by Ctrl-C
CHANNEL = "PLANET_JAX_WATCHER"  # what tells a child that it is one: the line's handle, the port


class Line:
    """JSON messages over a socket."""

    def __init__(self, connection: socket.socket, name: str = "") -> None:
        self.socket, self.name, self._rest = connection, name, b""
        self.heard = time.monotonic()

    def tell(self, **message: Any) -> None:
        """Sends; that nobody is there any more shows when reading."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> list[dict[str, Any]] | None:
        """The messages that have come; None when the connection is gone."""
        try:
            got = self.socket.recv(1 << 16)
            *lines, self._rest = (self._rest + got).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):  # ValueError: a stranger who found the port
            return None
        self.heard = time.monotonic()
        return messages if got else None


class Verdict(NamedTuple):
    """Why the run ends."""

    process: int  # the one to blame
    status: int
    text: str


def child_line() -> tuple[Line, int] | None:
    """In a child: the line to its watcher, and the port on which process 0's watcher listens.

    The child ends when its watcher does, and gives it a sign of life now and then.
    """
    if CHANNEL not in os.environ:
        return None
    handle, port = map(int, os.environ[CHANNEL].split())
    line = Line(socket.socket(fileno=handle))

    def end_with_it() -> None:
        line.socket.recv(1)
        os._exit(1)

    def live() -> None:
        while True:
            line.tell()
            time.sleep(PING)

    for work in (end_with_it, live):
        threading.Thread(target=work, daemon=True).start()
    return line, port


def supervise() -> int:
    """Runs this very command as a child, watches it and the others; returns the exit status."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    listener = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
    own, childs = socket.socketpair()
    os.environ[CHANNEL] = f"{childs.fileno()} {listener.getsockname()[1]}"
    command = [sys.executable, *sys.orig_argv[1:]]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child too
    child = subprocess.Popen(command, pass_fds=[childs.fileno()])
    signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    signal.set_wakeup_fd(-1)  # what signals ask for is the child's affair from here on
    childs.close()
    try:
        return _Watch(child, Line(own), listener).run()
    finally:
        child.kill()


class _Watch:
    """One watcher: its child, the others (process 0's: all; another's: process 0 alone)."""

    def __init__(self, child: subprocess.Popen[bytes], own: Line, listener: socket.socket) -> None:
        self.child, self.own, self.listener = child, own, listener
        self.index, self.count, self.joined = -1, 0, time.monotonic()
        self.others: dict[int, Line] = {}
        self.done: set[int] = set()
        self.ended = False  # the child has told of its end
        self.told = False  # and was sure, so that its own last line is the one that counts
        self.stopping = False  # SIGTERM ends all children at the same step
        self.verdict: Verdict | None = None
        self.suspect: tuple[float, Verdict] | None = None  # believed at that time, if none is surer
        self.over = False
        self.selector = selectors.DefaultSelector()
        self._select(own, self._hear_child)

    def _select(self, line: Line, heard: Any) -> None:
        self.selector.register(line.socket, selectors.EVENT_READ, (line, heard))

    def run(self) -> int:
        """Returns the exit status when all have ended, or one has been lost."""
        pinged = 0.0
        while self.verdict is None and not self.over:
            for key, _ in self.selector.select(PING / 4):
                line, heard = key.data
                heard(line)
            now = time.monotonic()
            if now - pinged > PING:
                pinged = now
                for line in self.others.values():
                    line.tell()
            self._look_at_clock(now)
        if self.verdict is None:
            return self.child.returncode
        return self._end(self.verdict)

    def _look_at_clock(self, now: float) -> None:
        if self.count and now - self.own.heard > LOST_AFTER and self.child.poll() is None:
            self.own.heard = math.inf  # say so once
            self._fell(1, f"was lost: no sign of life for {LOST_AFTER:.0f} s", True)
        for index, line in self.others.items():
            if now - line.heard > LOST_AFTER:
                self._lost(index, f"no sign of life for {LOST_AFTER:.0f} s")
        if self.index == 0 and now - self.joined > LOST_AFTER:
            for index in set(range(1, self.count)) - self.others.keys():
                self._lost(index, "it has joined the run and not its watchers")
        if self.suspect is not None and now > self.suspect[0]:
            self.verdict = self.verdict or self.suspect[1]

    def _hear_child(self, line: Line) -> None:
        messages = line.hear()
        for message in messages or ():
            if "joined" in message:
                self._join(*message["joined"])
            if "stopping" in message:
                self.stopping = True
            if "ended" in message:
                self.ended, self.told = True, message["ended"][2]
                self._fell(*message["ended"])
        if messages is None:
            self.selector.unregister(line.socket)
            self._child_ended(self.child.wait())

    def _child_ended(self, status: int) -> None:
        if self.count == 0:  # it has not even joined
            if status < 0:
                text = f"process ended by {_signal(status)} before it joined the others"
                self.verdict = Verdict(-1, STOPPED if status == -signal.SIGTERM else 1, text)
            self.over = True
        elif status == 0 or (status == STOPPED and self.stopping):
            self._done(self.index)
        elif status in (STOPPED, -signal.SIGTERM):
            self._fell(STOPPED, "was stopped by SIGTERM", True)
        elif status == INTERRUPTED:
            self._fell(INTERRUPTED, "was stopped by Ctrl-C", True)
        elif not self.ended:
            # The runtime aborts when another process is lost, so an abort blames nobody yet.
            name = _signal(status) if status < 0 else f"status {status}"
            self._fell(1, f"was lost: ended by {name}", status != -signal.SIGABRT)

    def _join(self, host: str, port: int, index: int, count: int) -> None:
        self.index, self.count, self.joined = index, count, time.monotonic()
        if index == 0:
            self._select(Line(self.listener), self._accept)
            return
        self.listener.close()
        try:
            connection = socket.create_connection((host, port), timeout=LOST_AFTER)
        except OSError as error:
            self._lost(0, f"no connection to {host}:{port} ({error})")
            return
        connection.settimeout(LOST_AFTER)
        hub = self.others[0] = Line(connection, host)
        hub.tell(hello=[index, socket.gethostname()])
        self._select(hub, self._hear_hub)

    def _accept(self, listener: Line) -> None:
        connection, _ = listener.socket.accept()
        connection.settimeout(LOST_AFTER)
        self._select(Line(connection), self._hear_peer)

    def _hear_peer(self, line: Line) -> None:
        """Process 0 hears one of the others."""
        messages = line.hear()
        for message in messages or ():
            if "hello" in message:
                index, line.name = message["hello"]
                self.others[index] = line
            index = next((i for i, other in self.others.items() if other is line), -1)
            if "done" in message:
                self._done(index)
            if "fell" in message:
                self._blame(index, *message["fell"])
        if messages is None:
            self.selector.unregister(line.socket)
            for index, other in self.others.items():
                if other is line:
                    self._lost(index, "its connection broke")

    def _hear_hub(self, line: Line) -> None:
        messages = line.hear()
        for message in messages or ():
            self.over = self.over or "over" in message
            if "verdict" in message and self.verdict is None:
                self.verdict = Verdict(*message["verdict"])
        if messages is None:
            self.selector.unregister(line.socket)
            if not self.over:
                self._lost(0, "its connection broke")

    def _done(self, index: int) -> None:
        """A child has ended in order; when all have, so may their watchers."""
        self.done.add(index)
        if self.index != 0:
            self.others[0].tell(done=True)
        elif len(self.done) == self.count:
            self.over = True
            for line in self.others.values():
                line.tell(over=True)

    def _fell(self, status: int, text: str, is_sure: bool) -> None:
        """The own child has ended otherwise."""
        if self.index == 0:
            self._blame(0, status, text, is_sure)
        elif self.count:
            self.others[0].tell(fell=[status, text, is_sure])
        else:
            self.verdict = Verdict(-1, status, text)

    def _lost(self, index: int, why: str) -> None:
        name = self.others[index].name if index in self.others else "?"
        self.verdict = self.verdict or Verdict(
            index, 1, f"process {index} ({name}) was lost: {why}; the same command goes on"
        )

    def _blame(self, index: int, status: int, text: str, is_sure: bool) -> None:
        name = self.others[index].name if index else socket.gethostname()
        verdict = Verdict(index, status, f"process {index} ({name}) {text}")
        if is_sure:
            self.verdict = self.verdict or verdict
        elif self.suspect is None:
            self.suspect = time.monotonic() + LOST_AFTER, verdict

    def _end(self, verdict: Verdict) -> int:
        """Ends the child, tells the others, and says the last line unless the child has."""
        if self.index == 0:
            for line in self.others.values():
                line.tell(verdict=verdict)
        self.child.kill()
        self.child.wait()
        if not self.told:
            print(f"planet_jax: {verdict.text}", file=sys.stderr, flush=True)
        if self.index == 0:
            # Not before they have heard it: to close a socket that holds unread pings resets it.
            for line in self.others.values():
                with contextlib.suppress(OSError):
                    line.socket.shutdown(socket.SHUT_WR)
                    line.socket.settimeout(2 * PING)
                    while line.socket.recv(1 << 16):
                        pass
        return verdict.status


def _signal(status: int) -> str:
    return signal.Signals(-status).name
