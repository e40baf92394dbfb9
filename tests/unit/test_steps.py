import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from planet_jax.data import augment
from planet_jax.model import classifier, norm
from planet_jax.model.layers import BATCH_AXIS
from planet_jax.model.norm import BatchNorm, FoldedBatchNorm
from planet_jax.runtime.errors import BadInput
from planet_jax.train import lr_range, steps
from planet_jax.train.stage import check_batch, make_stage
from planet_jax.train.start import Start, initial_state
from planet_jax.train.steps import (
    VIEWS,
    Recipe,
    average_logits,
    create_state,
    dihedral_view,
    make_predict_step,
    make_train_step,
    to_devices,
)
from tests.steps import CLASSES, one_batch, start_weights, take_steps
from tests.support import small_config


@pytest.fixture(scope="module", params=["tiny", pytest.param("resnet50", marks=pytest.mark.slow)])
def network(request):
    """Return the name of the quick network, or of the real one, which compiles for minutes."""
    return request.param


def test_bfloat16_changes_the_activations_alone(network):
    """The state and the loss keep the dtypes of a float32 run.

    test_model tests the effect on a block; benchmarks/precision.py measures it on stage scores.
    """
    rates = {"lr": np.zeros(3, np.float32), "beta1": np.zeros((), np.float32)}
    on_devices = {name: to_devices(array, 1) for name, array in one_batch().items()}
    shapes = []
    for precision in ("float32", "bfloat16"):
        model = classifier.build(CLASSES, network, precision=precision)
        step = make_train_step(model, Recipe(False, 1e-2), tuple(jax.devices()[:1]))
        state = create_state(start_weights(network), Recipe(False, 1e-2))
        inputs = state, on_devices, rates, jax.random.key(3)
        jaxpr, shape = jax.make_jaxpr(step, return_shape=True)(*inputs)
        assert ("bf16" in str(jaxpr)) == (precision == "bfloat16")
        shapes.append(shape)
    assert shapes[0] == shapes[1]
    state, loss = shapes[1]
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim} == {jnp.dtype("float32")}


@pytest.mark.parametrize("folded", [False, True])
def test_global_batch_norm_and_its_gradient_are_those_of_the_whole_batch(folded):
    rng = np.random.default_rng(0)
    x = (2 + rng.standard_normal((16, 3, 3, 4))).astype(np.float32)
    layer = (FoldedBatchNorm if folded else BatchNorm)(BATCH_AXIS)
    kernel = (rng.standard_normal((1, 1, 4, 4)).astype(np.float32),) if folded else ()
    variables = layer.init(jax.random.key(0), x, *kernel, train=False)
    weight = rng.standard_normal(x.shape).astype(np.float32)

    def gradients(devices):
        def step(variables, x, weight):
            def loss_fn(params, x):
                out, changed = layer.apply(
                    variables | {"params": params}, x, *kernel, train=True, mutable=["batch_stats"]
                )
                return (jax.numpy.sin(out) * weight).mean(), changed["batch_stats"]

            grads, stats = jax.grad(loss_fn, (0, 1), has_aux=True)(variables["params"], x)
            # The loss is a mean over devices, so a chip's gradient is divided by their number.
            return jax.lax.pmean(grads[0], BATCH_AXIS), grads[1] / devices, stats

        mapped = jax.pmap(
            step, BATCH_AXIS, in_axes=(None, 0, 0), out_axes=(None, 0, None),
            devices=tuple(jax.devices()[:devices]),
        )  # fmt: skip
        params, own, stats = mapped(variables, to_devices(x, devices), to_devices(weight, devices))
        return params, np.asarray(own).reshape(x.shape), stats

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)  # noqa: E731
    jax.tree.map(close, gradients(4), gradients(1))


@pytest.mark.parametrize("limit", [0, 10**6])
def test_a_step_folds_norms_by_the_limit_of_its_device(limit, monkeypatch):
    chosen = mock.Mock(return_value=limit)
    folded = mock.Mock(wraps=norm.moments_of_product)
    monkeypatch.setattr(steps, "fold_limit", chosen)
    monkeypatch.setattr(norm, "moments_of_product", folded)
    recipe = Recipe(True, 1e-2)
    model = classifier.build(CLASSES, "tiny")
    step = make_train_step.__wrapped__(model, recipe, tuple(jax.devices()[:1]))
    batch = {name: to_devices(array, 1) for name, array in one_batch().items()}
    rates = {"lr": np.zeros(3, np.float32), "beta1": np.zeros((), np.float32)}
    jax.eval_shape(
        step, create_state(start_weights("tiny"), recipe), batch, rates, jax.random.key(3)
    )
    chosen.assert_called_once_with("cpu", True)
    assert folded.called == (limit == 0)


def test_frozen_parameters_keep_their_bits_and_have_no_moments(network):
    variables = start_weights(network)
    state, _ = take_steps(network, 1, 2)
    moved = {True: 0, False: 0}

    def compare(path, before, after):
        names = tuple(key.key for key in path)
        moved[classifier.trains(names, True)] += int((np.asarray(after) != before).any())

    jax.tree_util.tree_map_with_path(compare, variables["params"], state.params)
    blocks, projections = {"tiny": (4, 3), "resnet50": (16, 4)}[network]
    norms = 1 + 3 * blocks + projections + 2  # plus two in the head
    assert moved == {True: 2 * norms + 4, False: 0}  # 2 a norm, 2 a Linear layer
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if classifier.trains(tuple(key.key for key in path), True)
    )


def test_logits_come_whole_and_in_order(network):
    model, variables, batch = (
        classifier.build(CLASSES, network),
        start_weights(network),
        one_batch(),
    )
    predict = make_predict_step(model, tuple(jax.devices()[:4]))
    logits = predict(variables, to_devices(batch["chips"], 4))
    alone = make_predict_step(model, tuple(jax.devices()[:1]))(
        variables, to_devices(batch["chips"], 1)
    )
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
    far = np.array([[200.0], [-200]], np.float32)  # the mean of probabilities 1 and 0 is a half
    assert average_logits(far, "probabilities")[0] == pytest.approx(0, abs=1e-4)


def test_eight_views_give_a_chip_and_its_mirror_the_same_logits(network):
    """The logits also equal the average of eight separate passes."""
    model, variables = classifier.build(CLASSES, network), start_weights(network)
    chips = one_batch()["chips"]
    predict = make_predict_step(model, tuple(jax.devices()[:1]))
    views = [
        predict(variables, to_devices(np.asarray(dihedral_view(chips, k)), 1)) for k in range(VIEWS)
    ]
    expected = average_logits(jnp.stack(views), "probabilities")
    averaging = make_predict_step(model, tuple(jax.devices()[:1]), average="probabilities")
    logits = averaging(variables, to_devices(chips, 1))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(views[0] - logits).max() > 1e-2
    mirrored = averaging(variables, to_devices(chips[:, :, ::-1].swapaxes(1, 2), 1))
    np.testing.assert_allclose(mirrored, logits, rtol=1e-3, atol=1e-4)


def test_the_range_test_leaves_no_trace(tmp_path):
    shapes = {"data.size": 64, "data.batch_size": 16}  # as one_batch, to compile once
    config = small_config(tmp_path, **{"lr_range.steps": 20}, **shapes)
    stage = make_stage(config)
    state = initial_state(stage, Start())
    before = jax.tree.map(np.array, state)
    lrs, losses = lr_range.run(stage, state)
    assert len(lrs) == len(losses) > 1
    jax.tree.map(np.testing.assert_array_equal, state, before)
    again = lr_range.run(stage, state)  # the random state did not change either
    np.testing.assert_array_equal(losses, again[1])


def test_a_stage_lowers_its_step_once(tmp_path):
    """A step's results have the layout of its arguments, so the second step needs no lowering."""
    shapes = {"data.size": 40, "data.batch_size": 12}  # as in no other test: nothing is compiled
    stage = make_stage(small_config(tmp_path, **shapes))
    batch, lowered = next(stage.train_batches()), []
    state = initial_state(stage, Start())
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: lowered.append(event) if "jaxpr_to_mlir" in event else None
    )
    counts = []
    for _ in range(3):
        state, _ = stage.train_step(state, batch, stage.schedule.lr[0], 0.9)
        counts.append(len(lowered))
    assert counts[0] > 0
    assert counts[1] == counts[2] == counts[0]


def test_a_batch_that_does_not_divide_names_the_nearest():
    assert jax.device_count() == 4
    with pytest.raises(BadInput, match=r"is not a multiple of 4 devices; .*: 8 or 12"):
        check_batch(10)
    with pytest.raises(BadInput, match="the nearest: 4"):
        check_batch(3)
    with pytest.raises(
        BadInput, match=r"4 devices times 3 parts \(optim\.accumulate\).*: 12 or 24"
    ):
        check_batch(16, accumulate=3)
