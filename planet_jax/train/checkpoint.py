"""Orbax checkpoints of a run: `latest` to resume from, `best` by F2; neither evicts the other.

A checkpoint holds `weights` (parameters and BatchNorm statistics), for `latest` the `optimizer`,
and `meta` (JSON: what is needed to understand it). Trees are stored as flat dicts of host arrays
under readable names, so any number of devices can open them and a mismatch can name its leaf.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from planet_jax.errors import BadInput, first_few
from planet_jax.progress import say

Flat = dict[str, np.ndarray]
KEEP = {"latest": 2, "best": 1}  # the one before the latest is for when the latest is damaged

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every file


def to_host(tree: Any) -> Flat:
    """`{"params/head/bn1/bias": array, ...}`: copies, for the step may reuse the tree's memory."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): np.array(leaf) for path, leaf in leaves}


def from_host(flat: Flat, template: Any, where: str) -> Any:
    """The tree of `template` with the arrays of `flat`.

    Raises:
      BadInput: naming leaves that are missing, too many or of another shape.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {_name(path): leaf for path, leaf in paths}
    problems = [f"{name} is missing" for name in wanted if name not in flat]
    problems += [f"{name} is not known" for name in flat if name not in wanted]
    problems += [
        f"{name} is {flat[name].shape}, not {leaf.shape}"
        for name, leaf in wanted.items()
        if name in flat and flat[name].shape != leaf.shape
    ]
    if problems:
        raise BadInput(f"{where} holds another model: {first_few(problems)}")
    return jax.tree_util.tree_unflatten(structure, [flat[name] for name in wanted])


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Checkpoints:
    """The checkpoints under `run/checkpoints`; a context manager that waits for the last save."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"
        self._managers = {
            kind: ocp.CheckpointManager(
                (self.folder / kind).absolute(),
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            )
            for kind, keep in KEEP.items()
        }

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        for manager in self._managers.values():
            manager.wait_until_finished()
            manager.close()

    def save(self, kind: str, step: int, items: dict[str, Flat], meta: dict[str, Any]) -> None:
        """Starts to save; returns as soon as the arrays need no longer be kept."""
        manager = self._managers[kind]
        if step in manager.all_steps():  # a run that resumed comes by here again, with the same
            return
        arrays = {name: ocp.args.StandardSave(flat) for name, flat in items.items()}
        manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arrays))

    def latest(self) -> tuple[int, dict[str, Flat], dict[str, Any]] | None:
        """(step, items, meta) of the newest checkpoint to resume from, or None."""
        manager = self._managers["latest"]
        found = _newest(manager, ("weights", "optimizer"), self.folder / "latest")
        if found is not None:
            for step in manager.all_steps():
                if step > found[0]:  # damaged; its number must be free to be saved again
                    manager.delete(step)
        return found


def read_weights(run: Path, kind: str) -> tuple[Flat, dict[str, Any]]:
    """(weights, meta) of a run's `best` or `latest` checkpoint.

    Raises:
      BadInput: the run has no such checkpoint, or it cannot be read.
    """
    require(run, kind)
    folder = run / "checkpoints" / kind
    with contextlib.closing(ocp.CheckpointManager(folder.absolute())) as manager:
        found = _newest(manager, ("weights",), folder)
    assert found is not None  # or `require` had refused
    return found[1]["weights"], found[2]


def require(run: Path, kind: str) -> None:
    """Refuses a run that has no `kind` checkpoint.

    Raises:
      BadInput: it has none, or one that cannot be read.
    """
    if read_meta(run, kind) is None:
        raise BadInput(f"{run}: no {kind} checkpoint; train that run first")


def read_meta(run: Path, kind: str) -> dict[str, Any] | None:
    """What a run's newest `kind` checkpoint says of itself, or None when there is none."""
    folder = run / "checkpoints" / kind
    if not folder.is_dir():
        return None
    with contextlib.closing(ocp.CheckpointManager(folder.absolute())) as manager:
        found = _newest(manager, (), folder)
    return found[2] if found else None


def _newest(
    manager: ocp.CheckpointManager, names: tuple[str, ...], where: Path
) -> tuple[int, dict[str, Flat], dict[str, Any]] | None:
    """(step, items, meta) of the newest checkpoint that can be read; None when there are none.

    Raises:
      BadInput: there are some, and none can be read.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            return step, *_read(manager, step, names, where)
        except BadInput as error:
            if step == steps[-1]:
                raise
            say(f"{error}; the one before it is used")
    return None


def _read(
    manager: ocp.CheckpointManager, step: int, names: tuple[str, ...], where: Path
) -> tuple[dict[str, Flat], dict[str, Any]]:
    args = {name: ocp.args.StandardRestore() for name in names}
    try:
        found = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args))
    except (ValueError, KeyError, OSError, TypeError) as error:
        text = str(error).strip().splitlines()[:1]
        raise BadInput(f"{where}: checkpoint of step {step} cannot be read: {text}") from None
    return {name: found[name] for name in names}, found["meta"]
