import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planet_jax.model import classifier
from planet_jax.model.layers import PRECISIONS, Conv, Dropout, relu, stored_relu
from planet_jax.model.resnet import Bottleneck
from planet_jax.model.summary import layer_table
from tests.support import needs_shared

SHAPES = [(9, 8, 5), (9, 8, 256), (1, 1, 5), (2, 3, 256), (4, 4, 5)]


@pytest.mark.parametrize(
    ("kernel", "stride", "shape"), [*itertools.product([1, 3, 7], [1, 2], SHAPES)]
)
def test_convolution_and_its_gradients_are_xlas(kernel, stride, shape):
    """Compare every CPU form, for small images and many channels, with the plain convolution."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *shape)).astype(np.float32)
    w = rng.standard_normal((kernel, kernel, shape[-1], 6)).astype(np.float32)
    pad = (kernel - 1) // 2

    def ours(x, w):
        return Conv(6, kernel, stride).apply({"params": {"kernel": w}}, x)

    def plain(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def value_and_gradients(f):
        out = f(x, w)
        ct = rng_like(out)
        return out, *jax.vjp(f, x, w)[1](ct)

    def rng_like(out):
        return np.random.default_rng(1).standard_normal(out.shape).astype(np.float32)

    for a, b in zip(value_and_gradients(ours), value_and_gradients(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "fold_from"), [(1, 0), (2, 0), (2, 10**6)])
def test_a_block_in_bfloat16_is_that_in_float32_to_its_rounding(stride, fold_from):
    """Output and statistics agree to some 2^-8 of their size, because kernels are rounded too.

    Gradients agree to twice the root of 3 * 2^-8. Rounding flips the sign of about one in 2^8
    inputs of each of three ReLUs. These flips add or remove the same share of the terms in sums of
    both signs. (In a fresh network of fifty layers all differences are hundreds of times larger,
    with float32's rounding too.)
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((8, 16, 16, 64)) + 1, jnp.bfloat16)
    weight = jnp.asarray(rng.standard_normal((8, 16 // stride, 16 // stride, 256)), jnp.float32)
    variables = jax.jit(functools.partial(Bottleneck(64, stride).init, train=False))(
        jax.random.key(0), x
    )

    def results(precision):
        block = Bottleneck(64, stride, precision=precision, fold_from=fold_from)

        def loss(params, x):
            out, changed = block.apply(
                variables | {"params": params},
                x,
                train=True,
                mutable=["batch_stats"],
            )
            return (out.astype(jnp.float32) * weight).sum(), (out, changed["batch_stats"])

        gradients, (out, stats) = jax.jit(jax.grad(loss, has_aux=True))(
            variables["params"], x.astype(precision.activations)
        )
        return out, stats, gradients

    def close(rtol):
        def check(a, b):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert np.linalg.norm(a - b) < rtol * np.linalg.norm(b)

        return check

    for half, full, rtol in zip(
        results(PRECISIONS["bfloat16"]),
        results(PRECISIONS["float32"]),
        (2**-7, 2**-8, 2 * (3 * 2**-8) ** 0.5),
        strict=True,
    ):
        jax.tree.map(close(rtol), half, full)


@pytest.mark.parametrize("rectify", [relu, stored_relu])
def test_relu_has_the_gradient_of_a_maximum(rectify):
    x = np.array([-1.0, 0.0, 2.0], np.float32)
    np.testing.assert_array_equal(rectify(x), [0, 0, 2])
    np.testing.assert_array_equal(jax.grad(lambda x: (3 * rectify(x)).sum())(x), [0, 0, 3])


def test_a_stored_sum_is_read_and_not_computed_again():
    """A sum reads two arrays and writes one. A sum that is computed again reads a third one."""

    def bytes_moved(rectify):
        def kept(x):  # as in a training step
            return jax.vjp(rectify, x)[0]

        def sums(x, y, z):
            first = kept(x + y)
            return first, kept(first + z)

        arrays = [jax.ShapeDtypeStruct((64, 1024), np.float32)] * 3
        compiled = jax.jit(sums).lower(*arrays).compile()
        return compiled.cost_analysis()["bytes accessed"] / (64 * 1024 * 4)

    assert bytes_moved(stored_relu) == pytest.approx(6, rel=0.01)
    assert bytes_moved(relu) > 6.9


def test_head_is_the_formula_in_numpy():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 2, 2048)).astype(np.float32)
    head = classifier.Head(17)
    variables = head.init(jax.random.key(0), x, train=False, batch_indices=None)
    stats = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape), variables["batch_stats"])
    params = jax.tree.map(lambda p: 0.1 * rng.standard_normal(p.shape), variables["params"])
    logits = head.apply(
        {"params": params, "batch_stats": stats}, x, train=False, batch_indices=None
    )

    def norm(name, x):
        p, s = params[name], stats[name]
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    y = np.concatenate([x.max((1, 2)), x.mean((1, 2))], 1)
    y = norm("bn1", y) @ params["linear1"]["kernel"] + params["linear1"]["bias"]
    y = norm("bn2", np.maximum(y, 0)) @ params["linear2"]["kernel"] + params["linear2"]["bias"]
    np.testing.assert_allclose(logits, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "width"), [("tiny", 512), pytest.param("resnet50", 2048, marks=pytest.mark.slow)]
)
def test_fresh_weights_have_the_spread_of_kaiming(network, width):
    variables = classifier.init(3, 0, network)
    params = variables["params"]
    spread = {
        ("head", "linear1"): np.sqrt(2 / (2 * width)),
        ("head", "linear2"): np.sqrt(2 / 512),
        ("backbone", "conv1"): np.sqrt(2 / (49 * 64)),
        ("backbone", "layer3_0", "conv2"): np.sqrt(2 / (9 * 256)),
    }
    for path, expected in spread.items():
        leaf = params
        for name in path:
            leaf = leaf[name]
        assert np.std(leaf["kernel"]) == pytest.approx(expected, rel=0.03)
    other = classifier.init(3, 1, network)["params"]["head"]["linear1"]["kernel"]
    assert (other != params["head"]["linear1"]["kernel"]).all()


def test_dropout_belongs_to_a_chips_place():
    x = jnp.ones((6, 4000))
    rngs = {"dropout": jax.random.key(1)}
    drop = Dropout(0.25)
    whole = drop.apply({}, x, jnp.arange(6), rngs=rngs)
    part = drop.apply({}, x[:2], jnp.array([4, 5]), rngs=rngs)
    np.testing.assert_array_equal(part, whole[4:])
    kept = np.asarray(whole != 0)
    assert kept.mean() == pytest.approx(0.75, abs=0.01)
    assert np.asarray(whole)[kept] == pytest.approx(1 / 0.75)
    assert (kept[0] != kept[1]).mean() == pytest.approx(2 * 0.75 * 0.25, abs=0.03)
    np.testing.assert_array_equal(drop.apply({}, x, None), x)


@needs_shared
def test_summary_is_fastais(reference):
    rows = layer_table(17, 128, freeze=True)
    assert [[r.type, list(r.output), r.parameters, r.trainable] for r in rows] == reference[
        "summary_128"
    ]
    unfrozen = layer_table(17, 128, freeze=False)
    assert sum(r.parameters for r in unfrozen if r.trainable) == 25_623_633
    assert {r.trainable for r in unfrozen if r.parameters} == {True}
    assert layer_table(17, 256, freeze=True)[0].output == (64, 128, 128)
