import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import ROOT, write_chips

from planet_jax.config import get_config
from planet_jax.data import augment, dataset
from planet_jax.model import classifier
from planet_jax.model.layers import BATCH_AXIS
from planet_jax.model.norm import BatchNorm
from planet_jax.runtime.errors import BadInput
from planet_jax.train import lr_range
from planet_jax.train.stage import Stage, check_batch
from planet_jax.train.steps import (
    VIEWS,
    average_logits,
    create_state,
    dihedral_view,
    make_predict_step,
    make_train_step,
    to_devices,
)


@pytest.fixture(scope="module", name="variables")
def start_weights(network="resnet50"):
    return jax.tree.map(np.asarray, classifier.init(5, 0, network))


@pytest.fixture(scope="module", name="batch")
def one_batch():
    rng = np.random.default_rng(0)
    chips = rng.integers(0, 256, (16, 64, 64, 3)).astype(np.uint8)
    return {"chips": chips, "targets": (rng.random((16, 5)) < 0.4).astype(np.uint8)}


def take_steps(
    variables, batch, devices, n, freeze=True, norm="global", lr=1e-3, network="resnet50"
):
    model = classifier.build(5, network, norm)
    step = make_train_step(model, freeze, 1e-2, jax.devices()[:devices])
    state, losses = create_state(variables, freeze), []
    on_devices = {name: to_devices(array, devices) for name, array in batch.items()}
    rates = {"lr": np.full(3, lr, np.float32), "beta1": np.asarray(0.9, np.float32)}
    for _ in range(n):
        state, loss = step(state, on_devices, rates, jax.random.key(3))
        losses.append(float(loss))
    return state, losses


def test_four_devices_train_as_one(variables, batch):
    """The losses are equal except for the order of sums.

    A fresh ResNet50 in float32 is chaotic: sums in another order move its loss in the fifth or
    sixth digit, and its gradient by a per cent, as near-ties of the max pool fall the other way.
    (With BatchNorm in float64 the gradients of 1 and 4 devices agree to 4e-6.) So the first loss is
    held tightly and the later ones loosely; the next test holds the gradient's rule tightly.
    """
    one, losses_of_one = take_steps(variables, batch, 1, 3)
    four, losses_of_four = take_steps(variables, batch, 4, 3)
    assert losses_of_four[0] == pytest.approx(losses_of_one[0], rel=1e-4)
    assert losses_of_four == pytest.approx(losses_of_one, rel=0.05)
    assert losses_of_one[2] < losses_of_one[0]
    # The stem's mean has nothing chaotic before it.
    stem = [state.batch_stats["backbone"]["bn1"]["mean"] for state in (one, four)]
    np.testing.assert_allclose(stem[1], stem[0], rtol=1e-5, atol=1e-6)
    _, own = take_steps(variables, batch, 4, 1, norm="device")
    assert abs(own[0] - losses_of_one[0]) > 1e-3  # statistics of 4 chips are not those of 16


LOSSES = """
import json
from test_steps import one_batch, start_weights, take_steps
network = "tiny"  # eight compilations of ResNet50 take minutes
variables, batch = start_weights.__wrapped__(network), one_batch.__wrapped__()
runs = [(devices, norm) for norm in ("global", "device") for devices in (1, 2, 4, 8)]
def take(devices, norm):
    return take_steps(variables, batch, devices, 4, norm=norm, lr=1e-5, network=network)[1]
print(json.dumps([take(*run) for run in runs]))
"""


@pytest.mark.slow
def test_one_two_four_and_eight_devices_have_the_same_losses():
    """At rates so small that the near-ties of the max pool do not multiply: to 2e-4 over 4 steps.

    In float32 the loss of ResNet50's forward pass alone differs by 2e-5. With statistics of its own
    chips, a device's losses are others.
    """
    env = os.environ | {"PLANET_JAX_TEST_DEVICES": "8", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ran = subprocess.run(
        [sys.executable, "-c", LOSSES], env=env, capture_output=True, text=True, check=True
    )
    losses = np.array(json.loads(ran.stdout)).reshape(2, 4, 4)
    np.testing.assert_allclose(losses[0, 1:], losses[0, :1].repeat(3, 0), rtol=2e-4)
    np.testing.assert_allclose(losses[1, 0], losses[0, 0], rtol=2e-4)
    assert (abs(losses[1, 1:, 0] - losses[0, 0, 0]) > 1e-3).all()


def test_bfloat16_is_of_the_activations_alone(variables, batch):
    """The state and the loss keep the dtypes of a float32 run.

    test_model has the effect on a block, benchmarks/precision.py that on a stage's scores.
    """
    rates = {"lr": np.zeros(3, np.float32), "beta1": np.zeros((), np.float32)}
    on_devices = {name: to_devices(array, 1) for name, array in batch.items()}
    shapes = []
    for precision in ("float32", "bfloat16"):
        model = classifier.build(5, precision=precision)
        step = make_train_step(model, False, 1e-2, jax.devices()[:1])
        given = create_state(variables, False), on_devices, rates, jax.random.key(3)
        assert ("bf16" in str(jax.make_jaxpr(step)(*given))) == (precision == "bfloat16")
        shapes.append(jax.eval_shape(step, *given))
    assert shapes[0] == shapes[1]
    state, loss = shapes[1]
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim} == {jnp.dtype("float32")}


def test_global_batch_norm_and_its_gradient_are_those_of_the_whole_batch():
    rng = np.random.default_rng(0)
    x = (2 + rng.standard_normal((16, 3, 3, 4))).astype(np.float32)
    variables = BatchNorm().init(jax.random.key(0), x, train=False)
    weight = rng.standard_normal(x.shape).astype(np.float32)

    def gradients(devices):
        norm = BatchNorm(BATCH_AXIS)

        def step(variables, x, weight):
            def loss_fn(params, x):
                given = {"params": params, "batch_stats": variables["batch_stats"]}
                out, changed = norm.apply(given, x, train=True, mutable=["batch_stats"])
                return (jax.numpy.sin(out) * weight).mean(), changed["batch_stats"]

            grads, stats = jax.grad(loss_fn, (0, 1), has_aux=True)(variables["params"], x)
            # The loss is a mean over devices, so a chip's own gradient is shared out among them.
            return jax.lax.pmean(grads[0], BATCH_AXIS), grads[1] / devices, stats

        mapped = jax.pmap(
            step, BATCH_AXIS, in_axes=(None, 0, 0), out_axes=(None, 0, None),
            devices=jax.devices()[:devices],
        )  # fmt: skip
        params, own, stats = mapped(variables, to_devices(x, devices), to_devices(weight, devices))
        return params, np.asarray(own).reshape(x.shape), stats

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)  # noqa: E731
    jax.tree.map(close, gradients(4), gradients(1))


def test_frozen_parameters_keep_their_bits_and_have_no_moments(variables, batch):
    state, _ = take_steps(variables, batch, 1, 2)
    moved = {True: 0, False: 0}

    def compare(path, before, after):
        names = tuple(key.key for key in path)
        moved[classifier.trains(names, True)] += int((np.asarray(after) != before).any())

    jax.tree_util.tree_map_with_path(compare, variables["params"], state.params)
    assert moved == {True: 114, False: 0}  # scale and bias of 55 BatchNorms and of 2 linears
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if classifier.trains(tuple(key.key for key in path), True)
    )


def test_logits_come_whole_and_in_order(variables, batch):
    model = classifier.build(5)
    predict = make_predict_step(model, jax.devices()[:4])
    logits = predict(variables, to_devices(batch["chips"], 4))
    alone = make_predict_step(model, jax.devices()[:1])(variables, to_devices(batch["chips"], 1))
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-4)


def test_the_views_on_the_device_are_the_loaders():
    chips = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    seen = set()
    for k in range(VIEWS):
        neutral = augment.draw(np.random.default_rng(0), 2, p=0)
        view = augment.render(chips, dataclasses.replace(neutral, dihedral=np.full(2, k)), 8)
        np.testing.assert_array_equal(dihedral_view(jnp.asarray(chips), k), view)
        seen.add(view.tobytes())
    assert len(seen) == VIEWS


def test_averages_of_logits_and_of_probabilities():
    logits = np.random.default_rng(0).normal(0, 3, (3, 4, 2)).astype(np.float32)
    weights = [0.4, 0.4, 0.2]
    p = 1 / (1 + np.exp(-logits.astype(float)))
    for how, expected in {
        "logits": np.tensordot(weights, logits.astype(float), 1),
        "probabilities": scipy.special.logit(np.tensordot(weights, p, 1)),
    }.items():
        np.testing.assert_allclose(average_logits(logits, how, weights), expected, atol=1e-5)
        np.testing.assert_allclose(average_logits(logits[:1], how), logits[0], atol=1e-5)
    far = np.array([[200.0], [-200]], np.float32)  # probabilities 1 and 0: a half
    assert average_logits(far, "probabilities")[0] == pytest.approx(0, abs=1e-4)


def test_eight_views_give_a_chip_and_its_mirror_the_same_logits(variables, batch):
    """They equal the average of eight separate passes."""
    model, chips = classifier.build(5), batch["chips"][:4]
    predict = make_predict_step(model, jax.devices()[:1])
    views = [
        predict(variables, to_devices(np.asarray(dihedral_view(chips, k)), 1)) for k in range(VIEWS)
    ]
    expected = average_logits(jnp.stack(views), "probabilities")
    averaging = make_predict_step(model, jax.devices()[:1], average="probabilities")
    logits = averaging(variables, to_devices(chips, 1))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(views[0] - logits).max() > 1e-2
    mirrored = averaging(variables, to_devices(chips[:, :, ::-1].swapaxes(1, 2), 1))
    np.testing.assert_allclose(mirrored, logits, rtol=1e-3, atol=1e-4)


def test_the_range_test_leaves_no_trace(tmp_path):
    root = write_chips(tmp_path / "root", ["a", "b", "a b", "c"] * 8)
    config = get_config()
    config.data.root, config.model.weights = str(root), "random"
    config.data.size, config.data.batch_size = 32, 8
    config.lr_range.steps = 20
    stage = Stage(config, dataset.load(root, tmp_path / "cache"))
    state = stage.start_state()
    before = jax.tree.map(np.array, state)
    lrs, losses = lr_range.run(stage, state)
    assert len(lrs) == len(losses) > 1
    jax.tree.map(np.testing.assert_array_equal, state, before)
    again = lr_range.run(stage, state)  # and no random state that a second run would show
    np.testing.assert_array_equal(losses, again[1])


def test_a_batch_that_does_not_divide_names_the_nearest():
    assert jax.device_count() == 4
    with pytest.raises(BadInput, match=r"does not divide over 4 devices; .*: 8 or 12"):
        check_batch(10)
    with pytest.raises(BadInput, match="the nearest that does: 4"):
        check_batch(3)
