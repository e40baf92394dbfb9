"""Send a run's rows and pictures to TensorBoard, Weights & Biases or a tracker of the user.

Each tracker is called in a thread of its own, so it cannot delay or end the run. An exception turns
it off. Calls that do not fit its queue, or are not done soon after the run's end, are left out.
"""

import contextlib
import importlib
import json
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from os import environ
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict
from PIL import Image

from planet_jax.config import as_json, flatten
from planet_jax.runtime.distributed import is_main_process, on_main
from planet_jax.runtime.errors import BadInput, did_you_mean
from planet_jax.runtime.files import atomic_path
from planet_jax.runtime.progress import notify
from planet_jax.storage.bucket import local_path
from planet_jax.train.checkpoint import Checkpoint
from planet_jax.train.log import EMA_SCORES, HISTORY_COLUMNS

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


class TensorBoard:
    """Write event files: steps.csv to tensorboard/steps, history.csv to tensorboard/history.

    TensorBoard drops a folder's events from one number on when a run is resumed. Steps and epochs
    count differently, so each has a folder.
    """

    def __init__(self, run: Path, options: dict[str, Any], step: int, epoch: int) -> None:
        # Not its SummaryWriter: that one's thread loses errors, as of a full disk, and then hangs.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import text

        self._event, self._summary, self._step = Event, Summary, step
        self._writers = {}
        for table, first in {"steps": step, "history": epoch}.items():
            folder = run / "tensorboard" / table
            folder.mkdir(parents=True, exist_ok=True)
            suffix = f".{time.time_ns()}"  # a second run in one second needs another name
            self._writers[table] = EventsWriter(str(folder / "events"), suffix)
            start = SessionLog(status=SessionLog.START)
            self._write(table, first, session_log=start)
        lines = json.dumps(options, indent=1).splitlines()
        self._write("steps", step, summary=text("options", "\n".join(f"    {s}" for s in lines)))

    def add(self, table: str, row: dict[str, float]) -> None:
        """Write the columns of a row as scalars."""
        (_, number), *columns = row.items()
        if table == "steps":
            self._step = int(number)
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in columns]
        self._write(table, int(number), summary=self._summary(value=values))

    def picture(self, name: str, path: Path) -> None:
        """Write the file's bytes as an image of the last step."""
        with Image.open(path) as image:
            width, height = image.size
        content = {"width": width, "height": height, "encoded_image_string": path.read_bytes()}
        value = self._summary.Value(tag=name, image=self._summary.Image(**content))
        self._write("steps", self._step, summary=self._summary(value=[value]))

    def close(self, is_complete: bool) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _write(self, table: str, number: int, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=number, **content)
        self._writers[table].write_event(event)
        self._writers[table].flush()


class WeightsAndBiases:
    """Log to a run of Weights & Biases, in its mode (WANDB_MODE) and with its credentials.

    wandb/id in the run folder keeps the id of the run, which a resumed run continues.
    """

    def __init__(self, run: Path, options: dict[str, Any], step: int, epoch: int) -> None:
        import wandb

        self._wandb = wandb
        file = run / "wandb" / "id"
        if step == 0 or not file.exists():
            with atomic_path(file) as temporary:
                temporary.write_text(uuid.uuid4().hex[:8])
        hooks = sys.exit, sys.excepthook  # wandb replaces both to learn the exit status
        try:
            wandb.setup(wandb.Settings(silent=True))  # without it, wandb can ask for a login
            self._run = wandb.init(
                dir=run,
                project=environ.get("WANDB_PROJECT", "planet_jax"),
                name=environ.get("WANDB_NAME", run.name),
                id=file.read_text(),
                resume="allow",
                config=options,
                settings=wandb.Settings(
                    console="off",  # leaves stdout and stderr alone
                    reinit="create_new",  # leaves other runs of a notebook alone
                    init_timeout=2 * END_SECONDS,  # wandb's exit hook waits for it too
                    finish_timeout=END_SECONDS / 2,
                    finish_timeout_raises=True,
                ),
            )
        finally:
            sys.exit, sys.excepthook = hooks
        self._run.define_metric("*", step_metric="step")
        for column in (*HISTORY_COLUMNS[1:], *(f"ema_{name}" for name in EMA_SCORES)):
            self._run.define_metric(column, step_metric="epoch")
        # The rows that the server has; offline, nothing is known of earlier rows.
        self._done = {name: self._run.summary.get(name, -1) for name in ("step", "epoch")}
        where = Path(self._run.dir).parent if self._run.offline else self._run.url
        notify(f"{run}: wandb: {where}")

    def add(self, table: str, row: dict[str, float]) -> None:
        """Log a row, unless the server has it."""
        name, number = next(iter(row.items()))
        if number > self._done[name]:
            self._run.log(row)

    def picture(self, name: str, path: Path) -> None:
        """Log a picture."""
        self._run.log({name: self._wandb.Image(str(path))})

    def close(self, is_complete: bool) -> None:
        """Upload what is left; the run is marked failed if it is not complete."""
        self._run.finish(exit_code=0 if is_complete else 1)


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
