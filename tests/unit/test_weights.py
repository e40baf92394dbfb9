"""Test the conversion of weights to and from torchvision's names."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from planet_jax.model import classifier, weights
from planet_jax.model.classifier import abstract_variables
from planet_jax.model.resnet import ResNet34
from planet_jax.runtime.errors import BadInput
from tests.support import SHARED, formula, needs_shared


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
    filled = weights.fill(fresh, tmp_path / "whole.safetensors")
    jax.tree.map(np.testing.assert_array_equal, filled, source)
    body = {k: v for k, v in state.items() if not k.startswith("head.")}
    save_file(body, tmp_path / "body.safetensors")
    filled = weights.fill(fresh, tmp_path / "body.safetensors")
    for kind in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, filled[kind]["backbone"], source[kind]["backbone"]
        )
        jax.tree.map(np.testing.assert_array_equal, filled[kind]["head"], fresh[kind]["head"])


def test_wrong_weights_are_all_named(tmp_path, random_weights):
    variables = random_weights(0)
    state = weights.to_torchvision(variables)
    del state["layer2.1.bn2.bias"]
    state["conv1.weight"] = np.zeros((64, 3, 3, 3), np.float32)
    state["layer9.weight"] = np.zeros(3, np.float32)
    state["bn1.bias"] = np.full(64, np.nan, np.float32)
    state["bn1.running_var"] = np.full(64, -1, np.float32)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(BadInput) as caught:
        weights.fill(variables, tmp_path / "wrong.safetensors")
    for problem in (
        "1 tensor is missing (layer2.1.bn2.bias)",
        "1 tensor is unknown (layer9.weight)",
        "1 tensor is misshapen (conv1.weight [64, 3, 3, 3], not [64, 3, 7, 7])",
        "1 tensor is not finite (bn1.bias)",
        "1 tensor is below 0 (bn1.running_var)",
    ):
        assert problem in str(caught.value)
    (tmp_path / "none.safetensors").write_bytes(b"PK\x03\x04 no such thing")
    for file in ("none.safetensors", "absent.safetensors"):
        with pytest.raises(BadInput, match="cannot be read as safetensors"):
            weights.fill(variables, tmp_path / file)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder_q."])
def test_a_prefix_of_all_names_is_removed_and_named(tmp_path, random_weights, capsys, prefix):
    source = random_weights(0)
    state = {prefix + name: array for name, array in weights.to_torchvision(source).items()}
    state = {name: array for name, array in state.items() if "head." not in name}
    state["queue"] = np.zeros((128, 4), np.float32)
    if "encoder_q" in prefix:
        state |= {n.replace("encoder_q", "encoder_k"): a for n, a in state.items()}
    save_file(state, tmp_path / "prefixed.safetensors")
    filled = weights.fill(random_weights(1), tmp_path / "prefixed.safetensors")
    jax.tree.map(
        np.testing.assert_array_equal, filled["params"]["backbone"], source["params"]["backbone"]
    )
    assert f"the prefix {prefix} is removed; " in capsys.readouterr().err


def test_another_network_is_described_by_counts_and_three_names(tmp_path, random_weights):
    fresh = random_weights(0)
    for network in ("resnet18", "resnet34"):
        other = weights.to_torchvision(classifier.init(17, 0, network))
        save_file(other, tmp_path / "other.safetensors")
        with pytest.raises(BadInput, match=f"their network is {network}; ") as caught:
            weights.fill(fresh, tmp_path / "other.safetensors")
        message = str(caught.value)
        assert "tensors are missing (" in message
        assert len(message) < 900
    ten = weights.to_torchvision(fresh)
    ten["conv1.weight"] = np.zeros((64, 10, 7, 7), np.float32)
    save_file(ten, tmp_path / "ten.safetensors")
    with pytest.raises(BadInput, match="takes images of 10 channels, not 3"):
        weights.fill(fresh, tmp_path / "ten.safetensors")


@needs_shared
@pytest.mark.parametrize("size", [96, 128])
def test_features_of_resnet34_are_torchvisions(size):
    expected = np.load(SHARED / "reference" / "resnets_torchvision.npz")
    shapes = weights.torch_shapes(traverse_util.flatten_dict(abstract_variables(1, "resnet34")))
    state = {n: formula(n, shape) for n, shape in shapes.items() if not n.startswith("head.")}
    params, batch_stats = weights.from_torchvision(state, "resnet34")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == expected["parameters"] - 513_000  # without fc
    x = np.random.default_rng(size).standard_normal((2, size, size, 3)).astype(np.float32)
    features = ResNet34().apply({"params": params, "batch_stats": batch_stats}, x, train=False)
    largest = np.abs(expected[f"layer4_{size}"]).max()
    np.testing.assert_allclose(features, expected[f"layer4_{size}"], rtol=0, atol=1e-5 * largest)
    fc = formula("fc.weight", (1000, 512)), formula("fc.bias", (1000,))
    logits = np.asarray(features).mean((1, 2)) @ fc[0].T + fc[1]
    largest = np.abs(expected[f"logits_{size}"]).max()
    np.testing.assert_allclose(logits, expected[f"logits_{size}"], rtol=0, atol=1e-5 * largest)
