"""Lock the run folder for one training process, and check early that it is writable."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from planet_jax.conflicts import is_url
from planet_jax.runtime.distributed import on_main
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import lock_folder
from planet_jax.storage.bucket import local_path
from planet_jax.train.mirror import Mirror, mirrored


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
    """Lock `config.workdir`; if it is in a bucket, yield the mirror that uploads to it.

    Raises:
      BadInput: as `exclusive` and `mirrored`.
    """
    with exclusive(local_path(config.workdir)), contextlib.ExitStack() as stack:
        mirrors: list[Mirror] = []

        @on_main
        def join() -> None:
            if is_url(config.workdir):
                mirrors.append(stack.enter_context(mirrored(config.workdir, config.train)))

        join()
        yield mirrors[0] if mirrors else None
