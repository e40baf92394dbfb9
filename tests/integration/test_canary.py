"""Compare compiled float32 steps with the same steps in float64, to detect miscompilation.

jaxlib 0.10.2 sums some products wrongly on a CPU (jax issue 39103). The wrong sums are plausible,
so only a comparison shows the bug. Both sides start from the same weights and take one step.
Dropout is off, because its masks depend on the dtype.
"""

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from jax.tree_util import keystr

from planet_jax.model import classifier, weights
from planet_jax.model.classifier import GROUPS
from planet_jax.train.steps import (
    Recipe,
    create_state,
    make_predict_step,
    make_train_step,
    to_devices,
)

EPS = float(np.finfo(np.float32).eps)  # 1.2e-7: the relative change by one rounding
BETA1 = 0.9
# Bounds in roundings (EPS). A value passes some 20 layers in the tiny network and 50 in ResNet50.
# BatchNorm magnifies errors where standard deviations are small. Rounding alone gave errors of at
# most 22 (tiny) and 335 (ResNet50) for statistics, and 135 for gradients. A mean that leaves out
# one of 40,000 rows changes by some 200.
BOUNDS = {"logits": 200, "loss": 200, "statistics": 200, "head": 2000, "backbone": 2000}
# Rounding changes the sign of the input of some ReLU in ResNet50. It also moves a maximum in the
# head's pool where two features differ by some 4e-6. One such change moves the gradients of all
# layers below by 1%.
CHAOTIC = {"backbone": 0.1 / EPS}
# In the tiny network at 32 px such a change occurs in half of the batches; CPUs differ in which. It
# moves the gradients of a few layers by 5,000 roundings or more; other batches have at most 63. In
# ResNet50 the loss differs by 31 to 375 roundings, depending on the batch. A miscompiled program is
# wrong for every batch, so each leaf's least error counts.
BATCHES = 12


def relative_error(a, b):
    """Return |a - b| / |b| in the Euclidean norm, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), np.finfo(np.float64).tiny)


def errors(results, references):
    """Return each leaf's error between results of `one_step`, in roundings, by kind and path."""
    leaves = jax.tree_util.tree_leaves_with_path(results)
    pairs = zip(leaves, jax.tree.leaves(references), strict=True)
    return {(path[0].key, keystr(path)): relative_error(a, b) / EPS for (path, a), b in pairs}


def too_large(errors, bounds):
    """Return the errors that exceed the bound of their kind."""
    return {path: error for (kind, path), error in errors.items() if not error < bounds[kind]}


def one_step(precision, variables, batch, devices, freeze, network):
    """Return the logits before a step, and the loss, statistics and gradients of that step."""
    dtype = np.dtype(precision)
    with jax.enable_x64(precision == "float64"):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)
        model = classifier.build(5, network, precision=precision).clone(dropout=(0.0, 0.0))
        devices = tuple(jax.devices()[:devices])
        batch = {name: to_devices(array, len(devices)) for name, array in batch.items()}
        logits = make_predict_step(model, devices)(variables, batch["chips"])
        step = make_train_step(model, Recipe(freeze, 1e-2), devices)
        rates = {"lr": np.full(3, 1e-3, dtype), "beta1": np.asarray(BETA1, dtype)}
        state, loss = step(
            create_state(variables, Recipe(freeze, 1e-2)), batch, rates, jax.random.key(0)
        )
        # Adam's first moment after one step is (1 - beta1) times the gradient.
        groups = state.opt_state.inner_states
        moments = [groups[name].inner_state[0].mu for name in GROUPS]
        results = {"logits": logits, "loss": loss, "statistics": state.batch_stats}
        return jax.tree.map(np.asarray, results | {"head": moments[2], "backbone": moments[:2]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "size", "batch_size", "devices", "freeze", "bounds"),
    [
        # at 32 px each feature has one pixel, so the head's maxima cannot move
        ("tiny", 32, 8, 1, False, BOUNDS),
        ("tiny", 32, 33, 1, False, BOUNDS),
        ("tiny", 32, 12, 4, True, BOUNDS),
        ("tiny", 64, 16, 4, False, BOUNDS | CHAOTIC),
        ("tiny", 96, 33, 1, False, BOUNDS | CHAOTIC),
        ("tiny", 128, 12, 4, True, BOUNDS | CHAOTIC),
        ("resnet50", 64, 16, 1, False, BOUNDS | CHAOTIC | {"statistics": 2000}),
        ("resnet50", 64, 16, 4, True, BOUNDS | CHAOTIC | {"statistics": 2000}),
    ],
)
def test_a_compiled_step_is_that_of_float64(
    formula_weights, network, size, batch_size, devices, freeze, bounds
):
    variables = classifier.init(5, 0, network)
    if network == "resnet50":  # the reference's weights do not depend on how ours are drawn
        params, batch_stats = weights.from_torchvision(formula_weights)
        variables["params"]["backbone"] = params
        variables["batch_stats"]["backbone"] = batch_stats
    least = {}
    for seed in range(BATCHES):
        rng = np.random.default_rng(seed)
        chips = rng.integers(0, 256, (batch_size, size, size, 3)).astype(np.uint8)
        targets = (rng.random((batch_size, 5)) < 0.4).astype(np.uint8)
        arguments = (variables, {"chips": chips, "targets": targets}, devices, freeze, network)
        found = errors(one_step("float32", *arguments), one_step("float64", *arguments))
        least = {path: min(error, least.get(path, np.inf)) for path, error in found.items()}
        if not too_large(least, bounds):
            return
    pytest.fail(f"more roundings than {bounds}: {too_large(least, bounds)}")


def test_the_known_miscompilation_is_seen():
    """Reproduce jax issue 39103: sum the squares of matrix @ row for each row."""
    rows = np.arange(32_769, dtype=np.float32)[:, None] * np.eye(1, 3, dtype=np.float32)
    matrix = jnp.eye(3)
    sums = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    exact = (rows.astype(np.float64) ** 2).sum(1)
    wrong = relative_error(sums, exact) / EPS > 200
    assert wrong == (jaxlib.__version__ == "0.10.2")
