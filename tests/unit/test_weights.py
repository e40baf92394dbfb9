"""Test the conversion of weights to and from torchvision's names."""

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from planet_jax.model import weights
from planet_jax.runtime.errors import BadInput


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
