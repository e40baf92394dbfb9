import functools
import itertools

import flax.linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from planet_jax.model import classifier, weights
from planet_jax.model.layers import PRECISIONS, Conv, Dropout, convolve, relu
from planet_jax.model.norm import (
    BatchNorm,
    FoldedBatchNorm,
    PooledBatchNorm,
    moments_of_product,
    worth_folding,
)
from planet_jax.model.resnet import Bottleneck
from planet_jax.model.summary import layer_table
from planet_jax.runtime.errors import BadInput
from tests.support import needs_shared


@pytest.mark.parametrize(
    ("kernel", "stride", "width"), [*itertools.product([1, 3, 7], [1, 2], [5, 256])]
)
def test_convolution_and_its_gradients_are_xlas(kernel, stride, width):
    """Every special form of the CPU, for few channels or many, against the plain convolution."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 9, 8, width)).astype(np.float32)
    w = rng.standard_normal((kernel, kernel, width, 6)).astype(np.float32)
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


def test_batch_norm_is_torchs():
    """The biased variance normalizes; the running one takes the unbiased, with momentum 0.1."""
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


@pytest.mark.parametrize("rows", [2, 16])  # a side: too few for folding, and enough
def test_batch_norm_of_a_product_is_that_of_the_product_formed(rows):
    """Output, statistics and all three gradients, in float64 to show errors of the formula only."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = 1 + rng.standard_normal((4, rows, rows, 8))
        kernel = rng.standard_normal((1, 1, 8, 12))
        assert worth_folding(x) == (rows == 16)
        variables = _random_norm(rng, 12)

        def short(params, x, kernel):
            return _normed(FoldedBatchNorm, params, variables, x, kernel)

        def long(params, x, kernel):
            return _normed(BatchNorm, params, variables, convolve(x, kernel))

        _same(short, long, variables["params"], x, kernel)


@pytest.mark.parametrize("size", [9, 8])
def test_batch_norm_of_pooled_maxima_is_the_pool_of_batch_norm(size):
    """With gains of both signs; a negative one reverses the order of values. Gradients too."""
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

    Rounding the products to bfloat16 would change it by more than its size.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(4 + rng.standard_normal((2048, 16)), jnp.bfloat16)
    kernel = rng.standard_normal((16, 24)).astype(np.float32)
    mean, square, _ = moments_of_product(x, kernel)
    product = np.asarray(x, np.float64) @ kernel
    np.testing.assert_allclose(square - mean**2, product.var(0), rtol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_in_bfloat16_is_that_in_float32_to_its_rounding(stride):
    """Output and statistics to some 2^-8 of their size: kernels are rounded too.

    Gradients to twice the root of 3 * 2^-8: rounding turns the sign of about one in 2^8 of each
    of three ReLUs, which gives or takes that share of a sum of terms of either sign. (A fresh
    network of fifty layers multiplies all this by hundreds, with float32's rounding too.)
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((8, 16, 16, 64)) + 1, jnp.bfloat16)
    weight = jnp.asarray(rng.standard_normal((8, 16 // stride, 16 // stride, 256)), jnp.float32)
    variables = jax.jit(functools.partial(Bottleneck(64, stride).init, train=False))(
        jax.random.key(0), x
    )

    def results(precision):
        block = Bottleneck(64, stride, precision=precision)

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


def test_relu_has_the_gradient_of_a_maximum():
    x = np.array([-1.0, 0.0, 2.0], np.float32)
    np.testing.assert_array_equal(relu(x), [0, 0, 2])
    np.testing.assert_array_equal(jax.grad(lambda x: (3 * relu(x)).sum())(x), [0, 0, 3])


def test_head_is_the_formula_in_numpy():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 2, 2048)).astype(np.float32)
    head = classifier.Head(17)
    variables = head.init(jax.random.key(0), x, train=False, places=None)
    stats = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape), variables["batch_stats"])
    params = jax.tree.map(lambda p: 0.1 * rng.standard_normal(p.shape), variables["params"])
    logits = head.apply({"params": params, "batch_stats": stats}, x, train=False, places=None)

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


@pytest.fixture
def random_weights(resnet50_shapes):
    """Weights of ResNet50 for 17 classes, drawn from a seed without compiling its init."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        leaves = lambda leaf: rng.random(leaf.shape, np.float32)  # noqa: E731
        return jax.tree.map(leaves, resnet50_shapes)

    return draw


def test_weights_there_and_back(random_weights):
    variables = random_weights(0)
    state = weights.to_torchvision(variables)
    assert state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert state["head.8.weight"].shape == (17, 512)
    body = {k: v for k, v in state.items() if not k.startswith("head.")}
    params, batch_stats = weights.from_torchvision(body | {"bn1.num_batches_tracked": np.array(3)})
    for tree, kind in ((params, "params"), (batch_stats, "batch_stats")):
        jax.tree.map(np.testing.assert_array_equal, tree, dict(variables[kind]["backbone"]))


def test_weights_from_a_file_with_and_without_a_head(tmp_path, random_weights):
    source, fresh = random_weights(0), random_weights(1)
    state = weights.to_torchvision(source)
    state["fc.weight"] = np.zeros((1000, 2048), np.float32)
    save_file(state, tmp_path / "whole.safetensors")
    filled = weights.fill(fresh, str(tmp_path / "whole.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, filled, source)
    body = {k: v for k, v in state.items() if not k.startswith("head.")}
    save_file(body, tmp_path / "body.safetensors")
    filled = weights.fill(fresh, str(tmp_path / "body.safetensors"))
    for kind in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, filled[kind]["backbone"], source[kind]["backbone"]
        )
        jax.tree.map(np.testing.assert_array_equal, filled[kind]["head"], fresh[kind]["head"])
    assert weights.fill(fresh, "random") is fresh


def test_wrong_weights_are_all_named(tmp_path, random_weights):
    variables = random_weights(0)
    state = weights.to_torchvision(variables)
    del state["layer2.1.bn2.bias"]
    state["conv1.weight"] = np.zeros((64, 3, 3, 3), np.float32)
    state["layer9.weight"] = np.zeros(3, np.float32)
    state["bn1.bias"] = np.full(64, np.nan, np.float32)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(BadInput) as caught:
        weights.fill(variables, str(tmp_path / "wrong.safetensors"))
    for problem in (
        "layer2.1.bn2.bias is missing",
        "layer9.weight is not known",
        "conv1.weight is (64, 3, 3, 3), not (64, 3, 7, 7)",
        "bn1.bias is not finite",
    ):
        assert problem in str(caught.value)
    (tmp_path / "none.safetensors").write_bytes(b"PK\x03\x04 no such thing")
    for file in ("none.safetensors", "absent.safetensors"):
        with pytest.raises(BadInput, match="cannot be read as safetensors"):
            weights.fill(variables, str(tmp_path / file))


def test_without_the_hub_the_way_out_is_named(monkeypatch, tmp_path):
    def unreachable(repo, file):
        assert (repo, file) == ("timm/resnet50.tv_in1k", "model.safetensors")
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(
        BadInput, match=r"model\.weights=imagenet: .* cannot be fetched .* to its path"
    ):
        weights.fill({}, "imagenet")
