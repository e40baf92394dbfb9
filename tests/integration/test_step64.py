"""Compare twenty training steps in float64 with torch's; see ../shared/reference/README.md.

In float32 the same steps differ by percents after ten steps, because rounding changes which of two
nearly equal values is the maximum. In float64 the comparison tests every rule of the step:
gradients, freezing, statistics, Adam, weight decay and schedule.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from planet_jax.model import classifier, weights
from planet_jax.model.classifier import abstract_variables
from planet_jax.train import steps
from planet_jax.train.optimizer import group_rates, one_cycle
from planet_jax.train.steps import Recipe, create_state, make_predict_step, make_train_step
from tests.support import SHARED, needs_shared

BATCH, CLASSES = 16, 17
RATES = {"frozen": (1e-2, 2e-2), "full": (1e-4, 2e-3)}
FINAL = (
    "bn1_running_var",
    "layer4.2.bn3.weight",
    "head.8.weight",
    "head.2.running_mean",
    "eval_logits",
)


@pytest.fixture(scope="module")
def expected():
    with np.load(SHARED / "reference" / "step64.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def start(formula_weights, tmp_path_factory):
    """Return the reference's initial float32 weights of the whole network, read from a file."""
    state = dict(formula_weights)
    for name, width in {"head.2": 4096, "head.6": 512}.items():
        for leaf, value in {"weight": 1, "running_var": 1, "bias": 0, "running_mean": 0}.items():
            state[f"{name}.{leaf}"] = np.full(width, value, np.float32)
    for name, shape in {"head.4": (512, 4096), "head.8": (CLASSES, 512)}.items():
        r = np.random.default_rng(zlib.crc32(f"{name}.weight".encode()))
        kernel = r.standard_normal(shape) * np.sqrt(2 / shape[1])
        state[f"{name}.weight"] = kernel.astype(np.float32)
        state[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    path = tmp_path_factory.mktemp("step64") / "start.safetensors"
    save_file(state, path)
    return weights.fill(abstract_variables(CLASSES), path)


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["frozen", "full"])
def test_twenty_steps_are_torchs(expected, start, stage, monkeypatch):
    if stage == "frozen":  # fold every norm; the full steps fold those that a user's steps do
        monkeypatch.setattr(steps, "fold_limit", lambda platform, freeze: 0)
    batches = len(expected["chips"]) // BATCH
    schedule = one_cycle(batches, group_rates(RATES[stage]))
    np.testing.assert_allclose(schedule.lr, expected[f"{stage}_lr"], rtol=1e-12)
    np.testing.assert_allclose(schedule.beta1, expected[f"{stage}_beta1"], rtol=1e-12)
    chips, targets = (
        expected[name].reshape(batches, 1, BATCH, *expected[name].shape[1:])
        for name in ("chips", "targets")
    )
    with jax.enable_x64(True):
        model = classifier.build(CLASSES, precision="float64").clone(dropout=(0.0, 0.0))
        devices, freeze = tuple(jax.devices()[:1]), stage == "frozen"
        step = make_train_step(model, Recipe(freeze, 1e-2), devices)
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start)
        state = create_state(variables, Recipe(freeze, 1e-2))
        losses = []
        for i in range(batches):
            batch = {"chips": chips[i], "targets": targets[i]}
            rates = {"lr": schedule.lr[i], "beta1": schedule.beta1[i]}
            state, loss = step(state, batch, rates, jax.random.key(0))
            losses.append(float(loss))
        logits = make_predict_step(model, devices)(state.variables, chips[0])
        final = weights.to_torchvision(state.variables)
    np.testing.assert_allclose(losses, expected[f"{stage}_loss"], rtol=1e-7)
    final["bn1_running_var"] = final["bn1.running_var"]  # its name in the reference
    final["eval_logits"] = logits
    for name in FINAL:
        wanted = expected[f"{stage}_{name}"]
        np.testing.assert_allclose(
            final[name], wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max(), err_msg=name
        )
