import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from planet_jax.model.classifier import exclude
from planet_jax.score import metrics
from planet_jax.train.losses import Loss, soft_fbeta

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (6, 5)).astype(np.float32)
TARGETS = (RNG.random((6, 5)) < 0.4).astype(np.uint8)
P, T = 1 / (1 + np.exp(-LOGITS.astype(float))), TARGETS.astype(float)


def loss_of(**options):
    return float(Loss(**options)(jnp.array(LOGITS), jnp.array(TARGETS)))


def test_the_default_is_the_notebooks():
    assert loss_of() == pytest.approx(metrics.binary_cross_entropy(LOGITS, TARGETS), rel=1e-6)


def test_equal_exponents_are_optax_focal_loss():
    expected = optax.sigmoid_focal_loss(jnp.array(LOGITS), jnp.array(T), gamma=2.0).mean()
    assert loss_of(gamma=(2.0, 2.0)) == pytest.approx(float(expected), rel=1e-5)


def test_the_asymmetric_loss_is_the_papers():
    """Equations 1 to 5 of arXiv:2009.14119, in float64."""
    shifted = np.maximum(P - 0.05, 0)
    present, absent = (1 - P) ** 1 * np.log(P), shifted**4 * np.log(1 - shifted)
    expected = -(T * present + (1 - T) * absent).mean()
    assert loss_of(gamma=(1.0, 4.0), margin=0.05) == pytest.approx(expected, rel=1e-5)


def test_smoothing_moves_targets_to_a_half():
    smooth = 0.8 * T + 0.1
    expected = -(smooth * np.log(P) + (1 - smooth) * np.log(1 - P)).mean()
    assert loss_of(label_smoothing=0.2) == pytest.approx(expected, rel=1e-5)


def test_weights_multiply_present_labels():
    weights = np.array([1.0, 2.0, 4.0, 0.5, 3.0])
    expected = -(weights * T * np.log(P) + (1 - T) * np.log(1 - P)).mean()
    assert loss_of(present_weights=tuple(weights)) == pytest.approx(expected, rel=1e-5)


def test_soft_f2_of_sure_logits_is_f2():
    sure = np.where(LOGITS > 0, 50, -50).astype(np.float32)
    expected = metrics.fbeta_per_chip(sure > 0, TARGETS > 0)
    np.testing.assert_allclose(soft_fbeta(jnp.array(sure), jnp.array(TARGETS)), expected, atol=1e-6)
    soft = float(soft_fbeta(jnp.array(LOGITS), jnp.array(TARGETS)).mean())
    assert loss_of(soft_f2=0.5) == pytest.approx(loss_of() + 0.5 * (1 - soft), rel=1e-6)


def test_exclusive_labels_have_softmaxs_probabilities_and_loss():
    group, one = (0, 2, 3), np.eye(3)[RNG.integers(0, 3, 6)]
    targets = TARGETS.copy()
    targets[:, group] = one
    logits = np.asarray(exclude(jnp.array(LOGITS), group))
    softmax = jax.nn.softmax(LOGITS[:, group], axis=1)
    np.testing.assert_allclose(jax.nn.sigmoid(logits)[:, group], softmax, rtol=1e-5)
    np.testing.assert_array_equal(logits[:, [1, 4]], LOGITS[:, [1, 4]])
    for smoothing in (0.0, 0.3):
        labels = (1 - smoothing) * one + smoothing / 3
        cross_entropy = optax.softmax_cross_entropy(LOGITS[:, group], labels).sum()
        smooth = (1 - smoothing) * targets[:, [1, 4]] + smoothing / 2
        others = optax.sigmoid_binary_cross_entropy(LOGITS[:, [1, 4]], smooth).sum()
        found = Loss(label_smoothing=smoothing, exclusive=group)(logits, jnp.array(targets))
        assert float(found) == pytest.approx(float(cross_entropy + others) / LOGITS.size, rel=1e-5)


EVERYTHING = {"label_smoothing": 0.1, "soft_f2": 1.0, "exclusive": (0, 2)}


@pytest.mark.parametrize("margin", [0.0, 1e-9, 0.5])
@pytest.mark.parametrize("gamma", [(0.0, 0.0), (0.3, 0.3), (1.0, 4.0)])
@pytest.mark.parametrize("more", [{}, EVERYTHING], ids=["alone", "with the rest"])
def test_losses_and_gradients_are_finite(more, gamma, margin):
    extremes = np.float32([-200, -90, -3, 0, 3, 90, 200])
    logits = np.array(list(itertools.product(extremes, repeat=3)))
    loss = Loss(gamma=gamma, margin=margin, **more)

    @jax.jit
    def value_and_gradient(logits, targets):
        exclusive = (lambda x: exclude(x, loss.exclusive)) if loss.exclusive else (lambda x: x)
        return jax.value_and_grad(lambda x: loss(exclusive(x), targets))(logits)

    for targets in itertools.product([0, 1], repeat=3):
        found, gradient = value_and_gradient(logits, np.tile(np.uint8(targets), (len(logits), 1)))
        assert np.isfinite(found)
        assert found >= 0
        assert np.isfinite(gradient).all()


def test_the_loss_of_a_batch_is_the_mean_of_its_parts():
    """Accumulated gradients rely on it."""
    loss = Loss(
        gamma=(1.0, 2.0), margin=0.1, present_weights=(1.0, 2.0, 3.0, 4.0, 5.0), **EVERYTHING
    )
    parts = [float(loss(jnp.array(LOGITS[i::2]), jnp.array(TARGETS[i::2]))) for i in (0, 1)]
    assert float(loss(jnp.array(LOGITS), jnp.array(TARGETS))) == pytest.approx(sum(parts) / 2)
