"""The run folder: one training process at a time, and refused before any work if not writable."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from planet_jax.runtime.distributed import on_main
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import lock_folder


@on_main
def check_writable(run: Path) -> None:
    """Refuse a folder that cannot be created or written to.

    Raises:
      BadInput: naming the folder and the reason.
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
    """Hold the run folder in the main process; remove a new one if the block refuses its input.

    What a killed process has left unfinished in checkpoints/ is removed first.

    Raises:
      BadInput: another process holds it, or it cannot be written to.
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
