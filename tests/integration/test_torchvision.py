"""Compare ResNet50 with torchvision's stored outputs, and with torchvision if it is installed."""

import jax
import numpy as np
import pytest

from planet_jax.model import weights
from planet_jax.model.resnet import ResNet50
from tests.support import SHARED, needs_shared


@needs_shared
@pytest.mark.parametrize("size", [128, 256])
def test_resnet50_is_torchvisions(formula_weights, size):
    with np.load(SHARED / "reference" / "resnet50_torchvision.npz") as file:
        expected = dict(file)
    if f"logits_{size}" not in expected:
        pytest.skip(f"the reference has no {size} px")
    params, batch_stats = weights.from_torchvision(formula_weights)
    x = np.random.default_rng(size).standard_normal((2, size, size, 3)).astype(np.float32)
    variables = {"params": params, "batch_stats": batch_stats}
    apply = jax.jit(
        lambda variables, x: ResNet50().apply(
            variables, x, train=False, capture_intermediates=_is_stage, mutable=["intermediates"]
        )
    )
    features, captured = apply(variables, x)
    np.testing.assert_allclose(
        features, expected[f"layer4_{size}"], atol=1e-4 * np.abs(expected[f"layer4_{size}"]).max()
    )
    logits = features.mean((1, 2)) @ formula_weights["fc.weight"].T + formula_weights["fc.bias"]
    scale = np.abs(expected[f"logits_{size}"]).max()
    np.testing.assert_allclose(logits, expected[f"logits_{size}"], atol=1e-4 * scale)
    for stage, last in (("layer1", 2), ("layer2", 3), ("layer3", 5)):
        (output,) = captured["intermediates"][f"{stage}_{last}"]["__call__"]
        assert output.shape == tuple(expected[f"{stage}_{size}_shape"])
        for name, figure in (("mean", output.mean((1, 2))), ("std", output.std((1, 2)))):
            wanted = expected[f"{stage}_{size}_{name}"]
            np.testing.assert_allclose(figure, wanted, atol=1e-4 * np.abs(wanted).max())


def _is_stage(module, method):
    return method == "__call__" and type(module).__name__ == "Bottleneck"


@pytest.mark.parametrize("size", [96, 128, 256])
def test_any_size_is_torchvisions(formula_weights, size):
    torch = pytest.importorskip("torch")
    torch.library.register_fake = lambda *_, **__: lambda f: f  # torchvision for another torch
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet50().eval()
    model.load_state_dict({k: torch.tensor(v) for k, v in formula_weights.items()}, strict=False)
    x = np.random.default_rng(size).standard_normal((2, size, size, 3)).astype(np.float32)
    body = torch.nn.Sequential(*list(model.children())[:-2])
    with torch.no_grad():
        expected = body(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    params, batch_stats = weights.from_torchvision(formula_weights)
    variables = {"params": params, "batch_stats": batch_stats}
    features = jax.jit(lambda v, x: ResNet50().apply(v, x, train=False))(variables, x)
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max())
