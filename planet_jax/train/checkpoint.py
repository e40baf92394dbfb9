"""Orbax checkpoints of a run, in separate folders: `latest`, to resume from; `best`, by F2; `ema`.

A checkpoint is the folder `checkpoints/KIND/STEP`, written whole or not at all. It holds `weights`
(parameters and BatchNorm statistics), `meta` (JSON, `Metadata`) and `digests.json` (the SHA-256 of
every other file). `latest` also holds `optimizer`. Trees are stored as flat dicts of host arrays
under readable names: any number of devices can read them, and an error can name the array.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from planet_jax.runtime.distributed import arrays_on_main, on_main
from planet_jax.runtime.errors import BadInput, first_few
from planet_jax.runtime.files import find_damage
from planet_jax.runtime.progress import notify
from planet_jax.train.metadata import Metadata

Flat = dict[str, np.ndarray]

# Orbax logs every file. It also raises every error that it logs.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def to_host(tree: Any) -> Flat:
    """Copy a tree, whose memory the next step reuses, to `{"params/head/bn1/bias": array, ...}`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): np.array(leaf) for path, leaf in leaves}


def from_host(flat: Flat, template: Any, where: str) -> Any:
    """Return a tree like `template` with the arrays of `flat`.

    Raises:
      BadInput: arrays are missing, unknown or of another shape or type; the message names them.
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
    kind: str  # "latest", "best" or "ema"
    metadata: Metadata

    def arrays(self, *items: str) -> Flat:
        """Return the arrays of `weights`, `optimizer` or both, in every process.

        Raises:
          BadInput: Orbax cannot read them.
        """
        path = self.run / "checkpoints" / self.kind / str(self.metadata.step)
        return _restore(path, items)


def open_checkpoint(run: Path, kind: str, newest_only: bool = False) -> Checkpoint | None:
    """Verify and open the newest undamaged checkpoint of a run; None if the run has none.

    Raises:
      BadInput: every checkpoint is damaged; with `newest_only`, the newest checkpoint is damaged.
    """
    content = _read_newest(run / "checkpoints" / kind, newest_only)
    return None if content is None else Checkpoint(run, kind, Metadata.from_json(content))


def require_checkpoint(run: Path, kind: str, newest_only: bool = False) -> Checkpoint:
    """Open a checkpoint that must exist.

    Raises:
      BadInput: as `open_checkpoint`, or the run has no checkpoint.
    """
    checkpoint = open_checkpoint(run, kind, newest_only)
    if checkpoint is None:
        ema = ", with optim.ema_decay" if kind == "ema" else ""
        raise BadInput(f"{run}: no {kind} checkpoint; train that run first{ema}")
    return checkpoint


@on_main
def _read_newest(folder: Path, newest_only: bool) -> dict[str, Any] | None:
    steps = list_steps(folder)
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


@arrays_on_main
def _restore(path: Path, items: tuple[str, ...]) -> Flat:
    args = {item: ocp.args.StandardRestore() for item in items}
    try:
        with process_checkpointer() as orbax:
            restored = orbax.restore(path.absolute(), args=ocp.args.Composite(**args))
        return {name: array for item in items for name, array in restored[item].items()}
    except Exception as error:  # Orbax raises many types
        text = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: cannot be read ({type(error).__name__}: {text})") from None


def process_checkpointer() -> ocp.Checkpointer:
    """Return a checkpointer for this process alone; all processes have equal host arrays."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host{me}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options)
    )
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def list_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in `folder`, ascending."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal())
