"""Orbax checkpoints of a run: `latest` to resume from, `best` by F2; neither evicts the other.

A checkpoint is the folder `checkpoints/KIND/STEP`, whole or not there. It holds `weights`
(parameters and BatchNorm statistics), for `latest` the `optimizer`, `meta` (JSON: what is needed to
understand it), and `digests.json`, the SHA-256 of every other file, by which damage to any byte is
found. Trees are stored as flat dicts of host arrays under readable names, so any number of devices
can open them and a mismatch can name its leaf. The layout is that of Orbax's CheckpointManager.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from planet_jax.runtime import distributed, memory
from planet_jax.runtime.errors import BadInput, RunFailed, first_few, resource_error
from planet_jax.runtime.files import find_damage, flush, seal
from planet_jax.runtime.progress import notify

Flat = dict[str, np.ndarray]
Meta = dict[str, Any]
FORMAT = 1  # in every meta: raise it when an older planet_jax could not read what is saved
TRIES = (
    5  # of a save: Orbax's time-outs go by the wall's clock, and one that jumps ends them at once
)
KEEP = 2  # of each kind: the one before is for when the newest is damaged

# Orbax logs every file; what it logs of errors it raises as well.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def to_host(tree: Any) -> Flat:
    """`{"params/head/bn1/bias": array, ...}`: copies, for the step may reuse the tree's memory."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): np.array(leaf) for path, leaf in leaves}


def from_host(flat: Flat, template: Any, where: str) -> Any:
    """The tree of `template` with the arrays of `flat`.

    Raises:
      BadInput: naming leaves that are missing, too many or of another shape or type.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {_name(path): leaf for path, leaf in paths}
    problems = [f"{name} is missing" for name in wanted if name not in flat]
    problems += [f"{name} is not known" for name in flat if name not in wanted]
    problems += [
        f"{name} is {flat[name].dtype}{list(flat[name].shape)}, not {leaf.dtype}{list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in flat and (flat[name].shape, flat[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if problems:
        raise BadInput(f"{where} holds another model: {first_few(problems)}")
    return jax.tree_util.tree_unflatten(structure, [flat[name] for name in wanted])


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Checkpoints:
    """What a run saves: by a thread of its own, one after the other, while the run goes on.

    A context manager that waits for the last save. The run folder must be locked: what a killed
    process left half written is cleared.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "checkpoints"
        for left_over in self.folder.glob("*/.*") if distributed.is_main_process() else ():
            shutil.rmtree(left_over, ignore_errors=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._saving: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.raise_failure()

    def save(self, step: int, kinds: Mapping[str, dict[str, Flat]], meta: Meta) -> None:
        """Starts to save `{kind: items}`, in this order; of several processes the first does.

        The arrays must stay as they are. What goes wrong is raised later, by `raise_failure`.
        """
        if not distributed.is_main_process():
            return
        meta = {"format": FORMAT, "step": step, **meta}
        self._saving = self._thread.submit(self._write, step, dict(kinds), meta)

    def wait(self) -> None:
        """Waits for the save that is under way; raises what `raise_failure` does."""
        if self._saving is not None:
            self._saving.exception()
        self.raise_failure()

    @property
    def saving(self) -> bool:
        """Whether a save is under way."""
        return self._saving is not None and not self._saving.done()

    def raise_failure(self) -> None:
        """Raises what went wrong with the save before, if it has ended.

        Raises:
          BadInput: the disk is full, or cannot be written to.
          RunFailed: Orbax failed otherwise.
        """
        if self._saving is None or not self._saving.done():
            return
        error = self._saving.exception()
        if error is not None:
            kept = "what was saved before is whole"
            if line := resource_error(error):
                raise BadInput(f"{self.folder}: cannot save; {kept}; {line}") from None
            raise RunFailed(f"{self.folder}: cannot save ({error}); {kept}") from error

    def _write(self, step: int, kinds: dict[str, dict[str, Flat]], meta: Meta) -> None:
        for kind, items in kinds.items():
            path = self.folder / kind / str(step)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():  # a run that resumed comes by here again
                _remove(path)
            for tries_left in reversed(range(TRIES)):
                try:
                    _write_whole(path, items, meta)
                    break
                except Exception as error:
                    if resource_error(error) or not tries_left:
                        raise
                    notify(f"{path}: not saved ({error}); tried again")
            for left_over in path.parent.glob(".tmp-*"):  # Orbax's threads outlive a failed save
                shutil.rmtree(left_over, ignore_errors=True)
            for old in _steps(path.parent)[:-KEEP]:
                _remove(path.parent / str(old))
        memory.trim()

    def latest(self) -> tuple[int, dict[str, Flat], Meta] | None:
        """(step, items, meta) of the newest checkpoint to resume from, or None.

        What is newer, and damaged or a best that is still to come, is removed: its steps will be
        taken again.

        Raises:
          BadInput: there are some, and all are damaged.
        """
        return distributed.run_on_main(self._latest)

    def _latest(self) -> tuple[int, dict[str, Flat], Meta] | None:
        found = _newest(self.folder / "latest", ("weights", "optimizer"))
        if found is not None:
            for folder in self.folder.iterdir():
                for step in _steps(folder):
                    if step > found[0]:
                        _remove(folder / str(step))
        return found


def read_weights(run: Path, kind: str, newest: bool = False) -> tuple[Flat, Meta]:
    """(weights, meta) of a run's `best` or `latest` checkpoint.

    Raises:
      BadInput: the run has no such checkpoint, or it cannot be read; with `newest`, the newest is
        damaged, though the one before it may be whole.
    """
    folder = run / "checkpoints" / kind
    found = distributed.run_on_main(lambda: _newest(folder, ("weights",), newest))
    if found is None:
        raise _none_of(run, kind)
    return found[1]["weights"], found[2]


def require(run: Path, kind: str, newest: bool = False) -> None:
    """Refuses a run of which `read_weights` could not read.

    Raises:
      BadInput: as there.
    """
    folder = run / "checkpoints" / kind
    if distributed.run_on_main(lambda: _newest(folder, (), newest)) is None:
        raise _none_of(run, kind)


def _none_of(run: Path, kind: str) -> BadInput:
    return BadInput(f"{run}: no {kind} checkpoint; train that run first")


def read_meta(run: Path, kind: str) -> Meta | None:
    """What a run's newest whole `kind` checkpoint says of itself, or None when there is none."""
    folder = run / "checkpoints" / kind
    found = distributed.run_on_main(lambda: _newest(folder, ()))
    return found[2] if found else None


def _steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in `folder`, ascending."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal())


def _remove(checkpoint: Path) -> None:
    """Under its name it is whole until it is gone."""
    aside = checkpoint.with_name(f".old-{checkpoint.name}-{uuid.uuid4().hex}")
    os.replace(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _newest(
    folder: Path, names: tuple[str, ...], newest: bool = False
) -> tuple[int, dict[str, Flat], Meta] | None:
    """(step, items, meta) of the newest checkpoint that is whole; None when there are none.

    Raises:
      BadInput: there are some, and none is whole; or, with `newest`, the newest is not.
    """
    steps = _steps(folder)
    for step in reversed(steps):
        try:
            return step, *_read(folder / str(step), names)
        except BadInput as error:
            if step == steps[0]:
                raise BadInput(
                    f"{error}, and there is none before it; remove the run folder to begin again"
                ) from None
            if newest:
                raise BadInput(
                    f"{error}; give that run's own command again, which makes it anew, or remove "
                    "this folder to start from the one before it"
                ) from None
            notify(f"{error}; the one before it is used")
    return None


def _read(path: Path, names: tuple[str, ...]) -> tuple[dict[str, Flat], Meta]:
    """The items `names`, and meta, of a checkpoint whose every byte is as it was written."""
    if damage := find_damage(path):
        raise BadInput(f"{path}: this checkpoint is damaged: {damage}")
    args = {name: ocp.args.StandardRestore() for name in names}
    try:
        meta = json.loads((path / "meta" / "metadata").read_text())
        if meta["format"] != FORMAT:
            raise ValueError(f"it has format {meta['format']}, this planet_jax reads {FORMAT}")
        if not names:
            return {}, meta
        with _checkpointer() as orbax:
            found = orbax.restore(path.absolute(), args=ocp.args.Composite(**args))
        return {name: found[name] for name in names}, meta
    except Exception as error:  # Orbax raises many things
        text = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{path}: this checkpoint cannot be read ({type(error).__name__}: {text})"
        ) from None


def _write_whole(path: Path, items: dict[str, Flat], meta: Meta) -> None:
    """Writes and seals a checkpoint under a temporary name, then gives it its own."""
    arrays = {name: ocp.args.StandardSave(flat) for name, flat in items.items()}
    args = ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arrays)
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=".tmp-", ignore_cleanup_errors=True
    ) as folder:
        whole = Path(folder).absolute() / path.name
        with _checkpointer() as orbax, _quiet_failure():
            orbax.save(whole, args=args)
        seal(whole)
        os.replace(whole, path)
    flush(path.parent)


@contextlib.contextmanager
def _quiet_failure() -> Iterator[None]:
    """After one write has failed, tensorstore reports all others, to an event loop that is gone."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    yield
    sys.unraisablehook = before


def _checkpointer() -> ocp.Checkpointer:
    """For this process alone: each host reads for itself, and one saves what all have."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host{me}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options)
    )
    return ocp.Checkpointer(handler, multiprocessing_options=options)
