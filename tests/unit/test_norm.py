"""Test the three BatchNorm modules."""

import functools
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planet_jax.model import norm
from planet_jax.model.layers import PRECISIONS, convolve
from planet_jax.model.norm import (
    BatchNorm,
    FoldedBatchNorm,
    PooledBatchNorm,
    moments_of_product,
)


def test_batch_norm_is_torchs():
    """Inputs are normalized by the biased variance.

    The running variance takes the unbiased one, with momentum 0.1.
    """
    rng = np.random.default_rng(0)
    x = (3 + 2 * rng.standard_normal((6, 2, 2, 4))).astype(np.float32)
    variables = {
        "params": {"scale": rng.random(4), "bias": rng.random(4)},
        "batch_stats": {"mean": rng.random(4), "var": rng.random(4)},
    }
    norm = BatchNorm()
    out, changed = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = x.reshape(-1, 4).astype(np.float64)
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * scale + bias
    np.testing.assert_allclose(out.reshape(-1, 4), expected, rtol=1e-4, atol=1e-5)
    old = variables["batch_stats"]
    new = changed["batch_stats"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    scored = norm.apply(variables, x, train=False)
    expected = (x - old["mean"]) / np.sqrt(old["var"] + 1e-5) * scale + bias
    np.testing.assert_allclose(scored, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fold_from", [0, 32, 33])  # there are 32 times as many rows as channels
def test_batch_norm_of_a_product_is_that_of_the_product_formed(fold_from, monkeypatch):
    """Compare output, statistics and three gradients, in float64 to show errors of the formula."""
    spy = mock.Mock(wraps=moments_of_product)
    monkeypatch.setattr(norm, "moments_of_product", spy)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = 1 + rng.standard_normal((4, 8, 8, 8))
        kernel = rng.standard_normal((1, 1, 8, 12))
        variables = _random_norm(rng, 12)

        def short(params, x, kernel):
            folded = functools.partial(FoldedBatchNorm, fold_from=fold_from)
            return _normed(folded, params, variables, x, kernel)

        def long(params, x, kernel):
            return _normed(BatchNorm, params, variables, convolve(x, kernel))

        _same(short, long, variables["params"], x, kernel)
        assert spy.called == (fold_from <= 32)


@pytest.mark.parametrize("size", [9, 8])
def test_batch_norm_of_pooled_maxima_is_the_pool_of_batch_norm(size):
    """Compare outputs and gradients for gains of both signs; a negative gain reverses the order."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((4, size, size, 12))
        variables = _random_norm(rng, 12)
        assert (np.sign(variables["params"]["scale"]) < 0).any()

        def short(params, x):
            return _normed(PooledBatchNorm, params, variables, x)

        def long(params, x):
            out, stats = _normed(BatchNorm, params, variables, x)
            return nn.max_pool(out, (3, 3), (2, 2), ((1, 1), (1, 1))), stats

        _same(short, long, variables["params"], x)


def _random_norm(rng, width):
    params = {"scale": rng.standard_normal(width), "bias": rng.standard_normal(width)}
    stats = {"mean": rng.standard_normal(width), "var": 1 + rng.random(width)}
    return {"params": params, "batch_stats": stats}


def _normed(norm, params, variables, *inputs):
    return norm(precision=PRECISIONS["float64"]).apply(
        variables | {"params": params}, *inputs, train=True, mutable=["batch_stats"]
    )


def _same(short, long, *arguments):
    def loss(function):
        def weighted(*arguments):
            out, stats = function(*arguments)
            weight = np.random.default_rng(1).standard_normal(out.shape)
            return (jnp.sin(out) * weight).sum(), (out, stats)

        return jax.jit(jax.value_and_grad(weighted, tuple(range(len(arguments))), has_aux=True))

    for a, b in zip(*(jax.tree.leaves(loss(f)(*arguments)) for f in (short, long)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max())


def test_moments_of_a_product_are_summed_in_float32():
    """With a large mean, the variance is a small difference of large sums.

    Rounding the products to bfloat16 would change the variance by more than its size.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(4 + rng.standard_normal((2048, 16)), jnp.bfloat16)
    kernel = rng.standard_normal((16, 24)).astype(np.float32)
    mean, square, _ = moments_of_product(x, kernel)
    product = np.asarray(x, np.float64) @ kernel
    np.testing.assert_allclose(square - mean**2, product.var(0), rtol=1e-3)
