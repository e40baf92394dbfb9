import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from planet_jax.model import classifier
from planet_jax.model.norm import BatchNorm
from planet_jax.train.log import Smooth
from planet_jax.train.optimizer import (
    adam,
    group_labels,
    group_rates,
    merge,
    one_cycle,
    one_cycles,
    split_frozen,
)
from tests.support import needs_shared


@needs_shared
def test_one_cycle_is_fastais(reference):
    expected = reference["one_cycle_n50"]
    schedule = one_cycle(50, group_rates((1e-2, 2e-2)))
    np.testing.assert_allclose(schedule.lr, expected["lr"], rtol=1e-12)
    np.testing.assert_allclose(schedule.beta1, expected["beta1"], rtol=1e-12)


@needs_shared
def test_group_rates_are_fastais_slices(reference):
    expected = reference["lr_range"]
    for name, lr in {
        "slice(1e-2,2e-2)": (1e-2, 2e-2), "slice(1e-4,2e-3)": (1e-4, 2e-3),
        "slice(1e-2)": (1e-3, 1e-3, 1e-2), "slice(1e-5,2e-3)": (1e-5, 2e-3),
    }.items():  # fmt: skip
        np.testing.assert_allclose(group_rates(lr), expected[name], rtol=1e-12)
    assert group_rates((1e-2,)).tolist() == [1e-2] * 3


@pytest.mark.parametrize("steps", range(1, 8))
def test_short_cycles_are_finite_and_within_bounds(steps):
    schedule = one_cycle(steps, group_rates((1.0,)))
    assert len(schedule.lr) == len(schedule.beta1) == steps
    assert ((schedule.lr > 0) & (schedule.lr <= 1)).all()
    assert ((schedule.beta1 >= 0.85) & (schedule.beta1 <= 0.95)).all()


def test_restarts_repeat_the_cycle():
    once, twice = (one_cycles(n, 10, group_rates((1.0,))) for n in (1, 2))
    np.testing.assert_array_equal(once.lr, one_cycle(10, group_rates((1.0,))).lr)
    half = one_cycle(5, group_rates((1.0,)))
    np.testing.assert_array_equal(twice.lr, np.concatenate([half.lr, half.lr]))
    np.testing.assert_array_equal(twice.beta1, np.concatenate([half.beta1, half.beta1]))
    assert len(one_cycles(3, 11, group_rates((1.0,))).lr) == 11


class Tiny(nn.Module):
    """The reference's network: a = Linear + BN, relu, b = Linear, relu, c = Linear."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(BatchNorm(name="a1")(nn.Dense(8, name="a0")(x), train=True))
        return nn.Dense(3, name="c")(nn.relu(nn.Dense(8, name="b")(x)))


TINY = {"a.0": "a0", "a.1": "a1", "b": "b", "c": "c"}


def tiny_variables(arrays, prefix):
    params, stats = {}, {}
    for torch, ours in TINY.items():
        weight, bias = arrays[f"{prefix}/{torch}.weight"], arrays[f"{prefix}/{torch}.bias"]
        params[ours] = {"scale" if ours == "a1" else "kernel": weight.T, "bias": bias}
    mean, var = (arrays[f"{prefix}/a.1.running_{name}"] for name in ("mean", "var"))
    stats["a1"] = {"mean": mean, "var": var}
    return params, stats


@needs_shared
def test_trajectory_is_fastais(reference, arrays):
    """In the reference, b and c kept their values to the bit.

    These groups are bare Linear layers. fastai v1's optimizer takes only the children of a group's
    modules, and a Linear layer has none.
    """
    expected = reference["trajectory"]
    params, stats = tiny_variables(arrays, "traj_init")
    final_params, final_stats = tiny_variables(arrays, "traj_final")
    trainable = {name: params.pop(name) for name in ("a0", "a1")}
    labels = jax.tree.map(lambda _: "group0", trainable)
    schedule = one_cycle(20, group_rates((1e-2, 2e-2)))
    np.testing.assert_allclose(schedule.lr, expected["lr"], rtol=1e-12)
    opt_state = adam(labels, np.zeros(3), np.zeros(()), 0.01).init(trainable)

    @jax.jit
    def step(trainable, stats, opt_state, x, y, lr, beta1):
        def loss_fn(trainable):
            variables = {"params": params | trainable, "batch_stats": stats}
            logits, changed = Tiny().apply(variables, x, mutable=["batch_stats"])
            return optax.sigmoid_binary_cross_entropy(logits, y).mean(), changed["batch_stats"]

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        updates, opt_state = adam(labels, lr, beta1, 0.01).update(grads, opt_state, trainable)
        return optax.apply_updates(trainable, updates), stats, opt_state, loss

    losses = []
    for i in range(20):
        batch = slice(i % 5 * 16, i % 5 * 16 + 16)
        trainable, stats, opt_state, loss = step(
            trainable, stats, opt_state, arrays["traj_x"][batch], arrays["traj_y"][batch],
            schedule.lr[i].astype(np.float32), schedule.beta1[i].astype(np.float32),
        )  # fmt: skip
        losses.append(float(loss))
    np.testing.assert_allclose(losses, expected["loss"], rtol=1e-5)
    # A bias before a BatchNorm has a gradient of zero, so Adam moves it only by rounding noise.
    # Only the running mean follows this bias.
    noise = np.asarray(trainable["a0"].pop("bias")) - final_params["a0"].pop("bias")
    assert np.abs(noise).max() < 0.02
    for name in ("a0", "a1"):
        for leaf, value in trainable[name].items():
            np.testing.assert_allclose(value, final_params[name][leaf], atol=1e-5)
    np.testing.assert_allclose(stats["a1"]["var"], final_stats["a1"]["var"], rtol=1e-4)
    smooth = Smooth()
    np.testing.assert_allclose(
        [smooth.add(loss) for loss in expected["loss"]], expected["smooth_loss"], rtol=1e-5
    )


def test_each_group_takes_its_own_rate_and_the_decay():
    """Compare with the explicit update: decay, then torch's Adam with the step's own momentum."""
    rng = np.random.default_rng(0)
    names = ("group0", "group1", "group2")
    params = {name: {"w": rng.standard_normal(5)} for name in names}
    labels = {name: {"w": name} for name in names}
    schedule = one_cycle(12, group_rates((1e-2, 2e-2)))
    expected = {name: params[name]["w"].copy() for name in names}
    m, v = ({name: np.zeros(5) for name in names} for _ in range(2))
    state = adam(labels, np.zeros(3), np.zeros(()), 0.01).init(params)
    for t in range(12):
        grads = {name: {"w": rng.standard_normal(5) * 10.0**-t} for name in names}
        lr, beta1 = schedule.lr[t], schedule.beta1[t]
        updates, state = adam(labels, lr, beta1, 0.01).update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for i, name in enumerate(names):
            g = grads[name]["w"]
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = 0.99 * v[name] + 0.01 * g**2
            expected[name] *= 1 - lr[i] * 0.01
            denominator = np.sqrt(v[name] / (1 - 0.99 ** (t + 1))) + 1e-8
            expected[name] -= lr[i] * m[name] / (1 - beta1 ** (t + 1)) / denominator
    for name in names:
        np.testing.assert_allclose(params[name]["w"], expected[name], rtol=2e-5)  # float32 steps


def test_frozen_are_the_convolutions_below_the_head():
    params = classifier.abstract_variables(17)["params"]
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    trainable, frozen = split_frozen(params, freeze=True)
    assert (count(trainable), count(frozen)) == (2_168_721, 23_454_912)
    assert jax.tree.structure(merge(trainable, frozen)) == jax.tree.structure(params)
    assert count(split_frozen(params, freeze=False)[0]) == 25_623_633
    groups = {"group0": 0, "group1": 0, "group2": 0}
    for group, leaf in zip(
        jax.tree.leaves(group_labels(params)), jax.tree.leaves(params), strict=True
    ):
        groups[group] += leaf.size
    assert groups == {"group0": 1_444_928, "group1": 22_063_104, "group2": 2_115_601}


def test_a_parameter_of_no_group_is_an_error():
    with pytest.raises(ValueError, match="backbone/layer5_0/kernel belongs to no layer group"):
        group_labels({"backbone": {"layer5_0": {"kernel": jnp.zeros(3)}}})
