"""Against torchvision itself, where torch and torchvision are installed: no dependency of ours."""

import jax
import numpy as np
import pytest

from planet_jax.model import weights
from planet_jax.model.resnet import ResNet50

torch = pytest.importorskip("torch")
torch.library.register_fake = lambda *_, **__: lambda f: f  # a torchvision for another torch build
torchvision = pytest.importorskip("torchvision")


@pytest.mark.parametrize("size", [96, 128, 256])
def test_any_size_is_torchvisions(formula_weights, size):
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
