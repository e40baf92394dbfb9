"""One run in several processes: joined by jax.distributed, of one mind, ending together.

Alone, a process is the first and needs nobody's leave. Every process computes; process 0 alone
speaks, and alone reads and writes the run folder, so no other host need see it. What one process
must tell the others goes through jax's coordination service, which waits as long as it must.
"""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # the service's client has no public name; Orbax takes it there
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from planet_jax.runtime import watch
from planet_jax.runtime.errors import BadInput, first_few

T = TypeVar("T")
FOREVER = 10**9  # milliseconds; a process that is lost ends the wait
_count = 1
_watcher: watch.Line | None = None
_stopping = False  # all end at this step
_calls = itertools.count()  # every process makes the same calls in the same order
_asks = itertools.count(1)


def initialize(options: ConfigDict, finishes_step: bool) -> None:
    """Joins the processes of a run; the section `hosts` of a config says which. Before any jax.

    With `finishes_step`, SIGTERM at any process is kept for `stop_asked`.

    Raises:
      BadInput: there is no cluster to be found, or its processes do not come together.
      SystemExit: in the process that was started, once its child has ended.
    """
    global _count, _watcher
    if not options.coordinator:
        return
    found = watch.child_line()
    if found is None:
        sys.exit(watch.supervise())
    _watcher, port = found
    sys.excepthook = _end_by
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", finishes_step)
    try:
        if options.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(options.coordinator, options.count, options.index)
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"config.hosts.coordinator = {options.coordinator!r}: {error}") from error
    state = distributed.global_state
    _count = state.num_processes
    if state.process_id == 0:
        _client().key_value_set("planet_jax/port", str(port))
    else:
        port = int(_client().blocking_key_value_get("planet_jax/port", FOREVER))
    assert state.coordinator_address is not None
    host = state.coordinator_address.rpartition(":")[0].strip("[]")
    _watcher.tell(joined=[host, port, state.process_id, _count])
    with _stdout_to(sys.stderr.fileno()):  # for gloo greets
        # While all are here: gloo lets nobody be 30 s late for a first collective.
        multihost_utils.sync_global_devices("planet_jax")
    if not is_main_process():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _client() -> Any:
    return distributed.global_state.client


@contextlib.contextmanager
def _stdout_to(handle: int) -> Iterator[None]:
    """Turns the stdout of the C++ libraries too."""
    before = os.dup(1)
    os.dup2(handle, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


def is_multi_process() -> bool:
    """Whether the run has more processes than this."""
    return _count > 1


def is_main_process() -> bool:
    """Whether this process speaks and writes for all."""
    return _count == 1 or jax.process_index() == 0


def devices() -> list[jax.Device]:
    """All devices, process by process, as the loaders' shares of a batch lie."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def run_on_main(make: Callable[[], T]) -> T:
    """What `make` gives in process 0, in every process: JSON and numpy arrays (tuples as lists).

    Its error is process 0's, and ends the others.
    """
    if _count == 1:
        return make()
    key, arrays = f"planet_jax/{next(_calls)}", []

    def number(array: np.ndarray) -> dict[str, Any]:
        arrays.append(np.ascontiguousarray(array))
        return {"shape of array": array.shape, "dtype": array.dtype.name}

    def blank(content: dict[str, Any]) -> Any:
        if "shape of array" not in content:
            return content
        arrays.append(np.empty(content["shape of array"], content["dtype"]))
        return arrays[-1]

    if is_main_process():
        value = make()
        _client().key_value_set(key, json.dumps(value, default=number))
    else:
        value = json.loads(_client().blocking_key_value_get(key, FOREVER), object_hook=blank)
    if arrays:
        # As bytes, so that nothing that is not a number, and no sign of a zero, is lost in a sum.
        mine = np.concatenate([array.reshape(-1).view(np.uint8) for array in arrays])
        firsts = multihost_utils.broadcast_one_to_all(mine)
        ends = np.cumsum([array.nbytes for array in arrays])
        for array, content in zip(arrays, np.split(firsts, ends[:-1]), strict=True):
            if not is_main_process():
                array.reshape(-1).view(np.uint8)[:] = content
    return value


def require_same(mine: Mapping[str, Any]) -> None:
    """Waits for all processes and sees to it that they hold the same.

    Raises:
      BadInput: naming what differs, and in which processes; in all of them.
    """
    if _count == 1:
        return
    key = f"planet_jax/{next(_calls)}"
    _client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(dict(mine)))
    held = [
        json.loads(_client().blocking_key_value_get(f"{key}/{i}", FOREVER)) for i in range(_count)
    ]
    others = [i for i in range(_count) if held[i] != held[0]]
    if others:
        theirs = held[others[0]]
        names = [name for name in held[0] if held[0][name] != theirs.get(name)]
        who = first_few((f"process {i}" for i in others), 5)
        raise BadInput(f"{who} and process 0 differ in {first_few(names)}; give all the same")


def stop_requested() -> bool:
    """Whether SIGTERM has come to any process: the same answer in all, at the same call."""
    global _stopping
    if _watcher is None or not multihost_utils.reached_preemption_sync_point(next(_asks)):
        return False
    _stopping = True
    _watcher.tell(stopping=True)
    return True


def barrier() -> None:
    """Waits until every process has come so far."""
    require_same({})


def end(status: object, text: str) -> None:
    """Tells the others that this process has said its last line; they end too."""
    if _watcher is not None and not (_stopping and status == watch.STOPPED):
        sys.stdout.flush()
        sys.stderr.flush()
        _watcher.tell(ended=[status if isinstance(status, int) else 1, text, True])


def _end_by(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """An error in a collective is most often another process's end: its watcher knows better."""
    sys.__excepthook__(kind, error, traceback)
    text = " ".join(f"ended: {kind.__name__}: {error}".split())[:300]
    assert _watcher is not None
    _watcher.tell(ended=[1, text, not isinstance(error, jax.errors.JaxRuntimeError)])
