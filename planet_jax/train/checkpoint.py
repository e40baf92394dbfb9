"""Orbax checkpoints of a run: `latest` to resume from, `best` by F2, kept apart.

A checkpoint is the folder `checkpoints/KIND/STEP`, written whole or not at all. It holds `weights`
(parameters and BatchNorm statistics), for `latest` also `optimizer`, `meta` (JSON, `Metadata`) and
`digests.json`, the SHA-256 of every other file. Trees are stored as flat dicts of host arrays under
readable names, so any number of devices can read them and an error can name the array.
"""

import dataclasses
import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from planet_jax.runtime import memory
from planet_jax.runtime.distributed import is_main_process, load_on_main, run_on_main
from planet_jax.runtime.errors import BadInput, RunFailed, first_few, resource_error
from planet_jax.runtime.files import find_damage, fsync, remove_folder, replace, seal, write_json
from planet_jax.runtime.progress import notify
from planet_jax.train.metadata import Metadata

Flat = dict[str, np.ndarray]
WRITE_ATTEMPTS = 5  # Orbax's timeouts use the wall clock, and a jump of it ends them at once
SPARE_BYTES = 2**21  # room for what Orbax adds to the arrays
KEEP = 2  # checkpoints of each kind: the older one is for when the newer is damaged

# Orbax logs every file; the errors that it logs it also raises.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def to_host(tree: Any) -> Flat:
    """Return copies as `{"params/head/bn1/bias": array, ...}`: a step reuses the tree's memory."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): np.array(leaf) for path, leaf in leaves}


def from_host(flat: Flat, template: Any, where: str) -> Any:
    """Return the tree of `template` with the arrays of `flat`.

    Raises:
      BadInput: naming arrays that are missing, unknown or of another shape or type.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    expected = {_name(path): leaf for path, leaf in paths}
    problems = [f"{name} is missing" for name in expected if name not in flat]
    problems += [f"{name} is not known" for name in flat if name not in expected]
    problems += [
        f"{name} is {flat[name].dtype}{list(flat[name].shape)}, not {leaf.dtype}{list(leaf.shape)}"
        for name, leaf in expected.items()
        if name in flat and (flat[name].shape, flat[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if problems:
        raise BadInput(f"{where} holds another model: {first_few(problems)}")
    return jax.tree_util.tree_unflatten(structure, [flat[name] for name in expected])


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose digests were verified; its arrays are read when they are needed."""

    run: Path
    kind: str  # "latest" or "best"
    metadata: Metadata

    def arrays(self, *items: str) -> Flat:
        """Return the arrays of `weights`, `optimizer` or both, in every process.

        Raises:
          BadInput: Orbax cannot read them.
        """
        path = self.run / "checkpoints" / self.kind / str(self.metadata.step)
        return load_on_main(lambda: _restore(path, items))


def open_checkpoint(run: Path, kind: str, newest_only: bool = False) -> Checkpoint | None:
    """Verify and open the newest undamaged checkpoint of a run; None if the run has none.

    Raises:
      BadInput: all are damaged; with `newest_only`, the newest is.
    """
    content = run_on_main(lambda: _read_newest(run / "checkpoints" / kind, newest_only))
    return None if content is None else Checkpoint(run, kind, Metadata.from_json(content))


def require_checkpoint(run: Path, kind: str, newest_only: bool = False) -> Checkpoint:
    """Open a checkpoint that must exist.

    Raises:
      BadInput: as `open_checkpoint`, and if there is none.
    """
    checkpoint = open_checkpoint(run, kind, newest_only)
    if checkpoint is None:
        raise BadInput(f"{run}: no {kind} checkpoint; train that run first")
    return checkpoint


def _read_newest(folder: Path, newest_only: bool) -> dict[str, Any] | None:
    steps = _steps(folder)
    for step in reversed(steps):
        path = folder / str(step)
        damage = find_damage(path)
        if not damage:
            return _read_metadata(path)
        error = f"{path}: this checkpoint is damaged: {damage}"
        if step == steps[0]:
            raise BadInput(f"{error}, and there is no older one; remove the run folder to restart")
        if newest_only:
            raise BadInput(
                f"{error}; repeat that run's own command, which writes it again, or remove this "
                "folder to start from the older checkpoint"
            )
        notify(f"{error}; the older one is used")
    return None


def _read_metadata(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's metadata, which `Metadata.from_json` can read."""
    try:
        content = json.loads((path / "meta" / "metadata").read_text())
        Metadata.from_json(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        text = f"{type(error).__name__}: {error}"[:200]
        raise BadInput(f"{path}: the metadata cannot be read ({text})") from None
    return content


def _restore(path: Path, items: tuple[str, ...]) -> Flat:
    args = {item: ocp.args.StandardRestore() for item in items}
    try:
        with _checkpointer() as orbax:
            restored = orbax.restore(path.absolute(), args=ocp.args.Composite(**args))
        return {name: array for item in items for name, array in restored[item].items()}
    except Exception as error:  # Orbax raises many types
        text = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: cannot be read ({type(error).__name__}: {text})") from None


class CheckpointWriter:
    """Write checkpoints in a thread, one after the other, while training continues.

    A context manager that waits for the last write. The run folder must be locked: unfinished
    writes of a killed process are removed, and so is what is newer than `resumed_step`, since its
    steps are repeated.
    """

    def __init__(self, run: Path, resumed_step: int) -> None:
        self.run, self.folder = run, run / "checkpoints"
        if is_main_process():
            for unfinished in self.folder.glob("*/.*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            for kind in self.folder.glob("*"):
                for step in _steps(kind):
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
        """Wait for the current write; raise what `raise_failure` raises."""
        if self._write is not None:
            self._write.exception()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise the error of the last write, if it has ended with one.

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
            for step in _steps(path.parent)[:-KEEP]:
                remove_folder(path.parent / str(step))
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
        with _checkpointer() as orbax:
            orbax.save(temporary, args=ocp.args.Composite(**args))
        write_json(temporary / "meta" / "metadata", metadata.to_json())
        seal(temporary)
        replace(temporary, path)  # of a checkpoint that was saved before its epoch was scored
    fsync(path.parent)


def _require_space(folder: Path, size: int) -> None:
    """Raise OSError if the disk has no room for arrays of `size` bytes and their metadata.

    On a full disk tensorstore prints a traceback for every array that it could not write.
    """
    if shutil.disk_usage(folder).free < size + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _checkpointer() -> ocp.Checkpointer:
    """Return a checkpointer of this process alone: the arrays are host arrays, equal everywhere."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host{me}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options)
    )
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in `folder`, ascending."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal())
