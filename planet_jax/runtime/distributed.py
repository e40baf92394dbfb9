"""One run in several processes, joined by `jax.distributed`.

Only the main process prints and accesses the run folder, so hosts need no shared disk.
JAX ends all processes when one is lost (status 134; its log names the task). JAX's coordinator and
collectives open network ports, so the hosts must be on a trusted network.
"""

import functools
import itertools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

# Private: the key-value store of JAX's coordination service has no public name. A wait for a key
# can last as long as the main process downloads or builds; a collective can time out.
from jax._src.distributed import global_state
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from planet_jax.runtime.errors import BadInput, first_few

P = ParamSpec("P")
T = TypeVar("T")
Arrays = dict[str, np.ndarray]
HEARTBEAT_TIMEOUT = 30  # seconds until a silent process counts as lost
NO_TIMEOUT = 10**9  # milliseconds; a lost process ends the wait
_calls = itertools.count()  # numbers the exchanges, which all processes make in the same order
_sync_points = itertools.count(1)


def initialize(options: ConfigDict, saves_on_sigterm: bool) -> None:
    """Join the processes of a run by `config.hosts`; call it before any other use of jax.

    With `saves_on_sigterm`, `stop_requested` reports a SIGTERM to any process. Raises BadInput if
    no cluster is found or its processes do not connect.
    """
    if not options.coordinator:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", saves_on_sigterm)
    is_auto = options.coordinator == "auto"
    try:
        jax.distributed.initialize(
            coordinator_address=None if is_auto else options.coordinator,
            num_processes=None if is_auto else options.count,
            process_id=None if is_auto else options.index,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"config.hosts.coordinator = {options.coordinator!r}: {error}") from error
    if not is_main_process():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    multihost_utils.sync_global_devices("planet_jax")  # gloo waits a limited time to connect


def process_count() -> int:
    """Return the number of processes of the run, without initializing a backend."""
    return int(global_state.num_processes)


def is_main_process() -> bool:
    """Return whether this process prints and writes for all."""
    return global_state.process_id == 0


def on_main(function: Callable[P, T]) -> Callable[P, T]:
    """Call `function` in the main process; all processes return its result or raise its BadInput.

    The result is sent as JSON: tuples become lists.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if process_count() == 1:
            return function(*args, **kwargs)
        key, value, error = f"planet_jax/{next(_calls)}", None, ""
        if is_main_process():
            try:
                value = function(*args, **kwargs)
            except BadInput as bad_input:
                error = str(bad_input)
            client().key_value_set(key, json.dumps([value, error]))
        value, error = json.loads(client().blocking_key_value_get(key, NO_TIMEOUT))
        if error:
            raise BadInput(error)
        return value

    return call


def arrays_on_main(function: Callable[P, Arrays]) -> Callable[P, Arrays]:
    """Apply `on_main` to a function that returns named arrays."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Arrays:
        arrays: Arrays = {}

        @on_main
        def shapes() -> dict[str, Any]:
            arrays.update(function(*args, **kwargs))
            return {name: [array.shape, array.dtype.name] for name, array in arrays.items()}

        for name, (shape, dtype) in shapes().items():
            arrays.setdefault(name, np.empty(shape, dtype))
        if process_count() == 1:
            return arrays
        # Sent as bytes: the broadcast is a sum, which would change NaN and the sign of zero.
        raw = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays.values()]
        received = multihost_utils.broadcast_one_to_all(np.concatenate(raw))
        parts = np.split(received, np.cumsum([part.size for part in raw])[:-1])
        return {
            name: part.view(array.dtype).reshape(array.shape)
            for (name, array), part in zip(arrays.items(), parts, strict=True)
        }

    return call


def require_same(values: Mapping[str, Any]) -> None:
    """Wait for all processes; raise BadInput in all of them if their values differ."""
    replies = gather(dict(values))
    if others := [i for i, reply in enumerate(replies) if reply != replies[0]]:
        names = [k for k in replies[0] if replies[0][k] != replies[others[0]].get(k)]
        who, what = f"processes 0 and {first_few(map(str, others), 5)}", first_few(names)
        raise BadInput(f"{who} differ in {what}; start all processes with the same")


def gather(value: T) -> list[T]:
    """Wait for all processes; return the values of all in each. Values are sent as JSON."""
    if process_count() == 1:
        return [value]
    key = f"planet_jax/{next(_calls)}"
    client().key_value_set(f"{key}/{global_state.process_id}", json.dumps(value))
    keys = [f"{key}/{i}" for i in range(process_count())]
    return [json.loads(client().blocking_key_value_get(k, NO_TIMEOUT)) for k in keys]


def stop_requested() -> bool:
    """Return whether SIGTERM reached any process; the same call returns the same in all."""
    if process_count() == 1 or global_state.preemption_sync_manager is None:
        return False
    return multihost_utils.reached_preemption_sync_point(next(_sync_points))


def client() -> Any:
    """Return the client of JAX's coordination service, or None in a single process."""
    return global_state.client
