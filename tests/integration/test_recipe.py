"""Test what a recipe adds to a training step: parts of a batch, clipping, moving averages."""

import dataclasses

import jax
import numpy as np
import pytest

from planet_jax.model import classifier
from planet_jax.train.losses import Loss
from planet_jax.train.stage import make_stage
from planet_jax.train.steps import Recipe, create_state, make_train_step, to_devices
from tests.steps import CLASSES, one_batch, start_weights, take_steps
from tests.support import small_config


def frozen_step(recipe, batch, devices=1):
    """Return a function that takes a step of the tiny network from a state."""
    # No dropout before the head's second BatchNorm, whose statistics would depend on it.
    model = dataclasses.replace(classifier.build(CLASSES, "tiny"), dropout=(0.0, 0.5))
    step = make_train_step(model, recipe, tuple(jax.devices()[:devices]))
    rates = {"lr": np.full(3, 1e-2, np.float32), "beta1": np.asarray(0.9, np.float32)}
    on_devices = {name: to_devices(array, devices) for name, array in batch.items()}
    return lambda state: step(jax.tree.map(np.array, state), on_devices, rates, jax.random.key(3))


def test_accumulated_parts_are_one_large_batch():
    """The parts have the same chips, so the same BatchNorm statistics, but different labels."""
    batch = one_batch()
    batch = {"chips": np.tile(batch["chips"][:4], (4, 1, 1, 1)), "targets": batch["targets"]}
    recipe = Recipe(True, 1e-2, Loss(gamma=(1.0, 2.0), soft_f2=0.5))
    start = create_state(start_weights("tiny"), recipe)
    whole, loss = frozen_step(recipe, batch, devices=2)(start)
    parts, loss_of_parts = frozen_step(recipe._replace(accumulate=2), batch, devices=2)(start)
    assert float(loss_of_parts) == pytest.approx(float(loss), rel=1e-5)  # sums in another order
    moments = [jax.tree.leaves(state.opt_state) for state in (whole, parts)]
    for one, two in zip(*moments, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-3 * np.abs(one).max())
    # BatchNorm's running statistics see two batches instead of one.
    means = [state.batch_stats["head"]["bn1"]["mean"] for state in (whole, parts)]
    assert not np.allclose(*means)


def gradient_norm(state):
    """Return the norm of all gradients of the first step; Adam's first moments are 0.1 of them."""
    moments = jax.tree_util.tree_leaves_with_path(state.opt_state)
    first = [np.ravel(leaf) for path, leaf in moments if "mu" in jax.tree_util.keystr(path)]
    return float(np.linalg.norm(np.concatenate(first))) / 0.1


def test_gradients_are_clipped_and_weights_averaged():
    recipe = Recipe(True, 0.0, clip_norm=0.01, ema_decay=0.25)
    take = frozen_step(recipe, one_batch())
    state, _ = take(create_state(start_weights("tiny"), recipe))
    assert gradient_norm(state) == pytest.approx(0.01, rel=1e-4)
    assert gradient_norm(take_steps("tiny", 1, 1)[0]) > 0.1  # not clipped
    expected = start_weights("tiny")
    for step in range(3):
        decay, now = min(0.25, (1 + step) / (10 + step)), state.variables
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, expected, now)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, expected)
        state, _ = take(state)
    frozen, start = (tree["params"]["backbone"] for tree in (state.ema, start_weights("tiny")))
    np.testing.assert_array_equal(frozen["conv1"]["kernel"], start["conv1"]["kernel"])


def test_present_labels_are_weighted_by_the_training_chips(tmp_path):
    stage = make_stage(small_config(tmp_path, **{"loss.balance": 0.5}))
    present = stage.data.labels.targets[stage.train_rows].sum(0)
    expected = np.sqrt((20 - present) / present)
    np.testing.assert_allclose(stage.recipe.loss.present_weights, expected)
    assert make_stage(small_config(tmp_path)).recipe == Recipe(True, 1e-2)  # the notebook's
