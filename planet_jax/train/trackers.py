"""Send a run's rows and pictures to TensorBoard, Weights & Biases or a tracker of the user.

Each tracker is called in a thread of its own, so it cannot delay or end the run. An exception turns
it off. Calls that do not fit its queue, or are not done soon after the run's end, are left out.
"""

import contextlib
import importlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from planet_jax.config import as_json, flatten
from planet_jax.runtime.distributed import is_main_process, on_main
from planet_jax.runtime.errors import BadInput, did_you_mean
from planet_jax.runtime.progress import notify
from planet_jax.storage.bucket import local_path
from planet_jax.train.checkpoint import Checkpoint
from planet_jax.train.tracker_kinds import TensorBoard, WeightsAndBiases

CALLS = 10_000  # the longest queue
END_SECONDS = 10.0  # the longest wait at the end of a run, for all trackers together
PICTURES = ("show_batch.png", "lr_range.png", "history.png")


class Tracker(Protocol):
    """What `track.to` = MODULE:NAME names: NAME(run, options, step, epoch) returns a tracker.

    `run` is the run folder and `options` is {"data.size": 128, ...}. `step` and `epoch` are the
    first whose rows follow; a resumed run repeats those that an earlier tracker may have seen.
    """

    def add(self, table: str, row: dict[str, float]) -> None:
        """Add a row of `steps` or `history`, by column; the first is the step or the epoch."""

    def picture(self, name: str, path: Path) -> None:
        """Add a PNG file."""

    def close(self, is_complete: bool) -> None:
        """End; `is_complete` is False after an error or SIGTERM."""


TRACKERS: dict[str, tuple[str, Callable[..., Tracker]]] = {  # name: (module it needs, class)
    "tensorboard": ("tensorboardX", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
}


@on_main
def check(config: ConfigDict) -> None:
    """Import the trackers of `track.to`.

    Raises:
      BadInput: a name is unknown, or a module is missing or cannot be imported.
    """
    for name in config.track.to:
        _find(name)


def _find(name: str) -> Callable[..., Tracker]:
    """Return the class or function of a tracker; raise BadInput as `check`."""
    option = f"config.track.to = {name}"
    needed, tracker = TRACKERS.get(name, ("", None))
    module, colon, attribute = name.partition(":")
    if not tracker and not (module and colon and attribute):
        raise BadInput(f"{option}: {did_you_mean(name, [*TRACKERS, 'MODULE:NAME'])}")
    try:
        imported = importlib.import_module(needed or module)
    except Exception as error:  # a module can raise anything
        if needed and isinstance(error, ImportError):
            raise BadInput(f"{option}: pip install '.[{name}]' ({error})") from error
        kind = type(error).__name__
        raise BadInput(f"{option}: {module} cannot be imported ({kind}: {error})") from error
    found = tracker or getattr(imported, attribute, None)
    if not callable(found):
        callables = [name for name, value in vars(imported).items() if callable(value)]
        nearest = did_you_mean(attribute, callables)
        raise BadInput(f"{option}: {attribute} is not a class or function; {nearest}")
    return found


@contextlib.contextmanager
def following(config: ConfigDict, own: Checkpoint | None) -> Iterator["Followers"]:
    """Yield the trackers of `track.to`, which end with the block; none outside the main process.

    `own` is the checkpoint from which the run is resumed.
    """
    run, step, epoch = local_path(config.workdir), 0, 0
    if own and own.metadata.log:
        step, epoch = own.metadata.step, own.metadata.log.epochs
    options = {name: as_json(value) for name, value in flatten(config).items()}
    names = config.track.to if is_main_process() else ()
    starts = {name: partial(_find(name), run, options, step, epoch) for name in names}
    followers = Followers([_Follower(name, start) for name, start in starts.items()])
    is_complete = False
    try:
        yield followers
        is_complete = True
    finally:
        followers.close(is_complete)


class Followers:
    """The trackers of a run, called as one without a wait."""

    def __init__(self, followers: "list[_Follower]") -> None:
        self._followers = followers

    def add(self, table: str, row: dict[str, float]) -> None:
        """Add a row, as `Tracker.add`."""
        for follower in self._followers:
            follower.call("add", table, dict(row))  # a copy: they run in different threads

    def pictures(self, run: Path) -> None:
        """Add the pictures that the run folder has."""
        for path in filter(Path.exists, (run / name for name in PICTURES)):
            for follower in self._followers:
                follower.call("picture", path.stem, path)

    def close(self, is_complete: bool) -> None:
        """End the trackers, or give up after END_SECONDS."""
        deadline = time.monotonic() + END_SECONDS
        for follower in self._followers:
            follower.call("close", is_complete)
        for follower in self._followers:
            follower.join(deadline)


class _Follower:
    """Call one tracker in a thread; the first row starts it, so a refused run leaves no trace."""

    def __init__(self, name: str, start: Callable[[], Tracker]) -> None:
        self._name, self._start = f"track.to = {name}", start
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        self._is_slow = False
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def call(self, method: str, *arguments: Any) -> None:
        """Queue a call, or leave it out if the queue is full; "close" always fits."""
        if not self._thread.is_alive():
            return
        if method == "close" or self._calls.qsize() < CALLS:
            self._calls.put((method, arguments))
        elif not self._is_slow:
            self._is_slow = True
            notify(f"{self._name}: slower than the training; rows are left out")

    def join(self, deadline: float) -> None:
        """Wait for the tracker's end until `deadline`, a time of the monotonic clock."""
        self._thread.join(max(deadline - time.monotonic(), 0))
        if self._thread.is_alive():
            notify(f"{self._name}: did not end within {END_SECONDS:.0f} s; its last rows are lost")

    def _work(self) -> None:
        tracker, method = None, ""
        try:
            while method != "close":
                method, arguments = self._calls.get()
                if tracker or method != "close":
                    tracker = tracker or self._start()
                    getattr(tracker, method)(*arguments)
        except BaseException as error:  # a tracker may even call sys.exit
            text = " ".join(f"{type(error).__name__}: {error}".split())
            notify(f"{self._name}: off from here on; training is not changed ({text})")
            if tracker and method != "close":
                with contextlib.suppress(BaseException):
                    tracker.close(False)
