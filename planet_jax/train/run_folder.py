"""The run folder of a command: lock it, check that it is writable, and its bucket if it has one."""

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ml_collections import ConfigDict

from planet_jax.conflicts import is_url
from planet_jax.runtime.distributed import on_main, process_count
from planet_jax.runtime.errors import BadInput, RunFailed
from planet_jax.runtime.files import lock_folder
from planet_jax.runtime.progress import notify
from planet_jax.runtime.signals import Stopped, defer_sigterm
from planet_jax.storage.bucket import Bucket, local_path
from planet_jax.storage.lease import Lease
from planet_jax.train.bucket_run import Record, fetch, fetch_locked, publish
from planet_jax.train.checkpoint import list_steps
from planet_jax.train.mirror import Mirror

P = ParamSpec("P")
T = TypeVar("T")


@on_main
def check_writable(run: Path) -> None:
    """Refuse a folder that cannot be created or written to.

    Raises:
      BadInput: the message names the folder and the reason.
    """
    is_new = not run.exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
        if is_new:
            run.rmdir()
    except OSError as error:
        raise BadInput(f"config.workdir = {run}: cannot be written to ({error.strerror})") from None


@contextlib.contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Lock the run folder in the main process; remove a new folder if the block raises BadInput.

    Unfinished files of a killed process in checkpoints/ are removed first.

    Raises:
      BadInput: another process has locked the folder, or the folder cannot be written to.
    """
    check_writable(run)
    is_new = not run.exists()
    with contextlib.ExitStack() as stack:

        @on_main
        def lock() -> None:
            try:
                stack.enter_context(lock_folder(run, wait=False))
            except BlockingIOError:
                raise BadInput(f"config.workdir = {run}: another process trains there") from None
            for unfinished in (run / "checkpoints").glob("*/.*"):
                shutil.rmtree(unfinished, ignore_errors=True)

        lock()
        try:
            yield
        except BadInput:
            if is_new and not any((run / "checkpoints").glob("*/[0-9]*")):
                shutil.rmtree(run, ignore_errors=True)
            raise


@contextlib.contextmanager
def training_folder(config: ConfigDict) -> Iterator[Mirror | None]:
    """Lock `config.workdir`, and fetch it and `init_from` if they are in a bucket.

    Yields the mirror that uploads to the bucket, in the main process; None for a local path.

    Raises:
      BadInput: as `exclusive`, `_mirrored` and `fetch`.
    """
    with exclusive(local_path(config.workdir)), contextlib.ExitStack() as stack:
        mirrors: list[Mirror] = []

        @on_main
        def join() -> None:
            if is_url(config.workdir):
                mirrors.append(stack.enter_context(_mirrored(config.workdir, config.train)))

        join()
        _fetch_before(config)
        yield mirrors[0] if mirrors else None


@contextlib.contextmanager
def _mirrored(url: str, train: ConfigDict) -> Iterator[Mirror]:
    """Fetch the run of a bucket, and upload what the block saves. Its local copy is locked.

    At the block's end waits for the uploads: `train.upload_minutes`, or after an error or SIGTERM
    what is left of `train.grace_seconds`.

    Raises:
      BadInput: another machine trains there, or the store does not answer at the start.
      RunFailed: the bucket does not have all at the end.
    """
    bucket, run = Bucket(url), local_path(url)
    record = Record.read(run)
    record.write()  # a killed process must find the owner of its lease
    lease = Lease(bucket, record.owner)
    lease.take()
    with contextlib.ExitStack() as stack:
        stack.callback(lease.release)
        mirror = Mirror(bucket, fetch_locked(bucket, run), lease, train.grace_seconds)
        stack.callback(mirror.close)
        notify(f"{url}: the local copy is {run}")
        with contextlib.ExitStack() as after_error:
            after_error.callback(mirror.drain_in_grace)
            yield mirror
            mirror.add()
            with defer_sigterm(enabled=process_count() == 1) as sigterm:
                is_done = mirror.drain(train.upload_minutes * 60, sigterm)
                if sigterm.is_set():
                    raise Stopped
            after_error.pop_all()
        if not is_done:
            raise RunFailed(
                f"{url}: the bucket has step {mirror.last_step}, not all of the run{mirror.reason};"
                f" {run} has it; repeat the command to upload the rest"
            )
        mirror.raise_failure()


def with_buckets(
    command: Callable[Concatenate[ConfigDict, P], T],
) -> Callable[Concatenate[ConfigDict, P], T]:
    """Fetch the runs that a command reads if they are in a bucket; upload what it writes."""

    @functools.wraps(command)
    def call(config: ConfigDict, *args: P.args, **kwargs: P.kwargs) -> T:
        on_main(fetch)(config.workdir)
        _fetch_before(config)
        for run in config.score.ensemble:
            on_main(fetch)(run, (config.checkpoint,))
        result = command(config, *args, **kwargs)
        on_main(publish)(config.workdir)
        return result

    return call


@on_main
def _fetch_before(config: ConfigDict) -> None:
    """Fetch the weights of `init_from` if it is in a bucket and this run needs them to start."""
    if not list_steps(local_path(config.workdir) / "checkpoints" / "latest"):
        fetch(config.init_from, ("latest",), newest_only=True)
