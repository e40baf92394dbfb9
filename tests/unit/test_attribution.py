"""Test the maps of the last feature map against the head's formula in numpy."""

import jax
import numpy as np
import pytest

from planet_jax.model import classifier
from planet_jax.model.attribution import features, head_logits, label_maps

CLASSES, WIDTH = 5, 512
compute_maps = jax.jit(label_maps, static_argnums=0)


@pytest.fixture(scope="module")
def model():
    """Return a tiny classifier and its variables, with drawn scales, biases and statistics."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype) if leaf.ndim == 1 else leaf

    variables = jax.tree.map(draw, classifier.init(CLASSES, 0, "tiny"))
    return classifier.build(CLASSES, "tiny"), variables


def gradients_by_hand(variables, x, label):
    """Return d logit / d pooled, [n, 2 c], and the logit of zero features with the same ReLUs."""
    params, stats = variables["params"]["head"], variables["batch_stats"]["head"]

    def affine(name):
        gain = params[name]["scale"] / np.sqrt(stats[name]["var"] + 1e-5)
        return gain, params[name]["bias"] - stats[name]["mean"] * gain

    (gain1, shift1), (gain2, shift2) = affine("bn1"), affine("bn2")
    one, two = params["linear1"], params["linear2"]
    pooled = np.concatenate([x.max((1, 2)), x.mean((1, 2))], 1)
    on = (pooled * gain1 + shift1) @ one["kernel"] + one["bias"] > 0
    weight = gain2 * two["kernel"][:, label]
    bias = np.where(on, shift1 @ one["kernel"] + one["bias"], 0) @ weight
    bias = bias + shift2 @ two["kernel"][:, label] + two["bias"][label]
    return (on * weight) @ one["kernel"].T * gain1, bias


def test_maps_are_the_formula_and_sum_to_the_logit_less_the_biases(model):
    network, variables = model
    x = np.maximum(np.random.default_rng(1).standard_normal((3, 2, 4, WIDTH)), 0).astype(np.float32)
    labels = np.array([[0, 3], [4, 4], [2, 1]])
    maps, rest = compute_maps(network, variables, x, labels)
    head = jax.jit(lambda x: head_logits(network, variables, x))
    logits, scaled = jax.jvp(head, (x,), (x,))
    chosen = np.take_along_axis(np.asarray(logits), labels, 1)
    np.testing.assert_allclose(maps.sum((2, 3)) + rest, chosen, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        maps.sum((2, 3)), np.take_along_axis(np.asarray(scaled), labels, 1), rtol=1e-4, atol=1e-4
    )
    is_max = x == x.max((1, 2), keepdims=True)  # no ties, but in channels that are 0 everywhere
    for k in range(2):
        for n in range(3):
            gradient, bias = gradients_by_hand(variables, x[n : n + 1], labels[n, k])
            of_max, of_mean = np.split(gradient[0], 2)
            expected = (x[n] * (is_max[n] * of_max + of_mean / 8)).sum(-1)
            np.testing.assert_allclose(maps[n, k], expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(rest[n, k], bias[0], rtol=1e-4, atol=1e-4)


def test_a_map_finds_the_cell_that_the_logit_depends_on(model):
    """The background is not zero, but only the maxima count, which are all in one cell."""
    network, variables = model
    x = np.full((3, 2, 4, WIDTH), 0.1, np.float32)
    x[:, 1, 2] = [[3], [4], [5]]
    params = variables["params"]
    head = params["head"]
    kernel = np.zeros_like(head["linear1"]["kernel"])
    kernel[:WIDTH] = head["linear1"]["kernel"][:WIDTH]  # only the maxima count
    changed = variables | {
        "params": params | {"head": head | {"linear1": head["linear1"] | {"kernel": kernel}}}
    }
    maps, _ = compute_maps(network, changed, x, np.array([[0, 1], [2, 3], [4, 0]]))
    cells = np.asarray(maps).reshape(6, 8)
    assert (np.abs(cells[:, 6]) > 1e-2).all()
    np.testing.assert_array_equal(np.delete(cells, 6, axis=1), 0)


def test_features_and_head_are_the_classifier(model):
    network, variables = model
    chips = np.random.default_rng(2).integers(0, 256, (2, 64, 96, 3), np.uint8)

    @jax.jit
    def compute(chips):
        x = features(network, variables, chips)
        logits = network.apply(variables, chips, train=False)
        return x.shape, head_logits(network, variables, x), logits

    shape, ours, logits = compute(chips)
    assert shape == (2, 2, 3, WIDTH)
    np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=1e-5)
