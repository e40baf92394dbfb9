"""The trackers of `trackers.TRACKERS`: TensorBoard's event files, and Weights & Biases."""

import json
import sys
import time
import uuid
from os import environ
from pathlib import Path
from typing import Any

from PIL import Image

from planet_jax.runtime.files import atomic_path
from planet_jax.runtime.progress import notify
from planet_jax.train.log import EMA_SCORES, HISTORY_COLUMNS

START_SECONDS = 20.0  # the longest wait for a server of Weights & Biases
FINISH_SECONDS = 5.0  # the longest wait for its last uploads; less than trackers.END_SECONDS


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
                    init_timeout=START_SECONDS,  # wandb's exit hook waits for it too
                    finish_timeout=FINISH_SECONDS,
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
