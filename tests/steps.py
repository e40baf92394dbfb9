"""Training steps on one batch of noise, for tests that compare runs on 1 and more devices."""

import functools

import jax
import numpy as np

from planet_jax.model import classifier
from planet_jax.train.steps import Recipe, create_state, make_train_step, to_devices

CLASSES = 3  # as in small_config, so that the same functions are compiled


@functools.cache
def start_weights(network):
    """Return fresh weights, as numpy arrays."""
    return jax.tree.map(np.asarray, classifier.init(CLASSES, 0, network))


@functools.cache
def one_batch():
    """Return 16 chips of 64 px and their targets."""
    rng = np.random.default_rng(0)
    chips = rng.integers(0, 256, (16, 64, 64, 3)).astype(np.uint8)
    return {"chips": chips, "targets": (rng.random((16, CLASSES)) < 0.4).astype(np.uint8)}


def take_steps(network, devices, n, norm="global", precision="float32"):
    """Take n frozen steps; return the state and the losses."""
    dtype = np.dtype(precision)
    with jax.enable_x64(precision == "float64"):
        model = classifier.build(CLASSES, network, norm, precision=precision)
        recipe = Recipe(True, 1e-2)
        step = make_train_step(model, recipe, tuple(jax.devices()[:devices]))
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), start_weights(network))
        state, losses = create_state(variables, recipe), []
        batch = {name: to_devices(array, devices) for name, array in one_batch().items()}
        rates = {"lr": np.full(3, 1e-3, dtype), "beta1": np.asarray(0.9, dtype)}
        for _ in range(n):
            state, loss = step(state, batch, rates, jax.random.key(3))
            losses.append(float(loss))
    return state, losses
