"""Write checkpoints in a thread: write under a temporary name, seal, then rename."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import orbax.checkpoint as ocp

from planet_jax.runtime import memory
from planet_jax.runtime.distributed import is_main_process
from planet_jax.runtime.errors import BadInput, RunFailed, resource_error
from planet_jax.runtime.files import fsync, remove_folder, replace, seal, write_json
from planet_jax.runtime.progress import notify
from planet_jax.train.checkpoint import Flat, list_steps, process_checkpointer
from planet_jax.train.metadata import Metadata

WRITE_ATTEMPTS = 5  # Orbax's timeouts use the wall clock, so a clock change can trigger them
SPARE_BYTES = 2**21  # space for the data that Orbax adds to the arrays
KEEP = 2  # checkpoints of each kind: the older one is used if the newer one is damaged


class CheckpointWriter:
    """Write checkpoints in a thread, one after the other, while training continues.

    On exit, the context manager waits for the last write. The run folder must be locked.
    Checkpoints newer than `resumed_step` are removed, because those steps run again. After each
    save the thread calls `after_save`.
    """

    def __init__(
        self, run: Path, resumed_step: int, after_save: Callable[[], None] | None = None
    ) -> None:
        self.run, self.folder, self._after_save = run, run / "checkpoints", after_save
        if is_main_process():
            for kind in self.folder.glob("*"):
                for step in list_steps(kind):
                    if step > resumed_step:
                        remove_folder(kind / str(step))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._write: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.raise_failure()

    def save(self, kinds: Mapping[str, dict[str, Flat]], metadata: Metadata) -> None:
        """Start to write `{kind: {item: arrays}}` in this order, in the main process alone.

        The arrays must not change. Errors are raised later, by `raise_failure`.
        """
        if is_main_process():
            self._write = self._thread.submit(self._write_all, dict(kinds), metadata)

    def wait(self) -> None:
        """Wait for the current write, then call `raise_failure`."""
        if self._write is not None:
            self._write.exception()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise the error of the last write if that write failed.

        Raises:
          BadInput: the disk is full or not writable.
          RunFailed: Orbax failed for another reason.
        """
        if self._write is None or not self._write.done():
            return
        error = self._write.exception()
        if error is not None:
            older = "older checkpoints are whole"
            if line := resource_error(error):
                raise BadInput(f"{self.folder}: cannot save; {older}; {line}") from None
            raise RunFailed(f"{self.folder}: cannot save ({error}); {older}") from error

    def _write_all(self, kinds: dict[str, dict[str, Flat]], metadata: Metadata) -> None:
        for kind, items in kinds.items():
            path = self.folder / kind / str(metadata.step)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_with_retries(path, items, metadata)
            for unfinished in path.parent.glob(".tmp-*"):  # Orbax's threads outlive a failed write
                shutil.rmtree(unfinished, ignore_errors=True)
            for step in list_steps(path.parent)[:-KEEP]:
                remove_folder(path.parent / str(step))
        if self._after_save:
            self._after_save()
        memory.trim()


def _write_with_retries(path: Path, items: dict[str, Flat], metadata: Metadata) -> None:
    for attempts_left in reversed(range(WRITE_ATTEMPTS)):
        try:
            _write_whole(path, items, metadata)
            return
        except Exception as error:
            if resource_error(error) or not attempts_left:
                raise
            notify(f"{path}: not saved ({error}); trying again")


def _write_whole(path: Path, items: dict[str, Flat], metadata: Metadata) -> None:
    """Write and seal a checkpoint under a temporary name, then rename it."""
    _require_space(path.parent, sum(a.nbytes for flat in items.values() for a in flat.values()))
    args = {item: ocp.args.StandardSave(flat) for item, flat in items.items()}
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=".tmp-", ignore_cleanup_errors=True
    ) as folder:
        temporary = Path(folder).absolute() / path.name
        with process_checkpointer() as orbax:
            orbax.save(temporary, args=ocp.args.Composite(**args))
        write_json(temporary / "meta" / "metadata", metadata.to_json())
        seal(temporary)
        # The path exists if this step was saved before its epoch was scored.
        replace(temporary, path)
    fsync(path.parent)


def _require_space(folder: Path, size: int) -> None:
    """Raise OSError if the disk has no room for arrays of `size` bytes and their metadata.

    On a full disk tensorstore prints a traceback for every array that it could not write.
    """
    if shutil.disk_usage(folder).free < size + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
